"""Gauss-Newton for one problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.functions._solve import Options, fit
from torchimize.lsq import settings
from torchimize.lsq.policy import GaussNewton
from torchimize.progress import IterationState


def lsq_gna(
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
    engine: str = "auto",
) -> Any:
    """Undamped Gauss-Newton: p − l·h with h the least-squares solution of J h ≈ f.

    Every step to a finite cost is taken. Fast where the start is good; where it is not, prefer
    Levenberg-Marquardt.

    Parameters
    ----------
    p : Tensor (P,), float64 or float32
        Start; not changed.
    function : callable
        ``function(p, *args)``: (P,) to residuals of any shape, written in torch.
    jac_function : callable, optional
        ``jac_function(p, *args)``: (P,) to (..., P); None differentiates automatically.
    args : sequence
        Passed on; may have another dtype than ``p``.
    ftol : float, default 1e-8
        Stop after a step with ‖J h‖ < ftol ‖f‖: the residual hardly changes, to first order.
    ptol : float, default 1e-8
        Stop when ‖h‖ < ptol (ptol + ‖p‖).
    gtol : float, default 1e-8
        Stop when ``max |g| < gtol``.
    l : float, default 1.0
        Factor of the step.
    max_iter : int, default 100
    bounds : (lower, upper), optional
        Each a number, (P,). Equal bounds fix a parameter.
    loss, f_scale
        Robust loss by name or as a callable, and its scale; see :func:`torchimize.least_squares`.
    history : bool, default True
        False keeps only start and end of the list.
    full_output : bool, default False
        Also return the :class:`~torchimize.Result`.
    callback : callable, optional
        Called after each iteration with an :class:`~torchimize.IterationState`; a true return
        value or StopIteration ends the iterations.
    engine : {'auto', 'fused', 'eager'}
        See :func:`torchimize.least_squares`.

    Returns
    -------
    list of Tensor (P,)
        One entry per iteration, start first, at most ``max_iter``. With ``full_output`` a
        pair of that list and the Result.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes, devices, bounds or tolerances that do not fit; a start where no problem
        has finite residuals.

    Examples
    --------
    >>> import torch
    >>> from torchimize.functions import lsq_gna
    >>> def residual(p):
    ...     return p**2 - torch.tensor([4.0, 9.0], dtype=torch.float64)
    >>> path = lsq_gna(torch.ones(2, dtype=torch.float64), residual)
    >>> path[-1].round(decimals=6).tolist()
    [2.0, 3.0]
    """
    options = Options(
        ftol, ptol, gtol, max_iter, bounds, loss, f_scale, history, full_output, callback, engine
    )
    rule = GaussNewton(settings.check_factor(l, "l"))
    return fit(p, function, jac_function, args, None, rule, options, parallel=False)
