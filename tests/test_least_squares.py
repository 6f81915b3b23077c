"""``least_squares``: agreement with SciPy's, and every option does what it says."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import torchimize
from torchimize import least_squares

Array = NDArray[np.float64]

NUM_PROBLEMS = 3


# ------------------------------------------------------------------------------------ the models


@dataclass(frozen=True)
class Model:
    """A curve in words that NumPy and torch share; ``grid`` has the residual's trailing shape."""

    curve: Callable[..., Any]
    grid: Array
    truth: tuple[float, ...]
    linear_in: tuple[int, ...] = ()
    """Parameters that grow with the data."""
    noise: float = 0.02


def exponential(lib: ModuleType, t: Any, a: Any, b: Any, c: Any) -> Any:
    return a * lib.exp(-b * t) + c


def rational(lib: ModuleType, t: Any, a: Any, b: Any, c: Any) -> Any:
    return (a + c * t) / (1 + b * t)


def sinusoid(lib: ModuleType, t: Any, a: Any, b: Any, c: Any) -> Any:
    return a * lib.sin(b * t + c)


def parabola(lib: ModuleType, t: Any, a: Any, b: Any, c: Any) -> Any:
    return a + b * t + c * t * t


def rosenbrock(lib: ModuleType, first: Any, a: Any, b: Any) -> Any:
    return 10 * (b - a * a) * first + (1 - a) * (1 - first)


def power(lib: ModuleType, t: Any, a: Any) -> Any:
    return lib.exp(a * t)


TIME = np.linspace(0.0, 4.0, 24)
MODELS = {
    "exponential": Model(exponential, TIME, (3.0, 0.8, 1.0), (0, 2)),
    "rational": Model(rational, TIME, (2.0, 1.5, 0.7), (0, 2)),
    "sinusoid": Model(sinusoid, TIME, (2.0, 1.7, 0.4), (0,)),
    "linear": Model(parabola, TIME, (1.0, -2.0, 0.5), (0, 1, 2)),
    "rosenbrock": Model(rosenbrock, np.array([1.0, 0.0]), (1.0, 1.0), (), 0.0),
    "channels": Model(exponential, np.stack([TIME, 1.7 * TIME + 0.1]), (3.0, 0.8, 1.0), (0, 2)),
    "number": Model(power, np.array(1.0), (1.2,), (), 0.0),
    "far sizes": Model(exponential, 1e7 * TIME, (3e5, 8e-8, 1e5), (0, 2), 2e3),
}


def shifted_cubic_root(z: Any) -> Any:
    """ρ = 3 ((1 + z)^(1/3) − 1), a loss SciPy has no name for; (3, m) as SciPy takes it."""
    lib: Any = torch if isinstance(z, Tensor) else np
    return lib.stack(
        [3 * ((1 + z) ** (1 / 3) - 1), (1 + z) ** (-2 / 3), -2 / 3 * (1 + z) ** (-5 / 3)]
    )


LOSSES: tuple[Any, ...] = ("linear", "soft_l1", "huber", "cauchy", "arctan", shifted_cubic_root)
BOUNDS = ("none", "inactive", "active", "one-sided", "per problem")


@dataclass(frozen=True)
class Case:
    model: str = "exponential"
    loss: Any = "linear"
    bounds: str = "none"
    f_scale: float = 2.0
    """In units of the noise."""
    x_scale: str = "jac"
    data_scale: float = 1.0

    def __str__(self) -> str:
        loss = self.loss if isinstance(self.loss, str) else "callable"
        return (
            f"{self.model}, {loss} {self.f_scale:g}, bounds {self.bounds}, "
            f"x_scale {self.x_scale}, data {self.data_scale:g}"
        )


CASES = [
    *(
        # arctan has many minima where much lies beyond its scale
        Case(loss=loss, bounds=bounds, f_scale=max(f_scale, 10.0) if loss == "arctan" else f_scale)
        for (loss, bounds), f_scale in zip(
            itertools.product(LOSSES, BOUNDS), itertools.cycle([2.0, 3.0, 5.0, 20.0]), strict=False
        )
    ),
    *(
        Case(model=model, data_scale=scale, loss=loss)
        for (model, scale), loss in zip(
            itertools.product(MODELS, (1e-6, 1.0, 1e6)),
            itertools.cycle(["linear", "soft_l1", "cauchy", "huber", "linear"]),
            strict=False,
        )
        if MODELS[model].linear_in or scale == 1.0
    ),
    *(
        Case(model=model, x_scale=x_scale, bounds=bounds, loss="soft_l1")
        for model, bounds in (("rational", "active"), ("far sizes", "none"), ("channels", "active"))
        for x_scale in ("number", "vector")
        if model != "far sizes" or x_scale == "vector"
    ),
    Case(model="rosenbrock", bounds="active"),
    Case(model="rosenbrock", bounds="per problem", x_scale="vector"),
    Case(model="number", bounds="active"),
    Case(model="number", bounds="inactive", loss="arctan"),
    Case(model="far sizes", bounds="active", loss="huber"),
    Case(model="sinusoid", bounds="per problem", loss="cauchy", data_scale=1e6),
    Case(model="channels", bounds="one-sided", loss=shifted_cubic_root, data_scale=1e-6),
]


@dataclass(frozen=True)
class Instance:
    """Numbers for a case: everything that a call needs, for all problems."""

    model: Model
    y: Array
    start: Array
    options: dict[str, Any]
    lower: Array
    upper: Array

    def residual(self, x: Any, grid: Any, y: Any) -> Any:
        """In torch, for a batch."""
        shape = (-1, *(1 for _ in self.model.grid.shape))
        return self.model.curve(torch, grid, *(column.reshape(shape) for column in x.T)) - y

    def residual_alone(self, x: Array, row: int) -> Array:
        """In NumPy, for SciPy: flat, also at complex parameters."""
        value = self.model.curve(np, self.model.grid, *x) - self.y[row]
        return np.asarray(value).reshape(-1)

    def ours(self, **options: Any) -> torchimize.Result:
        start = torch.tensor(self.start)
        args = (torch.tensor(self.model.grid), torch.tensor(self.y))
        return least_squares(
            self.residual,
            start,
            args=args,
            bounds=(torch.tensor(self.lower), torch.tensor(self.upper)),
            **(self.options | options),
        )

    def jacobian_alone(self, x: Array, row: int) -> Array:
        """Exact, by complex steps that no rounding can see.

        SciPy's own complex step is 1.5e-8 for every parameter below 1, too long for small ones.
        """
        columns = []
        for j, size in enumerate(np.where(x == 0, 1.0, np.abs(x))):
            moved = x.astype(complex)
            moved[j] += 1e-30j * size
            columns.append(self.residual_alone(moved, row).imag / (1e-30 * size))
        return np.stack(columns, 1)

    def scipys(self, row: int, start: Array, method: str, **options: Any) -> Any:
        """One problem by SciPy, with exact derivatives; the bounds left out for method 'free'."""
        bounds = (-np.inf, np.inf) if method == "free" else (self.lower[row], self.upper[row])
        return scipy.optimize.least_squares(
            lambda x: self.residual_alone(x, row),
            start,
            lambda x: self.jacobian_alone(x, row),
            bounds=bounds,
            method="trf" if method == "free" else method,
            **(self.options | options),
        )


