"""From a torch function to a graph: run it once on a few rows and watch every operation.

Each tensor of the run is known by a *loader*, a function from an index to a scalar expression.
Pointwise operations compose loaders, views only rewrite the index, so nothing is ever stored. The
idea of loaders is that of TorchInductor's lowering (Ansel et al. 2024, "PyTorch 2", section 4).

The index of the problems is symbolic (``b``), as is that of the longest dimension of the output
(``n``); all other dimensions are short and unrolled. What cannot be written so (a reduction over
the samples, a gather by a computed index, an in-place write into a view) makes the function
untraceable, and says which operation stood in the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchimize.kernel.derivative import SUPPORTED_CONSTANT
from torchimize.kernel.graph import Graph, Index, Node, reachable

Indices = tuple[Index, ...]
Loader = Callable[[Indices], Node]

MAX_UNROLLED = 64
"""Longest sum, and largest number of output dimensions besides the samples, that is unrolled."""

PROBLEM_INDEX = Index(0, 1, 0)


class UntraceableError(Exception):
    """The function has no graph; the message names what stood in the way."""


class _BoundaryError(Exception):
    """An index runs over the joint of two concatenated tensors."""

    def __init__(self, sample: int) -> None:
        self.sample = sample


@dataclass(frozen=True)
class Piece:
    """A run of samples of the output with one expression.

    Attributes
    ----------
    position : tuple of int
        Where it stands in the output's unrolled dimensions.
    start, length : int
        Samples along the output's longest dimension; n counts from 0 within the piece.
    node : Node
    """

    position: tuple[int, ...]
    start: int
    length: int
    node: Node


@dataclass
class Trace:
    """What a function computes.

    Attributes
    ----------
    graph : Graph
    pieces : list of Piece
        They cover the output.
    sources : list of Tensor
        Tensors that 'load' nodes read, by number: arguments and what the function closes over.
    trailing : tuple of int
        Shape of the output without the batch dimension.
    sample_dim : int
        Which of ``trailing`` is the samples'.
    num_params : int
    """

    graph: Graph
    pieces: list[Piece]
    sources: list[Tensor]
    trailing: tuple[int, ...]
    sample_dim: int
    num_params: int


def trace(
    function: Callable[[Tensor], Tensor], params: Tensor, arguments: Sequence[Tensor] = ()
) -> Trace:
    """Trace a function of the parameters.

    Parameters
    ----------
    function : callable
        (A, P) to (A, ...); row a depends on ``params[a]`` alone.
    params : Tensor (A, P)
        Rows to run it on. The trace of one row serves one row only, that of more any number.
    arguments : sequence of Tensor
        What the function reads that belongs to the problems, A rows each; they become the first
        sources. Everything else that it meets counts as the same for all calls.

    Returns
    -------
    Trace

    Raises
    ------
    UntraceableError
        Where an operation has no lowering.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0, 1, 5)
    >>> found = trace(lambda p: p[:, :1] * torch.exp(-p[:, 1:] * x), torch.ones(2, 2))
    >>> found.trailing, len(found.sources), found.pieces[0].node.op
    ((5,), 1, 'mul')
    """
    # a fresh tensor, so that its identity stands for the parameters and nothing else
    params = params.detach().clone()
    tracer = _Tracer(params, arguments)
    # switched on so that where the function switches it off can be seen
    with tracer, _Guard(tracer), torch.enable_grad():
        output = function(params)
    if not isinstance(output, Tensor):
        raise UntraceableError(f"the function returns {type(output).__name__}, not a tensor")
    if not output.numel():
        raise UntraceableError("the function returns nothing: its output has no elements")
    try:
        return _read(tracer, output)
    except RecursionError:
        raise UntraceableError("too many operations on top of each other") from None


def _read(tracer: _Tracer, output: Tensor) -> Trace:
    """The expressions of the output, piece by piece."""
    trailing = tuple(output.shape[1:])
    loader = tracer.loader_of(output)
    sample_dim = max(range(len(trailing)), key=lambda d: trailing[d], default=0)
    others = [range(1) if d == sample_dim else range(size) for d, size in enumerate(trailing)]
    if math.prod(len(r) for r in others) > MAX_UNROLLED:
        raise UntraceableError(f"the output has shape {trailing}: too many short dimensions")
    # of a single problem there is only row 0, wherever a view may put its dimension
    problem = PROBLEM_INDEX if tracer.params.shape[0] > 1 else Index()
    pieces: list[Piece] = []
    for position in _product(others):
        length = trailing[sample_dim] if trailing else 1
        waiting = [(0, length)]
        while waiting:
            start, count = waiting.pop()
            samples = Index(start, 0, 1 if count > 1 else 0)
            indices = tuple(
                samples if d == sample_dim else Index(k) for d, k in enumerate(position)
            )
            tracer.num_samples = count
            try:
                node = loader((problem, *indices))
            except _BoundaryError as boundary:
                cut = boundary.sample
                waiting += [(start + cut, count - cut), (start, cut)]
                continue
            pieces.append(Piece(position, start, count, tracer.as_number(node)))
    num_params = tracer.params.shape[1]
    return Trace(tracer.graph, pieces, tracer.sources, trailing, sample_dim, num_params)


def _product(ranges: Sequence[range]) -> list[tuple[int, ...]]:
    result: list[tuple[int, ...]] = [()]
    for r in ranges:
        result = [(*head, k) for head in result for k in r]
    return result


@dataclass
class _Known:
    """A tensor of the run; kept alive so that its identity is not reused."""

    tensor: Tensor
    loader: Loader
    viewed: bool = False
    """Whether it is a view or has views."""
    origin: Tensor | None = None
    """What it was detached from."""


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of one run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled, and torch's way of saying so imports its compiler."""
        return False

    def __init__(self, params: Tensor, arguments: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.sources: list[Tensor] = []
        self.num_samples = 1
        self._known: dict[int, _Known] = {id(params): _Known(params, self._load_param)}
        self.params = params
        self._source_numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []
        """Tensors whose identity must not be reused."""
        for argument in arguments:
            if id(argument) in self._source_numbers:
                # the same tensor twice: the second takes a number all the same
                self.sources.append(argument.detach())
            else:
                self._known[id(argument)] = _Known(argument, self._source(argument))

    def _load_param(self, indices: Indices) -> Node:
        *batch, which = indices
        if which.problem or which.sample:
            raise UntraceableError("parameters are indexed by the sample")
        if batch and batch[0] != PROBLEM_INDEX and self.params.shape[0] != 1:
            raise UntraceableError("the parameters of one problem are used for another")
        return self.graph.param(which.offset)

    def loader_of(self, value: Any) -> Loader:
        """The loader of a tensor or number met in an operation."""
        if isinstance(value, Tensor):
            known = self._known.get(id(value))
            return known.loader if known is not None else self._constant(value)
        if isinstance(value, (bool, int, float)):
            node = self.graph.const(float(value))
            return lambda indices: node
        raise UntraceableError(f"an operation takes a {type(value).__name__}")

    def _constant(self, tensor: Tensor) -> Loader:
        """Data: an argument, or what the function closes over."""
        if tensor.is_complex():
            raise UntraceableError("complex numbers")
        if tensor.ndim == 0:
            node = self.graph.const(float(tensor.detach()))
            return lambda indices: node
        return self._source(tensor)

    def _source(self, tensor: Tensor) -> Loader:
        """Elements of a tensor, read where they lie."""
        if tensor.is_complex():
            raise UntraceableError("complex numbers")
        if tensor.layout != torch.strided:
            raise UntraceableError(f"data of layout {tensor.layout}")
        if tensor.is_floating_point() and tensor.dtype != self.params.dtype:
            raise UntraceableError(f"data of dtype {tensor.dtype}")
        number = self._source_numbers.setdefault(id(tensor), len(self.sources))
        if number == len(self.sources):
            self.sources.append(tensor.detach())
            self._kept.append(tensor)
        # one element that stands for many: the same for all
        same = [stride == 0 for stride in tensor.stride()]
        boolean = tensor.dtype == torch.bool

        def load(indices: Indices) -> Node:
            places = (Index() if s else i for s, i in zip(same, indices, strict=True))
            node = self.graph.load(number, tuple(places))
            if boolean:
                return self.graph.apply("ne", node, self.graph.const(0.0))
            return node

        return load

    def _remember(self, tensor: Tensor, loader: Loader, viewed: bool = False) -> None:
        """Know a tensor by a loader that asks for each element once."""
        nodes: dict[tuple[int, Indices], Node] = {}

        def load(indices: Indices) -> Node:
            key = (self.num_samples, indices)
            node = nodes.get(key)
            if node is None:
                node = nodes[key] = loader(indices)
            return node

        self._known[id(tensor)] = _Known(tensor, load, viewed)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of the parameters or belongs to the problems."""
        return id(tensor) in self._known

    def as_number(self, node: Node) -> Node:
        """A truth value as 0 or 1."""
        if node.op in BOOLEAN:
            return self.graph.where(node, self.graph.const(1.0), self.graph.const(0.0))
        return node

    def as_condition(self, node: Node) -> Node:
        """A number as a truth value."""
        if node.op in BOOLEAN:
            return node
        return self.graph.apply("ne", node, self.graph.const(0.0))

    def span(self, index: Index) -> tuple[int, int]:
        """The least and the largest value of an index over the samples; not over problems."""
        ends = (index.offset, index.offset + index.sample * (self.num_samples - 1))
        return min(ends), max(ends)

    def operands(self, values: Sequence[Any], shape: Sequence[int]) -> list[Loader]:
        """Loaders of operands, each broadcast to the result's shape."""
        return [
            broadcast(self.loader_of(v), tuple(v.shape) if isinstance(v, Tensor) else (), shape)
            for v in values
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in _flat((args, kwargs)) if isinstance(a, Tensor)]
        name = func.overloadpacket.__name__
        if not any(id(t) in self._known for t in tensors):
            if func._schema.is_mutable and any(id(t) in self._source_numbers for t in tensors):
                raise UntraceableError(f"aten.{name} changes data that were read before")
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            raise UntraceableError(f"aten.{name} runs where differentiation is switched off")
        if name.endswith("_") and name[:-1] in LOWERINGS.keys() - VIEWS:
            self._check_target(name, args[0])
            result = func(*args, **kwargs)
            (loader,) = LOWERINGS[name[:-1]](self, args, kwargs, result)
            self._remember(args[0], loader)
            return result
        if func._schema.is_mutable or name not in LOWERINGS:
            raise UntraceableError(f"aten.{name} has no lowering")
        result = func(*args, **kwargs)
        loaders = LOWERINGS[name](self, args, kwargs, result)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        for output, loader in zip(outputs, loaders, strict=True):
            if output.is_floating_point() and output.dtype != self.params.dtype:
                raise UntraceableError(f"aten.{name} gives dtype {output.dtype}")
            self._remember(output, loader, name in VIEWS)
        if name == "detach":
            # torch does so by itself with what has no derivative, and only the copy is seen again
            detached, origin = self._known[id(result)], self._known[id(args[0])]
            detached.origin, detached.viewed, origin.viewed = args[0], origin.viewed, True
        elif name in VIEWS:
            for t in tensors:
                if id(t) in self._known:
                    self._known[id(t)].viewed = True
        return result

    def _check_target(self, name: str, target: Tensor) -> None:
        """Let ``a += b`` give a name a new expression only where nothing else shares its memory."""
        known = self._known.get(id(target))
        if target._base is not None or (known is not None and known.viewed):
            raise UntraceableError(f"aten.{name} writes into a view, or into what has views")
        if target is self.params or id(target) in self._source_numbers:
            raise UntraceableError(f"aten.{name} writes into a tensor that is used elsewhere")
        origin = None if known is None else known.origin
        while origin is not None:
            self._known[id(origin)].loader = _gone
            origin = self._known[id(origin)].origin
        if known is None:
            # data until now, as they are before the operation writes
            self._known[id(target)] = _Known(target, self._constant(target.clone()))


class _Guard(TorchFunctionMode):
    """Stops values that leave torch without an operation: what they decide would be frozen."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in EXITS and self.tracer.knows(args[0]):
            raise UntraceableError(f"Tensor.{func.__name__} takes numbers out of torch")
        return func(*args, **(kwargs or {}))


EXITS = frozenset(
    {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.untyped_storage}
)
"""Methods that read a tensor's memory."""


def _gone(indices: Indices) -> Node:
    raise UntraceableError("a tensor is read after a write into what was detached from it")


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for entry in value for leaf in _flat(entry)]
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in _flat(entry)]
    return [value]


