"""χ², likelihood, information criteria and R², against closed formulas and scipy.stats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from numpy.typing import NDArray

from torchimize import curve_fit

Array = NDArray[Any]

B, N, P = 4, 25, 3
X = np.linspace(0.1, 4.5, N)


def decay(x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * torch.exp(-k * x) + c


def numpy_decay(params: Array) -> Any:
    return params[0] * np.exp(-params[1] * X) + params[2]


def make_data(seed: int, noise: float = 0.05) -> Array:
    rng = np.random.default_rng(seed)
    truth = np.array([3, 0.8, 1]) * rng.uniform(0.85, 1.15, (B, 3))
    return np.stack([numpy_decay(p) for p in truth]) + noise * rng.standard_normal((B, N))


def fit(y: Array, **options: Any) -> Any:
    return curve_fit(decay, X, y, [1.0, 1.0, 0.5], full_output=True, **options)[2]


def check_criteria(result: Any, b: int, count: int, parameters: int) -> None:
    """Akaike's, its correction for few samples, and Schwarz's, from ln L."""
    log_likelihood, k, n = result.log_likelihood[b], parameters, count
    aic = -2 * log_likelihood + 2 * k
    assert result.aic[b] == pytest.approx(aic, rel=1e-14)
    correction = 2 * k * (k + 1) / (n - k - 1)
    assert result.aicc[b] == pytest.approx(aic + correction, rel=1e-14)
    assert result.bic[b] == pytest.approx(-2 * log_likelihood + k * np.log(n), rel=1e-14)


RNG = np.random.default_rng(0)
SIGMAS: dict[str, Any] = {
    "none": None,
    "a number": 0.07,
    "shared": RNG.uniform(0.03, 0.1, N),
    "per problem": RNG.uniform(0.03, 0.1, (B, N)),
}


def deviations(sigma: Any) -> Array:
    return np.broadcast_to(1.0 if sigma is None else sigma, (B, N))


@pytest.mark.parametrize("omit", [False, True], ids=["whole", "NaN omitted"])
@pytest.mark.parametrize("name", SIGMAS)
def test_absolute_sigma(name: str, omit: bool) -> None:
    y, sigma = make_data(1), deviations(SIGMAS[name])
    if omit:
        y[0, 3] = y[2, [4, 5, 20]] = np.nan
    result = fit(y, sigma=SIGMAS[name], absolute_sigma=True, nan_policy="omit" if omit else None)
    for b in range(B):
        keep = np.isfinite(y[b])
        count = int(keep.sum())
        assert count == N - (omit and {0: 1, 2: 3}.get(b, 0))
        model, data, error = numpy_decay(result.popt[b])[keep], y[b, keep], sigma[b, keep]
        chi_square = np.sum(((data - model) / error) ** 2)
        assert result.chi_square[b] == pytest.approx(chi_square, rel=1e-11)
        assert result.chi_square[b] == pytest.approx(2 * result.cost[b], rel=1e-9)
        assert result.degrees_of_freedom[b] == count - P
        assert result.reduced_chi_square[b] == pytest.approx(chi_square / (count - P), rel=1e-11)
        want = scipy.stats.norm.logpdf(data, model, error).sum()
        assert result.log_likelihood[b] == pytest.approx(want, rel=1e-11)
        check_criteria(result, b, count, P)
        weights = error**-2
        mean = np.average(data, weights=weights)
        total = np.sum(weights * (data - mean) ** 2)
        assert result.r_squared[b] == pytest.approx(1 - chi_square / total, rel=1e-11)
    np.testing.assert_allclose(
        result.stderr, np.sqrt(np.diagonal(result.pcov, axis1=-2, axis2=-1)), rtol=1e-15
    )


@pytest.mark.parametrize("omit", [False, True], ids=["whole", "NaN omitted"])
@pytest.mark.parametrize("name", SIGMAS)
def test_relative_sigma_estimates_the_common_factor(name: str, omit: bool) -> None:
    """ln L at the factor that maximises it, found here by a search; the factor counts as one."""
    y, sigma = make_data(2), deviations(SIGMAS[name])
    if omit:
        y[1, 7:10] = np.nan
    result = fit(y, sigma=SIGMAS[name], nan_policy="omit" if omit else None)
    for b in range(B):
        keep = np.isfinite(y[b])
        model, data, error = numpy_decay(result.popt[b])[keep], y[b, keep], sigma[b, keep]

        def negative(log_factor: float, m: Array = model, d: Array = data, e: Array = error) -> Any:
            return -scipy.stats.norm.logpdf(d, m, np.exp(log_factor) * e).sum()

        best = scipy.optimize.minimize_scalar(negative, bracket=(-4, 1), tol=1e-12)
        assert result.log_likelihood[b] == pytest.approx(-best.fun, rel=1e-10)
        check_criteria(result, b, int(keep.sum()), P + 1)
        assert result.chi_square[b] == pytest.approx(
            np.sum(((data - model) / error) ** 2), rel=1e-11
        )


def test_criteria_without_sigma_are_textbook_formulas() -> None:
    """n ln(RSS/n) + 2k and a constant, Burnham and Anderson 2002, page 63."""
    y = make_data(3)
    result = fit(y)
    for b in range(B):
        squares = np.sum((y[b] - numpy_decay(result.popt[b])) ** 2)
        constant = N * (np.log(2 * np.pi) + 1)
        assert result.aic[b] == pytest.approx(
            N * np.log(squares / N) + constant + 2 * (P + 1), rel=1e-11
        )
        assert result.bic[b] == pytest.approx(
            N * np.log(squares / N) + constant + np.log(N) * (P + 1), rel=1e-11
        )
        deviation = y[b] - y[b].mean()
        assert result.r_squared[b] == pytest.approx(
            1 - squares / (deviation @ deviation), rel=1e-11
        )
    assert (result.r_squared > 0.9).all()


@pytest.mark.parametrize("omit", [False, True], ids=["whole", "NaN omitted"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "per problem"])
def test_full_covariance(own: bool, omit: bool) -> None:
    rng = np.random.default_rng(4)
    distance = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    scale = rng.uniform(0.03, 0.1, (B, N))
    sigma = 0.5**distance * scale[:, :, None] * scale[:, None, :]
    y = make_data(4)
    if omit:
        y[3, [0, 11]] = np.nan
    given = sigma if own else sigma[0]
    options: dict[str, Any] = {"sigma": given, "nan_policy": "omit" if omit else None}
    result = fit(y, absolute_sigma=True, **options)
    relative = fit(y, absolute_sigma=False, **options)
    for b in range(B):
        keep = np.isfinite(y[b])
        count = int(keep.sum())
        matrix = sigma[b if own else 0][np.ix_(keep, keep)]
        difference = y[b, keep] - numpy_decay(result.popt[b])[keep]
        inverse = np.linalg.inv(matrix)
        chi_square = difference @ inverse @ difference
        assert result.chi_square[b] == pytest.approx(chi_square, rel=1e-9)
        want = scipy.stats.multivariate_normal.logpdf(difference, cov=matrix)
        assert result.log_likelihood[b] == pytest.approx(want, rel=1e-10)
        check_criteria(result, b, count, P)
        want = scipy.stats.multivariate_normal.logpdf(difference, cov=matrix * chi_square / count)
        assert relative.log_likelihood[b] == pytest.approx(want, rel=1e-9)
        check_criteria(relative, b, count, P + 1)
        # the mean that generalised least squares gives: Σ⁻¹-weighted
        ones = np.ones(count)
        mean = (ones @ inverse @ y[b, keep]) / (ones @ inverse @ ones)
        total = (y[b, keep] - mean) @ inverse @ (y[b, keep] - mean)
        assert result.r_squared[b] == pytest.approx(1 - chi_square / total, rel=1e-9)


@pytest.mark.parametrize("omit", [False, True], ids=["whole", "NaN omitted"])
def test_poisson(omit: bool) -> None:
    rng = np.random.default_rng(5)
    y = rng.poisson(12 * np.exp(-0.8 * X) + 1.5, (B, N)).astype(float)
    assert (y == 0).any()
    if omit:
        y[1, 2] = y[2, 20] = y[2, 21] = np.nan
    result = fit(y, likelihood="poisson", nan_policy="omit" if omit else None)
    assert result.success.all()
    for b in range(B):
        keep = np.isfinite(y[b])
        count = int(keep.sum())
        counts, model = y[b, keep], numpy_decay(result.popt[b])[keep]
        want = scipy.stats.poisson.logpmf(counts, model).sum()
        assert result.log_likelihood[b] == pytest.approx(want, rel=1e-11)
        check_criteria(result, b, count, P)
        chi_square = np.sum((counts - model) ** 2 / model)
        assert result.chi_square[b] == pytest.approx(chi_square, rel=1e-10)
        assert result.degrees_of_freedom[b] == count - P
        assert result.reduced_chi_square[b] == pytest.approx(chi_square / (count - P), rel=1e-10)
        total = np.sum((counts - counts.mean()) ** 2 / counts.mean())
        assert result.r_squared[b] == pytest.approx(1 - chi_square / total, rel=1e-10)


@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_robust_loss_is_no_likelihood(loss: str, absolute: bool) -> None:
    y = make_data(6)
    result = curve_fit(
        decay,
        X,
        y,
        [3.0, 0.8, 1.0],
        sigma=0.05,
        absolute_sigma=absolute,
        loss=loss,
        full_output=True,
    )[2]
    for name in ("log_likelihood", "aic", "aicc", "bic"):
        assert np.isnan(result[name]).all(), name
    for b in range(B):
        squares = np.sum(((y[b] - numpy_decay(result.popt[b])) / 0.05) ** 2)
        assert result.chi_square[b] == pytest.approx(squares, rel=1e-10)
    assert np.isfinite(result.r_squared).all()


def test_fixed_parameters_are_not_counted() -> None:
    y = make_data(7)
    lower = np.array([[0, 0, 0], [0, 0.8, 0], [0, 0.8, 1], [3, 0.8, 1.0]])
    upper = np.where(lower > 0, lower, 10.0)
    start = np.where(lower > 0, lower, 1.0)
    result = curve_fit(
        decay,
        X,
        y,
        start,
        bounds=(lower, upper),
        absolute_sigma=True,
        sigma=0.05,
        full_output=True,
    )[2]
    assert result.degrees_of_freedom.tolist() == [N - 3, N - 2, N - 1, N]
    for b in range(B):
        check_criteria(result, b, N, P - b)


def test_aicc_where_samples_run_out() -> None:
    """N − k − 1 is the correction's denominator; at and below zero nothing is left to say."""
    x, rng = np.arange(5.0), np.random.default_rng(8)

    def polynomial(*powers: int) -> Callable[..., Any]:
        return lambda x, *params: sum(p * x**n for p, n in zip(params, powers, strict=True))

    y = rng.standard_normal((2, 5))
    for k in (1, 2, 3, 4, 5):
        result = curve_fit(
            polynomial(*range(k)),
            x,
            y,
            [0.0] * k,
            sigma=1.0,
            absolute_sigma=True,
            full_output=True,
        )[2]
        if k < 4:
            np.testing.assert_allclose(
                result.aicc, result.aic + 2 * k * (k + 1) / (5 - k - 1), rtol=1e-13
            )
        else:
            assert np.isposinf(result.aicc).all()
        assert np.isfinite(result.reduced_chi_square).all() == (k < 5)
        assert result.degrees_of_freedom.tolist() == [5 - k] * 2


