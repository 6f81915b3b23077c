"""What an engine gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Solution:
    """Where the iterations ended, one row per problem.

    Attributes
    ----------
    params : Tensor (B, P)
    cost : Tensor (B,) of float64
    status : Tensor (B,) of int8
    nfev, njev : Tensor (B,) of int64
    normal_matrix : Tensor (B, P, P) of float64, or None
        The Gauss-Newton block of the last Jacobian, where it was asked for.
    history : list of Tensor (B, P), or None
        Every iterate, start first, where it was asked for.
    engine : str
        'eager' or 'fused': which engine ran.
    engine_reason : str
        Why.
    inverse : Tensor (B, P, P) of float64, or None
        Of the normal matrix, 0 for fixed parameters; where the engine found it on the way.
    trusted : Tensor (B,) of bool, or None
        Whether it is worth something.
    """

    params: Tensor
    cost: Tensor
    status: Tensor
    nfev: Tensor
    njev: Tensor
    normal_matrix: Tensor | None = None
    history: list[Tensor] | None = None
    engine: str = "eager"
    engine_reason: str = ""
    inverse: Tensor | None = None
    trusted: Tensor | None = None
