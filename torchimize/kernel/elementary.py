"""Elementary functions in the primitive operations of a compiled kernel.

A kernel calls nothing: every function is a polynomial on a short interval, what it takes to get
there and back, and selections between ranges, since the problems side by side in a vector differ.
The same expressions serve every renderer. Coefficients are in
:mod:`torchimize.kernel.coefficients`.

The primitive operations are (all numbers of the kernel's precision, or truth values)

- add, sub, mul, div, neg, sqrt, abs, ``fma(a, b, c)`` = a b + c rounded once;
- exact_add, exact_sub, exact_mul: the same, but never fused with or moved past others;
- ``copysign(size, sign)``, floor, ceil, trunc, round (ties to even), maximum, minimum;
- eq, ne, lt, le, gt, ge (false with NaN but for ne), and, or, not, where, isnan, isfinite;
- exp2; ``exponent(x)`` = ⌊log₂ |x|⌋ and ``mantissa(x)`` = x 2^−exponent of ordinary x;
- ``ldexp(x, n)`` = x 2ⁿ where x ≠ 0 and that is an ordinary number, NaN where x is.

What exponent, mantissa and ldexp give elsewhere is never used here. Denormal numbers may count as
zero, as argument and as result, and so may results up to twice the smallest normal number. The sign
of a zero result is not always that of the exact one.

Error-free steps: the difference of a product and its rounded value is one fma; n·c is subtracted
from x by fma with c in parts, where the first difference needs no rounding at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torchimize.kernel import coefficients as table
from torchimize.kernel.graph import Graph, Node

EVERYWHERE = (-math.inf, math.inf)
POSITIVE = (0.0, math.inf)

RANGE: dict[str, dict[int, tuple[float, float]]] = {
    **{
        op: {32: EVERYWHERE, 64: EVERYWHERE}
        for op in (
            "exp", "expm1", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "sigmoid", "pow",
            "erf", "erfc", "lgamma", "digamma", "polygamma1", "i0", "i0e", "i1", "i1e", "sign",
        )
    },
    **{op: {32: POSITIVE, 64: POSITIVE} for op in ("log", "log2", "log10")},
    "log1p": {32: (-1.0, math.inf), 64: (-1.0, math.inf)},
    "acosh": {32: (1.0, math.inf), 64: (1.0, math.inf)},
    **{op: {32: (-1.0, 1.0), 64: (-1.0, 1.0)} for op in ("asin", "acos", "atanh")},
    **{
        op: {32: (-(2.0**16), 2.0**16), 64: (-(2.0**40), 2.0**40)}
        for op in ("sin", "cos", "tan", "j0", "j1")
    },
}  # fmt: skip
"""Arguments, by operation and bits, for which :data:`ULP` holds. Beyond, the result is NaN."""

ULP: dict[str, dict[int, float]] = {
    op: {32: single, 64: double}
    for op, single, double in (
        ("exp", 1.1, 1.1), ("expm1", 1.8, 2.0), ("sigmoid", 2.8, 2.4), ("tanh", 2.8, 2.8),
        ("sinh", 2.2, 2.2), ("cosh", 2.1, 1.7), ("log", 1.1, 1.1), ("log2", 1.8, 1.6),
        ("log10", 1.8, 1.3), ("log1p", 1.9, 1.7), ("asinh", 2.4, 2.0), ("acosh", 2.5, 2.2),
        ("atanh", 2.5, 2.2), ("pow", 1.3, 1.3), ("sin", 1.7, 1.7), ("cos", 1.7, 1.7),
        ("tan", 3.5, 3.0), ("atan", 1.6, 1.7), ("atan2", 1.7, 1.7), ("asin", 2.6, 2.5),
        ("acos", 1.3, 1.3), ("erf", 2.8, 3.0), ("erfc", 8.5, 7.5), ("lgamma", 8.0, 6.0),
        ("digamma", 3.5, 3.0), ("polygamma1", 6.0, 6.0), ("i0", 4.8, 3.6), ("i0e", 4.0, 4.8),
        ("i1", 4.5, 4.2), ("i1e", 4.0, 4.8), ("j0", 9.0, 9.0), ("j1", 7.5, 6.0), ("sign", 0.0, 0.0),
    )
}  # fmt: skip
"""Greatest error by operation and bits, in units in the last place of the exact value.

