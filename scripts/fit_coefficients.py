"""Fit every polynomial of the elementary functions and rewrite the module that holds them.

    python scripts/fit_coefficients.py            rewrites torchimize/kernel/coefficients.py
    python scripts/fit_coefficients.py ERF LOG    prints these tables only

A table is the polynomial P whose greatest weighted error |w(x) (P(x) − f(x))| on an interval is
least, found by exchange (Remez's second algorithm) in 50 digits. The coefficients are then rounded
to the precision they are used in, lowest first, each time followed by a new fit of those above it,
which makes up for most of what rounding costs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mpmath
from mpmath import mp, mpf

DIGITS = 50
mp.dps = DIGITS
POINTS_PER_EXTREMUM = 24
OUTPUT = Path(__file__).resolve().parents[1] / "torchimize" / "kernel" / "coefficients.py"

Real = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Table:
    """What to fit.

    Attributes
    ----------
    name : str
        Of the table in the module.
    formula : str
        What the polynomial P stands for.
    function : callable
        f, the function that P approaches.
    weight : callable
        w, so that w (P − f) is the error that counts.
    interval : tuple of two numbers
    degree : dict
        Of P, by bits.
    head : tuple of float
        Coefficients known beforehand, written before those of P.
    """

    name: str
    formula: str
    function: Real
    weight: Real
    interval: tuple[mpf | float, mpf | float]
    degree: dict[int, int]
    head: tuple[float, ...] = ()
    intervals: dict[int, tuple[mpf | float, mpf | float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """A number as an unevaluated sum of numbers of one precision, greatest first."""

    name: str
    formula: str
    value: mpf
    count: int


def rounded(value: mpf, bits: int) -> mpf:
    """The nearest number of that many bits' floating format."""
    with mp.workprec(24 if bits == 32 else 53):
        return +value


