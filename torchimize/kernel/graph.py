"""A graph of scalar expressions: what a model computes for one sample of one problem.

Nodes are interned, so equal expressions are one node, and simplified as they are made. Every node
knows what it depends on: nothing (a constant), the problem (parameters, one number per problem),
the sample (an abscissa), or both. The graph knows nothing of tensors, batches or least squares.

Simplifying may round otherwise (two constant factors become one) and may change the sign of a
zero (``x + 0`` becomes ``x``); nothing else: what is infinite or NaN stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PROBLEM = 1
"""Flag: the value differs between problems."""

SAMPLE = 2
"""Flag: the value differs between samples."""


@dataclass(frozen=True, slots=True)
class Index:
    """An affine index: ``offset + problem·b + sample·n`` for problem b and sample n."""

    offset: int = 0
    problem: int = 0
    sample: int = 0

    def __add__(self, other: Index) -> Index:
        return Index(
            self.offset + other.offset, self.problem + other.problem, self.sample + other.sample
        )

    def __mul__(self, factor: int) -> Index:
        return Index(self.offset * factor, self.problem * factor, self.sample * factor)

    @property
    def depends(self) -> int:
        """Flags PROBLEM and SAMPLE."""
        return (PROBLEM if self.problem else 0) | (SAMPLE if self.sample else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One scalar expression.

    Attributes
    ----------
    op : str
        'const' (``value``), 'param' (``value`` = j), 'load' (``value`` = (source, index per
        dimension)), 'state', 'sum' and 'length' (see :mod:`torchimize.kernel.machine`), 'carry' and
        'loop' (see :class:`Loop`), or the name of an operation on ``args``.
    args : tuple of Node
    value : object
    depends : int
        Flags PROBLEM and SAMPLE.
    serial : int
        Position in the graph; arguments come before their users.
    """

    op: str
    args: tuple[Node, ...]
    value: object
    depends: int
    serial: int

    def __repr__(self) -> str:
        inner = ", ".join(f"%{arg.serial}" for arg in self.args)
        return f"%{self.serial} = {self.op}({inner or self.value})"


@dataclass(slots=True, eq=False)
class Loop:
    """A loop of a graph: ``while any problem is still in ``todo``, at most ``times`` times``.

    Problems for which ``todo`` no longer holds are computed again with the others; a loop is
    written so that this changes nothing for them.

    Attributes
    ----------
    times : int
    first : Node
        Condition to enter the loop at all.
    initial : tuple of Node
        What the carried values are before the first round.
    carried : tuple of Node
        What the body knows them by: operation 'carry' or 'carried_condition', ``value`` = (loop,
        position).
    updated : tuple of Node
        What they are after a round; after the last one they are the loop's results: operation
        'loop' or 'loop_condition', ``value`` = (loop, position), ``args`` = (first, *initial).
    todo : Node
        Condition for another round.
    """

    times: int
    first: Node
    initial: tuple[Node, ...]
    carried: tuple[Node, ...] = ()
    updated: tuple[Node, ...] = ()
    todo: Node | None = None


CONDITIONS = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "isnan", "isfinite"}
    | {"state_condition", "carried_condition", "loop_condition"}
)
"""Operations whose value is a truth value; constants 0 and 1 stand for truth values too."""


def _is_finite(a: float) -> float:
    return float(math.isfinite(a))


FOLD: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
    "pow": math.pow,
    "abs": abs,
    "eq": lambda a, b: float(a == b),
    "ne": lambda a, b: float(a != b),
    "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b),
    "gt": lambda a, b: float(a > b),
    "ge": lambda a, b: float(a >= b),
    "maximum": lambda a, b: a if a > b or a != a else b,
    "minimum": lambda a, b: a if a < b or a != a else b,
    "and": lambda a, b: float(bool(a) and bool(b)),
    "or": lambda a, b: float(bool(a) or bool(b)),
    "not": lambda a: float(not a),
    "isfinite": _is_finite,
}
"""Operations whose value is computed at once where all arguments are constants."""

ORDINARY_EXPONENT = 64
"""Constants up to 2**64 and down to 2**-64 may be combined: nothing over- or underflows, whatever
the precision that computes with them."""

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "and", "or"})