It bounds what was met at hundreds of thousands to millions (float32) or thousands to tens of
thousands (float64) of arguments spread over each range, with some 10 % to spare. At negative
arguments of lgamma and digamma, near their zeros, the units are those of max(1, log |x|); of j0 and
j1 near theirs, those of the amplitude √(2/(π |x|)) and at most of 1.
"""

ALIASES = {"trigamma": "polygamma1", "bessel_j0": "j0", "bessel_j1": "j1"}
"""Other names of operations."""


class _Words:
    """Primitive operations on a graph, as methods; numbers may stand for constant nodes.

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

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return self.by_bits(2.0**-126, 2.0**-1022)

    def not_(self, a: Node) -> Node:
        """Negation of a condition."""
        return self.graph.apply("not", a)

    def both(self, a: Node, b: Node) -> Node:
        """Conjunction of conditions."""
        return self.graph.apply("and", a, b)

    def either(self, a: Node, b: Node) -> Node:
        """Disjunction of conditions."""
        return self.graph.apply("or", a, b)

    def at_most(self, x: Node, limit: float) -> Node:
        """The smaller one; a NaN stays, in whichever order ``minimum`` would see the two."""
        return self.where(self.gt(x, limit), limit, x)

    def at_least(self, x: Node, limit: float) -> Node:
        """The greater one; a NaN stays."""
        return self.where(self.lt(x, limit), limit, x)

    def polynomial(self, x: Node, coefficients: Sequence[float]) -> Node:
        """Horner's rule, lowest power first."""
        *rest, last = coefficients
        total = self.node(last)
        for coefficient in reversed(rest):
            total = self.fma(total, x, coefficient)
        return total

    def error_of_product(self, a: Node, b: Node | float, product: Node) -> Node:
        """What rounding took from the product."""
        return self.fma(a, b, self.neg(product))


Builder = Callable[..., Node]
"""(words, *arguments) to the expression."""


# -- exponentials


def _binary(w: _Words, x: Node) -> tuple[Node, Node]:
    """Whole n and f with x log₂ e = n + f, |f| ≤ 1/2."""
    high, low = table.LOG2_E[w.bits]
    n = w.round(w.mul(x, high))
    return n, w.fma(x, low, w.error_of_product(x, high, n))


def _power(w: _Words, f: Node) -> Node:
    """2 to the power f for |f| ≤ 1/2."""
    return w.polynomial(f, table.EXP2[w.bits])


def _natural(w: _Words, x: Node) -> tuple[Node, Node]:
    """Whole n and r with x = n log 2 + r."""
    high, low = table.LN2[w.bits]
    n = w.round(w.mul(x, 1 / math.log(2.0)))
    return n, w.fma(n, -low, w.fma(n, -high, x))


def _rise(w: _Words, r: Node) -> Node:
    """exp(r) − 1 for |r| ≤ log(2)/2."""
    return w.fma(w.mul(r, r), w.polynomial(r, table.EXPM1[w.bits]), r)


def _lowest_exponent(w: _Words) -> float:
    """The least x whose exponential is a normal number."""
    return w.by_bits(-87.33654022216797, -708.396418532264)


def _exp(w: _Words, x: Node) -> Node:
    n, f = _binary(w, x)
    power = w.ldexp(_power(w, f), n)
    power = w.where(w.gt(x, w.by_bits(88.72283172607422, 709.782712893384)), math.inf, power)
    return w.where(w.lt(x, _lowest_exponent(w)), 0.0, power)


def _expm1(w: _Words, x: Node) -> Node:
    # beyond the limits the result is infinite or −1 all the same
    x = w.at_least(w.at_most(x, w.by_bits(89.0, 710.0)), w.by_bits(-18.0, -40.0))
    n, r = _natural(w, x)
    # half of it, since the scale overflows before the result does
    scale = w.ldexp(0.5, n)
    half = w.fma(_rise(w, r), scale, w.sub(scale, 0.5))
    return w.add(half, half)


def _sigmoid(w: _Words, x: Node) -> Node:
    n, f = _binary(w, w.neg(w.at_most(x, w.by_bits(20.0, 40.0))))
    value = w.div(1.0, w.add(w.ldexp(_power(w, f), n), 1.0))
    return w.where(w.lt(x, _lowest_exponent(w)), 0.0, value)


