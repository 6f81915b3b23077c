"""``curve_fit`` against scipy.optimize.curve_fit, one problem at a time."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from numpy.typing import NDArray

from torchimize import Status, curve_fit

Array = NDArray[Any]

# ------------------------------------------------------------------ models, in either's words
# The first argument is the library whose functions are used: torch here, NumPy for the reference.


def exponential(m: Any, x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * m.exp(-k * x) + c


def gaussian(m: Any, x: Any, a: Any, centre: Any, sharpness: Any, c: Any) -> Any:
    # by 1/(2 width²), for a width might as well be negative
    return a * m.exp(-sharpness * (x - centre) ** 2) + c


def logistic(m: Any, x: Any, top: Any, middle: Any, width: Any) -> Any:
    return top / (1 + m.exp(-(x - middle) / width))


def sine(m: Any, x: Any, a: Any, omega: Any, phase: Any) -> Any:
    return a * m.sin(omega * x + phase)


def power(m: Any, x: Any, a: Any, b: Any) -> Any:
    return a * x**b


def saturation(m: Any, x: Any, top: Any, half: Any) -> Any:
    return top * x / (half + x)


def parabola(m: Any, x: Any, a: Any, b: Any, c: Any) -> Any:
    return a + b * x + c * x * x


def surface(m: Any, x: Any, a: Any, k: Any, omega: Any) -> Any:
    return a * m.exp(-k * x[0]) * m.cos(omega * x[1])


def sizes(m: Any, x: Any, a: Any, k: Any, c: Any) -> Any:
    return 1e5 * a * m.exp(-1e5 * k * x) + 1e-4 * c


MODELS: dict[Callable[..., Any], tuple[Sequence[float], Sequence[float]]] = {
    exponential: ([3, 0.8, 1], [1, 1, 0]),
    gaussian: ([5, 2.2, 1.4, 1], [3, 2, 1, 0]),
    logistic: ([4, 1.7, 0.4], [3, 2, 0.5]),
    sine: ([2, 1.5, 0.3], [1, 1.4, 0]),
    power: ([2, 1.3], [1, 1]),
    saturation: ([5, 1.5], [3, 1]),
    parabola: ([1, -2, 0.5], [0, 0, 0]),
    surface: ([3, 0.6, 1.1], [2, 0.5, 1]),
    sizes: ([3e-5, 8e-6, 1e4], [1e-5, 1e-5, 0]),
}
"""Typical parameters, and a start."""


# ------------------------------------------------------------------------------------- cases


@dataclass
class Case:
    """One call of ours, and what the reference gets for problem b."""

    name: str
    model: Callable[..., Any]
    x: Any
    y: Array
    p0: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    """The same for both, and for every problem."""
    rows: Mapping[str, Array] = field(default_factory=dict)
    """One row per problem, the batch for us."""
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    bounds: tuple[Any, Any] | None = None
    x_of: Callable[[int], Any] | None = None
    """What x of problem b is; where it is not given, the same for all."""
    mask: Array | None = None
    """(B, N), True where the reference may see the sample."""

    def fit(self) -> Any:
        bounds = {} if self.bounds is None else {"bounds": self.bounds}
        return curve_fit(
            partial(self.model, torch),
            self.x,
            self.y,
            self.p0,
            full_output=True,
            **{**self.options, **self.rows, **bounds, **self.ours},
        )

    def reference(self, b: int) -> tuple[Array, Array]:
        options = {**self.options, **{name: row[b] for name, row in self.rows.items()}}
        if self.bounds is not None:
            options["bounds"] = tuple(_row(np.asarray(bound), b) for bound in self.bounds)
        x, y = self.x if self.x_of is None else self.x_of(b), self.y[b]
        if self.mask is not None:
            keep = self.mask[b]
            x, y = np.asarray(x)[..., keep], y[keep]
            sigma = options.get("sigma")
            if sigma is not None and np.ndim(sigma):
                options["sigma"] = sigma[keep] if np.ndim(sigma) == 1 else sigma[keep][:, keep]
        return reference(
            partial(self.model, np),
            x,
            y,
            _row(np.asarray(self.p0), b),
            **{**options, **self.theirs},
        )


def _row(value: Array, b: int) -> Array:
    return value[b] if value.ndim == 2 else value


def reference(
    model: Callable[..., Any], x: Any, y: Array, p0: Any, **options: Any
) -> tuple[Array, Array]:
    """SciPy, run until it stands still: central differences leave 1e-10 in its derivatives."""
    tight = {"method": "trf", "jac": "3-point", "max_nfev": 20000, "x_scale": "jac"}
    tight.update(ftol=1e-15, xtol=1e-15, gtol=1e-15)
    if options.get("method") == "lm":
        tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "maxfev": 20000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        popt, pcov = scipy.optimize.curve_fit(model, x, y, p0=p0, **{**tight, **options})
    return popt, pcov


X = np.linspace(0.1, 4.5, 40)
B, N = 5, len(X)


def make(
    name: str, model: Callable[..., Any], x: Any = X, noise: float = 0.05, **fields: Any
) -> Case:
    """Data around the model's typical parameters, each 15 % elsewhere."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    typical, start = MODELS[model]
    truth = np.array(typical) * rng.uniform(0.85, 1.15, (B, len(typical)))
    x_of = fields.get("x_of")
    clean = np.stack([model(np, x if x_of is None else x_of(b), *truth[b]) for b in range(B)])
    y = clean + noise * rng.standard_normal(clean.shape)
    return Case(name, model, x, y, list(start), **fields)


