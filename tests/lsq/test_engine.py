"""Which engine runs, what is said about it, which kernels are kept, and refinement in float64."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize import curve_fit, least_squares
from torchimize.errors import NotFusedError
from torchimize.functions import (
    gradient_descent_parallel,
    lsq_gna,
    lsq_gna_parallel,
    lsq_lma,
    lsq_lma_parallel,
)
from torchimize.kernel import driver
from torchimize.lsq.fused import kernels
from torchimize.lsq.fused.plan import MAX_PARAMS

ENGINES = ("eager", "fused")
X = torch.linspace(0.0, 4.0, 20, dtype=torch.float64)
RATES = torch.linspace(0.4, 1.6, 30, dtype=torch.float64)[:, None]
Y = 3 * torch.exp(-RATES * X) + 0.02 * torch.cos(97 * X + RATES)
START = torch.tensor([2.0, 0.7], dtype=torch.float64)


def decay(x: Any, a: Any, k: Any) -> Any:
    return a * torch.exp(-k * x)


def residual(p: Tensor, y: Tensor) -> Tensor:
    return p[:, :1] * torch.exp(-p[:, 1:] * X.to(p)) - y


def channels(p: Tensor, y: Tensor) -> Tensor:
    return residual(p, y)[:, None]


def fit(engine: str = "auto", model: Callable[..., Any] = decay, **options: Any) -> Any:
    p0 = options.pop("p0", START)
    y = options.pop("y", Y)
    x = options.pop("x", X)
    return curve_fit(model, x, y, p0, full_output=True, engine=engine, **options)[2]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The kernels that are compiled in a test, none of them at hand before."""
    found: list[Any] = []

    class Counted(driver.Kernel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr(driver, "Kernel", Counted)
    monkeypatch.setattr(kernels, "_KERNELS", type(kernels._KERNELS)())
    yield found


# ------------------------------------------------------------------------------------ the choice


def test_the_engine_is_told() -> None:
    auto, fused, eager = (fit(engine) for engine in ("auto", "fused", "eager"))
    assert (auto.engine, fused.engine, eager.engine) == ("fused", "fused", "eager")
    assert eager.engine_reason == "engine='eager' was asked for"
    name = driver.this_processor().name
    assert fused.engine_reason == auto.engine_reason
    assert re.fullmatch(rf"compiled for {name}, \d+ problems per vector", fused.engine_reason)
    found = least_squares(residual, START.expand(30, 2), args=(Y,))
    assert found.engine == "fused"


@pytest.mark.parametrize("solver", [lsq_lma_parallel, lsq_gna_parallel])
def test_the_engine_of_the_functions(solver: Callable[..., Any]) -> None:
    for engine, wanted in (("auto", "fused"), ("fused", "fused"), ("eager", "eager")):
        _, result = solver(
            START.expand(30, 2), channels, args=(Y,), full_output=True, engine=engine
        )
        assert result.engine == wanted


@pytest.mark.parametrize("solver", [lsq_lma, lsq_gna])
def test_the_engine_of_the_functions_of_one_problem(solver: Callable[..., Any]) -> None:
    def alone(p: Tensor) -> Tensor:
        return p[0] * torch.exp(-p[1] * X) - Y[0]

    for engine, wanted in (("auto", "fused"), ("fused", "fused"), ("eager", "eager")):
        _, result = solver(START, alone, full_output=True, engine=engine)
        assert result.engine == wanted


def test_gradient_descent_runs_in_a_kernel_too() -> None:
    _, result = gradient_descent_parallel(START.expand(30, 2), channels, args=(Y,), l=0.5,
                                          full_output=True)  # fmt: skip
    assert result.engine == "fused"


@pytest.mark.parametrize("engine", ["nonsense", "", None, 1, "Fused", ["fused"]])
def test_an_unknown_engine(engine: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: fit(engine),
        lambda: least_squares(residual, START.expand(30, 2), args=(Y,), engine=engine),
        lambda: lsq_lma_parallel(START.expand(30, 2), channels, args=(Y,), engine=engine),
        lambda: lsq_gna_parallel(START.expand(30, 2), channels, args=(Y,), engine=engine),
        lambda: lsq_lma(START, lambda p: p - 1, engine=engine),
        lambda: lsq_gna(START, lambda p: p - 1, engine=engine),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="engine"):
            call()


def sorted_model(x: Tensor, a: Tensor, k: Tensor) -> Tensor:
    return torch.sort(a * torch.exp(-k * x)).values


def frozen_number(x: Tensor, a: Tensor, k: Tensor) -> Tensor:
    return float(a.detach()[0, 0]) * torch.exp(-k * x) + 0 * a


def many(x: Tensor, *params: Tensor) -> Tensor:
    return torch.stack([p * torch.cos(j * x) for j, p in enumerate(params)]).sum(0)


def jacobian(x: Tensor, a: Tensor, k: Tensor) -> Tensor:
    fall = torch.exp(-k * x)
    return torch.stack([fall, -a * x * fall], -1)


def user_loss(z: Tensor) -> Tensor:
    return torch.stack([z, torch.ones_like(z), torch.zeros_like(z)])


OBSTACLES: dict[str, tuple[dict[str, Any], str]] = {
    "callback": ({"callback": lambda state: None}, "callback"),
    "jacobian": ({"jac": jacobian}, "Jacobian is the user's own"),
    "differences": ({"jac": "3-point"}, "jac='3-point'"),
    "covariances": ({"sigma": torch.eye(20).double()}, "covariance matri"),
    "loss": ({"loss": user_loss}, "loss is the user's own"),
    "sort": ({"model": sorted_model}, r"aten\.sort"),
    "too many": (
        {"model": many, "p0": torch.zeros(MAX_PARAMS + 1).double(), "x": torch.linspace(0, 3, 40)
         .double(), "y": torch.linspace(1, 2, 40).double().expand(3, 40)},
        f"more than {MAX_PARAMS} parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stood_in_the_way_is_named(name: str) -> None:
    options, words = OBSTACLES[name]
    with pytest.raises(NotFusedError, match=words):
        fit("fused", **dict(options))
    fallen_back = fit("auto", **dict(options))
    assert fallen_back.engine == "eager"
    with pytest.raises(NotFusedError) as error:
        fit("fused", **dict(options))
    assert fallen_back.engine_reason == str(error.value)
    eager = fit("eager", **dict(options))
    assert torch.equal(eager.x, fallen_back.x) and bool(eager.success.all())


def test_values_that_leave_torch_are_no_trace() -> None:
    with pytest.raises(NotFusedError):
        fit("fused", model=frozen_number)
    assert fit("auto", model=frozen_number).engine == "eager"


def test_no_problems() -> None:
    with pytest.raises(NotFusedError, match="no problems"):
        fit("fused", y=Y[:0])
    result = fit("auto", y=Y[:0])
    assert result.engine == "eager" and result.x.shape == (0, 2)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise driver.NoCompilerError("llvmlite cannot be imported: no module")

    monkeypatch.setattr(driver, "this_processor", missing)
    monkeypatch.setattr(kernels, "_KERNELS", type(kernels._KERNELS)())
    with pytest.raises(NotFusedError, match="llvmlite"):
        fit("fused")
    result = fit("auto")
    assert result.engine == "eager" and "llvmlite" in result.engine_reason
    with pytest.raises(NotFusedError, match="llvmlite"):
        fit("auto", x=X.float(), y=Y.float(), p0=START.float(), refine=True)


def test_llvmlite_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llvmlite", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, name, None)
    driver._llvm.cache_clear()
    driver.this_processor.cache_clear()
    monkeypatch.setattr(kernels, "_KERNELS", type(kernels._KERNELS)())
    try:
        with pytest.raises(NotFusedError, match="llvmlite cannot be imported"):
            fit("fused")
        assert fit("auto").engine == "eager"
    finally:
        monkeypatch.undo()
        driver._llvm.cache_clear()
        driver.this_processor.cache_clear()
    assert fit("auto").engine == "fused"


# ---------------------------------------------------------------------------- kernels at hand


def test_the_same_structure_is_compiled_once(compiled: list[Any]) -> None:
    fit("fused")
    count = len(compiled)
    assert count == 1, "one kernel for the fits and their covariances"
    fit("fused", y=Y.flip(0))
    fit("fused", y=Y[:7, :11], x=X[:11])
    fit("fused", y=Y[:, 3:] * 2, x=X[3:] + 0.5)
    fit("fused", p0=START.expand(30, 2) * 1.1)
    fit("fused", ftol=1e-6, xtol=1e-5, gtol=None, max_nfev=17)
    fit("fused", model=lambda x, a, k: a * torch.exp(-k * x))
    fit("fused", model=lambda x, a, k: a * np.exp(-k * x))
    assert len(compiled) == count
    fit("fused", sigma=torch.full((20,), 0.1).double())
    assert len(compiled) == count + 1
    fit("fused", sigma=torch.linspace(0.1, 0.2, 20).double())
    fit("fused", sigma=0.3)
    assert len(compiled) == count + 1
    fit("fused", x=X.float(), y=Y.float(), p0=START.float())
    assert len(compiled) > count + 1


def test_numbers_that_change_from_call_to_call(compiled: list[Any]) -> None:
    def shifted(offset: float, factor: float) -> Any:
        # a number in an expression, and one in a tensor
        grid = X * factor
        return fit("fused", model=lambda x, a, k: a * torch.exp(-k * grid) + offset, y=Y)

    first = shifted(0.37, 1.0)
    for offset, factor in ((0.37, 1.0), (0.11, 1.3), (-0.2, 0.7), (0.05, 2.9)):
        found = shifted(offset, factor)
        wanted = fit("eager", x=X * factor, y=Y - offset)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-7, atol=1e-9)
    # hard covariances may want a look of their own, but the fits have one kernel
    assert sum(any(o.name == "nfev" for o in k.machine.outputs) for k in compiled) == 1
    assert not torch.equal(found.x, first.x)


def test_numbers_of_a_formula_are_part_of_the_kernel(compiled: list[Any]) -> None:
    for power in (1, 2, 3):
        found = fit("fused", model=lambda x, a, k, n=power: a * torch.exp(-k * x**n))
        wanted = fit("eager", model=lambda x, a, k, n=power: a * torch.exp(-k * x**n))
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-6, atol=1e-8)
        assert found.engine == "fused"


@pytest.mark.parametrize("values", [(0.0, -0.0), (1.0, 2.0), (0.5, 0.25), (3.0, -3.0)])
def test_kernels_of_different_numbers_are_different(values: tuple[float, float]) -> None:
    # atan2 tells 0 from −0
    y = torch.linspace(2, 3, 8, dtype=torch.float64).expand(5, 8)
    for value in values:
        side = torch.full((8,), value, dtype=torch.float64)

        def model(x: Tensor, a: Tensor, side: Tensor = side, value: float = value) -> Tensor:
            return a + torch.atan2(side, a * x - 20) + torch.atan2(torch.tensor(value), a * x - 20)

        x = torch.linspace(1, 2, 8, dtype=torch.float64)
        eager, fused = (fit(e, model=model, x=x, y=y, p0=[1.5]) for e in ("eager", "fused"))
        torch.testing.assert_close(fused.x, eager.x, rtol=1e-9, atol=1e-12)


def test_data_may_change_between_calls(compiled: list[Any]) -> None:
    grid, y = X.clone(), Y.clone()
    first = fit("fused", model=lambda x, a, k: decay(grid, a, k), y=y)
    grid *= 2
    second = fit("fused", model=lambda x, a, k: decay(grid, a, k), y=y)
    torch.testing.assert_close(second.x[:, 1], first.x[:, 1] / 2, rtol=1e-7, atol=0)
    y *= 3
    third = fit("fused", model=lambda x, a, k: decay(grid, a, k), y=y)
    torch.testing.assert_close(third.x[:, 0], 3 * second.x[:, 0], rtol=1e-7, atol=0)
    assert len(compiled) == 1


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("outlier", [0.0, 1e10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_a_function_closes_over_may_change_a_little(
    dtype: torch.dtype, outlier: float, engine: str
) -> None:
    # one function, called for one problem after the other, as in a loop over single fits
    x = X.to(dtype)
    plain = 3 * torch.exp(-1.2 * x)
    plain[7] += outlier
    now: dict[str, Any] = {"offset": 0.0, "y": plain, "x": x}

    def residual(p: Tensor) -> Tensor:
        value: Tensor = p[0] * torch.exp(-p[1] * now["x"]) + now["offset"] - now["y"]
        return value

    def found(function: Callable[..., Any]) -> Tensor:
        start = torch.tensor([2.0, 1.0], dtype=dtype)
        # an outlier's residual is large, and does not count
        result = least_squares(
            function,
            start,
            engine=engine,
            ftol=1e-12,
            xtol=1e-9,
            loss="arctan" if outlier else "linear",
        )
        assert result.engine == engine
        solution: Tensor = result.x
        return solution

    changes: list[dict[str, Any]] = [
        {},
        *({"offset": o} for o in (1e-5, 3e-5, 1e-4, 1e-3)),
        {"offset": 0.0, "y": plain + 5e-5 * torch.cos(3 * x)},
        {"x": x * (1 + 3e-5)},
        {"y": plain * (1 + 1e-6)},
    ]
    for change in changes:
        now.update(change)
        assert torch.equal(found(residual), found(lambda p: residual(p))), change
    now["y"].add_(1e-4)
    assert torch.equal(found(residual), found(lambda p: residual(p)))


def test_options_that_change_the_code(compiled: list[Any]) -> None:
    plain = fit("fused")
    box = fit("fused", bounds=([0, 0], [2.5, 9]))
    fixed = fit("fused", bounds=([0, 0.7], [9, 0.7]))
    robust = fit("fused", loss="cauchy")
    sharper = fit("fused", loss="cauchy", f_scale=0.01)
    assert bool((plain.x[:, 0] > 2.5).all()) and bool((box.x[:, 0] <= 2.5).all())
    assert bool((fixed.x[:, 1] == 0.7).all())
    assert not torch.equal(robust.x, sharper.x) and not torch.equal(robust.x, plain.x)


def test_the_oldest_kernels_go(compiled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "KEPT_KERNELS", 1)
    fit("fused")
    fit("fused", sigma=0.1)
    assert len(kernels._KERNELS) == 1
    count = len(compiled)
    fit("fused", sigma=0.1)
    assert len(compiled) == count
    fit("fused")
    assert len(compiled) == count + 1 and len(kernels._KERNELS) == 1


def test_fits_in_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_KERNELS", type(kernels._KERNELS)())
    monkeypatch.setattr(kernels, "KEPT_KERNELS", 2)
    wanted = {k: fit("eager", y=Y * k).x for k in range(1, 4)}
    ready = threading.Barrier(6)

    def work(number: int) -> tuple[int, Tensor]:
        ready.wait()
        scale = 1 + number % 3
        options: dict[str, Any] = {"sigma": 0.1} if number % 2 else {}
        for _ in range(3):
            found: Tensor = fit("fused", y=Y * scale, **options).x
        return scale, found

    with ThreadPoolExecutor(6) as pool:
        for scale, found in pool.map(work, range(6)):
            torch.testing.assert_close(found, wanted[scale], rtol=1e-6, atol=1e-8)


# -------------------------------------------------------------------------------------- refine


def hard() -> tuple[Tensor, Tensor, Tensor]:
    """Two decays of nearly the same rate: float32 leaves few digits."""
    x = torch.linspace(0, 6, 40, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([3.0, 0.5, 2.0, 1.2]).double() * (
        1 + 0.1 * torch.rand(25, 4, generator=generator, dtype=torch.float64)
    )
    y = two_decays(x, *truth[:, :, None].unbind(1))
    y = y + 1e-3 * torch.randn(25, 40, generator=generator, dtype=torch.float64)
    return x.float(), y.float(), (truth * 1.1).float()


def two_decays(x: Any, a: Any, k: Any, b: Any, m: Any) -> Any:
    return a * torch.exp(-k * x) + b * torch.exp(-m * x)


def by_least_squares(dtype: torch.dtype, **options: Any) -> Any:
    x, y, start = (v.to(dtype) for v in hard())
    return least_squares(
        lambda p, y: two_decays(x, *p[:, :, None].unbind(1)) - y, start, args=(y,), **options
    )


@pytest.mark.parametrize("face", ["curve_fit", "least_squares"])
@pytest.mark.parametrize("method", ["trf", "lm"])
def test_refined_fits_are_those_of_double_precision(face: str, method: str) -> None:
    def found(dtype: torch.dtype, **options: Any) -> Any:
        options = {"ftol": 1e-15, "xtol": 1e-10, "gtol": 1e-15, "method": method, **options}
        if face == "least_squares":
            return by_least_squares(dtype, **options)
        x, y, start = (v.to(dtype) for v in hard())
        return fit(model=two_decays, x=x, y=y, p0=start, **options)

    exact = found(torch.float64)
    coarse = found(torch.float32)
    refined = found(torch.float32, refine=True)
    assert refined.engine == "fused" and refined.x.dtype == torch.float32
    assert bool(refined.success.all())
    ulp = 2.0**-23 * exact.x.abs()
    assert bool(((refined.x.double() - exact.x).abs() <= 0.6 * ulp).all())
    assert ((coarse.x.double() - exact.x).abs() / ulp).max() > 5, "float32 was good enough"
    torch.testing.assert_close(refined.cost, exact.cost, rtol=1e-7, atol=0)
    assert bool((refined.nfev > coarse.nfev).all() and (refined.njev > coarse.njev).all())
    if face == "curve_fit":
        assert refined.pcov.dtype == torch.float32
        torch.testing.assert_close(refined.pcov.double(), exact.pcov, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"bounds": ([0, 0, 0, 1.0], [9, 9, 9, 1.25])},
        {"bounds": ([0, 0.55, 0, 0], [9, 0.55, 9, 9])},
        {"loss": "huber", "f_scale": 1e-3},
        {"x_scale": [3.0, 0.5, 2.0, 1.0]},
    ],
)
def test_refinement_with_all_that_a_fit_can_have(options: dict[str, Any]) -> None:
    options = {"ftol": 1e-15, "xtol": 1e-10, "gtol": 1e-15, **options}
    x, y, start = hard()
    if "bounds" in options:
        lower, upper = (torch.tensor(b) for b in options["bounds"])
        options["bounds"] = (lower, upper)
        start = torch.minimum(torch.maximum(start, lower), upper)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    y = torch.where(mask, torch.nan, y)
    sigma = torch.linspace(0.5, 1.5, 40)
    more = {"nan_policy": "omit", **options}
    doubled: dict[str, Any]
    doubled = {k: tuple(b.double() for b in v) if k == "bounds" else v for k, v in more.items()}
    exact = fit(
        model=two_decays, x=x.double(), y=y.double(), p0=start.double(), sigma=sigma.double(),
        **doubled,
    )  # fmt: skip
    refined = fit(model=two_decays, x=x, y=y, p0=start, sigma=sigma, refine=True, **more)
    assert refined.engine == "fused" and refined.x.dtype == torch.float32
    both = refined.success & exact.success
    assert both.double().mean() > 0.9
    # weights 1/σ are rounded to float32
    spread = exact.stderr.nan_to_num(posinf=0.0)
    off = (refined.x.double() - exact.x).abs() - 2.0**-23 * exact.x.abs()
    assert bool((off[both] <= 1e-3 * spread[both]).all())
    if "bounds" in more:
        assert bool((refined.x >= lower).all() and (refined.x <= upper).all())


def test_refinement_of_double_precision_does_nothing() -> None:
    plain, refined = by_least_squares(torch.float64), by_least_squares(torch.float64, refine=True)
    assert torch.equal(plain.x, refined.x) and torch.equal(plain.nfev, refined.nfev)
    eager = by_least_squares(torch.float64, refine=True, engine="eager")
    assert eager.engine == "eager"


@pytest.mark.parametrize("engine", ["auto", "eager", "fused"])
def test_refinement_that_cannot_be(engine: str) -> None:
    options = {"callback": lambda state: None} if engine != "eager" else {}
    with pytest.raises(NotFusedError, match="callback" if options else "refine"):
        by_least_squares(torch.float32, refine=True, engine=engine, **options)


def test_refinement_of_fits_that_fail() -> None:
    x, y, start = hard()
    start[3, 0], y[5, 2] = torch.nan, torch.inf
    refined = fit(model=two_decays, x=x, y=y, p0=start, refine=True)
    assert refined.status[3] == refined.status[5] == -1
    assert bool(refined.x[3, 0].isnan()) and torch.equal(refined.x[5], start[5])
    assert int(refined.success.sum()) == 23


# ------------------------------------------------------------------- what a second reader found


@pytest.mark.parametrize("batch", [1, 50])
def test_a_limit_that_was_not_met_before_is_not_forgotten(batch: int) -> None:
    # nothing at the start tells one limit from the other
    t = torch.linspace(0, 4, 40, dtype=torch.float64)

    def residual(p: Tensor, limit: float) -> Tensor:
        return torch.clamp(p[:, :1] * t, max=limit) - torch.clamp(3 * t, max=6.0)

    start = torch.ones(batch, 1, dtype=torch.float64)
    loose = least_squares(residual, start, args=(100.0,))
    tight = least_squares(residual, start, args=(6.0,))
    slope = (t @ torch.clamp(3 * t, max=6.0)) / (t @ t)
    torch.testing.assert_close(loose.x, slope.expand(batch, 1), rtol=1e-6, atol=0)
    torch.testing.assert_close(tight.x, torch.full_like(start, 3.0), rtol=1e-6, atol=0)


def test_single_precision_with_parameters_of_very_different_size() -> None:
    t = torch.linspace(0, 4e4, 40)
    start = torch.tensor([[2.5e4, 0.6e-4]]).expand(8, 2)
    y = 3.3e4 * torch.exp(-0.75e-4 * t) + 100 * torch.sin(37 * torch.arange(40.0))

    def residual(p: Tensor, y: Tensor) -> Tensor:
        return p[:, :1] * torch.exp(-p[:, 1:] * t) - y

    y = y.expand(8, 40).contiguous()
    found = [least_squares(residual, start, args=(y,), x_scale=1.0, engine=e) for e in ENGINES]
    for result in found:
        assert bool(result.success.all())
        torch.testing.assert_close(result.cost, found[0].cost, rtol=1e-3, atol=0)


def test_long_sums_in_single_precision() -> None:
    n = 200_000
    t = torch.linspace(0, 4, n)
    noise = 0.3 * torch.randn(9, n, generator=torch.Generator().manual_seed(1))
    y = 2 * torch.exp(-0.7 * t) + 0.3 + noise
    results = [
        curve_fit(
            lambda t, a, k, c: a * torch.exp(-k * t) + c, t, y, [1.5, 1.0, 0.0],
            full_output=True, engine=engine,
        )[2]
        for engine in ENGINES
    ]  # fmt: skip
    eager, fused = results
    torch.testing.assert_close(fused.chi_square, eager.chi_square, rtol=1e-5, atol=0)
    torch.testing.assert_close(fused.stderr, eager.stderr, rtol=1e-4, atol=0)


def test_threads_that_differentiate_forward() -> None:
    # torch's levels of forward differentiation belong to the process
    def model(t: Tensor, a: Tensor, k: Tensor) -> Tensor:
        value: Tensor = torch.fft.ifft(torch.fft.fft(a * torch.exp(-k * t))).real
        return value

    t = torch.linspace(0, 4, 30, dtype=torch.float64)
    y = 3 * torch.exp(-0.8 * t)

    def work(_: int) -> Tensor:
        popt: Tensor = curve_fit(model, t, y, torch.ones(2, dtype=torch.float64))[0]
        return popt

    with ThreadPoolExecutor(4) as pool:
        for popt in pool.map(work, range(16)):
            torch.testing.assert_close(popt, torch.tensor([3, 0.8]).double(), rtol=1e-6, atol=0)


def test_more_iterates_than_there_is_room_for() -> None:
    t = torch.linspace(0, 3, 20, dtype=torch.float64)
    y = 2 * torch.exp(-t).expand(5, 20)
    start = torch.ones(5, 2, dtype=torch.float64)

    def residual(p: Tensor) -> Tensor:
        return (p[:, :1] * torch.exp(-p[:, 1:] * t) - y)[:, None, :]

    path, result = lsq_lma_parallel(start, residual, max_iter=10**9, full_output=True)
    assert result.engine == "eager" and "iterates" in result.engine_reason
    torch.testing.assert_close(path[-1], torch.tensor([2.0, 1.0]).double().expand(5, 2))


def test_parameters_beyond_single_precision_are_no_success() -> None:
    x = torch.linspace(0, 2, 30)
    y = (3e10 * torch.exp(-0.7 * x)).expand(3, 30)

    def model(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return a * 1e-30 * torch.exp(-b * x)

    _, _, result = curve_fit(model, x, y, torch.tensor([1e38, 0.6]), full_output=True)
    assert not bool((result.success & result.x.isinf().any(-1)).any())
