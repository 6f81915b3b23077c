"""Rewritten expressions: the same values, and what does not depend on the sample outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchimize.kernel.graph import SAMPLE, Graph, Index, Node, reachable
from torchimize.kernel.machine import Sums, split
from torchimize.kernel.rewrite import Rewriter
from torchimize.kernel.torch_ops import Program

Build = Callable[..., Node]


def made(build: Build) -> tuple[Graph, Node]:
    """An expression of three parameters and a shared x."""
    g = Graph()
    return g, build(g, *(g.param(j) for j in range(3)), g.load(0, (Index(0, 0, 1),)))


def rewritten(node: Node) -> tuple[Graph, Node]:
    """Its copy in a graph of its own."""
    g = Graph()

    def leaf(inner: Node) -> Node:
        if inner.op == "param":
            return g.param(inner.value)  # type: ignore[arg-type]
        return g.load(*inner.value)  # type: ignore[misc]

    return g, Rewriter(g, leaf)(node)


def value(node: Node, params: Tensor, x: Tensor) -> Tensor:
    (found,) = Program([node]).run(params, [x], len(x))
    return found.expand(len(params), len(x))


def of_samples(*nodes: Node) -> list[str]:
    """The operations that are done once per sample."""
    return [node.op for node in reachable(nodes) if node.args and node.depends & SAMPLE]


FORMULAS: dict[str, Build] = {
    "decay": lambda g, a, k, c, x: g.add(g.mul(a, g.apply("exp", g.neg(g.mul(k, x)))), c),
    "lifetime": lambda g, a, t, c, x: g.mul(a, g.apply("exp", g.div(g.neg(x), t))),
    "peak": lambda g, a, m, s, x: g.mul(
        a, g.apply("exp", g.div(g.neg(g.apply("pow", g.sub(x, m), g.const(2.0))),
                                g.scale(2.0, g.mul(s, s)))),
    ),
    "lorentz": lambda g, a, m, s, x: g.div(
        a, g.add(g.const(1.0), g.apply("pow", g.div(g.sub(x, m), s), g.const(2.0)))
    ),
    "wave": lambda g, a, f, p, x: g.mul(g.mul(a, x), g.apply("sin", g.add(g.mul(f, x), p))),
    "quotient": lambda g, a, b, c, x: g.div(g.mul(a, x), g.mul(b, g.add(x, c))),
    "kink": lambda g, a, b, c, x: g.where(
        g.apply("lt", x, c), g.mul(a, g.sub(x, c)), g.mul(b, g.sub(x, c))
    ),
    "rise": lambda g, a, b, c, x: g.where(g.apply("lt", x, c), g.const(0.0), g.mul(a, x)),
    "fall": lambda g, a, b, c, x: g.where(g.apply("lt", x, c), g.mul(a, x), g.const(0.0)),
    "guarded": lambda g, a, b, c, x: g.where(
        g.apply("lt", a, g.const(0.0)), g.const(0.0), g.mul(g.apply("sqrt", a), x)
    ),
    "guarded divisor": lambda g, a, b, c, x: g.where(
        g.apply("ne", c, g.const(0.0)), g.mul(x, g.div(a, c)), g.const(0.0)
    ),
    "nothing": lambda g, a, b, c, x: g.div(g.mul(a, b), c),
    "differences": lambda g, a, b, c, x: g.sub(g.mul(a, x), g.mul(a, g.mul(x, x))),
    "repeated": lambda g, a, b, c, x: g.add(g.mul(a, g.apply("sin", x)),
                                            g.mul(b, g.apply("sin", x))),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_have_the_same_values(name: str) -> None:
    _, node = made(FORMULAS[name])
    _, copy = rewritten(node)
    params = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).double() * 3 - 1
    x = torch.linspace(-2, 2, 15, dtype=torch.float64) + 0.01
    wanted = value(node, params, x)
    torch.testing.assert_close(value(copy, params, x), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_infinite_or_nan_stays_so(name: str) -> None:
    # but for quotients of numbers that have no reciprocal
    _, node = made(FORMULAS[name])
    _, copy = rewritten(node)
    numbers = [0.0, 1.0, -2.0, 1e200, -1e200, math.inf, -math.inf, math.nan]
    params = torch.tensor(list(itertools.product(numbers, repeat=3)), dtype=torch.float64)
    x = torch.tensor([0.0, 1.0, -3.0, math.inf, math.nan], dtype=torch.float64)
    before, after = value(node, params, x), value(copy, params, x)
    # at these sizes a product may overflow in one order and not in the other
    ordinary = (params.abs() < 1e100) | params.isnan() | params.isinf()
    before, after = before[ordinary.all(-1)], after[ordinary.all(-1)]
    assert torch.equal(before.isfinite(), after.isfinite())


def test_a_decay_costs_one_product_and_one_power_per_sample() -> None:
    _, node = made(FORMULAS["decay"])
    g, copy = rewritten(node)
    assert sorted(of_samples(copy)) == ["add", "exp2", "mul", "mul"]
    # the exponent's factor k log₂ e is computed once per step
    (power,) = (n for n in reachable([copy]) if n.op == "exp2")
    factor, rest = split(g, power.args[0])
    assert rest.op == "load" and not factor.depends & SAMPLE
    numbers = [abs(float(str(n.value))) for n in reachable([factor]) if n.op == "const"]
    assert numbers == [pytest.approx(math.log2(math.e))]


@pytest.mark.parametrize("name", ["lifetime", "peak", "lorentz", "quotient"])
def test_divisions_by_parameters_leave_the_samples(name: str) -> None:
    _, node = made(FORMULAS[name])
    assert "div" in of_samples(node)
    _, copy = rewritten(node)
    left = of_samples(copy).count("div")
    assert left == {"lifetime": 0, "peak": 0, "lorentz": 1, "quotient": 1}[name]
    assert len(of_samples(copy)) <= len(of_samples(node)) + 1


def test_one_reciprocal_for_all_that_is_divided() -> None:
    def build(g: Graph, a: Node, b: Node, s: Node, x: Node) -> Node:
        u, v = g.div(g.sub(x, a), s), g.div(g.sub(x, b), s)
        return g.apply("atan2", g.apply("sin", u), g.apply("sin", v))

    _, node = made(build)
    _, copy = rewritten(node)
    assert [n.op for n in reachable([copy])].count("div") == 1
    assert "div" not in of_samples(copy)


def test_common_factors_leave_sums() -> None:
    _, difference = made(FORMULAS["differences"])
    g, copy = rewritten(difference)
    factor, rest = split(g, copy)
    assert factor is g.param(0) and rest.op == "sub"
    _, repeated = made(FORMULAS["repeated"])
    g, copy = rewritten(repeated)
    factor, rest = split(g, copy)
    assert rest.op == "sin" and factor is g.add(g.param(0), g.param(1))


def test_factors_meet_and_leave_the_sums() -> None:
    # Σ of squares of derivatives of a · exp(−k x): factors are outside, products are shared
    def build(g: Graph, a: Node, k: Node, c: Node, x: Node) -> Node:
        fall = g.apply("exp", g.neg(g.mul(k, x)))
        return g.mul(g.neg(a), g.mul(x, fall))

    _, node = made(build)
    g, column = rewritten(node)
    _, fall = made(lambda g, a, k, c, x: g.apply("exp", g.neg(g.mul(k, x))))
    power = Rewriter(
        g,
        lambda n: g.param(n.value) if n.op == "param" else g.load(*n.value),  # type: ignore[arg-type,misc]
    )(fall)
    sums = Sums(g, 1)
    totals = [sums.total(0, column, column), sums.total(0, column, power)]
    assert all(split(g, part)[0] is g.const(1.0) for pair in sums.runs[0].pairs for part in pair)
    assert len(sums.runs[0].pairs) == 2
    assert all(not total.depends & SAMPLE for total in totals)


def test_a_copy_shares_what_the_original_shares() -> None:
    def build(g: Graph, a: Node, b: Node, c: Node, x: Node) -> Node:
        node = g.add(x, a)
        for _ in range(40):
            node = g.add(g.apply("sin", node), g.apply("cos", node))
        return node

    _, node = made(build)
    _, copy = rewritten(node)
    assert len(reachable([copy])) <= len(reachable([node])) + 2


Tree = Callable[[Graph, tuple[Node, ...]], Node]
LEAVES = st.one_of(
    st.integers(0, 3).map(lambda k: lambda g, leaves: leaves[k]),
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0]).map(lambda v: lambda g, leaves: g.const(v)),
)


def _grow(trees: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    def two(op: str, a: Tree, b: Tree) -> Tree:
        return lambda g, leaves: g.apply(op, a(g, leaves), b(g, leaves))

    def one(op: str, a: Tree) -> Tree:
        return lambda g, leaves: g.apply(op, a(g, leaves))

    def choice(c: Tree, a: Tree, b: Tree) -> Tree:
        return lambda g, leaves: g.where(
            g.apply("lt", c(g, leaves), g.const(0.25)), a(g, leaves), b(g, leaves)
        )

    return st.one_of(
        st.builds(two, st.sampled_from(["add", "sub", "mul", "div"]), trees, trees),
        st.builds(one, st.sampled_from(["neg", "exp", "sin"]), trees),
        st.builds(choice, trees, trees, trees),
    )


@settings(max_examples=150, deadline=None)
@given(tree=st.recursive(LEAVES, _grow, max_leaves=10))
def test_random_expressions_have_the_same_values(tree: Tree) -> None:
    _, node = made(lambda g, *leaves: tree(g, leaves))
    _, copy = rewritten(node)
    params = torch.tensor([[0.25, -1.5, 2.0], [1.0, 0.5, -0.75], [3.0, 0.0, 1.25]]).double()
    x = torch.tensor([-1.0, -0.25, 0.0, 0.5, 2.0], dtype=torch.float64)
    wanted = value(node, params, x)
    # hold only what rounding does not tip or blow up
    moved = value(node, params + 1e-9, x + 1e-9)
    steady = wanted.isfinite() & torch.isclose(wanted, moved, rtol=1e-4, atol=1e-6)
    found = value(copy, params, x)
    torch.testing.assert_close(found[steady], wanted[steady], rtol=1e-8, atol=1e-11)
    # where nothing is zero or large, what is not finite stays so
    small = wanted.nan_to_num(0.0).abs() < 1e100
    assert bool(found.isfinite()[steady & small].all())
