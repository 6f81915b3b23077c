"""Which share of the processor's arithmetic a fit reaches, for each workload.

A kernel's loops over the samples are read from its assembly: how many vector instructions one
sample takes for a vector of problems. Were these all, and started as fast as independent
multiply-adds can, a pass over the samples would take as long as the bound says. Results go to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from statistics import median
from typing import Any

import common
import processor
import tables
import torch

from problems import workloads
from torchimize import curve_fit
from torchimize.kernel.driver import Kernel, this_processor
from torchimize.lsq.fused import kernels

BATCHES = {"W1": 10_000, "W2": 50_000, "W3": 20_000, "W4": 1_000, "W5": 2_000, "gauss1d": 50_000}
TOLERANCE = 1e-6

LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"^\s+j\w+\s+(\.L\w+)")
VECTOR = re.compile(r"^\s+(v\w+)\s.*%[yz]mm")
MOVES = re.compile(r"v(p?mov|p?broadcast|p?gather|p?scatter|perm|punpck|unpck|shuf|insert|extract)")
"""Data on their way; the others compute."""


def instructions_per_sample(assembly: str) -> int:
    """Vector instructions that compute, in the loops over the samples.

    Those are the loops of a single block that compute with vectors. Where there are several, each
    does a part of the work for every sample.
    """
    total = 0
    label, count = "", 0
    for line in assembly.splitlines():
        if found := LABEL.match(line):
            label, count = found[1], 0
        elif found := JUMP.match(line):
            if found[1] == label:
                total += count
            label = ""
        elif found := VECTOR.match(line):
            count += not MOVES.match(found[1])
    return total


def fit_kernel() -> Kernel:
    """The kernel of the last fit; other kernels may have run after it."""
    return [
        kernel
        for kernel in kernels.kept()
        if isinstance(kernel, Kernel) and any(o.name == "nfev" for o in kernel.machine.outputs)
    ][-1]


def measure(name: str, dtype: str, rounds: int, batch: int) -> dict[str, Any]:
    """Instructions, time, evaluations."""
    work = workloads.make(name, batch, getattr(torch, dtype))
    tolerances: dict[str, Any] = dict.fromkeys(("ftol", "xtol", "gtol"), TOLERANCE)

    def fit(**more: Any) -> Any:
        return curve_fit(
            work.model, work.x, work.y, p0=work.start, engine="fused", **tolerances, **more
        )

    result = fit(full_output=True)[2]
    kernel = fit_kernel()
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        fit()
        seconds.append(time.process_time() - began)
    evaluations = float(result.nfev.double().mean())
    vectors = batch * evaluations * work.y.shape[1] / kernel.target.lanes
    return {
        "workload": name,
        "dtype": dtype,
        "lanes": kernel.target.lanes,
        "instructions": instructions_per_sample(kernel.assembly()),
        "evaluations": evaluations,
        "ns": 1e9 * median(seconds) / vectors,
    }


def table(records: list[dict[str, Any]], style: str) -> str:
    """One row a workload and dtype."""
    headers = [
        "", "", "lanes", "vector instructions", "bound, ns", "reached, ns", "per lane, ns", "share",
    ]  # fmt: skip
    rows = [
        [
            r["workload"], r["dtype"], str(r["lanes"]), str(r["instructions"]),
            tables.digits(r["bound_ns"]), tables.digits(r["ns"]),
            tables.digits(r["ns"] / r["lanes"]), f"{r['bound_ns'] / r['ns']:.0%}",
        ]
        for r in records
    ]  # fmt: skip
    return tables.render(headers, rows, style, texts=2)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=BATCHES, default=[*BATCHES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="problems of each workload")
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="folder")
    options = parser.parse_args()
    common.one_core()
    records = [
        measure(name, dtype, options.rounds, options.batch or BATCHES[name])
        for name in options.workloads
        for dtype in ("float64", "float32")
    ]
    gigahertz = processor.clock()
    width = this_processor().bytes
    rate = processor.multiply_adds(width)
    for record in records:
        record["bound_ns"] = record["instructions"] / rate
    found = {"gigahertz": gigahertz, "multiply_adds_per_cycle": rate / gigahertz, "bytes": width}
    machine = {**common.machine(), **found}
    legend = (
        f"{machine['processor']} at {gigahertz:.2f} GHz, which starts {rate / gigahertz:.2f} "
        f"multiply-adds of {8 * width} bits a cycle."
    )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{machine['date']}-arithmetic.json"
    path.write_text(
        json.dumps({"machine": machine, "records": records}, indent=1) + "\n", encoding="utf-8"
    )
    text = f"{legend}\n\n{table(records, 'rst')}\n"
    (options.output / "arithmetic.rst").write_text(text, encoding="utf-8")
    print(f"{table(records, 'simple')}\n\n{legend}")


if __name__ == "__main__":
    main()
