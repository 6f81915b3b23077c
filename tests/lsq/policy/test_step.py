"""The subproblem's steps against exact solutions by dense root finding and NumPy's solver."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import torch
from torch import Tensor

from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy.step import RIM, ScaledStep, damped_step, jitter, trust_region_step

Array = npt.NDArray[np.float64]


def problems(batch: int, num_params: int, seed: int, condition: float) -> tuple[Tensor, Tensor]:
    """Normal matrices (B, P, P) of unit diagonal about, and gradients (B, P) in their range."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, num_params + 3, num_params)
    jacobian = torch.randn(shape, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, np.log10(condition) / 2, num_params, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(num_params, num_params, generator=generator).double()).Q
    jacobian = jacobian / spread @ basis
    jacobian = jacobian / jacobian.norm(dim=1, keepdim=True)
    residual = torch.randn(batch, num_params + 3, 1, generator=generator, dtype=torch.float64)
    return jacobian.mT @ jacobian, (jacobian.mT @ residual)[..., 0]


def reduction(matrix: Tensor, gradient: Tensor, q: Tensor) -> Tensor:
    """What the quadratic model falls by (B,)."""
    return -(gradient * q).sum(-1) - 0.5 * torch.einsum("bi,bij,bj->b", q, matrix, q)


def exact_step(matrix: Array, gradient: Array, radius: float) -> tuple[Array, float]:
    """The minimiser of the model in the ball, by bisection for λ in the eigenbasis of G."""
    eigenvalues, basis = np.linalg.eigh(matrix)
    rotated = basis.T @ gradient

    def q(damping: float) -> Array:
        return np.asarray(-basis @ (rotated / (eigenvalues + damping)))

    def excess(log_damping: float) -> float:
        return float(np.log(np.linalg.norm(q(np.exp(log_damping))) / radius))

    if np.linalg.norm(q(0.0)) <= radius:
        return q(0.0), 0.0
    upper = np.log(np.linalg.norm(gradient) / radius) + 1
    damping = float(np.exp(scipy.optimize.brentq(excess, upper - 80, upper, xtol=1e-14)))
    return q(damping), damping


def settle(
    blocks: CholeskyBlocks, matrix: Tensor, gradient: Tensor, radius: Tensor, trials: int
) -> ScaledStep:
    """Trial after trial with the same model and radius, λ carried on."""
    damping = torch.zeros_like(radius)
    for _ in range(trials):
        step = trust_region_step(blocks, matrix, gradient, radius, damping)
        damping = step.damping
    return step


@pytest.mark.parametrize("num_params", [1, 2, 3, 6])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e10])
@pytest.mark.parametrize("carried", [0.0, 1e-6, 1e-2, 3.0])
def test_step_lies_in_the_region_and_on_the_curve(
    blocks: CholeskyBlocks, num_params: int, condition: float, carried: float
) -> None:
    matrix, gradient = problems(60, num_params, 3, condition)
    radius = torch.logspace(-4, 3, 60, dtype=torch.float64)
    damping = torch.full_like(radius, carried)
    step = trust_region_step(blocks, matrix, gradient, radius, damping)
    length = step.q.norm(dim=-1)
    assert bool(step.exists.all())
    assert bool((length <= (1 + RIM) * radius * (1 + 1e-12)).all())
    assert bool((reduction(matrix, gradient, step.q) > 0).all())
    assert bool((step.damping >= 0).all())
    # q solves (G + λ I) q = −g, or is that solution cut back to the radius
    eye = torch.eye(num_params, dtype=torch.float64)
    shift = torch.maximum(step.damping, jitter(blocks, matrix))
    solution = torch.linalg.solve(matrix + shift[:, None, None] * eye, -gradient)
    full = solution.norm(dim=-1)
    cut = full > (1 + RIM) * radius * (1 + 1e-9)
    wanted = torch.where(cut[:, None], solution * (radius / full)[:, None], solution)
    tolerance = 1e-12 + 1e-15 * condition
    assert bool(((step.q - wanted).norm(dim=-1) <= tolerance * wanted.norm(dim=-1)).all())
    assert step.limited.tolist() == (cut | (step.damping > 0)).tolist()


@pytest.mark.parametrize("num_params", [1, 3, 5])
def test_gauss_newton_where_it_fits(blocks: CholeskyBlocks, num_params: int) -> None:
    matrix, gradient = problems(30, num_params, 5, 1e3)
    newton = torch.linalg.solve(matrix, -gradient)
    radius = newton.norm(dim=-1) * 1.0001
    step = trust_region_step(blocks, matrix, gradient, radius, torch.zeros_like(radius))
    torch.testing.assert_close(step.q, newton, rtol=1e-9, atol=1e-12)
    assert not bool(step.limited.any())
    assert step.damping.tolist() == [0.0] * 30


