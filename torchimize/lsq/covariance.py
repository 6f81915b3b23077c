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
from torchimize.errors import NotFusedError
from torchimize.linalg import CholeskyBlocks
from torchimize.lsq import fused
from torchimize.lsq.inverse import well_conditioned_inverse
from torchimize.lsq.policy import Policy
from torchimize.lsq.problem import Problem
from torchimize.lsq.solution import Solution
from torchimize.status import CovarianceStatus, Status

TRUSTED_ERROR = 2.5e-8
"""Largest relative rounding of an inverse that is taken as it is: in float64 a condition number of
10⁸, of the normal matrix scaled to unit diagonal."""

SINGLE_ERROR = 1e-4
"""The same for float32, whose estimates carry more noise than that."""

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


def estimate_covariance(
    problem: Problem, policy: Policy, solution: Solution, absolute: bool
) -> Covariance:
    """Covariance of every problem's solution.

    Parameters
    ----------
    problem : Problem
    policy : Policy
        The one that found the solution.
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
    params = solution.params
    freedom = problem.degrees_of_freedom()
    factor = (
        torch.ones_like(solution.cost) if absolute else 2 * solution.cost / freedom.clamp(min=1)
    )
    normal_matrix, eps = _fisher(problem, policy, solution)
    condition = _condition(params.dtype, eps)
    matrix, trusted = _inverses(problem, normal_matrix, factor, condition)
    status = torch.zeros_like(solution.status)
    lost = (solution.status == NON_FINITE[0]) | (solution.status == NON_FINITE[1])
    if bool((~trusted | lost).any()):
        if solution.engine == "fused" and eps > DOUBLE_EPS and bool((~trusted & ~lost).any()):
            # float32 sums are too coarse for some: these get sums in float64
            double = fused.normal_matrices(problem, policy, params)
            condition = _condition(params.dtype, DOUBLE_EPS)
            better, also = _inverses(problem, double, factor, condition)
            matrix = torch.where(trusted[:, None, None], matrix, better)
            normal_matrix = torch.where(trusted[:, None, None], normal_matrix, double)
            trusted = trusted | also
        for part in chunks_of((~trusted | lost).nonzero()[:, 0], problem.num_params):
            inverse, open_, finite = _decomposed(problem, params, normal_matrix, part)
            finite = finite & ~lost[part]
            inverse = inverse * factor[part, None, None]
            unknown = open_[:, :, None] | open_[:, None, :] | ~finite[:, None, None]
            free = ~problem.fixed.index_select(0, part)
            both = free[:, :, None] & free[:, None, :]
            inverse = torch.where(both, torch.where(unknown, torch.inf, inverse), 0.0)
            matrix[part] = inverse.to(matrix.dtype)
            codes = torch.where(open_.any(-1), int(CovarianceStatus.RANK_DEFICIENT), status[part])
            codes = torch.where(finite, codes, int(CovarianceStatus.NON_FINITE))
            status[part] = codes.to(torch.int8)
    if problem.bounded:
        on_bound = (params <= problem.lower) | (params >= problem.upper)
        at_bound = (~problem.fixed & on_bound).any(-1) & (status == int(CovarianceStatus.OK))
        status = torch.where(at_bound, int(CovarianceStatus.AT_BOUND), status)
    if not absolute and bool((freedom <= 0).any()):
        too_few = (freedom <= 0) & (status != int(CovarianceStatus.NON_FINITE))
        both = ~problem.fixed[:, :, None] & ~problem.fixed[:, None, :]
        matrix = torch.where(too_few[:, None, None] & both, torch.inf, matrix)
        status = torch.where(too_few, int(CovarianceStatus.TOO_FEW_SAMPLES), status)
    return Covariance(matrix, status.to(torch.int8))


NON_FINITE = (int(Status.NON_FINITE_START), int(Status.NON_FINITE))
"""Problems without a point to have a covariance at."""

DOUBLE_EPS = torch.finfo(torch.float64).eps


def _condition(dtype: torch.dtype, eps: float) -> float:
    """Condition number up to which the inverse of a normal matrix is taken."""
    return (SINGLE_ERROR if dtype == torch.float32 and eps > DOUBLE_EPS else TRUSTED_ERROR) / eps


def chunks_of(rows: Tensor, num_params: int) -> list[Tensor]:
    """Rows in parts whose P×P blocks need little memory."""
    size = max(1, CHUNK_NUMBERS // num_params**2)
    return [rows[part] for part in chunks(len(rows), size)]


def _fisher(problem: Problem, policy: Policy, solution: Solution) -> tuple[Tensor, float]:
    """The information (B, P, P) of every solution, and its relative rounding."""
    everything = torch.arange(len(solution.params), device=solution.params.device)
    if solution.normal_matrix is None:
        return fisher_information(problem, solution.params, everything), DOUBLE_EPS
    matrix = solution.normal_matrix
    unseen = (solution.status == int(Status.CALLBACK)).nonzero()[:, 0]
    if len(unseen):
        # stopped right after a step, before the derivatives there were evaluated
        matrix = matrix.index_copy(
            0, unseen, fisher_information(problem, solution.params[unseen], unseen)
        )
    return matrix, solution.normal_matrix_eps


def _inverses(
    problem: Problem, normal_matrix: Tensor, factor: Tensor, condition: float
) -> tuple[Tensor, Tensor]:
    """Inverses times a factor (B, P, P), and which can be trusted (B,)."""
    dtype = problem.params0.dtype
    try:
        return fused.inverses(normal_matrix, factor, problem.fixed, condition, dtype)
    except NotFusedError:
        pass
    batch, num_params = problem.params0.shape
    matrix = torch.empty(batch, num_params, num_params, dtype=dtype, device=normal_matrix.device)
    trusted = torch.empty(batch, dtype=torch.bool, device=normal_matrix.device)
    blocks = CholeskyBlocks()
    for part in chunks(batch, max(1, CHUNK_NUMBERS // num_params**2)):
        free = ~problem.fixed[part]
        inverse, trusted[part] = well_conditioned_inverse(
            blocks, normal_matrix[part], free, condition
        )
        matrix[part] = (inverse * factor[part, None, None]).to(dtype)
    return matrix, trusted


def _decomposed(
    problem: Problem, params: Tensor, normal_matrix: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(JᵀFJ)⁺ (A, P, P), the parameters left open (A, P), and where there is anything (A,)."""
    fixed = problem.fixed.index_select(0, rows)
    matrix = normal_matrix.index_select(0, rows)
    finite = torch.isfinite(matrix).all(-1).all(-1)
    size = torch.diagonal(matrix, dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(~fixed & finite[:, None] & (size > 0), size, 1.0)
    inverse = torch.zeros_like(matrix)
    open_ = torch.zeros_like(fixed)
    eps = torch.finfo(params.dtype).eps
    known = finite.nonzero()[:, 0]
    for part in chunks(len(known), problem.chunk_size):
        some = known[part]
        columns = fisher_columns(problem, params[rows[some]], rows[some])
        # in float32 columns may overflow that a kernel summed in float64
        seen = torch.isfinite(columns).all(-1).all(-1)
        finite[some] = seen
        columns, some = columns[seen], some[seen]
        inverse[some], open_[some] = _pseudo_inverse(columns, scale[some], ~fixed[some], eps)
    inverse = inverse / (scale[:, :, None] * scale[:, None, :])
    return 0.5 * (inverse + inverse.mT), open_, finite


def fisher_information(problem: Problem, params: Tensor, rows: Tensor) -> Tensor:
    """JᵀFJ with the Fisher curvature F, at ``params`` (A, P) of ``rows``: (A, P, P) of float64."""
    num_params = params.shape[1]
    parts = [params.new_zeros(0, num_params, num_params, dtype=torch.float64)]
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
