"""Covariance, rank and reasons, against exact rational arithmetic and smaller problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from torchimize import CovarianceStatus, FitWarning, curve_fit
from torchimize.errors import NotFusedError
from torchimize.lsq import fused

Array = NDArray[Any]

X = np.linspace(0.1, 4.5, 30)
INF = np.inf


def exact_inverse_of_normal_matrix(design: Array) -> Array:
    """(AᵀA)⁻¹ of a matrix of floats, without rounding before the last step."""
    rows = [[Fraction(float(v)) for v in row] for row in design]
    size = len(rows[0])
    work = [
        [sum((row[i] * row[j] for row in rows), Fraction(0)) for j in range(size)]
        + [Fraction(int(i == j)) for j in range(size)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = next(r for r in range(i, size) if work[r][i] != 0)
        work[i], work[pivot] = work[pivot], work[i]
        work[i] = [v / work[i][i] for v in work[i]]
        for r in range(size):
            if r != i and work[r][i] != 0:
                work[r] = [v - work[r][i] * u for v, u in zip(work[r], work[i], strict=True)]
    return np.array([[float(v) for v in row[size:]] for row in work])


def test_the_oracle_itself() -> None:
    """A straight line through 0 … n−1, whose covariance is in every textbook."""
    n = 5
    met = exact_inverse_of_normal_matrix(np.stack([np.ones(n), np.arange(n)], -1))
    variance = n * (n * n - 1) / 12
    want = np.array(
        [
            [(n - 1) * (2 * n - 1) / (6 * variance / n) / n, -(n - 1) / 2 / variance],
            [-(n - 1) / 2 / variance, 1 / variance],
        ]
    )
    want[0, 0] = 1 / n + ((n - 1) / 2) ** 2 / variance
    np.testing.assert_allclose(met, want, rtol=1e-15)


def linear(design: Array) -> Callable[..., Any]:
    """A model Σ pⱼ Aⱼ whose Jacobian is the design (N, P) itself, to the last bit."""
    columns = torch.tensor(design.T)

    def model(x: Any, *params: Any) -> Any:
        return sum(p * column for p, column in zip(params, columns, strict=True))

    return model


def fit_linear(design: Array, y: Array, **options: Any) -> Any:
    start = np.zeros(design.shape[1])
    options = {"absolute_sigma": True, **options}
    return curve_fit(linear(design), np.arange(len(design)), y, start, full_output=True, **options)


def scaled_condition(design: Array) -> float:
    return float(np.linalg.cond(design / np.linalg.norm(design, axis=0)))


def relative_to_errors(met: Array, want: Array) -> Any:
    error = np.sqrt(np.diag(want))
    return np.abs(met - want) / np.outer(error, error)


# ----------------------------------------------------------------------------------- determined


@pytest.mark.parametrize("absolute", [True, False])
def test_well_conditioned_linear_model(absolute: bool) -> None:
    rng = np.random.default_rng(0)
    design = rng.standard_normal((30, 4))
    y = rng.standard_normal((3, 30))
    _, pcov, result = fit_linear(design, y, absolute_sigma=absolute)
    unscaled = exact_inverse_of_normal_matrix(design)
    for b in range(3):
        want = unscaled
        if not absolute:
            want = unscaled * np.linalg.lstsq(design, y[b], rcond=None)[1] / (30 - 4)
        assert relative_to_errors(pcov[b], want).max() < 1e-13
    assert (result.covariance_status == CovarianceStatus.OK).all()
    assert result.covariance_message[0] == CovarianceStatus.OK.message


def close_to_each_other(gap: float) -> Array:
    """1, x, and x with a little of x² mixed in: exact in binary."""
    x = np.arange(1, 33) / 32
    return np.stack([np.ones(32), x, x + gap * x * x], -1)


@pytest.mark.parametrize("gap", [2.0**-13, 2.0**-15, 2.0**-17])
def test_ill_conditioned_normal_matrix(gap: float) -> None:
    """JᵀJ scaled to unit diagonal has condition 1e10 and more: its inverse holds no 6 digits."""
    design = close_to_each_other(gap)
    condition = scaled_condition(design)
    assert condition**2 > 1e10
    y = np.stack([design @ [1, 2, 3], design @ [0, 1, -1]])
    _, pcov, result = fit_linear(design, y)
    want = exact_inverse_of_normal_matrix(design)
    for b in range(2):
        # an orthogonal factorisation loses one condition number, the normal matrix its square
        assert relative_to_errors(pcov[b], want).max() < 10 * 2e-16 * condition
        assert relative_to_errors(pcov[b], want).max() < 1e-6
    assert (result.covariance_status == CovarianceStatus.OK).all()


def test_very_ill_conditioned_jacobian() -> None:
    """Condition 1e10 of the Jacobian's scaled columns: determined, and right to what is left."""
    design = close_to_each_other(2.0**-30)
    condition = scaled_condition(design)
    assert 1e10 < condition < 1e12
    # where a linear fit stands does not matter
    _, pcov, result = fit_linear(design, np.stack([design @ [1, 2, 3]] * 2), max_nfev=5)
    want = exact_inverse_of_normal_matrix(design)
    assert relative_to_errors(pcov[1], want).max() < 10 * 2e-16 * condition
    assert (result.covariance_status == CovarianceStatus.OK).all()