def box(kind: str, truth: Array) -> tuple[Array, Array]:
    """A box for each problem; an active one cuts off the last parameter's true value."""
    lower, upper = np.full_like(truth, -np.inf), np.full_like(truth, np.inf)
    wide = 0.6 * np.abs(truth)
    if kind in ("inactive", "active"):
        lower, upper = truth - wide, truth + wide
    if kind == "active":
        upper[:, -1] = truth[:, -1] - 0.1 * np.abs(truth[:, -1])
    if kind == "one-sided":
        lower[:, 0] = truth[:, 0] + 0.05 * np.abs(truth[:, 0])
    if kind == "per problem":
        upper[0, 0] = truth[0, 0] - 0.1 * np.abs(truth[0, 0])
        lower[1] = truth[1] - wide[1]
        lower[2, -1] = truth[2, -1] + 0.1 * np.abs(truth[2, -1])
    return lower, upper


@functools.cache
def instance(case: Case) -> Instance:
    model = MODELS[case.model]
    # a seed per case, the same in every run
    rng = np.random.default_rng(CASES.index(case))
    truth = np.array(model.truth) * (1 + 0.1 * rng.uniform(-1, 1, (NUM_PROBLEMS, len(model.truth))))
    y = np.stack([np.asarray(model.curve(np, model.grid, *row)) for row in truth])
    if case.model == "rosenbrock":
        y = np.zeros_like(y)
        truth = np.ones_like(truth)
    y = y + model.noise * rng.standard_normal(y.shape)
    if case.loss != "linear" and model.noise > 0:
        flat = y.reshape(NUM_PROBLEMS, -1)
        for row in flat:
            row[rng.choice(row.size, 2, replace=False)] += 15 * model.noise
    truth[:, model.linear_in] *= case.data_scale
    y = y * case.data_scale
    lower, upper = box(case.bounds, truth)
    # a sinusoid has many equal minima: stay near one of them
    spread = 0.05 if case.model == "sinusoid" else 0.15
    start = truth * (1 + spread * rng.uniform(-1, 1, truth.shape))
    if case.model == "rosenbrock":
        start = np.array([[-1.2, 1.0], [-0.5, 2.0], [0.2, -0.4]])
    # strictly inside, where neither side moves the start
    inside = 0.02 * np.abs(truth)
    start = np.clip(start, lower + inside, upper - inside)
    x_scale: Any = {"jac": "jac", "number": 0.5, "vector": np.abs(truth[0])}[case.x_scale]
    options = {
        "loss": case.loss,
        "f_scale": case.f_scale * (model.noise or 1.0) * case.data_scale,
        "x_scale": x_scale,
    }
    return Instance(model, y, start, options, lower, upper)


@functools.cache
def tight(case: Case) -> torchimize.Result:
    return instance(case).ours(ftol=1e-15, xtol=1e-15, gtol=1e-15)


@functools.cache
def default(case: Case) -> torchimize.Result:
    return instance(case).ours()


@functools.cache
def reference(case: Case) -> list[Any]:
    """SciPy's trf, and from near its end dogbox.

    trf keeps to the inside of the box, so it never ends *on* an active bound; dogbox does, but from
    far away it may stop where the gradient is not 0.
    """
    problem = instance(case)
    # SciPy's gtol is absolute: off, except where the minimum is 0.
    gtol = None if problem.model.noise else 1e-15
    options: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": gtol, "max_nfev": 3000}
    options["x_scale"] = "jac"
    results = []
    for row in range(NUM_PROBLEMS):
        result = problem.scipys(row, problem.start[row], "trf", **options)
        if np.isfinite([problem.lower[row], problem.upper[row]]).any():
            lower, upper = problem.lower[row], problem.upper[row]
            inside = 1e-3 * np.abs(result.x)
            start = np.clip(result.x, lower + inside, upper - inside)
            result = problem.scipys(row, start, "dogbox", **options)
        results.append(result)
    return results


def standard_error(result: Any) -> Array:
    """√diag of the covariance from SciPy's result; 0 for parameters on a bound."""
    free = result.active_mask == 0
    error = np.zeros(len(result.x))
    jacobian = result.jac[:, free]
    size = np.linalg.norm(jacobian, axis=0)
    if free.any():
        scaled = np.linalg.pinv(jacobian / size)
        variance = 2 * result.cost / max(1, jacobian.shape[0] - int(free.sum()))
        error[free] = np.sqrt(variance * (scaled**2).sum(1)) / size
    return error


in_every_case = pytest.mark.parametrize("case", CASES, ids=str)


# --------------------------------------------------------------------------- agreement with SciPy


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 45
    assert len(set(CASES)) == len(CASES)


@in_every_case
def test_minimum_is_scipys(case: Case) -> None:
    """Costs that agree to eps leave √eps of a standard error; both sides have that freedom."""
    result = tight(case)
    assert bool(result.success.all()), list(result.message)
    for row, wanted in enumerate(reference(case)):
        allowed = 2e-6 * standard_error(wanted) + 1e-12 * np.abs(wanted.x)
        difference = np.abs(result.x[row].numpy() - wanted.x)
        assert (difference <= allowed).all(), (row, difference / allowed)


