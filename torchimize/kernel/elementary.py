"""Elementary functions written in a compiled kernel's primitive operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torchimize.kernel import coefficients as table
from torchimize.kernel.graph import Graph, Node


class _Words:
    """Primitive operations on a graph; numbers may stand for constant nodes.

    Parameters
    ----------
    graph : Graph
    bits : int
    """

    def __init__(self, graph: Graph, bits: int) -> None:
        self.graph = graph
        self.bits = bits

    def __getattr__(self, op: str) -> Callable[..., Node]:
        def apply(*args: Node | float) -> Node:
            return self.graph.apply(op, *map(self.node, args))

        return apply

    def node(self, value: Node | float) -> Node:
        """A number as a node."""
        return value if isinstance(value, Node) else self.graph.const(value)

    def by_bits(self, single: float, double: float) -> float:
        """A number that depends on the precision."""
        return single if self.bits == 32 else double

    def both(self, a: Node, b: Node) -> Node:
        return self.graph.apply("and", a, b)

    def not_(self, a: Node) -> Node:
        return self.graph.apply("not", a)

    def either(self, a: Node, b: Node) -> Node:
        return self.graph.apply("or", a, b)

    def at_most(self, x: Node, limit: float) -> Node:
        """The smaller one; NaN stays, whichever order ``minimum`` would be called in."""
        return self.where(self.gt(x, limit), limit, x)

    def at_least(self, x: Node, limit: float) -> Node:
        """The greater one; NaN stays."""
        return self.where(self.lt(x, limit), limit, x)

    def polynomial(self, x: Node, coefficients: Sequence[float]) -> Node:
        """Horner's rule, lowest power first."""
        *rest, last = coefficients
        total = self.node(last)
        for coefficient in reversed(rest):
            total = self.fma(total, x, coefficient)
        return total


def _exp(w: _Words, x: Node) -> Node:
    # x log₂e = n + f: the first product is subtracted from n without being rounded
    high, low = table.LOG2_E[w.bits]
    n = w.round(w.mul(x, high))
    f = w.fma(x, low, w.fma(x, high, w.neg(n)))
    power = w.ldexp(w.polynomial(f, table.EXP2[w.bits]), n)
    positive = w.where(w.gt(x, w.by_bits(88.72283172607422, 709.782712893384)), math.inf, power)
    return w.where(w.lt(x, w.by_bits(-87.33654022216797, -708.3964185322641)), 0.0, positive)


def _log(w: _Words, x: Node) -> Node:
    return _valid_log(w, x, _log_of_parts(w, *_split(w, x)))


def _split(w: _Words, x: Node) -> tuple[Node, Node]:
    """x = 2ⁿ (1 + f) with |f| ≤ 1/3."""
    m = w.mantissa(x)
    upper = w.gt(m, 4 / 3)
    n = w.exponent(x)
    f = w.sub(w.where(upper, w.mul(m, 0.5), m), 1.0)
    return w.where(upper, w.add(n, 1.0), n), f


def _log_of_parts(w: _Words, n: Node, f: Node) -> Node:
    high, low = table.LN2[w.bits]
    curve = w.mul(w.mul(f, f), w.polynomial(f, table.LOG[w.bits]))
    return w.fma(n, high, w.exact_add(f, w.fma(n, low, curve)))


def _valid_log(w: _Words, x: Node, log: Node) -> Node:
    """The logarithm, infinite or NaN where x is 0, negative, infinite or NaN."""
    finite = w.where(w.lt(x, math.inf), log, x)
    special = w.where(w.lt(x, 0.0), math.nan, -math.inf)
    return w.where(w.lt(x, w.by_bits(2.0**-126, 2.0**-1022)), special, finite)


