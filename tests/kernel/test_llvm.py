"""Compiled machines against NumPy: operations, loops, sums, states, and other processors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from problems import workloads
from torchimize import curve_fit, least_squares
from torchimize.kernel import driver, llvm
from torchimize.kernel.driver import Kernel, Processor
from torchimize.kernel.graph import CONDITIONS, PROBLEM, SAMPLE, Graph, Node, reachable
from torchimize.kernel.machine import Field, History, Machine, Output, Run, Sums, load
from torchimize.lsq.fused import kernels as fused_kernels

Array = NDArray[Any]
DTYPES: dict[int, Any] = {32: np.float32, 64: np.float64}
AVX2 = Processor("znver3", "+avx2,+fma", 32, scalef=False, x86=True)
ARM = Processor("neoverse-n1", "", 16, scalef=False, x86=False)


def has_avx2() -> bool:
    features = driver._llvm().get_host_cpu_features()
    return bool(features.get("avx2") and features.get("fma"))


PROCESSORS = [
    pytest.param(None, id="own"),
    pytest.param(AVX2, id="avx2", marks=pytest.mark.skipif(not has_avx2(), reason="no AVX2")),
]
BITS = pytest.mark.parametrize("bits", [64, 32])
EVERYWHERE = pytest.mark.parametrize("processor", PROCESSORS)


# ---------------------------------------------------------------------------------------- helpers


def tensors(arrays: Mapping[Hashable, Any]) -> dict[Hashable, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def mapped(
    build: Callable[..., Sequence[Node]],
    columns: Sequence[Array],
    bits: int = 64,
    processor: Processor | None = None,
) -> list[Array]:
    """Expressions of one number per problem, computed by a kernel; truth values are 1 and 0."""
    graph = Graph()
    leaves = [load(graph, k, PROBLEM) for k in range(len(columns))]
    outputs = build(graph, *leaves)
    fields = [Field(("out", k), graph.const(0.0), node) for k, node in enumerate(outputs)]
    names = [f.name for f in fields]
    machine = Machine(graph, [], fields, graph.const(1.0), [Output("out", names, "real")])
    kernel = Kernel(machine, bits, processor)
    batch = len(columns[0])
    out = torch.full(
        (batch, len(outputs)), -77, dtype=torch.float64 if bits == 64 else torch.float32
    )
    given = tensors({k: np.asarray(c, dtype=DTYPES[bits]) for k, c in enumerate(columns)})
    kernel.bind([], given, {"out": out}).run(0, batch)
    return list(out.numpy().T)


def flushed(x: Array) -> Array:
    """Numbers below the normal range become zero."""
    if x.dtype == bool:
        return x
    return np.where(abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def ulps(value: Array, wanted: Array) -> Array:
    """Distance in units of the last place of ``value``'s type; 0 where both are NaN or equal."""
    eps = np.finfo(value.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.maximum(abs(wanted), eps.tiny)
        unit = 2.0 ** (np.floor(np.log2(np.where(np.isfinite(size), size, 1))) - eps.nmant)
        off = abs(value.astype(wanted.dtype) - wanted) / unit
    same = (value == wanted) | (np.isnan(value) & np.isnan(wanted))
    # next to the largest number, and below the smallest normal one
    same |= np.isinf(value) & (abs(wanted) > eps.max) & (np.sign(value) == np.sign(wanted))
    same |= (abs(value) <= eps.tiny) & (abs(wanted) <= eps.tiny)
    return np.where(same, 0.0, np.where(np.isnan(off), np.inf, off))


def special(bits: int) -> Array:
    """Numbers of every kind."""
    dtype = DTYPES[bits]
    info = np.finfo(dtype)
    random = np.random.default_rng(0)
    wide = random.standard_normal(150) * 2.0 ** random.uniform(-60, 60, 150)
    some = [0, 1, 0.5, 1.5, 2, 2.5, 3.5, 1e9, 2**23, 2**23 + 1.0, 2**31, 1e18, 1 / 3, 0.1, 100.0]
    some += [math.inf, math.nan, float(info.tiny), float(info.max), float(info.eps), 1 - 1e-7]
    values = np.array([*some, *(-np.array(some)), *wide], dtype=dtype)
    return values


def pairs(bits: int, count: int) -> list[Array]:
    """``count`` columns of numbers of every kind, all meeting all."""
    values = special(bits)
    if count == 1:
        return [values]
    random = np.random.default_rng(1)
    kinds = values[:42]
    met = np.meshgrid(kinds, kinds)
    more = [random.permutation(np.tile(values, 4)) for _ in range(count)]
    columns = [met[0].ravel(), met[1].ravel(), random.permutation(met[0].ravel())][:count]
    return [np.concatenate([c, m]) for c, m in zip(columns, more, strict=True)]


# ------------------------------------------------------------------------------------- operations

EXACT: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
    "exact_add": np.add, "exact_sub": np.subtract, "exact_mul": np.multiply,
    "sqrt": np.sqrt, "abs": np.abs, "copysign": np.copysign, "floor": np.floor, "ceil": np.ceil,
    "trunc": np.trunc, "round": np.rint, "maximum": np.maximum, "minimum": np.minimum,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "isnan": np.isnan, "isfinite": np.isfinite,
}  # fmt: skip
TWO = {
    *("add", "sub", "mul", "exact_add", "exact_sub", "exact_mul", "copysign", "maximum"),
    *("minimum", "eq", "ne", "lt", "le", "gt", "ge"),
}


