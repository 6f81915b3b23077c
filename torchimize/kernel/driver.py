"""Compiles machines for this processor and runs the kernels: a cache, chunks, threads.

Kernels are called without the interpreter's lock, a chunk of problems at a time: threads share the
chunks, and between two of them an interrupt or a progress bar has its place.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.kernel import llvm
from torchimize.kernel.graph import PROBLEM, SAMPLE
from torchimize.kernel.machine import Machine

ALIGNMENT = 128
"""Bytes; the widest vectors, of two registers."""

CHUNK_WORK = 20_000_000
"""Numbers (samples times state) that a chunk of problems may have: some hundredths of a second."""

MIN_CHUNK, MAX_CHUNK = 64, 65_536
"""Problems in a chunk, at least and at most: at its end lanes wait for the slowest."""

THREAD_WORK = 1_000_000
"""Numbers from which it pays to start threads: about a millisecond of fits."""

CHUNKS_PER_THREAD = 4
"""So that a thread that has been held up leaves the rest to the others."""


class NoCompilerError(Exception):
    """No kernel can be compiled on this machine; the message says why."""


WIDE_ACCUMULATORS = 12
"""Sums kept in registers where there are 32 of 64 bytes. More would fit, but the buffered form lets
the processor work on the next samples while sums wait: 1.15 to 1.2 times as fast on Zen 5."""

ACCUMULATORS = 10
"""The same with 16 registers."""


@dataclass(frozen=True)
class Processor:
    """What code is made for: LLVM's names, and the target's shape for either floating type."""

    name: str
    features: str
    bytes: int
    scalef: bool
    x86: bool

    def target(self, bits: int, machine: Machine) -> llvm.Target:
        """The target for a machine with numbers of 32 or 64 bits.

        With few sums two registers hold a lane's value: while the step of one half waits for a
        division, that of the other goes on. Measured on a Zen 5 core: 1.15 times the fits with
        three parameters, 0.9 times with five.
        """
        sums = max((len(run.pairs) for run in machine.runs), default=0)
        wide = self.bytes == 64
        accumulators = WIDE_ACCUMULATORS if wide else ACCUMULATORS
        doubled = wide and 0 < sums <= accumulators
        return llvm.Target(
            bits=bits,
            lanes=self.bytes * 8 // bits * (2 if doubled else 1),
            scalef=self.scalef,
            x86=self.x86,
            accumulators=accumulators,
            tile=4 if wide or not self.x86 else 3,
        )


@lru_cache(maxsize=1)
def this_processor() -> Processor:
    """The processor that this runs on.

    Raises
    ------
    NoCompilerError
        Where llvmlite is missing, or the processor has no fused multiply-add.
    """
    binding = _llvm()
    features = binding.get_host_cpu_features()
    triple = binding.get_process_triple()
    name, text = binding.get_host_cpu_name(), features.flatten()
    if triple.startswith(("aarch64", "arm64")):
        return Processor(name, text, 16, scalef=False, x86=False)
    if not triple.startswith("x86_64"):
        raise NoCompilerError(f"kernels are not made for {triple}")
    if all(features.get(f) for f in ("avx512f", "avx512dq", "avx512vl")):
        return Processor(name, text, 64, scalef=True, x86=True)
    if features.get("avx2") and features.get("fma"):
        return Processor(name, text, 32, scalef=False, x86=True)
    raise NoCompilerError("the processor has no fused multiply-add (AVX2)")


@lru_cache(maxsize=1)
def _llvm() -> Any:
    """Llvmlite's binding, ready to use; imported when the first kernel is compiled."""
    try:
        import llvmlite.binding as binding
    except ImportError as error:
        raise NoCompilerError(f"llvmlite cannot be imported: {error}") from None
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


_COMPILING = threading.Lock()


