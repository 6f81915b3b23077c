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
from torchimize.lsq.inverse import largest_condition, well_conditioned_inverse
from torchimize.lsq.problem import Problem
from torchimize.lsq.solution import Solution
from torchimize.status import CovarianceStatus, Status

CHUNK_NUMBERS = 500_000
"""Numbers in the P×P blocks of one chunk: what temporary memory is made of."""


@dataclass(frozen=True)
class Covariance:
    """Covariance of the estimates and what can be said of it.

    Attributes
    ----------
    matrix : Tensor (B, P, P)
        Infinite in rows and columns of parameters left open, 0 in those of fixed ones.
    errors : Tensor (B, P), or None
        Standard errors, where they were asked for; in float32 they hold where variances are out of
        its range.
    status : Tensor (B,) of int8
        Codes of :class:`~torchimize.CovarianceStatus`.
    """

    matrix: Tensor
    errors: Tensor | None
    status: Tensor


def estimate_covariance(
    problem: Problem, solution: Solution, absolute: bool, errors: bool = False
) -> Covariance:
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
    errors : bool
        Standard errors too.

    Returns
    -------
    Covariance
        In the dtype of the parameters.
    """
    params = solution.params
    freedom = problem.degrees_of_freedom()
    if solution.inverse is not None and solution.trusted is not None:
        matrix, trusted = solution.inverse, solution.trusted
    else:
        normal_matrix = _fisher(problem, solution)
        matrix, trusted = _inverses(normal_matrix, problem.fixed)
    status = torch.zeros_like(solution.status)
    lost = (solution.status == NON_FINITE[0]) | (solution.status == NON_FINITE[1])
    hard = (~trusted | lost).nonzero()[:, 0]
    if hard.shape[0]:
        if solution.inverse is None:
            normal_matrix = normal_matrix.index_select(0, hard)
        else:
            # float32 sums may be too coarse: these get sums in float64
            normal_matrix = _fused_fisher(problem, params, hard)
            matrix[hard], trusted = _inverses(normal_matrix, problem.fixed.index_select(0, hard))
            harder = (~trusted | lost[hard]).nonzero()[:, 0]
            hard, normal_matrix = hard[harder], normal_matrix.index_select(0, harder)
        for part in chunks(hard.shape[0], max(1, CHUNK_NUMBERS // problem.num_params**2)):
            rows = hard[part]
            inverse, open_, finite = _decomposed(problem, params, normal_matrix[part], rows)
            finite = finite & ~lost[rows]
            unknown = open_[:, :, None] | open_[:, None, :] | ~finite[:, None, None]
            free = ~problem.fixed.index_select(0, rows)
            both = free[:, :, None] & free[:, None, :]
            matrix[rows] = torch.where(both, torch.where(unknown, torch.inf, inverse), 0.0)
            codes = torch.where(open_.any(-1), int(CovarianceStatus.RANK_DEFICIENT), status[rows])
            codes = torch.where(finite, codes, int(CovarianceStatus.NON_FINITE))
            status[rows] = codes.to(torch.int8)
    if problem.bounded:
        on_bound = (params <= problem.lower) | (params >= problem.upper)
        at_bound = (~problem.fixed & on_bound).any(-1) & (status == int(CovarianceStatus.OK))
        status = torch.where(at_bound, int(CovarianceStatus.AT_BOUND), status).to(torch.int8)
    scatter = None
    if not absolute:
        # a problem that was lost has none
        scatter = torch.where(lost, 1.0, 2 * solution.cost / freedom.clamp(min=1))
    if not absolute and bool((freedom <= 0).any()):
        too_few = (freedom <= 0) & (status != int(CovarianceStatus.NON_FINITE))
        free = ~problem.fixed
        both = free[:, :, None] & free[:, None, :]
        matrix = torch.where(too_few[:, None, None] & both, torch.inf, matrix)
        code = int(CovarianceStatus.TOO_FEW_SAMPLES)
        status = torch.where(too_few, code, status).to(torch.int8)
    return _scaled(matrix, scatter, params.dtype, status, errors)


def _scaled(
    matrix: Tensor, scatter: Tensor | None, dtype: torch.dtype, status: Tensor, errors: bool
) -> Covariance:
    """Inverses times the scatter of the data, a part that fits the cache at a time."""
    batch, num_params = matrix.shape[:2]
    scaled = torch.empty_like(matrix, dtype=dtype)
    roots = matrix.new_empty(batch, num_params, dtype=dtype) if errors else None
    regular = bool((status <= int(CovarianceStatus.AT_BOUND)).all())
    for part in chunks(batch, max(1, CHUNK_NUMBERS // num_params**2)):
        some = matrix[part]
        if scatter is not None:
            product = some * scatter[part, None, None]
            # what is infinite or fixed stays so, whatever the scatter
            some = product if regular else torch.where(torch.isfinite(some), product, some)
        scaled[part] = some
        if roots is not None:
            roots[part] = torch.diagonal(some, dim1=-2, dim2=-1).sqrt()
    return Covariance(scaled, roots, status)


NON_FINITE = (int(Status.NON_FINITE_START), int(Status.NON_FINITE))
"""Problems without a point to have a covariance at."""


def _fisher(problem: Problem, solution: Solution) -> Tensor:
    """The information (B, P, P) of every solution."""
    everything = torch.arange(solution.params.shape[0], device=solution.params.device)
    if solution.engine == "fused":
        return _fused_fisher(problem, solution.params, everything)
    if solution.normal_matrix is None:
        return fisher_information(problem, solution.params, everything)
    matrix = solution.normal_matrix
    unseen = (solution.status == int(Status.CALLBACK)).nonzero()[:, 0]
    if unseen.shape[0]:
        # stopped right after a step, before the derivatives there were evaluated
        matrix = matrix.index_copy(
            0, unseen, fisher_information(problem, solution.params[unseen], unseen)
        )
    return matrix


def _fused_fisher(problem: Problem, params: Tensor, rows: Tensor) -> Tensor:
    """The information (A, P, P) of ``rows`` at ``params`` (B, P), by a kernel where one can."""
    everything = len(rows) == problem.num_problems
    some = problem if everything else problem.part(rows)
    params = params if everything else params.index_select(0, rows)
    try:
        return fused.normal_matrices(some, params)
    except NotFusedError:
        return fisher_information(problem, params, rows)


def _inverses(normal_matrix: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses (B, P, P) of float64, and which can be trusted (B,)."""
    condition = largest_condition(torch.finfo(torch.float64).eps)
    try:
        return fused.inverses(normal_matrix, fixed, condition)
    except NotFusedError:
        pass
    batch, num_params = fixed.shape
    matrix = torch.empty_like(normal_matrix)
    trusted = torch.empty(batch, dtype=torch.bool, device=normal_matrix.device)
    blocks = CholeskyBlocks()
    for part in chunks(batch, max(1, CHUNK_NUMBERS // num_params**2)):
        matrix[part], trusted[part] = well_conditioned_inverse(
            blocks, normal_matrix[part], ~fixed[part], condition
        )
    return matrix, trusted


def _decomposed(
    problem: Problem, params: Tensor, normal_matrix: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(JᵀFJ)⁺ (A, P, P), the parameters left open (A, P), and where there is anything (A,).

    Of the problems ``rows`` (A,), whose normal matrices are given.
    """
    fixed = problem.fixed.index_select(0, rows)
    matrix = normal_matrix
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
