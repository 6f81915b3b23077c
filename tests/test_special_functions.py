"""Special functions: values and derivatives against scipy, mpmath and closed forms."""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from scipy import special as scipy_special
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchimize import special_functions as special
from torchimize.special_functions.correction import CORRECTIONS

POSITIVE = [1e-3, 0.3, 0.9999, 1.0, 1.7, 4.2, 7.999, 8.001, 25.0, 55.0]
ANY = [-40.0, -9.0, -3.0, -1e-3, 0.0, *POSITIVE]


def derivative(name: str, order: int):
    return lambda x: getattr(scipy_special, name)(order, x)


# torch's name: (arguments, scipy's value, scipy's derivative)
UNARY = {
    "bessel_j0": (ANY, scipy_special.j0, lambda x: -scipy_special.j1(x)),
    "bessel_j1": (ANY, scipy_special.j1, derivative("jvp", 1)),
    "bessel_y0": (POSITIVE, scipy_special.y0, lambda x: -scipy_special.y1(x)),
    "bessel_y1": (POSITIVE, scipy_special.y1, derivative("yvp", 1)),
    "modified_bessel_i0": (ANY, scipy_special.i0, scipy_special.i1),
    "modified_bessel_i1": (ANY, scipy_special.i1, derivative("ivp", 1)),
    "modified_bessel_k0": (POSITIVE, scipy_special.k0, lambda x: -scipy_special.k1(x)),
    "modified_bessel_k1": (POSITIVE, scipy_special.k1, derivative("kvp", 1)),
    "scaled_modified_bessel_k0": (
        POSITIVE,
        scipy_special.k0e,
        lambda x: scipy_special.k0e(x) - scipy_special.k1e(x),
    ),
    "scaled_modified_bessel_k1": (
        POSITIVE,
        scipy_special.k1e,
        lambda x: scipy_special.k1e(x) * (1 - 1 / x) - scipy_special.k0e(x),
    ),
    "spherical_bessel_j0": (
        ANY,
        lambda x: scipy_special.spherical_jn(0, np.abs(x)),
        lambda x: np.sign(x) * scipy_special.spherical_jn(0, np.abs(x), derivative=True),
    ),
    "airy_ai": (
        [-30.0, -9.0, -8.0, -7.9, -4.0, -2.2, -2.0, -1.0, 0.0, 0.5, 3.0, 12.0],
        lambda x: scipy_special.airy(x)[0],
        lambda x: scipy_special.airy(x)[1],
    ),
    "cube_root": (
        [-27.0, -1e-9, 1e-12, 0.3, 8.0, 1e20],
        np.cbrt,
        lambda x: 1 / (3 * np.cbrt(x) ** 2),
    ),
}
# Bessel functions, whose zeros have no relative accuracy, are compared against their amplitude.
UNARY_CASES = [pytest.param(name, *case, id=name) for name, case in UNARY.items()]


def close(found, wanted, tolerance):
    wanted = np.asarray(wanted)
    scale = np.abs(wanted) + np.where(np.abs(wanted) < 1, np.minimum(1, np.abs(wanted) + 0.1), 0)
    np.testing.assert_array_less(
        np.abs(found.double().numpy() - wanted), tolerance * scale + 1e-300
    )


@pytest.mark.parametrize(("name", "points", "value", "slope"), UNARY_CASES)
def test_value_and_derivatives(name, points, value, slope):
    function = getattr(special, name)
    x = torch.tensor(points, dtype=torch.float64)
    ones = torch.ones_like(x)
    close(function(x), value(x.numpy()), 5e-14)
    close(jvp(function, (x,), (ones,))[1], slope(x.numpy()), 2e-13)
    close(vjp(function, x)[1](ones)[0], slope(x.numpy()), 2e-13)
    directions = torch.eye(len(points), dtype=torch.float64)
    batched = vmap(lambda direction: jvp(function, (x,), (direction,))[1])(directions)
    close(batched.diagonal(), slope(x.numpy()), 2e-13)
    assert (batched - torch.diag(batched.diagonal())).abs().max() == 0