class Kernel:
    """A compiled machine.

    Parameters
    ----------
    machine : Machine
    bits : int
        32 or 64.
    processor : Processor, optional
        This one.
    optimised : bool, default True
        False compiles five times as fast, for code that runs once a problem.

    Raises
    ------
    NoCompilerError
        See :func:`this_processor`.
    UnsupportedError
        Where an operation has no code.
    """

    def __init__(
        self,
        machine: Machine,
        bits: int,
        processor: Processor | None = None,
        optimised: bool = True,
    ) -> None:
        processor = processor or this_processor()
        self.machine = machine
        self.target = processor.target(bits, machine)
        self.loads = [(node.value, node.depends) for node in machine.loads()]
        self._runs = _runs_of_loads(machine)
        self._processor = processor
        self._level = 2 if optimised else 0
        with _COMPILING:
            self._engine = _llvm().create_mcjit_compiler(*self._module())
            self._engine.finalize_object()
            address = self._engine.get_function_address("run")
        self.description = f"compiled for {processor.name}, {self.target.lanes} problems per vector"
        self._call = ctypes.CFUNCTYPE(
            ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
        )(address)

    def _module(self) -> tuple[Any, Any]:
        """LLVM's module, and what makes code of it."""
        binding = _llvm()
        module = binding.parse_assembly(llvm.source(self.machine, self.target))
        module.triple = binding.get_process_triple()
        module.verify()
        # no passes before code generation: they would double its time and change nothing
        target = binding.Target.from_default_triple().create_target_machine(
            cpu=self._processor.name, features=self._processor.features, opt=self._level, jit=True
        )
        return module, target

    def assembly(self) -> str:
        """The kernel's machine instructions, as text."""
        module, target = self._module()
        text: str = target.emit_assembly(module)
        return text

    def bind(
        self,
        lengths: Sequence[int],
        views: Mapping[Hashable, Tensor | int],
        outputs: Mapping[str, Tensor],
    ) -> Bound:
        """Say where loads and outputs are.

        Parameters
        ----------
        lengths : sequence of int
            Samples of each run, at least one each.
        views : mapping of load names to Tensor
            Shape () where neither problem nor sample matters, or the number's address; (N,), (B,)
            or (B, N), of the kernel's type, or bool; any strides.
        outputs : mapping of output names to Tensor
            (B,) or (B, k), rows contiguous.
        """
        table: list[int] = list(lengths)
        kept: list[Tensor] = []
        work = 0
        for name, depends in self.loads:
            view = views[name]
            if isinstance(view, int):
                table.append(view)
                continue
            if depends == SAMPLE:
                view = view.contiguous()
            kept.append(view)
            size = view.element_size()
            table.append(view.data_ptr())
            if depends & PROBLEM:
                table.append(view.stride(0) * size)
            if depends == PROBLEM | SAMPLE:
                table += [view.stride(1) * size, work]
                work += lengths[self._runs[name]] * self.target.bytes
        for output in self.machine.outputs:
            tensor = outputs[output.name]
            kept.append(tensor)
            table += [tensor.data_ptr(), tensor.stride(0) * tensor.element_size()]
        return Bound(self, np.array(table, dtype=np.int64), work, kept)


def _runs_of_loads(machine: Machine) -> dict[Hashable, int]:
    found: dict[Hashable, int] = {}
    for number, run in enumerate(machine.runs):
        for node in machine.loads_of(run):
            if node.depends & SAMPLE:
                found[node.value] = number
    return found


class Bound:
    """A kernel with its data.

    Parameters
    ----------
    kernel : Kernel
    table : array of int64
    work_bytes : int
        Working memory of a call.
    kept : list of Tensor
        What the addresses in the table belong to.
    """

    def __init__(
        self, kernel: Kernel, table: np.ndarray[Any, Any], work_bytes: int, kept: list[Tensor]
    ) -> None:
        self.kernel = kernel
        self.table = table
        self.work_bytes = work_bytes
        self.kept = kept

    def run(self, begin: int, end: int, history: Tensor | None = None) -> int:
        """Solve the problems of a range; how many passes over the samples that took.

        ``history`` (end − begin, K, k) takes their history, for machines with one.
        """
        table = self.table
        if history is not None:
            size = history.element_size()
            stride = history.stride(0) * size
            entry = (history.data_ptr() - begin * stride, stride, history.stride(1) * size)
            table = np.concatenate([table, np.array(entry, dtype=np.int64)])
        work = np.empty(self.work_bytes + ALIGNMENT, dtype=np.uint8)
        aligned = -(-work.ctypes.data // ALIGNMENT) * ALIGNMENT
        return int(self.kernel._call(table.ctypes.data, begin, end, aligned))

    def run_all(
        self,
        count: int,
        chunk: int | None = None,
        after_chunk: Callable[[int], object] | None = None,
    ) -> None:
        """Solve all problems, in chunks over as many threads as torch may use.

        Parameters
        ----------
        count : int
            B.
        chunk : int, optional
            Problems per call, see :func:`chunk_size`; all by default.
        after_chunk : callable, optional
            Told how many problems have been solved since the last time; called in this thread.
        """
        chunk = max(1, count) if chunk is None else chunk
        starts = range(0, count, chunk)
        threads = min(torch.get_num_threads(), len(starts))
        if threads <= 1:
            for start in starts:
                end = min(start + chunk, count)
                self.run(start, end)
                if after_chunk is not None:
                    after_chunk(end - start)
            return
        stopped = threading.Event()

        def solve(start: int) -> int:
            if stopped.is_set():
                return 0
            end = min(start + chunk, count)
            self.run(start, end)
            return end - start

        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in pool.map(solve, starts):
                    if after_chunk is not None:
                        after_chunk(done)
            finally:
                # after an interrupt the chunks that wait are not begun
                stopped.set()


def chunk_size(count: int, work: int) -> int:
    """Problems of a chunk: few enough for an interrupt, and for every thread to have some.

    Parameters
    ----------
    count : int
        B.
    work : int
        Numbers that one pass over one problem looks at.
    """
    work = max(1, work)
    size = min(MAX_CHUNK, CHUNK_WORK // work)
    threads = torch.get_num_threads()
    if threads > 1 and count * work > THREAD_WORK:
        size = min(size, -(-count // (CHUNKS_PER_THREAD * threads)))
    return max(MIN_CHUNK, size)