def _tanh(w: _Words, x: Node) -> Node:
    """Of the size, t/(t + 2) with t = exp(2 |x|) − 1."""
    double = w.mul(w.at_most(w.abs(x), w.by_bits(10.0, 20.0)), 2.0)
    n = w.round(w.mul(double, 1 / math.log(2.0)))
    # where n is so large that n times the rest of log 2 shows, the quotient is 1 nearly
    r = w.fma(n, -table.LN2[w.bits][0], double)
    scale = w.ldexp(1.0, n)
    t = w.fma(_rise(w, r), scale, w.sub(scale, 1.0))
    return w.copysign(w.div(t, w.add(t, 2.0)), x)


def _hyperbolic(w: _Words, x: Node) -> tuple[Node, Node, Node, Node]:
    """What hyperbolic functions share: S = sinh r, D = cosh r − 1, u and v.

    With |x| = n log 2 + r, sinh |x| = 2 (v + v D + u S) and cosh |x| = 2 (u + u D + v S).
    """
    n, r = _natural(w, w.at_most(w.abs(x), w.by_bits(89.5, 710.6)))
    z = w.mul(r, r)
    sine = w.fma(w.mul(r, z), w.polynomial(z, table.SINH[w.bits]), r)
    rise = w.mul(w.fma(w.polynomial(z, table.COSH[w.bits]), z, 0.5), z)
    growing = w.ldexp(0.25, n)
    falling = w.ldexp(0.25, w.neg(w.at_most(n, 64.0)))
    return sine, rise, w.add(growing, falling), w.sub(growing, falling)


def _sinh(w: _Words, x: Node) -> Node:
    sine, rise, u, v = _hyperbolic(w, x)
    half = w.exact_add(w.fma(v, rise, w.mul(u, sine)), v)
    return w.copysign(w.add(half, half), x)


def _cosh(w: _Words, x: Node) -> Node:
    sine, rise, u, v = _hyperbolic(w, x)
    half = w.exact_add(w.fma(u, rise, w.mul(v, sine)), u)
    return w.add(half, half)


# -- logarithms


def _split(w: _Words, x: Node) -> tuple[Node, Node]:
    """Whole n and f with x = 2ⁿ (1 + f), |f| ≤ 1/3."""
    m, n = w.mantissa(x), w.exponent(x)
    upper = w.gt(m, 4 / 3)
    f = w.sub(w.where(upper, w.mul(m, 0.5), m), 1.0)
    return w.where(upper, w.add(n, 1.0), n), f


def _joined(w: _Words, n: Node, f: Node) -> Node:
    """The natural logarithm of 2ⁿ (1 + f)."""
    high, low = table.LN2[w.bits]
    curve = w.mul(w.mul(f, f), w.polynomial(f, table.LOG[w.bits]))
    return w.fma(n, high, w.exact_add(f, w.fma(n, low, curve)))


def _defined(w: _Words, x: Node, log: Node) -> Node:
    """A logarithm of x; −∞, NaN, ∞ or NaN where x is 0, negative, infinite or NaN."""
    finite = w.where(w.lt(x, math.inf), log, x)
    return w.where(w.lt(x, w.tiny), w.where(w.lt(x, 0.0), math.nan, -math.inf), finite)


def _log(w: _Words, x: Node) -> Node:
    return _defined(w, x, _joined(w, *_split(w, x)))


def _in_base(w: _Words, f: Node, unit: Sequence[float]) -> Node:
    """The multiple unit · log(1 + f)."""
    high, low = unit
    curve = w.mul(w.mul(f, f), w.polynomial(f, table.LOG[w.bits]))
    return w.fma(f, high, w.fma(curve, high, w.mul(f, low)))


def _log2(w: _Words, x: Node) -> Node:
    n, f = _split(w, x)
    return _defined(w, x, w.exact_add(n, _in_base(w, f, table.LOG2_E[w.bits])))


def _log10(w: _Words, x: Node) -> Node:
    n, f = _split(w, x)
    high, low = table.LOG10_2[w.bits]
    rest = _in_base(w, f, table.LOG10_E[w.bits])
    return _defined(w, x, w.fma(n, high, w.fma(n, low, rest)))


