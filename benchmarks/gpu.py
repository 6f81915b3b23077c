"""Fits per second and memory on one CUDA device: one call for a batch of 10⁴ to 10⁶ fits.

Runs in the checkout with an interpreter that has nothing but torch and NumPy. Results go to
``benchmarks/results`` as JSON. With ``--device cpu`` the same code runs without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import torch
from torch import Tensor

from problems import workloads
from torchimize import FitWarning, curve_fit

WORKLOADS = ("W1", "W2", "W3")
BATCHES = (10_000, 100_000, 1_000_000)
COLUMNS = "{:<9} {:<8} {:>11} {:>12} {:>9} {:>11}"


class Reading(NamedTuple):
    """Seconds until the device had finished, MiB beyond what was allocated before, parameters."""

    seconds: float
    peak_mib: float | None
    params: Tensor


def clocked(fit: Callable[[], Any], device: torch.device) -> Reading:
    """Time one call that returns parameters and covariances."""
    if device.type != "cuda":
        began = time.perf_counter()
        params, _ = fit()
        return Reading(time.perf_counter() - began, None, params)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    began = time.perf_counter()
    params, _ = fit()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Reading(seconds, (torch.cuda.max_memory_allocated() - before) / 2**20, params)


def place(
    workload: workloads.Workload, device: torch.device, dtype: torch.dtype
) -> workloads.Workload:
    """The workload's tensors on a device, in a dtype."""
    names = ("x", "y", "truth", "start")
    return replace(workload, **{name: getattr(workload, name).to(device, dtype) for name in names})


def measure(workload: workloads.Workload, rounds: int) -> dict[str, Any]:
    """Fit the whole workload in one call, `rounds` times; check the last one's fits."""
    batch, device = len(workload.y), workload.y.device

    def fit(rows: slice) -> Any:
        return curve_fit(workload.model, workload.x, workload.y[rows], p0=workload.start[rows])

    clocked(lambda: fit(slice(0, 1000)), device)
    readings = [clocked(lambda: fit(slice(None)), device) for _ in range(rounds)]
    found = common.costs(workload, readings[-1].params)
    best = torch.minimum(found, common.reference_costs(workload))
    return {
        "batch": batch,
        "fits_per_second": batch / median(reading.seconds for reading in readings),
        "rounds": [batch / reading.seconds for reading in readings],
        "solved": float((found <= common.SOLVED * best).double().mean()),
        "peak_mib": readings[-1].peak_mib,
    }


def line(record: dict[str, Any]) -> str:
    """One row of the printed table."""
    memory = record["peak_mib"]
    return COLUMNS.format(
        record["workload"],
        record["dtype"],
        f"{record['batch']:,}",
        f"{record['fits_per_second']:,.0f}",
        f"{record['solved']:.2%}",
        "–" if memory is None else f"{memory:,.0f}",
    )


def main() -> int:
    """Measure, print, write; 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=workloads.names())
    dtypes = ["float64", "float32"]
    parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes)
    parser.add_argument(
        "--batches", nargs="+", type=int, default=BATCHES, help="up to 10000000 makes sense"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="folder")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured (--device cpu runs the code without one)")
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The costs say which fits failed.
    warnings.simplefilter("ignore", FitWarning)

    machine = common.machine()
    machine["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    machine["cuda"] = torch.version.cuda
    print(f"{machine['device']}, torch {machine['torch']}, {machine['date']}\n")
    print(COLUMNS.format("workload", "dtype", "B", "fits/s", "solved", "peak MiB"))
    records = []
    for name in options.workloads:
        for batch in options.batches:
            drawn = workloads.make(name, batch)
            for dtype in options.dtypes:
                workload = place(drawn, device, getattr(torch, dtype))
                record = measure(workload, options.rounds)
                records.append({"workload": name, "dtype": dtype, **record})
                print(line(records[-1]), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{machine['date']}-gpu.json"
    path.write_text(
        json.dumps({"machine": machine, "rounds": options.rounds, "records": records}, indent=1)
        + "\n",
        encoding="utf-8",
    )
    print(f"\nWritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
