"""Covariance of the estimates: the inverse of the normal matrix, its rank, and what is missing.

Columns are scaled to unit length first. Where the scaled normal matrix is well conditioned its
Cholesky inverse is exact to many digits and is taken; elsewhere the Jacobian itself is decomposed
(QR, then SVD of R), which sees twice as far. Directions that the data leave open give infinite
variance to the parameters that they move, not zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimize.batch import chunks
from torchimize.lsq.eager import Solution
from torchimize.lsq.problem import Problem
from torchimize.status import CovarianceStatus, Status

WELL_CONDITIONED = 1e8
"""Condition number of the scaled normal matrix up to which its own inverse is used."""

CHUNK_NUMBERS = 500_000
"""Numbers in the P×P blocks of one chunk: what temporary memory is made of."""


@dataclass(frozen=True)
class Covariance:
    """Covariance of the estimates and what can be said of it.

    Attributes
    ----------
    matrix : Tensor (B, P, P)
        Infinite in rows and columns of parameters left open, 0 in those of fixed ones.
    status : Tensor (B,) of int8
        Codes of :class:`~torchimize.CovarianceStatus`.
    """

    matrix: Tensor
    status: Tensor


def estimate_covariance(problem: Problem, solution: Solution, absolute: bool) -> Covariance:
    """Covariance of every problem's solution.

    Parameters
    ----------
    problem : Problem
    solution : Solution
        With its normal matrices where the likelihood's own block is Fisher's (least squares);
        without, Fisher's is evaluated at the solution.
    absolute : bool
        The scatter of the data is known (σ at its word, counts): (JᵀFJ)⁻¹ itself. Otherwise it is
        known up to a factor, which the reduced χ² estimates: (JᵀFJ)⁻¹ · 2 cost / (N − P).

    Returns
    -------
    Covariance
        In the dtype of the parameters.
    """
    batch, num_params = solution.params.shape
    dtype, device = solution.params.dtype, solution.params.device
    matrix = torch.empty(batch, num_params, num_params, dtype=dtype, device=device)
    status = torch.empty(batch, dtype=torch.int8, device=device)
    all_freedom = problem.degrees_of_freedom()
    for part in chunks(batch, max(1, CHUNK_NUMBERS // num_params**2)):
        rows = torch.arange(part.start, part.stop, device=device)
        unscaled, open_, finite = _unscaled(problem, solution, rows)
        free = ~problem.fixed[part]
        both = free[:, :, None] & free[:, None, :]
        freedom = all_freedom[part]
        if not absolute:
            variance = 2 * solution.cost[part] / freedom.clamp(min=1)
            unscaled = unscaled * variance[:, None, None]
        unknown = open_[:, :, None] | open_[:, None, :]
        too_few = (freedom <= 0) & (not absolute)
        lost = unknown | (too_few | ~finite)[:, None, None]
        matrix[part] = torch.where(both, torch.where(lost, torch.inf, unscaled), 0.0).to(dtype)
        params, lower, upper = (v[part] for v in (solution.params, problem.lower, problem.upper))
        at_bound = (free & ((params <= lower) | (params >= upper))).any(-1)
        for mask, code in (
            (torch.ones_like(finite), CovarianceStatus.OK),
            (at_bound, CovarianceStatus.AT_BOUND),
            (open_.any(-1), CovarianceStatus.RANK_DEFICIENT),
            (too_few, CovarianceStatus.TOO_FEW_SAMPLES),
            (~finite, CovarianceStatus.NON_FINITE),
        ):
            status[part] = torch.where(mask, int(code), status[part])
    return Covariance(matrix, status)


def _unscaled(problem: Problem, solution: Solution, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(JᵀFJ)⁻¹ (A, P, P), the parameters left open (A, P), and where there is anything (A,)."""
    params = solution.params.index_select(0, rows)
    if solution.normal_matrix is None:
        normal_matrix = fisher_information(problem, params, rows)
    else:
        normal_matrix = solution.normal_matrix.index_select(0, rows)
    status = solution.status.index_select(0, rows)
    unseen = (status == int(Status.CALLBACK)).nonzero()[:, 0]
    if solution.normal_matrix is not None and len(unseen):
        # stopped right after a step, before the derivatives there were evaluated
        normal_matrix[unseen] = fisher_information(problem, params[unseen], rows[unseen])
    lost = (status == int(Status.NON_FINITE_START)) | (status == int(Status.NON_FINITE))
    finite = ~lost & torch.isfinite(normal_matrix).all(-1).all(-1)
    free = ~problem.fixed.index_select(0, rows)
    both = free[:, :, None] & free[:, None, :] & finite[:, None, None]
    eye = torch.eye(params.shape[1], dtype=torch.float64, device=params.device)
    matrix = torch.where(both, normal_matrix, eye)
    size = torch.diagonal(matrix, dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(size > 0, size, 1.0)
    scaled = matrix / (scale[:, :, None] * scale[:, None, :])
    factor, info = torch.linalg.cholesky_ex(scaled)
    inverse = torch.cholesky_inverse(torch.where((info == 0)[:, None, None], factor, eye))
    condition = _one_norm(scaled) * _one_norm(inverse)
    good = (info == 0) & (condition < WELL_CONDITIONED)
    open_ = torch.zeros_like(free)
    hard = (finite & ~good).nonzero()[:, 0]
    eps = torch.finfo(params.dtype).eps
    for part in chunks(len(hard), problem.chunk_size):
        some = hard[part]
        columns = fisher_columns(problem, params[some], rows[some])
        inverse[some], open_[some] = _pseudo_inverse(columns, scale[some], free[some], eps)
    inverse = inverse / (scale[:, :, None] * scale[:, None, :])
    return 0.5 * (inverse + inverse.mT), open_, finite


def fisher_information(problem: Problem, params: Tensor, rows: Tensor) -> Tensor:
    """JᵀFJ with the Fisher curvature F, at ``params`` (A, P) of ``rows``: (A, P, P) of float64."""
    parts = []
    for part in chunks(len(rows), problem.chunk_size):
        columns = fisher_columns(problem, params[part], rows[part])
        parts.append(columns @ columns.mT)
    return torch.cat(parts)


def fisher_columns(problem: Problem, params: Tensor, rows: Tensor) -> Tensor:
    """The columns of F^½ J at ``params`` (A, P): (A, P, M) of float64, 0 where fixed."""
    residual, columns = problem.residual_and_columns(params, rows)
    curvature = problem.likelihood.fisher(residual, rows)
    columns = columns.double()
    if curvature is not None:
        columns = columns * curvature.double().sqrt()[:, None, :]
    return torch.where(problem.fixed.index_select(0, rows)[:, :, None], 0.0, columns)


def _one_norm(matrix: Tensor) -> Tensor:
    return matrix.abs().sum(-1).amax(-1)


def _pseudo_inverse(
    columns: Tensor, scale: Tensor, free: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(JᵀJ)⁺ of scaled columns (A, P, M), and the parameters (A, P) that the data leave open."""
    jacobian = (columns / scale[:, :, None]).mT
    num_samples, num_params = jacobian.shape[1:]
    triangle = torch.linalg.qr(jacobian, mode="r").R if num_samples > num_params else jacobian
    _, singular, basis = torch.linalg.svd(triangle, full_matrices=True)
    missing = num_params - singular.shape[-1]
    singular = torch.nn.functional.pad(singular, (0, missing))
    threshold = eps * max(num_samples, num_params) * singular[:, :1]
    known = singular > threshold
    weight = torch.where(known, 1 / torch.where(known, singular, 1.0), 0.0)
    half = basis * weight[:, :, None]
    stray = torch.where(known[:, :, None], 0.0, basis).square().sum(-2)
    return half.mT @ half, free & (stray > max(1e-8, num_params * eps))
