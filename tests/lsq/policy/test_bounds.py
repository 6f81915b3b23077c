"""Steps in a box against enumeration of every active set of the quadratic programme."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy.bounds import boxed_step, frozen_parameters
from torchimize.lsq.policy.step import ScaledStep, damped_step, trust_region_step

Array = npt.NDArray[np.float64]
BLOCKS = CholeskyBlocks()


def gauss_newton(matrix: Tensor, gradient: Tensor) -> ScaledStep:
    """The subproblem without a damping."""
    return damped_step(BLOCKS, matrix, gradient, gradient.new_zeros(len(gradient)))


def model(matrix: Array, gradient: Array, s: Array) -> float:
    return float(gradient @ s + 0.5 * s @ matrix @ s)


def conditional_minimiser(matrix: Array, gradient: Array, fixed: Array) -> Array:
    """The minimiser over the entries that are NaN in ``fixed``, the others kept."""
    s = fixed.copy()
    free = np.isnan(fixed)
    if free.any():
        known = np.where(free, 0.0, fixed)
        right = -(gradient + matrix @ known)[free]
        s[free] = np.linalg.solve(matrix[np.ix_(free, free)], right)
    return s


def exact_in_box(matrix: Array, gradient: Array, lowest: Array, highest: Array) -> Array:
    """The best feasible point among those of all 3^P active sets."""
    best = np.clip(np.zeros_like(gradient), lowest, highest)
    for sides in itertools.product((-1, 0, 1), repeat=len(gradient)):
        fixed = np.select([np.equal(sides, -1), np.equal(sides, 1)], [lowest, highest], np.nan)
        if np.isinf(fixed).any():
            continue
        s = conditional_minimiser(matrix, gradient, fixed)
        inside = (lowest - 1e-12 <= s).all() and (s <= highest + 1e-12).all()
        if inside and model(matrix, gradient, s) < model(matrix, gradient, best):
            best = s
    return best


def three_solves_suffice(
    matrix: Array, gradient: Array, lowest: Array, highest: Array, exact: Array, frozen: Array
) -> bool:
    """Whether what is frozen, and each bound that a solve crosses, is active at the minimiser.

    Then fixing them loses nothing: the exact minimiser has them fixed too, and a minimiser under
    fewer constraints that meets all of them is the minimiser under all.
    """
    if (frozen & (exact != 0)).any():
        return False
    fixed = np.where(frozen, 0.0, np.nan)
    for _ in range(3):
        s = conditional_minimiser(matrix, gradient, fixed)
        below, above = s < lowest, s > highest
        if not (below | above).any():
            return True
        if (below & (exact > lowest)).any() or (above & (exact < highest)).any():
            return False
        fixed = np.where(below, lowest, np.where(above, highest, fixed))
    return False


def random_problems(
    batch: int, num_params: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """JᵀJ (B, P, P), gradient (B, P), column norms (B, P), and a box around 0."""
    random = np.random.default_rng(seed)
    jacobian = random.standard_normal((batch, num_params + 2, num_params))
    matrix = jacobian.transpose(0, 2, 1) @ jacobian
    gradient = 2 * random.standard_normal((batch, num_params))
    scale = np.linalg.norm(jacobian, axis=1)
    lowest = -random.exponential(0.6, (batch, num_params))
    highest = random.exponential(0.6, (batch, num_params))
    lowest[random.random(lowest.shape) < 0.2] = -np.inf
    highest[random.random(lowest.shape) < 0.2] = np.inf
    matrix, gradient, scale, lowest, highest = (
        torch.from_numpy(v) for v in (matrix, gradient, scale, lowest, highest)
    )
    # a parameter in every fourth problem stands on its bound
    lowest[::4, 0] = 0.0
    return matrix, gradient, scale, lowest, highest


def step_in_box(
    matrix: Tensor, gradient: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor
) -> tuple[Tensor, ScaledStep]:
    """The step (B, P) in the parameters' units, as an iteration asks for it."""
    frozen = frozen_parameters(
        torch.zeros_like(gradient), gradient, lowest, highest, lowest == highest
    )
    scaled = boxed_step(
        BLOCKS,
        gauss_newton,
        BLOCKS.scaled(matrix, scale),
        gradient / scale,
        scale,
        frozen,
        lowest,
        highest,
    )
    return scaled.q / scale, scaled