@in_every_case
def test_cost_is_scipys(case: Case) -> None:
    # Where the minimum is 0, what is left of it is rounding, (eps · |y|)² per sample; at default
    # tolerances `xtol` leaves (1e-8 · |y|)². There `ftol` promises that the *predicted* gain is
    # below 1e-8; the true one may be a little more.
    data = max(1.0, np.abs(instance(case).y).max()) if instance(case).model.noise == 0 else 0.0
    for result, precision, left in ((tight(case), 1e-8, 1e-14), (default(case), 2e-8, 1e-7)):
        for row, wanted in enumerate(reference(case)):
            cost = float(result.cost[row])
            assert cost == pytest.approx(wanted.cost, rel=precision, abs=(left * data) ** 2), row


@in_every_case
def test_default_tolerances_reach_the_minimum_to_a_thousandth_of_the_error(case: Case) -> None:
    """A predicted gain of 1e-8 of the cost is 1e-4 √(N − P) standard errors."""
    result = default(case)
    assert bool(result.success.all()), list(result.message)
    for row, wanted in enumerate(reference(case)):
        allowed = 1e-3 * standard_error(wanted) + 1e-7 * np.abs(wanted.x)
        assert (np.abs(result.x[row].numpy() - wanted.x) <= allowed).all(), row


@in_every_case
def test_active_mask_is_scipys(case: Case) -> None:
    wanted = np.stack([one.active_mask for one in reference(case)])
    if case.bounds == "active":
        assert (wanted != 0).any(), "the case is not what its name says"
    for result in (tight(case), default(case)):
        assert not result.active_mask.is_floating_point()
        np.testing.assert_array_equal(result.active_mask.numpy(), wanted)
        x = result.x.numpy()
        np.testing.assert_array_equal(
            x == np.where(wanted > 0, instance(case).upper, instance(case).lower), wanted != 0
        )


def check_fields(case: Case, result: torchimize.Result) -> None:
    """Against SciPy's fields at the very same point, which it gives when it may not move."""
    problem = instance(case)
    num_params = problem.start.shape[1]
    for row in range(NUM_PROBLEMS):
        x = result.x[row].numpy()
        wanted = problem.scipys(row, x, "free", max_nfev=1)
        np.testing.assert_array_equal(wanted.x, x)
        size = np.linalg.norm(problem.jacobian_alone(x, row), axis=0)
        data = np.linalg.norm(problem.y[row]) + np.linalg.norm(wanted.fun)
        fun = result.fun[row].numpy().reshape(-1)
        np.testing.assert_allclose(fun, wanted.fun, rtol=0, atol=1e-14 * data)
        # Huber's ρ' + 2 ρ'' z is 0 beyond the kink: what is left is rounding, then its root.
        exact = 1e-7 if case.loss == "huber" else 1e-10
        jacobian = result.jac[row].numpy().reshape(-1, num_params)
        assert (np.abs(jacobian - wanted.jac) <= exact * size).all(), row
        gradient = result.grad[row].numpy()
        assert (np.abs(gradient - wanted.grad) <= 1e-12 * size * data).all(), row


@in_every_case
def test_fields_at_the_solution_are_scipys(case: Case) -> None:
    result, problem = tight(case), instance(case)
    trailing = problem.model.grid.shape
    num_params = problem.start.shape[1]
    assert result.fun.shape == (NUM_PROBLEMS, *trailing)
    assert result.jac.shape == (NUM_PROBLEMS, *trailing, num_params)
    assert result.grad.shape == (NUM_PROBLEMS, num_params)
    check_fields(case, result)


@in_every_case
def test_optimality_is_small_and_what_it_says(case: Case) -> None:
    result, problem = tight(case), instance(case)
    x, gradient = result.x.numpy(), result.grad.numpy()
    projected = np.clip(-gradient, problem.lower - x, problem.upper - x)
    np.testing.assert_array_equal(result.optimality.numpy(), np.abs(projected).max(1))
    for row, wanted in enumerate(reference(case)):
        steep = np.linalg.norm(wanted.jac, axis=0).max() * np.sqrt(2 * wanted.cost)
        noise = 1e-12 * np.linalg.norm(wanted.jac, axis=0).max() * np.abs(problem.y).max(initial=1)
        assert float(result.optimality[row]) <= 1e-6 * steep + noise, row


@in_every_case
def test_fields_at_the_start_are_scipys(case: Case) -> None:
    """Far from where the gradient is 0."""
    problem = instance(case)
    result = problem.ours(max_nfev=1)
    assert result.status.tolist() == [0] * NUM_PROBLEMS
    assert result.nfev.tolist() == [1] * NUM_PROBLEMS
    np.testing.assert_array_equal(result.x.numpy(), problem.start)
    check_fields(case, result)
    for row in range(NUM_PROBLEMS):
        wanted = problem.scipys(row, problem.start[row], "free", max_nfev=1)
        assert float(result.cost[row]) == pytest.approx(wanted.cost, rel=1e-12)
        assert wanted.status == 0


@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_robust_losses_solve_what_scipy_solves(loss: str) -> None:
    """From starts where nearly every sample lies far beyond the loss's scale.

    No minimum is above the cost at the true parameters. A start so far out decides by chance which
    minimum is found, for SciPy too: nearly every fit that ends above must be no worse than SciPy's.
    """
    rng = np.random.default_rng(0)
    t = np.linspace(0.0, 5.0, 14)
    true = rng.uniform([1.0, 0.4, -1.0], [4.0, 1.5, 1.0], (4000, 3))
    noise = 1e-3 * rng.standard_normal((4000, 14))
    y = true[:, :1] * np.exp(-true[:, 1:2] * t) + true[:, 2:] + noise
    start = true * rng.uniform(0.7, 1.4, true.shape)
    result = least_squares(offset_decay, start, args=(t, y), loss=loss, f_scale=0.05)
    # beneath the scale every loss is at most z
    suspects = np.flatnonzero(~(result.cost <= 0.5 * (noise**2).sum(-1) * (1 + 1e-6)))
    assert len(suspects) < 20, "SciPy solves nearly all of them"
    worse = 0
    for row in suspects:
        wanted = scipy.optimize.least_squares(
            lambda p, row=row: p[0] * np.exp(-p[1] * t) + p[2] - y[row],
            start[row],
            jac="3-point",
            loss=loss,
            f_scale=0.05,
        )
        worse += not result.cost[row] <= wanted.cost * (1 + 1e-6)
    assert worse <= 4, f"{worse} of 4000"


# ------------------------------------------------------------------------------- a small problem

