"""Levenberg-Marquardt of the functional API, against MINPACK and NumPy written out by hand."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchimize.functions
from problems import workloads
from problems.workloads import Workload
from torchimize import IterationState, Status
from torchimize.functions import lsq_lma, lsq_lma_parallel

SIZES = {"W1": 200, "W2": 200, "W3": 200, "W4": 24}
DTYPES = [torch.float64, torch.float32]
METHODS = ["lev", "marq"]
TOLERANCES: dict[str, Any] = {"ftol": 1e-6, "ptol": 1e-6, "gtol": 1e-6}


@cache
def workload(name: str, dtype: torch.dtype = torch.float64) -> Workload:
    return workloads.make(name, SIZES.get(name, 30), dtype, seed=0)


@cache
def best_costs(name: str, dtype: torch.dtype) -> Tensor:
    return workloads.best_costs(workload(name, dtype))


def fit(w: Workload, analytic: bool = True, **options: Any) -> Any:
    jacobian = w.residual_jacobian if analytic else None
    return lsq_lma_parallel(w.start, w.residual, jacobian, (w.y,), **{**TOLERANCES, **options})


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rosenbrock(p: Tensor) -> Tensor:
    """(..., 2) to (..., 3): Rosenbrock's function and a constant, so that no cost is zero."""
    first, second = p[..., 0], p[..., 1]
    return torch.stack([10 * (second - first**2), 1 - first, 0 * first + 2], -1)


def rosenbrock_parallel(p: Tensor) -> Tensor:
    return rosenbrock(p)[:, None, :]


# ------------------------------------------------------------ what must be solved


@pytest.mark.parametrize("analytic", [True, False], ids=["analytic", "automatic"])
@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_solves_the_workloads(name: str, dtype: torch.dtype, meth: str, analytic: bool) -> None:
    w = workload(name, dtype)
    path, result = fit(w, analytic, meth=meth, full_output=True)
    cost = workloads.costs(w, path[-1])
    unsolved = (cost > workloads.SOLVED * best_costs(name, dtype)).nonzero()[:, 0].tolist()
    assert unsolved == []
    assert bool(result.success.all()), result.message


@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("name", SIZES)
def test_reported_costs_are_the_costs(name: str, meth: str) -> None:
    w = workload(name)
    path, result = fit(w, meth=meth, full_output=True)
    assert torch.equal(path[-1], result.x)
    torch.testing.assert_close(result.cost, workloads.costs(w, path[-1]), rtol=1e-9, atol=0)


# ------------------------------------------------------------ the list of iterates


@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_list_of_iterates(name: str, dtype: torch.dtype, meth: str) -> None:
    w = workload(name, dtype)
    path = fit(w, meth=meth)
    assert isinstance(path, list) and 2 <= len(path) <= 100
    assert torch.equal(path[0], w.start)
    assert all(entry.shape == w.start.shape and entry.dtype == dtype for entry in path)
    costs = torch.stack([workloads.costs(w, entry) for entry in path])
    # float32 compares costs of residuals that are themselves rounded
    slack = 1e-12 if dtype == torch.float64 else 1e-5
    assert bool((costs[1:] <= costs[:-1] * (1 + slack)).all())


@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("max_iter", [1, 2, 5])
def test_at_most_max_iter_entries(meth: str, max_iter: int) -> None:
    w = workload("W3")
    path, result = fit(w, meth=meth, max_iter=max_iter, full_output=True)
    assert len(path) == max_iter
    assert torch.equal(path[0], w.start) and torch.equal(path[-1], result.x)
    if max_iter < 4:
        assert bool((result.status == Status.MAX_NFEV).all())
    longer = fit(w, meth=meth)
    for short, long in zip(path, longer, strict=False):
        assert torch.equal(short, long)


@pytest.mark.parametrize("meth", METHODS)
def test_entries_are_snapshots(meth: str) -> None:
    path = fit(workload("W2"), meth=meth)
    storages = {entry.data_ptr() for entry in path}
    assert len(storages) == len(path)


