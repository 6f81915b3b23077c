"""Starts, bounds and scales of curves: shared or per data set, SciPy's guess where not given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.arrays import as_tensor, data_tensor, start_tensor
from torchimize.errors import ShapeError
from torchimize.lsq.problem import check_parameters


def parse_start(
    f: Callable[..., Any],
    p0: Any,
    bounds: tuple[Tensor, Tensor] | None,
    batch_shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """p0 for every problem, (B, P) of its own."""
    batch = batch_shape.numel()
    if p0 is None:
        num_params = count_parameters(f)
        params0 = feasible_start(bounds, batch, num_params, dtype, device)
        return params0.contiguous()
    start = start_tensor(p0, "p0")
    if start.ndim == 0:
        start = start[None]
    check_parameters(start.flatten(0, -2) if start.ndim > 1 else start, "p0")
    if start.device != device:
        start = data_tensor(p0, "p0", dtype, device)
    num_params = start.shape[-1]
    if start.ndim > 1 and start.shape[:-1] != batch_shape:
        raise ShapeError(
            f"`p0` has shape {tuple(start.shape)}; wanted ({num_params},) or "
            f"{(*batch_shape, num_params)}, one start per data set"
        )
    start = start.to(dtype).reshape(-1, num_params)
    return start.expand(batch, num_params).clone()


def count_parameters(f: Callable[..., Any]) -> int:
    """Positional parameters of the model after x."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(parameter.kind in kinds for parameter in parameters) - 1
    if count < 1 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        raise ValueError("Unable to determine number of fit parameters; give `p0`.")
    return count


def feasible_start(
    bounds: tuple[Tensor, Tensor] | None,
    batch: int,
    num_params: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """1 without bounds, the middle between two, 1 away from one; SciPy's choice."""
    one = torch.ones(batch, num_params, dtype=dtype, device=device)
    if bounds is None:
        return one
    try:
        lower, upper = (bound.expand(batch, num_params) for bound in bounds)
    except RuntimeError:
        raise ShapeError(
            f"`bounds` have shapes {tuple(bounds[0].shape)} and {tuple(bounds[1].shape)}; "
            f"the model has {num_params} parameters"
        ) from None
    low, high = lower.isfinite(), upper.isfinite()
    start = torch.where(low & high, 0.5 * (lower + upper), one)
    start = torch.where(low & ~high, lower + 1, start)
    return torch.where(~low & high, upper - 1, start)


def flatten_bounds(
    bounds: Any, batch_shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> Any:
    """(..., P) bounds as (B, P); other forms as they are; None for none at all."""
    numbers = isinstance(bounds, tuple) and all(isinstance(bound, float) for bound in bounds)
    if numbers and bounds == (-math.inf, math.inf):
        return None
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    if not isinstance(bounds, (tuple, list, np.ndarray, Tensor)) or len(bounds) != 2:
        raise ValueError("`bounds` must contain 2 elements: (lower, upper)")
    flat = []
    for bound in bounds:
        tensor = data_tensor(bound, "bounds", dtype, device)
        if tensor.ndim > 1 and tensor.shape[:-1] == batch_shape:
            tensor = tensor.reshape(-1, tensor.shape[-1])
        flat.append(tensor)
    return tuple(flat)


def flatten_scale(x_scale: Any, batch_shape: torch.Size) -> Any:
    """(..., P) scales as (B, P); other forms as they are."""
    if x_scale is None or isinstance(x_scale, str):
        return x_scale
    tensor = as_tensor(x_scale, "x_scale")
    if tensor.ndim > 1 and tensor.shape[:-1] == batch_shape:
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor
