"""Elementary functions in primitive operations against mpmath."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from torchimize.kernel import coefficients
from torchimize.kernel.driver import Kernel, NoCompilerError, Processor, this_processor
from torchimize.kernel.elementary import ALIASES, BUILDERS, RANGE, ULP, expand
from torchimize.kernel.graph import PROBLEM, Graph, Node, reachable
from torchimize.kernel.machine import Field, Machine, Output, load

Array = NDArray[np.floating]

GARBAGE = 12345.678
"""What a primitive operation gives where nothing is promised."""


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its error."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def sum_to_odd(a: Array, b: Array) -> Array:
    """The sum, an inexact one rounded to the neighbour whose last bit is 1.

    Rounding that once more, to fewer digits, is as good as rounding the exact sum.
    """
    s, error = two_sum(a, b)
    even = s.view(np.int64) & 1 == 0
    towards = np.nextafter(s, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, towards, s)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product and its error, for sizes near 1."""
    p = a * b
    a1, b1 = (y * 134217729.0 - (y * 134217729.0 - y) for y in (a, b))
    a2, b2 = a - a1, b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a b + c, rounded once."""
    plain = a * b + c
    ordinary = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0) & (c != 0)
    (ma, ea), (mb, eb), (mc, ec) = (np.frexp(np.where(ordinary, x, 1.0)) for x in (a, b, c))
    scale = ea + eb
    ahead = ec - scale
    high, low = two_product(ma, mb)
    # further apart, only the sign of the lesser one matters
    other = np.ldexp(mc, np.clip(ahead, -140, 140))
    s, t = two_sum(other, low)
    u, v = two_sum(high, s)
    result = np.where(ahead > 140, c, np.ldexp(u + sum_to_odd(t, v), scale))
    return np.where(ordinary, result, plain)


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c, rounded once, in the arguments' precision."""
    if a.dtype == np.float64:
        return fma64(a, b, c)
    wide = [x.astype(np.float64) for x in (a, b, c)]
    return sum_to_odd(wide[0] * wide[1], wide[2]).astype(np.float32)


def ldexp(x: Array, n: Array) -> Array:
    """x 2ⁿ where that is an ordinary number."""
    result = np.ldexp(x, np.nan_to_num(n, posinf=9999, neginf=-9999).astype(np.int64))
    ordinary = np.isfinite(result) & (abs(result) >= np.finfo(x.dtype).tiny) & np.isfinite(n)
    return np.where(ordinary | np.isnan(x), result, x.dtype.type(GARBAGE))


def _of_ordinary(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def apply(x: Array) -> Array:
        ordinary = np.isfinite(x) & (abs(x) >= np.finfo(x.dtype).tiny)
        values = function(np.where(ordinary, x, x.dtype.type(1)))
        return np.where(ordinary, values, GARBAGE).astype(x.dtype)

    return apply


PRIMITIVES: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "exact_add": np.add, "exact_sub": np.subtract, "exact_mul": np.multiply,
    "fma": fma, "sqrt": np.sqrt, "abs": np.abs, "copysign": np.copysign, "floor": np.floor,
    "ceil": np.ceil, "trunc": np.trunc, "round": np.rint,
    "maximum": lambda a, b: np.where(a > b, a, b), "minimum": lambda a, b: np.where(a < b, a, b),
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
    "where": np.where, "isnan": np.isnan, "isfinite": np.isfinite, "ldexp": ldexp,
    "exp2": lambda x: np.exp2(x.astype(np.float64)).astype(x.dtype),
    "exponent": _of_ordinary(lambda x: np.frexp(x)[1] - 1.0),
    "mantissa": _of_ordinary(lambda x: 2 * np.frexp(x)[0]),
}  # fmt: skip


