"""Expressions rewritten for speed: what does not depend on the sample leaves the loop over samples.

Every product is kept as (factor without the sample) · (rest), so that such factors meet, are
computed once per step, and leave sums. Division becomes multiplication by a reciprocal, once per
divisor. ``exp`` becomes 2^t, where log₂ e joins such a factor. Results may differ by some ulp from
the order in which the user wrote them; what is infinite or NaN stays so, but for quotients whose
divisor is too small to have a reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from torchimize.kernel.graph import SAMPLE, Graph, Node, is_const, reachable
from torchimize.kernel.machine import split


class Rewriter:
    """Copies expressions of one graph into another, rewritten.

    Parameters
    ----------
    graph : Graph
        Where to.
    leaf : callable
        From 'param' and 'load' nodes to what stands for them there.
    masks : collection of Node
        Conditions that say which samples there are: factors may leave what they choose. Those of
        other conditions may not, for a condition may keep out what is not finite.
    """

    def __init__(
        self, graph: Graph, leaf: Callable[[Node], Node], masks: Collection[Node] = ()
    ) -> None:
        self.graph = graph
        self.masks = {mask.serial for mask in masks}
        self.leaf = leaf
        self._done: dict[int, Node] = {}

    def __call__(self, node: Node) -> Node:
        """The rewritten expression."""
        for inner in reachable([node]):
            if inner.serial not in self._done:
                self._done[inner.serial] = self._rewritten(inner)
        return self._done[node.serial]

    def _rewritten(self, node: Node) -> Node:
        g = self.graph
        if node.op == "const":
            return g.const(node.value)  # type: ignore[arg-type]
        if not node.args:
            return self.leaf(node)
        args = [self._done[arg.serial] for arg in node.args]
        if node.op == "where" and node.args[0].serial in self.masks and is_const(args[2], 0.0):
            return masked(g, args[0], args[1])
        rule = _RULES.get(node.op)
        return g.apply(node.op, *args) if rule is None else rule(g, *args)


def multiply(g: Graph, a: Node, b: Node) -> Node:
    """The product a · b."""
    (scale_a, rest_a), (scale_b, rest_b) = split(g, a), split(g, b)
    return g.mul(g.mul(scale_a, scale_b), g.mul(rest_a, rest_b))


def add(g: Graph, a: Node, b: Node) -> Node:
    """The sum a + b; a common factor is taken out."""
    (scale_a, rest_a), (scale_b, rest_b) = split(g, a), split(g, b)
    if rest_a is rest_b and rest_a.depends & SAMPLE:
        return multiply(g, g.add(scale_a, scale_b), rest_a)
    both = rest_a.depends & rest_b.depends & SAMPLE
    if scale_a is scale_b and scale_a.op != "const" and both:
        return g.mul(scale_a, g.add(rest_a, rest_b))
    return g.add(a, b)


def subtract(g: Graph, a: Node, b: Node) -> Node:
    """The difference a − b."""
    (scale_a, rest_a), (scale_b, rest_b) = split(g, a), split(g, b)
    both = rest_a.depends & rest_b.depends & SAMPLE
    if scale_a is scale_b and scale_a.op != "const" and both:
        return g.mul(scale_a, g.sub(rest_a, rest_b))
    return g.sub(a, b)


def negate(g: Graph, a: Node) -> Node:
    """The negative −a."""
    scale, rest = split(g, a)
    return g.neg(a) if is_const(scale, 1.0) else g.mul(g.neg(scale), rest)


def divide(g: Graph, a: Node, b: Node) -> Node:
    """The quotient a / b as a · (1/b)."""
    scale, rest = split(g, b)
    one = g.const(1.0)
    if rest.depends & SAMPLE:
        reciprocal = g.mul(g.div(one, scale), g.div(one, rest))
    else:
        reciprocal = g.div(one, b)
    return multiply(g, a, reciprocal)


def exponential(g: Graph, a: Node) -> Node:
    """The exponential eᵃ as 2^(a log₂ e)."""
    return g.apply("exp2", multiply(g, g.const(1 / math.log(2.0)), a))


def masked(g: Graph, mask: Node, a: Node) -> Node:
    """The value a where the mask holds, 0 elsewhere; a factor stays outside."""
    scale, rest = split(g, a)
    return g.mul(scale, g.where(mask, rest, g.const(0.0)))


_RULES: dict[str, Callable[..., Node]] = {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "neg": negate,
    "div": divide,
    "exp": exponential,
}
