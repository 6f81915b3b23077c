"""Whitening, masks and costs, against linear algebra, scipy.stats and derivatives by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from torchimize.lsq.likelihood import Data, LeastSquares, Likelihood, Poisson
from torchimize.lsq.policy.loss import LOSSES, poisson_terms

B, M = 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).uniform(0.5, 2, shape))


def covariances(*batch: int, seed: int = 0) -> Tensor:
    root = normal(*batch, M, M, seed=seed)
    return root @ root.mT + torch.eye(M)


MASK = torch.tensor(np.random.default_rng(9).uniform(size=(B, M)) > 0.3)


# ------------------------------------------------------------------------------------ whitening


def test_nothing_known_is_the_value_itself() -> None:
    value = normal(B, M)
    assert torch.equal(Data().residual(value, None), value)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per problem"])
def test_weighted_residual(own: bool) -> None:
    shape = (B, M) if own else (M,)
    observed, weight, value = normal(*shape, seed=1), positive(*shape, seed=2), normal(B, M)
    residual = Data(observed, weight=weight).residual(value, None)
    for b in range(B):
        y, w = (observed[b], weight[b]) if own else (observed, weight)
        np.testing.assert_allclose(residual[b], w * (value[b] - y), rtol=1e-15)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per problem"])
def test_full_covariance_gives_the_mahalanobis_distance(own: bool) -> None:
    matrix = covariances(*((B,) if own else ()))
    data = Data(normal(M, seed=3), factor=torch.linalg.cholesky(matrix))
    value = normal(B, M, seed=4)
    squared = data.residual(value, None).square().sum(-1)
    for b in range(B):
        difference = (value[b] - normal(M, seed=3)).numpy()
        sigma = (matrix[b] if own else matrix).numpy()
        want = difference @ scipy.linalg.solve(sigma, difference, assume_a="pos")
        assert float(squared[b]) == pytest.approx(want, rel=1e-12)


def test_masked_samples_are_zero_whatever_is_there() -> None:
    observed = torch.where(MASK, normal(B, M), torch.nan)
    value = torch.where(MASK, normal(B, M, seed=1), torch.nan)
    for data in (
        Data(observed, mask=MASK),
        Data(observed, weight=positive(B, M), mask=MASK),
        Data(observed, weight=positive(M), mask=MASK),
    ):
        residual = data.residual(value, None)
        assert torch.equal(residual[~MASK], torch.zeros(int((~MASK).sum()), dtype=residual.dtype))
        assert residual[MASK].isfinite().all()
        assert residual[MASK].ne(0).all()


def test_mask_with_covariance_is_the_marginal_distribution() -> None:
    """Rows and columns of what was not measured drop out, correlations among the rest stay."""
    matrix = covariances(B)
    both = MASK[:, :, None] & MASK[:, None, :]
    kept = torch.where(both, matrix, torch.eye(M, dtype=matrix.dtype))
    data = Data(torch.zeros(B, M), factor=torch.linalg.cholesky(kept), mask=MASK)
    value = normal(B, M)
    squared = data.residual(value, None).square().sum(-1)
    for b in range(B):
        keep = MASK[b].numpy()
        difference = value[b].numpy()[keep]
        want = difference @ np.linalg.solve(matrix[b].numpy()[np.ix_(keep, keep)], difference)
        assert float(squared[b]) == pytest.approx(want, rel=1e-12)


def every_kind_of_data() -> list[Data]:
    factor, factors = torch.linalg.cholesky(covariances()), torch.linalg.cholesky(covariances(B))
    return [
        Data(),
        Data(normal(M), weight=positive(M)),
        Data(normal(B, M), weight=positive(B, M)),
        Data(normal(B, M), weight=positive(M), mask=MASK),
        Data(normal(M), factor=factor),
        Data(normal(B, M), factor=factors),
        Data(normal(B, M), factor=factors, mask=MASK),
    ]


@pytest.mark.parametrize("data", every_kind_of_data())
def test_columns_are_whitened_by_the_same_map(data: Data) -> None:
    """The map is affine: its derivative by differences of residuals is exact."""
    value, columns = normal(B, M, seed=5), normal(B, 3, M, seed=6)
    whitened = data.whiten(columns, None)
    for j in range(3):
        difference = data.residual(value + columns[:, j], None) - data.residual(value, None)
        torch.testing.assert_close(whitened[:, j], difference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [[2], [3, 0], [1, 1, 2], [3, 2, 1, 0]])
@pytest.mark.parametrize("data", every_kind_of_data())
def test_some_rows_are_those_rows(data: Data, rows: list[int]) -> None:
    index = torch.tensor(rows)
    value, columns = normal(B, M, seed=5), normal(B, 3, M, seed=6)
    torch.testing.assert_close(
        data.residual(value[index], index), data.residual(value, None)[index]
    )
    torch.testing.assert_close(
        data.whiten(columns[index], index), data.whiten(columns, None)[index]
    )


def test_shared_weights_of_as_many_samples_as_problems_are_not_cut() -> None:
    weight, observed = positive(B), normal(B, seed=1)
    data = Data(observed, weight=weight)
    value, rows = normal(B, B, seed=2), torch.tensor([3, 1])
    torch.testing.assert_close(data.residual(value[rows], rows), weight * (value[rows] - observed))
    square = Data(factor=torch.linalg.cholesky(covariances()[:B, :B]))
    torch.testing.assert_close(
        square.residual(value[rows], rows), square.residual(value, None)[rows]
    )


def test_count() -> None:
    device = torch.device("cpu")
    assert Data().count(B, M, device).tolist() == [M] * B
    assert Data(mask=MASK).count(B, M, device).tolist() == MASK.sum(-1).tolist()


# ----------------------------------------------------------------------------------------- cost

NAMES = [name for name, loss in LOSSES.items() if loss is not None]


def scipy_loss(name: str, residual: np.ndarray[Any, Any], f_scale: float) -> tuple[float, Any]:
    """Cost and gradient of a fit whose parameters are the residuals themselves."""
    result = scipy.optimize.least_squares(
        lambda p: p,
        residual,
        jac=lambda p: np.eye(len(p)),
        loss=name,
        f_scale=f_scale,
        max_nfev=1,
    )
    return float(result.cost), result.grad


@pytest.mark.parametrize("f_scale", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("name", NAMES)
def test_losses_are_scipys(name: str, f_scale: float) -> None:
    residual = torch.tensor([-30.0, -1.5, -0.2, 1e-9, 0.0, 0.4, 1.0, 5.0], dtype=torch.float64)
    likelihood = LeastSquares(Data(), LOSSES[name], f_scale)
    value, slope, curvature, _ = likelihood.terms(residual[None], None)
    cost, gradient = scipy_loss(name, residual.numpy(), f_scale)
    assert float(value.sum()) == pytest.approx(cost, rel=1e-13)
    np.testing.assert_allclose(slope[0], gradient, rtol=1e-13)
    assert curvature is not None
    assert (curvature > 0).all()


def second_derivative(function: Callable[[Any], Any], r: float, h: float = 1e-4) -> float:
    return float((function(r + h) - 2 * function(r) + function(r - h)) / h**2)


COSTS: dict[str, Callable[[Any], Any]] = {
    "soft_l1": lambda r: np.sqrt(1 + r * r) - 1,
    "huber": lambda r: np.where(np.abs(r) <= 1, r * r / 2, np.abs(r) - 0.5),
    "cauchy": lambda r: 0.5 * np.log1p(r * r),
    "arctan": lambda r: 0.5 * np.arctan(r * r),
}


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_derivatives_of_the_cost(name: str) -> None:
    """The step's curvature is the second derivative, but at least a tenth of ρ′; the covariance's
    is the positive part of the second derivative, and the scale's is ρ′.
    """
    points = [-4.0, -0.7, -0.3, 0.0, 0.5, 0.9, 1.6, 3.0]
    scale = 2.5
    residual = scale * torch.tensor([points], dtype=torch.float64)
    likelihood = LeastSquares(Data(), LOSSES[name], scale)
    terms = [term for term in likelihood.terms(residual, None) if term is not None]
    information = likelihood.fisher(residual, None)
    assert information is not None
    value, slope, curvature, weight = (term[0].tolist() for term in terms)
    for i, r in enumerate(points):
        assert value[i] == pytest.approx(scale**2 * COSTS[name](r), rel=1e-12, abs=1e-300)
        first = (COSTS[name](r + 1e-5) - COSTS[name](r - 1e-5)) / 2e-5
        assert slope[i] == pytest.approx(scale * first, rel=1e-7, abs=1e-9)
        bend = second_derivative(COSTS[name], r)
        assert float(information[0, i]) == pytest.approx(max(bend, 0), rel=1e-5, abs=2e-7)
        reweighted = first / r if r else 1.0
        assert weight[i] == pytest.approx(reweighted, rel=1e-5, abs=2e-7)
        assert curvature[i] == pytest.approx(max(bend, 0.1 * reweighted), rel=1e-5, abs=2e-7)


def test_without_loss_no_curvature_is_formed() -> None:
    residual = normal(B, M)
    value, slope, curvature, weight = LeastSquares(Data()).terms(residual, None)
    torch.testing.assert_close(value, residual**2 / 2)
    assert torch.equal(slope, residual)
    assert curvature is None
    assert weight is None
    assert LeastSquares(Data()).fisher(residual, None) is None


def test_cost_of_float32_residuals_is_float64() -> None:
    residual = torch.full((1, 3), 1e-3, dtype=torch.float32)
    value = LeastSquares(Data()).terms(residual, None)[0]
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value[0], np.float64(np.float32(1e-3)) ** 2 / 2, rtol=1e-15)


# -------------------------------------------------------------------------------------- Poisson


def test_poisson_cost_is_the_negative_log_likelihood_up_to_the_data() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(3, 40).astype(float)
    assert 0 in counts
    model, other = rng.uniform(0.2, 9, 40), rng.uniform(0.2, 9, 40)
    costs = [
        poisson_terms(torch.tensor(f), torch.tensor(counts))[0].numpy() for f in (model, other)
    ]
    want = [-scipy.stats.poisson.logpmf(counts, f) for f in (model, other)]
    np.testing.assert_allclose(costs[0] - costs[1], want[0] - want[1], rtol=1e-10, atol=1e-12)
    some = counts > 0
    saturated = -scipy.stats.poisson.logpmf(counts, np.where(some, counts, 1e-300))
    np.testing.assert_allclose(costs[0], want[0] - saturated, rtol=1e-10, atol=1e-12)


def test_poisson_slope_and_curvature_are_derivatives() -> None:
    counts = torch.tensor([0.0, 0.0, 1.0, 4.0, 7.0, 100.0], dtype=torch.float64)
    model = torch.tensor([0.5, 3.0, 2.0, 4.0, 1.5, 80.0], dtype=torch.float64)
    _, slope, curvature, weight = poisson_terms(model, counts)
    np.testing.assert_allclose(slope, 1 - counts / model, rtol=1e-15)
    np.testing.assert_allclose(curvature, counts / model**2, rtol=1e-15)
    assert torch.equal(weight, curvature)
    h = 1e-6 * model
    ahead, behind = (poisson_terms(f, counts) for f in (model + h, model - h))
    np.testing.assert_allclose((ahead[0] - behind[0]) / (2 * h), slope, atol=1e-8)
    np.testing.assert_allclose((ahead[1] - behind[1]) / (2 * h), curvature, atol=1e-8)


def test_poisson_cost_is_zero_only_where_the_model_is_the_count() -> None:
    counts = torch.tensor([0.0, 1.0, 5.0, 1e6], dtype=torch.float64)
    np.testing.assert_allclose(poisson_terms(counts.clamp(min=1e-9), counts)[0], 0, atol=1e-8)
    assert (poisson_terms(counts * 1.1 + 0.1, counts)[0] > 0).all()


@pytest.mark.parametrize("model", [0.0, -1.0])
@pytest.mark.parametrize("count", [0.0, 3.0])
def test_a_model_that_expects_nothing_or_less_is_not_finite(model: float, count: float) -> None:
    value = poisson_terms(torch.tensor([model]).double(), torch.tensor([count]).double())[0]
    assert not value.isfinite().any()


def test_poisson_fisher_information_is_the_mean_curvature() -> None:
    """E[y/f²] = 1/f, by summing the distribution."""
    model = torch.tensor([[0.3, 2.0, 11.0]], dtype=torch.float64)
    information = Poisson(Data(torch.zeros(1, 3))).fisher(model, None)
    assert information is not None
    counts = np.arange(200)
    for f, value in zip(model[0].tolist(), information[0].tolist(), strict=True):
        curvature = poisson_terms(
            torch.full((200,), f, dtype=torch.float64), torch.tensor(counts).double()
        )[2].numpy()
        assert value == pytest.approx(scipy.stats.poisson.pmf(counts, f) @ curvature, rel=1e-12)


def test_masked_counts_weigh_nothing() -> None:
    counts = torch.tensor(np.random.default_rng(2).poisson(4, (B, M))).double()
    model = torch.where(MASK, positive(B, M), torch.nan)
    likelihood = Poisson(Data(torch.where(MASK, counts, 0.0), mask=MASK))
    residual = likelihood.residual(model, None)
    plain = Poisson(Data(counts))
    masked = [*likelihood.terms(residual, None), likelihood.fisher(residual, None)]
    want = [*plain.terms(model, None), plain.fisher(model, None)]
    for met, wanted in zip(masked, want, strict=True):
        assert met is not None
        assert wanted is not None
        assert torch.equal(met[~MASK], torch.zeros_like(met[~MASK]))
        assert torch.equal(met[MASK], wanted[MASK])


@pytest.mark.parametrize("rows", [[2], [3, 0, 0]])
def test_poisson_rows(rows: list[int]) -> None:
    counts = torch.tensor(np.random.default_rng(2).poisson(4, (B, M))).double()
    likelihood: Likelihood = Poisson(Data(counts, mask=MASK))
    model, index = positive(B, M), torch.tensor(rows)
    whole = likelihood.terms(likelihood.residual(model, None), None)
    part = likelihood.terms(likelihood.residual(model[index], index), index)
    for all_rows, some_rows in zip(whole, part, strict=True):
        assert all_rows is not None
        assert some_rows is not None
        assert torch.equal(all_rows[index], some_rows)