@pytest.mark.parametrize(("name", "points", "value", "slope"), UNARY_CASES)
def test_second_derivative_in_every_mode(name, points, value, slope):
    function = getattr(special, name)
    x = torch.tensor([p for p in points if abs(p) > 1e-2 and abs(p) < 1e3], dtype=torch.float64)
    step = 1e-5 * x.abs().numpy()
    wanted = (slope(x.numpy() + step) - slope(x.numpy() - step)) / (2 * step)
    nested = {
        "grad of grad": vmap(grad(grad(function)))(x),
        "jvp of jvp": jvp(
            lambda y: jvp(function, (y,), (torch.ones_like(y),))[1], (x,), (torch.ones_like(x),)
        )[1],
        "jvp of vjp": jvp(
            lambda y: vjp(function, y)[1](torch.ones_like(y))[0], (x,), (torch.ones_like(x),)
        )[1],
        "vjp of jvp": jacrev(lambda y: jacfwd(function)(y).diagonal())(x).diagonal(),
    }
    for mode, found in nested.items():
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7, err_msg=mode)


@pytest.mark.parametrize("name", UNARY)
def test_float32(name):
    points, value, slope = UNARY[name]
    x = torch.tensor(points, dtype=torch.float32)
    found, change = jvp(getattr(special, name), (x,), (torch.ones_like(x),))
    assert found.dtype == change.dtype == torch.float32
    exact = x.double().numpy()
    close(found, value(exact), 2e-5)
    close(change, slope(exact), 5e-5)


@pytest.mark.parametrize("name", ["j0", "j1", "y0", "y1"])
def test_bessel_functions_are_right_everywhere(name):
    x = torch.linspace(1e-3, 60, 20001, dtype=torch.float64)
    found = getattr(special, f"bessel_{name}")(x)
    wanted = getattr(scipy_special, name)(x.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=3e-15)


def test_airy_function_is_right_everywhere():
    x = torch.linspace(-40, 10, 10001, dtype=torch.float64)
    value, slope = jvp(special.airy_ai, (x,), (torch.ones_like(x),))
    wanted = scipy_special.airy(x.numpy())
    np.testing.assert_allclose(value, wanted[0], rtol=1e-11, atol=5e-14)
    np.testing.assert_allclose(slope, wanted[1], rtol=1e-11, atol=5e-13)


def test_limits_at_the_origin():
    zero = torch.zeros((), dtype=torch.float64)
    assert special.bessel_y0(zero) == special.bessel_y1(zero) == -torch.inf
    assert torch.isnan(special.bessel_y0(zero - 1))
    assert torch.isnan(special.bessel_y1(zero - 1))
    assert grad(special.bessel_j1)(zero).item() == pytest.approx(0.5, abs=1e-15)
    assert grad(special.modified_bessel_i1)(zero).item() == pytest.approx(0.5, abs=1e-15)
    assert grad(grad(special.bessel_j1))(zero) == grad(special.spherical_bessel_j0)(zero) == 0


# a, x and d/da of the regularised lower incomplete gamma function, by mpmath with 40 digits
GAMMA_ORDERS = [
    (0.05, 0.1, -1.7254922610573575),
    (0.5, 0.3, -0.7705703513753519),
    (2.0, 2.5, -0.24878306814493012),
    (30.0, 28.0, -0.07049269276012013),
    (200.0, 210.0, -0.021619881014598382),
]


