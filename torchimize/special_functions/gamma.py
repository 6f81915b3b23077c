"""Incomplete gamma functions, the zeta function (NIST DLMF 8.8, 25.11) and the real cube root.

The values of the first three are torch's; near x = a > 20 its incomplete gamma functions are off by
up to 5e-10 (torch 2.13, float64). Derivatives by the order a and by the exponent of zeta have no
closed form and are central differences of eighth order, right to about 1e-11.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimize.special_functions.elementwise import TensorFunction, elementwise

# Weights of the central difference of eighth order at 1 to 4 steps, for derivatives that have no
# closed form.
_CENTRAL = (4 / 5, -1 / 5, 4 / 105, -1 / 280)


def _central_difference(function: TensorFunction, x: Tensor, step: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for k, weight in enumerate(_CENTRAL, start=1):
        total = total + weight * (function(x + k * step) - function(x - k * step))
    return total / step


def _widened(x: Tensor) -> Tensor:
    # a difference in float32 would leave few digits; MPS has no float64
    return x if x.device.type == "mps" else x.double()


def _density(a: Tensor, x: Tensor) -> Tensor:
    return torch.exp(torch.special.xlogy(a - 1, x) - x - torch.lgamma(a))


def order_slope(a: Tensor, x: Tensor) -> Tensor:
    """The derivative of gammainc(a, x) with respect to a, by differences in float64."""
    wide, point = _widened(a), _widened(x)
    step = 0.02 * torch.minimum(wide, wide.sqrt()).detach()
    slope = _central_difference(lambda order: gammainc(order, point), wide, step)
    return slope.to(a.dtype)


def _complement_order_slope(a: Tensor, x: Tensor) -> Tensor:
    return -order_slope(a, x)


def _complement_slope(a: Tensor, x: Tensor) -> Tensor:
    return -_density(a, x)


def exponent_slope(s: Tensor, q: Tensor) -> Tensor:
    """The derivative of zeta(s, q) with respect to s, by differences in float64."""
    wide, shift = _widened(s), _widened(q)
    step = 0.01 * torch.minimum(wide - 1, 1 / (1 + shift.log().abs())).detach()
    slope = _central_difference(lambda exponent: zeta(exponent, shift), wide, step)
    return slope.to(s.dtype)


def _shift_slope(s: Tensor, q: Tensor) -> Tensor:
    return -s * zeta(s + 1, q)


def _cube_root_value(x: Tensor) -> Tensor:
    root = x.abs().pow(1 / 3).copysign(x)
    # one step of Newton's method takes off the rounding of the exponent 1/3
    usable = (root != 0) & torch.isfinite(root)
    safe = torch.where(usable, root, 1.0)
    return torch.where(usable, root - (root - x / (safe * safe)) / 3, root)


def _cube_root_slope(x: Tensor) -> Tensor:
    root = cube_root(x)
    return 1 / (3 * root * root)


gammainc = elementwise(torch.special.gammainc, order_slope, _density)
gammaincc = elementwise(torch.special.gammaincc, _complement_order_slope, _complement_slope)
zeta = elementwise(torch.special.zeta, exponent_slope, _shift_slope)
cube_root = elementwise(_cube_root_value, _cube_root_slope)
