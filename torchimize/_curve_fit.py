"""``curve_fit``: scipy.optimize.curve_fit for a batch of data sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.arrays import Output, as_tensor, data_tensor
from torchimize.errors import ShapeError
from torchimize.lsq import settings
from torchimize.lsq.covariance import Covariance, estimate_covariance
from torchimize.lsq.curve import (
    Abscissa,
    check_nan,
    model_function,
    model_jacobian,
    parse_abscissa,
    parse_data,
    parse_likelihood,
)
from torchimize.lsq.engine import check_engine, solve
from torchimize.lsq.likelihood import LeastSquares, Poisson
from torchimize.lsq.policy import TrustRegion
from torchimize.lsq.problem import build_problem, check_bounds
from torchimize.lsq.report import build_curve_result
from torchimize.lsq.solution import Solution
from torchimize.lsq.start import flatten_bounds, flatten_scale, parse_start
from torchimize.lsq.words import Arguments, in_torch_words
from torchimize.progress import IterationState, presented
from torchimize.status import CovarianceStatus, FitWarning, Status


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    jac: str | Callable[..., Any] | None = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    likelihood: str = "gaussian",
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    ftol: float | None = 1e-15,
    xtol: float | None = 1e-9,
    gtol: float | None = 1e-15,
    x_scale: Any = "jac",
    max_nfev: int | None = None,
    callback: Callable[[IterationState], object] | None = None,
    progress: bool = False,
    check_independence: bool = False,
    engine: str = "auto",
    refine: bool = False,
) -> Any:
    r"""Fit a model to B data sets at once; parameters, covariances and, if wanted, everything else.

    Parameters
    ----------
    f : callable
        ``f(x, *params)``, written in torch or with NumPy's and scipy.special's functions. x comes
        as (N,), (k, N), or (B, N) and (k, B, N) where it differs per problem; each parameter
        broadcasts against (..., N).
    xdata : array-like
        (N,) shared; (k, N) or a tuple of k variables, shared; the shape of ``ydata``, one x per
        problem; (..., k, N), both.
    ydata : (..., N)
        Data; leading dimensions are the batch. The fit has the widest floating dtype of ``ydata``
        and ``p0`` (float64 for lists and integers); x, σ and bounds are converted to it.
    p0 : (P,) or (..., P), optional
        Start, shared or per problem; 1 for every parameter where it is not given (moved inside
        the bounds).
    sigma : number, (N,), (..., N), (N, N) or (..., N, N), optional
        Standard deviations, or covariance matrices of the data. The shape of ``ydata`` always
        means standard deviations.
    absolute_sigma : bool, default False
        Take σ at its word; otherwise it is known up to a factor, which reduced χ² estimates.
    check_finite : bool, optional
        True raises ValueError where data are not finite; otherwise such a problem says so in its
        status.
    bounds : (lower, upper)
        Each a number, (P,) or (..., P). Equal bounds fix a parameter.
    method : {None, 'trf', 'dogbox', 'lm', 'gn'}
        See :func:`torchimize.least_squares`.
    jac : {'forward', 'reverse', '2-point', '3-point'}, callable, or None
        ``jac(x, *params)`` gives (..., N, P); None differentiates automatically.
    full_output : bool, default False
        Return the full result as a third item.
    nan_policy : {None, 'omit', 'raise'}
        'omit' masks samples whose x or y is NaN, problem by problem.
    likelihood : {'gaussian', 'poisson'}
        'poisson' for counts: maximum likelihood, Laurence and Chromy 2010.
    loss, f_scale
        Robust loss and its scale, in units of σ; see :func:`torchimize.least_squares`.
    ftol, xtol, gtol : float or None
        Defaults 1e-15, 1e-9, 1e-15 run until the parameters stand still; values below the dtype's
        eps count as eps.
    x_scale, max_nfev, callback, progress, check_independence, engine, refine
        See :func:`torchimize.least_squares`.

    Returns
    -------
    popt : (..., P)
    pcov : (..., P, P)
        Covariance of ``popt``: infinite where the data do not determine a parameter, and where
        there is no scatter to estimate σ from.
    result : Result
        Only with ``full_output=True``: the fields of :class:`~torchimize.Result` and ``popt``,
        ``pcov``, ``stderr`` (..., P), ``covariance_status`` and ``covariance_message`` (why error
        bars are missing), ``chi_square``, ``reduced_chi_square``, ``degrees_of_freedom``,
        ``log_likelihood``, ``aic``, ``aicc``, ``bic``, ``r_squared`` (each of the batch's shape;
        see :mod:`torchimize.lsq.statistics`).

    Raises
    ------
    ValueError, TypeError
        Bad shapes, bounds, σ, names, dtypes; NaN data under ``nan_policy='raise'``.
    RuntimeError
        A single problem (1-D ``ydata``) that did not converge, unless ``full_output=True``.

    Warns
    -----
    FitWarning
        Some problems of a batch did not converge, or have no covariance, and ``full_output`` is
        False.

    Examples
    --------
    >>> import numpy as np
    >>> from torchimize import curve_fit
    >>> x = np.linspace(0, 4, 30)
    >>> rates = np.array([0.5, 1.0, 2.0])
    >>> y = 3 * np.exp(-rates[:, None] * x)
    >>> popt, pcov = curve_fit(lambda x, a, k: a * np.exp(-k * x), x, y, p0=[1.0, 1.0])
    >>> np.round(popt, 6).tolist()
    [[3.0, 0.5], [3.0, 1.0], [3.0, 2.0]]
    """
    dtype, device = _dtype_and_device(ydata, p0)
    y = data_tensor(ydata, "ydata", dtype, device)
    if y.ndim == 0 or y.shape[-1] == 0:
        raise ShapeError(f"`ydata` has shape {tuple(y.shape)}; wanted (..., N) with N ≥ 1 samples")
    batch_shape, num_samples = y.shape[:-1], y.shape[-1]
    batch = batch_shape.numel()
    numpy = not any(isinstance(value, Tensor) for value in (xdata, ydata, p0, sigma))
    output = Output(tuple(batch_shape), numpy)
    abscissa = parse_abscissa(xdata, y, dtype)
    missing = None if nan_policy is None else abscissa.isnan(num_samples)
    check_nan(y, abscissa, missing, nan_policy, check_finite)
    weights = None if sigma is None else data_tensor(sigma, "sigma", dtype, device)
    data = parse_data(y, weights, missing, omit=nan_policy == "omit")
    if nan_policy == "omit":
        abscissa = abscissa.filled(num_samples)
    terms = parse_likelihood(likelihood, data, loss, f_scale, sigma is not None, numpy)
    flat_bounds = flatten_bounds(bounds, batch_shape, dtype, device)
    params0 = parse_start(f, p0, flat_bounds, batch_shape, dtype, device)
    lower, upper = check_bounds(flat_bounds, params0, "p0")
    tests = settings.relative_tests(dtype, ftol, xtol, gtol, max_nfev, params0.shape[1])
    scale = settings.parse_x_scale(flatten_scale(x_scale, batch_shape), params0)
    rule = settings.parse_method(method, fixed_scale=scale is not None)
    settings.check_jac(jac)
    check_engine(engine)
    problem = build_problem(
        model_function(_in_torch(f, abscissa, params0), abscissa, batch, num_samples, f),
        terms,
        params0,
        lower,
        upper,
        None if callable(jac) else jac,
        user_jacobian=(
            model_jacobian(_in_torch(jac, abscissa, params0), abscissa, batch)
            if callable(jac)
            else None
        ),
        check_independence=check_independence,
    )
    policy = settings.build_policy(rule, problem, tests)
    solution = solve(
        problem,
        policy,
        engine,
        scale=scale if isinstance(rule, TrustRegion) else None,
        covariance=isinstance(terms, LeastSquares) and terms.loss is None,
        callback=None if callback is None else presented(callback, output),
        progress=progress,
        refined=settings.refined_policy(refine, policy, ftol, xtol, gtol, max_nfev, params0),
    )
    absolute = absolute_sigma or isinstance(terms, Poisson)
    found = estimate_covariance(problem, solution, absolute, errors=full_output)
    popt, pcov = output(solution.params), output(found.matrix)
    if not full_output:
        _complain(solution, found, output)
        return popt, pcov
    return popt, pcov, build_curve_result(problem, solution, found, absolute, output)


def _dtype_and_device(ydata: Any, p0: Any) -> tuple[torch.dtype, torch.device]:
    """The widest floating type among data and start, float64 where neither has one."""
    dtype = None
    device = torch.device("cpu")
    for value in (p0, ydata):
        if isinstance(value, Tensor):
            device = value.device if value.ndim else device
        elif not isinstance(value, np.ndarray):
            continue
        tensor = as_tensor(value, "ydata")
        if tensor.dtype in (torch.float32, torch.float64):
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    return dtype or torch.float64, device


def _in_torch(
    function: Callable[..., Any], abscissa: Abscissa, params0: Tensor
) -> Callable[..., Any]:
    """The model in torch's words, whatever it was written in."""
    if not params0.shape[0]:
        return function
    x = abscissa.shared
    if abscissa.per_problem is not None:
        x = abscissa.per_problem[:3]
        x = x.movedim(1, 0) if x.ndim == 3 else x
    few: Arguments = (x, *params0[:3, :, None].unbind(1)), {}
    everything = few
    if abscissa.per_problem is None:
        everything = (x, *params0[:, :, None].unbind(1)), {}
    return in_torch_words(function, few, everything)


def _complain(solution: Solution, covariance: Covariance, output: Output) -> None:
    """Raise or warn for what a caller without the full result would not see."""
    failed = (solution.status <= 0).nonzero()[:, 0]
    if len(failed):
        first = Status(int(solution.status[failed[0]]))
        if output.single:
            raise RuntimeError(f"Optimal parameters not found: {first.message}")
        warnings.warn(
            f"{len(failed)} of {len(solution.status)} fits did not converge (the first, problem "
            f"{int(failed[0])}: {first.message}); full_output=True tells which and why",
            FitWarning,
            stacklevel=3,
        )
    lost = int(CovarianceStatus.NON_FINITE)  # of a fit that failed: said already
    missing = covariance.status >= int(CovarianceStatus.RANK_DEFICIENT)
    unknown = (missing & ((covariance.status != lost) | (solution.status > 0))).nonzero()[:, 0]
    if len(unknown):
        reason = CovarianceStatus(int(covariance.status[unknown[0]])).message
        where = "" if output.single else f" of {len(unknown)} of {len(solution.status)} fits"
        warnings.warn(
            f"Covariance of the parameters{where} could not be estimated: {reason}",
            FitWarning,
            stacklevel=3,
        )