def test_incomplete_gamma_functions():
    a, x, by_order = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*GAMMA_ORDERS, strict=True)
    )
    order, point = a.numpy(), x.numpy()
    density = np.exp((order - 1) * np.log(point) - point - scipy_special.gammaln(order))
    for function, sign in ((special.gammainc, 1), (special.gammaincc, -1)):
        by_a, by_x = (vmap(jacfwd(function, argument))(a, x) for argument in range(2))
        np.testing.assert_allclose(by_x, sign * density, rtol=1e-12)
        np.testing.assert_allclose(by_a, sign * by_order, rtol=2e-9)
        reverse = vjp(function, a, x)[1](torch.ones_like(a))
        np.testing.assert_allclose(torch.stack(reverse), torch.stack([by_a, by_x]), rtol=1e-12)
    # torch's values near x = a > 20 are off by up to 5e-10
    np.testing.assert_allclose(
        special.gammainc(a, x), scipy_special.gammainc(order, point), rtol=0, atol=5e-10
    )


def test_gamma_derivatives_in_float32_do_not_cancel():
    a, x, by_order = (torch.tensor(column) for column in zip(*GAMMA_ORDERS, strict=True))
    found = jvp(lambda y: special.gammainc(y, x), (a,), (torch.ones_like(a),))[1]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, by_order, rtol=1e-5)


def test_zeta():
    s = torch.tensor([2.0, 3.5, 2.0], dtype=torch.float64)
    q = torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64)
    ones = torch.ones_like(s)
    by_shift = jvp(lambda y: special.zeta(s, y), (q,), (ones,))[1]
    wanted = -s.numpy() * scipy_special.zeta(s.numpy() + 1, q.numpy())
    np.testing.assert_allclose(by_shift, wanted, rtol=1e-13)
    by_exponent = jvp(lambda y: special.zeta(y, q), (s,), (ones,))[1]
    # zeta'(s) = -sum ln(n) / n^s: by the terms up to 10^6 and the integral of the rest
    n = np.arange(1, 10**6, dtype=np.float64)
    for exponent, found in zip(s[:2].tolist(), by_exponent[:2].tolist(), strict=True):
        last = float(10**6)
        power = exponent - 1
        tail = last**-power * (np.log(last) / power + power**-2) + np.log(last) / last**exponent / 2
        assert found == pytest.approx(-(np.log(n) / n**exponent).sum() - tail, rel=1e-10)


@pytest.mark.parametrize(
    ("torch_name", "scipy_name"),
    [
        ("chebyshev_polynomial_t", "eval_chebyt"),
        ("chebyshev_polynomial_u", "eval_chebyu"),
        ("hermite_polynomial_h", "eval_hermite"),
        ("hermite_polynomial_he", "eval_hermitenorm"),
        ("laguerre_polynomial_l", "eval_laguerre"),
        ("legendre_polynomial_p", "eval_legendre"),
    ],
)
@pytest.mark.parametrize("degree", [0, 1, 2, 9])
def test_polynomials(torch_name, scipy_name, degree):
    x = torch.tensor([-0.95, -0.2, 0.0, 0.4, 0.8], dtype=torch.float64)
    points = x.numpy()
    evaluate = getattr(scipy_special, scipy_name)
    change = (evaluate(degree, points + 1e-6) - evaluate(degree, points - 1e-6)) / 2e-6
    function = getattr(torch.special, torch_name)
    for n in (degree, torch.full((5,), degree)):
        with special.CorrectDerivatives():
            found, slope = jvp(partial(function, n=n), (x,), (torch.ones_like(x),))
        np.testing.assert_allclose(found, evaluate(degree, points), rtol=1e-12, atol=1e-13)
        tolerance = 1e-7 * np.abs(change).max() + 1e-9
        np.testing.assert_allclose(slope, change, rtol=0, atol=tolerance)


def test_shifted_polynomials():
    x = torch.tensor([0.1, 0.7], dtype=torch.float64)
    with special.CorrectDerivatives():
        slope = vmap(grad(lambda y: torch.special.shifted_chebyshev_polynomial_t(y, 3)))(x)
    # T3(2x - 1) = 4u³ - 3u
    u = 2 * x - 1
    np.testing.assert_allclose(slope, 2 * (12 * u * u - 3), rtol=1e-13)