def _quadrant(w: _Words, x: Node) -> tuple[Node, Node, Node]:
    """Sine and cosine of the rest r, where x = n π/2 + r, and n/2."""
    first, second, third = table.HALF_PI[w.bits]
    n = w.round(w.mul(x, 2 / math.pi))
    # the first difference is exact, the second nearly so
    r = w.fma(n, -third, w.fma(n, -second, w.fma(n, -first, x)))
    # NaN beyond the range: the product overflows there and 0 · ∞ is NaN
    r = w.fma(w.mul(x, w.by_bits(2.0**112, 2.0**984)), 0.0, r)
    z = w.mul(r, r)
    sine = w.fma(w.mul(r, z), w.polynomial(z, table.SIN[w.bits]), r)
    cosine = w.fma(w.fma(w.polynomial(z, table.COS[w.bits]), z, -0.5), z, 1.0)
    return sine, cosine, w.mul(n, 0.5)


def _is_odd(w: _Words, n: Node) -> Node:
    half = w.mul(n, 0.5)
    return w.ne(half, w.floor(half))


def _sin(w: _Words, x: Node) -> Node:
    sine, cosine, half = _quadrant(w, x)
    turns = w.floor(half)
    size = w.where(w.ne(half, turns), cosine, sine)
    return w.where(_is_odd(w, turns), w.neg(size), size)


def _cos(w: _Words, x: Node) -> Node:
    sine, cosine, half = _quadrant(w, x)
    size = w.where(w.ne(half, w.floor(half)), sine, cosine)
    return w.where(_is_odd(w, w.ceil(half)), w.neg(size), size)


def _tan(w: _Words, x: Node) -> Node:
    sine, cosine, half = _quadrant(w, x)
    swapped = w.ne(half, w.floor(half))
    above = w.where(swapped, cosine, sine)
    below = w.where(swapped, w.neg(sine), cosine)
    return w.div(above, below)


def _tanh(w: _Words, x: Node) -> Node:
    # tanh a = t/(t + 2), t = exp(2a) − 1
    y = w.mul(w.at_most(w.abs(x), w.by_bits(10.0, 20.0)), 2.0)
    n = w.round(w.mul(y, 1 / math.log(2.0)))
    r = w.fma(n, -table.LN2[w.bits][0], y)
    t = _expm1_of_parts(w, r, w.ldexp(1.0, n))
    return w.copysign(w.div(t, w.add(t, 2.0)), x)


def _expm1_of_parts(w: _Words, r: Node, scale: Node) -> Node:
    """scale · exp(r) − 1 for |r| ≤ log(2)/2."""
    p = w.fma(w.mul(r, r), w.polynomial(r, table.EXPM1[w.bits]), r)
    return w.fma(p, scale, w.sub(scale, 1.0))


def _sigmoid(w: _Words, x: Node) -> Node:
    high, low = table.LOG2_E[w.bits]
    y = w.neg(w.at_most(x, w.by_bits(20.0, 40.0)))
    n = w.round(w.mul(y, high))
    f = w.fma(y, low, w.fma(y, high, w.neg(n)))
    power = w.ldexp(w.polynomial(f, table.EXP2[w.bits]), n)
    return w.where(
        w.lt(x, w.by_bits(-87.33654022216797, -708.3964185322641)), 0.0, w.div(1.0, w.add(1.0, power))
    )


def _erf(w: _Words, x: Node) -> Node:
    # erf a = 1 − 2ᵗ; t = n + f without rounding
    a = w.at_most(w.abs(x), w.by_bits(3.93, 5.95))
    t = w.mul(a, w.polynomial(a, table.ERF[w.bits]))
    n = w.round(t)
    f = w.exact_sub(t, n)
    scale = w.ldexp(1.0, n)
    p = w.mul(f, w.polynomial(f, table.EXP2[w.bits][1:]))
    return w.copysign(w.fma(p, scale, w.sub(scale, 1.0)), x)


def _expm1(w: _Words, x: Node) -> Node:
    x = w.at_least(w.at_most(x, w.by_bits(89.0, 710.0)), w.by_bits(-18.0, -40.0))
    n, r = _reduced(w, x)
    # at half the size, so that the scale does not overflow before the result does
    half = w.ldexp(0.5, n)
    p = w.fma(w.mul(r, r), w.polynomial(r, table.EXPM1[w.bits]), r)
    value = w.fma(p, half, w.sub(half, 0.5))
    return w.add(value, value)