def with_outliers(case: Case, size: float = 2.0) -> Case:
    case.y[:, 5::11] += size
    return case


def with_nan(case: Case, in_x: bool = False) -> Case:
    """Another set of samples missing in every problem; as many as b + 1."""
    rng = np.random.default_rng(7)
    mask = np.ones(case.y.shape, bool)
    for b in range(B):
        mask[b, rng.permutation(N)[: b + 1]] = False
    if in_x:
        x = np.array(case.x)
        x[~mask] = np.nan
        case.x, case.x_of = x, lambda b: x[b]
    else:
        case.y[~mask] = np.nan
    case.mask = mask
    case.ours = {**case.ours, "nan_policy": "omit"}
    return case


def covariance_matrix(seed: int) -> Array:
    """Errors that hold on to their neighbours, and a common one."""
    rng = np.random.default_rng(seed)
    deviation = rng.uniform(0.03, 0.1, N)
    correlation = 0.6 ** np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    return correlation * np.outer(deviation, deviation) + 0.001


def half_cauchy(z: Any) -> Any:
    """As SciPy wants a loss: ρ, ρ′ and ρ″ of z, of ln(1 + z/2) · 2."""
    rho = np.empty((3, len(z)))
    rho[0] = 2 * np.log1p(z / 2)
    rho[1] = 1 / (1 + z / 2)
    rho[2] = -0.5 * rho[1] ** 2
    return rho


def exponential_jacobian(m: Any, x: Any, a: Any, k: Any, c: Any) -> Any:
    decay = m.exp(-k * x)
    columns = (decay, -a * x * decay, m.ones_like(decay))
    return m.stack(columns, -1)