class Fit:
    """Best polynomials on one interval; the function is evaluated once, on a grid.

    Parameters
    ----------
    table : Table
    bits : int
    """

    def __init__(self, table: Table, bits: int) -> None:
        lower, upper = (mpf(end) for end in table.intervals.get(bits, table.interval))
        count = POINTS_PER_EXTREMUM * (table.degree[bits] + 2)
        middle, half = (lower + upper) / 2, (upper - lower) / 2
        self.points = [middle - half * mpmath.cos(mp.pi * k / (count - 1)) for k in range(count)]
        # a removable singularity at zero is stepped around
        near = mpf(10) ** -(DIGITS // 2)
        at = [x if abs(x) > near else near for x in self.points]
        with mp.workdps(3 * DIGITS):
            self.values = [table.function(x) for x in at]
            self.weights = [abs(table.weight(x)) for x in at]
        self.degree = table.degree[bits]

    def best(self, fixed: Sequence[mpf] = ()) -> tuple[list[mpf], mpf]:
        """All coefficients, the first ones as given, and the greatest weighted error."""
        start = len(fixed)
        number = self.degree + 1 - start
        target, weight = list(self.values), list(self.weights)
        usable = list(range(len(self.points)))
        if start:
            usable = [k for k in usable if self.points[k] != 0]
            for k in usable:
                x = self.points[k]
                power = x**start
                target[k] = (self.values[k] - mpmath.polyval(fixed[::-1], x)) / power
                weight[k] = self.weights[k] * abs(power)
        # where the weight vanishes nothing is asked of the polynomial
        least = max(weight[k] for k in usable) * mpf(10) ** -(DIGITS // 3)
        usable = [k for k in usable if weight[k] > least]
        last = len(usable) - 1
        if number == 0:
            return list(fixed), max(abs(weight[k] * target[k]) for k in usable)
        chosen = [usable[round(last * k / number)] for k in range(number + 1)]
        for _ in range(60):
            knots, divided, level = self._levelled(chosen, target, weight)
            errors = {}
            for k in usable:
                value = divided[-1]
                for knot, d in zip(knots[-2::-1], divided[-2::-1], strict=True):
                    value = value * (self.points[k] - knot) + d
                errors[k] = weight[k] * (value - target[k])
            extrema = _alternating([(errors[k], k) for k in usable], number + 1)
            worst = max(abs(e) for e, _ in extrema)
            fresh = [k for _, k in extrema]
            if fresh == chosen or worst <= abs(level) * mpf("1.0005"):
                break
            chosen = fresh
        return list(fixed) + _monomials(knots, divided), worst

    def error(self, coefficients: Sequence[mpf]) -> mpf:
        """The greatest weighted error of a polynomial."""
        known = zip(self.points, self.values, self.weights, strict=True)
        return max(abs(w * (mpmath.polyval(coefficients[::-1], x) - v)) for x, v, w in known)

    def _levelled(
        self, chosen: list[int], target: list[mpf], weight: list[mpf]
    ) -> tuple[list[mpf], list[mpf], mpf]:
        """Newton's form of the polynomial whose error alternates on the chosen points."""
        points = [self.points[k] for k in chosen]
        ups = [(-1) ** i / weight[k] for i, k in enumerate(chosen)]
        values = _divided(points, [target[k] for k in chosen])
        steps = _divided(points, ups)
        level = -values[-1] / steps[-1]
        divided = [v + level * s for v, s in zip(values, steps, strict=True)]
        return points[:-1], divided[:-1], level


def _divided(points: list[mpf], values: list[mpf]) -> list[mpf]:
    """Divided differences of Newton's form."""
    table = list(values)
    for order in range(1, len(points)):
        for i in range(len(points) - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (points[i] - points[i - order])
    return table


def _monomials(knots: list[mpf], divided: list[mpf]) -> list[mpf]:
    """Newton's form multiplied out, lowest power first."""
    result = [divided[-1]]
    for knot, d in zip(knots[-2::-1], divided[-2::-1], strict=True):
        shifted = [mpf(0), *result]
        for i, c in enumerate(result):
            shifted[i] -= knot * c
        shifted[0] += d
        result = shifted
    return result


def _alternating(errors: list[tuple[mpf, int]], number: int) -> list[tuple[mpf, int]]:
    """The ``number`` greatest errors whose signs alternate."""
    extrema: list[tuple[mpf, int]] = []
    for e, k in errors:
        if extrema and (e > 0) == (extrema[-1][0] > 0):
            if abs(e) > abs(extrema[-1][0]):
                extrema[-1] = (e, k)
        else:
            extrema.append((e, k))
    while len(extrema) > number:
        if len(extrema) == number + 1:
            extrema.pop(0 if abs(extrema[0][0]) < abs(extrema[-1][0]) else -1)
            continue
        # a pair of neighbours goes, so that the signs still alternate
        i = min(range(len(extrema) - 1), key=lambda i: abs(extrema[i][0]) + abs(extrema[i + 1][0]))
        del extrema[i : i + 2]
    if len(extrema) < number:
        raise ArithmeticError(f"{len(extrema)} alternations met, {number} wanted")
    return extrema


def fit(table: Table, bits: int) -> tuple[list[float], float]:
    """Rounded coefficients and the greatest weighted error that they reach."""
    problem = Fit(table, bits)
    # above the third, a coefficient's rounding is far below the error in double precision
    steps = table.degree[bits] + 1 if bits == 32 else min(3, table.degree[bits] + 1)
    fixed: list[mpf] = []
    best, least = [], mpf("inf")
    for k in range(steps + 1):
        coefficients, reached = problem.best(fixed)
        if reached > 2 * least:
            break  # what is left to choose cannot mend an error at 0, and runs wild trying
        final = [rounded(c, bits) for c in coefficients]
        error = problem.error(final)
        if error < least:
            best, least = final, error
        fixed = final[: k + 1]
    return [*table.head, *map(float, best)], float(least)


QUARTER_PI = mp.pi / 4 * mpf("1.01")
HALF_LN2 = mpf("0.3467")
EIGHTH = mpf("0.1252")
WIDE_EIGHTH = mpf("0.136")
DIGAMMA_ROOT = mpmath.findroot(mpmath.digamma, 1.46)
ERFC_MIDDLE = 3.75
BESSEL_J_MIDDLE = 50.0


def relative(function: Real) -> Real:
    """The weight that makes an error relative to the function."""
    return lambda x: 1 / function(x)


def _sinc(z: mpf) -> mpf:
    return mpmath.sin(mpmath.sqrt(z)) / mpmath.sqrt(z)


def _sinhc(z: mpf) -> mpf:
    return mpmath.sinh(mpmath.sqrt(z)) / mpmath.sqrt(z)


def _scaled_erfc(t: mpf) -> mpf:
    a = ERFC_MIDDLE * (1 + t) / (1 - t)
    return mpmath.exp(a * a) * mpmath.erfc(a) * (a + ERFC_MIDDLE)


def _erfc_variable(a: float) -> mpf:
    return 1 - mpf(2 * ERFC_MIDDLE) / (mpf(a) + ERFC_MIDDLE)


def _stirling_rest(x: mpf) -> mpf:
    half_log_circle = mpmath.log(2 * mp.pi) / 2
    return mpmath.loggamma(x) - ((x - mpf(1) / 2) * mpmath.log(x) - x + half_log_circle)


def _digamma_slope(x: mpf) -> mpf:
    return mpmath.digamma(x) / (x - DIGAMMA_ROOT)


def _bessel(order: int, z: mpf) -> mpf:
    return mpmath.besseli(order, mpmath.sqrt(z)) / mpmath.sqrt(z) ** order


def _scaled_bessel(order: int, t: mpf) -> mpf:
    return mpmath.besseli(order, 1 / t) * mpmath.exp(-1 / t) / mpmath.sqrt(t)


def _bessel_j(order: int, v: mpf) -> mpf:
    x = mpmath.sqrt(v + BESSEL_J_MIDDLE)
    return mpmath.besselj(order, x) / x**order


def _bessel_j_weight(order: int, v: mpf) -> mpf:
    return max(mpf(1), mpmath.sqrt(v + BESSEL_J_MIDDLE) ** order)


def _phase(order: int, quadrature: bool, z: mpf) -> mpf:
    """P, or Q/t, where J + iY = √(2/(π x)) exp(i (x − order π/2 − π/4)) (P + iQ), z = t² = 1/x²."""
    x = 1 / mpmath.sqrt(z)
    angle = x - (2 * order + 1) * mp.pi / 4
    first, second = mpmath.besselj(order, x), mpmath.bessely(order, x)
    cosine, sine = mpmath.cos(angle), mpmath.sin(angle)
    if quadrature:
        return mpmath.sqrt(mp.pi * x / 2) * (second * cosine - first * sine) * x
    return mpmath.sqrt(mp.pi * x / 2) * (first * cosine + second * sine)


def _bessel_j_tables(order: int) -> list[Table]:
    angle = f"t = 1/x, a = x − {2 * order + 1}π/4"
    formula = f"J{order}(x) = √(2t/π) (P cos a − Q sin a), {angle}"
    return [
        Table(
            f"J{order}",
            f"J{order}(x) = {'x ' if order else ''}P(x² − BESSEL_J_MIDDLE); error relative to 1",
            partial(_bessel_j, order),
            partial(_bessel_j_weight, order),
            (-BESSEL_J_MIDDLE + mpf(10) ** -20, BESSEL_J_MIDDLE),
            {32: 13, 64: 18},
        ),
        Table(
            f"J{order}_P",
            f"P of {formula}, as a polynomial in t²",
            partial(_phase, order, False),
            lambda z: mpf(1),
            (1e-6, mpf(1) / (2 * BESSEL_J_MIDDLE)),
            {32: 3, 64: 9},
        ),
        Table(
            f"J{order}_Q",
            f"Q/t of {formula}, as a polynomial in t²",
            partial(_phase, order, True),
            lambda z: mpmath.sqrt(z),
            (1e-6, mpf(1) / (2 * BESSEL_J_MIDDLE)),
            {32: 2, 64: 9},
        ),
    ]


TABLES = [
    Table(
        "EXP2",
        "2**f = P(f)",
        lambda f: (2**f - 1) / f,
        lambda f: f / 2**f,
        (-0.5, 0.5),
        {32: 5, 64: 10},
        head=(1.0,),
    ),
    Table(
        "EXPM1",
        "exp(r) − 1 = r + r² P(r)",
        lambda r: (mpmath.expm1(r) - r) / r**2,
        lambda r: r**2 / mpmath.expm1(r),
        (-HALF_LN2, HALF_LN2),
        {32: 4, 64: 9},
    ),
    Table(
        "SINH",
        "sinh(r) = r + r z P(z), z = r²",
        lambda z: (_sinhc(z) - 1) / z,
        lambda z: z / _sinhc(z),
        (0, HALF_LN2**2),
        {32: 1, 64: 4},
    ),
    Table(
        "COSH",
        "cosh(r) = 1 + z (1/2 + z P(z)), z = r²",
        lambda z: (mpmath.cosh(mpmath.sqrt(z)) - 1 - z / 2) / z**2,
        lambda z: z**2 / mpmath.cosh(mpmath.sqrt(z)),
        (0, HALF_LN2**2),
        {32: 1, 64: 3},
    ),
    Table(
        "LOG",
        "log(1 + f) = f + f² P(f)",
        lambda f: (mpmath.log1p(f) - f) / f**2,
        lambda f: f**2 / mpmath.log1p(f),
        (-1 / mpf(3), 1 / mpf(3)),
        {32: 8, 64: 19},
    ),
    Table(
        "LOG_NEAR_1",
        "log(1 + f) = f − f²/2 + f³ P(f)",
        lambda f: (mpmath.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mpmath.log1p(f),
        (2**-EIGHTH - 1, 2**EIGHTH - 1),
        {32: 5, 64: 11},
        intervals={32: (2**-WIDE_EIGHTH - 1, 2**WIDE_EIGHTH - 1)},
    ),
    Table(
        "SIN",
        "sin(r) = r + r z P(z), z = r²",
        lambda z: (_sinc(z) - 1) / z,
        lambda z: z / _sinc(z),
        (0, QUARTER_PI**2),
        {32: 2, 64: 5},
    ),
    Table(
        "COS",
        "cos(r) = 1 + z (−1/2 + z P(z)), z = r²",
        lambda z: (mpmath.cos(mpmath.sqrt(z)) - 1 + z / 2) / z**2,
        lambda z: z**2 / mpmath.cos(mpmath.sqrt(z)),
        (0, QUARTER_PI**2),
        {32: 2, 64: 5},
    ),
    Table(
        "ATAN",
        "atan(r) = r + r z P(z), z = r²",
        lambda z: (mpmath.atan(mpmath.sqrt(z)) / mpmath.sqrt(z) - 1) / z,
        lambda z: z * mpmath.sqrt(z) / mpmath.atan(mpmath.sqrt(z)),
        (0, 1),
        {32: 8, 64: 19},
    ),
    Table(
        "ASIN",
        "asin(r) = r + r z P(z), z = r²",
        lambda z: (mpmath.asin(mpmath.sqrt(z)) / mpmath.sqrt(z) - 1) / z,
        lambda z: z * mpmath.sqrt(z) / mpmath.asin(mpmath.sqrt(z)),
        (0, 0.25),
        {32: 4, 64: 11},
    ),
    Table(
        "ERF",
        "log2(1 − erf(a)) = a P(a)",
        lambda a: mpmath.log(mpmath.erfc(a), 2) / a,
        lambda a: mpmath.erfc(a) * a * mpmath.log(2) / mpmath.erf(a),
        (0, 5.95),
        {32: 8, 64: 23},
        intervals={32: (0, 3.93)},
    ),
    Table(
        "ERFC",
        "erfc(a) = exp(−a²) P(t)/(a + m), t = (a − m)/(a + m), m = ERFC_MIDDLE",
        _scaled_erfc,
        relative(_scaled_erfc),
        (-1, _erfc_variable(26.6)),
        {32: 10, 64: 22},
        intervals={32: (-1, _erfc_variable(9.2))},
    ),
    Table(
        "LGAMMA",
        "log Γ(2 + u) = u P(u)",
        lambda u: mpmath.loggamma(2 + u) / u,
        lambda u: u / mpmath.loggamma(2 + u),
        (-0.5, 0.5),
        {32: 8, 64: 17},
    ),
    Table(
        "STIRLING",
        "log Γ(x) = (x − 1/2) log x − x + log(2π)/2 + t P(t), t = 1/x",
        lambda t: _stirling_rest(1 / t) / t,
        lambda t: t / mpmath.loggamma(1 / t),
        (1e-6, 1 / mpf("3.5")),
        {32: 3, 64: 10},
    ),
    Table(
        "DIGAMMA",
        "ψ(y) = (y − y₀) P(y − 3/2), y₀ the positive root",
        lambda v: _digamma_slope(v + mpf("1.5")),
        lambda v: 1 / _digamma_slope(v + mpf("1.5")),
        (-0.5, 0.5),
        {32: 10, 64: 21},
    ),
    Table(
        "DIGAMMA_FAR",
        "ψ(y) = log y + t P(t), t = 1/y",
        lambda t: (mpmath.digamma(1 / t) - mpmath.log(1 / t)) / t,
        lambda t: t / mpmath.digamma(1 / t),
        (1e-6, 0.5),
        {32: 4, 64: 15},
    ),
    Table(
        "TRIGAMMA",
        "ψ′(y) = P(y − 3/2)",
        lambda v: mpmath.psi(1, v + mpf("1.5")),
        lambda v: 1 / mpmath.psi(1, v + mpf("1.5")),
        (-0.5, 0.5),
        {32: 11, 64: 23},
    ),
    Table(
        "TRIGAMMA_FAR",
        "ψ′(y) = t + t²/2 + t³ P(t), t = 1/y",
        lambda t: (mpmath.psi(1, 1 / t) - t - t**2 / 2) / t**3,
        lambda t: t**3 / mpmath.psi(1, 1 / t),
        (1e-6, 0.5),
        {32: 4, 64: 15},
    ),
    Table(
        "SIN_PI",
        "sin(π r) = r P(z), z = r²",
        lambda z: mp.pi * _sinc(mp.pi**2 * z),
        lambda z: 1 / (mp.pi * _sinc(mp.pi**2 * z)),
        (0, 0.25),
        {32: 5, 64: 10},
    ),
    Table(
        "COT_PI",
        "π cot(π r) = P(z)/r, z = r²",
        lambda z: mp.pi * mpmath.sqrt(z) * mpmath.cot(mp.pi * mpmath.sqrt(z)),
        lambda z: mpf(1),
        (0, 0.25),
        {32: 7, 64: 16},
    ),
    *(
        table
        for order in (0, 1)
        for table in (
            Table(
                f"I{order}",
                "I0(x) = P(z), z = x²" if order == 0 else "I1(x) = x P(z), z = x²",
                partial(_bessel, order),
                relative(partial(_bessel, order)),
                (0, 14**2),
                {32: 9, 64: 19},
                intervals={32: (0, 8**2)},
            ),
            Table(
                f"I{order}_FAR",
                f"I{order}(x) = exp(x) √t P(t), t = 1/x",
                partial(_scaled_bessel, order),
                relative(partial(_scaled_bessel, order)),
                (1e-4, 1 / mpf(14)),
                {32: 5, 64: 13},
                intervals={32: (1e-4, 1 / mpf(8))},
            ),
        )
    ),
    *_bessel_j_tables(0),
    *_bessel_j_tables(1),
]

CONSTANTS = [
    Parts("LOG2_E", "log2(e)", 1 / mpmath.log(2), 2),
    Parts("LN2", "log(2)", mpmath.log(2), 2),
    Parts("LOG10_E", "log10(e)", 1 / mpmath.log(10), 2),
    Parts("LOG10_2", "log10(2)", mpmath.log(2, 10), 2),
    Parts("HALF_PI", "π/2", mp.pi / 2, 3),
    Parts("DIGAMMA_ROOT", "y₀, where ψ(y₀) = 0", DIGAMMA_ROOT, 2),
]

CENTRES = (-0.25, 0.25, 0.5)
"""About the logarithms (base 2) of the middles of three intervals; the fourth lies around 0."""


def centre(about: float, bits: int) -> tuple[float, float]:
    """A logarithm l of few digits and a factor f with log2(f) = −l nearly to twice the precision.

    With l of few digits, n + l needs no rounding for whole n; with 2**-l so close to a number of
    the precision, no second part of either has to be kept.
    """
    step = mpf(2) ** -(16 if bits == 32 else 42)
    enough = mpf(2) ** -(38 if bits == 32 else 69)
    best = (mpf(1), mpf(0), mpf(0))
    for k in range(700 if bits == 32 else 2**15):
        for log in (about - k * step, about + k * step):
            factor = rounded(mpf(2) ** -log, bits)
            best = min(best, (abs(mpmath.log(factor, 2) + log), log, factor))
        if best[0] < enough:
            break
    return float(best[1]), float(best[2])


HEADER = '''"""Coefficients of the polynomials behind the elementary functions, lowest power first.

Each table maps the precision (32 or 64 bits) to coefficients that this precision holds exactly.
Below it stands what its polynomial P means; beside each precision the interval, and the greatest
error of the function that comes from P alone, computed without rounding and relative to the
function. `scripts/fit_coefficients.py` fits them all and writes this file.
"""
'''


def render(fits: dict[str, dict[int, tuple[list[float], float]]]) -> str:
    """The module's source."""
    parts = [HEADER, f"ERFC_MIDDLE = {ERFC_MIDDLE}\nBESSEL_J_MIDDLE = {BESSEL_J_MIDDLE}"]
    for constant in CONSTANTS:
        lines = [f"{constant.name}: dict[int, tuple[float, ...]] = {{"]
        for bits in (32, 64):
            numbers, rest = [], constant.value
            for _ in range(constant.count):
                numbers.append(rounded(rest, bits))
                rest -= numbers[-1]
            lines.append(f"    {bits}: ({', '.join(repr(float(x)) for x in numbers)}),")
        lines += ["}", f'"""{constant.formula}, as a sum"""']
        parts.append("\n".join(lines))
    lines = ["CENTRES: dict[int, tuple[tuple[float, float], ...]] = {"]
    for bits in (32, 64):
        lines.append(f"    {bits}: (")
        lines += [f"        {centre(about, bits)!r}," for about in CENTRES]
        lines.append("    ),")
    lines += [
        "}",
        '"""Pairs l, f with log2(f) = −l nearly to twice the precision"""',
    ]
    parts.append("\n".join(lines))
    for table in TABLES:
        lines = [f"{table.name}: dict[int, tuple[float, ...]] = {{"]
        for bits, (coefficients, error) in fits[table.name].items():
            ends = table.intervals.get(bits, table.interval)
            lower, upper = (mpmath.nstr(mpf(end), 6) for end in ends)
            lines.append(f"    # [{lower}, {upper}]: {error:.1e}")
            lines.append(f"    {bits}: (")
            lines += [f"        {c!r}," for c in coefficients]
            lines.append("    ),")
        lines.append("}")
        lines.append(f'"""{table.formula}"""')
        parts.append("\n".join(lines))
    return "\n".join(parts) + "\n"


def main(names: Sequence[str]) -> None:
    """Fit the named tables and print them, or all of them and rewrite the module."""
    started = time.time()
    fits: dict[str, dict[int, tuple[list[float], float]]] = {}
    for table in TABLES:
        if names and table.name not in names:
            continue
        for bits in table.degree:
            begun = time.time()
            coefficients, error = fits.setdefault(table.name, {})[bits] = fit(table, bits)
            units = error * 2.0 ** (24 if bits == 32 else 53)
            took = time.time() - begun
            print(f"{table.name} {bits}: {error:.2e}, {units:.3f} units, {took:.1f} s", flush=True)
            if names:
                print(coefficients)
    if not names:
        OUTPUT.write_text(render(fits))
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