T = np.linspace(0.0, 4.0, 20)
TRUE = np.array([[3.0, 0.5], [2.0, 1.5], [1.0, 0.9], [4.0, 0.2]])
Y = TRUE[:, :1] * np.exp(-TRUE[:, 1:] * T) + 0.01 * np.random.default_rng(1).standard_normal(
    (4, 20)
)
X0 = np.array([[2.0, 1.0], [2.5, 1.0], [1.5, 0.5], [3.0, 0.5]])


def decay(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return x[..., :1] * torch.exp(-x[..., 1:] * t) - y


def decay_jacobian(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    falling = torch.exp(-x[..., 1:] * t)
    return torch.stack([falling, -x[..., :1] * t * falling], -1)


def tensors(*arrays: Array) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(array) for array in arrays)


@functools.cache
def decay_solution() -> Array:
    """By SciPy, problem by problem."""

    def alone(y: Array) -> Callable[[Array], Array]:
        return lambda p: p[0] * np.exp(-p[1] * T) - y

    return np.stack(
        [
            scipy.optimize.least_squares(alone(y), x0, jac="cs", xtol=1e-15, ftol=1e-15).x
            for x0, y in zip(X0, Y, strict=True)
        ]
    )


# ------------------------------------------------------------------------------ what goes in, out


def test_arrays_in_arrays_out() -> None:
    result = least_squares(decay, X0, args=(T, Y))
    for name in ("x", "cost", "fun", "jac", "grad", "optimality", "active_mask", "nfev", "njev"):
        assert isinstance(result[name], np.ndarray), name
    assert isinstance(result.status, np.ndarray)
    assert isinstance(result.success, np.ndarray)
    assert result.success.dtype == np.bool_
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)


def test_lists_in_arrays_out() -> None:
    result = least_squares(decay, X0.tolist(), args=(T, Y))
    assert isinstance(result.x, np.ndarray)
    assert result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)


def test_lists_of_whole_numbers_are_numbers() -> None:
    result = least_squares(decay, [[2, 1], [2, 1], [1, 1], [3, 1]], args=(T, Y))
    assert result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)


def test_tensors_in_tensors_out() -> None:
    result = least_squares(decay, torch.tensor(X0), args=tensors(T, Y))
    for name in ("x", "cost", "fun", "jac", "grad", "optimality", "active_mask", "nfev", "njev"):
        assert isinstance(result[name], Tensor), name
    assert result.success.dtype == torch.bool
    np.testing.assert_allclose(result.x.numpy(), decay_solution(), rtol=1e-6)


def test_a_tensor_among_the_arguments_is_enough() -> None:
    result = least_squares(decay, X0, args=(torch.tensor(T), Y))
    assert isinstance(result.x, Tensor)


def test_numpy_function() -> None:
    def in_numpy(x: Any, t: Any, y: Any) -> Any:
        return x[:, :1] * np.exp(-x[:, 1:] * t) - y

    result = least_squares(in_numpy, X0, args=(T, Y))
    assert isinstance(result.x, np.ndarray)
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)


@pytest.mark.parametrize("numpy", [True, False])
def test_one_problem_has_no_batch_dimension(numpy: bool) -> None:
    x0, t, y = (X0[0], T, Y[0]) if numpy else tensors(X0[0], T, Y[0])
    seen = []

    def fun(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x[0] * torch.exp(-x[1] * t) - y

    result = least_squares(fun, x0, args=(t, y))
    assert set(seen) == {(2,)}
    assert type(result.status) is int
    assert type(result.nfev) is int
    assert type(result.njev) is int
    assert type(result.cost) is float
    assert type(result.optimality) is float
    assert type(result.success) is bool
    assert type(result.message) is str
    for name, shape in {
        "x": (2,), "fun": (20,), "jac": (20, 2), "grad": (2,), "active_mask": (2,),
    }.items():  # fmt: skip
        assert isinstance(result[name], np.ndarray if numpy else Tensor), name
        assert result[name].shape == shape
    assert result.status > 0
    np.testing.assert_allclose(np.asarray(result.x), decay_solution()[0], rtol=1e-6)


def test_one_problem_may_have_any_shape_of_residuals() -> None:
    def fun(x: Tensor) -> Tensor:
        return (x - torch.arange(6.0, dtype=x.dtype).reshape(3, 2, 1)).reshape(3, 2, 1)

    result = least_squares(fun, torch.zeros(1, dtype=torch.float64))
    assert result.fun.shape == (3, 2, 1)
    assert result.jac.shape == (3, 2, 1, 1)
    assert float(result.x[0]) == pytest.approx(2.5, rel=1e-12)


def test_one_number_of_one_problem() -> None:
    result = least_squares(lambda x: x[0] ** 2 - 2, torch.ones(1, dtype=torch.float64))
    assert result.fun.shape == ()
    assert result.jac.shape == (1,)
    assert float(result.x[0]) == pytest.approx(2**0.5, rel=1e-9)


def test_message_of_a_batch_is_a_sequence() -> None:
    result = least_squares(decay, X0, args=(T, Y))
    assert len(result.message) == 4
    messages = list(result.message)
    assert all(isinstance(text, str) for text in messages)
    wanted = [torchimize.Status(code).message for code in result.status]
    assert messages == wanted
    assert list(result.message[1:3]) == wanted[1:3]
    with pytest.raises(IndexError):
        result.message[4]


def test_status_has_scipys_sentences() -> None:
    ours = least_squares(decay, X0[0], args=(T, Y[0]), gtol=None, xtol=None)
    theirs = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * T) - Y[0], X0[0], gtol=None, xtol=None
    )
    assert (ours.status, ours.message) == (theirs.status, theirs.message) == (2, theirs.message)


def test_a_result_is_a_mapping_with_attributes() -> None:
    result = least_squares(decay, X0, args=(T, Y))
    wanted = {
        "x", "cost", "fun", "jac", "grad", "optimality", "active_mask", "nfev", "njev", "status",
        "message", "success",
    }  # fmt: skip
    assert wanted <= set(result)
    assert wanted <= set(dir(result))
    assert len(result) == len(list(result))
    assert result["x"] is result.x
    assert "4 of 4 fits succeeded" in repr(result)
    with pytest.raises(AttributeError, match=r"no field 'y'.*'x'"):
        _ = result.y
    with pytest.raises(KeyError):
        result["y"]


# --------------------------------------------------------------------------------------- jac