def sizes_jacobian(m: Any, x: Any, a: Any, k: Any, c: Any) -> Any:
    decay = 1e5 * m.exp(-1e5 * k * x)
    return m.stack((decay, -1e5 * a * x * decay, 1e-4 * m.ones_like(decay)), -1)


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(2024)
    deviation = rng.uniform(0.02, 0.2, N)
    deviations = rng.uniform(0.02, 0.2, (B, N))
    shared = covariance_matrix(0)
    per_problem = np.stack([covariance_matrix(b) for b in range(B)])

    for model in (exponential, gaussian, logistic, sine, power, saturation, parabola):
        yield make(f"{model.__name__}, no sigma", model)
    yield make("absolute sigma of 1", parabola, options={"absolute_sigma": True})

    for absolute in (False, True):
        options: dict[str, Any] = {"absolute_sigma": absolute}
        known = "absolute" if absolute else "relative"
        yield make(f"sigma a number, {known}", exponential, options={**options, "sigma": 0.3})
        yield make(f"sigma shared, {known}", exponential, options={**options, "sigma": deviation})
        yield make(
            f"sigma per problem, {known}", exponential, options=options, rows={"sigma": deviations}
        )
        yield make(f"covariance shared, {known}", exponential, options={**options, "sigma": shared})
        yield make(
            f"covariance per problem, {known}",
            gaussian,
            options=options,
            rows={"sigma": per_problem},
        )

    low, high = [0, 0, -1], [10, 10, 2]
    # dogbox puts a parameter on its bound, as we do; trf only comes near.
    active: dict[str, Any] = {"theirs": {"method": "dogbox"}}
    yield make("bounds inactive", exponential, bounds=(low, high))
    yield make("bounds of numbers, active", exponential, bounds=(0.0, 2.6), **active)
    case = make("bounds active", exponential, bounds=([0, 0, 1.3], [np.inf, 10, 2]), **active)
    case.p0 = [1, 1, 1.5]
    yield case
    case = make("bounds per problem", exponential, **active)
    lower, upper = np.tile(low, (B, 1)).astype(float), np.tile(high, (B, 1)).astype(float)
    lower[1, 2], upper[2, 0], upper[3, 1], lower[4, 1] = 1.5, 2.0, 0.6, 1.2
    case.bounds, case.p0 = (lower, upper), [1.5, 0.5, 1.6]
    case.p0 = np.clip(np.tile(case.p0, (B, 1)), lower + 0.05, upper - 0.05)
    yield case
    yield make(
        "bounds and sigma",
        gaussian,
        bounds=([0, 0, 0.1, 0], 4.5),
        options={"sigma": deviation, "absolute_sigma": True},
        **active,
    )

    for loss in ("soft_l1", "huber", "cauchy", "arctan"):
        yield with_outliers(
            make(f"loss {loss}", exponential, options={"loss": loss, "f_scale": 0.1})
        )
    yield with_outliers(
        make("loss arctan, gentle", gaussian, options={"loss": "arctan", "f_scale": 1.0})
    )
    yield with_outliers(
        make("loss callable", exponential, options={"loss": half_cauchy, "f_scale": 0.1})
    )
    yield with_outliers(
        make(
            "loss huber with sigma and scale",
            gaussian,
            options={"loss": "huber", "f_scale": 1.345, "sigma": deviation, "absolute_sigma": True},
        )
    )
    yield with_outliers(
        make("loss soft_l1 with covariance", gaussian, options={"loss": "soft_l1", "sigma": shared})
    )
    case = make(
        "loss cauchy within bounds",
        exponential,
        bounds=([0, 0, 1.4], 9.0),
        options={"loss": "cauchy", "f_scale": 0.2},
        **active,
    )
    case.p0 = [1, 1, 2]
    yield with_outliers(case)

    yield with_nan(make("NaN in y", exponential))
    yield with_nan(
        make(
            "NaN in y, sigma per problem",
            exponential,
            rows={"sigma": deviations},
            options={"absolute_sigma": True},
        )
    )
    yield with_nan(make("NaN in y, sigma shared", exponential, options={"sigma": deviation}))
    yield with_nan(make("NaN in y, covariance shared", gaussian, options={"sigma": shared}))
    yield with_nan(
        make(
            "NaN in y, covariance per problem",
            exponential,
            rows={"sigma": per_problem},
            options={"absolute_sigma": True},
        )
    )
    yield with_nan(make("NaN in y, loss", exponential, options={"loss": "huber", "f_scale": 0.05}))
    spread = X + rng.uniform(-0.05, 0.05, (B, N))
    own_x: dict[str, Any] = {"x": spread, "x_of": lambda b: spread[b]}
    yield with_nan(make("NaN in x", gaussian, **own_x), in_x=True)
    yield with_nan(make("NaN in x, reverse", gaussian, ours={"jac": "reverse"}, **own_x), in_x=True)

    yield make("x per problem (B, N)", exponential, **own_x)
    two = np.stack([X, np.linspace(-1, 2, N) ** 2])
    yield make("x (k, N)", surface, x=two)
    case = make("x a tuple", surface, x=two)
    case.x = (two[0], two[1])
    yield case
    both = two + rng.uniform(-0.05, 0.05, (B, 2, N))
    yield make("x (B, k, N)", surface, x=both, x_of=lambda b: both[b])
    case = make(
        "x a tuple of (N,) and (B, N)",
        surface,
        x=None,
        x_of=lambda b: np.stack([two[0], both[b, 1]]),
    )
    case.x = (two[0], both[:, 1])
    yield case
    case = make(
        "x a list of (B, N) and (N,)",
        surface,
        x=None,
        x_of=lambda b: np.stack([both[b, 0], two[1]]),
    )
    case.x = [both[:, 0], two[1]]
    yield case

    for jac in ("forward", "reverse", "2-point", "3-point"):
        yield make(f"jac {jac}", gaussian, ours={"jac": jac})
        yield make(f"jac {jac}, own x", exponential, ours={"jac": jac}, **own_x)
    mine, theirs = (partial(exponential_jacobian, m) for m in (torch, np))
    yield make("jac callable", exponential, ours={"jac": mine}, theirs={"jac": theirs})
    yield make(
        "jac callable, sigma",
        exponential,
        ours={"jac": mine},
        theirs={"jac": theirs},
        options={"sigma": deviation, "absolute_sigma": True},
    )
    yield make(
        "jac callable, covariance and own x",
        exponential,
        ours={"jac": mine},
        theirs={"jac": theirs},
        rows={"sigma": per_problem},
        **own_x,
    )

    case = make("p0 per problem", gaussian)
    case.p0 = np.array(case.p0) + rng.uniform(0, 0.3, (B, 4))
    yield case
    # SciPy's differences step by 6e-6 whatever the parameter, and its rank ends at 1e-14
    yield make(
        "parameters of very different size", sizes, theirs={"jac": partial(sizes_jacobian, np)}
    )
    yield make("data of size 1e-6", parabola, noise=1e-7)
    for method in ("lm", "gn", "trf", "dogbox"):
        yield make(
            f"method {method}",
            saturation,
            ours={"method": method},
            theirs={"method": "lm", "jac": None} if method == "lm" else {},
        )
    yield make("x_scale numbers", exponential, ours={"x_scale": [3.0, 1.0, 0.5]})


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_agrees_with_scipy(case: Case) -> None:
    popt, pcov, result = case.fit()
    assert result.success.all(), result.message
    assert popt.dtype == pcov.dtype == np.float64
    # forward differences leave 1e-8 of themselves in the gradient
    rough = case.ours.get("jac") == "2-point"
    for b in range(B):
        want, want_cov = case.reference(b)
        error = np.sqrt(np.diag(want_cov))
        tolerance = (1e-4 if rough else 1e-6) * error + 1e-12 * np.abs(want)
        np.testing.assert_array_less(np.abs(popt[b] - want), tolerance, err_msg=f"problem {b}")
        # each entry against the errors of its two parameters
        np.testing.assert_array_less(
            np.abs(pcov[b] - want_cov) / np.outer(error, error), 1e-6, err_msg=f"problem {b}"
        )


def test_cases_are_worth_their_name() -> None:
    """Active bounds are active, inactive ones are not, masks differ, outliers matter."""
    by_name = {case.name: case for case in CASES}
    for name, count in (
        ("bounds inactive", 0),
        ("bounds of numbers, active", 4),
        ("bounds active", 5),
        ("bounds per problem", 4),
    ):
        active = by_name[name].fit()[2].active_mask.any(-1).sum()
        assert active == 0 if count == 0 else active >= count - 1, name
    mask = by_name["NaN in y"].mask
    assert mask is not None and (~mask).sum(-1).tolist() == [1, 2, 3, 4, 5]
    case = by_name["loss huber"]
    plain = curve_fit(partial(case.model, torch), case.x, case.y, case.p0)[0]
    assert (np.abs(plain - case.fit()[0]).max(-1) > 0.05).all()


