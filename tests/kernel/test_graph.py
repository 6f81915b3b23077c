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

from torchimize.kernel.graph import PROBLEM, SAMPLE, Graph, Index, Node, reachable
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

UNARY = {"neg": torch.neg, "sin": torch.sin, "tanh": torch.tanh, "exp": torch.exp, "abs": torch.abs}
BINARY = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
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
    return lambda g: g.apply(op, a[0](g)), lambda p, x: UNARY[op](a[1](p, x))  # type: ignore[operator]


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