def flushed(x: Array) -> Array:
    """Numbers below the normal range become zero, as in a kernel."""
    if x.dtype == bool:
        return x
    return np.where(abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def evaluate(node: Node, values: dict[object, Array], bits: int) -> Array:
    """A node of primitive operations in NumPy.

    Parameters
    ----------
    node : Node
    values : dict
        What loads read, arrays of one shape, by name.
    bits : int
    """
    dtype = np.float32 if bits == 32 else np.float64
    done: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for inner in reachable([node]):
            if inner.op == "const":
                value = np.full_like(next(iter(values.values())), inner.value, dtype=dtype)
            elif inner.op == "load":
                value = flushed(values[inner.value])
            else:
                value = flushed(PRIMITIVES[inner.op](*(done[arg.serial] for arg in inner.args)))
                assert value.dtype in (dtype, bool), inner.op
            done[inner.serial] = value
    return done[node.serial]


def arguments(graph: Graph, op: str) -> tuple[Node, ...]:
    """Loads to apply an operation to."""
    count = 2 if op in ("pow", "atan2") else 1
    return tuple(load(graph, (op, k), PROBLEM) for k in range(count))


def by_numpy(op: str, bits: int, values: Sequence[Array]) -> Array:
    """An operation's expansion, interpreted."""
    graph = Graph()
    node = expand(graph, op, arguments(graph, op), bits)
    assert node is not None
    return evaluate(node, {(op, k): value for k, value in enumerate(values)}, bits)


@lru_cache
def kernel(bits: int, wide: bool) -> Kernel:
    """All operations in one compiled kernel: for this processor, or without its widest vectors."""
    try:
        processor = this_processor()
    except NoCompilerError as error:
        pytest.skip(str(error))
    if not wide:
        if not processor.scalef:
            pytest.skip("this processor has no wider vectors to do without")
        features = [
            f for f in processor.features.split(",") if "avx512" not in f and "evex" not in f
        ]
        without = ",".join([*features, "-avx512f", "-avx512vl", "-avx512dq", "-avx512bw"])
        processor = Processor("haswell", without, 32, scalef=False, x86=True)
    graph = Graph()
    fields = [
        Field(op, graph.const(0.0), graph.apply(op, *arguments(graph, op))) for op in BUILDERS
    ]
    outputs = [Output(op, [op], "real") for op in BUILDERS]
    return Kernel(Machine(graph, [], fields, graph.const(1.0), outputs), bits, processor)


def by_llvm(op: str, bits: int, values: Sequence[Array], wide: bool = True) -> Array:
    """An operation, compiled."""
    compiled = kernel(bits, wide)
    mine = {(op, k): torch.as_tensor(value) for k, value in enumerate(values)}
    number, dtype = len(values[0]), mine[op, 0].dtype
    idle = torch.ones(1, dtype=dtype).expand(number)
    views = {name: mine.get(name, idle) for name, _ in compiled.loads}
    results = {name: torch.empty(number, dtype=dtype) for name in BUILDERS}
    compiled.bind([], views, results).run(0, number)
    return results[op].numpy()


BACKENDS: dict[str, Callable[[str, int, Sequence[Array]], Array]] = {
    "numpy": by_numpy,
    "llvm": by_llvm,
    "llvm-narrow": lambda op, bits, values: by_llvm(op, bits, values, wide=False),
}

# ------------------------------------------------------------------------------- what is exact

TRUTH: dict[str, Callable[..., mpmath.mpf]] = {
    "exp": mpmath.exp, "expm1": mpmath.expm1, "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh, "sinh": mpmath.sinh, "cosh": mpmath.cosh, "log": mpmath.log,
    "log2": lambda x: mpmath.log(x) / mpmath.log(2), "log10": mpmath.log10,
    "log1p": mpmath.log1p, "asinh": mpmath.asinh, "acosh": mpmath.acosh, "atanh": mpmath.atanh,
    "pow": mpmath.power, "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan,
    "atan": mpmath.atan, "atan2": mpmath.atan2, "asin": mpmath.asin, "acos": mpmath.acos,
    "erf": mpmath.erf,
    "erfc": lambda x: mpmath.erfc(x) if abs(x) < 1e4 else mpmath.mpf(2 if x < 0 else 0),
    "lgamma": lambda x: mpmath.re(mpmath.loggamma(x)), "digamma": mpmath.digamma,
    "polygamma1": lambda x: mpmath.psi(1, x), "i0": lambda x: mpmath.besseli(0, x),
    "i0e": lambda x: mpmath.besseli(0, x) * mpmath.exp(-abs(x)),
    "i1": lambda x: mpmath.besseli(1, x),
    "i1e": lambda x: mpmath.besseli(1, x) * mpmath.exp(-abs(x)),
    "j0": lambda x: mpmath.besselj(0, x), "j1": lambda x: mpmath.besselj(1, x), "sign": mpmath.sign,
}  # fmt: skip

# (spread, from, to): sizes spread evenly in their logarithm, with either sign where a region is
# called 'sizes', positive where 'positive'; or values spread evenly. LARGE and SMALL are the limits
# of the precision, EXP the largest argument of exp with a finite value, and PERIODIC the range of
# the circular functions.
SMALL, LARGE, EXP, PERIODIC = "small", "large", "exp", "periodic"
LIMITS = {
    32: {SMALL: 2.0**-125, LARGE: 3.4e38, EXP: 88.7, PERIODIC: 2.0**16},
    64: {SMALL: 2.0**-1021, LARGE: 1.79e308, EXP: 709.7, PERIODIC: 2.0**40},
}
Region = tuple[str, float | str, float | str]
TINY_TO_1: list[Region] = [("sizes", SMALL, 1.0), ("even", -1.0, 1.0), ("below 1", 1e-7, 0.5)]
ALL_SIZES: list[Region] = [("sizes", SMALL, LARGE), ("even", -4.0, 4.0)]
POSITIVE: list[Region] = [("positive", SMALL, LARGE), ("even", 0.4, 2.2)]
REGIONS: dict[str, list[Region]] = {
    "exp": [("sizes", SMALL, EXP), ("even", -750.0, 750.0), ("even", -104.0, 104.0)],
    "expm1": [*ALL_SIZES, ("even", -50.0, EXP), ("even", -1.0, 1.0)],
    "sigmoid": [*ALL_SIZES, ("sizes", 1.0, EXP)],
    "tanh": [*ALL_SIZES, ("even", -1.0, 1.0)],
    "sinh": [*ALL_SIZES, ("sizes", 1.0, EXP), ("even", -720.0, 720.0), ("even", -91.0, 91.0)],
    "cosh": [*ALL_SIZES, ("sizes", 1.0, EXP), ("even", -720.0, 720.0), ("even", -91.0, 91.0)],
    "log": POSITIVE,
    "log2": POSITIVE,
    "log10": POSITIVE,
    "log1p": [("positive", SMALL, LARGE), ("even", -1.0, 2.0), ("sizes", SMALL, 1.0)],
    "asinh": ALL_SIZES,
    "acosh": [("positive", 1.0, LARGE), ("even", 1.0, 3.0), ("above 1", 1e-7, 1.0)],
    "atanh": TINY_TO_1,
    "sin": [("sizes", SMALL, PERIODIC), ("even", -10.0, 10.0)],
    "cos": [("sizes", SMALL, PERIODIC), ("even", -10.0, 10.0)],
    "tan": [("sizes", SMALL, PERIODIC), ("even", -10.0, 10.0)],
    "atan": ALL_SIZES,
    "asin": TINY_TO_1,
    "acos": TINY_TO_1,
    "erf": ALL_SIZES,
    "erfc": [*ALL_SIZES, ("even", 0.0, 30.0), ("even", 0.0, 10.0)],
    "lgamma": [("positive", SMALL, 1e36), ("even", 0.0, 5.0), ("even", -9.0, 0.0)],
    "digamma": [("positive", SMALL, 1e36), ("even", 0.0, 5.0), ("even", -9.0, 0.0)],
    "polygamma1": [("positive", 1e-18, 1e36), ("even", 0.0, 5.0), ("even", -9.0, 0.0)],
    "i0": [
        ("sizes", SMALL, EXP),
        ("even", -20.0, 20.0),
        ("even", -720.0, 720.0),
        ("even", 88.0, 93.0),
    ],
    "i0e": [("sizes", SMALL, 1e4), ("even", -20.0, 20.0)],
    "i1": [
        ("sizes", SMALL, EXP),
        ("even", -20.0, 20.0),
        ("even", -720.0, 720.0),
        ("even", 88.0, 93.0),
    ],
    "i1e": [("sizes", SMALL, 1e4), ("even", -20.0, 20.0)],
    "j0": [("sizes", SMALL, 1e4), ("even", -20.0, 20.0)],
    "j1": [("sizes", SMALL, 1e4), ("even", -20.0, 20.0)],
    "sign": ALL_SIZES,
}
SLOW = frozenset({"lgamma", "digamma", "polygamma1", "i0", "i0e", "i1", "i1e", "j0", "j1"})
"""Slow to compute exactly."""


def region(spread: str, lower: float, upper: float, count: int) -> Array:
    """Random arguments in a region."""
    random = np.random.default_rng(sum(spread.encode()) + round(abs(lower) + abs(upper)) % 2**31)
    if spread == "even":
        return random.uniform(lower, upper, count)
    sizes = np.exp2(random.uniform(math.log2(lower), math.log2(upper), count))
    if spread == "below 1":
        return 1 - sizes
    if spread == "above 1":
        return 1 + sizes
    return sizes * random.choice([-1.0, 1.0], count) if spread == "sizes" else sizes


def in_precision(values: Sequence[Array], bits: int) -> list[Array]:
    with np.errstate(over="ignore"):
        return [np.asarray(v).astype(np.float32 if bits == 32 else np.float64) for v in values]


def pairs(op: str, bits: int, count: int) -> list[Array]:
    """Arguments of a function of two."""
    random = np.random.default_rng(3)
    if op == "atan2":
        sizes = [region("sizes", 1e-30, 1e30, count), region("sizes", 1e-3, 1e3, count)]
        other = sizes[1] * random.uniform(-4, 4, count)
        near = [
            np.concatenate([sizes[0], sizes[1]]),
            np.concatenate([random.permutation(sizes[0]), other]),
        ]
        return in_precision(near, bits)
    # results all over the range and some beyond it, from bases near 1 and far from it
    top = 135 if bits == 32 else 1080
    small = LIMITS[bits][SMALL]
    bases = [
        region("positive", small, 1 / small, count),
        region("positive", 0.5, 2.0, count),
        1 + region("sizes", 1e-6, 0.3, count),
    ]
    (base,) = in_precision([np.concatenate(bases)], bits)
    logs = np.log2(base.astype(np.float64))
    exponent = random.uniform(-top, top, len(base)) / np.where(logs == 0, 1.0, logs)
    return in_precision([base, exponent], bits)


@lru_cache
def cases(op: str, bits: int) -> tuple[list[Array], Array, Array]:
    """Arguments, and exact values as sums of two."""
    count = 200 if op in SLOW else 600
    if op in ("pow", "atan2"):
        values = pairs(op, bits, count)
    else:
        limits = LIMITS[bits]
        parts = [
            region(spread, *(limits.get(end, end) for end in ends), count)  # type: ignore[call-overload]
            for spread, *ends in REGIONS[op]
        ]
        values = [flushed(v) for v in in_precision([np.concatenate(parts)], bits)]
    high, low = [], []
    with mpmath.workdps(40):
        for numbers in zip(*(v.tolist() for v in values), strict=True):
            exact = TRUTH[op](*map(mpmath.mpf, numbers))
            nearest = float(exact)
            high.append(nearest)
            low.append(float(exact - nearest) if math.isfinite(nearest) else 0.0)
    return values, np.array(high), np.array(low)


def last_place(op: str, bits: int, x: Array, exact: Array) -> Array:
    """The unit that errors are counted in."""
    size = abs(exact)
    x = abs(x.astype(np.float64)) if op in ("j0", "j1") else x.astype(np.float64)
    if op in ("lgamma", "digamma"):
        size = np.where(x < 0, np.maximum(size, np.maximum(1, np.log(np.maximum(-x, 1)))), size)
    if op in ("j0", "j1"):
        amplitude = np.minimum(1, np.sqrt(2 / (np.pi * np.maximum(x, 0.5))))
        size = np.where((op == "j0") | (x > 1), np.maximum(size, amplitude), size)
    with np.errstate(over="ignore"):
        return np.spacing(size.astype(np.float32 if bits == 32 else np.float64)).astype(np.float64)


def errors(op: str, bits: int, got: Array) -> Array:
    """Errors at the cases, in units in the last place."""
    values, high, low = cases(op, bits)
    limits = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        error = abs((got.astype(np.float64) - high) - low) / last_place(op, bits, values[0], high)
    # one place below overflow and underflow, either side of the limit will do
    ulp = ULP[op][bits]
    infinite = np.isinf(got) & (np.sign(got) == np.sign(high))
    error[infinite & (abs(high) > float(limits.max) * (1 - ulp * limits.eps))] = 0.0
    error[(abs(high) < 2.01 * limits.tiny) & (abs(got) < 2.01 * limits.tiny)] = 0.0
    return error


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("op", BUILDERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_is_as_stated(backend: str, op: str, bits: int) -> None:
    values, high, _ = cases(op, bits)
    found = errors(op, bits, BACKENDS[backend](op, bits, values))
    worst = int(np.argmax(np.where(np.isnan(found), np.inf, found)))
    assert found[worst] <= ULP[op][bits], ([v[worst] for v in values], high[worst])
    # a bound that says nothing would hold as well
    assert ULP[op][bits] == 0 or np.max(found) > 0.1 * ULP[op][bits]


NAN, INF = math.nan, math.inf
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(0, 1), (INF, INF), (-INF, 0), (1e4, INF), (-1e4, 0)],
    "expm1": [(0, 0), (INF, INF), (-INF, -1), (1e4, INF), (-1e4, -1)],
    "sigmoid": [(0, 0.5), (INF, 1), (-INF, 0), (1e4, 1), (-1e4, 0)],
    "tanh": [(0, 0), (INF, 1), (-INF, -1), (1e4, 1), (-1e4, -1)],
    "sinh": [(0, 0), (INF, INF), (-INF, -INF), (1e4, INF), (-1e4, -INF)],
    "cosh": [(0, 1), (INF, INF), (-INF, INF), (1e4, INF), (-1e4, INF)],
    "log": [(0, -INF), (1, 0), (INF, INF), (-1, NAN), (-INF, NAN)],
    "log2": [(0, -INF), (1, 0), (8, 3), (2**-20, -20), (INF, INF), (-1, NAN), (-INF, NAN)],
    "log10": [(0, -INF), (1, 0), (INF, INF), (-1, NAN), (-INF, NAN)],
    "log1p": [(0, 0), (-1, -INF), (INF, INF), (-1.5, NAN), (-INF, NAN)],
    "asinh": [(0, 0), (INF, INF), (-INF, -INF)],
    "acosh": [(1, 0), (INF, INF), (0.5, NAN), (-1, NAN), (-5, NAN), (-INF, NAN)],
    "atanh": [(0, 0), (1, INF), (-1, -INF), (1.5, NAN), (-2, NAN), (INF, NAN)],
    "sin": [(0, 0), (INF, NAN), (-INF, NAN), (1e30, NAN)],
    "cos": [(0, 1), (INF, NAN), (-INF, NAN), (1e30, NAN)],
    "tan": [(0, 0), (INF, NAN), (-INF, NAN), (1e30, NAN)],
    "atan": [(0, 0), (1, math.pi / 4), (INF, math.pi / 2), (-INF, -math.pi / 2)],
    "asin": [(0, 0), (1, math.pi / 2), (-1, -math.pi / 2), (1.5, NAN), (-INF, NAN)],
    "acos": [(0, math.pi / 2), (1, 0), (-1, math.pi), (1.5, NAN), (-1.5, NAN), (INF, NAN)],
    "erf": [(0, 0), (INF, 1), (-INF, -1), (1e4, 1)],
    "erfc": [(0, 1), (INF, 0), (-INF, 2), (1e4, 0), (-1e4, 2)],
    "lgamma": [(0, INF), (1, 0), (2, 0), (-1, INF), (-7, INF), (INF, INF), (-INF, INF)],
    "digamma": [(0, -INF), (-0.0, INF), (-1, NAN), (-7, NAN), (INF, INF), (-INF, NAN)],
    "polygamma1": [(0, INF), (-1, INF), (-7, INF), (INF, 0)],
    "i0": [(0, 1), (INF, INF), (-INF, INF), (1e4, INF)],
    "i0e": [(0, 1), (INF, 0), (-INF, 0)],
    "i1": [(0, 0), (INF, INF), (-INF, -INF), (-1e4, -INF)],
    "i1e": [(0, 0), (INF, 0), (-INF, 0)],
    "j0": [(0, 1), (INF, NAN), (-INF, NAN)],
    "j1": [(0, 0), (INF, NAN), (-INF, NAN)],
    "sign": [(0, 0), (-0.0, 0), (INF, 1), (-INF, -1), (2, 1), (-3, -1)],
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("op", [op for op in BUILDERS if op not in ("pow", "atan2")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_special_arguments(backend: str, op: str, bits: int) -> None:
    known = [*SPECIAL[op], (NAN, 0.0 if op == "sign" else NAN)]
    x, wanted = in_precision([np.array(column, float) for column in zip(*known, strict=True)], bits)
    got = BACKENDS[backend](op, bits, [x])
    # exact where the result is a whole number, but for a function that is a plain polynomial there
    tolerance = (
        ULP[op][bits] * np.spacing(abs(wanted)) * ((wanted != np.round(wanted)) | (op == "j0"))
    )
    with np.errstate(invalid="ignore"):
        right = (got == wanted) | (abs(got - wanted) <= tolerance)
    assert np.all(right | (np.isnan(got) & np.isnan(wanted))), list(
        zip(x, got, wanted, strict=True)
    )


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("op", ["pow", "atan2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_special_pairs(backend: str, op: str, bits: int) -> None:
    """Against C's functions, signs of zeros included."""
    sizes = [0.0, 1e-30, 0.5, 1.0, 1.5, 2.0, 3.0, 2.0**24 - 1, 2.0**25, 1e30, INF]
    signed = [*sizes, *(-size for size in sizes), NAN]
    first, second = in_precision([v.ravel() for v in np.meshgrid(signed, signed)], bits)
    with np.errstate(all="ignore"):
        exact = (np.power if op == "pow" else np.arctan2)(first.astype(float), second.astype(float))
        wanted = flushed(exact.astype(first.dtype))
        got = BACKENDS[backend](op, bits, [first, second])
        right = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
        right |= abs(got - wanted) <= ULP[op][bits] * np.spacing(abs(wanted))
    right |= np.isnan(got) & np.isnan(wanted)
    assert np.all(right), [
        pair
        for pair, good in zip(zip(first, second, got, wanted, strict=True), right, strict=True)
        if not good
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_interpreter_rounds_once(dtype: type[np.floating]) -> None:
    random = np.random.default_rng(0)
    a, b = (
        region("sizes", 1e-5, 1e5, 2000).astype(dtype),
        region("sizes", 1e-4, 1e4, 2000).astype(dtype),
    )
    apart = random.choice([0, 1e-16, 1e-10, 1e-3, 1, 1e10, 1e17], 2000) * random.normal(size=2000)
    c = (-(a * b) * (1 + apart)).astype(dtype)
    rows = zip(*(x.astype(float).tolist() for x in (a, b, c)), strict=True)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in rows]
    found = [Fraction(v) for v in fma(a, b, c).astype(float).tolist()]
    for number, (f, e) in enumerate(zip(found, exact, strict=True)):
        near = dtype(float(f))
        others = [Fraction(float(np.nextafter(near, dtype(way)))) for way in (-np.inf, np.inf)]
        assert abs(f - e) <= min(abs(other - e) for other in others), number


@pytest.mark.parametrize("exponent", [-2.5, 1 / 3, 11.0, 12.0, INF, -INF, NAN])
def test_power_with_a_constant_exponent(exponent: float) -> None:
    base = np.array([-INF, -7.25, -1.0, -0.5, -0.0, 0.0, 0.3, 1.0, 1.25, 9.0, INF, NAN])
    graph = Graph()
    node = expand(graph, "pow", (load(graph, "x", PROBLEM), graph.const(exponent)), 64)
    assert node is not None
    with np.errstate(all="ignore"):
        wanted = np.power(base, exponent)
    np.testing.assert_allclose(evaluate(node, {"x": base}, 64), wanted, rtol=4e-16)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("op", ["sin", "cos", "tan"])
def test_next_to_zeros_and_poles(op: str, bits: int) -> None:
    """Where the reduced argument is all rounding error, if the reduction is not exact."""
    count = 200
    quarters = np.random.default_rng(1).integers(1, int(RANGE[op][bits][1] / 2), count)
    with mpmath.workdps(60):
        (x,) = in_precision([np.array([float(n * mpmath.pi / 2) for n in quarters.tolist()])], bits)
        exact = [TRUTH[op](mpmath.mpf(v)) for v in x.tolist()]
        got = by_numpy(op, bits, [x]).tolist()
        error = [float(abs((mpmath.mpf(g) - e) / e)) for g, e in zip(got, exact, strict=True)]
    assert max(error) <= ULP[op][bits] * np.finfo(x.dtype).eps


@pytest.mark.parametrize("bits", [32, 64])
def test_every_expansion_is_primitive(bits: int) -> None:
    graph = Graph()
    for op in BUILDERS:
        node = expand(graph, op, arguments(graph, op), bits)
        assert node is not None
        found = {inner.op for inner in reachable([node])}
        assert found <= {*PRIMITIVES, "const", "load"}, op


def test_what_has_no_expansion() -> None:
    graph = Graph()
    x = graph.param(0)
    assert expand(graph, "sqrt", (x,), 64) is None
    assert expand(graph, "exp2", (x,), 64) is None
    assert expand(graph, "no such function", (x,), 64) is None
    for alias, op in ALIASES.items():
        assert expand(graph, alias, (x,), 64) is expand(graph, op, (x,), 64)


def test_every_operation_has_its_accuracy_stated() -> None:
    assert set(ULP) == set(RANGE) == set(BUILDERS)
    assert set(TRUTH) == {*REGIONS, "pow", "atan2"} == set(BUILDERS)


def test_shared_parts_are_shared() -> None:
    graph = Graph()
    x = graph.param(0)
    sine, cosine = (expand(graph, op, (x,), 64) for op in ("sin", "cos"))
    assert sine is not None and cosine is not None
    alone = len(reachable([sine])), len(reachable([cosine]))
    assert len(reachable([sine, cosine])) < 0.7 * sum(alone)


@pytest.mark.parametrize(("bits", "degree", "bound"), [(32, 6, 4e-9), (64, 11, 6e-18)])
def test_polynomial_of_exp2(bits: int, degree: int, bound: float) -> None:
    table = coefficients.EXP2[bits]
    assert len(table) == degree + 1 and table[0] == 1.0
    with mpmath.workdps(40):
        points = [mpmath.mpf(k) / 200 - mpmath.mpf(1) / 2 for k in range(201)]
        worst = max(abs(mpmath.polyval(table[::-1], f) / mpmath.mpf(2) ** f - 1) for f in points)
    assert bound / 3 < worst < bound


def fitting() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "fit_coefficients.py"
    spec = importlib.util.spec_from_file_location("fit_coefficients", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", [32, 64])
def test_script_derives_the_tables(bits: int) -> None:
    script = fitting()
    for table in script.TABLES:
        if table.name in ("EXP2", "EXPM1", "SINH", "COS"):
            found, _ = script.fit(table, bits)
            assert tuple(found) == getattr(coefficients, table.name)[bits]


def test_fits_are_best() -> None:
    """The error of a best polynomial alternates between its extremes (Chebyshev)."""
    script = fitting()
    table = next(t for t in script.TABLES if t.name == "ATAN")
    problem = script.Fit(table, 32)
    polynomial, greatest = problem.best()
    values = [
        float(w * (mpmath.polyval(polynomial[::-1], x) - v) / greatest)
        for x, v, w in zip(problem.points, problem.values, problem.weights, strict=True)
    ]
    extremes = [v for v in values if abs(v) > 0.999]
    changes = sum(a * b < 0 for a, b in pairwise(extremes))
    assert changes >= table.degree[32] + 1
