"""The expression graph: interning, folding and simplifying, against plain arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchimize.kernel.graph import (
    CONDITIONS,
    PROBLEM,
    SAMPLE,
    Graph,
    Index,
    Loop,
    Node,
    reachable,
)
from torchimize.kernel.torch_ops import Program

NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-300, -1e300, math.inf, -math.inf, math.nan]
PAIRS = torch.tensor(list(itertools.product(NUMBERS, NUMBERS)), dtype=torch.float64)
FIRST, SECOND = PAIRS.unbind(1)


def evaluate(node: Node, params: Tensor = PAIRS) -> Tensor:
    """A node of parameters alone, at (A, P): (A,)."""
    (value,) = Program([node]).run(params, [], 1)
    return value.expand(params.shape[0], 1)[:, 0]


def assert_same(value: Tensor, wanted: Tensor, *, signed: bool = True) -> None:
    """Equal to the last bit, NaN equal to NaN; with ``signed``, −0 is not 0."""
    assert torch.equal(value.isnan(), wanted.isnan())
    finite = ~wanted.isnan()
    assert torch.equal(value[finite], wanted[finite])
    if signed:
        assert torch.equal(value[finite].signbit(), wanted[finite].signbit())


# ------------------------------------------------------------------------------ nodes and indices


def test_index_arithmetic() -> None:
    index = Index(1, 2, 3) + Index(10, 20, 30)
    assert index == Index(11, 22, 33)
    assert index * 2 == Index(22, 44, 66)
    assert [Index(4).depends, Index(0, 1).depends, Index(0, 0, -1).depends, index.depends] == [
        *(0, PROBLEM, SAMPLE),
        PROBLEM | SAMPLE,
    ]


def test_what_nodes_depend_on() -> None:
    g = Graph()
    number, param = g.const(2.0), g.param(0)
    shared, own = g.load(0, (Index(0, 0, 1),)), g.load(1, (Index(0, 1), Index(0, 0, 1)))
    assert [n.depends for n in (number, param, shared, own)] == [0, PROBLEM, SAMPLE, 3]
    assert g.mul(param, shared).depends == PROBLEM | SAMPLE
    assert g.apply("exp", shared).depends == SAMPLE


def test_equal_expressions_are_one_node() -> None:
    g = Graph()
    a, b = g.param(0), g.param(1)
    assert g.param(0) is a and a is not b
    assert g.load(0, (Index(3),)) is g.load(0, (Index(3),))
    assert g.load(0, (Index(3),)) is not g.load(1, (Index(3),))
    assert g.load(0, (Index(3),)) is not g.load(0, (Index(0, 3),))
    for op in ("add", "mul", "maximum", "minimum", "eq", "ne", "and", "or"):
        assert g.apply(op, a, b) is g.apply(op, b, a)
    for op in ("sub", "div", "pow", "lt", "atan2"):
        assert g.apply(op, a, b) is not g.apply(op, b, a)
    assert g.apply("exp", a) is g.apply("exp", a) and g.apply("exp", a) is not g.apply("sin", a)


def test_numbers_are_told_apart() -> None:
    g = Graph()
    assert g.const(1.0) is g.const(1)
    assert g.const(1.0) is not g.param(1)
    zero, negative = g.const(0.0), g.const(-0.0)
    assert zero is not negative
    assert math.copysign(1, zero.value) == 1 and math.copysign(1, negative.value) == -1  # type: ignore[arg-type]


def test_arguments_come_before_their_users() -> None:
    g = Graph()
    a = g.param(0)
    root = g.add(g.apply("exp", g.mul(a, a)), g.apply("sin", a))
    g.apply("cos", a)
    order = reachable([root])
    place = {node.serial: k for k, node in enumerate(order)}
    assert all(place[arg.serial] < place[node.serial] for node in order for arg in node.args)
    assert {node.op for node in order} == {"param", "mul", "exp", "sin", "add"}
    assert len(order) == len(place) == 5


def test_nodes_print_their_arguments() -> None:
    g = Graph()
    a = g.param(3)
    assert repr(a) == "%0 = param(3)" and repr(g.apply("exp", a)) == "%1 = exp(%0)"


# ---------------------------------------------------------------------------------- simplifying


EXACT: dict[str, tuple[Callable[[Graph, Node, Node], Node], Callable[[Tensor, Tensor], Tensor]]] = {
    "a + −0": (lambda g, a, b: g.add(a, g.const(-0.0)), lambda a, b: a + -0.0),
    "a − 0": (lambda g, a, b: g.sub(a, g.const(0.0)), lambda a, b: a - 0.0),
    "−0 − a": (lambda g, a, b: g.sub(g.const(-0.0), a), lambda a, b: -0.0 - a),
    "a + (−b)": (lambda g, a, b: g.add(a, g.neg(b)), lambda a, b: a + (-b)),
    "(−a) + b": (lambda g, a, b: g.add(g.neg(a), b), lambda a, b: (-a) + b),
    "a − (−b)": (lambda g, a, b: g.sub(a, g.neg(b)), lambda a, b: a - (-b)),
    "1 · a": (lambda g, a, b: g.mul(g.const(1.0), a), lambda a, b: 1.0 * a),
    "a · −1": (lambda g, a, b: g.mul(a, g.const(-1.0)), lambda a, b: a * -1.0),
    "(−a) · b": (lambda g, a, b: g.mul(g.neg(a), b), lambda a, b: (-a) * b),
    "a · (−b)": (lambda g, a, b: g.mul(a, g.neg(b)), lambda a, b: a * (-b)),
    "(−a) · (−b)": (lambda g, a, b: g.mul(g.neg(a), g.neg(b)), lambda a, b: (-a) * (-b)),
    "3 · (−a)": (lambda g, a, b: g.scale(3.0, g.neg(a)), lambda a, b: 3.0 * (-a)),
    "0 · a": (lambda g, a, b: g.scale(0.0, a), lambda a, b: 0.0 * a),
    "a · −0": (lambda g, a, b: g.mul(a, g.const(-0.0)), lambda a, b: a * -0.0),
    "a − a": (lambda g, a, b: g.sub(a, a), lambda a, b: a - a),
    "a / a": (lambda g, a, b: g.div(a, a), lambda a, b: a / a),
    "0 / a": (lambda g, a, b: g.div(g.const(0.0), a), lambda a, b: 0.0 / a),
    "a / 1": (lambda g, a, b: g.div(a, g.const(1.0)), lambda a, b: a / 1.0),
    "(−a) / b": (lambda g, a, b: g.div(g.neg(a), b), lambda a, b: (-a) / b),
    "a / (−b)": (lambda g, a, b: g.div(a, g.neg(b)), lambda a, b: a / (-b)),
    "a / 0": (lambda g, a, b: g.div(a, g.const(0.0)), lambda a, b: a / 0.0),
    "a / −8": (lambda g, a, b: g.div(a, g.const(-8.0)), lambda a, b: a / -8.0),
    "a / 3": (lambda g, a, b: g.div(a, g.const(3.0)), lambda a, b: a / 3.0),
    "a / ∞": (lambda g, a, b: g.div(a, g.const(math.inf)), lambda a, b: a / math.inf),
    "−(−a)": (lambda g, a, b: g.neg(g.neg(a)), lambda a, b: a),
    "a ** 0": (lambda g, a, b: g.apply("pow", a, g.const(0.0)), lambda a, b: a**0.0),
    "a ** 1": (lambda g, a, b: g.apply("pow", a, g.const(1.0)), lambda a, b: a**1.0),
    "a ** 2": (lambda g, a, b: g.apply("pow", a, g.const(2.0)), lambda a, b: a**2.0),
    "a ** ½": (lambda g, a, b: g.apply("pow", a, g.const(0.5)), lambda a, b: a**0.5),
    "a ** −1": (lambda g, a, b: g.apply("pow", a, g.const(-1.0)), lambda a, b: a**-1.0),
    "a ** ∞": (lambda g, a, b: g.apply("pow", a, g.const(math.inf)), lambda a, b: a**math.inf),
    "a ** NaN": (lambda g, a, b: g.apply("pow", a, g.const(math.nan)), lambda a, b: a**math.nan),
    "where(a > b, a, a)": (lambda g, a, b: g.where(g.apply("gt", a, b), a, a), lambda a, b: a),
    "where(1, a, b)": (lambda g, a, b: g.where(g.const(1.0), a, b), lambda a, b: a),
    "where(0, a, b)": (lambda g, a, b: g.where(g.const(0.0), a, b), lambda a, b: b),
}
"""What must come out as plain arithmetic has it, to the last bit and the sign of a zero."""


@pytest.mark.parametrize("name", EXACT)
def test_exact_simplifications(name: str) -> None:
    build, plain = EXACT[name]
    g = Graph()
    assert_same(evaluate(build(g, g.param(0), g.param(1))), plain(FIRST, SECOND))


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (lambda g, a, b: g.add(a, g.const(0.0)), lambda a, b: a + 0.0),
        (lambda g, a, b: g.add(g.const(0.0), a), lambda a, b: 0.0 + a),
        (lambda g, a, b: g.sub(g.const(0.0), a), lambda a, b: 0.0 - a),
        (lambda g, a, b: g.sub(a, g.const(-0.0)), lambda a, b: a - -0.0),
        (lambda g, a, b: g.neg(g.sub(a, b)), lambda a, b: -(a - b)),
    ],
)
def test_simplifications_that_lose_only_the_sign_of_a_zero(
    build: Callable[[Graph, Node, Node], Node], plain: Callable[[Tensor, Tensor], Tensor]
) -> None:
    g = Graph()
    a, b = g.param(0), g.param(1)
    node = build(g, a, b)
    assert node.op in ("param", "neg", "sub"), "nothing was simplified"
    assert_same(evaluate(node), plain(FIRST, SECOND), signed=False)


def test_what_is_simplified_vanishes() -> None:
    g = Graph()
    a, b = g.param(0), g.param(1)
    assert g.add(a, g.const(0.0)) is a and g.sub(a, g.const(0.0)) is a
    assert g.mul(a, g.const(1.0)) is a and g.div(a, g.const(1.0)) is a
    assert g.mul(a, g.const(-1.0)) is g.neg(a)
    assert g.add(a, g.neg(b)) is g.sub(a, b) and g.sub(a, g.neg(b)) is g.add(a, b)
    assert g.mul(g.neg(a), g.neg(b)) is g.mul(a, b)
    assert g.scale(3.0, g.neg(a)) is g.scale(-3.0, a)
    assert g.div(a, g.const(4.0)) is g.scale(0.25, a)
    assert g.scale(3.0, g.scale(2.0, a)) is g.scale(6.0, a)
    assert g.mul(g.mul(a, g.const(2.0)), g.const(3.0)) is g.scale(6.0, a)
    assert g.where(g.apply("lt", a, b), a, a) is a


def test_what_may_be_nan_or_infinite_stays() -> None:
    g = Graph()
    a = g.param(0)
    assert g.scale(0.0, a).op == "mul"
    assert g.sub(a, a).op == "sub" and g.div(a, a).op == "div"
    assert g.div(g.const(0.0), a).op == "div"
    assert g.apply("ne", a, a).op == "ne"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("exponent", [-130, -60, -3, -1, 1, 2, 10, 60, 130])
def test_division_by_powers_of_two_is_exact(exponent: int, dtype: torch.dtype) -> None:
    g = Graph()
    divisor = math.ldexp(-1.0, exponent)
    values = torch.tensor([0.1, -3.7, 1e-30, 1e30, math.inf, 0.0], dtype=dtype)[:, None]
    node = g.div(g.param(0), g.const(divisor))
    assert_same(evaluate(node, values), (values / divisor)[:, 0])


def test_division_by_other_numbers_is_not_a_product() -> None:
    g = Graph()
    assert g.div(g.param(0), g.const(3.0)).op == "div"
    assert g.div(g.param(0), g.const(0.0)).op == "div"
    # 1/2**-1074 is infinite
    assert g.div(g.param(0), g.const(5e-324)).op == "div"


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [(1e200, 1e200, 1e-300), (1e-200, 1e-200, 1e300), (0.0, 1e300, 1e300), (1e30, 1e30, 1e-30)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factors_are_not_combined_where_they_overflow(
    first: float, second: float, value: float, dtype: torch.dtype
) -> None:
    g = Graph()
    values = torch.tensor([[value], [-value]], dtype=dtype)
    node = g.scale(first, g.scale(second, g.param(0)))
    assert_same(evaluate(node, values), (first * (second * values))[:, 0])


@pytest.mark.parametrize("exponent", [*range(-9, 10), 0.5, -0.5, 1.5, 1 / 3, 20.0])
def test_powers(exponent: float) -> None:
    g = Graph()
    node = g.apply("pow", g.param(0), g.const(float(exponent)))
    values = torch.tensor([[0.0], [0.3], [-0.7], [1.9], [-2.3], [math.inf], [math.nan]]).double()
    wanted = [math.nan if v < 0 and exponent != int(exponent) else None for (v,) in values.tolist()]
    for (v,), given_, value in zip(values.tolist(), wanted, evaluate(node, values), strict=True):
        if given_ is None:
            try:
                given_ = math.pow(v, exponent)
            except ValueError:  # Python's word for 0 to a negative power
                given_ = math.inf
        assert float(value) == pytest.approx(given_, rel=4e-16 * max(1, abs(exponent)), nan_ok=True)
    expanded = exponent == int(exponent) and 2 <= abs(exponent) <= 8
    assert expanded <= ("pow" not in {n.op for n in reachable([node])})


# -------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize(
    ("op", "values", "wanted"),
    [
        *(("add", (2.0, 3.0), 5.0), ("sub", (2.0, 3.0), -1.0), ("mul", (2.0, 3.0), 6.0)),
        *(("div", (3.0, 2.0), 1.5), ("neg", (3.0,), -3.0), ("sqrt", (9.0,), 3.0)),
        *(("exp", (1.0,), math.e), ("log", (math.e,), 1.0), ("pow", (2.0, 10.0), 1024.0)),
        *(("sin", (0.5,), math.sin(0.5)), ("cos", (0.5,), math.cos(0.5))),
    ],
)
def test_numbers_are_folded(op: str, values: tuple[float, ...], wanted: float) -> None:
    g = Graph()
    node = g.apply(op, *map(g.const, values))
    assert node.op == "const" and node.value == wanted


@pytest.mark.parametrize(
    ("op", "values"),
    [
        *(("div", (1.0, 0.0)), ("div", (0.0, 0.0)), ("sqrt", (-1.0,)), ("log", (0.0,))),
        *(("log", (-1.0,)), ("exp", (1000.0,)), ("pow", (-8.0, 1 / 3)), ("pow", (0.0, -1.5))),
        *(("pow", (10.0, 400.0)), ("sin", (math.inf,)), ("pow", (-2.0, math.nan))),
    ],
)
def test_numbers_that_python_refuses_are_torchs(op: str, values: tuple[float, ...]) -> None:
    g = Graph()
    node = g.apply(op, *map(g.const, values))
    value = evaluate(node, torch.zeros(1, 1, dtype=torch.float64))
    functions = {"div": torch.div, "sqrt": torch.sqrt, "log": torch.log, "exp": torch.exp}
    function = {**functions, "pow": torch.pow, "sin": torch.sin}[op]
    wanted = function(*(torch.tensor([v], dtype=torch.float64) for v in values))  # type: ignore[operator]
    assert_same(value, wanted)


# ----------------------------------------------------------------------------- random expressions


Evaluate = Callable[[Tensor, Tensor], Tensor]
"""From p (A, 3) and x (n,) to (A, n)."""

Tree = tuple[Callable[[Graph], Node], Evaluate]

UNARY: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "sin": torch.sin,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "abs": torch.abs,
}
BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
}
BINARY |= {"maximum": torch.maximum, "minimum": torch.minimum}
FACTORS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, -4.0, 3.0, 0.1])


def _constant(value: float) -> Tree:
    return (
        lambda g: g.const(value),
        lambda p, x: torch.full((p.shape[0], x.shape[0]), value, dtype=p.dtype),
    )


def _parameter(j: int) -> Tree:
    return lambda g: g.param(j), lambda p, x: p[:, j, None].expand(-1, x.shape[0])


def _abscissa() -> Tree:
    return lambda g: g.load(0, (Index(0, 0, 1),)), lambda p, x: x.expand(p.shape[0], -1)


def _unary(op: str, a: Tree) -> Tree:
    return lambda g: g.apply(op, a[0](g)), lambda p, x: UNARY[op](a[1](p, x))


def _binary(op: str, a: Tree, b: Tree) -> Tree:
    return (
        lambda g: g.apply(op, a[0](g), b[0](g)),
        lambda p, x: BINARY[op](a[1](p, x), b[1](p, x)),
    )


def _power(a: Tree, exponent: float) -> Tree:
    return (
        lambda g: g.apply("pow", a[0](g), g.const(exponent)),
        lambda p, x: a[1](p, x) ** exponent,
    )


def _choice(c: Tree, a: Tree, b: Tree) -> Tree:
    return (
        lambda g: g.where(g.apply("lt", c[0](g), g.const(0.5)), a[0](g), b[0](g)),
        lambda p, x: torch.where(c[1](p, x) < 0.5, a[1](p, x), b[1](p, x)),
    )


LEAVES = st.one_of(
    FACTORS.map(_constant), st.sampled_from([0, 1, 2]).map(_parameter), st.builds(_abscissa)
)


def _grow(trees: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.one_of(
        st.builds(_unary, st.sampled_from(sorted(UNARY)), trees),
        st.builds(_binary, st.sampled_from(sorted(BINARY)), trees, trees),
        st.builds(_power, trees, st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0])),
        st.builds(_choice, trees, trees, trees),
    )


@settings(max_examples=150, deadline=None)
@given(tree=st.recursive(LEAVES, _grow, max_leaves=8))
def test_random_expressions_are_what_torch_computes(tree: Tree) -> None:
    build, plain = tree
    # numbers of few bits: sums, differences and products of them are exact, so that a reordered
    # product is no other number and no rounding is blown up by a cancellation
    params = torch.tensor([[0.25, -1.5, 2.0], [1.0, 0.5, -0.75], [0.0, 3.0, 1.25]]).double()
    x = torch.tensor([-1.0, -0.25, 0.0, 0.5, 2.0], dtype=torch.float64)
    (value,) = Program([build(Graph())]).run(params, [x], len(x))
    wanted = plain(params, x)
    # an infinity may have the other sign (1/0 and 1/−0), and so may what is made of it; a
    # rounding may tip a comparison: hold only what is the same for slightly moved parameters too
    moved = plain(params + 1e-9, x + 1e-9)
    steady = torch.isfinite(wanted) & torch.isclose(wanted, moved, rtol=1e-4, atol=1e-6)
    value = value.expand(wanted.shape)[steady]
    torch.testing.assert_close(value, wanted[steady], rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------- truth values and choices


def truths(g: Graph) -> tuple[Node, Node]:
    """Two conditions."""
    return g.apply("lt", g.param(0), g.param(1)), g.apply("gt", g.param(1), g.const(1.0))


CONNECTED: dict[str, tuple[Callable[[Graph, Node, Node], Node], Callable[[Tensor, Tensor], Tensor]]]
CONNECTED = {
    "p and q": (lambda g, p, q: g.apply("and", p, q), lambda p, q: p & q),
    "p or q": (lambda g, p, q: g.apply("or", p, q), lambda p, q: p | q),
    "not p": (lambda g, p, q: g.apply("not", p), lambda p, q: ~p),
    "not not p": (lambda g, p, q: g.apply("not", g.apply("not", p)), lambda p, q: p),
    "p and p": (lambda g, p, q: g.apply("and", p, p), lambda p, q: p),
    "p and not p": (lambda g, p, q: g.apply("and", p, g.apply("not", p)), lambda p, q: p & ~p),
    "not p or p": (lambda g, p, q: g.apply("or", g.apply("not", p), p), lambda p, q: p | ~p),
    "p and (q and p)": (
        lambda g, p, q: g.apply("and", p, g.apply("and", q, p)),
        lambda p, q: p & q,
    ),
    "p and 1": (lambda g, p, q: g.apply("and", p, g.const(1.0)), lambda p, q: p),
    "0 and p": (lambda g, p, q: g.apply("and", g.const(0.0), p), lambda p, q: p & False),
    "p or 0": (lambda g, p, q: g.apply("or", p, g.const(0.0)), lambda p, q: p),
    "1 or p": (lambda g, p, q: g.apply("or", g.const(1.0), p), lambda p, q: p | True),
    "p ? q : not q": (
        lambda g, p, q: g.where(p, q, g.apply("not", q)),
        lambda p, q: torch.where(p, q, ~q),
    ),
    "p ? 1 : q": (lambda g, p, q: g.where(p, g.const(1.0), q), lambda p, q: p | q),
    "p ? q : 0": (lambda g, p, q: g.where(p, q, g.const(0.0)), lambda p, q: p & q),
    "p ? 0 : q": (lambda g, p, q: g.where(p, g.const(0.0), q), lambda p, q: ~p & q),
}


@pytest.mark.parametrize("name", CONNECTED)
def test_truth_values_are_connected(name: str) -> None:
    build, plain = CONNECTED[name]
    g = Graph()
    p, q = truths(g)
    node = build(g, p, q)
    assert node.op in CONDITIONS or node.op == "const"
    wanted = plain(FIRST < SECOND, SECOND > 1)
    assert torch.equal(evaluate(node).bool(), wanted)


def test_truth_values_that_are_known_vanish() -> None:
    g = Graph()
    p, q = truths(g)
    yes, no = g.const(1.0), g.const(0.0)
    not_p = g.apply("not", p)
    assert g.apply("and", p, yes) is p and g.apply("and", no, p) is no
    assert g.apply("or", no, p) is p and g.apply("or", p, yes) is yes
    assert g.apply("and", p, not_p) is no and g.apply("or", not_p, p) is yes
    assert g.apply("and", p, p) is p and g.apply("or", q, q) is q
    assert g.apply("not", not_p) is p
    both = g.apply("and", p, q)
    assert g.apply("and", both, p) is both and g.apply("and", q, both) is both
    assert g.where(yes, p, q) is p and g.where(no, p, q) is q


def test_choices_within_choices() -> None:
    g = Graph()
    p, q = truths(g)
    a, b, c = g.param(0), g.param(1), g.param(2)
    assert g.where(p, g.where(p, a, b), c) is g.where(p, a, c)
    assert g.where(p, a, g.where(p, b, c)) is g.where(p, a, c)
    assert g.where(g.apply("not", p), a, b) is g.where(p, b, a)
    nested = g.where(p, g.where(q, a, b), c)
    assert nested.op == "where" and nested.args[1].op == "where"
    assert g.where(p, a, a) is a


@pytest.mark.parametrize(
    ("op", "values", "wanted"),
    [
        *(("lt", (1.0, 2.0), 1.0), ("lt", (2.0, 2.0), 0.0), ("le", (2.0, 2.0), 1.0)),
        *(("gt", (3.0, 2.0), 1.0), ("ge", (1.0, 2.0), 0.0), ("eq", (0.0, -0.0), 1.0)),
        *(("ne", (1.0, 2.0), 1.0), ("eq", (math.nan, math.nan), 0.0)),
        *(("ne", (math.nan, 1.0), 1.0), ("lt", (math.nan, 1.0), 0.0)),
        *(("ge", (1.0, math.nan), 0.0), ("and", (1.0, 0.0), 0.0), ("or", (1.0, 0.0), 1.0)),
        *(("not", (0.0,), 1.0), ("not", (1.0,), 0.0), ("isfinite", (1.0,), 1.0)),
        *(("isfinite", (math.inf,), 0.0), ("isfinite", (math.nan,), 0.0)),
        *(("abs", (-2.5,), 2.5), ("maximum", (1.0, 2.0), 2.0), ("minimum", (1.0, 2.0), 1.0)),
        *(("maximum", (-math.inf, 2.0), 2.0), ("minimum", (3.0, -math.inf), -math.inf)),
    ],
)
def test_comparisons_of_numbers_are_known(
    op: str, values: tuple[float, ...], wanted: float
) -> None:
    g = Graph()
    node = g.apply(op, *map(g.const, values))
    assert node.op == "const" and node.value == wanted


@pytest.mark.parametrize("op", ["maximum", "minimum"])
@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)])
@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_nan_passes_extremes(op: str, values: tuple[float, float], known: int) -> None:
    # with both, one, or no number known beforehand, on either side
    g = Graph()
    leaves = [g.const(values[0]) if known > 0 else g.param(0)]
    leaves.append(g.const(values[1]) if known > 1 else g.param(1))
    params = torch.tensor([values], dtype=torch.float64)
    for pair in (leaves, leaves[::-1]):
        assert evaluate(g.apply(op, *pair), params).isnan().all()


# --------------------------------------------------------------------------------------- loops

Body = Callable[[tuple[Node, ...]], tuple[Node, tuple[Node, ...]]]


def test_what_a_loop_carries() -> None:
    g = Graph()
    a, limit = g.param(0), g.param(1)

    def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        x, count, small = carried
        more = g.apply("gt", x, limit)
        return more, (
            g.where(more, g.scale(0.5, x), x),
            g.where(more, g.add(count, g.const(1.0)), count),
            g.apply("or", small, g.apply("not", more)),
        )

    results = g.loop(9, g.const(1.0), (a, g.const(0.0), g.const(0.0)), body)
    # a constant that stands for a truth value is carried as one
    assert [node.op for node in results] == ["loop", "loop", "loop_condition"]
    assert all(node.depends == PROBLEM for node in results)
    loop: Loop = results[0].value[0]  # type: ignore[index]
    assert [node.value for node in results] == [(loop, 0), (loop, 1), (loop, 2)]
    assert [node.op for node in loop.carried] == ["carry", "carry", "carried_condition"]
    assert loop.todo is not None and loop.todo.op == "gt" and loop.times == 9
    assert results[2].op in CONDITIONS and loop.carried[2].op in CONDITIONS
    assert g.apply("and", results[2], results[2]) is results[2]


def test_what_a_loop_never_changes_is_not_carried() -> None:
    g = Graph()
    a, b = g.param(0), g.param(1)

    def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        x, same, zero = carried
        return g.apply("lt", x, b), (g.add(x, same), same, zero)

    results = g.loop(3, g.const(1.0), (a, b, g.const(0.0)), body)
    assert results[1] is b and results[2] is g.const(0.0)
    loop: Loop = results[0].value[0]  # type: ignore[index]
    assert loop.carried[1] is b and loop.carried[0].op == "carry"
    assert loop.updated[0] is g.add(loop.carried[0], b)


def test_what_changes_only_through_others_is_carried() -> None:
    # y becomes x one round late: found out only when x is known to change
    g = Graph()
    a = g.param(0)

    def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        x, y, _ = carried
        return g.const(1.0), (g.add(x, g.const(1.0)), x, y)

    results = g.loop(3, g.const(1.0), (a, a, a), body)
    assert [node.op for node in results] == ["loop"] * 3
    loop: Loop = results[0].value[0]  # type: ignore[index]
    assert loop.updated[1] is loop.carried[0] and loop.updated[2] is loop.carried[1]


def test_a_loop_that_is_not_entered() -> None:
    g = Graph()
    a, q = g.param(0), truths(g)[0]

    def never(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        raise AssertionError("written though it is not entered")

    assert g.loop(3, g.const(0.0), (a, q), never) == (a, q)


def test_a_loop_is_one_loop() -> None:
    g = Graph()
    a = g.param(0)
    written: list[int] = []

    def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        written.append(1)
        return g.apply("lt", carried[0], g.const(5.0)), (g.add(carried[0], g.const(1.0)),)

    (first,) = g.loop(3, g.const(1.0), (a,), body)
    assert len(written) <= 3
    (second,) = g.loop(3, g.const(1.0), (a,), body)
    assert first is not second, "two loops may stop at different times"
    assert first.args[1:] == (a,) and first.serial > a.serial
    assert first in reachable([first]) and a in reachable([first])
