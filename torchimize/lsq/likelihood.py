"""From a function's values to the cost: observed data, weights, masks; least squares or Poisson.

A *residual* is what the function gives, minus the data, whitened: ``W (f − y)`` with W diagonal
(1/σ) or the inverse Cholesky factor of a covariance matrix. The map is affine, so the same W turns
derivatives of the function into derivatives of the residual, whoever supplied them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimize.lsq.policy.loss import (
    Loss,
    poisson_terms,
    robust_information,
    robust_terms,
)

Terms = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""What the cost of each sample is made of; see :mod:`torchimize.lsq.policy.loss`."""


def _rows(value: Tensor | None, rows: Tensor | None, per_problem_ndim: int) -> Tensor | None:
    """Cut a tensor that holds one entry per problem, by its rank; shared ones stay."""
    if value is None or rows is None or value.ndim < per_problem_ndim:
        return value
    return value.index_select(0, rows)


@dataclass(frozen=True)
class Data:
    """Observations and what weighs them; each shared by all problems or one per problem.

    Attributes
    ----------
    observed : Tensor (M,) or (B, M), or None
        y; subtracted from the function's values.
    weight : Tensor (M,) or (B, M), or None
        1/σ.
    factor : Tensor (M, M) or (B, M, M), or None
        Lower Cholesky factor of the data's covariance.
    mask : Tensor (B, M) of bool, or None
        True = use; the others count as if they had not been measured.
    """

    observed: Tensor | None = None
    weight: Tensor | None = None
    factor: Tensor | None = None
    mask: Tensor | None = None

    def part(self, rows: Tensor | None) -> Data:
        """The data of the problems ``rows`` alone."""
        return Data(
            _rows(self.observed, rows, 2),
            _rows(self.weight, rows, 2),
            _rows(self.factor, rows, 3),
            _rows(self.mask, rows, 2),
        )

    def double(self) -> Data:
        """The same in float64."""
        observed, weight, factor = (
            None if v is None else v.double() for v in (self.observed, self.weight, self.factor)
        )
        return Data(observed, weight, factor, self.mask)

    def residual(self, value: Tensor, rows: Tensor | None) -> Tensor:
        """W (f − y) for the problems ``rows``: (A, M)."""
        observed = _rows(self.observed, rows, 2)
        if observed is not None:
            value = value - observed
        return self.whiten(value[:, None, :], rows)[:, 0]

    def whiten(self, columns: Tensor, rows: Tensor | None) -> Tensor:
        """W applied to K columns of each problem: (A, K, M)."""
        mask = _rows(self.mask, rows, 2)
        if mask is not None:
            columns = torch.where(mask[:, None, :], columns, 0.0)
        weight = _rows(self.weight, rows, 2)
        if weight is not None:
            columns = columns * (weight[:, None, :] if weight.ndim == 2 else weight)
        factor = _rows(self.factor, rows, 3)
        if factor is not None and factor.ndim == 2:
            flat = columns.reshape(-1, columns.shape[-1])
            solved = torch.linalg.solve_triangular(factor, flat.mT, upper=False).mT
            columns = solved.reshape(columns.shape)
        elif factor is not None:
            columns = torch.linalg.solve_triangular(factor, columns.mT, upper=False).mT
        return columns

    def count(self, num_problems: int, num_residuals: int, device: torch.device) -> Tensor:
        """Samples used by each problem: (B,) of int64."""
        if self.mask is None:
            return torch.full((num_problems,), num_residuals, device=device)
        return self.mask.sum(-1).expand(num_problems)


@dataclass(frozen=True)
class LeastSquares:
    """½ Σ r², or ½ Σ C² ρ((r/C)²) with a robust loss.

    Attributes
    ----------
    data : Data
    loss : Loss or None
    f_scale : float
        C, in units of the residual.
    """

    data: Data
    loss: Loss | None = None
    f_scale: float = 1.0

    def residual(self, value: Tensor, rows: Tensor | None) -> Tensor:
        """(A, M) of the function's values (A, M)."""
        return self.data.residual(value, rows)

    def terms(self, residual: Tensor, rows: Tensor | None) -> Terms:
        """Value, slope, curvature and weight per sample, (A, M) each; None means 1."""
        if self.loss is None:
            doubled = residual.double()
            return 0.5 * doubled * doubled, residual, None, None
        return robust_terms(self.loss, residual, self.f_scale)

    def reported(self, residual: Tensor, rows: Tensor | None) -> Tensor:
        """The residual as the user sees it: without the loss, as SciPy's ``fun``."""
        return residual

    def fisher(self, residual: Tensor, rows: Tensor | None) -> Tensor | None:
        """Curvature (A, M) of reported Jacobians and covariances; None means 1."""
        if self.loss is None:
            return None
        return robust_information(self.loss, residual, self.f_scale)


@dataclass(frozen=True)
class Poisson:
    """Counts: Σ f − y + y ln(y/f), Laurence and Chromy 2010 (Nature Methods 7, 338).

    Attributes
    ----------
    data : Data
        ``observed`` holds the counts y; the function gives the expected counts f.
    """

    data: Data

    def residual(self, value: Tensor, rows: Tensor | None) -> Tensor:
        """The function's values as they are, 1 where masked."""
        mask = _rows(self.data.mask, rows, 2)
        return value if mask is None else torch.where(mask, value, 1.0)

    def _counts(self, rows: Tensor | None) -> Tensor:
        counts = _rows(self.data.observed, rows, 2)
        assert counts is not None
        return counts

    def terms(self, residual: Tensor, rows: Tensor | None) -> Terms:
        """Value, slope, curvature and weight per sample: (A, M) each."""
        terms = poisson_terms(residual.double(), self._counts(rows).double())
        mask = _rows(self.data.mask, rows, 2)
        if mask is None:
            return terms
        value, slope, curvature, weight = (torch.where(mask, term, 0.0) for term in terms)
        return value, slope, curvature, weight

    def reported(self, residual: Tensor, rows: Tensor | None) -> Tensor:
        """Pearson's (f − y)/√f, (A, M), 0 where masked: Jᵀ of it is the gradient."""
        pearson = (residual - self._counts(rows)) / residual.sqrt()
        mask = _rows(self.data.mask, rows, 2)
        return pearson if mask is None else torch.where(mask, pearson, 0.0)

    def fisher(self, residual: Tensor, rows: Tensor | None) -> Tensor | None:
        """Fisher's 1/f, (A, M)."""
        mask = _rows(self.data.mask, rows, 2)
        information = 1 / residual.double()
        return information if mask is None else torch.where(mask, information, 0.0)


Likelihood = LeastSquares | Poisson
