"""Sums and other reductions over short dimensions, unrolled; products of small matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from torchimize.kernel.graph import Graph, Index, Node
from torchimize.kernel.lowerings.context import (
    MAX_UNROLLED,
    START,
    Arguments,
    Context,
    Indices,
    Keywords,
    Loader,
    Lowering,
    UntraceableError,
    argument,
    only,
    positions,
    wrapped,
)

MAX_SCANNED = 16
"""Most samples that a cumulative sum may run along."""

Fold = Callable[[Graph, list[Node]], Node]


def _folded(op: str) -> Fold:
    def fold(g: Graph, terms: list[Node]) -> Node:
        total = terms[0]
        for term in terms[1:]:
            total = g.apply(op, total, term)
        return total

    return fold


_sum_of, _largest_of = _folded("add"), _folded("maximum")


def _sum_of_numbers(g: Graph, terms: list[Node]) -> Node:
    zero = g.const(0.0)
    return _sum_of(g, [g.where(g.apply("isnan", term), zero, term) for term in terms])


def _mean_of(g: Graph, terms: list[Node]) -> Node:
    return g.scale(1 / len(terms), _sum_of(g, terms))


def _log_of_sum(g: Graph, terms: list[Node]) -> Node:
    largest = _largest_of(g, terms)
    shifted = [g.apply("exp", g.sub(term, largest)) for term in terms]
    return g.add(largest, g.apply("log", _sum_of(g, shifted)))


def _first_of(op: str) -> Fold:
    """The first of the largest or smallest, which alone has a slope."""

    def fold(g: Graph, terms: list[Node]) -> Node:
        best = terms[0]
        for term in terms[1:]:
            better = g.apply("or", g.apply(op, term, best), g.apply("isnan", term))
            best = g.where(better, term, best)
        return best

    return fold


class Reduction(NamedTuple):
    """Which elements belong to one element of the result."""

    gone: list[int]
    positions: list[tuple[int, ...]]
    keep: bool


def _reduction_of(shape: tuple[int, ...], dims: Any, ndim: int) -> Reduction:
    dims = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = sorted({wrapped(d, len(shape)) for d in dims} or set(range(len(shape))))
    count = math.prod(shape[d] for d in gone)
    # a sum over the problems fails where it reads another problem's parameters
    if not 0 < count <= MAX_UNROLLED:
        raise UntraceableError(f"a reduction over {count} elements")
    return Reduction(gone, positions(range(shape[d]) for d in gone), ndim == len(shape))


def _terms(t: Context, loader: Loader, ndim: int, over: Reduction, indices: Indices) -> list[Node]:
    rest = iter(indices)
    template = [next(rest) if over.keep or d not in over.gone else START for d in range(ndim)]
    terms = []
    for position in over.positions:
        for d, k in zip(over.gone, position, strict=True):
            template[d] = Index(k)
        try:
            terms.append(loader(tuple(template)))
        except UntraceableError as error:
            raise type(error)(
                f"a reduction over {len(over.positions)} elements: {error}"
            ) from error
    return terms


def _reduction(fold: Fold, truth: bool = False) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        shape = tuple(args[0].shape)
        over = _reduction_of(shape, argument(args, kwargs, 1, "dim", None), result.ndim)
        loader, convert = t.loader_of(args[0]), t.condition if truth else t.number

        def load(indices: Indices) -> Node:
            terms = _terms(t, loader, len(shape), over, indices)
            return fold(t.graph, [convert(term) for term in terms])

        return load

    return lower


def _extreme(op: str, plain: str) -> Lowering:
    """The largest or smallest, with its position where a dimension is named."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader | list[Loader]:
        if isinstance(result, Tensor):
            return _reduction(_folded(plain))(t, args, kwargs, result)
        values = only(_reduction(_first_of(op))(t, args, kwargs, result[0]))

        def position(indices: Indices) -> Node:
            raise UntraceableError(f"the position of a {plain}")

        return [values, position]

    return lower


