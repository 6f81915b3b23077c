"""Losses against SciPy's, their derivatives against closed forms and differences."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from torchimize.lsq.policy.loss import (
    LOSSES,
    Loss,
    poisson_terms,
    robust_information,
    robust_terms,
)

# by name: in its package the function hides the module
scipy_common = importlib.import_module("scipy.optimize._lsq.common")
SCIPY_LOSSES = importlib.import_module("scipy.optimize._lsq.least_squares").IMPLEMENTED_LOSSES
NAMES = ["soft_l1", "huber", "cauchy", "arctan"]
Z = torch.tensor(
    [0.0, 1e-8, 0.01, 0.3, 0.999, 1.0, 1.001, 2.0, 17.0, 1e4, 1e8], dtype=torch.float64
)
RESIDUALS = torch.linspace(-7, 7, 41, dtype=torch.float64)

# ρ' + 2 z ρ'' with z = u², worked out by hand
CURVATURES: dict[str, Callable[[float], float]] = {
    "soft_l1": lambda u: (1 + u * u) ** -1.5,
    "huber": lambda u: 1.0 if abs(u) <= 1 else 0.0,
    "cauchy": lambda u: (1 - u * u) / (1 + u * u) ** 2,
    "arctan": lambda u: (1 - 3 * u**4) / (1 + u**4) ** 2,
}


def loss_of(name: str) -> Loss:
    loss = LOSSES[name]
    assert loss is not None
    return loss


def scipy_rho(name: str, z: Tensor) -> Tensor:
    """SciPy's ρ, ρ', ρ'': (3, len(z))."""
    rho = np.empty((3, len(z)))
    SCIPY_LOSSES[name](z.numpy(), rho, False)
    return torch.from_numpy(rho)


def test_the_names_are_scipys() -> None:
    assert set(LOSSES) == set(SCIPY_LOSSES)
    assert LOSSES["linear"] is None


@pytest.mark.parametrize("name", NAMES)
def test_value_and_derivatives_are_scipys(name: str) -> None:
    for ours, theirs in zip(loss_of(name)(Z), scipy_rho(name, Z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_the_value(name: str) -> None:
    z = Z[(Z > 1e-3) & ((Z - 1).abs() > 1e-4)]
    h = 1e-5 * z
    value_ahead, slope_ahead, _ = loss_of(name)(z + h)
    value_behind, slope_behind, _ = loss_of(name)(z - h)
    _, slope, bend = loss_of(name)(z)
    torch.testing.assert_close((value_ahead - value_behind) / (2 * h), slope, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((slope_ahead - slope_behind) / (2 * h), bend, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_square_counts_as_it_is(name: str) -> None:
    z = torch.tensor([1e-20, 1e-30], dtype=torch.float64)
    torch.testing.assert_close(loss_of(name)(z)[0], z, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32(name: str) -> None:
    z = Z.float()
    for ours, theirs in zip(loss_of(name)(z), scipy_rho(name, z.double()), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("f_scale", [1.0, 0.3, 12.0])
def test_robust_terms(name: str, f_scale: float) -> None:
    r = RESIDUALS * f_scale
    value, slope, curvature, weight = robust_terms(loss_of(name), r, f_scale)
    rho, first, _ = scipy_rho(name, (r / f_scale) ** 2)
    torch.testing.assert_close(value, 0.5 * f_scale**2 * rho, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, first * r, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        weight, first.clamp(min=torch.finfo(r.dtype).eps), rtol=1e-12, atol=0
    )
    # the model's curvature: the second derivative, or a tenth of ρ' where that is more
    bent = [CURVATURES[name](u) for u in (r / f_scale).tolist()]
    second = torch.tensor(bent, dtype=torch.float64)
    torch.testing.assert_close(curvature, torch.maximum(second, 0.1 * first), rtol=1e-9, atol=1e-15)
    if name != "soft_l1":
        assert bool((second < 0.1 * first).any())
    assert bool((second > 0.1 * first).any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("f_scale", [1.0, 0.3, 12.0])
def test_robust_information_scales_the_jacobian_as_scipy_does(name: str, f_scale: float) -> None:
    r = RESIDUALS * f_scale
    rho = scipy_rho(name, (r / f_scale) ** 2).numpy()
    jacobian, _ = scipy_common.scale_for_robust_loss_function(
        np.ones((len(r), 1)), r.numpy() / f_scale, rho
    )
    information = robust_information(loss_of(name), r, f_scale)
    torch.testing.assert_close(
        information, torch.from_numpy(jacobian[:, 0] ** 2), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("name", NAMES)
def test_robust_slope_and_information_by_differences(name: str) -> None:
    f_scale, h = 0.7, 1e-6
    r = RESIDUALS[((RESIDUALS.abs() - f_scale).abs() > 1e-2)]
    ahead = robust_terms(loss_of(name), r + h, f_scale)
    behind = robust_terms(loss_of(name), r - h, f_scale)
    _, slope, _, _ = robust_terms(loss_of(name), r, f_scale)
    torch.testing.assert_close((ahead[0] - behind[0]) / (2 * h), slope, rtol=1e-7, atol=1e-8)
    second = (ahead[1] - behind[1]) / (2 * h)
    information = robust_information(loss_of(name), r, f_scale)
    torch.testing.assert_close(second.clamp(min=0), information, rtol=1e-6, atol=1e-8)
    assert bool((second[r.abs() < 0.7 * f_scale] > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_curvatures_stay_positive_far_out(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        far = torch.tensor([1e3, 1e10], dtype=dtype)
        information = robust_information(loss_of(name), far, 1.0)
        curvature = robust_terms(loss_of(name), far, 1.0)[2]
        assert information.dtype == curvature.dtype == dtype
        assert bool((information >= eps).all()) and bool((curvature >= information).all())
        if name != "soft_l1":
            assert information.tolist() == [eps, eps]


COUNTS = [0.0, 1.0, 2.0, 7.0, 150.0]
MODELS = [1e-3, 0.4, 1.0, 7.0, 160.0]


def test_poisson_value_is_the_likelihood_ratio() -> None:
    for y in COUNTS:
        for f in MODELS:
            model = torch.tensor([f], dtype=torch.float64)
            value = float(poisson_terms(model, torch.tensor([y], dtype=torch.float64))[0])
            best = scipy.stats.poisson.logpmf(y, y) if y else 0.0
            wanted = best - scipy.stats.poisson.logpmf(y, f)
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-11)


def test_poisson_derivatives() -> None:
    f, y = (grid.reshape(-1) for grid in np.meshgrid(MODELS, COUNTS))
    model, counts = torch.from_numpy(f), torch.from_numpy(y)
    _, slope, curvature, _ = poisson_terms(model, counts)
    np.testing.assert_allclose(slope.numpy(), 1 - y / f, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(curvature.numpy(), y / f**2, rtol=1e-12)
    h = 1e-5 * model
    difference = poisson_terms(model + h, counts)[0] - poisson_terms(model - h, counts)[0]
    torch.testing.assert_close(difference / (2 * h), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("f", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("y", [0.0, 3.0])
def test_poisson_is_not_finite_without_a_positive_model(f: float, y: float) -> None:
    model = torch.tensor([f, 2.0], dtype=torch.float64)
    counts = torch.tensor([y, 2.0], dtype=torch.float64)
    value = poisson_terms(model, counts)[0]
    assert value.isfinite().tolist() == [False, True]
    assert float(value[1]) == 0
