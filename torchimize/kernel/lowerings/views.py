"""Views: operations that only rewrite indices, and share the memory of what they look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from torchimize.kernel.graph import Index
from torchimize.kernel.lowerings.context import (
    FAR,
    START,
    Arguments,
    Context,
    Indices,
    Keywords,
    UntraceableError,
    argument,
    broadcast,
    wrapped,
)


class View(NamedTuple):
    """How the indices of a view and of what it looks at belong together.

    ``forward`` goes from the view's indices to those of its base, ``inverse`` back, or to None
    where the view does not show an element; no inverse: elements are shown more than once.
    """

    forward: Callable[[Indices], Indices]
    inverse: Callable[[Indices], Indices | None] | None


ViewLowering = Callable[[Context, Arguments, Keywords, Any], View | list[View]]


def _same(indices: Indices) -> Indices:
    return indices


def _alias(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    return View(_same, _same)


def _view(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    if result.dtype != args[0].dtype:
        raise UntraceableError(f"memory read as {result.dtype}")
    old, new = tuple(args[0].shape), tuple(result.shape)
    return View(_reshaped(t, new, old), _reshaped(t, old, new))


def _reshaped(
    t: Context, new: tuple[int, ...], old: tuple[int, ...]
) -> Callable[[Indices], Indices]:
    """The map from indices of shape ``new`` to those of shape ``old``."""
    groups = _common_factors(new, old)

    def forward(indices: Indices) -> Indices:
        inner: list[Index] = []
        for (start, stop), sizes in groups:
            if stop - start == 1 and len(sizes) == 1:
                inner.append(indices[start])
                continue
            flat, stride = START, 1
            for k in reversed(range(start, stop)):
                flat = flat + (indices[k] if stride == 1 else indices[k] * stride)
                stride *= new[k]
            rest: list[Index] = []
            for size in reversed(sizes[1:]):
                flat, remainder = t.divmod(flat, size)
                rest.append(remainder)
            if sizes:
                rest.append(flat)
            inner += reversed(rest)
        return tuple(inner)

    return forward


def _common_factors(
    new: tuple[int, ...], old: tuple[int, ...]
) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
    """Runs of dimensions with the same product: (start and stop in ``new``, sizes in ``old``)."""
    if 0 in new:
        return [((0, len(new)), old)]
    groups: list[tuple[tuple[int, int], tuple[int, ...]]] = []
    i = j = 0
    while i < len(new) or j < len(old):
        first_i, first_j = i, j
        if i < len(new) and j < len(old):
            a, b = new[i], old[j]
            i, j = i + 1, j + 1
            while a != b:
                if a < b:
                    a, i = a * new[i], i + 1
                else:
                    b, j = b * old[j], j + 1
        elif i < len(new):
            i += 1
        else:
            j += 1
        groups.append(((first_i, i), old[first_j:j]))
    return groups


def _expand(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    return View(broadcast(args[0].shape, result.shape), None)


def _permute(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    ndim = args[0].ndim
    return _permuted([wrapped(d, ndim) for d in args[1]])


def _transpose(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    order = list(range(args[0].ndim))
    if len(order) > 1:
        a, b = (wrapped(d, len(order)) for d in (args[1:3] if len(args) > 2 else (0, 1)))
        order[a], order[b] = order[b], order[a]
    return _permuted(order)


def _permuted(order: list[int]) -> View:
    """A view whose dimension k is dimension ``order[k]`` of its base."""
    back = [order.index(d) for d in range(len(order))]
    return View(
        lambda indices: tuple([indices[k] for k in back]),
        lambda indices: tuple([indices[k] for k in order]),
    )


def _unsqueeze(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    dim = wrapped(args[1], result.ndim)
    return View(
        lambda indices: (*indices[:dim], *indices[dim + 1 :]),
        lambda indices: (*indices[:dim], START, *indices[dim:]),
    )


def _squeeze(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    shape = tuple(args[0].shape)
    dims = args[1] if len(args) > 1 else range(len(shape))
    dims = [dims] if isinstance(dims, int) else dims
    gone = {wrapped(d, len(shape)) for d in dims if not shape or shape[wrapped(d, len(shape))] == 1}
    kept = [d for d in range(len(shape)) if d not in gone]

    def forward(indices: Indices) -> Indices:
        rest = iter(indices)
        return tuple([START if d in gone else next(rest) for d in range(len(shape))])

    return View(forward, lambda indices: tuple([indices[d] for d in kept]))


def _select(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    dim = wrapped(args[1], args[0].ndim)
    return _selected(t, dim, int(args[2]) % args[0].shape[dim])


def _selected(t: Context, dim: int, position: int) -> View:
    index = Index(position)

    def inverse(indices: Indices) -> Indices | None:
        inside = t.is_inside(indices[dim], position, position + 1)
        return (*indices[:dim], *indices[dim + 1 :]) if inside else None

    return View(lambda indices: (*indices[:dim], index, *indices[dim:]), inverse)


def _unbind(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> list[View]:
    dim = wrapped(args[1] if len(args) > 1 else 0, args[0].ndim)
    return [_selected(t, dim, k) for k in range(len(result))]


def _slice(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    dim, start, _, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    dim = wrapped(dim, args[0].ndim)
    size = args[0].shape[dim]
    start = 0 if start is None else max(0, start + size if start < 0 else min(start, size))
    return _sliced(t, dim, start, step, result.shape[dim], size)


def _sliced(t: Context, dim: int, start: int, step: int, length: int, size: int) -> View:
    """Every ``step``-th of a dimension's elements, ``length`` of ``size``."""
    if length == size:
        return View(_same, _same)

    def forward(indices: Indices) -> Indices:
        index = indices[dim]
        moved = Index(index.offset * step + start, index.problem * step, index.sample * step)
        return (*indices[:dim], moved, *indices[dim + 1 :])

    def inverse(indices: Indices) -> Indices | None:
        index = indices[dim]
        if not t.is_inside(index, start, start + (length - 1) * step + 1):
            return None
        quotient, remainder = t.divmod(index + Index(-start), step)
        if t.fixed(remainder):
            return None
        return (*indices[:dim], quotient, *indices[dim + 1 :])

    return View(forward, inverse)


