"""The fused engine against the eager one, SciPy and closed forms: one algorithm, two engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from problems import workloads
from torchimize import curve_fit, least_squares
from torchimize.functions import (
    gradient_descent,
    gradient_descent_parallel,
    lsq_gna_parallel,
    lsq_lma,
    lsq_lma_parallel,
)
from torchimize.kernel import driver
from torchimize.lsq.fused import run as fused_run

B, N = 120, 24
DOUBLE, SINGLE = torch.float64, torch.float32
EPS = {dtype: torch.finfo(dtype).eps for dtype in (DOUBLE, SINGLE)}

Model = Callable[..., Any]


# ------------------------------------------------------------------------------------------- data


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=DOUBLE)


def noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


@dataclass(frozen=True)
class Data:
    """Curves and starts: y (B, ...) is near ``model(x, *truth)``."""

    model: Model
    x: Any
    y: Tensor
    truth: Tensor
    start: Tensor

    def to(self, dtype: torch.dtype) -> Data:
        x = self.x.to(dtype) if isinstance(self.x, Tensor) else self.x
        return Data(self.model, x, *(v.to(dtype) for v in (self.y, self.truth, self.start)))


def columns(params: Tensor) -> list[Tensor]:
    """Parameters as a model takes them, (B, 1) each."""
    return list(params[:, :, None].unbind(1))


def measure(model: Model, x: Any, truth: Tensor, start: Tensor, level: float = 0.05) -> Data:
    """Noisy data of a model."""
    y = model(x, *columns(truth))
    return Data(model, x, y + level * noise(*y.shape), truth, start)


def decay(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    value: Tensor = a * torch.exp(-k * x) + c
    return value


def peak(x: Tensor, a: Any, m: Any, s: Any, c: Any) -> Tensor:
    value: Tensor = a * torch.exp(-(((x - m) / s) ** 2) / 2) + c
    return value


TIMES = torch.linspace(0.0, 4.0, N, dtype=DOUBLE)


def decays(model: Model = decay, x: Any = TIMES, batch: int = B, level: float = 0.05) -> Data:
    """Three parameters, from starts that cost some steps."""
    low, high = torch.tensor([[2.0, 0.4, -0.5], [5.0, 1.5, 1.5]], dtype=DOUBLE)
    truth = low + (high - low) * draw(batch, 3)
    return measure(model, x, truth, truth * (0.6 + 0.8 * draw(batch, 3, seed=2)), level)


def peaks(batch: int = B, samples: int = 31) -> Data:
    x = torch.linspace(-5.0, 5.0, samples, dtype=DOUBLE)
    low, high = torch.tensor([[3.0, -1.0, 0.8, 0.5], [9.0, 1.0, 1.6, 2.0]], dtype=DOUBLE)
    truth = low + (high - low) * draw(batch, 4)
    return measure(peak, x, truth, truth * (0.7 + 0.6 * draw(batch, 4, seed=2)), 0.1)


def counts() -> Data:
    """Poisson counts of peaks."""
    data = peaks()
    scale = torch.tensor([5.0, 1.0, 1.0, 5.0], dtype=DOUBLE)
    truth = data.truth * scale
    mean = peak(data.x, *columns(truth))
    y = torch.poisson(mean, generator=torch.Generator().manual_seed(3))
    return Data(peak, data.x, y, truth, truth * (0.9 + 0.2 * draw(B, 4, seed=8)))


def with_gaps(data: Data) -> Data:
    return replace(data, y=torch.where(draw(*data.y.shape, seed=6) < 0.2, torch.nan, data.y))


def plane(x: Any, a: Any, b: Any, c: Any) -> Tensor:
    value: Tensor = a * torch.exp(-b * x[0]) + c * x[1]
    return value


def channels(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    """Two channels with the same expression."""
    return decay(x, a, k, c)[:, None].expand(-1, 2, -1)


def two_models(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    """Two channels with an expression each."""
    return torch.stack([a * torch.exp(-k * x) + c, a * x - c * k], 1)


def interleaved(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    x = x[..., ::2]
    return torch.stack([a * torch.exp(-k * x) + c, a - c * k * x], -1).flatten(-2)


OWN_TIMES = 4 * draw(B, N, seed=7)


def in_pieces(x: Tensor, own: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    """Curves of different lengths, one after the other, that share parts of both x."""
    parts = [k * own[:, :11], a * torch.exp(-k * own) + c, c * x[:7] - a, a * own[:, 2:19:3] * x[7]]
    return torch.cat([*parts, c * torch.exp(-x[:19] * k)], -1)


def image(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    """Rows and columns, of which neither is short."""
    value: Tensor = (a * torch.exp(-k * x[:9]) + c)[:, :, None] * (1 + k * x[:11])[:, None]
    return value


def stack_of_images(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    spot = image(x, a, k, c)
    return torch.stack([spot, c[:, :, None] * spot, spot.mT.reshape(spot.shape)], 1)


def shifted(x: Tensor, a: Any, k: Any, c: Any) -> Tensor:
    value: Tensor = a * torch.exp(-k * x) + torch.where(x > 2, c, c + 0.1)
    return value


def shifted_in_numpy(x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * np.exp(-k * x) + np.where(x > 2, c, c + 0.1)


# ------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Outcome:
    """What both engines have to agree on."""

    params: Tensor
    stderr: Tensor
    covariance: Tensor | None
    status: Tensor
    nfev: Tensor
    njev: Tensor
    result: Any


# Tolerances far above rounding: with smaller ones the last digits say which test stops a fit.
RELATIVE: dict[torch.dtype, dict[str, Any]] = {
    DOUBLE: {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8},
    SINGLE: {"ftol": 1e-4, "xtol": 1e-3, "gtol": None},
}
ABSOLUTE: dict[torch.dtype, dict[str, Any]] = {
    DOUBLE: {"ftol": 1e-8, "ptol": 1e-8, "gtol": 1e-8},
    SINGLE: {"ftol": 1e-3, "ptol": 1e-3, "gtol": 0.0},
}


def by_curve_fit(engine: str, data: Data, **options: Any) -> Outcome:
    start = options.pop("p0", data.start)
    found = curve_fit(
        data.model,
        data.x,
        data.y,
        start,
        full_output=True,
        engine=engine,
        **{**RELATIVE[data.y.dtype], **options},
    )
    popt, pcov, result = found
    assert result.engine == engine, result.engine_reason
    parts = (popt, result.stderr, pcov, result.status, result.nfev, result.njev)
    return Outcome(*parts, result)


def scaled_jacobian(result: Any) -> tuple[Tensor, Tensor]:
    """Jacobian (B, M, P) with columns of length 1, and their lengths (B, P)."""
    jacobian = torch.as_tensor(result.jac).double()
    jacobian = jacobian.reshape(len(jacobian), -1, jacobian.shape[-1])
    scale = jacobian.square().sum(1).sqrt()
    scaled = jacobian / torch.where(scale > 0, scale, 1.0)[:, None]
    finite = torch.isfinite(scaled).all(-1).all(-1)
    return torch.where(finite[:, None, None], scaled, 0.0), scale


def errors(result: Any) -> Tensor:
    """Standard errors from the Jacobian of a result: (B, P), infinite where there is none."""
    scaled, scale = scaled_jacobian(result)
    inverse = torch.linalg.pinv(scaled)
    freedom = max(1, scaled.shape[1] - scaled.shape[2])
    variance = 2 * result.cost / freedom
    spread: Tensor = (inverse.square().sum(-1) * variance[:, None]).sqrt() / scale
    return spread.nan_to_num(nan=torch.inf)


def of_result(result: Any, engine: str) -> Outcome:
    assert result.engine == engine, result.engine_reason
    return Outcome(result.x, errors(result), None, result.status, result.nfev, result.njev, result)


def by_least_squares(engine: str, data: Data, **options: Any) -> Outcome:
    def residual(p: Tensor, y: Tensor) -> Tensor:
        value: Tensor = data.model(data.x, *columns(p)) - y
        return value

    residual = options.pop("residual", residual)
    args = options.pop("args", (data.y,))
    options = {**RELATIVE[data.y.dtype], **options}
    start = options.pop("x0", data.start)
    return of_result(least_squares(residual, start, args=args, engine=engine, **options), engine)


def by_function(solver: Callable[..., Any]) -> Callable[..., Outcome]:
    def fit(engine: str, data: Data, **options: Any) -> Outcome:
        def residual(p: Tensor, y: Tensor) -> Tensor:
            value: Tensor = data.model(data.x, *columns(p)) - y
            return value if value.ndim == 3 else value[:, None]

        options = {**ABSOLUTE[data.y.dtype], **options}
        _, result = solver(
            data.start, residual, args=(data.y,), full_output=True, engine=engine, **options
        )
        return of_result(result, engine)

    return fit


by_lma, by_gna = by_function(lsq_lma_parallel), by_function(lsq_gna_parallel)


def assert_same_counts(eager: Outcome, fused: Outcome, share: float = 0.99) -> None:
    for name in ("status", "nfev", "njev"):
        one, other = getattr(eager, name), getattr(fused, name)
        equal = (one == other).double().mean()
        assert equal >= share, f"{name}: {equal}\n{one[one != other]}\n{other[one != other]}"


def assert_same_covariance(eager: Tensor, fused: Tensor, tolerance: float) -> None:
    one, other = eager.double(), fused.double()
    spread = torch.diagonal(one, dim1=-2, dim2=-1).sqrt()
    off = (one - other).abs() / (spread[:, :, None] * spread[:, None, :])
    assert bool(((one == other) | (off <= tolerance)).all()), f"covariance: {off.max()}"


def assert_one_algorithm(eager: Outcome, fused: Outcome, solved: float = 0.98) -> None:
    """Counts, statuses, parameters, error bars of both engines."""
    dtype = eager.params.dtype
    assert fused.params.dtype == dtype
    assert_same_counts(eager, fused)
    good = (eager.status > 0) & (fused.status > 0)
    assert good.double().mean() >= solved
    # a fit that was stopped one step earlier is off by what its tolerance allows
    in_step = good & (eager.nfev == fused.nfev) & (eager.status == fused.status)
    limits = (1e-3, 1e-3) if dtype == DOUBLE else (3e-3, 0.1)
    for which, limit in zip((in_step, good), limits, strict=True):
        params, wanted = fused.params[which].double(), eager.params[which].double()
        off = (params - wanted).abs() - 8 * EPS[dtype] * wanted.abs()
        share = (off / eager.stderr[which].double())[off > 0]
        assert not bool((share > limit).any()), f"{share.max()} standard errors"
    if eager.covariance is not None and fused.covariance is not None:
        # in single precision the kernel looks at ill-conditioned ones again, where the fit ended
        tolerance = 1e-4 if dtype == DOUBLE else 5e-3
        assert_same_covariance(eager.covariance[good], fused.covariance[good], tolerance)


# ------------------------------------------------------------------------------------- the matrix


@dataclass(frozen=True)
class Case:
    """A fit, with data and options of either dtype."""

    fit: Callable[..., Outcome]
    data: Callable[[], Data]
    options: Callable[[], dict[str, Any]] = dict

    def __call__(self, engine: str, dtype: torch.dtype, **more: Any) -> Outcome:
        options = {**self.options(), **more}
        converted = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        return self.fit(engine, self.data().to(dtype), **converted)


def numpy_words(engine: str, data: Data, **options: Any) -> Outcome:
    """All in NumPy, in and out."""
    popt, pcov, result = curve_fit(
        shifted_in_numpy,
        data.x.numpy(),
        data.y.numpy(),
        data.start.numpy(),
        full_output=True,
        engine=engine,
        **{**RELATIVE[data.y.dtype], **options},
    )
    assert result.engine == engine, result.engine_reason
    parts = (popt, result.stderr, pcov, result.status, result.nfev, result.njev)
    assert all(isinstance(part, np.ndarray) for part in parts)
    popt, stderr, pcov, status, nfev, njev = map(torch.from_numpy, parts)
    return Outcome(popt, stderr, pcov, status, nfev, njev, result)


def closure(engine: str, data: Data, **options: Any) -> Outcome:
    """Nothing but the parameters is an argument."""

    def residual(p: Tensor) -> Tensor:
        return decay(data.x, *columns(p)) - data.y

    return by_least_squares(engine, data, residual=residual, args=(), **options)


def arguments(engine: str, data: Data, **options: Any) -> Outcome:
    """Arguments that belong to the problems, to all, and that are no tensors."""

    def residual(p: Tensor, x: Tensor, y: Tensor, factor: Tensor, number: float) -> Tensor:
        return number * factor * (decay(x, *columns(p)) - y)

    args = (data.x, data.y, 0.5 + draw(B, 1, seed=2).to(data.y), 1.7)
    return by_least_squares(engine, data, residual=residual, args=args, **options)


def pieces(engine: str, data: Data, **options: Any) -> Outcome:
    """Curves of different lengths that share what belongs to the problems."""
    own = OWN_TIMES.to(data.y)

    def model(p: Tensor, own: Tensor) -> Tensor:
        return in_pieces(data.x, own, *columns(p))

    y = model(data.truth, own)
    y = y + 0.05 * noise(*y.shape).to(y)
    return by_least_squares(
        engine, data, residual=lambda p, own, y: model(p, own) - y, args=(own, y), **options
    )


def around_start() -> dict[str, Any]:
    start = decays().start
    width = 0.05 + start.abs() * draw(B, 3, seed=9)
    return {"bounds": (start - width, start + width)}


def some_fixed() -> dict[str, Any]:
    start, fixed = decays().start, draw(B, 3, seed=4) < 0.3
    lower, upper = (torch.where(fixed, start, limit) for limit in (-torch.inf, torch.inf))
    return {"bounds": (lower, upper)}


BOX = {"p0": [3.0, 0.8, 0.3], "bounds": ([2.5, 0.5, 0.0], [4.5, 1.2, 1.0])}
SIGMA = 0.02 + 0.2 * draw(B, N, seed=5)

CASES = {
    "curve_fit": Case(by_curve_fit, decays),
    "curve_fit lm": Case(by_curve_fit, decays, lambda: {"method": "lm"}),
    "curve_fit gn": Case(by_curve_fit, decays, lambda: {"method": "gn"}),
    "least_squares": Case(by_least_squares, peaks),
    "least_squares lm": Case(by_least_squares, peaks, lambda: {"method": "lm"}),
    "least_squares gn": Case(by_least_squares, peaks, lambda: {"method": "gn"}),
    "lma lev": Case(by_lma, decays),
    "lma marq": Case(by_lma, decays, lambda: {"meth": "marq"}),
    "gna": Case(by_gna, decays),
    "gna damped": Case(by_gna, decays, lambda: {"l": 0.7, "max_iter": 200}),
    "soft_l1": Case(by_least_squares, decays, lambda: {"loss": "soft_l1", "f_scale": 0.1}),
    "huber": Case(by_least_squares, decays, lambda: {"loss": "huber", "f_scale": 0.1}),
    "cauchy": Case(by_least_squares, decays, lambda: {"loss": "cauchy", "f_scale": 0.1}),
    "arctan": Case(by_least_squares, decays, lambda: {"loss": "arctan", "f_scale": 0.25}),
    "curve_fit loss": Case(by_curve_fit, peaks, lambda: {"loss": "cauchy", "f_scale": 0.2}),
    "x_scale": Case(by_least_squares, decays, lambda: {"x_scale": [3.0, 1.0, 0.5]}),
    "x_scale per problem": Case(
        by_least_squares, decays, lambda: {"x_scale": decays().truth.abs() + 0.1}
    ),
    "bounds": Case(by_curve_fit, decays, lambda: BOX),
    "bounds lm": Case(by_curve_fit, decays, lambda: {**BOX, "method": "lm"}),
    "bounds gn": Case(by_curve_fit, decays, lambda: {**BOX, "method": "gn"}),
    "bounds per problem": Case(by_curve_fit, decays, around_start),
    "bounds one-sided": Case(
        by_least_squares,
        decays,
        lambda: {
            "x0": torch.tensor([[3.0, 0.8, 0.6]]).expand(B, 3),
            "bounds": ([-np.inf, 0.7, 0.5], np.inf),
        },
    ),
    "bounds, loss": Case(by_curve_fit, decays, lambda: {**BOX, "loss": "huber", "f_scale": 0.1}),
    "fixed": Case(
        by_curve_fit,
        decays,
        lambda: {"p0": [3.0, 0.8, 0.3], "bounds": ([-np.inf, 0.8, -9], [np.inf, 0.8, 9])},
    ),
    "fixed per problem": Case(by_curve_fit, decays, some_fixed),
    "start on bounds": Case(
        by_curve_fit,
        decays,
        lambda: {"p0": [2.0, 0.5, 0.0], "bounds": ([2.0, 0.5, 0.0], [6.0, 2.0, 2.0])},
    ),
    "sigma": Case(by_curve_fit, decays, lambda: {"sigma": SIGMA[0]}),
    "sigma per sample": Case(by_curve_fit, decays, lambda: {"sigma": SIGMA}),
    "sigma per problem": Case(
        by_curve_fit,
        decays,
        lambda: {"sigma": SIGMA[:, :1].expand(B, N), "absolute_sigma": True},
    ),
    "sigma number": Case(by_curve_fit, decays, lambda: {"sigma": 0.25, "absolute_sigma": True}),
    "mask": Case(by_curve_fit, lambda: with_gaps(decays()), lambda: {"nan_policy": "omit"}),
    "mask, sigma, loss, bounds": Case(
        by_curve_fit,
        lambda: with_gaps(decays()),
        lambda: {"nan_policy": "omit", "sigma": SIGMA, "loss": "soft_l1", **BOX},
    ),
    "poisson": Case(by_curve_fit, counts, lambda: {"likelihood": "poisson"}),
    "poisson, mask, bounds": Case(
        by_curve_fit,
        lambda: with_gaps(counts()),
        lambda: {
            "likelihood": "poisson",
            "nan_policy": "omit",
            "bounds": ([1, -2, 0.5, 1], np.inf),
        },
    ),
    "x per problem": Case(by_curve_fit, lambda: decays(x=OWN_TIMES)),
    "two variables": Case(by_curve_fit, lambda: decays(plane, 4 * draw(2, N, seed=7))),
    "two variables per problem": Case(
        by_curve_fit,
        lambda: replace(
            decays(plane, 4 * draw(B, 2, N, seed=7).movedim(1, 0)), x=4 * draw(B, 2, N, seed=7)
        ),
    ),
    "channels": Case(by_least_squares, lambda: decays(channels)),
    "channels, two models": Case(by_least_squares, lambda: decays(two_models)),
    "channels, weights": Case(
        by_lma, lambda: decays(channels), lambda: {"wvec": torch.tensor([1.0, 0.3])}
    ),
    "two models, weights": Case(
        by_gna, lambda: decays(two_models), lambda: {"wvec": torch.tensor([1.0, 0.3])}
    ),
    "channels, weights, bounds, loss": Case(
        by_lma,
        lambda: decays(channels),
        lambda: {
            "wvec": torch.tensor([1.0, 0.3]),
            "bounds": ([-9, 0.01, -9], [9, 3, 9]),
            "loss": "huber",
            "f_scale": 0.1,
        },
    ),
    "pieces": Case(pieces, decays),
    "image": Case(by_least_squares, lambda: decays(image)),
    "images": Case(by_least_squares, lambda: decays(stack_of_images), lambda: {"loss": "soft_l1"}),
    "images, weights": Case(
        by_lma, lambda: decays(image), lambda: {"wvec": torch.linspace(0.5, 2, 9)}
    ),
    "interleaved": Case(by_curve_fit, lambda: decays(interleaved), lambda: {"sigma": SIGMA}),
    "arguments": Case(arguments, decays),
    "closure": Case(closure, decays),
    "NumPy's words": Case(numpy_words, lambda: decays(shifted)),
}

DTYPES = pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=["double", "single"])


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_one_algorithm(name: str, dtype: torch.dtype) -> None:
    eager, fused = (CASES[name](engine, dtype) for engine in ("eager", "fused"))
    assert_one_algorithm(eager, fused)


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_the_first_step(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    limit = "max_iter" if case.fit in (by_lma, by_gna) else "max_nfev"
    start = case("eager", dtype, **{limit: 1})
    eager, fused = (case(engine, dtype, **{limit: 2}) for engine in ("eager", "fused"))
    assert_same_counts(eager, fused)
    step = eager.params.double() - start.params.double()
    assert (step != 0).any(-1).double().mean() > 0.01
    # what a rounding of the sums does to the solution of the normal equations
    scaled, scale = scaled_jacobian(start.result)
    condition = torch.linalg.cond(scaled) ** 2
    length = (step * scale).norm(dim=-1, keepdim=True) / scale
    limits = 64 * EPS[dtype] * (start.params.double().abs() + condition[:, None] * length)
    off = (fused.params.double() - eager.params.double()).abs()
    assert bool((off <= limits.nan_to_num(nan=torch.inf)).all()), (off / limits).max()
    # mostly far less: as if the Jacobian itself had been decomposed
    usual = EPS[dtype] * (start.params.double().abs() + condition.sqrt()[:, None] * length)
    assert (off / usual).nanmedian() <= 4, (off / usual).nanmedian()


@DTYPES
def test_default_tolerances(dtype: torch.dtype) -> None:
    # at the limit of rounding: which test is met first is chance, where it ends is not
    defaults: dict[str, Any] = (
        {"ftol": 1e-15, "xtol": 1e-9, "gtol": 1e-15}
        if dtype == DOUBLE
        else {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8}
    )
    eager, fused = (CASES["sigma"](engine, dtype, **defaults) for engine in ("eager", "fused"))
    assert torch.equal(eager.status > 0, fused.status > 0) and bool((fused.status > 0).all())
    assert (eager.nfev == fused.nfev).double().mean() > 0.9
    off = (eager.params - fused.params).abs() / eager.stderr
    assert off.max() < (1e-3 if dtype == DOUBLE else 1e-2)
    assert eager.covariance is not None and fused.covariance is not None
    assert_same_covariance(eager.covariance, fused.covariance, 1e-4 if dtype == DOUBLE else 5e-3)


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 15, 16, 17, 1000])
@DTYPES
def test_numbers_of_problems(batch: int, dtype: torch.dtype) -> None:
    data = decays(batch=batch)
    eager, fused = (Case(by_curve_fit, lambda: data)(e, dtype) for e in ("eager", "fused"))
    assert_one_algorithm(eager, fused)
    _, alone, _ = curve_fit(decay, TIMES.to(dtype), data.y[-1].to(dtype), data.start[-1].to(dtype),
                            full_output=True, **RELATIVE[dtype])  # fmt: skip
    torch.testing.assert_close(fused.covariance[-1], alone, rtol=1e-3, atol=1e-9)  # type: ignore[index]


def test_one_start_of_a_single_problem() -> None:
    data = decays(batch=1)
    found = least_squares(
        lambda p: decay(TIMES, *p) - data.y[0], data.start[0], engine="fused", **RELATIVE[DOUBLE]
    )
    batched = by_least_squares("fused", data)
    assert found.engine == "fused" and found.x.shape == (3,)
    torch.testing.assert_close(found.x, batched.params[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("samples", [1, 2, 7, 8, 9, 15, 16, 17, 33])
@DTYPES
def test_numbers_of_samples(samples: int, dtype: torch.dtype) -> None:
    # one slope: Σ x y / Σ x²
    x, y = 0.5 + draw(20, samples, seed=3), noise(20, samples)
    wanted = (x * y).sum(-1) / (x * x).sum(-1)
    for this, exact in ((x, wanted), (x[0], (x[0] * y).sum(-1) / (x[0] * x[0]).sum())):
        popt, _, result = curve_fit(
            lambda x, a: a * x, this.to(dtype), y.to(dtype), torch.ones(20, 1, dtype=dtype),
            full_output=True, engine="fused",
        )  # fmt: skip
        assert bool((result.status > 0).all())
        size = y.square().sum(-1).sqrt() / this.square().sum(-1).sqrt()
        assert bool(((popt[:, 0] - exact).abs() <= 8 * EPS[dtype] * (1 + size)).all())


@pytest.mark.parametrize(
    ("count", "dtype"),
    [*((count, DOUBLE) for count in (1, 2, 3, 4, 5, 6, 7, 10)), (2, SINGLE), (8, SINGLE)],
)
def test_numbers_of_parameters(count: int, dtype: torch.dtype) -> None:
    # linear: the normal equations' own solution and covariance
    x = torch.linspace(0, torch.pi, 37, dtype=DOUBLE)
    basis = torch.stack([torch.cos(j * x) for j in range(count)], -1)
    truth, sigma = noise(17, count), 0.1 + draw(37)
    y = truth @ basis.T + sigma * noise(17, 37, seed=5)

    def model(x: Tensor, *params: Tensor) -> Tensor:
        return torch.stack([p * torch.cos(j * x) for j, p in enumerate(params)]).sum(0)

    popt, pcov, result = curve_fit(
        model, x.to(dtype), y.to(dtype), torch.zeros(17, count, dtype=dtype), sigma.to(dtype),
        full_output=True, engine="fused",
    )  # fmt: skip
    assert bool((result.status > 0).all()) and int(result.nfev.max()) <= 4
    weighted = basis / sigma[:, None]
    wanted = torch.linalg.lstsq(weighted, (y / sigma).T).solution.T
    inverse = torch.linalg.inv(weighted.T @ weighted)
    residual = (y / sigma) - wanted @ weighted.T
    chi_square = residual.square().sum(-1) / (37 - count)
    spread = inverse.diagonal().sqrt()
    tolerance = 1e-11 if dtype == DOUBLE else 2e-3
    assert bool(((popt - wanted).abs() <= tolerance * spread).all())
    assert_same_covariance(chi_square[:, None, None] * inverse, pcov, max(tolerance, 1e-9))


@pytest.mark.parametrize(
    ("name", "batch", "dtype"),
    [
        *(("W1", 16, DOUBLE), ("W2", 40, DOUBLE), ("W3", 40, DOUBLE), ("W4", 6, DOUBLE)),
        *(("W5", 6, DOUBLE), ("gauss1d", 40, DOUBLE)),
        *(("W1", 16, SINGLE), ("W2", 40, SINGLE), ("W3", 40, SINGLE), ("W4", 6, SINGLE)),
        *(("W5", 6, SINGLE), ("gauss1d", 40, SINGLE)),
    ],
)
def test_workloads(name: str, batch: int, dtype: torch.dtype) -> None:
    workload = workloads.make(name, batch, dtype)
    options: dict[str, Any] = {"args": (workload.y,), **RELATIVE[dtype]}
    eager, fused = (
        least_squares(workload.residual, workload.start, engine=engine, **options)
        for engine in ("eager", "fused")
    )
    assert_one_algorithm(of_result(eager, "eager"), of_result(fused, "fused"))
    best = workloads.best_costs(workload)
    found = least_squares(workload.residual, workload.start, args=(workload.y,), engine="fused")
    assert bool((workloads.costs(workload, found.x) <= workloads.SOLVED * best).all())


# ---------------------------------------------------------------------------------- other truths


def test_error_bars_are_scipys() -> None:
    data = decays()
    for absolute in (False, True):
        popt, pcov, result = curve_fit(
            decay, TIMES, data.y, data.start, SIGMA[0], absolute, full_output=True, engine="fused"
        )
        assert result.engine == "fused" and bool(result.success.all())
        for row in range(8):
            wanted, covariance = scipy.optimize.curve_fit(
                lambda x, a, k, c: a * np.exp(-k * x) + c,
                TIMES.numpy(),
                data.y[row].numpy(),
                data.truth[row].numpy(),
                SIGMA[0].numpy(),
                absolute,
                ftol=1e-14,
                xtol=1e-14,
            )
            spread = np.sqrt(np.diag(covariance))
            np.testing.assert_allclose(popt[row].numpy() / spread, wanted / spread, atol=1e-5)
            scaled = np.outer(spread, spread)
            np.testing.assert_allclose(pcov[row].numpy() / scaled, covariance / scaled, atol=2e-4)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "huber", "cauchy", "arctan"])
@pytest.mark.parametrize("boxed", [False, True])
def test_solutions_are_scipys(loss: str, boxed: bool) -> None:
    data, scale = decays(), 0.25
    bounds = ([2.5, 0.5, 0.0], [4.5, 1.2, 1.0]) if boxed else (-np.inf, np.inf)
    start = torch.tensor([3.0, 0.8, 0.3]).double().expand(B, 3) if boxed else data.truth
    found = by_least_squares(
        "fused", data, x0=start, bounds=bounds, loss=loss, f_scale=scale, ftol=1e-14, xtol=1e-10
    )
    for row in range(0, B, 15):
        wanted = scipy.optimize.least_squares(
            lambda p, y: p[0] * np.exp(-p[1] * TIMES.numpy()) + p[2] - y,
            start[row].numpy(),
            args=(data.y[row].numpy(),),
            bounds=bounds,
            loss=loss,
            f_scale=scale,
            ftol=1e-14,
            xtol=1e-14,
            gtol=1e-12,
        )
        assert float(found.result.cost[row]) <= wanted.cost * (1 + 1e-9)
        if float(found.result.cost[row]) > wanted.cost * (1 - 1e-9):
            off = (found.params[row] - torch.from_numpy(wanted.x)).abs() / found.stderr[row]
            assert off.nan_to_num(0.0).max() < 1e-3


def test_counts_have_a_closed_form() -> None:
    # of a · shape(x): Σ y / Σ shape, variance a / Σ shape
    shape = torch.exp(-TIMES)
    y = torch.poisson(20 * shape.expand(30, N), generator=torch.Generator().manual_seed(0))
    popt, pcov, result = curve_fit(
        lambda x, a: a * torch.exp(-x), TIMES, y, torch.full((30, 1), 15.0).double(),
        likelihood="poisson", full_output=True, engine="fused",
    )  # fmt: skip
    assert result.engine == "fused" and bool(result.success.all())
    wanted = y.sum(-1) / shape.sum()
    torch.testing.assert_close(popt[:, 0], wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(pcov[:, 0, 0], wanted / shape.sum(), rtol=1e-9, atol=0)


def test_masked_samples_do_not_count() -> None:
    data = with_gaps(decays())
    popt, pcov, _ = curve_fit(
        decay, TIMES, data.y, data.start, SIGMA, nan_policy="omit", full_output=True, engine="fused"
    )
    for row in range(5):
        used = ~data.y[row].isnan()
        wanted, covariance = scipy.optimize.curve_fit(
            lambda x, a, k, c: a * np.exp(-k * x) + c,
            *(v.numpy() for v in (TIMES[used], data.y[row][used], data.truth[row])),
            SIGMA[row][used].numpy(),
            ftol=1e-14,
            xtol=1e-14,
        )
        spread = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(popt[row].numpy() / spread, wanted / spread, atol=1e-5)
        np.testing.assert_allclose(pcov[row].numpy(), covariance, rtol=1e-3, atol=1e-9)


# ------------------------------------------------------------------------------------------- laws

Arrays = dict[str, Tensor]


def bits(params: Tensor, y: Tensor, **options: Any) -> Arrays:
    """All that a fit gives, to be compared bit for bit."""
    popt, pcov, result = curve_fit(
        decay, TIMES.to(y), y, params, full_output=True, engine="fused", **options
    )
    assert result.engine == "fused"
    names = ("status", "nfev", "njev", "cost", "covariance_status")
    return {"popt": popt, "pcov": pcov, **{name: result[name] for name in names}}


def assert_same_bits(one: Arrays, other: Arrays) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def rows(found: Arrays, which: Any) -> Arrays:
    return {name: value[which] for name, value in found.items()}


LAWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "box, loss": {"bounds": ([0, 0.5, -9], [9, 1.2, 9]), "loss": "huber", "f_scale": 0.1},
    "lm": {"method": "lm"},
}


def inside(start: Tensor, options: dict[str, Any]) -> Tensor:
    if "bounds" not in options:
        return start
    lower, upper = (torch.tensor(b, dtype=start.dtype) for b in options["bounds"])
    return start.clamp(lower, upper)


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=["double", "single"])
@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_problem_does_not_know_its_place(name: str, dtype: torch.dtype, data: Any) -> None:
    all_data, options = decays(batch=40).to(dtype), LAWS[name]
    y, start = all_data.y, inside(all_data.start, options)
    whole = bits(start, y, **options)
    order = data.draw(st.permutations(range(40)).map(lambda p: p[: data.draw(st.integers(2, 40))]))
    assert_same_bits(bits(start[order], y[order], **options), rows(whole, order))


DAMAGE: dict[str, Callable[[Tensor, Tensor], object]] = {
    "NaN start": lambda start, y: start.fill_(torch.nan),
    "infinite start": lambda start, y: start.fill_(torch.inf),
    "huge start": lambda start, y: start.fill_(1e30),
    "steep start": lambda start, y: start.select(-1, 1).fill_(-1e3),
    "NaN data": lambda start, y: y.fill_(torch.nan),
    "infinite sample": lambda start, y: y.select(-1, 3).fill_(-torch.inf),
    "huge data": lambda start, y: y.fill_(1e30),
    "constant data": lambda start, y: y.fill_(1.0),
    "no data": lambda start, y: y.zero_(),
    "dead parameter": lambda start, y: start.select(-1, 0).zero_(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=["double", "single"])
def test_neighbours_do_not_matter(damage: str, dtype: torch.dtype) -> None:
    data = decays(batch=35).to(dtype)
    clean = bits(data.start, data.y)
    sick = torch.arange(35) % 3 == 1
    start, y = data.start.clone(), data.y.clone()
    some, ys = start[sick], y[sick]
    DAMAGE[damage](some, ys)
    start[sick], y[sick] = some, ys
    found = bits(start, y)
    assert_same_bits(rows(found, ~sick), rows(clean, ~sick))
    eager = curve_fit(decay, TIMES.to(dtype), y, start, full_output=True, engine="eager")[2]
    assert torch.equal(eager.success[sick], found["status"][sick] > 0)


@pytest.mark.parametrize("chunk", [1, 7, 16, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_do_not_matter(
    chunk: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = decays(batch=53)
    whole = bits(data.start, data.y)
    monkeypatch.setattr(driver, "chunk_size", lambda *_: chunk)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same_bits(bits(data.start, data.y), whole)
    finally:
        torch.set_num_threads(before)


UNITS = [*((DOUBLE, e) for e in (-300, -30, -3, 20, 250)), (SINGLE, -15), (SINGLE, 15)]


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("dtype", "exponent"), UNITS)
def test_units_that_are_powers_of_two(name: str, dtype: torch.dtype, exponent: int) -> None:
    unit, data = 2.0**exponent, decays(batch=40).to(dtype)
    options = dict(LAWS[name])
    start = inside(data.start, options)
    wanted = bits(start, data.y, **options)
    factor = torch.tensor([unit, 1.0, unit], dtype=dtype)
    if "bounds" in options:
        options["bounds"] = tuple(torch.tensor(b, dtype=dtype) * factor for b in options["bounds"])
        options["f_scale"] = options["f_scale"] * unit
    found = bits(start * factor, data.y * unit, **options)
    found["popt"] = found["popt"] / factor
    found["pcov"] = found["pcov"] / (factor[:, None] * factor)
    found["cost"] = found["cost"] / unit**2
    assert_same_bits(found, wanted)


@pytest.mark.parametrize(
    ("exponent", "time"),
    [(-70, 0), (-66, 50), (-62, 0), (-50, 0), (-40, -50), (0, 65), (40, 0), (50, 50), (62, 0)],
)
def test_single_precision_in_units_of_any_size(exponent: int, time: int) -> None:
    # squares of 1e-15 or 1e18 are still numbers in float32, their products with tolerances are not
    unit = 2.0**exponent
    data = decays().to(SINGLE)
    factor = torch.tensor([unit, 2.0**-time, unit])
    data = replace(data, x=data.x * 2.0**time, y=data.y * unit, start=data.start * factor)
    for options in ({}, {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8}):
        eager, fused = (by_curve_fit(engine, data, **options) for engine in ("eager", "fused"))
        assert torch.equal(fused.status > 0, eager.status > 0)
        assert bool((fused.status > 0).all())
        off = (fused.params - eager.params) / decays().truth.abs() / factor
        assert off.abs().max() < 1e-3


# --------------------------------------------------------------------------------------- failures


def flexible(x: Tensor, a: Any, k: Any, c: Any, kind: Tensor) -> Tensor:
    """Decays, of which some explode, leave their domain, or do not depend on a parameter."""
    power = torch.where(kind == 1, 300 * k.abs(), torch.where(kind == 2, 0.0, -k))
    level = torch.where(kind == 3, torch.log(c), torch.where(kind == 4, torch.sqrt(c - 1), c))
    value: Tensor = a * torch.exp(power * x) + level
    return value


def broken(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Starts, data and kinds: every row that can go wrong, thrice, among sound ones."""
    data = decays(batch=48)
    start, y = data.start.clone(), data.y.clone()
    kind = torch.zeros(48, 1, dtype=DOUBLE)
    for first in (0, 16, 32):
        start[first + 1, 0] = torch.nan
        start[first + 2] = torch.inf
        start[first + 3, 1] = -torch.inf
        y[first + 4, 3] = torch.inf
        y[first + 5, 7] = torch.nan
        kind[first + 6] = 1
        kind[first + 7] = 2
        kind[first + 8], start[first + 8, 2], y[first + 8] = 3, 0.5, y[first + 8] - 9
        kind[first + 9], start[first + 9, 2], y[first + 9] = 4, 1.2, y[first + 9] - 5
        start[first + 10] = 0
        y[first + 11] = 0
        start[first + 12, 1] = -400
        y[first + 13] *= 1e18
        start[first + 14, 1] = 1e4
    return start.to(dtype), y.to(dtype), kind.to(dtype)


