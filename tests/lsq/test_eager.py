"""The eager engine: problems in a batch are fitted as if they were alone, whatever the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchimize import IterationState, Status, least_squares
from torchimize.batch import BatchFunction
from torchimize.lsq.eager import solve
from torchimize.lsq.likelihood import Data, LeastSquares
from torchimize.lsq.policy import Policy, RelativeTests, Rule, TrustRegion
from torchimize.lsq.problem import CACHE_NUMBERS, Problem, build_problem, check_bounds
from torchimize.lsq.solution import Solution

T = torch.linspace(0, 4, 25, dtype=torch.float64)
FIELDS = ("params", "cost", "status", "nfev", "njev", "normal_matrix")
Function = Callable[..., Tensor]


def decay(params: Tensor, y: Tensor) -> Tensor:
    """A exp(−k t) − y."""
    return params[:, :1] * torch.exp(-params[:, 1:] * T) - y


def decays(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy data (B, N) of which some are hard to fit from the starts (B, 2)."""
    random = np.random.default_rng(seed)
    truth = np.stack([random.uniform(0.5, 5, batch), random.uniform(0.05, 3, batch)], 1)
    y = truth[:, :1] * np.exp(-truth[:, 1:] * T.numpy())
    y += 0.05 * random.standard_normal(y.shape)
    start = truth * random.uniform(0.1, 4, truth.shape)
    return torch.from_numpy(start), torch.from_numpy(y)


def build(
    function: Function, start: Tensor, args: tuple[Any, ...] = (), bounds: Any = None
) -> Problem:
    lower, upper = check_bounds(bounds, start, "params")
    batch_function = BatchFunction(function, len(start), args)
    return build_problem(batch_function, LeastSquares(Data()), start, lower, upper, None)


def run(
    problem: Problem,
    rule: Rule | None = None,
    ftol: float = 1e-15,
    xtol: float = 1e-9,
    gtol: float = 1e-15,
    max_nfev: int = 500,
    **options: Any,
) -> Solution:
    tests = RelativeTests(ftol, xtol, gtol, max_nfev)
    policy = Policy(rule or TrustRegion(), tests, problem.bounded)
    return solve(problem, policy, keep_normal_matrix=True, **options)


def assert_identical(one: Solution, other: Solution, rows: Any = slice(None)) -> None:
    """Bit for bit, NaN where there is NaN."""
    for name in FIELDS:
        this, that = getattr(one, name)[rows], getattr(other, name)[rows]
        torch.testing.assert_close(this, that, rtol=0, atol=0, equal_nan=True, msg=name)


