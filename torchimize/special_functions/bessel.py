"""Bessel functions of the orders 0 and 1 (NIST DLMF, chapter 10).

The values of ``torch.special.bessel_j0``, ``j1``, ``y0`` and ``y1`` in torch 2.13 are off by up to
1e-6 between x = 2 and 20, also in float64, so these four are computed here:

- up to x = 8, J0(x), J1(x)/x and what is left of Y0(x) and Y1(x) without their logarithm and pole
  are Chebyshev series in 2 (x/8)² - 1;
- beyond, J = √(2/πx) (P cos χ - Q sin χ) and Y = √(2/πx) (P sin χ + Q cos χ) with
  χ = x - (2 order + 1) π/4 (DLMF 10.17), and P and x Q are Chebyshev series in 2 (8/x)² - 1.

The coefficients were computed with 40 digits at Chebyshev's points. The values are right to 4e-16
of the function's amplitude in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchimize.special_functions.chebyshev import chebyshev_series
from torchimize.special_functions.elementwise import elementwise

_J0_NEAR = (
    0.15772797147489012,
    -0.008723442352852221,
    0.2651786132033368,
    -0.37009499387264977,
    0.15806710233209725,
    -0.034893769411408884,
    0.004819180069467605,
    -0.00046062616620627504,
    3.246032882100508e-05,
    -1.7619469077621507e-06,
    7.608163592418782e-08,
    -2.679253530557673e-09,
    7.848696314479465e-11,
    -1.9438346867370164e-12,
    4.125320595634374e-14,
    -7.588508125447546e-16,
    1.2218515873961411e-17,
)
_J1_NEAR = (
    0.08104484632565812,
    -0.1489751450676521,
    0.1609992623572097,
    -0.08268049176681791,
    0.022213639654966037,
    -0.003646940600769276,
    0.0004050337728354822,
    -3.255554866857259e-05,
    1.9858774049915165e-06,
    -9.521984756750436e-08,
    3.687133759097148e-09,
    -1.178026622695885e-10,
    3.160154580348003e-12,
    -7.221755239651773e-14,
    1.4232144003513942e-15,
    -2.4441972916190464e-17,
)
_Y0_NEAR = (
    -0.03314611320328494,
    -0.2744743055297453,
    0.17903431407718265,
    0.26156734625504663,
    -0.17730201278114358,
    0.04719668959576339,
    -0.007287962479552079,
    0.0007531135932577742,
    -5.632079141056987e-05,
    3.206532537654801e-06,
    -1.44072332740187e-07,
    5.248794787330516e-09,
    -1.5837552541812015e-10,
    4.02633081830612e-12,
    -8.747341203310769e-14,
    1.6434898714919468e-15,
    -2.6977881152566837e-17,
)
_Y1_NEAR = (
    0.0025380132357417816,
    -0.01608717304766875,
    -0.09591204536083074,
    0.08445197259652346,
    -0.028328123944594365,
    0.005289897544167113,
    -0.0006414551451326356,
    5.505982873338744e-05,
    -3.53808001868935e-06,
    1.7707804556154404e-07,
    -7.11055004989928e-09,
    2.344337905911516e-10,
    -6.4651518414115946e-12,
    1.51429151205002e-13,
    -3.0511859694473254e-15,
    5.34668038572867e-17,
    -8.224911372021585e-19,
)
_P0_FAR = (
    0.9994603493475187,
    -0.0005365220468132117,
    3.0751847875194745e-06,
    -5.1705945376060975e-08,
    1.6306464635151382e-09,
    -7.86409137723707e-11,
    5.168262387349193e-12,
    -4.3045788699253914e-13,
    4.3265957431549404e-14,
    -5.069034095935236e-15,
    6.748072215733873e-16,
    -1.0011513723467786e-16,
    1.6305919233744186e-17,
)
_Q0_FAR = (
    -0.015555854605337009,
    6.838519942611649e-05,
    -7.414498411060647e-07,
    1.7972457247968992e-08,
    -7.27191593686632e-10,
    4.2201219046687385e-11,
    -3.206747420996635e-12,
    3.006145125351706e-13,
    -3.336328185322427e-14,
    4.255225040245461e-15,
    -6.09993013164005e-16,
    9.662128970303257e-17,
    -1.6686065214378146e-17,
    3.1082440486738143e-18,
    -6.191115787358145e-19,
    1.3091448717220122e-19,
)
_P1_FAR = (
    1.0009030408600137,
    0.0008989898330859408,
    -3.987284300488908e-06,
    6.177633960644299e-08,
    -1.8718907491063067e-09,
    8.816898659582339e-11,
    -5.704863640395645e-12,
    4.699195515230542e-13,
    -4.6842237839904895e-14,
    5.452674896044717e-15,
    -7.221180842274018e-16,
    1.0667689114335412e-16,
    -1.7312313216116335e-17,
)
_Q1_FAR = (
    0.04677778706953532,
    -9.62772354915708e-05,
    9.138615257955454e-07,
    -2.0959781384083424e-08,
    8.229193327650554e-10,
    -4.686363688176945e-11,
    3.5152187949686082e-12,
    -3.2643156743279e-13,
    3.5967765829165294e-14,
    -4.5612523950772974e-15,
    6.508282957783384e-16,
    -1.0269147531823243e-16,
    1.767635548776479e-17,
    -3.2834519872981614e-18,
    6.524081149589261e-19,
)

# Where the series near the origin ends and the one about infinity begins.
_BORDER = 8.0


def _near(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    inside = x.clamp(max=_BORDER) / _BORDER
    return chebyshev_series(2 * inside * inside - 1, coefficients)


def _far(
    x: Tensor, even: Sequence[float], odd: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P and Q times the amplitude, then cos x + sin x and sin x - cos x: √2 times the phase's."""
    outside = x.clamp(min=_BORDER)
    inverse = _BORDER / outside
    t = 2 * inverse * inverse - 1
    amplitude = (math.pi * outside).rsqrt()
    cosine, sine = torch.cos(outside), torch.sin(outside)
    p = amplitude * chebyshev_series(t, even)
    q = amplitude * inverse * chebyshev_series(t, odd)
    return p, q, cosine + sine, sine - cosine


