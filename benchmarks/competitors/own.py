"""torchimize: both engines, and the fits that the costs are measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from problems.workloads import Workload
from torchimize import curve_fit


class Own:
    """One call for all problems of a slice."""

    engine = "auto"
    detail: str | None = None

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        self.workload = workload
        self.settings: dict[str, Any] = {"engine": self.engine}
        if tolerance is not None:
            self.settings.update(ftol=tolerance, xtol=tolerance, gtol=tolerance)

    def call(self, rows: slice, **more: Any) -> Any:
        work = self.workload
        return curve_fit(
            work.model, work.x, work.y[rows], p0=work.start[rows], **self.settings, **more
        )

    def fit(self, rows: slice) -> Tensor:
        params: Tensor = self.call(rows)[0]
        return params

    def evaluations(self, rows: slice) -> float | None:
        result = self.call(rows, full_output=True)[2]
        self.detail = result.engine
        return float(result.nfev.double().mean())


class Fused(Own):
    """The engine that a call takes by itself."""


class Eager(Own):
    """The engine that runs torch operations."""

    engine = "eager"


class Reference(Own):
    """From the truth behind the data, until the parameters stand still."""

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        super().__init__(workload, None)

    def fit(self, rows: slice) -> Tensor:
        work = self.workload
        params: Tensor = curve_fit(work.model, work.x, work.y[rows], p0=work.truth[rows])[0]
        return torch.where(params.isfinite(), params, work.truth[rows])
