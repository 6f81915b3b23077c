"""Graphs run as torch operations: shapes, strided loads, memory, writing into an output."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchimize import special_functions
from torchimize.kernel.graph import Graph, Index, Node, reachable
from torchimize.kernel.torch_ops import (
    OPERATIONS,
    Program,
    evaluate,
    fill,
    row_sources,
    strided_view,
)
from torchimize.kernel.trace import Piece, Trace, UntraceableError, trace

N, B = Index(0, 0, 1), Index(0, 1, 0)
PARAMS = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]], dtype=torch.float64)
DATA = torch.arange(60, dtype=torch.float64).reshape(3, 4, 5)


def run(*nodes: Node, params: Tensor = PARAMS, sources: list[Tensor] | None = None) -> list[Tensor]:
    return Program(nodes).run(params, sources or [], 5)


# ------------------------------------------------------------------------------------- shapes


def test_shapes_follow_what_a_node_depends_on() -> None:
    g = Graph()
    a, x, own = g.param(0), g.load(0, (N,)), g.load(1, (B, Index(0), N))
    row = g.load(1, (B, Index(1), Index(2)))
    nodes = [g.const(2.0), a, x, own, row, g.mul(a, a), g.apply("exp", x), g.mul(a, x)]
    found = run(*nodes, sources=[DATA[0, 0], DATA])
    wanted = [(1, 1), (3, 1), (1, 5), (3, 5), (3, 1), (3, 1), (1, 5), (3, 5)]
    assert [tuple(v.shape) for v in found] == wanted
    assert torch.equal(found[3], DATA[:, 0]) and torch.equal(found[4], DATA[:, 1, 2:3])
    assert torch.equal(found[7], PARAMS[:, :1] * DATA[0, 0])


def test_outputs_may_repeat_and_be_used_by_others() -> None:
    g = Graph()
    a = g.param(1)
    square = g.mul(a, a)
    found = run(square, g.apply("exp", square), square, a)
    assert found[0] is found[2]
    assert torch.equal(found[0], PARAMS[:, 1:] ** 2)
    assert torch.equal(found[1], torch.exp(PARAMS[:, 1:] ** 2))
    assert torch.equal(found[3], PARAMS[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_parameters_dtype_holds(dtype: torch.dtype) -> None:
    g = Graph()
    a, counts, flags = g.param(0), g.load(0, (N,)), g.load(1, (N,))
    half = g.div(g.add(a, counts), g.const(3.0))
    nodes = [half, g.where(flags, a, g.const(0.1)), g.sub(g.const(0.1), a), counts]
    sources = [torch.arange(5), torch.tensor([True, False, True, False, False])]
    found = run(*nodes, params=PARAMS.to(dtype), sources=sources)
    assert {v.dtype for v in found} == {dtype}
    params = PARAMS[:, :1].to(dtype)
    assert torch.equal(found[0], (params + sources[0]) / 3)
    assert torch.equal(found[1], torch.where(sources[1], params, torch.tensor(0.1, dtype=dtype)))
    assert torch.equal(found[2], 0.1 - params)


def test_numbers_too_large_for_the_dtype_are_infinite() -> None:
    g = Graph()
    nodes = [g.const(1e300), g.const(-1e300), g.apply("maximum", g.param(0), g.const(1e300))]
    found = run(*nodes, params=PARAMS.float())
    assert [v.flatten().tolist()[0] for v in found] == [torch.inf, -torch.inf, torch.inf]
    assert float(run(g.const(torch.nan))[0].isnan()) == 1


SCALARS: list[tuple[str, Callable[[Any, Any], Any]]] = [
    *(("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b)),
    *(("div", lambda a, b: a / b), ("pow", lambda a, b: a**b), ("lt", lambda a, b: a < b)),
    *(("ge", lambda a, b: a >= b), ("eq", lambda a, b: a == b)),
]


@pytest.mark.parametrize(("op", "plain"), SCALARS, ids=[s[0] for s in SCALARS])
def test_numbers_on_either_side(op: str, plain: Callable[[Any, Any], Any]) -> None:
    g = Graph()
    a, three = g.param(0), g.const(3.3)
    first, second = run(g.apply(op, three, a), g.apply(op, a, three))
    wanted = plain(3.3, PARAMS[:, :1])
    # torch divides a number by multiplying it with the reciprocal
    torch.testing.assert_close(first, wanted, rtol=4e-16, atol=0.0)
    assert torch.equal(second, plain(PARAMS[:, :1], 3.3))


def test_operations_without_a_torch_form() -> None:
    g = Graph()
    with pytest.raises(UntraceableError, match="'sinc'"):
        Program([g.apply("sinc", g.param(0))])


WORDS: dict[str, Callable[..., Tensor]] = {
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "trigamma": lambda x: torch.polygamma(1, x),
    **{f"polygamma{n}": lambda x, n=n: torch.polygamma(n, x) for n in range(2, 6)},
    "bessel_k0": torch.special.modified_bessel_k0,
    "bessel_k1": torch.special.modified_bessel_k1,
    "scaled_bessel_k0": torch.special.scaled_modified_bessel_k0,
    "scaled_bessel_k1": torch.special.scaled_modified_bessel_k1,
}
"""Operations with other names than torch's."""

