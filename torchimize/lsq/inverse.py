"""The inverse of a normal matrix, and whether it can be trusted; runs in either engine."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimize.lsq.policy.state import positive
from torchimize.lsq.policy.step import Blocks

TRUSTED_ERROR = 2.5e-8
"""Largest relative rounding of an inverse that is taken as it is: in float64 a condition number of
10⁸, of the normal matrix scaled to unit diagonal."""

SINGLE_ERROR = 1e-4
"""The same where everything is float32, whose estimates carry more noise than that."""


def largest_condition(eps: float) -> float:
    """Condition number up to which the inverse of a matrix with relative rounding eps is taken."""
    return (TRUSTED_ERROR if eps <= torch.finfo(torch.float64).eps else SINGLE_ERROR) / eps


def well_conditioned_inverse(
    blocks: Blocks, normal_matrix: Tensor, free: Tensor, condition: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The inverse for the free parameters, 0 in the rows and columns of the others.

    Columns of the Jacobian are scaled to unit length first, so that the units of the parameters do
    not matter.

    Parameters
    ----------
    blocks : Blocks
    normal_matrix : Tensor (B, P, P)
    free : Tensor (B, P) of bool
    condition : float
        Condition number (in the 1-norm) of the scaled matrix up to which its inverse is trusted.

    Returns
    -------
    inverse : Tensor (B, P, P)
        Anything where it is not trusted.
    trusted : Tensor (B,) of bool
    """
    both = free[:, :, None] & free[:, None, :]
    matrix = blocks.restricted(normal_matrix, free)
    scale = positive(blocks.diagonal(matrix)).sqrt()
    scaled = blocks.scaled(matrix, scale)
    factor, exists = blocks.factor(scaled, torch.zeros_like(scale[:, 0]))
    inverse = blocks.inverse(factor, scaled)
    product = _one_norm(scaled) * _one_norm(inverse)
    inverse = torch.where(both, blocks.scaled(inverse, scale), 0.0)
    return inverse, exists & (product < condition)


def _one_norm(matrix: Tensor) -> Tensor:
    return matrix.abs().sum(-1).amax(-1)
