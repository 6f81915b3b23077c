"""Boxes by an active set: freeze, solve for the others, put what crosses on its bound, solve again.

A parameter on its bound whose gradient points out of the box is frozen. A parameter that the step
carries over a bound is put on it, its share moves to the right-hand side, and the others are solved
again: three solves at most, no evaluation. What still crosses then is clipped. The gain ratio
belongs to the clipped step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimize.lsq.policy.state import norm
from torchimize.lsq.policy.step import Blocks, ScaledStep, Subproblem

SOLVES = 3


def frozen_parameters(
    params: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor, held: Tensor
) -> Tensor:
    """Parameters (B, P) that cannot move: held, or on a bound with the gradient pointing out."""
    at_lower = (params <= lower) & (gradient >= 0)
    at_upper = (params >= upper) & (gradient <= 0)
    return held | at_lower | at_upper


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
    put = torch.zeros_like(gradient)
    crossed = torch.zeros_like(frozen)
    result = None
    for solve in range(SOLVES):
        free = ~(frozen | crossed)
        shifted = (gradient + blocks.multiply(matrix, put)) * free
        result = subproblem(blocks.restricted(matrix, free), shifted)
        q = torch.where(free, result.q, put)
        below = free & (q / scale < lowest)
        above = free & (q / scale > highest)
        if solve == SOLVES - 1 or blocks.all(~(below | above).any(-1)):
            break
        put = torch.where(below, lowest * scale, torch.where(above, highest * scale, put))
        crossed = crossed | below | above
    assert result is not None
    step = torch.minimum(torch.maximum(q / scale, lowest), highest)
    clipped = torch.where(frozen, 0.0, step * scale)
    # what the box took from the step is not seen by the radius: a step may only get shorter
    limited = result.limited | crossed.any(-1) | (norm(clipped - q) > 0)
    return ScaledStep(clipped, result.damping, result.exists, limited)
