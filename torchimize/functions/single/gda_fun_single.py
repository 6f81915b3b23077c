"""Gauss-Newton under its historical name of gradient descent for one problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.functions.single.gna_fun_single import lsq_gna
from torchimize.progress import IterationState


def gradient_descent(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None = None,
    args: Sequence[Any] = (),
    ftol: float = 1e-8,
    ptol: float = 1e-8,
    gtol: float = 1e-8,
    l: float = 1.0,
    max_iter: int = 100,
    bounds: Any = None,
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    history: bool = True,
    full_output: bool = False,
    callback: Callable[[IterationState], object] | None = None,
) -> Any:
    """Steps p − l·h with h the least-squares solution of J h ≈ f.

    The name is historical: this is the Gauss-Newton step, so ``l = 1`` converges where
    Gauss-Newton does and a smaller ``l`` walks the same way more slowly.

    Arguments, returns and errors are those of
    :func:`~torchimize.functions.lsq_gna`.

    Examples
    --------
    >>> import torch
    >>> from torchimize.functions import gradient_descent
    >>> def residual(p):
    ...     return p**2 - torch.tensor([4.0, 9.0], dtype=torch.float64)
    >>> path = gradient_descent(torch.ones(2, dtype=torch.float64), residual)
    >>> path[-1].round(decimals=6).tolist()
    [2.0, 3.0]
    """
    return lsq_gna(
        p,
        function,
        jac_function,
        args,
        ftol,
        ptol,
        gtol,
        l,
        max_iter,
        bounds,
        loss,
        f_scale,
        history,
        full_output,
        callback,
    )