def test_carried_damping_is_given_up_where_the_radius_has_room(blocks: CholeskyBlocks) -> None:
    matrix, gradient = problems(30, 4, 7, 1e2)
    newton = torch.linalg.solve(matrix, -gradient)
    radius = 10 * newton.norm(dim=-1)
    step = trust_region_step(blocks, matrix, gradient, radius, torch.full_like(radius, 1e-6))
    torch.testing.assert_close(step.q, newton, rtol=1e-9, atol=1e-12)
    assert not bool(step.limited.any())


@pytest.mark.parametrize("num_params", [1, 2, 4, 8])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8])
def test_repeated_trials_find_the_exact_solution(
    blocks: CholeskyBlocks, num_params: int, condition: float
) -> None:
    matrix, gradient = problems(40, num_params, 11, condition)
    newton = torch.linalg.solve(matrix, -gradient).norm(dim=-1)
    radius = newton * torch.logspace(-5, 0.5, 40, dtype=torch.float64)
    step = settle(blocks, matrix, gradient, radius, 12)
    exact = [
        exact_step(*problem)
        for problem in zip(matrix.numpy(), gradient.numpy(), radius.tolist(), strict=True)
    ]
    best = reduction(matrix, gradient, torch.from_numpy(np.stack([q for q, _ in exact])))
    inside = torch.tensor([damping == 0 for _, damping in exact])
    assert bool(inside.any()) and not bool(inside.all())
    length = step.q.norm(dim=-1)
    assert bool(((length - radius).abs() <= 1.001 * RIM * radius)[~inside].all())
    # The best reduction is a convex function of the radius, 0 at 0: a step on the curve that ends
    # at 0.9 of the radius has at least 0.9 of it.
    share = reduction(matrix, gradient, step.q) / best
    assert bool((share >= 1 - 1.001 * RIM).all()), share.min()
    torch.testing.assert_close(share[inside], torch.ones_like(share[inside]), rtol=1e-6, atol=0)
    # and λ is that of the radius where it ends
    for row in range(0, 40, 7):
        if not inside[row]:
            damping = exact_step(matrix[row].numpy(), gradient[row].numpy(), float(length[row]))[1]
            assert float(step.damping[row]) == pytest.approx(damping, rel=1e-5)


def test_first_trial_takes_most_of_what_the_region_offers(blocks: CholeskyBlocks) -> None:
    matrix, gradient = problems(200, 3, 13, 1e2)
    newton = torch.linalg.solve(matrix, -gradient).norm(dim=-1)
    radius = 0.5 * newton
    step = trust_region_step(blocks, matrix, gradient, radius, torch.zeros_like(radius))
    best = torch.stack(
        [
            torch.from_numpy(exact_step(*problem)[0])
            for problem in zip(matrix.numpy(), gradient.numpy(), radius.tolist(), strict=True)
        ]
    )
    share = reduction(matrix, gradient, step.q) / reduction(matrix, gradient, best)
    assert float(share.median()) > 0.9
    assert float(share.min()) > 0.5


def test_singular_matrix(blocks: CholeskyBlocks) -> None:
    # two equal columns: G has rank 1, and every q with q1 + q2 = −1 solves G q = −g
    matrix = torch.ones(3, 2, 2, dtype=torch.float64)
    gradient = torch.ones(3, 2, dtype=torch.float64)
    radius = torch.tensor([0.1, 0.7072, 50.0], dtype=torch.float64)
    step = settle(blocks, matrix, gradient, radius, 10)
    assert bool(step.exists.all())
    torch.testing.assert_close(step.q[:, 0], step.q[:, 1], rtol=1e-6, atol=1e-9)
    # the shortest solution has length 1/√2, which the last two regions hold
    torch.testing.assert_close(
        step.q[1:].sum(-1), torch.tensor([-1.0, -1.0], dtype=torch.float64), rtol=1e-7, atol=0
    )
    assert abs(float(step.q[0].norm()) - 0.1) <= RIM * 0.1 * 1.001


def test_nearly_singular_matrix_with_a_gradient_out_of_its_range(blocks: CholeskyBlocks) -> None:
    # the short way to the minimum is 1e15 long: the region decides
    matrix = torch.diag_embed(torch.tensor([[1.0, 1e-17, 1e-30]], dtype=torch.float64))
    gradient = torch.tensor([[1.0, 1e-2, -1e-3]], dtype=torch.float64)
    radius = torch.tensor([2.0], dtype=torch.float64)
    step = settle(blocks, matrix, gradient, radius, 12)
    best, damping = exact_step(matrix[0].numpy(), gradient[0].numpy(), 2.0)
    assert damping > 0
    share = float(reduction(matrix, gradient, step.q)[0]) / float(
        reduction(matrix, gradient, torch.from_numpy(best)[None])[0]
    )
    assert share >= 1 - RIM
    assert 1.8 <= float(step.q.norm()) <= 2.2


