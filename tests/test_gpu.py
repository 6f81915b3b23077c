"""Fits on CUDA against fits on the CPU, and what keeps the host from waiting for a device.

The tests marked ``gpu`` need a device. The others run the eager engine's code for one without it:
on tensors of torch's device "meta", which hold no values, whatever would make the host wait raises
an error. (The fused engine's kernels run without a device in ``lsq/test_triton_engine.py``.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize import Status, curve_fit, least_squares
from torchimize.batch import BatchFunction
from torchimize.errors import NotFusedError
from torchimize.functions import lsq_gna_parallel, lsq_lma_parallel
from torchimize.kernel import triton, triton_driver
from torchimize.kernel.graph import PROBLEM, Graph
from torchimize.kernel.machine import Field, Machine, Output, load
from torchimize.lsq import eager
from torchimize.lsq.jacobian import Forward
from torchimize.lsq.likelihood import Data, LeastSquares, Likelihood, Poisson
from torchimize.lsq.policy import (
    AbsoluteTests,
    GaussNewton,
    Marquardt,
    Nielsen,
    Policy,
    RelativeTests,
    Rule,
    TrustRegion,
)
from torchimize.lsq.policy.iteration import StoppingTests
from torchimize.lsq.policy.loss import LOSSES
from torchimize.lsq.problem import Problem

DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}

Test = TypeVar("Test", bound=Callable[..., None])


def on_gpu(test: Test) -> Test:
    """Mark a test that needs a CUDA device."""
    available = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    marked: Test = pytest.mark.gpu(available(test))
    return marked


def decay(x: Tensor, a: Any, t: Any, b: Any) -> Tensor:
    value: Tensor = a * torch.exp(-x / t) + b
    return value


def decay_in_numpy(x: Any, a: Any, t: Any, b: Any) -> Any:
    return a * np.exp(-x / t) + b


def draw(batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decays x (20,), y (B, 20) with noise of sd 5, truth and start (B, 3); on the CPU."""
    generator = torch.Generator().manual_seed(7)
    low = torch.tensor([500.0, 20.0, 10.0], dtype=torch.float64)
    width = torch.tensor([1000.0, 80.0, 40.0], dtype=torch.float64)
    truth = low + width * torch.rand(batch, 3, generator=generator, dtype=torch.float64)
    x = torch.linspace(10, 200, 20, dtype=torch.float64)
    noise = 5 * torch.randn(batch, 20, generator=generator, dtype=torch.float64)
    y = decay(x, *truth[:, :, None].unbind(1)) + noise
    start = torch.stack([y[:, 0] - y[:, 19], torch.full_like(y[:, 0], 50), y[:, 19]], 1)
    return x.to(dtype), y.to(dtype), truth, start.to(dtype)