def test_well_and_ill_conditioned_side_by_side() -> None:
    """Each problem of a batch gets the treatment that it needs."""
    gaps = 2.0 ** -np.array([1, 14, 3, 16, 15])
    x = np.arange(1, 33) / 32
    gap = torch.tensor(gaps)[:, None]
    basis = torch.tensor(x)

    def model(x: Any, a: Any, b: Any, c: Any) -> Any:
        return a + b * x[0] + c * (x[0] + x[1] * x[0] * x[0])

    own = np.stack([np.tile(x, (5, 1)), np.tile(gaps[:, None], (1, 32))], 1)
    y = (1 + 2 * basis + 3 * (basis + gap * basis * basis)).numpy()
    _, pcov, result = curve_fit(
        model, own, y, [0.0, 0.0, 0.0], absolute_sigma=True, full_output=True
    )
    for b in range(5):
        want = exact_inverse_of_normal_matrix(close_to_each_other(gaps[b]))
        assert relative_to_errors(pcov[b], want).max() < 1e-8
    assert (result.covariance_status == CovarianceStatus.OK).all()


@pytest.mark.parametrize("sizes", [(1e-9, 1e9, 1.0), (1e9, 1.0, 1e-9), (1e-150, 1e120, 1.0)])
def test_parameters_of_very_different_size(sizes: Sequence[float]) -> None:
    """Measured in other units the covariance is the same one in these units, term by term."""
    x = np.arange(1, 33) / 32
    design = np.stack([np.ones(32), x, x * x], -1)
    rng = np.random.default_rng(1)
    y = design @ [1, 2, 3] + 0.1 * rng.standard_normal((2, 32))
    scale = np.array(sizes)
    _, pcov, result = fit_linear(design / scale, y, absolute_sigma=False)
    unscaled = exact_inverse_of_normal_matrix(design)
    for b in range(2):
        variance = np.linalg.lstsq(design, y[b], rcond=None)[1][0] / 29
        want = unscaled * variance
        assert relative_to_errors(pcov[b] / np.outer(scale, scale), want).max() < 1e-11
    assert (result.covariance_status == CovarianceStatus.OK).all()
    assert result.success.all()


def test_symmetric_and_positive() -> None:
    rng = np.random.default_rng(2)
    y = 3 * np.exp(-rng.uniform(0.5, 1, (50, 1)) * X) + 1 + 0.05 * rng.standard_normal((50, 30))
    _, pcov, result = curve_fit(
        lambda x, a, k, c: a * torch.exp(-k * x) + c, X, y, [1.0, 1.0, 0.0], full_output=True
    )
    assert np.array_equal(pcov, pcov.swapaxes(-1, -2))
    assert (np.linalg.eigvalsh(pcov) > 0).all()
    diagonal = np.diagonal(pcov, axis1=-2, axis2=-1)
    np.testing.assert_allclose(result.stderr, np.sqrt(diagonal), rtol=1e-15)
    assert np.array_equal(result.pcov, pcov)


# ------------------------------------------------------------------------------- not determined