# -------------------------------------------------------------------- models in NumPy's words


def emg(x: Any, a: Any, centre: Any, width: Any, tail: Any) -> Any:
    """A Gaussian with an exponential tail."""
    shifted = (x - centre) / width
    return (
        0.5
        * a
        * np.exp(0.5 * (width / tail) ** 2 - (x - centre) / tail)
        * scipy.special.erfc((width / tail - shifted) / np.sqrt(2))
    )


def voigt(x: Any, a: Any, centre: Any, width: Any, gamma: Any) -> Any:
    z = ((x - centre) + 1j * gamma) / (width * np.sqrt(2))
    return a * np.real(scipy.special.wofz(z)) / (width * np.sqrt(2 * np.pi))


def piecewise(x: Any, a: Any, k: Any, c: Any) -> Any:
    return np.where(x < 1, a, a * np.exp(-k * (x - 1))) + c * np.maximum(x - 3, 0)


def step(x: Any, low: Any, height: Any, middle: Any) -> Any:
    return low + height * scipy.special.expit(4 * (x - middle)) + 0 * np.abs(low)


def airy_disc(x: Any, a: Any, radius: Any, c: Any) -> Any:
    return a * (2 * scipy.special.j1(radius * x) / (radius * x)) ** 2 + c


def growth(x: Any, a: Any, b: Any) -> Any:
    return np.log1p(np.square(a) * x) + np.tanh(b * x) * np.power(x, 0.5)


NUMPY_MODELS: list[tuple[Callable[..., Any], list[float], list[float]]] = [
    (emg, [4, 1.5, 0.4, 0.7], [3, 1.4, 0.5, 0.6]),
    (voigt, [4, 2.2, 0.4, 0.3], [3, 2, 0.5, 0.5]),
    (piecewise, [3, 0.9, 0.5], [2, 1, 0.1]),
    (step, [1, 2, 2.3], [0.5, 1, 2]),
    (airy_disc, [5, 1.4, 0.5], [4, 1.2, 0]),
    (growth, [2, 0.4], [1.5, 1]),
]


@pytest.mark.parametrize("own_x", [False, True], ids=["x shared", "x per problem"])
@pytest.mark.parametrize(
    ("model", "typical", "start"), NUMPY_MODELS, ids=[m[0].__name__ for m in NUMPY_MODELS]
)
def test_numpy_models_unmodified(
    model: Callable[..., Any], typical: list[float], start: list[float], own_x: bool
) -> None:
    rng = np.random.default_rng(len(model.__name__))
    x = X + rng.uniform(-0.05, 0.05, (B, N)) if own_x else X
    rows = np.broadcast_to(x, (B, N))
    truth = np.array(typical) * rng.uniform(0.93, 1.07, (B, len(typical)))
    y = np.stack([model(rows[b], *truth[b]) for b in range(B)])
    y = y + 0.03 * rng.standard_normal((B, N))
    popt, pcov = curve_fit(model, x, y, start)
    for b in range(B):
        want, want_cov = reference(model, rows[b], y[b], start)
        error = np.sqrt(np.diag(want_cov))
        np.testing.assert_array_less(np.abs(popt[b] - want), 1e-6 * error)
        np.testing.assert_allclose(
            pcov[b] / np.outer(error, error), want_cov / np.outer(error, error), atol=1e-6
        )


def test_changing_the_import_is_enough() -> None:
    """A script written for SciPy, single data set and all, with its defaults."""

    def func(x: Any, a: Any, b: Any, c: Any) -> Any:
        return a * np.exp(-b * x) + c

    rng = np.random.default_rng(1)
    xdata = np.linspace(0, 4, 50)
    ydata = func(xdata, 2.5, 1.3, 0.5) + 0.2 * rng.normal(size=xdata.size)
    popt, pcov = curve_fit(func, xdata, ydata)
    want, want_cov = scipy.optimize.curve_fit(func, xdata, ydata)
    assert type(popt) is type(pcov) is np.ndarray
    assert popt.shape == (3,)
    assert pcov.shape == (3, 3)
    # SciPy's defaults and forward differences are the looser side
    np.testing.assert_allclose(popt, want, rtol=1e-5)
    np.testing.assert_allclose(pcov, want_cov, rtol=1e-4)
    bounded, _ = curve_fit(func, xdata, ydata, bounds=(0, [3.0, 1.0, 0.5]))
    want, _ = scipy.optimize.curve_fit(func, xdata, ydata, bounds=(0, [3.0, 1.0, 0.5]))
    np.testing.assert_allclose(bounded, want, rtol=1e-4)


# ---------------------------------------------------------------------------- damaged problems


