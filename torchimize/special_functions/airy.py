"""The Airy function Ai (NIST DLMF, chapter 9).

``torch.special.airy_ai`` of torch 2.13 is off by up to 3e-6 between x = -8 and -2.09, so Ai is
computed here. From -8 to 2 it is a Chebyshev series in x. Beyond, with ζ = 2/3 |x|^(3/2),

- x > 2: exp(-ζ)/(2 √π x^(1/4)) times a Chebyshev series in 1/ζ;
- x < -8: (cos(ζ - π/4) F + sin(ζ - π/4) G)/(√π |x|^(1/4)) with series F and ζ G in 1/ζ².

The coefficients were computed with 40 digits at Chebyshev's points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchimize.special_functions.chebyshev import chebyshev_series
from torchimize.special_functions.elementwise import elementwise

_LEFT_EVEN = (
    0.9999188179179308,
    -8.104660923669418e-05,
    1.3475665984689078e-07,
    -7.085584714312658e-10,
    7.48184186508309e-12,
    -1.2902774343407968e-13,
    3.225040209748759e-15,
    -1.0809146475761038e-16,
)
_LEFT_ODD = (
    0.004598079993550731,
    -5.461926714589816e-06,
    1.771363442340556e-08,
    -1.3750377609614297e-10,
    1.904808176028723e-12,
    -4.035382447167188e-14,
    1.1882636391670239e-15,
    -4.558186438359982e-17,
    2.1742231803092475e-18,
    -1.2454648245461117e-19,
)
_WAVES = (
    0.008211707665311681,
    -0.0728797289203074,
    0.0709902874410081,
    0.09365605237669514,
    0.12436666036834287,
    0.1851850924086498,
    -0.18526566701769376,
    -0.06789145818277069,
    0.08483873684822452,
    -0.0012108490180038633,
    -0.01741150467717718,
    0.00392522918742804,
    0.0016515217920118114,
    -0.0008024965246025223,
    -1.948638705413569e-05,
    7.803666115062975e-05,
    -1.2447733966111957e-05,
    -3.6344179149395517e-06,
    1.4587700868917968e-06,
    -1.6890546691311816e-08,
    -8.001874692970888e-08,
    1.3454447592537027e-08,
    1.8259126177951898e-09,
    -8.825753229745724e-10,
    5.198749925127941e-11,
    2.7580389520277003e-11,
    -5.811387953316283e-12,
    -1.7214179063364052e-13,
    2.1670484634796728e-13,
    -2.32324887640088e-14,
    -3.476548497354827e-15,
    1.1056455607876884e-15,
    -4.408086925735383e-17,
    -2.325193994495019e-17,
    3.910625186875424e-18,
)
_CENTRE = (
    0.26381798191440015,
    -0.19176745775077353,
    -0.11544587863809751,
    0.10129229869705277,
    -0.020634225363441998,
    -0.005263460235879724,
    0.003521327342050992,
    -0.0005522127136308693,
    -8.722346961097546e-05,
    4.9972155304858785e-05,
    -6.58209616965938e-06,
    -7.465940980665808e-07,
    3.8371005050115145e-07,
    -4.427726202518875e-08,
    -3.901520676114033e-09,
    1.8443828865292734e-09,
    -1.9121426939191717e-10,
    -1.3741370931826864e-11,
    6.069496004903079e-12,
    -5.749799143489761e-13,
    -3.483089713417748e-14,
    1.452966097730621e-14,
    -1.2731201711598244e-15,
    -6.658181469864444e-17,
    2.6436799630296418e-17,
    -2.162377737234879e-18,
)
_DECAY = (
    0.9844053049171552,
    -0.014792784850104199,
    0.0007327177465426715,
    -6.12595423417825e-05,
    6.83476697557269e-06,
    -9.237229735403982e-07,
    1.436225340438052e-07,
    -2.489319422322096e-08,
    4.709793440054328e-09,
    -9.583863708112733e-10,
    2.0745855483677591e-10,
    -4.737267332192277e-11,
    1.1336099808224236e-11,
    -2.827706782319351e-12,
    7.320712095125598e-13,
    -1.9599793911089723e-13,
    5.4101162570683925e-14,
    -1.5356466802223836e-14,
    4.472340393300025e-15,
    -1.3338094674756683e-15,
    4.066582046456231e-16,
    -1.265583225645289e-16,
    4.015126334015871e-17,
    -1.2969972135960937e-17,
)

_LEFT, _INNER, _RIGHT = -8.0, -2.0, 2.0

# Terms of the Taylor series in `_slope_value`, enough for float64.
_TERMS = 20


def _zeta(size: Tensor) -> Tensor:
    return 2 / 3 * size * size.sqrt()


def _left(x: Tensor) -> Tensor:
    size = (-x).clamp(min=-_LEFT)
    zeta = _zeta(size)
    inverse = 2 / 3 * (-_LEFT) ** 1.5 / zeta
    t = 2 * inverse * inverse - 1
    even, odd = chebyshev_series(t, _LEFT_EVEN), inverse * chebyshev_series(t, _LEFT_ODD)
    cosine, sine = torch.cos(zeta), torch.sin(zeta)
    # √2 cos(ζ - π/4) is cos ζ + sin ζ, √2 sin(ζ - π/4) is sin ζ - cos ζ
    wave = (cosine + sine) * even + (sine - cosine) * odd
    value: Tensor = wave / (math.sqrt(2 * math.pi) * size.sqrt().sqrt())
    return value


def _right(x: Tensor) -> Tensor:
    size = x.clamp(min=_RIGHT)
    zeta = _zeta(size)
    t = 2 * (2 / 3 * _RIGHT**1.5) / zeta - 1
    amplitude = torch.exp(-zeta) / (2 * math.sqrt(math.pi) * size.sqrt().sqrt())
    return amplitude * chebyshev_series(t, _DECAY)


def _value(x: Tensor) -> Tensor:
    middle = (_LEFT + _INNER) / 2
    waves = chebyshev_series((x.clamp(_LEFT, _INNER) - middle) / (_INNER - middle), _WAVES)
    centre = chebyshev_series(x.clamp(_INNER, _RIGHT) / _RIGHT, _CENTRE)
    right = torch.where(x < _RIGHT, centre, _right(x))
    return torch.where(x < _LEFT, _left(x), torch.where(x < _INNER, waves, right))


def _slope_value(x: Tensor) -> Tensor:
    """Return Ai'(x) from three values of Ai.

    Ai'' = x Ai makes Ai(x + h) = A(h) Ai(x) + B(h) Ai'(x) with power series A and B in h, whose
    coefficients follow c[n+2] = (x c[n] + c[n-1]) / ((n+1)(n+2)). Their odd parts give Ai'(x) from
    Ai(x + h) - Ai(x - h). The step h is a fraction of the local wavelength, so nothing cancels.
    """
    step = 0.5 / (1 + x.abs().sqrt())
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    a, b = [one, zero, x / 2], [zero, one, zero]
    for n in range(1, _TERMS):
        for c in (a, b):
            c.append((x * c[n] + c[n - 1]) / ((n + 1) * (n + 2)))
    square = step * step
    odd_a = odd_b = zero
    for n in range(_TERMS + (_TERMS + 1) % 2, 0, -2):
        odd_a = odd_a * square + a[n]
        odd_b = odd_b * square + b[n]
    rise = (_value(x + step) - _value(x - step)) / (2 * step)
    return (rise - odd_a * _value(x)) / odd_b


def _curvature(x: Tensor) -> Tensor:
    return x * airy_ai(x)


airy_ai_slope = elementwise(_slope_value, _curvature)
airy_ai = elementwise(_value, airy_ai_slope)
