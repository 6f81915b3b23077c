"""Error bars that are true: intervals cover the parameters that made the data, as often as said.

The share of 2000 intervals that cover is itself uncertain by √(p (1 − p)/2000): 1.0 % at 68.3 %,
0.5 % at 95 %. The seeds are fixed, so what is asserted either holds or does not.
"""

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

FITS = 2000
ONE_SIGMA = 2 * scipy.stats.norm.cdf(1) - 1


def peak(m: Any, x: Any, a: Any, centre: Any, width: Any, offset: Any) -> Any:
    return a * m.exp(-0.5 * ((x - centre) / width) ** 2) + offset


def decay(m: Any, x: Any, a: Any, k: Any) -> Any:
    return a * m.exp(-k * x)


def torch_peak(x: Any, a: Any, centre: Any, width: Any, offset: Any) -> Any:
    return peak(torch, x, a, centre, width, offset)


def torch_decay(x: Any, a: Any, k: Any) -> Any:
    return decay(torch, x, a, k)


PEAK = (torch_peak, peak, np.linspace(-4, 4, 41), [5.0, 0.3, 1.1, 1.0], [4.0, 0.0, 1.5, 0.5])
DECAY = (torch_decay, decay, np.linspace(0, 4, 40), [5.0, 0.9], [3.0, 0.5])
MODELS = pytest.mark.parametrize(
    ("model", "truth_of", "x", "truth", "start"), [PEAK, DECAY], ids=["peak", "decay"]
)


def check_coverage(
    popt: Array, stderr: Array, truth: Array, half_width: Callable[[float], Any]
) -> None:
    """68 ± 3 % and 95 ± 2 % of the true values of each parameter lie within the intervals."""
    distance = np.abs(popt - truth) / stderr
    for share, tolerance in ((ONE_SIGMA, 0.03), (0.95, 0.02)):
        covered = (distance < np.reshape(half_width(share), (-1, 1))).mean(0)
        np.testing.assert_allclose(covered, share, atol=tolerance)


def normal_half_width(share: float) -> float:
    return float(scipy.stats.norm.ppf(0.5 + share / 2))


@MODELS
@pytest.mark.parametrize("own_truth", [False, True], ids=["one truth", "a truth each"])
def test_known_sigma(
    model: Callable[..., Any],
    truth_of: Callable[..., Any],
    x: Array,
    truth: list[float],
    start: list[float],
    own_truth: bool,
) -> None:
    rng = np.random.default_rng(1)
    true = np.tile(truth, (FITS, 1))
    if own_truth:
        true = true * rng.uniform(0.8, 1.2, true.shape)
    sigma = rng.uniform(0.1, 0.4, len(x))
    y = truth_of(np, x, *true.T[:, :, None]) + sigma * rng.standard_normal((FITS, len(x)))
    popt, pcov, result = curve_fit(model, x, y, start, sigma, absolute_sigma=True, full_output=True)
    assert result.success.all()
    check_coverage(popt, result.stderr, true, normal_half_width)
    # and the errors are correlated as the covariance says: mean of Mahalanobis' χ² is P
    error = popt - true
    distance = np.einsum("bi,bij,bj->b", error, np.linalg.inv(pcov), error)
    dimension = len(truth)
    assert distance.mean() == pytest.approx(dimension, abs=5 * np.sqrt(2 * dimension / FITS))


