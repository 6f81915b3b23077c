"""Cpufit, the CPU twin of Gpufit, where a build of it can be pointed at.

The environment variable TORCHIMIZE_CPUFIT names shared libraries, separated as in PATH. A library
with 'float32' or 'float64' in its name is taken for that precision. Of several the one counts that
is fastest on the workload's first problems.

A library must export ``cpufit`` with Cpufit's own signature. Models go by number and take their
parameters in the workload's order. Cpufit has 0 (``gauss1d``) and 1 (``W1``: pixels counted from 0,
those of a row one after the other, no x). The others have to be built into it: 101 to 104 for
``W2`` to ``W5``. These, and 0, find x in ``user_info``: one REAL for each sample, shared by all
fits; in ``W4`` as in its data, one channel after the other.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from problems.workloads import Workload

VARIABLE = "TORCHIMIZE_CPUFIT"
MODELS = {"gauss1d": 0, "W1": 1, "W2": 101, "W3": 102, "W4": 103, "W5": 104}
WITHOUT_X = ("W1",)
MAX_ITERATIONS = 100
TRIAL = 500
"""Problems that choose among the libraries."""

SIZE, POINTER, INT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int


class Cpufit:
    """One call for all problems of a slice; denormals are flushed."""

    detail: str | None

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        self.model = MODELS[workload.name]
        self.y, self.start = workload.y.numpy(), workload.start.numpy()
        self.x = None if workload.name in WITHOUT_X else workload.x.numpy()
        self.tolerance = 1e-6 if tolerance is None else tolerance
        torch.set_flush_denormal(True)
        self.function, self.detail = self.fastest(str(workload.y.dtype).removeprefix("torch."))

    def fastest(self, dtype: str) -> tuple[Any, str]:
        """The function that counts, and its library's name."""
        paths = [Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if dtype in p]
        if not paths:
            raise RuntimeError(f"{VARIABLE} names no {dtype} library")
        trial = slice(0, min(TRIAL, len(self.y)))
        timed: list[tuple[float, str, Any]] = []
        for path in paths:
            function = declared(ctypes.CDLL(str(path)), dtype)
            self.call(function, trial)
            began = time.process_time()
            self.call(function, trial)
            timed.append((time.process_time() - began, path.stem, function))
        _, name, function = min(timed, key=lambda entry: entry[0])
        return function, name

    def call(self, function: Any, rows: slice) -> tuple[Any, Any]:
        y, start = self.y[rows], self.start[rows]
        (num_fits, num_samples), num_params = y.shape, start.shape[1]
        params, chi_squares = np.empty_like(start), np.empty_like(y[:, 0])
        states, iterations = (np.empty(num_fits, np.int32) for _ in range(2))
        fitted = np.ones(num_params, np.int32)
        status = function(
            num_fits, num_samples, y.ctypes.data, None, self.model, start.ctypes.data,
            self.tolerance, MAX_ITERATIONS, fitted.ctypes.data, 0,
            0 if self.x is None else self.x.nbytes, None if self.x is None else self.x.ctypes.data,
            params.ctypes.data, states.ctypes.data, chi_squares.ctypes.data, iterations.ctypes.data,
        )  # fmt: skip
        if status != 0:
            raise RuntimeError(f"Cpufit has no model {self.model} ({VARIABLE})")
        return params, iterations

    def fit(self, rows: slice) -> Tensor:
        return torch.from_numpy(self.call(self.function, rows)[0])

    def evaluations(self, rows: slice) -> float | None:
        # The one at the start is no iteration.
        return float(self.call(self.function, rows)[1].mean()) + 1


def declared(library: ctypes.CDLL, dtype: str) -> Any:
    """The library's function with its types."""
    real = ctypes.c_double if dtype == "float64" else ctypes.c_float
    function = library.cpufit
    function.restype = INT
    function.argtypes = [
        SIZE, SIZE, POINTER, POINTER, INT, POINTER, real, INT, POINTER, INT, SIZE, *[POINTER] * 5
    ]  # fmt: skip
    return function