@pytest.mark.parametrize("jac", [None, "forward", "reverse", "2-point", "3-point", decay_jacobian])
@pytest.mark.parametrize("single", [False, True])
def test_every_jacobian_finds_the_same_solution(jac: Any, single: bool) -> None:
    x0, y = (X0[0], Y[0]) if single else (X0, Y)
    result = least_squares(decay, x0, jac, args=(T, y))
    assert np.all(result.success)
    wanted = decay_solution()[0] if single else decay_solution()
    np.testing.assert_allclose(result.x, wanted, rtol=1e-5)
    exact = decay_jacobian(*tensors(result.x, T, y)).numpy()
    assert result.jac.shape == exact.shape
    # forward differences in steps of √eps are right to about √eps
    precision = 1e-6 if jac == "2-point" else 1e-9 if jac == "3-point" else 1e-13
    np.testing.assert_allclose(result.jac, exact, rtol=0, atol=precision)


def test_finite_differences_are_no_evaluations() -> None:
    exact = least_squares(decay, X0, "forward", args=(T, Y))
    differences = least_squares(decay, X0, "3-point", args=(T, Y))
    np.testing.assert_array_equal(differences.nfev, exact.nfev)


@pytest.mark.parametrize("jac", [None, "reverse", "forward"])
def test_fewer_residuals_than_parameters(jac: str | None) -> None:
    """The minimum is a surface: any point of it will do."""

    def fun(x: Tensor) -> Tensor:
        return torch.stack([(x**2).sum(-1) - 5, x[..., 0] - x[..., 1]], -1)

    result = least_squares(fun, np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 1.0]]), jac)
    assert result.success.all()
    np.testing.assert_allclose((result.x**2).sum(-1), 5, rtol=1e-7)
    np.testing.assert_allclose(result.x[:, 0], result.x[:, 1], rtol=1e-7)


def test_jacobian_gets_args_and_kwargs() -> None:
    seen = []

    def jac(x: Tensor, t: Tensor, *, y: Tensor) -> Tensor:
        seen.append((tuple(x.shape), tuple(t.shape), tuple(y.shape)))
        return decay_jacobian(x, t, y)

    def fun(x: Tensor, t: Tensor, *, y: Tensor) -> Tensor:
        return decay(x, t, y)

    result = least_squares(fun, X0, jac, args=(T,), kwargs={"y": Y})
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)
    assert seen
    assert all(x == (n, 2) and t == (20,) and y == (n, 20) for x, t, y in seen for n in [x[0]])


def test_a_function_that_cannot_be_differentiated() -> None:
    def fun(x: Tensor) -> Tensor:
        rows = [[row[0] - 3.0, 2 * (row[1] - row[0])] for row in x.tolist()]
        return torch.tensor(rows, dtype=torch.float64)

    result = least_squares(fun, torch.zeros(4, 2, dtype=torch.float64))
    np.testing.assert_allclose(result.x.numpy(), np.full((4, 2), 3.0), rtol=1e-6)


# ------------------------------------------------------------------------------------- arguments


def test_arguments_of_the_problems_are_cut_with_them() -> None:
    """Problems stop at different times, so their data must go with them."""
    num_problems = 40
    rng = np.random.default_rng(3)
    true = np.stack([rng.uniform(1, 4, num_problems), rng.uniform(0.1, 3, num_problems)], 1)
    y = true[:, :1] * np.exp(-true[:, 1:] * T)
    weight = rng.uniform(0.5, 2, (num_problems, 1))

    def fun(x: Tensor, t: Tensor, y: Tensor, *, weight: Tensor, power: float, name: str) -> Tensor:
        assert name == "shared"
        assert len(x) == len(y) == len(weight)
        assert t.shape == (20,)
        return weight**power * (x[:, :1] * torch.exp(-x[:, 1:] * t) - y)

    result = least_squares(
        fun,
        np.ones((num_problems, 2)),
        args=(T, y),
        kwargs={"weight": weight, "power": 2.0, "name": "shared"},
    )
    assert result.success.all()
    assert len(set(result.nfev)) > 1
    np.testing.assert_allclose(result.x, true, rtol=1e-6)


def test_a_function_over_closed_data_gets_all_problems() -> None:
    t, y = tensors(T, Y)
    result = least_squares(lambda x: decay(x, t, y), X0)
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)


def test_shared_argument_of_the_batchs_length() -> None:
    """One dimension belongs to nobody, whatever its length."""
    t = np.linspace(0.0, 2.0, 4)
    y = TRUE[:, :1] * np.exp(-TRUE[:, 1:] * t)
    result = least_squares(decay, X0, args=(t, y))
    np.testing.assert_allclose(result.x, TRUE, rtol=1e-7)


def test_inputs_are_left_alone() -> None:
    x0, t, y = tensors(X0, T, Y)
    x0[0] = torch.tensor([3.0, 0.5])
    lower, upper = torch.full_like(x0, 0.1), torch.full_like(x0, 10.0)
    size = torch.ones(2, dtype=torch.float64)
    inputs = (x0, t, y, lower, upper, size)
    before = [value.clone() for value in inputs]
    result = least_squares(decay, x0, bounds=(lower, upper), x_scale=size, args=(t, y))
    result.x.zero_()
    for value, copy in zip(inputs, before, strict=True):
        assert torch.equal(value, copy)


def test_array_inputs_are_left_alone() -> None:
    inputs = (X0.copy(), T.copy(), Y.copy())
    for array in inputs:
        array.flags.writeable = False
    result = least_squares(decay, inputs[0], args=inputs[1:], max_nfev=1)
    result.x[:] = 0.0
    np.testing.assert_array_equal(inputs[0], X0)


def test_a_start_that_requires_grad() -> None:
    x0 = torch.tensor(X0, requires_grad=True)
    result = least_squares(decay, x0, args=tensors(T, Y))
    assert x0.grad is None
    assert x0.requires_grad
    assert torch.equal(x0.detach(), torch.tensor(X0))
    for name in ("x", "cost", "fun", "jac", "grad", "optimality"):
        assert not result[name].requires_grad, name
    np.testing.assert_allclose(result.x.numpy(), decay_solution(), rtol=1e-6)


@pytest.mark.parametrize("jac", [None, "reverse", "3-point", decay_jacobian])
def test_an_argument_that_requires_grad(jac: Any) -> None:
    t, y = torch.tensor(T, requires_grad=True), torch.tensor(Y)
    result = least_squares(decay, torch.tensor(X0), jac, args=(t, y))
    for name in ("x", "cost", "fun", "jac", "grad", "optimality"):
        assert not result[name].requires_grad, name
    assert t.grad is None
    np.testing.assert_allclose(result.x.numpy(), decay_solution(), rtol=1e-6)