@EVERYWHERE
@BITS
def test_operations_are_numpys(bits: int, processor: Processor | None) -> None:
    columns = pairs(bits, 2)
    names = list(EXACT)
    found = mapped(
        lambda g, a, b: [g.apply(n, a, b) if n in TWO else g.apply(n, a) for n in names],
        columns,
        bits,
        processor,
    )
    a, b = columns
    for name, value in zip(names, found, strict=True):
        with np.errstate(all="ignore"):
            wanted = EXACT[name](a, b) if name in TWO else EXACT[name](a)
        wanted = flushed(wanted).astype(value.dtype)
        same = (value == wanted) | (np.isnan(value) & np.isnan(wanted))
        assert same.all(), (name, a[~same][:3], b[~same][:3], value[~same][:3], wanted[~same][:3])


@EVERYWHERE
@BITS
def test_the_sign_of_zero(bits: int, processor: Processor | None) -> None:
    a = np.array([0.0, -0.0, 1.0, -1.0])
    names = ("neg", "abs", "floor", "ceil", "trunc", "round", "sqrt")
    found = mapped(lambda g, a: [g.apply(n, a) for n in names], [a], bits, processor)
    wanted = [-a, abs(a), np.floor(a), np.ceil(a), np.trunc(a), np.rint(a), np.sqrt(abs(a))]
    for name, value, right in zip(names[:-1], found, wanted, strict=False):
        assert (np.signbit(value) == np.signbit(right)).all(), name


@EVERYWHERE
@BITS
def test_division(bits: int, processor: Processor | None) -> None:
    a, b = pairs(bits, 2)
    (value,) = mapped(lambda g, a, b: [g.div(a, b)], [a, b], bits, processor)
    with np.errstate(all="ignore"):
        wanted = a / b
    assert ulps(value, wanted).max() <= 1


@EVERYWHERE
@BITS
def test_fused_multiply_add(bits: int, processor: Processor | None) -> None:
    a, b, c = pairs(bits, 3)
    with np.errstate(all="ignore"):
        plain = a * b + c

    def exact(a: float, b: float, c: float) -> float:
        total = Fraction(a) * Fraction(b) + Fraction(c)
        try:
            return float(total)
        except OverflowError:
            return math.inf if total > 0 else -math.inf

    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    # an infinity is added to a product that is not rounded, and so not infinite
    alone = np.isfinite(a) & np.isfinite(b) & np.isinf(c)
    wanted = np.where(alone, c, plain).astype(np.float64)
    threes = zip(*(column[finite].tolist() for column in (a, b, c)), strict=True)
    wanted[finite] = [exact(*three) for three in threes]
    value, lost = mapped(
        lambda g, a, b, c: [
            g.apply("fma", a, b, c),
            g.apply("fma", a, b, g.neg(g.apply("exact_mul", a, b))),
        ],
        [a, b, c],
        bits,
        processor,
    )
    assert ulps(value, wanted).max() <= 0.51
    # what rounding takes from a product, to the last bit
    with np.errstate(all="ignore"):
        product = a * b
    size = np.finfo(a.dtype)
    usual = finite & (abs(product) < size.max) & (abs(product) > size.tiny / size.eps**2)
    for x, y, p, error in zip(a[usual], b[usual], product[usual], lost[usual], strict=True):
        assert Fraction(float(x)) * Fraction(float(y)) - Fraction(float(p)) == Fraction(
            float(error)
        )


@EVERYWHERE
@BITS
def test_sums_that_must_not_be_simplified(bits: int, processor: Processor | None) -> None:
    a = special(bits)
    a = a[np.isfinite(a) & (abs(a) < 2**20)]
    magic = 1.5 * 2.0 ** (52 if bits == 64 else 23)
    rounded, error = mapped(
        lambda g, a: [
            g.apply("exact_sub", g.apply("exact_add", a, g.const(magic)), g.const(magic)),
            g.apply(
                "exact_sub",
                a,
                g.apply("exact_sub", g.apply("exact_add", a, g.const(1e4)), g.const(1e4)),
            ),
        ],
        [a],
        bits,
        processor,
    )
    np.testing.assert_array_equal(rounded, np.rint(a))
    dtype = a.dtype.type
    np.testing.assert_array_equal(error, flushed(a - ((a + dtype(1e4)) - dtype(1e4))))


@EVERYWHERE
@BITS
def test_truth_values(bits: int, processor: Processor | None) -> None:
    a, b = (column[:500] for column in pairs(bits, 2))

    def build(g: Graph, a: Node, b: Node) -> list[Node]:
        p, q = g.apply("lt", a, b), g.apply("gt", b, g.const(1.0))
        return [
            g.apply("and", p, q),
            g.apply("or", p, q),
            g.apply("not", p),
            g.where(p, a, b),
            g.where(g.apply("not", p), g.const(2.0), a),
            g.where(p, q, g.apply("not", q)),
            g.where(p, g.const(1.0), q),
            g.apply("and", p, g.const(1.0)),
            g.const(1.0),
            g.where(g.apply("isnan", g.add(a, b)), g.const(0.0), g.mul(a, b)),
        ]

    with np.errstate(all="ignore"):
        p, q, total, product = a < b, b > 1, a + b, a * b
    wanted = [
        *(p & q, p | q, ~p, np.where(p, a, b), np.where(~p, 2, a), np.where(p, q, ~q)),
        *(np.where(p, 1, q), p, np.ones_like(a), np.where(np.isnan(total), 0, product)),
    ]
    for value, right in zip(mapped(build, [a, b], bits, processor), wanted, strict=True):
        np.testing.assert_array_equal(value, flushed(right.astype(a.dtype)))


