"""Gauss-Newton of the functional API, against NumPy's least squares step by step."""

from __future__ import annotations

import inspect
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
from torchimize.functions import lsq_gna, lsq_gna_parallel, lsq_gna_parallel_plain

SIZES = {"W1": 200, "W2": 200, "W3": 200, "W4": 24}
DTYPES = [torch.float64, torch.float32]
TOLERANCES: dict[str, Any] = {"ftol": 1e-6, "ptol": 1e-6, "gtol": 1e-6}


@cache
def workload(name: str, dtype: torch.dtype = torch.float64) -> Workload:
    return workloads.make(name, SIZES.get(name, 30), dtype, seed=0)


@cache
def best_costs(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return workloads.best_costs(workload(name, dtype))


def fit(w: Workload, analytic: bool = True, **options: Any) -> Any:
    jacobian = w.residual_jacobian if analytic else None
    return lsq_gna_parallel(w.start, w.residual, jacobian, (w.y,), **{**TOLERANCES, **options})


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numpy_functions(w: Workload, row: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Residual (M,) and Jacobian (M, P) of one problem, in float64."""
    x, y = w.x.double(), w.y[row].double().numpy()
    x_numpy = x.numpy()

    def residual(p: np.ndarray) -> np.ndarray:
        return np.asarray(w.model_numpy(x_numpy, *p) - y)

    def jacobian(p: np.ndarray) -> np.ndarray:
        return w.jacobian(x, *torch.tensor(p)).numpy()

    return residual, jacobian


def gauss_newton(w: Workload, row: int, steps: int, tolerance: float = 0.0) -> list[np.ndarray]:
    """Undamped Gauss-Newton with NumPy's lstsq; stops where nothing is finite."""
    residual, jacobian = numpy_functions(w, row)
    p = w.start[row].double().numpy()
    path = [p]
    for _ in range(steps):
        with np.errstate(all="ignore"):
            f, j = residual(p), jacobian(p)
        if not (np.isfinite(f).all() and np.isfinite(j).all()):
            break
        h = np.linalg.lstsq(j, -f, rcond=None)[0]
        p = p + h
        path.append(p)
        if np.linalg.norm(h) < tolerance * (tolerance + np.linalg.norm(p)):
            break
    return path


@cache
def numpy_solves(name: str) -> Tensor:
    """Which problems (B,) the plain NumPy loop solves."""
    w = workload(name)
    ends = [gauss_newton(w, row, 99, 1e-6)[-1] for row in range(len(w.start))]
    return workloads.costs(w, torch.tensor(np.array(ends))) <= workloads.SOLVED * best_costs(name)


# ------------------------------------------------------------ what must be solved


@pytest.mark.parametrize("analytic", [True, False], ids=["analytic", "automatic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_solves_what_gauss_newton_solves(name: str, dtype: torch.dtype, analytic: bool) -> None:
    w = workload(name, dtype)
    path, result = fit(w, analytic, full_output=True)
    solved = workloads.costs(w, path[-1]) <= workloads.SOLVED * best_costs(name, dtype)
    reference = numpy_solves(name)
    if name == "W1":
        assert bool(reference.all()) and bool(solved.all())
    assert int(solved.sum()) >= int(reference.sum()) > 0.7 * len(solved)
    if dtype == torch.float64:
        assert bool((solved | ~reference).all())
    assert bool((result.status[solved] > 0).all())


@pytest.mark.parametrize("name", SIZES)
def test_never_raises_and_never_ends_in_nan(name: str) -> None:
    path, result = fit(workload(name), full_output=True)
    assert all(bool(torch.isfinite(entry).all()) for entry in path)
    assert bool(torch.isfinite(result.cost).all())
    known = {Status.GTOL, Status.FTOL, Status.XTOL, Status.MAX_NFEV, Status.NON_FINITE}
    assert set(result.status.tolist()) <= known


def test_path_is_numpy_s() -> None:
    w = workload("W1")
    path = fit(w)
    for row in (0, 7, 199):
        expected = gauss_newton(w, row, 99, 1e-6)
        for ours, by_hand in zip(path, expected[:-1], strict=False):
            np.testing.assert_allclose(ours[row], by_hand, rtol=1e-8)


@pytest.mark.parametrize("l", [1.0, 0.5, 1.5])
def test_linear_problem(l: float) -> None:  # noqa: E741
    # the distance falls by 1 − l each time
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    truth = vector(1, -2, 3)
    path = lsq_gna(
        torch.zeros(3, dtype=torch.float64), lambda p: matrix @ (p - truth), l=l, max_iter=8
    )
    for k, entry in enumerate(path):
        torch.testing.assert_close(entry, truth * (1 - (1 - l) ** k), rtol=1e-9, atol=1e-9)
    assert len(path) == (2 if l == 1 else 8)


def test_half_a_step_is_half_the_step_exactly() -> None:
    w = workload("gauss1d")
    # from zero, so that the point is the step
    start = torch.zeros_like(w.start)

    def residual(q: Tensor, origin: Tensor, y: Tensor) -> Tensor:
        return w.residual(origin + q, y)

    full, half = (
        lsq_gna_parallel(start, residual, args=(w.start, w.y), l=l, max_iter=2)[1]
        for l in (1.0, 0.5)  # noqa: E741
    )
    assert bool((full != 0).all()) and torch.equal(full, 2 * half)


def test_long_steps() -> None:
    path = lsq_gna(vector(1.0), lambda p: p - 3, l=2.5, max_iter=3)
    assert [float(entry[0]) for entry in path] == pytest.approx([1.0, 6.0, -1.5], rel=1e-12)


# ------------------------------------------------------------ the list of iterates


@pytest.mark.parametrize("dtype", DTYPES)
def test_list_of_iterates(dtype: torch.dtype) -> None:
    w = workload("W2", dtype)
    path, result = fit(w, full_output=True)
    assert isinstance(path, list) and 2 <= len(path) <= 100
    assert torch.equal(path[0], w.start) and torch.equal(path[-1], result.x)
    assert all(entry.shape == w.start.shape and entry.dtype == dtype for entry in path)
    assert len({entry.data_ptr() for entry in path}) == len(path)


@pytest.mark.parametrize("max_iter", [1, 2, 4])
def test_at_most_max_iter_entries(max_iter: int) -> None:
    w = workload("W3")
    path, result = fit(w, max_iter=max_iter, full_output=True)
    assert len(path) == max_iter
    assert torch.equal(path[-1], result.x)
    assert int((result.status == Status.MAX_NFEV).sum()) > 100


def test_stopped_problems_stand_still_and_keep_their_last_step() -> None:
    w = workload("W3")
    states: list[IterationState] = []
    path, result = fit(w, full_output=True, callback=states.append)
    ended: dict[int, int] = {}
    for state in states:
        for row in (~state.running).nonzero()[:, 0].tolist():
            ended.setdefault(row, state.iteration)
    assert len(set(ended.values())) > 3, "the workload has fits of different length"
    for row, iteration in ended.items():
        last = path[min(iteration, len(path) - 1)][row]
        assert all(torch.equal(entry[row], last) for entry in path[iteration:])
    # the step that met a test is not lost: one more would be shorter than ptol asks for
    for row in (result.status > 0).nonzero()[:20, 0].tolist():
        residual, jacobian = numpy_functions(w, row)
        p = path[-1][row].numpy()
        h = np.linalg.lstsq(jacobian(p), -residual(p), rcond=None)[0]
        assert np.linalg.norm(h) < 1e-4 * np.linalg.norm(p)


def test_caller_s_start_is_never_changed() -> None:
    w = workload("W2")
    for requires_grad in (False, True):
        p = w.start.clone().requires_grad_(requires_grad)
        before = p.detach().clone()
        path = lsq_gna_parallel(p, w.residual, w.residual_jacobian, (w.y,))
        plain = lsq_gna_parallel_plain(p, lambda p: w.residual(p, w.y), None, None, max_iter=3)
        assert torch.equal(p.detach(), before) and p.grad is None
        assert not any(entry.requires_grad for entry in (*path, plain))
        path[0].zero_()
        plain.zero_()
        assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("name", ["W1", "gauss1d"])
def test_analytic_and_automatic_jacobian_give_the_same_path(name: str) -> None:
    w = workload(name)
    one, other = fit(w, True), fit(w, False)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------- tolerances


def test_gtol_is_the_largest_gradient_component() -> None:
    w = workload("gauss1d")
    residual, jacobian = numpy_functions(w, 0)
    p = w.start[0].numpy()
    gradient = np.abs(jacobian(p).T @ residual(p)).max()
    one = (w.start[:1], w.residual, w.residual_jacobian, (w.y[:1],))
    path, result = lsq_gna_parallel(*one, gtol=gradient * 1.001, full_output=True)
    assert len(path) == 1 and result.status.tolist() == [Status.GTOL]
    assert len(lsq_gna_parallel(*one, gtol=gradient * 0.999)) > 1


def test_ptol_looks_at_the_unmultiplied_step() -> None:
    # h = 2 whatever l is, and ‖p‖ = 1
    def residual(p: Tensor) -> Tensor:
        return p - 3

    _, stopped = lsq_gna(vector(1.0), residual, l=1e-7, ptol=1.7, full_output=True)
    assert stopped.status == Status.XTOL
    path, running = lsq_gna(
        vector(1.0), residual, l=1e-7, ptol=1e-3, ftol=0.0, max_iter=5, full_output=True
    )
    assert len(path) == 5 and running.status == Status.MAX_NFEV


@pytest.mark.parametrize("l", [1.0, 0.5])
def test_ftol_is_the_relative_change_of_the_residual(l: float) -> None:  # noqa: E741
    # f = (p − 3, 4): from p = 0, J h = 3; ‖f‖ = 5 before the step and at least 4 after it
    def residual(p: Tensor) -> Tensor:
        return torch.stack([p[0] - 3, 0 * p[0] + 4])

    options: dict[str, Any] = {"ptol": 0.0, "gtol": 0.0, "full_output": True, "l": l}
    path, result = lsq_gna(vector(0.0), residual, ftol=0.8, **options)
    assert len(path) == 2 and result.status == Status.FTOL
    assert float(path[1][0]) == pytest.approx(3 * l, rel=1e-12)
    path, result = lsq_gna(vector(0.0), residual, ftol=0.55, max_iter=2, **options)
    assert len(path) == 2 and result.status == Status.MAX_NFEV


# ------------------------------------------------------------ bad problems


@pytest.mark.parametrize("damage", ["start", "data"])
@pytest.mark.parametrize("name", ["W1", "W2", "W4"])
def test_one_bad_problem_leaves_the_others_bit_equal(name: str, damage: str) -> None:
    w = workload(name)
    start, y = w.start.clone(), w.y.clone()
    if damage == "start":
        start[5, 1] = torch.nan
    else:
        y[5, 3] = torch.nan
    clean, clean_result = fit(w, full_output=True)
    path, result = lsq_gna_parallel(
        start, w.residual, w.residual_jacobian, (y,), full_output=True, **TOLERANCES
    )
    others = torch.arange(len(start)) != 5
    assert result.status[5] == Status.NON_FINITE_START
    assert torch.equal(result.status[others], clean_result.status[others])
    assert torch.equal(path[-1][others], clean[-1][others])


def test_divergence_is_reported() -> None:
    # the cube root: p − 3p = −2p, further and further out
    def cube_root(p: Tensor) -> Tensor:
        return torch.sign(p) * p.abs() ** (1 / 3)

    path, result = lsq_gna(vector(1.0), cube_root, max_iter=20, full_output=True)
    assert result.success is False and result.status == Status.MAX_NFEV
    expected = [(-2.0) ** k for k in range(20)]
    assert [float(entry[0]) for entry in path] == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------ weights and arguments


@pytest.mark.parametrize("analytic", [True, False])
def test_wvec_weighs_squares(analytic: bool) -> None:
    w = workload("gauss1d")
    wvec = vector(0.25, 9.0)
    root = wvec.sqrt()[:, None]

    def two(p: Tensor, y: Tensor) -> Tensor:
        return torch.cat([w.residual(p, y), w.residual(p, y + torch.sin(w.x))], 1)

    def jacobian(p: Tensor, y: Tensor) -> Tensor:
        return w.residual_jacobian(p, y).repeat(1, 2, 1, 1)

    path = lsq_gna_parallel(w.start, two, jacobian if analytic else None, (w.y,), wvec)
    scaled = lsq_gna_parallel(w.start, lambda p, y: root * two(p, y), args=(w.y,))
    assert len(path) == len(scaled)
    for ours, theirs in zip(path, scaled, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    alone = lsq_gna_parallel(w.start, w.residual, args=(w.y,))
    off = lsq_gna_parallel(
        w.start, two, jacobian if analytic else None, (w.y,), torch.tensor([2.0, 0.0])
    )
    torch.testing.assert_close(off[-1], alone[-1], rtol=1e-8, atol=1e-8)
    assert not torch.allclose(path[-1], off[-1], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_of_another_dtype(dtype: torch.dtype) -> None:
    w = workload("W1")
    for other in (torch.float64, torch.float32, torch.int64):
        path = lsq_gna_parallel(w.start.to(dtype), w.residual, None, (w.y.to(other),), **TOLERANCES)
        assert path[-1].dtype == dtype
        assert bool((workloads.costs(w, path[-1]) <= workloads.SOLVED * best_costs("W1")).all())


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("batch", [2, 3, 4, 30])
def test_function_that_closes_over_all_data(analytic: bool, batch: int) -> None:
    w = workload("W2")
    start, y = w.start[:batch], w.y[:batch]
    cut = lsq_gna_parallel(start, w.residual, w.residual_jacobian, (y,))
    closed = lsq_gna_parallel(
        start,
        lambda p: w.residual(p, y),
        (lambda p: w.residual_jacobian(p, y)) if analytic else None,
    )
    torch.testing.assert_close(cut[-1], closed[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trailing", [(12,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("analytic", [True, False])
def test_single_equals_parallel_with_one_problem(trailing: tuple[int, ...], analytic: bool) -> None:
    x = torch.linspace(0, 3, 12, dtype=torch.float64)
    y = 3 * torch.exp(-1.3 * x) + 0.1 * torch.sin(40 * x)

    def residual(p: Tensor) -> Tensor:
        return p[..., :1] * torch.exp(-p[..., 1:] * x) - y

    def jacobian(p: Tensor) -> Tensor:
        fall = torch.exp(-p[..., 1:] * x)
        return torch.stack([fall, -p[..., :1] * x * fall], -1)

    start = vector(2.5, 1.0)
    single = lsq_gna(
        start,
        lambda p: residual(p).reshape(trailing),
        (lambda p: jacobian(p).reshape(*trailing, 2)) if analytic else None,
    )
    parallel = lsq_gna_parallel(
        start[None],
        lambda p: residual(p)[:, None],
        (lambda p: jacobian(p)[:, None]) if analytic else None,
    )
    assert len(single) == len(parallel) > 3
    for one, other in zip(single, parallel, strict=True):
        assert one.shape == (2,)
        torch.testing.assert_close(one, other[0], rtol=1e-12, atol=1e-14)
    best = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * x.numpy()) - y.numpy(), [2.5, 1.0], xtol=1e-13, ftol=1e-13
    )
    np.testing.assert_allclose(single[-1], best.x, rtol=1e-6)


# ----------------------------------------------------------------------------------- new keywords


def test_bounds() -> None:
    w = workload("gauss1d")
    lower, upper = vector(0, 20, 1, 0), vector(47, 30, 10, 20)
    start = torch.minimum(w.start, upper - 1)
    path, result = lsq_gna_parallel(
        start, w.residual, w.residual_jacobian, (w.y,), bounds=(lower, upper), full_output=True
    )
    assert all(bool(((entry >= lower) & (entry <= upper)).all()) for entry in path)
    assert 3 < int((result.active_mask[:, 0] == 1).sum()) < 30
    for row in range(0, 30, 3):
        residual, _ = numpy_functions(w, row)
        best = scipy.optimize.least_squares(
            residual, start[row].numpy(), bounds=(lower.numpy(), upper.numpy()), xtol=1e-12,
            ftol=1e-12, gtol=1e-12,
        )  # fmt: skip
        assert float(result.cost[row]) <= best.cost * (1 + 1e-6)


def test_loss() -> None:
    w = workload("gauss1d")
    y = w.y.clone()
    y[:, ::9] += 30.0
    path, result = lsq_gna_parallel(
        w.truth, w.residual, None, (y,), loss="soft_l1", f_scale=10.0, full_output=True
    )
    for row in range(0, 30, 6):
        best = scipy.optimize.least_squares(
            lambda p, row=row: w.model_numpy(w.x.numpy(), *p) - y[row].numpy(),
            w.truth[row].numpy(),
            loss="soft_l1",
            f_scale=10.0,
            xtol=1e-13,
            ftol=1e-13,
            gtol=1e-13,
        )
        assert float(result.cost[row]) == pytest.approx(best.cost, rel=1e-9)
        np.testing.assert_allclose(path[-1][row], best.x, rtol=1e-4)


def test_history_full_output_and_callback() -> None:
    w = workload("W1")
    path = fit(w)
    ends, result = fit(w, history=False, full_output=True)
    assert len(ends) == 2 and torch.equal(ends[0], w.start) and torch.equal(ends[1], result.x)
    torch.testing.assert_close(ends[1], path[-1], rtol=1e-9, atol=0)
    assert bool(result.success.all()) and result.fun.shape == (200, 1, 225)
    stopped, result = fit(w, callback=lambda state: state.iteration == 2, full_output=True)
    assert len(stopped) == 3 and bool((result.status == Status.CALLBACK).all())


# ------------------------------------------------------------ plain steps


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("l", [1.0, 0.3])
@pytest.mark.parametrize("analytic", [True, False])
def test_plain_takes_exactly_max_iter_steps(steps: int, l: float, analytic: bool) -> None:  # noqa: E741
    w = workload("gauss1d")
    wvec = vector(4.0)
    end = lsq_gna_parallel_plain(
        w.start,
        lambda p: w.residual(p, w.y),
        (lambda p: w.residual_jacobian(p, w.y)) if analytic else None,
        wvec,
        l,
        steps,
    )
    assert isinstance(end, Tensor) and end.shape == w.start.shape
    for row in range(len(end)):
        residual, jacobian = numpy_functions(w, row)
        p = w.start[row].numpy()
        for _ in range(steps):
            p = p - l * np.linalg.lstsq(jacobian(p), residual(p), rcond=None)[0]
        np.testing.assert_allclose(end[row], p, rtol=1e-9)


def test_plain_weighs_channels() -> None:
    # one parameter, two channels that want 1 and 5: the weighted mean, at once
    target = vector(1.0, 5.0)[None, :, None]
    end = lsq_gna_parallel_plain(
        torch.zeros(3, 1, dtype=torch.float64),
        lambda p: p[:, :, None] - target,
        None,
        vector(3.0, 1.0),
        max_iter=1,
    )
    torch.testing.assert_close(end, torch.full((3, 1), 2.0).double())


def test_plain_counts_calls_of_the_jacobian() -> None:
    calls = 0

    def jacobian(p: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.diag_embed(2 * p)[:, None]

    def run(steps: int) -> int:
        nonlocal calls
        calls = 0
        lsq_gna_parallel_plain(
            torch.full((2, 2), 9.0).double(),
            lambda p: (p**2 - 2)[:, None, :],
            jacobian,
            None,
            max_iter=steps,
        )
        return calls

    run(1)  # the first call looks at the functions more often
    assert [run(steps) - run(1) for steps in (2, 3, 5)] == [1, 2, 4]


def test_plain_keeps_a_finite_point() -> None:
    start = vector(0.5, 1.0)[:, None]
    end = lsq_gna_parallel_plain(
        start, lambda p: torch.log(p - 0.4)[:, None, :], None, None, max_iter=30
    )
    assert bool(torch.isfinite(end).all())
    with pytest.raises(ValueError, match="not finite in the initial point"):
        lsq_gna_parallel_plain(start - 5, lambda p: torch.log(p)[:, None, :], None, None)


# ------------------------------------------------------------ names and signatures


def test_signatures() -> None:
    empty = inspect.Parameter.empty
    tail = {"ftol": 1e-8, "ptol": 1e-8, "gtol": 1e-8, "l": 1.0, "max_iter": 100}
    head = {"p": empty, "function": empty, "jac_function": None, "args": ()}
    new = {
        "bounds": None, "loss": "linear", "f_scale": 1.0, "history": True, "full_output": False,
        "callback": None,
    }  # fmt: skip
    for function, old in (
        (lsq_gna, {**head, **tail}),
        (lsq_gna_parallel, {**head, "wvec": None, **tail}),
    ):
        parameters = inspect.signature(function).parameters
        names = list(parameters)
        assert names[: len(old)] == list(old)
        assert [parameters[name].default for name in old] == list(old.values())
        assert [name for name in names[len(old) :] if name in new] == list(new)
        assert all(parameters[name].default == default for name, default in new.items())
    plain = inspect.signature(lsq_gna_parallel_plain).parameters
    assert {name: parameter.default for name, parameter in plain.items()} == {
        "p": empty, "function": empty, "jac_function": empty, "wvec": empty, "l": 1.0,
        "max_iter": 100,
    }  # fmt: skip
    assert list(plain) == ["p", "function", "jac_function", "wvec", "l", "max_iter"]


def test_import_paths() -> None:
    from torchimize.functions.parallel import gna_fun_parallel
    from torchimize.functions.single.gna_fun_single import lsq_gna as single

    assert gna_fun_parallel.lsq_gna_parallel is torchimize.functions.lsq_gna_parallel
    assert gna_fun_parallel.lsq_gna_parallel_plain is torchimize.functions.lsq_gna_parallel_plain
    assert single is lsq_gna is torchimize.functions.lsq_gna
