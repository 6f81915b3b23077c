"""Who is measured: each competitor is a class in a module of its own.

A class is built from a workload and a tolerance (None: its own default) and has ``fit`` and
``evaluations``; see :class:`Competitor`. Its module imports what it needs, so that a missing
package stops this one only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from problems.workloads import Workload

BOTH = ("float64", "float32")
DOUBLE = ("float64",)


class Competitor(Protocol):
    """Fits problems of one workload, in the dtype of its tensors."""

    detail: str | None
    """What exactly ran, known at the latest after ``evaluations``."""

    def fit(self, rows: slice) -> Tensor:
        """Parameters (B, P) of the problems of a slice."""
        ...

    def evaluations(self, rows: slice) -> float | None:
        """Mean number of model evaluations a fit, as the competitor counts them."""
        ...


class Entry(NamedTuple):
    """One row of the tables."""

    label: str
    place: str
    """Module and class."""
    dtypes: tuple[str, ...] = BOTH
    loop: bool = False
    """Fits one problem a call."""


COMPETITORS = {
    "torchimize": Entry("torchimize", "own:Fused"),
    "torchimize-eager": Entry("torchimize, eager engine", "own:Eager"),
    "cpufit": Entry("Cpufit", "cpufit:Cpufit"),
    "jaxopt": Entry("jaxopt, vmapped", "jax_batch:Jaxopt"),
    "optimistix": Entry("Optimistix, vmapped", "jax_batch:Optimistix"),
    "compiled": Entry("textbook LM, torch.compile", "compiled:Compiled"),
    "scipy": Entry("SciPy curve_fit, loop", "scipy_loops:CurveFit", DOUBLE, True),
    "scipy-exact": Entry("SciPy curve_fit, exact J, loop", "scipy_loops:Exact", DOUBLE, True),
    "scipy-trf": Entry("SciPy least_squares, exact J, loop", "scipy_loops:Trf", DOUBLE, True),
    "jaxfit": Entry("JAXFit, loop", "jaxfit_loop:JaxFit", DOUBLE, True),
    "lmfit": Entry("lmfit, loop", "lmfit_loop:Lmfit", DOUBLE, True),
}  # fmt: skip

REFERENCE = Entry("reference", "own:Reference", DOUBLE)
"""Starts at the truth behind the data; not in the tables."""


def entry(name: str) -> Entry:
    """The competitor of this name."""
    return REFERENCE if name == "reference" else COMPETITORS[name]


def build(name: str, workload: Workload, tolerance: float | None) -> Competitor:
    """Import and set up one competitor; whatever it raises is the reason why it cannot run."""
    module, _, kind = entry(name).place.partition(":")
    made: Competitor = getattr(import_module(f"competitors.{module}"), kind)(workload, tolerance)
    return made
