"""Levenberg-Marquardt for one problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.functions._solve import Options, fit
from torchimize.lsq import settings
from torchimize.lsq.policy import Marquardt, Nielsen
from torchimize.progress import IterationState


def lsq_lma(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None = None,
    args: Sequence[Any] = (),
    ftol: float = 1e-8,
    ptol: float = 1e-8,
    gtol: float = 1e-8,
    tau: float = 1e-3,
    meth: str = "lev",
    rho1: float = 0.25,
    rho2: float = 0.75,
    bet: float = 2,
    gam: float = 3,
    max_iter: int = 100,
    bounds: Any = None,
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    history: bool = True,
    full_output: bool = False,
    callback: Callable[[IterationState], object] | None = None,
    engine: str = "auto",
) -> Any:
    """Levenberg-Marquardt with Nielsen's or Marquardt's damping.

    Solves (JᵀJ + λ D) h = −g and accepts h where the cost falls. ``meth='lev'``: D = 1,
    λ₀ = tau · max diag JᵀJ, λ follows the gain ratio ρ by Nielsen's rule (Madsen, Nielsen,
    Tingleff 2004, algorithm 3.16). Otherwise Marquardt 1963: D = diag(JᵀJ), the
    largest entries so far, λ₀ = tau,
    λ·bet where ρ < rho1, λ/gam where ρ > rho2.

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
    tau : float, default 1e-3
        Initial damping.
    meth : str, default 'lev'
        'lev' for Nielsen's damping, anything else for Marquardt's.
    rho1, rho2 : float, defaults 0.25, 0.75
        Gain ratios below and above which Marquardt's damping changes.
    bet, gam : float, defaults 2, 3
        Factors by which it grows and falls.
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
        One entry per iteration, start first, at most ``max_iter``; a rejected step repeats the
        point. With ``full_output`` a pair of that list and the Result.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes, devices, bounds or tolerances that do not fit; a start where no problem
        has finite residuals.

    Examples
    --------
    >>> import torch
    >>> from torchimize.functions import lsq_lma
    >>> def rosenbrock(p):
    ...     return torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])
    >>> path = lsq_lma(torch.tensor([-1.2, 1.0], dtype=torch.float64), rosenbrock)
    >>> path[-1].round(decimals=6).tolist()
    [1.0, 1.0]
    """
    options = Options(
        ftol, ptol, gtol, max_iter, bounds, loss, f_scale, history, full_output, callback, engine
    )
    for name, value in (("tau", tau), ("bet", bet), ("gam", gam)):
        settings.check_factor(value, name)
    if meth == "lev":
        rule: Nielsen | Marquardt = Nielsen(tau)
    else:
        rule = Marquardt(tau, rho1, rho2, bet, gam)
    return fit(p, function, jac_function, args, None, rule, options, parallel=False)
