"""Fits per second and memory on one CPU core: one call for a batch, against loops.

Each measurement is a process of its own (``benchmarks/peer.py``) with one thread on one core. The
rounds are interleaved, so that a slow minute of the machine meets every competitor. Results go to
``benchmarks/results``: a JSON file, and the table that the documentation shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import numpy as np
import numpy.typing as npt
from tabulate import tabulate

WORKLOADS = ("W1", "W2", "W3", "W5", "gauss1d")
BATCHES = (1, 100, 10_000, 1_000_000)
SHARED = 10_000
"""Up to this size all batches and loops take their problems from one set of as many."""

SMALLEST = "W2"
"""Runs with every batch size, however long it takes."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Costs = npt.NDArray[np.float64]


class Cell(NamedTuple):
    """One competitor with one batch size."""

    peer: str
    batch: int


class Setting(NamedTuple):
    """What the command line decides."""

    batches: list[int]
    rounds: int
    budget: float
    patience: float


def run_peer(cell: Cell, workload: str, dtype: str, problems: int, budget: float) -> Any:
    """Measure once: the peer's figures, and the costs of its fits."""
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.npy"
        command = [
            sys.executable, str(Path(__file__).with_name("peer.py")), cell.peer,
            "--workload", workload, "--dtype", dtype, "--problems", str(problems),
            "--batch", str(cell.batch), "--budget", str(budget), "--costs", str(costs),
        ]  # fmt: skip
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )
        return json.loads(done.stdout), np.load(costs)


def measure(workload: str, dtype: str, setting: Setting) -> list[dict[str, Any]]:
    """All competitors on one workload: one record a cell."""
    cells = [Cell("torchimize", batch) for batch in setting.batches]
    if dtype == "float64":
        # SciPy's curve_fit turns everything into float64.
        cells += [Cell("scipy", 1), Cell("scipy-exact", 1)]
    shared = max([batch for batch in setting.batches if batch <= SHARED], default=SHARED)
    best: dict[int, Costs] = {}
    figures: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    costs: dict[Cell, list[Costs]] = {cell: [] for cell in cells}
    for _ in range(setting.rounds):
        for cell in cells:
            large = cell.batch > SHARED and workload != SMALLEST
            if large and _prediction(figures, cell) > setting.patience:
                continue
            problems = max(shared, cell.batch)
            if problems not in best:
                best[problems] = run_peer(Cell("reference", 1), workload, dtype, problems, 0)[1]
            figure, found = run_peer(cell, workload, dtype, problems, setting.budget)
            known = best[problems][: len(found)]
            np.minimum(known, found, out=known)
            figures[cell].append(figure)
            costs[cell].append(found)
    records = []
    for cell in cells:
        if not figures[cell]:
            continue
        known = best[max(shared, cell.batch)]
        solved = min(float(np.mean(c <= common.SOLVED * known[: len(c)])) for c in costs[cell])
        rates = [figure["fits"] / figure["seconds"] for figure in figures[cell]]
        memory = [figure["peak_mib"] for figure in figures[cell] if figure["peak_mib"] is not None]
        records.append(
            {
                "workload": workload,
                "dtype": dtype,
                **cell._asdict(),
                "fits_per_second": median(rates),
                "rounds": rates,
                "fits": min(figure["fits"] for figure in figures[cell]),
                "solved": solved,
                "peak_mib": median(memory) if memory else None,
            }
        )
    return records


def _prediction(figures: dict[Cell, list[dict[str, Any]]], cell: Cell) -> float:
    """Seconds that one call of this cell will take, by the next smaller batch's first round."""
    smaller = [c for c in figures if c.peer == cell.peer and c.batch < cell.batch and figures[c]]
    if not smaller:
        return 0.0
    figure = figures[max(smaller, key=lambda c: c.batch)][0]
    return float(cell.batch * figure["seconds"] / figure["fits"])


def three_digits(value: float) -> float:
    """Rounded to what a repetition of the measurement would confirm."""
    return float(f"{value:.3g}")


def speed(record: dict[str, Any] | None) -> str:
    """Fits per second, with the share that is solved where that is not all."""
    if record is None:
        return "–"
    text = f"{three_digits(record['fits_per_second']):,.0f}"
    return text if record["solved"] == 1 else f"{text} ({record['solved']:.2%})"


def table(records: list[dict[str, Any]], batches: list[int], style: str) -> str:
    """One row for each workload and dtype."""
    found = {(r["workload"], r["dtype"], r["peer"], r["batch"]): r for r in records}
    headers = [
        "workload", "dtype", "SciPy loop", "SciPy loop, exact J",
        *(f"B = {batch:,}" for batch in batches), "× SciPy",
        *(f"MiB, B = {batch:,}" for batch in batches if batch > 1),
    ]  # fmt: skip
    rows = []
    for workload, dtype in dict.fromkeys((r["workload"], r["dtype"]) for r in records):
        ours = [found.get((workload, dtype, "torchimize", batch)) for batch in batches]
        loops = [found.get((workload, "float64", p, 1)) for p in ("scipy", "scipy-exact")]
        memory = [
            None if record is None else record["peak_mib"]
            for record, batch in zip(ours, batches, strict=True)
            if batch > 1
        ]
        fastest = max((r["fits_per_second"] for r in loops if r), default=None)
        ratio = fastest and max(r["fits_per_second"] for r in ours if r) / fastest
        rows.append(
            [
                workload,
                dtype,
                *(speed(loop) if dtype == "float64" else "–" for loop in loops),
                *map(speed, ours),
                f"{ratio:.3g}" if ratio else "–",
                *("–" if mib is None else f"{three_digits(mib):,g}" for mib in memory),
            ]
        )
    align = ["left", "left"] + ["right"] * (len(headers) - 2)
    return str(tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True))


def legend(machine: dict[str, Any], setting: Setting) -> str:
    """The line above the table: machine, versions, how it was measured."""
    return (
        f"Fits per second on one core of {machine['processor']}, one thread, {machine['date']}: "
        f"Python {machine['python']}, torch {machine['torch']}, NumPy {machine['numpy']}, "
        f"SciPy {machine['scipy']}. Medians of {setting.rounds} rounds; every fit was checked, and "
        "a share in brackets is what was solved where that is not all. – stands where SciPy has no "
        f"float32, and where one call for more than {SHARED:,} problems would take longer than "
        f"{setting.patience:g} s ({SMALLEST} always runs)."
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=WORKLOADS)
    dtypes = ["float64", "float32"]
    parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds that a loop fits (2)")
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        help=f"longest call for more than {SHARED:,} problems, seconds (30)",
    )
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="folder")
    options = parser.parse_args()
    setting = Setting(sorted(options.batches), options.rounds, options.budget, options.patience)
    machine = {**common.machine(), "scipy": version("scipy")}
    records = []
    for workload in options.workloads:
        for dtype in options.dtypes:
            print(f"{workload} {dtype} …", file=sys.stderr)
            records += measure(workload, dtype, setting)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "setting": setting._asdict(), "records": records}
    path = options.output / f"{machine['date']}-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = legend(machine, setting)
    rst = f"{text}\n\n{table(records, setting.batches, 'rst')}\n"
    (options.output / "cpu.rst").write_text(rst, encoding="utf-8")
    print(f"{table(records, setting.batches, 'simple')}\n\n{text}\n\nWritten to {path.parent}")


if __name__ == "__main__":
    main()
