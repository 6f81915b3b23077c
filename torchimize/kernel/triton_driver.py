"""Compiles machines for a GPU and runs the kernels, without the host waiting for the device.

Everything a kernel needs to know of its data, and the numbers that lie in the host's memory, goes
to the device in one copy. Kernels and copies are queued; nothing here waits for them.
"""

from __future__ import annotations

import ctypes
import importlib
import linecache
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count as counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.kernel import triton
from torchimize.kernel.driver import NoCompilerError
from torchimize.kernel.graph import PROBLEM, SAMPLE
from torchimize.kernel.llvm import UnsupportedError
from torchimize.kernel.machine import Machine
from torchimize.kernel.triton import Work

WARP = 32
"""Lanes that run together."""

BLOCKS = (32, 128, 512)
"""Samples across the lanes of a program that may be tried."""

BUSY_WARPS = 16
"""Warps that keep a multiprocessor busy; fewer leave it waiting for results."""

SLOWEST = 1.4
"""Passes of the slowest of 32 problems, over those of a typical one."""

REDUCTION = 10
"""Operations that one sum over the lanes takes; with more than one warp, twice as many."""

COPY_BYTES = 2**30
"""Data that is laid out anew at a time."""

LEAST_CHUNK = 2**16
"""Problems that fill a device for a while."""

MAX_OPERATIONS = 4000
"""Largest kernel that is compiled: it takes some seconds, and from there on far longer."""

AHEAD = 2
"""Chunks that are queued before a progress report waits for an earlier one."""


def unavailable(device: torch.device) -> str | None:
    """Why there are no kernels for a device; None where there are.

    Examples
    --------
    >>> import torch
    >>> unavailable(torch.device("meta"))
    'Triton makes no kernels for meta devices'
    """
    if device.type not in ("cuda", "cpu"):
        return f"Triton makes no kernels for {device.type} devices"
    try:
        interpreted = _interpreted()
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if device.type == "cpu":
        return None if interpreted else "Triton makes no kernels for cpu devices"
    if interpreted:
        return "Triton's interpreter is on (TRITON_INTERPRET=1), and it runs on the CPU"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def _interpreted() -> bool:
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


