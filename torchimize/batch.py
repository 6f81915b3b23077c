"""The batch dimension: what belongs to problems, functions called on some rows only, chunks.

A function over problems maps ``(B, P)`` to ``(B, ...)`` and is never vmapped over problems. The
solver drops problems that have stopped and cuts large batches into chunks, so it has to call the
function on *some rows*. What belongs to the problems (argument tensors whose first of at least two
dimensions has length B) is cut with them. A function may also close over all problems' data; then
it can only be called on all rows, which :class:`BatchFunction` finds out once, on a few rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimize.errors import DeviceError, DtypeError, ShapeError


def take_rows(value: Any, rows: Tensor | None, num_problems: int) -> Any:
    """Cut what belongs to the problems; leave everything else as it is.

    Parameters
    ----------
    value : Any
        A tensor of at least two dimensions whose first has length B belongs to the problems.
    rows : Tensor (A,) of int64, or None
        Which problems; None for all.
    num_problems : int
        B.
    """
    if rows is None or not belongs_to_problems(value, num_problems):
        return value
    return value.index_select(0, rows)


def few_problems(
    params0: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call on the first three problems.

    Parameters
    ----------
    params0 : Tensor (B, P)
    args, kwargs
        What belongs to the problems is cut.
    """
    batch = params0.shape[0]
    rows = torch.arange(min(3, batch), device=params0.device)
    few = (params0[rows], *(take_rows(value, rows, batch) for value in args))
    return few, {key: take_rows(value, rows, batch) for key, value in kwargs.items()}


def check_devices(values: Mapping[str, Any], params: Tensor) -> None:
    """Raise for a tensor argument on another device than the parameters; numbers may be anywhere.

    Parameters
    ----------
    values : mapping of str to object
        Arguments by the names that a message should give.
    params : Tensor (B, P)
    """
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim and value.device != params.device:
            raise DeviceError(f"{name} is on {value.device}, the parameters on {params.device}")


