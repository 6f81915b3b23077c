"""Whole fits by GPU kernels, run by Triton's interpreter, against the eager engine.

The kernels stand in for the CPU's behind the public functions, so everything between a user's
model and the result takes part. The interpreter is slow: batches are small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from problems import workloads
from torchimize import Status, curve_fit, least_squares
from torchimize.errors import NotFusedError
from torchimize.functions import lsq_lma_parallel
from torchimize.kernel.machine import Machine
from torchimize.kernel.triton import Layout, source
from torchimize.kernel.triton_driver import TritonKernel, define
from torchimize.lsq import eager, fused
from torchimize.lsq.curve import Abscissa, model_function
from torchimize.lsq.fused import kernels as fused_kernels
from torchimize.lsq.likelihood import Data, LeastSquares
from torchimize.lsq.policy import Policy, RelativeTests, TrustRegion
from torchimize.lsq.problem import Problem, build_problem, check_bounds

# the interpreter takes a minute for all of them
pytestmark = pytest.mark.slow

pytest.importorskip("triton")

DOUBLE, SINGLE = torch.float64, torch.float32
BY_PROBLEM, BY_SAMPLE = Layout("problems", 32), Layout("samples", 16)
LAYOUTS = [BY_PROBLEM, BY_SAMPLE]
BATCH = {BY_PROBLEM: 40, BY_SAMPLE: 6}
"""Forty problems: a block that is full, and one that is not."""
FEW = {BY_PROBLEM: 12, BY_SAMPLE: 3}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Layout], list[TritonKernel]]:
    """Let Triton's kernels of a layout take the place of all others; what was made of them."""

    def use(layout: Layout) -> list[TritonKernel]:
        made: dict[Hashable, TritonKernel] = {}

        def compiled(
            key: Hashable, bits: int, build: Callable[[], Machine], **_: Any
        ) -> TritonKernel:
            if key not in made:
                made[key] = TritonKernel(build(), bits, layout)
            used.append(made[key])
            return made[key]

        used: list[TritonKernel] = []
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(fused_kernels, "compiled", compiled)
        return used

    return use


Kernels = Callable[[Layout], list[TritonKernel]]

TOLERANCES = {"ftol": 1e-7, "xtol": 1e-7, "gtol": 1e-7}


def decay(x: Tensor, a: Any, t: Any, b: Any) -> Tensor:
    value: Tensor = a * torch.exp(-x / t) + b
    return value


def data(name: str, batch: int, dtype: torch.dtype, every: int = 1) -> tuple[Any, ...]:
    """x, y and starts of a workload; every so many of its samples."""
    drawn = workloads.make(name, batch, dtype)
    return drawn.model, drawn.x[..., ::every], drawn.y[:, ::every], drawn.start.contiguous()


def assert_same_fits(found: Any, wanted: Any, dtype: torch.dtype = DOUBLE) -> None:
    """The same to 1e-3 standard errors, with the same counts and reasons to stop."""
    assert found.engine == "fused" and wanted.engine == "eager"
    assert found.engine_reason == "run by Triton's interpreter"
    assert bool((wanted.status > 0).all())
    # rounding decides which of two tests that hold is met first, in float32 more often
    agreeing = 0.99 if dtype == DOUBLE else 0.9
    assert float((found.status == wanted.status).double().mean()) >= agreeing
    assert float((found.nfev == wanted.nfev).double().mean()) >= agreeing
    assert float((found.njev == wanted.njev).double().mean()) >= agreeing
    determined = torch.isfinite(wanted.stderr) & (wanted.stderr > 0)
    error = (found.popt - wanted.popt).abs()
    assert bool((error <= 1e-3 * wanted.stderr)[determined].all())
    assert torch.equal(found.popt[wanted.stderr == 0], wanted.popt[wanted.stderr == 0])
    torch.testing.assert_close(
        found.cost, wanted.cost, rtol=1e-9 if dtype == DOUBLE else 1e-4, atol=0.0
    )
    width = wanted.stderr[:, :, None] * wanted.stderr[:, None, :]
    close = (found.pcov - wanted.pcov).abs() <= (1e-4 if dtype == DOUBLE else 1e-2) * width
    assert bool((close | ~torch.isfinite(width)).all())