def _reduced(w: _Words, x: Node) -> tuple[Node, Node]:
    """x = n log(2) + r."""
    high, low = table.LN2[w.bits]
    n = w.round(w.mul(x, 1 / math.log(2.0)))
    return n, w.fma(n, -low, w.fma(n, -high, x))


def _hyperbolic(w: _Words, x: Node) -> tuple[Node, Node, Node, Node]:
    """S = sinh r, D = cosh r − 1, u and v, where |x| = n log(2) + r, and

    sinh |x| = 2 (v (1 + D) + u S), cosh |x| = 2 (u (1 + D) + v S).
    """
    a = w.at_most(w.abs(x), w.by_bits(89.5, 710.6))
    n, r = _reduced(w, a)
    z = w.mul(r, r)
    sine = w.fma(w.mul(r, z), w.polynomial(z, table.SINH[w.bits]), r)
    rise = w.mul(w.fma(w.polynomial(z, table.COSH[w.bits]), z, 0.5), z)
    rising = w.ldexp(0.25, n)
    falling = w.ldexp(0.25, w.neg(w.at_most(n, 64.0)))
    return sine, rise, w.add(rising, falling), w.sub(rising, falling)


def _sinh(w: _Words, x: Node) -> Node:
    sine, rise, total, difference = _hyperbolic(w, x)
    half = w.add(w.fma(difference, rise, w.mul(total, sine)), difference)
    return w.copysign(w.add(half, half), x)


def _cosh(w: _Words, x: Node) -> Node:
    sine, rise, total, difference = _hyperbolic(w, x)
    half = w.add(w.fma(total, rise, w.mul(difference, sine)), total)
    return w.add(half, half)


def _log2(w: _Words, x: Node) -> Node:
    n, f = _split(w, x)
    return _valid_log(w, x, w.add(n, _log_in_base(w, f, table.LOG2_E[w.bits])))


def _log10(w: _Words, x: Node) -> Node:
    n, f = _split(w, x)
    high, low = table.LOG10_2[w.bits]
    rest = _log_in_base(w, f, table.LOG10_E[w.bits])
    return _valid_log(w, x, w.fma(n, high, w.fma(n, low, rest)))


def _log_in_base(w: _Words, f: Node, unit: Sequence[float]) -> Node:
    """unit · log(1 + f)."""
    high, low = unit
    curve = w.mul(w.mul(f, f), w.polynomial(f, table.LOG[w.bits]))
    return w.fma(f, high, w.fma(curve, high, w.mul(f, low)))


def _log1p(w: _Words, x: Node) -> Node:
    total = w.exact_add(x, 1.0)
    return _valid_log(w, total, _log_of_sum(w, total, _lost(w, x, total)))


def _lost(w: _Words, x: Node, total: Node) -> Node:
    """What rounding took from total = x + 1; nothing that counts where x is huge."""
    return w.exact_sub(x, w.exact_sub(total, 1.0))


def _log_of_sum(w: _Words, total: Node, lost: Node) -> Node:
    """log(total + lost)."""
    n, f = _split(w, total)
    scale = w.ldexp(1.0, w.neg(w.at_most(n, 64.0)))
    return _log_of_parts(w, n, w.fma(lost, scale, f))


def _asinh(w: _Words, x: Node) -> Node:
    a = w.abs(x)
    square = w.mul(a, a)
    root = w.sqrt(w.add(square, 1.0))
    small = w.add(a, w.div(square, w.add(root, 1.0)))
    return w.copysign(_log_of_rise(w, a, small), x)


