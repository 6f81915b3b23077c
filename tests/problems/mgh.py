"""The test problems of Moré, Garbow and Hillstrom: 47 instances with known minima.

J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing Unconstrained Optimization Software", ACM
Transactions on Mathematical Software 7(1), 1981, 17-41. The starts, minima and boxes are described
in ``tests/data/mgh/README.md``. The residuals are torch functions on (..., n), in the numbering of
the paper, and can be differentiated by torch.func in forward and reverse mode and under vmap.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["MghProblem", "load", "load_all", "names"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "mgh" / "problems.json"


def _like(x: Tensor, values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=x.dtype, device=x.device)


def _indices(x: Tensor, last: int) -> Tensor:
    """The numbers 1..last as the paper counts them."""
    return torch.arange(1, last + 1, dtype=x.dtype, device=x.device)


def _columns(x: Tensor) -> tuple[Tensor, ...]:
    """The parameters, each (..., 1), to broadcast against a row of m constants."""
    return tuple(x[..., column : column + 1] for column in range(x.shape[-1]))


def _rosenbrock(x: Tensor, m: int) -> Tensor:
    """1 and 21: pairs 10 (x2 - x1^2), 1 - x1."""
    odd, even = x[..., 0::2], x[..., 1::2]
    return torch.stack((10 * (even - odd.square()), 1 - odd), dim=-1).flatten(-2)


def _freudenstein_roth(x: Tensor, m: int) -> Tensor:
    """2: -13 + x1 + ((5 - x2) x2 - 2) x2, -29 + x1 + ((x2 + 1) x2 - 14) x2."""
    x1, x2 = x.unbind(-1)
    first = -13 + x1 + ((5 - x2) * x2 - 2) * x2
    second = -29 + x1 + ((x2 + 1) * x2 - 14) * x2
    return torch.stack((first, second), dim=-1)


def _powell_badly_scaled(x: Tensor, m: int) -> Tensor:
    """3: 1e4 x1 x2 - 1, exp(-x1) + exp(-x2) - 1.0001."""
    x1, x2 = x.unbind(-1)
    return torch.stack((1e4 * x1 * x2 - 1, (-x1).exp() + (-x2).exp() - 1.0001), dim=-1)


def _brown_badly_scaled(x: Tensor, m: int) -> Tensor:
    """4: x1 - 1e6, x2 - 2e-6, x1 x2 - 2."""
    x1, x2 = x.unbind(-1)
    return torch.stack((x1 - 1e6, x2 - 2e-6, x1 * x2 - 2), dim=-1)


def _beale(x: Tensor, m: int) -> Tensor:
    """5: y_i - x1 (1 - x2^i)."""
    x1, x2 = x.unbind(-1)
    factors = torch.stack((1 - x2, 1 - x2 * x2, 1 - x2 * x2 * x2), dim=-1)
    return _like(x, (1.5, 2.25, 2.625)) - x1[..., None] * factors


def _jennrich_sampson(x: Tensor, m: int) -> Tensor:
    """6: 2 + 2 i - (exp(i x1) + exp(i x2))."""
    x1, x2 = _columns(x)
    i = _indices(x, m)
    return 2 + 2 * i - ((i * x1).exp() + (i * x2).exp())


def _helical_valley(x: Tensor, m: int) -> Tensor:
    """7: 10 (x3 - 10 theta), 10 (sqrt(x1^2 + x2^2) - 1), x3.

    theta = arctan(x2 / x1) / (2 pi), plus 1/2 where x1 < 0. The paper leaves x1 = 0 open; it is
    given the limit from x1 > 0 here.
    """
    x1, x2, x3 = x.unbind(-1)
    # arctan(x2/x1) and +-pi/2 - arctan(x1/x2) are the same angle. Dividing by the larger of the two
    # keeps the derivatives finite as x1 goes to 0, where they have a limit.
    steep = x2.abs() > x1.abs()
    divisor = torch.where(steep, x2, x1)
    nonzero = divisor != 0
    quotient = torch.where(steep, x1, x2) / torch.where(nonzero, divisor, 1.0)
    angle = quotient.atan() / (2 * math.pi)
    quarter = torch.where((x1 < 0) ^ (x2 < 0), -0.25, 0.25)
    theta = torch.where(steep, quarter - angle, angle) + torch.where(x1 < 0, 0.5, 0.0)
    # The square root has no derivative at the origin; 0 is the one that symmetry suggests.
    squared = x1.square() + x2.square()
    radius = torch.where(nonzero, torch.where(nonzero, squared, 1.0).sqrt(), 0.0)
    return torch.stack((10 * (x3 - 10 * theta), 10 * (radius - 1), x3), dim=-1)


# fmt: off
_BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
_GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989,
             0.3521, 0.2420, 0.1295, 0.0540, 0.0175, 0.0044, 0.0009)
_MEYER = (34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744,
          8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872)
_KOWALIK_Y = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235,
              0.0246)
_KOWALIK_U = (4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
_OSBORNE_1 = (0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751,
              0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490,
              0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406)
_OSBORNE_2 = (1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746,
              0.679, 0.608, 0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649,
              0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395,
              0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653,
              0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739,
              0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054)
# fmt: on


def _bard(x: Tensor, m: int) -> Tensor:
    """8: y_i - (x1 + u_i / (v_i x2 + w_i x3)), u_i = i, v_i = 16 - i, w_i = min(u_i, v_i)."""
    x1, x2, x3 = _columns(x)
    u = _indices(x, m)
    v = 16 - u
    w = torch.minimum(u, v)
    return _like(x, _BARD) - (x1 + u / (v * x2 + w * x3))


def _gaussian(x: Tensor, m: int) -> Tensor:
    """9: x1 exp(-x2 (t_i - x3)^2 / 2) - y_i, t_i = (8 - i) / 2."""
    x1, x2, x3 = _columns(x)
    t = (8 - _indices(x, m)) / 2
    return x1 * (-x2 * (t - x3).square() / 2).exp() - _like(x, _GAUSSIAN)


def _meyer(x: Tensor, m: int) -> Tensor:
    """10: x1 exp(x2 / (t_i + x3)) - y_i, t_i = 45 + 5 i."""
    x1, x2, x3 = _columns(x)
    t = 45 + 5 * _indices(x, m)
    return x1 * (x2 / (t + x3)).exp() - _like(x, _MEYER)


def _gulf(x: Tensor, m: int) -> Tensor:
    """11: exp(-|y_i - x2|^x3 / x1) - t_i, t_i = i / 100, y_i = 25 + (-50 ln t_i)^(2/3).

    The paper prints "y_i m i x2" for the difference, which has no zero at its stated solution
    (50, 25, 1.5); the difference has, and is what the authors' own program computes.
    """
    x1, x2, x3 = _columns(x)
    t = _indices(x, m) / 100
    y = 25 + (-50 * t.log()).pow(2 / 3)
    distance = (y - x2).abs()
    # 0^x3 is 0, 1 or infinite as x3 is positive, 0 or negative; its logarithm, and so the
    # derivative with respect to x3, does not exist, but exp(-0^x3 / x1) has one: 0 for x3 > 0.
    zero = distance == 0
    power = (x3 * torch.where(zero, 1.0, distance).log()).exp()
    at_zero = torch.where(x3 > 0, 0.0, torch.where(x3 == 0, 1.0, math.inf))
    return (-torch.where(zero, at_zero, power) / x1).exp() - t


def _box_3d(x: Tensor, m: int) -> Tensor:
    """12: exp(-t_i x1) - exp(-t_i x2) - x3 (exp(-t_i) - exp(-10 t_i)), t_i = i / 10."""
    x1, x2, x3 = _columns(x)
    t = _indices(x, m) / 10
    return (-t * x1).exp() - (-t * x2).exp() - x3 * ((-t).exp() - (-10 * t).exp())


def _powell_singular(x: Tensor, m: int) -> Tensor:
    """13 and 22: fours x1 + 10 x2, sqrt5 (x3 - x4), (x2 - 2 x3)^2, sqrt10 (x1 - x4)^2."""
    x1, x2, x3, x4 = (x[..., first::4] for first in range(4))
    quadruples = (
        x1 + 10 * x2,
        math.sqrt(5) * (x3 - x4),
        (x2 - 2 * x3).square(),
        math.sqrt(10) * (x1 - x4).square(),
    )
    return torch.stack(quadruples, dim=-1).flatten(-2)


def _wood(x: Tensor, m: int) -> Tensor:
    """14: 10 (x2 - x1^2), 1 - x1, sqrt90 (x4 - x3^2), 1 - x3, sqrt10 (x2 + x4 - 2),
    (x2 - x4) / sqrt10.
    """
    x1, x2, x3, x4 = x.unbind(-1)
    rows = (
        10 * (x2 - x1.square()),
        1 - x1,
        math.sqrt(90) * (x4 - x3.square()),
        1 - x3,
        math.sqrt(10) * (x2 + x4 - 2),
        (x2 - x4) / math.sqrt(10),
    )
    return torch.stack(rows, dim=-1)


def _kowalik_osborne(x: Tensor, m: int) -> Tensor:
    """15: y_i - x1 (u_i^2 + u_i x2) / (u_i^2 + u_i x3 + x4)."""
    x1, x2, x3, x4 = _columns(x)
    u = _like(x, _KOWALIK_U)
    return _like(x, _KOWALIK_Y) - x1 * (u * u + u * x2) / (u * u + u * x3 + x4)


def _brown_dennis(x: Tensor, m: int) -> Tensor:
    """16: (x1 + t_i x2 - exp t_i)^2 + (x3 + x4 sin t_i - cos t_i)^2, t_i = i / 5."""
    x1, x2, x3, x4 = _columns(x)
    t = _indices(x, m) / 5
    return (x1 + t * x2 - t.exp()).square() + (x3 + x4 * t.sin() - t.cos()).square()


def _osborne_1(x: Tensor, m: int) -> Tensor:
    """17: y_i - (x1 + x2 exp(-t_i x4) + x3 exp(-t_i x5)), t_i = 10 (i - 1)."""
    x1, x2, x3, x4, x5 = _columns(x)
    t = 10 * (_indices(x, m) - 1)
    return _like(x, _OSBORNE_1) - (x1 + x2 * (-t * x4).exp() + x3 * (-t * x5).exp())


def _biggs_exp6(x: Tensor, m: int) -> Tensor:
    """18: x3 exp(-t_i x1) - x4 exp(-t_i x2) + x6 exp(-t_i x5) - y_i, t_i = i / 10,
    y_i = exp(-t_i) - 5 exp(-10 t_i) + 3 exp(-4 t_i).
    """
    x1, x2, x3, x4, x5, x6 = _columns(x)
    t = _indices(x, m) / 10
    y = (-t).exp() - 5 * (-10 * t).exp() + 3 * (-4 * t).exp()
    return x3 * (-t * x1).exp() - x4 * (-t * x2).exp() + x6 * (-t * x5).exp() - y


def _osborne_2(x: Tensor, m: int) -> Tensor:
    """19: y_i - (x1 exp(-t_i x5) + x2 exp(-(t_i - x9)^2 x6) + x3 exp(-(t_i - x10)^2 x7)
    + x4 exp(-(t_i - x11)^2 x8)), t_i = (i - 1) / 10.
    """
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11 = _columns(x)
    t = (_indices(x, m) - 1) / 10
    model = (
        x1 * (-t * x5).exp()
        + x2 * (-(t - x9).square() * x6).exp()
        + x3 * (-(t - x10).square() * x7).exp()
        + x4 * (-(t - x11).square() * x8).exp()
    )
    return _like(x, _OSBORNE_2) - model


def _watson(x: Tensor, m: int) -> Tensor:
    """20: sum_j (j - 1) x_j t_i^(j-2) - (sum_j x_j t_i^(j-1))^2 - 1 for i <= 29, t_i = i / 29; then
    x1, x2 - x1^2 - 1.
    """
    n = x.shape[-1]
    t = _indices(x, 29)[:, None] / 29
    exponents = _indices(x, n) - 1
    powers = t.pow(exponents)
    # The first column stays 0: the derivative of a constant.
    slopes = exponents * t.pow((exponents - 1).clamp(min=0))
    fits = x @ slopes.T - (x @ powers.T).square() - 1
    x1, x2 = x[..., :1], x[..., 1:2]
    return torch.cat((fits, x1, x2 - x1.square() - 1), dim=-1)


def _penalty_1(x: Tensor, m: int) -> Tensor:
    """23: sqrt(a) (x_i - 1), sum_j x_j^2 - 1/4, a = 1e-5."""
    sphere = x.square().sum(-1, keepdim=True) - 0.25
    return torch.cat((math.sqrt(1e-5) * (x - 1), sphere), dim=-1)


def _penalty_2(x: Tensor, m: int) -> Tensor:
    """24: x1 - 0.2, sqrt(a) (exp(x_i / 10) + exp(x_{i-1} / 10) - y_i) for 2 <= i <= n,
    sqrt(a) (exp(x_i / 10) - exp(-1/10)) for 2 <= i <= n, sum_j (n - j + 1) x_j^2 - 1, with
    a = 1e-5 and y_i = exp(i / 10) + exp((i - 1) / 10).
    """
    i = _indices(x, x.shape[-1])
    growth, reference = (x / 10).exp(), (i / 10).exp()
    root = math.sqrt(1e-5)
    pairs = growth[..., 1:] + growth[..., :-1] - (reference[1:] + reference[:-1])
    singles = growth[..., 1:] - math.exp(-0.1)
    sphere = (i.flip(0) * x.square()).sum(-1, keepdim=True) - 1
    return torch.cat((x[..., :1] - 0.2, root * pairs, root * singles, sphere), dim=-1)


def _variably_dimensioned(x: Tensor, m: int) -> Tensor:
    """25: x_i - 1, then s = sum_j j (x_j - 1) and s^2."""
    weighted = (_indices(x, x.shape[-1]) * (x - 1)).sum(-1, keepdim=True)
    return torch.cat((x - 1, weighted, weighted.square()), dim=-1)


def _trigonometric(x: Tensor, m: int) -> Tensor:
    """26: n - sum_j cos x_j + i (1 - cos x_i) - sin x_i."""
    n = x.shape[-1]
    cosine = x.cos()
    return n - cosine.sum(-1, keepdim=True) + _indices(x, n) * (1 - cosine) - x.sin()


def _brown_almost_linear(x: Tensor, m: int) -> Tensor:
    """27: x_i + sum_j x_j - (n + 1) for i < n, then prod_j x_j - 1."""
    linear = x[..., :-1] + x.sum(-1, keepdim=True) - (x.shape[-1] + 1)
    # Factor by factor, since the derivative of torch.prod divides by the factors.
    product = reduce(operator.mul, _columns(x))
    return torch.cat((linear, product - 1), dim=-1)


def _discrete_boundary(x: Tensor, m: int) -> Tensor:
    """28: 2 x_i - x_{i-1} - x_{i+1} + h^2 (x_i + t_i + 1)^3 / 2, h = 1 / (n + 1), t_i = i h."""
    n = x.shape[-1]
    h = 1 / (n + 1)
    end = torch.zeros_like(x[..., :1])
    before = torch.cat((end, x[..., :-1]), dim=-1)
    after = torch.cat((x[..., 1:], end), dim=-1)
    return 2 * x - before - after + h * h * (x + h * _indices(x, n) + 1).pow(3) / 2


def _discrete_integral(x: Tensor, m: int) -> Tensor:
    """29: x_i + h ((1 - t_i) sum_{j<=i} t_j c_j + t_i sum_{j>i} (1 - t_j) c_j) / 2,
    c_j = (x_j + t_j + 1)^3, h = 1 / (n + 1), t_i = i h.
    """
    n = x.shape[-1]
    h = 1 / (n + 1)
    t = h * _indices(x, n)
    # Both sums are one product with Green's function min(t_i, t_j) (1 - max(t_i, t_j)).
    green = torch.minimum(t[:, None], t) * (1 - torch.maximum(t[:, None], t))
    return x + h * ((x + t + 1).pow(3) @ green) / 2


def _broyden_tridiagonal(x: Tensor, m: int) -> Tensor:
    """30: (3 - 2 x_i) x_i - x_{i-1} - 2 x_{i+1} + 1."""
    end = torch.zeros_like(x[..., :1])
    before = torch.cat((end, x[..., :-1]), dim=-1)
    after = torch.cat((x[..., 1:], end), dim=-1)
    return (3 - 2 * x) * x - before - 2 * after + 1


def _broyden_banded(x: Tensor, m: int) -> Tensor:
    """31: x_i (2 + 5 x_i^2) + 1 - sum_j x_j (1 + x_j) over j != i, i - 5 <= j <= i + 1."""
    n = x.shape[-1]
    i = _indices(x, n)
    offset = i - i[:, None]
    band = ((offset >= -5) & (offset <= 1) & (offset != 0)).to(x.dtype)
    return x * (2 + 5 * x.square()) + 1 - (x * (1 + x)) @ band.T


def _linear_full_rank(x: Tensor, m: int) -> Tensor:
    """32: x_i - (2 / m) sum_j x_j - 1 for i <= n, -(2 / m) sum_j x_j - 1 for i > n."""
    shift = -2 * x.sum(-1, keepdim=True) / m - 1
    rest = torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], m - x.shape[-1])
    return torch.cat((x, rest), dim=-1) + shift


def _linear_rank_1(x: Tensor, m: int) -> Tensor:
    """33: i sum_j j x_j - 1."""
    weighted = (_indices(x, x.shape[-1]) * x).sum(-1, keepdim=True)
    return _indices(x, m) * weighted - 1


def _linear_rank_1_zero(x: Tensor, m: int) -> Tensor:
    """34: -1, then (i - 1) sum_{2<=j<=n-1} j x_j - 1 for 2 <= i < m, then -1."""
    n = x.shape[-1]
    weighted = (_indices(x, n)[1:-1] * x[..., 1:-1]).sum(-1, keepdim=True)
    factors = _like(x, [0, *range(1, m - 1), 0])
    return factors * weighted - 1


def _chebyquad(x: Tensor, m: int) -> Tensor:
    """35: mean_j T_i(x_j) - integral of T_i over [0, 1], T_i the Chebyshev polynomial shifted to
    [0, 1]; the integral is 0 for odd i and -1 / (i^2 - 1) for even i.
    """
    shifted = 2 * x - 1
    polynomials = [torch.ones_like(x), shifted]
    for _ in range(m - 1):
        polynomials.append(2 * shifted * polynomials[-1] - polynomials[-2])
    means = torch.stack([polynomial.mean(-1) for polynomial in polynomials[1:]], dim=-1)
    return means - _like(x, (0 if i % 2 else -1 / (i * i - 1) for i in range(1, m + 1)))


_RESIDUALS: dict[int, Callable[[Tensor, int], Tensor]] = {
    1: _rosenbrock,
    2: _freudenstein_roth,
    3: _powell_badly_scaled,
    4: _brown_badly_scaled,
    5: _beale,
    6: _jennrich_sampson,
    7: _helical_valley,
    8: _bard,
    9: _gaussian,
    10: _meyer,
    11: _gulf,
    12: _box_3d,
    13: _powell_singular,
    14: _wood,
    15: _kowalik_osborne,
    16: _brown_dennis,
    17: _osborne_1,
    18: _biggs_exp6,
    19: _osborne_2,
    20: _watson,
    21: _rosenbrock,
    22: _powell_singular,
    23: _penalty_1,
    24: _penalty_2,
    25: _variably_dimensioned,
    26: _trigonometric,
    27: _brown_almost_linear,
    28: _discrete_boundary,
    29: _discrete_integral,
    30: _broyden_tridiagonal,
    31: _broyden_banded,
    32: _linear_full_rank,
    33: _linear_rank_1,
    34: _linear_rank_1_zero,
    35: _chebyquad,
}


def _near(value: float, targets: Iterable[float], relative: float, absolute: float = 0.0) -> bool:
    """Whether `value` is within `relative` of a target, or `absolute` of a target that is 0."""
    return any(
        abs(value - target) <= (relative * target if target else absolute) for target in targets
    )


@dataclass(frozen=True, eq=False)
class MghProblem:
    """One instance: n parameters, m residuals. All tensors are float64.

    Attributes
    ----------
    name : str
        Number in the paper and name, with the size where it is not the paper's first.
    number : int
        Number in the paper, 1..35.
    n, m : int
        Number of parameters and of residuals.
    start : Tensor
        Standard start (n,).
    minima : tuple of float
        Known minimal sums of squares: the global one first, then local ones.
    infima : tuple of float
        Sums of squares approached as parameters run to infinity.
    lower, upper : Tensor or None
        Box (n,), infinite where a side is open; None where the instance has no box.
    bounded_minimum, bounded_local : float or None
        Minimal sum of squares in the box, and that of a local minimum there.
    """

    name: str
    number: int
    n: int
    m: int
    start: Tensor
    minima: tuple[float, ...]
    infima: tuple[float, ...]
    lower: Tensor | None
    upper: Tensor | None
    bounded_minimum: float | None
    bounded_local: float | None

    def residual(self, x: Tensor) -> Tensor:
        """Residuals by the formulas of the paper.

        Parameters
        ----------
        x : Tensor
            Parameters (..., n) of any floating dtype, so (B, n) or, under vmap, (n,).

        Returns
        -------
        Tensor
            (..., m) in the dtype and on the device of `x`.

        Raises
        ------
        ValueError
            If the last dimension of `x` is not n.

        Examples
        --------
        >>> load("01-rosenbrock").residual(torch.tensor([[-1.2, 1.0], [1.0, 1.0]]))
        tensor([[-4.4000,  2.2000],
                [ 0.0000,  0.0000]])
        """
        if x.ndim == 0 or x.shape[-1] != self.n:
            raise ValueError(f"{self.name}: x has shape {tuple(x.shape)}, wanted (..., {self.n})")
        return _RESIDUALS[self.number](x, self.m)

    def sum_of_squares(self, x: Tensor) -> Tensor:
        """Sum of the squared residuals (...), for `x` as in `residual`."""
        return self.residual(x).square().sum(-1)

    def starts(self) -> Tensor:
        """The three starts of the paper.

        Returns
        -------
        Tensor
            (3, n): 1, 10 and 100 times the standard start; where that is 0 (Watson): zeros, tens
            and hundreds.

        Examples
        --------
        >>> load("20-watson").starts()[:, 0].tolist()
        [0.0, 10.0, 100.0]
        """
        factors = torch.tensor([[1.0], [10.0], [100.0]], dtype=torch.float64)
        if bool((self.start == 0).all()):
            return torch.where(factors == 1, 0.0, factors).expand(3, self.n).clone()
        return factors * self.start

    def bounded_start(self) -> Tensor:
        """The standard start clipped into the box (n,).

        Raises
        ------
        ValueError
            If the instance has no box.

        Examples
        --------
        >>> load("05-beale").bounded_start().tolist()
        [1.0, 1.0]
        """
        lower, upper = self._box()
        return self.start.clamp(lower, upper)

    def is_solved(self, x: Tensor, sum_of_squares: float) -> bool:
        """Whether an unconstrained run that ended in `x` counts as solved.

        Its sum of squares is within 1e-6 relative of a listed minimum (1e-12 absolute where that
        is 0) or within 1e-3 relative of a listed infimum, or exact derivatives prove a strict
        local minimum, see `is_strict_local_minimum`.

        Parameters
        ----------
        x : Tensor
            Final parameters (n,).
        sum_of_squares : float
            Sum of the squared residuals there, not halved.

        Returns
        -------
        bool
            False where the sum of squares is not finite.

        Examples
        --------
        >>> problem = load("01-rosenbrock")
        >>> problem.is_solved(torch.tensor([1.0, 1.0]), 0.0)
        True
        >>> problem.is_solved(problem.start, 24.2)
        False
        """
        value = float(sum_of_squares)
        if not math.isfinite(value):
            return False
        return (
            _near(value, self.minima, 1e-6, 1e-12)
            or _near(value, self.infima, 1e-3)
            or self.is_strict_local_minimum(x)
        )

    def is_strict_local_minimum(self, x: Tensor, tolerance: float = 1e-6) -> bool:
        """Whether exact derivatives prove `x` a strict local minimum to `tolerance`.

        With g and H the exact gradient and Hessian of S = ||r||^2, three conditions, none of which
        changes when residuals or parameters are rescaled:

        * |J_j . r| <= tolerance ||J_j|| ||r|| for each column J_j of the Jacobian, the cosine of
          the angle between the residual and what a parameter can change of it;
        * H is positive definite once scaled to a unit diagonal, with a margin for rounding;
        * the Newton step d = -H^-1 g moves no parameter by more than `tolerance` of its size.

        The last one tells a minimum from a slope that fades out towards infinity: there the first
        two hold as well, but Newton's step stays as long as the decay, however small the slope. A
        parameter that is 0 at the minimum has to be met exactly, or the proof is not accepted.

        Parameters
        ----------
        x : Tensor
            Parameters (n,).
        tolerance : float, default 1e-6
            Bound on the cosines and on the relative Newton step.

        Returns
        -------
        bool
            False where a derivative is not finite.

        Examples
        --------
        >>> load("01-rosenbrock").is_strict_local_minimum(torch.tensor([1.0, 1.0]))
        True
        """
        point = x.detach().to(torch.float64)
        residual = self.residual(point)
        jacobian: Tensor = torch.func.jacrev(self.residual)(point)
        hessian: Tensor = torch.func.jacrev(torch.func.grad(self.sum_of_squares))(point)
        if not bool(jacobian.isfinite().all() and hessian.isfinite().all()):
            return False
        gradient = 2 * residual @ jacobian
        product = residual.norm() * jacobian.norm(dim=0)
        if bool((gradient.abs() > 2 * tolerance * product).any()):
            return False
        diagonal = hessian.diagonal()
        if bool((diagonal <= 0).any()):
            return False
        scale = diagonal.sqrt()
        eigenvalues, vectors = torch.linalg.eigh(hessian / torch.outer(scale, scale))
        if float(eigenvalues[0]) <= self.n * 1e-13:
            return False
        step = vectors @ ((gradient / scale) @ vectors / eigenvalues) / scale
        return bool((step.abs() <= tolerance * point.abs()).all())

    def is_solved_bounded(self, x: Tensor, sum_of_squares: float) -> bool:
        """Whether a run in the box that ended in `x` counts as solved.

        `x` is not outside the box by any amount, and its sum of squares is within 1e-5 relative of
        `bounded_minimum` (1e-10 absolute where that is 0) or of `bounded_local`.

        Parameters
        ----------
        x : Tensor
            Final parameters (n,).
        sum_of_squares : float
            Sum of the squared residuals there, not halved.

        Returns
        -------
        bool

        Raises
        ------
        ValueError
            If the instance has no box.

        Examples
        --------
        >>> problem = load("05-beale")
        >>> problem.is_solved_bounded(torch.tensor([3.0, 0.5]), 0.0)
        True
        >>> problem.is_solved_bounded(torch.tensor([3.0, 0.4999]), 0.0)
        False
        """
        lower, upper = self._box()
        point = x.detach().to(torch.float64)
        inside = bool(((lower <= point) & (point <= upper)).all())
        minima = [m for m in (self.bounded_minimum, self.bounded_local) if m is not None]
        return inside and _near(float(sum_of_squares), minima, 1e-5, 1e-10)

    def _box(self) -> tuple[Tensor, Tensor]:
        if self.lower is None or self.upper is None:
            raise ValueError(f"{self.name} has no box; lower and upper are None")
        return self.lower, self.upper


def _bound(values: list[float | None] | None, unbounded: float) -> Tensor | None:
    if values is None:
        return None
    filled = [unbounded if value is None else value for value in values]
    return torch.tensor(filled, dtype=torch.float64)


@cache
def _collection() -> dict[str, MghProblem]:
    records: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        record["name"]: MghProblem(
            name=record["name"],
            number=record["number"],
            n=record["n"],
            m=record["m"],
            start=torch.tensor(record["start"], dtype=torch.float64),
            minima=tuple(record["minima"]),
            infima=tuple(record.get("infima_at_infinity", ())),
            lower=_bound(record.get("lower"), -math.inf),
            upper=_bound(record.get("upper"), math.inf),
            bounded_minimum=record.get("bounded_minimum"),
            bounded_local=record.get("bounded_local"),
        )
        for record in records
    }


def names() -> list[str]:
    """Names of the 47 instances in the order of the paper.

    Returns
    -------
    list of str

    Examples
    --------
    >>> names()[0]
    '01-rosenbrock'
    """
    return list(_collection())


def load(name: str) -> MghProblem:
    """Load one instance.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    MghProblem
        The same object on each call; do not change its tensors.

    Raises
    ------
    ValueError
        If there is no such instance.

    Examples
    --------
    >>> load("08-bard").m
    15
    """
    if name not in _collection():
        raise ValueError(f"no instance {name!r}; wanted one of {', '.join(_collection())}")
    return _collection()[name]


def load_all() -> list[MghProblem]:
    """Load the 47 instances in the order of the paper.

    Returns
    -------
    list of MghProblem

    Examples
    --------
    >>> sum(problem.lower is not None for problem in load_all())
    10
    """
    return list(_collection().values())
