"""What covariances are made of, by compiled kernels: normal matrices and their inverses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.errors import NotFusedError
from torchimize.kernel import triton_driver
from torchimize.lsq.fused import kernels
from torchimize.lsq.fused.machines import build_evaluation, build_inverse
from torchimize.lsq.fused.plan import MAX_PARAMS, expressions_of, make_plan, run_lengths
from torchimize.lsq.fused.views import Views
from torchimize.lsq.policy import Policy, RelativeTests, TrustRegion
from torchimize.lsq.problem import Problem

OPTIMISED_PARAMS = 8
"""With more parameters the compiler takes longer over the covariances than they take."""

STANDSTILL = Policy(TrustRegion(), RelativeTests(0.0, 0.0, 0.0, 1), boxed=False)
"""An evaluation takes no step: one policy for all keeps their kernels few."""


def normal_matrices(problem: Problem, params: Tensor) -> Tensor:
    """Normal matrices (B, P, P) at ``params`` (B, P), summed in float64; the curvature is Fisher's.

    Raises
    ------
    NotFusedError
        Where a kernel cannot do what the problem needs.
    """
    expressions, sources = expressions_of(problem)
    plan = make_plan(problem, STANDSTILL, expressions, insist=True)
    plan = replace(plan, bits=64, fisher=plan.loss != "linear" or plan.likelihood == "poisson")
    batch, size = params.shape
    kernel = kernels.compiled(
        ("evaluation", plan),
        plan.bits,
        lambda: build_evaluation(plan, expressions),
        device=params.device,
    )
    views = Views(problem, STANDSTILL, plan, expressions, sources, params.double())
    found = params.new_empty(batch, size, size, dtype=torch.float64)
    lengths = run_lengths(expressions.trace)
    bound = kernels.bind(kernel, lengths, views, {"normal_matrix": found})
    bound.run_all(batch, kernels.chunk_size(kernel, batch, problem.num_residuals * (size + 1)))
    return found


def inverses(normal_matrix: Tensor, fixed: Tensor, condition: float) -> tuple[Tensor, Tensor]:
    """Inverses of normal matrices, and which of them can be trusted.

    Parameters
    ----------
    normal_matrix : Tensor (B, P, P) of float64
    fixed : Tensor (B, P) of bool
    condition : float
        See :func:`torchimize.lsq.inverse.well_conditioned_inverse`.

    Returns
    -------
    inverse : Tensor (B, P, P) of float64
    trusted : Tensor (B,) of bool

    Raises
    ------
    NotFusedError
        Too many parameters, or no compiler for their device.
    """
    batch, size = normal_matrix.shape[:2]
    device = normal_matrix.device
    if not batch or size > MAX_PARAMS:
        raise NotFusedError("no kernel for these matrices")
    if device.type != "cpu" and (reason := triton_driver.unavailable(device)):
        raise NotFusedError(reason)
    any_fixed = bool((fixed[:1] if fixed.stride(0) == 0 else fixed).any())
    shared = any_fixed and fixed.stride(0) == 0
    kernel = kernels.compiled(
        ("inverse", size, any_fixed, shared),
        64,
        lambda: build_inverse(size, any_fixed, shared),
        device=device,
        optimised=size <= OPTIMISED_PARAMS,
    )
    number = np.array(condition, dtype=np.float64)
    views: dict[Any, Tensor | int] = {"condition": int(number.ctypes.data)}
    for i in range(size):
        views["fixed", i] = fixed[0, i] if shared else fixed[:, i]
        for j in range(i + 1):
            views["normal_matrix", i, j] = normal_matrix[:, i, j]
    inverse = torch.empty_like(normal_matrix)
    trusted = torch.empty(batch, dtype=torch.int8, device=device)
    bound = kernels.bind(kernel, [], views, {"inverse": inverse, "trusted": trusted})
    bound.run_all(batch, kernels.chunk_size(kernel, batch, size * size))
    return inverse, trusted.bool()
