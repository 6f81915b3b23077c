"""What each torch operation means for single elements: the table of the tracer.

An operation is known by what it does to *loaders*, functions from an index to a scalar expression:
pointwise operations compose them, views only rewrite the index, sums over short dimensions unroll.
The idea is that of TorchInductor's lowering (Ansel et al. 2024, "PyTorch 2", section 4).

The index of the problems is symbolic, as is that of the samples; where an expression changes along
the samples (two tensors joined, a row shifted around), reading raises :class:`JointError`, and the
samples are read again in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimize import special_functions
from torchimize.kernel.graph import CONDITIONS, Graph, Index, Node
from torchimize.special_functions import airy, faddeeva

Indices = tuple[Index, ...]
Loader = Callable[[Indices], Node]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

MAX_UNROLLED = 64
"""Longest sum, and largest number of output dimensions besides the samples, that is unrolled."""

MAX_SCANNED = 16
"""Most samples that a cumulative sum may run along."""

PROBLEM_INDEX = Index(0, 1, 0)

START = Index()

FAR = 2**62
"""Further than any index goes."""


class UntraceableError(Exception):
    """The function has no graph; the message names what stood in the way."""


class DataError(UntraceableError):
    """What stood in the way has to do with data only, not with parameters."""


class JointError(Exception):
    """Samples have several expressions.

    Parameters
    ----------
    cut : int
        From this sample on the expression is another.
    period : int
        Or: samples this far apart share an expression. 0 where ``cut`` says it all.
    """

    def __init__(self, cut: int, period: int = 0) -> None:
        self.cut, self.period = cut, period


class Context:
    """The run that lowerings belong to.

    Parameters
    ----------
    graph : Graph
    num_problems : int
        Rows of the run.
    """

    def __init__(self, graph: Graph, num_problems: int) -> None:
        self.graph = graph
        self.num_problems = num_problems
        self.num_samples = 1
        """How many samples are being read."""
        self.zero, self.one = graph.const(0.0), graph.const(1.0)

    def loader_of(self, value: Any) -> Loader:
        """The loader of a tensor or number met in an operation."""
        raise NotImplementedError

    def is_data(self, value: Any) -> bool:
        """Whether a tensor or number is the same whatever the parameters, and its values are known.

        Data of the problems do not count: only some rows are there.
        """
        raise NotImplementedError

    def depends(self, value: Any) -> bool:
        """Whether a tensor is made of the parameters."""
        raise NotImplementedError

    def number(self, node: Node) -> Node:
        """A truth value as 0 or 1."""
        return self.graph.where(node, self.one, self.zero) if node.op in CONDITIONS else node

    def condition(self, node: Node) -> Node:
        """A number as a truth value."""
        return node if node.op in CONDITIONS else self.graph.apply("ne", node, self.zero)

    def operands(self, values: Iterable[Any], shape: Sequence[int]) -> list[Loader]:
        """Loaders of operands, each broadcast to the result's shape."""
        return [self.operand(value, shape) for value in values]

    def operand(self, value: Any, shape: Sequence[int]) -> Loader:
        """The loader of an operand, broadcast to the result's shape."""
        loader = self.loader_of(value)
        if not isinstance(value, Tensor):
            return loader
        own = value.shape
        if own == shape:
            return loader
        forward = _broadcast(own, shape)
        return lambda indices: loader(forward(indices))

    def stay(self, index: Index, start: int, end: int) -> None:
        """Raise where an index that begins in [start, end) leaves it along the samples."""
        step = index.sample
        if step == 0 or self.num_samples == 1:
            return
        if step > 0:
            inside = -(-(end - index.offset) // step)
        else:
            inside = (index.offset - start) // -step + 1
        if inside < self.num_samples:
            raise JointError(inside)

    def fixed(self, index: Index) -> int:
        """The one value that an index has; several samples are read one by one."""
        if index.problem:
            raise UntraceableError("problems are told apart by their number")
        self.stay(index, index.offset, index.offset + 1)
        return index.offset

    def divmod(self, index: Index, size: int) -> tuple[Index, Index]:
        """Quotient and remainder of an index."""
        problem, sample, offset = index.problem, index.sample, index.offset
        if problem == 1 and sample == 0 and size == self.num_problems and offset % size == 0:
            # the dimension of the problems itself
            return Index(offset // size), PROBLEM_INDEX
        if problem % size:
            raise UntraceableError("a view mixes problems and samples")
        quotient, remainder = divmod(offset, size)
        last = (offset + sample * (self.num_samples - 1)) // size
        problem //= size
        if last == quotient:
            return Index(quotient, problem), Index(remainder, 0, sample)
        if sample % size == 0:
            return Index(quotient, problem, sample // size), Index(remainder)
        period = size // math.gcd(sample, size)
        if period < abs(last - quotient) + 1:
            raise JointError(0, period)
        self.stay(index, quotient * size, (quotient + 1) * size)
        raise AssertionError("the samples leave the block that they begin in")


Lowering = Callable[[Context, Arguments, Keywords, Any], Loader | list[Loader]]
"""(context, arguments, keyword arguments, result) to the loaders of the results."""


def _of_one(loader: Loader | list[Loader]) -> Loader:
    assert callable(loader)
    return loader


def _argument(args: Arguments, kwargs: Keywords, place: int, name: str, default: Any) -> Any:
    """An argument by place or name; None counts as missing."""
    value = args[place] if len(args) > place else kwargs.get(name)
    return default if value is None else value


def _dim(dim: int, ndim: int) -> int:
    return dim % ndim if ndim else 0


def _product(ranges: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
    result: list[tuple[int, ...]] = [()]
    for r in ranges:
        result = [(*head, k) for head in result for k in r]
    return result


# ------------------------------------------------------------------------------------ pointwise


def _simple(op: str, count: int) -> Lowering:
    """A graph operation on the first ``count`` arguments, as numbers."""
    if count == 1:

        def lower_one(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
            apply, number, load = t.graph.apply, t.number, t.loader_of(args[0])
            return lambda indices: apply(op, number(load(indices)))

        return lower_one

    def lower_two(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        apply, number, shape = t.graph.apply, t.number, result.shape
        a, b = t.operand(args[0], shape), t.operand(args[1], shape)
        return lambda indices: apply(op, number(a(indices)), number(b(indices)))

    return lower_two


def _logical(op: str, count: int) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        if result.dtype != torch.bool:
            raise UntraceableError("bitwise operations on whole numbers")
        loaders = t.operands(args[:count], result.shape)
        return lambda indices: t.graph.apply(op, *(t.condition(load(indices)) for load in loaders))

    return lower


def _xor(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    both, either = (_of_one(_logical(op, 2)(t, args, kwargs, result)) for op in ("and", "or"))
    apply = t.graph.apply
    return lambda indices: apply("and", either(indices), apply("not", both(indices)))


def _expression(build: Callable[..., Node], count: int = 1) -> Lowering:
    """An operation on the first ``count`` arguments, as ``build(graph, *nodes)``."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        loaders = t.operands(args[:count], result.shape)
        return lambda indices: build(t.graph, *(t.number(load(indices)) for load in loaders))

    return lower


def _formula(build: Callable[..., Node], *options: tuple[str, Any]) -> Lowering:
    """An operation on one tensor with options, as ``build(graph, node, *options)``."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        load = t.loader_of(args[0])
        values = [
            _argument(args, kwargs, place, name, default)
            for place, (name, default) in enumerate(options, start=1)
        ]
        return lambda indices: build(t.graph, t.number(load(indices)), *values)

    return lower


def _with_alpha(op: str, reverse: bool = False) -> Lowering:
    plain = _simple(op, 2)

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader | list[Loader]:
        if len(args) == 2 and not kwargs and not reverse and result.dtype is not torch.bool:
            return plain(t, args, kwargs, result)
        a, b = t.operand(args[0], result.shape), t.operand(args[1], result.shape)
        alpha = _argument(args, kwargs, 2, "alpha", 1)
        apply, number, scale = t.graph.apply, t.number, t.graph.scale
        if result.dtype == torch.bool:
            # a sum of truth values is one of them
            return lambda indices: apply("or", t.condition(a(indices)), t.condition(b(indices)))

        def load(indices: Indices) -> Node:
            first, second = number(a(indices)), number(b(indices))
            if reverse:
                first, second = second, first
            if alpha != 1:
                second = scale(float(alpha), second)
            return apply(op, first, second)

        return load

    return lower


_quotient, _floor_quotient = _simple("div", 2), _simple("floor_divide", 2)


def _divide(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader | list[Loader]:
    mode = kwargs.get("rounding_mode") if kwargs else None
    if mode is None:
        return _quotient(t, args, kwargs, result)
    if mode == "floor":
        return _floor_quotient(t, args, kwargs, result)
    loader = _of_one(_quotient(t, args, kwargs, result))
    return lambda indices: t.graph.apply("trunc", loader(indices))


def _clamp(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    bounds = [_argument(args, kwargs, 1, "min", None), _argument(args, kwargs, 2, "max", None)]
    value = t.operand(args[0], result.shape)
    limits = [None if b is None else t.operand(b, result.shape) for b in bounds]

    def load(indices: Indices) -> Node:
        node = t.number(value(indices))
        # aten's clamp has slope 1 on the limit itself, where a maximum would share it
        for limit, op in zip(limits, ("lt", "gt"), strict=True):
            if limit is not None:
                bound = t.number(limit(indices))
                node = t.graph.where(t.graph.apply(op, node, bound), bound, node)
        return node

    return load


def _clamp_max(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    return _clamp(t, (args[0], None, args[1]), {}, result)


def _where(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    condition, a, b = t.operands(args[:3], result.shape)
    where, number = t.graph.where, t.number
    return lambda i: where(t.condition(condition(i)), number(a(i)), number(b(i)))


def _masked_fill(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    value, mask, fill = args[:3]
    return _where(t, (mask, fill, value), kwargs, result)


def _copy(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    return t.loader_of(args[0])


def _converted(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    loader = t.loader_of(args[0])
    if result.dtype == torch.bool:
        return lambda indices: t.condition(loader(indices))
    if not result.is_floating_point() and args[0].is_floating_point():
        raise UntraceableError(f"a conversion to {result.dtype}")
    return lambda indices: t.number(loader(indices))


def _constant(value: Callable[[Arguments], float]) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        return t.loader_of(float(value(args)))

    return lower


def _unwritten(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    def load(indices: Indices) -> Node:
        raise UntraceableError("memory is read that was never written")

    return load


def _round(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    if kwargs.get("decimals"):
        raise UntraceableError("aten.round to decimals")
    loader = t.loader_of(args[0])
    return lambda indices: t.graph.apply("round", t.number(loader(indices)))


def _add_scaled(op: str) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        loaders = t.operands(args[:3], result.shape)
        factor = float(kwargs.get("value", 1))

        def load(indices: Indices) -> Node:
            a, b, c = (t.number(loader(indices)) for loader in loaders)
            return t.graph.add(a, t.graph.scale(factor, t.graph.apply(op, b, c)))

        return load

    return lower


def _polygamma(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    order, value = (args[1], args[0]) if isinstance(args[0], Tensor) else args[:2]
    ops = ("digamma", "trigamma", *(f"polygamma{n}" for n in range(2, 5)))
    if order >= len(ops):
        raise UntraceableError(f"polygamma of order {order}")
    load = t.loader_of(value)
    return lambda indices: t.graph.apply(ops[order], t.number(load(indices)))


def _log_sigmoid(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> list[Loader]:
    load = t.loader_of(args[0])

    def value(indices: Indices) -> Node:
        g, a = t.graph, t.number(load(indices))
        tail = g.apply("log1p", g.apply("exp", g.neg(g.apply("abs", a))))
        return g.sub(g.apply("minimum", a, t.zero), tail)

    return [value, _unwritten(t, args, kwargs, result)]


# expressions ------------------------------------------------------------------------------------


def _reciprocal(g: Graph, a: Node) -> Node:
    return g.div(g.const(1.0), a)


def _square(g: Graph, a: Node) -> Node:
    return g.mul(a, a)


def _relu(g: Graph, a: Node) -> Node:
    # slope 0 at 0, where a maximum would share it; NaN stays
    zero = g.const(0.0)
    return g.where(g.apply("le", a, zero), zero, a)


def _times_log(log: str, least: float) -> Callable[[Graph, Node, Node], Node]:
    """The product a · log(b), 0 where a = 0 though the logarithm may be infinite."""

    def build(g: Graph, a: Node, b: Node) -> Node:
        nothing = g.apply("eq", a, g.const(0.0))
        outside = g.apply("and", nothing, g.apply("le", b, g.const(least)))
        inside = g.where(outside, g.const(least + 1), b)
        return g.mul(a, g.apply(log, inside))

    return build


def _entropy(g: Graph, a: Node) -> Node:
    zero = g.const(0.0)
    least = g.where(g.apply("lt", a, zero), g.const(-math.inf), zero)
    return g.where(g.apply("le", a, zero), least, g.neg(g.mul(a, g.apply("log", a))))


def _hypotenuse(g: Graph, a: Node, b: Node) -> Node:
    return g.apply("sqrt", g.add(g.mul(a, a), g.mul(b, b)))


def _add_exponentials(exp: str, scale: float) -> Callable[[Graph, Node, Node], Node]:
    """The logarithm of a sum of powers; ``scale`` is the base's 1/log."""

    def build(g: Graph, a: Node, b: Node) -> Node:
        smaller = g.apply(exp, g.neg(g.apply("abs", g.sub(a, b))))
        return g.add(g.apply("maximum", a, b), g.scale(scale, g.apply("log1p", smaller)))

    return build


def _sinc(g: Graph, a: Node) -> Node:
    zero, one = g.const(0.0), g.const(1.0)
    centre = g.apply("eq", a, zero)
    angle = g.scale(math.pi, g.where(centre, one, a))
    return g.where(centre, one, g.div(g.apply("sin", angle), angle))


def _heaviside(g: Graph, a: Node, values: Node) -> Node:
    zero, one = g.const(0.0), g.const(1.0)
    step = g.where(g.apply("gt", a, zero), one, zero)
    return g.where(g.apply("eq", a, zero), values, step)


def _lerp(g: Graph, a: Node, b: Node, weight: Node) -> Node:
    return g.add(a, g.mul(weight, g.sub(b, a)))


def _logit(g: Graph, a: Node, eps: float | None) -> Node:
    if eps is not None:
        for op, bound in (("lt", g.const(eps)), ("gt", g.const(1 - eps))):
            a = g.where(g.apply(op, a, bound), bound, a)
    return g.apply("log", g.div(a, g.sub(g.const(1.0), a)))


def _fractional(g: Graph, a: Node) -> Node:
    return g.sub(a, g.apply("trunc", a))


def _is_infinite(g: Graph, a: Node) -> Node:
    return g.apply("eq", g.apply("abs", a), g.const(math.inf))


def _without_nan(op: str) -> Callable[[Graph, Node, Node], Node]:
    def build(g: Graph, a: Node, b: Node) -> Node:
        larger = g.where(g.apply("isnan", a), b, g.apply(op, a, b))
        return g.where(g.apply("isnan", b), a, larger)

    return build


def _softplus(g: Graph, a: Node, beta: float, threshold: float) -> Node:
    scaled = g.scale(beta, a)
    soft = g.scale(1 / beta, g.apply("log1p", g.apply("exp", scaled)))
    return g.where(g.apply("gt", scaled, g.const(threshold)), a, soft)


def _gelu(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    load = t.loader_of(args[0])
    smooth = kwargs.get("approximate", "none") == "tanh"

    def value(indices: Indices) -> Node:
        g, a = t.graph, t.number(load(indices))
        if smooth:
            cube = g.scale(0.044715, g.mul(a, g.mul(a, a)))
            rise = g.apply("tanh", g.scale(math.sqrt(2 / math.pi), g.add(a, cube)))
        else:
            rise = g.apply("erf", g.scale(math.sqrt(0.5), a))
        return g.mul(g.scale(0.5, a), g.add(g.const(1.0), rise))

    return value


def _silu(g: Graph, a: Node) -> Node:
    return g.mul(a, g.apply("sigmoid", a))


def _elu(g: Graph, a: Node, alpha: float, scale: float, input_scale: float) -> Node:
    low = g.scale(alpha * scale, g.apply("expm1", g.scale(input_scale, a)))
    return g.where(g.apply("gt", a, g.const(0.0)), g.scale(scale, a), low)


def _celu(g: Graph, a: Node, alpha: float) -> Node:
    return _elu(g, a, alpha, 1.0, 1 / alpha)


def _mish(g: Graph, a: Node) -> Node:
    return g.mul(a, g.apply("tanh", _softplus(g, a, 1.0, 20.0)))


def _hardsigmoid(g: Graph, a: Node) -> Node:
    # slope 0 at both ends, as hardtanh's
    return g.scale(1 / 6, _hardtanh(g, g.add(a, g.const(3.0)), 0.0, 6.0))


def _is_negative(g: Graph, a: Node) -> Node:
    return g.apply("lt", g.apply("copysign", g.const(1.0), a), g.const(0.0))


def _leaky_relu(g: Graph, a: Node, slope: float) -> Node:
    return g.where(g.apply("gt", a, g.const(0.0)), a, g.scale(slope, a))


def _hardtanh(g: Graph, a: Node, low: float, high: float) -> Node:
    # slope 0 on the limits, unlike clamp
    for op, bound in (("le", g.const(low)), ("ge", g.const(high))):
        a = g.where(g.apply(op, a, bound), bound, a)
    return a


def _nan_to_num(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    load, limits = t.loader_of(args[0]), torch.finfo(result.dtype)
    nan = float(_argument(args, kwargs, 1, "nan", 0.0))
    highest = float(_argument(args, kwargs, 2, "posinf", limits.max))
    lowest = float(_argument(args, kwargs, 3, "neginf", limits.min))

    def value(indices: Indices) -> Node:
        g, a = t.graph, t.number(load(indices))
        node = g.where(g.apply("eq", a, g.const(math.inf)), g.const(highest), a)
        node = g.where(g.apply("eq", a, g.const(-math.inf)), g.const(lowest), node)
        return g.where(g.apply("isnan", a), g.const(nan), node)

    return value


# ---------------------------------------------------------------------------------------- views


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


def _broadcast(shape: Sequence[int], wanted: Sequence[int]) -> Callable[[Indices], Indices]:
    """The map from indices of the shape ``wanted`` to those of ``shape``."""
    skip = len(wanted) - len(shape)
    places = [
        None if size == 1 and wanted[skip + d] != 1 else skip + d for d, size in enumerate(shape)
    ]
    return lambda indices: tuple([START if d is None else indices[d] for d in places])


def _expand(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    return View(_broadcast(args[0].shape, result.shape), None)


def _permute(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    ndim = args[0].ndim
    return _permuted([_dim(d, ndim) for d in args[1]])


def _transpose(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    order = list(range(args[0].ndim))
    if len(order) > 1:
        a, b = (_dim(d, len(order)) for d in (args[1:3] if len(args) > 2 else (0, 1)))
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
    dim = _dim(args[1], result.ndim)
    return View(
        lambda indices: (*indices[:dim], *indices[dim + 1 :]),
        lambda indices: (*indices[:dim], START, *indices[dim:]),
    )


def _squeeze(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    shape = tuple(args[0].shape)
    dims = args[1] if len(args) > 1 else range(len(shape))
    dims = [dims] if isinstance(dims, int) else dims
    gone = {_dim(d, len(shape)) for d in dims if not shape or shape[_dim(d, len(shape))] == 1}
    kept = [d for d in range(len(shape)) if d not in gone]

    def forward(indices: Indices) -> Indices:
        rest = iter(indices)
        return tuple([START if d in gone else next(rest) for d in range(len(shape))])

    return View(forward, lambda indices: tuple([indices[d] for d in kept]))


def _select(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    dim = _dim(args[1], args[0].ndim)
    return _selected(t, dim, int(args[2]) % args[0].shape[dim])


def _selected(t: Context, dim: int, position: int) -> View:
    index = Index(position)

    def inverse(indices: Indices) -> Indices | None:
        inside = _is_inside(t, indices[dim], position, position + 1)
        return (*indices[:dim], *indices[dim + 1 :]) if inside else None

    return View(lambda indices: (*indices[:dim], index, *indices[dim:]), inverse)


def _is_inside(t: Context, index: Index, start: int, end: int) -> bool:
    """Whether an index is in [start, end), for all samples that are read."""
    if index.problem:
        if (index, start, end) == (PROBLEM_INDEX, 0, t.num_problems):
            return True
        raise UntraceableError("some of the problems are written to")
    if index.offset < start:
        t.stay(index, -FAR, start)
        return False
    if index.offset >= end:
        t.stay(index, end, FAR)
        return False
    t.stay(index, start, end)
    return True


def _unbind(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> list[View]:
    dim = _dim(args[1] if len(args) > 1 else 0, args[0].ndim)
    return [_selected(t, dim, k) for k in range(len(result))]


def _slice(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    dim, start, _, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    dim = _dim(dim, args[0].ndim)
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
        if not _is_inside(t, index, start, start + (length - 1) * step + 1):
            return None
        quotient, remainder = t.divmod(index + Index(-start), step)
        if t.fixed(remainder):
            return None
        return (*indices[:dim], quotient, *indices[dim + 1 :])

    return View(forward, inverse)


def _split(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> list[View]:
    dim = _dim(_argument(args, kwargs, 2, "dim", 0), args[0].ndim)
    start, views = 0, []
    for part in result:
        views.append(_sliced(t, dim, start, 1, part.shape[dim], args[0].shape[dim]))
        start += part.shape[dim]
    return views


def _diagonal(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> View:
    ndim = args[0].ndim
    offset, first, second = (list(args[1:]) + [0, 0, 1][len(args) - 1 :])[:3]
    first, second = _dim(first, ndim), _dim(second, ndim)

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
    start = view.storage_offset() - base.storage_offset()
    forward = _decoded(t, list(view.stride()), None, list(base.shape), list(base.stride()))
    back = _decoded(
        t, list(base.stride()), list(view.shape), list(view.shape), list(view.stride())
    )

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
            if not all(_is_inside(t, found[d], 0, limits[d]) for d in reversed(order)):
                return None
        return tuple(found)

    return place


# ------------------------------------------------------------------------- other tensors' elements


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
    dims = {_dim(d, result.ndim) for d in args[1]}
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
        (_dim(d, len(shape)), shift % shape[_dim(d, len(shape))])
        for d, shift in zip(dims, shifts, strict=True)
    ]

    def load(indices: Indices) -> Node:
        inner = list(indices)
        for d, wrapped in steps:
            if not wrapped:
                continue
            if _is_inside(t, inner[d], 0, wrapped):
                inner[d] = inner[d] + Index(shape[d] - wrapped)
            else:
                inner[d] = inner[d] + Index(-wrapped)
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
    outside = t.loader_of(_argument(args, kwargs, 2, "value", 0.0))
    befores = {len(shape) - 1 - k: before for k, before in enumerate(args[1][::2])}

    def load(indices: Indices) -> Node:
        inner = list(indices)
        for d, before in befores.items():
            if not _is_inside(t, inner[d], before, before + shape[d]):
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
    dim = _dim(_argument(args, kwargs, 1, "dim", 0), result.ndim)
    loaders = [t.loader_of(v) for v in args[0]]

    def load(indices: Indices) -> Node:
        return loaders[t.fixed(indices[dim])]((*indices[:dim], *indices[dim + 1 :]))

    return load


def _cat(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    dim = _dim(_argument(args, kwargs, 1, "dim", 0), result.ndim)
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
    dim = _dim(args[1], args[0].ndim)
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


# ----------------------------------------------------------------------------------- reductions

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
    gone = sorted({_dim(d, len(shape)) for d in dims} or set(range(len(shape))))
    count = math.prod(shape[d] for d in gone)
    # a sum over the problems fails where it reads another problem's parameters
    if not 0 < count <= MAX_UNROLLED:
        raise UntraceableError(f"a reduction over {count} elements")
    return Reduction(gone, _product(range(shape[d]) for d in gone), ndim == len(shape))


def _terms(
    t: Context, loader: Loader, ndim: int, over: Reduction, indices: Indices
) -> list[Node]:
    rest = iter(indices)
    template = [
        next(rest) if over.keep or d not in over.gone else START for d in range(ndim)
    ]
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
        over = _reduction_of(shape, _argument(args, kwargs, 1, "dim", None), result.ndim)
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
        values = _of_one(_reduction(_first_of(op))(t, args, kwargs, result[0]))

        def position(indices: Indices) -> Node:
            raise UntraceableError(f"the position of a {plain}")

        return [values, position]

    return lower


def _norm(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    order = float(_argument(args, kwargs, 1, "ord", 2.0))

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
    dims = _argument(args, kwargs, 2, "dim", None)
    return _of_one(_reduction(fold)(t, (args[0], dims), {}, result))


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

        dims = _argument(args, kwargs, 1, "dim", None)
        return _of_one(_reduction(fold)(t, (args[0], dims), {}, result))

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
            return g.sub(mine, g.apply("log", total)) if logarithm else g.div(
                g.apply("exp", mine), total
            )

        return load

    return lower


def _scan(op: str) -> Lowering:
    """Sums or products of all elements up to each."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        dim = _dim(_argument(args, kwargs, 1, "dim", 0), result.ndim)
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


def _product_of(
    t: Context, a: Tensor, b: Tensor
) -> Callable[[Indices, Indices, Indices], Node]:
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
    dim = _dim(kwargs.get("dim", -1), result.ndim)

    def load(indices: Indices) -> Node:
        g, k = t.graph, t.fixed(indices[dim])

        def at(loader: Loader, place: int) -> Node:
            return t.number(loader((*indices[:dim], Index(place % 3), *indices[dim + 1 :])))

        first = g.mul(at(a, k + 1), at(b, k + 2))
        return g.sub(first, g.mul(at(a, k + 2), at(b, k + 1)))

    return load


# ----------------------------------------------------------------------------------- the tables

UNARY = {
    **{name: name for name in (
        "neg", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "abs", "sin",
        "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
        "sigmoid", "erf", "erfc", "lgamma", "digamma", "i0", "erfinv", "sign", "floor", "ceil",
        "trunc", "isnan",
    )},
    "sgn": "sign", "special_erf": "erf", "special_erfc": "erfc", "special_expit": "sigmoid",
    "special_expm1": "expm1", "special_exp2": "exp2", "special_i0e": "i0e", "special_i1": "i1",
    "special_i1e": "i1e", "special_erfcx": "erfcx", "special_ndtri": "ndtri",
    "special_log_ndtr": "log_ndtr", "special_airy_ai": "airy_ai",
    "special_bessel_j0": "bessel_j0", "special_bessel_j1": "bessel_j1",
    "special_bessel_y0": "bessel_y0", "special_bessel_y1": "bessel_y1",
    "special_modified_bessel_i0": "i0", "special_modified_bessel_i1": "i1",
    "special_modified_bessel_k0": "bessel_k0", "special_modified_bessel_k1": "bessel_k1",
    "special_scaled_modified_bessel_k0": "scaled_bessel_k0",
    "special_scaled_modified_bessel_k1": "scaled_bessel_k1",
    "special_spherical_bessel_j0": "spherical_bessel_j0",
}  # fmt: skip
"""aten's names of functions of one number, and the graph's."""

BINARY = {
    **{name: name for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "atan2", "pow", "maximum", "minimum", "mul",
        "copysign", "fmod", "remainder", "floor_divide",
    )},
    "igamma": "gammainc", "igammac": "gammaincc", "special_zeta": "zeta",
}  # fmt: skip
"""The same for functions of two numbers."""

_ELEMENTWISE: dict[str, Lowering] = {
    **{name: _simple(op, 1) for name, op in UNARY.items()},
    **{name: _simple(op, 2) for name, op in BINARY.items()},
    "div": _divide,
    "add": _with_alpha("add"),
    "sub": _with_alpha("sub"),
    "rsub": _with_alpha("sub", reverse=True),
    "logical_and": _logical("and", 2),
    "logical_or": _logical("or", 2),
    "logical_not": _logical("not", 1),
    "logical_xor": _xor,
    "bitwise_and": _logical("and", 2),
    "bitwise_or": _logical("or", 2),
    "bitwise_xor": _xor,
    "bitwise_not": _logical("not", 1),
    "reciprocal": _expression(_reciprocal),
    "rsqrt": _expression(lambda g, a: _reciprocal(g, g.apply("sqrt", a))),
    "square": _expression(_square),
    "relu": _expression(_relu),
    "frac": _expression(_fractional),
    "deg2rad": _expression(lambda g, a: g.scale(math.pi / 180, a)),
    "rad2deg": _expression(lambda g, a: g.scale(180 / math.pi, a)),
    "isinf": _expression(_is_infinite),
    "isposinf": _expression(lambda g, a: g.apply("eq", a, g.const(math.inf))),
    "isneginf": _expression(lambda g, a: g.apply("eq", a, g.const(-math.inf))),
    "sinc": _expression(_sinc),
    "special_entr": _expression(_entropy),
    "silu": _expression(_silu),
    "mish": _expression(_mish),
    "hardsigmoid": _expression(_hardsigmoid),
    "signbit": _expression(_is_negative),
    "xlogy": _expression(_times_log("log", 0.0), 2),
    "special_xlog1py": _expression(_times_log("log1p", -1.0), 2),
    "hypot": _expression(_hypotenuse, 2),
    "logaddexp": _expression(_add_exponentials("exp", 1.0), 2),
    "logaddexp2": _expression(_add_exponentials("exp2", 1 / math.log(2.0)), 2),
    "heaviside": _expression(_heaviside, 2),
    "fmax": _expression(_without_nan("maximum"), 2),
    "fmin": _expression(_without_nan("minimum"), 2),
    "lerp": _expression(_lerp, 3),
    "logit": _formula(_logit, ("eps", None)),
    "softplus": _formula(_softplus, ("beta", 1.0), ("threshold", 20.0)),
    "elu": _formula(_elu, ("alpha", 1.0), ("scale", 1.0), ("input_scale", 1.0)),
    "celu": _formula(_celu, ("alpha", 1.0)),
    "leaky_relu": _formula(_leaky_relu, ("negative_slope", 0.01)),
    "hardtanh": _formula(_hardtanh, ("min_val", -1.0), ("max_val", 1.0)),
    "nan_to_num": _nan_to_num,
    "gelu": _gelu,
    "log_sigmoid_forward": _log_sigmoid,
    "polygamma": _polygamma,
    "round": _round,
    "addcmul": _add_scaled("mul"),
    "addcdiv": _add_scaled("div"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "where": _where,
    "masked_fill": _masked_fill,
}

LOWERINGS: dict[str, Lowering] = {
    **_ELEMENTWISE,
    "clone": _copy,
    "lift_fresh_copy": _copy,
    "_to_copy": _converted,
    "zeros_like": _constant(lambda args: 0.0),
    "ones_like": _constant(lambda args: 1.0),
    "full_like": _constant(lambda args: args[1]),
    "new_zeros": _constant(lambda args: 0.0),
    "new_ones": _constant(lambda args: 1.0),
    "new_full": _constant(lambda args: args[2]),
    "empty_like": _unwritten,
    "new_empty": _unwritten,
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
"""How each aten operation acts on loaders."""

ELEMENTWISE = frozenset(_ELEMENTWISE) - {"log_sigmoid_forward"}
"""Operations with one result, which has the broadcast shape of the operands."""

TRUTH_VALUED = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isposinf", "isneginf", "signbit"}
    | {"logical_and", "logical_or", "logical_not", "logical_xor"}
    | {"bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor"}
)
"""Elementwise operations whose results are truth values."""

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

IN_PLACE: dict[str, Lowering] = {
    "zero_": _constant(lambda args: 0.0),
    "fill_": lambda t, args, kwargs, result: t.operand(args[1], args[0].shape),
    "copy_": lambda t, args, kwargs, result: t.operand(args[1], args[0].shape),
}
"""Operations on the memory of their first operand that have no other form."""

UNIFORM: dict[str, Callable[[Arguments], float]] = {
    "zeros": lambda args: 0.0,
    "ones": lambda args: 1.0,
    "full": lambda args: args[1],
    "zeros_like": lambda args: 0.0,
    "ones_like": lambda args: 1.0,
    "full_like": lambda args: args[1],
    "new_zeros": lambda args: 0.0,
    "new_ones": lambda args: 1.0,
    "new_full": lambda args: args[2],
}
"""Operations that make tensors of one value."""

FUNCTIONS: dict[Any, str] = {
    special_functions.airy_ai: "airy_ai",
    airy.airy_ai_slope: "airy_ai_slope",
    special_functions.bessel_j0: "bessel_j0",
    special_functions.bessel_j1: "bessel_j1",
    special_functions.bessel_y0: "bessel_y0",
    special_functions.bessel_y1: "bessel_y1",
    special_functions.modified_bessel_i0: "i0",
    special_functions.modified_bessel_i1: "i1",
    special_functions.modified_bessel_k0: "bessel_k0",
    special_functions.modified_bessel_k1: "bessel_k1",
    special_functions.scaled_modified_bessel_k0: "scaled_bessel_k0",
    special_functions.scaled_modified_bessel_k1: "scaled_bessel_k1",
    special_functions.spherical_bessel_j0: "spherical_bessel_j0",
    special_functions.faddeeva_real: "faddeeva_real",
    special_functions.faddeeva_imag: "faddeeva_imag",
    special_functions.gammainc: "gammainc",
    special_functions.gammaincc: "gammaincc",
    special_functions.zeta: "zeta",
    special_functions.cube_root: "cube_root",
}
"""This package's functions that carry their own derivatives, and the graph's names of them."""
