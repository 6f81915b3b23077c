"""Levenberg-Marquardt of JAX libraries, vmapped over the problems and compiled.

Their Jacobians come from JAX's forward mode. A batch goes through in pieces: each runs until its
slowest fit has ended, and larger ones leave the cache. Of the linear solvers on offer each library
has the one that was fastest here.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from competitors.jax_models import MODELS
from competitors.pieces import piece_size, pieces
from problems.workloads import Workload

CACHED = 1e5
"""Numbers in the Jacobians of a piece."""

MAX_ITERATIONS = 100


class Batch:
    """What both libraries share: arrays, pieces, compilation."""

    detail: str | None = None

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        cast(Any, jax.config).update("jax_enable_x64", workload.y.dtype == torch.float64)
        self.x, self.y, self.start = (
            jnp.asarray(tensor.numpy()) for tensor in (workload.x, workload.y, workload.start)
        )
        self.model = MODELS[workload.name]
        self.size = piece_size(CACHED, self.y.shape[1], self.start.shape[1])
        self.run = jax.jit(jax.vmap(self.one(1e-6 if tolerance is None else tolerance)))

    def one(self, tolerance: float) -> Any:
        """Fit of one problem: (start, y) to parameters and iterations."""
        raise NotImplementedError

    def all(self, rows: slice, item: int) -> np.ndarray[Any, Any]:
        found = [
            (piece, self.run(self.start[piece], self.y[piece])) for piece in pieces(rows, self.size)
        ]
        first = np.asarray(found[0][1][item])
        whole = np.empty((rows.stop - rows.start, *first.shape[1:]), first.dtype)
        for piece, result in found:
            whole[piece.start - rows.start : piece.stop - rows.start] = result[item]
        return whole

    def fit(self, rows: slice) -> Tensor:
        return torch.from_numpy(self.all(rows, 0))

    def evaluations(self, rows: slice) -> float | None:
        # The one at the start is no iteration.
        return float(self.all(rows, 1).mean()) + 1


class Jaxopt(Batch):
    """jaxopt.LevenbergMarquardt: Nielsen's damping."""

    def one(self, tolerance: float) -> Any:
        import jaxopt

        solver = jaxopt.LevenbergMarquardt(
            lambda p, y: self.model(self.x, *p) - y,
            maxiter=MAX_ITERATIONS, stop_criterion="madsen-nielsen", xtol=tolerance, gtol=tolerance,
            solver="cholesky", materialize_jac=True,
        )  # fmt: skip

        def run(start: Any, y: Any) -> Any:
            params, state = solver.run(start, y)
            return params, state.iter_num

        return run


class Optimistix(Batch):
    """optimistix.LevenbergMarquardt."""

    def one(self, tolerance: float) -> Any:
        import lineax
        import optimistix

        solver: Any = optimistix.LevenbergMarquardt(
            rtol=tolerance, atol=tolerance, linear_solver=lineax.Normal(lineax.Cholesky())
        )

        def residual(p: Any, y: Any) -> Any:
            return self.model(self.x, *p) - y

        def run(start: Any, y: Any) -> Any:
            found: Any = optimistix.least_squares(
                residual, solver, start, args=y, max_steps=MAX_ITERATIONS, throw=False
            )
            return found.value, found.stats["num_steps"]

        return run