@MODELS
def test_unknown_sigma_follows_students_t(
    model: Callable[..., Any],
    truth_of: Callable[..., Any],
    x: Array,
    truth: list[float],
    start: list[float],
) -> None:
    """A dozen samples: σ is known so badly that normal intervals would be too short."""
    rng = np.random.default_rng(2)
    few = x[:: len(x) // 12]
    y = truth_of(np, few, *truth) + 0.15 * rng.standard_normal((FITS, len(few)))
    popt, _, result = curve_fit(model, few, y, start, full_output=True)
    assert result.success.all()
    dof = result.degrees_of_freedom
    assert (dof == len(few) - len(truth)).all()
    assert dof[0] < 13
    check_coverage(
        popt, result.stderr, np.array(truth), lambda s: scipy.stats.t.ppf(0.5 + s / 2, dof)
    )


def test_unknown_sigma_known_ratios_and_missing_samples() -> None:
    """σ right up to a factor of 40, a tenth of the samples missing, x another in each problem."""
    model, truth_of, x, truth, start = PEAK
    rng = np.random.default_rng(3)
    own = x + rng.uniform(-0.05, 0.05, (FITS, len(x)))
    sigma = rng.uniform(0.1, 0.4, own.shape)
    y = truth_of(np, own, *truth) + sigma * rng.standard_normal(own.shape)
    y[rng.uniform(size=y.shape) < 0.1] = np.nan
    popt, _, result = curve_fit(
        model, own, y, start, 40 * sigma, nan_policy="omit", full_output=True
    )
    assert result.success.all()
    dof = result.degrees_of_freedom
    assert len(np.unique(dof)) > 5
    check_coverage(
        popt, result.stderr, np.array(truth), lambda s: scipy.stats.t.ppf(0.5 + s / 2, dof)
    )


def test_correlated_noise() -> None:
    """The full covariance gives true intervals; its diagonal alone would not."""
    model, truth_of, x, truth, start = PEAK
    rng = np.random.default_rng(4)
    n = len(x)
    sigma = 0.3**2 * 0.8 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    y = truth_of(np, x, *truth) + rng.standard_normal((FITS, n)) @ np.linalg.cholesky(sigma).T
    popt, _, result = curve_fit(model, x, y, start, sigma, absolute_sigma=True, full_output=True)
    assert result.success.all()
    check_coverage(popt, result.stderr, np.array(truth), normal_half_width)
    popt, _, result = curve_fit(
        model, x, y, start, np.sqrt(np.diag(sigma)), absolute_sigma=True, full_output=True
    )
    covered = (np.abs(popt - truth) < result.stderr).mean(0)
    assert covered[3] < 0.5, "the noise is too little correlated for this test"


# -------------------------------------------------------------------------------------- Poisson


@MODELS
@pytest.mark.parametrize("own_truth", [False, True], ids=["one truth", "a truth each"])
def test_poisson_counts(
    model: Callable[..., Any],
    truth_of: Callable[..., Any],
    x: Array,
    truth: list[float],
    start: list[float],
    own_truth: bool,
) -> None:
    """Some 25 counts at most, 5 or fewer far away from there."""
    rng = np.random.default_rng(5)
    factor = np.array([5.0 if name in (0, 3) else 1.0 for name in range(len(truth))])
    true = np.tile(np.array(truth) * factor, (FITS, 1))
    if own_truth:
        true = true * rng.uniform(0.9, 1.1, true.shape)
    y = rng.poisson(truth_of(np, x, *true.T[:, :, None])).astype(float)
    assert (y == 0).any()
    popt, _, result = curve_fit(
        model, x, y, np.array(start) * factor, likelihood="poisson", full_output=True
    )
    assert result.success.all()
    check_coverage(popt, result.stderr, true, normal_half_width)


def minimum(cost: Callable[[Array], float], start: Array) -> Any:
    """Nelder and Mead's simplex, set up anew where it has collapsed, until that gains nothing."""
    options = {"xatol": 1e-9, "fatol": 1e-11, "maxiter": 5000, "maxfev": 5000}
    best = scipy.optimize.minimize(cost, start, method="Nelder-Mead", options=options)
    while True:
        again = scipy.optimize.minimize(cost, best.x, method="Nelder-Mead", options=options)
        if again.fun > best.fun - 1e-10:
            return best
        best = again


def negative_log_likelihood(
    truth_of: Callable[..., Any], x: Array, y: Array
) -> Callable[[Array], float]:
    def cost(params: Array) -> float:
        model = truth_of(np, x, *params)
        if (model <= 0).any():
            return np.inf
        return float(-scipy.stats.poisson.logpmf(y, model).sum())

    return cost


@MODELS
@pytest.mark.parametrize("level", [1.0, 0.2], ids=["counts to 25", "counts to 5"])
def test_poisson_estimates_are_those_of_a_general_minimiser(
    model: Callable[..., Any],
    truth_of: Callable[..., Any],
    x: Array,
    truth: list[float],
    start: list[float],
    level: float,
) -> None:
    rng = np.random.default_rng(6)
    # an offset of 2 counts at least: none of the minima lies where the model touches zero
    factor = np.array([5 * level, 1, 1, max(5 * level, 2)][: len(truth)])
    true = np.array(truth) * factor
    y = rng.poisson(truth_of(np, x, *true), (10, len(x))).astype(float)
    assert (y == 0).any()
    popt, _, result = curve_fit(
        model, x, y, np.array(start) * factor, likelihood="poisson", full_output=True
    )
    assert result.success.all()
    for b in range(10):
        cost = negative_log_likelihood(truth_of, x, y[b])
        simplex = minimum(cost, popt[b] * 1.03)

        def gradient(p: Array, y: Array = y[b]) -> Array:
            """Σ (1 − y/f) ∂f, with ∂f by the complex step: exact."""
            columns = [
                truth_of(np, x, *(p + 1e-30j * unit)).imag / 1e-30 for unit in np.eye(len(p))
            ]
            return np.array([(1 - y / truth_of(np, x, *p)) @ column for column in columns])

        want = scipy.optimize.root(gradient, simplex.x, method="hybr", tol=1e-14).x
        # the root is near the simplex' minimum, and is a minimum itself
        np.testing.assert_allclose(want, simplex.x, atol=1e-4 * (1 + np.abs(simplex.x).max()))
        assert cost(want) <= simplex.fun + 1e-9
        np.testing.assert_allclose(popt[b], want, rtol=1e-6, atol=1e-7)
        assert cost(popt[b]) == pytest.approx(simplex.fun, rel=1e-10)
        assert result.log_likelihood[b] == pytest.approx(-simplex.fun, rel=1e-10)


def test_poisson_fit_driven_to_a_model_of_zero() -> None:
    """The likelihood may be largest where f → 0 at a sample without counts, with a slope there.

    A minimum on that wall is none of a smooth function. It may be found or not; but no fit that
    ends elsewhere says that it succeeded.
    """
    model, truth_of, x, truth, start = PEAK
    rng = np.random.default_rng(6)
    y = rng.poisson(truth_of(np, x, *truth), (10, len(x))).astype(float)
    popt, _, result = curve_fit(model, x, y, start, likelihood="poisson", full_output=True)
    lowest = np.array([truth_of(np, x, *params).min() for params in popt])
    assert (lowest < 1e-6).any(), "no minimum on the wall among these data"
    assert result.success[lowest > 0.1].all()
    for b in range(10):
        cost = negative_log_likelihood(truth_of, x, y[b])
        if result.success[b]:
            assert cost(popt[b]) == pytest.approx(minimum(cost, popt[b] * 1.03).fun, rel=1e-8)


def test_poisson_with_missing_samples_bounds_and_fixed_parameters() -> None:
    """Each against the general minimiser on what is left."""
    x, truth = PEAK[2], np.array([20.0, 0.3, 1.1, 2.0])
    rng = np.random.default_rng(7)
    y = rng.poisson(peak(np, x, *truth), (6, len(x))).astype(float)
    y[rng.uniform(size=y.shape) < 0.15] = np.nan
    lower, upper = np.array([0, -5, 1.0, 2.5]), np.array([100, 5, 1.0, 50])
    popt, pcov, result = curve_fit(
        torch_peak,
        x,
        y,
        [15.0, 0.0, 1.0, 4.0],
        bounds=(lower, upper),
        likelihood="poisson",
        nan_policy="omit",
        full_output=True,
    )
    assert result.success.all()
    assert (popt[:, 2] == 1).all()
    assert (pcov[:, 2] == 0).all()
    active = popt[:, 3] == 2.5
    assert active.any()
    for b in range(6):
        keep = np.isfinite(y[b])

        def cost(p: Array, keep: Array = keep, y: Array = y[b]) -> float:
            model = peak(np, x[keep], p[0], p[1], 1.0, p[2])
            return float(-scipy.stats.poisson.logpmf(y[keep], model).sum())

        # a simplex flattened by the bound may be caught there: the better of two
        tries = [
            scipy.optimize.minimize(
                cost,
                start,
                method="Nelder-Mead",
                bounds=[(1, 100), (-5, 5), (2.5, 50)],
                options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 5000, "maxfev": 5000},
            )
            for start in ([18, 0.2, 3], [22, 0.4, 2.6])
        ]
        best = min(tries, key=lambda found: float(found.fun))
        np.testing.assert_allclose(popt[b, [0, 1, 3]], best.x, rtol=1e-5, atol=1e-6)