def broadcast(loader: Loader, shape: tuple[int, ...], wanted: Sequence[int]) -> Loader:
    """A loader of ``shape`` read as one of the shape ``wanted``."""
    skip = len(wanted) - len(shape)
    repeats = [size == 1 and wanted[skip + d] != 1 for d, size in enumerate(shape)]
    if not skip and not any(repeats):
        return loader

    def load(indices: Indices) -> Node:
        return loader(
            tuple(
                Index() if repeat else index
                for repeat, index in zip(repeats, indices[skip:], strict=True)
            )
        )

    return load


Lowering = Callable[[_Tracer, Any, dict[str, Any], Any], Sequence[Loader]]

BOOLEAN = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "isnan", "isfinite"})
"""Operations that give truth values."""


def _pointwise(build: Callable[..., Node], count: int) -> Lowering:
    """An operation on the first ``count`` arguments, elementwise, as ``build(tracer, *nodes)``."""

    def lower(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
        loaders = t.operands(args[:count], result.shape)
        return [lambda indices: build(t, *(load(indices) for load in loaders))]

    return lower


def _simple(op: str, count: int) -> Lowering:
    return _pointwise(lambda t, *nodes: t.graph.apply(op, *map(t.as_number, nodes)), count)


def _logical(op: str, count: int) -> Lowering:
    return _pointwise(lambda t, *nodes: t.graph.apply(op, *map(t.as_condition, nodes)), count)


def _with_alpha(op: str, reverse: bool = False) -> Lowering:
    def lower(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
        a, b = t.operands(args[:2], result.shape)
        alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)

        def load(indices: Indices) -> Node:
            first, second = t.as_number(a(indices)), t.as_number(b(indices))
            if reverse:
                first, second = second, first
            if alpha != 1:
                second = t.graph.scale(float(alpha), second)
            return t.graph.apply(op, first, second)

        return [load]

    return lower


def _div(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    if kwargs.get("rounding_mode") is not None:
        raise UntraceableError("aten.div with a rounding mode")
    return _simple("div", 2)(t, args, kwargs, result)


def _clamp(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    (value,) = t.operands(args[:1], result.shape)
    limits = [None if v is None else t.operands([v], result.shape)[0] for v in (low, high)]

    def load(indices: Indices) -> Node:
        node = t.as_number(value(indices))
        # aten's clamp has slope 1 on the limit itself, where a maximum would share it
        for limit, op in zip(limits, ("lt", "gt"), strict=True):
            if limit is not None:
                bound = t.as_number(limit(indices))
                node = t.graph.where(t.graph.apply(op, node, bound), bound, node)
        return node

    return [load]


def _where(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    condition, a, b = t.operands(args[:3], result.shape)

    def load(indices: Indices) -> Node:
        return t.graph.where(
            t.as_condition(condition(indices)),
            t.as_number(a(indices)),
            t.as_number(b(indices)),
        )

    return [load]


def _masked_fill(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    value, mask, fill = args[:3]
    return _where(t, (mask, fill, value), kwargs, result)


def _identity(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    return [t.loader_of(args[0])]


def _detach(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    loader = t.loader_of(args[0])

    def load(indices: Indices) -> Node:
        # torch itself detaches what has no derivative anyway; only there it changes nothing
        node = loader(indices)
        constant = node.op in SUPPORTED_CONSTANT
        if not constant and any(n.op == "param" for n in reachable([node])):
            raise UntraceableError("aten.detach cuts off a derivative")
        return node

    return [load]


def _to_copy(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    if not result.is_floating_point() and args[0].is_floating_point():
        raise UntraceableError(f"a conversion to {result.dtype}")
    loader = t.loader_of(args[0])
    return [lambda indices: t.as_number(loader(indices))]


def _constant_like(value: Callable[[Any, dict[str, Any]], float]) -> Lowering:
    def lower(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
        return [t.loader_of(float(value(args, kwargs)))]

    return lower


def _numeric(build: Callable[..., Node]) -> Lowering:
    """An operation on one number, as ``build(graph, node)``."""
    return _pointwise(lambda t, node: build(t.graph, t.as_number(node)), 1)


def _relu(g: Graph, a: Node) -> Node:
    # slope 0 at 0, where a maximum would share it; NaN stays
    zero = g.const(0.0)
    return g.where(g.apply("le", a, zero), zero, a)


def _round(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    if kwargs.get("decimals"):
        raise UntraceableError("aten.round to decimals")
    return _simple("round", 1)(t, args, kwargs, result)


def _addc(op: str) -> Lowering:
    def lower(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
        loaders = t.operands(args[:3], result.shape)
        factor = float(kwargs.get("value", 1))

        def load(indices: Indices) -> Node:
            a, b, c = (t.as_number(loader(indices)) for loader in loaders)
            return t.graph.add(a, t.graph.scale(factor, t.graph.apply(op, b, c)))

        return [load]

    return lower


# ---------------------------------------------------------------------------------------- views


def _dim(dim: int, ndim: int) -> int:
    return dim % ndim if ndim else 0


def _view(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    old, new = tuple(args[0].shape), tuple(result.shape)
    loader = t.loader_of(args[0])

    def load(indices: Indices) -> Node:
        flat, stride = Index(), 1
        for size, index in zip(reversed(new), reversed(indices), strict=True):
            flat, stride = flat + index * stride, stride * size
        inner: list[Index] = []
        for size in reversed(old[1:]):
            flat, remainder = _divmod(t, flat, size)
            inner.append(remainder)
        if old:
            inner.append(flat)
        return loader(tuple(reversed(inner)))

    return [load]


def _divmod(t: _Tracer, index: Index, size: int) -> tuple[Index, Index]:
    """Quotient and remainder of an index, where both are affine."""
    whole, offset = divmod(index.offset, size)
    if (index.problem, index.sample, offset, size) == (1, 0, 0, t.params.shape[0]):
        # the dimension of the problems itself
        return Index(whole), PROBLEM_INDEX
    if index.problem % size:
        raise UntraceableError("a view mixes problems and samples")
    problem = index.problem // size
    inner = Index(index.offset, 0, index.sample)
    low, high = t.span(inner)
    if low // size == high // size:
        quotient = low // size
        return Index(quotient, problem), Index(inner.offset - quotient * size, 0, inner.sample)
    if inner.sample % size == 0:
        return (
            Index(inner.offset // size, problem, inner.sample // size),
            Index(inner.offset % size),
        )
    raise UntraceableError("a view splits the samples")


def _expand(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    return [broadcast(t.loader_of(args[0]), tuple(args[0].shape), result.shape)]


def _permute(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    ndim = args[0].ndim
    return [_permuted(t.loader_of(args[0]), [_dim(d, ndim) for d in args[1]])]


def _transpose(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    ndim = args[0].ndim
    order = list(range(ndim))
    if ndim > 1:
        a, b = (_dim(d, ndim) for d in (args[1:3] if len(args) > 2 else (0, 1)))
        order[a], order[b] = order[b], order[a]
    return [_permuted(t.loader_of(args[0]), order)]


def _permuted(loader: Loader, order: Sequence[int]) -> Loader:
    def load(indices: Indices) -> Node:
        inner = [Index()] * len(order)
        for place, d in enumerate(order):
            inner[d] = indices[place]
        return loader(tuple(inner))

    return load


def _unsqueeze(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    loader, dim = t.loader_of(args[0]), _dim(args[1], result.ndim)
    return [lambda indices: loader((*indices[:dim], *indices[dim + 1 :]))]


def _squeeze(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    shape = tuple(args[0].shape)
    dims = args[1] if len(args) > 1 else range(len(shape))
    dims = [dims] if isinstance(dims, int) else dims
    gone = {_dim(d, len(shape)) for d in dims if shape[_dim(d, len(shape))] == 1}
    loader = t.loader_of(args[0])

    def load(indices: Indices) -> Node:
        rest = iter(indices)
        return loader(tuple(Index() if d in gone else next(rest) for d in range(len(shape))))

    return [load]


def _select(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    dim, position = _dim(args[1], args[0].ndim), int(args[2])
    return [_selected(t.loader_of(args[0]), dim, position % args[0].shape[dim])]


def _selected(loader: Loader, dim: int, position: int) -> Loader:
    return lambda indices: loader((*indices[:dim], Index(position), *indices[dim:]))


def _unbind(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    dim = _dim(args[1] if len(args) > 1 else 0, args[0].ndim)
    loader = t.loader_of(args[0])
    return [_selected(loader, dim, k) for k in range(len(result))]


def _slice(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    dim, start, _, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    dim = _dim(dim, args[0].ndim)
    size = args[0].shape[dim]
    start = 0 if start is None else max(0, start + size if start < 0 else min(start, size))
    return [_sliced(t.loader_of(args[0]), dim, start, step)]


def _sliced(loader: Loader, dim: int, start: int, step: int) -> Loader:
    def load(indices: Indices) -> Node:
        inner = list(indices)
        inner[dim] = inner[dim] * step + Index(start)
        return loader(tuple(inner))

    return load


def _split(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    dim = _dim(kwargs.get("dim", args[2] if len(args) > 2 else 0), args[0].ndim)
    loader, start, loaders = t.loader_of(args[0]), 0, []
    for part in result:
        loaders.append(_sliced(loader, dim, start, 1))
        start += part.shape[dim]
    return loaders


def _stack(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    dim = _dim(args[1] if len(args) > 1 else 0, result.ndim)
    loaders = [t.loader_of(v) for v in args[0]]

    def load(indices: Indices) -> Node:
        which = indices[dim]
        if which.problem or which.sample:
            raise UntraceableError("a stack along the samples")
        return loaders[which.offset]((*indices[:dim], *indices[dim + 1 :]))

    return [load]


def _cat(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    dim = _dim(args[1] if len(args) > 1 else 0, result.ndim)
    loaders = [t.loader_of(v) for v in args[0]]
    # torch passes over tensors of shape (0,) among others of any rank
    sizes = [v.shape[dim] if v.ndim == result.ndim else 0 for v in args[0]]

    def load(indices: Indices) -> Node:
        index = indices[dim]
        if index.problem:
            raise UntraceableError("a concatenation of problems")
        low, high = t.span(index)
        start = 0
        for loader, size in zip(loaders, sizes, strict=True):
            if start <= low < start + size:
                if high >= start + size:
                    if index.sample != 1:
                        raise UntraceableError("a strided concatenation")
                    raise _BoundaryError(start + size - low)
                moved = index + Index(-start)
                return loader((*indices[:dim], moved, *indices[dim + 1 :]))
            start += size
        raise UntraceableError("a concatenation read outside")

    return [load]


# ----------------------------------------------------------------------------------- reductions


def _reduction(op: str, mean: bool = False) -> Lowering:
    def lower(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
        shape = tuple(args[0].shape)
        dims = args[1] if len(args) > 1 and args[1] is not None else kwargs.get("dim")
        dims = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
        gone = sorted({_dim(d, len(shape)) for d in dims} or set(range(len(shape))))
        keep = len(result.shape) == len(shape)
        count = math.prod(shape[d] for d in gone)
        # a sum over the problems fails where it reads another problem's parameters
        if not 0 < count <= MAX_UNROLLED:
            raise UntraceableError(f"a reduction over {count} elements")
        loader = t.loader_of(args[0])

        def load(indices: Indices) -> Node:
            rest = iter(indices)
            template = []
            for d in range(len(shape)):
                if keep or d not in gone:
                    template.append(next(rest))
                else:
                    template.append(Index())
            total: Node | None = None
            for position in _product([range(shape[d]) for d in gone]):
                for d, k in zip(gone, position, strict=True):
                    template[d] = Index(k)
                try:
                    term = t.as_number(loader(tuple(template)))
                except UntraceableError as error:
                    raise UntraceableError(f"a reduction over {count} elements: {error}") from error
                total = term if total is None else t.graph.apply(op, total, term)
            assert total is not None
            return t.graph.scale(1 / count, total) if mean else total

        return [load]

    return lower


def _matmul(t: _Tracer, args: Any, kwargs: dict[str, Any], result: Any) -> Sequence[Loader]:
    a, b = t.loader_of(args[0]), t.loader_of(args[1])
    inner = args[0].shape[-1]
    if not 0 < inner <= MAX_UNROLLED:
        raise UntraceableError(f"a matrix product over {inner} elements")

    def load(indices: Indices) -> Node:
        *batch, i, j = indices
        total: Node | None = None
        for k in range(inner):
            left, right = a((*batch, i, Index(k))), b((*batch, Index(k), j))
            term = t.graph.mul(t.as_number(left), t.as_number(right))
            total = term if total is None else t.graph.add(total, term)
        assert total is not None
        return total

    return [load]


UNARY = {
    "neg": "neg", "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2",
    "log10": "log10", "log1p": "log1p", "sqrt": "sqrt", "abs": "abs", "sin": "sin", "cos": "cos",
    "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "sigmoid": "sigmoid",
    "erf": "erf", "erfc": "erfc", "special_erf": "erf", "special_erfc": "erfc",
    "lgamma": "lgamma", "i0": "i0", "special_i0e": "i0e", "sign": "sign", "sgn": "sign",
    "floor": "floor", "ceil": "ceil", "trunc": "trunc", "isnan": "isnan",
    "special_expit": "sigmoid", "special_expm1": "expm1", "special_exp2": "exp2",
}  # fmt: skip

VIEWS = frozenset(
    {"view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "unsqueeze"}
    | {"squeeze", "select", "slice", "unbind", "split", "split_with_sizes", "alias"}
)

LOWERINGS: dict[str, Lowering] = {
    **{name: _simple(op, 1) for name, op in UNARY.items()},
    **{name: _simple(name, 2) for name in ("eq", "ne", "lt", "le", "gt", "ge", "atan2", "pow")},
    **{name: _simple(name, 2) for name in ("maximum", "minimum")},
    "mul": _simple("mul", 2),
    "div": _div,
    "add": _with_alpha("add"),
    "sub": _with_alpha("sub"),
    "rsub": _with_alpha("sub", reverse=True),
    "logical_and": _logical("and", 2),
    "logical_or": _logical("or", 2),
    "logical_not": _logical("not", 1),
    "bitwise_and": _logical("and", 2),
    "bitwise_or": _logical("or", 2),
    "bitwise_not": _logical("not", 1),
    "reciprocal": _numeric(lambda g, a: g.div(g.const(1.0), a)),
    "rsqrt": _numeric(lambda g, a: g.div(g.const(1.0), g.apply("sqrt", a))),
    "square": _numeric(lambda g, a: g.mul(a, a)),
    "relu": _numeric(_relu),
    "round": _round,
    "addcmul": _addc("mul"),
    "addcdiv": _addc("div"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda t, args, kwargs, result: _clamp(t, (args[0], None, args[1]), {}, result),
    "where": _where,
    "masked_fill": _masked_fill,
    "clone": _identity,
    "alias": _identity,
    "detach": _detach,
    "lift_fresh_copy": _identity,
    "_to_copy": _to_copy,
    "zeros_like": _constant_like(lambda args, kwargs: 0.0),
    "ones_like": _constant_like(lambda args, kwargs: 1.0),
    "full_like": _constant_like(lambda args, kwargs: args[1]),
    "new_zeros": _constant_like(lambda args, kwargs: 0.0),
    "new_ones": _constant_like(lambda args, kwargs: 1.0),
    "new_full": _constant_like(lambda args, kwargs: args[2]),
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
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
    "stack": _stack,
    "cat": _cat,
    "sum": _reduction("add"),
    "mean": _reduction("add", mean=True),
    "prod": _reduction("mul"),
    "amax": _reduction("maximum"),
    "amin": _reduction("minimum"),
    "mm": _matmul,
    "bmm": _matmul,
}
"""How each aten operation acts on loaders."""