def belongs_to_problems(value: Any, num_problems: int) -> bool:
    """Whether a function's argument holds one row per problem."""
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == num_problems


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``range(length)``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class BatchFunction:
    """A user's function of the parameters, callable on any rows of the batch.

    Parameters
    ----------
    function : callable
        ``function(params, *args, **kwargs)``: (B, P) to (B, ...); with ``single`` (P,) to (...).
    num_problems : int
        B.
    args, kwargs
        Passed on; tensors that belong to the problems are cut to the rows asked for.
    single : bool
        The user has one problem and a function without a batch dimension.
    name : str
        What the function returns, for error messages.
    promote : bool
        Cast the output to the parameters' dtype instead of raising where it has another one.
    origin : callable, optional
        What the user wrote, by which its trace is remembered.
    given : sequence of Tensor
        Tensors besides the arguments that ``function`` hands to it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        num_problems: int,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        single: bool = False,
        name: str = "residuals",
        promote: bool = False,
        origin: Callable[..., Any] | None = None,
        given: Sequence[Tensor] = (),
    ) -> None:
        self.origin = origin
        self.given = tuple(given)
        self.function = function
        self.num_problems = num_problems
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.single = single
        self.name = name
        self.promote = promote
        self.any_rows = True
        """Whether the function can be called on some rows only; see :meth:`probe`."""

    def __call__(self, params: Tensor, rows: Tensor | None = None) -> Tensor:
        """Call on ``params`` (A, P) of the problems ``rows`` (A,): (A, ...).

        A function that needs all rows must get them all; see :meth:`on_all_rows`.
        """
        if self.single:
            return self.call(params, self.args, self.kwargs)
        args = [take_rows(value, rows, self.num_problems) for value in self.args]
        kwargs = {k: take_rows(v, rows, self.num_problems) for k, v in self.kwargs.items()}
        return self.call(params, args, kwargs)

    def call(self, params: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Call on ``params`` (A, P) with arguments that have been cut already: (A, ...)."""
        if self.single:
            return self._as_tensor(self.function(params[0], *args, **kwargs), params)[None]
        return self._as_tensor(self.function(params, *args, **kwargs), params)

    def _as_tensor(self, value: Any, params: Tensor) -> Tensor:
        if isinstance(value, (list, tuple)):
            value = torch.stack([torch.as_tensor(v, dtype=params.dtype) for v in value], -1)
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=params.dtype, device=params.device)
        tensor: Tensor = value
        return tensor.to(params.dtype) if self.promote and tensor.is_floating_point() else tensor

    def check(self, value: Tensor, params: Tensor) -> None:
        """Raise where an output (A, ...) does not fit ``params`` (A, P)."""
        verb, be = ("has", "is") if self.name == "Jacobian" else ("have", "are")
        if value.dtype != params.dtype:
            raise DtypeError(
                f"the {self.name} {verb} dtype {value.dtype}, the parameters {params.dtype}; "
                "both must be the same floating type"
            )
        if value.device != params.device:
            raise DeviceError(
                f"the {self.name} {be} on {value.device}, the parameters on {params.device}"
            )
        if not self.single and (value.ndim < 1 or value.shape[0] != params.shape[0]):
            raise ShapeError(
                f"the function returned {self.name} of shape {tuple(value.shape)} for parameters "
                f"of shape {tuple(params.shape)}; wanted ({params.shape[0]}, ...), one row per "
                "problem"
            )

    def probe(self, params0: Tensor) -> Tensor:
        """Evaluate a few rows of the start, and learn whether rows may be taken at all.

        Three rows (more where B or an argument has that length, so that none can match by chance)
        are evaluated in two orders. A function that closes over data of all problems either fails
        on the foreign length or gives a row another value in the other order; it will always get
        all rows. One row would prove nothing: it broadcasts silently. A third call with more
        rows finds most functions that mix problems, such as a sum over the whole batch.

        Parameters
        ----------
        params0 : Tensor (B, P)

        Returns
        -------
        Tensor (A, ...)
            The output at some rows, for its trailing shape.

        Raises
        ------
        ValueError
            Where problems mix.
        """
        if self.num_problems == 0:
            try:
                return self(params0)
            except Exception:
                return params0.new_zeros(0, 0)
        if self.num_problems == 1:
            return self._on_all_rows(params0)
        values = (*self.args, *self.kwargs.values())
        lengths = {v.shape[0] for v in values if isinstance(v, Tensor) and v.ndim}
        foreign = (n for n in itertools.count(3) if n not in lengths | {self.num_problems})
        count, larger = next(foreign), next(foreign)
        rows = (-1 - torch.arange(count, device=params0.device)) % self.num_problems
        order = torch.arange(count, device=params0.device).roll(1)
        try:
            value = self(params0[rows], rows)
            again = self(params0[rows[order]], rows[order])
            self.check(value, params0[rows])
            same = torch.allclose(value[order], again, rtol=1e-4, atol=0.0, equal_nan=True)
            more = (-1 - torch.arange(larger, device=params0.device)) % self.num_problems
            beside = self(params0[more], more)[:count]
            alone = torch.allclose(value, beside, rtol=1e-4, atol=0.0, equal_nan=True)
        except Exception:
            same = alone = False
        if same and alone:
            return value
        if same:
            raise ValueError(
                f"the function mixes problems: {self.name} of a problem change when others join "
                "the call"
            )
        self.any_rows = False
        return self._on_all_rows(params0)

    def _on_all_rows(self, params0: Tensor) -> Tensor:
        """Evaluate the start; an argument of another batch size is named where this fails."""
        try:
            value = self(params0)
        except Exception as error:
            named = [(f"args[{k}]", v) for k, v in enumerate(self.args)] + [*self.kwargs.items()]
            for name, argument in named:
                if not isinstance(argument, Tensor) or argument.ndim < 2 or self.single:
                    continue
                if argument.shape[0] not in (1, self.num_problems):
                    raise ShapeError(
                        f"{name} has shape {tuple(argument.shape)}; wanted a first dimension of "
                        f"{self.num_problems}, one row per problem of {tuple(params0.shape)} "
                        f"parameters (the function failed: {error})"
                    ) from error
            raise
        self.check(value, params0)
        return value

    def find_mixing(self, params0: Tensor, lower: Tensor, upper: Tensor) -> list[int]:
        """Problems whose output changes when *another* problem's parameters change.

        Moves the problems whose index has bit k set, then those where it is not set, for every k:
        2 ⌈log₂ B⌉ evaluations separate every pair.

        Parameters
        ----------
        params0, lower, upper : Tensor (B, P)
            The start and its box, which is not left.

        Returns
        -------
        list of int
            Empty where every problem is independent of the others.
        """
        if self.num_problems < 2:
            return []
        before = self(params0).reshape(self.num_problems, -1)
        step = 0.01 * params0.abs() + 0.01
        ahead = torch.minimum(params0 + step, upper)
        moved = torch.where(ahead > params0, ahead, torch.maximum(params0 - step, lower))
        rows = torch.arange(self.num_problems, device=params0.device)
        mixed = torch.zeros_like(rows, dtype=torch.bool)
        for bit in range((self.num_problems - 1).bit_length()):
            half = (rows >> bit) & 1 == 1
            for moving in (half, ~half):
                after = self(torch.where(moving[:, None], moved, params0))
                after = after.reshape(self.num_problems, -1)
                same = torch.isclose(before, after, rtol=1e-6, atol=0.0, equal_nan=True).all(1)
                mixed |= ~moving & ~same
        return [int(row) for row in mixed.nonzero()[:, 0]]
