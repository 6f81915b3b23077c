"""What the functions of this package share: words and shapes translated, the solver called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimize.arrays import Output
from torchimize.batch import BatchFunction, check_devices, few_problems
from torchimize.errors import DtypeError, ShapeError
from torchimize.lsq import settings
from torchimize.lsq.engine import check_engine, solve
from torchimize.lsq.likelihood import Data, LeastSquares
from torchimize.lsq.policy import AbsoluteTests, Policy, Rule
from torchimize.lsq.problem import Problem, build_problem, check_bounds, check_parameters
from torchimize.lsq.report import build_result
from torchimize.lsq.words import Arguments, in_torch_words
from torchimize.progress import IterationState

Iterates = list[Tensor]


@dataclass(frozen=True)
class Options:
    """The keywords that all functions share, and the stopping tests.

    Attributes
    ----------
    ftol, ptol, gtol : float
        Absolute tolerances; below 4 eps of the dtype they count as 4 eps.
    max_iter : int
        Entries of the returned list, start included.
    bounds, loss, f_scale, history, full_output, callback, engine
        As in the functions' docstrings.
    """

    ftol: float
    ptol: float
    gtol: float
    max_iter: int
    bounds: Any = None
    loss: str | Callable[..., Any] = "linear"
    f_scale: float = 1.0
    history: bool = True
    full_output: bool = False
    callback: Callable[[IterationState], object] | None = None
    engine: str = "auto"

    def tests(self, dtype: torch.dtype) -> AbsoluteTests:
        """The stopping tests for a dtype."""
        least = 4 * torch.finfo(dtype).eps
        settings.check_count(self.max_iter, "max_iter")
        check_engine(self.engine)
        ftol, ptol, gtol = (
            settings.check_tolerance(value, name, least)
            for name, value in (("ftol", self.ftol), ("ptol", self.ptol), ("gtol", self.gtol))
        )
        return AbsoluteTests(ftol, ptol, gtol, max_nfev=2**31)


def fit(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None,
    args: Sequence[Any],
    wvec: Tensor | None,
    rule: Rule,
    options: Options,
    *,
    parallel: bool,
) -> Any:
    """Iterate and return the list of iterates, and the result where it is wanted.

    Parameters
    ----------
    p : Tensor (P,) or (B, P)
        Start; not changed.
    function, jac_function, args, wvec
        As in the functions' docstrings.
    rule : Rule
    options : Options
    parallel : bool
        Whether ``p`` is (B, P) and the function returns (B, C, N).
    """
    problem = set_up(
        p,
        function,
        jac_function,
        args,
        wvec,
        parallel=parallel,
        bounds=options.bounds,
        loss=options.loss,
        f_scale=options.f_scale,
    )
    policy = Policy(rule, options.tests(problem.params0.dtype), boxed=problem.bounded)
    output = Output((problem.num_problems,) if parallel else (), numpy=False)
    solution = solve(
        problem,
        policy,
        options.engine,
        keep_history=options.history,
        max_iter=int(options.max_iter) - 1,
        callback=options.callback,
    )
    iterates = solution.history
    if iterates is None:
        iterates = [problem.params0.clone(), solution.params][: int(options.max_iter)]
    iterates = [output(iterate) for iterate in iterates]
    if options.full_output:
        return iterates, build_result(problem, solution, output)
    return iterates


def set_up(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None,
    args: Sequence[Any] = (),
    wvec: Tensor | None = None,
    *,
    parallel: bool,
    bounds: Any = None,
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
) -> Problem:
    """The arguments of this package's functions as a problem; see there for what is raised."""
    if not isinstance(p, Tensor):
        raise DtypeError(f"`p` is {type(p).__name__}; wanted a tensor of parameters")
    check_parameters(p, "p")
    wanted_ndim = 2 if parallel else 1
    if p.ndim != wanted_ndim:
        raise ShapeError(
            f"`p` has shape {tuple(p.shape)}; wanted {'(B, P)' if parallel else '(P,)'}"
        )
    params0 = p.detach().clone().reshape(-1, p.shape[-1])
    batch = params0.shape[0]
    check_devices({f"args[{k}]": value for k, value in enumerate(args)}, params0)

    def wrap(user: Callable[..., Tensor], name: str) -> BatchFunction:
        origin = user
        if batch:
            everything: Arguments = (params0 if parallel else params0[0], *args), {}
            few = few_problems(params0, args, {}) if parallel else everything
            user = in_torch_words(user, few, everything)
        return BatchFunction(
            user, batch, args, single=not parallel, name=name, promote=True, origin=origin
        )

    lower, upper = check_bounds(bounds, params0, "p")
    residuals = wrap(function, "residuals")
    sample = residuals.probe(params0)
    if batch and parallel and sample.ndim != 3:
        raise ShapeError(
            f"the function returned {sample.ndim} dimensions, shape (B, "
            f"{', '.join(map(str, sample.shape[1:]))}); wanted 3: (B, C, N)"
        )
    weight = None if wvec is None else _channel_weight(wvec, sample)
    likelihood = LeastSquares(
        Data(weight=weight),
        settings.parse_loss(loss, numpy=False),
        settings.check_f_scale(f_scale),
    )
    return build_problem(
        residuals,
        likelihood,
        params0,
        lower,
        upper,
        None,
        user_jacobian=None if jac_function is None else wrap(jac_function, "Jacobian"),
        sample=sample,
    )


def _channel_weight(wvec: Tensor, sample: Tensor) -> Tensor:
    """√wvec for each of the C·N residuals, (M,): ``wvec`` weighs squares."""
    wvec = torch.as_tensor(wvec, dtype=sample.dtype, device=sample.device)
    channels, samples = sample.shape[1:] if sample.ndim == 3 else (len(wvec), 0)
    if wvec.shape != (channels,):
        raise ShapeError(
            f"`wvec` has shape {tuple(wvec.shape)}; wanted ({channels},), one weight per channel"
        )
    if not bool((wvec >= 0).all()):
        raise ValueError("`wvec` must not be negative: it weighs squared residuals")
    return wvec.sqrt()[:, None].expand(channels, samples).reshape(-1)
