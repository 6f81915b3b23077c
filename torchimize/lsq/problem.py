"""A batch of problems, validated once, and what an engine asks of it: cost and derivatives.

Everything that the faces accept ends here in one form: parameters (B, P), residuals flattened to
(B, M) with M = C·N, boxes (B, P). Evaluations run over the batch in chunks whose Jacobian fits the
processor's cache (or a share of the accelerator's memory), so no array grows with B·M·P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchimize.batch import BatchFunction, chunks
from torchimize.errors import DeviceError, DtypeError, ShapeError
from torchimize.kernel.derivative import UnknownDerivativeError
from torchimize.kernel.trace import UntraceableError
from torchimize.lsq.jacobian import (
    Derivative,
    FiniteDifference,
    Forward,
    Reverse,
    UserJacobian,
    choose_automatic,
)
from torchimize.lsq.likelihood import Likelihood
from torchimize.lsq.trace_cache import recalled, traced_function
from torchimize.lsq.traced import TracedDerivative, TracedFunction

CACHE_NUMBERS = 200_000
"""Numbers in the Jacobian of one chunk on a CPU: about what a core's cache holds."""

DEVICE_SHARE = 1 / 16
"""Share of an accelerator's memory that one chunk's Jacobian may take."""

Jacobian = str | Callable[..., Tensor] | None

DERIVATIVES = ("forward", "reverse", "2-point", "3-point")


@dataclass
class Problem:
    """B independent problems of P parameters and M residuals.

    Attributes
    ----------
    function : BatchFunction
        (A, P) to (A, ...).
    given : Derivative or None
        The derivative that the user asked for; None chooses.
    likelihood : Likelihood
    params0 : Tensor (B, P)
    lower, upper : Tensor (B, P)
        Infinite where there is no bound.
    trailing : torch.Size
        The function's output without its batch dimension.
    traced : TracedFunction or str
        The function's expressions, or why there are none.
    """

    function: BatchFunction
    given: Derivative | None
    likelihood: Likelihood
    params0: Tensor
    lower: Tensor
    upper: Tensor
    trailing: torch.Size
    traced: TracedFunction | str = "the function was not traced"

    @property
    def num_problems(self) -> int:
        """B."""
        return self.params0.shape[0]

    @property
    def num_params(self) -> int:
        """P."""
        return self.params0.shape[1]

    @property
    def num_residuals(self) -> int:
        """M."""
        return self.trailing.numel()

    @cached_property
    def fixed(self) -> Tensor:
        """(B, P) of bool: parameters fixed by equal bounds."""
        # elsewhere to ask for values is to wait for the device
        if self.params0.device.type == "cpu" and not self.bounded:
            return torch.zeros_like(self.params0[:1], dtype=torch.bool).expand(self.params0.shape)
        return (_distinct(self.lower) == _distinct(self.upper)).expand(self.params0.shape)

    @cached_property
    def bounded(self) -> bool:
        """Whether any parameter has a bound."""
        return any(bool(torch.isfinite(_distinct(v)).any()) for v in (self.lower, self.upper))

    def part(self, rows: Tensor) -> Problem:
        """The problems ``rows`` (A,) of a traced function; it can be fitted, but not called."""
        lower, upper = (
            v[:1].expand(len(rows), -1) if v.stride(0) == 0 else v.index_select(0, rows)
            for v in (self.lower, self.upper)
        )
        traced = self.traced
        if isinstance(traced, TracedFunction):
            traced = replace(traced, sources=traced.sources_of(rows))
        return replace(
            self,
            params0=self.params0.index_select(0, rows),
            lower=lower,
            upper=upper,
            likelihood=replace(self.likelihood, data=self.likelihood.data.part(rows)),
            traced=traced,
        )

    def degrees_of_freedom(self) -> Tensor:
        """Samples used minus free parameters, may be negative: (B,) of int64."""
        count = self.likelihood.data.count(
            self.num_problems, self.num_residuals, self.params0.device
        )
        if not self.bounded:
            return count - self.num_params
        return count - (~self.fixed).sum(-1)

    @cached_property
    def derivative(self) -> Derivative:
        """How the eager engine differentiates, and whatever is reported after the fit."""
        if self.given is not None:
            return self.given
        if isinstance(self.traced, TracedFunction):
            try:
                return TracedDerivative(self.traced)
            except (UnknownDerivativeError, UntraceableError):
                pass
        params0, lower, upper = self.params0, self.lower, self.upper
        rows = _few_rows(self)
        few = (params0, lower, upper) if rows is None else (params0[rows], lower[rows], upper[rows])
        derivative = choose_automatic(lambda p: self.value(p, rows), *few)
        if isinstance(derivative, FiniteDifference):
            derivative = FiniteDifference(3, lower, upper)
        return derivative

    @property
    def chunk_size(self) -> int:
        """Problems per Jacobian; all where each call of the function needs all."""
        if self.function.any_rows or isinstance(self.derivative, TracedDerivative):
            return self._cached_problems
        return max(1, self.num_problems)

    @property
    def value_chunk_size(self) -> int:
        """Problems per call of the function alone."""
        return self._cached_problems if self.function.any_rows else max(1, self.num_problems)

    @cached_property
    def _cached_problems(self) -> int:
        """Problems whose Jacobian fits the cache, or a share of the device's memory."""
        numbers = CACHE_NUMBERS
        if self.params0.device.type == "cuda":  # pragma: gpu only
            memory = torch.cuda.get_device_properties(self.params0.device).total_memory
            numbers = int(DEVICE_SHARE * memory / 8)
        return max(1, numbers // max(1, self.num_residuals * self.num_params))

    def value(self, params: Tensor, rows: Tensor | None) -> Tensor:
        """The user's function at ``params`` (A, P) of the problems ``rows``: (A, M)."""
        function = self.function
        if function.any_rows or rows is None:
            value = function(params, rows)
        else:
            everywhere = self.params0.index_copy(0, rows, params)
            value = function(everywhere).index_select(0, rows)
        if value.ndim == 0 or value.shape[1:] != self.trailing:
            raise ShapeError(
                f"the function returned shape {tuple(value.shape)} where its first call gave "
                f"(…, {', '.join(map(str, self.trailing))})"
            )
        return value.reshape(params.shape[0], self.num_residuals)

    def residual(self, params: Tensor, rows: Tensor | None) -> Tensor:
        """The weighted residual (A, M)."""
        return self.likelihood.residual(self.value(params, rows).detach(), rows)

    def residual_and_columns(self, params: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weighted residual (A, M) and its derivative by columns (A, P, M)."""
        value, columns = self.derivative(lambda p: self.value(p, rows), params, rows)
        residual = self.likelihood.residual(value.detach(), rows)
        return residual, self.likelihood.data.whiten(columns.detach(), rows)

    def cost(self, params: Tensor, rows: Tensor | None) -> Tensor:
        """The cost (A,) in float64 at ``params`` (A, P)."""
        costs = []
        for part, part_rows in self._chunks(params, rows, self.value_chunk_size):
            residual = self.residual(part, part_rows)
            costs.append(self.likelihood.terms(residual, part_rows)[0].double().sum(-1))
        return torch.cat(costs)

    def linearise(self, params: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
        """The model of the cost at ``params`` (A, P), accumulated in float64.

        Returns
        -------
        cost, gradient, normal_matrix : Tensor (A,), (A, P), (A, P, P)
            The last is the Gauss-Newton block.
        column_norms : Tensor (A, P)
            ‖J_j‖ of the weighted residual, each sample weighed by the loss's ρ'.
        """
        costs, gradients, matrices, norms = [], [], [], []
        for part, part_rows in self._chunks(params, rows, self.chunk_size):
            residual, columns = self.residual_and_columns(part, part_rows)
            value, slope, curvature, weight = self.likelihood.terms(residual, part_rows)
            columns, slope = _even(columns.double()), _even(slope.double())
            curved, weighted = (
                columns if factor is None else columns * _even(factor.double())[:, None, :]
                for factor in (curvature, weight)
            )
            costs.append(value.double().sum(-1))
            gradients.append((columns @ slope[:, :, None])[..., 0])
            matrices.append(curved @ columns.mT)
            squares = torch.diagonal(matrices[-1], dim1=-2, dim2=-1)
            if weight is not curvature:
                squares = (weighted * columns).sum(-1)
            norms.append(squares.sqrt())
        return tuple(torch.cat(parts) for parts in (costs, gradients, matrices, norms))

    def _chunks(
        self, params: Tensor, rows: Tensor | None, size: int
    ) -> list[tuple[Tensor, Tensor | None]]:
        if params.shape[0] <= size:
            return [(params, rows)]
        if rows is None:
            rows = torch.arange(params.shape[0], device=params.device)
        return [(params[part], rows[part]) for part in chunks(params.shape[0], size)]


def _even(samples: Tensor) -> Tensor:
    """The same (..., M), contiguous and with an even M (a zero is added).

    Batched matrix products sum in an order that depends on alignment and strides, so in any other
    form the last bits of a problem would depend on its place in the batch.
    """
    if samples.shape[-1] % 2:
        return torch.nn.functional.pad(samples, (0, 1))
    return samples.contiguous()


def check_parameters(params: Tensor, name: str) -> None:
    """Raise where a tensor cannot be a start: not floating, or not of rank 1 or 2."""
    if not params.is_floating_point():
        raise DtypeError(
            f"`{name}` has dtype {params.dtype}; wanted a real floating type (float64 or float32): "
            "convert an array with .astype(float), a tensor with .double()"
        )
    if params.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"`{name}` has dtype {params.dtype}; wanted float64 or float32")
    if params.ndim not in (1, 2):
        raise ShapeError(
            f"`{name}` has shape {tuple(params.shape)}; wanted (P,) for one problem or (B, P)"
        )
    if params.shape[-1] == 0:
        raise ShapeError(f"`{name}` has shape {tuple(params.shape)}; wanted at least one parameter")


def check_bounds(
    bounds: tuple[Tensor | float, Tensor | float] | None, params0: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    """Bounds as two tensors of the parameters' shape and dtype.

    Parameters
    ----------
    bounds : (lower, upper) or None
        Each a number, (P,) or (B, P).
    params0 : Tensor (B, P)
    name : str
        What the start is called where the user gave it.

    Raises
    ------
    ValueError
        Where a lower bound exceeds its upper one, or a start lies outside.
    """
    infinite = params0.new_tensor(torch.inf).expand(params0.shape)
    if bounds is None:
        return -infinite, infinite
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError("`bounds` must contain 2 elements: (lower, upper)")
    both = []
    for side, bound in zip(("lower", "upper"), bounds, strict=True):
        if isinstance(bound, Tensor) and bound.is_complex():
            raise DtypeError(f"the {side} bounds are complex; wanted real numbers")
        tensor = torch.as_tensor(bound, dtype=params0.dtype)
        if isinstance(bound, Tensor) and bound.ndim > 0 and bound.device != params0.device:
            raise DeviceError(
                f"the {side} bounds are on {bound.device}, the parameters on {params0.device}"
            )
        tensor = tensor.to(params0.device)
        try:
            both.append(tensor.expand(params0.shape))
        except RuntimeError:
            raise ShapeError(
                f"the {side} bounds have shape {tuple(tensor.shape)}; wanted a number, "
                f"({params0.shape[1]},) or {tuple(params0.shape)}"
            ) from None
    lower, upper = both
    distinct = [_distinct(bound) for bound in both]
    if any(bool(bound.isnan().any()) for bound in distinct):
        raise ValueError("`bounds` contain NaN; use ±inf where there is no bound")
    if bool((distinct[0] == -torch.inf).all()) and bool((distinct[1] == torch.inf).all()):
        return lower, upper
    if bool((lower > upper).any()):
        row, column = (int(i) for i in (lower > upper).nonzero()[0])
        problem = "" if params0.shape[0] == 1 else f" of problem {row}"
        raise ValueError(
            "each lower bound must be at most its upper bound; those of parameter "
            f"{column}{problem} are {float(lower[row, column]):g} and "
            f"{float(upper[row, column]):g} (`bounds` is a pair: all lower, all upper bounds)"
        )
    outside = (params0 < lower) | (params0 > upper)
    if bool(outside.any()):
        row, column = (int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"`{name}` is infeasible: parameter {column} of problem {row} starts at "
            f"{float(params0[row, column]):g}, outside its bounds "
            f"[{float(lower[row, column]):g}, {float(upper[row, column]):g}]"
        )
    return lower, upper


def _distinct(rows: Tensor) -> Tensor:
    """One row of a tensor (B, P) that repeats it for all problems, all rows of another."""
    return rows[:1] if rows.stride(0) == 0 else rows


def build_problem(
    function: BatchFunction,
    likelihood: Likelihood,
    params0: Tensor,
    lower: Tensor,
    upper: Tensor,
    jacobian: Jacobian,
    *,
    user_jacobian: BatchFunction | None = None,
    check_independence: bool = False,
    sample: Tensor | None = None,
) -> Problem:
    """Look at the function once, choose its derivative, and put a problem together.

    Parameters
    ----------
    function : BatchFunction
    likelihood : Likelihood
    params0, lower, upper : Tensor (B, P)
        Valid, see :func:`check_parameters` and :func:`check_bounds`.
    jacobian : str or None
        One of ``DERIVATIVES``; None chooses.
    user_jacobian : BatchFunction, optional
        The user's own, (A, P) to (A, ..., P); takes precedence.
    check_independence : bool
        Test that no problem depends on another one's parameters.
    sample : Tensor, optional
        What ``function.probe(params0)`` gave, where it has been called already.

    Raises
    ------
    ShapeError, DtypeError, DeviceError
        Where the function's or the Jacobian's output does not fit.
    ValueError
        Where problems mix.
    """
    automatic = user_jacobian is None and jacobian is None
    if sample is None and automatic and params0.shape[0] and not check_independence:
        traced = recalled(function, params0, lower, upper)
        if traced is not None:
            trailing = torch.Size(traced.trace.trailing)
            return Problem(function, None, likelihood, params0, lower, upper, trailing, traced)
    if sample is None:
        sample = function.probe(params0)
    if not params0.shape[0]:
        return Problem(function, None, likelihood, params0, lower, upper, sample.shape[1:])
    if check_independence and (mixed := function.find_mixing(params0, lower, upper)):
        raise ValueError(
            f"the function mixes problems: residuals of problem {mixed[0]} change with the "
            "parameters of other problems"
        )
    trailing = sample.shape[1:]
    problem = Problem(function, None, likelihood, params0, lower, upper, trailing)
    if user_jacobian is not None:
        problem.given = _checked_user_jacobian(problem, user_jacobian)
        problem.traced = "the Jacobian is the user's own"
    elif jacobian in ("2-point", "3-point"):
        problem.given = FiniteDifference(int(jacobian[0]), lower, upper)
    elif jacobian == "forward":
        problem.given = Forward()
    elif jacobian == "reverse":
        problem.given = Reverse()
    else:
        try:
            problem.traced = traced_function(function, params0, lower, upper)
        except UntraceableError as error:
            problem.traced = str(error)
    if isinstance(jacobian, str):
        problem.traced = f"jac={jacobian!r} was asked for"
    return problem


def _few_rows(problem: Problem) -> Tensor | None:
    if problem.num_problems <= 3 or not problem.function.any_rows:
        return None
    return torch.arange(3, device=problem.params0.device)


def _checked_user_jacobian(problem: Problem, jacobian: BatchFunction) -> UserJacobian:
    jacobian.any_rows = problem.function.any_rows
    params0 = problem.params0
    rows = _few_rows(problem)
    if jacobian.any_rows and rows is not None:
        start = params0[rows]
        try:
            sample = jacobian(start, rows)
        except Exception:
            jacobian.any_rows = problem.function.any_rows = False
            rows, start = None, params0
            sample = jacobian(start)
    else:
        rows, start = None, params0
        sample = jacobian(start)
    wanted = (start.shape[0], *problem.trailing, problem.num_params)
    if sample.shape != wanted:
        met, want = tuple(sample.shape), wanted
        if jacobian.single:
            met, want = met[1:], want[1:]
        raise ShapeError(f"the Jacobian has shape {met}; wanted {want}, residuals by parameters")
    jacobian.check(sample, start)

    def on_rows(params: Tensor, rows: Tensor | None) -> Tensor:
        if jacobian.any_rows or rows is None:
            return jacobian(params, rows)
        return jacobian(params0.index_copy(0, rows, params)).index_select(0, rows)

    return UserJacobian(on_rows)