def test_two_parameters_seen_only_as_a_sum() -> None:
    """Both open, the others as if the two were one."""
    rng = np.random.default_rng(3)
    y = 2 + 3 * np.exp(-0.8 * X) + 0.05 * rng.standard_normal((4, 30))
    popt, pcov, result = curve_fit(
        lambda x, a, b, k, c: (a + b) * torch.exp(-k * x) + c,
        X,
        y,
        [1.0, 1.0, 1.0, 0.0],
        full_output=True,
    )
    small, small_cov, small_result = curve_fit(
        lambda x, a, k, c: a * torch.exp(-k * x) + c, X, y, [2.0, 1.0, 0.0], full_output=True
    )
    assert result.success.all()
    np.testing.assert_allclose(popt[:, 0] + popt[:, 1], small[:, 0], rtol=1e-8)
    np.testing.assert_allclose(popt[:, 2:], small[:, 1:], rtol=1e-8)
    assert np.isinf(result.stderr[:, :2]).all()
    # one parameter more is counted: 26 degrees of freedom instead of 27
    np.testing.assert_allclose(pcov[:, 2:, 2:], small_cov[:, 1:, 1:] * 27 / 26, rtol=1e-7)
    assert np.isfinite(result.stderr[:, 2:]).all()
    assert (result.covariance_status == CovarianceStatus.RANK_DEFICIENT).all()
    assert all("do not determine" in message for message in result.covariance_message)
    assert (small_result.covariance_status == CovarianceStatus.OK).all()


@pytest.mark.parametrize("absolute", [True, False])
def test_parameter_without_influence(absolute: bool) -> None:
    rng = np.random.default_rng(4)
    y = 2 + 3 * X + 0.1 * rng.standard_normal((3, 30))
    popt, pcov, result = curve_fit(
        lambda x, a, unused, b: a + b * x + 0 * unused,
        X,
        y,
        [0.0, 7.0, 0.0],
        absolute_sigma=absolute,
        full_output=True,
    )
    assert (popt[:, 1] == 7).all(), "what nothing is known of stays where it was"
    unscaled = exact_inverse_of_normal_matrix(np.stack([np.ones(30), X], -1))
    for b in range(3):
        design = np.stack([np.ones(30), X], -1)
        variance = 1 if absolute else np.linalg.lstsq(design, y[b], rcond=None)[1][0] / 27
        np.testing.assert_allclose(pcov[b][np.ix_([0, 2], [0, 2])], unscaled * variance, rtol=1e-9)
        assert pcov[b, 1, 1] == INF
    assert (result.covariance_status == CovarianceStatus.RANK_DEFICIENT).all()


def test_three_of_five_open() -> None:
    """Columns 1 + 2 = 3, column 5 apart, column 4 empty."""
    rng = np.random.default_rng(5)
    first, second, last = rng.standard_normal((3, 20))
    design = np.stack([first, second, first + second, np.zeros(20), last], -1)
    _, pcov, result = fit_linear(design, rng.standard_normal((2, 20)))
    finite = np.isfinite(np.diagonal(pcov, axis1=-2, axis2=-1))
    assert finite.tolist() == [[False, False, False, False, True]] * 2
    want = exact_inverse_of_normal_matrix(np.stack([first, second, last], -1))[2, 2]
    np.testing.assert_allclose(pcov[:, 4, 4], want, rtol=1e-12)
    assert (result.covariance_status == CovarianceStatus.RANK_DEFICIENT).all()


def test_sum_of_parameters_of_different_size() -> None:
    """10⁹ a + 10⁻⁶ b: neither is known, and neither hides behind its units."""
    design = np.stack([1e9 * X, 1e-6 * X, np.ones(30)], -1)
    y = np.stack([1 + X, 2 - X])
    _, pcov, _ = fit_linear(design, y)
    assert np.isinf(pcov[:, 0, 0]).all()
    assert np.isinf(pcov[:, 1, 1]).all()
    want = exact_inverse_of_normal_matrix(np.stack([X, np.ones(30)], -1))[1, 1]
    np.testing.assert_allclose(pcov[:, 2, 2], want, rtol=1e-10)


def test_open_in_one_problem_only() -> None:
    """All samples at one x: a line through them may have any slope."""
    x = np.tile(X, (3, 1))
    x[1] = 2.0
    y = np.stack([1 + 2 * X, np.full(30, 5.0), 3 - X])
    y += 0.01 * np.random.default_rng(6).standard_normal((3, 30))
    _, pcov, result = curve_fit(lambda x, a, b: a + b * x, x, y, [0.0, 0.0], full_output=True)
    assert result.covariance_status.tolist() == [0, int(CovarianceStatus.RANK_DEFICIENT), 0]
    assert np.isinf(pcov[1]).all()
    for b in (0, 2):
        np.testing.assert_allclose(
            pcov[b], np.polyfit(X, y[b], 1, cov=True)[1][::-1, ::-1], rtol=1e-9
        )


