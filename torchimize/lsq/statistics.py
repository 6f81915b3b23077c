"""Goodness of fit, per problem: χ², likelihood, information criteria, R².

With N samples used, P free parameters and the whitened residual r:

- Gaussian, absolute σ: ln L = −½ Σ r² − Σ ln σ − ½ N ln 2π, k = P;
- Gaussian, σ known up to a factor: that factor takes its maximum-likelihood value, so
  ln L = −½ N (ln(2π Σ r²/N) + 1) − Σ ln σ, k = P + 1;
- Poisson: ln L = Σ y ln f − f − ln y!, k = P;
- AIC = 2k − 2 ln L; AICc = AIC + 2k (k + 1)/(N − k − 1); BIC = k ln N − 2 ln L
  (Burnham and Anderson 2002, "Model selection and multimodel inference", sections 2.2, 2.4, 6.4).

A robust loss is no likelihood: ln L and the criteria are NaN there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimize.batch import chunks
from torchimize.lsq.likelihood import Data, LeastSquares, Poisson
from torchimize.lsq.problem import Problem

DATA_NUMBERS = 1_000_000
"""Numbers of a chunk of data."""


@dataclass(frozen=True)
class Statistics:
    """All (B,) of float64, ``degrees_of_freedom`` of int64.

    Attributes
    ----------
    chi_square, reduced_chi_square : Tensor (B,)
        Σ r² (Pearson's Σ (y − f)²/f for counts), and divided by N − P.
    degrees_of_freedom : Tensor (B,)
        N − P.
    log_likelihood, aic, aicc, bic : Tensor (B,)
    r_squared : Tensor (B,)
        1 − Σ r² / Σ (W (y − ȳ))², ȳ the weighted mean.
    """

    chi_square: Tensor
    reduced_chi_square: Tensor
    degrees_of_freedom: Tensor
    log_likelihood: Tensor
    aic: Tensor
    aicc: Tensor
    bic: Tensor
    r_squared: Tensor


def statistics(problem: Problem, params: Tensor, cost: Tensor, absolute_sigma: bool) -> Statistics:
    """Statistics of the solutions of a problem with observed data.

    Parameters
    ----------
    problem : Problem
    params : Tensor (B, P)
    cost : Tensor (B,)
        Half of Σ r² for least squares without a robust loss; the function is not called then.
    absolute_sigma : bool
    """
    likelihood = problem.likelihood
    plain = isinstance(likelihood, LeastSquares) and likelihood.loss is None
    size = problem.value_chunk_size
    if plain:
        size = max(1, DATA_NUMBERS // max(1, problem.num_residuals))
    parts = []
    for part in chunks(problem.num_problems, size):
        whole = part.stop - part.start == problem.num_problems
        rows = None if whole else torch.arange(part.start, part.stop, device=params.device)
        sums = _data_sums(problem, rows, part.stop - part.start) if plain else None
        parts.append((2 * cost[part], *sums) if sums else _sums(problem, params[part], rows))
    empty = torch.zeros(0, dtype=torch.float64, device=params.device)
    chi_square, total, log_density = (
        (torch.cat(sums) for sums in zip(*parts, strict=True)) if parts else (empty, empty, empty)
    )
    count = likelihood.data.count(
        problem.num_problems, problem.num_residuals, params.device
    ).double()
    free = (~problem.fixed).sum(-1).double()
    dof = problem.degrees_of_freedom()
    if isinstance(likelihood, Poisson) or absolute_sigma:
        log_likelihood, k = log_density, free
        if isinstance(likelihood, LeastSquares):
            log_likelihood = log_density - 0.5 * chi_square - 0.5 * count * math.log(2 * math.pi)
    else:
        spread = torch.log(2 * math.pi * chi_square / count)
        log_likelihood, k = log_density - 0.5 * count * (spread + 1), free + 1
    if isinstance(likelihood, LeastSquares) and likelihood.loss is not None:
        log_likelihood = torch.full_like(log_likelihood, torch.nan)
    aic = 2 * k - 2 * log_likelihood
    room = count - k - 1
    return Statistics(
        chi_square=chi_square,
        reduced_chi_square=torch.where(dof > 0, chi_square / dof, torch.nan),
        degrees_of_freedom=dof,
        log_likelihood=log_likelihood,
        aic=aic,
        aicc=aic + torch.where(room > 0, 2 * k * (k + 1) / room, torch.inf),
        bic=k * torch.log(count) - 2 * log_likelihood,
        r_squared=torch.where(total > 0, 1 - chi_square / total, torch.nan),
    )


def _sums(problem: Problem, params: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Σ r², its total without a model, and what of ln L does not depend on Σ r²: (A,) each."""
    data = problem.likelihood.data
    batch = params.shape[0]
    observed = data.observed
    assert observed is not None
    if observed.ndim == 2 and rows is not None:
        observed = observed.index_select(0, rows)
    observed = observed.double().expand(batch, -1)
    value = problem.value(params, rows).detach().double()
    if isinstance(problem.likelihood, Poisson):
        mask = torch.ones_like(observed, dtype=torch.bool)
        if data.mask is not None:
            mask = data.mask if rows is None else data.mask.index_select(0, rows)
        value = torch.where(mask, value, 1.0)
        mean = torch.where(mask, observed, 0.0).sum(-1) / mask.sum(-1)
        chi_square = torch.where(mask, (observed - value) ** 2 / value, 0.0).sum(-1)
        total = torch.where(mask, (observed - mean[:, None]) ** 2 / mean[:, None], 0.0).sum(-1)
        log_density = torch.xlogy(observed, value) - value - torch.lgamma(observed + 1)
        return chi_square, total, torch.where(mask, log_density, 0.0).sum(-1)
    wide = data.part(rows).double()
    residual = wide.whiten((observed - value)[:, None], None)[:, 0]
    return residual.square().sum(-1), *_data_sums(problem, rows, batch)


def _data_sums(problem: Problem, rows: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """Σ r² without a model, and ln det W: (A,) each."""
    data = problem.likelihood.data.part(rows).double()
    assert data.observed is not None
    observed = data.observed.expand(batch, -1)
    weighted, ones = data.whiten(
        torch.stack([observed, torch.ones_like(observed)], 1), None
    ).unbind(1)
    mean = (ones * weighted).sum(-1) / (ones * ones).sum(-1)
    centred = weighted - mean[:, None] * ones
    return centred.square().sum(-1), _log_weight(data, batch)


def _log_weight(data: Data, batch: int) -> Tensor:
    """Ln det W over the samples used: (A,)."""
    log_weight = data.observed.new_zeros(()) if data.observed is not None else torch.zeros(())
    if data.weight is not None:
        log_weight = data.weight.log()
        if data.mask is not None:
            log_weight = torch.where(data.mask, log_weight, 0.0)
        log_weight = log_weight.sum(-1)
    if data.factor is not None:
        log_weight = -torch.diagonal(data.factor, dim1=-2, dim2=-1).log().sum(-1)
    return log_weight.expand(batch)
