"""Levenberg-Marquardt for a batch of problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.functions._solve import Options, fit
from torchimize.lsq import settings
from torchimize.lsq.policy import Marquardt, Nielsen
from torchimize.progress import IterationState


def lsq_lma_parallel(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None = None,
    args: Sequence[Any] = (),
    wvec: Tensor | None = None,
    ftol: float = 1e-8,
    ptol: float = 1e-8,
    gtol: float = 1e-8,
    tau: float = 1e-3,
    meth: str = "lev",
    rho1: float = 0.25,
    rho2: float = 0.75,
    beta: float = 2,
    gama: float = 3,
    max_iter: int = 100,
    bounds: Any = None,
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    history: bool = True,
    full_output: bool = False,
    callback: Callable[[IterationState], object] | None = None,
    engine: str = "auto",
) -> Any:
    """Levenberg-Marquardt with Nielsen's or Marquardt's damping, each problem its own.

    Solves (JᵀJ + λ D) h = −g and accepts h where the cost falls. ``meth='lev'``: D = 1,
    λ₀ = tau · max diag JᵀJ, λ follows the gain ratio ρ by Nielsen's rule (Madsen, Nielsen,
    Tingleff 2004, algorithm 3.16). Otherwise Marquardt 1963: D = diag(JᵀJ), the
    largest entries so far, λ₀ = tau,
    λ·beta where ρ < rho1, λ/gama where ρ > rho2.

    Parameters
    ----------
    p : Tensor (B, P), float64 or float32
        Start of every problem; not changed.
    function : callable
        ``function(p, *args)``: (B, P) to residuals (B, C, N), written in torch.
    jac_function : callable, optional
        ``jac_function(p, *args)``: (B, P) to (B, C, N, P); None differentiates automatically.
    args : sequence
        Passed on; tensors of at least two dimensions whose first has length B belong to the
        problems and are cut with them, and may have another dtype than ``p``.
    wvec : Tensor (C,), optional
        Weights of the channels' squares: the cost is ½ Σ_c wvec_c Σ_n r².
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
    beta, gama : float, defaults 2, 3
        Factors by which it grows and falls.
    max_iter : int, default 100
    bounds : (lower, upper), optional
        Each a number, (P,) or (B, P). Equal bounds fix a parameter.
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
    list of Tensor (B, P)
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
    >>> from torchimize.functions import lsq_lma_parallel
    >>> x = torch.linspace(0, 4, 20, dtype=torch.float64)
    >>> rates = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    >>> y = 3 * torch.exp(-rates * x)
    >>> def residual(p, x, y):
    ...     return (p[:, :1] * torch.exp(-p[:, 1:] * x) - y)[:, None, :]
    >>> start = torch.ones(3, 2, dtype=torch.float64)
    >>> path = lsq_lma_parallel(start, residual, args=(x, y))
    >>> path[-1].round(decimals=6).tolist()
    [[3.0, 0.5], [3.0, 1.0], [3.0, 2.0]]
    """
    options = Options(
        ftol, ptol, gtol, max_iter, bounds, loss, f_scale, history, full_output, callback, engine
    )
    for name, value in (("tau", tau), ("beta", beta), ("gama", gama)):
        settings.check_factor(value, name)
    if meth == "lev":
        rule: Nielsen | Marquardt = Nielsen(tau)
    else:
        rule = Marquardt(tau, rho1, rho2, beta, gama)
    return fit(p, function, jac_function, args, wvec, rule, options, parallel=True)
