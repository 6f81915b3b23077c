"""Traces that are remembered: a loop over single fits traces its function once.

Tracing takes as long as a small fit. What was found for a function is kept as long as the function
itself lives, and used again where a later call has the same shapes and the trace, with that call's
data, still gives the function's values bit by bit: what a function closes over may change by
little. Formulas without conditions, extremes or saturation only: there a changed number may show
nowhere but where it matters. A few problems are compared; data of all problems that a function
closes over are therefore never remembered, unless there are no more than these.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torchimize.batch import BatchFunction
from torchimize.kernel.trace import UntraceableError
from torchimize.lsq.traced import FEW, TracedFunction, prove, trace_function

KEPT = 8
"""Traces of one function: of so many different shapes."""


class _Entry(NamedTuple):
    """A trace, and which of its sources the call itself supplied: positions, None for others."""

    traced: TracedFunction
    origins: list[int | None]

    def with_data(self, given: list[Tensor]) -> TracedFunction:
        """The trace with the data of another call."""
        sources = [
            old if origin is None else given[origin].detach()
            for old, origin in zip(self.traced.sources, self.origins, strict=True)
        ]
        return replace(self.traced, sources=sources)


_TRACES: WeakKeyDictionary[Callable[..., Any], OrderedDict[Hashable, _Entry]] = WeakKeyDictionary()


def traced_function(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedFunction:
    """:func:`~torchimize.lsq.traced.trace_function`, remembered.

    Raises
    ------
    UntraceableError
        The message says what stood in the way.
    """
    known = recalled(function, params0, lower, upper)
    if known is not None:
        return known
    traced = trace_function(function, params0, lower, upper)
    entries = _entries(function, params0)
    if entries is None or not traced.exact or not _is_analytic(traced):
        return traced
    given = _given(function)
    origins = [next((k for k, t in enumerate(given) if _same(t, s)), None) for s in traced.sources]
    if params0.shape[0] > FEW and any(origins[number] is None for number in traced.rowwise):
        # data of all problems, which a later proof on a few of them would not see
        return traced
    nothing = params0.new_empty(0)
    kept = [
        source if origin is None else nothing
        for source, origin in zip(traced.sources, origins, strict=True)
    ]
    entries[_signature(params0, given)] = _Entry(replace(traced, sources=kept), origins)
    while len(entries) > KEPT:
        entries.popitem(last=False)
    return traced


def recalled(
    function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> TracedFunction | None:
    """What is remembered of a function, if it is still true; None where nothing is."""
    entries = _entries(function, params0)
    if not entries:
        return None
    given = _given(function)
    signature = _signature(params0, given)
    entry = entries.get(signature)
    if entry is None:
        return None
    traced = entry.with_data(given)
    try:
        exact = _prove(traced, function, params0, lower, upper)
    except UntraceableError:
        exact = False
    if not exact:
        # what it closes over has changed
        entries.pop(signature, None)
        return None
    return traced


ANALYTIC = frozenset(
    {"const", "param", "load", "add", "sub", "mul", "div", "neg", "pow", "sqrt", "exp", "exp2"}
    | {"expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "atan"}
)
"""Operations of which every number has its say in every value, bit by bit. A limit that is not met
where two functions are compared has none: conditions, extremes, and what saturates."""


def _is_analytic(traced: TracedFunction) -> bool:
    """Whether values at one point tell whether a function is still the same."""
    return all(node.op in ANALYTIC for node in traced.trace.order)


def _prove(
    traced: TracedFunction, function: BatchFunction, params0: Tensor, lower: Tensor, upper: Tensor
) -> bool:
    """Whether a trace gives the function's values bit by bit, on a few problems."""
    if params0.shape[0] <= FEW:
        return prove(
            traced.trace,
            traced.sources,
            lambda params: function.call(params, function.args, function.kwargs),
            params0,
            lower,
            upper,
        )
    rows = torch.arange(FEW, device=params0.device)
    return prove(
        traced.trace,
        traced.sources_of(rows),
        lambda params: function(params, rows),
        params0[:FEW],
        lower[:FEW],
        upper[:FEW],
    )


def _entries(function: BatchFunction, params0: Tensor) -> OrderedDict[Hashable, _Entry] | None:
    """The traces of a function; None where nothing is remembered of such a call."""
    if function.origin is None or not params0.shape[0] or not function.any_rows:
        return None
    try:
        return _TRACES.setdefault(function.origin, OrderedDict())
    except TypeError:  # neither hashable nor weakly referenced
        return None


def _given(function: BatchFunction) -> list[Tensor]:
    """The tensors that a call hands to the function."""
    values = (*function.args, *function.kwargs.values(), *function.given)
    return [value for value in values if isinstance(value, Tensor)]


def _signature(params0: Tensor, given: list[Tensor]) -> Hashable:
    tensors = tuple((t.shape, t.dtype, t.device) for t in given)
    return params0.shape, params0.dtype, params0.device, tensors


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same part of the same memory."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )
