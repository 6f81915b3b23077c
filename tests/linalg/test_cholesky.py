"""The batched P×P operations against NumPy, and what they do where there is no factor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize.linalg import CholeskyBlocks

BLOCKS = CholeskyBlocks()


def positive_definite(batch: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Matrices (B, P, P) and vectors (B, P)."""
    random = np.random.default_rng(seed)
    half = random.standard_normal((batch, size + 2, size))
    matrix = half.transpose(0, 2, 1) @ half
    return torch.from_numpy(matrix), torch.from_numpy(random.standard_normal((batch, size)))


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_factor_and_solves(size: int, shift: float) -> None:
    matrix, vector = positive_definite(7, size)
    shifts = torch.linspace(shift, 2 * shift, 7, dtype=torch.float64)
    factor, exists = BLOCKS.factor(matrix, shifts)
    assert exists.tolist() == [True] * 7
    shifted = matrix.numpy() + shifts.numpy()[:, None, None] * np.eye(size)
    wanted = np.linalg.cholesky(shifted)
    np.testing.assert_allclose(factor.numpy(), wanted, rtol=1e-9, atol=1e-12)
    column = vector.numpy()[..., None]
    np.testing.assert_allclose(
        BLOCKS.solve(factor, vector).numpy(), np.linalg.solve(shifted, column)[..., 0], rtol=1e-7
    )
    np.testing.assert_allclose(
        BLOCKS.inverse_form(factor, vector).numpy(),
        np.einsum("bi,bij,bj->b", vector.numpy(), np.linalg.inv(shifted), vector.numpy()),
        rtol=1e-7,
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_without_a_factor_there_is_the_identity(bad: float) -> None:
    matrix, vector = positive_definite(4, 3)
    shift = torch.zeros(4, dtype=torch.float64)
    clean, _ = BLOCKS.factor(matrix, shift)
    matrix[2, 1, 1] = bad
    factor, exists = BLOCKS.factor(matrix, shift)
    assert exists.tolist() == [True, True, False, True]
    assert torch.equal(factor[2], torch.eye(3, dtype=torch.float64))
    assert torch.equal(factor[[0, 1, 3]], clean[[0, 1, 3]])
    assert torch.equal(BLOCKS.solve(factor, vector)[2], vector[2])


def test_shift_that_is_not_finite_has_no_factor() -> None:
    matrix, _ = positive_definite(3, 2)
    shift = torch.tensor([0.0, torch.nan, torch.inf], dtype=torch.float64)
    assert BLOCKS.factor(matrix, shift)[1].tolist() == [True, False, False]


def test_shift_makes_an_indefinite_matrix_positive() -> None:
    matrix = torch.diag_embed(torch.tensor([[2.0, -1.0]] * 3, dtype=torch.float64))
    shift = torch.tensor([0.0, 0.999, 1.001], dtype=torch.float64)
    assert BLOCKS.factor(matrix, shift)[1].tolist() == [False, False, True]


def test_products_and_diagonal() -> None:
    matrix, vector = positive_definite(5, 4, seed=1)
    scale = torch.from_numpy(np.random.default_rng(2).uniform(0.1, 9, (5, 4)))
    wanted = np.einsum("bij,bj->bi", matrix.numpy(), vector.numpy())
    np.testing.assert_allclose(BLOCKS.multiply(matrix, vector).numpy(), wanted, rtol=1e-11)
    assert torch.equal(BLOCKS.diagonal(matrix), torch.einsum("bii->bi", matrix))
    inverse = np.stack([np.diag(1 / row) for row in scale.numpy()])
    np.testing.assert_allclose(
        BLOCKS.scaled(matrix, scale).numpy(), inverse @ matrix.numpy() @ inverse, rtol=1e-12
    )


def test_restricted_solves_for_the_free_alone() -> None:
    matrix, vector = positive_definite(3, 4, seed=3)
    free = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    restricted = BLOCKS.restricted(matrix, free)
    assert torch.equal(restricted[0], matrix[0])
    assert torch.equal(restricted[2], torch.eye(4, dtype=torch.float64))
    factor, exists = BLOCKS.factor(restricted, torch.zeros(3, dtype=torch.float64))
    assert bool(exists.all())
    solution = BLOCKS.solve(factor, vector * free)[1].numpy()
    kept = np.ix_([0, 2], [0, 2])
    wanted = np.linalg.solve(matrix[1].numpy()[kept], vector[1].numpy()[[0, 2]])
    np.testing.assert_allclose(solution[[0, 2]], wanted, rtol=1e-10)
    assert solution[[1, 3]].tolist() == [0.0, 0.0]


def test_repeat_runs_while_any_problem_is_left() -> None:
    def body(
        left: torch.Tensor, rounds: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        left = (left - 1).clamp(min=0)
        return left > 0, (left, rounds + 1)

    left, rounds = torch.tensor([1, 3]), torch.zeros(2)
    looking, blind = CholeskyBlocks(), CholeskyBlocks(may_synchronise=False)
    for times, met in ((5, 3), (2, 2)):
        assert looking.repeat(times, left > 0, body, (left, rounds))[1].tolist() == [met, met]
    assert looking.repeat(5, left > 9, body, (left, rounds))[1].tolist() == [0, 0]
    assert blind.repeat(5, left > 0, body, (left, rounds))[1].tolist() == [5, 5]


def test_no_problems_at_all() -> None:
    matrix = torch.zeros(0, 3, 3, dtype=torch.float64)
    factor, exists = BLOCKS.factor(matrix, matrix[:, 0, 0])
    assert factor.shape == (0, 3, 3) and exists.shape == (0,)
    assert BLOCKS.solve(factor, matrix[:, 0]).shape == (0, 3)
