"""Inverses of normal matrices, and whether they can be trusted: eager, in a kernel, and exact."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from torchimize import CovarianceStatus, curve_fit
from torchimize.batch import BatchFunction
from torchimize.errors import NotFusedError
from torchimize.linalg import CholeskyBlocks
from torchimize.lsq import fused
from torchimize.lsq.fused.plan import MAX_PARAMS
from torchimize.lsq.inverse import well_conditioned_inverse
from torchimize.lsq.likelihood import Data, LeastSquares, Poisson
from torchimize.lsq.problem import build_problem, check_bounds

DOUBLE = torch.float64
SIZES = [1, 2, 3, 6]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def normal_matrices(size: int, batch: int = 30) -> Tensor:
    """JᵀJ of parameters with units between 1e-8 and 1e8."""
    jacobian = draw(batch, size + 4, size, seed=size)
    matrix = jacobian.mT @ jacobian
    units = 10.0 ** (8 * draw(batch, size, seed=size + 50).clamp(-1, 1))
    return matrix / (units[:, :, None] * units[:, None, :])


def by_eager(matrix: Tensor, fixed: Tensor, condition: float) -> tuple[Tensor, Tensor]:
    return well_conditioned_inverse(CholeskyBlocks(), matrix, ~fixed, condition)


def by_kernel(matrix: Tensor, fixed: Tensor, condition: float) -> tuple[Tensor, Tensor]:
    return fused.inverses(matrix, fixed, condition)


BOTH = pytest.mark.parametrize("inverse", [by_eager, by_kernel], ids=["eager", "kernel"])


def nothing(matrix: Tensor) -> Tensor:
    return torch.zeros(1, matrix.shape[1], dtype=torch.bool).expand(matrix.shape[:2])


def exact_inverse(matrix: Tensor) -> list[list[Fraction]]:
    """In rational numbers, by elimination."""
    size = len(matrix)
    rows = [
        [*(Fraction(v) for v in matrix[i].tolist()), *(Fraction(int(i == k)) for k in range(size))]
        for i in range(size)
    ]
    for k in range(size):
        pivot = next(i for i in range(k, size) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(size):
            if i != k and rows[i][k]:
                rows[i] = [v - rows[i][k] * w for v, w in zip(rows[i], rows[k], strict=True)]
    return [row[size:] for row in rows]


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_is_exact_to_its_condition(inverse: Any, size: int) -> None:
    matrix = normal_matrices(size)
    found, trusted = inverse(matrix, nothing(matrix), 1e12)
    assert bool(trusted.all())
    scale = torch.diagonal(matrix, dim1=-2, dim2=-1).sqrt()
    scaled = matrix / (scale[:, :, None] * scale[:, None, :])
    condition = torch.linalg.cond(scaled)
    for row in range(0, 30, 3):
        exact = [[float(v) for v in r] for r in exact_inverse(matrix[row])]
        wanted = torch.tensor(exact, dtype=DOUBLE)
        spread = wanted.diagonal().sqrt()
        off = (found[row] - wanted).abs() / (spread[:, None] * spread)
        assert off.max() <= 20 * 2.0**-52 * condition[row]
    assert torch.equal(found, found.mT)


@BOTH
def test_the_condition_is_that_of_unit_columns(inverse: Any) -> None:
    # [[1, c], [c, 1]]: of condition (1 + c)/(1 − c) in the 1-norm, whatever the units
    for exponent in (3, 6, 9):
        c = 1 - 2 / (1 + 10.0**exponent)
        matrix = torch.tensor([[[1, c], [c, 1]]], dtype=DOUBLE)
        for unit in (1.0, 1e6):
            units = torch.tensor([unit, 1 / unit], dtype=DOUBLE)
            moved = matrix * units[:, None] * units
            for limit, wanted in ((0.9, False), (1.1, True)):
                _, trusted = inverse(moved, nothing(moved), limit * 10.0**exponent)
                assert trusted.tolist() == [wanted]


@BOTH
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_fixed_parameters_have_no_variance(inverse: Any, size: int, shared: bool) -> None:
    matrix = normal_matrices(size)
    fixed = draw(30, size, seed=3) > 0.4
    if shared:
        fixed = torch.arange(size)[None].expand(30, size) == 1
    given = torch.where(fixed[:, :, None] | fixed[:, None, :], 0.0, matrix)
    found, trusted = inverse(given, fixed, 1e12)
    assert bool(trusted.all())
    for row in range(30):
        free = ~fixed[row]
        block = matrix[row][free][:, free]
        if len(block):
            wanted = torch.linalg.inv(block)
            size_of = wanted.diagonal().sqrt()
            off = (found[row][free][:, free] - wanted) / (size_of[:, None] * size_of)
            assert off.abs().max() < 1e-9
        assert not bool(found[row][fixed[row]].any()) and not bool(found[row][:, fixed[row]].any())


@BOTH
def test_what_has_no_inverse_is_not_trusted(inverse: Any) -> None:
    matrix = normal_matrices(3, 8)
    matrix[1] = 0
    matrix[2, 1], matrix[2, :, 1] = 0, 0
    matrix[3] = matrix[3, 0, 0]
    matrix[4, 2, 0], matrix[4, 0, 2] = torch.nan, torch.nan
    matrix[5, 1, 1] = torch.inf
    matrix[6] = -matrix[6]
    _, trusted = inverse(matrix, nothing(matrix), 1e8)
    # a parameter without any influence has a column of zeros: not known either
    assert trusted.tolist()[0] and trusted.tolist()[7]
    assert not any(trusted.tolist()[k] for k in (1, 2, 3, 4, 5, 6)), trusted


@pytest.mark.parametrize("size", SIZES)
def test_both_engines_agree(size: int) -> None:
    matrix = normal_matrices(size, 100)
    fixed = draw(100, size, seed=4) > 1.0
    fixed[5] = False
    matrix = torch.where(fixed[:, :, None] | fixed[:, None, :], 0.0, matrix)
    matrix[5] = torch.nan
    (one, trusted), (other, also) = by_eager(matrix, fixed, 1e3), by_kernel(matrix, fixed, 1e3)
    assert torch.equal(trusted, also) and not bool(trusted[5])
    torch.testing.assert_close(one[trusted], other[trusted], rtol=1e-9, atol=0)


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 1000])
def test_any_number_of_matrices(batch: int) -> None:
    matrix = normal_matrices(2, batch)
    found, trusted = by_kernel(matrix, nothing(matrix), 1e12)
    assert bool(trusted.all())
    torch.testing.assert_close(found, torch.linalg.inv(matrix), rtol=1e-9, atol=0)


@pytest.mark.parametrize("batch", [0, 5])
def test_matrices_without_a_kernel(batch: int) -> None:
    size = MAX_PARAMS + 1 if batch else 2
    matrix = torch.eye(size, dtype=DOUBLE).expand(batch, size, size)
    with pytest.raises(NotFusedError):
        by_kernel(matrix, nothing(matrix), 1e8)


# ------------------------------------------------------------------------- normal matrices again


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_normal_matrices_at_a_point(kind: str, dtype: torch.dtype) -> None:
    # of a·exp(−k x) + c with one parameter fixed: Jᵀ J / σ², or Jᵀ J / f for counts
    x = torch.linspace(0, 3, 18, dtype=dtype)
    a, k, c = params = torch.tensor([[3.0, 0.7, 1.0], [5.0, 1.3, 0.5]], dtype=dtype).T[:, :, None]
    start = params[:, :, 0].T.contiguous()
    mask = torch.arange(18) % 5 != torch.tensor([[1], [2]])
    sigma = 0.5 + x
    y = (a * torch.exp(-k * x) + c + 0.1).round()
    data = Data(y, None if kind == "poisson" else 1 / sigma, mask=mask)
    bounds = (torch.tensor([-9.0, -9, 0.5]).to(dtype), torch.tensor([9.0, 9, 9]).to(dtype))
    bounds[0][1] = bounds[1][1] = 0.7
    start[1, 1] = 0.7
    lower, upper = check_bounds(bounds, start, "x0")
    problem = build_problem(
        BatchFunction(lambda p: p[:, :1] * torch.exp(-p[:, 1:2] * x) + p[:, 2:], 2),
        Poisson(data) if kind == "poisson" else LeastSquares(data),
        start,
        lower,
        upper,
        None,
    )
    found = fused.normal_matrices(problem, start)
    wide, x = start.double(), x.double()
    fall = torch.exp(-wide[:, 1:2] * x)
    value = wide[:, :1] * fall + wide[:, 2:]
    jacobian = torch.stack([fall, -wide[:, :1] * x * fall, torch.ones_like(fall)], -1)
    weight = (1 / value if kind == "poisson" else (1 / sigma.double() ** 2)) * mask
    wanted = jacobian.mT @ (weight[:, :, None] * jacobian)
    wanted[:, 1], wanted[:, :, 1] = 0, 0
    assert found.dtype == DOUBLE
    limit = 1e-13 if dtype == DOUBLE else 1e-6
    torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)
    assert bool((found[:, 1] == 0).all()) and bool((found[:, 0, 2] != 0).all())


# --------------------------------------------------------------------------- covariances of fits

X = torch.linspace(0, 3, 18, dtype=DOUBLE)


def cases(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Data and starts of a·exp(−k x) + c: sound ones, and all that leaves no error bars."""
    rates = torch.linspace(0.5, 2, 12, dtype=DOUBLE)[:, None]
    y = 2 * torch.exp(-rates * X) + 0.3 + 0.02 * torch.sin(50 * X * rates)
    start = torch.tensor([1.5, 1.0, 0.0], dtype=DOUBLE).repeat(12, 1)
    start[2, 0] = torch.nan
    y[5, 3] = torch.inf
    # an amplitude of nothing, at the minimum already: its rate is open
    y[8], start[8] = 0.3, torch.tensor([0.0, 1.0, 0.3], dtype=DOUBLE)
    return y.to(dtype), start.to(dtype)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"bounds": ([0, 0, -1], [2.0, 9, 1])}, {"bounds": ([0, 1.2, -1], [9, 1.2, 1])},
     {"loss": "cauchy"}],
    ids=["plain", "at bound", "fixed", "loss"],
)  # fmt: skip
def test_covariance_status_of_both_engines(
    options: dict[str, Any], absolute: bool, dtype: torch.dtype
) -> None:
    y, start = cases(dtype)
    if "bounds" in options:
        lower, upper = (torch.tensor(b, dtype=dtype) for b in options["bounds"])
        options = {"bounds": (lower, upper)}
        start = torch.minimum(torch.maximum(start, lower), upper)
        start[2, 0] = 1.0 if lower[0] > -1 else torch.nan
        y[2, 4] = torch.nan
    found = []
    for engine in ("eager", "fused"):
        _, pcov, result = curve_fit(
            lambda x, a, k, c: a * torch.exp(-k * x) + c, X.to(dtype), y, start,
            absolute_sigma=absolute, full_output=True, engine=engine, **options,
        )  # fmt: skip
        assert result.engine == engine
        found.append((pcov, result))
    (one, eager), (other, mine) = found
    assert torch.equal(eager.covariance_status, mine.covariance_status)
    codes = set(mine.covariance_status.tolist())
    wanted = {CovarianceStatus.OK, CovarianceStatus.NON_FINITE}
    if options == {}:
        wanted |= {CovarianceStatus.RANK_DEFICIENT}
    if "bounds" in options and options["bounds"][0][1] != 1.2:
        wanted |= {CovarianceStatus.AT_BOUND}
    assert codes >= {int(code) for code in wanted}
    assert torch.equal(one.isinf(), other.isinf()) and torch.equal(one == 0, other == 0)
    sound = mine.covariance_status <= 1
    tolerance = 1e-4 if dtype == DOUBLE else 5e-3
    spread = torch.diagonal(one, dim1=-2, dim2=-1)[sound].sqrt()
    off = (one - other)[sound].abs() / (spread[:, :, None] * spread[:, None, :])
    assert off.nan_to_num(0.0).max() <= tolerance
