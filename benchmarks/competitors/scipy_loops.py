"""SciPy, one problem a call. It computes in float64 only."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch
from numpy_jacobians import JACOBIANS
from torch import Tensor

from problems.workloads import Workload

Array = npt.NDArray[np.float64]


class Loop:
    """Data in NumPy, and a call for each problem of a slice."""

    detail: str | None = None

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        self.x, self.y, self.start = (
            tensor.double().numpy() for tensor in (workload.x, workload.y, workload.start)
        )
        self.model = workload.model_numpy
        self.jacobian = JACOBIANS[workload.name]
        self.tolerances: dict[str, float] = (
            {} if tolerance is None else dict.fromkeys(("ftol", "xtol", "gtol"), tolerance)
        )
        # The costs say which fits failed.
        warnings.simplefilter("ignore", scipy.optimize.OptimizeWarning)
        np.seterr(all="ignore")

    def one(self, row: int) -> tuple[Array, int]:
        """Parameters of one problem and the evaluations that they took."""
        raise NotImplementedError

    def fit(self, rows: slice) -> Tensor:
        return torch.from_numpy(np.stack([self.one(k)[0] for k in range(rows.start, rows.stop)]))

    def evaluations(self, rows: slice) -> float | None:
        return float(np.mean([self.one(k)[1] for k in range(rows.start, rows.stop)]))


class CurveFit(Loop):
    """MINPACK with finite differences: what most programs have. Counts those evaluations too."""

    exact = False

    def one(self, row: int) -> tuple[Array, int]:
        jacobian: Any = self.jacobian if self.exact else None
        try:
            params, _, info, _, _ = scipy.optimize.curve_fit(
                self.model, self.x, self.y[row], p0=self.start[row], jac=jacobian,
                full_output=True, **self.tolerances,
            )  # fmt: skip
        except RuntimeError:
            return np.full(self.start.shape[1], np.nan), 0
        return params, info["nfev"]


class Exact(CurveFit):
    """The same with exact Jacobians, written in NumPy."""

    exact = True


class Trf(Loop):
    """The trust region of least_squares, with exact Jacobians."""

    def one(self, row: int) -> tuple[Array, int]:
        y = self.y[row]
        found = scipy.optimize.least_squares(
            lambda p: self.model(self.x, *p) - y,
            self.start[row],
            jac=lambda p: self.jacobian(self.x, *p),
            **self.tolerances,
        )
        return found.x, found.nfev
