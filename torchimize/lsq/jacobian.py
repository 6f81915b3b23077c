"""Derivatives of a batch function: forward or reverse mode, finite differences, or the user's own.

All give *columns*, (A, P, M): the derivative of the M residuals of A problems with respect to each
parameter. Problems are independent, so one direction serves all of them at once: forward mode is
vmapped over the P directions, reverse mode over the M residuals, and never over problems.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from torchimize.special_functions import CorrectDerivatives

Function = Callable[[Tensor], Tensor]
"""(A, P) to (A, M)."""


class Derivative(Protocol):
    """Value (A, M) and columns (A, P, M) of a function at (A, P)."""

    name: str

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Differentiate ``function`` at ``params``, which belong to the problems ``rows``."""


_FORWARD = threading.RLock()
"""torch's levels of forward differentiation belong to the process: one thread at a time."""


class Forward:
    """Forward mode over the P directions.

    Parameters
    ----------
    vmapped : bool, default True
        All directions in one pass; False takes one after the other, for functions that vmap
        cannot take.
    """

    name = "forward"

    def __init__(self, vmapped: bool = True) -> None:
        self.vmapped = vmapped

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        num_params = params.shape[1]
        basis = torch.eye(num_params, dtype=params.dtype, device=params.device)

        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            tangents = (direction.expand_as(params),)
            value, tangent = torch.func.jvp(function, (params,), tangents)[:2]
            return value, tangent

        with _FORWARD, CorrectDerivatives():
            if self.vmapped:
                both: tuple[Tensor, Tensor] = torch.func.vmap(along, out_dims=(None, 1))(basis)  # type: ignore[arg-type]
                return both
            results = [along(direction) for direction in basis]
        return results[0][0], torch.stack([tangent for _, tangent in results], 1)


class Reverse:
    """Reverse mode over the M residuals, for fewer residuals than parameters."""

    name = "reverse"

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with CorrectDerivatives():
            value, pullback = torch.func.vjp(function, params)[:2]
        basis = torch.eye(value.shape[1], dtype=params.dtype, device=params.device)
        rows_of_jacobian = torch.func.vmap(lambda d: pullback(d.expand_as(value))[0])(basis)
        return value, rows_of_jacobian.permute(1, 2, 0)


class FiniteDifference:
    """Differences with a step in proportion to each parameter, inside the box.

    The step is ``eps**(1/2) |p|`` for two points and ``eps**(1/3) |p|`` for three (Press et al.,
    Numerical Recipes, section 5.7); a parameter that is 0 takes 1 in place of |p|.

    Parameters
    ----------
    points : int
        2 (forward differences) or 3 (central ones).
    lower, upper : Tensor (B, P), optional
        Where the function may be evaluated.
    """

    def __init__(
        self, points: int, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> None:
        self.name = f"{points}-point"
        self.points = points
        self.lower, self.upper = lower, upper

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        value = function(params)
        size = torch.where(params != 0, params.abs(), 1.0)
        step = torch.finfo(params.dtype).eps ** (1 / self.points) * size
        ahead, behind = params + step, params - step
        if self.lower is not None and self.upper is not None:
            lower, upper = (
                bound if rows is None else bound.index_select(0, rows)
                for bound in (self.lower, self.upper)
            )
            ahead, behind = torch.minimum(ahead, upper), torch.maximum(behind, lower)
        if self.points == 2:
            # one-sided, to the side with more room
            ahead = torch.where(ahead - params >= params - behind, ahead, behind)
            behind = params
        columns = []
        for j in range(params.shape[1]):
            moved = torch.arange(params.shape[1], device=params.device) == j
            difference = function(torch.where(moved, ahead, params)) - (
                value if self.points == 2 else function(torch.where(moved, behind, params))
            )
            width = (ahead - behind)[:, j, None]
            columns.append(torch.where(width != 0, difference / width, 0.0))
        return value, torch.stack(columns, 1)


class UserJacobian:
    """The user's own: ``jacobian(params, rows)`` gives (A, ..., P)."""

    name = "callable"

    def __init__(self, jacobian: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        self.jacobian = jacobian

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        value = function(params)
        jacobian = self.jacobian(params, rows)
        return value, jacobian.reshape(*value.shape, params.shape[1]).mT


def choose_automatic(
    function: Function,
    params: Tensor,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
) -> Derivative:
    """The cheapest exact derivative that the function can take, proved on a few rows.

    Forward mode where P ≤ M, reverse otherwise; forward mode direction by direction where vmap
    cannot take the function; central differences where automatic differentiation cannot, or where
    it is silently wrong (values that left torch as Python numbers, in whole or in part).

    Parameters
    ----------
    function : callable
        (A, P) to (A, M).
    params : Tensor (A, P)
        A few problems' starts.
    lower, upper : Tensor (A, P), optional
        Their boxes.
    """
    numeric = FiniteDifference(3, lower, upper)
    value, differences = numeric(function, params, None)
    exact: list[Derivative] = [Forward(), Forward(vmapped=False)]
    if value.shape[1] < params.shape[1]:
        exact.insert(0, Reverse())
    for derivative in exact:
        try:
            _, columns = derivative(function, params, None)
        except Exception:
            continue
        if agrees(columns.detach(), differences.detach(), value.detach(), params):
            return derivative
    return numeric


def agrees(columns: Tensor, differences: Tensor, value: Tensor, params: Tensor) -> bool:
    """Whether derivatives (A, P, M) agree with central differences, as far as those can tell.

    Differences carry the rounding of the value over their step, and lose their meaning where the
    function bends within it; so a column counts as wrong only where it is off by a tenth of its
    norm and by much more than rounding.
    """
    finite = torch.isfinite(columns) & torch.isfinite(differences)
    columns, differences = (torch.where(finite, v, 0.0).double() for v in (columns, differences))
    error = (columns - differences).norm(dim=-1)
    eps = torch.finfo(params.dtype).eps
    step = eps ** (1 / 3) * torch.where(params != 0, params.abs(), 1.0).double()
    rounding = eps * value.nan_to_num(0.0, 0.0, 0.0).double().norm(dim=-1, keepdim=True) / step
    return bool((error <= 0.1 * differences.norm(dim=-1) + 100 * rounding).all())