OPEN = torch.tensor([7, 10, 13])
"""Rows of 16 whose way is decided by rounding: no rank, no gradient, sizes of 1e18."""


@pytest.mark.parametrize(
    ("method", "loss"), [("trf", "linear"), ("trf", "cauchy"), ("lm", "linear"), ("lm", "cauchy")]
)
@DTYPES
def test_failures_have_the_same_status(method: str, loss: str, dtype: torch.dtype) -> None:
    start, y, kind = broken(dtype)

    def residual(p: Tensor, y: Tensor, kind: Tensor) -> Tensor:
        a, k, c = columns(p)
        return flexible(TIMES.to(p), a, k, c, kind) - y

    options: dict[str, Any] = {"method": method, "loss": loss, "max_nfev": 60, **RELATIVE[dtype]}
    eager, fused = (
        least_squares(residual, start, args=(y, kind), engine=engine, **options)
        for engine in ("eager", "fused")
    )
    assert fused.engine == "fused"
    met = set(eager.status.tolist())
    assert -1 in met and met & {0, -3} and max(met) > 0
    sure = torch.ones(48, dtype=torch.bool)
    for first in (0, 16, 32):
        sure[first + OPEN] = False
    assert torch.equal(fused.status[sure], eager.status[sure])
    assert torch.equal(fused.nfev[sure], eager.nfev[sure])
    assert bool((fused.status[[1, 2, 3, 4, 5]] == -1).all())
    unmoved = fused.status == -1
    torch.testing.assert_close(fused.x[unmoved], start[unmoved], rtol=0, atol=0, equal_nan=True)
    good = sure & fused.success
    torch.testing.assert_close(
        fused.x[good], eager.x[good], rtol=0.02 if dtype == SINGLE else 1e-5, atol=1e-3
    )


