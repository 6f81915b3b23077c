"""lmfit's ``minimize``, one problem a call."""

from __future__ import annotations

from typing import Any

import lmfit
import numpy as np

from competitors.scipy_loops import Array, Loop
from problems.workloads import Workload


class Lmfit(Loop):
    """Its method 'leastsq': MINPACK with finite differences, and error bars."""

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        super().__init__(workload, tolerance)
        self.names = [f"p{k}" for k in range(self.start.shape[1])]

    def one(self, row: int) -> tuple[Array, int]:
        y = self.y[row]
        params = lmfit.Parameters()
        for name, value in zip(self.names, self.start[row], strict=True):
            params.add(name, value)

        def residual(params: Any) -> Array:
            difference: Array = self.model(self.x, *params.valuesdict().values()) - y
            return difference

        try:
            found = lmfit.minimize(residual, params, **self.tolerances)
        except ValueError:
            # A trial step led to NaN.
            return np.full(len(self.names), np.nan), 0
        return np.array([found.params[name].value for name in self.names]), found.nfev
