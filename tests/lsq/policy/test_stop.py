"""Each stopping test alone, on states whose numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from torchimize import Status
from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy import AbsoluteTests, Proposal, RelativeTests, State
from torchimize.lsq.policy.stop import MAX_FAILURES, UNSEEN, take_unseen
from torchimize.status import RUNNING

MakeState = Callable[..., State]
MakeProposal = Callable[..., Proposal]
OFF: dict[str, Any] = {"ftol": 0.0, "xtol": 0.0, "gtol": 0.0, "max_nfev": 1000}
ABSOLUTE_OFF: dict[str, Any] = {"ftol": 0.0, "ptol": 0.0, "gtol": 0.0, "max_nfev": 1000}


@pytest.fixture
def state(make_state: MakeState) -> State:
    """params (3, −4), ‖r‖ = 2, column norms 2 and 3, gradient (1, −1.5): cosines ¼ and ¼."""
    return make_state(
        [[3.0, -4.0]],
        cost=[2.0],
        gradient=[[1.0, -1.5]],
        normal_matrix=[[[4.0, 1.0], [1.0, 9.0]]],
        scale=[[2.0, 3.0]],
        nfev=[7],
        njev=[5],
    )


@pytest.fixture
def proposal(state: State, make_proposal: MakeProposal) -> Proposal:
    """Step (0.3, −0.04), one tenth and one hundredth of the parameters; predicted fall 0.2."""
    return make_proposal(state, [[0.3, -0.04]], predicted_reduction=[0.2])


def before(
    tests: RelativeTests | AbsoluteTests, blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> int:
    status = tests.before(blocks, state, proposal)
    assert status.dtype == torch.int8 and status.shape == state.cost.shape
    return int(status[0])


def relative(**changes: Any) -> RelativeTests:
    return RelativeTests(**{**OFF, **changes})


def absolute(**changes: Any) -> AbsoluteTests:
    return AbsoluteTests(**{**ABSOLUTE_OFF, **changes})


# ---------------------------------------------------------------------------------- relative


def test_relative_goes_on_with_all_tests_off(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    assert before(relative(), blocks, state, proposal) == RUNNING
    tests = relative(ftol=1.0)
    assert tests.after(blocks, state, proposal, torch.tensor([True])).tolist() == [RUNNING]


# predicted 0.2 against cost 2
@pytest.mark.parametrize(("ftol", "status"), [(0.101, Status.FTOL), (0.099, RUNNING)])
def test_relative_ftol(
    blocks: CholeskyBlocks, state: State, proposal: Proposal, ftol: float, status: int
) -> None:
    assert before(relative(ftol=ftol), blocks, state, proposal) == status


# the larger of 0.3/3 and 0.04/4
@pytest.mark.parametrize(("xtol", "status"), [(0.101, Status.XTOL), (0.099, RUNNING)])
def test_relative_xtol(
    blocks: CholeskyBlocks, state: State, proposal: Proposal, xtol: float, status: int
) -> None:
    assert before(relative(xtol=xtol), blocks, state, proposal) == status


def test_relative_xtol_looks_at_the_recent_size(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    near_zero = replace(state, params=torch.tensor([[1e-9, -4.0]], dtype=torch.float64))
    assert before(relative(xtol=0.101), blocks, near_zero, proposal) == Status.XTOL
    shrunk = replace(state, size=torch.tensor([[1.0, 4.0]], dtype=torch.float64))
    assert before(relative(xtol=0.101), blocks, shrunk, proposal) == RUNNING


# |g_j| / ‖J_j‖ = ½ for both, ‖r‖ = 2
@pytest.mark.parametrize(("gtol", "status"), [(0.251, Status.GTOL), (0.249, RUNNING)])
def test_relative_gtol(
    blocks: CholeskyBlocks, state: State, proposal: Proposal, gtol: float, status: int
) -> None:
    assert before(relative(gtol=gtol), blocks, state, proposal) == status


def test_relative_gtol_takes_the_worst_free_parameter(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    steep = replace(state, gradient=torch.tensor([[1.0, -300.0]], dtype=torch.float64))
    assert before(relative(gtol=0.251), blocks, steep, proposal) == RUNNING
    frozen = replace(proposal, free=torch.tensor([[True, False]]))
    assert before(relative(gtol=0.251), blocks, steep, frozen) == Status.GTOL
    # a parameter without influence has neither a column nor a gradient
    empty = replace(
        state,
        gradient=torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        normal_matrix=torch.tensor([[[4.0, 0.0], [0.0, 0.0]]], dtype=torch.float64),
    )
    assert before(relative(gtol=0.251), blocks, empty, proposal) == Status.GTOL
    assert before(relative(gtol=0.249), blocks, empty, proposal) == RUNNING


def test_relative_both_tolerances(blocks: CholeskyBlocks, state: State, proposal: Proposal) -> None:
    assert before(relative(ftol=0.11, xtol=0.11), blocks, state, proposal) == Status.FTOL_XTOL
    assert before(relative(ftol=0.11, xtol=0.01), blocks, state, proposal) == Status.FTOL
    assert before(relative(ftol=0.01, xtol=0.11), blocks, state, proposal) == Status.XTOL
    tests = relative(ftol=0.11, xtol=0.11, gtol=0.26)
    assert before(tests, blocks, state, proposal) == Status.GTOL


def test_a_perfect_fit_stops_without_any_tolerance(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    perfect = replace(state, cost=torch.zeros(1).double())
    assert before(relative(), blocks, perfect, proposal) == Status.GTOL
    assert before(absolute(), blocks, perfect, proposal) == Status.GTOL


@pytest.mark.parametrize("make", [relative, absolute])
@pytest.mark.parametrize(
    ("limit", "status"), [(8, RUNNING), (7, Status.MAX_NFEV), (6, Status.MAX_NFEV)]
)
def test_evaluations(
    blocks: CholeskyBlocks,
    state: State,
    proposal: Proposal,
    make: Callable[..., RelativeTests | AbsoluteTests],
    limit: int,
    status: int,
) -> None:
    assert before(make(max_nfev=limit), blocks, state, proposal) == status


def test_convergence_counts_more_than_the_limit(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    assert before(relative(ftol=0.11, max_nfev=1), blocks, state, proposal) == Status.FTOL
    assert before(absolute(gtol=2.0, max_nfev=1), blocks, state, proposal) == Status.GTOL


def test_an_unusable_step_proves_nothing(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    useless = replace(proposal, usable=torch.tensor([False]))
    assert before(relative(ftol=1.0, xtol=1.0), blocks, state, useless) == RUNNING
    assert before(relative(gtol=0.26), blocks, state, useless) == Status.GTOL
    assert before(absolute(ptol=10.0), blocks, state, useless) == RUNNING


def test_a_step_that_the_box_took_away_proves_nothing(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    bent = replace(proposal, bent=torch.tensor([True]))
    assert before(relative(ftol=1.0, xtol=1.0), blocks, state, bent) == RUNNING
    assert before(absolute(ptol=10.0), blocks, state, bent) == RUNNING
    assert before(relative(gtol=0.26), blocks, state, bent) == Status.GTOL


@pytest.mark.parametrize("make", [relative, absolute])
def test_many_unusable_steps_are_a_stall(
    blocks: CholeskyBlocks,
    state: State,
    proposal: Proposal,
    make: Callable[..., RelativeTests | AbsoluteTests],
) -> None:
    useless = replace(proposal, usable=torch.tensor([False]))
    for failures, status in ((MAX_FAILURES - 1, RUNNING), (MAX_FAILURES, Status.STALLED)):
        failing = replace(state, failures=torch.tensor([failures]))
        assert before(make(), blocks, failing, useless) == status
    # as long as the present step is usable, past failures do not matter
    assert before(make(), blocks, failing, proposal) == RUNNING


def test_every_problem_is_tested_by_its_own_numbers(
    blocks: CholeskyBlocks, state: State, proposal: Proposal, make_proposal: MakeProposal
) -> None:
    three = state.take(torch.tensor([0, 0, 0]))
    three = replace(three, cost=torch.tensor([2.0, 0.0, 2.0], dtype=torch.float64))
    predicted = torch.tensor([0.2, 0.2, 1e-9], dtype=torch.float64)
    steps = make_proposal(three, [[0.3, -0.04]] * 3, predicted_reduction=predicted)
    status = relative(ftol=1e-8).before(blocks, three, steps)
    assert status.tolist() == [RUNNING, Status.GTOL, Status.FTOL]


# ---------------------------------------------------------------------------------- absolute


@pytest.mark.parametrize(("gtol", "status"), [(1.51, Status.GTOL), (1.5, RUNNING), (1.4, RUNNING)])
def test_absolute_gtol(
    blocks: CholeskyBlocks, state: State, proposal: Proposal, gtol: float, status: int
) -> None:
    assert before(absolute(gtol=gtol), blocks, state, proposal) == status


def test_absolute_gtol_ignores_what_cannot_move(
    blocks: CholeskyBlocks, state: State, proposal: Proposal
) -> None:
    frozen = replace(proposal, free=torch.tensor([[True, False]]))
    assert before(absolute(gtol=1.01), blocks, state, frozen) == Status.GTOL


# ‖step‖ = 0.5 and ‖p‖ = 5: ptol (ptol + 5) = 0.5 at ptol = 0.0981
@pytest.mark.parametrize(("ptol", "status"), [(0.099, Status.XTOL), (0.097, RUNNING)])
def test_absolute_ptol(
    blocks: CholeskyBlocks,
    state: State,
    make_proposal: MakeProposal,
    ptol: float,
    status: int,
) -> None:
    proposal = make_proposal(state, [[0.3, -0.4]])
    assert before(absolute(ptol=ptol), blocks, state, proposal) == status


# step (1, −1): ‖J step‖² = 4 − 2 + 9 = 11; ‖f‖ = 2: the ratio is √11/2 = 1.658
@pytest.mark.parametrize(
    ("ftol", "accepted", "status"),
    [(1.66, True, Status.FTOL), (1.65, True, RUNNING), (1.66, False, RUNNING)],
)
def test_absolute_ftol(
    blocks: CholeskyBlocks,
    state: State,
    make_proposal: MakeProposal,
    ftol: float,
    accepted: bool,
    status: int,
) -> None:
    proposal = make_proposal(state, [[1.0, -1.0]])
    after = absolute(ftol=ftol).after(blocks, state, proposal, torch.tensor([accepted]))
    assert after.tolist() == [status]


def test_absolute_ftol_does_not_overwrite_another_reason(
    blocks: CholeskyBlocks, state: State, make_proposal: MakeProposal
) -> None:
    lost = replace(state, status=torch.tensor([int(Status.NON_FINITE)], dtype=torch.int8))
    proposal = make_proposal(lost, [[1.0, -1.0]])
    after = absolute(ftol=2.0).after(blocks, lost, proposal, torch.tensor([True]))
    assert after.tolist() == [Status.NON_FINITE]


# ---------------------------------------------------------------------------- the last step


def small_step(state: State, make_proposal: MakeProposal, **changes: Any) -> Proposal:
    """Half of the largest relative step that may be taken unseen; predicted fall 0.5 of 2."""
    step = (0.5 * UNSEEN * state.size).tolist()
    return make_proposal(state, step, predicted_reduction=[0.5], **changes)


def code(status: int) -> torch.Tensor:
    return torch.tensor([int(status)], dtype=torch.int8)


@pytest.mark.parametrize("status", [Status.FTOL, Status.FTOL_XTOL])
def test_last_step_is_taken_unseen(
    state: State, make_proposal: MakeProposal, status: Status
) -> None:
    proposal = small_step(state, make_proposal)
    taken = take_unseen(state, proposal, code(status))
    assert torch.equal(taken.params, proposal.params_trial)
    assert not torch.equal(taken.params, state.params)
    assert taken.cost.tolist() == [1.5]
    assert taken.nfev.tolist() == state.nfev.tolist()


@pytest.mark.parametrize(
    "status", [Status.XTOL, Status.GTOL, Status.MAX_NFEV, Status.STALLED, RUNNING]
)
def test_only_ftol_takes_a_step_unseen(
    state: State, make_proposal: MakeProposal, status: int
) -> None:
    taken = take_unseen(state, small_step(state, make_proposal), code(status))
    assert torch.equal(taken.params, state.params)
    assert torch.equal(taken.cost, state.cost)


def test_only_a_free_small_usable_step_is_taken_unseen(
    state: State, make_proposal: MakeProposal
) -> None:
    for change in ({"limited": [True]}, {"usable": [False]}):
        proposal = small_step(state, make_proposal, **change)
        taken = take_unseen(state, proposal, code(Status.FTOL))
        assert torch.equal(taken.params, state.params)
    large = make_proposal(state, (2 * UNSEEN * state.size).tolist(), predicted_reduction=[0.5])
    assert torch.equal(take_unseen(state, large, code(Status.FTOL)).params, state.params)
    done = replace(state, status=code(Status.GTOL))
    proposal = small_step(done, make_proposal)
    assert torch.equal(take_unseen(done, proposal, code(Status.FTOL)).params, state.params)


def test_the_cost_of_an_unseen_step_is_never_negative(
    state: State, make_proposal: MakeProposal
) -> None:
    proposal = replace(
        small_step(state, make_proposal),
        predicted_reduction=torch.tensor([2.0 + 1e-9], dtype=torch.float64),
    )
    assert take_unseen(state, proposal, code(Status.FTOL)).cost.tolist() == [0.0]