def test_wilks() -> None:
    """Twice the gain in ln L of a needless parameter is χ² of one degree of freedom."""
    rng = np.random.default_rng(9)
    y = 1 + 2 * X + 0.3 * rng.standard_normal((2000, N))
    options: dict[str, Any] = {"sigma": 0.3, "absolute_sigma": True, "full_output": True}
    small = curve_fit(lambda x, a, b: a + b * x, X, y, [0.0, 0.0], **options)[2]
    large = curve_fit(lambda x, a, b, c: a + b * x + c * x**2, X, y, [0.0] * 3, **options)[2]
    gain = 2 * (large.log_likelihood - small.log_likelihood)
    assert scipy.stats.kstest(gain, scipy.stats.chi2(1).cdf).pvalue > 0.01
    assert scipy.stats.kstest(small.chi_square, scipy.stats.chi2(N - 2).cdf).pvalue > 0.01


def test_single_problem_gives_numbers() -> None:
    y = make_data(10)
    whole, alone = fit(y), fit(y[2])
    names = (
        "chi_square",
        "reduced_chi_square",
        "log_likelihood",
        "aic",
        "aicc",
        "bic",
        "r_squared",
        "degrees_of_freedom",
    )
    for name in names:
        assert isinstance(alone[name], int if name == "degrees_of_freedom" else float)
        assert alone[name] == pytest.approx(whole[name][2], rel=1e-12)


