"""The P×P operations that the step policy needs, as batched torch.linalg calls.

The policy is written against these few operations and nothing else, so that another engine can
supply them as unrolled scalars. None of them raises or synchronises: a factorisation that fails
says so in a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CholeskyBlocks:
    """Batched P×P operations on (B, P, P) matrices and (B, P) vectors.

    Parameters
    ----------
    may_synchronise : bool, default True
        Whether :meth:`repeat` may look at the values. On an accelerator this would wait for it, so
        there every fixed number of rounds is run to the end instead.
    """

    def __init__(self, may_synchronise: bool = True) -> None:
        self.may_synchronise = may_synchronise

    def factor(self, matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factor L of ``matrix + diag(shift)`` (shift: (B,)), and where it exists.

        Returns
        -------
        factor : Tensor (B, P, P)
            Lower; the identity where there is none.
        exists : Tensor (B,) of bool
        """
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        shifted = matrix + shift[:, None, None] * eye
        finite = torch.isfinite(shifted).all(-1).all(-1)
        factor, info = torch.linalg.cholesky_ex(torch.where(finite[:, None, None], shifted, eye))
        exists = finite & (info == 0)
        return torch.where(exists[:, None, None], factor, eye), exists

    def solve(self, factor: Tensor, vector: Tensor) -> Tensor:
        """``(L Lᵀ)⁻¹ vector``: (B, P)."""
        # not torch.cholesky_solve, which may wait for the device on some back ends
        half = torch.linalg.solve_triangular(factor, vector[..., None], upper=False)
        solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return solution[..., 0]

    def inverse_form(self, factor: Tensor, vector: Tensor) -> Tensor:
        """``vectorᵀ (L Lᵀ)⁻¹ vector``: (B,)."""
        half = torch.linalg.solve_triangular(factor, vector[..., None], upper=False)
        form: Tensor = half.square().sum((-2, -1))
        return form

    def inverse(self, factor: Tensor, matrix: Tensor) -> Tensor:
        """``(L Lᵀ)⁻¹``, of the shape of ``matrix``: (B, P, P)."""
        return torch.cholesky_inverse(factor)

    def multiply(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """``matrix @ vector``: (B, P)."""
        return (matrix @ vector[..., None])[..., 0]

    def diagonal(self, matrix: Tensor) -> Tensor:
        """The diagonal: (B, P)."""
        return torch.diagonal(matrix, dim1=-2, dim2=-1)

    def scaled(self, matrix: Tensor, scale: Tensor) -> Tensor:
        """``matrix / (scale scaleᵀ)``: (B, P, P)."""
        return matrix / (scale[:, :, None] * scale[:, None, :])

    def restricted(self, matrix: Tensor, free: Tensor) -> Tensor:
        """The matrix with the identity's rows and columns where not ``free`` (B, P)."""
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return torch.where(free[:, :, None] & free[:, None, :], matrix, eye)

    def repeat(
        self,
        times: int,
        todo: Tensor,
        body: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
        carried: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Rounds of ``todo, carried = body(*carried)`` while any problem is in ``todo`` (B,).

        At most ``times``; exactly as many where looking at the values would wait for the device.
        """
        for _ in range(times):
            if self.may_synchronise and not bool(todo.any()):
                break
            todo, carried = body(*carried)
        return carried
