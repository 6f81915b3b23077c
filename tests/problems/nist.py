"""NIST StRD nonlinear regression: 27 data sets with parameters certified to 11 digits.

The data, their source and their errata are described in ``tests/data/nist/README.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["NistProblem", "load", "load_all", "log_relative_error", "names"]

_DATA = Path(__file__).resolve().parent.parent / "data" / "nist"
_FUNCTIONS = ("exp", "cos", "sin", "arctan")
_MAX_DIGITS = 11.0


@dataclass(frozen=True, eq=False)
class NistProblem:
    """One data set: P parameters, N samples, k predictors. All tensors are float64.

    Attributes
    ----------
    name : str
        Name given by NIST.
    level : str
        ``"lower"``, ``"average"`` or ``"higher"`` difficulty.
    x : Tensor
        Predictor (N,), or predictors (k, N) where there are several (Nelson).
    y : Tensor
        Response (N,) that the model describes: for Nelson this is already ``log(y)``.
    starts : Tensor
        The two official starts (2, P): far, then near.
    certified, certified_sd : Tensor
        Certified parameters (P,) and their standard deviations (P,).
    residual_sum_of_squares, residual_standard_deviation : float
        Certified values at the solution.
    degrees_of_freedom : int
        N - P.
    formula : str
        The model as NIST prints it.
    response : str
        ``"y"`` or ``"log(y)"``.
    model : callable
        ``model(x, *params)`` in torch functions: `x` as above, each of the P parameters a number or
        a tensor that broadcasts against (..., N); returns (..., N).
    model_numpy : callable
        The same with NumPy functions, for NumPy arrays.
    """

    name: str
    level: str
    x: Tensor
    y: Tensor
    starts: Tensor
    certified: Tensor
    certified_sd: Tensor
    residual_sum_of_squares: float
    residual_standard_deviation: float
    degrees_of_freedom: int
    formula: str
    response: str
    model: Callable[..., Tensor] = field(repr=False)
    model_numpy: Callable[..., npt.NDArray[np.float64]] = field(repr=False)


@cache
def _index() -> tuple[str, ...]:
    entries = json.loads((_DATA / "index.json").read_text(encoding="utf-8"))
    return tuple(entry["name"] for entry in entries)


def names() -> list[str]:
    """Names of the 27 data sets, from lower to higher difficulty.

    Returns
    -------
    list of str

    Examples
    --------
    >>> len(names())
    27
    """
    return list(_index())


def _model(
    expression: str, parameters: list[str], predictors: list[str], library: ModuleType
) -> Callable[..., Any]:
    """Turn `expression` into ``model(x, *params)`` with the functions of `library`."""
    # No builtins: an expression can reach arithmetic and these five names, nothing else.
    namespace: dict[str, Any] = {name: getattr(library, name) for name in _FUNCTIONS}
    namespace |= {"__builtins__": {}, "pi": math.pi}
    source = f"lambda {', '.join([*predictors, *parameters])}: {expression}"
    function: Callable[..., Any] = eval(compile(source, "<NIST expression>", "eval"), namespace)

    def model(x: Any, *params: Any) -> Any:
        if len(params) != len(parameters):
            raise TypeError(f"got {len(params)} parameters, wanted {len(parameters)}: {parameters}")
        if len(predictors) == 1:
            return function(x, *params)
        if x.ndim < 2 or x.shape[-2] != len(predictors):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, wanted (..., {len(predictors)}, N): "
                f"one row for each predictor of {predictors}"
            )
        return function(*(x[..., row, :] for row in range(len(predictors))), *params)

    return model


@cache
def load(name: str) -> NistProblem:
    """Load one data set.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    NistProblem
        The same object on each call; do not change its tensors.

    Raises
    ------
    ValueError
        If there is no such data set.

    Examples
    --------
    >>> problem = load("Misra1a")
    >>> problem.formula
    'y = b1*(1-exp[-b2*x]) + e'
    >>> residual = problem.model(problem.x, *problem.certified) - problem.y
    >>> round(residual.square().sum().item(), 8) == round(problem.residual_sum_of_squares, 8)
    True
    """
    if name not in _index():
        raise ValueError(f"no NIST data set {name!r}; wanted one of {', '.join(_index())}")
    record = json.loads((_DATA / f"{name}.json").read_text(encoding="utf-8"))

    def tensor(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    y = tensor(record["data"]["y"])
    if record["response"] == "log(y)":
        y = y.log()
    elif record["response"] != "y":
        raise ValueError(f"{name}: response {record['response']!r}, wanted 'y' or 'log(y)'")

    predictors: list[str] = record["predictors"]
    x = tensor([record["data"][predictor] for predictor in predictors])
    model_of = (record["expression"], record["parameters"], predictors)
    return NistProblem(
        name=name,
        level=record["level"],
        x=x[0] if len(predictors) == 1 else x,
        y=y,
        starts=tensor([record["start1"], record["start2"]]),
        certified=tensor(record["certified"]),
        certified_sd=tensor(record["certified_sd"]),
        residual_sum_of_squares=record["residual_sum_of_squares"],
        residual_standard_deviation=record["residual_standard_deviation"],
        degrees_of_freedom=record["degrees_of_freedom"],
        formula=record["formula"],
        response=record["response"],
        model=_model(*model_of, torch),
        model_numpy=_model(*model_of, np),
    )


def load_all() -> list[NistProblem]:
    """Load the 27 data sets in the order of `names()`.

    Returns
    -------
    list of NistProblem

    Examples
    --------
    >>> sum(len(problem.starts) for problem in load_all())
    54
    """
    return [load(name) for name in _index()]


def log_relative_error(estimate: Tensor, certified: Tensor) -> Tensor:
    """Correct decimal digits of the worst parameter, cut to 0..11.

    ``min_j -log10(|b_j - c_j| / |c_j|)``, the score customary for these data sets
    (B. D. McCullough, The American Statistician 52(4), 1998). Where a certified value is 0 the
    error is taken absolute. NaN and infinity count as no digit.

    Parameters
    ----------
    estimate : Tensor
        Estimated parameters b (..., P), of any floating dtype.
    certified : Tensor
        Certified parameters c (P,), or any shape that broadcasts against `estimate`.

    Returns
    -------
    Tensor
        (...) float64.

    Raises
    ------
    ValueError
        If `estimate` and `certified` differ in P.

    Examples
    --------
    >>> certified = torch.tensor([1.0, 100.0])
    >>> log_relative_error(torch.tensor([1.001, 100.0]), certified).round(decimals=2)
    tensor(3., dtype=torch.float64)
    """
    if estimate.shape[-1] != certified.shape[-1]:
        raise ValueError(
            f"estimate has {estimate.shape[-1]} parameters, wanted {certified.shape[-1]}"
        )
    reference = certified.to(torch.float64)
    size = torch.where(reference == 0, 1.0, reference.abs())
    error = (estimate.to(torch.float64) - reference).abs() / size
    digits = torch.where(error.isfinite(), -error.log10(), 0.0)
    return digits.clamp(0.0, _MAX_DIGITS).amin(dim=-1)
