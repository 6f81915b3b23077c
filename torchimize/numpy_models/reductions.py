"""Sums, extremes and other functions along an axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.numpy_models.conversion import Working, floating, torch_dtype
from torchimize.numpy_models.registry import (
    Axis,
    axes_of,
    flattened,
    implements,
    joined,
    missing,
    tensor_of,
    truth,
)


@implements("sum")
def _sum(
    a: Any,
    axis: Axis = None,
    dtype: Any = None,
    out: None = None,
    keepdims: Any = False,
    initial: Any = 0,
    where: Any = True,
    *,
    working: Working,
) -> Tensor:
    a = tensor_of(a, working)
    if isinstance(where, Tensor):
        a = torch.where(where, a, torch.zeros_like(a))
    wanted = None if dtype is None else torch_dtype(dtype, working)
    total = torch.sum(a, dim=axes_of(a, axis), keepdim=truth(keepdims), dtype=wanted)
    return total if missing(initial) else total + initial


@implements("nansum")
def _nansum(a: Tensor, axis: Axis = None, dtype: Any = None, *, working: Working) -> Tensor:
    return _sum(torch.where(torch.isnan(a), 0.0, a), axis, dtype, working=working)


@implements("prod")
def _prod(
    a: Any, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: Any = False,
    *, working: Working,
) -> Tensor:  # fmt: skip
    product = tensor_of(a, working)
    if dtype is not None:
        product = product.to(torch_dtype(dtype, working))
    for dimension in sorted((d % product.ndim for d in axes_of(product, axis)), reverse=True):
        product = torch.prod(product, dim=dimension, keepdim=truth(keepdims))
    return product


@implements("mean")
def _mean(
    a: Any,
    axis: Axis = None,
    dtype: Any = None,
    out: None = None,
    keepdims: Any = False,
    where: Any = True,
    *,
    working: Working,
) -> Tensor:
    a = floating(tensor_of(a, working), working)
    if dtype is not None:
        a = a.to(torch_dtype(dtype, working))
    keep = truth(keepdims)
    if isinstance(where, Tensor):
        where = where.broadcast_to(a.shape)
        total = torch.sum(torch.where(where, a, torch.zeros_like(a)), axes_of(a, axis), keep)
        return total / torch.sum(where, axes_of(a, axis), keep).to(a.dtype)
    return torch.mean(a, dim=axes_of(a, axis), keepdim=keep)


@implements("nanmean")
def _nanmean(a: Tensor, axis: Axis = None, keepdims: Any = False) -> Tensor:
    return torch.nanmean(a, dim=axes_of(a, axis), keepdim=truth(keepdims))


@implements("average")
def _average(
    a: Tensor, axis: Axis = None, weights: Any = None, keepdims: Any = False, *, working: Working
) -> Tensor:
    a = floating(tensor_of(a, working), working)
    if weights is None:
        return _mean(a, axis, keepdims=keepdims, working=working)
    weights = tensor_of(weights, working)
    if weights.ndim == 1 and a.ndim > 1 and isinstance(axis, int):
        weights = weights.reshape([-1 if d == axis % a.ndim else 1 for d in range(a.ndim)])
    weights = weights.broadcast_to(a.shape)
    axes, keep = axes_of(a, axis), truth(keepdims)
    return torch.sum(a * weights, axes, keep) / torch.sum(weights, axes, keep)


@implements("var")
def _var(
    a: Any,
    axis: Axis = None,
    dtype: Any = None,
    out: None = None,
    ddof: float = 0,
    keepdims: Any = False,
    *,
    correction: Any = None,
    working: Working,
) -> Tensor:
    values = floating(tensor_of(a, working), working)
    less = ddof if missing(correction) else correction
    axes = axes_of(values, axis)
    difference = values - torch.mean(values, dim=axes, keepdim=True)
    count = math.prod(values.shape[d] for d in axes)
    square = difference.abs().square() if difference.is_complex() else difference.square()
    return torch.sum(square, dim=axes, keepdim=truth(keepdims)) / (count - less)


@implements("std")
def _std(
    a: Any,
    axis: Axis = None,
    dtype: Any = None,
    out: None = None,
    ddof: float = 0,
    keepdims: Any = False,
    *,
    correction: Any = None,
    working: Working,
) -> Tensor:
    variance = _var(a, axis, dtype, out, ddof, keepdims, correction=correction, working=working)
    return torch.sqrt(variance)


@implements("median")
def _median(
    a: Tensor, axis: int | None = None, out: None = None, overwrite_input: bool = False,
    keepdims: Any = False, *, working: Working,
) -> Tensor:  # fmt: skip
    a = floating(a, working)
    dimensions = a.ndim
    flat, dimension = flattened(a, axis)
    ordered = torch.sort(flat, dim=dimension).values
    length = flat.shape[dimension]
    lower = ordered.select(dimension, (length - 1) // 2)
    middle = (lower + ordered.select(dimension, length // 2)) / 2
    # NumPy's median of anything with a NaN is NaN; sorting puts NaN last
    middle = torch.where(torch.isnan(ordered.select(dimension, length - 1)), math.nan, middle)
    if not truth(keepdims):
        return middle
    return middle.reshape((1,) * dimensions) if axis is None else middle.unsqueeze(dimension)


@implements("max", "amax")
def _max(a: Any, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return torch.amax(a, dim=axes_of(a, axis), keepdim=truth(keepdims))


@implements("min", "amin")
def _min(a: Any, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return torch.amin(a, dim=axes_of(a, axis), keepdim=truth(keepdims))


@implements("nanmax")
def _nanmax(a: Tensor, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return _max(torch.where(torch.isnan(a), -math.inf, a), axis, None, keepdims)


@implements("nanmin")
def _nanmin(a: Tensor, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return _min(torch.where(torch.isnan(a), math.inf, a), axis, None, keepdims)


@implements("ptp")
def _ptp(a: Tensor, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return _max(a, axis, None, keepdims) - _min(a, axis, None, keepdims)


@implements("any")
def _any(a: Tensor, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return torch.any(a.to(torch.bool), dim=axes_of(a, axis), keepdim=truth(keepdims))


@implements("all")
def _all(a: Tensor, axis: Axis = None, out: None = None, keepdims: Any = False) -> Tensor:
    return torch.all(a.to(torch.bool), dim=axes_of(a, axis), keepdim=truth(keepdims))


@implements("count_nonzero")
def _count_nonzero(a: Tensor, axis: Axis = None, *, keepdims: Any = False) -> Tensor:
    return torch.sum(a != 0, dim=axes_of(a, axis), keepdim=truth(keepdims))


@implements("argmax")
def _argmax(
    a: Tensor, axis: int | None = None, out: None = None, *, keepdims: Any = False
) -> Tensor:
    return torch.argmax(a, dim=axis, keepdim=truth(keepdims))


@implements("argmin")
def _argmin(
    a: Tensor, axis: int | None = None, out: None = None, *, keepdims: Any = False
) -> Tensor:
    return torch.argmin(a, dim=axis, keepdim=truth(keepdims))


@implements("cumsum")
def _cumsum(
    a: Any, axis: int | None = None, dtype: Any = None, out: None = None, *, working: Working
) -> Tensor:
    flat, dimension = flattened(tensor_of(a, working), axis)
    return torch.cumsum(
        flat, dimension, dtype=None if dtype is None else torch_dtype(dtype, working)
    )


@implements("cumprod")
def _cumprod(
    a: Any, axis: int | None = None, dtype: Any = None, out: None = None, *, working: Working
) -> Tensor:
    flat, dimension = flattened(tensor_of(a, working), axis)
    return torch.cumprod(
        flat, dimension, dtype=None if dtype is None else torch_dtype(dtype, working)
    )


@implements("diff")
def _diff(
    a: Tensor, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None,
    *, working: Working,
) -> Tensor:  # fmt: skip
    a = tensor_of(a, working)

    def edge(value: Any) -> list[Tensor]:
        if value is None or value is np._NoValue:
            return []
        value = tensor_of(value, working)
        if value.ndim == 0:
            shape = list(a.shape)
            shape[axis] = 1
            value = value.broadcast_to(shape)
        return [value]

    pieces = [*edge(prepend), a, *edge(append)]
    return torch.diff(joined(torch.cat, pieces, axis) if len(pieces) > 1 else a, n, axis)


@implements("trapezoid", "trapz")
def _trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1, *, working: Working) -> Tensor:
    y = floating(tensor_of(y, working), working)
    if x is None:
        width = dx
    else:
        x = tensor_of(x, working)
        if x.ndim == 1:
            width = torch.diff(x).reshape([-1 if d == axis % y.ndim else 1 for d in range(y.ndim)])
        else:
            width = torch.diff(x, dim=axis)
    length = y.shape[axis]
    heights = y.narrow(axis, 1, length - 1) + y.narrow(axis, 0, length - 1)
    return torch.sum(width * heights / 2, dim=axis)
