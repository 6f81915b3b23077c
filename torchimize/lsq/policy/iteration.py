"""One iteration of every method: new point, proposal, trial. Pure functions of the state.

::

    at_new_point   cost, g, JᵀJ at params  →  scale, radius, damping
    propose        →  a step inside the box, or a reason to stop
    (the engine evaluates the cost at params + step)
    judge          actual against predicted reduction  →  accept or not, adapt

The engine decides when problems leave the computation; here every formula is elementwise over
problems, and problems that have stopped are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from torchimize.lsq.policy.bounds import boxed_step, frozen_parameters, model_value
from torchimize.lsq.policy.rules import Rule
from torchimize.lsq.policy.state import Proposal, State, norm, select
from torchimize.lsq.policy.step import Blocks, ScaledStep
from torchimize.lsq.policy.stop import take_unseen
from torchimize.status import RUNNING, Status


class StoppingTests(Protocol):
    """When a problem is done; see :mod:`torchimize.lsq.policy.stop`."""

    def before(self, blocks: Blocks, state: State, proposal: Proposal) -> Tensor:
        """Status (B,) after a proposal."""

    def after(self, blocks: Blocks, state: State, proposal: Proposal, accepted: Tensor) -> Tensor:
        """Status (B,) after a trial."""


@dataclass(frozen=True)
class Policy:
    """A method: how it damps, when it stops, whether there is a box.

    Parameters
    ----------
    rule : Rule
    tests : StoppingTests
    boxed : bool
        False skips the box's arithmetic; the state's bounds are then not looked at.
    """

    rule: Rule
    tests: StoppingTests
    boxed: bool

    def at_new_point(
        self,
        blocks: Blocks,
        state: State,
        where: Tensor,
        cost: Tensor,
        gradient: Tensor,
        normal_matrix: Tensor,
        column_norms: Tensor,
    ) -> State:
        """Take in the derivatives at ``state.params`` for the problems in ``where`` (B,).

        Parameters
        ----------
        blocks : Blocks
        state : State
        where : Tensor (B,) of bool
        cost, gradient, normal_matrix : Tensor (B,), (B, P), (B, P, P)
        column_norms : Tensor (B, P)
            ‖J_j‖, samples weighed by the loss's ρ': the parameters' influence on the data.
        """
        first = where & (state.njev == 0)
        free = ~state.fixed
        gradient = torch.where(free, gradient, 0.0)
        normal_matrix = torch.where(free[:, :, None] & free[:, None, :], normal_matrix, 0.0)
        # with a finite diagonal all of a Gram matrix is finite
        finite = torch.isfinite(blocks.diagonal(normal_matrix)) & torch.isfinite(gradient)
        finite = finite.all(-1)
        state = state.update(
            where,
            gradient=gradient,
            normal_matrix=normal_matrix,
            fresh=torch.zeros_like(state.fresh),
            njev=state.njev + 1,
        )
        state = state.update(first, cost=cost, nfev=state.nfev + 1)
        known = torch.isfinite(cost) & torch.isfinite(state.params).all(-1)
        no_cost = first & ~known
        no_derivative = where & ~no_cost & ~finite
        state = state.update(no_cost, status=_full(state, Status.NON_FINITE_START))
        state = state.update(no_derivative, status=_full(state, Status.NON_FINITE))
        column_norms = torch.where(free, column_norms, 0.0)
        return self.rule.at_new_point(blocks, state, where & state.running, column_norms)

    def propose(self, blocks: Blocks, state: State) -> tuple[State, Proposal]:
        """Compute the next step; stop the problems that need none.

        Returns
        -------
        state : State
            With the status of problems that stop here, the last step taken where it may be.
        proposal : Proposal
            To be evaluated where a problem still runs and the step is usable.
        """
        scale = state.scale
        matrix = blocks.scaled(state.normal_matrix, scale)
        gradient = state.gradient / scale

        def subproblem(matrix: Tensor, gradient: Tensor) -> ScaledStep:
            return self.rule.solve(blocks, state, matrix, gradient)

        if self.boxed:
            params, lower, upper = (v.double() for v in (state.params, state.lower, state.upper))
            frozen = frozen_parameters(params, gradient, lower, upper, state.fixed)
            solved = boxed_step(
                blocks,
                subproblem,
                matrix,
                gradient,
                scale,
                frozen,
                lower - params,
                upper - params,
            )
        else:
            frozen = state.fixed
            solved = subproblem(matrix, gradient)
        step = solved.q / scale
        predicted = -model_value(blocks, matrix, gradient, solved.q)
        usable = solved.exists & torch.isfinite(step).all(-1)
        usable = usable & ((predicted > 0) if self.rule.downhill else (norm(solved.q) > 0))
        proposal = Proposal(
            step=step,
            params_trial=self._params_trial(state, step),
            scaled_norm=norm(solved.q),
            predicted_reduction=predicted,
            damping=solved.damping,
            usable=usable,
            limited=solved.limited,
            bent=solved.bent,
            free=~frozen,
        )
        running = state.running
        state = state.update(running & ~usable, failures=state.failures + 1)
        status = torch.where(running, self.tests.before(blocks, state, proposal), state.status)
        vanished = usable & (proposal.params_trial == state.params).all(-1)
        vanished = vanished & (status == RUNNING)
        status = torch.where(vanished, _full(state, Status.XTOL), status)
        # a step that is small only because nothing finite was met further on proves nothing
        small = (status == Status.FTOL) | (status == Status.XTOL) | (status == Status.FTOL_XTOL)
        blind = running & state.lost_sight & proposal.limited & small
        status = torch.where(blind, _full(state, Status.NON_FINITE), status)
        state = replace(take_unseen(state, proposal, status), status=status)
        return self.rule.unusable(blocks, state, matrix, state.running & ~usable), proposal

    def _params_trial(self, state: State, step: Tensor) -> Tensor:
        """The trial point (B, P), rounded to the parameters' dtype and kept inside the box.

        A step that ends on a bound to within rounding ends exactly on it: one ulp short of it, the
        parameter would count as free, and hold up the others with steps of one ulp.
        """
        params = state.params.double()
        step = self.rule.length * step
        trial = (params + step).to(state.params.dtype)
        if self.boxed:
            almost = 1 - 4 * torch.finfo(step.dtype).eps
            trial = torch.where(step <= almost * (state.lower - params), state.lower, trial)
            trial = torch.where(step >= almost * (state.upper - params), state.upper, trial)
            trial = torch.minimum(torch.maximum(trial, state.lower), state.upper)
        return torch.where(state.fixed, state.params, trial)

    def judge(
        self,
        blocks: Blocks,
        state: State,
        proposal: Proposal,
        trial_cost: Tensor,
    ) -> State:
        """Compare actual with predicted reduction, accept or not, adapt radius and damping.

        Parameters
        ----------
        blocks : Blocks
        state : State
        proposal : Proposal
        trial_cost : Tensor (B,)
            The cost at ``proposal.params_trial``; anything where a problem does not run or its
            step is not usable.
        """
        tried = state.running & proposal.usable
        finite = torch.isfinite(trial_cost)
        actual = state.cost - trial_cost
        gain_ratio = torch.where(finite, actual / proposal.predicted_reduction, -torch.inf)
        learned, accepted = self.rule.learn(state, proposal, gain_ratio, finite)
        moved = replace(
            learned,
            params=select(accepted, proposal.params_trial, state.params),
            cost=torch.where(accepted, trial_cost, state.cost),
            last_step=select(accepted, proposal.step, state.last_step),
            size=select(
                accepted,
                torch.maximum(0.5 * state.size, proposal.params_trial.abs().double()),
                state.size,
            ),
            fresh=accepted,
            lost_sight=~finite,
            nfev=state.nfev + 1,
        )
        done = self.tests.after(blocks, moved, proposal, accepted)
        moved = replace(moved, status=done)
        return _merge(tried, moved, state)


def _full(state: State, status: Status) -> Tensor:
    return torch.full_like(state.status, int(status))


def _merge(where: Tensor, new: State, old: State) -> State:
    """``new`` for the problems in ``where``, for the fields that a trial can change."""
    names = (
        "params", "cost", "last_step", "size", "fresh", "lost_sight", "nfev", "status",
        "trust_radius", "damping", "damping_growth",
    )  # fmt: skip
    return old.update(where, **{name: getattr(new, name) for name in names})