def test_float32_knows_its_own_precision() -> None:
    """What float32 columns cannot tell apart is open; what they can is not."""
    x = (np.arange(1, 33) / 32).astype(np.float32)

    def model(x: Any, a: Any, b: Any, c: Any) -> Any:
        return a + b * x[0] + c * (x[0] + x[1] * x[0] * x[0])

    gaps = np.array([2.0**-5, 2.0**-22], np.float32)
    own = np.stack([np.tile(x, (2, 1)), np.tile(gaps[:, None], (1, 32))], 1)
    y = np.stack([1 + x, 2 - x])
    _, pcov, result = curve_fit(
        model, own, y, [0.0, 0.0, 0.0], absolute_sigma=True, full_output=True
    )
    assert pcov.dtype == np.float32
    want = exact_inverse_of_normal_matrix(close_to_each_other(2.0**-5))
    assert relative_to_errors(pcov[0].astype(float), want).max() < 1e-3
    assert result.covariance_status.tolist() == [0, int(CovarianceStatus.RANK_DEFICIENT)]
    assert np.isinf(pcov[1][1, 1])
    assert np.isinf(pcov[1][2, 2])


# -------------------------------------------------------------------------------- few samples


def test_as_many_samples_as_parameters() -> None:
    design = np.array([[1.0, 0, 1], [1, 1, 0], [1, 2, 1]])
    y = np.array([[1.0, 2, 4], [0, 1, 0]])
    _, pcov, result = fit_linear(design, y, absolute_sigma=True)
    want = exact_inverse_of_normal_matrix(design)
    np.testing.assert_allclose(pcov, np.stack([want, want]), rtol=1e-12, atol=1e-14)
    assert (result.covariance_status == CovarianceStatus.OK).all()
    _, pcov, result = fit_linear(design, y, absolute_sigma=False)
    assert np.isinf(pcov).all()
    assert (result.covariance_status == CovarianceStatus.TOO_FEW_SAMPLES).all()
    assert all("No more samples than parameters" in m for m in result.covariance_message)


@pytest.mark.parametrize("absolute", [True, False])
def test_fewer_samples_than_parameters(absolute: bool) -> None:
    """Two samples, three parameters of which the second is seen alone."""
    design = np.array([[1.0, 0, 2], [0, 4, 0]])
    y = np.array([[1.0, 2], [3, 8]])
    popt, pcov, result = fit_linear(design, y, absolute_sigma=absolute)
    np.testing.assert_allclose(popt @ design.T, y, rtol=1e-9)
    variances = np.diagonal(pcov, axis1=-2, axis2=-1)
    if absolute:
        np.testing.assert_allclose(variances, [[INF, 1 / 16, INF]] * 2)
        assert (result.covariance_status == CovarianceStatus.RANK_DEFICIENT).all()
    else:
        assert np.isinf(variances).all()
        assert (result.covariance_status == CovarianceStatus.TOO_FEW_SAMPLES).all()
    assert result.degrees_of_freedom.tolist() == [-1, -1]
    assert np.isnan(result.reduced_chi_square).all()


# ---------------------------------------------------------------------------- bounds and fixed