def _log_of_rise(w: _Words, rise: Node, instead: tuple[Node, Node] | None = None) -> Node:
    """log(1 + rise); where the condition ``instead[0]`` holds, log(2 ``instead[1]``)."""
    total = w.exact_add(rise, 1.0)
    # what rounding the sum lost; where it is wrong because rise is huge, it does not count
    lost = w.exact_sub(rise, w.exact_sub(total, 1.0))
    if instead is not None:
        total, lost = w.where(instead[0], instead[1], total), w.where(instead[0], 0.0, lost)
    n, f = _split(w, total)
    f = w.fma(lost, w.ldexp(1.0, w.neg(w.at_most(n, 64.0))), f)
    if instead is not None:
        n = w.where(instead[0], w.add(n, 1.0), n)
    return _defined(w, total, _joined(w, n, f))


def _log1p(w: _Words, x: Node) -> Node:
    return _log_of_rise(w, x)


def _is_far(w: _Words, a: Node) -> Node:
    """Whether 1 does not count beside a²."""
    return w.gt(a, w.by_bits(2.0**13, 2.0**28))


def _asinh(w: _Words, x: Node) -> Node:
    """Of the size a, log(1 + a + a²/(1 + √(a² + 1)))."""
    a = w.abs(x)
    square = w.mul(a, a)
    rise = w.add(a, w.div(square, w.add(w.sqrt(w.add(square, 1.0)), 1.0)))
    return w.copysign(_log_of_rise(w, rise, (_is_far(w, a), a)), x)


def _acosh(w: _Words, x: Node) -> Node:
    """log(1 + t + √(t² + 2t)) with t = x − 1."""
    t = w.exact_sub(x, 1.0)
    rise = w.add(t, w.sqrt(w.fma(t, t, w.add(t, t))))
    return w.where(w.lt(x, 1.0), math.nan, _log_of_rise(w, rise, (_is_far(w, x), x)))


def _atanh(w: _Words, x: Node) -> Node:
    """Of the size a, half of log(1 + 2a/(1 − a))."""
    a = w.abs(x)
    rise = w.div(w.add(a, a), w.exact_sub(1.0, a))
    return w.copysign(w.mul(_log_of_rise(w, rise), 0.5), x)


# -- powers


def _pow(w: _Words, x: Node, y: Node) -> Node:
    """As C has it, for all x and y."""
    size = _power_of_size(w, w.abs(x), y)
    whole, odd = _parity(w, y)
    signed = w.where(odd, w.copysign(size, x), size)
    negative = w.both(w.lt(x, 0.0), w.gt(x, -math.inf))
    return w.where(w.both(negative, w.not_(whole)), math.nan, signed)


def _parity(w: _Words, y: Node) -> tuple[Node, Node]:
    """Whether y is a whole number, and whether an odd one."""
    if y.op == "const" and isinstance(y.value, float):
        whole = y.value == math.inf or y.value == -math.inf or y.value.is_integer()
        odd = math.isfinite(y.value) and y.value % 2 == 1
        return w.node(float(whole)), w.node(float(odd))
    half = w.mul(y, 0.5)
    whole_node = w.eq(y, w.floor(y))
    return whole_node, w.both(whole_node, w.ne(half, w.floor(half)))


def _power_of_size(w: _Words, a: Node, y: Node) -> Node:
    """The power aʸ for a ≥ 0, as 2 to the power y log₂ a in two parts."""
    high, low = _log2_in_parts(w, a)
    high = w.where(w.lt(a, w.tiny), -math.inf, w.where(w.lt(a, math.inf), high, a))
    t = w.exact_mul(y, high)
    rest = w.fma(y, low, w.error_of_product(y, high, t))
    n = w.round(t)
    power = w.ldexp(_power(w, w.exact_add(w.exact_sub(t, n), rest)), n)
    power = w.where(w.ge(t, w.by_bits(128.0, 1024.0)), math.inf, power)
    power = w.where(w.lt(t, w.by_bits(-126.0, -1022.0)), 0.0, power)
    return w.where(w.either(w.eq(a, 1.0), w.eq(y, 0.0)), 1.0, power)