X, Y = np.meshgrid(np.linspace(-30, 30, 241), [-2, -0.3, 0, 1e-6, 1e-3, 0.1, 1, 5, 9, 30])


def test_faddeeva_function():
    wanted = scipy_special.wofz(X + 1j * Y)
    x, y = torch.tensor(X), torch.tensor(Y)
    size = np.abs(wanted)
    assert (np.abs(special.faddeeva_real(x, y).numpy() - wanted.real) / size).max() < 1e-13
    assert (np.abs(special.faddeeva_imag(x, y).numpy() - wanted.imag) / size).max() < 1e-13


def test_faddeeva_derivatives_do_not_cancel_far_out():
    # w'' + 2 z w' + 2 w = 0 and the asymptotic series w = i/(√π z) (1 + 1/(2z²) + 3/(4z⁴) + ...)
    z = np.array([40 + 0.5j, -90 + 3j, 1000 + 0.1j, 0.1 + 50j])
    slope = -1j / np.sqrt(np.pi) * (z**-2 + 1.5 * z**-4 + 3.75 * z**-6 + 13.125 * z**-8)
    x, y = torch.tensor(z.real), torch.tensor(z.imag)
    ones = torch.ones_like(x)
    real = jvp(special.faddeeva_real, (x, y), (ones, torch.zeros_like(x)))[1]
    by_height = jvp(special.faddeeva_real, (x, y), (torch.zeros_like(x), ones))[1]
    imag = jvp(special.faddeeva_imag, (x, y), (ones, torch.zeros_like(x)))[1]
    np.testing.assert_allclose(real, slope.real, rtol=1e-9)
    np.testing.assert_allclose(imag, slope.imag, rtol=1e-9)
    np.testing.assert_allclose(by_height, -slope.imag, rtol=1e-9)


def test_voigt_profile():
    x = torch.linspace(-20, 20, 81, dtype=torch.float64)
    for sigma, gamma in ((0.7, 0.4), (1.0, 1e-4), (0.05, 3.0), (2.0, 0.0)):
        wanted = scipy_special.voigt_profile(x.numpy(), sigma, gamma)
        found = special.voigt_profile(x, sigma, gamma)
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-14)
        parameters = torch.tensor([sigma, gamma], dtype=torch.float64)
        for index in range(2):
            change = np.zeros(2)
            change[index] = 1e-6
            high, low = (
                scipy_special.voigt_profile(x.numpy(), *(parameters.numpy() + sign * change))
                for sign in (1, -1)
            )
            direction = torch.tensor(change * 1e6)
            slope = jvp(
                lambda p: special.voigt_profile(x, p[0], p[1]), (parameters,), (direction,)
            )[1]
            # scipy's own values below gamma = 0 belong to another branch
            if gamma:
                np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-6, atol=1e-8)


def test_voigt_hessian():
    def profile(p):
        return special.voigt_profile(p[0], p[1], p[2])

    p = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    step = 1e-5
    rows = [
        (grad(profile)(p + step * direction) - grad(profile)(p - step * direction)) / (2 * step)
        for direction in torch.eye(3, dtype=torch.float64)
    ]
    np.testing.assert_allclose(hessian(profile)(p), torch.stack(rows), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(jacfwd(jacfwd(profile))(p), torch.stack(rows), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in UNARY if name != "cube_root"])
def test_mode_corrects_torch(name):
    points, _, slope = UNARY[name]
    x = torch.tensor(points, dtype=torch.float64)
    ones = torch.ones_like(x)
    function = getattr(torch.special, name)

    def inside(y):
        with special.CorrectDerivatives():
            return function(y)

    with special.CorrectDerivatives():
        around = [
            jvp(lambda y: 2 * function(y), (x,), (ones,))[1] / 2,
            vjp(function, x)[1](ones)[0],
            vmap(lambda t: jvp(function, (x,), (t,))[1])(torch.diag(ones)).diagonal(),
        ]
    for found in (*around, jvp(inside, (x,), (ones,))[1]):
        close(found, slope(x.numpy()), 2e-13)


