"""Marquardt's iteration as a textbook has it, batched in torch and given to torch.compile.

It has the workload's exact Jacobian. All problems of a piece iterate until the last one has ended.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor

from competitors.pieces import piece_size, pieces
from problems.workloads import Workload

CACHED = 2.5e5
"""Numbers in the Jacobians of a piece."""

MAX_ITERATIONS = 100

State = tuple[Tensor, ...]
Compilable = Callable[..., State]


class Compiled:
    """Step and evaluation compiled as one graph each, for each length of a piece."""

    detail: str | None = None

    def __init__(self, workload: Workload, tolerance: float | None) -> None:
        self.workload = workload
        self.tolerance = 1e-6 if tolerance is None else tolerance
        self.size = piece_size(CACHED, workload.y.shape[1], workload.start.shape[1])
        # One for each length of a piece.
        torch._dynamo.config.recompile_limit = 64
        self.begin: Compilable = torch.compile(self._begin, dynamic=False, fullgraph=True)
        self.step: Compilable = torch.compile(self._step, dynamic=False, fullgraph=True)

    def evaluate(self, params: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cost (B,), gradient (B, P), normal matrix (B, P, P)."""
        columns = params[:, :, None].unbind(1)
        residual = self.workload.model(self.workload.x, *columns) - y
        jacobian = self.workload.jacobian(self.workload.x, *columns)
        cost = 0.5 * residual.square().sum(1)
        return cost, (jacobian.mT @ residual[:, :, None])[:, :, 0], jacobian.mT @ jacobian

    def _begin(self, params: Tensor, y: Tensor) -> State:
        cost, gradient, normal_matrix = self.evaluate(params, y)
        damping = torch.full_like(cost, 1e-3)
        count = torch.ones_like(cost)
        return params, cost, gradient, normal_matrix, damping, count, count > 0

    def _step(
        self,
        params: Tensor,
        cost: Tensor,
        gradient: Tensor,
        normal_matrix: Tensor,
        damping: Tensor,
        count: Tensor,
        active: Tensor,
        y: Tensor,
    ) -> State:
        diagonal = damping[:, None] * normal_matrix.diagonal(dim1=1, dim2=2)
        factor, _ = torch.linalg.cholesky_ex(normal_matrix + torch.diag_embed(diagonal))
        step = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        # Of the damped model, whose minimum the step is.
        predicted = -0.5 * (gradient * step).sum(1)
        trial = params + step
        trial_cost, trial_gradient, trial_matrix = self.evaluate(trial, y)
        better = trial_cost <= cost
        return (
            torch.where(better[:, None], trial, params),
            torch.where(better, trial_cost, cost),
            torch.where(better[:, None], trial_gradient, gradient),
            torch.where(better[:, None, None], trial_matrix, normal_matrix),
            torch.where(better, 0.1 * damping, 10 * damping),
            count + active,
            active & ~(predicted <= self.tolerance * cost),
        )

    def all(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Parameters (B, P) and evaluations (B,)."""
        whole = torch.empty_like(self.workload.start[rows])
        counts = whole.new_empty(len(whole))
        with torch.inference_mode():
            for piece in pieces(rows, self.size):
                y = self.workload.y[piece]
                state = self.begin(self.workload.start[piece], y)
                for _ in range(MAX_ITERATIONS):
                    state = self.step(*state, y)
                    if not state[-1].any():
                        break
                place = slice(piece.start - rows.start, piece.stop - rows.start)
                whole[place], counts[place] = state[0], state[5]
        return whole, counts

    def fit(self, rows: slice) -> Tensor:
        return self.all(rows)[0]

    def evaluations(self, rows: slice) -> float | None:
        return float(self.all(rows)[1].double().mean())