def _log2_in_parts(w: _Words, x: Node) -> tuple[Node, Node]:
    """log₂ x as a sum, to some ten bits more than the precision."""
    below, above, far = table.CENTRES[w.bits]
    m, n = w.mantissa(x), w.exponent(x)
    upper = w.gt(m, 2**0.625)
    m = w.where(upper, w.mul(m, 0.5), m)
    n = w.where(upper, w.add(n, 1.0), n)
    # log₂ x = n + shift + log₂(p + p_low), p around 1
    factor, shift = w.node(1.0), w.node(0.0)
    for condition, (middle, inverse) in (
        (w.gt(m, 2**0.125), above),
        (w.gt(m, 2**0.375), far),
        (w.lt(m, 2**-0.125), below),
    ):
        factor, shift = w.where(condition, inverse, factor), w.where(condition, middle, shift)
    p = w.exact_mul(m, factor)
    p_low = w.error_of_product(m, factor, p)
    f = w.exact_sub(p, 1.0)
    # log(1 + f + p_low) = f − f²/2 + f³/3 …; only the last sum is rounded to where it matters
    square = w.exact_mul(f, f)
    half = w.mul(square, 0.5)
    bent = w.exact_sub(f, half)
    small = w.exact_sub(w.exact_sub(f, bent), half)
    third, *others = table.LOG_NEAR_1[w.bits]
    small = w.fma(w.error_of_product(f, f, square), w.fma(f, third, -0.5), small)
    small = w.fma(p_low, w.polynomial(f, (1.0, -1.0, 1.0, -1.0)), small)
    cube = w.exact_mul(square, f)
    small = w.fma(w.error_of_product(square, f, cube), third, small)
    small = w.fma(w.mul(cube, f), w.polynomial(f, others), small)
    rest = w.fma(cube, third, small)
    log = w.exact_add(bent, rest)
    log_low = w.exact_add(w.exact_sub(bent, log), rest)
    # times log₂ e, plus n + shift, which needs no rounding
    unit, unit_low = table.LOG2_E[w.bits]
    product = w.exact_mul(log, unit)
    product_low = w.fma(log_low, unit, w.error_of_product(log, unit, product))
    product_low = w.fma(log, unit_low, product_low)
    whole = w.exact_add(n, shift)
    total = w.exact_add(whole, product)
    return total, w.add(w.exact_add(w.exact_sub(whole, total), product), product_low)


# -- circular functions


def _quadrant(w: _Words, x: Node) -> tuple[Node, Node, Node]:
    """Sine and cosine of the rest r, and n/2, where x = n π/2 + r."""
    first, second, third = table.HALF_PI[w.bits]
    n = w.round(w.mul(x, 2 / math.pi))
    r = w.fma(n, -third, w.fma(n, -second, w.fma(n, -first, x)))
    # NaN where n is too large to be exact: the product overflows there, and 0 · ∞ is NaN
    r = w.fma(w.exact_mul(x, w.by_bits(2.0**112, 2.0**984)), 0.0, r)
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
    above, below = w.where(swapped, cosine, sine), w.where(swapped, w.neg(sine), cosine)
    return w.div(above, below)


def _complement(w: _Words, angle: Node, quarters: int = 1) -> Node:
    """π/2 or π minus an angle."""
    high, low, _ = table.HALF_PI[w.bits]
    return w.exact_sub(quarters * high, w.exact_sub(angle, quarters * low))


def _slope_angle(w: _Words, r: Node) -> Node:
    """atan(r) for 0 ≤ r ≤ 1."""
    z = w.mul(r, r)
    return w.fma(w.mul(r, z), w.polynomial(z, table.ATAN[w.bits]), r)


def _atan(w: _Words, x: Node) -> Node:
    a = w.abs(x)
    steep = w.gt(a, 1.0)
    angle = _slope_angle(w, w.where(steep, w.div(1.0, a), a))
    return w.copysign(w.where(steep, _complement(w, angle), angle), x)


def _atan2(w: _Words, y: Node, x: Node) -> Node:
    ay, ax = w.abs(y), w.abs(x)
    steep = w.gt(ay, ax)
    less, more = w.where(steep, ax, ay), w.where(steep, ay, ax)
    # 0/0 and ∞/∞ have slopes of their own
    alike = w.where(w.eq(more, 0.0), 0.0, 1.0)
    angle = _slope_angle(w, w.where(w.eq(less, more), alike, w.div(less, more)))
    angle = w.where(steep, _complement(w, angle), angle)
    # the sign tells −0 from 0
    behind = w.lt(w.copysign(1.0, x), 0.0)
    return w.copysign(w.where(behind, _complement(w, angle, 2), angle), y)


