"""Machines: what they read, which of their state is alive, and sums whose factors are outside."""

from __future__ import annotations

from typing import Any

import pytest

from torchimize.kernel.graph import PROBLEM, SAMPLE, Graph, Loop, Node
from torchimize.kernel.machine import (
    Field,
    History,
    Machine,
    Output,
    Run,
    Sums,
    everything,
    load,
    split,
)


def leaves(g: Graph) -> tuple[Node, Node, Node, Node]:
    """A number, one of each problem, a shared sample, a problem's own sample."""
    return (
        load(g, "number", 0),
        load(g, "row", PROBLEM),
        load(g, "shared", SAMPLE),
        load(g, "own", SAMPLE | PROBLEM),
    )


# ----------------------------------------------------------------------------------------- split


def test_a_factor_without_the_sample() -> None:
    g = Graph()
    number, row, shared, own = leaves(g)
    one = g.const(1.0)
    assert split(g, row) == (row, one) and split(g, number) == (number, one)
    assert split(g, g.mul(number, row)) == (g.mul(number, row), one)
    assert split(g, shared) == (one, shared)
    assert split(g, g.mul(row, shared)) == (row, shared)
    assert split(g, g.mul(shared, row)) == (row, shared)
    assert split(g, g.mul(shared, own)) == (one, g.mul(shared, own))
    assert split(g, g.add(row, shared)) == (one, g.add(row, shared))
    assert split(g, g.scale(3.0, shared)) == (g.const(3.0), shared)
    assert split(g, g.neg(shared)) == (g.const(-1.0), shared)
    assert split(g, g.neg(g.mul(row, shared))) == (g.neg(row), shared)


# ------------------------------------------------------------------------------------------ sums


def test_a_product_is_summed_once() -> None:
    g = Graph()
    _, row, shared, own = leaves(g)
    sums = Sums(g, 2)
    total = sums.total(0, shared, own)
    assert total.op == "sum" and total.value == (0, 0) and total.depends == PROBLEM
    assert sums.total(0, own, shared) is total
    assert sums.total(0, g.mul(row, shared), g.neg(own)) is g.mul(g.neg(row), total)
    assert sums.total(0, g.scale(3.0, shared), g.mul(own, row)) is g.mul(g.scale(3.0, row), total)
    assert sums.runs[0].pairs == [(shared, own)] and sums.runs[1].pairs == []
    other = sums.total(1, shared, own)
    assert other is not total and other.value == (1, 0)
    assert sums.total(0, shared, shared).value == (0, 1)


def test_sums_of_what_does_not_depend_on_the_sample() -> None:
    g = Graph()
    number, row, shared, _ = leaves(g)
    sums = Sums(g, 2)
    length = g.leaf("length", 1, 0)
    assert sums.total(1, row, number) is g.mul(g.mul(number, row), length)
    assert sums.total(1, g.const(2.0), g.const(3.0)) is g.scale(6.0, length)
    assert not sums.runs[1].pairs
    # of one factor: the other is 1
    assert sums.total(1, row, shared) is g.mul(row, g.leaf("sum", (1, 0), PROBLEM))
    assert {node.op for node in sums.runs[1].pairs[0]} == {"const", "load"}
    assert sums.total(1, g.const(0.0), shared).op == "mul", "0 · ∞ is not 0"


# --------------------------------------------------------------------------------- what is needed


def counted(g: Graph, times: int, start: Node, extra: Node) -> Node:
    """A loop that adds ``extra``, which is met in its body alone."""
    (result,) = g.loop(
        times, g.const(1.0), (start,), lambda c: (g.const(1.0), (g.add(c[0], extra),))
    )
    return result