def _j0_value(x: Tensor) -> Tensor:
    x = x.abs()
    p, q, plus, minus = _far(x, _P0_FAR, _Q0_FAR)
    return torch.where(x < _BORDER, _near(x, _J0_NEAR), p * plus - q * minus)


def _j1_value(x: Tensor) -> Tensor:
    size = x.abs()
    p, q, plus, minus = _far(size, _P1_FAR, _Q1_FAR)
    return (
        torch.where(size < _BORDER, size * _near(size, _J1_NEAR), p * minus + q * plus) * x.sign()
    )


def _y0_value(x: Tensor) -> Tensor:
    p, q, plus, minus = _far(x, _P0_FAR, _Q0_FAR)
    near = _near(x, _Y0_NEAR) + 2 / math.pi * torch.log(x) * _j0_value(x)
    return torch.where(x < _BORDER, near, p * minus + q * plus)


def _y1_value(x: Tensor) -> Tensor:
    p, q, plus, minus = _far(x, _P1_FAR, _Q1_FAR)
    at_origin = x == 0
    inside = torch.where(at_origin, 1.0, x)
    near = x * _near(x, _Y1_NEAR) + 2 / math.pi * (torch.log(inside) * _j1_value(x) - 1 / inside)
    near = torch.where(at_origin, -math.inf, near)
    return torch.where(x < _BORDER, near, q * minus - p * plus)


def _over_x(numerator: Tensor, x: Tensor) -> Tensor:
    """J1(x)/x or I1(x)/x with the limit 1/2; both branches are finite, so no NaN gets out."""
    at_origin = x == 0
    return torch.where(at_origin, 0.5, numerator / torch.where(at_origin, 1.0, x))


def _j0_slope(x: Tensor) -> Tensor:
    return -bessel_j1(x)


def _j1_slope(x: Tensor) -> Tensor:
    return bessel_j0(x) - _over_x(bessel_j1(x), x)


def _y0_slope(x: Tensor) -> Tensor:
    return -bessel_y1(x)


def _y1_slope(x: Tensor) -> Tensor:
    return bessel_y0(x) - bessel_y1(x) / x


def _i0_slope(x: Tensor) -> Tensor:
    return modified_bessel_i1(x)


def _i1_slope(x: Tensor) -> Tensor:
    return modified_bessel_i0(x) - _over_x(modified_bessel_i1(x), x)


def _k0_slope(x: Tensor) -> Tensor:
    return -modified_bessel_k1(x)


def _k1_slope(x: Tensor) -> Tensor:
    return -modified_bessel_k0(x) - modified_bessel_k1(x) / x


def _scaled_k0_slope(x: Tensor) -> Tensor:
    return scaled_modified_bessel_k0(x) - scaled_modified_bessel_k1(x)


def _scaled_k1_slope(x: Tensor) -> Tensor:
    return (1 - 1 / x) * scaled_modified_bessel_k1(x) - scaled_modified_bessel_k0(x)


def spherical_slope(x: Tensor) -> Tensor:
    """(x cos x - sin x)/x²; near 0, where that cancels, the series of (sin x)/x differentiated."""
    near = x.abs() < 1
    inside = torch.where(near, x, 0.0)
    square = inside * inside
    series = torch.zeros_like(x)
    for k in range(9, 0, -1):
        series = series * square + (-1) ** k * 2 * k / math.factorial(2 * k + 1)
    outside = torch.where(near, 1.0, x)
    closed = (outside * torch.cos(outside) - torch.sin(outside)) / (outside * outside)
    return torch.where(near, series * inside, closed)


bessel_j0 = elementwise(_j0_value, _j0_slope)
bessel_j1 = elementwise(_j1_value, _j1_slope)
bessel_y0 = elementwise(_y0_value, _y0_slope)
bessel_y1 = elementwise(_y1_value, _y1_slope)
modified_bessel_i0 = elementwise(torch.special.modified_bessel_i0, _i0_slope)
modified_bessel_i1 = elementwise(torch.special.modified_bessel_i1, _i1_slope)
modified_bessel_k0 = elementwise(torch.special.modified_bessel_k0, _k0_slope)
modified_bessel_k1 = elementwise(torch.special.modified_bessel_k1, _k1_slope)
scaled_modified_bessel_k0 = elementwise(torch.special.scaled_modified_bessel_k0, _scaled_k0_slope)
scaled_modified_bessel_k1 = elementwise(torch.special.scaled_modified_bessel_k1, _scaled_k1_slope)
spherical_bessel_j0 = elementwise(torch.special.spherical_bessel_j0, spherical_slope)