def torch_exponential(x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * torch.exp(-k * x) + c


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_damaged_problem_speaks_for_itself_alone(value: float) -> None:
    case = make("damaged", exponential)
    healthy = curve_fit(torch_exponential, X, case.y, case.p0, full_output=True)
    y = case.y.copy()
    y[3, 7] = value
    popt, pcov, result = curve_fit(torch_exponential, X, y, case.p0, full_output=True)
    others = [0, 1, 2, 4]
    assert result.status[3] == Status.NON_FINITE_START
    assert not result.success[3]
    assert result.success[others].all()
    assert np.array_equal(popt[others], healthy[0][others])
    assert np.array_equal(pcov[others], healthy[1][others])
    assert np.array_equal(result.cost[others], healthy[2].cost[others])
    assert np.array_equal(popt[3], case.p0), "the start is the best known point"
    assert np.isinf(np.diag(pcov[3])).all()
    assert "initial point" in result.message[3]
    assert "finite" in result.covariance_message[3]


def test_nan_in_own_x_without_policy() -> None:
    case = make("damaged x", exponential)
    x = np.tile(X, (B, 1))
    x[1, 0] = np.nan
    healthy = curve_fit(torch_exponential, np.tile(X, (B, 1)), case.y, case.p0)
    popt, pcov, result = curve_fit(torch_exponential, x, case.y, case.p0, full_output=True)
    assert result.success.tolist() == [True, False, True, True, True]
    assert np.array_equal(popt[[0, 2, 3, 4]], healthy[0][[0, 2, 3, 4]])
    assert np.array_equal(pcov[[0, 2, 3, 4]], healthy[1][[0, 2, 3, 4]])


def test_nan_in_shared_x_is_omitted_everywhere() -> None:
    case = make("NaN in shared x", exponential)
    x = X.copy()
    x[[3, 20]] = np.nan
    keep = np.isfinite(x)
    popt, pcov = curve_fit(torch_exponential, x, case.y, case.p0, nan_policy="omit")
    for b in range(B):
        want, want_cov = reference(partial(exponential, np), x[keep], case.y[b, keep], case.p0)
        np.testing.assert_allclose(popt[b], want, rtol=1e-7)
        np.testing.assert_allclose(pcov[b], want_cov, rtol=1e-6)


def test_nan_in_one_of_two_variables_is_omitted() -> None:
    case = make("NaN in one variable", surface, x=np.stack([X, X[::-1]]))
    x = case.x.copy()
    x[1, 6] = np.nan
    keep = np.arange(N) != 6
    popt, _ = curve_fit(partial(surface, torch), x, case.y, case.p0, nan_policy="omit")
    for b in range(B):
        want, _ = reference(partial(surface, np), x[:, keep], case.y[b, keep], case.p0)
        np.testing.assert_allclose(popt[b], want, rtol=1e-7)


def test_sigma_may_be_nan_where_the_sample_is_omitted() -> None:
    """σ = √y of a missing y is missing too; SciPy drops both."""
    case = make("NaN in sigma", exponential)
    y = np.abs(case.y) + 0.1
    y[0, 3] = y[2, 8] = np.nan
    sigma = np.sqrt(y)
    popt, _ = curve_fit(
        torch_exponential, X, y, case.p0, sigma=sigma, absolute_sigma=True, nan_policy="omit"
    )
    for b in range(B):
        keep = np.isfinite(y[b])
        want, _ = reference(
            partial(exponential, np), X[keep], y[b, keep], case.p0, sigma=sigma[b, keep]
        )
        np.testing.assert_allclose(popt[b], want, rtol=1e-7)


def test_all_samples_of_a_problem_omitted() -> None:
    case = make("all omitted", exponential)
    healthy = curve_fit(torch_exponential, X, case.y, case.p0)
    y = case.y.copy()
    y[2] = np.nan
    popt, pcov, result = curve_fit(
        torch_exponential, X, y, case.p0, nan_policy="omit", full_output=True
    )
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(popt[others], healthy[0][others], rtol=1e-9)
    np.testing.assert_allclose(pcov[others], healthy[1][others], rtol=1e-7)
    assert np.isinf(pcov[2]).all()
    assert result.status[2] == -1 and result.success.tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(popt[2], np.broadcast_to(case.p0, popt.shape)[2])
    assert result.covariance_message[2] != result.covariance_message[0]


# ------------------------------------------------------------------- shapes, dtypes, containers


def test_leading_batch_dimensions() -> None:
    rng = np.random.default_rng(5)
    height, width = 3, 4
    truth = np.array([3, 0.8, 1]) * rng.uniform(0.85, 1.15, (height, width, 3))
    y = exponential(np, X, *truth[..., None].transpose(2, 0, 1, 3))
    y = y + 0.05 * rng.standard_normal(y.shape)
    sigma = rng.uniform(0.02, 0.1, y.shape)
    lower = np.zeros((height, width, 3))
    lower[1, 2, 2] = 1.3
    x = X + rng.uniform(-0.05, 0.05, y.shape)
    start = np.array([1.5, 1, 1.5]) + rng.uniform(0, 0.2, (height, width, 3))
    popt, pcov, result = curve_fit(
        torch_exponential, x, y, start, sigma, bounds=(lower, np.inf), full_output=True
    )
    assert popt.shape == (height, width, 3)
    assert pcov.shape == (height, width, 3, 3)
    fields = (
        "status",
        "success",
        "nfev",
        "cost",
        "chi_square",
        "r_squared",
        "bic",
        "optimality",
        "covariance_status",
        "degrees_of_freedom",
    )
    assert all(result[name].shape == (height, width) for name in fields)
    assert result.fun.shape == y.shape
    assert result.jac.shape == (*y.shape, 3)
    assert result.stderr.shape == result.active_mask.shape == result.grad.shape == popt.shape
    assert result.active_mask[1, 2].tolist() == [0, 0, -1]
    for index in np.ndindex(height, width):
        want, want_cov = reference(
            partial(exponential, np),
            x[index],
            y[index],
            start[index],
            method="dogbox",
            sigma=sigma[index],
            bounds=(lower[index], np.inf),
        )
        np.testing.assert_allclose(popt[index], want, rtol=1e-7)
        np.testing.assert_allclose(pcov[index], want_cov, rtol=1e-5)


def test_leading_batch_dimensions_with_several_variables() -> None:
    rng = np.random.default_rng(6)
    x = rng.uniform(0.1, 3, (2, 3, 2, N))
    truth = np.array([3, 0.6, 1.1]) * rng.uniform(0.9, 1.1, (2, 3, 3))
    y = np.stack([[surface(np, x[i, j], *truth[i, j]) for j in range(3)] for i in range(2)])
    y = y + 0.02 * rng.standard_normal(y.shape)
    popt, _ = curve_fit(partial(surface, torch), x, y, [2.0, 0.5, 1.0])
    for index in np.ndindex(2, 3):
        want, _ = reference(partial(surface, np), x[index], y[index], [2, 0.5, 1])
        np.testing.assert_allclose(popt[index], want, rtol=1e-7)


def test_what_the_model_sees() -> None:
    """Variables first, and parameters that broadcast against (..., N)."""
    seen: set[tuple[int, ...]] = set()
    params: set[tuple[int, ...]] = set()

    def model(x: Any, a: Any, b: Any) -> Any:
        seen.add(tuple(x.shape))
        params.add(tuple(a.shape))
        return a + b * (x if x.shape[0] != 2 or x.ndim == 1 else x[0] + x[1])

    y = np.random.default_rng(0).normal(size=(7, 12))
    x = np.linspace(0, 1, 12)
    cases: list[tuple[Any, int, int]] = [
        (x, 1, 12),
        (np.stack([x, x * x]), 2, 12),
        ((x, x * x), 2, 12),
        (np.tile(x, (7, 1)), 2, 12),
        (np.tile(np.stack([x, x * x]), (7, 1, 1)), 3, 12),
    ]
    for xdata, ndim, last in cases:
        seen.clear()
        curve_fit(model, xdata, y, [0.0, 1.0])
        assert {len(shape) for shape in seen} == {ndim}
        assert {shape[-1] for shape in seen} == {last}
        if ndim == 3:
            assert {shape[0] for shape in seen} == {2}
    assert {shape[-1] for shape in params} == {1}
    assert {len(shape) for shape in params} == {2}


def test_single_problem_loses_the_batch_dimension() -> None:
    case = make("single", exponential)
    popt, pcov, result = curve_fit(torch_exponential, X, case.y[0], case.p0, full_output=True)
    batch = curve_fit(torch_exponential, X, case.y[:1], case.p0, full_output=True)
    assert popt.shape == (3,)
    assert pcov.shape == (3, 3)
    assert result.stderr.shape == (3,)
    assert result.fun.shape == (N,)
    assert isinstance(result.message, str)
    assert isinstance(result.covariance_message, str)
    assert isinstance(result.aic, float)
    assert isinstance(result.degrees_of_freedom, int)
    assert np.array_equal(popt, batch[0][0])
    assert np.array_equal(pcov, batch[1][0])
    assert result.aic == batch[2].aic[0]


@pytest.mark.parametrize("p0", [None, [1, 1, 1], [1.0, 1.0, 1.0], np.ones(3), np.ones((B, 3))])
def test_start_shared_per_problem_or_counted(p0: Any) -> None:
    case = make("p0", exponential)
    popt, _ = curve_fit(torch_exponential, X, case.y, p0)
    want, _ = curve_fit(torch_exponential, X, case.y, [1.0, 1.0, 1.0])
    assert np.array_equal(popt, want)


@pytest.mark.parametrize(
    ("bounds", "start"),
    [
        ((0, 10), [5, 5, 5]),
        ((2, np.inf), [3, 3, 3]),
        ((-np.inf, -2), [-3, -3, -3]),
        (([0, -np.inf, 1], [np.inf, -5, 2]), [1, -6, 1.5]),
        (([-np.inf] * 3, [np.inf] * 3), [1, 1, 1]),
        (scipy.optimize.Bounds([0, 0, 0], [4, 4, 4]), [2, 2, 2]),
    ],
)
def test_start_within_bounds_is_scipys(bounds: Any, start: list[float]) -> None:
    """Both are asked where they begin."""
    met: list[list[float]] = []
    theirs: list[list[float]] = []

    def model(x: Any, a: Any, b: Any, c: Any) -> Any:
        met.append([float(p.reshape(-1)[0]) for p in (a, b, c)])
        return a + b * x + c * x * x

    def scipy_model(x: Any, a: float, b: float, c: float) -> Any:
        theirs.append([float(a), float(b), float(c)])
        return parabola(np, x, a, b, c)

    y = np.tile(parabola(np, X, 1, 2, 1.5), (2, 1))
    curve_fit(model, X, y, bounds=bounds, jac="3-point")
    scipy.optimize.curve_fit(scipy_model, X, y[0], bounds=bounds)
    np.testing.assert_allclose(theirs[0], start)
    np.testing.assert_allclose(met[0], start)


def test_start_within_bounds_per_problem() -> None:
    lower = np.array([[0.0, -np.inf, 1.0], [2.0, -1.0, -np.inf]])
    upper = np.array([[4.0, 3.0, np.inf], [np.inf, 1.0, np.inf]])
    seen: list[Any] = []
    y = np.tile(parabola(np, X, 1, 2, 1.5), (2, 1))

    curve_fit(
        partial(parabola, torch),
        X,
        y,
        bounds=(lower, upper),
        callback=lambda s: True,
        full_output=True,
        jac=lambda x, a, b, c: _record(seen, x, a, b, c),
    )
    np.testing.assert_allclose(seen[0], [[2, 2, 2], [3, 0, 1]])


def _record(seen: list[Any], x: Any, a: Any, b: Any, c: Any) -> Any:
    rows = torch.cat([a, b, c], -1)
    if rows.shape[0] == 2:
        seen.append(rows.numpy())
    one = torch.ones_like(a * x)
    return torch.stack([one, one * x, one * x * x], -1)


def test_starred_parameters_need_a_start() -> None:
    def polynomial(x: Any, *coefficients: Any) -> Any:
        return sum(c * x**n for n, c in enumerate(coefficients))

    case = make("starred", parabola)
    with pytest.raises(ValueError, match="Unable to determine number of fit parameters"):
        curve_fit(polynomial, X, case.y)
    with pytest.raises(ValueError, match="Unable to determine number of fit parameters"):
        scipy.optimize.curve_fit(polynomial, X, case.y[0])
    popt, _ = curve_fit(polynomial, X, case.y, [0.0, 0.0, 0.0])
    np.testing.assert_allclose(popt, np.polynomial.polynomial.polyfit(X, case.y.T, 2).T, rtol=1e-8)


def test_callable_object_and_method_are_counted() -> None:
    class Model:
        def __call__(self, x: Any, a: Any, b: Any) -> Any:
            return a + b * x

        def method(self, x: Any, a: Any, b: Any) -> Any:
            return a + b * x

    y = np.stack([1 + 2 * X, 3 - X])
    for model in (Model(), Model().method):
        popt, _ = curve_fit(model, X, y)
        np.testing.assert_allclose(popt, [[1, 2], [3, -1]], rtol=1e-9)


def test_lists_of_integers() -> None:
    popt, pcov = curve_fit(lambda x, a, b: a + b * x, [0, 1, 2, 3], [1, 3, 6, 7], [0, 0])
    want, want_cov = np.polyfit([0, 1, 2, 3], [1, 3, 6, 7], 1, cov=True)
    np.testing.assert_allclose(popt, want[::-1], rtol=1e-12)
    np.testing.assert_allclose(pcov, want_cov[::-1, ::-1], rtol=1e-10)
    assert popt.dtype == np.float64
    both, _ = curve_fit(
        lambda x, a, b: a + b * x,
        np.arange(4),
        np.array([[1, 3, 6, 7], [2, 4, 7, 8]]),
        [0, 0],
        sigma=[1, 1, 2, 1],
    )
    assert both.dtype == np.float64
    np.testing.assert_allclose(both[1] - both[0], [1, 0], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_in_tensors_out(dtype: torch.dtype) -> None:
    case = make("tensors", exponential)
    y = torch.tensor(case.y, dtype=dtype)
    x = torch.tensor(X, dtype=dtype)
    popt, pcov, result = curve_fit(torch_exponential, x, y, case.p0, full_output=True)
    for value in (popt, pcov, result.stderr, result.fun, result.jac, result.grad):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == dtype
    assert isinstance(result.chi_square, torch.Tensor)
    assert result.chi_square.dtype == torch.float64
    want, want_cov = curve_fit(torch_exponential, X, case.y, case.p0)
    error = torch.tensor(want_cov).diagonal(dim1=-2, dim2=-1).sqrt()
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    assert ((popt.double() - torch.tensor(want)).abs() < tolerance * error).all()
    scaled = (pcov.double() - torch.tensor(want_cov)).abs() / (error[:, :, None] * error[:, None])
    assert float(scaled.max()) < tolerance


@pytest.mark.parametrize("which", ["xdata", "ydata", "p0", "sigma"])
def test_one_tensor_is_enough_for_tensors_out(which: str) -> None:
    case = make("one tensor", exponential)
    arguments: dict[str, Any] = {"xdata": X, "ydata": case.y, "p0": np.ones(3), "sigma": np.ones(N)}
    arguments[which] = torch.tensor(arguments[which])
    popt, pcov = curve_fit(torch_exponential, **arguments)
    assert isinstance(popt, torch.Tensor)
    assert isinstance(pcov, torch.Tensor)


def test_float32_data() -> None:
    """Solved, said to be so, and as near the float64 answer as float32 residuals allow."""
    for model in (exponential, gaussian, logistic, sine, saturation):
        case = make(f"float32 {model.__name__}", model)
        single = case.y.astype(np.float32)
        popt, pcov, result = curve_fit(
            partial(model, torch), X.astype(np.float32), single, case.p0, full_output=True
        )
        assert result.success.all(), model.__name__
        assert popt.dtype == pcov.dtype == result.stderr.dtype == np.float32
        for b in range(B):
            want, want_cov = reference(
                partial(model, np),
                X.astype(np.float32).astype(float),
                single[b].astype(float),
                case.p0,
            )
            error = np.sqrt(np.diag(want_cov))
            np.testing.assert_array_less(np.abs(popt[b] - want), 2e-3 * error)
            np.testing.assert_allclose(
                pcov[b] / np.outer(error, error), want_cov / np.outer(error, error), atol=2e-3
            )


def test_float32_is_kept_beside_float64_x_and_promoted_by_float64_start() -> None:
    y = np.array([[1, 3, 5, 7], [2, 3, 4, 5]], np.float32)
    x = np.arange(4.0)

    def line(x: Any, a: Any, b: Any) -> Any:
        return a + b * x

    assert curve_fit(line, x, y, [0, 0])[0].dtype == np.float32
    assert curve_fit(line, x, y)[0].dtype == np.float32
    assert curve_fit(line, x, y, np.zeros(2))[0].dtype == np.float64
    assert curve_fit(line, x, y, np.zeros(2, np.float32))[0].dtype == np.float32


def test_nothing_passed_in_is_written_to() -> None:
    case = make("unchanged", exponential)
    y = case.y.copy()
    y[1, 2] = np.nan
    inputs = [
        X.copy(),
        y,
        np.ones((B, 3)),
        np.full((B, N), 0.1),
        np.zeros((B, 3)),
        np.full((B, 3), 9.0),
    ]
    before = [value.copy() for value in inputs]
    x, y, p0, sigma, lower, upper = inputs
    popt, _ = curve_fit(
        torch_exponential, x, y, p0, sigma, bounds=(lower, upper), nan_policy="omit"
    )
    for value, kept in zip(inputs, before, strict=True):
        assert np.array_equal(value, kept, equal_nan=True)
    popt += 1
    assert np.array_equal(p0, before[2])


def test_read_only_data() -> None:
    case = make("read only", exponential)
    case.y.flags.writeable = False
    popt, _ = curve_fit(torch_exponential, X, case.y, case.p0)
    assert np.isfinite(popt).all()


def test_broadcast_and_reversed_views() -> None:
    """Strides that torch has no words for."""
    case = make("views", exponential)
    x = np.broadcast_to(X[::-1], (B, N))
    popt, _ = curve_fit(torch_exponential, x, case.y[:, ::-1], case.p0)
    want, _ = curve_fit(torch_exponential, X, case.y, case.p0)
    np.testing.assert_allclose(popt, want, rtol=1e-8)


def test_closing_over_the_data_of_all_problems() -> None:
    """Problems that a model cannot be called on alone still get their own answers."""
    case = make("closure", exponential)
    rng = np.random.default_rng(3)
    factor = torch.tensor(rng.uniform(0.5, 2, (B, 1)))
    popt, pcov = curve_fit(
        lambda x, a, k, c: factor * a * torch.exp(-k * x) + c, X, case.y, case.p0
    )
    for b in range(B):
        f = float(factor[b])
        want, want_cov = reference(
            lambda x, a, k, c, f=f: f * a * np.exp(-k * x) + c, X, case.y[b], case.p0
        )
        np.testing.assert_allclose(popt[b], want, rtol=1e-7)
        np.testing.assert_allclose(pcov[b], want_cov, rtol=1e-5)


def test_constant_model_broadcasts() -> None:
    y = np.array([[1.0, 2, 6], [4, 4, 7]])
    popt, pcov = curve_fit(lambda x, a: a, np.arange(3.0), y, [0.0])
    np.testing.assert_allclose(popt[:, 0], y.mean(-1))
    np.testing.assert_allclose(pcov[:, 0, 0], y.var(-1, ddof=1) / 3)


def test_x_that_is_not_a_number_reaches_the_model_as_it_is() -> None:
    grid = {"x": torch.linspace(0, 1, 6, dtype=torch.float64)}
    y = np.stack([1 + 2 * grid["x"].numpy(), 3 - grid["x"].numpy()])
    popt, _ = curve_fit(lambda x, a, b: a + b * x["x"], grid, y, [0.0, 0.0])
    np.testing.assert_allclose(popt, [[1, 2], [3, -1]], atol=1e-9)


def test_large_batch_is_each_problem_alone() -> None:
    """More problems than one chunk of evaluations holds."""
    rng = np.random.default_rng(8)
    batch = 3000
    truth = np.array([3, 0.8, 1]) * rng.uniform(0.85, 1.15, (batch, 3))
    y = exponential(np, X, *truth.T[:, :, None]) + 0.05 * rng.standard_normal((batch, N))
    sigma = rng.uniform(0.02, 0.1, (batch, N))
    popt, pcov = curve_fit(torch_exponential, X, y, [1.0, 1.0, 0.0], sigma)
    for b in (0, 1, 1665, 1666, 1667, batch - 1):
        want, want_cov = reference(partial(exponential, np), X, y[b], [1, 1, 0], sigma=sigma[b])
        np.testing.assert_allclose(popt[b], want, rtol=1e-7)
        np.testing.assert_allclose(pcov[b], want_cov, rtol=1e-5)


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i2", "u2", "u4", "u8", "i1", "f2", "g"])
def test_arrays_as_detectors_and_files_give_them(dtype: str) -> None:
    """Big-endian as in FITS, unsigned counts, half and long double precision."""
    y = np.array([[3, 5, 7, 10], [2, 4, 7, 8]], dtype=dtype)
    x = np.arange(4).astype(dtype)
    popt, _ = curve_fit(lambda x, a, b: a + b * x, x, y, [0.0, 0.0])
    want = np.polyfit(np.arange(4), y.astype(float).T, 1)[::-1].T
    np.testing.assert_allclose(popt, want, rtol=1e-5 if dtype in (">f4", "f2") else 1e-9)
