"""From a solution to a result: the fields that every face returns, the large ones on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchimize.arrays import Output
from torchimize.batch import chunks
from torchimize.lsq.covariance import Covariance
from torchimize.lsq.problem import Problem
from torchimize.lsq.solution import Solution
from torchimize.lsq.statistics import Statistics, statistics
from torchimize.result import Result, message_field, status_fields
from torchimize.status import CovarianceStatus


def build_result(problem: Problem, solution: Solution, output: Output) -> Result:
    """SciPy's fields for every problem.

    Parameters
    ----------
    problem : Problem
    solution : Solution
    output : Output
        The form in which the user gave the start.
    """
    params = solution.params
    active = torch.zeros_like(params, dtype=torch.int32)
    if problem.bounded:
        active = (params >= problem.upper).int() - (params <= problem.lower).int()
        active = torch.where(problem.fixed, 0, active)
    known: dict[str, Any] = {
        "x": output(params),
        "cost": output.scalar(solution.cost),
        "active_mask": output(active),
        "nfev": output.scalar(solution.nfev),
        "njev": output.scalar(solution.njev),
        "engine": solution.engine,
        "engine_reason": solution.engine_reason,
        **status_fields(output, solution.status),
    }

    def reported(p: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
        return (problem.likelihood.reported(problem.residual(p, rows), rows),)

    def residuals() -> Any:
        empty = params.new_zeros(0, problem.num_residuals)
        size = problem.value_chunk_size
        (value,) = _in_chunks(size, params, reported, (empty,))
        return output(value.reshape(len(params), *problem.trailing))

    def jacobian() -> Any:
        empty = params.new_zeros(0, problem.num_params, problem.num_residuals)
        (columns,) = _in_chunks(
            problem.chunk_size, params, lambda p, r: (_scaled_columns(problem, p, r),), (empty,)
        )
        return output(columns.mT.reshape(len(params), *problem.trailing, problem.num_params))

    def gradient() -> Tensor:
        empty = (params[:, 0], params, params, params)
        return _in_chunks(problem.chunk_size, params, problem.linearise, empty)[1].to(params.dtype)

    def optimality() -> Any:
        lower, upper = problem.lower - params, problem.upper - params
        step = torch.minimum(torch.maximum(-gradient(), lower), upper)
        return output.scalar(step.abs().amax(-1))

    lazy: dict[str, Callable[[], Any]] = {
        "fun": residuals,
        "jac": jacobian,
        "grad": lambda: output(gradient()),
        "optimality": optimality,
    }
    return Result(output, known, lazy)


def build_curve_result(
    problem: Problem,
    solution: Solution,
    covariance: Covariance,
    absolute: bool,
    output: Output,
) -> Result:
    """The fields of :func:`build_result` and those that only a curve has: errors and statistics."""
    result = build_result(problem, solution, output)
    errors = covariance.errors
    assert errors is not None
    result.add(
        popt=result["x"],
        pcov=output(covariance.matrix),
        stderr=output(errors),
        covariance_status=output.scalar(covariance.status),
        covariance_message=message_field(output, covariance.status, CovarianceStatus),
    )

    @cache
    def goodness() -> Statistics:
        return statistics(problem, solution.params, solution.cost, absolute)

    def field_of(name: str) -> Callable[[], Any]:
        return lambda: output.scalar(getattr(goodness(), name))

    result.add_lazy({f.name: field_of(f.name) for f in fields(Statistics)})
    return result


def _scaled_columns(problem: Problem, params: Tensor, rows: Tensor | None) -> Tensor:
    residual, columns = problem.residual_and_columns(params, rows)
    curvature = problem.likelihood.fisher(residual, rows)
    if curvature is None:
        return columns
    return columns * curvature.sqrt().to(columns.dtype)[:, None, :]


def _in_chunks(
    size: int,
    params: Tensor,
    function: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]],
    empty: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Evaluate for all problems, a chunk at a time; ``empty`` where there are none."""
    results = [empty]
    for part in chunks(len(params), size):
        whole = part.stop - part.start == len(params)
        rows = None if whole else torch.arange(part.start, part.stop, device=params.device)
        results.append(function(params[part], rows))
    kept = results[1:] or results
    return tuple(torch.cat(parts) for parts in zip(*kept, strict=True))
