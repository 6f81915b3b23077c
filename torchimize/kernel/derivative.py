"""Derivatives on the graph, forward mode: one rule per operation, zero derivatives never built.

``None`` stands for a derivative that is zero whatever the values, so branches that do not depend
on a parameter vanish before any code exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torchimize.kernel.graph import Graph, Node, reachable

Rule = Callable[[Graph, Node, tuple[Node | None, ...]], Node | None]
"""(graph, node, derivatives of its arguments) to the node's derivative."""

SUPPORTED_CONSTANT = frozenset(
    {"floor", "ceil", "round", "trunc", "sign", "floor_divide"}
    | {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "isnan", "isfinite"}
)
"""Operations that are constant almost everywhere."""


class UnknownDerivativeError(NotImplementedError):
    """An operation has no derivative rule; named in the message."""


def forward(graph: Graph, output: Node, num_params: int) -> list[Node | None]:
    """The derivatives of a node with respect to each parameter.

    Parameters
    ----------
    graph : Graph
    output : Node
    num_params : int
        P.

    Returns
    -------
    list of Node or None
        P entries; None where the derivative is zero.

    Raises
    ------
    UnknownDerivativeError
        Where an operation on the way has no rule.
    """
    # the nodes on the way from each parameter
    ways: list[list[Node]] = [[] for _ in range(num_params)]
    for node, bits in _influenced(output):
        position = 0
        while bits and position < num_params:
            if bits & 1:
                ways[position].append(node)
            bits >>= 1
            position += 1
    return [_along(graph, way, output) for way in ways]


def has_derivative(output: Node) -> bool:
    """Whether a node has a derivative, zero or not, with respect to any parameter."""
    return output.op not in SUPPORTED_CONSTANT and _influenced(output)[-1][1] != 0


def _influenced(output: Node) -> list[tuple[Node, int]]:
    """The nodes that a node needs, each with bits for the parameters that it has derivatives by."""
    bits_of: dict[int, int] = {}
    found = []
    for node in reachable([output]):
        bits = 0
        if node.op == "param":
            bits = 1 << node.value  # type: ignore[operator]
        elif node.args and node.op not in SUPPORTED_CONSTANT:
            for arg in node.args:
                bits |= bits_of[arg.serial]
        bits_of[node.serial] = bits
        found.append((node, bits))
    return found


def _along(graph: Graph, way: list[Node], output: Node) -> Node | None:
    """The derivative with respect to the parameter that a way begins with."""
    tangent: dict[int, Node] = {}
    get = tangent.get
    for node in way:
        if node.op == "param":
            tangent[node.serial] = graph.const(1.0)
            continue
        inner = tuple([get(arg.serial) for arg in node.args])
        rule = RULES.get(node.op)
        if rule is None:
            raise UnknownDerivativeError(f"no derivative rule for {node.op!r}")
        # a rule may have found a zero on the way
        result = rule(graph, node, inner) if any(inner) else None
        if result is not None:
            tangent[node.serial] = result
    return get(output.serial)


def _sum(g: Graph, *terms: Node | None) -> Node | None:
    total: Node | None = None
    for term in terms:
        if term is not None:
            total = term if total is None else g.add(total, term)
    return total


def _times(g: Graph, factor: Node, d: Node | None) -> Node | None:
    return None if d is None else g.mul(factor, d)