SLOPES = {op for op in OPERATIONS if op.endswith("_slope")}
"""Derivatives of functions, which have no name of their own anywhere."""

TWO = {
    *("add", "sub", "mul", "div", "pow", "atan2", "maximum", "minimum"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "copysign", "fmod", "remainder"),
    *("floor_divide", "gammainc", "gammaincc", "zeta", "faddeeva_real", "faddeeva_imag"),
}


@pytest.mark.parametrize("op", OPERATIONS.keys() - SLOPES)
def test_every_operation_runs(op: str) -> None:
    """By its name among torch's functions or this package's, or a name that means the same."""
    found = [getattr(home, op, None) for home in (special_functions, torch.special, torch)]
    function = WORDS.get(op) or next(f for f in found if f is not None)
    count = {"where": 3}.get(op, 2 if op in TWO else 1)
    values = [PARAMS[:, j % 2, None] / 12 for j in range(count)]
    if op in ("and", "or", "not", "where"):
        values[0] = values[0] > 0.2
    if op in ("acosh", "zeta"):
        values[0] = values[0] + 2
    g = Graph()
    sources = [v[:, 0] for v in values]
    node = g.apply(op, *(g.load(k, (B,)) for k in range(count)))
    (found_value,) = run(node, sources=sources)
    (at_once,) = evaluate(reachable([node]), [node], PARAMS, sources, 5)
    assert torch.equal(found_value, function(*values)) and torch.equal(at_once, found_value)
    if found_value.dtype != torch.bool:
        assert found_value.isfinite().all()


@pytest.mark.parametrize("op", sorted(SLOPES))
def test_slopes_run(op: str) -> None:
    g = Graph()
    one = op in ("airy_ai_slope", "spherical_bessel_j0_slope")
    a, b = g.add(g.param(0), g.const(1.5)), g.load(0, (N,))
    node = g.apply(op, *([g.mul(a, b)] if one else [a, b]))
    (found,) = run(node, sources=[DATA[0, 0] + 1])
    assert found.shape == (3, 5) and found.isfinite().all() and bool((found != 0).all())


def test_evaluating_at_once() -> None:
    g = Graph()
    a, x, own = g.param(1), g.load(0, (N,)), g.load(1, (B, Index(0), N))
    nodes = [
        *(g.mul(g.const(3.0), x), g.sub(g.const(1.0), g.mul(a, own)), g.const(2.5), a),
        g.where(g.apply("gt", x, a), g.apply("pow", a, g.const(1.5)), g.div(x, g.const(3.0))),
    ]
    sources = [DATA[0, 0] / 7, DATA]
    at_once = evaluate(reachable(nodes), nodes, PARAMS, sources, 5)
    for one, other in zip(at_once, run(*nodes, sources=sources), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UntraceableError, match="'sinc'"):
        evaluate([a, g.apply("sinc", a)], [a], PARAMS, [], 1)


