"""Fits per second and memory on one CUDA device: one call for a batch of 10⁴ to 10⁸ fits.

The fused engine beside the eager one. Runs in the checkout with an interpreter that has nothing but
torch (and its triton) and NumPy. Results go to ``benchmarks/results`` as JSON. With ``--device
cpu`` the same code runs without a GPU.
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
from torchimize.errors import NotFusedError

WORKLOADS = ("W1", "W2", "W3", "gauss1d")
BATCHES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
ENGINES = ("fused", "eager")
COLUMNS = "{:<9} {:<8} {:<6} {:>11} {:>13} {:>9} {:>11} {:>6}"

DRAWN = 1_000_000
"""Problems that are drawn; a larger batch repeats them."""

SHARE = 0.25
"""Of a device's memory that data may take: outputs and copies need the rest."""

EAGER_LIMIT = 10_000_000
"""Problems up to which the eager engine takes part, unless ``--batches`` says otherwise."""


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
    workload: workloads.Workload, batch: int, device: torch.device, dtype: torch.dtype
) -> workloads.Workload:
    """The workload's tensors on a device, in a dtype, repeated until there are enough problems."""
    copies = -(-batch // len(workload.y))
    x = workload.x.to(device, dtype)
    parts = {
        name: getattr(workload, name).to(device, dtype).repeat(copies, 1)[:batch]
        for name in ("y", "truth", "start")
    }
    return replace(workload, x=x, **parts)


def measure(workload: workloads.Workload, engine: str, rounds: int) -> dict[str, Any]:
    """Fit the whole workload in one call, `rounds` times; check the last one's fits.

    Raises
    ------
    NotFusedError
        Where the fused engine cannot run here.
    """
    batch, device = len(workload.y), workload.y.device

    def fit(rows: slice, full_output: bool = False) -> Any:
        y, start = workload.y[rows], workload.start[rows]
        options: dict[str, Any] = {"engine": engine, "full_output": full_output}
        return curve_fit(workload.model, workload.x, y, p0=start, **options)

    began = time.perf_counter()
    *_, result = fit(slice(0, 1000), full_output=True)
    first = time.perf_counter() - began
    clocked(lambda: fit(slice(None)), device)
    readings = [clocked(lambda: fit(slice(None)), device) for _ in range(rounds)]
    # repeated problems have the same best costs
    own = slice(0, min(batch, DRAWN))
    few = replace(workload, y=workload.y[own], truth=workload.truth[own])
    found = common.costs(few, readings[-1].params[own])
    best = torch.minimum(found, common.reference_costs(few))
    fits_per_second = batch / median(reading.seconds for reading in readings)
    evaluations = float(result.nfev.double().mean())
    return {
        "engine": engine,
        "batch": batch,
        "fits_per_second": fits_per_second,
        "rounds": [batch / reading.seconds for reading in readings],
        "solved": float((found <= common.SOLVED * best).double().mean()),
        "peak_mib": readings[-1].peak_mib,
        "first_call_seconds": first,
        "evaluations": evaluations,
        # what a share of the arithmetic and of the memory's bound is computed from
        "samples_per_second": fits_per_second * evaluations * workload.y.shape[1],
        "data_bytes_per_second": fits_per_second * workload.y.shape[1] * workload.y.element_size(),
    }


def line(record: dict[str, Any]) -> str:
    """One row of the printed table."""
    memory = record["peak_mib"]
    return COLUMNS.format(
        record["workload"],
        record["dtype"],
        record["engine"],
        f"{record['batch']:,}",
        f"{record['fits_per_second']:,.0f}",
        f"{record['solved']:.2%}",
        "–" if memory is None else f"{memory:,.0f}",
        f"{record['evaluations']:.2f}",
    )


def fits_in(workload: workloads.Workload, batch: int, dtype: str, device: torch.device) -> bool:
    """Whether a device can hold the data of so many problems and all that comes with it."""
    if device.type != "cuda":
        return True
    size = 8 if dtype == "float64" else 4
    total: int = torch.cuda.get_device_properties(device).total_memory
    return batch * workload.y.shape[1] * size <= SHARE * total


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and its device."""
    machine: dict[str, Any] = dict(common.machine())
    machine["device"] = "CPU"
    machine["cuda"] = torch.version.cuda
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["device"] = properties.name
        machine["multiprocessors"] = properties.multi_processor_count
        machine["memory_gib"] = properties.total_memory / 2**30
        try:
            import triton
        except ImportError:
            machine["triton"] = None
        else:
            machine["triton"] = triton.__version__
    return machine


def main() -> int:
    """Measure, print, write; 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=workloads.names())
    dtypes = ["float64", "float32"]
    parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--batches", nargs="+", type=int, help="10⁴ to 10⁸ by default")
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

    machine = describe(device)
    print(f"{machine['device']}, torch {machine['torch']}, {machine['date']}\n")
    print(
        COLUMNS.format("workload", "dtype", "engine", "B", "fits/s", "solved", "peak MiB", "evals")
    )
    records = []
    for name in options.workloads:
        for batch in options.batches or BATCHES:
            drawn = workloads.make(name, min(batch, DRAWN))
            for dtype in options.dtypes:
                if not fits_in(drawn, batch, dtype, device):
                    print(f"{name} {dtype} {batch:,}: too much data for this device", flush=True)
                    continue
                workload = place(drawn, batch, device, getattr(torch, dtype))
                for engine in options.engines:
                    if engine == "eager" and not options.batches and batch > EAGER_LIMIT:
                        continue
                    try:
                        record = measure(workload, engine, options.rounds)
                    except NotFusedError as error:
                        print(f"{name} {dtype} {batch:,}: not fused, {error}", flush=True)
                        continue
                    except torch.cuda.OutOfMemoryError:
                        print(f"{name} {dtype} {engine} {batch:,}: out of memory", flush=True)
                        torch.cuda.empty_cache()
                        continue
                    records.append({"workload": name, "dtype": dtype, **record})
                    print(line(records[-1]), flush=True)
                del workload
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