def residual(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, 1, N)."""
    return (decay(x, *p[:, :, None].unbind(1)) - y)[:, None, :]


def assert_same(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.device.type == "cuda"
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu(), wanted, rtol=TOLERANCE[dtype], atol=0.0)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jac": "reverse"},
        {"jac": "3-point"},
        {"bounds": ([0.0, 40.0, 0.0], [1e4, 80.0, 1e3])},
        {"loss": "soft_l1", "f_scale": 5.0},
        {"likelihood": "poisson"},
    ],
    ids=["plain", "reverse", "differences", "box", "robust", "poisson"],
)
def test_curve_fit_gives_what_the_cpu_gives(dtype: torch.dtype, options: dict[str, Any]) -> None:
    x, y, _, start = draw(200, dtype)
    y = y.clamp(min=0.0).round()
    if "bounds" in options:
        start = start.clamp(min=1.0)
        start[:, 1] = 50.0
    wanted = curve_fit(decay, x, y, p0=start, full_output=True, **options)
    found = curve_fit(decay, x.cuda(), y.cuda(), p0=start.cuda(), full_output=True, **options)
    assert bool(wanted[2].success.all()) and bool(found[2].success.all())
    assert_same(found[0], wanted[0], dtype)
    # a variance has twice the relative error of a standard deviation
    torch.testing.assert_close(
        found[1].diagonal(dim1=1, dim2=2).cpu(),
        wanted[1].diagonal(dim1=1, dim2=2),
        rtol=20 * TOLERANCE[dtype],
        atol=0.0,
    )
    torch.testing.assert_close(found[2].cost.cpu(), wanted[2].cost, rtol=1e-4, atol=0.0)
    for name in ("status", "nfev", "stderr", "aic", "fun", "jac", "active_mask"):
        assert found[2][name].device.type == "cuda", name


@on_gpu
@pytest.mark.parametrize("sigma_shape", [(20,), (50, 20), (20, 20)])
def test_curve_fit_with_sigma_and_gaps(sigma_shape: tuple[int, ...]) -> None:
    x, y, _, start = draw(50)
    y[::3, 4] = torch.nan
    sigma = 4 + torch.rand(sigma_shape, dtype=torch.float64)
    if sigma_shape == (20, 20):
        sigma = torch.diag(sigma[0] ** 2) + 2.0
    settings: dict[str, Any] = {"nan_policy": "omit", "absolute_sigma": True}
    wanted, covariance = curve_fit(decay, x, y, start, sigma, **settings)
    found, found_covariance = curve_fit(
        decay, x.cuda(), y.cuda(), start.cuda(), sigma.cuda(), **settings
    )
    assert_same(found, wanted, torch.float64)
    torch.testing.assert_close(found_covariance.cpu(), covariance, rtol=1e-5, atol=1e-9)


@on_gpu
def test_model_in_numpys_words_with_one_abscissa_per_problem() -> None:
    x, y, truth, start = draw(50)
    shifted = x + torch.arange(50, dtype=torch.float64)[:, None] / 10
    y = y + decay(shifted, *truth[:, :, None].unbind(1)) - decay(x, *truth[:, :, None].unbind(1))
    wanted, _ = curve_fit(decay, shifted, y, start)
    found, _ = curve_fit(decay_in_numpy, shifted.cuda(), y.cuda(), start.cuda())
    assert_same(found, wanted, torch.float64)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [None, "lm"])
@pytest.mark.parametrize("loss", ["linear", "huber", "cauchy"])
def test_least_squares_gives_what_the_cpu_gives(
    dtype: torch.dtype, method: str | None, loss: str
) -> None:
    x, y, _, start = draw(200, dtype)
    options: dict[str, Any] = {"method": method, "loss": loss, "f_scale": 5.0, "xtol": 1e-9}
    wanted = least_squares(residual, start, args=(x, y), **options)
    found = least_squares(residual, start.cuda(), args=(x.cuda(), y.cuda()), **options)
    assert bool(found.success.all())
    assert found.x.device.type == "cuda"
    torch.testing.assert_close(found.cost.cpu(), wanted.cost, rtol=1e-4, atol=0.0)


@on_gpu
@pytest.mark.parametrize("meth", ["lev", "marq"])
def test_lsq_lma_parallel_gives_what_the_cpu_gives(meth: str) -> None:
    x, y, _, start = draw(200)
    options: dict[str, Any] = {"meth": meth, "ptol": 1e-12, "ftol": 0.0, "gtol": 0.0}
    wanted = lsq_lma_parallel(start, residual, args=(x, y), **options)
    path = lsq_lma_parallel(start.cuda(), residual, args=(x.cuda(), y.cuda()), **options)
    assert torch.equal(path[0].cpu(), start)
    assert_same(path[-1], wanted[-1], torch.float64)


@on_gpu
def test_lsq_gna_parallel_gives_what_the_cpu_gives() -> None:
    x, y, truth, _ = draw(200)
    wanted = lsq_gna_parallel(truth, residual, args=(x, y))
    path = lsq_gna_parallel(truth.cuda(), residual, args=(x.cuda(), y.cuda()))
    assert_same(path[-1], wanted[-1], torch.float64)


@on_gpu
def test_a_damaged_problem_changes_no_other() -> None:
    x, y, _, start = draw(64)
    broken_y, broken_start = y.clone(), start.clone()
    broken_y[3] = torch.nan
    broken_y[10, 5] = torch.inf
    broken_start[20, 1] = -1e-3  # the exponential overflows
    _, _, wanted = curve_fit(decay, x, y, start, full_output=True)
    _, _, found = curve_fit(decay, x.cuda(), broken_y.cuda(), broken_start.cuda(), full_output=True)
    others = torch.ones(64, dtype=torch.bool)
    others[[3, 10, 20]] = False
    assert found.status[[3, 10, 20]].tolist() == [int(Status.NON_FINITE_START)] * 3
    torch.testing.assert_close(found.x.cpu()[others], wanted.x[others], rtol=1e-7, atol=0.0)


@on_gpu
@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_two_runs_give_the_same_bits(engine: str) -> None:
    x, y, _, start = (tensor.cuda() for tensor in draw(5000))
    first, second = (curve_fit(decay, x, y, start, engine=engine) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@on_gpu
def test_more_problems_than_the_pool_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "DEVICE_POOL_NUMBERS", eager.POOL_NUMBERS)
    batch = eager.POOL_NUMBERS // (3 * 15) + 5000
    x, y, _, start = (tensor.cuda() for tensor in draw(batch))
    popt, _ = curve_fit(decay, x, y, start, engine="eager")
    last = slice(batch - 200, batch)
    alone, _ = curve_fit(decay, x, y[last], start[last], engine="eager")
    torch.testing.assert_close(popt[last], alone, rtol=1e-7, atol=0.0)


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_waits_only_at_its_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _, start = (tensor.cuda() for tensor in draw(5000))
    start = start.clamp(min=1.0)
    # whatever torch sets up at first use is not the iterations' doing
    curve_fit(decay, x, y, start, bounds=(0.0, 1e5), engine="eager")
    iterations, looks = 0, 0
    iterate, retire = eager._Run.iterate, eager._Run.retire

    def strict(run: eager._Run) -> None:
        nonlocal iterations
        iterations += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            iterate(run)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def counted(run: eager._Run) -> int:
        nonlocal looks
        looks += 1
        return retire(run)

    monkeypatch.setattr(eager._Run, "iterate", strict)
    monkeypatch.setattr(eager._Run, "retire", counted)
    popt, _ = curve_fit(decay, x, y, start, bounds=(0.0, 1e5), engine="eager")
    assert bool(popt.isfinite().all())
    assert iterations >= 4
    assert looks <= 1 + iterations // eager.LOOK_EVERY


# ---------------------------------------------------------------------------- the fused engine


@pytest.fixture
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> triton.Layout:
    """Every kernel in one layout, whatever would be chosen."""
    chosen: triton.Layout = request.param
    monkeypatch.setattr(triton_driver, "choose", lambda *_: chosen)
    return chosen


LAYOUTS = [
    triton.Layout("problems", 32),
    triton.Layout("samples", 32),
    triton.Layout("samples", 128),
]
in_every_layout = pytest.mark.parametrize("layout", LAYOUTS, indirect=True, ids=str)
DEFAULT = {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8}
SPECIAL: list[dict[str, Any]] = [
    {},
    {"bounds": ([0.0, 40.0, 0.0], [1e4, 80.0, 1e3])},
    {"bounds": ([0.0, 50.0, 0.0], [1e4, 50.0, 1e3])},
    {"loss": "soft_l1", "f_scale": 5.0},
    {"likelihood": "poisson"},
    {"nan_policy": "omit", "sigma": 4.0},
    {"method": "lm"},
]


@on_gpu
@in_every_layout
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SPECIAL, ids=lambda options: "-".join(options) or "plain")
def test_fused_fits_are_the_cpus(
    options: dict[str, Any], dtype: torch.dtype, layout: triton.Layout
) -> None:
    x, y, _, start = draw(200, dtype)
    y = y.clamp(min=0.0).round()
    if "bounds" in options:
        start = start.clamp(min=1.0)
        start[:, 1] = 50.0
    if "nan_policy" in options:
        y[::3, 4] = torch.nan
    settings: dict[str, Any] = {"full_output": True, **options}
    if dtype == torch.float64:
        settings |= DEFAULT
    *_, wanted = curve_fit(decay, x, y, p0=start, engine="eager", **settings)
    *_, found = curve_fit(decay, x.cuda(), y.cuda(), p0=start.cuda(), engine="fused", **settings)
    assert found.engine == "fused"
    assert bool(wanted.success.all()) and bool(found.success.all())
    assert found.popt.device.type == "cuda" and found.popt.dtype == dtype
    # the kernels' sums are float32 there, the eager engine's float64
    limit = 1e-3 if dtype == torch.float64 else 0.05
    error = (found.popt.cpu() - wanted.popt).abs()
    assert bool((error <= limit * wanted.stderr).all())
    torch.testing.assert_close(found.cost.cpu(), wanted.cost, rtol=1e-3, atol=0.0)
    if dtype == torch.float64:
        # in float32, and at its own tolerances, rounding decides when a fit ends
        for name in ("status", "nfev", "njev"):
            same = found[name].cpu() == wanted[name]
            assert float(same.double().mean()) >= 0.99, name
    torch.testing.assert_close(
        found.stderr.cpu(), wanted.stderr, rtol=20 * TOLERANCE[dtype], atol=0.0
    )


@on_gpu
@in_every_layout
def test_damaged_problems_change_no_bit_of_others(layout: triton.Layout) -> None:
    x, y, _, start = (tensor.cuda() for tensor in draw(200))
    wanted, _ = curve_fit(decay, x, y, start, engine="fused")
    broken = [3, 10, 20]
    y, start = y.clone(), start.clone()
    y[3] = torch.nan
    y[10, 5] = torch.inf
    start[20, 1] = -1e-3  # the exponential overflows
    *_, found = curve_fit(decay, x, y, start, engine="fused", full_output=True)
    others = torch.ones(200, dtype=torch.bool)
    others[broken] = False
    assert found.status[broken].tolist() == [int(Status.NON_FINITE_START)] * 3
    assert torch.equal(found.popt.cpu()[others], wanted.cpu()[others])


@on_gpu
def test_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    x, y, _, start = (tensor.cuda() for tensor in draw(5000))
    wanted, _ = curve_fit(decay, x, y, start, engine="fused")
    monkeypatch.setattr(triton_driver, "COPY_BYTES", 1)
    monkeypatch.setattr(triton_driver, "LEAST_CHUNK", 700)
    found, _ = curve_fit(decay, x, y, start, engine="fused", progress=True)
    assert torch.equal(found, wanted)


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("batch", [8, 20_000])
def test_the_host_never_waits_for_a_kernel(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _, start = (tensor.cuda() for tensor in draw(batch))
    # a kernel is compiled and loaded at first use
    curve_fit(decay, x, y, start, engine="fused")
    ran = 0
    run_all = triton_driver.Bound.run_all

    def strict(bound: triton_driver.Bound, *args: Any, **kwargs: Any) -> None:
        nonlocal ran
        ran += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            run_all(bound, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(triton_driver.Bound, "run_all", strict)
    popt, _ = curve_fit(decay, x, y, start, engine="fused")
    assert ran and bool(popt.isfinite().all())


@on_gpu
@pytest.mark.parametrize("meth", ["lev", "marq"])
def test_fused_histories_are_the_cpus(meth: str) -> None:
    x, y, _, start = draw(200)
    options: dict[str, Any] = {"meth": meth, "max_iter": 30}
    wanted = lsq_lma_parallel(start, residual, args=(x, y), engine="eager", **options)
    path = lsq_lma_parallel(
        start.cuda(), residual, args=(x.cuda(), y.cuda()), engine="fused", **options
    )
    assert len(path) == len(wanted) > 3
    assert torch.equal(path[0].cpu(), start)
    for found, other in zip(path, wanted, strict=True):
        assert_same(found, other, torch.float64)


@on_gpu
def test_without_triton_the_eager_engine_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bool:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(triton_driver, "_interpreted", missing)
    x, y, _, start = (tensor.cuda() for tensor in draw(50))
    *_, result = curve_fit(decay, x, y, start, full_output=True)
    assert result.engine == "eager" and "triton" in result.engine_reason
    with pytest.raises(NotFusedError, match="triton"):
        curve_fit(decay, x, y, start, engine="fused")


FUNCTIONS = {
    "exp2": torch.exp2, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "sin": torch.sin,
    "cos": torch.cos, "tanh": torch.tanh, "erf": torch.erf, "round": torch.round,
    "trunc": torch.trunc, "floor": torch.floor, "ceil": torch.ceil, "neg": torch.neg,
    "abs": torch.abs,
}  # fmt: skip


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*FUNCTIONS, "div", "fma"])
def test_operations_on_the_device(name: str, dtype: torch.dtype) -> None:
    # exp2 and the quotient of float32 are the device's own, which no interpreter shows
    bits = 32 if dtype == torch.float32 else 64
    graph = Graph()
    leaves = [load(graph, k, PROBLEM) for k in range(3)]
    generator = torch.Generator().manual_seed(0)
    values = [8 * torch.rand(1000, generator=generator, dtype=torch.float64) - 4 for _ in leaves]
    if name in ("log", "sqrt"):
        values[0] = values[0].abs()
    values = [value.to(dtype).double() for value in values]
    if name == "div":
        node, wanted = graph.div(leaves[0], leaves[1]), values[0] / values[1]
    elif name == "fma":
        node = graph.apply("fma", *leaves)
        wanted = values[0] * values[1] + values[2]
    else:
        node, wanted = graph.apply(name, leaves[0]), FUNCTIONS[name](values[0])
    field = Field("y", graph.const(0.0), node)
    machine = Machine(graph, [], [field], graph.const(1.0), [Output("y", ["y"], "real")])
    views: dict[Any, Any] = {k: value.to("cuda", dtype) for k, value in enumerate(values)}
    found = torch.empty(1000, 1, dtype=dtype, device="cuda")
    triton_driver.TritonKernel(machine, bits).bind([], views, {"y": found}).run_all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[:, 0].cpu().double(), wanted, rtol=4 * eps, atol=4 * eps)


# ---------------------------------------------------------------- the eager engine without a device


RULES: list[Rule] = [TrustRegion(), Nielsen(), Marquardt(), GaussNewton()]
TESTS: list[StoppingTests] = [
    RelativeTests(1e-8, 1e-8, 1e-8, 1000),
    AbsoluteTests(1e-8, 1e-8, 1e-8, 1000),
]


def on_meta(likelihood: Callable[[Data], Likelihood]) -> Problem:
    """Twelve decays whose tensors hold no values."""
    x, y, _, start = (tensor.to("meta") for tensor in draw(12))
    function = BatchFunction(lambda p: decay(x, *p[:, :, None].unbind(1)), 12)
    infinite = torch.full_like(start, torch.inf)
    data = Data(observed=y)
    return Problem(function, Forward(), likelihood(data), start, -infinite, infinite, y.shape[1:])


def iterate_on_meta(problem: Problem, policy: Policy, look_every: int | None) -> eager._Run:
    run = eager._Run(problem, policy, None, True, look_every)
    assert run.load(capacity=100)
    for _ in range(3):
        run.iterate()
    return run


@pytest.mark.parametrize("tests", TESTS, ids=["relative", "absolute"])
@pytest.mark.parametrize("boxed", [False, True], ids=["free", "boxed"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_an_iteration_asks_for_no_value(rule: Rule, boxed: bool, tests: Any) -> None:
    problem = on_meta(LeastSquares)
    run = iterate_on_meta(problem, Policy(rule, tests, boxed), look_every=None)
    assert run.look_every == eager.LOOK_EVERY
    assert run.state.params.shape == (12, 3)
    assert run.state.params.device.type == "meta"


@pytest.mark.parametrize("loss", [*LOSSES, "poisson"])
def test_no_likelihood_asks_for_a_value(loss: str) -> None:
    def likelihood(data: Data) -> Likelihood:
        return Poisson(data) if loss == "poisson" else LeastSquares(data, LOSSES[loss])

    run = iterate_on_meta(on_meta(likelihood), Policy(TrustRegion(), TESTS[0], True), None)
    assert run.state.normal_matrix.shape == (12, 3, 3)


def test_a_look_at_every_iteration_does_ask() -> None:
    # The two tests above could not fail if tensors without values let everything pass.
    with pytest.raises((RuntimeError, NotImplementedError)):
        iterate_on_meta(on_meta(LeastSquares), Policy(TrustRegion(), TESTS[0], False), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES[:3], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("boxed", [False, True], ids=["free", "boxed"])
def test_rare_looks_change_no_result(dtype: torch.dtype, rule: Rule, boxed: bool) -> None:
    x, y, truth, start = draw(60, dtype)
    y[7] = torch.nan
    function = BatchFunction(lambda p: decay(x, *p[:, :, None].unbind(1)), 60)
    infinite = torch.full_like(start, torch.inf)
    upper = infinite.clone()
    if boxed:
        upper[:, 0] = 1000.0
        start[:, 0] = start[:, 0].clamp(max=900.0)
    lower = torch.zeros_like(start) if boxed else -infinite
    problem = Problem(
        function, Forward(), LeastSquares(Data(observed=y)), start, lower, upper, y.shape[1:]
    )
    tests = RelativeTests(1e-14 if dtype == torch.float64 else 1e-6, 1e-7, 0.0, 1000)
    policy = Policy(rule, tests, boxed)
    each = eager.solve(problem, policy, look_every=1)
    rare = eager.solve(problem, policy, look_every=8)
    small_pool = eager.solve(problem, policy, look_every=8, capacity=9)
    assert int(each.status[7]) == int(Status.NON_FINITE_START)
    good = torch.arange(60) != 7
    assert bool((each.status[good] > 0).all())
    for other in (rare, small_pool):
        assert torch.equal(other.status > 0, each.status > 0)
        torch.testing.assert_close(
            other.params[good], each.params[good], rtol=TOLERANCE[dtype], atol=0.0
        )
    if not boxed:
        # the truth behind the data is within a few of its standard errors
        assert float((each.params[good].double() / truth[good] - 1).abs().median()) < 0.05
