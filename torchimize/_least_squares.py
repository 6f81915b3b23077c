"""``least_squares``: scipy.optimize.least_squares for a batch of problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from torchimize.arrays import Output, as_tensor, start_tensor
from torchimize.batch import BatchFunction, check_devices, few_problems
from torchimize.lsq import settings
from torchimize.lsq.engine import check_engine, solve
from torchimize.lsq.likelihood import Data, LeastSquares
from torchimize.lsq.policy import TrustRegion
from torchimize.lsq.problem import build_problem, check_bounds, check_parameters
from torchimize.lsq.report import build_result
from torchimize.lsq.words import Arguments, in_torch_words
from torchimize.progress import IterationState, presented
from torchimize.result import Result


def least_squares(
    fun: Callable[..., Any],
    x0: Any,
    jac: str | Callable[..., Any] | None = None,
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    ftol: float | None = 1e-8,
    xtol: float | None = 1e-8,
    gtol: float | None = 1e-8,
    x_scale: Any = "jac",
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    *,
    max_nfev: int | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    callback: Callable[[IterationState], object] | None = None,
    progress: bool = False,
    check_independence: bool = False,
    engine: str = "auto",
    refine: bool = False,
) -> Result:
    r"""Minimise ½ Σ C² ρ((r/C)²) for B independent problems, each with its own stop and status.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args, **kwargs)`` gives the residuals: (B, P) to (B, ...), or (P,) to (...) where
        ``x0`` is one start. Written in torch or with NumPy's functions; problem b may only depend
        on ``x[b]``.
    x0 : (P,) or (B, P), float64 or float32
        Start. Tensors give tensors back, on their device; anything else gives NumPy arrays.
    jac : {'forward', 'reverse', '2-point', '3-point'}, callable, or None
        Automatic differentiation in forward or reverse mode, finite differences, or
        ``jac(x, *args, **kwargs)`` of shape (B, ..., P). None chooses: the derivative of the traced
        expression graph; where a function cannot be traced, forward mode, or reverse with fewer
        residuals than parameters; 3-point where it cannot be differentiated either.
    bounds : (lower, upper)
        Each a number, (P,) or (B, P). Equal bounds fix a parameter.
    method : {None, 'trf', 'dogbox', 'lm', 'gn'}
        None, 'trf' and 'dogbox': the scaled trust region of :mod:`torchimize.lsq.policy`; 'lm':
        Marquardt's damping; 'gn': undamped Gauss-Newton. The last two scale by the Jacobian.
    ftol, xtol, gtol : float or None, default 1e-8
        Stop when the predicted reduction is at most ``ftol · cost``; when every step component is
        at most ``xtol`` times its parameter's size; when every Jacobian column is orthogonal to
        the residual to within ``gtol``. None switches a test off; a value below the dtype's eps
        counts as eps.
    x_scale : 'jac', float, (P,) or (B, P)
        Characteristic size of the parameters; 'jac' takes it from the Jacobian.
    loss : {'linear', 'soft_l1', 'huber', 'cauchy', 'arctan'} or callable
        ρ; a callable gets z = (r/C)² of shape (m,) and returns (3, m): ρ, ρ', ρ''.
    f_scale : float, default 1.0
        C, in units of the residual.
    max_nfev : int, optional
        Residual evaluations per problem, default 200 (P + 1).
    args, kwargs
        Passed on. Tensors and arrays of at least two dimensions whose first has length B belong to
        the problems and are cut with them; everything else is shared.
    callback : callable, optional
        ``callback(state)`` after each iteration of the batch with an
        :class:`~torchimize.IterationState`; a true return value or StopIteration ends the fits.
    progress : bool, default False
        Show a bar with problems done and fits per second.
    check_independence : bool, default False
        Test that no problem's residuals depend on another one's parameters.
    engine : {'auto', 'fused', 'eager'}
        'fused' runs whole fits in a compiled kernel and raises NotFusedError where it cannot;
        'auto' takes it wherever it can, and the eager engine, a loop of torch calls, elsewhere.
        Both are the same algorithm; the result's ``engine`` and ``engine_reason`` tell which ran.
    refine : bool, default False
        Finish float32 fits in float64: digits that float32 cannot give where parameters are nearly
        dependent. Needs the fused engine; float64 fits stay as they are.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        Bad shapes, bounds, tolerances, names; residuals that are finite for no problem's start.
    TypeError
        Integer or complex starts, residuals or Jacobian of another dtype than ``x0``.

    Notes
    -----
    The method is described in the documentation's page on the algorithm. Arguments and fields
    follow SciPy's function of that name; differences: ``jac`` and ``x_scale`` have better
    defaults, ``optimality`` is the projected gradient's, and one failing problem never raises.

    Examples
    --------
    Two decays at once, from one start each:

    >>> import numpy as np
    >>> from torchimize import least_squares
    >>> t = np.linspace(0, 4, 20)
    >>> y = np.stack([3 * np.exp(-0.5 * t), 2 * np.exp(-1.5 * t)])
    >>> def residual(x, y):
    ...     return x[:, :1] * np.exp(-x[:, 1:] * t) - y
    >>> result = least_squares(residual, np.ones((2, 2)), args=(y,))
    >>> np.round(result.x, 6).tolist()
    [[3.0, 0.5], [2.0, 1.5]]
    >>> result.success.tolist()
    [True, True]
    """
    start = start_tensor(x0, "x0")
    check_parameters(start, "x0")
    single = start.ndim == 1
    params0 = start.reshape(-1, start.shape[-1]).contiguous()
    values = [*args, *(kwargs or {}).values()]
    numpy = not any(isinstance(value, Tensor) for value in (x0, *values))
    output = Output(() if single else (params0.shape[0],), numpy)
    likelihood = LeastSquares(
        Data(), settings.parse_loss(loss, numpy), settings.check_f_scale(f_scale)
    )
    tests = settings.relative_tests(params0.dtype, ftol, xtol, gtol, max_nfev, params0.shape[1])
    scale = settings.parse_x_scale(x_scale, params0)
    rule = settings.parse_method(method, fixed_scale=scale is not None)
    settings.check_jac(jac)
    check_engine(engine)
    lower, upper = check_bounds(_tensors(bounds), params0, "x0")
    call = [_argument(value, params0) for value in args]
    named = {key: _argument(value, params0) for key, value in (kwargs or {}).items()}
    check_devices({f"args[{k}]": value for k, value in enumerate(call)} | named, params0)
    function = _batch_function(fun, params0, call, named, single, "residuals")
    jacobian = None
    if callable(jac):
        jacobian = _batch_function(jac, params0, call, named, single, "Jacobian")
    problem = build_problem(
        function,
        likelihood,
        params0,
        lower,
        upper,
        None if callable(jac) else jac,
        user_jacobian=jacobian,
        check_independence=check_independence,
    )
    policy = settings.build_policy(rule, problem, tests)
    solution = solve(
        problem,
        policy,
        engine,
        scale=scale if isinstance(rule, TrustRegion) else None,
        callback=None if callback is None else presented(callback, output),
        progress=progress,
        refined=settings.refined_policy(refine, policy, ftol, xtol, gtol, max_nfev, params0),
    )
    return build_result(problem, solution, output)


def _argument(value: Any, params0: Tensor) -> Any:
    """Numeric arrays as tensors next to the parameters; everything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        tensor = as_tensor(value, "args")
        if tensor.is_floating_point():
            tensor = tensor.to(params0.dtype)
        return tensor.to(params0.device)
    return value


def _tensors(bounds: Any) -> Any:
    """SciPy's Bounds object, or a pair, as a pair of tensors."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    if not isinstance(bounds, (tuple, list, np.ndarray, Tensor)) or len(bounds) != 2:
        return bounds
    return tuple(b if isinstance(b, Tensor) else as_tensor(b, "bounds") for b in bounds)


def _batch_function(
    function: Callable[..., Any],
    params0: Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    single: bool,
    name: str,
) -> BatchFunction:
    """The user's function, in torch's words whatever it was written in."""
    origin = function
    batch = params0.shape[0]
    if batch:
        everything: Arguments = ((params0[0] if single else params0), *args), kwargs
        few = everything if single else few_problems(params0, args, kwargs)
        function = in_torch_words(function, few, everything)
    return BatchFunction(function, batch, args, kwargs, single=single, name=name, origin=origin)
