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
    {"floor", "ceil", "round", "trunc", "sign", "eq", "ne", "lt", "le", "gt", "ge"}
    | {"and", "or", "not", "isnan", "isfinite"}
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
    order = reachable([output])
    return [_along(graph, order, output, j) for j in range(num_params)]


def _along(graph: Graph, order: list[Node], output: Node, position: int) -> Node | None:
    tangent: dict[int, Node] = {}
    for node in order:
        if node.op == "param":
            if node.value == position:
                tangent[node.serial] = graph.const(1.0)
            continue
        inner = tuple(tangent.get(arg.serial) for arg in node.args)
        if all(d is None for d in inner) or node.op in SUPPORTED_CONSTANT:
            continue
        if node.op not in RULES:
            raise UnknownDerivativeError(f"no derivative rule for {node.op!r}")
        result = RULES[node.op](graph, node, inner)
        if result is not None:
            tangent[node.serial] = result
    return tangent.get(output.serial)


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
    "lgamma": _unary(lambda g, f, a: g.apply("digamma", a)),
    "i0": _unary(lambda g, f, a: g.apply("i1", a)),
    "i0e": _unary(lambda g, f, a: g.sub(g.apply("i1e", a), g.mul(g.apply("sign", a), f))),
}
"""One rule per operation."""