@EVERYWHERE
@BITS
def test_powers_of_two(bits: int, processor: Processor | None) -> None:
    limit = 128 if bits == 32 else 1024
    random = np.random.default_rng(3)
    t = np.concatenate(
        [
            random.uniform(-1, 1, 400),
            random.uniform(-limit - 60, limit + 60, 400),
            np.arange(-limit - 5, limit + 6, 1 if bits == 32 else 7),
            [0.5, -0.5, 1.5, 1e30, -1e30, math.inf, -math.inf, math.nan, limit],
            [np.nextafter(limit, 0)],
        ]
    ).astype(DTYPES[bits])  # fmt: skip
    (value,) = mapped(lambda g, t: [g.apply("exp2", t)], [t], bits, processor)
    with np.errstate(all="ignore"):
        wanted = np.exp2(t.astype(np.longdouble))
    assert ulps(value, wanted).max() <= 1.2
    assert np.isnan(value[np.isnan(t)]).all()
    with np.errstate(all="ignore"):
        rounded = flushed(wanted.astype(value.dtype))
    whole = (t == np.rint(t)) & (rounded != 0)
    assert (value[whole] == rounded[whole]).all() and whole.sum() > 200


@EVERYWHERE
@BITS
def test_a_nan_stays_one(bits: int, processor: Processor | None) -> None:
    # such as R's "not available", whose payload is 1954
    payloads = np.array([0, 1, 1954, 2**20 + 3], dtype=np.int64)
    quiet = 0x7FC00000 if bits == 32 else 0x7FF8000000000000
    t = (payloads + quiet).astype(np.int32 if bits == 32 else np.int64).view(DTYPES[bits])
    t = np.concatenate([t, -t])
    assert np.isnan(t).all()
    names = ("exp2", "sqrt", "exp", "log", "sin", "tanh", "erf", "expm1", "log1p", "sigmoid")
    found = mapped(
        lambda g, t: [
            *(g.apply(name, t) for name in names),
            *(g.apply(op, t, g.const(1.0)) for op in ("maximum", "minimum", "add", "mul", "pow")),
            *(g.apply(op, g.const(1.0), t) for op in ("maximum", "minimum", "sub", "div", "atan2")),
            g.apply("ldexp", t, g.const(3.0)),
        ],
        [t],
        bits,
        processor,
    )
    for number, value in enumerate(found):
        assert np.isnan(value).all(), number


@EVERYWHERE
@BITS
def test_exponent_mantissa_and_ldexp(bits: int, processor: Processor | None) -> None:
    x = special(bits)
    x = x[np.isfinite(x) & (abs(x) >= np.finfo(x.dtype).tiny)]
    part, whole = np.frexp(x)
    span = 100 if bits == 32 else 900
    n = np.random.default_rng(2).integers(-span, span, len(x)).astype(x.dtype)
    with np.errstate(all="ignore"):
        moved = np.ldexp(x, n.astype(int))
    ordinary = np.isfinite(moved) & (abs(moved) >= np.finfo(x.dtype).tiny)
    exponent, mantissa, scaled = mapped(
        lambda g, x, n: [g.apply("exponent", x), g.apply("mantissa", x), g.apply("ldexp", x, n)],
        [x, n],
        bits,
        processor,
    )
    np.testing.assert_array_equal(exponent, whole - 1)
    np.testing.assert_array_equal(mantissa, 2 * part)
    assert ordinary.sum() > 100
    np.testing.assert_array_equal(scaled[ordinary], moved[ordinary])


@BITS
def test_constants(bits: int) -> None:
    values = [0.0, -0.0, 0.1, -1e300, 1e-300, math.inf, -math.inf, math.nan, 3.4e38, 1 / 3, 1e39]
    found = mapped(lambda g, a: [*map(g.const, values)], [np.zeros(3)], bits)
    with np.errstate(over="ignore"):
        wanted = np.array(values).astype(DTYPES[bits])
    for value, right in zip(found, wanted, strict=True):
        assert (np.isnan(value) & np.isnan(right)).all() or (value == right).all()
        assert (np.signbit(value) == np.signbit(right)).all() or np.isnan(right)


@BITS
def test_small_numbers_are_zero(bits: int) -> None:
    tiny = np.finfo(DTYPES[bits]).tiny
    x = np.array([tiny / 2, tiny, -tiny / 4, tiny * 1.5])
    doubled, halved = mapped(
        lambda g, x: [g.mul(x, g.const(2.0)), g.mul(x, g.const(0.5))], [x], bits
    )
    np.testing.assert_array_equal(doubled, [0, 2 * tiny, 0, 3 * tiny])
    np.testing.assert_array_equal(halved, 0)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(llvm.UnsupportedError, match="'airy_zeta'"):
        mapped(lambda g, a: [g.apply("airy_zeta", a)], [np.zeros(1)])


# ---------------------------------------------------------------------- expressions and loops

REFERENCE: dict[str, Callable[..., Array]] = {
    **EXACT,
    "div": np.divide, "where": np.where, "and": np.logical_and, "or": np.logical_or,
    "not": np.logical_not, "exp": np.exp, "log": np.log, "pow": np.power, "atan2": np.arctan2,
}  # fmt: skip