def test_inside_no_grad() -> None:
    with torch.no_grad():
        result = least_squares(decay, torch.tensor(X0), args=tensors(T, Y))
    np.testing.assert_allclose(result.x.numpy(), decay_solution(), rtol=1e-6)


# ---------------------------------------------------------------------------------- bounds, methods


def test_scipys_bounds_object() -> None:
    lower, upper = np.array([0.0, 0.6]), np.array([3.5, 2.0])
    x0 = np.clip(X0, lower, upper)
    plain = least_squares(decay, x0, bounds=(lower, upper), args=(T, Y))
    result = least_squares(decay, x0, bounds=scipy.optimize.Bounds(lower, upper), args=(T, Y))
    np.testing.assert_array_equal(result.x, plain.x)
    assert result.active_mask[0].tolist() == [0, -1]


def test_bounds_shared_by_all_problems() -> None:
    lower = np.array([0.0, 0.6])
    x0 = np.maximum(X0, lower)
    shared = least_squares(decay, x0, bounds=(lower, np.inf), args=(T, Y))
    each = least_squares(decay, x0, bounds=(np.tile(lower, (4, 1)), np.inf), args=(T, Y))
    np.testing.assert_array_equal(shared.x, each.x)
    assert (shared.x >= lower).all()


def test_a_start_on_its_bound() -> None:
    """SciPy's trf moves such a start inside; here it may stay, and must come off again."""
    lower = X0[:, 1].copy()[:, None] * np.array([0.0, 1.0])
    result = least_squares(decay, X0, bounds=(lower, np.inf), args=(T, Y))
    assert result.success.all()
    for row in range(4):
        wanted = scipy.optimize.least_squares(
            lambda p, row=row: p[0] * np.exp(-p[1] * T) - Y[row],
            X0[row],
            jac="cs",
            bounds=(lower[row], np.inf),
            method="dogbox",
        )
        np.testing.assert_allclose(result.x[row], wanted.x, rtol=1e-6)
        np.testing.assert_array_equal(result.active_mask[row], wanted.active_mask)


@pytest.mark.parametrize("method", [None, "trf", "dogbox", "lm", "gn"])
def test_every_method_finds_the_same_solution(method: str | None) -> None:
    result = least_squares(decay, X0, method=method, args=(T, Y), xtol=1e-12, ftol=1e-12)
    assert result.success.all()
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-6)


def test_trf_and_dogbox_are_other_names_of_the_default() -> None:
    plain = least_squares(decay, X0, args=(T, Y))
    for method in ("trf", "dogbox"):
        result = least_squares(decay, X0, method=method, args=(T, Y))
        np.testing.assert_array_equal(result.x, plain.x)
        np.testing.assert_array_equal(result.nfev, plain.nfev)


@pytest.mark.parametrize("method", [None, "lm"])
def test_every_method_keeps_to_the_box(method: str | None) -> None:
    lower = np.array([0.0, 0.6])
    result = least_squares(
        decay, np.maximum(X0, lower), method=method, bounds=(lower, np.inf), args=(T, Y)
    )
    assert (result.x >= lower).all()
    np.testing.assert_array_equal(result.active_mask[:, 1], [-1, 0, 0, -1])
    assert result.success.all()


def test_equal_bounds_fix_a_parameter() -> None:
    lower, upper = np.full((4, 2), -np.inf), np.full((4, 2), np.inf)
    lower[1, 1] = upper[1, 1] = X0[1, 1]
    result = least_squares(decay, X0, bounds=(lower, upper), args=(T, Y))
    assert result.success.all()
    assert result.x[1, 1] == X0[1, 1]
    # linear in what is left: a closed form
    column = np.exp(-X0[1, 1] * T)
    assert result.x[1, 0] == pytest.approx(column @ Y[1] / (column @ column), rel=1e-9)
    np.testing.assert_allclose(result.x[[0, 2, 3]], decay_solution()[[0, 2, 3]], rtol=1e-6)


def test_all_parameters_fixed() -> None:
    result = least_squares(decay, X0, bounds=(X0, X0), args=(T, Y))
    np.testing.assert_array_equal(result.x, X0)
    residual = X0[:, :1] * np.exp(-X0[:, 1:] * T) - Y
    np.testing.assert_allclose(result.cost, 0.5 * (residual**2).sum(-1), rtol=1e-14)
    assert result.success.all(), list(result.message)


# ----------------------------------------------------------------------------------- when to stop


@pytest.mark.parametrize("max_nfev", [1, 2, 3])
def test_max_nfev(max_nfev: int) -> None:
    result = least_squares(decay, X0, args=(T, Y), max_nfev=max_nfev)
    assert result.status.tolist() == [0] * 4
    assert not result.success.any()
    assert result.nfev.tolist() == [max_nfev] * 4
    assert result.message[0] == torchimize.Status(0).message
    start = 0.5 * ((X0[:, :1] * np.exp(-X0[:, 1:] * T) - Y) ** 2).sum(-1)
    assert (result.cost <= start * (1 + 1e-14)).all()


def test_max_nfev_counts_what_fun_sees() -> None:
    calls = []

    def fun(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append(len(x))
        return decay(x, t, y)

    result = least_squares(fun, X0[:1], decay_jacobian, args=(T, Y[:1]))
    # Each accepted step is evaluated twice: for its cost, and beside its Jacobian. A few calls
    # more look at the function before the fit.
    assert 0 <= len(calls) - int(result.nfev[0]) - int(result.njev[0]) + 1 <= 4


def test_a_start_at_the_minimum_stops_at_once() -> None:
    result = least_squares(lambda x: x - 1, torch.ones(3, 2, dtype=torch.float64))
    assert result.status.tolist() == [1, 1, 1]
    assert result.cost.tolist() == [0.0, 0.0, 0.0]
    assert result.nfev.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("name", "code"), [("ftol", 2), ("xtol", 3), ("gtol", 1)])
def test_each_tolerance_alone_has_its_status(name: str, code: int) -> None:
    tolerances: dict[str, Any] = dict.fromkeys(("ftol", "xtol", "gtol"))
    tolerances[name] = 1e-7
    result = least_squares(decay, X0, args=(T, Y), **tolerances)
    assert result.status.tolist() == [code] * 4
    np.testing.assert_allclose(result.x, decay_solution(), rtol=1e-4)