def _arc(w: _Words, x: Node) -> tuple[Node, Node]:
    """asin(s) and whether |x| ≤ 1/2; s is |x| then, √((1 − |x|)/2) elsewhere."""
    a = w.abs(x)
    near = w.le(a, 0.5)
    rest = w.mul(w.sub(1.0, a), 0.5)
    z = w.where(near, w.mul(a, a), rest)
    s = w.where(near, a, w.sqrt(rest))
    return w.fma(w.mul(s, z), w.polynomial(z, table.ASIN[w.bits]), s), near


def _asin(w: _Words, x: Node) -> Node:
    angle, near = _arc(w, x)
    far = _complement(w, w.add(angle, angle))
    return w.copysign(w.where(near, angle, far), x)


def _acos(w: _Words, x: Node) -> Node:
    angle, near = _arc(w, x)
    double = w.add(angle, angle)
    far = w.where(w.lt(x, 0.0), _complement(w, double, 2), double)
    return w.where(near, _complement(w, w.copysign(angle, x)), far)


# -- error function


def _erf(w: _Words, x: Node) -> Node:
    """Of the size a, 1 − 2ᵗ: log₂ erfc a is a polynomial, and no range needs another form."""
    a = w.at_most(w.abs(x), w.by_bits(3.93, 5.95))
    t = w.mul(a, w.polynomial(a, table.ERF[w.bits]))
    n = w.round(t)
    f = w.exact_sub(t, n)
    scale = w.ldexp(1.0, n)
    rise = w.mul(f, w.polynomial(f, table.EXP2[w.bits][1:]))
    return w.copysign(w.fma(rise, scale, w.sub(scale, 1.0)), x)


def _erfc(w: _Words, x: Node) -> Node:
    last = w.by_bits(9.19454, 26.54325)
    a = w.at_most(w.abs(x), last)
    q = w.div(1.0, w.add(a, table.ERFC_MIDDLE))
    scaled = w.mul(q, w.polynomial(w.mul(w.sub(a, table.ERFC_MIDDLE), q), table.ERFC[w.bits]))
    # exp(−a²): what rounding takes from the square counts
    square = w.exact_mul(a, a)
    n, f = _binary(w, w.neg(square))
    f = w.fma(w.error_of_product(a, a, square), -table.LOG2_E[w.bits][0], f)
    tail = w.ldexp(w.mul(scaled, _power(w, f)), n)
    tail = w.where(w.gt(x, last), 0.0, tail)
    return w.where(w.lt(x, 0.0), w.sub(2.0, tail), tail)


# -- gamma function


def _sin_pi(w: _Words, x: Node) -> Node:
    """sin(π x), but for its sign."""
    r = w.exact_sub(x, w.round(x))
    return w.mul(r, w.polynomial(w.mul(r, r), table.SIN_PI[w.bits]))


def _lgamma(w: _Words, x: Node) -> Node:
    a = w.abs(x)
    negative = w.lt(x, 0.0)
    one, two, three, four = (w.lt(a, limit) for limit in (0.5, 1.5, 2.5, 3.5))
    # Γ(a) is Γ(2 + u) times or over a factor; of a small negative x, Γ(1 + a) is wanted
    u = w.sub(a, w.where(one, 0.0, w.where(two, 1.0, w.where(three, 2.0, 3.0))))
    close = w.mul(u, w.polynomial(u, table.LGAMMA[w.bits]))
    after = w.add(a, 1.0)
    first = w.where(negative, after, w.mul(a, after))
    fourth = w.both(four, w.not_(three))
    log = _log(w, w.where(one, first, w.where(fourth, w.sub(a, 1.0), a)))
    close = w.add(close, w.where(two, w.neg(log), w.where(three, 0.0, log)))
    # Stirling's formula, arranged so that nothing cancels
    t = w.div(1.0, a)
    bulk = w.fma(w.sub(a, 0.5), w.sub(log, 1.0), 0.5 * math.log(2 * math.pi) - 0.5)
    far = w.fma(t, w.polynomial(t, table.STIRLING[w.bits]), bulk)
    positive = w.where(four, close, far)
    # Γ(−a) Γ(1 + a) = −π/sin(π a)
    sine = w.abs(_sin_pi(w, a))
    mirror = _log(w, w.where(one, sine, w.mul(sine, a)))
    value = w.where(negative, w.sub(w.sub(math.log(math.pi), mirror), positive), positive)
    return w.where(w.eq(a, math.inf), math.inf, value)


