"""Problems solved by compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from torchimize.errors import NotFusedError
from torchimize.kernel import driver, triton_driver
from torchimize.lsq.fused import kernels
from torchimize.lsq.fused.machines import build_machine
from torchimize.lsq.fused.plan import Plan, expressions_of, make_plan, run_lengths
from torchimize.lsq.fused.views import Views
from torchimize.lsq.policy import Policy
from torchimize.lsq.problem import Problem
from torchimize.lsq.solution import Solution
from torchimize.progress import ProgressBar
from torchimize.status import Status

MAX_HISTORY = 40_000
"""Numbers that the history of one problem may have."""

HISTORY_NUMBERS = 8_000_000
"""Numbers that the history of one chunk may have before it is cut to the iterations there were."""


def solve(
    problem: Problem,
    policy: Policy,
    *,
    scale: Tensor | None = None,
    keep_inverse: bool = False,
    keep_history: bool = False,
    max_iter: int | None = None,
    progress: bool = False,
    insist: bool = False,
) -> Solution:
    """Run a policy on every problem, in a compiled kernel.

    Parameters
    ----------
    problem, policy, scale, keep_history, max_iter, progress
        As in :func:`torchimize.lsq.eager.solve`.
    keep_inverse : bool
        Fill ``inverse`` and ``trusted`` of the solution.
    insist : bool
        Compile even where that takes longer than the fits.

    Raises
    ------
    NotFusedError
        Where a kernel cannot do what the problem needs.
    ValueError
        Where no problem at all has a finite start.
    """
    expressions, sources = expressions_of(problem)
    plan = make_plan(
        problem,
        policy,
        expressions,
        scaled=scale is not None,
        limited=max_iter is not None,
        inverse=keep_inverse,
        history=keep_history,
        insist=insist,
    )
    if keep_history and max_iter is not None:
        entries = (max_iter + 1) * problem.num_params
        if entries > MAX_HISTORY:
            raise NotFusedError("a list of so many iterates wants more room than there is")
    params0 = problem.params0.to(plan.dtype)
    views = Views(problem, policy, plan, expressions, sources, params0, scale, max_iter)
    solution = _run(problem, plan, views, max_iter, progress)
    if plan.bits == 32:
        solution = _again_in_double(problem, policy, plan, solution, scale, max_iter)
    else:
        solution = _in_type_of(problem, solution)
    if bool((solution.status == int(Status.NON_FINITE_START)).all()):
        if not insist:
            # reciprocals of tiny divisors overflow in kernels only
            raise NotFusedError("no start gives finite residuals in a kernel")
        raise ValueError("Residuals are not finite in the initial point.")
    return solution


def _in_type_of(problem: Problem, solution: Solution) -> Solution:
    """A solution found in float64 in the problem's own type; what overflows there is lost."""
    dtype = problem.params0.dtype
    if solution.params.dtype == dtype:
        return solution
    params = solution.params.to(dtype)
    lost = ~torch.isfinite(params).all(-1) & (solution.status > 0)
    status = torch.where(lost, int(Status.NON_FINITE), solution.status).to(torch.int8)
    history = solution.history
    return replace(
        solution,
        params=params,
        status=status,
        history=None if history is None else [entry.to(dtype) for entry in history],
    )


def _again_in_double(
    problem: Problem,
    policy: Policy,
    plan: Plan,
    solution: Solution,
    scale: Tensor | None,
    max_iter: int | None,
) -> Solution:
    """Fit the problems that float32 failed on once more: the same data, sums and steps in float64.

    Units far from 1 make sums of squares leave the range of float32; so do some steps.
    """
    rows = (solution.status < 0).nonzero()[:, 0]
    if not len(rows):
        return solution
    some = problem.part(rows)
    expressions, sources = expressions_of(some)
    plan = replace(plan, bits=64, shared_bounds=some.lower.stride(0) == some.upper.stride(0) == 0)
    params0 = some.params0.double()
    chosen = None if scale is None else scale.index_select(0, rows)
    views = Views(some, policy, plan, expressions, sources, params0, chosen, max_iter)
    again = _in_type_of(problem, _run(some, plan, views, max_iter, False))
    for name in ("params", "cost", "status", "nfev", "njev", "inverse", "trusted"):
        value = getattr(solution, name)
        if value is not None:
            value.index_copy_(0, rows, getattr(again, name).to(value.dtype))
    if solution.history is not None and again.history is not None:
        # a problem that has stopped repeats its last point
        longest = max(len(solution.history), len(again.history))
        first, second = (_lengthened(h, longest) for h in (solution.history, again.history))
        solution.history = [
            one.index_copy(0, rows, other.to(one.dtype))
            for one, other in zip(first, second, strict=True)
        ]
    return solution


