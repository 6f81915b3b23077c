"""What the benchmarks share: the machine's description, and how a fit is checked."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from problems.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# The workloads live with the tests, and a GPU's machine may not have the package installed.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SOLVED = 1.001
"""A fit counts as solved where its cost is at most this much of the best one known."""

PART = 20_000_000
"""Numbers in one of the arrays that a check works with."""


def machine() -> dict[str, object]:
    """Processor, versions and today's date."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": version("torch"),
    }


def one_core() -> None:
    """Keep this process to one thread on one core: the last it may use."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def costs(workload: Workload, params: Tensor) -> Tensor:
    """½ Σ r² (B,) in float64 of the first B problems at `params` (B, P); infinite where NaN."""
    import torch

    x, y = workload.x.double(), workload.y[: len(params)]
    rows = max(1, PART // y.shape[1])
    parts = []
    for begin in range(0, len(params), rows):
        part = slice(begin, begin + rows)
        value = workload.model(x, *params[part, :, None].double().unbind(1))
        parts.append(0.5 * (value - y[part].double()).square().sum(-1))
    return torch.cat(parts).nan_to_num(nan=torch.inf)


def reference_costs(workload: Workload) -> Tensor:
    """Costs (B,) of float64 fits that start at the truth behind the data."""
    from torchimize import curve_fit

    popt, _, _ = curve_fit(
        workload.model, workload.x.double(), workload.y.double(), workload.truth.double(),
        jac=workload.jacobian, full_output=True,
    )  # fmt: skip
    return costs(workload, popt)
