"""The subproblem of an iteration: q minimising g·q + ½ q·Gq, damped or inside a trust region.

All in scaled variables: G = D⁻¹ JᵀJ D⁻¹, g = D⁻¹ Jᵀr, q = D·step. The trust region follows Moré
1978 ("The Levenberg-Marquardt algorithm: implementation and theory", section 5), with normal
equations in place of his QR and a fixed small number of Newton steps for λ per trial; λ is carried
from trial to trial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from torchimize.lsq.policy.state import norm, select

Body = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""A round of :meth:`Blocks.repeat`: carried tensors to (todo, carried tensors)."""


class Blocks(Protocol):
    """The P×P operations an engine supplies; see :class:`torchimize.linalg.CholeskyBlocks`."""

    def factor(self, matrix: Tensor, shift: Tensor) -> tuple[Any, Tensor]:
        """Cholesky factor of ``matrix + shift·I``, in the engine's own form; where it exists."""

    def solve(self, factor: Any, vector: Tensor) -> Tensor:
        """(matrix + shift·I)⁻¹ vector."""

    def inverse_form(self, factor: Any, vector: Tensor) -> Tensor:
        """vectorᵀ (matrix + shift·I)⁻¹ vector: (B,)."""

    def inverse(self, factor: Any, matrix: Tensor) -> Tensor:
        """(matrix + shift·I)⁻¹."""

    def multiply(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """Matrix times vector."""

    def diagonal(self, matrix: Tensor) -> Tensor:
        """The diagonal."""

    def scaled(self, matrix: Tensor, scale: Tensor) -> Tensor:
        """Matrix over scale scaleᵀ."""

    def restricted(self, matrix: Tensor, free: Tensor) -> Tensor:
        """The identity's rows and columns where not free."""

    def repeat(
        self, times: int, todo: Tensor, body: Body, carried: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """``carried`` after rounds of ``todo, carried = body(*carried)``.

        Runs while any problem is in ``todo`` (B,), at most ``times`` times. Another round must
        change nothing for problems that are not: how many rounds they see depends on the others.
        """


@dataclass(frozen=True)
class ScaledStep:
    """A step in scaled variables.

    Attributes
    ----------
    q : Tensor (B, P)
    damping : Tensor (B,)
        The λ it belongs to.
    exists : Tensor (B,) of bool
    limited : Tensor (B,) of bool
        It is not Gauss-Newton's own: radius, damping or box changed it.
    bent : Tensor (B,) of bool
        The box changed it.
    """

    q: Tensor
    damping: Tensor
    exists: Tensor
    limited: Tensor
    bent: Tensor


Subproblem = Callable[[Tensor, Tensor], ScaledStep]
"""(G, g) to a step; what differs between the dampings."""

NEWTON_STEPS = 1
ATTEMPTS = 4
"""Shifts that are tried where the normal matrix is singular."""

RIM = 0.1
"""Relative width of the trust region's rim: a step that ends in it counts as on the boundary."""


def jitter(blocks: Blocks, matrix: Tensor) -> Tensor:
    """eps·tr G (B,), the smallest shift that matters: what rounding has done to G anyway."""
    eps = torch.finfo(matrix.dtype).eps
    return (eps * blocks.diagonal(matrix).sum(-1)).clamp(min=1e-30)


def trust_region_step(
    blocks: Blocks, matrix: Tensor, gradient: Tensor, trust_radius: Tensor, damping: Tensor
) -> ScaledStep:
    """The step with |q| ≤ 1.1 Δ, by at most two factorisations of G + max(λ, eps tr G) I.

    Gauss-Newton's (λ = 0) where it fits; otherwise one safeguarded Newton step on
    1/|q(λ)| = 1/Δ from the carried λ. What still ends outside the rim is cut back to Δ.

    Parameters
    ----------
    blocks : Blocks
    matrix, gradient : Tensor (B, P, P), (B, P)
        G and g.
    trust_radius, damping : Tensor (B,)
        Δ > 0 and the λ ≥ 0 carried from the last trial.
    """
    tiny = jitter(blocks, matrix)
    nothing = torch.zeros_like(trust_radius, dtype=torch.bool)

    def body(
        trial: Tensor,
        lowest: Tensor,
        highest: Tensor,
        q: Tensor,
        used: Tensor,
        exists: Tensor,
        done: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        factor, factored = blocks.factor(matrix, torch.maximum(trial, tiny))
        candidate = blocks.solve(factor, -gradient)
        length = norm(candidate)
        excess = length - trust_radius
        usable = factored & torch.isfinite(length) & ~done
        q = select(usable, candidate, q)
        used = torch.where(usable, trial, used)
        exists = exists | usable
        fits = ((trial == 0) & (excess <= 0)) | (excess.abs() <= RIM * trust_radius)
        done = done | (usable & fits)
        highest = torch.where(usable & (excess < 0), torch.minimum(highest, trial), highest)
        lowest = torch.where(usable & (excess >= 0), torch.maximum(lowest, trial), lowest)
        share = length * length / blocks.inverse_form(factor, candidate)
        newton = trial + share * excess / trust_radius
        newton = torch.where((newton < 0) & (excess < 0), lowest, newton)
        least = 1e-3 * highest
        inside = torch.maximum(least, torch.sqrt(torch.maximum(lowest, least) * highest))
        newton = torch.where((newton > highest) & (highest > 0), inside, newton)
        done = done | (usable & (newton == trial))
        grown = torch.maximum(10 * trial, 10 * tiny)
        trial = torch.where(done, trial, torch.where(factored, newton, grown))
        return ~done, (trial, lowest, highest, q, used, exists, done)

    carried = (
        damping,
        torch.zeros_like(damping),
        norm(gradient) / trust_radius,
        torch.zeros_like(gradient),
        damping,
        nothing,
        nothing,
    )
    *_, q, used, exists, _ = blocks.repeat(NEWTON_STEPS + 1, ~nothing, body, carried)
    length = norm(q)
    cut = length > (1 + RIM) * trust_radius
    q = select(cut, q * (trust_radius / torch.where(cut, length, 1.0))[:, None], q)
    return ScaledStep(q, used, exists, cut | (used > 0), torch.zeros_like(cut))


def damped_step(blocks: Blocks, matrix: Tensor, gradient: Tensor, damping: Tensor) -> ScaledStep:
    """The step of a given λ: (G + λ I) q = −g; the shift grows where G + λ I is not positive.

    Parameters
    ----------
    blocks : Blocks
    matrix, gradient : Tensor (B, P, P), (B, P)
    damping : Tensor (B,)
        λ; 0 is Gauss-Newton.
    """
    nothing = torch.zeros_like(damping, dtype=torch.bool)

    def body(shift: Tensor, q: Tensor, exists: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        factor, factored = blocks.factor(matrix, shift)
        q = select(exists, q, blocks.solve(factor, -gradient))
        exists = exists | factored
        return ~exists, (torch.where(exists, shift, 100 * shift), q, exists)

    shift = torch.maximum(damping, jitter(blocks, matrix))
    carried = (shift, torch.zeros_like(gradient), nothing)
    _, q, exists = blocks.repeat(ATTEMPTS, ~nothing, body, carried)
    return ScaledStep(q, damping, exists, damping > 0, nothing)
