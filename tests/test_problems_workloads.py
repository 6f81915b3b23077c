"""The synthetic workloads: shapes, derivatives, noise, against formulas written out again."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from problems import workloads

SIZES = {  # P, C, N of each
    "W1": (5, 1, 225),
    "W2": (3, 1, 20),
    "W3": (5, 1, 64),
    "W4": (4, 2, 2000),
    "W5": (15, 1, 500),
    "gauss1d": (4, 1, 50),
}
NOISE = {"W2": 5.0, "W3": 1.0, "W4": 0.01, "W5": 0.02, "gauss1d": 1.0}


def test_names() -> None:
    assert workloads.names() == tuple(SIZES)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shapes_and_dtypes(name: str, dtype: torch.dtype) -> None:
    num_params, channels, samples = SIZES[name]
    workload = workloads.make(name, 6, dtype, seed=1)
    assert workload.channels == channels
    assert workload.x.shape[-1] == channels * samples
    assert workload.y.shape == (6, channels * samples)
    assert workload.truth.shape == workload.start.shape == (6, num_params)
    tensors = (workload.x, workload.y, workload.truth, workload.start)
    assert all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in tensors)
    residual = workload.residual(workload.start, workload.y)
    assert residual.shape == (6, channels, samples) and residual.dtype == dtype
    jacobian = workload.residual_jacobian(workload.start, workload.y)
    assert jacobian.shape == (6, channels, samples, num_params) and jacobian.dtype == dtype


@pytest.mark.parametrize("name", SIZES)
def test_jacobian_is_the_derivative_of_the_model(name: str) -> None:
    workload = workloads.make(name, 3, seed=2)
    jacobian = workload.residual_jacobian(workload.start, workload.y)
    for row in range(3):
        one = slice(row, row + 1)
        wanted = torch.func.jacfwd(lambda p, one=one: workload.residual(p, workload.y[one]))(
            workload.start[one]
        )[0, :, :, 0]
        torch.testing.assert_close(jacobian[row], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SIZES)
def test_numpy_model_and_broadcasting(name: str) -> None:
    workload = workloads.make(name, 2, seed=3)
    for row in range(2):
        params = workload.truth[row].tolist()
        value = workload.model_numpy(workload.x.numpy(), *params)
        np.testing.assert_allclose(workload.model(workload.x, *params), value, rtol=1e-12)
        residual = workload.residual(workload.truth, workload.y)[row].reshape(-1)
        np.testing.assert_allclose(residual, value - workload.y[row].numpy(), atol=1e-9)
        assert workload.jacobian(workload.x, *params).shape == (len(value), len(params))


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_independent_of_each_other(name: str) -> None:
    workload = workloads.make(name, 5, seed=4)
    whole = workload.residual(workload.start, workload.y)
    some = workload.residual(workload.start[1:3], workload.y[1:3])
    torch.testing.assert_close(whole[1:3], some, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_normal_around_the_truth(name: str) -> None:
    workload = workloads.make(name, 40, seed=5)
    noise = workload.residual(workload.truth, workload.y).reshape(-1) / NOISE[name]
    # four standard errors of mean and variance
    assert abs(float(noise.mean())) < 4 / math.sqrt(len(noise))
    assert abs(float(noise.var()) - 1) < 4 * math.sqrt(2 / len(noise))


def test_spot_holds_poisson_counts() -> None:
    workload = workloads.make("W1", 40, seed=5)
    assert bool((workload.y >= 0).all()) and bool((workload.y == workload.y.round()).all())
    mean = workload.y + workload.residual(workload.truth, workload.y)[:, 0]
    pulls = ((workload.y - mean) / mean.sqrt()).reshape(-1)
    assert abs(float(pulls.mean())) < 4 / math.sqrt(len(pulls))
    # the fourth moment of a Poisson variable, 3 + 1/mean, gives the variance of a square
    error = float((2 + 1 / mean).mean().sqrt()) / math.sqrt(len(pulls))
    assert abs(float(pulls.square().mean()) - 1) < 4 * error


@pytest.mark.parametrize("name", SIZES)
def test_drawn_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(11)
    first = workloads.make(name, 4, seed=6)
    torch.manual_seed(12)
    again, single = workloads.make(name, 4, seed=6), workloads.make(name, 4, torch.float32, seed=6)
    other = workloads.make(name, 4, seed=7)
    assert torch.equal(first.y, again.y) and torch.equal(first.start, again.start)
    assert torch.equal(first.y.float(), single.y)
    assert not torch.equal(first.y, other.y)


def test_truths_lie_in_their_ranges() -> None:
    truth = workloads.make("W5", 50, seed=8).truth.reshape(50, 5, 3)
    middle = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    assert bool(((truth[..., 0] > 1) & (truth[..., 0] < 3)).all())
    assert bool(((truth[..., 1] - middle).abs() < 0.02).all())
    assert bool(((truth[..., 2] > 0.03) & (truth[..., 2] < 0.06)).all())
    truth = workloads.make("W3", 50, seed=8).truth
    low = torch.tensor([300.0, 8, 300, 50, 10], dtype=torch.float64)
    high = torch.tensor([700.0, 16, 700, 100, 50], dtype=torch.float64)
    assert bool(((truth > low) & (truth < high)).all())
    spread = (truth.amax(0) - truth.amin(0)) / (high - low)
    assert bool((spread > 0.8).all())


def test_starts() -> None:
    decay = workloads.make("W2", 7, seed=9)
    expected = torch.stack(
        [decay.y[:, 0] - decay.y[:, -1], torch.full((7,), 50.0).double(), decay.y[:, -1]], 1
    )
    assert torch.equal(decay.start, expected)
    skewed = workloads.make("W4", 5, seed=9)
    assert skewed.start[:4, 2].tolist() == [40, 50, 80, 40]
    assert torch.equal(skewed.y.new_tensor([7.5, -0.75, 40, 3]), skewed.start[3])
    spot = workloads.make("W1", 50, seed=9)
    ratio = spot.start / spot.truth
    assert 0.9 <= float(ratio.min()) < 0.92 and 1.08 < float(ratio.max()) <= 1.1


def test_unknown_name_and_frozen() -> None:
    with pytest.raises(ValueError, match=r"no workload 'W9'.*'W1'"):
        workloads.make("W9", 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        workloads.make("W2", 1).name = "other"  # type: ignore[misc]