def decay(x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * torch.exp(-k * x) + c


def noisy_decays(seed: int, batch: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return 3 * np.exp(-0.8 * X) + 1 + 0.05 * rng.standard_normal((batch, 30))


def test_parameter_on_its_bound_is_flagged() -> None:
    y = noisy_decays(7)
    upper = np.array([[10, 10, 10], [10, 10, 0.8], [2.5, 10, 10]])
    popt, pcov, result = curve_fit(
        decay, X, y, [1.0, 1.0, 0.5], bounds=(0, upper), full_output=True
    )
    assert result.covariance_status.tolist() == [0, 1, 1]
    assert "bound" in result.covariance_message[1]
    assert popt[1, 2] == 0.8
    assert popt[2, 0] == 2.5
    # the covariance ignores the bound: that of the Jacobian there
    for b in range(3):
        a, k, _ = popt[b]
        design = np.stack([np.exp(-k * X), -a * X * np.exp(-k * X), np.ones(30)], -1)
        residual = 0.5 * np.sum((popt[b, 0] * design[:, 0] + popt[b, 2] - y[b]) ** 2)
        want = exact_inverse_of_normal_matrix(design) * 2 * residual / 27
        assert relative_to_errors(pcov[b], want).max() < 1e-7


@pytest.mark.parametrize("absolute", [True, False])
def test_fixed_parameter_is_the_smaller_problem(absolute: bool) -> None:
    y = noisy_decays(8)
    held = np.array([0.7, 0.8, 0.9])
    lower = np.tile([0.0, 0, -10], (3, 1))
    upper = np.tile([10.0, 10, 10], (3, 1))
    lower[:, 1] = upper[:, 1] = held
    start = np.tile([1.0, 1, 0], (3, 1))
    start[:, 1] = held
    popt, pcov, result = curve_fit(
        decay, X, y, start, bounds=(lower, upper), absolute_sigma=absolute, full_output=True
    )
    assert np.array_equal(popt[:, 1], held)
    assert (pcov[:, 1] == 0).all()
    assert (pcov[:, :, 1] == 0).all()
    assert (result.stderr[:, 1] == 0).all()
    assert (result.degrees_of_freedom == 28).all()
    assert (result.covariance_status == CovarianceStatus.OK).all()
    for b in range(3):
        design = np.stack([np.exp(-held[b] * X), np.ones(30)], -1)
        want, squares = np.linalg.lstsq(design, y[b], rcond=None)[:2]
        np.testing.assert_allclose(popt[b, [0, 2]], want, rtol=1e-9)
        want_cov = exact_inverse_of_normal_matrix(design) * (1 if absolute else squares[0] / 28)
        np.testing.assert_allclose(pcov[b][np.ix_([0, 2], [0, 2])], want_cov, rtol=1e-8)


@pytest.mark.parametrize("engine", ["eager", "fused"])
@pytest.mark.parametrize("absolute", [True, False])
def test_fixed_parameter_of_a_lost_fit_keeps_its_zero(absolute: bool, engine: str) -> None:
    y = noisy_decays(10)
    y[1, 4] = np.inf
    _, pcov, result = curve_fit(
        decay,
        X,
        y,
        [1.0, 0.8, 0.0],
        bounds=([-10, 0.8, -10], [10, 0.8, 10]),
        absolute_sigma=absolute,
        check_finite=False,
        engine=engine,
        full_output=True,
    )
    assert result.covariance_status.tolist() == [0, int(CovarianceStatus.NON_FINITE), 0]
    assert (pcov[:, 1] == 0).all() and (pcov[:, :, 1] == 0).all()
    assert (result.stderr[:, 1] == 0).all()
    assert np.isinf(pcov[1][np.ix_([0, 2], [0, 2])]).all()
    assert np.isinf(result.stderr[1, [0, 2]]).all()
    assert np.isfinite(pcov[[0, 2]]).all()


@pytest.mark.parametrize("loss", ["linear", "cauchy"])
def test_information_without_a_kernel(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves a direction open needs its sums anew: without a kernel torch makes them."""

    def none(*_: Any) -> Any:
        raise NotFusedError("no kernel today")

    y = np.stack([*noisy_decays(11), 2 * np.ones(30)])
    start = np.tile([1.0, 1, 0.5], (4, 1))
    start[3] = [0, 1, 2]
    options: dict[str, Any] = {"loss": loss, "full_output": True}
    _, pcov, result = curve_fit(decay, X, y, start, engine="fused", **options)
    monkeypatch.setattr(fused, "normal_matrices", none)
    _, again, result_again = curve_fit(decay, X, y, start, engine="fused", **options)
    assert result_again.covariance_status.tolist() == result.covariance_status.tolist()
    np.testing.assert_allclose(again, pcov, rtol=1e-9)
    assert np.isinf(again[3, 1, 1]) and np.isfinite(again[:3]).all()


def test_fixing_one_of_a_sum_determines_the_other() -> None:
    rng = np.random.default_rng(9)
    y = 2 + 3 * X + 0.1 * rng.standard_normal((2, 30))
    lower, upper = np.tile([-INF, 0.5, -INF], (2, 1)), np.tile([INF, 0.5, INF], (2, 1))
    lower[1, 1], upper[1, 1] = -INF, INF
    _, pcov, result = curve_fit(
        lambda x, a, b, c: a + b + c * x,
        X,
        y,
        [0.0, 0.5, 0.0],
        bounds=(lower, upper),
        absolute_sigma=True,
        full_output=True,
    )
    want = exact_inverse_of_normal_matrix(np.stack([np.ones(30), X], -1))
    np.testing.assert_allclose(pcov[0][np.ix_([0, 2], [0, 2])], want, rtol=1e-12)
    assert (pcov[0][1] == 0).all()
    assert np.isinf(np.diag(pcov[1])).tolist() == [True, True, False]
    np.testing.assert_allclose(pcov[1, 2, 2], want[1, 1], rtol=1e-12)
    assert result.covariance_status.tolist() == [0, int(CovarianceStatus.RANK_DEFICIENT)]


def test_fixed_beside_an_open_parameter_keeps_its_zero() -> None:
    y = np.stack([1 + X, 2 - X])
    with pytest.warns(FitWarning, match="of 2 of 2 fits could not be estimated"):
        _, pcov = curve_fit(
            lambda x, a, b, c, d: a + b * x + c + d,
            X,
            y,
            [0.0, 0.0, 0.0, 0.25],
            bounds=([-INF, -INF, -INF, 0.25], [INF, INF, INF, 0.25]),
            absolute_sigma=True,
        )
    assert (pcov[:, 3] == 0).all()
    assert (pcov[:, :, 3] == 0).all()
    assert np.isinf(pcov[:, 0, 0]).all()
    assert np.isinf(pcov[:, 2, 2]).all()


def test_all_parameters_fixed() -> None:
    y = noisy_decays(10)
    popt, pcov, result = curve_fit(
        decay, X, y, [3.0, 0.8, 1.0], bounds=([3, 0.8, 1], [3, 0.8, 1]), full_output=True
    )
    assert popt.tolist() == [[3, 0.8, 1]] * 3
    assert (pcov == 0).all()
    assert result.success.all()
    want = np.sum((3 * np.exp(-0.8 * X) + 1 - y) ** 2, -1)
    np.testing.assert_allclose(result.chi_square, want, rtol=1e-13)
    assert (result.degrees_of_freedom == 30).all()


# ----------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("shared", [True, False])
def test_generalised_least_squares(shared: bool) -> None:
    """(Aᵀ Σ⁻¹ A)⁻¹ with correlated errors."""
    rng = np.random.default_rng(11)
    design = rng.standard_normal((12, 3))
    root = rng.standard_normal((2, 12, 12))
    sigma = root @ root.swapaxes(-1, -2) + np.eye(12)
    y = rng.standard_normal((2, 12))
    _, pcov, _ = fit_linear(design, y, sigma=sigma[0] if shared else sigma)
    for b in range(2):
        want = np.linalg.inv(design.T @ np.linalg.solve(sigma[0 if shared else b], design))
        assert relative_to_errors(pcov[b], want).max() < 1e-10


def test_poisson_uses_fishers_information() -> None:
    """Σ ∂f ∂fᵀ / f at the estimate, whatever the counts."""
    rng = np.random.default_rng(12)
    y = rng.poisson(20 * np.exp(-0.6 * X) + 2, (3, 30)).astype(float)
    popt, pcov, result = curve_fit(
        decay, X, y, [10.0, 1.0, 1.0], likelihood="poisson", full_output=True
    )
    assert result.success.all()
    for b in range(3):
        a, k, c = popt[b]
        e = np.exp(-k * X)
        design = np.stack([e, -a * X * e, np.ones(30)], -1) / np.sqrt(a * e + c)[:, None]
        want = exact_inverse_of_normal_matrix(design)
        assert relative_to_errors(pcov[b], want).max() < 1e-9


def test_large_batch_crosses_chunks() -> None:
    """Rank is judged problem by problem over several chunks of evaluations."""
    batch = 3000
    rng = np.random.default_rng(13)
    factor = rng.uniform(1, 2, (batch, 1)) * (np.arange(batch) % 3 != 0)[:, None]
    x = np.stack([np.tile(X, (batch, 1)), np.tile(factor, (1, 30))], 1)
    y = 1 + factor * X + 0.1 * rng.standard_normal((batch, 30))
    _, pcov, result = curve_fit(
        lambda x, a, b: a + b * x[1] * x[0],
        x,
        y,
        [0.0, 0.0],
        absolute_sigma=True,
        full_output=True,
    )
    open_ = np.arange(batch) % 3 == 0
    assert np.array_equal(result.covariance_status == CovarianceStatus.RANK_DEFICIENT, open_)
    assert np.array_equal(np.isinf(pcov[:, 1, 1]), open_)
    np.testing.assert_allclose(pcov[open_, 0, 0], 1 / 30, rtol=1e-12)
    want = np.linalg.inv(np.stack([np.ones(30), X]) @ np.stack([np.ones(30), X]).T)[1, 1]
    np.testing.assert_allclose(pcov[~open_, 1, 1], want / factor[~open_, 0] ** 2, rtol=1e-10)
