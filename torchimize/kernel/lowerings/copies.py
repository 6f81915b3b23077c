"""Operations whose results hold elements of their operands at other places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimize.kernel.graph import Index, Node
from torchimize.kernel.lowerings.context import (
    START,
    Arguments,
    Context,
    DataError,
    Indices,
    JointError,
    Keywords,
    Loader,
    Lowering,
    UntraceableError,
    argument,
    wrapped,
)


def _reindexed(
    lower: Callable[[Context, Arguments, Keywords, Any], Callable[[Indices], Indices]],
) -> Lowering:
    """An operation that copies elements, by the map from the result's indices to the operand's."""

    def lowering(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        loader, forward = t.loader_of(args[0]), lower(t, args, kwargs, result)
        return lambda indices: loader(forward(indices))

    return lowering


def _flip(
    t: Context, args: Arguments, kwargs: Keywords, result: Any
) -> Callable[[Indices], Indices]:
    dims = {wrapped(d, result.ndim) for d in args[1]}
    ends = [Index(size - 1) for size in result.shape]
    return lambda indices: tuple(
        [ends[d] + index * -1 if d in dims else index for d, index in enumerate(indices)]
    )


def _roll(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    shifts, dims = args[1], args[2] if len(args) > 2 else ()
    if not dims:
        raise UntraceableError("aten.roll over several dimensions as one")
    loader, shape = t.loader_of(args[0]), result.shape
    steps = [
        (wrapped(d, len(shape)), shift % shape[wrapped(d, len(shape))])
        for d, shift in zip(dims, shifts, strict=True)
    ]

    def load(indices: Indices) -> Node:
        inner = list(indices)
        for d, moved in steps:
            if not moved:
                continue
            if t.is_inside(inner[d], 0, moved):
                inner[d] = inner[d] + Index(shape[d] - moved)
            else:
                inner[d] = inner[d] + Index(-moved)
        return loader(tuple(inner))

    return load


def _repeat(
    t: Context, args: Arguments, kwargs: Keywords, result: Any
) -> Callable[[Indices], Indices]:
    shape = tuple(args[0].shape)
    skip = result.ndim - len(shape)

    def forward(indices: Indices) -> Indices:
        inner = []
        for size, index, whole in zip(shape, indices[skip:], result.shape[skip:], strict=True):
            if size == 1:
                inner.append(START)
            else:
                inner.append(index if size == whole else t.divmod(index, size)[1])
        return tuple(inner)

    return forward


def _pad(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    loader, shape = t.loader_of(args[0]), tuple(args[0].shape)
    outside = t.loader_of(argument(args, kwargs, 2, "value", 0.0))
    befores = {len(shape) - 1 - k: before for k, before in enumerate(args[1][::2])}

    def load(indices: Indices) -> Node:
        inner = list(indices)
        for d, before in befores.items():
            if not t.is_inside(inner[d], before, before + shape[d]):
                return outside(())
            inner[d] = inner[d] + Index(-before)
        return loader(tuple(inner))

    return load


def _triangle(upper: bool) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        loader, diagonal = t.loader_of(args[0]), args[1] if len(args) > 1 else 0

        def load(indices: Indices) -> Node:
            i, j = (t.fixed(index) for index in indices[-2:])
            kept = j - i >= diagonal if upper else j - i <= diagonal
            return loader(indices) if kept else t.zero

        return load

    return lower


def _stack(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    dim = wrapped(argument(args, kwargs, 1, "dim", 0), result.ndim)
    loaders = [t.loader_of(v) for v in args[0]]

    def load(indices: Indices) -> Node:
        return loaders[t.fixed(indices[dim])]((*indices[:dim], *indices[dim + 1 :]))

    return load


def _cat(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    dim = wrapped(argument(args, kwargs, 1, "dim", 0), result.ndim)
    # torch passes over tensors of shape (0,) among others of any rank
    parts = [(t.loader_of(v), v.shape[dim]) for v in args[0] if v.ndim == result.ndim]

    def load(indices: Indices) -> Node:
        index = indices[dim]
        if index.problem:
            raise UntraceableError("a concatenation of problems")
        start = 0
        for loader, size in parts:
            if start <= index.offset < start + size:
                t.stay(index, start, start + size)
                moved = index if not start else index + Index(-start)
                return loader((*indices[:dim], moved, *indices[dim + 1 :]))
            start += size
        raise AssertionError("an index lies in the result")

    return load


def _index(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    chosen: list[Tensor | None] = []
    for which in args[1]:
        if which is None:
            chosen.append(None)
        elif not t.is_data(which):
            raise UntraceableError("aten.index by what depends on the problem")
        elif which.dtype == torch.bool:
            chosen += which.nonzero().unbind(1)
        else:
            chosen.append(which)
    dims = [d for d, which in enumerate(chosen) if which is not None]
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    tensors = torch.broadcast_tensors(*(which for which in chosen if which is not None))  # type: ignore[no-untyped-call]
    return _gathered(t, args[0], dims, tensors, dims[0] if adjacent else 0)


def _index_select(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    if not t.is_data(args[2]):
        raise UntraceableError("aten.index_select by what depends on the problem")
    dim = wrapped(args[1], args[0].ndim)
    return _gathered(t, args[0], [dim], [args[2].reshape(-1)], dim)


def _gathered(
    t: Context, source: Tensor, dims: list[int], chosen: Sequence[Tensor], place: int
) -> Loader:
    """Elements ``chosen`` along ``dims``; their indices stand at ``place`` in the result."""
    if not t.depends(source):
        # reading it element by element is slow; as a whole it is data like any other
        raise DataError("aten.index of data")
    loader, shape = t.loader_of(source), source.shape
    count = chosen[0].ndim
    tables = [
        (c.to("cpu") % shape[d]).contiguous().reshape(-1).tolist()
        for d, c in zip(dims, chosen, strict=True)
    ]
    strides = [math.prod(chosen[0].shape[k + 1 :]) for k in range(count)]

    def load(indices: Indices) -> Node:
        flat = START
        for index, stride in zip(indices[place : place + count], strides, strict=True):
            flat = flat + index * stride
        if flat.problem:
            raise UntraceableError("problems are told apart by their number")
        rest = iter((*indices[:place], *indices[place + count :]))
        inner = [START if d in dims else next(rest) for d in range(len(shape))]
        if t.sizes and flat.sample:
            raise JointError(0)
        samples = range(t.num_samples) if flat.sample else range(1)
        for d, table in zip(dims, tables, strict=True):
            inner[d] = _progression(t, [table[flat.offset + flat.sample * n] for n in samples])
        return loader(tuple(inner))

    return load


def _progression(t: Context, values: list[int]) -> Index:
    """An index that takes these values along the samples, as far as their steps are equal."""
    if len(values) == 1:
        return Index(values[0])
    step = values[1] - values[0]
    for n in range(2, len(values)):
        if values[n] - values[n - 1] != step:
            raise JointError(n if n > 2 else 1)
    return Index(values[0], 0, step)


COPIES: dict[str, Lowering] = {
    "stack": _stack,
    "cat": _cat,
    "flip": _reindexed(_flip),
    "roll": _roll,
    "repeat": _reindexed(_repeat),
    "constant_pad_nd": _pad,
    "tril": _triangle(upper=False),
    "triu": _triangle(upper=True),
    "index": _index,
    "index_select": _index_select,
}