@pytest.mark.parametrize("meth", METHODS)
def test_stopped_problems_stand_still_and_keep_their_last_step(meth: str) -> None:
    w = workload("W3")
    states: list[IterationState] = []
    path, result = fit(w, meth=meth, full_output=True, callback=states.append)
    assert len(states) in (len(path), len(path) - 1)
    ended: dict[int, int] = {}
    for state in states:
        for row in (~state.running).nonzero()[:, 0].tolist():
            ended.setdefault(row, state.iteration)
    assert len(set(ended.values())) > 3, "the workload has fits of different length"
    for row, iteration in ended.items():
        last = path[min(iteration, len(path) - 1)][row]
        assert all(torch.equal(entry[row], last) for entry in path[iteration:])
        if row % 10:
            continue
        alone = lsq_lma_parallel(
            w.start[row : row + 1],
            w.residual,
            w.residual_jacobian,
            (w.y[row : row + 1],),
            meth=meth,
            **TOLERANCES,
        )
        torch.testing.assert_close(result.x[row], alone[-1][0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("meth", METHODS)
def test_step_that_meets_ftol_is_kept(meth: str) -> None:
    # a linear problem: the first step leads to the minimum up to damping, the second is tiny
    matrix = torch.eye(4, 2, dtype=torch.float64)
    target = vector(1, 2, 3, 4)
    path, result = lsq_lma_parallel(
        torch.zeros(1, 2, dtype=torch.float64),
        lambda p: (p @ matrix.mT - target)[:, None, :],
        ftol=0.9,
        ptol=0.0,
        gtol=0.0,
        meth=meth,
        full_output=True,
    )
    # ‖J h‖ = √5 / (1 + tau) is below 0.9 ‖f‖ = 0.9 √30 at once
    assert len(path) == 2 and result.status.tolist() == [Status.FTOL]
    expected = vector(1, 2) / 1.001
    torch.testing.assert_close(path[-1][0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("meth", METHODS)
def test_caller_s_start_is_never_changed(meth: str) -> None:
    w = workload("W2")
    for requires_grad in (False, True):
        p = w.start.clone().requires_grad_(requires_grad)
        before = p.detach().clone()
        path = lsq_lma_parallel(p, w.residual, w.residual_jacobian, (w.y,), meth=meth)
        assert torch.equal(p.detach(), before) and p.grad is None
        assert not any(entry.requires_grad for entry in path)
        assert path[0].data_ptr() != p.data_ptr()
        path[0].zero_()
        path[-1].zero_()
        assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("name", ["W2", "gauss1d"])
@pytest.mark.parametrize("meth", METHODS)
def test_analytic_and_automatic_jacobian_give_the_same_path(name: str, meth: str) -> None:
    w = workload(name)
    one, other = fit(w, True, meth=meth), fit(w, False, meth=meth)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------ steps written by hand


def nielsen(
    residual: Callable[[np.ndarray], np.ndarray],
    jacobian: Callable[[np.ndarray], np.ndarray],
    p: np.ndarray,
    tau: float,
    stop: Callable[..., object],
    max_iter: int = 100,
) -> list[np.ndarray]:
    """Madsen, Nielsen, Tingleff 2004, algorithm 3.16, with its points and a stop of one's own."""
    f, j = residual(p), jacobian(p)
    a, g = j.T @ j, j.T @ f
    mu, nu = tau * a.diagonal().max(), 2.0
    path = [p]
    while len(path) < max_iter:
        h = np.linalg.solve(a + mu * np.eye(len(p)), -g)
        if stop("before", p=p, h=h, g=g):
            break
        trial = residual(p + h)
        gain = (f @ f - trial @ trial) / (h @ (mu * h - g))
        accepted = gain > 0
        small = stop("after", change=j @ h, f=f)
        if accepted:
            p, f, j = p + h, trial, jacobian(p + h)
            a, g = j.T @ j, j.T @ f
            mu *= max(1 / 3, 1 - (2 * gain - 1) ** 3)
            nu = 2.0
        else:
            mu *= nu
            nu *= 2
        path.append(p)
        if accepted and small:
            break
    return path


def rosenbrock_numpy(p: np.ndarray) -> np.ndarray:
    return np.array([10 * (p[1] - p[0] ** 2), 1 - p[0], 2.0])


def rosenbrock_jacobian_numpy(p: np.ndarray) -> np.ndarray:
    return np.array([[-20 * p[0], 10.0], [-1.0, 0.0], [0.0, 0.0]])


def no_test(when: str, **_: Any) -> None:
    return None


@pytest.mark.parametrize("tau", [1e-3, 1e-6, 1.0])
def test_nielsen_path_by_hand(tau: float) -> None:
    start = np.array([-1.2, 1.0])
    expected = nielsen(rosenbrock_numpy, rosenbrock_jacobian_numpy, start, tau, no_test, 25)
    path = lsq_lma(torch.tensor(start), rosenbrock, tau=tau, max_iter=25)
    assert any(torch.equal(a, b) for a, b in itertools.pairwise(path[:9])), "rejections"
    for ours, by_hand in zip(path, expected, strict=False):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-8, atol=1e-10)
    assert len(path) > 8


@pytest.mark.parametrize("parallel", [False, True])
def test_first_nielsen_step_by_hand(parallel: bool) -> None:
    p, tau = np.array([-1.2, 1.0]), 1e-2
    f, j = rosenbrock_numpy(p), rosenbrock_jacobian_numpy(p)
    damping = tau * (j.T @ j).diagonal().max()
    step = np.linalg.solve(j.T @ j + damping * np.eye(2), -j.T @ f)
    assert np.sum(rosenbrock_numpy(p + step) ** 2) < f @ f
    if parallel:
        path = lsq_lma_parallel(torch.tensor(p)[None], rosenbrock_parallel, tau=tau, max_iter=2)
        moved = path[1][0]
    else:
        moved = lsq_lma(torch.tensor(p), rosenbrock, tau=tau, max_iter=2)[1]
    np.testing.assert_allclose(moved, p + step, rtol=1e-12)


def test_nielsen_rejections_double_the_growth() -> None:
    # arctan from 10: with h = −r/J/(1 + λ/J²), steps overshoot until λ is large enough
    path = lsq_lma(vector(10.0), torch.atan, tau=1e-3)
    p, slope = 10.0, 1 / 101
    damping, growth, rejected = 1e-3 * slope**2, 2.0, 0
    while True:
        trial = p - slope * math.atan(p) / (slope**2 + damping)
        if abs(trial) < p:
            break
        rejected += 1
        damping *= growth
        growth *= 2
    assert rejected >= 3
    assert all(torch.equal(entry, vector(10.0)) for entry in path[: rejected + 1])
    assert float(path[rejected + 1]) == pytest.approx(trial, rel=1e-10)
    assert abs(float(path[-1])) < 1e-6


@pytest.mark.parametrize("parallel", [False, True])
def test_first_marquardt_step_by_hand(parallel: bool) -> None:
    p, tau = np.array([-1.2, 1.0]), 0.5
    f, j = rosenbrock_numpy(p), rosenbrock_jacobian_numpy(p)
    normal = j.T @ j
    step = np.linalg.solve(normal + tau * np.diag(normal.diagonal()), -j.T @ f)
    assert np.sum(rosenbrock_numpy(p + step) ** 2) < f @ f
    start = torch.tensor(p)
    if parallel:
        path = lsq_lma_parallel(start[None], rosenbrock_parallel, tau=tau, meth="marq", max_iter=2)
        moved = path[1][0]
    else:
        moved = lsq_lma(start, rosenbrock, tau=tau, meth="marq", max_iter=2)[1]
    np.testing.assert_allclose(moved, p + step, rtol=1e-12)


@pytest.mark.parametrize("raised", [2.0, 5.0])
def test_marquardt_path_by_hand(raised: float) -> None:
    """One parameter: (J² + λ J²) h = −J r, λ·bet below rho1, λ/gam above rho2."""
    lowered, rho1, rho2, damping, p = 3.0, 0.25, 0.75, 1e-3, 10.0
    expected = [p]
    for _ in range(15):
        slope = 1 / (1 + p * p)
        h = -math.atan(p) / slope / (1 + damping)
        predicted = -(slope * math.atan(p) * h + 0.5 * (slope * h) ** 2)
        gain = 0.5 * (math.atan(p) ** 2 - math.atan(p + h) ** 2) / predicted
        if gain < rho1:
            damping *= raised
        elif gain > rho2:
            damping /= lowered
        if gain > 0:
            p += h
        expected.append(p)
    assert expected[1] == 10.0 and abs(p) < 10
    options: dict[str, Any] = {
        "meth": "marq",
        "ptol": 0.0,
        "gtol": 0.0,
        "ftol": 0.0,
        "max_iter": 16,
    }
    single = lsq_lma(vector(10.0), torch.atan, bet=raised, gam=lowered, **options)
    batch = lsq_lma_parallel(
        torch.full((2, 1), 10.0).double(),
        lambda p: torch.atan(p)[:, None, :],
        beta=raised,
        gama=lowered,
        **options,
    )
    assert len(single) == len(batch) == 16
    np.testing.assert_allclose(torch.cat(single), expected, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(torch.stack(batch)[:, 1, 0], expected, rtol=1e-7, atol=1e-12)


def test_marquardt_damping_falls_on_a_linear_problem() -> None:
    # each step reduces the distance by λ/(1 + λ) with λ = tau, tau/3, tau/9, …
    matrix = torch.diag(vector(1.0, 100.0, 1e-3))
    truth = vector(1.0, -2.0, 3.0)
    path = lsq_lma(
        torch.zeros(3, dtype=torch.float64),
        lambda p: matrix @ (p - truth),
        tau=1.0,
        meth="marq",
        gam=3,
        max_iter=6,
    )
    distance = -truth
    for k, entry in enumerate(path):
        torch.testing.assert_close(entry, truth + distance, rtol=1e-10, atol=1e-12)
        damping = 3.0**-k
        distance = distance * damping / (1 + damping)
    assert len(path) == 6


def test_thresholds_decide_whether_marquardt_s_damping_changes() -> None:
    # on a linear problem the gain ratio is 1: above rho2 = 2 it can never be, so λ stays
    truth = vector(1.0, 2.0)
    path = lsq_lma(
        torch.zeros(2, dtype=torch.float64),
        lambda p: p - truth,
        tau=1.0,
        meth="marq",
        rho2=2.0,
        max_iter=5,
    )
    for k, entry in enumerate(path):
        torch.testing.assert_close(entry, truth * (1 - 0.5**k), rtol=1e-10, atol=0)
    path = lsq_lma_parallel(
        torch.zeros(1, 2, dtype=torch.float64),
        lambda p: (p - truth)[:, None, :],
        tau=1.0,
        meth="marq",
        rho1=2.0,
        rho2=3.0,
        beta=2,
        max_iter=3,
    )
    # below rho1 = 2: λ = 1, then 2; the distance falls to 1/2, then 2/3 of that
    torch.testing.assert_close(path[2][0], truth * (1 - 1 / 3), rtol=1e-10, atol=0)


@pytest.mark.parametrize("meth", ["marq", "anything", ""])
def test_any_other_method_is_marquardt(meth: str) -> None:
    start = vector(-1.2, 1.0)
    path = lsq_lma(start, rosenbrock, meth=meth)
    marquardt = lsq_lma(start, rosenbrock, meth="marq")
    assert len(path) == len(marquardt)
    assert all(torch.equal(a, b) for a, b in zip(path, marquardt, strict=True))
    assert not torch.equal(path[1], lsq_lma(start, rosenbrock)[1])


# ------------------------------------------------------------------------------------- tolerances


@pytest.mark.parametrize("meth", METHODS)
def test_gtol_is_the_largest_gradient_component(meth: str) -> None:
    p = np.array([-1.2, 1.0])
    gradient = np.abs(rosenbrock_jacobian_numpy(p).T @ rosenbrock_numpy(p)).max()
    start = torch.tensor(p)
    above, stopped = lsq_lma(start, rosenbrock, gtol=gradient * 1.001, meth=meth, full_output=True)
    assert len(above) == 1 and stopped.status == Status.GTOL and stopped.nfev == 1
    below = lsq_lma(start, rosenbrock, gtol=gradient * 0.999, meth=meth)
    assert len(below) > 1


@pytest.mark.parametrize("ptol", [1e-1, 1e-3, 1e-5])
def test_ptol_by_hand(ptol: float) -> None:
    def stop(when: str, **at: Any) -> bool:
        if when == "after":
            return False
        return bool(np.linalg.norm(at["h"]) < ptol * (ptol + np.linalg.norm(at["p"])))

    start = np.array([-1.2, 1.0])
    expected = nielsen(rosenbrock_numpy, rosenbrock_jacobian_numpy, start, 1e-3, stop)
    path, result = lsq_lma(
        torch.tensor(start), rosenbrock, ptol=ptol, ftol=0.0, gtol=0.0, full_output=True
    )
    assert 2 < len(path) == len(expected) < 100
    assert result.status == Status.XTOL
    np.testing.assert_allclose(path[-1], expected[-1], rtol=1e-7)


@pytest.mark.parametrize("ftol", [1e-1, 1e-3, 1e-5])
def test_ftol_by_hand(ftol: float) -> None:
    def stop(when: str, **at: Any) -> bool:
        if when == "before":
            return False
        return bool(np.linalg.norm(at["change"]) < ftol * np.linalg.norm(at["f"]))

    start = np.array([-1.2, 1.0])
    expected = nielsen(rosenbrock_numpy, rosenbrock_jacobian_numpy, start, 1e-3, stop)
    path, result = lsq_lma(
        torch.tensor(start), rosenbrock, ftol=ftol, ptol=0.0, gtol=0.0, full_output=True
    )
    assert 2 < len(path) == len(expected) < 100
    assert result.status == Status.FTOL
    np.testing.assert_allclose(path[-1], expected[-1], rtol=1e-7)


@pytest.mark.parametrize("name", ["ftol", "ptol", "gtol"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tolerances_below_a_few_eps_count_as_those(name: str, dtype: torch.dtype) -> None:
    w = workload("gauss1d", dtype)
    eps = torch.finfo(dtype).eps
    options: dict[str, Any] = {"ftol": 1e-9, "ptol": 1e-9, "gtol": 1e-9}
    tiny = fit(w, **{**options, name: 1e-30})
    few = fit(w, **{**options, name: 4 * eps})
    assert len(tiny) == len(few)
    assert all(torch.equal(a, b) for a, b in zip(tiny, few, strict=True))


@pytest.mark.parametrize("tolerance", [0.0, 1e-30])
@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tolerance_at_all_still_ends_well(
    dtype: torch.dtype, meth: str, tolerance: float
) -> None:
    w = workload("gauss1d", dtype)
    path, result = fit(
        w, meth=meth, ftol=tolerance, ptol=tolerance, gtol=tolerance, full_output=True, max_iter=500
    )
    assert len(path) < 500
    assert bool((result.status > 0).all()), result.message
    assert bool((workloads.costs(w, path[-1]) <= 1.0001 * best_costs("gauss1d", dtype)).all())


# ------------------------------------------------------------ bad problems


@pytest.mark.parametrize("damage", ["start", "data"])
@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("name", ["W1", "W2", "W4"])
def test_one_bad_problem_leaves_the_others_bit_equal(name: str, meth: str, damage: str) -> None:
    w = workload(name)
    start, y = w.start.clone(), w.y.clone()
    if damage == "start":
        start[5, 1] = torch.nan
    else:
        y[5, 3] = torch.nan
    clean = fit(w, meth=meth)
    path, result = lsq_lma_parallel(
        start, w.residual, w.residual_jacobian, (y,), meth=meth, full_output=True, **TOLERANCES
    )
    others = torch.arange(len(start)) != 5
    assert result.status[5] == Status.NON_FINITE_START
    assert bool((result.status[others] > 0).all())
    assert result.message[5] == "Residuals are not finite in the initial point."
    assert torch.equal(path[-1][others], clean[-1][others])
    assert all(torch.equal(entry[5].nan_to_num(), start[5].nan_to_num()) for entry in path)


@pytest.mark.parametrize("meth", METHODS)
def test_problem_that_runs_into_infinity(meth: str) -> None:
    # exp(p) from a start where it overflows soon, beside an ordinary one
    target = vector(2.0, 3.0)[:, None, None]

    def residual(p: Tensor, target: Tensor) -> Tensor:
        return torch.exp(p[:, None, :] ** 3) - target

    start = vector(0.5, 8.0)[:, None]
    path, result = lsq_lma_parallel(start, residual, args=(target,), meth=meth, full_output=True)
    assert float(path[-1][0, 0]) == pytest.approx(math.log(2) ** (1 / 3), rel=1e-6)
    assert bool(torch.isfinite(path[-1]).all()) and result.status[0] > 0


def test_rank_zero_problem_beside_others() -> None:
    def residual(p: Tensor, weight: Tensor) -> Tensor:
        return (weight * (p - 3) + (1 - weight) * 7)[:, None, :]

    weight = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    path, result = lsq_lma_parallel(
        torch.zeros(3, 2, dtype=torch.float64), residual, args=(weight,), full_output=True
    )
    torch.testing.assert_close(path[-1][0::2], torch.full((2, 2), 3.0).double())
    assert path[-1][1].tolist() == [0, 0] and result.status[1] == Status.GTOL


def test_fewer_residuals_than_parameters() -> None:
    path, result = lsq_lma_parallel(
        torch.ones(4, 3, dtype=torch.float64),
        lambda p: (p.sum(1, keepdim=True) - 6)[:, None, :],
        full_output=True,
    )
    assert bool((result.status > 0).all())
    torch.testing.assert_close(path[-1].sum(1), torch.full((4,), 6.0).double())


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("analytic", [True, False])
def test_wvec_weighs_squares(meth: str, analytic: bool) -> None:
    w = workload("W4")
    wvec = vector(0.25, 9.0)
    root = wvec.sqrt()[:, None]
    path = fit(w, analytic, meth=meth, wvec=wvec)
    scaled = lsq_lma_parallel(
        w.start,
        lambda p, y: root * w.residual(p, y),
        (lambda p, y: root[..., None] * w.residual_jacobian(p, y)) if analytic else None,
        (w.y,),
        meth=meth,
        **TOLERANCES,
    )
    assert len(path) == len(scaled)
    for ours, theirs in zip(path, scaled, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(path[-1], fit(w, analytic, meth=meth)[-1], rtol=1e-6)


@pytest.mark.parametrize("meth", METHODS)
def test_zero_weight_switches_a_channel_off(meth: str) -> None:
    w = workload("W4")
    y = w.y.clone()
    y[:, 2000:] = 1e6
    half = lsq_lma_parallel(
        w.start,
        lambda p, y: w.residual(p, y)[:, :1],
        lambda p, y: w.residual_jacobian(p, y)[:, :1],
        (y,),
        meth=meth,
        **TOLERANCES,
    )
    path = lsq_lma_parallel(
        w.start,
        w.residual,
        w.residual_jacobian,
        (y,),
        meth=meth,
        wvec=vector(1.0, 0.0),
        **TOLERANCES,
    )
    torch.testing.assert_close(path[-1], half[-1], rtol=1e-8, atol=1e-8)


def test_wvec_of_another_dtype() -> None:
    w = workload("W4")
    one = fit(w, wvec=torch.tensor([1, 4]))
    two = fit(w, wvec=vector(1.0, 4.0))
    assert torch.equal(one[-1], two[-1])


def test_unit_weights_change_nothing() -> None:
    w = workload("W4")
    assert torch.equal(fit(w, wvec=torch.ones(2))[-1], fit(w)[-1])


# ------------------------------------------------------------ functions and arguments


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize(
    ("p_dtype", "y_dtype"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.int64),
        (torch.float32, torch.int32),
    ],
)
def test_arguments_of_another_dtype(
    p_dtype: torch.dtype, y_dtype: torch.dtype, analytic: bool
) -> None:
    w = workload("W1")  # counts: whole numbers in any dtype
    path = lsq_lma_parallel(
        w.start.to(p_dtype),
        w.residual,
        w.residual_jacobian if analytic else None,
        (w.y.to(y_dtype),),
        **TOLERANCES,
    )
    assert all(entry.dtype == p_dtype for entry in path)
    cost = workloads.costs(w, path[-1])
    assert bool((cost <= workloads.SOLVED * best_costs("W1", torch.float64)).all())


@pytest.mark.parametrize("name", ["W2", "W4"])
@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("batch", [2, 3, 4, 24])
def test_function_that_closes_over_all_data(name: str, analytic: bool, batch: int) -> None:
    w = workload(name)
    start, y = w.start[:batch], w.y[:batch]
    cut = lsq_lma_parallel(
        start, w.residual, w.residual_jacobian if analytic else None, (y,), **TOLERANCES
    )
    closed = lsq_lma_parallel(
        start,
        lambda p: w.residual(p, y),
        (lambda p: w.residual_jacobian(p, y)) if analytic else None,
        **TOLERANCES,
    )
    assert len(cut) == len(closed)
    for a, b in zip(cut, closed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_jacobian_alone_closes_over_all_data() -> None:
    w = workload("W2")
    cut = fit(w)
    closed = lsq_lma_parallel(
        w.start,
        w.residual,
        # written so that it works on all problems' rows only
        lambda p, y: w.residual_jacobian(p, y) + 0 * w.y[:, None, :, None],
        (w.y,),
        **TOLERANCES,
    )
    torch.testing.assert_close(cut[-1], closed[-1], rtol=1e-9, atol=1e-9)


def test_shared_and_own_arguments() -> None:
    w = workload("gauss1d")
    x = w.x[None, :]  # two dimensions, but not one row per problem
    path = lsq_lma_parallel(
        w.start,
        lambda p, x, y, factor: factor * (w.model(x, *p[:, :, None].unbind(1)) - y)[:, None, :],
        args=(x, w.y, 2.0),
        **TOLERANCES,
    )
    cost = workloads.costs(w, path[-1])
    assert bool((cost <= workloads.SOLVED * best_costs("gauss1d", torch.float64)).all())


@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("trailing", [(12,), (3, 4), (2, 3, 2), (1, 12)])
@pytest.mark.parametrize("analytic", [True, False])
def test_single_equals_parallel_with_one_problem(
    trailing: tuple[int, ...], meth: str, analytic: bool
) -> None:
    x = torch.linspace(0, 3, 12, dtype=torch.float64)
    y = 3 * torch.exp(-1.3 * x) + 0.1 * torch.sin(40 * x)

    def residual(p: Tensor, y: Tensor) -> Tensor:
        return p[..., :1] * torch.exp(-p[..., 1:] * x) - y

    def jacobian(p: Tensor, y: Tensor) -> Tensor:
        fall = torch.exp(-p[..., 1:] * x)
        return torch.stack([fall, -p[..., :1] * x * fall], -1)

    start = vector(1.0, 1.0)
    single = lsq_lma(
        start,
        lambda p, y: residual(p, y).reshape(trailing),
        (lambda p, y: jacobian(p, y).reshape(*trailing, 2)) if analytic else None,
        (y,),
        meth=meth,
    )
    parallel = lsq_lma_parallel(
        start[None],
        lambda p, y: residual(p, y)[:, None],
        (lambda p, y: jacobian(p, y)[:, None]) if analytic else None,
        (y,),
        meth=meth,
    )
    assert len(single) == len(parallel) > 3
    assert all(entry.shape == (2,) for entry in single)
    for one, other in zip(single, parallel, strict=True):
        torch.testing.assert_close(one, other[0], rtol=1e-12, atol=1e-14)
    best = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * x.numpy()) - y.numpy(), [1.0, 1.0], xtol=1e-13, ftol=1e-13
    )
    np.testing.assert_allclose(single[-1], best.x, rtol=1e-6)


def test_single_with_a_scalar_residual() -> None:
    path = lsq_lma(vector(3.0), lambda p: p[0] ** 2 - 2)
    assert path[-1].shape == (1,)
    assert float(path[-1][0]) == pytest.approx(math.sqrt(2), rel=1e-7)


def test_single_leaves_its_start_alone() -> None:
    p = vector(-1.2, 1.0).requires_grad_()
    path = lsq_lma(p, rosenbrock)
    assert p.detach().tolist() == [-1.2, 1.0] and p.grad is None
    assert not path[-1].requires_grad
    assert len(path) > 5 and torch.equal(path[0], p.detach())


def test_single_with_a_nan_start_raises() -> None:
    with pytest.raises(ValueError, match="not finite in the initial point"):
        lsq_lma(vector(math.nan, 1.0), rosenbrock)


# ----------------------------------------------------------------------------------- new keywords


@pytest.mark.parametrize("meth", METHODS)
def test_bounds(meth: str) -> None:
    w = workload("gauss1d")
    lower = torch.full((4,), -torch.inf).double()
    upper = torch.full((4,), torch.inf).double()
    upper[3] = 9.0  # the level is 9 to 11 by truth
    start = w.start.clone()
    start[:, 3] = 8.0
    path, result = lsq_lma_parallel(
        start,
        w.residual,
        w.residual_jacobian,
        (w.y,),
        meth=meth,
        bounds=(lower, upper),
        full_output=True,
    )
    assert all(bool((entry[:, 3] <= 9).all()) for entry in path)
    for row in range(len(start)):
        y = w.y[row].numpy()
        best = scipy.optimize.least_squares(
            lambda p, y=y: w.model_numpy(w.x.numpy(), *p) - y,
            start[row].numpy(),
            bounds=(lower.numpy(), upper.numpy()),
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )
        assert float(result.cost[row]) <= best.cost * (1 + 1e-6)
        np.testing.assert_allclose(path[-1][row], best.x, rtol=1e-4)
    assert bool((result.active_mask[:, 3] == 1).any())


def test_bounds_per_problem_and_fixed_parameters() -> None:
    w = workload("gauss1d")
    lower = torch.full_like(w.start, -torch.inf)
    upper = torch.full_like(w.start, torch.inf)
    lower[:, 1] = upper[:, 1] = w.start[:, 1]
    path = fit(w, bounds=(lower, upper))
    assert all(torch.equal(entry[:, 1], w.start[:, 1]) for entry in path)
    # a fixed parameter is the smaller problem
    rest = [0, 2, 3]

    def residual(q: Tensor, centre: Tensor, y: Tensor) -> Tensor:
        return w.residual(torch.stack([q[:, 0], centre[:, 0], q[:, 1], q[:, 2]], 1), y)

    smaller = lsq_lma_parallel(
        w.start[:, rest], residual, args=(w.start[:, 1:2], w.y), **TOLERANCES
    )
    torch.testing.assert_close(path[-1][:, rest], smaller[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("meth", METHODS)
@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_losses_agree_with_scipy(loss: str, meth: str) -> None:
    w = workload("gauss1d")
    rows = slice(0, 6)
    y = w.y[rows].clone()
    y[:, ::9] += 8.0  # outliers
    path, result = lsq_lma_parallel(
        w.start[rows],
        w.residual,
        w.residual_jacobian,
        (y,),
        meth=meth,
        loss=loss,
        f_scale=2.0,
        max_iter=300,
        full_output=True,
    )
    for row in range(6):
        best = scipy.optimize.least_squares(
            lambda p, row=row: w.model_numpy(w.x.numpy(), *p) - y[row].numpy(),
            path[-1][row].numpy(),
            loss=loss,
            f_scale=2.0,
            xtol=1e-13,
            ftol=1e-13,
            gtol=1e-13,
        )
        assert float(result.cost[row]) == pytest.approx(best.cost, rel=1e-7)
        np.testing.assert_allclose(path[-1][row], best.x, rtol=1e-3)


def test_loss_as_a_callable_and_f_scale() -> None:
    w = workload("gauss1d")
    named = fit(w, loss="cauchy", f_scale=3.0)

    def cauchy(z: Tensor) -> Tensor:
        return torch.stack([torch.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])

    own = fit(w, loss=cauchy, f_scale=3.0)
    torch.testing.assert_close(named[-1], own[-1], rtol=1e-8, atol=1e-8)
    assert not torch.allclose(named[-1], fit(w, loss="cauchy", f_scale=0.5)[-1], rtol=1e-6)
    torch.testing.assert_close(
        fit(w, loss="cauchy", f_scale=1e8)[-1], fit(w)[-1], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("meth", METHODS)
def test_history_false_gives_start_and_end(meth: str) -> None:
    w = workload("W3")
    path = fit(w, meth=meth)
    ends = fit(w, meth=meth, history=False)
    assert len(ends) == 2
    assert torch.equal(ends[0], w.start)
    torch.testing.assert_close(ends[1], path[-1], rtol=1e-9, atol=1e-9)


def test_full_output_adds_the_result() -> None:
    w = workload("W2")
    path, result = fit(w, full_output=True)
    assert result.x.shape == w.start.shape and result.fun.shape == (200, 1, 20)
    assert result.jac.shape == (200, 1, 20, 3)
    torch.testing.assert_close(result.fun, w.residual(path[-1], w.y))
    torch.testing.assert_close(result.jac, w.residual_jacobian(path[-1], w.y))
    single = lsq_lma(vector(-1.2, 1.0), rosenbrock, full_output=True)[1]
    assert single.x.shape == (2,) and isinstance(single.cost, float)
    assert single.message.endswith("is satisfied.") and single.success is True


@pytest.mark.parametrize("how", ["true", "StopIteration"])
def test_callback_stops(how: str) -> None:
    w = workload("W3")
    seen: list[IterationState] = []

    def callback(state: IterationState) -> bool:
        seen.append(state)
        if state.iteration == 2:
            if how == "StopIteration":
                raise StopIteration
            return True
        return False

    path, result = fit(w, callback=callback, full_output=True)
    assert len(path) == 3 and [state.iteration for state in seen] == [1, 2]
    assert bool((result.status == Status.CALLBACK).all()) and not bool(result.success.any())
    free = fit(w)
    assert torch.equal(path[2], free[2]) and torch.equal(seen[1].x, path[2])


def test_callback_sees_every_iterate() -> None:
    w = workload("W2")
    seen: list[IterationState] = []
    path = fit(w, callback=seen.append)
    assert [state.iteration for state in seen] == list(range(1, len(seen) + 1))
    for state, entry in zip(seen, path[1:], strict=False):
        assert torch.equal(state.x, entry) and state.x.shape == w.start.shape
        torch.testing.assert_close(state.cost, workloads.costs(w, entry), rtol=1e-9, atol=0)
    assert not bool(seen[-1].running.any())
    assert int(seen[0].nfev.min()) == 2


def test_costs_count_evaluations() -> None:
    w = workload("W2")
    rows = 0

    def residual(p: Tensor, y: Tensor) -> Tensor:
        nonlocal rows
        rows += len(p)
        return w.residual(p, y)

    _, result = lsq_lma_parallel(
        w.start, residual, w.residual_jacobian, (w.y,), full_output=True, **TOLERANCES
    )
    # nfev per problem, one more with each later Jacobian, ten rows to look at the function
    derivatives = int((result.njev - 1).sum())
    assert int(result.nfev.sum()) <= rows <= int(result.nfev.sum()) + derivatives + 16


# ------------------------------------------------------------ names and signatures

NEW = ["bounds", "loss", "f_scale", "history", "full_output", "callback"]
DEFAULTS = {
    "bounds": None,
    "loss": "linear",
    "f_scale": 1.0,
    "history": True,
    "full_output": False,
    "callback": None,
}
COMMON = {"jac_function": None, "args": (), "ftol": 1e-8, "ptol": 1e-8, "gtol": 1e-8}


def check_signature(function: Callable[..., Any], old: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    assert names[: len(old)] == list(old)
    assert [parameters[name].default for name in old] == list(old.values())
    assert all(parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in old)
    assert [name for name in names[len(old) :] if name in NEW] == NEW
    assert all(parameters[name].default == default for name, default in DEFAULTS.items())


def test_signatures() -> None:
    empty = inspect.Parameter.empty
    tail = {"tau": 1e-3, "meth": "lev", "rho1": 0.25, "rho2": 0.75}
    tolerances = {"ftol": 1e-8, "ptol": 1e-8, "gtol": 1e-8}
    check_signature(
        lsq_lma,
        {"p": empty, "function": empty, **COMMON, **tail, "bet": 2, "gam": 3, "max_iter": 100},
    )
    check_signature(
        lsq_lma_parallel,
        {
            "p": empty,
            "function": empty,
            "jac_function": None,
            "args": (),
            "wvec": None,
            **tolerances,
            **tail,
            "beta": 2,
            "gama": 3,
            "max_iter": 100,
        },
    )


def test_import_paths() -> None:
    from torchimize.functions.parallel.lma_fun_parallel import lsq_lma_parallel as parallel
    from torchimize.functions.single.lma_fun_single import lsq_lma as single

    assert parallel is lsq_lma_parallel is torchimize.functions.lsq_lma_parallel
    assert single is lsq_lma is torchimize.functions.lsq_lma


def test_old_arguments_by_position() -> None:
    w = workload("W4")
    wvec = vector(1.0, 2.0)
    by_position = lsq_lma_parallel(
        w.start, w.residual, w.residual_jacobian, (w.y,), wvec, 1e-6, 1e-6, 1e-6, 1e-2, "marq",
        0.2, 0.8, 3, 4, 50,
    )  # fmt: skip
    by_name = fit(
        w, wvec=wvec, tau=1e-2, meth="marq", rho1=0.2, rho2=0.8, beta=3, gama=4, max_iter=50
    )
    assert torch.equal(by_position[-1], by_name[-1]) and len(by_position) == len(by_name)