def _log_of_rise(w: _Words, a: Node, rise: Node) -> Node:
    """log(1 + rise), and log(2a) where a is so large that this is the same."""
    far = w.gt(a, w.by_bits(2.0**13, 2.0**28))
    near = w.exact_add(rise, 1.0)
    lost = w.where(far, 0.0, _lost(w, rise, near))
    total = w.where(far, a, near)
    n, f = _split(w, total)
    n = w.where(far, w.add(n, 1.0), n)
    scale = w.ldexp(1.0, w.neg(w.at_most(n, 64.0)))
    return _valid_log(w, total, _log_of_parts(w, n, w.fma(lost, scale, f)))


def _acosh(w: _Words, x: Node) -> Node:
    t = w.exact_sub(x, 1.0)
    rise = w.add(t, w.sqrt(w.fma(t, t, w.add(t, t))))
    return w.where(w.lt(x, 1.0), math.nan, _log_of_rise(w, x, rise))


def _atanh(w: _Words, x: Node) -> Node:
    a = w.abs(x)
    rise = w.div(w.add(a, a), w.exact_sub(1.0, a))
    return w.copysign(w.mul(_log1p(w, rise), 0.5), x)


def _atan_rise(w: _Words, r: Node) -> Node:
    """atan(r) for 0 ≤ r ≤ 1."""
    z = w.mul(r, r)
    return w.fma(w.mul(r, z), w.polynomial(z, table.ATAN[w.bits]), r)


def _atan(w: _Words, x: Node) -> Node:
    a = w.abs(x)
    steep = w.gt(a, 1.0)
    angle = _atan_rise(w, w.where(steep, w.div(1.0, a), a))
    return w.copysign(w.where(steep, _complement(w, angle), angle), x)


def _complement(w: _Words, angle: Node) -> Node:
    """π/2 − angle."""
    high, low, _ = table.HALF_PI[w.bits]
    return w.exact_sub(high, w.exact_sub(angle, low))


def _atan2(w: _Words, y: Node, x: Node) -> Node:
    ay, ax = w.abs(y), w.abs(x)
    steep = w.gt(ay, ax)
    less, more = w.where(steep, ax, ay), w.where(steep, ay, ax)
    # 0/0 and ∞/∞ have directions of their own
    alike = w.where(w.eq(more, 0.0), 0.0, 1.0)
    slope = w.where(w.eq(less, more), alike, w.div(less, more))
    angle = _atan_rise(w, slope)
    angle = w.where(steep, _complement(w, angle), angle)
    high, low, _ = table.HALF_PI[w.bits]
    behind = w.exact_sub(2 * high, w.exact_sub(angle, 2 * low))
    # the sign tells −0 from 0
    angle = w.where(w.lt(w.copysign(1.0, x), 0.0), behind, angle)
    return w.copysign(angle, y)


def _asin_rise(w: _Words, x: Node) -> tuple[Node, Node]:
    """asin(s), and whether s is |x| ≤ 1/2 or √((1 − |x|)/2)."""
    a = w.abs(x)
    near = w.le(a, 0.5)
    rest = w.mul(w.sub(1.0, a), 0.5)
    z = w.where(near, w.mul(a, a), rest)
    s = w.where(near, a, w.sqrt(rest))
    return w.fma(w.mul(s, z), w.polynomial(z, table.ASIN[w.bits]), s), near


def _asin(w: _Words, x: Node) -> Node:
    angle, near = _asin_rise(w, x)
    high, low, _ = table.HALF_PI[w.bits]
    far = w.exact_sub(high, w.exact_sub(w.add(angle, angle), low))
    return w.copysign(w.where(near, angle, far), x)


def _acos(w: _Words, x: Node) -> Node:
    angle, near = _asin_rise(w, x)
    high, low, _ = table.HALF_PI[w.bits]
    double = w.add(angle, angle)
    behind = w.exact_sub(2 * high, w.exact_sub(double, 2 * low))
    far = w.where(w.lt(x, 0.0), behind, double)
    return w.where(near, _complement(w, w.copysign(angle, x)), far)


