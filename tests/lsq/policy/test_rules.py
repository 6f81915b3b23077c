"""What each rule learns from a trial, against the papers' formulas by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from torchimize import Status
from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy import (
    GaussNewton,
    Marquardt,
    Nielsen,
    Policy,
    Proposal,
    RelativeTests,
    Rule,
    State,
    TrustRegion,
)
from torchimize.lsq.policy.step import jitter
from torchimize.status import RUNNING

MakeState = Callable[..., State]
MakeProposal = Callable[..., Proposal]


@pytest.fixture
def state(make_state: MakeState) -> State:
    """Column norms 2 and 3 at params (3, −4), first derivatives just taken in."""
    return make_state(
        [[3.0, -4.0]],
        cost=[2.0],
        gradient=[[6.0, 12.0]],
        normal_matrix=[[[4.0, 1.0], [1.0, 9.0]]],
        scale=[[2.0, 3.0]],
        trust_radius=[10.0],
        damping=[0.5],
        nfev=[1],
        njev=[1],
    )


def learn(
    rule: Rule, state: State, proposal: Proposal, gain: float, finite: bool = True
) -> tuple[State, bool]:
    gain_ratio = torch.tensor([gain if finite else -math.inf], dtype=torch.float64)
    learned, accepted = rule.learn(state, proposal, gain_ratio, torch.tensor([finite]))
    assert accepted.dtype == torch.bool
    return learned, bool(accepted[0])


def at_new_point(rule: Rule, blocks: CholeskyBlocks, state: State, where: torch.Tensor) -> State:
    """Without a loss the column norms are those of the normal matrix."""
    norms = torch.einsum("bii->bi", state.normal_matrix).sqrt()
    return rule.at_new_point(blocks, state, where, norms)


def everywhere(state: State) -> torch.Tensor:
    return torch.ones_like(state.fresh)


# ------------------------------------------------------------------------------- trust region


@pytest.fixture
def proposal(state: State, make_proposal: MakeProposal) -> Proposal:
    """A step of scaled length 9.5, just short of the radius, found with λ = 0.5."""
    return make_proposal(state, [[0.0, 9.5 / 3]], damping=[0.5])


@pytest.mark.parametrize(
    ("gain", "length", "radius"),
    [
        (0.95, 9.5, 20.0),  # good and long: twice
        (0.95, 8.9, 10.0),  # good, but the radius was not what limited it
        (0.90, 9.5, 10.0),  # not good enough
        (0.5, 9.5, 10.0),
        (0.26, 9.5, 10.0),
        (0.24, 9.5, 0.35 * 9.5),
        (0.24, 4.0, 0.35 * 4.0),  # times the length of the step, not the old radius
        (-3.0, 9.5, 0.35 * 9.5),
    ],
)
def test_radius_follows_the_gain_ratio(
    state: State, make_proposal: MakeProposal, gain: float, length: float, radius: float
) -> None:
    proposal = make_proposal(state, [[0.0, length / 3]], damping=[0.5])
    learned, _ = learn(TrustRegion(), state, proposal, gain)
    assert float(learned.trust_radius) == pytest.approx(radius, rel=1e-14)
    # λ scales inversely with the radius
    assert float(learned.damping) == pytest.approx(0.5 * 10.0 / radius, rel=1e-14)


@pytest.mark.parametrize(
    ("gain", "accepted"), [(2e-4, True), (1e-4, False), (0.0, False), (-1, False)]
)
def test_trust_region_accepts_what_goes_down(
    state: State, proposal: Proposal, gain: float, accepted: bool
) -> None:
    assert learn(TrustRegion(), state, proposal, gain)[1] is accepted


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_after_a_cost_that_is_not_finite(
    state: State, make_proposal: MakeProposal, damping: float
) -> None:
    proposal = make_proposal(state, [[0.0, 9.5 / 3]], damping=[damping])
    learned, accepted = learn(TrustRegion(), state, proposal, 0.0, finite=False)
    radius = 0.25 * 9.5
    assert not accepted
    assert float(learned.trust_radius) == pytest.approx(radius, rel=1e-14)
    # |D⁻¹ g| = |(3, 4)| = 5
    wanted = 4 * max(damping, 1e-3 * 5 / radius)
    assert float(learned.damping) == pytest.approx(wanted, rel=1e-14)


def test_steepness_counts_free_parameters_only(state: State, make_proposal: MakeProposal) -> None:
    proposal = make_proposal(state, [[0.0, 9.5 / 3]], free=[[True, False]])
    learned, _ = learn(TrustRegion(), state, proposal, 0.0, finite=False)
    assert float(learned.damping) == pytest.approx(4 * 1e-3 * 3 / (0.25 * 9.5), rel=1e-14)


def test_first_scale_and_radius(blocks: CholeskyBlocks, state: State) -> None:
    new = at_new_point(TrustRegion(), blocks, state, everywhere(state))
    assert new.scale.tolist() == [[2.0, 3.0]]
    assert float(new.trust_radius) == pytest.approx(math.hypot(6, 12), rel=1e-14)


def test_first_radius_is_the_cauchy_step_where_the_start_is_zero(
    blocks: CholeskyBlocks, state: State
) -> None:
    origin = replace(state, params=torch.zeros(1, 2).double())
    new = at_new_point(TrustRegion(), blocks, origin, everywhere(state))
    # D⁻¹ g = (3, 4); G = [[1, 1/6], [1/6, 1]]; gᵀGg = 25 + 2·12/6 = 29; |g|³/gᵀGg
    assert float(new.trust_radius) == pytest.approx(125 / 29, rel=1e-14)
    flat = replace(origin, gradient=torch.zeros(1, 2).double())
    assert at_new_point(TrustRegion(), blocks, flat, everywhere(state)).trust_radius.tolist() == [
        1.0
    ]


def test_first_radius_leaves_out_what_is_held(blocks: CholeskyBlocks, state: State) -> None:
    fixed = replace(state, fixed=torch.tensor([[False, True]]))
    new = at_new_point(TrustRegion(), blocks, fixed, everywhere(state))
    assert float(new.trust_radius) == pytest.approx(6.0, rel=1e-14)


def test_scale_keeps_the_largest_column_and_one_for_none(
    blocks: CholeskyBlocks, state: State
) -> None:
    later = replace(
        state, njev=torch.tensor([7]), scale=torch.tensor([[5.0, 0.1]], dtype=torch.float64)
    )
    new = at_new_point(TrustRegion(), blocks, later, everywhere(state))
    assert new.scale.tolist() == [[5.0, 3.0]]
    assert new.trust_radius.tolist() == [10.0]
    empty = replace(
        state,
        scale=torch.zeros(1, 2).double(),
        normal_matrix=torch.tensor([[[4.0, 0.0], [0.0, 0.0]]], dtype=torch.float64),
    )
    assert at_new_point(TrustRegion(), blocks, empty, everywhere(state)).scale.tolist() == [
        [2.0, 1.0]
    ]


@pytest.mark.parametrize(("jacobians", "late"), [(50, False), (51, True)])
def test_scale_of_a_late_problem_decays_and_the_radius_follows(
    blocks: CholeskyBlocks, state: State, jacobians: int, late: bool
) -> None:
    crawling = replace(
        state,
        njev=torch.tensor([jacobians]),
        scale=torch.tensor([[100.0, 3.1]], dtype=torch.float64),
        last_step=torch.tensor([[0.03, 0.0]], dtype=torch.float64),
    )
    new = at_new_point(TrustRegion(), blocks, crawling, everywhere(state))
    scale = [0.95 * 100, 3.0] if late else [100.0, 3.1]
    assert new.scale[0].tolist() == pytest.approx(scale, rel=1e-14)
    # |D_new s| / |D_old s| = 0.95, as the last step has one component
    assert float(new.trust_radius) == pytest.approx(9.5 if late else 10.0, rel=1e-14)


def test_scale_is_that_of_the_jacobian_whatever_the_loss(
    blocks: CholeskyBlocks, state: State
) -> None:
    norms = torch.tensor([[20.0, 30.0]], dtype=torch.float64)
    fresh = replace(state, scale=torch.zeros(1, 2, dtype=torch.float64))
    for rule in (TrustRegion(), Marquardt(), GaussNewton()):
        assert rule.at_new_point(blocks, fresh, everywhere(state), norms).scale.tolist() == [
            [20.0, 30.0]
        ]


def test_fixed_scale_is_left_alone(blocks: CholeskyBlocks, state: State) -> None:
    fixed = replace(state, scale=torch.tensor([[0.1, 7.0]], dtype=torch.float64))
    new = at_new_point(TrustRegion(scale_by_columns=False), blocks, fixed, everywhere(state))
    assert torch.equal(new.scale, fixed.scale)
    assert float(new.trust_radius) == pytest.approx(math.hypot(0.3, 28), rel=1e-14)


def test_only_the_problems_asked_for_change(blocks: CholeskyBlocks, state: State) -> None:
    two = state.take(torch.tensor([0, 0]))
    two = replace(two, scale=torch.zeros(2, 2).double())
    where = torch.tensor([False, True])
    for rule in (TrustRegion(), Nielsen(), Marquardt(), GaussNewton()):
        new = at_new_point(rule, blocks, two, where)
        assert new.scale[0].tolist() == [0.0, 0.0]
        assert bool((new.scale[1] > 0).all())
        assert float(new.damping[0]) == 0.5


def test_unusable_step_shrinks_the_region(blocks: CholeskyBlocks, state: State) -> None:
    matrix = torch.eye(2, dtype=torch.float64)[None]
    new = TrustRegion().unusable(blocks, state, matrix, everywhere(state))
    assert float(new.trust_radius) == pytest.approx(1.0, rel=1e-14)
    assert float(new.damping) == pytest.approx(5.0, rel=1e-14)
    undamped = replace(state, damping=torch.zeros(1).double())
    assert float(TrustRegion().unusable(blocks, undamped, matrix, everywhere(state)).damping) > 0


# ----------------------------------------------------------------------------------- damping


def test_nielsens_first_damping(blocks: CholeskyBlocks, state: State) -> None:
    new = at_new_point(Nielsen(tau=1e-2), blocks, state, everywhere(state))
    assert float(new.damping) == pytest.approx(1e-2 * 9.0, rel=1e-14)
    assert new.scale.tolist() == [[1.0, 1.0]]
    later = replace(state, njev=torch.tensor([2]))
    assert at_new_point(Nielsen(), blocks, later, everywhere(state)).damping.tolist() == [0.5]


@pytest.mark.parametrize(
    ("gain", "factor"),
    [
        (1.0, 1 / 3),  # 1 − 1 = 0, cut at ⅓
        (0.5, 1.0),
        (0.75, 1 - 0.125),
        (0.25, 1 + 0.125),
        (0.9, 1 - 0.512),
        (0.05, 1 + 0.729),
        (7.0, 1 / 3),
    ],
)
def test_nielsens_damping_after_a_good_step(
    state: State, proposal: Proposal, gain: float, factor: float
) -> None:
    grown = replace(state, damping_growth=torch.tensor([16.0], dtype=torch.float64))
    learned, accepted = learn(Nielsen(), grown, proposal, gain)
    assert accepted
    assert float(learned.damping) == pytest.approx(0.5 * factor, rel=1e-13)
    assert learned.damping_growth.tolist() == [2.0]


@pytest.mark.parametrize(("gain", "finite"), [(0.0, True), (-2.0, True), (0.0, False)])
def test_nielsens_damping_after_bad_steps(
    state: State, proposal: Proposal, gain: float, finite: bool
) -> None:
    dampings = []
    for _ in range(4):
        state, accepted = learn(Nielsen(), state, proposal, gain, finite)
        assert not accepted
        dampings.append(float(state.damping))
    # times 2, 4, 8, 16
    assert dampings == [1.0, 4.0, 32.0, 512.0]
    assert state.damping_growth.tolist() == [32.0]


def test_marquardts_first_damping_and_scale(blocks: CholeskyBlocks, state: State) -> None:
    fresh = replace(state, scale=torch.zeros(1, 2, dtype=torch.float64))
    new = at_new_point(Marquardt(tau=1e-2), blocks, fresh, everywhere(state))
    assert new.damping.tolist() == [1e-2]
    assert new.scale.tolist() == [[2.0, 3.0]]
    # Moré's memory of the largest columns
    seen = torch.tensor([[50.0, 1.0]], dtype=torch.float64)
    later = replace(state, njev=torch.tensor([2]), scale=seen)
    new = at_new_point(Marquardt(), blocks, later, everywhere(state))
    assert new.damping.tolist() == [0.5]
    assert new.scale.tolist() == [[50.0, 3.0]]


@pytest.mark.parametrize(
    ("gain", "damping", "accepted"),
    [
        (0.76, 0.5 / 3, True),
        (0.75, 0.5, True),
        (0.25, 0.5, True),
        (0.24, 1.0, True),
        (0.0, 1.0, False),
        (-5.0, 1.0, False),
    ],
)
def test_marquardts_damping(
    state: State, proposal: Proposal, gain: float, damping: float, accepted: bool
) -> None:
    learned, taken = learn(Marquardt(), state, proposal, gain)
    assert float(learned.damping) == pytest.approx(damping, rel=1e-14)
    assert taken is accepted


def test_marquardts_damping_with_own_constants_and_without_a_cost(
    state: State, proposal: Proposal
) -> None:
    rule = Marquardt(rho1=0.1, rho2=0.9, increase=5.0, decrease=4.0)
    for gain, damping in ((0.05, 2.5), (0.2, 0.5), (0.8, 0.5), (0.95, 0.125)):
        assert float(learn(rule, state, proposal, gain)[0].damping) == pytest.approx(damping)
    learned, accepted = learn(rule, state, proposal, 0.0, finite=False)
    assert float(learned.damping) == 2.5 and not accepted


@pytest.mark.parametrize("rule", [Nielsen(), Marquardt()])
def test_unusable_step_raises_the_damping(blocks: CholeskyBlocks, state: State, rule: Rule) -> None:
    matrix = torch.eye(2, dtype=torch.float64)[None]
    assert float(rule.unusable(blocks, state, matrix, everywhere(state)).damping) == 5.0
    undamped = replace(state, damping=torch.zeros(1).double())
    new = rule.unusable(blocks, undamped, matrix, everywhere(state))
    assert torch.equal(new.damping, jitter(blocks, matrix))


def test_marquardts_step_is_his(blocks: CholeskyBlocks, state: State) -> None:
    matrix = blocks.scaled(state.normal_matrix, state.scale)
    step = Marquardt().solve(blocks, state, matrix, state.gradient / state.scale).q / state.scale
    # (JᵀJ + λ diag JᵀJ) s = −g with λ = ½: [[6, 1], [1, 13.5]] s = −(6, 12), determinant 80
    wanted = torch.tensor([[-(6 * 13.5 - 12) / 80, -(6 * 12 - 6) / 80]], dtype=torch.float64)
    torch.testing.assert_close(step, wanted, rtol=1e-13, atol=0)


def test_nielsens_step_is_his(blocks: CholeskyBlocks, state: State) -> None:
    step = Nielsen().solve(blocks, state, state.normal_matrix, state.gradient).q
    # (JᵀJ + λ I) s = −g with λ = ½: [[4.5, 1], [1, 9.5]] s = −(6, 12), determinant 41.75
    wanted = torch.tensor([[-(6 * 9.5 - 12), -(4.5 * 12 - 6)]], dtype=torch.float64) / 41.75
    torch.testing.assert_close(step, wanted, rtol=1e-13, atol=0)


# ------------------------------------------------------------------------------ Gauss-Newton


@pytest.mark.parametrize("length", [1.0, 0.3, 1.5])
@pytest.mark.parametrize("boxed", [False, True])
def test_gauss_newton_step(
    blocks: CholeskyBlocks, state: State, length: float, boxed: bool
) -> None:
    tests = RelativeTests(0.0, 1e-15, 0.0, 100)
    _, proposal = Policy(GaussNewton(length), tests, boxed).propose(blocks, state)
    # [[4, 1], [1, 9]] s = −(6, 12), determinant 35; the damping of the state plays no part
    step = torch.tensor([[-(54 - 12) / 35, -(48 - 6) / 35]], dtype=torch.float64)
    assert proposal.usable.tolist() == [True] and proposal.limited.tolist() == [False]
    torch.testing.assert_close(proposal.params_trial, state.params + length * step)


@pytest.mark.parametrize("gain", [1.0, 0.0, -50.0])
def test_gauss_newton_takes_every_finite_step(
    state: State, proposal: Proposal, gain: float
) -> None:
    learned, accepted = learn(GaussNewton(), state, proposal, gain)
    assert accepted and learned.status.tolist() == [RUNNING]


def test_gauss_newton_ends_where_nothing_is_finite(state: State, proposal: Proposal) -> None:
    learned, accepted = learn(GaussNewton(), state, proposal, 0.0, finite=False)
    assert not accepted and learned.status.tolist() == [Status.NON_FINITE]


def test_rules_learn_problem_by_problem(state: State, make_proposal: MakeProposal) -> None:
    rules: list[Any] = [TrustRegion(), Nielsen(), Marquardt(), GaussNewton()]
    many = state.take(torch.zeros(4, dtype=torch.int64))
    proposal = make_proposal(many, [[0.0, 9.5 / 3]] * 4, damping=[0.5] * 4)
    gains = torch.tensor([0.95, 0.5, -1.0, -math.inf], dtype=torch.float64)
    finite = torch.tensor([True, True, True, False])
    for rule in rules:
        together, accepted = rule.learn(many, proposal, gains, finite)
        for row in range(4):
            index = torch.tensor([row])
            one = make_proposal(many.take(index), [[0.0, 9.5 / 3]], damping=[0.5])
            alone, taken = rule.learn(many.take(index), one, gains[index], finite[index])
            assert torch.equal(taken, accepted[index])
            for name in ("trust_radius", "damping", "damping_growth", "status"):
                assert torch.equal(getattr(alone, name), getattr(together, name)[index]), name