# ------------------------------------------------------------------------------- strided views


LOADS: list[tuple[str, Tensor, tuple[Index, ...], Tensor]] = [
    ("a row of each problem", DATA, (B, Index(2), N), DATA[:, 2]),
    ("one number of each problem", DATA, (B, Index(3), Index(4)), DATA[:, 3, 4:]),
    ("one row for all", DATA, (Index(1), Index(2), N), DATA[1:2, 2]),
    ("one number for all", DATA, (Index(1), Index(2), Index(3)), DATA[1:2, 2, 3:4]),
    ("every other sample", DATA, (B, Index(0), Index(0, 0, 2)), DATA[:, 0, ::2]),
    ("from the third sample", DATA, (B, Index(1), Index(2, 0, 1)), DATA[:, 1, 2:]),
    ("backwards", DATA, (B, Index(0, 0, 1), Index(0)), DATA[:, :, 0]),
    ("the diagonal", DATA, (Index(0), N, N), DATA[0].diagonal()[None]),
    ("a transposed source", DATA.permute(2, 0, 1), (Index(3), B, N), DATA[:, :, 3]),
    ("a slice of a source", DATA[1:, 1::2, 1:4], (Index(1), Index(1), N), DATA[2:, 3, 1:4]),
    ("an expanded source", DATA[0, 0].expand(3, 5), (B, N), DATA[0, 0].expand(3, 5)),
    ("problems two apart", DATA.reshape(-1), (Index(1, 20, 5),), DATA[:, :, 1]),
]


@pytest.mark.parametrize(
    ("source", "indices", "wanted"), [c[1:] for c in LOADS], ids=[c[0] for c in LOADS]
)
def test_strided_views(source: Tensor, indices: tuple[Index, ...], wanted: Tensor) -> None:
    found = strided_view([DATA, source], (1, indices), 3, wanted.shape[1])
    assert torch.equal(found, wanted)
    assert found.untyped_storage().data_ptr() == DATA.untyped_storage().data_ptr(), "a copy"


# ------------------------------------------------------------------------------------- memory


def test_steps_drop_what_is_not_used_again() -> None:
    g = Graph()
    a = g.param(0)
    first = g.apply("exp", a)
    second = g.apply("sin", first)
    third = g.mul(first, second)
    program = Program([third, a])
    drops = {step.target: set(step.drop) for step in program.steps}
    assert drops == {
        first.serial: set(),
        second.serial: set(),
        third.serial: {first.serial, second.serial},
    }


def test_intermediates_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    most = 0

    def sine(value: Tensor) -> Tensor:
        nonlocal most
        result = torch.sin(value)
        most = max(most, 1 + sum(ref() is not None for ref in made))
        made.append(weakref.ref(result))
        return result

    monkeypatch.setitem(OPERATIONS, "sin", sine)
    g = Graph()
    node = g.mul(g.param(0), g.load(0, (N,)))
    for _ in range(50):
        node = g.apply("sin", node)
    (found,) = run(node, sources=[DATA[0, 0]])
    assert len(made) == 50 and most == 2, "the argument and its result alone are alive"
    assert [ref() is not None for ref in made] == [False] * 49 + [True]
    wanted = PARAMS[:, :1] * DATA[0, 0]
    for _ in range(50):
        wanted = wanted.sin()
    assert torch.equal(found, wanted)


def test_a_program_runs_again_elsewhere() -> None:
    g = Graph()
    program = Program([g.mul(g.param(0), g.load(0, (B, N)))])
    for rows, length in ((3, 5), (2, 5), (1, 4)):
        params, source = PARAMS[:rows] * 2, DATA[:rows, 0] + 1
        (found,) = program.run(params, [source], length)
        assert torch.equal(found, params[:, :1] * source[:, :length])


# ------------------------------------------------------------------------------ rows and writing


