"""A workload on disk: drawn once, read by every process that fits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from problems import workloads

PARTS = ("x", "y", "truth", "start")


def num_samples(name: str) -> int:
    """Samples of one problem, all channels together."""
    return workloads.make(name, 1).y.shape[1]


def write(name: str, num_problems: int, folder: Path) -> None:
    """Draw in float64."""
    workload = workloads.make(name, num_problems)
    for part in PARTS:
        np.save(folder / f"{part}.npy", getattr(workload, part).numpy())


def read(name: str, num_problems: int, dtype: torch.dtype, folder: Path) -> workloads.Workload:
    """The first problems, in memory and in a dtype."""
    tensors: dict[str, Any] = {}
    for part in PARTS:
        array = np.load(folder / f"{part}.npy", mmap_mode="r")
        rows = array if part == "x" else array[:num_problems]
        tensors[part] = torch.empty(rows.shape, dtype=dtype)
        tensors[part].numpy()[...] = rows
    return replace(workloads.make(name, 1, dtype), **tensors)
