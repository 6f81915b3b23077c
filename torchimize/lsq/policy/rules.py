"""The dampings: what scales the variables, what limits the step, and what is learned from a trial.

Four rules share one iteration: a trust region (the default of ``least_squares`` and ``curve_fit``),
Nielsen's and Marquardt's damping and plain Gauss-Newton (the functional API). Each says how the
variables are scaled at a new point, which subproblem gives the step, and how Δ and λ follow the
gain ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from torchimize.lsq.policy.state import Proposal, State, norm, positive
from torchimize.lsq.policy.step import (
    Blocks,
    ScaledStep,
    damped_step,
    jitter,
    trust_region_step,
)
from torchimize.status import Status


class Rule(Protocol):
    """How one method scales, limits and adapts its steps.

    Attributes
    ----------
    length : float
        What a step is multiplied with before it is taken.
    downhill : bool
        Whether a step is usable only where the model goes down; otherwise every finite one is.
    """

    @property
    def length(self) -> float:
        """Factor of the step."""

    @property
    def downhill(self) -> bool:
        """Whether a step must go down on the model."""

    def at_new_point(
        self, blocks: Blocks, state: State, where: Tensor, column_norms: Tensor
    ) -> State:
        """Scale the variables of the problems in ``where`` (B,), whose derivatives are new."""

    def solve(self, blocks: Blocks, state: State, matrix: Tensor, gradient: Tensor) -> ScaledStep:
        """The step in scaled variables for G (B, P, P) and g (B, P)."""

    def unusable(self, blocks: Blocks, state: State, matrix: Tensor, where: Tensor) -> State:
        """Make the next proposal more cautious, for the problems in ``where`` (B,)."""

    def learn(
        self, state: State, proposal: Proposal, gain_ratio: Tensor, finite: Tensor
    ) -> tuple[State, Tensor]:
        """Adapt to the outcome of a trial; which trials (B,) are accepted."""


@dataclass(frozen=True)
class TrustRegion:
    """Moré's scaled trust region with a radius that forgets, tuned for small batched problems.

    The column scale is the largest norm so far; a problem still running after ``late`` Jacobians
    crawls, and from there its scale decays towards the present norms, the radius following.

    Parameters
    ----------
    forget : float
        Decay per Jacobian of a late problem's scale.
    late : int
        Jacobians after which a problem is late.
    shrink, grow : float
        Radius after a poor step (times its length) and factor after a good one.
    poor, good : float
        Gain ratios below and above which the radius changes.
    accept : float
        Gain ratio above which a step is taken.
    scale_by_columns : bool
        False keeps the scale that the state came with.
    """

    forget: float = 0.95
    late: int = 50
    shrink: float = 0.35
    grow: float = 2.0
    poor: float = 0.25
    good: float = 0.9
    accept: float = 1e-4
    scale_by_columns: bool = True
    length: float = 1.0
    downhill: bool = True

    def at_new_point(
        self, blocks: Blocks, state: State, where: Tensor, column_norms: Tensor
    ) -> State:
        first = state.njev <= 1
        old = state.scale
        late = (state.njev > self.late) & ~first
        if self.scale_by_columns:
            kept = torch.where(late[:, None], self.forget * old, old)
            scale = positive(torch.maximum(kept, column_norms))
        else:
            scale = old
        radius = torch.where(first, self._first_radius(blocks, state, scale), state.trust_radius)

        def follow(radius: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            before, after = norm(old * state.last_step), norm(scale * state.last_step)
            follows = late & (before > 0) & (after > 0)
            followed = radius * after / torch.where(follows, before, 1.0)
            return late, (torch.where(follows, followed, radius),)

        (radius,) = blocks.repeat(1, where & late, follow, (radius,))
        return state.update(where, scale=scale, trust_radius=radius)

    def _first_radius(self, blocks: Blocks, state: State, scale: Tensor) -> Tensor:
        """|D p| (B,), or the length of the Cauchy step where the start says nothing of sizes."""
        start = norm(torch.where(state.fixed, 0.0, scale * state.params.double()))
        gradient = torch.where(state.fixed, 0.0, state.gradient / scale)
        image = blocks.multiply(blocks.scaled(state.normal_matrix, scale), gradient)
        curvature = (gradient * image).sum(-1)
        known = curvature > 0
        length = norm(gradient)
        cauchy = length * (length * length / torch.where(known, curvature, 1.0))
        cauchy = torch.where(known & (cauchy > 0), cauchy, 1.0)
        return torch.where(start > 1e-10 * cauchy, start, cauchy)

    def solve(self, blocks: Blocks, state: State, matrix: Tensor, gradient: Tensor) -> ScaledStep:
        return trust_region_step(blocks, matrix, gradient, state.trust_radius, state.damping)

    def unusable(self, blocks: Blocks, state: State, matrix: Tensor, where: Tensor) -> State:
        floor = 1e-12 * blocks.diagonal(matrix).sum(-1)
        return state.update(
            where,
            trust_radius=0.1 * state.trust_radius,
            damping=torch.maximum(10 * state.damping, floor),
        )

    def learn(
        self, state: State, proposal: Proposal, gain_ratio: Tensor, finite: Tensor
    ) -> tuple[State, Tensor]:
        old, length = state.trust_radius, proposal.scaled_norm
        radius = torch.where(
            gain_ratio < self.poor,
            self.shrink * length,
            torch.where((gain_ratio > self.good) & (length > 0.9 * old), self.grow * old, old),
        )
        radius = torch.where(finite, radius, 0.25 * length)
        steepness = norm(torch.where(proposal.free, state.gradient / state.scale, 0.0))
        damping = torch.where(
            finite,
            proposal.damping * old / radius,
            4 * torch.maximum(proposal.damping, 1e-3 * steepness / radius),
        )
        accepted = finite & (gain_ratio > self.accept)
        return replace(state, trust_radius=radius, damping=damping), accepted


@dataclass(frozen=True)
class Nielsen:
    """Nielsen's damping, ``meth='lev'``: λ follows the gain ratio smoothly, unscaled variables.

    Madsen, Nielsen, Tingleff 2004, "Methods for non-linear least squares problems", algorithm 3.16:
    λ₀ = tau · max diag JᵀJ; accepted: λ·max(⅓, 1 − (2ρ − 1)³), ν = 2; rejected: λ·ν, ν·2.
    """

    tau: float = 1e-3
    length: float = 1.0
    downhill: bool = True

    def at_new_point(
        self, blocks: Blocks, state: State, where: Tensor, column_norms: Tensor
    ) -> State:
        first = state.njev <= 1
        start = self.tau * blocks.diagonal(state.normal_matrix).amax(-1)
        return state.update(
            where,
            scale=torch.ones_like(state.scale),
            damping=torch.where(first, start, state.damping),
        )

    def solve(self, blocks: Blocks, state: State, matrix: Tensor, gradient: Tensor) -> ScaledStep:
        return damped_step(blocks, matrix, gradient, state.damping)

    def unusable(self, blocks: Blocks, state: State, matrix: Tensor, where: Tensor) -> State:
        return state.update(
            where, damping=torch.maximum(10 * state.damping, jitter(blocks, matrix))
        )

    def learn(
        self, state: State, proposal: Proposal, gain_ratio: Tensor, finite: Tensor
    ) -> tuple[State, Tensor]:
        accepted = finite & (gain_ratio > 0)
        eased = state.damping * (1 - (2 * gain_ratio - 1) ** 3).clamp(min=1 / 3)
        growth = torch.where(accepted, 2.0, 2 * state.damping_growth)
        damping = torch.where(accepted, eased, state.damping * state.damping_growth)
        return replace(state, damping=damping, damping_growth=growth), accepted


@dataclass(frozen=True)
class Marquardt:
    """Marquardt's damping: λ D, λ·increase below ``rho1``, λ/decrease above ``rho2``.

    Marquardt 1963, with the gain ratio of the scaled model; λ₀ = tau. D is diag(JᵀJ), each entry
    the largest so far (Moré 1978, section 4): where a step makes a column vanish, the present
    diagonal would leave that parameter undamped and every later step useless.
    """

    tau: float = 1e-3
    rho1: float = 0.25
    rho2: float = 0.75
    increase: float = 2.0
    decrease: float = 3.0
    length: float = 1.0
    downhill: bool = True

    def at_new_point(
        self, blocks: Blocks, state: State, where: Tensor, column_norms: Tensor
    ) -> State:
        first = state.njev <= 1
        return state.update(
            where,
            scale=positive(torch.maximum(state.scale, column_norms)),
            damping=torch.where(first, torch.full_like(state.damping, self.tau), state.damping),
        )

    def solve(self, blocks: Blocks, state: State, matrix: Tensor, gradient: Tensor) -> ScaledStep:
        return damped_step(blocks, matrix, gradient, state.damping)

    def unusable(self, blocks: Blocks, state: State, matrix: Tensor, where: Tensor) -> State:
        return state.update(
            where, damping=torch.maximum(10 * state.damping, jitter(blocks, matrix))
        )

    def learn(
        self, state: State, proposal: Proposal, gain_ratio: Tensor, finite: Tensor
    ) -> tuple[State, Tensor]:
        accepted = finite & (gain_ratio > 0)
        raised = torch.where(gain_ratio < self.rho1, state.damping * self.increase, state.damping)
        damping = torch.where(gain_ratio > self.rho2, state.damping / self.decrease, raised)
        return replace(state, damping=torch.where(finite, damping, raised)), accepted


@dataclass(frozen=True)
class GaussNewton:
    """Gauss-Newton steps times ``length``, each taken if it leads to a finite cost."""

    length: float = 1.0
    downhill: bool = False

    def at_new_point(
        self, blocks: Blocks, state: State, where: Tensor, column_norms: Tensor
    ) -> State:
        return state.update(where, scale=positive(column_norms))

    def solve(self, blocks: Blocks, state: State, matrix: Tensor, gradient: Tensor) -> ScaledStep:
        return damped_step(blocks, matrix, gradient, torch.zeros_like(state.damping))

    def unusable(self, blocks: Blocks, state: State, matrix: Tensor, where: Tensor) -> State:
        return state

    def learn(
        self, state: State, proposal: Proposal, gain_ratio: Tensor, finite: Tensor
    ) -> tuple[State, Tensor]:
        lost = state.update(~finite, status=torch.full_like(state.status, int(Status.NON_FINITE)))
        return lost, finite
