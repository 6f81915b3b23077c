"""What one problem knows between two iterations, for all problems at once.

Every field has the problems as its first dimension; the policy only ever combines a problem's own
numbers. Scalars and P×P blocks are float64 whatever the dtype of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from torchimize.status import RUNNING


@dataclass(frozen=True)
class State:
    """The iterations' state, one row per problem.

    Attributes
    ----------
    params : Tensor (B, P)
        The best point so far, in the dtype of the user's parameters.
    lower, upper : Tensor (B, P)
        The box; infinite where there is none.
    fixed : Tensor (B, P) of bool
        Parameters that the user has fixed.
    cost, gradient, normal_matrix : Tensor (B,), (B, P), (B, P, P)
        ½ Σ ρ, its gradient and its Gauss-Newton block at ``params``.
    scale : Tensor (B, P)
        D: the variables of the subproblem are D·params.
    trust_radius, damping, damping_growth : Tensor (B,)
        Δ, λ and the factor of the next increase of λ.
    last_step : Tensor (B, P)
        The step that was accepted last.
    size : Tensor (B, P)
        What |step_j| is compared with by ``xtol``: the largest recent |params_j|.
    fresh : Tensor (B,) of bool
        ``params`` is new: derivatives there are still to be evaluated.
    lost_sight : Tensor (B,) of bool
        The last trial gave nothing finite.
    nfev, njev, failures : Tensor (B,) of int64
        Residual and Jacobian evaluations; proposals that could not be used.
    status : Tensor (B,) of int8
        A code of :class:`torchimize.status.Status`, or RUNNING.
    """

    params: Tensor
    lower: Tensor
    upper: Tensor
    fixed: Tensor
    cost: Tensor
    gradient: Tensor
    normal_matrix: Tensor
    scale: Tensor
    trust_radius: Tensor
    damping: Tensor
    damping_growth: Tensor
    last_step: Tensor
    size: Tensor
    fresh: Tensor
    lost_sight: Tensor
    nfev: Tensor
    njev: Tensor
    failures: Tensor
    status: Tensor

    @classmethod
    def start(cls, params: Tensor, lower: Tensor, upper: Tensor, fixed: Tensor) -> State:
        """Problems that have been evaluated nowhere yet."""
        batch, num_params = params.shape
        zero = torch.zeros(batch, dtype=torch.float64, device=params.device)
        vector = torch.zeros(batch, num_params, dtype=torch.float64, device=params.device)
        count = torch.zeros(batch, dtype=torch.int64, device=params.device)
        return cls(
            params=params,
            lower=lower,
            upper=upper,
            fixed=fixed,
            cost=zero,
            gradient=vector,
            normal_matrix=vector[:, :, None].expand(-1, -1, num_params),
            scale=vector,
            trust_radius=zero,
            damping=zero,
            damping_growth=zero + 2.0,
            last_step=vector,
            size=params.abs().double(),
            fresh=torch.ones_like(count, dtype=torch.bool),
            lost_sight=torch.zeros_like(count, dtype=torch.bool),
            nfev=count,
            njev=count,
            failures=count,
            status=torch.full_like(count, RUNNING, dtype=torch.int8),
        )

    @property
    def running(self) -> Tensor:
        """(B,) of bool."""
        return self.status == RUNNING

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Apply a function of tensors to every field."""
        return State(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def take(self, rows: Tensor) -> State:
        """The problems ``rows`` (A,)."""
        return self.map(lambda field: field.index_select(0, rows))

    def join(self, other: State) -> State:
        """Both states' problems, one after the other."""
        return State(
            **{
                f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)])
                for f in fields(self)
            }
        )

    def update(self, where: Tensor, **new: Tensor) -> State:
        """The same state with new values of some fields for the problems in ``where`` (B,)."""
        return replace(
            self, **{name: select(where, value, getattr(self, name)) for name, value in new.items()}
        )


def select(where: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """Take ``this`` for the problems in ``where`` (B,), ``other`` for the rest."""
    return torch.where(where.reshape(where.shape + (1,) * (other.ndim - 1)), this, other)


@dataclass(frozen=True)
class Proposal:
    """A step that has been computed but not evaluated.

    Attributes
    ----------
    step : Tensor (B, P)
        In the parameters' own units, inside the box.
    params_trial : Tensor (B, P)
        params + step in the parameters' dtype: where to evaluate.
    scaled_norm : Tensor (B,)
        |D step|.
    predicted_reduction : Tensor (B,)
        What the quadratic model says of the fall of the cost.
    damping : Tensor (B,)
        The λ with which the step was computed.
    usable : Tensor (B,) of bool
        The step is finite and goes down on the model.
    limited : Tensor (B,) of bool
        The radius, the damping or the box made the step another one than Gauss-Newton's.
    bent : Tensor (B,) of bool
        The box took part of the step, so that its smallness proves nothing.
    free : Tensor (B, P) of bool
        Parameters that are neither fixed nor pressed against a bound by the gradient.
    """

    step: Tensor
    params_trial: Tensor
    scaled_norm: Tensor
    predicted_reduction: Tensor
    damping: Tensor
    usable: Tensor
    limited: Tensor
    bent: Tensor
    free: Tensor


def positive(value: Tensor) -> Tensor:
    """The value where it is positive, 1 elsewhere: a divisor."""
    return torch.where(value > 0, value, 1.0)


def norm(vector: Tensor) -> Tensor:
    """Euclidean norm over the parameters: (B, P) to (B,)."""
    return (vector * vector).sum(-1).sqrt()