def test_guarded_branches() -> None:
    # what a condition keeps out is not finite, and so are its derivatives
    x = torch.linspace(0, 2, 12, dtype=DOUBLE)

    def residual(p: Tensor, y: Tensor) -> Tensor:
        b, c = p[:, :1], p[:, 1:]
        slope = torch.where(b > 0, torch.sqrt(b) * x, 0.0)
        return slope + torch.where(b != 0, x * (1 / b) * 1e-3, 0.0) + c + b - y

    start = torch.tensor([[-1.0, 1.0], [2.0, 0.5], [-0.5, 1.0], [1.0, 1.0], [0.0, 1.0]]).double()
    y = torch.stack([0 * x + 1.5, 1.2 * x + 1, 0.5 * x, 0 * x, 0 * x + 1]) + 0.01 * torch.sin(
        31 * x
    )
    eager, fused = (
        least_squares(residual, start, args=(y,), engine=engine) for engine in ("eager", "fused")
    )
    assert torch.equal(eager.status, fused.status) and int(fused.success.sum()) >= 4
    # some end in a valley as flat as rounding
    torch.testing.assert_close(
        fused.cost[fused.success], eager.cost[fused.success], rtol=1e-5, atol=0
    )


def test_a_nan_that_a_maximum_meets_stays_one() -> None:
    x = torch.linspace(0, 2, 10, dtype=DOUBLE)
    start = torch.tensor([[3.0, 1.0], [0.1, 1.0], [2.0, 0.0]]).double()
    y = torch.stack([-0.5 * x + 1, 0 * x + 1, 0.2 * x + 1]) + 0.01 * torch.sin(37 * x)
    for pair in (
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.maximum(b, a),
        lambda a, b: -torch.minimum(-a, -b),
        lambda a, b: a.clamp(min=-5.0),
    ):

        def residual(p: Tensor, y: Tensor, pair: Any = pair) -> Tensor:
            value: Tensor = pair(torch.sqrt(p[:, :1]), 0 * x - 5) * x + p[:, 1:] - y
            return value

        eager, fused = (
            least_squares(residual, start, args=(y,), engine=engine)
            for engine in ("eager", "fused")
        )
        assert eager.status.tolist()[0] == -3
        assert torch.equal(eager.status, fused.status)


