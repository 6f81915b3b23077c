"""Choices between values, and functions of one variable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.numpy_models.conversion import (
    UnsupportedNumpyFunction,
    Working,
    floating,
    torch_dtype,
)
from torchimize.numpy_models.registry import implements, promoted, tensor_of


@implements("where")
def _where(condition: Any, x: Any = None, y: Any = None, *, working: Working) -> Any:
    condition = tensor_of(condition, working).to(torch.bool)
    if x is None and y is None:
        return torch.nonzero(condition, as_tuple=True)
    x, y = tensor_of(x, working), tensor_of(y, working)
    return torch.where(condition, *promoted(x, y))


@implements("select")
def _select(condlist: Any, choicelist: Any, default: Any = 0, *, working: Working) -> Tensor:
    choices = [tensor_of(choice, working) for choice in choicelist]
    result, *choices = promoted(tensor_of(default, working), *choices)
    for condition, choice in zip(reversed(list(condlist)), reversed(choices), strict=True):
        result = torch.where(tensor_of(condition, working).to(torch.bool), choice, result)
    return result


@implements("clip")
def _clip(
    a: Any, a_min: Any = None, a_max: Any = None, out: None = None,
    *, min: Any = None, max: Any = None, working: Working,
) -> Tensor:  # fmt: skip
    a = tensor_of(a, working)
    lower = min if a_min is None or a_min is np._NoValue else a_min
    upper = max if a_max is None or a_max is np._NoValue else a_max
    lower, upper = (None if bound is np._NoValue else bound for bound in (lower, upper))
    if any(isinstance(bound, Tensor) for bound in (lower, upper)):
        lower, upper = (
            None if bound is None else tensor_of(bound, working) for bound in (lower, upper)
        )
        a = a if lower is None else torch.maximum(*promoted(a, lower))
        return a if upper is None else torch.minimum(*promoted(a, upper))
    return torch.clamp(a, lower, upper)


@implements("nan_to_num")
def _nan_to_num(
    x: Tensor, copy: bool = True, nan: float = 0.0, posinf: float | None = None,
    neginf: float | None = None,
) -> Tensor:  # fmt: skip
    return torch.nan_to_num(x, nan, posinf, neginf)


@implements("isclose")
def _isclose(
    a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False,
    *, working: Working,
) -> Tensor:  # fmt: skip
    first, second = promoted(tensor_of(a, working), tensor_of(b, working))
    near = (first - second).abs() <= atol + rtol * second.abs()
    close = (first == second) | (near & torch.isfinite(second))
    return close | (torch.isnan(first) & torch.isnan(second)) if equal_nan else close


@implements("allclose")
def _allclose(
    a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False,
    *, working: Working,
) -> Tensor:  # fmt: skip
    return _isclose(a, b, rtol, atol, equal_nan, working=working).all()


@implements("array_equal")
def _array_equal(a1: Any, a2: Any, *, working: Working) -> Any:
    a, b = tensor_of(a1, working), tensor_of(a2, working)
    return (a == b).all() if a.shape == b.shape else False


@implements("nonzero")
def _nonzero(a: Tensor) -> tuple[Tensor, ...]:
    return torch.nonzero(a, as_tuple=True)


@implements("sinc")
def _sinc(x: Tensor, *, working: Working) -> Tensor:
    return torch.sinc(floating(x, working))


@implements("i0")
def _i0(x: Tensor, *, working: Working) -> Tensor:
    return torch.special.i0(floating(x, working))  # type: ignore[no-any-return]


@implements("fix")
def _fix(x: Tensor) -> Tensor:
    return torch.trunc(x)


@implements("round", "around")
def _round(a: Tensor, decimals: int = 0, out: None = None) -> Tensor:
    return torch.round(a, decimals=decimals) if a.dtype.is_floating_point else a.clone()


@implements("real")
def _real(val: Tensor) -> Tensor:
    return torch.real(val)


@implements("imag")
def _imag(val: Tensor) -> Tensor:
    return torch.imag(val) if val.dtype.is_complex else torch.zeros_like(val)


@implements("angle")
def _angle(z: Tensor, deg: bool = False, *, working: Working) -> Tensor:
    angle = torch.angle(floating(z, working))
    return torch.rad2deg(angle) if deg else angle


@implements("polyval")
def _polyval(p: Any, x: Any, *, working: Working) -> Tensor:
    coefficients = list(p.unbind(0)) if isinstance(p, Tensor) else list(p)
    x = tensor_of(x, working)
    value = torch.zeros_like(x)
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@implements("interp")
def _interp(
    x: Any,
    xp: Any,
    fp: Any,
    left: Any = None,
    right: Any = None,
    period: None = None,
    *,
    working: Working,
) -> Tensor:
    """Interpolate linearly, differentiable by x, xp and fp; fp may have one row a problem."""
    if period is not None:
        raise UnsupportedNumpyFunction("numpy.interp", " with the argument period")
    x, xp, fp = promoted(*(floating(tensor_of(entry, working), working) for entry in (x, xp, fp)))
    if xp.ndim != 1 or xp.shape[0] != fp.shape[-1]:
        raise ValueError(
            f"xp has one dimension and the length of fp's last, got shapes {tuple(xp.shape)} and "
            f"{tuple(fp.shape)}"
        )
    last = xp.shape[0] - 1
    found = torch.searchsorted(xp.detach().contiguous(), x.detach().contiguous(), right=True)
    lower = (found - 1).clamp(0, max(last - 1, 0))
    upper = (lower + 1).clamp(max=last)

    def at(values: Tensor, index: Tensor) -> Tensor:
        if values.ndim == 1:
            return values[index]
        if index.ndim <= 1:
            return values[..., index]
        leading = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])  # type: ignore[no-untyped-call]
        return torch.take_along_dim(values.expand(*leading, -1), index.expand(*leading, -1), dim=-1)

    x0, y0 = xp[lower], at(fp, lower)
    width = xp[upper] - x0
    slope = (at(fp, upper) - y0) / torch.where(width == 0, 1.0, width)
    value = y0 + slope * (x - x0)
    below = fp[..., :1] if left is None else tensor_of(left, working)
    above = fp[..., -1:] if right is None else tensor_of(right, working)
    if x.ndim == 0:
        below, above = (edge[..., 0] if edge.ndim else edge for edge in (below, above))
    return torch.where(x < xp[0], below, torch.where(x > xp[-1], above, value))


@implements("linspace")
def _linspace(
    start: Any,
    stop: Any,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: Any = None,
    axis: int = 0,
    *,
    working: Working,
) -> Any:
    start, stop = (floating(tensor_of(end, working), working) for end in (start, stop))
    intervals = num - 1 if endpoint else num
    step = (stop - start) / max(intervals, 1)
    counts = torch.arange(num, dtype=step.dtype, device=step.device)
    points = start + counts.reshape((-1,) + (1,) * step.ndim) * step
    points = points.movedim(0, axis)
    if dtype is not None:
        points = points.to(torch_dtype(dtype, working))
    return (points, step) if retstep else points