def _reflected(w: _Words, x: Node) -> tuple[Node, Node, Node, Node, Node]:
    """What ψ and ψ′ begin with: whether x < 0, y, whether y < 1, z and 1/y.

    Where x < 0, y is 1 − x, and x elsewhere; where y < 1, z is y + 1, and y elsewhere.
    """
    negative = w.lt(x, 0.0)
    y = w.where(negative, w.sub(1.0, x), x)
    small = w.lt(y, 1.0)
    return negative, y, small, w.where(small, w.add(y, 1.0), y), w.div(1.0, y)


def _digamma(w: _Words, x: Node) -> Node:
    negative, y, small, moved, t = _reflected(w, x)
    high, low = table.DIGAMMA_ROOT[w.bits]
    offset = w.exact_sub(w.exact_sub(moved, high), low)
    close = w.mul(offset, w.polynomial(w.sub(moved, 1.5), table.DIGAMMA[w.bits]))
    close = w.where(small, w.sub(close, t), close)
    far = w.fma(t, w.polynomial(t, table.DIGAMMA_FAR[w.bits]), _log(w, y))
    positive = w.where(w.lt(y, 2.0), close, far)
    # ψ(x) = ψ(1 − x) − π cot(π x)
    r = w.exact_sub(x, w.round(x))
    cotangent = w.div(w.polynomial(w.mul(r, r), table.COT_PI[w.bits]), r)
    mirrored = w.where(w.eq(r, 0.0), math.nan, w.sub(positive, cotangent))
    return w.where(negative, mirrored, positive)


def _trigamma(w: _Words, x: Node) -> Node:
    negative, y, small, moved, t = _reflected(w, x)
    square = w.mul(t, t)
    close = w.polynomial(w.sub(moved, 1.5), table.TRIGAMMA[w.bits])
    close = w.where(small, w.add(close, square), close)
    rest = w.fma(w.polynomial(t, table.TRIGAMMA_FAR[w.bits]), t, 0.5)
    positive = w.where(w.lt(y, 2.0), close, w.fma(square, rest, t))
    # ψ′(x) = (π/sin(π x))² − ψ′(1 − x)
    q = w.div(math.pi, _sin_pi(w, x))
    return w.where(negative, w.sub(w.mul(q, q), positive), positive)


# -- Bessel functions


def _bessel_i(order: int, scaled: bool) -> Builder:
    near_table, far_table = ((table.I0, table.I0_FAR), (table.I1, table.I1_FAR))[order]

    def build(w: _Words, x: Node) -> Node:
        a = w.abs(x)
        limit = w.by_bits(8.0, 14.0)
        t = w.div(1.0, w.at_least(a, 1.0))
        square = w.exact_mul(a, a)
        close = w.polynomial(square, near_table[w.bits])
        # what rounding takes from the square counts up to a/2 times: its slope is that many times
        # value/a², nearly (1/2 − t/4) t value
        slope = w.mul(t, w.fma(t, -0.25, 0.5))
        close = w.fma(close, w.mul(w.error_of_product(a, a, square), slope), close)
        if order == 1:
            close = w.mul(close, a)
        far = w.mul(w.sqrt(t), w.polynomial(t, far_table[w.bits]))
        if scaled:
            n, f = _binary(w, w.neg(w.at_most(a, limit)))
            close = w.mul(close, w.ldexp(_power(w, f), n))
        else:
            n, f = _binary(w, a)
            far = w.ldexp(w.mul(far, _power(w, f)), n)
            far = w.where(w.gt(a, w.by_bits(*BESSEL_I_LARGEST[order])), math.inf, far)
        size = w.where(w.le(a, limit), close, far)
        return size if order == 0 else w.copysign(size, x)

    return build