def _lengthened(history: list[Tensor], length: int) -> list[Tensor]:
    return history + history[-1:] * (length - len(history))


def refine(problem: Problem, policy: Policy, coarse: Solution, scale: Tensor | None) -> Solution:
    """Finish the fits of a float32 problem in float64.

    Parameters
    ----------
    problem : Problem
        In float32.
    policy : Policy
        With tolerances for float64.
    coarse : Solution
        Where the float32 iterations ended.
    scale : Tensor (B, P), optional

    Returns
    -------
    Solution
        In float32, found in float64; evaluations of both.
    """
    expressions, sources = expressions_of(problem)
    plan = make_plan(
        problem,
        policy,
        expressions,
        scaled=scale is not None,
        inverse=coarse.inverse is not None,
        insist=True,
    )
    plan = replace(plan, bits=64)
    params0 = coarse.params.double()
    views = Views(problem, policy, plan, expressions, sources, params0, scale)
    fine = _in_type_of(problem, _run(problem, plan, views, None, False))
    # what had converged before has not failed by being looked at more closely
    unfinished = (fine.status == int(Status.MAX_NFEV)) & (coarse.status > 0)
    return replace(
        fine,
        status=torch.where(unfinished, coarse.status, fine.status),
        nfev=fine.nfev + coarse.nfev,
        njev=fine.njev + coarse.njev,
    )


def _run(
    problem: Problem, plan: Plan, views: Views, max_iter: int | None, progress: bool
) -> Solution:
    expressions = views.expressions
    device = problem.params0.device
    kernel = kernels.compiled(
        plan, plan.bits, lambda: build_machine(plan, expressions), device=device
    )
    batch, size = problem.params0.shape
    empty = partial(torch.empty, device=device)
    outputs = {
        "params": empty(batch, size, dtype=plan.dtype),
        "cost": empty(batch, dtype=torch.float64),
        "status": empty(batch, dtype=torch.int8),
        "nfev": empty(batch, dtype=torch.int64),
        "njev": empty(batch, dtype=torch.int64),
    }
    if plan.inverse:
        outputs["inverse"] = empty(batch, size, size, dtype=torch.float64)
        outputs["trusted"] = empty(batch, dtype=torch.int8)
    if plan.history:
        outputs["iterations"] = empty(batch, dtype=torch.int64)
    bound = kernels.bind(kernel, run_lengths(expressions.trace), views, outputs)
    chunk = kernels.chunk_size(kernel, batch, problem.num_residuals * (size + 1))
    history = None
    with ProgressBar(batch, progress) as bar:
        if plan.history:
            assert max_iter is not None
            history = _run_with_history(bound, outputs, views.params0, max_iter, bar.advance)
        else:
            # to tell how far it is the host would wait for a GPU
            silent = isinstance(kernel, triton_driver.TritonKernel) and not progress
            bound.run_all(batch, chunk, None if silent else bar.advance)
    return Solution(
        params=outputs["params"],
        cost=outputs["cost"],
        status=outputs["status"],
        nfev=outputs["nfev"],
        njev=outputs["njev"],
        inverse=outputs.get("inverse"),
        trusted=outputs["trusted"].bool() if plan.inverse else None,
        history=history,
        engine="fused",
        engine_reason=kernel.description,
    )


def _run_with_history(
    bound: driver.Bound | triton_driver.Bound,
    outputs: dict[str, Tensor],
    params0: Tensor,
    max_iter: int,
    advance: Callable[[int], object],
) -> list[Tensor]:
    """Run and put together every iterate, (B, P) each, start first."""
    batch, size = params0.shape
    entries = max_iter + 1
    chunk = max(1, min(batch, HISTORY_NUMBERS // (entries * size)))
    parts: list[Tensor] = []
    for start in range(0, batch, chunk):
        end = min(start + chunk, batch)
        kept = params0.new_empty(end - start, entries, size)
        bound.run(start, end, kept)
        # the entry of the last step; from there on the problem stands still
        last = outputs["iterations"][start:end] - 1
        length = int(last.max()) + 1
        entry = torch.arange(length, device=params0.device)[None]
        which = torch.minimum(entry, last[:, None])
        part = kept.gather(1, which[:, :, None].expand(-1, -1, size))
        still = entry > last[:, None]
        final = outputs["params"][start:end, None]
        parts.append(torch.where(still[:, :, None], final, part).movedim(1, 0))
        advance(end - start)
    longest = max(len(part) for part in parts)
    full = []
    for part, start in zip(parts, range(0, batch, chunk), strict=True):
        final = outputs["params"][None, start : start + part.shape[1]]
        full.append(torch.cat([part, final.expand(longest - len(part), -1, -1)]))
    return list(torch.cat(full, 1).unbind(0))