def _norm(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    order = float(argument(args, kwargs, 1, "ord", 2.0))

    def fold(g: Graph, terms: list[Node]) -> Node:
        sizes = [g.apply("abs", term) for term in terms]
        if abs(order) == math.inf:
            return _folded("maximum" if order > 0 else "minimum")(g, sizes)
        if order == 1:
            return _sum_of(g, sizes)
        if order == 2:
            total, zero = _sum_of(g, [g.mul(term, term) for term in terms]), g.const(0.0)
            # flat at 0, where a root has no slope
            return g.where(g.apply("eq", total, zero), zero, g.apply("sqrt", total))
        powers = [g.apply("pow", size, g.const(order)) for size in sizes]
        return g.apply("pow", _sum_of(g, powers), g.const(1 / order))

    if order == 0:
        raise UntraceableError("aten.linalg_vector_norm of order 0")
    dims = argument(args, kwargs, 2, "dim", None)
    return only(_reduction(fold)(t, (args[0], dims), {}, result))


def _variance(root: bool) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        correction = kwargs.get("correction")
        free = 1.0 if correction is None else float(correction)

        def fold(g: Graph, terms: list[Node]) -> Node:
            mean = _mean_of(g, terms)
            distances = [g.sub(term, mean) for term in terms]
            total = _sum_of(g, [g.mul(d, d) for d in distances])
            variance = g.div(total, g.const(max(0.0, len(terms) - free)))
            return g.apply("sqrt", variance) if root else variance

        dims = argument(args, kwargs, 1, "dim", None)
        return only(_reduction(fold)(t, (args[0], dims), {}, result))

    return lower


def _softmax(logarithm: bool) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        shape = tuple(args[0].shape)
        over = _reduction_of(shape, args[1], len(shape))
        loader = t.loader_of(args[0])

        def load(indices: Indices) -> Node:
            g = t.graph
            terms = [t.number(n) for n in _terms(t, loader, len(shape), over, indices)]
            largest = _largest_of(g, terms)
            total = _sum_of(g, [g.apply("exp", g.sub(term, largest)) for term in terms])
            mine = g.sub(t.number(loader(indices)), largest)
            return (
                g.sub(mine, g.apply("log", total))
                if logarithm
                else g.div(g.apply("exp", mine), total)
            )

        return load

    return lower


def _scan(op: str) -> Lowering:
    """Sums or products of all elements up to each."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        dim = wrapped(argument(args, kwargs, 1, "dim", 0), result.ndim)
        loader, size, fold = t.loader_of(args[0]), result.shape[dim], _folded(op)

        def load(indices: Indices) -> Node:
            index = indices[dim]
            if index.sample and t.num_samples > 1 and size > MAX_SCANNED:
                raise UntraceableError(f"a cumulative sum over {size} elements")
            last = t.fixed(index)
            if last >= MAX_UNROLLED:
                raise UntraceableError(f"a cumulative sum over {size} elements")
            before, after = indices[:dim], indices[dim + 1 :]
            terms = [loader((*before, Index(k), *after)) for k in range(last + 1)]
            return fold(t.graph, [t.number(term) for term in terms])

        return load

    return lower


def _product_of(t: Context, a: Tensor, b: Tensor) -> Callable[[Indices, Indices, Indices], Node]:
    """Σ a[.., i, k] b[.., k, j] by the indices in front, those of i and those of j."""
    left, right, size = t.loader_of(a), t.loader_of(b), a.shape[-1]
    if not 0 < size <= MAX_UNROLLED:
        raise UntraceableError(f"a matrix product over {size} elements")

    def load(batch: Indices, row: Indices, column: Indices) -> Node:
        g, number = t.graph, t.number
        total: Node | None = None
        for k in range(size):
            index = Index(k)
            first = number(left((*batch, *row, index)))
            term = g.mul(first, number(right((*batch, index, *column))))
            total = term if total is None else g.add(total, term)
        assert total is not None
        return total

    return load


def _matmul(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    product = _product_of(t, args[0], args[1])
    if args[1].ndim == 1:
        return lambda indices: product((), indices, ())
    if args[1].ndim == 2:
        return lambda indices: product((), indices[:-1], indices[-1:])
    return lambda indices: product(indices[:-2], indices[-2:-1], indices[-1:])


def _add_matmul(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    beta, alpha = float(kwargs.get("beta", 1)), float(kwargs.get("alpha", 1))
    added, product = t.operand(args[0], result.shape), _matmul(t, args[1:3], {}, result)

    def load(indices: Indices) -> Node:
        g = t.graph
        term = g.scale(alpha, product(indices))
        # without a factor it is not even read, NaN or not
        return term if beta == 0 else g.add(g.scale(beta, t.number(added(indices))), term)

    return load


def _cross(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    a, b = t.operands(args[:2], result.shape)
    dim = wrapped(kwargs.get("dim", -1), result.ndim)

    def load(indices: Indices) -> Node:
        g, k = t.graph, t.fixed(indices[dim])

        def at(loader: Loader, place: int) -> Node:
            return t.number(loader((*indices[:dim], Index(place % 3), *indices[dim + 1 :])))

        first = g.mul(at(a, k + 1), at(b, k + 2))
        return g.sub(first, g.mul(at(a, k + 2), at(b, k + 1)))

    return load


REDUCTIONS: dict[str, Lowering] = {
    "sum": _reduction(_sum_of),
    "nansum": _reduction(_sum_of_numbers),
    "mean": _reduction(_mean_of),
    "prod": _reduction(_folded("mul")),
    "amax": _reduction(_largest_of),
    "amin": _reduction(_folded("minimum")),
    "max": _extreme("gt", "maximum"),
    "min": _extreme("lt", "minimum"),
    "any": _reduction(_folded("or"), truth=True),
    "all": _reduction(_folded("and"), truth=True),
    "logsumexp": _reduction(_log_of_sum),
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "var": _variance(root=False),
    "std": _variance(root=True),
    "_softmax": _softmax(logarithm=False),
    "_log_softmax": _softmax(logarithm=True),
    "cumsum": _scan("add"),
    "cumprod": _scan("mul"),
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "vdot": _matmul,
    "addmm": _add_matmul,
    "addmv": _add_matmul,
    "baddbmm": _add_matmul,
    "linalg_cross": _cross,
}
