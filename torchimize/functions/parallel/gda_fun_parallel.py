"""Gauss-Newton under its historical name of gradient descent for a batch of problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.functions.parallel.gna_fun_parallel import (
    lsq_gna_parallel,
    lsq_gna_parallel_plain,
)
from torchimize.progress import IterationState


def gradient_descent_parallel(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None = None,
    args: Sequence[Any] = (),
    wvec: Tensor | None = None,
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
    :func:`~torchimize.functions.lsq_gna_parallel`.

    Examples
    --------
    >>> import torch
    >>> from torchimize.functions import gradient_descent_parallel
    >>> def residual(p):
    ...     return (p**2 - torch.tensor([[4.0, 9.0]], dtype=torch.float64))[:, None, :]
    >>> start = torch.ones(2, 2, dtype=torch.float64)
    >>> gradient_descent_parallel(start, residual)[-1].round(decimals=6).tolist()
    [[2.0, 3.0], [2.0, 3.0]]
    """
    return lsq_gna_parallel(
        p,
        function,
        jac_function,
        args,
        wvec,
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


def gradient_descent_parallel_plain(
    p: Tensor,
    function: Callable[[Tensor], Tensor],
    jac_function: Callable[[Tensor], Tensor] | None,
    wvec: Tensor | None,
    l: float = 1.0,
    max_iter: int = 100,
) -> Tensor:
    """``max_iter`` steps of :func:`gradient_descent_parallel` without any stopping test.

    Parameters
    ----------
    p : Tensor (B, P), float64 or float32
        Start; not changed.
    function : callable
        (B, P) to (B, C, N).
    jac_function : callable or None
        (B, P) to (B, C, N, P); None differentiates automatically.
    wvec : Tensor (C,) or None
        Weights of the channels' squares.
    l : float, default 1.0
        Factor of the step.
    max_iter : int, default 100
        Number of steps.

    Returns
    -------
    Tensor (B, P)
        The last point; a problem whose step leads to nothing finite stays where it is.

    Raises
    ------
    ValueError, TypeError
        As :func:`gradient_descent_parallel`.
    """
    return lsq_gna_parallel_plain(p, function, jac_function, wvec, l, max_iter)
