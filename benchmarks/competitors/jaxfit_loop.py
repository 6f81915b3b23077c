"""JAXFit's curve_fit, one problem a call; it computes in float64 only."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from competitors.jax_models import MODELS
from competitors.scipy_loops import Array, Loop
from problems.workloads import Workload

# JAXFit imports `config` from a module that JAX has since replaced by an attribute.
sys.modules.setdefault("jax.config", SimpleNamespace(config=jax.config))  # type: ignore[arg-type]

import jaxfit  # noqa: E402


class JaxFit(Loop):
    """Trust region on JAX's forward mode; compiles once, at the first fit."""

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        super().__init__(workload, tolerance)
        self.jax_model = MODELS[workload.name]
        self.fitter = jaxfit.CurveFit()
        self.abscissa: Any = tuple(self.x) if self.x.ndim == 2 else self.x

    def one(self, row: int) -> tuple[Array, int]:
        start = self.start[row]
        try:
            params, _ = self.fitter.curve_fit(
                self.jax_model, self.abscissa, self.y[row], p0=start, **self.tolerances
            )
        except RuntimeError:
            return np.full(len(start), np.nan), 0
        return np.asarray(params), 0

    def evaluations(self, rows: slice) -> float | None:
        return None
