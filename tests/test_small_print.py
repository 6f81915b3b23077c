"""What the faces promise beside the fit itself: masks, messages, warnings, reported residuals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize import FitWarning, curve_fit, least_squares
from torchimize.errors import DeviceError, ShapeError
from torchimize.functions import lsq_lma_parallel
from torchimize.lsq import problem as problem_module

T = np.linspace(0.1, 4.0, 30)


def decay(t: np.ndarray, a: np.ndarray, k: np.ndarray) -> np.ndarray:
    return a * np.exp(-k * t)


def decays(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    amplitude, rate = rng.uniform(2, 4, (*shape, 1)), rng.uniform(0.5, 1.5, (*shape, 1))
    return decay(T, amplitude, rate) + 0.02 * rng.standard_normal((*shape, T.size))


def test_a_masked_array_is_data_with_gaps() -> None:
    y = decays((4,))
    mask = np.zeros_like(y, dtype=bool)
    mask[1, 3], mask[2, 20:] = True, True
    spoilt = np.where(mask, 1e3, y)
    popt, pcov = curve_fit(decay, T, np.ma.array(spoilt, mask=mask), [1, 1], nan_policy="omit")
    gaps = np.where(mask, np.nan, y)
    want, want_cov = curve_fit(decay, T, gaps, [1, 1], nan_policy="omit")
    np.testing.assert_array_equal(popt, want)
    np.testing.assert_array_equal(pcov, want_cov)
    counts = np.ma.array([3, 4, 5, 6], mask=[False, True, False, False])
    with pytest.raises(ValueError, match="NaN"):
        curve_fit(lambda t, a: a + 0 * t, np.arange(4.0), counts, [1.0], nan_policy="raise")


def test_messages_are_indexed_like_maps() -> None:
    y = decays((3, 4))
    y[1, 2] = np.nan
    result = curve_fit(decay, T, y, [1, 1], full_output=True)[2]
    assert result.message.shape == result.covariance_message.shape == (3, 4)
    assert result.message[1, 2] == "Residuals are not finite in the initial point."
    assert "termination" in result.message[0, 0]
    failed = result.message[~result.success]
    assert list(failed) == [result.message[1, 2]]
    assert [len(row) for row in result.message] == [4, 4, 4]


def test_counts_report_pearsons_residuals() -> None:
    rng = np.random.default_rng(3)
    y = rng.poisson(20 * np.exp(-0.5 * T), (3, T.size)).astype(float)
    popt, _, result = curve_fit(decay, T, y, [15, 1], likelihood="poisson", full_output=True)
    model = decay(T, popt[:, :1], popt[:, 1:])
    np.testing.assert_allclose(result.fun, (model - y) / np.sqrt(model), rtol=1e-10, atol=1e-12)
    gradient = np.einsum("bnp,bn->bp", result.jac, result.fun)
    np.testing.assert_allclose(gradient, result.grad, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.chi_square, (result.fun**2).sum(-1), rtol=1e-10)


def test_a_sum_over_the_batch_is_noticed() -> None:
    y = decays((20,))
    with pytest.raises(ValueError, match="mixes problems"):
        curve_fit(lambda t, a, k: a * np.exp(-k * t) / np.sum(np.exp(-k * t)), T, y, [1, 1])
    with pytest.raises(ShapeError, match="axis=-1, keepdims=True"):
        curve_fit(lambda t, a, k: np.sum(a * np.exp(-k * t)), T, y, [1, 1])


def test_missing_covariances_are_announced() -> None:
    y = decays((3,))
    with pytest.warns(FitWarning, match="of 3 of 3 fits could not be estimated.*determine"):
        curve_fit(lambda t, a, k, c: a * np.exp(-k * t) + 0 * c, T, y, [1, 1, 1])
    with pytest.warns(FitWarning, match="could not be estimated: No more samples"):
        curve_fit(decay, T[:2], y[0, :2], [1, 1])
    with pytest.warns(FitWarning, match="the first, problem 1:"):
        curve_fit(decay, T, np.where(np.arange(3)[:, None] == 1, np.nan, y), [1, 1])


def test_arguments_on_another_device_are_named() -> None:
    start = torch.ones(3, 2, dtype=torch.float64)
    elsewhere = torch.ones(3, 5, dtype=torch.float64, device="meta")

    def residual(p: Tensor, y: Tensor) -> Tensor:
        return (p[:, :1] - y)[:, None, :]

    with pytest.raises(DeviceError, match=r"args\[0\] is on meta, the parameters on cpu"):
        lsq_lma_parallel(start, residual, args=(elsewhere,))
    with pytest.raises(DeviceError, match="y is on meta"):
        least_squares(residual, start, kwargs={"y": elsewhere})


def test_statistics_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    y = decays((50,))
    y[3, 4] = np.nan
    sigma = np.random.default_rng(1).uniform(0.01, 0.05, y.shape)
    options = {"sigma": sigma, "absolute_sigma": True, "nan_policy": "omit", "full_output": True}
    whole = curve_fit(decay, T, y, [1, 1], **options)[2]
    monkeypatch.setattr(problem_module, "CACHE_NUMBERS", 7 * 2 * T.size)
    parts = curve_fit(decay, T, y, [1, 1], **options)[2]
    for name in ("chi_square", "log_likelihood", "aicc", "bic", "r_squared", "stderr"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-8, err_msg=name)


def test_a_partly_lost_derivative_is_noticed() -> None:
    """Half of the rate leaves torch as Python numbers: no column of zeros gives it away."""
    t = torch.from_numpy(T)
    y = torch.from_numpy(decays((6,)))

    def residual(p: Tensor, y: Tensor) -> Tensor:
        lost = torch.tensor([float(v) for v in p[:, 1].detach()], dtype=p.dtype)
        rate = 0.5 * (p[:, 1] + lost)
        return p[:, :1] * torch.exp(-rate[:, None] * t) - y

    def whole(p: Tensor, y: Tensor) -> Tensor:
        return p[:, :1] * torch.exp(-p[:, 1:] * t) - y

    start = torch.ones(6, 2, dtype=torch.float64)
    result = least_squares(residual, start, args=(y,))
    wanted = least_squares(whole, start, args=(y,))
    assert bool(result.success.all())
    torch.testing.assert_close(result.x, wanted.x, rtol=1e-4, atol=1e-5)


def test_one_huge_problem_does_not_hide_a_frozen_trace() -> None:
    t = torch.from_numpy(T)
    truth = torch.tensor([[1e13, 1.0], [1.0, 1.2], [2.0, 0.8]], dtype=torch.float64)
    y = truth[:, :1] * torch.exp(-truth[:, 1:] * t)

    def residual(p: Tensor, y: Tensor) -> Tensor:
        factor = torch.from_numpy(np.exp(-p[:, 1:].detach().numpy() * T))
        return p[:, :1] * factor - y

    start = truth * torch.tensor([1.0, 0.9], dtype=torch.float64)
    result = least_squares(residual, start, args=(y,), ftol=1e-12, xtol=1e-12, gtol=1e-12)
    torch.testing.assert_close(result.x, truth, rtol=1e-5, atol=0)