def test_the_fits_are_scipys() -> None:
    start, y = decays(20)
    solution = run(build(decay, start, (y,)))
    assert bool((solution.status > 0).all())
    assert len(set(solution.nfev.tolist())) > 3
    for row in range(20):
        alone = scipy.optimize.least_squares(
            lambda p, y: p[0] * np.exp(-p[1] * T.numpy()) - y,
            solution.params[row].numpy() * 1.01,
            args=(y[row].numpy(),),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        np.testing.assert_allclose(solution.params[row], alone.x, rtol=1e-6)
        assert float(solution.cost[row]) == pytest.approx(alone.cost, rel=1e-10)


# ------------------------------------------------------------------------------------ the pool


@pytest.mark.parametrize("capacity", [1, 3, 7, 23])
def test_the_pool_makes_no_difference(capacity: int) -> None:
    start, y = decays(23)
    problem = build(decay, start, (y,))
    assert_identical(run(problem, capacity=capacity), run(problem))


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_the_pool_makes_no_difference_in_a_box(capacity: int) -> None:
    start, y = decays(11, seed=4)
    problem = build(decay, start, (y,), (start * 0.7, start * 1.3))
    whole = run(problem)
    on_bound = (whole.params == problem.lower) | (whole.params == problem.upper)
    assert bool(on_bound.any()) and not bool(on_bound.all())
    assert_identical(run(problem, capacity=capacity), whole)


@pytest.mark.parametrize("look_every", [2, 4, 8])
@pytest.mark.parametrize("capacity", [5, 40])
def test_looking_rarely_makes_no_difference(look_every: int, capacity: int) -> None:
    start, y = decays(40, seed=1)
    problem = build(decay, start, (y,))
    often = run(problem, look_every=1)
    rarely = run(problem, look_every=look_every, capacity=capacity)
    assert_identical(rarely, often)


def test_looking_rarely_makes_no_difference_in_a_box() -> None:
    start, y = decays(12, seed=4)
    problem = build(decay, start, (y,), (start * 0.7, start * 1.3))
    assert_identical(run(problem, look_every=4), run(problem, look_every=1))


def test_every_problem_is_as_if_it_were_alone() -> None:
    start, y = decays(15, seed=2)
    together = run(build(decay, start, (y,)))
    for row in range(15):
        # a second problem, because a function of one row is called without a probe
        alone = run(build(decay, start[[row, 0]], (y[[row, 0]],)))
        for name in FIELDS:
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_two_runs_are_identical() -> None:
    start, y = decays(50, seed=3)
    assert_identical(run(build(decay, start, (y,))), run(build(decay, start, (y,))))


def test_the_start_is_not_written_to() -> None:
    start, y = decays(9)
    before = start.clone()
    solution = run(build(decay, start, (y,)), capacity=2)
    assert torch.equal(start, before) and not torch.equal(solution.params, before)


def test_data_that_a_function_closes_over() -> None:
    start, y = decays(30, seed=5)
    closed = build(lambda params: decay(params, y), start)
    given = build(decay, start, (y,))
    assert given.function.any_rows and not closed.function.any_rows
    assert_identical(run(closed), run(given))
    assert_identical(run(closed, look_every=4), run(given))


def test_data_that_a_function_closes_over_and_broadcasts() -> None:
    # one number per problem, (B, 1): three rows of it would broadcast with nothing but themselves
    start, y = decays(30, seed=6)
    factor = torch.linspace(0.5, 2, 30, dtype=torch.float64)[:, None]
    closed = build(lambda params, y: factor * decay(params, y), start, (y,))
    given = build(lambda params, y, factor: factor * decay(params, y), start, (y, factor))
    assert not closed.function.any_rows
    assert_identical(run(closed), run(given))


# ---------------------------------------------------------------------------------------- damage


def flexible(params: Tensor, y: Tensor, kind: Tensor) -> Tensor:
    """Decays, of which some explode, or do not depend on their rate."""
    amplitude, rate = params[:, :1], params[:, 1:]
    growth = torch.where(kind == 1, 300 * rate.abs(), -rate)
    return amplitude * torch.exp(torch.where(kind == 2, 0.0 * T, growth * T)) - y


def damaged_batch(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    start, y = decays(batch, seed=7)
    return start, y, torch.zeros(batch, 1, dtype=torch.float64)


DAMAGE = {
    "NaN start": lambda start, y, kind: start[4].fill_(torch.nan),
    "infinite start": lambda start, y, kind: start[4].fill_(torch.inf),
    "infinite data": lambda start, y, kind: y[4, 3].fill_(torch.inf),
    "NaN data": lambda start, y, kind: y[4].fill_(torch.nan),
    "huge data": lambda start, y, kind: y[4].fill_(1e160),
    "exploding": lambda start, y, kind: kind[4].fill_(1),
    "rank": lambda start, y, kind: kind[4].fill_(2),
    "zero": lambda start, y, kind: start[4].zero_(),
}


@pytest.mark.parametrize("capacity", [3, 12])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_problem_never_changes_the_others(damage: str, capacity: int) -> None:
    clean = run(build(flexible, *_split(damaged_batch(12))), capacity=capacity)
    assert bool((clean.status > 0).all())
    batch = damaged_batch(12)
    DAMAGE[damage](*batch)
    solution = run(build(flexible, *_split(batch)), capacity=capacity)
    others = torch.arange(12) != 4
    assert_identical(solution, clean, others)
    if damage in ("NaN start", "infinite data", "NaN data"):
        assert int(solution.status[4]) == Status.NON_FINITE_START
        torch.testing.assert_close(solution.params[4], batch[0][4], rtol=0, atol=0, equal_nan=True)
        assert int(solution.nfev[4]) == 1
    if damage in ("rank", "zero"):
        assert int(solution.status[4]) > 0
    if damage == "rank":
        # the amplitude is the mean, the rate stays
        assert float(solution.params[4, 0]) == pytest.approx(float(batch[1][4].mean()), rel=1e-7)
        assert float(solution.params[4, 1]) == float(batch[0][4, 1])


def _split(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    return batch[0], batch[1:]


def test_damaged_problems_of_all_kinds_at_once_on_the_blind_path() -> None:
    clean = run(build(flexible, *_split(damaged_batch(12))), look_every=4)
    start, y, kind = damaged_batch(12)
    start[0], y[3, 0], kind[5], kind[9], y[11] = torch.nan, torch.inf, 1, 2, 1e200
    solution = run(build(flexible, start, (y, kind)), look_every=4)
    healthy = torch.tensor([1, 2, 4, 6, 7, 8, 10])
    assert_identical(solution, clean, healthy)


def test_fewer_samples_than_parameters() -> None:
    # a sum and a difference of three parameters: the nearest solution keeps its distance to them
    def short(params: Tensor, y: Tensor) -> Tensor:
        a, b, c = params.unbind(-1)
        return torch.stack([a + b + c, a * b], -1) - y

    start = torch.tensor([[1.0, 2.0, 3.0], [torch.nan, 1.0, 1.0], [4.0, 0.5, 0.1]]).double()
    y = torch.tensor([[7.0, 3.0], [1.0, 1.0], [2.0, 1.5]], dtype=torch.float64)
    solution = run(build(short, start, (y,)))
    assert int(solution.status[1]) == Status.NON_FINITE_START
    for row in (0, 2):
        assert int(solution.status[row]) > 0
        assert short(solution.params[row : row + 1], y[row]).abs().max() < 1e-7


# ---------------------------------------------------------------------------------------- memory


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest result of any operation had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # views and expansions share their memory with something counted before
            if isinstance(leaf, Tensor) and leaf.is_contiguous():
                self.numbers = max(self.numbers, leaf.numel())
        return out


@pytest.mark.parametrize("capacity", [1500, None])
def test_memory_does_not_grow_with_problems_times_samples(capacity: int | None) -> None:
    batch, samples = 20_000, 100
    grid = torch.linspace(0, 1, samples, dtype=torch.float64)
    rate = torch.linspace(0.5, 2, batch, dtype=torch.float64)[:, None]
    rows: list[int] = []

    def residual(params: Tensor, rate: Tensor) -> Tensor:
        rows.append(len(params))
        return torch.exp(-params * grid) - torch.exp(-rate * grid)

    start = torch.ones(batch, 1, dtype=torch.float64)
    problem = build(residual, start, (rate,))
    with LargestTensor() as largest:
        solution = run(problem, capacity=capacity)
    torch.testing.assert_close(solution.params, rate, rtol=1e-7, atol=0)
    assert max(rows) <= min(CACHE_NUMBERS // samples, capacity or batch)
    # the residuals of all problems are 2 million numbers
    assert largest.numbers <= CACHE_NUMBERS


def test_many_problems_of_one_parameter() -> None:
    batch = 200_000
    target = torch.linspace(-5, 5, batch, dtype=torch.float64)[:, None]
    rows: list[int] = []

    def residual(params: Tensor, target: Tensor) -> Tensor:
        rows.append(len(params))
        return torch.sinh(params) - target

    problem = build(residual, torch.zeros_like(target), (target,))
    solution = run(problem, capacity=20_000)
    torch.testing.assert_close(solution.params, torch.asinh(target), rtol=1e-8, atol=1e-12)
    assert max(rows) == 20_000
    assert bool((solution.status > 0).all())


def test_no_problems_at_all() -> None:
    solution = run(build(lambda p: p - T[:1], torch.zeros(0, 1, dtype=torch.float64)))
    assert solution.params.shape == (0, 1) and solution.status.shape == (0,)


# --------------------------------------------------------------------------------- status codes


def line(params: Tensor) -> Tensor:
    """A problem that keeps a residual of 1: (p − 1)³ + p − 1, 1."""
    shifted = params - 1
    return torch.cat([shifted**3 + shifted, torch.ones_like(params)], -1)


def status_of(function: Function, start: list[float], **options: Any) -> tuple[Status, Solution]:
    params = torch.tensor([start, start], dtype=torch.float64)
    solution = run(build(function, params), **({"ftol": 0, "xtol": 0, "gtol": 0} | options))
    first, second = solution.status.tolist()
    assert first == second
    return Status(first), solution


def test_status_gtol() -> None:
    status, solution = status_of(line, [3.0], gtol=1e-8)
    assert status == Status.GTOL
    torch.testing.assert_close(solution.params, torch.ones(2, 1).double(), rtol=0, atol=1e-7)


def test_status_gtol_of_a_perfect_fit() -> None:
    status, solution = status_of(lambda p: p - 2, [1.0], ftol=1e-300)
    assert status == Status.GTOL
    assert solution.params.tolist() == [[2.0], [2.0]] and solution.cost.tolist() == [0.0, 0.0]


def test_status_ftol() -> None:
    status, solution = status_of(line, [3.0], ftol=1e-4)
    assert status == Status.FTOL
    torch.testing.assert_close(solution.params, torch.ones(2, 1).double(), rtol=0, atol=1e-2)


def test_status_xtol() -> None:
    status, solution = status_of(line, [3.0], xtol=1e-4)
    assert status == Status.XTOL
    torch.testing.assert_close(solution.params, torch.ones(2, 1).double(), rtol=0, atol=1e-3)


def test_status_xtol_where_a_step_no_longer_changes_the_parameters() -> None:
    # float64 ends at 1: no tolerance is needed to see that
    status, solution = status_of(line, [3.0], ftol=1e-300)
    assert status in (Status.XTOL, Status.GTOL)
    torch.testing.assert_close(solution.params, torch.ones(2, 1).double(), rtol=0, atol=1e-12)


def test_status_ftol_and_xtol() -> None:
    assert status_of(line, [3.0], ftol=1e-3, xtol=1e-1)[0] == Status.FTOL_XTOL


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_status_max_nfev(limit: int) -> None:
    status, solution = status_of(line, [30.0], gtol=1e-8, max_nfev=limit)
    assert status == Status.MAX_NFEV
    assert solution.nfev.tolist() == [limit, limit]
    # the best point so far is returned, and its cost
    cost = 0.5 * line(solution.params).square().sum(-1)
    torch.testing.assert_close(solution.cost, cost, rtol=1e-13, atol=0)


@pytest.mark.parametrize("way", ["value", "exception"])
def test_status_callback(way: str) -> None:
    iterations = []

    def stop(state: IterationState) -> bool:
        iterations.append(state.iteration)
        if len(iterations) < 3:
            return False
        if way == "exception":
            raise StopIteration
        return True

    status, solution = status_of(line, [30.0], gtol=1e-8, callback=stop)
    assert status == Status.CALLBACK and iterations == [1, 2, 3]
    assert bool((solution.params < 30).all())
    torch.testing.assert_close(
        solution.cost, 0.5 * line(solution.params).square().sum(-1), rtol=1e-13, atol=0
    )


def test_status_non_finite_start() -> None:
    params = torch.tensor([[-1.0], [4.0]], dtype=torch.float64)
    solution = run(build(lambda p: torch.log(p) - 1, params))
    assert solution.status.tolist()[0] == Status.NON_FINITE_START
    assert int(solution.status[1]) > 0
    assert float(solution.params[0]) == -1.0
    assert float(solution.params[1]) == pytest.approx(np.e, rel=1e-9)
    with pytest.raises(ValueError, match="not finite in the initial point"):
        run(build(lambda p: torch.log(p) - 1, params[:1]))


@pytest.mark.parametrize("tolerance", [{"ftol": 1e-8}, {"gtol": 1e-8}, {"xtol": 1e-9}])
def test_status_non_finite(tolerance: dict[str, float]) -> None:
    def pinhole(params: Tensor) -> Tensor:
        return torch.where(params == 1, params, torch.nan)

    status, solution = status_of(pinhole, [1.0], **tolerance)
    assert status == Status.NON_FINITE
    assert solution.params.tolist() == [[1.0], [1.0]] and solution.cost.tolist() == [0.5, 0.5]


def test_status_non_finite_derivative() -> None:
    # |r| = √p has a value at 0, but no derivative
    status, solution = status_of(lambda p: torch.sqrt(p) + 1, [0.0], xtol=1e-9)
    assert status == Status.NON_FINITE
    assert solution.params.tolist() == [[0.0], [0.0]]


def test_status_stalled() -> None:
    # At 0 nothing tells how large a step should be, the cost cannot see a residual of 1e-150
    # beside 1, and the predicted reduction underflows as the region shrinks.
    def faint(params: Tensor) -> Tensor:
        return torch.cat([params + 1e-150, torch.ones_like(params)], -1)

    status, solution = status_of(faint, [0.0], xtol=1e-9)
    assert status == Status.STALLED
    assert solution.params.tolist() == [[0.0], [0.0]]


# -------------------------------------------------------------------------------------- callback


def test_callback_sees_every_problem_go_down() -> None:
    start, y = decays(10, seed=8)
    seen: list[IterationState] = []
    problem = build(decay, start, (y,))
    solution = run(problem, callback=seen.append)
    assert [state.iteration for state in seen] == list(range(1, len(seen) + 1))
    costs = torch.stack([state.cost for state in seen])
    assert bool((costs[1:] <= costs[:-1]).all())
    for state in seen:
        cost = problem.cost(state.x, None)
        torch.testing.assert_close(state.cost, cost, rtol=1e-6, atol=1e-12)
    assert torch.equal(seen[-1].x, solution.params)
    assert torch.equal(seen[-1].nfev, solution.nfev)
    assert seen[-1].running.tolist() == [False] * 10
    assert_identical(solution, run(problem))


def test_history_has_the_start_and_the_end() -> None:
    start, y = decays(6, seed=9)
    solution = run(build(decay, start, (y,)), keep_history=True)
    history = solution.history
    assert history is not None
    assert torch.equal(history[0], start) and history[0] is not start
    torch.testing.assert_close(history[-1], solution.params, rtol=1e-8, atol=1e-12)
    assert len(history) > int(solution.nfev.max()) // 2
    assert run(build(decay, start, (y,))).history is None


def test_max_iter_limits_the_iterations() -> None:
    start, y = decays(6, seed=9)
    solution = run(build(decay, start, (y,)), max_iter=2)
    assert int(solution.nfev.max()) <= 3
    assert Status.MAX_NFEV in solution.status.tolist()


# ---------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("method", [None, "lm", "gn"])
def test_linear_problems_in_a_box_reach_the_exact_minimum(method: str | None) -> None:
    random = np.random.default_rng(3)
    batch, num_params = 120, 3
    matrix = random.standard_normal((batch, num_params + 2, num_params))
    offset = 2 * random.standard_normal((batch, num_params + 2))
    lower = -random.exponential(0.6, (batch, num_params))
    upper = random.exponential(0.6, (batch, num_params))

    def residual(params: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        return torch.einsum("bmp,bp->bm", matrix, params) + offset

    result = least_squares(
        residual,
        torch.zeros(batch, num_params, dtype=torch.float64),
        bounds=(lower, upper),
        method=method,
        args=(torch.from_numpy(matrix), torch.from_numpy(offset)),
    )
    exact = [
        scipy.optimize.lsq_linear(a, -b, bounds=(low, high), method="bvls").cost
        for a, b, low, high in zip(matrix, offset, lower, upper, strict=True)
    ]
    excess = result.cost.numpy() / np.array(exact) - 1
    worse = np.flatnonzero(excess > 1e-6)
    assert len(worse) == 0, [(int(row), excess[row], int(result.status[row])) for row in worse]
    assert bool(result.success.all())