def test_nothing_finite_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="not finite in the initial point"):
        by_least_squares("fused", decays(), x0=torch.full((B, 3), torch.nan).double())


@pytest.mark.parametrize("samples", [1, 2])
def test_more_parameters_than_samples(samples: int) -> None:
    data = decays(x=TIMES[2 : 2 + samples])
    outcomes = []
    for engine in ("eager", "fused"):
        _, pcov, result = curve_fit(
            decay, data.x, data.y, data.start, full_output=True, engine=engine
        )
        assert result.engine == engine
        assert bool(torch.isinf(pcov).any(-1).any(-1).all())
        assert bool((result.cost[result.success] < 1e-12).all())
        outcomes.append(result)
    eager, fused = outcomes
    assert torch.equal(eager.covariance_status, fused.covariance_status)
    assert (eager.success == fused.success).double().mean() >= 0.99


# ---------------------------------------------------------------------------------------- history


@pytest.mark.parametrize("max_iter", [1, 2, 3, 60])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["lma lev", "lma marq", "gna", "channels, weights, bounds, loss"])
def test_the_list_of_iterates(name: str, keep: bool, max_iter: int) -> None:
    case = CASES[name]
    data = case.data()
    solver = lsq_gna_parallel if case.fit is by_gna else lsq_lma_parallel

    def residual(p: Tensor, y: Tensor) -> Tensor:
        value: Tensor = data.model(data.x, *columns(p)) - y
        return value if value.ndim == 3 else value[:, None]

    start = data.start.clone()
    start[5, 0] = torch.nan
    options = {**case.options(), "max_iter": max_iter, "history": keep, "full_output": True}
    if isinstance(options.get("wvec"), Tensor):
        options["wvec"] = options["wvec"].double()
    lists, results = [], []
    for engine in ("eager", "fused"):
        iterates, result = solver(start, residual, args=(data.y,), engine=engine, **options)
        assert result.engine == engine, result.engine_reason
        lists.append(iterates)
        results.append(result)
    eager, fused = lists
    assert len(eager) == len(fused) <= max_iter
    assert len(fused) == (
        min(max_iter, 2) if not keep else max_iter if max_iter < 4 else len(eager)
    )
    assert torch.equal(results[0].status, results[1].status)
    assert torch.equal(results[0].nfev, results[1].nfev)
    torch.testing.assert_close(fused[0], start, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(fused[-1], results[1].x, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(eager, fused, strict=True):
        assert other.shape == start.shape and other.dtype == start.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert bool((other[5].isnan() == start[5].isnan()).all())


def test_the_list_of_iterates_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = decays()

    def path() -> list[Tensor]:
        found: list[Tensor] = lsq_lma_parallel(
            data.start,
            lambda p, y: (decay(TIMES, *columns(p)) - y)[:, None],
            args=(data.y,),
            engine="fused",
        )
        return found

    whole = path()
    monkeypatch.setattr(fused_run, "HISTORY_NUMBERS", 7 * 3 * 100)
    parts = path()
    assert len(parts) == len(whole)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_the_list_of_iterates_of_one_problem() -> None:
    data = decays(batch=1)
    eager, fused = (
        lsq_lma(data.start[0], lambda p: decay(TIMES, *p) - data.y[0], engine=engine)
        for engine in ("eager", "fused")
    )
    assert len(eager) == len(fused) > 3 and fused[-1].shape == (3,)
    for one, other in zip(eager, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("length", [1.0, 0.6])
@pytest.mark.parametrize("extra", [{}, {"bounds": ([0, 0.3, -1], [9, 2, 3])}, {"loss": "soft_l1"}])
def test_gradient_descent(length: float, extra: dict[str, Any]) -> None:
    data = decays()
    start = data.start.clamp(min=0.3) if "bounds" in extra else data.start
    start[:, 1] = start[:, 1].clamp(max=2.0)
    options: dict[str, Any] = {"l": length, "max_iter": 40, "full_output": True, **extra}

    def residual(p: Tensor, y: Tensor) -> Tensor:
        return (decay(TIMES, *columns(p)) - y)[:, None]

    wanted, eager = lsq_gna_parallel(start, residual, args=(data.y,), engine="eager", **options)
    found, fused = gradient_descent_parallel(start, residual, args=(data.y,), **options)
    assert fused.engine == "fused" and len(found) == len(wanted) > 5
    assert torch.equal(eager.status, fused.status)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
    alone, result = gradient_descent(start[0], lambda p: decay(TIMES, *p) - data.y[0], **options)
    assert result.engine == "fused"
    torch.testing.assert_close(alone[-1], found[len(alone) - 1][0], rtol=1e-6, atol=1e-8)
