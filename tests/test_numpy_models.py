"""Models in NumPy's words: every table entry against NumPy and scipy, and whole models."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import special
from torch.autograd import forward_ad
from torch.func import jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from torchimize.numpy_models import (
    NumberEscape,
    NumpyTensor,
    UnsupportedNumpyFunction,
    in_numpy_words,
    uses_numpy,
)
from torchimize.numpy_models.functions import FUNCTIONS
from torchimize.numpy_models.ufuncs import UFUNCS, scipy_ufuncs

SEED = 20260
RANDOM = np.random.default_rng(SEED)


@pytest.fixture(autouse=True)
def same_numbers_for_every_selection_of_tests():
    global RANDOM
    RANDOM = np.random.default_rng(SEED)


def draw(low, high, *shape):
    return RANDOM.uniform(low, high, shape or (2, 5))


def check(
    function, *arrays, differentiable=True, rtol=1e-11, atol=1e-12, slope_rtol=1e-6, step=1e-6
):
    """Compare a function on arrays and on tensors: value, derivative in all modes, and float32."""
    on_tensors = in_numpy_words(function)
    tensors = tuple(torch.tensor(array) for array in arrays)
    before = [tensor.clone() for tensor in tensors]
    wanted = np.asarray(function(*(array.copy() for array in arrays)))
    found = on_tensors(*tensors)
    assert isinstance(found, torch.Tensor)
    assert found.shape == wanted.shape
    assert found.numpy().dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)
    for tensor, kept in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(tensor, kept)

    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
    small = on_tensors(*(t.float() if t.dtype == torch.float64 else t for t in tensors))
    if wanted.dtype in (np.float64, np.complex128):
        assert small.dtype == (torch.float32 if wanted.dtype == np.float64 else torch.complex64)
    np.testing.assert_allclose(small, wanted, rtol=2e-4, atol=2e-4 * (1 + largest))
    if not differentiable or wanted.dtype != np.float64:
        return

    which = [k for k, array in enumerate(arrays) if array.dtype == np.float64]
    directions = [RANDOM.normal(size=arrays[k].shape) for k in which]

    def along(distance):
        moved = list(arrays)
        for k, direction in zip(which, directions, strict=True):
            moved[k] = arrays[k] + distance * direction
        return np.asarray(function(*moved))

    change = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step)

    def floating(*values):
        given = list(tensors)
        for k, value in zip(which, values, strict=True):
            given[k] = value
        return on_tensors(*given)

    primals = tuple(tensors[k] for k in which)
    tangents = tuple(torch.tensor(direction) for direction in directions)
    value, slope = jvp(floating, primals, tangents)
    np.testing.assert_allclose(value, wanted, rtol=rtol, atol=atol)
    scale = 1 + np.abs(change).max(initial=0)
    np.testing.assert_allclose(slope, change, rtol=slope_rtol, atol=slope_rtol * scale)
    both = tuple(torch.stack([tangent, -2 * tangent]) for tangent in tangents)
    batched = vmap(lambda *t: jvp(floating, primals, t)[1])(*both)
    np.testing.assert_allclose(batched[0], slope, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(batched[1], -2 * slope, rtol=1e-12, atol=1e-12 * scale)
    weights = torch.tensor(RANDOM.normal(size=wanted.shape))
    pulled = vjp(floating, *primals)[1](weights)
    forward = (weights * slope).sum()
    backward = sum((g * t).sum() for g, t in zip(pulled, tangents, strict=True))
    torch.testing.assert_close(backward, forward, rtol=1e-9, atol=1e-9 * scale * weights.numel())


# --- ufuncs ---

REAL, POSITIVE, UNIT, ABOVE = (-3.0, 3.0), (0.2, 4.0), (-0.9, 0.9), (1.2, 4.0)
STEPS = ["nextafter"]
DOMAINS = {
    **dict.fromkeys(
        ["add", "subtract", "multiply", "divide", "maximum", "minimum", "fmax", "fmin", "hypot"],
        (REAL, POSITIVE),
    ),
    **dict.fromkeys(
        ["arctan2", "logaddexp", "logaddexp2", "copysign", "heaviside"], (REAL, POSITIVE)
    ),
    **dict.fromkeys(["remainder", "fmod", "floor_divide", "nextafter"], (REAL, POSITIVE)),
    **dict.fromkeys(["power", "float_power"], (POSITIVE, REAL)),
    **dict.fromkeys(
        [
            "negative",
            "positive",
            "absolute",
            "fabs",
            "sign",
            "square",
            "conjugate",
            "rint",
            "floor",
        ],
        (REAL,),
    ),
    **dict.fromkeys(
        [
            "ceil",
            "trunc",
            "exp",
            "exp2",
            "expm1",
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "tanh",
            "arcsinh",
        ],
        (REAL,),
    ),
    **dict.fromkeys(["arctan", "degrees", "rad2deg", "radians", "deg2rad", "cbrt"], (REAL,)),
    **dict.fromkeys(["reciprocal", "sqrt", "log", "log2", "log10", "log1p"], (POSITIVE,)),
    **dict.fromkeys(["arcsin", "arccos", "arctanh"], (UNIT,)),
    "arccosh": (ABOVE,),
}
TRUTHS = {
    **dict.fromkeys(["less", "less_equal", "greater", "greater_equal", "equal", "not_equal"], 2),
    **dict.fromkeys(["logical_and", "logical_or", "logical_xor"], 2),
    **dict.fromkeys(["logical_not", "isnan", "isinf", "isfinite", "signbit"], 1),
}
INTEGERS = ["bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift", "gcd", "lcm"]
ELSEWHERE = ["matmul", "vecdot", "divmod", "modf", "ldexp", "invert"]


def test_every_ufunc_is_in_a_case():
    covered = {*DOMAINS, *TRUTHS, *INTEGERS, *ELSEWHERE}
    assert set(UFUNCS) == {getattr(np, name) for name in covered if hasattr(np, name)}


@pytest.mark.parametrize("name", DOMAINS)
def test_ufunc(name):
    ufunc = getattr(np, name)
    arrays = [draw(*domain) for domain in DOMAINS[name]]
    check(lambda *a: ufunc(*a), *arrays, differentiable=name not in STEPS)
    check(lambda *a: ufunc(*a), *(a[0, 0] + np.zeros(()) for a in arrays), differentiable=False)
    if len(arrays) == 2:
        first, second = arrays
        check(lambda a: ufunc(a, second), first, differentiable=name not in STEPS)
        check(lambda b: ufunc(first[0], b), second, differentiable=name not in STEPS)
        check(lambda a: ufunc(a, 1.25), first, differentiable=name not in STEPS)
        check(lambda b: ufunc(np.float64(1.25), b), second, differentiable=name not in STEPS)
        check(lambda a, b: ufunc(a[:, None], b), first, second, differentiable=name not in STEPS)


@pytest.mark.parametrize("name", TRUTHS)
def test_truths(name):
    ufunc = getattr(np, name)
    special_values = np.array([0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0, 0.0])
    others = np.array([0.0, 2.0, -1.0, np.inf, 1.0, np.nan, 0.0, 1.0])
    check(lambda *a: ufunc(*a), *[special_values, others][: TRUTHS[name]])


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_ufunc(name):
    ufunc = getattr(np, name)
    check(lambda a, b: ufunc(a, b), np.array([12, 7, 30]), np.array([4, 2, 3]))
    check(lambda a: ufunc(a, 2), np.array([12, 7, 30]))


def test_ufuncs_that_are_different():
    a, b = draw(-2, 2, 3, 4), draw(-2, 2, 4, 2)
    check(np.matmul, a, b)
    check(lambda x, y: x @ y, a, b)
    check(lambda x: x @ b, a)
    check(lambda y: a @ y, b)
    check(lambda x, y: np.vecdot(x, y), a, draw(-2, 2, 3, 4))
    check(lambda x: np.divmod(x, 0.7)[0], a, differentiable=False)
    check(lambda x: np.divmod(x, 0.7)[1], a)
    check(lambda x: np.modf(x)[0], a)
    check(lambda x: np.modf(x)[1], a, differentiable=False)
    check(lambda x: np.ldexp(x, 3), a)
    check(lambda x: ~(x > 0), a)
    check(lambda x: np.where((x > 0) & ~(x > 1) | (x < -1), x, -x), a)
    check(lambda x: np.remainder(x, 0.7), a)
    check(lambda x: np.sign(x) * np.floor(x), a, differentiable=False)


def test_ufunc_methods():
    a = draw(0.5, 2, 3, 4)
    for ufunc in (np.add, np.multiply, np.maximum, np.minimum):
        check(lambda x, f=ufunc: f.reduce(x), a)
        check(lambda x, f=ufunc: f.reduce(x, axis=1, keepdims=True), a)
    check(lambda x: np.logical_and.reduce(x > 1, axis=1), a)
    check(lambda x: np.logical_or.reduce(x > 1.9), a)
    check(np.add.accumulate, a)
    check(lambda x: np.multiply.accumulate(x, axis=1), a)
    check(lambda x: np.subtract.outer(x[0], x[1]), a)
    x = NumpyTensor(torch.ones(3))
    with pytest.raises(UnsupportedNumpyFunction, match=r"numpy\.subtract\.reduce"):
        np.subtract.reduce(x)
    with pytest.raises(UnsupportedNumpyFunction, match=r"numpy\.add\.at"):
        np.add.at(x, [0], 1)


def test_where_and_out_of_ufuncs():
    x = draw(-1, 1, 6)

    def safe_log(x):
        return np.log(x, out=np.zeros_like(x), where=x > 0)

    check(safe_log, x)
    check(lambda x: np.divide(1.0, x, out=np.ones_like(x), where=np.abs(x) > 0.5), x)
    # the branch that is masked out leaves no trace in reverse mode
    values = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    (gradient,) = vjp(in_numpy_words(safe_log), values)[1](torch.ones(3, dtype=torch.float64))
    np.testing.assert_allclose(gradient, [0, 0, 0.5])
    with pytest.raises(NumberEscape, match=r"numpy\.exp is asked to write .* into a ndarray"):
        in_numpy_words(lambda x: np.exp(x, out=np.zeros(3)))(values)
    check(lambda x: np.add(x, 1, dtype=float), x)


SCIPY_DOMAINS = {
    **dict.fromkeys(
        [
            "erf",
            "erfc",
            "erfcx",
            "expit",
            "log_expit",
            "i0",
            "i0e",
            "i1",
            "i1e",
            "j0",
            "j1",
            "ndtr",
            "log_ndtr",
        ],
        (REAL,),
    ),
    **dict.fromkeys(["exp10", "cosm1", "dawsn", "exprel", "cbrt", "expm1", "exp2"], (REAL,)),
    **dict.fromkeys(
        [
            "gammaln",
            "loggamma",
            "gamma",
            "rgamma",
            "psi",
            "digamma",
            "y0",
            "y1",
            "k0",
            "k0e",
            "k1",
            "k1e",
            "entr",
            "log1p",
        ],
        (POSITIVE,),
    ),
    **dict.fromkeys(
        ["beta", "betaln", "gammainc", "gammaincc", "xlogy", "xlog1py", "rel_entr"],
        (POSITIVE, POSITIVE),
    ),
    "erfinv": (UNIT,),
    "erfcinv": ((0.1, 1.9),),
    "logit": ((0.1, 0.9),),
    "ndtri": ((0.05, 0.95),),
    "_zeta": (ABOVE, POSITIVE),
    "_riemann_zeta": (ABOVE,),
    "voigt_profile": (REAL, POSITIVE, POSITIVE),
    "huber": (POSITIVE, REAL),
    "pseudo_huber": (POSITIVE, REAL),
    "boxcox": (POSITIVE, REAL),
    "inv_boxcox": ((0.1, 0.3), REAL),
}
ORDERS = ["jv", "jn", "yv", "yn", "iv", "ive", "kv", "kn", "kve"]
DEGREES = [
    "eval_chebyt",
    "eval_chebyu",
    "eval_hermite",
    "eval_hermitenorm",
    "eval_laguerre",
    "eval_legendre",
]


def scipy_ufunc(name):
    return getattr(special, name, None) or getattr(special._ufuncs, name)


def test_every_scipy_ufunc_is_in_a_case():
    covered = {scipy_ufunc(name) for name in (*SCIPY_DOMAINS, *ORDERS, *DEGREES, "wofz")}
    assert set(scipy_ufuncs()) == covered - set(UFUNCS)


@pytest.mark.parametrize("name", SCIPY_DOMAINS)
def test_scipy_ufunc(name):
    ufunc = scipy_ufunc(name)
    arrays = [draw(*domain) for domain in SCIPY_DOMAINS[name]]
    check(lambda *a: ufunc(*a), *arrays, rtol=1e-10, step=1e-4)


@pytest.mark.parametrize("name", ORDERS)
def test_bessel_functions_by_order(name):
    ufunc = getattr(special, name)
    x = draw(*POSITIVE)
    for order in (0, 1, 1.0, np.int64(1)):
        if not (name == "kn" and isinstance(order, float)):
            check(lambda x, n=order: ufunc(n, x), x, rtol=1e-10, step=1e-4)
    with pytest.raises(
        UnsupportedNumpyFunction, match=r"scipy\.special\.\w+ .*orders 0 and 1, got 2"
    ):
        in_numpy_words(lambda x: ufunc(2, x))(torch.tensor(x))


@pytest.mark.parametrize("name", DEGREES)
def test_polynomials_by_degree(name):
    ufunc = getattr(special, name)
    check(lambda x: ufunc(4, x), draw(*UNIT), step=1e-4)
    with pytest.raises(UnsupportedNumpyFunction, match=r"integer degree, got 1\.5"):
        in_numpy_words(lambda x: ufunc(1.5, x))(torch.ones(2))


def test_gamma_and_beta_of_negative_numbers():
    x = np.array([-0.5, -1.5, -2.3, -3.7, 4.5, 0.3])
    check(special.gamma, x, rtol=1e-12, step=1e-4)
    check(lambda x: special.beta(x, 0.75), x, rtol=1e-11, step=1e-4)


def test_log_ndtr_and_exprel_far_out():
    check(special.log_ndtr, np.array([-40.0, -9.0, -1.0, 0.0, 7.0]), step=1e-3)
    check(special.exprel, np.array([-1e-7, 0.0, 1e-9, 1e-4, 30.0]), step=1e-3)
    check(lambda x: special.pseudo_huber(np.array([0.0, 2.0]), x), np.array([1.0, 0.0]))


def test_wofz_the_classical_voigt_model():
    def voigt(x, sigma, gamma):
        z = (x + 1j * gamma) / (sigma * np.sqrt(2))
        return np.real(special.wofz(z)) / (sigma * np.sqrt(2 * np.pi))

    check(voigt, draw(-4, 4, 9), np.array(0.8), np.array(0.3), step=1e-4)
    check(lambda x: special.wofz(x).real, draw(-4, 4, 9), step=1e-4)


# --- functions ---

A, B, C = draw(-2, 2, 3, 4), draw(-2, 2, 3, 4), draw(-2, 2, 4, 2)
V, W, S = draw(-2, 2, 6), draw(0.5, 2, 6), draw(-2, 2, 4, 4)
GRID, VALUES = np.sort(draw(0, 1, 7)), draw(-1, 1, 7)
INSIDE = draw(-0.2, 1.2, 5)

FUNCTION_CASES = {
    "sum": [
        (lambda a: np.sum(a), A),
        (lambda a: np.sum(a, axis=0), A),
        (lambda a: np.sum(a, axis=(0, 1), keepdims=True), A),
        (lambda a: np.sum(a, where=A > 0), A),
        (lambda a: np.sum(a, axis=1, initial=2.5), A),
        (lambda a: np.sum(a > 0), A),
        (lambda a: np.sum(np.array([a[0, 0], a[1, 1] ** 2])), A),
    ],
    "nansum": [(lambda a: np.nansum(np.where(A > 0, a, np.nan), axis=0), A)],
    "prod": [(lambda a: np.prod(a), A), (lambda a: np.prod(a, axis=(0, 1), keepdims=True), A)],
    "mean": [
        (lambda a: np.mean(a), A),
        (lambda a: np.mean(a, axis=-1, keepdims=True), A),
        (lambda a: np.mean(a, where=A > 0), A),
        (lambda a: np.mean(a > 0, axis=0), A),
    ],
    "nanmean": [(lambda a: np.nanmean(np.where(A > 0, a, np.nan)), A)],
    "average": [
        (lambda a: np.average(a, axis=0), A),
        (lambda a, w: np.average(a, axis=1, weights=w), A, draw(0.1, 1, 4)),
        (lambda a, w: np.average(a, weights=w), A, draw(0.1, 1, 3, 4)),
    ],
    "var": [(lambda a: np.var(a), A), (lambda a: np.var(a, axis=0, ddof=1), A)],
    "std": [(lambda a: np.std(a), A), (lambda a: np.std(a, 1, ddof=1, keepdims=True), A)],
    "median": [
        (lambda a: np.median(a), A),
        (lambda a: np.median(a[:, :3], axis=1), A),
        (lambda a: np.median(a, axis=0, keepdims=True), A),
        (lambda a: np.median(a, keepdims=True), A),
    ],
    "max": [(lambda a: np.max(a), A), (lambda a: np.max(a, axis=1, keepdims=True), A)],
    "amax": [(lambda a: np.amax(a), A)],
    "min": [(lambda a: np.min(a, axis=0), A), (lambda a: np.min(a), A)],
    "amin": [(lambda a: np.amin(a, 1), A)],
    "nanmax": [(lambda a: np.nanmax(np.where(A > 0, a, np.nan)), A)],
    "nanmin": [(lambda a: np.nanmin(np.where(A > 0, a, np.nan)), A)],
    "ptp": [(lambda a: np.ptp(a, axis=0), A)],
    "any": [(lambda a: np.any(a > 1.5, axis=0), A), (lambda a: np.any(a), A)],
    "all": [(lambda a: np.all(a < 1.5, axis=(0, 1)), A), (lambda a: np.all(a), A)],
    "count_nonzero": [(lambda a: np.count_nonzero(a > 0, axis=1), A)],
    "argmax": [(lambda a: np.argmax(a), A), (lambda a: np.argmax(a, axis=1), A)],
    "argmin": [(lambda a: np.argmin(a), A), (lambda a: np.argmin(a, axis=0), A)],
    "cumsum": [(lambda a: np.cumsum(a), A), (lambda a: np.cumsum(a, axis=0), A)],
    "cumprod": [(lambda a: np.cumprod(a), A), (lambda a: np.cumprod(a, axis=1), A)],
    "diff": [
        (lambda a: np.diff(a), A),
        (lambda a: np.diff(a, n=2, axis=0), A),
        (lambda a: np.diff(a, prepend=0.0, append=a[:, :1]), A),
    ],
    "trapezoid": [
        (lambda a: np.trapezoid(a), A),
        (lambda a: np.trapezoid(a, dx=0.3, axis=0), A),
        (lambda a, x: np.trapezoid(a, x, axis=1), A, draw(0, 3, 4)),
        (lambda a, x: np.trapezoid(a, x, axis=0), A, draw(0, 3, 3)),
        (lambda a, x: np.trapezoid(a, x), A, draw(0, 3, 3, 4)),
    ],
    "dot": [
        (lambda a, b: np.dot(a, b), A, C),
        (lambda a, b: np.dot(a, b), A, V[:4]),
        (lambda a: np.dot(2.0, a), A),
        (lambda a, b: np.dot(a, b), A, draw(-1, 1, 2, 4, 3)),
    ],
    "vdot": [(lambda a, b: np.vdot(a, b), A, B)],
    "inner": [(lambda a, b: np.inner(a, b), A, B)],
    "outer": [(lambda a, b: np.outer(a, b), V, W), (lambda a: np.outer(a, np.arange(3)), V)],
    "tensordot": [
        (lambda a, b: np.tensordot(a, b), A, B),
        (lambda a, b: np.tensordot(a, b, axes=1), A, C),
        (lambda a, b: np.tensordot(a, b, axes=(0, 0)), A, B),
        (lambda a, b: np.tensordot(a, b, axes=([0, 1], [0, 1])), A, B),
    ],
    "einsum": [
        (lambda a, b: np.einsum("ij,jk->ik", a, b), A, C),
        (lambda a: np.einsum("...i,i->...", a, np.arange(4)), A),
    ],
    "kron": [(lambda a, b: np.kron(a, b), A, C)],
    "cross": [
        (lambda a, b: np.cross(a, b), draw(-1, 1, 2, 3), draw(-1, 1, 2, 3)),
        (lambda a, b: np.cross(a, b, axis=0), draw(-1, 1, 3, 2), draw(-1, 1, 3, 2)),
    ],
    "linalg.cross": [(lambda a, b: np.linalg.cross(a, b), draw(-1, 1, 2, 3), draw(-1, 1, 2, 3))],
    "convolve": [
        (lambda a, b: np.convolve(a, b), V, W[:3]),
        (lambda a, b: np.convolve(a, b, mode="same"), V, W[:4]),
        (lambda a, b: np.convolve(a, b, mode="same"), V[:2], W[:5]),
        (lambda a, b: np.convolve(a, b, "valid"), V[:3], W),
    ],
    "trace": [(lambda a: np.trace(a), S), (lambda a: np.trace(a, offset=1), S)],
    "diagonal": [(lambda a: np.diagonal(a), S)],
    "diag": [(lambda a: np.diag(a), V), (lambda a: np.diag(a, 1), S)],
    "tril": [(lambda a: np.tril(a, -1), S)],
    "triu": [(lambda a: np.triu(a), S)],
    "linalg.norm": [
        (lambda a: np.linalg.norm(a), A),
        (lambda a: np.linalg.norm(a, axis=1), A),
        (lambda a: np.linalg.norm(a, ord=1, axis=0, keepdims=True), A),
    ],
    "linalg.inv": [(lambda a: np.linalg.inv(a), S)],
    "linalg.det": [(lambda a: np.linalg.det(a), S)],
    "linalg.solve": [
        (lambda a, b: np.linalg.solve(a, b), S, V[:4]),
        (lambda a, b: np.linalg.solve(a, b), S, C),
    ],
    "where": [
        (lambda a, b: np.where(a > 0, a, b), A, B),
        (lambda a: np.where(a > 0, 1.0, 0.0), A),
        (lambda a: np.where(A > 0, a, 2), A),
        (lambda a: np.where(a > 0, np.ones((3, 4)), np.float64(2)), A),
        (lambda a: a[np.where(A > 0)], A),
    ],
    "select": [
        (lambda a: np.select([a < -1, a < 1], [a, a**2], default=-1.0), A),
        (lambda a: np.select([a < -1, a < 1], [np.float64(3), a]), A),
    ],
    "clip": [
        (lambda a: np.clip(a, -1, 1), A),
        (lambda a, b: np.clip(a, b, None), A, B),
        (lambda a, b: np.clip(a, -1.0, b), A, B),
        (lambda a: np.clip(a, None, np.full(4, 0.5)), A),
        (lambda a: np.clip(a, min=0), A),
    ],
    "nan_to_num": [(lambda a: np.nan_to_num(np.where(A > 0, a, np.nan), nan=2.0), A)],
    "isclose": [
        (lambda a: np.isclose(a, A + 1e-9), A),
        (lambda a: np.isclose(np.where(A > 0, a, np.nan), np.nan, equal_nan=True), A),
        (lambda a: np.isclose(np.where(A > 0, a, np.inf), np.inf), A),
    ],
    "allclose": [(lambda a: np.allclose(a, A), A), (lambda a: np.allclose(a, 0), A)],
    "array_equal": [
        (lambda a: np.array_equal(np.abs(a) > 5, A > 5), A),
        (lambda a: np.array_equal(a, a[0]), A),
    ],
    "nonzero": [(lambda a: a[np.nonzero(A > 0)], A), (lambda a: np.nonzero(a > 0)[1], A)],
    "concatenate": [
        (lambda a, b: np.concatenate([a, b, np.ones((1, 4))]), A, B),
        (lambda a, b: np.concatenate((a, b), axis=1), A, B),
        (lambda a: np.concatenate([a, A], axis=None), A),
    ],
    "stack": [
        (lambda a, b: np.stack([a, b]), A, B),
        (lambda a: np.stack((a, A), axis=-1), A),
        (lambda a: np.stack([a[0, 0], np.float64(1.5), a[1, 0]]), A),
    ],
    "vstack": [(lambda a, b: np.vstack([a, b]), A, B)],
    "hstack": [(lambda a, b: np.hstack([a, b]), A, B), (lambda a: np.hstack([a, 1.0]), V)],
    "dstack": [(lambda a, b: np.dstack([a, b]), A, B)],
    "column_stack": [(lambda a, b: np.column_stack([a, b]), V, W)],
    "append": [(lambda a: np.append(a, 3.0), V), (lambda a, b: np.append(a, b, axis=0), A, B)],
    "zeros_like": [(lambda a: np.zeros_like(a), A), (lambda a: np.zeros_like(a, shape=(2,)), A)],
    "empty_like": [(lambda a: np.empty_like(a) * 0, A)],
    "ones_like": [(lambda a: np.ones_like(a), A), (lambda a: np.ones_like(a, dtype=int), A)],
    "full_like": [(lambda a: np.full_like(a, 2.5), A), (lambda a: np.full_like(a, a[0, 0]), A)],
    "copy": [(lambda a: np.copy(a), A)],
    "reshape": [(lambda a: np.reshape(a, (2, -1)), A), (lambda a: np.reshape(a, -1), A)],
    "ravel": [(lambda a: np.ravel(a), A)],
    "transpose": [(lambda a: np.transpose(a), A), (lambda a: np.transpose(a, (1, 0)), A)],
    "matrix_transpose": [(lambda a: np.matrix_transpose(a), A)],
    "linalg.matrix_transpose": [(lambda a: np.linalg.matrix_transpose(a), A)],
    "moveaxis": [(lambda a: np.moveaxis(a, 0, 1), A)],
    "swapaxes": [(lambda a: np.swapaxes(a, 0, 1), A)],
    "expand_dims": [(lambda a: np.expand_dims(a, 1), A), (lambda a: np.expand_dims(a, (0, -1)), A)],
    "squeeze": [(lambda a: np.squeeze(a[None]), A), (lambda a: np.squeeze(a[None, :, None], 2), A)],
    "atleast_1d": [(lambda a: np.atleast_1d(a[0, 0]), A)],
    "atleast_2d": [(lambda a: np.atleast_2d(a), V)],
    "broadcast_to": [(lambda a: np.broadcast_to(a, (2, 6)), V)],
    "broadcast_arrays": [(lambda a, b: np.broadcast_arrays(a[:, None], b)[0], V, W)],
    "meshgrid": [
        (lambda a, b: np.meshgrid(a, b)[0], V, W[:3]),
        (lambda a, b: np.meshgrid(a, b, indexing="ij")[1], V, W[:3]),
        (lambda a, b: np.meshgrid(a, b, sparse=True)[1], V, W[:3]),
    ],
    "tile": [(lambda a: np.tile(a, (2, 1)), A), (lambda a: np.tile(a, 2), V)],
    "repeat": [
        (lambda a: np.repeat(a, 2), A),
        (lambda a: np.repeat(a, np.array([1, 2, 0]), axis=0), A),
    ],
    "roll": [
        (lambda a: np.roll(a, 2), A),
        (lambda a: np.roll(a, 1, axis=1), A),
        (lambda a: np.roll(a, (1, 2), axis=(0, 1)), A),
    ],
    "flip": [(lambda a: np.flip(a), A), (lambda a: np.flip(a, 1), A)],
    "fliplr": [(lambda a: np.fliplr(a), A)],
    "flipud": [(lambda a: np.flipud(a), A)],
    "split": [
        (lambda a: np.split(a, 2, axis=1)[1], A),
        (lambda a: np.split(a, np.array([1, 3]), axis=1)[1], A),
    ],
    "array_split": [(lambda a: np.array_split(a, 3, axis=1)[0], A)],
    "sort": [(lambda a: np.sort(a), A), (lambda a: np.sort(a, axis=None), A)],
    "argsort": [(lambda a: np.argsort(a, axis=0), A)],
    "take": [
        (lambda a: np.take(a, [0, 2], axis=0), A),
        (lambda a: np.take(a, np.array([[1], [3]]), axis=-1), A),
        (lambda a: np.take(a, 5), A),
    ],
    "take_along_axis": [
        (lambda a: np.take_along_axis(a, np.array([[0], [1], [3]]), axis=1), A),
    ],
    "searchsorted": [
        (lambda x: np.searchsorted(GRID, x), INSIDE),
        (lambda g, x: np.searchsorted(g, x, side="right"), GRID, INSIDE),
    ],
    "sinc": [(lambda a: np.sinc(a), A)],
    "i0": [(lambda a: np.i0(a), A)],
    "fix": [(lambda a: np.fix(a), A)],
    "round": [(lambda a: np.round(a, 1), A), (lambda a: np.round(a), A)],
    "around": [(lambda a: np.around(a, 1), A)],
    "real": [(lambda a: np.real(a), A), (lambda a: np.real((1 + 2j) * a), A)],
    "imag": [(lambda a: np.imag(a), A), (lambda a: np.imag((1 + 2j) * a * a), A)],
    "angle": [(lambda a: np.angle(a + 1j), A), (lambda a: np.angle(a * 1j + 1, deg=True), A)],
    "polyval": [
        (lambda p, x: np.polyval(p, x), V, draw(-1, 1, 4)),
        (lambda p, x: np.polyval([p[0], 2.0, p[1]], x), V, draw(-1, 1, 4)),
        (lambda p: np.polyval([p[0], 2.0, p[1]], np.arange(3.0)), V),
    ],
    "interp": [
        (lambda x: np.interp(x, GRID, VALUES), INSIDE),
        (lambda x, xp, fp: np.interp(x, xp, fp), INSIDE, GRID, VALUES),
        (lambda fp: np.interp(INSIDE, GRID, fp, left=-3.0, right=4.0), VALUES),
        (lambda x: np.interp(x[0], GRID, VALUES), INSIDE),
        (lambda fp: np.interp(0.5, GRID, fp), VALUES),
        (lambda x: np.interp(x, np.array([0.5]), np.array([2.0])), INSIDE),
    ],
    "linspace": [
        (lambda a: np.linspace(a[0], a[1], 5), V),
        (lambda a: np.linspace(0, a[0], 4, endpoint=False), V),
        (lambda a, b: np.linspace(a, b, 3, axis=1), V, W),
        (lambda a: np.linspace(a[0], 3, 5, retstep=True)[1], V),
    ],
    "fft.fft": [(lambda a: np.abs(np.fft.fft(a, axis=0)), A), (lambda a: np.fft.fft(a, 8), A)],
    "fft.ifft": [(lambda a: np.fft.ifft(a, norm="ortho").real, A)],
    "fft.rfft": [(lambda a: np.abs(np.fft.rfft(a)), A)],
    "fft.irfft": [(lambda a: np.fft.irfft(np.fft.rfft(a) * 2, 4), A)],
    "fft.hfft": [(lambda a: np.fft.hfft(a), A)],
    "fft.ihfft": [(lambda a: np.fft.ihfft(a).real, A)],
    "fft.fft2": [(lambda a: np.fft.fft2(a).imag, A)],
    "fft.ifft2": [(lambda a: np.fft.ifft2(a).real, A)],
    "fft.rfft2": [(lambda a: np.fft.rfft2(a).real, A)],
    "fft.irfft2": [(lambda a: np.fft.irfft2(a), A)],
    "fft.fftn": [(lambda a: np.fft.fftn(a).real, A)],
    "fft.ifftn": [(lambda a: np.fft.ifftn(a).real, A)],
    "fft.rfftn": [(lambda a: np.fft.rfftn(a).real, A)],
    "fft.irfftn": [(lambda a: np.fft.irfftn(a), A)],
    "fft.fftshift": [(lambda a: np.fft.fftshift(a, axes=1), A)],
    "fft.ifftshift": [(lambda a: np.fft.ifftshift(a), V)],
}
STEPWISE = {"fix", "round", "around"}


def numpy_function(name):
    home = np
    for part in name.split("."):
        home = getattr(home, part)
    return home


def test_every_function_is_in_a_case():
    covered = {numpy_function(name) for name in FUNCTION_CASES}
    assert set(FUNCTIONS) == covered


@pytest.mark.filterwarnings("ignore:.*scalar:DeprecationWarning")
@pytest.mark.parametrize("name", FUNCTION_CASES)
def test_function(name):
    for function, *arrays in FUNCTION_CASES[name]:
        check(function, *arrays, differentiable=name not in STEPWISE, slope_rtol=1e-5)


def test_piecewise():
    def model(x, edge, height):
        return np.piecewise(
            x, [x < edge, x > 2 * edge], [0.0, lambda x: height * x, lambda x: x**2]
        )

    check(model, draw(0, 3, 9), np.array(0.9), np.array(2.0))
    check(lambda x: np.piecewise(x, x < 1, [lambda x: -x, 3.0]), draw(0, 3, 9))
    check(lambda x: np.piecewise(x, [x < 1], [lambda x, k: k * x], 5), draw(0, 3, 9))
    edges = torch.tensor([[0.5], [1.0]])
    x = torch.linspace(0, 3, 7)
    found = in_numpy_words(model)(x, edges, torch.tensor([[2.0], [3.0]]))
    for row, edge, height in zip(found, (0.5, 1.0), (2.0, 3.0), strict=True):
        np.testing.assert_allclose(row, model(x.numpy(), edge, height), rtol=1e-6)
    with pytest.raises(ValueError, match="2 conditions need as many functions, got 1"):
        in_numpy_words(lambda x: np.piecewise(x, [x < 1, x > 2], [1.0]))(x)


def test_questions_about_arrays():
    x = NumpyTensor(torch.ones(2, 3))
    assert np.shape(x) == (2, 3)
    assert np.ndim(x) == 2
    assert np.size(x) == 6
    assert np.size(x, 1) == 3
    assert np.result_type(x, np.float64) == np.float64
    assert np.isrealobj(x)
    assert not np.iscomplexobj(x)
    assert "1." in np.array_str(x)
    assert "NumpyTensor" in np.array_repr(x)


# --- operators, attributes, methods ---


def test_operators_on_both_sides():
    a, b = draw(0.5, 2, 3, 4), draw(0.5, 2, 4)
    for model in (
        lambda x, y: (x + y - 2) * (3 - x) / y + 1 / x,
        lambda x, y: x**2 + 2**y + x**y - (-x) + abs(x - 1) + (+y),
        lambda x, y: (x % y) + (5 % y) + x % 0.4,
        lambda x, y: x * b + b * x - b / y + y / b - (b - y) + b**y,
        lambda x, y: np.float64(2) * x + x * np.float32(0.5) + np.float64(1) / y - np.int64(3) * y,
    ):
        check(model, a, b)
    for model in (
        lambda x, y: (x // y) + (7 // y),
        lambda x, y: (x > y) & (x < 2 * y) | ~(x >= 1) ^ (y <= 1),
        lambda x, y: (x == y) | (x != b),
        lambda x, y: divmod(x, y)[0],
        lambda x, y: 1 - (x > y),
        lambda x, y: (x > y) * x,
        lambda x, y: (x > 1) + (y > 1),
    ):
        check(model, a, b, differentiable=False)


METHODS = {
    "sum": lambda x: x.sum(axis=0),
    "mean": lambda x: x.mean(1, keepdims=True),
    "prod": lambda x: x.prod(axis=1),
    "std": lambda x: x.std(),
    "var": lambda x: x.var(axis=0, ddof=1),
    "min": lambda x: x.min(axis=1),
    "max": lambda x: x.max(),
    "cumsum": lambda x: x.cumsum(axis=1),
    "cumprod": lambda x: x.cumprod(),
    "any": lambda x: (x > 1).any(axis=0),
    "all": lambda x: (x > 1).all(),
    "argmax": lambda x: x.argmax(axis=0),
    "argmin": lambda x: x.argmin(),
    "clip": lambda x: x.clip(0, 1),
    "dot": lambda x: x.dot(C),
    "reshape": lambda x: x.reshape(2, 6) + x.reshape((2, -1)),
    "ravel": lambda x: x.ravel(),
    "flatten": lambda x: x.flatten(),
    "transpose": lambda x: x.transpose() + x.transpose(1, 0) + x.transpose((1, 0)),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "squeeze": lambda x: x[None].squeeze(),
    "astype": lambda x: x.astype(float),
    "astype_int": lambda x: x.astype(int),
    "copy": lambda x: x.copy(),
    "conj": lambda x: x.conj() + x.conjugate(),
    "repeat": lambda x: x.repeat(2, axis=1),
    "take": lambda x: x.take([0, 2]),
    "trace": lambda x: x.trace(),
    "diagonal": lambda x: x.diagonal(),
    "argsort": lambda x: x.argsort(axis=1),
    "nonzero": lambda x: (
        x[(x > 0).nonzero()] if isinstance(x, np.ndarray) else x[(A > 0).nonzero()]
    ),
    "real": lambda x: x.real + x.imag,
    "flat": lambda x: sum(v * k for k, v in enumerate(x.flat)),
    "len": lambda x: x * len(x) + x.shape[0] + x.ndim + x.size,
    "iter": lambda x: sum(row * k for k, row in enumerate(x)),
    "eps": lambda x: x + np.finfo(np.float64).eps,
}


@pytest.mark.parametrize("name", METHODS)
def test_method(name):
    check(METHODS[name], A, differentiable=name != "astype_int")


def test_round_is_numpys():
    check(lambda x: x.round(1), A, differentiable=False)


def test_dtype_is_numpys():
    assert NumpyTensor(torch.ones(2, dtype=torch.float64)).dtype == np.float64
    assert np.finfo(NumpyTensor(torch.ones(2)).dtype).bits == 32
    with pytest.raises(TypeError, match="NumPy has no dtype"):
        NumpyTensor(torch.ones(2, dtype=torch.bfloat16)).dtype  # noqa: B018


def test_unpacking_and_text():
    check(lambda p: (lambda a, b, c: a * b - c)(*p), np.array([1.0, 2.0, 3.0]))
    assert f"{NumpyTensor(torch.tensor(1.5)):.3f}" == "1.500"
    assert repr(NumpyTensor(torch.tensor(1.5))) == "NumpyTensor(tensor(1.5000))"


def test_torch_words_beside_numpys():
    x = torch.tensor([0.3, 1.2, 2.0], dtype=torch.float64)
    closed_over = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def model(x, a):
        y = torch.exp(-x) * np.cos(x) + closed_over * x + (x * closed_over).unsqueeze(0).squeeze(0)
        return y + a * torch.special.bessel_j0(x) + x.exp() + x.sum(dim=0) + x.max(dim=0).values

    found, slope = jvp(
        lambda x: in_numpy_words(model)(x, 2.0),
        (x,),
        (torch.tensor([1.0, 0, 0], dtype=torch.float64),),
    )
    t = x.numpy()
    c = closed_over.numpy()
    wanted = np.exp(-t) * np.cos(t) + 2 * c * t + 2 * special.j0(t) + np.exp(t) + t.sum() + t.max()
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    first = (
        -np.exp(-t[0]) * (np.cos(t[0]) + np.sin(t[0]))
        + 2 * c[0]
        - 2 * special.j1(t[0])
        + np.exp(t[0])
    )
    np.testing.assert_allclose(slope, [first + 1, 1, 1], rtol=1e-13)
    # torch's meaning of two axes among three
    assert NumpyTensor(torch.ones(2, 3, 4)).transpose(0, 2).shape == (4, 3, 2)
    with pytest.raises(TypeError, match="out= of a torch function"):
        torch.exp(NumpyTensor(x), out=NumpyTensor(x.clone()))
    with pytest.raises(AttributeError):
        NumpyTensor(x).no_such_word  # noqa: B018
    assert NumpyTensor(x).device == x.device


# --- indexing, assignment, writing in place ---

INDICES = {
    "integer": np.s_[1],
    "negative": np.s_[-1, 2],
    "slice": np.s_[1:, ::2],
    "backwards": np.s_[::-1],
    "backwards in part": np.s_[..., 3:0:-2],
    "backwards to nothing": np.s_[0:2:-1],
    "backwards beside arrays": np.s_[::-1, [0, 2]],
    "new axes": np.s_[None, :, None, 1:],
    "ellipsis": np.s_[..., 0],
    "list": np.s_[[0, 2, 2]],
    "array": np.s_[np.array([[0], [2]]), np.array([1, 3])],
    "mask": A > 0,
    "row mask": np.array([True, False, True]),
    "mask in a tuple": np.s_[:, np.array([True, False, True, True])],
    "NumPy integer": np.s_[np.int64(1)],
}


@pytest.mark.parametrize("name", INDICES)
def test_getitem(name):
    key = INDICES[name]
    check(lambda x: x[key] * 2, A)


def test_integers_beside_arrays_count_as_arrays():
    x = draw(-1, 1, 2, 3, 4)
    check(lambda x: x[0, :, [1, 2]], x)
    check(lambda x: x[:, 0, [1, 2]], x)


@pytest.mark.parametrize("name", [name for name in INDICES if name != "backwards to nothing"])
def test_setitem(name):
    key = INDICES[name]

    def write_numbers(x):
        y = x.copy()
        y[key] = 1.5
        return y * x

    def write_values(x):
        y = np.zeros_like(x)
        y[key] = x[key] ** 2
        y[0] += x[1]
        y[key] *= 3.0
        return y

    check(write_numbers, A)
    check(write_values, A)


def test_setitem_by_masks_that_depend_on_parameters():
    def model(x, edge, slope):
        y = np.zeros_like(x)
        y[x < edge] = 1.0
        y[x >= edge] = slope
        y[(x > 2) & (x > edge)] = x[0] * slope
        return y

    check(model, draw(0, 3, 8), np.array(1.1), np.array(2.0))
    x = torch.linspace(0, 3, 7)
    edges, slopes = torch.tensor([[0.7], [1.2], [2.2]]), torch.tensor([[1.0], [2.0], [3.0]])
    found = in_numpy_words(model)(x, edges, slopes)
    wanted = [model(x.numpy(), e.item(), s.item()) for e, s in zip(edges, slopes, strict=True)]
    np.testing.assert_allclose(found, np.stack(wanted))
    mapped = vmap(in_numpy_words(model), in_dims=(None, 0, 0))(x, edges[:, 0], slopes[:, 0])
    np.testing.assert_allclose(mapped, np.stack(wanted))
    with pytest.raises(IndexError, match=r"mask of shape \(3, 7\) cannot select from shape \(7,\)"):
        in_numpy_words(lambda x, e: x[x < e])(x, edges)
    with pytest.raises(
        ValueError, match=r"7 values cannot be assigned by a mask of shape \(3, 7\)"
    ):
        in_numpy_words(lambda x, e: np.zeros_like(x).__setitem__(x < e, x))(x, edges)
    with pytest.raises(ValueError, match=r"cannot be assigned to a selection of shape \(2,\)"):
        in_numpy_words(lambda x: x.__setitem__(slice(2), x[:3]))(x)


def test_assignments_of_all_problems_values():
    def model(x, a):
        y = np.zeros_like(x)
        y[2:] = a * x[2:]
        y[:] += x
        y[np.array([0, 1])] = -a * x[:2]
        return y

    x, a = torch.linspace(0, 1, 5), torch.tensor([[1.0], [2.0]])
    found = in_numpy_words(model)(x, a)
    np.testing.assert_allclose(found, np.stack([model(x.numpy(), v.item()) for v in a]), rtol=1e-6)


def test_views_write_through_as_numpys_do():
    def slices(x):
        y = x.copy()
        part = y[1:]
        part += x[:-1] * 2
        part[0] = 7.0
        corner = part[:, 1:]
        corner *= 3
        y[0] = -x[0]
        return y + part.sum()

    def reshaped(x):
        y = np.zeros_like(x)
        y.T[1] = x[:, 0]
        y.reshape(-1)[::5] += 2.0
        y.ravel()[3] = x[0, 0]
        y[None].squeeze()[2] = 5.0
        z = y.T.ravel()
        z += 100.0
        z = y.T.reshape(-1)
        z[0] = 50.0
        return y * x

    def late(x):
        y = x.copy()
        view = y[1:]
        y *= 2
        np.copyto(y, x, where=x > 0)
        y.sort(axis=0)
        y.fill(3.0) if x.ndim == 1 else None
        return view * x[1:]

    for model in (slices, reshaped, late):
        check(model, A)
    check(late, V)


def test_a_view_of_what_has_grown_is_refused():
    def model(x, a):
        y = np.zeros_like(x)
        view = y[1:]
        y[:] = a * x
        return view * 1

    with pytest.raises(RuntimeError, match="gave that array the shape"):
        in_numpy_words(model)(torch.ones(3), torch.ones(2, 1))
    with pytest.raises(ValueError, match="a view of shape"):
        in_numpy_words(lambda x, a: x[1:].__setitem__(slice(None), a))(
            torch.ones(3), torch.ones(2, 1)
        )


def test_writing_in_place_leaves_numbers_with_two_names_alone():
    def model(x, offset, height):
        y = offset
        y += height * x
        y -= 1
        y *= x
        y /= 2.0
        y **= 2
        return y + offset

    offsets, heights = torch.tensor([[0.3], [0.4]]), torch.tensor([[2.0], [1.0]])
    x = torch.linspace(0.1, 1, 5)
    found = in_numpy_words(model)(x, offsets, heights)
    wanted = [model(x.numpy(), o.item(), h.item()) for o, h in zip(offsets, heights, strict=True)]
    np.testing.assert_allclose(found, np.stack(wanted), rtol=1e-5)


def test_writing_in_place_reaches_helpers():
    def add_peak(y, x, height):
        y += height * np.exp(-(x**2))
        np.add(y, 1.0, out=y)

    def model(x, height):
        y = np.zeros_like(x)
        add_peak(y, x, height)
        add_peak(y, x - 1, height)
        y //= 0.5
        y %= 3
        mask = x > 0
        mask &= x < 0.5
        mask |= x > 0.9
        mask ^= x > 0.95
        return y + mask

    check(model, draw(-1, 1, 9), np.array(2.0), differentiable=False)
    x, heights = torch.linspace(-1, 1, 9), torch.tensor([[1.0], [2.0]])
    found = in_numpy_words(model)(x, heights)
    np.testing.assert_allclose(
        found, np.stack([model(x.numpy(), h.item()) for h in heights]), atol=1e-5
    )
    check(lambda x: (lambda m: m.__imatmul__(S))(x.copy()), S)


def test_casts_are_numpys():
    with pytest.raises(TypeError, match="cannot be written into an array of dtype"):
        in_numpy_words(lambda x, n: np.add(n, x, out=n))(torch.ones(3), torch.arange(3))

    def truncating(x, n):
        y = np.zeros_like(n)
        y[1] = x[1]
        return y + x

    check(truncating, np.array([1.5, 2.5, 3.5]), np.array([1, 2, 3]), differentiable=False)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.__iadd__(1),
        lambda x: x.__setitem__(0, 5.0),
        lambda x: x[1:].__imul__(3.0),
        lambda x: np.exp(x, out=x),
        lambda x: x.add_(1),
        lambda x: torch.relu_(x),
        lambda x: x.sort(),
        lambda x: x.fill(0),
        lambda x: np.copyto(x, 0.0),
        lambda x: x.ravel().__isub__(1),
    ],
)
def test_nothing_writes_into_the_callers_tensors(write):
    caller = torch.tensor([3.0, -1.0, 2.0])
    seen = []

    def model(x):
        write(x)
        seen.append(x.tensor)
        return x * 1

    for x in (caller, caller.clone().requires_grad_()):
        in_numpy_words(model)(x)
        assert torch.equal(caller, torch.tensor([3.0, -1.0, 2.0]))
    assert not torch.equal(seen[0], caller)


def test_nothing_writes_into_constant_arrays():
    constant = np.array([1.0, 2.0, 3.0])
    constant.setflags(write=False)

    def model(x):
        y = np.where(x > 5, x, constant)
        y += 1
        return constant[::-1] * y

    np.testing.assert_allclose(in_numpy_words(model)(torch.zeros(3)), [6, 6, 4])
    np.testing.assert_array_equal(constant, [1, 2, 3])


# --- dtypes ---


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x * np.float64(2),
        lambda x: np.pi * x + 1,
        lambda x: np.linspace(0, 1, 3) * x,
        lambda x: x * np.arange(3),
        lambda x: x + np.array(2.0),
        lambda x: np.where(x > 0, 1.0, 0.0),
        lambda x: np.maximum(x, np.float64(0)),
        lambda x: np.hypot(x, 3.0),
        lambda x: np.arctan2(np.float64(1), x),
        lambda x: (x > 0) * 2.5,
        lambda x: (x > 0) / 2,
        lambda x: np.mean(x > 0),
        lambda x: np.sqrt(x > 0),
        lambda x: x.astype(float) + np.zeros_like(x, dtype=float),
        lambda x: np.stack([x, np.ones(3)]),
        lambda x: np.interp(x, np.linspace(0, 1, 4), np.arange(4)),
        lambda x: np.array([x[0], 1.0]),
        lambda x: [x[0], 2, np.float64(3)],
        lambda x: np.ones(3),
        lambda x: 3,
        lambda x: special.xlogy(np.arange(3.0), np.exp(x)),
        lambda x: np.add.reduce(x > 0) * 0.5,
    ],
)
def test_numbers_and_constants_take_the_models_precision(model):
    for dtype in (torch.float32, torch.float64):
        found = in_numpy_words(model)(torch.tensor([0.3, 0.6, 0.9], dtype=dtype))
        assert found.dtype == dtype
        exact = np.asarray(model(np.array([0.3, 0.6, 0.9])))
        np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_integer_tensors_are_computed_in_the_parameters_precision():
    n, a = torch.arange(1, 5), torch.tensor(2.0, dtype=torch.float64)
    for model in (
        lambda n, a: a * np.exp(-n / 10),
        lambda n, a: a * np.sqrt(n),
        lambda n, a: a + n * 0.1,
        lambda n, a: a * np.hypot(n, 0.1),
        lambda n, a: a * n.mean() + n.std(),
    ):
        found = in_numpy_words(model)(n, a)
        np.testing.assert_allclose(found, model(n.numpy(), 2.0), rtol=1e-14)
    for model in (
        lambda n: n // 2,
        lambda n: n * 3 + 1,
        lambda n: np.abs(-n),
        lambda n: n**2,
        np.square,
    ):
        assert in_numpy_words(model)(n).dtype == torch.int64


def test_low_precision_and_odd_constants():
    x = torch.ones(3, dtype=torch.bfloat16)
    assert in_numpy_words(lambda x: x * np.array([1.0, 2.0, 3.0]))(x).dtype == torch.bfloat16
    for dtype in (np.uint16, np.longdouble, ">f8", np.float16, np.int8):
        constant = np.arange(3).astype(dtype)
        found = in_numpy_words(lambda x: x * constant)(torch.ones(3))  # noqa: B023
        np.testing.assert_array_equal(found, [0, 1, 2])
    with pytest.raises(TypeError, match="cannot become a tensor"):
        in_numpy_words(lambda x: x * np.array(["a"]))(x)
    with pytest.raises(TypeError, match=r"operands are tensors, arrays and numbers, got dict"):
        in_numpy_words(lambda x: np.add(x, {}))(x)
    with pytest.raises(TypeError, match="torch has no dtype"):
        in_numpy_words(lambda x: x.astype(np.longdouble))(x)
    assert in_numpy_words(lambda x: x.astype(complex))(torch.ones(2)).dtype == torch.complex64
    assert in_numpy_words(lambda x: x.astype(np.float64))(torch.ones(2)).dtype == torch.float64
    assert (
        in_numpy_words(lambda x: np.multiply(x, 2, dtype=torch.float64))(torch.ones(2)).dtype
        == torch.float64
    )


# --- leaving torch ---


@pytest.mark.parametrize(
    "model",
    [
        lambda x, a: math.exp(a) * np.sin(x),
        lambda x, a: float(a) * np.sin(x),
        lambda x, a: complex(a) * np.sin(x),
        lambda x, a: int(a) * np.sin(x),
        lambda x, a: a.item() * np.sin(x),
        lambda x, a: a.tolist() * np.sin(x),
        lambda x, a: a.numpy() * np.sin(x),
        lambda x, a: np.float64(a) * x,
        lambda x, a: np.copyto(np.zeros(3), a * x),
        lambda x, a: np.zeros(3).__iadd__(a * x),
    ],
)
def test_numbers_do_not_escape(model):
    x, a = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5)
    with pytest.raises(NumberEscape, match=r"derivative would be lost|numpy\.copyto"):
        in_numpy_words(model)(x, a)
    arrays_of_numbers_do_not_escape(model)


@pytest.mark.parametrize(
    "model",
    [
        lambda x, a: np.asarray(a * x, dtype=float),
        lambda x, a: np.array([a, 1.0], dtype=float),
        lambda x, a: np.zeros(3).__setitem__(slice(None), a * x),
        lambda x, a: np.zeros(3).__setitem__(0, a),
    ],
)
def test_arrays_of_numbers_do_not_escape(model):
    arrays_of_numbers_do_not_escape(model)


def arrays_of_numbers_do_not_escape(model):
    x, a = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5)
    with pytest.raises(NumberEscape):
        in_numpy_words(model)(x, a.clone().requires_grad_())
    with forward_ad.dual_level(), pytest.raises(NumberEscape):
        in_numpy_words(model)(x, forward_ad.make_dual(a, torch.ones(())))
    with FlopCounterMode(display=False), pytest.raises(NumberEscape):
        in_numpy_words(model)(x, a)
    with pytest.raises(NumberEscape):
        jvp(lambda a: in_numpy_words(model)(x, a), (a,), (torch.ones(()),))
    with pytest.raises(NumberEscape):
        vmap(lambda a: in_numpy_words(model)(x, a))(torch.ones(2))


def test_data_may_become_a_plain_array():
    def model(x, a):
        x = np.asarray(x, dtype=float)
        y = np.zeros(len(x))
        y[:] = x**2
        return a * np.exp(-x) + y

    check_x = np.linspace(0, 1, 4)
    check(lambda a: model(check_x, a), np.array(0.7))
    for dtype in (torch.float32, torch.bfloat16):
        x, a = torch.tensor(check_x, dtype=dtype), torch.tensor(0.7, dtype=dtype)
        found, slope = jvp(lambda a: in_numpy_words(model)(x, a), (a,), (torch.ones_like(a),))  # noqa: B023
        assert found.dtype == slope.dtype == dtype
        np.testing.assert_allclose(slope.double(), np.exp(-x.double().numpy()), rtol=1e-2)
        assert torch.equal(x, torch.tensor(check_x, dtype=dtype))


def test_integers_and_truths_do():
    n = torch.tensor(3)

    def model(x, n):
        total = sum(x**k for k in range(n))
        if n > 2 and (x > 0).all():
            total = total * int(n) * float(n) * n.item() + np.ones(5)[n]
        return total + np.arange(6.0)[np.array([1, 2, 3])][x > 1.5].sum() + np.asarray(n)

    x = np.array([1.0, 2.0, 3.0])
    found, slope = jvp(
        lambda x: in_numpy_words(model)(x, n),
        (torch.tensor(x),),
        (torch.ones(3, dtype=torch.float64),),
    )
    np.testing.assert_allclose(found, 27 * (1 + x + x**2) + 1 + 5 + 3)
    np.testing.assert_allclose(slope, 27 * (1 + 2 * x))
    with pytest.raises(RuntimeError):
        bool(NumpyTensor(torch.ones(2)))


# --- whole models ---


def test_object_arrays_carry_derivatives():
    def rosenbrock(p):
        return np.array([10 * (p[1] - p[0] ** 2), 1 - p[0]])

    p = np.array([-1.2, 1.0])
    check(rosenbrock, p)
    check(lambda p: np.array([[p[0], 1.0], [np.exp(p[1]), p[0] * p[1]]]), p)
    check(lambda p: np.array([rosenbrock(p), p]) * 2, p)
    check(lambda p: np.exp(np.array([p[0], p[1]])) @ np.array([1.0, 2.0]), p)
    check(lambda p: np.array(p)[::-1] * np.asarray(p), p)
    check(lambda p: np.asarray(p).sum() * p, p)
    check(lambda p: np.full(3, p[0] * p[1]), p)
    check(lambda p: np.array([p[0], p[1]]) * p, p)
    check(lambda p: np.concatenate([[p[0]], [p[1], 2.0]]), p)
    check(lambda p: np.vectorize(lambda v: v**2)(p), p)
    check(lambda p: (p[0] * np.ones(3), np.arange(3)), p)
    check(lambda p: [[p[0], 1.0], [p[1], 2.0]], p)
    check(lambda p: [p, np.array([p[0], 3.0])], p)
    check(lambda p: [p[0] - 1, 2.0], p)


def test_results_with_a_number_a_problem():
    p = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = in_numpy_words(lambda p: [p[:, 0] * p[:, 1], 1.0])(p)
    np.testing.assert_allclose(found, [[2, 12, 30], [1, 1, 1]])
    large = torch.rand(2000, 2)
    found = in_numpy_words(lambda p: np.array([p[:, 0] * p[:, 1], np.exp(p[:, 0])]))(large)
    np.testing.assert_allclose(found, torch.stack([large[:, 0] * large[:, 1], large[:, 0].exp()]))
    rows = np.empty(2, dtype=object)

    def filled(p):
        rows[0], rows[1] = p[:, 0], 2.0
        return rows

    np.testing.assert_allclose(in_numpy_words(filled)(p), [[1, 3, 5], [2, 2, 2]])
    assert in_numpy_words(lambda p: [])(p).shape == (0,)
    assert in_numpy_words(lambda p: np.empty(0, dtype=object))(p).shape == (0,)
    with pytest.raises(TypeError, match="returned None"):
        in_numpy_words(lambda p: None)(p)


def test_arguments_anywhere():
    def model(data, *, scale):
        return data["x"] * scale[0] + np.exp(data["y"][1]) * np.arange(2)

    x = torch.tensor([1.0, 2.0])
    found = in_numpy_words(model)({"x": x, "y": (None, x[1])}, scale=[torch.tensor(3.0)])
    wanted = 3 * x.numpy() + np.exp(2.0) * np.arange(2)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert in_numpy_words(model).__name__ == "model"
    assert in_numpy_words(lambda: np.ones(2))().dtype == torch.get_default_dtype()


X = np.linspace(0, 3, 20)


def closed_over_left(p):
    return X * p[0] + X**2 * p[1]


def closed_over_right(p):
    return p[0] * X + p[1] * X**2 - np.sin(X) / p[0]


def test_models_with_their_data_inside():
    p = np.array([0.7, 1.3])
    check(closed_over_left, p)
    check(closed_over_right, p)


def test_batched_models():
    def gaussians(x, height, centre, width, slope):
        z = (x - centre) / width
        return (
            height * np.exp(-(z**2) / 2)
            + slope * x
            + special.erf(z) * np.where(x > centre, 1.0, 0.5)
        )

    x = np.linspace(-3, 3, 50)
    params = draw(0.5, 2, 4, 6)
    columns = [torch.tensor(row)[:, None] for row in params]
    found = in_numpy_words(gaussians)(torch.tensor(x), *columns)
    wanted = np.stack([gaussians(x, *params[:, problem]) for problem in range(6)])
    np.testing.assert_allclose(found, wanted, rtol=1e-13)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: np.linalg.svd(x), "numpy.linalg.svd"),
        (lambda x: np.spacing(x), "numpy.spacing"),
        (lambda x: special.ellipk(x), "scipy.special.ellipk"),
        (lambda x: np.unwrap(x), "numpy.unwrap"),
        (lambda x: special.polygamma(1, x), "scipy.special.polygamma"),
        (
            lambda x: np.sum(x, initial=1.0, out=None) + np.max(x, initial=0.0),
            "numpy.(a)?max with the argument initial",
        ),
        (lambda x: np.interp(x, x, x, period=3), "numpy.interp with the argument period"),
        (lambda x: np.einsum(x, [0, 1]), "numpy.einsum with lists"),
        (
            lambda x: np.matmul(x, x, axes=[(0, 1), (0, 1), (0, 1)]),
            "numpy.matmul with the argument axes",
        ),
    ],
)
def test_what_is_missing_is_named(call, name):
    x = torch.ones(2, 2)
    with pytest.raises(UnsupportedNumpyFunction, match=rf"the model calls {name}.* no counterpart"):
        jvp(in_numpy_words(call), (x,), (x,))
    assert UnsupportedNumpyFunction("numpy.spacing").name == "numpy.spacing"


def test_other_errors_are_the_models_own():
    with pytest.raises(ZeroDivisionError):
        in_numpy_words(lambda x: 1 // 0)(torch.ones(2))
    with pytest.raises(ValueError, match="my own"):
        in_numpy_words(lambda x: (_ for _ in ()).throw(ValueError("my own")))(torch.ones(2))
    with pytest.raises(ValueError, match="axis 0 of shape"):
        in_numpy_words(lambda x: np.squeeze(x, 0))(torch.ones(2))
    with pytest.raises(ValueError, match="takes one dimension, got 2 and 1"):
        in_numpy_words(lambda x: np.convolve(x, x[0]))(torch.ones(2, 2))
    with pytest.raises(ValueError, match="mode is 'full', 'same' or 'valid'"):
        in_numpy_words(lambda x: np.convolve(x, x, mode="other"))(torch.ones(2))
    with pytest.raises(ValueError, match="xp has one dimension"):
        in_numpy_words(lambda x: np.interp(x, x, np.ones(3)))(torch.ones(2))


# --- which words a function uses ---


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x, a: a * torch.exp(-x), False),
        (lambda x, a: a * x + 2.0, False),
        (lambda x, a: a * x * math.pi + float(X[1]), False),
        (lambda x, a: (x + torch.as_tensor(X[:3])).sum() * a, False),
        (lambda x, a: a * np.exp(-x), True),
        (lambda x, a: X[:3] * x * a, True),
        (lambda x, a: a * X[:3], True),
        (lambda x, a: a * np.float64(2) * x, False),
        (lambda x, a: np.float64(2) * a * x, True),
        (lambda x, a: a * special.erf(x), True),
        (lambda x, a: np.array([a, x[0]]), True),
        (lambda x, a: np.asarray(x) * a, True),
        (lambda x, a: np.where(x > 0, a, 0.0), True),
        (lambda x, a: np.mean(x) * a, True),
        (lambda x, a: a * x[::-1], True),
        (lambda x, a: a * x.sum(axis=0, keepdims=True).astype(float), True),
        (lambda x, a: undefined_name * x, False),  # noqa: F821
        (lambda x, a: math.exp(x), False),
    ],
)
def test_uses_numpy(function, wanted):
    x, a = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5)
    assert uses_numpy(function, (x, a), {}) is wanted
    assert (
        uses_numpy(lambda data, **kwargs: function(data[0], kwargs["a"]), ([x],), {"a": a})
        is wanted
    )


def test_uses_numpy_is_not_fooled_and_leaves_no_trace():
    x = torch.ones(3)

    def catching(y):
        y += 1
        try:
            return np.exp(y)
        except Exception:
            return y

    assert uses_numpy(catching, (x,))
    assert torch.equal(x, torch.ones(3))
    assert not uses_numpy(lambda y: y.add_(1), (x,))
    assert torch.equal(x, torch.ones(3))


def test_models_can_be_traced():
    def model(x, a, b):
        y = np.zeros_like(x)
        y[x > a] = b
        return a * np.exp(-b * x) + special.voigt_profile(x, a, b) + y + np.array([a, b]).sum()

    x = torch.linspace(0.1, 2, 5, dtype=torch.float64)
    a, b = torch.tensor([0.7, 1.3], dtype=torch.float64)
    graph = make_fx(in_numpy_words(model))(x, a, b)
    found = graph(x + 0.3, b, a)
    np.testing.assert_allclose(found, model(x.numpy() + 0.3, b.item(), a.item()), rtol=1e-12)


def test_import_leaves_scipy_alone():
    code = (
        "import sys, numpy as np, torch, torchimize.numpy_models as m;"
        "m.in_numpy_words(lambda x: np.exp(x))(torch.ones(2));"
        "assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
