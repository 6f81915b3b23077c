"""When to stop: tests on a problem's own scalars, before an evaluation is spent on a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimize.lsq.policy.state import Proposal, State, norm, positive, select
from torchimize.lsq.policy.step import Blocks
from torchimize.status import RUNNING, Status

MAX_FAILURES = 20
UNSEEN = 1e-3
"""Largest relative step that may be taken unseen."""


def _code(mask: Tensor, code: Status, status: Tensor) -> Tensor:
    return torch.where(mask, torch.full_like(status, int(code)), status)


@dataclass(frozen=True)
class RelativeTests:
    """Scale-free tests, for the doors that follow SciPy.

    Parameters
    ----------
    ftol : float
        Stop when the predicted reduction is at most ``ftol · cost``.
    xtol : float
        Stop when every |step_j| is at most ``xtol · size_j``.
    gtol : float
        Stop when every column of J is orthogonal to the residual to within ``gtol``:
        max_j |g_j| / (‖J_j‖ ‖r‖) ≤ gtol, MINPACK's cosine.
    max_nfev : int
        Residual evaluations per problem.
    """

    ftol: float
    xtol: float
    gtol: float
    max_nfev: int

    def before(self, blocks: Blocks, state: State, proposal: Proposal) -> Tensor:
        """The status (B,) of each problem after looking at a proposal: int8, RUNNING to go on."""
        small_gain = proposal.predicted_reduction <= self.ftol * state.cost
        small_step = (proposal.step.abs() <= self.xtol * state.size).all(-1)
        flat = self._flat(blocks, state, proposal)
        stuck = ~proposal.usable & (state.failures >= MAX_FAILURES)
        status = _code(state.nfev >= self.max_nfev, Status.MAX_NFEV, state.status)
        status = _code(stuck, Status.STALLED, status)
        telling = proposal.usable & ~proposal.bent
        status = _code(telling & small_step, Status.XTOL, status)
        status = _code(telling & small_gain, Status.FTOL, status)
        status = _code(telling & small_gain & small_step, Status.FTOL_XTOL, status)
        return _code(flat | (state.cost == 0), Status.GTOL, status)

    def _flat(self, blocks: Blocks, state: State, proposal: Proposal) -> Tensor:
        """Whether |g_j| ≤ gtol ‖J_j‖ ‖r‖ for every free parameter: (B,)."""
        least = (self.gtol * torch.sqrt(2 * state.cost))[:, None]
        # squared where nothing over- or underflows by it
        ratio = state.gradient / positive(least)
        small = (ratio * ratio <= blocks.diagonal(state.normal_matrix)) & (least > 0)
        return (small | (state.gradient == 0) | ~proposal.free).all(-1)

    def after(self, blocks: Blocks, state: State, proposal: Proposal, accepted: Tensor) -> Tensor:
        """The status (B,) after a trial; nothing more to test here."""
        return state.status


@dataclass(frozen=True)
class AbsoluteTests:
    """The tests of the functional API, in the units of the data.

    Parameters
    ----------
    ftol : float
        Stop after a step that changes the residual by less than ``ftol ‖f‖``, to first order.
    ptol : float
        Stop when ‖step‖ < ptol (ptol + ‖p‖); Madsen, Nielsen, Tingleff 2004, eq. 3.15b.
    gtol : float
        Stop when max|g| < gtol.
    max_nfev : int
        Residual evaluations per problem.
    """

    ftol: float
    ptol: float
    gtol: float
    max_nfev: int

    def before(self, blocks: Blocks, state: State, proposal: Proposal) -> Tensor:
        """The status (B,) of each problem after looking at a proposal: int8, RUNNING to go on."""
        steepest = torch.where(proposal.free, state.gradient.abs(), 0.0).amax(-1)
        length = norm(state.params.double())
        short = norm(proposal.step) < self.ptol * (self.ptol + length)
        stuck = ~proposal.usable & (state.failures >= MAX_FAILURES)
        status = _code(state.nfev >= self.max_nfev, Status.MAX_NFEV, state.status)
        status = _code(stuck, Status.STALLED, status)
        status = _code(proposal.usable & ~proposal.bent & short, Status.XTOL, status)
        return _code((steepest < self.gtol) | (state.cost == 0), Status.GTOL, status)

    def after(self, blocks: Blocks, state: State, proposal: Proposal, accepted: Tensor) -> Tensor:
        """The status (B,) after a trial: FTOL where an accepted step hardly changed f."""
        change = blocks.multiply(state.normal_matrix, proposal.step)
        squared = (proposal.step * change).sum(-1)
        small = squared < self.ftol**2 * 2 * state.cost
        return _code(accepted & small & (state.status == RUNNING), Status.FTOL, state.status)


def take_unseen(state: State, proposal: Proposal, status: Tensor) -> State:
    """Take the last step without evaluating it, where the model can be trusted with it.

    Where ``ftol`` says that the next step is not worth an evaluation, that step is still closer to
    the minimum. It is taken if it is Gauss-Newton's own, free of radius and box, and small; the
    cost becomes the quadratic model's.
    """
    small = (proposal.step.abs() <= UNSEEN * state.size).all(-1)
    by_gain = (status == int(Status.FTOL)) | (status == int(Status.FTOL_XTOL))
    take = state.running & by_gain & small & ~proposal.limited & proposal.usable
    return state.update(
        take,
        params=select(take, proposal.params_trial, state.params),
        cost=(state.cost - proposal.predicted_reduction).clamp(min=0.0),
    )