def test_mode_also_corrects_methods_and_old_names():
    a = torch.tensor([2.0], dtype=torch.float64)
    x = torch.tensor([2.5], dtype=torch.float64)
    density = x * torch.exp(-x)
    with special.CorrectDerivatives():
        for function in (torch.igamma, torch.special.gammainc, torch.Tensor.igamma):
            slope = jvp(lambda y: function(a, y), (x,), (torch.ones_like(x),))[1]  # noqa: B023
            assert torch.allclose(slope, density)
        step = jvp(lambda y: torch.heaviside(x, y), (x,), (torch.ones_like(x),))
    assert step == (torch.ones(1), torch.zeros(1))


def test_mode_leaves_out_and_other_functions_alone():
    x = torch.tensor([0.5, 2.0])
    target = torch.zeros(2)
    with special.CorrectDerivatives():
        assert torch.special.bessel_j0(x, out=target) is target
        assert torch.equal(torch.exp(x), x.exp())
    assert torch.allclose(target, torch.special.bessel_j0(x))


def test_needs_correction():
    x = torch.ones(3)
    assert special.needs_correction(
        lambda y, k: k["a"] * torch.special.bessel_y0(y), (x,), {"k": {"a": x}}
    )
    assert special.needs_correction(lambda y: y.igamma(y), (x,))
    assert not special.needs_correction(lambda y: torch.exp(y) + torch.special.i0(y), (x,))
    with pytest.raises(ZeroDivisionError):
        special.needs_correction(lambda y: 1 // 0, (x,))

    def writing(y):
        y += 1
        return y

    assert not special.needs_correction(writing, (x,))
    assert torch.equal(x, torch.ones(3))


def test_every_special_function_of_torch_has_a_right_derivative_or_a_correction():
    """Walk torch.special: what torch adds with a zero derivative is found here."""
    x = torch.tensor([0.31, 0.62], dtype=torch.float64)
    checked = set()
    for name, function in inspect.getmembers(torch.special, callable):
        calls = [lambda y: function(y), lambda y: function(y, 3), lambda y: function(x, y)]  # noqa: B023
        for call in calls:
            try:
                value = call(x)
            except (TypeError, RuntimeError, ValueError, IndexError):
                continue
            if not isinstance(value, torch.Tensor) or value.shape != x.shape:
                continue
            difference = (call(x + 1e-6) - call(x - 1e-6)) / 2e-6
            if not torch.isfinite(difference).all():
                continue
            with special.CorrectDerivatives():
                try:
                    slope = jvp(call, (x,), (torch.ones_like(x),))[1]
                except (RuntimeError, TypeError):
                    continue
            assert torch.allclose(slope, difference, rtol=1e-4, atol=1e-6), name
            checked.add(name)
    assert len(checked) > 45


def test_corrections_are_torchs_functions():
    assert len(CORRECTIONS) > 30
    assert all(callable(function) for function in CORRECTIONS)


def test_refusals():
    with pytest.raises(TypeError, match="at least one argument must be a tensor, got float"):
        special.bessel_j0(1.0)
    with pytest.raises(TypeError, match="real tensors are wanted, got"):
        special.bessel_j0(torch.ones(1, dtype=torch.complex64))

    def third(y):
        one = torch.ones_like(y)
        for_once = lambda f: lambda z: jvp(f, (z,), (one,))[1]  # noqa: E731
        return for_once(for_once(for_once(special.bessel_j0)))(y)

    with pytest.raises(NotImplementedError, match="at most 2 nested"):
        third(torch.ones(1))


def test_integers_become_floating():
    assert special.bessel_j0(torch.tensor([1, 2])).dtype == torch.get_default_dtype()
