"""Runs the competitors, each in a process of its own, in rounds that meet everyone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from statistics import mean, median
from threading import Thread
from typing import Any, NamedTuple

import common
import numpy as np
import numpy.typing as npt
import stored
from competitors import COMPETITORS

SHARED = 10_000
"""Problems that every process holds; larger batches get processes of their own."""

TOLERANCE = 1e-6

DEFAULTS = ("torchimize", "scipy", "scipy-exact")
"""Measured with their own tolerances too."""

LARGE_ROUNDS = 3

DATA_LIMIT = 4e9
"""Bytes of float64 data; a larger workload is left out."""

START_LIMIT = 240.0
"""Seconds for imports, compilation and a first call."""

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}

Costs = npt.NDArray[np.float64]


class Setting(NamedTuple):
    """What the command line decides."""

    batches: list[int]
    rounds: int
    budget: float
    """Seconds that a cell is fitted for in a round."""
    patience: float
    """Seconds after which a cell is not repeated, and above which a large batch is left out."""


class PeerError(Exception):
    """A competitor that cannot go on; the message is the reason that the tables give."""


class Peer:
    """One competitor's process."""

    def __init__(
        self, name: str, workload: str, dtype: str, problems: int, tolerance: float | None,
        folder: Path,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        chosen = [] if tolerance is None else ["--tolerance", str(tolerance)]
        self.process = subprocess.Popen(
            [
                sys.executable, str(Path(__file__).with_name("peer.py")), name, *chosen,
                "--workload", workload, "--dtype", dtype, "--problems", str(problems),
                "--data", str(folder),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True,
            # Compiled kernels of torch are kept on disk; another run must not find them.
            env={**os.environ, **ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")},
        )  # fmt: skip
        self.lines: Queue[str] = Queue()
        Thread(target=self._listen, daemon=True).start()
        self.hello: dict[str, Any] = {}

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.stderr.close()

    def start(self) -> None:
        """Wait for the first line."""
        self.hello = self._hear(START_LIMIT)

    def ask(self, batch: int, budget: float, seconds: float) -> tuple[dict[str, Any], Costs]:
        """Figures of one measurement, and the costs of the fits."""
        costs = self.folder / f"costs-{self.process.pid}.npy"
        request = {"batch": batch, "budget": budget, "costs": str(costs)}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        figure = self._hear(seconds)
        return figure, np.load(costs)

    def _hear(self, seconds: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=seconds)
        except Empty:
            self.process.kill()
            raise PeerError(f"no answer within {seconds:.0f} s") from None
        if not line:
            self.stderr.seek(0)
            last = self.stderr.read().strip().rpartition("\n")[2]
            raise PeerError(f"ended with status {self.process.wait()}: {last}".rstrip(": "))
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise PeerError(message["error"])
        return message


class Cell(NamedTuple):
    """One competitor with one batch size."""

    peer: str
    batch: int
    tolerance: float | None


@dataclass
class Readings:
    """What the rounds brought for one cell."""

    figures: list[dict[str, Any]] = field(default_factory=list)
    costs: list[Costs] = field(default_factory=list)
    hellos: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median fits per second."""
        return float(median(figure["fits"] / figure["seconds"] for figure in self.figures))

    @property
    def spent(self) -> float:
        """Seconds that the cell took so far."""
        return sum(float(figure["seconds"]) for figure in self.figures)


class Measurement:
    """All competitors on one workload in one dtype."""

    def __init__(
        self, workload: str, dtype: str, names: Sequence[str], setting: Setting, best: Costs,
        folder: Path,
    ) -> None:  # fmt: skip
        self.workload, self.dtype, self.setting, self.folder = workload, dtype, setting, folder
        self.names = [name for name in names if dtype in COMPETITORS[name].dtypes]
        self.best = best
        self.readings: dict[Cell, Readings] = {}
        self.failures: dict[str, str] = {}

    def run(self) -> None:
        """Batches that all processes share, then the large ones."""
        small = [batch for batch in self.setting.batches if batch <= SHARED]
        cells = []
        for name in self.names:
            batches = [1] if COMPETITORS[name].loop else small
            cells += [Cell(name, batch, TOLERANCE) for batch in batches]
            if name in DEFAULTS:
                cells.append(Cell(name, batches[-1], None))
        self.interleave(cells, max(small))
        for batch in self.setting.batches:
            if SHARED < batch <= len(self.best):
                self.large(batch)

    def expected(self, name: str, batch: int) -> float:
        """Seconds that a call will take, by the largest batch so far; loops have no batches."""
        known = [
            (cell.batch, readings.rate)
            for cell, readings in self.readings.items()
            if cell.peer == name and cell.tolerance == TOLERANCE and readings.figures
        ]
        if COMPETITORS[name].loop or name in self.failures or not known:
            return np.inf
        return batch / max(known)[1]

    def interleave(self, cells: list[Cell], problems: int) -> None:
        """Rounds over all cells; a process serves all of a competitor's."""
        with ExitStack() as stack:
            peers: dict[tuple[str, float | None], Peer] = {}
            for number in range(self.setting.rounds):
                for cell in cells:
                    key = (cell.peer, cell.tolerance)
                    spent = self.readings.get(cell, Readings()).spent
                    if cell.peer in self.failures or (number and spent > self.setting.patience):
                        continue
                    if key not in peers:
                        peers[key] = stack.enter_context(self.peer(*key, problems))
                    self.visit(peers[key], cell)

    def large(self, batch: int) -> None:
        """A process for each measurement, since their data fill the memory."""
        cells = [
            Cell(name, batch, TOLERANCE)
            for name in self.names
            if self.expected(name, batch) <= self.setting.patience
        ]
        for _ in range(min(self.setting.rounds, LARGE_ROUNDS)):
            for cell in cells:
                if cell.peer not in self.failures:
                    with self.peer(cell.peer, cell.tolerance, batch) as peer:
                        self.visit(peer, cell)

    def visit(self, peer: Peer, cell: Cell) -> None:
        """Have one cell measured once."""
        readings = self.readings.setdefault(cell, Readings())
        # The check of all fits takes its time too.
        limit = 120 + 40 * self.setting.patience
        try:
            if not peer.hello:
                peer.start()
            figure, costs = peer.ask(cell.batch, self.setting.budget, limit)
        except PeerError as error:
            self.failures[cell.peer] = str(error)
            return
        known = self.best[: len(costs)]
        np.minimum(known, costs, out=known)
        readings.figures.append(figure)
        readings.costs.append(costs)
        if peer.hello not in readings.hellos:
            readings.hellos.append(peer.hello)

    def peer(self, name: str, tolerance: float | None, problems: int) -> Peer:
        return Peer(name, self.workload, self.dtype, problems, tolerance, self.folder)

    def records(self) -> list[dict[str, Any]]:
        """One record a cell."""
        return [self.record(cell, found) for cell, found in self.readings.items() if found.figures]

    def record(self, cell: Cell, readings: Readings) -> dict[str, Any]:
        figures, hello = readings.figures, readings.hellos[0]
        solved = [np.mean(c <= common.SOLVED * self.best[: len(c)]) for c in readings.costs]
        memory = [f["peak_mib"] for f in figures if f["peak_mib"] is not None]
        return {
            "workload": self.workload,
            "dtype": self.dtype,
            **cell._asdict(),
            "fits_per_second": readings.rate,
            "rounds": [f["fits"] / f["seconds"] for f in figures],
            "checked": min(len(c) for c in readings.costs),
            "solved": float(min(solved)),
            "evaluations": hello["evaluations"],
            "peak_mib": median(memory) if memory else None,
            "first_seconds": mean(h["first_seconds"] for h in readings.hellos),
            "detail": hello["detail"],
        }


def reference(workload: str, problems: int, folder: Path) -> Costs:
    """Costs of fits that start at the truth behind the data."""
    with Peer("reference", workload, "float64", problems, None, folder) as peer:
        peer.start()
        return peer.ask(problems, 0.0, 3600.0)[1]


def measure(
    workload: str, dtypes: Sequence[str], names: Sequence[str], setting: Setting
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Records and failures of all competitors on one workload."""
    problems = max(
        batch
        for batch in setting.batches
        if batch <= SHARED or 8 * batch * stored.num_samples(workload) <= DATA_LIMIT
    )
    with tempfile.TemporaryDirectory() as folder:
        stored.write(workload, problems, Path(folder))
        best = reference(workload, problems, Path(folder))
        measurements = [
            Measurement(workload, dtype, names, setting, best, Path(folder)) for dtype in dtypes
        ]
        for measurement in measurements:
            print(f"{workload} {measurement.dtype} …", file=sys.stderr, flush=True)
            measurement.run()
    # Only now the best costs are known.
    records = [record for measurement in measurements for record in measurement.records()]
    failures = [
        {"peer": name, "workload": workload, "dtype": measurement.dtype, "reason": reason}
        for measurement in measurements
        for name, reason in measurement.failures.items()
    ]
    return records, failures