def test_looser_tolerances_take_fewer_evaluations() -> None:
    counts = [
        least_squares(decay, X0, args=(T, Y), ftol=tol, xtol=tol, gtol=tol).nfev.sum()
        for tol in (1e-2, 1e-12)
    ]
    assert counts[0] < counts[1]


def test_one_bad_problem_harms_nobody() -> None:
    """NaN data, a start at infinity, an exploding exponential, no information, beside good ones."""
    x0 = np.concatenate([X0, np.ones((4, 2))])
    y = np.concatenate([Y, np.full((1, 20), np.nan), np.ones((3, 20))])
    x0[5] = np.inf
    x0[6] = [1.0, -1e5]
    y[7] = 0.0
    order = np.array([4, 0, 5, 1, 6, 2, 7, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = least_squares(decay, x0[order], args=(T, y[order]))
    good = order < 4
    alone = least_squares(decay, X0, args=(T, Y))
    np.testing.assert_allclose(result.x[good], alone.x, rtol=1e-9)
    np.testing.assert_array_equal(result.nfev[good], alone.nfev)
    status = dict(zip(order.tolist(), result.status.tolist(), strict=True))
    assert status[4] == status[5] == status[6] == -1
    assert all(status[row] > 0 for row in range(4))


# ------------------------------------------------------------------------------ callback, progress


def test_callback_sees_every_iteration() -> None:
    states: list[torchimize.IterationState] = []
    result = least_squares(decay, X0, args=(T, Y), callback=states.append)
    assert [state.iteration for state in states] == list(range(1, len(states) + 1))
    start = 0.5 * ((X0[:, :1] * np.exp(-X0[:, 1:] * T) - Y) ** 2).sum(-1)
    costs = np.stack([start, *(state.cost for state in states)])
    assert (np.diff(costs, axis=0) <= 0).all()
    for state in states:
        assert isinstance(state.x, np.ndarray)
        assert state.x.shape == (4, 2)
        assert state.cost.shape == state.nfev.shape == state.running.shape == (4,)
        assert state.running.dtype == np.bool_
        residual = state.x[:, :1] * np.exp(-state.x[:, 1:] * T) - Y
        # after a last step taken unseen the cost is the model's
        np.testing.assert_allclose(state.cost, 0.5 * (residual**2).sum(-1), rtol=1e-6)
    assert not states[-1].running.any()
    np.testing.assert_array_equal(states[-1].x, result.x)
    np.testing.assert_array_equal(states[-1].nfev, result.nfev)


def test_callback_changes_nothing() -> None:
    def spoil(state: torchimize.IterationState) -> None:
        state.x[:] = 0.0
        state.cost[:] = 0.0

    plain = least_squares(decay, X0, args=(T, Y), engine="eager")
    result = least_squares(decay, X0, args=(T, Y), callback=spoil)
    np.testing.assert_array_equal(result.x, plain.x)
    np.testing.assert_array_equal(result.nfev, plain.nfev)


def test_states_are_copies_that_can_be_kept() -> None:
    states: list[torchimize.IterationState] = []
    copies: list[Array] = []

    def keep(state: torchimize.IterationState) -> None:
        states.append(state)
        copies.append(state.x.copy())

    least_squares(decay, X0, args=(T, Y), callback=keep)
    for state, copy in zip(states, copies, strict=True):
        np.testing.assert_array_equal(state.x, copy)


def test_callback_of_one_problem() -> None:
    states: list[torchimize.IterationState] = []
    least_squares(decay, torch.tensor(X0[0]), args=tensors(T, Y[0]), callback=states.append)
    assert states
    assert all(isinstance(state.x, Tensor) and state.x.shape == (2,) for state in states)
    assert all(type(state.cost) is float for state in states)


@pytest.mark.parametrize("by", ["StopIteration", "True"])
def test_callback_stops(by: str) -> None:
    states: list[torchimize.IterationState] = []

    def stop(state: torchimize.IterationState) -> bool:
        states.append(state)
        if len(states) < 2:
            return False
        if by == "StopIteration":
            raise StopIteration
        return True

    result = least_squares(decay, X0, args=(T, Y), callback=stop)
    assert len(states) == 2
    assert result.status.tolist() == [-2] * 4
    assert not result.success.any()
    assert result.message[0] == torchimize.Status(-2).message
    np.testing.assert_array_equal(result.x, states[-1].x)


def test_status_of_a_stopping_callback_is_scipys() -> None:
    def stop(intermediate_result: Any) -> None:
        raise StopIteration

    ours = least_squares(decay, X0[0], args=(T, Y[0]), callback=stop)
    theirs = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * T) - Y[0], X0[0], callback=stop
    )
    assert ours.status == theirs.status == -2


def test_an_error_in_the_callback_is_the_users() -> None:
    def broken(state: torchimize.IterationState) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        least_squares(decay, X0, args=(T, Y), callback=broken)