@pytest.mark.parametrize("shared_weights", [True, False])
def test_large_batch_crosses_chunks(shared_weights: bool) -> None:
    """More problems than one chunk holds; masks, weights and data stay with their rows."""
    rng = np.random.default_rng(11)
    batch = 5000
    truth = np.array([3, 0.8, 1]) * rng.uniform(0.9, 1.1, (batch, 3))
    y = np.stack([numpy_decay(p) for p in truth]) + 0.05 * rng.standard_normal((batch, N))
    y[rng.uniform(size=y.shape) < 0.05] = np.nan
    sigma = rng.uniform(0.03, 0.1, N if shared_weights else (batch, N))
    result = fit(y, sigma=sigma, absolute_sigma=True, nan_policy="omit")
    keep = np.isfinite(y)
    model = np.stack([numpy_decay(p) for p in result.popt])
    error = np.broadcast_to(sigma, y.shape)
    density = scipy.stats.norm.logpdf(y, model, error)
    want = np.where(keep, density, 0).sum(-1)
    np.testing.assert_allclose(result.log_likelihood, want, rtol=1e-9, atol=1e-9)
    assert np.array_equal(result.degrees_of_freedom, keep.sum(-1) - 3)
    squares = np.where(keep, ((y - model) / error) ** 2, 0).sum(-1)
    np.testing.assert_allclose(result.chi_square, squares, rtol=1e-10)