class Interpreter:
    """Nodes in NumPy, one number per problem; every problem leaves a loop on its own."""

    def __init__(self, leaves: Mapping[Hashable, Array]) -> None:
        self.leaves = leaves
        self.values: dict[int, Array] = {}

    def __call__(self, node: Node, values: dict[int, Array] | None = None) -> Array:
        values = self.values if values is None else values
        for inner in reachable([node]):
            if inner.serial not in values:
                values[inner.serial] = self._value(inner, values)
        return values[node.serial]

    def _value(self, node: Node, values: dict[int, Array]) -> Array:
        if node.op == "const":
            return np.asarray(node.value)
        if node.op == "load":
            return self.leaves[node.value]
        if node.op in ("loop", "loop_condition"):
            return self._loop(node, values)
        with np.errstate(all="ignore"):
            found: Array = REFERENCE[node.op](*(values[arg.serial] for arg in node.args))
        return found

    def _loop(self, node: Node, values: dict[int, Array]) -> Array:
        pair: Any = node.value
        loop, position = pair
        batch = len(next(iter(self.leaves.values())))
        state = [np.broadcast_to(values[n.serial], batch).copy() for n in loop.initial]
        running = np.broadcast_to(values[loop.first.serial], batch).astype(bool).copy()
        for _ in range(loop.times):
            if not running.any():
                break
            inner = dict(values)
            for k, carried in enumerate(loop.carried):
                if carried is not loop.initial[k]:
                    inner[carried.serial] = state[k]
            new = [np.broadcast_to(self(n, inner), batch) for n in loop.updated]
            again = np.broadcast_to(self(loop.todo, inner), batch).astype(bool)
            state = [np.where(running, n, s) for n, s in zip(new, state, strict=True)]
            running &= again
        result: Array = state[position]
        return result


def check(
    build: Callable[..., Sequence[Node]], columns: Sequence[Array], limit: float, bits: int = 64,
    processor: Processor | None = None,
) -> list[Array]:  # fmt: skip
    """Kernel and interpreter agree to ``limit``, relative."""
    found = mapped(build, columns, bits, processor)
    graph = Graph()
    nodes = build(graph, *(load(graph, k, PROBLEM) for k in range(len(columns))))
    interpret = Interpreter({k: np.asarray(c, dtype=np.float64) for k, c in enumerate(columns)})
    for node, value in zip(nodes, found, strict=True):
        wanted = np.broadcast_to(interpret(node), len(columns[0])).astype(np.float64)
        np.testing.assert_allclose(value, wanted, rtol=limit, atol=limit, err_msg=repr(node))
    return found


def random_nodes(graph: Graph, leaves: Sequence[Node], count: int, seed: int) -> list[Node]:
    """Expressions of expressions, numbers and truth values mixed."""
    random = np.random.default_rng(seed)
    numbers = [*leaves, *(graph.const(v) for v in (0.5, 1.0, -2.0, 0.0, 3.0))]
    truths = [graph.apply("lt", leaves[0], leaves[1])]
    made = []
    binary = ["add", "sub", "mul", "maximum", "minimum", "copysign"]

    def pick(of: list[Node]) -> Node:
        return of[int(random.integers(max(0, len(of) - 25), len(of)))]

    for _ in range(count):
        kind = random.integers(10)
        if kind < 5:
            node = graph.apply(str(random.choice(binary)), pick(numbers), pick(numbers))
            # sizes stay ordinary
            node = graph.apply("maximum", graph.apply("minimum", node, graph.const(9.0)),
                               graph.const(-9.0))  # fmt: skip
        elif kind == 5:
            node = graph.apply("sqrt", graph.apply("abs", pick(numbers)))
        elif kind == 6:
            node = graph.where(pick(truths), pick(numbers), pick(numbers))
        elif kind == 7:
            node = graph.apply(str(random.choice(["floor", "ceil", "neg", "abs"])), pick(numbers))
        elif kind == 8:
            node = graph.apply(str(random.choice(["lt", "ge", "ne"])), pick(numbers), pick(numbers))
        else:
            ops = ("and", "or")
            node = graph.apply(ops[int(random.integers(2))], pick(truths), pick(truths))
            node = graph.where(pick(truths), node, graph.apply("not", node))
        truth = node.op in CONDITIONS
        (truths if truth else numbers).append(node)
        made.append(node)
    return made


@pytest.mark.parametrize("seed", range(3))
@EVERYWHERE
def test_random_expressions(seed: int, processor: Processor | None) -> None:
    # numbers of few bits: no rounding is blown up by a floor or a comparison
    random = np.random.default_rng(seed)
    columns = [random.integers(-12, 13, 100) / 4 for _ in range(3)]
    check(lambda g, *leaves: random_nodes(g, leaves, 120, seed), columns, 1e-9, 64, processor)


@EVERYWHERE
@BITS
def test_a_loop(bits: int, processor: Processor | None) -> None:
    # Newton's square root until it stands still, at most 60 times
    a = np.random.default_rng(0).uniform(0.1, 1e4, 75)

    def build(g: Graph, a: Node) -> list[Node]:
        def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
            x, rounds, running = carried
            better = g.scale(0.5, g.add(x, g.div(a, x)))
            more = g.where(running, g.add(rounds, g.const(1.0)), rounds)
            far = g.apply("gt", g.apply("abs", g.sub(better, x)), g.scale(1e-4, x))
            return g.apply("and", running, far), (
                g.where(running, better, x),
                more,
                g.apply("and", running, far),
            )

        return list(g.loop(60, g.const(1.0), (a, g.const(0.0), g.const(1.0)), body))

    root, rounds, running = check(build, [a], 1e-5 if bits == 32 else 1e-12, bits, processor)
    np.testing.assert_allclose(root, np.sqrt(a), rtol=1e-6)
    assert len(set(rounds)) > 3 and not running.any()