class TritonKernel:
    """A machine for a GPU; compiled at first use, once for each layout that is used.

    Parameters
    ----------
    machine : Machine
    bits : int
        32 or 64.
    layout : triton.Layout, optional
        What lies across the lanes; chosen by the number of problems and samples by default.

    Raises
    ------
    NoCompilerError
        Where triton is missing.
    UnsupportedError
        Where an operation has no code, or there are too many.
    """

    def __init__(self, machine: Machine, bits: int, layout: triton.Layout | None = None) -> None:
        try:
            self.interpreted = _interpreted()
        except ImportError as error:
            raise NoCompilerError(f"triton cannot be imported: {error}") from None
        self.machine, self.bits, self.layout = machine, bits, layout
        self.work = triton.work(machine, bits)
        size = sum(self.work.per_sample) + self.work.step
        if size > MAX_OPERATIONS:
            raise UnsupportedError(
                f"the kernel would have {size} operations; a GPU's may have {MAX_OPERATIONS}"
            )
        self.loads = [(node.value, node.depends) for node in machine.loads()]
        self._functions: dict[triton.Layout, Any] = {}
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """What runs, in words."""
        return "run by Triton's interpreter" if self.interpreted else "compiled by Triton"

    def function(self, layout: triton.Layout) -> Any:
        """The kernel of a layout, as Triton knows it."""
        with self._lock:
            if layout not in self._functions:
                text = triton.source(self.machine, self.bits, layout)
                self._functions[layout] = define(text)
            return self._functions[layout]

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
            Shape () where neither problem nor sample matters, or the number's address in the
            host's memory; (N,), (B,) or (B, N), of the kernel's type, or bool; any strides. On the
            device; those of shape () anywhere.
        outputs : mapping of output names to Tensor
            (B,) or (B, k), rows contiguous.

        Raises
        ------
        TypeError
            Another type.
        NoCompilerError
            Where the kernel does not compile.
        """
        found: dict[Hashable, Tensor] = {}
        for name, _ in self.loads:
            view, wanted = views[name], self._dtype(name)
            if isinstance(view, int):
                kind = ctypes.c_float if wanted == torch.float32 else ctypes.c_double
                view = torch.tensor(kind.from_address(view).value, dtype=wanted)
            if view.dtype != wanted:
                raise TypeError(f"load {name!r} is {view.dtype}; wanted {wanted}")
            found[name] = view
        return Bound(self, list(lengths), found, dict(outputs))

    def _dtype(self, name: Hashable) -> torch.dtype:
        if name in self.machine.booleans:
            return torch.bool
        single = self.bits == 32 or name in self.machine.singles
        return torch.float32 if single else torch.float64

    def _layout(self, lengths: Sequence[int], count: int, device: torch.device) -> triton.Layout:
        if self.layout is not None:
            return self.layout
        processors = 1
        if device.type == "cuda":  # pragma: gpu only
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        return choose(self.work, lengths, count, processors)


_NUMBERS = counter()


def define(text: str) -> Any:
    """The function ``run`` of a source text, as Triton knows it."""
    # Triton reads functions' source where tracebacks do
    name = f"<kernel {next(_NUMBERS)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": "torchimize.kernel.generated"}
    exec(compile(text, name, "exec"), scope)
    return scope["run"]


def choose(work: Work, lengths: Sequence[int], count: int, processors: int) -> triton.Layout:
    """The layout that should be fastest.

    A warp's operations are added up for one pass, times how often the device is filled with as
    many warps as keep it busy.

    Parameters
    ----------
    work : Work
    lengths : sequence of int
        Samples of each run.
    count : int
        Problems.
    processors : int
        Of the device.
    """
    best = triton.Layout("problems", WARP)
    if not work.sums:
        return best
    room = BUSY_WARPS * processors

    def filled(warps: float) -> float:
        return max(1.0, warps / room)

    per_problem = sum(n * k for n, k in zip(lengths, work.per_sample, strict=True)) + work.step
    least = SLOWEST * per_problem * filled(count / WARP)
    for lanes in BLOCKS:
        warps = lanes // WARP
        rounds = sum(-(-n // lanes) * k for n, k in zip(lengths, work.per_sample, strict=True))
        # warps of one program wait for each other at every sum
        reductions = work.sums * REDUCTION * (1 if warps == 1 else 2)
        time = (rounds + work.step + reductions) * filled(count * warps)
        if time < least:
            best, least = triton.Layout("samples", lanes), time
    return best


class Bound:
    """A kernel with its data.

    Parameters
    ----------
    kernel : TritonKernel
    lengths : list of int
    views : dict of load names to Tensor
    outputs : dict of output names to Tensor
    """

    def __init__(
        self,
        kernel: TritonKernel,
        lengths: list[int],
        views: dict[Hashable, Tensor],
        outputs: dict[str, Tensor],
    ) -> None:
        self.kernel, self.lengths, self.views, self.outputs = kernel, lengths, views, outputs
        first = outputs[kernel.machine.outputs[0].name]
        self.count, self.device = first.shape[0], first.device
        self.layout = kernel._layout(lengths, self.count, self.device)
        self.function = kernel.function(self.layout)
        self.options = {
            "num_warps": max(1, self.layout.lanes // WARP),
            "num_stages": 1,
            "enable_fp_fusion": False,
        }
        # lanes that read neighbouring problems should read neighbouring numbers
        self.copied = {
            name
            for name, depends in kernel.loads
            if self.layout.across == "problems"
            and depends == PROBLEM | SAMPLE
            and self.count > 1
            and views[name].stride(0) not in (0, 1)
        }
        if not kernel.interpreted:  # pragma: gpu only
            with self._on_device():
                try:
                    self.function.warmup(torch.int64, grid=(1,), **self.options)
                except Exception as error:
                    # whatever stops a compiler, the fits can be had without it
                    raise NoCompilerError(f"Triton does not compile: {error}") from error

    def _on_device(self) -> AbstractContextManager[Any]:
        if self.device.type == "cuda":  # pragma: gpu only
            return torch.cuda.device(self.device)
        return nullcontext()

    def run(self, begin: int, end: int, history: Tensor | None = None) -> None:
        """Solve the problems of a range; returns as soon as that is queued.

        ``history`` (end − begin, K, k) takes their history, for machines with one.
        """
        copies = {name: self.views[name][begin:end].T.contiguous().T for name in self.copied}
        views = {
            name: copies.get(name, self.views[name][begin:end] if depends & PROBLEM else view)
            for (name, depends), view in zip(self.kernel.loads, self.views.values(), strict=True)
        }
        table = self._table(end - begin, views, begin, history)
        grid = (self.layout.programs(end - begin),)
        with self._on_device():
            if self.kernel.interpreted:
                with np.errstate(all="ignore"):
                    self.function[grid](table, **self.options)
            else:  # pragma: gpu only
                self.function[grid](table, **self.options)

    def run_all(
        self,
        count: int | None = None,
        chunk: int | None = None,
        after_chunk: Callable[[int], object] | None = None,
    ) -> None:
        """Solve all problems; returns as soon as that is queued.

        Parameters
        ----------
        count : int, optional
            B, as in the outputs.
        chunk : int, optional
            Problems whose data is laid out anew at a time; by default as memory allows.
        after_chunk : callable, optional
            Told how many problems have been solved since the last time. With it the host waits for
            all but the last few chunks.
        """
        count = self.count if count is None else count
        size = self._chunk_size() if chunk is None else chunk
        waiting: deque[tuple[Any, int]] = deque()
        for begin in range(0, count, size):
            end = min(begin + size, count)
            self.run(begin, end)
            if after_chunk is None:
                continue
            waiting.append((self._event(), end - begin))
            while len(waiting) > (AHEAD if end < count else 0):
                event, done = waiting.popleft()
                if event is not None:  # pragma: gpu only
                    event.synchronize()
                after_chunk(done)

    def _event(self) -> Any:
        """Something to wait for what is queued now; None where nothing ever is."""
        if self.device.type != "cuda":
            return None
        with self._on_device():  # pragma: gpu only
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            return event

    def _chunk_size(self) -> int:
        """Problems whose copies take no more than :data:`COPY_BYTES`, but not too few of them."""
        row = sum(self.views[n].shape[1] * self.views[n].element_size() for n in self.copied)
        if not row:
            return max(1, self.count)
        return max(LEAST_CHUNK, COPY_BYTES // row // WARP * WARP)

    def _table(
        self, count: int, views: dict[Hashable, Tensor], begin: int, history: Tensor | None
    ) -> Tensor:
        """What the kernel reads first; see :func:`torchimize.kernel.triton.source`."""
        row = [count, 1, *self.lengths]
        numbers: list[tuple[int, Tensor]] = []
        for name, depends in self.kernel.loads:
            view = views[name]
            if depends == 0 and view.device.type == "cpu":
                # the host's numbers travel with the table
                numbers.append((len(row), view))
                row.append(0)
            else:
                row += [view.data_ptr(), *view.stride()]
        if history is not None:
            row += [history.data_ptr(), history.stride(0), history.stride(1)]
        for output in self.kernel.machine.outputs:
            tensor = self.outputs[output.name][begin:]
            row += [tensor.data_ptr(), tensor.stride(0)]
        table = torch.tensor([*row, *(0 for _ in numbers)], dtype=torch.int64)
        on_device = torch.empty_like(table, device=self.device)
        for place, (entry, number) in enumerate(numbers, len(row)):
            table[entry] = on_device.data_ptr() + 8 * place
            table[place : place + 1].view(number.dtype)[0] = number
        if self.device.type == "cuda":  # pragma: gpu only
            table = table.pin_memory()
        return on_device.copy_(table, non_blocking=True)