def test_progress_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    plain = least_squares(decay, X0, args=(T, Y))
    assert capsys.readouterr() == ("", "")
    result = least_squares(decay, X0, args=(T, Y), progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert "100%" in output.err
    assert "4.00/4.00" in output.err
    assert "fit/s" in output.err
    np.testing.assert_array_equal(result.x, plain.x)
    np.testing.assert_array_equal(result.nfev, plain.nfev)


@pytest.mark.parametrize("at_call", range(1, 12))
@pytest.mark.parametrize("jac", [None, "3-point", decay_jacobian])
def test_ctrl_c_leaves_cleanly(at_call: int, jac: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls = 0

    def interrupted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise KeyboardInterrupt
        return decay(x, t, y)

    x0, t, y = tensors(X0, T, Y)
    with pytest.raises(KeyboardInterrupt):
        least_squares(interrupted, x0, jac, args=(t, y), progress=True, engine="eager")
    assert calls == at_call
    assert torch.equal(x0, torch.tensor(X0))
    assert not list(getattr(tqdm, "_instances", []))
    result = least_squares(decay, x0, jac, args=(t, y))
    np.testing.assert_allclose(result.x.numpy(), decay_solution(), rtol=1e-5)


# ----------------------------------------------------------------------------------- independence


def test_mixing_problems_is_found() -> None:
    def mixing(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        value = decay(x, t, y)
        return value - value.mean(0)

    with pytest.raises(ValueError, match="mixes problems"):
        least_squares(mixing, X0, args=(T, Y), check_independence=True)


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
@pytest.mark.parametrize("num_problems", [5, 8])
def test_mixing_with_one_other_problem_is_found(distance: int, num_problems: int) -> None:
    def mixing(x: Tensor) -> Tensor:
        return x**2 - 2 + 0.1 * torch.roll(x, distance, 0)

    x0 = torch.ones(num_problems, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="mixes problems"):
        least_squares(mixing, x0, check_independence=True)


@pytest.mark.parametrize("num_problems", [1, 2, 3, 4])
def test_independent_problems_pass(num_problems: int) -> None:
    x0, y = X0[:num_problems], Y[:num_problems]
    result = least_squares(decay, x0, args=(T, y), check_independence=True)
    np.testing.assert_allclose(result.x, decay_solution()[:num_problems], rtol=1e-6)


# -------------------------------------------------------------------------------------- precision


def single_precision(*arrays: Any) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(np.asarray(array), dtype=torch.float32) for array in arrays)


def noisy_decays(num_problems: int, scale: float = 1.0) -> tuple[Array, Array, Array]:
    """Starts, times and data; the noise is 1 % of the amplitude."""
    rng = np.random.default_rng(17)
    true = rng.uniform([1.0, 0.3, 0.2], [4.0, 1.5, 1.0], (num_problems, 3))
    t = np.linspace(0.0, 6.0, 40)
    y = true[:, :1] * np.exp(-true[:, 1:2] * t) + true[:, 2:]
    y = y + 0.01 * true[:, :1] * rng.standard_normal(y.shape)
    start = np.tile([2.0 * scale, 0.8, 0.5 * scale], (num_problems, 1))
    return start, t, scale * y


def offset_decay(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return x[:, :1] * torch.exp(-x[:, 1:2] * t) + x[:, 2:] - y


def batch_errors(jacobian: Array, cost: Array) -> Array:
    """Standard errors (B, P) from Jacobians (B, N, P)."""
    _, num_samples, num_params = jacobian.shape
    covariance = np.linalg.inv(jacobian.swapaxes(1, 2) @ jacobian)
    variance = 2 * cost / (num_samples - num_params)
    errors: Array = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2) * variance[:, None])
    return errors


@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**20])
def test_thousand_single_precision_fits_all_converge(scale: float) -> None:
    """And end where double precision ends with the same (rounded) data.

    Each residual is wrong by up to eps |y| ~ 6e-7, 6e-5 of the noise; a parameter, which averages
    40 of them, by about as many of its standard errors. The last step is worth at most 8 eps of
    the cost, that is √(8 eps (N − P)) = 6e-3 standard errors; mostly it is taken, and leaves a few
    percent of that.
    """
    start, t, y = single_precision(*noisy_decays(1000, scale))
    result = least_squares(offset_decay, start, args=(t, y))
    assert result.x.dtype == torch.float32
    assert result.cost.dtype == torch.float64
    assert bool((result.status > 0).all()), torch.unique(result.status, return_counts=True)
    double = least_squares(
        offset_decay, start.double(), args=(t.double(), y.double()), ftol=1e-14, xtol=1e-14
    )
    errors = batch_errors(double.jac.numpy(), double.cost.numpy())
    difference = (np.abs(result.x.double().numpy() - double.x.numpy()) / errors).max(-1)
    assert np.quantile(difference, 0.99) < 4e-4
    assert difference.max() < 1e-2
    np.testing.assert_allclose(result.cost.numpy(), double.cost.numpy(), rtol=1e-5)


def test_double_precision_end_point_is_scipys() -> None:
    """What the test above compares with is itself right."""
    start, t, y = noisy_decays(5)
    y = y.astype(np.float32).astype(np.float64)
    result = least_squares(offset_decay, start, args=(t, y), ftol=1e-14, xtol=1e-14)
    for row in range(5):
        wanted = scipy.optimize.least_squares(
            lambda p, row=row: p[0] * np.exp(-p[1] * t) + p[2] - y[row],
            start[row],
            jac="cs",
            ftol=1e-14,
            xtol=1e-14,
        )
        np.testing.assert_allclose(result.x[row], wanted.x, rtol=1e-7)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "cauchy"])
@pytest.mark.parametrize("bounded", [False, True])
def test_single_precision_with_losses_and_boxes_converges(loss: str, bounded: bool) -> None:
    start, t, y = single_precision(*noisy_decays(200))
    bounds = (0.0, np.array([5.0, 1.0, 2.0])) if bounded else (-np.inf, np.inf)
    result = least_squares(offset_decay, start, args=(t, y), loss=loss, f_scale=0.05, bounds=bounds)
    assert bool(result.success.all())


def test_single_precision_stopped_early_is_not_converged() -> None:
    start, t, y = single_precision(*noisy_decays(1000))
    result = least_squares(offset_decay, start, args=(t, y), max_nfev=2)
    full = least_squares(offset_decay, start, args=(t, y))
    unfinished = full.nfev > 3
    assert bool(unfinished.any())
    assert bool((result.status[unfinished] == 0).all())
    assert not bool(result.success[unfinished].any())


def test_single_precision_never_claims_what_it_has_not_reached() -> None:
    """Whatever the budget: success means the minimum, to a hundredth of a standard error."""
    start, t, y = single_precision(*noisy_decays(300))
    double = least_squares(offset_decay, start.double(), args=(t.double(), y.double()))
    errors = batch_errors(double.jac.numpy(), double.cost.numpy())
    for max_nfev in range(1, 9):
        result = least_squares(offset_decay, start, args=(t, y), max_nfev=max_nfev)
        difference = np.abs(result.x.double().numpy() - double.x.numpy()) / errors
        assert difference[result.success.numpy()].max(initial=0.0) < 1e-2


def test_single_precision_arrays() -> None:
    start, t, y = (array.astype(np.float32) for array in noisy_decays(4))
    result = least_squares(offset_decay, start, args=(t, y))
    for name in ("x", "fun", "jac", "grad"):
        assert result[name].dtype == np.float32, name
    assert result.success.all()


def test_tolerances_below_the_dtype_count_as_its_own() -> None:
    start, t, y = single_precision(*noisy_decays(100))
    result = least_squares(offset_decay, start, args=(t, y), ftol=1e-15, xtol=1e-15, gtol=1e-15)
    assert bool(result.success.all())