def _erfc(w: _Words, x: Node) -> Node:
    largest = w.by_bits(9.19455, 26.543)
    a = w.at_most(w.abs(x), largest)
    middle = table.ERFC_MIDDLE
    q = w.div(1.0, w.add(a, middle))
    scaled = w.mul(q, w.polynomial(w.mul(w.sub(a, middle), q), table.ERFC[w.bits]))
    # exp(−a²), where a² = square + rest; the rest must not be lost
    square = w.exact_mul(a, a)
    rest = w.fma(a, a, w.neg(square))
    high, low = table.LOG2_E[w.bits]
    n = w.round(w.mul(square, -high))
    f = w.fma(square, -low, w.fma(square, -high, w.neg(n)))
    f = w.fma(rest, -high, f)
    tail = w.ldexp(w.mul(scaled, w.polynomial(f, table.EXP2[w.bits])), n)
    tail = w.where(w.gt(x, largest), 0.0, tail)
    return w.where(w.lt(x, 0.0), w.sub(2.0, tail), tail)


def _sign(w: _Words, x: Node) -> Node:
    return w.where(w.gt(x, 0.0), 1.0, w.where(w.lt(x, 0.0), -1.0, 0.0))


def _pow(w: _Words, x: Node, y: Node) -> Node:
    size = _pow_of_size(w, w.abs(x), y)
    whole = w.eq(y, w.floor(y))
    half = w.mul(y, 0.5)
    odd = w.both(whole, w.ne(half, w.floor(half)))
    signed = w.where(odd, w.copysign(size, x), size)
    undefined = w.both(w.lt(x, 0.0), w.both(w.gt(x, -math.inf), w.ne(y, w.floor(y))))
    return w.where(undefined, math.nan, signed)


def _pow_of_size(w: _Words, x: Node, y: Node) -> Node:
    """x to the power y for x ≥ 0: 2 to the power y log₂ x, the latter in two parts."""
    high, low = _log2_in_parts(w, x)
    tiny = w.by_bits(2.0**-126, 2.0**-1022)
    high = w.where(w.lt(x, tiny), -math.inf, w.where(w.lt(x, math.inf), high, x))
    t = w.exact_mul(y, high)
    rest = w.fma(y, low, w.fma(y, high, w.neg(t)))
    n = w.round(t)
    f = w.exact_add(w.exact_sub(t, n), rest)
    power = w.ldexp(w.polynomial(f, table.EXP2[w.bits]), n)
    power = w.where(w.ge(t, w.by_bits(128.0, 1024.0)), math.inf, power)
    power = w.where(w.lt(t, w.by_bits(-126.0, -1022.0)), 0.0, power)
    return w.where(w.either(w.eq(x, 1.0), w.eq(y, 0.0)), 1.0, power)


def _log2_in_parts(w: _Words, x: Node) -> tuple[Node, Node]:
    """log₂ x as a sum, to some ten bits more than the precision."""
    below, above, far = table.CENTRES[w.bits]
    m, n = w.mantissa(x), w.exponent(x)
    upper = w.gt(m, 2**0.625)
    m = w.where(upper, w.mul(m, 0.5), m)
    n = w.where(upper, w.add(n, 1.0), n)
    # x = 2^(n + shift) p, p around 1
    factor: Node | float = 1.0
    shift: Node | float = 0.0
    for condition, (log, inverse) in (
        (w.gt(m, 2**0.125), above),
        (w.gt(m, 2**0.375), far),
        (w.lt(m, 2**-0.125), below),
    ):
        factor, shift = w.where(condition, inverse, factor), w.where(condition, log, shift)
    p = w.exact_mul(m, factor)
    f = w.exact_sub(p, 1.0)
    f_low = w.fma(m, factor, w.neg(p))
    square = w.exact_mul(f, f)
    square_low = w.fma(f, f, w.neg(square))
    # log(p + f_low) = f − f²/2 + f³/3 …, where only the last sum is rounded to where it matters
    bent = w.exact_sub(f, w.mul(square, 0.5))
    small = w.exact_sub(w.exact_sub(f, bent), w.mul(square, 0.5))
    third, *others = table.LOG_NEAR_1[w.bits]
    small = w.fma(square_low, w.fma(f, third, -0.5), small)
    # the slope of the logarithm, 1/(1 + f)
    small = w.fma(f_low, w.polynomial(f, (1.0, -1.0, 1.0, -1.0)), small)
    cube = w.exact_mul(square, f)
    small = w.fma(w.fma(square, f, w.neg(cube)), third, small)
    small = w.fma(w.mul(cube, f), w.polynomial(f, others), small)
    rest = w.fma(cube, third, small)
    log = w.exact_add(bent, rest)
    log_low = w.exact_add(w.exact_sub(bent, log), rest)
    # times log₂ e, plus n + shift, which is exact
    high, low = table.LOG2_E[w.bits]
    product = w.exact_mul(log, high)
    product_low = w.fma(log, low, w.fma(log_low, high, w.fma(log, high, w.neg(product))))
    whole = w.exact_add(n, shift)
    total = w.exact_add(whole, product)
    return total, w.add(w.exact_add(w.exact_sub(whole, total), product), product_low)


