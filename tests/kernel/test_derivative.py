"""Derivatives on the graph: every rule against torch.func.jvp, central differences and mpmath."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mpmath
import pytest
import torch
from torch import Tensor

from torchimize.kernel.derivative import (
    RULES,
    SUPPORTED_CONSTANT,
    UnknownDerivativeError,
    forward,
    has_derivative,
)
from torchimize.kernel.graph import Graph, Index, Node, reachable
from torchimize.kernel.torch_ops import OPERATIONS, Program

Build = Callable[..., Node]


def slopes(build: Build, rows: Sequence[Sequence[float]]) -> list[Tensor | None]:
    """Derivatives of ``build(g, *params)`` at each row: per parameter (A,), None where zero."""
    params = torch.tensor(rows, dtype=torch.float64)
    g = Graph()
    output = build(g, *(g.param(j) for j in range(params.shape[1])))
    columns = forward(g, output, params.shape[1])
    given = Program([c for c in columns if c is not None]).run(params, [], 1)
    values = iter(v.expand(len(rows), 1)[:, 0] for v in given)
    return [None if c is None else next(values) for c in columns]


def slope(build: Build, *values: float) -> list[float | None]:
    """The same at one point, as numbers."""
    return [None if s is None else float(s) for s in slopes(build, [values])]


def by_jvp(function: Callable[..., Tensor], rows: Sequence[Sequence[float]]) -> list[Tensor]:
    """What torch says of a function of P tensors (A,)."""
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    found = []
    for j in range(len(columns)):
        tangents = tuple(torch.full_like(c, float(k == j)) for k, c in enumerate(columns))
        found.append(torch.func.jvp(function, columns, tangents)[1])
    return found


DOMAINS: dict[tuple[str, ...], list[float]] = {
    ("neg", "exp", "exp2", "expm1", "sin", "cos"): [-3.0, -0.4, 0.0, 0.7, 2.0],
    ("log", "log2", "log10", "sqrt"): [1e-8, 0.3, 1.0, 7.0, 1e6],
    ("log1p",): [-0.9, -1e-9, 0.0, 3.0],
    ("abs",): [-2.0, -1e-3, 1e-3, 5.0],
    ("tan",): [-1.4, -0.2, 0.0, 1.1, 2.5],
    ("asin", "acos", "atanh"): [-0.99, -0.3, 0.0, 0.5, 0.999],
    ("atan", "asinh"): [-20.0, -0.5, 0.0, 1.0, 30.0],
    ("sinh", "cosh", "tanh", "sigmoid"): [-4.0, -0.5, 0.0, 1.0, 3.0],
    ("acosh",): [1.001, 1.5, 3.0, 50.0],
    ("erf", "erfc"): [-3.0, -0.5, 0.0, 0.3, 2.0, 5.0],
    ("lgamma",): [-2.5, -0.3, 0.2, 1.0, 1.4616, 3.0, 40.0],
    ("digamma", "trigamma", "polygamma2", "polygamma3", "polygamma4"): [0.2, 1.0, 2.5, 40.0],
    ("i0", "i0e", "i1", "i1e"): [-3.0, -0.5, 0.1, 2.0, 9.0],
    ("erfcx",): [-2.0, -0.5, 0.0, 0.3, 5.0, 40.0],
    ("erfinv",): [-0.99, -0.3, 0.0, 0.5, 0.999],
    ("ndtri",): [1e-6, 0.2, 0.5, 0.9, 0.999],
    ("log_ndtr",): [-30.0, -5.0, -0.5, 0.0, 0.4, 3.0],
}
"""Where functions of one argument are smooth."""

SPECIAL: dict[str, tuple[Callable[..., object], list[float]]] = {
    "bessel_j0": (lambda x: mpmath.besselj(0, x), [-3.0, 0.0, 0.5, 7.0, 20.0]),
    "bessel_j1": (lambda x: mpmath.besselj(1, x), [-3.0, 0.0, 0.5, 7.0, 20.0]),
    "bessel_y0": (lambda x: mpmath.bessely(0, x), [0.1, 1.0, 7.0, 20.0]),
    "bessel_y1": (lambda x: mpmath.bessely(1, x), [0.1, 1.0, 7.0, 20.0]),
    "bessel_k0": (lambda x: mpmath.besselk(0, x), [0.1, 1.0, 7.0, 20.0]),
    "bessel_k1": (lambda x: mpmath.besselk(1, x), [0.1, 1.0, 7.0, 20.0]),
    "scaled_bessel_k0": (lambda x: mpmath.besselk(0, x) * mpmath.exp(x), [0.1, 1.0, 7.0, 20.0]),
    "scaled_bessel_k1": (lambda x: mpmath.besselk(1, x) * mpmath.exp(x), [0.1, 1.0, 7.0, 20.0]),
    "spherical_bessel_j0": (mpmath.sinc, [-4.0, -0.3, 0.0, 1e-5, 1.0, 9.0]),
    "airy_ai": (mpmath.airyai, [-12.0, -3.0, 0.0, 0.7, 5.0]),
    "airy_ai_slope": (lambda x: mpmath.airyai(x, derivative=1), [-12.0, -3.0, 0.0, 0.7, 5.0]),
    "cube_root": (lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)), [-8.0, -0.1, 0.2, 27.0]),
}
"""Functions that torch does not differentiate, by another name, and where they are smooth."""

SPECIAL_OF_TWO: dict[str, tuple[Callable[..., object], list[tuple[float, float]]]] = {
    "gammainc": (
        lambda a, x: mpmath.gammainc(a, 0, x, regularized=True),
        [(0.5, 0.2), (1.0, 1.0), (3.0, 2.0), (7.5, 12.0)],
    ),
    "gammaincc": (
        lambda a, x: mpmath.gammainc(a, x, mpmath.inf, regularized=True),
        [(0.5, 0.2), (1.0, 1.0), (3.0, 2.0), (7.5, 12.0)],
    ),
    "zeta": (mpmath.zeta, [(1.5, 0.3), (2.0, 1.0), (6.0, 4.0)]),
    "faddeeva_real": (lambda x, y: _faddeeva(x, y).real, [(0.0, 1.0), (2.0, 0.1), (-9.0, 3.0)]),
    "faddeeva_imag": (lambda x, y: _faddeeva(x, y).imag, [(0.0, 1.0), (2.0, 0.1), (-9.0, 3.0)]),
}
"""The same of two arguments."""


def _faddeeva(x: object, y: object) -> mpmath.mpc:
    z = mpmath.mpc(x, y)
    return mpmath.exp(-z * z) * mpmath.erfc(mpmath.mpc(0, -1) * z)


UNARY = {op: values for ops, values in DOMAINS.items() for op in ops}

BINARY: dict[str, list[tuple[float, float]]] = {
    "add": [(2.0, -3.0), (0.0, 0.5), (-1.0, 0.0)],
    "sub": [(2.0, -3.0), (0.0, 0.5), (-1.0, 0.0)],
    "mul": [(2.0, -3.0), (0.0, 0.5), (-1.0, 0.0)],
    "div": [(2.0, -3.0), (0.0, 0.5), (-1.0, 4.0)],
    "pow": [(2.0, -3.0), (0.5, 0.7), (3.0, 0.0), (1.0, 5.0), (7.0, 1.5)],
    "atan2": [(1.0, 2.0), (-1.0, 2.0), (1.0, -2.0), (-1.0, -2.0), (0.0, 1.0), (1.0, 0.0)],
    "maximum": [(1.0, 2.0), (2.0, 1.0), (-1.0, -3.0), (0.0, 1.0)],
    "minimum": [(1.0, 2.0), (2.0, 1.0), (-1.0, -3.0), (0.0, 1.0)],
    "fmod": [(5.0, 3.0), (-5.0, 3.0), (5.5, -2.0), (0.5, 2.0)],
    "remainder": [(5.0, 3.0), (-5.0, 3.0), (5.5, -2.0), (0.5, 2.0)],
}


def test_every_rule_is_tested_here() -> None:
    assert set(RULES) == {*UNARY, *BINARY, *SPECIAL, *SPECIAL_OF_TWO, "where", "copysign"}
    assert set(RULES) <= set(OPERATIONS)


@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_argument(op: str) -> None:
    rows = [[v] for v in UNARY[op]]
    function = OPERATIONS[op]
    (found,) = slopes(lambda g, a: g.apply(op, a), rows)
    assert found is not None
    (wanted,) = by_jvp(function, rows)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    a = torch.tensor(rows, dtype=torch.float64)[:, 0]
    step = 1e-6 * torch.where(a == 0, 1.0, a.abs())
    differences = (function(a + step) - function(a - step)) / (2 * step)
    torch.testing.assert_close(found, differences, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", UNARY)
def test_the_chain_rule(op: str) -> None:
    # f(u · v) with u · v in the middle of the domain
    middle = UNARY[op][len(UNARY[op]) // 2] + 0.05
    if op in ("log1p", "abs"):
        middle += 1.0
    rows = [[2.0, middle / 2.0]]
    found = slopes(lambda g, a, b: g.apply(op, g.mul(a, b)), rows)
    wanted = by_jvp(lambda a, b: OPERATIONS[op](a * b), rows)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", BINARY)
def test_functions_of_two_arguments(op: str) -> None:
    rows = BINARY[op]
    both = slopes(lambda g, a, b: g.apply(op, a, b), rows)
    wanted = by_jvp(OPERATIONS[op], rows)
    for found, other in zip(both, wanted, strict=True):
        assert found is not None
        # a sum has slope 1, a number that stands for all rows
        torch.testing.assert_close(found, other, rtol=1e-13, atol=0.0)
    # one of them a number
    for a, b in rows:
        first, none = slope(lambda g, p, q, b=b: g.apply(op, p, g.const(b)), a, b)
        assert none is None
        if (op, b) == ("pow", 0.0):
            assert first is None, "a**0 is 1"
            continue
        assert first is not None
        second = slope(lambda g, p, q, a=a: g.apply(op, g.const(a), q), a, b)[1]
        assert second is not None
        place = rows.index((a, b))
        assert first == pytest.approx(float(wanted[0][place]), rel=1e-13)
        assert second == pytest.approx(float(wanted[1][place]), rel=1e-13)


@pytest.mark.parametrize("op", BINARY)
def test_functions_of_one_parameter_twice(op: str) -> None:
    rows = [[0.7], [1.9]]
    shifted = slopes(lambda g, a: g.apply(op, g.mul(a, a), g.add(a, g.const(0.25))), rows)[0]
    (wanted,) = by_jvp(lambda a: OPERATIONS[op](a * a, a + 0.25), rows)
    assert shifted is not None
    torch.testing.assert_close(shifted, wanted, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("erfc", mpmath.erfc),
        ("erf", mpmath.erf),
        ("lgamma", lambda x: mpmath.log(abs(mpmath.gamma(x)))),
        ("i0", lambda x: mpmath.besseli(0, x)),
        ("i0e", lambda x: mpmath.besseli(0, x) * mpmath.exp(-abs(x))),
        ("expm1", mpmath.expm1),
        ("acosh", mpmath.acosh),
        ("atanh", mpmath.atanh),
        ("i1", lambda x: mpmath.besseli(1, x)),
        ("i1e", lambda x: mpmath.besseli(1, x) * mpmath.exp(-abs(x))),
        ("trigamma", lambda x: mpmath.polygamma(1, x)),
        ("polygamma4", lambda x: mpmath.polygamma(4, x)),
        ("erfcx", lambda x: mpmath.exp(x * x) * mpmath.erfc(x)),
        ("log_ndtr", lambda x: mpmath.log(mpmath.erfc(-x / mpmath.sqrt(2)) / 2)),
    ],
)
def test_slopes_to_all_digits(op: str, function: Callable[[object], object]) -> None:
    values = UNARY[op]
    (found,) = slopes(lambda g, a: g.apply(op, a), [[v] for v in values])
    assert found is not None
    with mpmath.workdps(40):
        wanted = [float(mpmath.diff(function, mpmath.mpf(v))) for v in values]
    # the special functions themselves have about this precision
    assert found.tolist() == pytest.approx(wanted, rel=1e-11, abs=1e-13)


def test_slope_of_digamma() -> None:
    (found,) = slopes(lambda g, a: g.apply("digamma", a), [[v] for v in UNARY["digamma"]])
    assert found is not None
    with mpmath.workdps(40):
        wanted = [float(mpmath.polygamma(1, v)) for v in UNARY["digamma"]]
    # as good as torch's trigamma is
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("op", SPECIAL)
def test_special_functions(op: str) -> None:
    function, values = SPECIAL[op]
    (found,) = slopes(lambda g, a: g.apply(op, a), [[v] for v in values])
    assert found is not None
    with mpmath.workdps(40):
        wanted = [float(mpmath.diff(function, mpmath.mpf(v))) for v in values]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("op", SPECIAL_OF_TWO)
def test_special_functions_of_two_arguments(op: str) -> None:
    function, rows = SPECIAL_OF_TWO[op]
    both = slopes(lambda g, a, b: g.apply(op, a, b), rows)
    for place, (found, orders) in enumerate(zip(both, [(1, 0), (0, 1)], strict=True)):
        assert found is not None
        with mpmath.workdps(40):
            points = [tuple(mpmath.mpf(v) for v in row) for row in rows]
            wanted = [float(mpmath.re(mpmath.diff(function, p, orders))) for p in points]
        # derivatives by an order are differences
        precision = 1e-9 if op[0] != "f" and place == 0 else 1e-12
        assert found.tolist() == pytest.approx(wanted, rel=precision, abs=1e-13)


def test_incomplete_gamma_function_at_the_origin() -> None:
    # its slope there is that of x**a/Γ(a + 1): infinite, 1, 0
    found = slopes(lambda g, a, x: g.apply("gammainc", a, x), [(0.5, 0.0), (1.0, 0.0), (2.0, 0.0)])
    assert found[1] is not None
    assert found[1].tolist() == [math.inf, 1.0, 0.0]


def test_a_ratio_of_vanishing_numbers() -> None:
    # density over distribution, far out: 40.02493...
    (found,) = slope(lambda g, a: g.apply("log_ndtr", a), -40.0)
    with mpmath.workdps(40):
        x = mpmath.mpf(-40)
        wanted = mpmath.npdf(x) / mpmath.ncdf(x)
    assert found == pytest.approx(float(wanted), rel=1e-14)


# ------------------------------------------------------------------------- no influence, no rule


def test_no_influence_is_none() -> None:
    g = Graph()
    a, c = g.param(0), g.param(2)
    x = g.load(0, (Index(0, 0, 1),))
    output = g.add(g.mul(a, g.apply("exp", x)), g.apply("floor", c))
    first, second, third = forward(g, output, 3)
    assert first is g.apply("exp", x), "the slope of a·e^x is the node e^x itself"
    assert second is None and third is None
    assert forward(g, x, 2) == [None, None] and forward(g, g.const(3.0), 1) == [None]
    assert forward(g, a, 2) == [g.const(1.0), None]


def test_what_has_a_derivative() -> None:
    g = Graph()
    a, x = g.param(3), g.load(0, (Index(0, 0, 1),))
    zero = g.const(0.0)
    steps = [g.apply("floor", a), g.apply("gt", a, x), g.where(g.apply("gt", a, x), x, zero), x]
    assert [has_derivative(node) for node in steps] == [False] * 4
    slopes = [a, g.mul(a, x), g.where(g.apply("gt", x, zero), a, x), g.mul(a, g.apply("sign", a))]
    assert [has_derivative(node) for node in slopes] == [True] * 4


@pytest.mark.parametrize("op", ["floor", "ceil", "round", "trunc", "sign"])
def test_steps_have_no_slope(op: str) -> None:
    assert slope(lambda g, a: g.apply(op, a), 0.7) == [None]
    assert slope(lambda g, a: g.mul(g.apply(op, a), a), 1.7) == [float(OPERATIONS[op](
        torch.tensor(1.7)
    ))]  # fmt: skip


def test_whole_quotients_have_no_slope() -> None:
    assert slope(lambda g, a, b: g.apply("floor_divide", a, b), 7.0, 2.0) == [None, None]


@pytest.mark.parametrize("op", ["eq", "ne", "lt", "le", "gt", "ge", "and", "or"])
def test_truth_values_have_no_slope(op: str) -> None:
    g = Graph()
    assert forward(g, g.apply(op, g.param(0), g.param(1)), 2) == [None, None]
    assert forward(g, g.apply("not", g.apply(op, g.param(0), g.param(1))), 2) == [None, None]
    assert op in SUPPORTED_CONSTANT


def test_unknown_operations_raise() -> None:
    g = Graph()
    strange = g.apply("polygamma5", g.param(0))
    with pytest.raises(UnknownDerivativeError, match="polygamma5"):
        forward(g, strange, 1)
    # where it matters only
    assert forward(g, g.mul(g.apply("polygamma5", g.const(2.0)), g.param(0)), 1) != [None]
    assert forward(g, strange, 0) == []


def test_shared_expressions_are_shared() -> None:
    # the exponential and its argument serve the value and all columns
    g = Graph()
    amplitude, mean, width = (g.param(j) for j in range(3))
    x = g.load(0, (Index(0, 0, 1),))
    u = g.div(g.sub(x, mean), width)
    output = g.mul(amplitude, g.apply("exp", g.scale(-0.5, g.mul(u, u))))
    columns = [c for c in forward(g, output, 3) if c is not None]
    assert len(columns) == 3
    assert sum(node.op == "exp" for node in reachable([output, *columns])) == 1


# ----------------------------------------------------------------------------- kinks and corners


def test_where_takes_the_branchs_slope() -> None:
    def build(g: Graph, a: Node, b: Node) -> Node:
        return g.where(g.apply("gt", a, b), g.mul(a, a), g.apply("exp", b))

    assert slope(build, 3.0, 1.0) == [6.0, 0.0]
    assert slope(build, 1.0, 2.0) == [0.0, pytest.approx(math.exp(2))]
    # equal: the condition does not hold
    assert slope(build, 1.0, 1.0) == [0.0, pytest.approx(math.e)]


def test_where_hides_the_other_branchs_infinity() -> None:
    def build(g: Graph, a: Node) -> Node:
        safe = g.apply("gt", a, g.const(0.0))
        return g.where(safe, g.apply("sqrt", a), g.scale(3.0, a))

    assert slope(build, 0.0) == [3.0] and slope(build, -1.0) == [3.0]
    assert slope(build, 4.0) == [0.25]


@pytest.mark.parametrize(
    ("op", "function"), [("maximum", torch.maximum), ("minimum", torch.minimum)]
)
def test_slope_halves_at_ties(op: str, function: Callable[..., Tensor]) -> None:
    assert slope(lambda g, a, b: g.apply(op, a, b), 2.0, 2.0) == [0.5, 0.5]
    rows = [(2.0, 2.0), (1.0, 2.0), (3.0, 2.0)]
    found = slopes(lambda g, a, b: g.apply(op, g.mul(a, b), g.add(a, b)), rows)
    wanted = by_jvp(lambda a, b: function(a * b, a + b), rows)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_copysign_takes_the_slope_of_the_size() -> None:
    rows = [(1.0, -2.0), (-3.0, -2.0), (-3.0, 4.0), (0.0, -1.0)]
    size, sign = slopes(lambda g, a, b: g.apply("copysign", a, b), rows)
    assert size is not None and size.tolist() == [-1.0, 1.0, -1.0, 0.0]
    assert sign is None
    assert torch.equal(size, by_jvp(torch.copysign, rows)[0])


def test_abs_is_flat_at_zero() -> None:
    assert slope(lambda g, a: g.apply("abs", a), 0.0) == [0.0]
    assert float(by_jvp(torch.abs, [[0.0]])[0]) == 0.0


POWERS_AT_CORNERS = [
    *((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.0, 2.0), (0.0, -1.0), (0.0, 3.5)),
    *((-2.0, 2.0), (-2.0, 3.0), (-2.0, 0.5), (3.0, 0.0), (1.0, 0.0), (math.inf, -1.0)),
]


@pytest.mark.parametrize(("base", "exponent"), POWERS_AT_CORNERS)
def test_powers_of_two_parameters_as_torch_has_them(base: float, exponent: float) -> None:
    found = slope(lambda g, a, b: g.apply("pow", a, b), base, exponent)
    both = torch.tensor([base, exponent], dtype=torch.float64).requires_grad_()
    # backward: torch's forward mode would add 0 · NaN from the other argument
    (wanted,) = torch.autograd.grad(torch.pow(both[0], both[1]), both)
    wanted = wanted.tolist()
    assert found == pytest.approx(wanted, rel=1e-14, nan_ok=True)


def test_zero_to_a_power_of_a_parameter() -> None:
    # 0**b is 0 for all b > 0, with no slope; log 0 must not make it NaN
    assert slope(lambda g, b: g.apply("pow", g.const(0.0), b), 2.0) == [0.0]
    # x**b with data x = 0
    g = Graph()
    (column,) = forward(g, g.apply("pow", g.load(0, (Index(0, 0, 1),)), g.param(0)), 1)
    assert column is not None
    x = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    (found,) = Program([column]).run(torch.tensor([[1.5]], dtype=torch.float64), [x], 4)
    wanted = [0.0] + [v**1.5 * math.log(v) for v in (0.5, 1.0, 2.0)]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-15)


def test_a_parameter_to_powers_of_data() -> None:
    # a**k for k = 0, 1, 2 at a = 0: slopes 0, 1, 0, and no NaN from 0 · 0**−1
    g = Graph()
    (column,) = forward(g, g.apply("pow", g.param(0), g.load(0, (Index(0, 0, 1),))), 1)
    assert column is not None
    k = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    (found,) = Program([column]).run(torch.tensor([[0.0], [3.0]], dtype=torch.float64), [k], 3)
    assert found.tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 6.0]]


@pytest.mark.parametrize("exponent", [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0, 9.0])
def test_constant_powers(exponent: float) -> None:
    rows = [[0.3], [1.0], [4.0]]
    (found,) = slopes(lambda g, a: g.apply("pow", a, g.const(exponent)), rows)
    if exponent == 0.0:
        assert found is None
        return
    assert found is not None
    wanted = [exponent * v ** (exponent - 1) for (v,) in rows]
    assert found.expand(3).tolist() == pytest.approx(wanted, rel=1e-14)


def test_quotients_of_huge_numbers_do_not_overflow() -> None:
    # a′/b − a b′/b² would square b
    assert slope(lambda g, a, b: g.div(a, b), 1e200, 1e200) == [1e-200, -1e-200]