def test_sources_of_the_problems() -> None:
    own, shared, other = DATA[:, 0], DATA[0, 1], DATA[:, 2]

    def function(params: Tensor) -> Tensor:
        return params[:, :1] * own * shared + params[:, 1:] * other[:, -1:] + own

    found = trace(function, PARAMS, [own])
    assert row_sources(found) == {0: 0, 2: 0}
    assert found.sources[2][:, 0].tolist() == other[:, -1].tolist()
    expanded = trace(lambda p: p[:, :1] * shared.expand(3, 5), PARAMS)
    assert row_sources(expanded) == {}, "the same for all"


def test_sources_of_the_problems_in_another_dimension() -> None:
    by_sample = torch.arange(15, dtype=torch.float64).reshape(5, 3)
    found = trace(lambda p: (p.T[:1] * by_sample).T, PARAMS)
    assert row_sources(found) == {0: 1}


def test_sources_laid_out_otherwise_are_refused() -> None:
    flat = torch.arange(15, dtype=torch.float64)
    found = trace(lambda p: p[:, :1] * flat.view(3, 5) + p[:, 1:] * flat.reshape(3, 5), PARAMS)
    assert row_sources(found) == {0: 0, 1: 0}
    mixed = Graph()
    for indices in ((Index(0, 5, 1),), (B, B), (Index(1, 1, 0), N)):
        node = mixed.load(0, indices)
        with pytest.raises(UntraceableError, match="problems alone"):
            row_sources(trace_of((5,), 0, [Piece((0,), 0, 5, node)]))


def trace_of(trailing: tuple[int, ...], sample_dim: int, pieces: list[Piece]) -> Trace:
    order = reachable([piece.node for piece in pieces])
    return Trace(Graph(), pieces, [], trailing, trailing, sample_dim, 2, order)


def test_fill() -> None:
    node = Graph().param(0)
    pieces = [Piece((0, 0), 0, 2, node), Piece((0, 0), 2, 3, node), Piece((0, 1), 0, 5, node)]
    target = torch.full((3, 5, 2), torch.nan)
    layout = trace_of((5, 2), 0, pieces)
    per_problem, per_sample = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    fill(target, layout, [0, 1], [per_problem, per_sample])
    assert torch.equal(target[:, :2, 0], per_problem.expand(3, 2))
    assert torch.equal(target[:, 2:, 0], per_sample.expand(3, 3))
    assert target[:, :, 1].isnan().all(), "not its place"
    fill(target, layout, [2], [None])
    assert torch.equal(target[:, :, 1], torch.zeros(3, 5))
    assert torch.equal(target[:, :2, 0], per_problem.expand(3, 2)), "the others stay"
    fill(target, layout, [0], [None])
    assert torch.equal(target[:, :2, 0], torch.zeros(3, 2))


def test_fill_every_other() -> None:
    node = Graph().param(0)
    pieces = [Piece((0,), 0, 3, node, 2), Piece((0,), 1, 2, node, 2)]
    target = torch.full((3, 5), torch.nan)
    layout = trace_of((5,), 0, pieces)
    fill(target, layout, [0, 1], [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[8.0], [9], [7]])])
    assert target.tolist() == [[1.0, k, 2.0, k, 3.0] for k in (8.0, 9.0, 7.0)]


def test_fill_without_samples() -> None:
    layout = trace_of((), 0, [Piece((), 0, 1, Graph().param(0))])
    target = torch.full((3,), torch.nan)
    fill(target, layout, [0], [torch.tensor([[1.0], [2.0], [3.0]])])
    assert target.tolist() == [1.0, 2.0, 3.0]
    fill(target, layout, [0], [torch.tensor([[7.0]])])
    assert target.tolist() == [7.0] * 3
    fill(target, layout, [0], [None])
    assert target.tolist() == [0.0] * 3


def test_fill_writes_through_views() -> None:
    # a column of (A, P, N) is written where it lies
    columns = torch.full((3, 2, 4), torch.nan)
    layout = trace_of((4,), 0, [Piece((0,), 0, 4, Graph().param(0))])
    fill(columns[:, 1], layout, [0], [torch.ones(1, 1)])
    assert columns[:, 0].isnan().all() and torch.equal(columns[:, 1], torch.ones(3, 4))