BESSEL_I_LARGEST = (
    (91.9007568359375, 713.986908543968),
    (91.90625, 713.987609818542),
)
"""The largest argument of I0 and I1 with a finite result, for either precision."""


def _bessel_j(order: int) -> Builder:
    near_table = (table.J0, table.J1)[order]
    decline = ((-0.25, 0.024), (-0.0625, 0.0036))[order]
    in_phase, quadrature = ((table.J0_P, table.J0_Q), (table.J1_P, table.J1_Q))[order]

    def build(w: _Words, x: Node) -> Node:
        a = w.abs(x)
        square = w.exact_mul(a, a)
        v = w.exact_sub(square, table.BESSEL_J_MIDDLE)
        # what rounding takes from v counts where v is far below 0; a rough slope will do
        lost = w.add(
            w.error_of_product(a, a, square),
            w.exact_sub(square, w.exact_add(v, table.BESSEL_J_MIDDLE)),
        )
        slope = w.at_most(w.fma(square, *decline[::-1]), 0.0)
        close = w.fma(lost, slope, w.polynomial(v, near_table[w.bits]))
        if order == 1:
            close = w.mul(close, a)
        t = w.div(1.0, a)
        z = w.mul(t, t)
        # of a − π/4 or a − 3π/4, times √2
        sine, cosine = _sin(w, a), _cos(w, a)
        plus, minus = w.add(sine, cosine), w.sub(sine, cosine)
        c, s = (plus, minus) if order == 0 else (minus, w.neg(plus))
        wave = w.mul(w.polynomial(z, in_phase[w.bits]), c)
        wave = w.fma(w.mul(w.polynomial(z, quadrature[w.bits]), t), w.neg(s), wave)
        far = w.mul(w.sqrt(w.mul(t, 1 / math.pi)), wave)
        size = w.where(w.lt(v, table.BESSEL_J_MIDDLE), close, far)
        return size if order == 0 else w.where(w.lt(x, 0.0), w.neg(size), size)

    return build


def _sign(w: _Words, x: Node) -> Node:
    return w.where(w.gt(x, 0.0), 1.0, w.where(w.lt(x, 0.0), -1.0, 0.0))


BUILDERS: dict[str, Builder] = {
    "exp": _exp, "expm1": _expm1, "sigmoid": _sigmoid, "tanh": _tanh, "sinh": _sinh,
    "cosh": _cosh, "log": _log, "log2": _log2, "log10": _log10, "log1p": _log1p,
    "asinh": _asinh, "acosh": _acosh, "atanh": _atanh, "pow": _pow, "sin": _sin, "cos": _cos,
    "tan": _tan, "atan": _atan, "atan2": _atan2, "asin": _asin, "acos": _acos, "erf": _erf,
    "erfc": _erfc, "lgamma": _lgamma, "digamma": _digamma, "polygamma1": _trigamma,
    "i0": _bessel_i(0, scaled=False), "i0e": _bessel_i(0, scaled=True),
    "i1": _bessel_i(1, scaled=False), "i1e": _bessel_i(1, scaled=True),
    "j0": _bessel_j(0), "j1": _bessel_j(1), "sign": _sign,
}  # fmt: skip
"""How each operation is written in primitive ones."""


def expand(graph: Graph, op: str, args: tuple[Node, ...], bits: int) -> Node | None:
    """An operation in primitive ones.

    Parameters
    ----------
    graph : Graph
        Where the expression goes.
    op : str
        The operation's name, one of :data:`BUILDERS` or :data:`ALIASES`; ``polygamma1`` is the
        trigamma function.
    args : tuple of Node
    bits : int
        32 or 64: the precision that will compute it.

    Returns
    -------
    Node or None
        None where the operation is primitive or unknown.

    Examples
    --------
    >>> from torchimize.kernel.graph import Graph, reachable
    >>> graph = Graph()
    >>> node = expand(graph, "exp", (graph.param(0),), 32)
    >>> [inner.op for inner in reachable([node]) if inner.args][:5]
    ['mul', 'round', 'neg', 'fma', 'fma']
    >>> expand(graph, "sqrt", (graph.param(0),), 32) is None
    True
    """
    builder = BUILDERS.get(ALIASES.get(op, op))
    return None if builder is None else builder(_Words(graph, bits), *args)
