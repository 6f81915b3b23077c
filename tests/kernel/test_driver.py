"""Kernels on their way through chunks and threads, with the caller's data and state untouched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize import curve_fit, least_squares
from torchimize.functions import lsq_lma_parallel
from torchimize.kernel import driver
from torchimize.kernel.driver import Bound, Kernel, NoCompilerError, Processor
from torchimize.kernel.graph import PROBLEM, SAMPLE, Graph
from torchimize.kernel.machine import Field, Machine, Output, Sums, load

X = torch.linspace(0.0, 4.0, 16, dtype=torch.float64)
RATES = torch.linspace(0.4, 1.6, 40, dtype=torch.float64)[:, None]
Y = 3 * torch.exp(-RATES * X) + 0.02 * torch.cos(97 * X + RATES)


def decay(x: Any, a: Any, k: Any) -> Any:
    return a * torch.exp(-k * x)


def fit(y: Tensor = Y, x: Tensor = X, **options: Any) -> Any:
    p0 = options.pop("p0", [2.0, 0.7])
    result = curve_fit(decay, x, y, p0, full_output=True, engine="fused", **options)[2]
    assert result.engine == "fused"
    return result


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads until the test is over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "chunk_size", lambda *_: 3)


# ------------------------------------------------------------------------------------- the machine


def scalar_products() -> Machine:
    """Σ x y, where x is shared, times a number."""
    g = Graph()
    sums = Sums(g, 1)
    x, y = load(g, "x", SAMPLE), load(g, "y", SAMPLE | PROBLEM)
    total = g.mul(sums.total(0, x, y), load(g, "factor", 0))
    fields = [Field("total", g.const(0.0), total)]
    return Machine(g, sums.runs, fields, g.const(1.0), [Output("total", ["total"], "real")])


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return Kernel(scalar_products(), 64)


def bound(kernel: Kernel, x: Tensor, y: Tensor, factor: float = 1.0) -> tuple[Bound, Tensor]:
    out = torch.full((len(y),), torch.nan, dtype=torch.float64)
    views: dict[Hashable, Tensor] = {
        "x": x,
        "y": y,
        "factor": torch.tensor(factor, dtype=torch.float64),
    }
    return kernel.bind([len(x)], views, {"total": out}), out


def data(batch: int = 50, samples: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, generator=generator, dtype=torch.float64)
    return x, torch.randn(batch, samples, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 7, 16, 50, 1000])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_problem_is_solved_once(
    kernel: Kernel, chunk: int, count: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    x, y = data()
    where, out = bound(kernel, x, y, 2.0)
    told: list[int] = []
    here = threading.get_ident()

    def after(done: int) -> None:
        assert threading.get_ident() == here
        told.append(done)

    where.run_all(50, chunk, after)
    torch.testing.assert_close(out, 2 * (y @ x), rtol=1e-13, atol=1e-13)
    assert sum(told) == 50 and len(told) == -(-50 // chunk)
    where.run_all(0, chunk, after)
    assert sum(told) == 50


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_ends_the_work(
    kernel: Kernel, count: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    x, y = data(1000)
    where, out = bound(kernel, x, y)

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        where.run_all(1000, 2, interrupted)
    solved = ~out.isnan()
    # what had been begun is finished and nothing else is
    assert 2 <= int(solved.sum()) < 1000
    torch.testing.assert_close(out[solved], (y @ x)[solved], rtol=1e-13, atol=1e-13)
    again, out = bound(kernel, x, y)
    again.run_all(1000, 100)
    assert not bool(out.isnan().any())


def test_as_many_threads_as_torch_may_use(
    kernel: Kernel, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data()
    seen: set[int] = set()
    pools: list[int] = []
    plain = Bound.run

    def watched(self: Bound, *args: Any) -> int:
        seen.add(threading.get_ident())
        return plain(self, *args)

    class Pool(ThreadPoolExecutor):
        def __init__(self, size: int) -> None:
            pools.append(size)
            super().__init__(size)

    monkeypatch.setattr(Bound, "run", watched)
    monkeypatch.setattr(driver, "ThreadPoolExecutor", Pool)
    threads(1)
    bound(kernel, x, y)[0].run_all(50, 5)
    assert seen == {threading.get_ident()} and not pools
    threads(4)
    bound(kernel, x, y)[0].run_all(50, 5)
    assert pools == [4]
    bound(kernel, x, y)[0].run_all(50, 20)
    assert pools[-1] <= 3
    count = len(pools)
    bound(kernel, x, y)[0].run_all(50, 50)
    assert len(pools) == count, "one chunk needs no threads"
    assert torch.get_num_threads() == 4


def test_calls_from_several_threads(kernel: Kernel) -> None:
    x, y = data(400)

    def work(k: int) -> Tensor:
        where, out = bound(kernel, x, y, float(k))
        for start in range(0, 400, 37):
            where.run(start, min(start + 37, 400))
        return out

    with ThreadPoolExecutor(4) as pool:
        for k, out in enumerate(pool.map(work, range(8))):
            torch.testing.assert_close(out, k * (y @ x), rtol=1e-13, atol=1e-12)


def test_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    sizes = [driver.chunk_size(10**9, work) for work in (0, 1, 10**3, 10**6, 10**9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == driver.MAX_CHUNK and sizes[-1] == driver.MIN_CHUNK
    assert driver.chunk_size(10**9, 10**4) * 10**4 <= driver.CHUNK_WORK
    # every thread has something to do where that is worth its start
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert driver.chunk_size(50_000, 80) * 4 <= 50_000
    assert driver.chunk_size(5_000, 80) >= 5_000


def test_where_kernels_come_from() -> None:
    kernel = Kernel(scalar_products(), 32)
    processor = driver.this_processor()
    assert kernel.target.bits == 32 and str(kernel.target.lanes) in kernel.description
    assert processor.name in kernel.description
    assembly = kernel.assembly()
    assert "run:" in assembly and "ret" in assembly


def test_what_is_no_code_is_an_error() -> None:
    machine = scalar_products()
    unknown = machine.graph.apply("no_such_operation", machine.fields[0].updated)
    machine.fields[0] = Field("total", machine.fields[0].initial, unknown)
    with pytest.raises(Exception, match="no_such_operation"):
        Kernel(machine, 64)


@pytest.mark.parametrize(
    ("triple", "features", "wanted"),
    [
        ("x86_64-unknown-linux-gnu", {"avx2": True, "fma": True}, (32, False, True)),
        (
            "x86_64-apple-darwin",
            {"avx2": True, "fma": True, "avx512f": True, "avx512dq": True, "avx512vl": True},
            (64, True, True),
        ),
        ("x86_64-pc-windows-msvc", {"avx2": True, "fma": True, "avx512f": True}, (32, False, True)),
        ("aarch64-unknown-linux-gnu", {"neon": True}, (16, False, False)),
        ("arm64-apple-darwin", {}, (16, False, False)),
        ("x86_64-unknown-linux-gnu", {"avx2": True}, "AVX2"),
        ("x86_64-unknown-linux-gnu", {"sse4.2": True}, "AVX2"),
        ("riscv64-unknown-linux-gnu", {}, "riscv64"),
    ],
)
def test_processors(
    triple: str, features: dict[str, bool], wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Features(dict[str, bool]):
        def flatten(self) -> str:
            return ",".join(f"+{name}" for name in self)

    class Binding:
        def get_host_cpu_features(self) -> Features:
            return Features(features)

        def get_process_triple(self) -> str:
            return triple

        def get_host_cpu_name(self) -> str:
            return "some-core"

    monkeypatch.setattr(driver, "_llvm", Binding)
    detect = driver.this_processor.__wrapped__
    if isinstance(wanted, str):
        with pytest.raises(NoCompilerError, match=wanted):
            detect()
        return
    found = detect()
    assert (found.bytes, found.scalef, found.x86) == wanted
    assert found.name == "some-core" and isinstance(found, Processor)
    for bits in (32, 64):
        target = found.target(bits, scalar_products())
        assert target.lanes * bits % (8 * found.bytes) == 0 and target.bits == bits
        # tile and sums fit the registers beside the factors
        registers = 32 if found.bytes != 32 else 16
        assert target.tile**2 + 2 * target.tile <= registers and target.accumulators < registers


# -------------------------------------------------------------------------- the caller's own data


def test_inputs_are_not_written_to() -> None:
    start = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).double() + 1
    sigma = 0.1 + X.expand(40, 16) / 9
    y = Y.clone()
    y[3, 2] = torch.nan
    own = X.expand(40, 16) * torch.linspace(0.9, 1.1, 40, dtype=torch.float64)[:, None]
    lower, upper = torch.zeros(40, 2).double(), torch.full((40, 2), 9.0).double()
    given = (y, own, start, sigma, lower, upper)
    before = [tensor.clone() for tensor in given]
    result = fit(y, own, p0=start, sigma=sigma, bounds=(lower, upper), nan_policy="omit")
    for tensor, copy in zip(given, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
    kept = result.x.clone()
    result.x.zero_()
    assert torch.equal(start, before[2]) and bool(kept.all())
    path = lsq_lma_parallel(
        start, lambda p, y: (decay(X, p[:, :1], p[:, 1:]) - y)[:, None], args=(Y,), engine="fused"
    )
    path[0].zero_()
    path[-1].zero_()
    assert torch.equal(start, before[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inputs_of_any_layout(dtype: torch.dtype) -> None:
    x, y = X.to(dtype), Y.to(dtype)
    start = torch.tensor([2.0, 0.7], dtype=dtype)
    wanted = fit(y, x, p0=start, sigma=torch.full((40, 16), 0.2, dtype=dtype))
    wide = torch.zeros(40, 48, dtype=dtype)
    wide[:, 1::3] = y
    layouts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = [
        (y.T.contiguous().T, x, start.expand(40, 2), torch.tensor(0.2, dtype=dtype).expand(40, 16)),
        (wide[:, 1::3], torch.stack([x, x], -1)[:, 0], start.repeat(40, 1).T.contiguous().T,
         torch.full((16, 40), 0.2, dtype=dtype).T),
        (torch.cat([y, y])[40:], torch.cat([x, x])[16:], torch.cat([start, start])[2:],
         torch.full((40, 1), 0.2, dtype=dtype).expand(40, 16)),
        (y.requires_grad_(False), x.expand(40, 16), start, torch.full((40, 16), 0.2, dtype=dtype)),
    ]  # fmt: skip
    for these in layouts:
        ydata, xdata, p0, sigma = these
        found = fit(ydata, xdata, p0=p0, sigma=sigma)
        for name in ("x", "pcov", "cost", "status", "nfev"):
            torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0, msg=name)


def test_data_that_repeat() -> None:
    # stride 0 over the problems, and over the samples
    y = Y[:1].expand(40, 16)
    found, single = fit(y), fit(Y[:1])
    torch.testing.assert_close(found.x, single.x.expand(40, 2), rtol=1e-13, atol=0)
    flat = torch.linspace(1, 2, 40, dtype=torch.float64)[:, None].expand(40, 16)
    popt, _ = curve_fit(lambda x, a: a + 0 * x, X, flat, [1.0], engine="fused")
    torch.testing.assert_close(popt[:, 0], flat[:, 0], rtol=1e-14, atol=0)


def test_arrays_of_other_byte_orders_and_steps() -> None:
    y = Y.numpy()
    wanted = fit(Y)
    for array in (np.asfortranarray(y), y[::-1][::-1], y.astype(">f8"), np.repeat(y, 2, 1)[:, ::2]):
        popt, _, result = curve_fit(
            decay, X.numpy()[::-1][::-1], array, [2.0, 0.7], full_output=True, engine="fused"
        )
        assert result.engine == "fused"
        np.testing.assert_allclose(popt, wanted.x.numpy(), rtol=1e-9)


def test_integers_and_truth_values_as_data() -> None:
    steps = torch.arange(16)
    early = steps < 8

    def residual(p: Tensor, y: Tensor, steps: Tensor, early: Tensor) -> Tensor:
        return p[:, :1] * steps + torch.where(early, p[:, 1:], -p[:, 1:]) - y

    truth = torch.tensor([[0.5, 2.0], [1.5, -1.0], [2.5, 4.0]], dtype=torch.float64)
    y = residual(truth, torch.zeros(3, 16), steps, early)
    found = least_squares(
        residual, torch.ones(3, 2).double(), args=(y, steps, early), engine="fused"
    )
    torch.testing.assert_close(found.x, truth, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------- floating point mode of a thread


def is_flushing() -> bool:
    """Whether denormal numbers are zero in this thread."""
    tiny = np.array([2.0**-1060, 5e-324])
    return bool(((tiny * 1.0) == 0).any() or (np.array([2.0**-600]) * 2.0**-470 == 0).any())


def test_denormal_numbers_of_the_caller_survive() -> None:
    assert not is_flushing()
    fit()
    assert not is_flushing()
    fit(Y.float(), X.float(), p0=torch.tensor([2.0, 0.7]))
    assert not is_flushing()


def test_denormal_numbers_survive_in_the_threads_of_a_pool(
    small_chunks: None, threads: Callable[[int], None]
) -> None:
    threads(3)

    def work(_: int) -> bool:
        before = is_flushing()
        fit()
        return before or is_flushing()

    with ThreadPoolExecutor(3) as pool:
        assert not any(pool.map(work, range(12)))
    assert not is_flushing()


def test_denormal_numbers_survive_an_interrupt(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchimize.progress.ProgressBar.advance", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert not is_flushing()


def _interrupt(self: Any, count: int) -> None:
    raise KeyboardInterrupt


def test_a_caller_who_flushes_goes_on_flushing() -> None:
    torch.set_flush_denormal(True)
    try:
        if not is_flushing():
            pytest.skip("denormals are not switched off here")
        fit()
        assert is_flushing()
    finally:
        torch.set_flush_denormal(False)
    assert not is_flushing()


# --------------------------------------------------------------------------- progress and Ctrl-C


@pytest.mark.parametrize("count", [1, 2])
def test_a_bar_of_problems(
    count: int,
    threads: Callable[[int], None],
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads(count)
    seen: list[int] = []
    monkeypatch.setattr(
        "torchimize.progress.ProgressBar.advance", lambda self, done: seen.append(done)
    )
    fit()
    # the fits, and the bar is not told of the covariances
    assert sum(seen) == 40 and max(seen) <= 3
    monkeypatch.undo()
    capsys.readouterr()
    fit(progress=True)
    assert "40.0/40.0" in capsys.readouterr().err
    fit()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_between_chunks(
    count: int,
    threads: Callable[[int], None],
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads(count)
    seen: list[int] = []

    def advance(self: Any, done: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("torchimize.progress.ProgressBar.advance", advance)
    started: list[int] = []
    plain = Bound.run

    def watched(self: Bound, *args: Any) -> int:
        started.append(args[0])
        time.sleep(1e-3)
        return plain(self, *args)

    monkeypatch.setattr(Bound, "run", watched)
    with pytest.raises(KeyboardInterrupt):
        fit(torch.cat([Y] * 20))
    assert len(seen) == 2
    # 267 chunks were waiting
    assert len(started) < 200
    assert threading.active_count() < 10
    monkeypatch.undo()
    assert bool(fit().success.all())
