"""One measurement of one competitor in this process; prints a line of JSON.

``benchmarks/cpu.py`` starts it. The clock runs over whole fits, from data in memory to parameters
and covariances; imports, data and a first call lie before it, the check of the solutions after it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import numpy as np
import scipy.optimize
import torch
from numpy_jacobians import JACOBIANS
from torch import Tensor

from problems import workloads
from torchimize import FitWarning, curve_fit

Fit = Callable[[slice], Tensor]
"""Fits the problems of a slice: their parameters (B, P)."""


def torchimize_fit(workload: workloads.Workload) -> Fit:
    """One call for all problems of the slice, nothing set."""

    def fit(rows: slice) -> Tensor:
        popt: Tensor
        popt, _ = curve_fit(workload.model, workload.x, workload.y[rows], p0=workload.start[rows])
        return popt

    return fit


def scipy_fit(workload: workloads.Workload, exact: bool) -> Fit:
    """One call a problem, nothing set but the start and, if `exact`, the Jacobian."""
    x, y, start = (v.double().numpy() for v in (workload.x, workload.y, workload.start))
    jacobian = JACOBIANS[workload.name] if exact else None

    def fit(rows: slice) -> Tensor:
        try:
            popt, _ = scipy.optimize.curve_fit(
                workload.model_numpy, x, y[rows][0], p0=start[rows][0], jac=jacobian
            )
        except RuntimeError:
            popt = np.full(start.shape[1], np.nan)
        return torch.from_numpy(popt)[None]

    return fit


def reset_peak() -> float | None:
    """Forget the process's largest size so far; MiB it has now, None where this is impossible."""
    gc.collect()
    try:
        # Freed blocks that the allocator keeps would hide what the fits take.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError):
        return None
    return peak()


def peak() -> float:
    """Largest size of the process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def batches(num_problems: int, size: int) -> Iterator[slice]:
    """Slices of `size` problems, one after the other."""
    for begin in range(0, num_problems - size + 1, size):
        yield slice(begin, begin + size)


def measure(
    peer: str, workload: workloads.Workload, batch: int, budget: float
) -> tuple[dict[str, float | int | None], Tensor]:
    """Fit batches until all problems are done or `budget` seconds are over; at least one."""
    if peer == "torchimize":
        fit = torchimize_fit(workload)
    else:
        fit = scipy_fit(workload, exact=peer == "scipy-exact")
    fit(slice(0, min(batch, 2)))
    before = reset_peak()
    found: list[Tensor] = []
    began = time.perf_counter()
    for rows in batches(len(workload.y), batch):
        found.append(fit(rows))
        seconds = time.perf_counter() - began
        if seconds > budget:
            break
    memory = None if before is None else peak() - before
    params = torch.cat(found)
    return {"fits": len(params), "seconds": seconds, "peak_mib": memory}, params


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=["torchimize", "scipy", "scipy-exact", "reference"])
    parser.add_argument("--workload", required=True)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--problems", type=int, required=True, help="problems that are drawn")
    parser.add_argument("--batch", type=int, default=1, help="problems a call")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds")
    parser.add_argument("--costs", type=Path, required=True, help="file for the costs, .npy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # The costs say which fits failed.
    warnings.simplefilter("ignore", FitWarning)
    warnings.simplefilter("ignore", scipy.optimize.OptimizeWarning)
    np.seterr(all="ignore")

    dtype = getattr(torch, options.dtype)
    workload = workloads.make(options.workload, options.problems, dtype)
    figures: dict[str, float | int | None] = {}
    if options.peer == "reference":
        costs = common.reference_costs(workload)
    else:
        figures, params = measure(options.peer, workload, options.batch, options.budget)
        costs = common.costs(workload, params)
    np.save(options.costs, costs.numpy())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