def test_float32_statistics_are_summed_in_float64() -> None:
    y = make_data(12).astype(np.float32)
    result = fit(y, sigma=np.float32(0.05), absolute_sigma=True)
    assert result.chi_square.dtype == result.aic.dtype == np.float64
    for b in range(B):
        squares = np.sum(((y[b] - numpy_decay(result.popt[b].astype(float))) / 0.05) ** 2)
        assert result.chi_square[b] == pytest.approx(squares, rel=1e-4)


# --------------------------------------------------------------------------------------- lmfit


def test_lmfit() -> None:
    """The same numbers where the definitions are the same, known differences where they are not.

    lmfit's criteria leave out what does not depend on the model, and the factor of σ from the
    number of parameters: ours = theirs + N (1 + ln 2π) + 2 Σ ln σ + 2 (AIC) or + ln N (BIC). Its
    R² takes the plain mean and variance, ours the weighted ones: equal where σ is.
    """
    lmfit = pytest.importorskip("lmfit")
    y = make_data(13)
    sigma = np.random.default_rng(13).uniform(0.03, 0.1, N)
    model = lmfit.Model(lambda x, a, k, c: a * np.exp(-k * x) + c, independent_vars=["x"])
    for error in (np.full(N, 0.05), sigma):
        result = fit(y, sigma=error)
        absolute = fit(y, sigma=error, absolute_sigma=True)
        for b in range(B):
            theirs, unscaled = (
                model.fit(
                    y[b],
                    x=X,
                    a=1.0,
                    k=1.0,
                    c=0.5,
                    weights=1 / error,
                    scale_covar=rescale,
                    fit_kws={"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14},
                )
                for rescale in (True, False)
            )
            for ours, other in ((result, theirs), (absolute, unscaled)):
                best = [other.params[name] for name in ("a", "k", "c")]
                np.testing.assert_allclose(ours.popt[b], [p.value for p in best], rtol=1e-6)
                # lmfit's derivatives are forward differences
                np.testing.assert_allclose(ours.stderr[b], [p.stderr for p in best], rtol=1e-4)
                scale = np.outer(ours.stderr[b], ours.stderr[b])
                np.testing.assert_allclose(ours.pcov[b] / scale, other.covar / scale, atol=1e-4)
                assert ours.chi_square[b] == pytest.approx(other.chisqr, rel=1e-10)
                assert ours.reduced_chi_square[b] == pytest.approx(other.redchi, rel=1e-10)
                assert ours.degrees_of_freedom[b] == other.nfree
            constant = N * (1 + np.log(2 * np.pi)) + 2 * np.log(error).sum()
            assert result.aic[b] == pytest.approx(theirs.aic + constant + 2, rel=1e-10)
            assert result.bic[b] == pytest.approx(theirs.bic + constant + np.log(N), rel=1e-10)
            if error is not sigma:
                assert result.r_squared[b] == pytest.approx(theirs.rsquared, rel=1e-9)