def _split(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> list[View]:
    dim = wrapped(argument(args, kwargs, 2, "dim", 0), args[0].ndim)
    start, views = 0, []
    for part in result:
        views.append(_sliced(t, dim, start, 1, part.shape[dim], args[0].shape[dim]))
        start += part.shape[dim]
    return views


def _diagonal(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    ndim = args[0].ndim
    offset, first, second = (list(args[1:]) + [0, 0, 1][len(args) - 1 :])[:3]
    first, second = wrapped(first, ndim), wrapped(second, ndim)

    def forward(indices: Indices) -> Indices:
        *others, along = indices
        rest = iter(others)
        moved = {
            first: along + Index(max(0, -offset)),
            second: along + Index(max(0, offset)),
        }
        return tuple([moved[d] if d in moved else next(rest) for d in range(ndim)])

    return View(forward, None)


def strided_view(t: Context, base: Tensor, view: Tensor) -> View:
    """What a view of a contiguous tensor shows, from where its elements lie."""
    start = int(view.storage_offset() - base.storage_offset())
    forward = _decoded(t, list(view.stride()), None, list(base.shape), list(base.stride()))
    back = _decoded(t, list(base.stride()), list(view.shape), list(view.shape), list(view.stride()))

    def moved(indices: Indices) -> Indices:
        inner = forward(indices, start)
        assert inner is not None, "a view lies in its base"
        return inner

    return View(moved, lambda indices: back(indices, -start))


def _decoded(
    t: Context,
    strides: list[int],
    limits: list[int] | None,
    sizes: list[int],
    wanted: list[int],
) -> Callable[[Indices, int], Indices | None]:
    """From indices with ``strides`` to the indices of the same place with strides ``wanted``."""
    order = sorted(range(len(wanted)), key=lambda d: -wanted[d])

    def place(indices: Indices, start: int) -> Indices | None:
        flat = Index(start)
        for index, stride in zip(indices, strides, strict=True):
            flat = flat + index * stride
        found = [START] * len(wanted)
        for d in order:
            if sizes[d] == 1:
                continue
            if flat.offset < 0 and not flat.problem:
                t.stay(flat, -FAR, 0)
                return None
            found[d], flat = t.divmod(flat, wanted[d]) if wanted[d] > 1 else (flat, START)
        if limits is not None:
            # what lies outside shows in the innermost dimension first
            if t.fixed(flat):
                return None
            if not all(t.is_inside(found[d], 0, limits[d]) for d in reversed(order)):
                return None
        return tuple(found)

    return place


VIEWS: dict[str, ViewLowering] = {
    "alias": _alias,
    "view": _view,
    "_unsafe_view": _view,
    "expand": _expand,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "select": _select,
    "slice": _slice,
    "unbind": _unbind,
    "split": _split,
    "split_with_sizes": _split,
    "diagonal": _diagonal,
}
"""Operations whose results share their operand's memory."""