def fit_twice(layout: Layout, kernels: Kernels, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Results of both engines, with tolerances that rounding does not reach."""
    used = kernels(layout)
    options = {"full_output": True, **TOLERANCES, **options}
    *_, wanted = curve_fit(*args, engine="eager", **options)
    *_, found = curve_fit(*args, engine="fused", **options)
    assert used
    return found, wanted


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "every"), [("W1", 5), ("W2", 1), ("W3", 2), ("gauss1d", 1)])
def test_workloads(
    name: str, every: int, layout: Layout, dtype: torch.dtype, kernels: Kernels
) -> None:
    batch = BATCH[layout] if name == "W2" else BATCH[layout] // 4 + 1
    model, x, y, start = data(name, batch, dtype, every)
    tolerances = dict.fromkeys(TOLERANCES, 1e-6 if dtype == SINGLE else 1e-7)
    found, wanted = fit_twice(layout, kernels, model, x, y, start, **tolerances)
    assert_same_fits(found, wanted, dtype)


BOX = ([0.0, 40.0, 0.0], [1000.0, 60.0, 30.0])
OPTIONS: dict[str, dict[str, Any]] = {
    "box": {"bounds": BOX},
    "half a box": {"bounds": ([0.0, 0.0, 0.0], float("inf"))},
    "fixed": {"bounds": ([-1e9, 50.0, -1e9], [1e9, 50.0, 1e9])},
    "fixed in a box": {"bounds": ([0.0, 50.0, 20.0], [1000.0, 50.0, 30.0])},
    "soft_l1": {"loss": "soft_l1", "f_scale": 5.0},
    "huber": {"loss": "huber", "f_scale": 5.0},
    "cauchy": {"loss": "cauchy", "f_scale": 10.0},
    "arctan": {"loss": "arctan", "f_scale": 30.0},
    "weights": {"sigma": 2 + torch.arange(10.0, dtype=DOUBLE) % 3},
    "poisson": {"likelihood": "poisson"},
    "units": {"x_scale": [1000.0, 50.0, 10.0]},
    "marquardt": {"method": "lm"},
    "gauss-newton": {"method": "gn"},
}


@pytest.mark.parametrize(
    ("option", "layout"),
    [(option, BY_PROBLEM) for option in OPTIONS]
    + [(option, BY_SAMPLE) for option in ("box", "fixed", "soft_l1", "weights", "poisson")],
)
def test_options(option: str, layout: Layout, kernels: Kernels) -> None:
    batch = FEW[layout]
    model, x, y, start = data("W2", batch, DOUBLE, every=2)
    if option == "poisson":
        y = y.clamp(min=0.0).round()
    if "bounds" in OPTIONS[option]:
        start = torch.tensor([500.0, 50.0, 25.0], dtype=DOUBLE).repeat(batch, 1)
    else:
        # near enough to take few iterations, which the interpreter is slow at
        start = 0.05 * start + 0.95 * workloads.make("W2", batch).truth
    found, wanted = fit_twice(layout, kernels, model, x, y, start, **OPTIONS[option])
    assert_same_fits(found, wanted)
    if option == "box":
        assert bool((found.active_mask != 0).any())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_problem_has_its_own(layout: Layout, kernels: Kernels) -> None:
    batch = FEW[layout]
    model, x, y, start = data("W2", batch, DOUBLE, every=2)
    own = torch.arange(batch, dtype=DOUBLE)[:, None]
    shifted = x + own / 10
    y = y * torch.exp(-own / 500)
    y[::2, 3] = torch.nan
    lower = torch.stack([own[:, 0], 5 + own[:, 0], -own[:, 0] - 9], 1)
    found, wanted = fit_twice(
        layout,
        kernels,
        model,
        shifted,
        y,
        torch.maximum(start, lower + 1),
        sigma=1 + torch.rand(y.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE),
        bounds=(lower, torch.full_like(lower, 1e4)),
        nan_policy="omit",
    )
    assert_same_fits(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels(layout: Layout, kernels: Kernels) -> None:
    # W4's model is one erf beside an exponential; two channels share its parameters
    batch = 3
    drawn = workloads.make("W4", batch)
    y = drawn.y.reshape(batch, 2, -1)[:, :, 800:1200:25]
    x = drawn.x[800:1200:25]

    def residual(p: Tensor, y: Tensor) -> Tensor:
        return drawn.model(x, *p[:, :, None].unbind(1))[:, None, :] - y

    kernels(layout)
    fits = [
        least_squares(residual, drawn.start, args=(y,), engine=engine, **TOLERANCES)
        for engine in ("fused", "eager")
    ]
    found, wanted = fits
    assert found.engine == "fused" and wanted.engine == "eager"
    assert found.nfev.tolist() == wanted.nfev.tolist()
    assert found.status.tolist() == wanted.status.tolist()
    torch.testing.assert_close(found.x, wanted.x, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("meth", ["lev", "marq"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_iterate(meth: str, layout: Layout, kernels: Kernels) -> None:
    batch = FEW[layout]
    _, x, y, start = data("W2", batch, DOUBLE, every=2)

    def residual(p: Tensor, y: Tensor) -> Tensor:
        return (decay(x, *p[:, :, None].unbind(1)) - y)[:, None, :]

    used = kernels(layout)
    options: dict[str, Any] = {"meth": meth, "max_iter": 30}
    path = lsq_lma_parallel(start, residual, args=(y,), engine="fused", **options)
    wanted = lsq_lma_parallel(start, residual, args=(y,), engine="eager", **options)
    assert used[0].machine.history is not None
    assert len(path) == len(wanted) > 3
    for one, other in zip(path, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=0.0)


def curve_problem(dtype: torch.dtype, batch: int) -> tuple[Problem, Policy]:
    model, x, y, start = data("W2", batch, dtype)
    problem = build_problem(
        model_function(model, Abscissa(x, None), batch, y.shape[-1]),
        LeastSquares(Data(y)),
        start,
        *check_bounds(None, start, "p0"),
        None,
    )
    eps = torch.finfo(dtype).eps
    return problem, Policy(TrustRegion(), RelativeTests(8 * eps, eps, eps, 100), boxed=False)


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_step_and_normal_matrix(layout: Layout, dtype: torch.dtype, kernels: Kernels) -> None:
    problem, policy = curve_problem(dtype, BATCH[layout])
    kernels(layout)
    found = fused.solve(problem, policy, max_iter=1)
    wanted = eager.solve(problem, policy, max_iter=1, keep_normal_matrix=True)
    first, second = (solution.params - problem.params0 for solution in (found, wanted))
    # some lead up the hill and are not taken
    moved = second.abs().amax(1) > 0
    assert float(moved.double().mean()) > 0.5
    # the condition of the equations, some hundreds here, is what rounding is multiplied with
    eps = torch.finfo(dtype).eps
    size = torch.maximum(wanted.params.abs(), problem.params0.abs())
    assert bool(((first - second).abs() <= 200 * eps * size).all())
    diagonal = wanted.normal_matrix.diagonal(dim1=1, dim2=2)
    scale = (diagonal[:, :, None] * diagonal[:, None, :]).sqrt()
    limit = 1e-13 if dtype == DOUBLE else 1e-4
    matrix = fused.normal_matrices(problem, problem.params0)
    assert bool(((matrix - wanted.normal_matrix).abs() <= limit * scale).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_problems_change_no_other(layout: Layout, kernels: Kernels) -> None:
    batch = BATCH[layout]
    model, x, y, start = data("W2", batch, DOUBLE, every=2)
    kernels(layout)

    def fit(y: Tensor, start: Tensor) -> Any:
        return curve_fit(model, x, y, start, full_output=True, engine="fused", **TOLERANCES)[2]

    wanted = fit(y, start)
    broken = [1, 3, batch - 2]
    y, start = y.clone(), start.clone()
    y[1, 5] = torch.nan
    y[3, 0] = torch.inf
    start[batch - 2, 1] = -1e-3  # the exponential overflows
    found = fit(y, start)
    others = [row for row in range(batch) if row not in broken]
    assert found.status[broken].tolist() == [int(Status.NON_FINITE_START)] * 3
    assert torch.equal(found.popt[broken], start[broken])
    for name in ("popt", "cost", "nfev", "njev", "status", "pcov"):
        assert torch.equal(found[name][others], wanted[name][others]), name


def test_order_and_company_change_nothing(kernels: Kernels) -> None:
    model, x, y, start = data("W2", 37, DOUBLE, every=2)
    kernels(BY_PROBLEM)
    popt, _ = curve_fit(model, x, y, start, engine="fused")
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))[:9]
    few, _ = curve_fit(model, x, y[order], start[order], engine="fused")
    assert torch.equal(few, popt[order])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_refined_fits(layout: Layout, kernels: Kernels) -> None:
    # float32 data in a kernel of float64
    batch = FEW[layout]
    model, x, y, start = data("W2", batch, SINGLE)
    used = kernels(layout)
    options: dict[str, Any] = {"refine": True, "full_output": True}
    *_, found = curve_fit(model, x, y, start, engine="fused", **options)
    *_, wanted = curve_fit(model, x.double(), y.double(), start.double(), full_output=True)
    assert any(kernel.machine.singles for kernel in used)
    torch.testing.assert_close(found.popt, wanted.popt.float(), rtol=3e-7, atol=0.0)


# ------------------------------------------------------------------------------ compiled for CUDA


def machines_of(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> list[Machine]:
    """What the fused engine would compile for a fit."""
    machines: list[Machine] = []

    def compiled(key: Hashable, bits: int, build: Callable[[], Machine], **_: Any) -> TritonKernel:
        machines.append(build())
        raise NotFusedError("only looked at")

    monkeypatch.setattr(fused_kernels, "compiled", compiled)
    curve_fit(*args, full_output=True, **options)
    return machines


EVERYTHING = {
    "bounds": BOX,
    "loss": "soft_l1",
    "nan_policy": "omit",
    "sigma": torch.full((2, 20), 3.0, dtype=DOUBLE),
}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("layout", [Layout("problems", 32), Layout("samples", 64)])
def test_whole_fits_compile(
    layout: Layout,
    dtype: torch.dtype,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton makes no code for CUDA")
    model, x, y, _ = data("W2", 2, dtype)
    y[0, 3] = torch.nan if options else 10.0
    start = torch.tensor([500.0, 50.0, 25.0], dtype=dtype)
    machine, *_ = machines_of(monkeypatch, model, x, y, start, **options)
    bits = 32 if dtype == SINGLE else 64
    text = source(machine, bits, layout)
    origin = ASTSource(fn=define(text), signature={"table": "*i64"}, constexprs={})
    kernel = triton.compile(
        origin,
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": layout.lanes // 32 or 1, "num_stages": 1, "enable_fp_fusion": False},
    )
    assert len(kernel.asm["cubin"]) > 1000
    # the state lives in registers
    assert ".local" not in kernel.asm["ptx"]
    # and in float32 nothing is computed in float64
    if dtype == SINGLE:
        wide = set(re.findall(r"\b\w+\.(?:rn\.)?f64\b", kernel.asm["ptx"]))
        assert wide <= {"cvt.f64"}
