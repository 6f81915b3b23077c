"""Boxes by an active set: freeze, solve for the others, put what crosses on its bound, solve again.

A parameter on its bound whose gradient points out of the box is frozen. A parameter that the step
carries over a bound is put on it, its share moves to the right-hand side, and the others are solved
again: three solves at most, no evaluation. What still crosses then is clipped. The gain ratio
belongs to the clipped step. A step that was bent by the box is no proof of convergence, however
small it is: a parameter put on its bound too early may hold up the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimize.lsq.policy.step import Blocks, ScaledStep, Subproblem

SOLVES = 3


def frozen_parameters(
    params: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor, fixed: Tensor
) -> Tensor:
    """Parameters (B, P) that cannot move: fixed, or on a bound with the gradient pointing out."""
    at_lower = (params <= lower) & (gradient >= 0)
    at_upper = (params >= upper) & (gradient <= 0)
    return fixed | at_lower | at_upper


def boxed_step(
    blocks: Blocks,
    subproblem: Subproblem,
    matrix: Tensor,
    gradient: Tensor,
    scale: Tensor,
    frozen: Tensor,
    lowest: Tensor,
    highest: Tensor,
) -> ScaledStep:
    """A step inside the box.

    Parameters
    ----------
    blocks : Blocks
    subproblem : callable
        (G, g) to a step, without a box.
    matrix, gradient, scale : Tensor (B, P, P), (B, P), (B, P)
        G, g (both scaled) and D.
    frozen : Tensor (B, P) of bool
    lowest, highest : Tensor (B, P)
        The box seen from the present point: lower − params and upper − params.

    Returns
    -------
    ScaledStep
    """
    nothing = torch.zeros_like(frozen)

    def body(
        put: Tensor, crossed: Tensor, q: Tensor, damping: Tensor, exists: Tensor, limited: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        free = ~(frozen | crossed)
        shifted = torch.where(free, gradient + blocks.multiply(matrix, put), 0.0)
        solved = subproblem(blocks.restricted(matrix, free), shifted)
        q = torch.where(free, solved.q, put)
        step = q / scale
        below = free & (step < lowest)
        above = free & (step > highest)
        put = torch.where(below, lowest * scale, torch.where(above, highest * scale, put))
        carried = (put, crossed | below | above, q, solved.damping, solved.exists, solved.limited)
        return (below | above).any(-1), carried

    first = ~nothing.any(-1)
    zero, vector = torch.zeros_like(gradient[:, 0]), torch.zeros_like(gradient)
    carried = (vector, nothing, vector, zero, ~first, ~first)
    _, crossed, q, damping, exists, limited = blocks.repeat(SOLVES, first, body, carried)
    wanted = q / scale
    step = torch.minimum(torch.maximum(wanted, lowest), highest)
    clipped = torch.where(frozen, 0.0, step * scale)
    bent = (crossed | (step != wanted)).any(-1)
    return ScaledStep(clipped, damping, exists, limited | bent, bent)


def model_value(blocks: Blocks, matrix: Tensor, gradient: Tensor, q: Tensor) -> Tensor:
    """g·q + ½ q·Gq: (B,)."""
    return (gradient * q + 0.5 * q * blocks.multiply(matrix, q)).sum(-1)
