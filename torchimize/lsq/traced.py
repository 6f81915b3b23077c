"""The derivative of a traced function: one graph for all columns, zeros never computed.

Where a function can be traced, its Jacobian comes from the graph of its derivatives, run as plain
torch operations. Forward mode computes P full passes, most of them zeros where each parameter
enters one term of a sum; the graph holds every expression once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchimize.batch import BatchFunction, take_rows
from torchimize.kernel.derivative import forward
from torchimize.kernel.graph import Node
from torchimize.kernel.torch_ops import Program, fill, row_sources
from torchimize.kernel.trace import Trace, UntraceableError, trace
from torchimize.lsq.jacobian import Function


class TracedDerivative:
    """Value and columns of a traced function.

    Parameters
    ----------
    found : Trace
    rowwise : dict of int to Tensor (B, ...)
        The sources that belong to the problems, by number, with all their rows.
    """

    name = "traced"

    def __init__(self, found: Trace, rowwise: dict[int, Tensor]) -> None:
        self.found = found
        self.rowwise = rowwise
        lengths = sorted({piece.length for piece in found.pieces})
        self.runs = [_Run(found, length) for length in lengths]

    def __call__(
        self, function: Function, params: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Value (A, M) and columns (A, P, M); ``function`` is not called."""
        found = self.found
        batch, num_params = params.shape
        sources = list(found.sources)
        for number, tensor in self.rowwise.items():
            sources[number] = tensor if rows is None else tensor.index_select(0, rows)
        value = params.new_empty(batch, *found.trailing)
        columns = params.new_empty(batch, num_params, *found.trailing)
        for run in self.runs:
            run.fill(params, sources, value, columns)
        return value.reshape(batch, -1), columns.reshape(batch, num_params, -1)


class _Run:
    """All pieces of one length, computed together."""

    def __init__(self, found: Trace, length: int) -> None:
        self.found, self.length = found, length
        self.pieces = [k for k, piece in enumerate(found.pieces) if piece.length == length]
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

    def fill(self, params: Tensor, sources: list[Tensor], value: Tensor, columns: Tensor) -> None:
        outputs = self.program.run(params, sources, self.length)
        for place, picks in enumerate(self.picks):
            target = value if place == 0 else columns[:, place - 1]
            taken = [None if k is None else outputs[k] for k in picks]
            fill(target, self.found, self.pieces, taken)


def trace_derivative(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedDerivative | None:
    """Trace a function and prove the trace on other parameters; None where that fails.

    The trace counts only if it gives the function's values at the start and away from it: numbers
    that left torch and branches on values are frozen in it silently otherwise.

    Parameters
    ----------
    function : BatchFunction
    params0, lower, upper : Tensor (B, P)
    """
    batch = params0.shape[0]
    rows = None
    if function.any_rows and batch > 3:
        rows = torch.arange(3, device=params0.device)
    start, low, high = (
        v if rows is None else v.index_select(0, rows) for v in (params0, lower, upper)
    )
    args = [take_rows(value, rows, batch) for value in function.args]
    kwargs = {key: take_rows(value, rows, batch) for key, value in function.kwargs.items()}
    full = [*function.args, *function.kwargs.values()]
    mine = [
        (whole, few)
        for whole, few in zip(full, [*args, *kwargs.values()], strict=True)
        if isinstance(whole, Tensor) and belongs(whole, function)
    ]
    try:
        found = trace(lambda p: function.call(p, args, kwargs), start, [few for _, few in mine])
        rowwise = {}
        for number in row_sources(found):
            if number < len(mine):
                rowwise[number] = mine[number][0].detach()
            elif rows is None:
                rowwise[number] = found.sources[number]
            else:
                raise UntraceableError("data made for the rows of one call")
        derivative = TracedDerivative(found, rowwise)
        # unequal steps, so that differences of parameters change too
        uneven = 1 + torch.arange(start.shape[1], dtype=start.dtype, device=start.device)
        step = (0.01 * start.abs() + 0.01) * (1 + uneven / start.shape[1])
        ahead = torch.minimum(start + step, high)
        moved = torch.where(ahead > start, ahead, torch.maximum(start - step, low))
        for params in (start, moved):
            value, _ = derivative(function, params, rows)
            wanted = function.call(params, args, kwargs).detach().reshape(value.shape)
            if not equal_rows(value, wanted):
                return None
    except Exception:
        # whatever a function trips over while it is watched, it will be asked again unwatched
        return None
    return derivative


def equal_rows(value: Tensor, wanted: Tensor) -> bool:
    """Whether two results (A, M) agree to rounding, each row by its own size."""
    size = torch.where(wanted.isfinite(), wanted.abs(), 0.0).amax(-1, keepdim=True)
    close = (value - wanted).abs() <= 1e3 * torch.finfo(wanted.dtype).eps * size
    same = (value == wanted) | (value.isnan() & wanted.isnan())
    return bool((close | same).all())


def belongs(value: Tensor, function: BatchFunction) -> bool:
    """Whether an argument holds one row per problem."""
    return not function.single and value.ndim >= 2 and value.shape[0] == function.num_problems
