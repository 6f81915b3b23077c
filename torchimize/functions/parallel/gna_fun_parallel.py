"""Gauss-Newton for a batch of problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.functions._solve import Options, fit, set_up
from torchimize.lsq import eager, settings
from torchimize.lsq.policy import AbsoluteTests, GaussNewton, Policy
from torchimize.progress import IterationState


def lsq_gna_parallel(
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
    engine: str = "auto",
) -> Any:
    """Undamped Gauss-Newton: p − l·h with h the least-squares solution of J h ≈ f.

    Every step to a finite cost is taken. Fast where the start is good; where it is not, prefer
    Levenberg-Marquardt.

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
    l : float, default 1.0
        Factor of the step.
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
    >>> from torchimize.functions import lsq_gna_parallel
    >>> def residual(p):
    ...     return (p**2 - torch.tensor([[4.0, 9.0]], dtype=torch.float64))[:, None, :]
    >>> start = torch.ones(2, 2, dtype=torch.float64)
    >>> lsq_gna_parallel(start, residual)[-1].round(decimals=6).tolist()
    [[2.0, 3.0], [2.0, 3.0]]
    """
    options = Options(
        ftol, ptol, gtol, max_iter, bounds, loss, f_scale, history, full_output, callback, engine
    )
    rule = GaussNewton(settings.check_factor(l, "l"))
    return fit(p, function, jac_function, args, wvec, rule, options, parallel=True)


def lsq_gna_parallel_plain(
    p: Tensor,
    function: Callable[[Tensor], Tensor],
    jac_function: Callable[[Tensor], Tensor] | None,
    wvec: Tensor | None,
    l: float = 1.0,
    max_iter: int = 100,
) -> Tensor:
    """``max_iter`` steps of :func:`lsq_gna_parallel` without any stopping test.

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
        As :func:`lsq_gna_parallel`.
    """
    steps = settings.check_count(max_iter, "max_iter")
    problem = set_up(p, function, jac_function, (), wvec, parallel=True)
    policy = Policy(
        GaussNewton(settings.check_factor(l, "l")),
        AbsoluteTests(0.0, 0.0, 0.0, max_nfev=2**31),
        boxed=False,
    )
    return eager.solve(problem, policy, max_iter=steps).params
