"""The problems of Moré, Garbow and Hillstrom by ``least_squares``, against their known minima."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from problems import mgh
from problems.mgh import MghProblem
from torchimize import IterationState, Result, Status, least_squares

NAMES = mgh.names()
BOXED = [problem.name for problem in mgh.load_all() if problem.lower is not None]
TIGHT: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 2000}

CRAWLING = ["13-powell-singular", "16-brown-dennis", "22-extended-powell"]
"""Solved, but never still: the Jacobian is singular at the zero, or the residuals are large."""


def solved(problem: MghProblem, result: Result) -> list[bool]:
    """Whether each start of an unconstrained run reached a minimum."""
    # by the residuals at the point itself, not by the cost that the solver reports
    sums = problem.sum_of_squares(result.x)
    return [problem.is_solved(x, float(s)) for x, s in zip(result.x, sums, strict=True)]


def describe(problem: MghProblem, result: Result, row: int) -> str:
    """One line on a run that failed."""
    return (
        f"{problem.name}: sum of squares {2 * float(result.cost[row]):g}, wanted "
        f"{problem.minima}; status {int(result.status[row])} after {int(result.nfev[row])}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_standard_start(name: str) -> None:
    problem = mgh.load(name)
    result = least_squares(problem.residual, problem.start[None], **TIGHT | {"max_nfev": 1000})
    assert solved(problem, result) == [True], describe(problem, result, 0)
    if name in CRAWLING:
        assert int(result.status[0]) == Status.MAX_NFEV
    else:
        assert int(result.status[0]) > 0
    # after a step taken unseen the cost is the quadratic model's
    sums = problem.sum_of_squares(result.x)
    torch.testing.assert_close(2 * result.cost, sums, rtol=1e-8, atol=1e-20)


@pytest.mark.slow
def test_starts_ten_and_hundred_times_as_far(record_property: Any) -> None:
    failed = []
    evaluations = torch.zeros(3, dtype=torch.int64)
    for problem in mgh.load_all():
        result = least_squares(problem.residual, problem.starts(), **TIGHT)
        evaluations += result.nfev
        failed += [
            f"start {10**row}: {describe(problem, result, row)}"
            for row, reached in enumerate(solved(problem, result))
            if not reached
        ]
    record_property("failed", failed)
    record_property("evaluations", evaluations.tolist())
    assert not [line for line in failed if line.startswith("start 1:")], "\n".join(failed)
    assert 3 * len(NAMES) - len(failed) >= 132, "\n".join(failed)


@pytest.mark.parametrize("name", BOXED)
def test_box(name: str) -> None:
    problem = mgh.load(name)
    assert problem.lower is not None and problem.upper is not None
    seen: list[Tensor] = []

    def watch(state: IterationState) -> None:
        seen.append(state.x)

    result = least_squares(
        problem.residual,
        problem.bounded_start()[None],
        bounds=(problem.lower, problem.upper),
        callback=watch,
        **TIGHT,
    )
    sum_of_squares = float(problem.sum_of_squares(result.x)[0])
    assert problem.is_solved_bounded(result.x[0], sum_of_squares), describe(problem, result, 0)
    assert result.success.tolist() == [True]
    iterates = torch.cat(seen)
    assert len(iterates) >= 2 and bool((iterates[0] != iterates[-1]).any())
    assert bool(((problem.lower <= iterates) & (iterates <= problem.upper)).all())


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("name", BOXED)
def test_box_bounds_every_evaluation(name: str, jac: str) -> None:
    problem = mgh.load(name)
    lower, upper = problem.lower, problem.upper
    assert lower is not None and upper is not None
    calls = 0

    def residual(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert bool(((lower <= x) & (x <= upper)).all())
        return problem.residual(x)

    start = problem.bounded_start()[None]
    result = least_squares(residual, start, jac, (lower, upper), max_nfev=100)
    assert calls > int(result.nfev[0])


def test_boxes_take_a_quarter_of_scipys_evaluations() -> None:
    evaluations = 0
    for name in BOXED:
        problem = mgh.load(name)
        result = least_squares(
            problem.residual,
            problem.bounded_start()[None],
            bounds=(problem.lower, problem.upper),
            **TIGHT,
        )
        evaluations += int(result.nfev[0])
    # SciPy 1.17's trust region with the same tolerances and exact Jacobians: 2314.
    assert evaluations <= 2314 / 4