def test_without_curvature_the_step_is_steepest_descent(blocks: CholeskyBlocks) -> None:
    matrix = torch.zeros(2, 2, 2, dtype=torch.float64)
    gradient = torch.tensor([[3.0, 4.0], [-1e-3, 0.0]], dtype=torch.float64)
    radius = torch.tensor([10.0, 0.5], dtype=torch.float64)
    step = trust_region_step(blocks, matrix, gradient, radius, torch.zeros(2).double())
    wanted = torch.tensor([[-6.0, -8.0], [0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(step.q, wanted, rtol=RIM, atol=0)
    assert step.limited.tolist() == [True, True]


@pytest.mark.parametrize("carried", [0.0, 0.5])
def test_without_gradient_the_step_is_nothing(blocks: CholeskyBlocks, carried: float) -> None:
    matrix = torch.stack([torch.eye(3).double(), torch.zeros(3, 3).double()])
    gradient = torch.zeros(2, 3, dtype=torch.float64)
    radius = torch.ones(2, dtype=torch.float64)
    step = trust_region_step(blocks, matrix, gradient, radius, torch.full((2,), carried).double())
    assert step.q.tolist() == [[0.0] * 3] * 2


def test_damaged_problems_have_no_step_and_leave_the_others_alone(blocks: CholeskyBlocks) -> None:
    matrix, gradient = problems(6, 3, 17, 1e2)
    radius = torch.full((6,), 0.3, dtype=torch.float64)
    damping = torch.zeros_like(radius)
    clean = trust_region_step(blocks, matrix, gradient, radius, damping)
    matrix[1], gradient[3, 0], matrix[4] = torch.nan, torch.inf, -torch.eye(3).double()
    step = trust_region_step(blocks, matrix, gradient, radius, damping)
    healthy = torch.tensor([0, 2, 5])
    assert torch.equal(step.q[healthy], clean.q[healthy])
    assert torch.equal(step.damping[healthy], clean.damping[healthy])
    assert step.exists.tolist() == [True, False, True, False, False, True]
    damped = damped_step(blocks, matrix, gradient, damping)
    newton = torch.linalg.solve(matrix[healthy], -gradient[healthy])
    torch.testing.assert_close(damped.q[healthy], newton, rtol=1e-9, atol=1e-12)
    assert damped.exists[[1, 4]].tolist() == [False, False]


def test_looking_at_the_values_changes_nothing() -> None:
    matrix, gradient = problems(40, 4, 19, 1e6)
    radius = torch.logspace(-3, 3, 40, dtype=torch.float64)
    damping = torch.linspace(0, 1, 40, dtype=torch.float64)
    for solver in (trust_region_step, lambda b, m, g, _, d: damped_step(b, m, g, d)):
        looking = solver(CholeskyBlocks(True), matrix, gradient, radius, damping)
        blind = solver(CholeskyBlocks(False), matrix, gradient, radius, damping)
        assert torch.equal(looking.q, blind.q)
        assert torch.equal(looking.damping, blind.damping)
        assert torch.equal(looking.limited, blind.limited)


@pytest.mark.parametrize("damping", [0.0, 1e-8, 0.1, 50.0])
def test_damped_step(blocks: CholeskyBlocks, damping: float) -> None:
    matrix, gradient = problems(20, 4, 23, 1e4)
    step = damped_step(blocks, matrix, gradient, torch.full((20,), damping, dtype=torch.float64))
    shifted = matrix.numpy() + damping * np.eye(4)
    wanted = np.linalg.solve(shifted, -gradient.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(step.q.numpy(), wanted, rtol=1e-9, atol=1e-12)
    assert bool(step.exists.all())
    assert step.limited.tolist() == [damping > 0] * 20
    assert step.damping.tolist() == [damping] * 20


def test_damped_step_shifts_a_matrix_that_rounding_made_indefinite(blocks: CholeskyBlocks) -> None:
    # eigenvalues 2 and −2e-14: what rounding does to two equal columns
    tiny = 2e-14
    matrix = torch.tensor([[[1.0, 1.0 + tiny], [1.0 + tiny, 1.0]]], dtype=torch.float64)
    gradient = torch.ones(1, 2, dtype=torch.float64)
    step = damped_step(blocks, matrix, gradient, torch.zeros(1).double())
    assert step.exists.tolist() == [True]
    assert float(step.q.sum()) == pytest.approx(-1.0, rel=1e-8)
    indefinite = torch.diag_embed(torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    step = damped_step(blocks, indefinite, gradient, torch.zeros(1).double())
    assert step.exists.tolist() == [False]


def test_jitter_is_what_rounding_leaves_of_the_trace(blocks: CholeskyBlocks) -> None:
    matrix = torch.diag_embed(torch.tensor([[1.0, 3.0], [0.0, 0.0]], dtype=torch.float64))
    shift = jitter(blocks, matrix)
    assert float(shift[0]) == 4 * np.finfo(float).eps
    assert 0 < float(shift[1]) <= 1e-30