@EVERYWHERE
def test_a_loop_ends_after_so_many_rounds(processor: Processor | None) -> None:
    def build(g: Graph, a: Node) -> list[Node]:
        def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
            return g.const(1.0), (g.add(carried[0], g.const(1.0)),)

        return [g.loop(n, g.const(1.0), (a,), body)[0] for n in (1, 2, 7)]

    a = np.arange(20.0)
    for value, n in zip(check(build, [a], 0, 64, processor), (1, 2, 7), strict=True):
        np.testing.assert_array_equal(value, a + n)


@EVERYWHERE
@pytest.mark.parametrize("enter", ["none", "some", "all"])
def test_a_loop_that_may_be_skipped(enter: str, processor: Processor | None) -> None:
    # what is computed in it is wanted outside too, by expansions of the same operations
    a = np.random.default_rng(1).uniform(0.5, 3, 60)
    sign = {"none": -a, "all": a, "some": np.where(np.arange(60) % 7 == 3, a, -a)}[enter]
    q = np.random.default_rng(2).uniform(0.5, 2, 60)

    def build(g: Graph, s: Node, q: Node) -> list[Node]:
        enters = g.apply("gt", s, g.const(0.0))

        def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
            (x,) = carried
            grown = g.add(x, g.apply("pow", q, x))
            grown = g.where(g.apply("and", enters, g.apply("lt", x, g.const(6.0))), grown, x)
            todo = g.apply("and", enters, g.apply("lt", grown, g.const(6.0)))
            return todo, (grown,)

        (x,) = g.loop(5, enters, (g.apply("abs", s),), body)
        return [x, g.apply("pow", q, g.scale(3.0, s)), g.apply("log", q), g.mul(x, q)]

    check(build, [sign, q], 1e-12, 64, processor)