@pytest.mark.parametrize("num_params", [1, 2, 3, 4])
def test_against_all_active_sets(num_params: int) -> None:
    batch = 150
    problem = random_problems(batch, num_params, seed=num_params)
    steps, scaled = step_in_box(*problem)
    assert bool(scaled.exists.all())
    matrix, gradient, _, lowest, highest = (v.numpy() for v in problem)
    exact_count = 0
    for row in range(batch):
        box = matrix[row], gradient[row], lowest[row], highest[row]
        s = steps[row].numpy()
        # feasible up to the last bit's rounding of the scaling
        slack = 1e-14 * np.abs(s)
        assert (lowest[row] - slack <= s).all() and (s <= highest[row] + slack).all()
        exact = exact_in_box(*box)
        best = model(*box[:2], exact)
        fall = model(*box[:2], s)
        assert fall >= best - 1e-9 * (1 + abs(best))
        frozen = ((lowest[row] == 0) & (gradient[row] >= 0)) | (
            (highest[row] == 0) & (gradient[row] <= 0)
        )
        if three_solves_suffice(*box, exact, frozen):
            exact_count += 1
            np.testing.assert_allclose(s, exact, rtol=1e-7, atol=1e-10)
            on_bound = (np.abs(exact - lowest[row]) < 1e-12) | (
                np.abs(exact - highest[row]) < 1e-12
            )
            moved = on_bound & (exact != 0)
            if moved.any():
                assert bool(scaled.limited[row]) and bool(scaled.bent[row])
    assert exact_count > 0.5 * batch


def test_without_correlations_the_step_is_the_clipped_newton_step() -> None:
    random = np.random.default_rng(5)
    diagonal = torch.from_numpy(random.uniform(0.1, 4, (50, 6)))
    gradient = torch.from_numpy(random.standard_normal((50, 6)))
    lowest = torch.from_numpy(-random.exponential(1.0, (50, 6)))
    highest = torch.from_numpy(random.exponential(1.0, (50, 6)))
    step, _ = step_in_box(torch.diag_embed(diagonal), gradient, diagonal.sqrt(), lowest, highest)
    wanted = torch.clamp(-gradient / diagonal, lowest, highest)
    torch.testing.assert_close(step, wanted, rtol=1e-12, atol=1e-15)
    assert bool((wanted == lowest).any()) and bool((wanted == highest).any())


def test_a_crossing_parameter_moves_the_others_to_their_conditional_minimum() -> None:
    # minimise ½ |s − (2, 2)|² + ½ (s1 + s2)²/2 … by hand: G = [[1.5, .5], [.5, 1.5]], g = (−2, −2)
    matrix = torch.tensor([[[1.5, 0.5], [0.5, 1.5]]], dtype=torch.float64)
    gradient = torch.tensor([[-2.0, -2.0]], dtype=torch.float64)
    highest = torch.tensor([[0.4, torch.inf]], dtype=torch.float64)
    step, scaled = step_in_box(matrix, gradient, torch.ones(1, 2).double(), -highest, highest)
    # free: (1, 1); with s1 = 0.4: s2 = (2 − 0.5 · 0.4)/1.5 = 1.2
    torch.testing.assert_close(step, torch.tensor([[0.4, 1.2]], dtype=torch.float64))
    assert scaled.limited.tolist() == [True]