def _sin_pi(w: _Words, r: Node) -> Node:
    """sin(π r) for |r| ≤ 1/2."""
    return w.mul(r, w.polynomial(w.mul(r, r), table.SIN_PI[w.bits]))


def _lgamma(w: _Words, x: Node) -> Node:
    a = w.abs(x)
    one, two, three, four = (w.lt(a, limit) for limit in (0.5, 1.5, 2.5, 3.5))
    negative = w.lt(x, 0.0)
    # Γ(a) = Γ(2 + u) times or over a factor; of a small negative x, Γ(1 + a) is wanted
    u = w.sub(a, w.where(one, 0.0, w.where(two, 1.0, w.where(three, 2.0, 3.0))))
    next_one = w.add(a, 1.0)
    low = w.where(negative, next_one, w.mul(a, next_one))
    high = w.where(w.both(four, w.not_(three)), w.sub(a, 1.0), a)
    log = _log(w, w.where(one, low, high))
    close = w.mul(u, w.polynomial(u, table.LGAMMA[w.bits]))
    close = w.add(close, w.where(two, w.neg(log), w.where(three, 0.0, log)))
    t = w.div(1.0, a)
    bulk = w.fma(w.sub(a, 0.5), w.sub(log, 1.0), 0.5 * math.log(2 * math.pi) - 0.5)
    distant = w.fma(t, w.polynomial(t, table.STIRLING[w.bits]), bulk)
    positive = w.where(four, close, distant)
    sine = w.abs(_sin_pi(w, w.exact_sub(a, w.round(a))))
    other = _log(w, w.where(one, sine, w.mul(sine, a)))
    mirrored = w.sub(w.sub(math.log(math.pi), other), positive)
    value = w.where(negative, mirrored, positive)
    return w.where(w.eq(a, math.inf), math.inf, value)


def _digamma(w: _Words, x: Node) -> Node:
    negative = w.lt(x, 0.0)
    y = w.where(negative, w.sub(1.0, x), x)
    small = w.lt(y, 1.0)
    t = w.div(1.0, y)
    z = w.where(small, w.add(y, 1.0), y)
    high, low = table.DIGAMMA_ROOT[w.bits]
    offset = w.exact_sub(w.exact_sub(z, high), low)
    close = w.mul(offset, w.polynomial(w.sub(z, 1.5), table.DIGAMMA[w.bits]))
    close = w.where(small, w.sub(close, t), close)
    distant = w.fma(t, w.polynomial(t, table.DIGAMMA_FAR[w.bits]), _log(w, y))
    positive = w.where(w.lt(y, 2.0), close, distant)
    r = w.exact_sub(x, w.round(x))
    cotangent = w.div(w.polynomial(w.mul(r, r), table.COT_PI[w.bits]), r)
    mirrored = w.where(w.eq(r, 0.0), math.nan, w.sub(positive, cotangent))
    return w.where(negative, mirrored, positive)