def test_a_loop_that_is_never_entered_is_no_code() -> None:
    g = Graph()
    a = load(g, 0, PROBLEM)

    def body(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
        raise AssertionError("not even written")

    assert g.loop(3, g.const(0.0), (a,), body) == (a,)


@EVERYWHERE
def test_loops_in_loops(processor: Processor | None) -> None:
    # Σ over rounds of the number of halvings until a number is below 1; the outer one adds 1.5
    a = np.random.default_rng(4).uniform(0, 40, 70)

    def build(g: Graph, a: Node) -> list[Node]:
        one, steady = g.const(1.0), g.apply("sqrt", g.add(a, g.const(1.0)))

        def inner(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
            x, count, odd = carried
            large = g.apply("ge", x, one)
            x = g.where(large, g.scale(0.5, x), x)
            count = g.where(large, g.add(count, one), count)
            odd = g.where(large, g.apply("not", odd), odd)
            return g.apply("ge", x, one), (x, count, odd)

        def outer(carried: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
            y, total, odd = carried
            first = g.apply("and", enters, g.apply("ge", y, one))
            _, total, odd = g.loop(20, first, (y, total, odd), inner)
            running = g.apply("and", enters, g.apply("lt", y, g.const(30.0)))
            y = g.where(running, g.add(y, g.add(g.const(9.0), steady)), y)
            total = g.where(running, total, carried[1])
            odd = g.where(running, odd, carried[2])
            return g.apply("and", enters, g.apply("lt", y, g.const(30.0))), (y, total, odd)

        enters = g.apply("gt", a, g.const(2.0))
        start = (a, g.const(0.0), g.apply("gt", a, g.const(20.0)))
        return [*g.loop(6, enters, start, outer), steady]

    found = check(build, [a], 1e-12, 64, processor)
    assert len(set(found[1])) > 5 and set(found[2]) == {0.0, 1.0}


# ------------------------------------------------------------------------------------------- sums


@dataclass(frozen=True)
class Samples:
    """Data of a machine that sums: by name, and the number of samples of each run."""

    arrays: dict[Hashable, Array]
    lengths: list[int]
    batch: int


def sample_data(lengths: list[int], batch: int, bits: int) -> Samples:
    random = np.random.default_rng(5)
    arrays: dict[Hashable, Array] = {"number": random.uniform(0.5, 2, ())}
    arrays["row"] = random.uniform(0.5, 2, batch)
    for run, n in enumerate(lengths):
        arrays["shared", run] = random.uniform(-1, 1, n)
        arrays["own", run] = random.uniform(-1, 1, (batch, n))
    converted: dict[Hashable, Array] = {k: np.asarray(v, DTYPES[bits]) for k, v in arrays.items()}
    for run, n in enumerate(lengths):
        converted["mask", run] = random.random((batch, n)) < 0.7
        converted["some", run] = random.random(n) < 0.7
    return Samples(converted, lengths, batch)


def summing(factors: Sequence[int], bits: int, processor: Processor | None) -> Kernel:
    """All products of the first so many factors, summed over each run, and their row sums."""
    graph = Graph()
    sums = Sums(graph, len(factors))
    number, row = load(graph, "number", 0), load(graph, "row", PROBLEM)
    fields = []
    for run, count in enumerate(factors):
        x, own = load(graph, ("shared", run), SAMPLE), load(graph, ("own", run), SAMPLE | PROBLEM)
        mask = load(graph, ("mask", run), SAMPLE | PROBLEM)
        some = load(graph, ("some", run), SAMPLE)
        zero = graph.const(0.0)
        used = graph.apply("and", graph.apply("ne", mask, zero), graph.apply("ne", some, zero))
        wave = graph.apply("sin", graph.mul(row, own))
        values = [x, own, graph.where(used, wave, zero), graph.mul(x, graph.add(own, row))]
        values += [graph.apply("exp", graph.mul(number, own)), graph.where(used, x, own)]
        values += [graph.mul(graph.mul(row, x), x), graph.sub(own, number)]
        values = values[:count]
        one = graph.const(1.0)
        for i, a in enumerate(values):
            for j, b in enumerate([*values[: i + 1], one]):
                name = (run, i, j if b is not one else -1)
                fields.append(Field(name, graph.const(0.0), sums.total(run, a, b)))
        fields.append(Field((run, "N"), zero, sums.total(run, one, graph.mul(one, row))))
    outputs = [Output("out", [f.name for f in fields], "real")]
    booleans = frozenset((n, k) for n in ("mask", "some") for k in range(len(factors)))
    machine = Machine(graph, sums.runs, fields, graph.const(1.0), outputs, booleans)
    return Kernel(machine, bits, processor)


def sums_in_numpy(
    names: Sequence[Any], factors: Sequence[int], data: Samples
) -> tuple[Array, Array]:
    """The sums, and those of the products' sizes."""
    values = []
    wide = {k: v.astype(float) if v.dtype != bool else v for k, v in data.arrays.items()}
    row, number = wide["row"][:, None], wide["number"]
    for run, _ in enumerate(factors):
        x, own = wide["shared", run], wide["own", run]
        used = wide["mask", run] & wide["some", run]
        wave = np.where(used, np.sin(row * own), 0)
        values.append(
            [x, own, wave, x * (own + row), np.exp(number * own), np.where(used, x, own),
             row * x * x, own - number]
        )  # fmt: skip
    found, sizes = [], []
    for run, *place in names:
        if place == ["N"]:
            found.append(data.lengths[run] * wide["row"])
            sizes.append(found[-1])
            continue
        i, j = place
        other = 1.0 if j == -1 else values[run][j]
        product = np.broadcast_to(values[run][i] * other, (data.batch, data.lengths[run]))
        found.append(product.sum(-1))
        sizes.append(abs(product).sum(-1))
    return np.stack(found, -1), np.stack(sizes, -1)


LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50)


@pytest.mark.parametrize("factors", [(2,), (4,), (8,), (3, 8), (8, 2, 6)], ids=str)
@EVERYWHERE
@BITS
def test_sums_are_numpys(factors: tuple[int, ...], bits: int, processor: Processor | None) -> None:
    kernel = summing(factors, bits, processor)
    pairs = [len(run.pairs) for run in kernel.machine.runs]
    target = kernel.target
    assert max(pairs) > target.accumulators or max(factors) < 5
    for k, n in enumerate(LENGTHS):
        lengths = [LENGTHS[(k + 5 * run) % len(LENGTHS)] for run in range(len(factors))]
        batch = 3 * k + 1
        data = sample_data(lengths, batch, bits)
        names = [f.name for f in kernel.machine.fields]
        out = torch.zeros(batch, len(names), dtype=torch.float64 if bits == 64 else torch.float32)
        bound = kernel.bind(lengths, tensors(data.arrays), {"out": out})
        assert bound.run(0, batch) >= -(-batch // target.lanes)
        wanted, sizes = sums_in_numpy(names, factors, data)
        # own − number cancels
        off = abs(out.numpy() - wanted) / (sizes + 1)
        assert off.max() <= 16 * np.finfo(DTYPES[bits]).eps, n


def test_layouts_of_data() -> None:
    # strides of every kind: transposed, repeated, every third, the same as a contiguous copy
    kernel = summing((4,), 64, None)
    data = sample_data([21], 40, 64)
    names = [f.name for f in kernel.machine.fields]

    def total(views: dict[Hashable, Tensor]) -> Tensor:
        out = torch.zeros(40, len(names), dtype=torch.float64)
        kernel.bind([21], views, {"out": out}).run(0, 40)
        return out

    plain = tensors(data.arrays)
    wanted = total(plain)
    spaced = dict(plain)
    for name, tensor in plain.items():
        if tensor.ndim == 2:
            spaced[name] = tensor.T.contiguous().T
        elif tensor.ndim == 1:
            spaced[name] = torch.stack([tensor, tensor, tensor], -1)[:, 1]
    assert spaced["own", 0].stride() == (1, 40) and spaced["row"].stride() == (3,)
    assert torch.equal(total(spaced), wanted)
    repeated = {**plain, ("own", 0): plain["own", 0][:1].expand(40, 21)}
    repeated["row"] = plain["row"][:1].expand(40)
    copied = {k: v.contiguous() for k, v in repeated.items()}
    assert torch.equal(total(repeated), total(copied))
    constant = {**plain, ("own", 0): plain["own", 0][:, :1].expand(40, 21)}
    assert torch.equal(total(constant), total({k: v.contiguous() for k, v in constant.items()}))
    outer = torch.zeros(40, 2 * len(names), dtype=torch.float64)
    kernel.bind([21], plain, {"out": outer[:, : len(names)]}).run(0, 40)
    assert torch.equal(outer[:, : len(names)], wanted) and not bool(outer[:, len(names) :].any())


# ------------------------------------------------------------------------------------------ state


def collatz() -> Machine:
    """Steps until a number is 1: each problem takes its own number of passes."""
    g = Graph()
    n, steps, largest = (g.leaf("state", name, PROBLEM) for name in ("n", "steps", "largest"))
    even = g.leaf("state_condition", "even", PROBLEM)
    one, half = g.const(1.0), g.const(0.5)

    def is_even(x: Node) -> Node:
        return g.apply("eq", g.apply("floor", g.mul(x, half)), g.mul(x, half))

    following = g.where(even, g.mul(n, half), g.add(g.scale(3.0, n), one))
    start = load(g, "start", PROBLEM)
    fields = [
        Field("n", start, following),
        Field("even", load(g, "start is even", PROBLEM), is_even(following)),
        Field("steps", g.const(0.0), g.add(steps, one)),
        Field("largest", start, g.apply("maximum", largest, following)),
        Field("start", start, g.leaf("state", "start", PROBLEM)),
    ]
    outputs = [
        Output("steps", ["steps"], "int64"),
        Output("small", ["steps"], "int8"),
        Output("wide", ["largest", "start", "steps"], "float64"),
        Output("narrow", ["largest", "start", "steps", "n", "even"], "float32"),
        Output("real", ["largest"], "real"),
    ]
    return Machine(
        graph=g,
        runs=[],
        fields=fields,
        finished=g.apply("eq", following, one),
        outputs=outputs,
        booleans=frozenset(["start is even"]),
        history=History(["n", "steps"], "steps"),
    )


def collatz_in_python(start: int) -> tuple[int, int, list[int]]:
    path = [start]
    while len(path) == 1 or path[-1] != 1:
        n = path[-1]
        path.append(n // 2 if n % 2 == 0 else 3 * n + 1)
    return len(path) - 1, max(path), path[1:]


@pytest.fixture(scope="module", params=[(64, None), (32, None), (64, AVX2)], ids=str)
def collatz_kernel(request: Any) -> Iterator[Kernel]:
    bits, processor = request.param
    if processor is not None and not has_avx2():
        pytest.skip("no AVX2")
    yield Kernel(collatz(), bits, processor)


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 31, 100])
def test_every_problem_ends_on_its_own(collatz_kernel: Kernel, batch: int) -> None:
    kernel = collatz_kernel
    real = torch.float64 if kernel.target.bits == 64 else torch.float32
    starts = np.random.default_rng(batch).integers(2, 60, batch)
    outputs = {
        "steps": torch.full((batch,), -1),
        "small": torch.full((batch,), -1, dtype=torch.int8),
        "wide": torch.zeros(batch, 3, dtype=torch.float64),
        "narrow": torch.zeros(batch, 5, dtype=torch.float32),
        "real": torch.zeros(batch, dtype=real),
    }
    views: dict[Hashable, Tensor] = {
        "start": torch.from_numpy(starts).to(real),
        "start is even": torch.from_numpy(starts % 2 == 0),
    }
    history = torch.full((batch, 130, 2), -5, dtype=real)
    bound = kernel.bind([], views, outputs)
    passes = bound.run(0, batch, history)
    truths = [collatz_in_python(int(n)) for n in starts]
    steps = [t[0] for t in truths]
    assert outputs["steps"].tolist() == steps and outputs["small"].tolist() == steps
    assert outputs["real"].tolist() == [t[1] for t in truths]
    wanted = [[t[1], n, t[0]] for t, n in zip(truths, starts.tolist(), strict=True)]
    assert outputs["wide"].tolist() == wanted
    assert outputs["narrow"].tolist() == [[*row, 1.0, 0.0] for row in wanted]
    # lanes never wait: as many passes as the fullest of them needs, not the sum of the slowest
    lanes = kernel.target.lanes
    assert max(max(steps), -(-sum(steps) // lanes)) <= passes <= sum(steps) // lanes + max(steps)
    for row, (_, _, path) in enumerate(truths):
        assert history[row, : len(path), 0].tolist() == path
        assert history[row, : len(path), 1].tolist() == list(range(1, len(path) + 1))
        assert bool((history[row, len(path) :] == -5).all())


@BITS
def test_fields_that_take_each_others_values(bits: int) -> None:
    # Fibonacci's numbers, and truth values that go round
    g = Graph()
    a, b, count = (g.leaf("state", name, PROBLEM) for name in ("a", "b", "count"))
    p, q = (g.leaf("state_condition", name, PROBLEM) for name in ("p", "q"))
    zero, one = g.const(0.0), g.const(1.0)
    wanted = load(g, "rounds", PROBLEM)
    fields = [
        Field("a", zero, b),
        Field("b", one, g.add(a, b)),
        Field("p", one, q),
        Field("q", zero, p),
        Field("count", zero, g.add(count, one)),
    ]
    outputs = [Output("out", ["a", "b", "p", "q"], "real")]
    finished = g.apply("ge", g.add(count, one), wanted)
    kernel = Kernel(Machine(g, [], fields, finished, outputs), bits)
    real = torch.float64 if bits == 64 else torch.float32
    rounds = torch.arange(1, 24)
    out = torch.zeros(23, 4, dtype=real)
    kernel.bind([], {"rounds": rounds.to(real)}, {"out": out}).run(0, 23)
    numbers = [0, 1]
    while len(numbers) < 30:
        numbers.append(numbers[-1] + numbers[-2])
    for n, row in zip(rounds.tolist(), out.tolist(), strict=True):
        assert row == [numbers[n], numbers[n + 1], float(n % 2 == 0), float(n % 2 == 1)]


@EVERYWHERE
@pytest.mark.parametrize("many", [False, True], ids=["registers", "buffer"])
def test_constant_factors_within_sums(many: bool, processor: Processor | None) -> None:
    # such as hand-made runs may have; those of Sums have 1 alone
    g = Graph()
    x = load(g, "x", SAMPLE)
    powers = [x]
    for _ in range(30 if many else 2):
        powers.append(g.mul(powers[-1], x))
    pairs = [(power, g.const(float(k))) for k, power in enumerate(powers)]
    run = Run(pairs)
    names = list(range(len(pairs)))
    fields = [Field(k, g.const(0.0), g.leaf("sum", (0, k), PROBLEM)) for k in names]
    machine = Machine(g, [run], fields, g.const(1.0), [Output("out", names, "real")])
    kernel = Kernel(machine, 64, processor)
    assert (len(pairs) > kernel.target.accumulators) == many
    values = np.random.default_rng(0).uniform(-1, 1, 19)
    out = torch.zeros(3, len(pairs), dtype=torch.float64)
    kernel.bind([19], tensors({"x": values}), {"out": out}).run(0, 3)
    wanted = [k * (values ** (k + 1)).sum() for k in names]
    np.testing.assert_allclose(out, np.broadcast_to(wanted, out.shape), rtol=1e-12, atol=1e-12)


def test_ranges_of_problems(collatz_kernel: Kernel) -> None:
    kernel = collatz_kernel
    real = torch.float64 if kernel.target.bits == 64 else torch.float32
    starts = torch.arange(2, 42)
    views: dict[Hashable, Tensor] = {"start": starts.to(real), "start is even": starts % 2 == 0}
    outputs = {
        "steps": torch.full((40,), -1),
        "small": torch.zeros(40, dtype=torch.int8),
        "wide": torch.zeros(40, 3, dtype=torch.float64),
        "narrow": torch.zeros(40, 5, dtype=torch.float32),
        "real": torch.zeros(40, dtype=real),
    }
    bound = kernel.bind([], views, outputs)
    history = torch.zeros(5, 130, 2, dtype=real)
    bound.run(11, 16, history)
    steps = outputs["steps"].tolist()
    assert steps[:11] == [-1] * 11 and steps[16:] == [-1] * 24
    assert steps[11:16] == [collatz_in_python(n)[0] for n in range(13, 18)]
    assert history[0, 0, 0] == 40 and history[4, 0, 0] == 52


# --------------------------------------------------------------------------- other processors


@pytest.fixture
def on_avx2(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switches to code for AVX2."""
    if not has_avx2():
        pytest.skip("no AVX2")

    def switch() -> None:
        monkeypatch.setattr(driver, "this_processor", lambda: AVX2)
        monkeypatch.setattr(fused_kernels, "_KERNELS", type(fused_kernels._KERNELS)())

    return switch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fits_by_code_for_avx2(dtype: torch.dtype, on_avx2: Callable[[], None]) -> None:
    x = torch.linspace(0, 4, 33, dtype=dtype)
    rates = torch.linspace(0.3, 2, 50, dtype=dtype)[:, None]
    y = 3 * torch.exp(-rates * x) + 0.5 + 0.03 * torch.cos(71 * x * rates)
    y[3, 4], y[7, 7] = torch.nan, torch.nan
    tight = dtype == torch.float64
    tolerances: dict[str, Any] = {"ftol": 1e-10 if tight else 1e-5, "xtol": 1e-8 if tight else 1e-4}

    def fits() -> list[Any]:
        found: list[Any] = []
        choices: list[dict[str, Any]] = [
            {},
            {"loss": "cauchy", "f_scale": 0.05, "bounds": ([0, 0.5, -1], [9, 1.5, 1])},
            {"sigma": 0.1 + x / 9, "method": "lm"},
        ]
        for options in choices:
            found.append(
                curve_fit(
                    lambda x, a, k, c: a * torch.exp(-k * x) + c, x, y, [2.0, 1.0, 0.0],
                    nan_policy="omit", full_output=True, engine="fused", **tolerances, **options,
                )[2]
            )  # fmt: skip
        for name, batch in (("W4", 3), ("W5", 5)):
            work = workloads.make(name, batch, dtype)
            found.append(
                least_squares(
                    work.residual, work.start, args=(work.y,), engine="fused", gtol=None,
                    **tolerances,
                )
            )  # fmt: skip
        return found

    wide = fits()
    on_avx2()
    narrow = fits()
    for one, other in zip(wide, narrow, strict=True):
        assert "znver3" in other.engine_reason
        assert (one.status == other.status).double().mean() >= 0.95
        assert (one.nfev == other.nfev).double().mean() >= 0.95
        both = one.success & other.success
        assert both.double().mean() > 0.9
        limit = 1e-7 if tight else 5e-3
        torch.testing.assert_close(one.x[both], other.x[both], rtol=limit, atol=limit)


@BITS
@pytest.mark.parametrize("processor", [ARM, AVX2], ids=["arm", "avx2"])
def test_code_for_other_processors_can_be_made(bits: int, processor: Processor) -> None:
    binding = driver._llvm()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu" if processor is ARM else "x86_64-unknown-linux-gnu"
    target = binding.Target.from_triple(triple).create_target_machine(
        cpu=processor.name, features=processor.features, opt=2
    )
    dtype = torch.float64 if bits == 64 else torch.float32
    work = workloads.make("W1", 4, dtype)
    least_squares(work.residual, work.start, args=(work.y,), engine="fused", loss="arctan")
    machines = [fused_kernels.kept()[-1].machine, summing((8, 2), bits, None).machine, collatz()]
    for machine in machines:
        text = llvm.source(machine, processor.target(bits, machine))
        module = binding.parse_assembly(text)
        module.triple = triple
        module.verify()
        assembly = target.emit_assembly(module)
        fused = "fmla" if processor is ARM else "vfmadd"
        assert fused in assembly or machine is machines[-1]
        # nothing is called: a call would spill all sums
        assert re.search(r"^\s+(bl|blr|callq)\s", assembly, re.MULTILINE) is None
