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


def gaussian(m: Any, x: Any, a: Any, centre: Any, width: Any, c: Any) -> Any:
    return a * m.exp(-0.5 * ((x - centre) / width) ** 2) + c


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
    return 1e9 * a * m.exp(-1e9 * k * x) + 1e-6 * c


MODELS: dict[Callable[..., Any], tuple[Sequence[float], Sequence[float]]] = {
    exponential: ([3, 0.8, 1], [1, 1, 0]),
    gaussian: ([5, 2.2, 0.6, 1], [3, 2, 1, 0]),
    logistic: ([4, 1.7, 0.4], [3, 2, 0.5]),
    sine: ([2, 1.5, 0.3], [1, 1.4, 0]),
    power: ([2, 1.3], [1, 1]),
    saturation: ([5, 1.5], [3, 1]),
    parabola: ([1, -2, 0.5], [0, 0, 0]),
    surface: ([3, 0.6, 1.1], [2, 0.5, 1]),
    sizes: ([3e-9, 8e-10, 1e6], [1e-9, 1e-9, 0]),
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

    def fit(self) -> tuple[Array, Array, Any]:
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
            partial(self.model, np), x, y, _row(np.asarray(self.p0), b), **{**options, **self.theirs}
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
    rho[2] = -0.5 / (1 + z / 2) ** 2
    return rho


def exponential_jacobian(m: Any, x: Any, a: Any, k: Any, c: Any) -> Any:
    decay = m.exp(-k * x)
    columns = (decay, -a * x * decay, m.ones_like(decay))
    return m.stack(columns, -1)


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
        yield make(f"sigma per problem, {known}", exponential, options=options,
                   rows={"sigma": deviations})
        yield make(f"covariance shared, {known}", exponential, options={**options, "sigma": shared})
        yield make(f"covariance per problem, {known}", gaussian, options=options,
                   rows={"sigma": per_problem})

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
    yield make("bounds and sigma", gaussian, bounds=([0, 0, 0.1, 0], 4.5),
               options={"sigma": deviation, "absolute_sigma": True}, **active)

    for loss in ("soft_l1", "huber", "cauchy", "arctan"):
        yield with_outliers(make(f"loss {loss}", exponential,
                                 options={"loss": loss, "f_scale": 0.1}))
    yield with_outliers(make("loss callable", exponential,
                             options={"loss": half_cauchy, "f_scale": 0.1}))
    yield with_outliers(make("loss huber with sigma and scale", gaussian, options={
        "loss": "huber", "f_scale": 1.345, "sigma": deviation, "absolute_sigma": True}))
    yield with_outliers(make("loss soft_l1 with covariance", gaussian, options={
        "loss": "soft_l1", "sigma": shared}))
    case = make("loss cauchy within bounds", exponential, bounds=([0, 0, 1.4], 9.0),
                options={"loss": "cauchy", "f_scale": 0.2}, **active)
    case.p0 = [1, 1, 2]
    yield with_outliers(case)

    yield with_nan(make("NaN in y", exponential))
    yield with_nan(make("NaN in y, sigma per problem", exponential, rows={"sigma": deviations},
                        options={"absolute_sigma": True}))
    yield with_nan(make("NaN in y, sigma shared", exponential, options={"sigma": deviation}))
    yield with_nan(make("NaN in y, covariance shared", gaussian, options={"sigma": shared}))
    yield with_nan(make("NaN in y, covariance per problem", exponential,
                        rows={"sigma": per_problem}, options={"absolute_sigma": True}))
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
    case = make("x a tuple of (N,) and (B, N)", surface, x=None,
                x_of=lambda b: np.stack([two[0], both[b, 1]]))
    case.x = (two[0], both[:, 1])
    yield case
    case = make("x a list of (B, N) and (N,)", surface, x=None,
                x_of=lambda b: np.stack([both[b, 0], two[1]]))
    case.x = [both[:, 0], two[1]]
    yield case

    for jac in ("forward", "reverse", "2-point", "3-point"):
        yield make(f"jac {jac}", gaussian, ours={"jac": jac})
        yield make(f"jac {jac}, own x", exponential, ours={"jac": jac}, **own_x)
    mine, theirs = (partial(exponential_jacobian, m) for m in (torch, np))
    yield make("jac callable", exponential, ours={"jac": mine}, theirs={"jac": theirs})
    yield make("jac callable, sigma", exponential, ours={"jac": mine}, theirs={"jac": theirs},
               options={"sigma": deviation, "absolute_sigma": True})
    yield make("jac callable, covariance and own x", exponential, ours={"jac": mine},
               theirs={"jac": theirs}, rows={"sigma": per_problem}, **own_x)

    case = make("p0 per problem", gaussian)
    case.p0 = np.array(case.p0) + rng.uniform(0, 0.3, (B, 4))
    yield case
    yield make("parameters of very different size", sizes)
    yield make("data of size 1e-6", parabola, noise=1e-7)
    for method in ("lm", "gn", "trf", "dogbox"):
        yield make(f"method {method}", saturation, ours={"method": method},
                   theirs={"method": "lm", "jac": None} if method == "lm" else {})
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
    for name, count in (("bounds inactive", 0), ("bounds of numbers, active", 4),
                        ("bounds active", 5), ("bounds per problem", 4)):
        active = by_name[name].fit()[2].active_mask.any(-1).sum()
        assert active == 0 if count == 0 else active >= count - 1, name
    mask = by_name["NaN in y"].mask
    assert mask is not None and (~mask).sum(-1).tolist() == [1, 2, 3, 4, 5]
    case = by_name["loss huber"]
    plain = curve_fit(partial(case.model, torch), case.x, case.y, case.p0)[0]
    assert (np.abs(plain - case.fit()[0]).max(-1) > 0.05).all()