def test_inside_the_box_nothing_is_limited() -> None:
    matrix, gradient, scale, _, _ = random_problems(20, 3, seed=9)
    wide = torch.full_like(gradient, 1e6)
    step, scaled = step_in_box(matrix, gradient, scale, -wide, wide)
    torch.testing.assert_close(step, torch.linalg.solve(matrix, -gradient), rtol=1e-8, atol=1e-12)
    assert not bool(scaled.limited.any()) and not bool(scaled.bent.any())


def test_everything_frozen_stays() -> None:
    matrix, gradient, scale, _, _ = random_problems(8, 3, seed=10)
    zero = torch.zeros_like(gradient)
    step, _ = step_in_box(matrix, gradient, scale, zero, zero)
    assert torch.equal(step.abs(), zero)


def test_problems_do_not_touch_each_other() -> None:
    problem = random_problems(30, 3, seed=11)
    together = step_in_box(*problem)[0]
    alone = torch.cat([step_in_box(*(v[row : row + 1] for v in problem))[0] for row in range(30)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
    damaged = [v.clone() for v in problem]
    damaged[0][3], damaged[1][7] = torch.nan, torch.inf
    others = [row for row in range(30) if row not in (3, 7)]
    assert torch.equal(step_in_box(*damaged)[0][others], together[others])


# A long step that three solves bend may lead uphill; shrinking the region has to end that.
@pytest.mark.parametrize("radius", [1e-3, 1e-2, 0.1, torch.inf])
@pytest.mark.parametrize("num_params", [2, 4, 6])
def test_steps_stay_in_the_box_and_short_ones_go_down(num_params: int, radius: float) -> None:
    batch = 500
    problem = random_problems(batch, num_params, seed=12)
    matrix, gradient, scale, lowest, highest = problem
    none = torch.zeros_like(gradient, dtype=torch.bool)
    frozen = frozen_parameters(torch.zeros_like(gradient), gradient, lowest, highest, none)
    trust_radius = torch.full((batch,), radius, dtype=torch.float64)

    def subproblem(matrix: Tensor, gradient: Tensor) -> ScaledStep:
        if radius == torch.inf:
            return gauss_newton(matrix, gradient)
        return trust_region_step(
            BLOCKS, matrix, gradient, trust_radius, torch.zeros_like(trust_radius)
        )

    result = boxed_step(
        BLOCKS,
        subproblem,
        BLOCKS.scaled(matrix, scale),
        gradient / scale,
        scale,
        frozen,
        lowest,
        highest,
    )
    step = result.q / scale
    slack = 1e-14 * step.abs()
    assert bool(((lowest - slack <= step) & (step <= highest + slack)).all())
    curvature = torch.einsum("bi,bij,bj->b", step, matrix, step)
    change = (gradient * step).sum(-1) + 0.5 * curvature
    movable = (~frozen & (gradient != 0)).any(-1)
    assert bool(movable.any())
    if radius < torch.inf:
        assert int((change >= 0)[movable].sum()) == 0
    uphill = movable & (change >= 0)
    assert bool(result.bent[uphill].all())


def test_frozen_parameters() -> None:
    inf = torch.inf
    cases = [
        # params, gradient, lower, upper, fixed, frozen
        (0.0, 1.0, 0.0, 2.0, False, True),
        (0.0, -1.0, 0.0, 2.0, False, False),
        (2.0, -1.0, 0.0, 2.0, False, True),
        (2.0, 1.0, 0.0, 2.0, False, False),
        (1.0, 1.0, 0.0, 2.0, False, False),
        (1.0, -1.0, 0.0, 2.0, False, False),
        (1.0, 5.0, 1.0, 1.0, True, True),
        (0.0, 1.0, -inf, inf, False, False),
        (0.0, 1.0, -inf, inf, True, True),
    ]
    params, gradient, lower, upper, fixed, wanted = (
        torch.tensor([column]) for column in zip(*cases, strict=True)
    )
    assert torch.equal(frozen_parameters(params, gradient, lower, upper, fixed), wanted)