def _unary(slope: Callable[[Graph, Node, Node], Node]) -> Rule:
    """A rule from f′ as a function of (graph, node, argument)."""

    def rule(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
        (d,) = inner
        assert d is not None
        return g.mul(slope(g, node, node.args[0]), d)

    return rule


def _quotient(numerator: Callable[[Graph, Node, Node], Node]) -> Rule:
    """A rule for f′ = 1/denominator: divides instead of multiplying by a reciprocal."""

    def rule(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
        (d,) = inner
        assert d is not None
        return g.div(d, numerator(g, node, node.args[0]))

    return rule


def _add(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    return _sum(g, *inner)


def _sub(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    a, b = inner
    if b is None:
        return a
    return g.neg(b) if a is None else g.sub(a, b)


def _mul(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    a, b = node.args
    if a is b:
        return _times(g, g.scale(2.0, a), inner[0])
    return _sum(g, _times(g, b, inner[0]), _times(g, a, inner[1]))


def _div(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    # (a/b)′ = (a′ − (a/b) b′)/b
    a, b = inner
    if b is None:
        assert a is not None
        return g.div(a, node.args[1])
    share = g.mul(node, b)
    return g.div(g.neg(share) if a is None else g.sub(a, share), node.args[1])


def _pow(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    a, b = node.args
    first = None
    if inner[0] is not None:
        lower = g.apply("pow", a, g.sub(b, g.const(1.0)))
        slope = g.mul(b, lower)
        if b.op != "const":
            # a**0 is 1 everywhere; at a = 0 the product would be 0 · ∞
            zero = g.const(0.0)
            slope = g.where(g.apply("eq", b, zero), zero, slope)
        first = g.mul(slope, inner[0])
    second = None
    if inner[1] is not None:
        # 0**b has no slope in b for b ≥ 0; log 0 would make it NaN
        zero = g.const(0.0)
        flat = g.apply("and", g.apply("eq", a, zero), g.apply("ge", b, zero))
        log = g.apply("log", a if _is_nonzero(a) else g.where(flat, g.const(1.0), a))
        second = g.mul(g.mul(node, log), inner[1])
    return _sum(g, first, second)


def _is_nonzero(node: Node) -> bool:
    return node.op == "const" and node.value != 0.0


def _where(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    _, a, b = inner
    zero = g.const(0.0)
    return g.where(node.args[0], zero if a is None else a, zero if b is None else b)


def _extreme(first_wins: str) -> Rule:
    def rule(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
        a, b = node.args
        zero = g.const(0.0)
        da, db = (zero if d is None else d for d in inner)
        chosen = g.where(g.apply(first_wins, a, b), da, db)
        half = g.scale(0.5, g.add(da, db))
        return g.where(g.apply("eq", a, b), half, chosen)

    return rule


def _atan2(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    y, x = node.args
    dy, dx = inner
    square = g.add(g.mul(x, x), g.mul(y, y))
    top = _sum(g, _times(g, x, dy), None if dx is None else g.neg(g.mul(y, dx)))
    return None if top is None else g.div(top, square)


def _copysign(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
    size, sign = node.args
    return _times(g, g.apply("copysign", g.const(1.0), sign), _times(g, _sign(g, size), inner[0]))


def _modulo(rounding: str) -> Rule:
    """A rule for a − b · rounding(a/b)."""

    def rule(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
        count = g.apply(rounding, g.div(*node.args))
        return _sum(g, inner[0], _times(g, g.neg(count), inner[1]))

    return rule


def _two(first: Callable[..., Node], second: Callable[..., Node]) -> Rule:
    """A rule from both partial derivatives as functions of (graph, node, a, b)."""

    def rule(g: Graph, node: Node, inner: tuple[Node | None, ...]) -> Node | None:
        a, b = inner
        along = None if a is None else g.mul(first(g, node, *node.args), a)
        return _sum(g, along, None if b is None else g.mul(second(g, node, *node.args), b))

    return rule


def _gamma_density(g: Graph, f: Node, a: Node, x: Node) -> Node:
    """The slope xᵃ⁻¹ e⁻ˣ/Γ(a) of the incomplete gamma function (NIST DLMF 8.8.13)."""
    exponent, zero = g.sub(a, g.const(1.0)), g.const(0.0)
    # at the origin x⁰ is 1
    flat = g.apply("and", g.apply("eq", exponent, zero), g.apply("eq", x, zero))
    power = g.mul(exponent, g.apply("log", g.where(flat, g.const(1.0), x)))
    return g.apply("exp", g.sub(g.sub(power, x), g.apply("lgamma", a)))


def _over(g: Graph, f: Node, a: Node) -> Node:
    """The quotient f/a of an odd function, 1/2 at 0 as of I₁ and J₁."""
    centre, one = g.apply("eq", a, g.const(0.0)), g.const(1.0)
    return g.where(centre, g.const(0.5), g.div(f, g.where(centre, one, a)))


def _sign(g: Graph, a: Node) -> Node:
    return g.apply("sign", a)


def _one_minus_square(g: Graph, a: Node) -> Node:
    return g.sub(g.const(1.0), g.mul(a, a))


RULES: dict[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "where": _where,
    "atan2": _atan2,
    "maximum": _extreme("gt"),
    "minimum": _extreme("lt"),
    "neg": lambda g, node, inner: None if inner[0] is None else g.neg(inner[0]),
    "exp": _unary(lambda g, f, a: f),
    "exp2": _unary(lambda g, f, a: g.scale(math.log(2.0), f)),
    "expm1": _unary(lambda g, f, a: g.add(f, g.const(1.0))),
    "log": _quotient(lambda g, f, a: a),
    "log2": _quotient(lambda g, f, a: g.scale(math.log(2.0), a)),
    "log10": _quotient(lambda g, f, a: g.scale(math.log(10.0), a)),
    "log1p": _quotient(lambda g, f, a: g.add(a, g.const(1.0))),
    "sqrt": _quotient(lambda g, f, a: g.scale(2.0, f)),
    "abs": _unary(lambda g, f, a: g.apply("sign", a)),
    "sin": _unary(lambda g, f, a: g.apply("cos", a)),
    "cos": _unary(lambda g, f, a: g.neg(g.apply("sin", a))),
    "tan": _unary(lambda g, f, a: g.add(g.const(1.0), g.mul(f, f))),
    "asin": _quotient(lambda g, f, a: g.apply("sqrt", _one_minus_square(g, a))),
    "acos": _quotient(lambda g, f, a: g.neg(g.apply("sqrt", _one_minus_square(g, a)))),
    "atan": _quotient(lambda g, f, a: g.add(g.const(1.0), g.mul(a, a))),
    "sinh": _unary(lambda g, f, a: g.apply("cosh", a)),
    "cosh": _unary(lambda g, f, a: g.apply("sinh", a)),
    "tanh": _unary(lambda g, f, a: _one_minus_square(g, f)),
    "asinh": _quotient(lambda g, f, a: g.apply("sqrt", g.add(g.const(1.0), g.mul(a, a)))),
    "acosh": _quotient(lambda g, f, a: g.apply("sqrt", g.sub(g.mul(a, a), g.const(1.0)))),
    "atanh": _quotient(lambda g, f, a: _one_minus_square(g, a)),
    "sigmoid": _unary(lambda g, f, a: g.mul(f, g.sub(g.const(1.0), f))),
    "erf": _unary(
        lambda g, f, a: g.scale(2 / math.sqrt(math.pi), g.apply("exp", g.neg(g.mul(a, a))))
    ),
    "erfc": _unary(
        lambda g, f, a: g.scale(-2 / math.sqrt(math.pi), g.apply("exp", g.neg(g.mul(a, a))))
    ),
    "erfcx": _unary(
        lambda g, f, a: g.sub(g.scale(2.0, g.mul(a, f)), g.const(2 / math.sqrt(math.pi)))
    ),
    "erfinv": _unary(lambda g, f, a: g.scale(math.sqrt(math.pi) / 2, g.apply("exp", g.mul(f, f)))),
    "ndtri": _unary(
        lambda g, f, a: g.scale(math.sqrt(2 * math.pi), g.apply("exp", g.scale(0.5, g.mul(f, f))))
    ),
    # the density over the distribution: both vanish on the left, their ratio does not
    "log_ndtr": _quotient(
        lambda g, f, a: g.scale(
            math.sqrt(math.pi / 2), g.apply("erfcx", g.scale(-math.sqrt(0.5), a))
        )
    ),
    "lgamma": _unary(lambda g, f, a: g.apply("digamma", a)),
    "digamma": _unary(lambda g, f, a: g.apply("trigamma", a)),
    "trigamma": _unary(lambda g, f, a: g.apply("polygamma2", a)),
    "polygamma2": _unary(lambda g, f, a: g.apply("polygamma3", a)),
    "polygamma3": _unary(lambda g, f, a: g.apply("polygamma4", a)),
    "polygamma4": _unary(lambda g, f, a: g.apply("polygamma5", a)),
    "i0": _unary(lambda g, f, a: g.apply("i1", a)),
    "i1": _unary(lambda g, f, a: g.sub(g.apply("i0", a), _over(g, f, a))),
    "i0e": _unary(lambda g, f, a: g.sub(g.apply("i1e", a), g.mul(_sign(g, a), f))),
    "i1e": _unary(
        lambda g, f, a: g.sub(g.sub(g.apply("i0e", a), _over(g, f, a)), g.mul(_sign(g, a), f))
    ),
    # NIST DLMF 10.6, 10.29, 10.51
    "bessel_j0": _unary(lambda g, f, a: g.neg(g.apply("bessel_j1", a))),
    "bessel_j1": _unary(lambda g, f, a: g.sub(g.apply("bessel_j0", a), _over(g, f, a))),
    "bessel_y0": _unary(lambda g, f, a: g.neg(g.apply("bessel_y1", a))),
    "bessel_y1": _unary(lambda g, f, a: g.sub(g.apply("bessel_y0", a), g.div(f, a))),
    "bessel_k0": _unary(lambda g, f, a: g.neg(g.apply("bessel_k1", a))),
    "bessel_k1": _unary(lambda g, f, a: g.neg(g.add(g.apply("bessel_k0", a), g.div(f, a)))),
    "scaled_bessel_k0": _unary(lambda g, f, a: g.sub(f, g.apply("scaled_bessel_k1", a))),
    "scaled_bessel_k1": _unary(
        lambda g, f, a: g.sub(g.sub(f, g.div(f, a)), g.apply("scaled_bessel_k0", a))
    ),
    "spherical_bessel_j0": _unary(lambda g, f, a: g.apply("spherical_bessel_j0_slope", a)),
    "airy_ai": _unary(lambda g, f, a: g.apply("airy_ai_slope", a)),
    "airy_ai_slope": _unary(lambda g, f, a: g.mul(a, g.apply("airy_ai", a))),
    "cube_root": _quotient(lambda g, f, a: g.scale(3.0, g.mul(f, f))),
    "copysign": _copysign,
    "fmod": _modulo("trunc"),
    "remainder": _modulo("floor"),
    # of x + iy: a derivative by y is i times the one by x
    "faddeeva_real": _two(
        lambda g, f, x, y: g.apply("faddeeva_real_slope", x, y),
        lambda g, f, x, y: g.neg(g.apply("faddeeva_imag_slope", x, y)),
    ),
    "faddeeva_imag": _two(
        lambda g, f, x, y: g.apply("faddeeva_imag_slope", x, y),
        lambda g, f, x, y: g.apply("faddeeva_real_slope", x, y),
    ),
    "gammainc": _two(lambda g, f, a, x: g.apply("gammainc_order_slope", a, x), _gamma_density),
    "gammaincc": _two(
        lambda g, f, a, x: g.neg(g.apply("gammainc_order_slope", a, x)),
        lambda g, f, a, x: g.neg(_gamma_density(g, f, a, x)),
    ),
    "zeta": _two(
        lambda g, f, s, q: g.apply("zeta_exponent_slope", s, q),
        lambda g, f, s, q: g.neg(g.mul(s, g.apply("zeta", g.add(s, g.const(1.0)), q))),
    ),
}
"""One rule per operation."""
