"""Thousands of small nonlinear least-squares problems in one call, on PyTorch."""

from torchimize._curve_fit import curve_fit
from torchimize._least_squares import least_squares
from torchimize.progress import IterationState
from torchimize.result import Result
from torchimize.status import CovarianceStatus, FitWarning, Status

__version__ = "0.1.0"

__all__ = [
    "CovarianceStatus",
    "FitWarning",
    "IterationState",
    "Result",
    "Status",
    "curve_fit",
    "least_squares",
]