def test_everything_is_found_in_loops_too() -> None:
    g = Graph()
    number, row, *_ = leaves(g)
    inner = counted(g, 2, row, g.apply("exp", number))

    def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        return g.apply("lt", carried[0], number), (counted(g, 3, carried[0], g.mul(row, row)),)

    (outer,) = g.loop(4, g.apply("gt", row, number), (inner,), body)
    found = everything([outer])
    assert [n.serial for n in found] == sorted({n.serial for n in found})
    ops = {node.op for node in found}
    assert {"exp", "mul", "lt", "gt", "carry", "loop", "load"} <= ops
    loops = {id(n.value[0]) for n in found if n.op == "loop"}  # type: ignore[index]
    # the bodies were written more than once, and only what counts is found
    assert len(loops) == 3
    assert everything([number]) == [number] and everything([]) == []


def machine(g: Graph) -> Machine:
    """Fields a to f: a is an output and needs b and, through a loop, c; d needs itself alone."""
    number, row, shared, own = leaves(g)
    a, b, c, d, e, f = (g.leaf("state", name, PROBLEM) for name in "abcdef")
    flag = g.leaf("state_condition", "flag", PROBLEM)
    zero = g.const(0.0)
    fields = [
        Field("a", row, g.add(b, counted(g, 2, b, c))),
        Field("b", zero, g.where(flag, b, g.leaf("sum", (0, 0), PROBLEM))),
        Field("c", load(g, "start of c", PROBLEM), c),
        Field("d", load(g, "start of d", PROBLEM), g.add(d, number)),
        Field("e", zero, e),
        Field("f", zero, g.add(f, g.const(1.0))),
        Field("flag", zero, g.apply("not", flag)),
    ]
    return Machine(
        graph=g,
        runs=[Run([(g.mul(own, e), shared)])],
        fields=fields,
        finished=g.apply("gt", a, load(g, "limit", 0)),
        outputs=[Output("out", ["a"], "real")],
    )


def test_fields_that_nothing_needs_go() -> None:
    g = Graph()
    whole = machine(g)
    alive = whole.without_dead_fields()
    # e is in a sum; d and f are known to themselves alone
    assert [f.name for f in alive.fields] == ["a", "b", "c", "e", "flag"]
    assert len(whole.fields) == 7, "the machine itself has not changed"
    assert alive.without_dead_fields().fields == alive.fields
    assert alive.runs is whole.runs and alive.outputs == whole.outputs


def test_fields_that_a_history_needs_stay() -> None:
    g = Graph()
    whole = machine(g)
    whole.history = History(["d"], "f")
    assert [f.name for f in whole.without_dead_fields().fields] == [*"abcdef", "flag"]


def test_fields_that_the_end_needs_stay() -> None:
    g = Graph()
    whole = machine(g)
    whole.finished = g.apply("ge", g.leaf("state", "f", PROBLEM), g.const(3.0))
    assert "f" in [f.name for f in whole.without_dead_fields().fields]


def test_loads_are_found_wherever_they_are() -> None:
    g = Graph()
    whole = machine(g)
    names = [node.value for node in whole.loads()]
    assert set(names) == {"row", "own", "shared", "number", "limit", "start of c", "start of d"}
    assert [node.serial for node in whole.loads()] == sorted(n.serial for n in whole.loads())
    assert {n.value for n in whole.without_dead_fields().loads()} == set(names) - {
        "number",
        "start of d",
    }
    assert {n.value for n in whole.loads_of(whole.runs[0])} == {"own", "shared"}


def test_a_loop_keeps_what_it_was_made_of() -> None:
    g = Graph()
    row = load(g, "row", PROBLEM)
    result = counted(g, 5, row, g.const(2.0))
    value: Any = result.value
    loop: Loop = value[0]
    position = value[1]
    assert (loop.times, position, loop.initial) == (5, 0, (row,))
    assert loop.first.value == 1.0 and loop.carried[0].op == "carry"
    assert result.args == (loop.first, row)


@pytest.mark.parametrize("depends", [0, PROBLEM, SAMPLE, PROBLEM | SAMPLE])
def test_loads_by_name(depends: int) -> None:
    g = Graph()
    node = load(g, ("any", 3), depends)
    assert node is load(g, ("any", 3), depends) and node.depends == depends
    assert node is not load(g, ("any", 4), depends)