def _trigamma(w: _Words, x: Node) -> Node:
    negative = w.lt(x, 0.0)
    y = w.where(negative, w.sub(1.0, x), x)
    small = w.lt(y, 1.0)
    t = w.div(1.0, y)
    square = w.mul(t, t)
    z = w.where(small, w.add(y, 1.0), y)
    close = w.polynomial(w.sub(z, 1.5), table.TRIGAMMA[w.bits])
    close = w.where(small, w.add(close, square), close)
    rest = w.fma(w.polynomial(t, table.TRIGAMMA_FAR[w.bits]), t, 0.5)
    positive = w.where(w.lt(y, 2.0), close, w.fma(square, rest, t))
    q = w.div(math.pi, _sin_pi(w, w.exact_sub(x, w.round(x))))
    return w.where(negative, w.sub(w.mul(q, q), positive), positive)


def _bessel_i(w: _Words, x: Node, order: int, scaled: bool) -> Node:
    near_table, far_table = ((table.I0, table.I0_FAR), (table.I1, table.I1_FAR))[order]
    a = w.abs(x)
    limit = w.by_bits(8.0, 14.0)
    near = w.le(a, limit)
    t = w.div(1.0, w.at_least(a, 1.0))
    square = w.exact_mul(a, a)
    close = w.polynomial(square, near_table[w.bits])
    # what the square lost is worth up to a/2 times as much, nearly (1/2 − t/4) t of the value
    lost = w.fma(a, a, w.neg(square))
    close = w.fma(close, w.mul(lost, w.mul(t, w.fma(t, -0.25, 0.5))), close)
    if order == 1:
        close = w.mul(close, a)
    distant = w.mul(w.sqrt(t), w.polynomial(t, far_table[w.bits]))
    high, low = table.LOG2_E[w.bits]
    if scaled:
        b = w.neg(w.at_most(a, limit))
        n = w.round(w.mul(b, high))
        f = w.fma(b, low, w.fma(b, high, w.neg(n)))
        close = w.mul(close, w.ldexp(w.polynomial(f, table.EXP2[w.bits]), n))
    else:
        n = w.round(w.mul(a, high))
        f = w.fma(a, low, w.fma(a, high, w.neg(n)))
        distant = w.ldexp(w.mul(distant, w.polynomial(f, table.EXP2[w.bits])), n)
        overflow = w.by_bits(*BESSEL_I_LIMIT[order])
        distant = w.where(w.gt(a, overflow), math.inf, distant)
    size = w.where(near, close, distant)
    return size if order == 0 else w.copysign(size, x)


BESSEL_I_LIMIT = ((91.9, 713.98), (91.9, 713.98))


Builder = Callable[..., Node]

BUILDERS: dict[str, Builder] = {
    "exp": _exp,
    "expm1": _expm1,
    "log": _log,
    "log2": _log2,
    "log10": _log10,
    "log1p": _log1p,
    "sin": _sin,
    "cos": _cos,
    "tan": _tan,
    "asin": _asin,
    "acos": _acos,
    "atan": _atan,
    "atan2": _atan2,
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "sigmoid": _sigmoid,
    "pow": _pow,
    "erf": _erf,
    "erfc": _erfc,
    "lgamma": _lgamma,
    "digamma": _digamma,
    "polygamma1": _trigamma,
    "i0": lambda w, x: _bessel_i(w, x, 0, False),
    "i0e": lambda w, x: _bessel_i(w, x, 0, True),
    "i1": lambda w, x: _bessel_i(w, x, 1, False),
    "i1e": lambda w, x: _bessel_i(w, x, 1, True),
    "sign": _sign,
}


def expand(graph: Graph, op: str, args: tuple[Node, ...], bits: int) -> Node | None:
    """An operation in primitive ones; None where it is primitive or unknown."""
    builder = BUILDERS.get(op)
    return None if builder is None else builder(_Words(graph, bits), *args)