class Graph:
    """A set of interned nodes.

    Examples
    --------
    >>> from torchimize.kernel.graph import Graph
    >>> g = Graph()
    >>> a = g.param(0)
    >>> g.add(a, g.const(0.0)) is a, g.mul(a, a) is g.mul(a, a)
    (True, True)
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._interned: dict[tuple[object, ...], Node] = {}

    def _intern(self, op: str, args: tuple[Node, ...], value: object, depends: int) -> Node:
        # 0.0 and -0.0 are equal as keys but not as numbers
        sign = math.copysign(1.0, value) if isinstance(value, float) else 0.0
        key = (op, value, sign, *(arg.serial for arg in args))
        node = self._interned.get(key)
        if node is None:
            node = Node(op, args, value, depends, len(self.nodes))
            self.nodes.append(node)
            self._interned[key] = node
        return node

    def const(self, value: float) -> Node:
        """A number."""
        return self._intern("const", (), float(value), 0)

    def param(self, position: int) -> Node:
        """Parameter ``position`` of the problem."""
        return self._intern("param", (), position, PROBLEM)

    def load(self, source: int, indices: tuple[Index, ...]) -> Node:
        """An element of the tensor number ``source``."""
        depends = 0
        for index in indices:
            depends |= index.depends
        return self._intern("load", (), (source, indices), depends)

    def leaf(self, op: str, value: object, depends: int) -> Node:
        """A value that comes from outside, such as an element of the state."""
        return self._intern(op, (), value, depends)

    def loop(
        self,
        times: int,
        first: Node,
        initial: tuple[Node, ...],
        body: Callable[[tuple[Node, ...]], tuple[Node, tuple[Node, ...]]],
    ) -> tuple[Node, ...]:
        """A loop's results; see :class:`Loop`.

        Parameters
        ----------
        times : int
        first : Node
        initial : tuple of Node
        body : callable
            Carried values to (todo, updated values).
        """
        if first.op == "const" and not first.value:
            return initial
        loop = Loop(times, first, initial)
        # A constant may stand for a truth value, and a value may never change: both show in the
        # body only, which is written again then.
        ops = ["carried_condition" if node.op in CONDITIONS else "carry" for node in initial]
        same = [True] * len(initial)
        while True:
            loop.carried = tuple(
                start if unchanged else self.leaf(op, (loop, k), PROBLEM)
                for k, (op, start, unchanged) in enumerate(zip(ops, initial, same, strict=True))
            )
            loop.todo, loop.updated = body(loop.carried)
            before = (list(ops), list(same))
            for k, (start, node) in enumerate(zip(loop.carried, loop.updated, strict=True)):
                if node is not start:
                    same[k] = False
                if node.op in CONDITIONS:
                    ops[k] = "carried_condition"
            if before == (ops, same):
                break
        return tuple(
            start
            if unchanged
            else self._intern(
                "loop" if op == "carry" else "loop_condition", (first, *initial), (loop, k), PROBLEM
            )
            for k, (op, start, unchanged) in enumerate(zip(ops, initial, same, strict=True))
        )

    def apply(self, op: str, *args: Node) -> Node:
        """An operation by name, folded and simplified."""
        values = [arg.value for arg in args if arg.op == "const"]
        if op in FOLD and len(values) == len(args):
            try:
                return self.const(FOLD[op](*values))
            except (ValueError, OverflowError, ZeroDivisionError):
                pass
        simple = SIMPLIFY[op](self, *args) if op in SIMPLIFY else None
        if simple is not None:
            return simple
        if op in COMMUTATIVE and args[0].serial > args[1].serial:
            args = (args[1], args[0])
        depends = 0
        for arg in args:
            depends |= arg.depends
        return self._intern(op, args, None, depends)

    def add(self, a: Node, b: Node) -> Node:
        """The sum a + b."""
        return self.apply("add", a, b)

    def sub(self, a: Node, b: Node) -> Node:
        """The difference a − b."""
        return self.apply("sub", a, b)

    def mul(self, a: Node, b: Node) -> Node:
        """The product a · b."""
        return self.apply("mul", a, b)

    def div(self, a: Node, b: Node) -> Node:
        """The quotient a / b."""
        return self.apply("div", a, b)

    def neg(self, a: Node) -> Node:
        """The negative −a."""
        return self.apply("neg", a)

    def where(self, condition: Node, a: Node, b: Node) -> Node:
        """Take a where the condition holds, b elsewhere."""
        return self.apply("where", condition, a, b)

    def scale(self, factor: float, a: Node) -> Node:
        """The multiple factor · a."""
        return self.mul(self.const(factor), a)


def is_const(node: Node, value: float) -> bool:
    """Whether a node is that number."""
    return node.op == "const" and node.value == value


def _add(g: Graph, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if is_const(one, 0.0):
            return other
        if one.op == "neg":
            return g.sub(other, one.args[0])
    return None


def _sub(g: Graph, a: Node, b: Node) -> Node | None:
    if is_const(b, 0.0):
        return a
    if is_const(a, 0.0):
        return g.neg(b)
    return g.add(a, b.args[0]) if b.op == "neg" else None


def _mul(g: Graph, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if is_const(one, 1.0):
            return other
        if is_const(one, -1.0):
            return g.neg(other)
        if one.op == "neg" and other.op != "const":
            return g.neg(g.mul(one.args[0], other))
        if one.op == "const" and other.op == "neg":
            return g.mul(g.neg(one), other.args[0])
        if one.op == "const" and other.op == "mul":
            for inner, rest in (other.args, other.args[::-1]):
                if inner.op == "const" and _is_ordinary(one) and _is_ordinary(inner):
                    return g.mul(g.mul(one, inner), rest)
    return None


def _is_ordinary(node: Node) -> bool:
    """Whether a constant is neither huge nor tiny, zero, infinite or NaN."""
    size = abs(node.value) if isinstance(node.value, float) else 0.0
    return 2.0**-ORDINARY_EXPONENT <= size <= 2.0**ORDINARY_EXPONENT


def _div(g: Graph, a: Node, b: Node) -> Node | None:
    if is_const(b, 1.0):
        return a
    if a.op == "neg":
        return g.neg(g.div(a.args[0], b))
    if b.op == "neg":
        return g.neg(g.div(a, b.args[0]))
    if b.op == "const" and isinstance(b.value, float) and _is_ordinary(b):
        mantissa, _ = math.frexp(b.value)
        if abs(mantissa) == 0.5:  # a power of two: its reciprocal is exact
            return g.mul(a, g.const(1 / b.value))
    return None


def _neg(g: Graph, a: Node) -> Node | None:
    if a.op == "neg":
        return a.args[0]
    return g.sub(a.args[1], a.args[0]) if a.op == "sub" else None


def _pow(g: Graph, a: Node, b: Node) -> Node | None:
    if b.op != "const" or not isinstance(b.value, float):
        return None
    if b.value == 1.0:
        return a
    if b.value == 0.0:
        return g.const(1.0)
    if b.value == 0.5:
        return g.apply("sqrt", a)
    if b.value == -0.5:
        return g.div(g.const(1.0), g.apply("sqrt", a))
    if not abs(b.value) <= 8 or b.value != int(b.value):
        return None
    power = _by_squaring(g, a, int(abs(b.value)))
    return power if b.value > 0 else g.div(g.const(1.0), power)


def _by_squaring(g: Graph, a: Node, exponent: int) -> Node:
    if exponent == 1:
        return a
    half = _by_squaring(g, a, exponent // 2)
    square = g.mul(half, half)
    return g.mul(square, a) if exponent % 2 else square


def _where(g: Graph, condition: Node, a: Node, b: Node) -> Node | None:
    if a is b:
        return a
    if condition.op == "const":
        return a if condition.value else b
    if a.op in CONDITIONS or b.op in CONDITIONS:
        # of truth values
        return g.apply(
            "or", g.apply("and", condition, a), g.apply("and", g.apply("not", condition), b)
        )
    if condition.op == "not":
        return g.where(condition.args[0], b, a)
    if a.op == "where" and a.args[0] is condition:
        return g.where(condition, a.args[1], b)
    if b.op == "where" and b.args[0] is condition:
        return g.where(condition, a, b.args[2])
    return None


def _and(g: Graph, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.op == "const":
            return other if one.value else g.const(0.0)
        if one is other:
            return one
        if one.op == "not" and one.args[0] is other:
            return g.const(0.0)
        if one.op == "and" and any(arg is other for arg in one.args):
            return one
    return None


def _or(g: Graph, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.op == "const":
            return g.const(1.0) if one.value else other
        if one is other:
            return one
        if one.op == "not" and one.args[0] is other:
            return g.const(1.0)
    return None


def _not(g: Graph, a: Node) -> Node | None:
    return a.args[0] if a.op == "not" else None


SIMPLIFY: dict[str, Callable[..., Node | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "pow": _pow,
    "where": _where,
    "and": _and,
    "or": _or,
    "not": _not,
}


def reachable(outputs: Iterable[Node]) -> list[Node]:
    """The nodes that the outputs need, arguments before their users."""
    found: dict[int, Node] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.serial not in found:
            found[node.serial] = node
            stack.extend(node.args)
    return [found[serial] for serial in sorted(found)]
