"""The user's function as a traced graph, proved, and its derivative by plain torch operations.

Where a function can be traced, its Jacobian comes from the graph of its derivatives. Forward mode
computes P full passes, most of them zeros where each parameter enters one term of a sum; the graph
holds every expression once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from torchimize.batch import BatchFunction, belongs_to_problems
from torchimize.kernel.derivative import UnknownDerivativeError, forward
from torchimize.kernel.graph import Node, reachable
from torchimize.kernel.lowerings.context import DataError, UntraceableError
from torchimize.kernel.torch_ops import Program, evaluate, fill, row_sources
from torchimize.kernel.trace import Trace, trace
from torchimize.lsq.jacobian import Function

FEW = 3
"""Problems that a function is traced on where it can be called on any."""


@dataclass(slots=True)
class TracedFunction:
    """A trace that gives the function's values, whichever the parameters.

    Attributes
    ----------
    trace : Trace
    sources : list of Tensor
        What the trace's loads read; those of the problems with all their rows.
    rowwise : dict of int to int
        The sources that belong to the problems, by number, and which dimension is the problems'.
    exact : bool
        Run by torch, it gives the function's values bit by bit.
    kept : dict
        What an engine has made of the trace, for its next use.
    """

    trace: Trace
    sources: list[Tensor]
    rowwise: dict[int, int]
    exact: bool = False
    kept: dict[str, Any] = field(default_factory=dict)

    def sources_of(self, rows: Tensor | None) -> list[Tensor]:
        """The sources with some of the problems, or all."""
        if rows is None or not self.rowwise:
            return self.sources
        sources = list(self.sources)
        for number, dim in self.rowwise.items():
            sources[number] = sources[number].index_select(dim, rows)
        return sources


def trace_function(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedFunction:
    """Trace a function and prove the trace on other parameters.

    The trace counts only if it gives the function's values away from where it was made: numbers
    that left torch and branches on values are frozen in it silently otherwise.

    A function that can be called on any rows is run on a few. One that closes over data of all
    problems is run on all of them, but what depends on the parameters is not computed; so is one
    that prepares its data in ways that no graph can have, such as a sum over all samples.

    Parameters
    ----------
    function : BatchFunction
        Probed.
    params0, lower, upper : Tensor (B, P)

    Returns
    -------
    TracedFunction

    Raises
    ------
    UntraceableError
        The message says what stood in the way.
    """
    if not params0.shape[0]:
        raise UntraceableError("there are no problems")
    try:
        if function.any_rows and params0.shape[0] > FEW:
            try:
                return _traced_on_few(function, params0, lower, upper)
            except DataError:
                pass
        return _traced_on_all(function, params0, lower, upper)
    except UntraceableError:
        raise
    except Exception as error:
        # whatever a function trips over while it is watched, it will be asked again unwatched
        raise UntraceableError(
            f"{type(error).__name__} while the function was traced: {error}"
        ) from error


def _traced_on_few(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedFunction:
    """Trace a function that can be called on any rows on the first of them."""
    batch = params0.shape[0]
    mine: list[tuple[Tensor, Tensor]] = []

    def few(value: Any) -> Any:
        if not belongs_to_problems(value, batch):
            return value
        mine.append((value, value[:FEW]))
        return mine[-1][1]

    args = [few(value) for value in function.args]
    kwargs = {key: few(value) for key, value in function.kwargs.items()}

    def call(params: Tensor) -> Tensor:
        return function.call(params, args, kwargs)

    start = params0[:FEW]
    found = trace(call, start, [part for _, part in mine])
    rowwise = row_sources(found)
    origins = {number: found.derived.get(number, (number, _itself)) for number in rowwise}
    if any(number >= len(mine) for number, _ in origins.values()):
        raise UntraceableError("data are made for the rows of one call")
    exact = prove(found, found.sources, call, start, lower[:FEW], upper[:FEW])
    sources = list(found.sources)
    for number, (origin, reshaped) in origins.items():
        sources[number] = reshaped(mine[origin][0].detach())
    return TracedFunction(found, sources, rowwise, exact)


def _itself(source: Tensor) -> Tensor:
    return source


def _traced_on_all(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedFunction:
    """Trace a function on all rows."""

    def call(params: Tensor) -> Tensor:
        return function.call(params, function.args, function.kwargs)

    batch = params0.shape[0]
    found = trace(call, params0, virtual=batch > FEW)
    traced = TracedFunction(found, found.sources, row_sources(found))
    if batch <= FEW:
        traced.exact = prove(found, found.sources, call, params0, lower, upper)
        return traced
    rows = torch.tensor([0, 1, batch // 2, batch - 1], device=params0.device)
    sources = traced.sources_of(rows)
    if function.any_rows:
        few = (value.index_select(0, rows) for value in (params0, lower, upper))
        prove(found, sources, lambda params: function(params, rows), *few)
    else:
        prove(found, sources, call, params0, lower, upper, rows)
    return traced


def prove(
    found: Trace,
    sources: Sequence[Tensor],
    call: Callable[[Tensor], Tensor],
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    rows: Tensor | None = None,
) -> bool:
    """Raise where a trace does not give a function's values.

    Parameters
    ----------
    found : Trace
    sources : sequence of Tensor
        With the rows that are compared.
    call : callable
        The function, for all rows of ``start``.
    start, lower, upper : Tensor (A, P)
    rows : Tensor of int64, or None
        Which rows are compared.

    Returns
    -------
    bool
        Whether the values are the same bit by bit.
    """
    # a point where nothing is finite proves nothing, so another one is looked at
    for params in (_moved(start, lower, upper), start):
        wanted = call(params).detach()
        chosen = params
        if rows is not None:
            wanted, chosen = wanted.index_select(0, rows), params.index_select(0, rows)
        value = _values(found, chosen, sources).reshape(chosen.shape[0], -1)
        wanted = wanted.reshape(value.shape)
        equal, finite = equal_rows(value, wanted)
        if not equal:
            raise UntraceableError(
                "its trace gives other values than the function: values decide what it computes, "
                "or it is not the same at each call"
            )
        exact = torch.equal(value, wanted)
        if finite:
            break
    return exact


def _values(found: Trace, params: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """The values of a traced function, (A, *layout)."""
    runs = _runs(found)
    value = params.new_empty(params.shape[0], *found.layout)
    for length, pieces in runs:
        nodes = [found.pieces[k].node for k in pieces]
        order = found.order if len(runs) == 1 else reachable(nodes)
        fill(value, found, pieces, evaluate(order, nodes, params, sources, length))
    return value


@lru_cache(maxsize=64)
def _uneven(num_params: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A hundredth, one to two times, another one for each parameter."""
    return 0.01 * (1 + torch.arange(1, num_params + 1, dtype=dtype, device=device) / num_params)