def test_poisson_in_numpys_words_per_problem_x() -> None:
    rng = np.random.default_rng(8)
    x = np.linspace(0, 4, 40) + rng.uniform(0, 0.1, (3, 40))
    y = rng.poisson(decay(np, x, 25, 0.9)).astype(float)
    popt, _ = curve_fit(lambda x, a, k: a * np.exp(-k * x), x, y, [15.0, 0.5], likelihood="poisson")
    want, _ = curve_fit(torch_decay, x, y, [15.0, 0.5], likelihood="poisson")
    np.testing.assert_allclose(popt, want, rtol=1e-9)
    for b in range(3):
        # with f = a exp(−k x), dcost/da = 0 says that the model's sum is the number of counts
        assert decay(np, x[b], *popt[b]).sum() == pytest.approx(y[b].sum(), rel=1e-8)
        # and dcost/dk = 0 that the mean x of model and counts agree
        assert (x[b] * decay(np, x[b], *popt[b])).sum() == pytest.approx(x[b] @ y[b], rel=1e-7)


def test_poisson_is_less_biased_than_least_squares_at_low_counts() -> None:
    """σ = √y makes low counts look certain, and pulls a decay down; Laurence and Chromy 2010."""
    rng = np.random.default_rng(9)
    x = np.linspace(0, 4, 40)
    truth = np.array([8.0, 0.9])
    y = rng.poisson(decay(np, x, *truth), (FITS, 40)).astype(float)
    counts, _ = curve_fit(torch_decay, x, y, [5.0, 0.5], likelihood="poisson")
    weighted, _, result = curve_fit(
        torch_decay,
        x,
        y,
        [5.0, 0.5],
        sigma=np.sqrt(np.maximum(y, 1)),
        absolute_sigma=True,
        full_output=True,
    )
    # a fit so poor that its curvature is another one takes hundreds of steps
    assert result.success.mean() > 0.998
    standard_error = counts.std(0) / np.sqrt(FITS)
    bias, least_squares_bias = (np.abs(p.mean(0) - truth) for p in (counts, weighted))
    assert (bias < least_squares_bias / 3).all()
    # the bias of the maximum likelihood is one of second order: a per cent
    assert (bias < 0.015 * truth).all()
    assert (least_squares_bias > 10 * standard_error).all()


def test_poisson_is_more_efficient_than_unweighted_least_squares() -> None:
    """It reaches Cramér and Rao's bound, (Σ ∂f ∂fᵀ/f)⁻¹; equal weights do not."""
    rng = np.random.default_rng(10)
    x = np.linspace(0, 4, 40)
    truth = np.array([25.0, 0.9])
    y = rng.poisson(decay(np, x, *truth), (FITS, 40)).astype(float)
    counts, _ = curve_fit(torch_decay, x, y, [15.0, 0.5], likelihood="poisson")
    plain, _ = curve_fit(torch_decay, x, y, [15.0, 0.5])
    model = decay(np, x, *truth)
    design = np.stack([model / truth[0], -x * model])
    limit = np.linalg.inv(design / model @ design.T)
    # a variance from 2000 fits is known to √(2/2000) = 3 %
    np.testing.assert_allclose(np.cov(counts.T)[[0, 1], [0, 1]], np.diag(limit), rtol=0.1)
    assert (np.var(plain, axis=0) > 1.15 * np.diag(limit)).all()
