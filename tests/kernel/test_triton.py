"""GPU kernels, run by Triton's interpreter: every operation, and what a machine is made of.

The interpreter executes a kernel with NumPy, so nothing here needs a GPU; that the code compiles
for one is tested too.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchimize.kernel import triton_driver
from torchimize.kernel.graph import CONDITIONS, PROBLEM, SAMPLE, Graph, Node
from torchimize.kernel.machine import Field, History, Machine, Output, Run, Sums, load
from torchimize.kernel.triton import Layout, UnsupportedError, Work, source, work
from torchimize.kernel.triton_driver import TritonKernel, choose, unavailable

pytest.importorskip("triton")

Array = NDArray[Any]
BITS = [32, 64]
DTYPES = {32: np.float32, 64: np.float64}
BY_PROBLEM = Layout("problems", 8)
BY_SAMPLE = Layout("samples", 4)
LAYOUTS = [BY_PROBLEM, BY_SAMPLE]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read whenever a kernel is defined, so nothing outside these tests notices."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def run(
    machine: Machine,
    bits: int,
    layout: Layout | None,
    lengths: Sequence[int],
    views: dict[Hashable, Tensor],
    count: int,
    chunk: int | None = None,
) -> dict[str, Array]:
    """All outputs of a machine, NumPy arrays (B, k)."""
    real = torch.float32 if bits == 32 else torch.float64
    kinds = {"real": real, "float64": torch.float64, "float32": torch.float32}
    kinds |= {"int64": torch.int64, "int8": torch.int8}
    outputs = {
        output.name: torch.full((count, len(output.fields)), 77, dtype=kinds[output.dtype])
        for output in machine.outputs
    }
    TritonKernel(machine, bits, layout).bind(lengths, views, outputs).run_all(count, chunk)
    return {name: output.numpy() for name, output in outputs.items()}


def once(
    graph: Graph,
    values: Sequence[Node],
    arrays: Sequence[Array],
    bits: int,
    layout: Layout,
    samples: bool = False,
) -> list[Array]:
    """Values of nodes, one step per problem.

    Parameters
    ----------
    graph : Graph
    values : sequence of Node
    arrays : sequence of array
        What the loads "0", "1", ... are: (B,) each, or a number for all.
    bits : int
    layout : Layout
    samples : bool
        Each problem has one sample, and the values are sums over it; loads depend on it too.
    """
    zero, one = graph.const(0.0), graph.const(1.0)
    nodes = [graph.where(n, one, zero) if n.op in CONDITIONS else n for n in values]
    runs = [Run([(one, node) for node in nodes])] if samples else []
    if samples:
        nodes = [graph.leaf("sum", (0, k), PROBLEM) for k in range(len(nodes))]
    fields = [Field(k, zero, node) for k, node in enumerate(nodes)]
    output = Output("values", list(range(len(nodes))), "real")
    machine = Machine(graph, runs, fields, one, [output])
    views: dict[Hashable, Tensor] = {}
    for node in machine.loads():
        view = torch.from_numpy(np.asarray(arrays[int(str(node.value))]).astype(DTYPES[bits]))
        views[node.value] = view[:, None] if node.depends & SAMPLE else view
    found = run(machine, bits, layout, [1] * len(runs), views, max(map(np.size, arrays)))
    return list(found["values"].T)


WAYS = [
    pytest.param(False, Layout("problems", 64), id="problems"),
    pytest.param(False, Layout("samples", 32), id="problem"),
    pytest.param(True, Layout("problems", 64), id="sum of problems"),
    pytest.param(True, Layout("samples", 2), id="sum of samples"),
]


def assert_bits(found: Array, wanted: Array, name: str) -> None:
    """Equal, NaN where NaN, and with the signs of zeros."""
    wanted = np.asarray(wanted, dtype=found.dtype)
    same = (found == wanted) & (np.signbit(found) == np.signbit(wanted))
    same |= np.isnan(found) & np.isnan(wanted)
    where = np.flatnonzero(~same)
    assert not len(where), f"{name}: {found[where[:3]]}, wanted {wanted[where[:3]]} at {where[:3]}"


# ------------------------------------------------------------------------- primitive operations

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan]
ORDINARY = [1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -1 / 3, 0.1, 1e10, -7e-9, 4194304.5, 8388609]

UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "isnan": np.isnan,
    "isfinite": np.isfinite,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "exact_add": np.add,
    "exact_sub": np.subtract,
    "exact_mul": np.multiply,
    "copysign": np.copysign,
    "maximum": lambda a, b: np.where(a > b, a, b),
    "minimum": lambda a, b: np.where(a < b, a, b),
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("samples", "layout"), WAYS)
def test_primitive_operations_are_numpys(samples: bool, layout: Layout, bits: int) -> None:
    graph = Graph()
    depends = PROBLEM | (SAMPLE if samples else 0)
    a, b = load(graph, "0", depends), load(graph, "1", depends)
    values = SPECIAL + ORDINARY + [2.0**60 + 2.0**40, -(2.0**52) - 1, float(np.pi)]
    pairs = list(itertools.product(values, values))
    if layout.across == "samples":
        # a program for each
        pairs = list(itertools.product(SPECIAL, SPECIAL)) + pairs[7::23]
    x, y = np.array(pairs).T.astype(DTYPES[bits])
    nodes = [graph.apply(op, a) for op in UNARY] + [graph.apply(op, a, b) for op in BINARY]
    found = once(graph, nodes, [x, y], bits, layout, samples)
    with np.errstate(all="ignore"):
        wanted = [f(x) for f in UNARY.values()] + [f(x, y) for f in BINARY.values()]
    for name, one, other in zip([*UNARY, *BINARY], found, wanted, strict=True):
        # sums begin at zero, and −0 is lost
        assert_bits(one, other + 0.0 if samples else other, name)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("samples", "layout"), WAYS)
def test_truth_values(samples: bool, layout: Layout, bits: int) -> None:
    graph = Graph()
    depends = PROBLEM | (SAMPLE if samples else 0)
    a, b, c = (load(graph, str(k), depends) for k in range(3))
    zero, half = graph.const(0.0), graph.const(0.5)
    p, q = graph.apply("gt", a, zero), graph.apply("lt", b, half)
    of_all = graph.apply("gt", load(graph, "3", 0), zero)
    of_problem = graph.apply("gt", load(graph, "4", PROBLEM), half)
    x, y, z = np.array(list(itertools.product([0.0, 1.0, math.nan], repeat=3))).T
    number, own = np.array(2.0), np.arange(27) % 2
    with np.errstate(all="ignore"):
        above, below = x > 0, y < 0.5
    both, neither = graph.apply("and", p, q), graph.apply("not", graph.apply("or", p, q))
    cases = {
        "and": (both, above & below),
        "or": (graph.apply("or", p, q), above | below),
        "not": (graph.apply("not", p), ~above),
        "numbers": (graph.where(graph.apply("or", p, q), b, c), np.where(above | below, y, z)),
        "of all": (graph.apply("and", p, of_all), above),
        "truths": (graph.where(of_all, both, neither), above & below),
        "of a problem": (graph.apply("or", of_problem, q), (own == 1) | below),
        "not of a problem": (
            graph.apply("and", p, graph.apply("not", of_problem)),
            above & (own == 0),
        ),
    }
    nodes = [node for node, _ in cases.values()]
    found = once(graph, nodes, [x, y, z, number, own], bits, layout, samples)
    for one, (name, (_, wanted)) in zip(found, cases.items(), strict=True):
        assert_bits(one, wanted + 0.0, name)


def rounded_fma(a: float, b: float, c: float, bits: int) -> float:
    """a b + c, rounded once."""
    with mpmath.workprec(3000):
        exact = mpmath.mpf(a) * mpmath.mpf(b) + mpmath.mpf(c)
    with mpmath.workprec(24 if bits == 32 else 53):
        return float(+exact)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("op", ["fma", "add", "sub", "reversed sub", "exact_add"])
def test_products_are_fused_and_exact_ones_are_not(bits: int, op: str) -> None:
    graph = Graph()
    a, b, c = (load(graph, str(k), PROBLEM) for k in range(3))
    random = np.random.default_rng(5)
    x, y = random.standard_normal((2, 200)).astype(DTYPES[bits])
    # so that a rounded product would show
    z = (-(x * y) * (1 + 4 * np.finfo(DTYPES[bits]).eps)).astype(DTYPES[bits])
    product = graph.mul(a, b)
    node, signs = {
        "fma": (graph.apply("fma", a, b, c), (1, 1)),
        "add": (graph.add(product, c), (1, 1)),
        "sub": (graph.sub(product, graph.apply("exact_mul", c, graph.const(-1.0))), (1, 1)),
        "reversed sub": (graph.sub(c, product), (-1, 1)),
        "exact_add": (graph.apply("exact_add", graph.apply("exact_mul", a, b), c), (1, 1)),
    }[op]
    (found,) = once(graph, [node], [x, y, z], bits, BY_PROBLEM)
    if op == "exact_add":
        assert_bits(found, x * y + z, op)
        return
    wanted = [
        rounded_fma(signs[0] * float(p), float(q), signs[1] * float(r), bits)
        for p, q, r in zip(x, y, z, strict=True)
    ]
    assert_bits(found, np.array(wanted), op)
    assert not np.array_equal(found, signs[0] * (x * y) + signs[1] * z)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "value", [0.1, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan, 2.0**-1022]
)
def test_constants_are_not_rounded(bits: int, value: float) -> None:
    # Triton takes a number in a formula for float32 where that can hold it
    graph = Graph()
    x = load(graph, "0", PROBLEM)
    number = graph.const(value)
    nodes = [graph.where(graph.apply("gt", x, graph.const(0.0)), number, x), number]
    found = once(graph, nodes, [np.array([1.0, 2.0])], bits, BY_PROBLEM)
    with np.errstate(all="ignore"):
        wanted = np.full(2, value).astype(DTYPES[bits])
    assert_bits(found[0], wanted, "chosen")
    assert_bits(found[1], wanted, "alone")


@pytest.mark.parametrize("bits", BITS)
def test_exponents(bits: int) -> None:
    graph = Graph()
    a, n = load(graph, "0", PROBLEM), load(graph, "1", PROBLEM)
    info = np.finfo(DTYPES[bits])
    random = np.random.default_rng(2)
    x = random.choice([-1, 1], 400) * 2.0 ** random.uniform(info.minexp + 1, info.maxexp - 1, 400)
    x = np.concatenate([x, [1.0, 2.0, -0.5, float(info.tiny), float(info.max)]]).astype(info.dtype)
    shift = np.round(random.uniform(info.minexp, info.maxexp, len(x))).astype(info.dtype)
    nodes = [graph.apply("exponent", a), graph.apply("mantissa", a), graph.apply("ldexp", a, n)]
    exponent, mantissa, moved = once(graph, nodes, [x, shift], bits, Layout("problems", 64))
    half, power = np.frexp(x)
    assert_bits(exponent, power - 1.0, "exponent")
    assert_bits(mantissa, 2 * half, "mantissa")
    with np.errstate(all="ignore"):
        wanted = np.ldexp(x, shift.astype(np.int64))
    small = np.abs(wanted) < info.tiny
    assert bool(small.any()) and bool(np.isinf(wanted).any())
    assert_bits(moved[~small], wanted[~small], "ldexp")
    assert bool((np.abs(moved[small]) < info.tiny).all())


@pytest.mark.parametrize("bits", BITS)
def test_shifted_exponents_of_special_numbers(bits: int) -> None:
    graph = Graph()
    a, n = load(graph, "0", PROBLEM), load(graph, "1", PROBLEM)
    x = np.repeat(np.array(SPECIAL), 3)
    shift = np.tile([-1000.0, 0.0, 1000.0], len(SPECIAL))
    (found,) = once(graph, [graph.apply("ldexp", a, n)], [x, shift], bits, BY_PROBLEM)
    assert_bits(found, x, "ldexp")


@pytest.mark.parametrize("bits", BITS)
def test_powers_of_two(bits: int) -> None:
    graph = Graph()
    info = np.finfo(DTYPES[bits])
    top = float(info.maxexp)
    x = np.concatenate([np.linspace(info.minexp + 0.5, top - 1e-4, 301), np.linspace(-1, 1, 100)])
    x = np.concatenate([x, np.arange(-20.0, 20), [top - 1, info.minexp]]).astype(info.dtype)
    edge = np.array([top, 2 * top, math.inf, -math.inf, -3 * top, math.nan, 0.0, -0.0])
    (found,) = once(
        graph,
        [graph.apply("exp2", load(graph, "0", PROBLEM))],
        [np.concatenate([x, edge.astype(info.dtype)])],
        bits,
        Layout("problems", 64),
    )
    for value, power in zip(x, found[: len(x)], strict=True):
        exact = mpmath.mpf(2) ** mpmath.mpf(float(value))
        assert abs(mpmath.mpf(float(power)) / exact - 1) < 1.5 * float(info.eps), value
    whole = x == np.round(x)
    assert_bits(found[: len(x)][whole], np.exp2(x[whole]), "powers of whole numbers")
    assert_bits(found[len(x) :], np.array([math.inf] * 3 + [0, 0, math.nan, 1, 1]), "edges")


def test_a_nan_with_bits_of_its_own_stays_nan() -> None:
    graph = Graph()
    # such as R's NA: the lowest bits of a NaN must not reach the exponent
    x = np.array([0x7FF00000000007A2, 0x7FF8000000000401, 0x7FF8000000000BFF], dtype=np.uint64)
    node = load(graph, "0", PROBLEM)
    found = once(
        graph,
        [graph.apply("exp2", node), graph.apply("exp", node), graph.apply("round", node)],
        [x.view(np.float64)],
        64,
        BY_PROBLEM,
    )
    assert bool(np.isnan(found).all())


# ------------------------------------------------------------------------ elementary functions


def scipys(name: str) -> Callable[..., float]:
    return lambda *x: float(getattr(scipy.special, name)(*x))


ELEMENTARY: dict[str, tuple[Callable[..., Any], tuple[tuple[float, float], ...]]] = {
    "exp": (mpmath.exp, ((-80, 80),)),
    "expm1": (mpmath.expm1, ((-20, 20),)),
    "log": (mpmath.log, ((1e-20, 1e20),)),
    "log2": (lambda x: mpmath.log(x) / mpmath.log(2), ((1e-3, 0.9),)),
    "log10": (mpmath.log10, ((1.1, 1e9),)),
    "log1p": (mpmath.log1p, ((-0.9, 50),)),
    "sin": (mpmath.sin, ((-3, 3),)),
    "cos": (mpmath.cos, ((-1.5, 1.5),)),
    "tan": (mpmath.tan, ((-1.5, 1.5),)),
    "asin": (mpmath.asin, ((-1, 1),)),
    "acos": (mpmath.acos, ((-1, 0.9),)),
    "atan": (mpmath.atan, ((-30, 30),)),
    "atan2": (mpmath.atan2, ((-2, 2), (-2, 2))),
    "sinh": (mpmath.sinh, ((-10, 10),)),
    "cosh": (mpmath.cosh, ((-10, 10),)),
    "tanh": (mpmath.tanh, ((-5, 5),)),
    "asinh": (mpmath.asinh, ((-100, 100),)),
    "acosh": (mpmath.acosh, ((1.1, 100),)),
    "atanh": (mpmath.atanh, ((-0.9, 0.9),)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), ((-30, 30),)),
    "pow": (mpmath.power, ((0.1, 10), (-10, 10))),
    "erf": (mpmath.erf, ((-5, 5),)),
    "erfc": (mpmath.erfc, ((-5, 5),)),
    "lgamma": (mpmath.loggamma, ((3, 40),)),
    "digamma": (mpmath.digamma, ((2, 40),)),
    "i0": (lambda x: mpmath.besseli(0, x), ((-20, 20),)),
    "i0e": (scipys("i0e"), ((-20, 20),)),
    "i1": (lambda x: mpmath.besseli(1, x), ((-20, 20),)),
    "i1e": (scipys("i1e"), ((-20, 20),)),
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("op", ELEMENTARY)
def test_elementary_functions(op: str, bits: int) -> None:
    function, ranges = ELEMENTARY[op]
    random = np.random.default_rng(1)
    arrays = [random.uniform(low, high, 48).astype(DTYPES[bits]) for low, high in ranges]
    graph = Graph()
    loads = [load(graph, str(k), PROBLEM) for k in range(len(arrays))]
    (found,) = once(graph, [graph.apply(op, *loads)], arrays, bits, Layout("problems", 64))
    worst = 0.0
    for value, *x in zip(found, *arrays, strict=True):
        exact = function(*map(float, x))
        worst = max(worst, abs(float((mpmath.mpf(float(value)) - exact) / exact)))
    assert worst < 12 * np.finfo(DTYPES[bits]).eps


def test_an_unknown_operation_is_named() -> None:
    graph = Graph()
    node = graph.apply("zeta", load(graph, "x", PROBLEM))
    machine = Machine(graph, [], [Field("y", graph.const(0.0), node)], graph.const(1.0), [])
    with pytest.raises(UnsupportedError, match="'zeta'"):
        source(machine, 64, BY_PROBLEM)
    with pytest.raises(UnsupportedError, match="'zeta'"):
        TritonKernel(machine, 64)


# ------------------------------------------------------------------------------------ machines


def collatz(history: bool = False) -> Machine:
    """Halve as often as possible, or triple and add 1, until the number is 1."""
    g = Graph()
    start = load(g, "start", PROBLEM)
    number, steps, halvings, rounds = (
        g.leaf("state", name, PROBLEM) for name in ("number", "steps", "halvings", "rounds")
    )
    zero, one = g.const(0.0), g.const(1.0)

    def is_even(x: Node) -> Node:
        h = g.mul(x, g.const(0.5))
        return g.apply("eq", h, g.apply("floor", h))

    def halve(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        x, done, count = carried
        todo = g.apply("and", is_even(x), g.apply("not", done))
        x = g.where(todo, g.mul(x, g.const(0.5)), x)
        count = g.where(todo, g.add(count, one), count)
        done = g.apply("not", is_even(x))
        return g.apply("not", done), (x, done, count)

    even = is_even(number)
    first = g.apply("and", even, g.apply("gt", number, one))
    halved, _, counted = g.loop(50, first, (number, g.apply("not", first), zero), halve)
    following = g.where(even, halved, g.add(g.mul(number, g.const(3.0)), one))
    fields = [
        Field("number", start, following),
        Field("steps", zero, g.add(steps, g.where(even, counted, one))),
        Field("halvings", zero, g.add(halvings, g.where(even, counted, zero))),
        Field("rounds", zero, g.add(rounds, one)),
    ]
    return Machine(
        g,
        [],
        fields,
        g.apply("eq", following, one),
        [
            Output("steps", ["steps"], "int64"),
            Output("both", ["halvings", "number"], "real"),
            Output("single", ["steps"], "float32"),
            Output("double", ["steps"], "float64"),
            Output("rounds", ["rounds"], "int8"),
        ],
        history=History(["number", "steps"], "rounds") if history else None,
    )


NUMBERS = [2, 3, 4, 6, 7, 9, 11, 27, 5, 1024, 96, 15, 31, 8, 33, 1, 10, 64, 99]


def rounds_of(number: int) -> list[tuple[int, int, int]]:
    """Number, steps and halvings after each round."""
    steps = halvings = 0
    path: list[tuple[int, int, int]] = []
    while not path or number != 1:
        if number % 2:
            number, steps = 3 * number + 1, steps + 1
        else:
            while number % 2 == 0:
                number, steps, halvings = number // 2, steps + 1, halvings + 1
        path.append((number, steps, halvings))
    return path


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("layout", [BY_PROBLEM, Layout("problems", 32), BY_SAMPLE])
@pytest.mark.parametrize("chunk", [None, 5])
def test_every_problem_goes_its_own_way(layout: Layout, bits: int, chunk: int | None) -> None:
    views: dict[Hashable, Tensor] = {"start": torch.tensor(NUMBERS, dtype=torch.float64)}
    views["start"] = views["start"].to(torch.float32 if bits == 32 else torch.float64)
    found = run(collatz(), bits, layout, [], views, len(NUMBERS), chunk)
    paths = [rounds_of(number) for number in NUMBERS]
    # the textbook's count, known by heart for 27
    assert paths[NUMBERS.index(27)][-1][1] == 111
    steps = [path[-1][1] for path in paths]
    assert found["steps"][:, 0].tolist() == steps
    assert found["single"][:, 0].tolist() == steps and found["single"].dtype == np.float32
    assert found["double"][:, 0].tolist() == steps and found["double"].dtype == np.float64
    assert found["both"].tolist() == [[path[-1][2], 1.0] for path in paths]
    assert found["rounds"][:, 0].tolist() == [len(path) for path in paths]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truth_values_in_the_state(layout: Layout) -> None:
    g = Graph()
    zero, one = g.const(0.0), g.const(1.0)
    is_set = g.leaf("state_condition", "flag", PROBLEM)
    seen = g.leaf("state_condition", "seen", PROBLEM)
    rounds, sets = (g.leaf("state", name, PROBLEM) for name in ("rounds", "sets"))
    fields = [
        # begins as it is given, then alternates
        Field("flag", load(g, "start", PROBLEM), g.apply("not", is_set)),
        # a truth value that is kept as a number
        Field("seen", zero, g.where(is_set, rounds, zero)),
        Field("last", zero, g.where(seen, one, g.const(2.0))),
        # and one that is read as a number
        Field("sets", zero, g.add(sets, g.leaf("state", "flag", PROBLEM))),
        Field("rounds", one, g.add(rounds, one)),
    ]
    finished = g.apply("gt", rounds, load(g, "limit", PROBLEM))
    outputs = [
        Output("flag", ["flag"], "int8"),
        Output("rest", ["seen", "last", "sets", "rounds"], "real"),
    ]
    start, limit = [1, 0, 1, 0, 1], [1, 1, 2, 2, 5]
    views: dict[Hashable, Tensor] = {
        "start": torch.tensor(start, dtype=torch.float64),
        "limit": torch.tensor(limit, dtype=torch.float64),
    }
    found = run(Machine(g, [], fields, finished, outputs), 64, layout, [], views, 5)
    for row, (flag, last_round) in enumerate(zip(start, limit, strict=True)):
        mark, noted, kept, total = bool(flag), 0, 0, 0
        for number in range(1, last_round + 2):
            kept, total = 1 if noted else 2, total + mark
            noted = number if mark else 0
            mark = not mark
        assert found["flag"][row].tolist() == [mark]
        assert found["rest"][row].tolist() == [noted, kept, total, last_round + 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_history(layout: Layout) -> None:
    machine = collatz(history=True)
    views: dict[Hashable, Tensor] = {"start": torch.tensor(NUMBERS, dtype=torch.float64)}
    longest = max(len(rounds_of(number)) for number in NUMBERS)
    outputs = {
        output.name: torch.zeros(
            len(NUMBERS), len(output.fields), dtype=torch.int64 if output.name == "steps" else None
        )
        for output in machine.outputs
    }
    outputs["both"] = outputs["both"].double()
    outputs["double"] = outputs["double"].double()
    outputs["rounds"] = outputs["rounds"].to(torch.int8)
    bound = TritonKernel(machine, 64, layout).bind([], views, outputs)
    begin, end = 4, 17
    history = torch.full((end - begin, longest, 2), -5.0, dtype=torch.float64)
    bound.run(begin, end, history)
    for row, number in enumerate(NUMBERS[begin:end]):
        path = rounds_of(number)
        wanted = [[n, steps] for n, steps, _ in path] + [[-5, -5]] * (longest - len(path))
        assert history[row].tolist() == wanted
    assert outputs["steps"][:begin].tolist() == [[0]] * begin


def regression() -> tuple[Machine, dict[Hashable, Tensor], list[int]]:
    """Weighted sums over two runs of samples, of loads of every kind."""
    g = Graph()
    sums = Sums(g, 2)
    both = PROBLEM | SAMPLE
    x, y, mask = load(g, "x", SAMPLE), load(g, "y", both), load(g, "mask", both)
    factor, shift = load(g, "factor", 0), load(g, "shift", PROBLEM)
    flag = load(g, "flag", PROBLEM)
    z = load(g, "z", both)
    zero = g.const(0.0)
    kept = g.where(g.apply("ne", mask, zero), g.add(y, g.mul(factor, x)), zero)
    first = sums.total(0, kept, g.add(x, shift))
    second = sums.total(1, z, z)
    plain = sums.total(0, g.const(1.0), x)
    length = sums.total(1, g.const(1.0), g.const(1.0))
    fields = [
        Field("first", zero, first),
        Field("second", zero, g.where(g.apply("ne", flag, zero), second, g.neg(second))),
        Field("plain", zero, plain),
        Field("length", zero, length),
    ]
    outputs = [Output("all", ["first", "second", "plain", "length"], "real")]
    machine = Machine(
        g, sums.runs, fields, g.const(1.0), outputs, frozenset({"mask", "flag"}), frozenset({"z"})
    )
    random = np.random.default_rng(0)
    batch, lengths = 13, [11, 6]
    views: dict[Hashable, Tensor] = {
        "x": torch.from_numpy(random.standard_normal(2 * lengths[0]))[::2],
        "y": torch.from_numpy(random.standard_normal((lengths[0], 2, batch)))[:, 1].T,
        "mask": torch.from_numpy(random.random((batch, lengths[0])) > 0.3),
        "factor": torch.tensor(0.1, dtype=torch.float64),
        "shift": torch.from_numpy(random.standard_normal((batch, 3)))[:, 1],
        "flag": torch.from_numpy(random.random(batch) > 0.5),
        "z": torch.from_numpy(random.standard_normal((batch, lengths[1]))).float(),
    }
    return machine, views, lengths


@pytest.mark.parametrize("layout", [BY_PROBLEM, BY_SAMPLE, Layout("samples", 16)])
@pytest.mark.parametrize("chunk", [None, 4])
def test_loads_of_every_kind(layout: Layout, chunk: int | None) -> None:
    machine, views, lengths = regression()
    found = run(machine, 64, layout, lengths, views, 13, chunk)["all"]
    x, y, mask, factor, shift, flag, z = (
        views[name].double().numpy() for name in ("x", "y", "mask", "factor", "shift", "flag", "z")
    )
    first = (np.where(mask != 0, y + factor * x, 0) * (x + shift[:, None])).sum(1)
    second = (z**2).sum(1) * np.where(flag, 1, -1)
    plain = np.full(13, x.sum())
    wanted = np.stack([first, second, plain, np.full(13, 6.0)], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_progress_is_told_of_every_chunk(layout: Layout) -> None:
    machine, views, lengths = regression()
    outputs = {"all": torch.zeros(13, 4, dtype=torch.float64)}
    told: list[int] = []
    TritonKernel(machine, 64, layout).bind(lengths, views, outputs).run_all(13, 5, told.append)
    assert told == [5, 5, 3]


def test_a_load_of_another_type_is_refused() -> None:
    machine, views, lengths = regression()
    outputs = {"all": torch.zeros(13, 4, dtype=torch.float64)}
    views["y"] = views["y"].float()
    with pytest.raises(TypeError, match=r"'y' is torch.float32; wanted torch.float64"):
        TritonKernel(machine, 64).bind(lengths, views, outputs)


def test_large_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _, _ = regression()
    monkeypatch.setattr(triton_driver, "MAX_OPERATIONS", 10)
    with pytest.raises(UnsupportedError, match="may have 10"):
        TritonKernel(machine, 64)


def test_operations_are_counted() -> None:
    machine, _, _ = regression()
    counted = work(machine, 64)
    assert counted.sums == 3
    # y + factor x, x + shift, mask, where: with loads and sums some more than five
    assert 5 <= counted.per_sample[0] <= 15 and counted.per_sample[1] <= 3
    assert counted.step >= 5


# ------------------------------------------------------------------------ what runs where, and how

CURVE = Work(per_sample=(40,), sums=20, step=1000)


@pytest.mark.parametrize(
    ("lengths", "count", "across"),
    [
        ([20], 10**6, "problems"),
        ([100], 10**5, "problems"),
        ([4000], 1, "samples"),
        ([2000], 300, "samples"),
        ([10**5], 10**6, "samples"),
    ],
)
def test_layout_by_problems_and_samples(lengths: list[int], count: int, across: str) -> None:
    assert choose(CURVE, lengths, count, processors=132).across == across


def test_one_large_problem_takes_many_lanes() -> None:
    assert choose(CURVE, [10**5], 1, 132).lanes > choose(CURVE, [64], 1, 132).lanes
    assert choose(Work((), 0, 1000), [], 1, 132) == Layout("problems", 32)


def test_the_layout_is_chosen_where_none_is_given() -> None:
    machine, views, lengths = regression()
    outputs = {"all": torch.zeros(13, 4, dtype=torch.float64)}
    bound = TritonKernel(machine, 64).bind(lengths, views, outputs)
    assert bound.layout == choose(work(machine, 64), lengths, 13, 1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable(torch.device("cpu")) is None
    assert "interpreter is on" in str(unavailable(torch.device("cuda")))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "cpu devices" in str(unavailable(torch.device("cpu")))
    assert "meta devices" in str(unavailable(torch.device("meta")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(unavailable(torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unavailable(torch.device("cuda")) is None


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(triton_driver.importlib, "import_module", missing)
    assert "cannot be imported" in str(unavailable(torch.device("cuda")))
    with pytest.raises(triton_driver.NoCompilerError, match="cannot be imported"):
        TritonKernel(regression()[0], 64)


# ------------------------------------------------------------------------------ compiled for CUDA


def compiled(
    text: str, lanes: int, monkeypatch: pytest.MonkeyPatch, folder: Path, arch: int = 90
) -> str:
    """PTX of a kernel; skips where this machine's Triton cannot make it."""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton makes no code for CUDA")
    origin = ASTSource(fn=triton_driver.define(text), signature={"table": "*i64"}, constexprs={})
    options = {"num_warps": max(1, lanes // 32), "num_stages": 1, "enable_fp_fusion": False}
    kernel = triton.compile(origin, target=GPUTarget("cuda", arch, 32), options=options)
    return str(kernel.asm["ptx"])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("layout", [Layout("problems", 32), Layout("samples", 64)])
def test_machines_compile(
    bits: int, layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine, _, _ = regression()
    if bits == 32:
        machine = replace(machine, singles=frozenset())
    ptx = compiled(source(machine, bits, layout), layout.lanes, monkeypatch, tmp_path)
    assert f"fma.rn.f{bits}" in ptx
    # data is read once a pass and sum, not gathered from a local copy
    assert ".local" not in ptx


@pytest.mark.parametrize("layout", [Layout("problems", 32), Layout("samples", 32)])
def test_loops_and_history_compile(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ptx = compiled(source(collatz(history=True), 64, layout), 32, monkeypatch, tmp_path)
    # whether any lane goes on is one instruction
    assert ("redux.sync.or" in ptx) == (layout.across == "problems")


def test_compiled_arithmetic_is_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    g = Graph()
    x, y = load(g, "x", PROBLEM), load(g, "y", PROBLEM)
    exact = g.apply("exact_add", g.apply("exact_mul", x, y), g.const(0.1))
    fields = [
        Field("exact", g.const(0.0), exact),
        Field("minus", g.const(0.0), g.neg(x)),
        Field("fused", g.const(0.0), g.add(g.mul(x, x), y)),
    ]
    output = Output("all", ["exact", "minus", "fused"], "real")
    machine = Machine(g, [], fields, g.const(1.0), [output])
    ptx = compiled(source(machine, 64, Layout("problems", 32)), 32, monkeypatch, tmp_path)
    # 0.1 in all its digits, and nothing fused but what may be
    assert re.search("add.rn.f64.*0d3FB999999999999A", ptx)
    assert len(re.findall("mul.rn.f64", ptx)) == 1
    assert len(re.findall("fma.rn.f64", ptx)) == 1
    assert "sub.rn.f64" not in ptx


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("arch", [75, 80, 100])
def test_elementary_functions_compile(
    bits: int, arch: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    g = Graph()
    x, y = load(g, "x", PROBLEM), load(g, "y", PROBLEM)
    nodes = {op: g.apply(op, *(x, y)[: len(ranges)]) for op, (_, ranges) in ELEMENTARY.items()}
    fields = [Field(op, g.const(0.0), node) for op, node in nodes.items()]
    machine = Machine(g, [], fields, g.const(1.0), [Output("all", list(nodes), "real")])
    ptx = compiled(source(machine, bits, Layout("problems", 32)), 32, monkeypatch, tmp_path, arch)
    # neither calls nor tables
    assert not re.search(r"\tcall[. ]", ptx) and ".local" not in ptx