def _moved(start: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Other parameters inside the box; differences and ratios of parameters change too."""
    step = (start.abs() + 1) * _uneven(start.shape[1], start.dtype, start.device)
    ahead = torch.minimum(start + step, upper)
    return torch.where(ahead > start, ahead, torch.maximum(start - step, lower))


def equal_rows(value: Tensor, wanted: Tensor) -> tuple[bool, bool]:
    """Whether two results (A, M) agree to rounding, each row by its own size, and are finite."""
    tolerance = 1e3 * torch.finfo(wanted.dtype).eps
    error, size = (value - wanted).abs(), wanted.abs()
    if float((tolerance * size.amax(-1) - error.amax(-1)).min()) >= 0:
        return True, True
    # NaN and infinities, if not a difference, come here
    finite = wanted.isfinite()
    size = torch.where(finite, size, 0.0).amax(-1, keepdim=True)
    same = (value == wanted) | (value.isnan() & wanted.isnan())
    return bool(((error <= tolerance * size) | same).all()), bool(finite.all())


def _runs(found: Trace) -> list[tuple[int, list[int]]]:
    """The pieces of each length."""
    runs: dict[int, list[int]] = {}
    for number, piece in enumerate(found.pieces):
        runs.setdefault(piece.length, []).append(number)
    return sorted(runs.items())


class TracedDerivative:
    """Value and columns of a traced function.

    Parameters
    ----------
    traced : TracedFunction

    Raises
    ------
    UnknownDerivativeError, UntraceableError
        Where an operation has no derivative, or no torch form.
    """

    name = "traced"

    def __init__(self, traced: TracedFunction) -> None:
        self.traced = traced
        self.runs = [_Run(traced.trace, *run) for run in _runs(traced.trace)]

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Value (A, M) and columns (A, P, M); ``function`` is not called."""
        layout = self.traced.trace.layout
        batch, num_params = params.shape
        sources = self.traced.sources_of(rows)
        value = params.new_empty(batch, *layout)
        columns = params.new_empty(batch, num_params, *layout)
        for run in self.runs:
            run.fill(params, sources, value, columns)
        return value.reshape(batch, -1), columns.reshape(batch, num_params, -1)


class _Run:
    """All pieces of one length, computed together."""

    def __init__(self, found: Trace, length: int, pieces: list[int]) -> None:
        self.found, self.length, self.pieces = found, length, pieces
        outputs: list[Node] = []
        # for the value and each column: which output each piece takes, None for zero
        self.picks: list[list[int | None]] = [[] for _ in range(found.num_params + 1)]
        for k in self.pieces:
            node = found.pieces[k].node
            for place, column in enumerate([node, *forward(found.graph, node, found.num_params)]):
                self.picks[place].append(None if column is None else len(outputs))
                if column is not None:
                    outputs.append(column)
        self.program = Program(outputs)

    def fill(
        self, params: Tensor, sources: Sequence[Tensor], value: Tensor, columns: Tensor
    ) -> None:
        outputs = self.program.run(params, sources, self.length)
        for place, picks in enumerate(self.picks):
            target = value if place == 0 else columns[:, place - 1]
            taken = [None if k is None else outputs[k] for k in picks]
            fill(target, self.found, self.pieces, taken)


def trace_derivative(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedDerivative | None:
    """Trace a function for its derivative; None where that fails.

    :func:`trace_function` and :class:`TracedDerivative` say why.

    Parameters
    ----------
    function : BatchFunction
    params0, lower, upper : Tensor (B, P)
    """
    try:
        return TracedDerivative(trace_function(function, params0, lower, upper))
    except (UntraceableError, UnknownDerivativeError):
        return None
