"""From a torch function to a graph: run it once and watch every operation.

Each tensor of the run is known by a *loader*, a function from an index to a scalar expression; what
operations do to loaders is in :mod:`torchimize.kernel.lowerings`. Nothing is ever stored.

The index of the problems is symbolic (``b``), as is that of the longest dimension of the output
(``n``); all other dimensions are short and unrolled. What cannot be written so (a reduction over
the samples, a gather by a computed index) makes the function untraceable, and says which operation
stood in the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchimize.kernel.derivative import SUPPORTED_CONSTANT, has_derivative
from torchimize.kernel.graph import Graph, Index, Node, reachable
from torchimize.kernel.lowerings import FUNCTIONS, IN_PLACE, LOWERINGS, UNIFORM
from torchimize.kernel.lowerings.context import (
    MAX_UNROLLED,
    PROBLEM_INDEX,
    START,
    Arguments,
    Context,
    DataError,
    Indices,
    JointError,
    Keywords,
    Loader,
    combined,
    positions,
)
from torchimize.kernel.lowerings.context import UntraceableError as UntraceableError
from torchimize.kernel.lowerings.elementwise import ELEMENTWISE, TRUTH_VALUED
from torchimize.kernel.lowerings.views import VIEWS, View, strided_view

MAX_PIECES = 128
"""Most pieces that an output may fall into."""

MIN_JOINED = 8
"""Rows from which on an image is read as one run of samples, with data of its shape."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of samples of the output with one expression.

    Attributes
    ----------
    position : tuple of int
        Where it stands in the output's unrolled dimensions.
    start, length, step : int
        Samples ``start + step·n`` along the output's longest dimension, n = 0 … length − 1.
    node : Node
    """

    position: tuple[int, ...]
    start: int
    length: int
    node: Node
    step: int = 1

    @property
    def samples(self) -> slice:
        """Its samples along the output's longest dimension."""
        return slice(self.start, self.start + self.step * (self.length - 1) + 1, self.step)


@dataclass(slots=True)
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
    layout : tuple of int
        The same with the dimensions that are read as samples made one.
    sample_dim : int
        Which of ``layout`` is the samples'.
    num_params : int
    order : list of Node
        What the pieces need, arguments before their users.
    derived : dict of int to (int, callable)
        Sources that show another one in another shape: its number, and how to make them of it.
    """

    graph: Graph
    pieces: list[Piece]
    sources: list[Tensor]
    trailing: tuple[int, ...]
    layout: tuple[int, ...]
    sample_dim: int
    num_params: int
    order: list[Node]
    derived: dict[int, tuple[int, Callable[[Tensor], Tensor]]] = field(default_factory=dict)


def trace(
    function: Callable[[Tensor], Tensor],
    params: Tensor,
    arguments: Sequence[Tensor] = (),
    *,
    virtual: bool = False,
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
    virtual : bool, default False
        Elementwise operations on what depends on the parameters are not carried out, and no
        results are kept, so that a run on many rows costs little more than one on few. The
        function meets zeros instead.

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
    params = (
        _placeholder(params.shape, params.dtype, params.device)
        if virtual
        else params.detach().clone()
    )
    memory = _Memory(params, arguments, virtual)
    tracer = _Tracer(memory)
    try:
        # switched on so that where the function switches it off can be seen
        with tracer, _Guard(tracer), torch.enable_grad():
            output = function(params)
        if not isinstance(output, Tensor):
            raise UntraceableError(f"the function returns {type(output).__name__}, not a tensor")
        if not output.numel():
            raise UntraceableError("the function returns nothing: its output has no elements")
        return _Reader(memory, output).trace()
    except RecursionError:
        raise UntraceableError("too many operations on top of each other") from None
    finally:
        # loaders and what holds them refer to each other: without this, thousands of objects
        # would wait for the garbage collector
        memory.forget()


def _placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that takes no memory."""
    return torch.zeros((), dtype=dtype, device=device).expand(tuple(shape))


class _Reader:
    """Reads the expressions of an output, piece by piece."""

    def __init__(self, memory: _Memory, output: Tensor) -> None:
        self.memory = memory
        self.loader = memory.loader_of(output)
        self.trailing = tuple(output.shape[1:])
        # of a single problem there is only row 0, wherever a view may put its dimension
        self.problem = PROBLEM_INDEX if memory.num_problems > 1 else START

    def trace(self) -> Trace:
        """The expressions of the output."""
        memory, trailing = self.memory, self.trailing
        layout, sample_dim, pieces = self._joined() or self._unrolled()
        order = reachable([piece.node for piece in pieces])
        num_params = memory.params.shape[1]
        return Trace(
            memory.graph,
            pieces,
            memory.sources,
            trailing,
            layout,
            sample_dim,
            num_params,
            order,
            memory.derived,
        )

    def _joined(self) -> tuple[tuple[int, ...], int, list[Piece]] | None:
        """Several dimensions as the samples, where no expression changes along them.

        Such as the rows and columns of an image, of which there would be many pieces else.
        """
        trailing = self.trailing
        for first in range(max(0, len(trailing) - 1)):
            short, joined = trailing[:first], trailing[first:]
            if math.prod(joined) // max(joined) < MIN_JOINED or math.prod(short) > MAX_UNROLLED:
                continue
            units = [[int(d == k) for d in range(len(joined))] for k in range(len(joined))]
            samples = [Index(0, 0, combined(unit)) for unit in units]
            pieces = []
            for position in positions(range(size) for size in short):
                node = self._at(position, tuple(samples), joined)
                if node is None:
                    break
                pieces.append(Piece((*position, 0), 0, math.prod(joined), node))
            else:
                return (*short, math.prod(joined)), first, pieces
        return None

    def _at(
        self, position: tuple[int, ...], samples: Indices, sizes: tuple[int, ...]
    ) -> Node | None:
        """The one expression of all samples in dimensions of these sizes; None where there is none.

        ``samples`` are the indices behind ``position``.
        """
        memory = self.memory
        memory.num_samples, memory.sizes = math.prod(sizes), sizes
        try:
            indices = (self.problem, *map(Index, position), *samples)
            return memory.number(self.loader(indices))
        except (JointError, UntraceableError):
            return None
        finally:
            memory.sizes = ()

    def _unrolled(self) -> tuple[tuple[int, ...], int, list[Piece]]:
        """The longest dimension as the samples."""
        trailing = self.trailing
        sample_dim = max(range(len(trailing)), key=trailing.__getitem__, default=0)
        others = [range(1) if d == sample_dim else range(size) for d, size in enumerate(trailing)]
        if math.prod(len(r) for r in others) > MAX_UNROLLED:
            raise UntraceableError(f"the output has shape {trailing}: too many short dimensions")
        length = trailing[sample_dim] if trailing else 1
        pieces: list[Piece] = []
        for position in positions(others):
            pieces += self._pieces(position, sample_dim, length, MAX_PIECES - len(pieces))
        return trailing, sample_dim, pieces

    def _pieces(
        self, position: tuple[int, ...], sample_dim: int, length: int, most: int
    ) -> list[Piece]:
        """The expressions at one position."""
        memory = self.memory
        pieces: list[Piece] = []
        waiting = [(0, 1, length)]
        while waiting:
            start, step, count = waiting.pop()
            if len(pieces) + len(waiting) >= most:
                raise UntraceableError(f"the output falls into more than {MAX_PIECES} pieces")
            samples = Index(start, 0, step if count > 1 else 0)
            indices = tuple(
                [samples if d == sample_dim else Index(k) for d, k in enumerate(position)]
            )
            memory.num_samples = count
            try:
                node = memory.number(self.loader((self.problem, *indices)))
            except JointError as joint:
                whole = self._rows(position, sample_dim, length, joint.block, count)
                if whole is not None:
                    return [Piece(position, 0, length, whole)]
                if joint.period:
                    waiting += [
                        (start + k * step, step * joint.period, -(-(count - k) // joint.period))
                        for k in reversed(range(joint.period))
                    ]
                else:
                    cut = joint.cut
                    waiting += [(start + cut * step, step, count - cut), (start, step, cut)]
                continue
            pieces.append(Piece(position, start, count, node, step if count > 1 else 1))
        return pieces

    def _rows(
        self, position: tuple[int, ...], sample_dim: int, length: int, block: int, count: int
    ) -> Node | None:
        """The one expression of samples that are rows of an image, one behind the other."""
        if not block or count != length or length % block or length // block < MIN_JOINED:
            return None
        samples = Index(0, 0, combined([block, 1]))
        after = tuple([Index(k) for k in position[sample_dim + 1 :]])
        return self._at(position[:sample_dim], (samples, *after), (length // block, block))


class _Known:
    """A tensor of the run and what it is made of; kept alive so that its identity is not reused."""

    __slots__ = ("depends", "loader", "tensor", "uncut")

    def __init__(
        self, tensor: Tensor, loader: Loader, depends: bool, uncut: Loader | None = None
    ) -> None:
        self.tensor = tensor
        self.loader = loader
        self.depends = depends
        """Whether on parameters."""
        self.uncut = uncut
        """Of what was cut off from its derivative, for operations that have none anyway."""


class _Shown(_Known):
    """A tensor that shares the memory of another."""

    __slots__ = ("base", "stamp", "view")

    def __init__(self, tensor: Tensor, base: Tensor, view: View, memory: _Memory) -> None:
        self.tensor, self.base, self.view = tensor, base, view
        self.look(memory)

    def look(self, memory: _Memory) -> None:
        """Show what the base is now."""
        self.stamp = memory.writes
        self.depends = memory.depends(self.base)
        loader, forward = memory.loader_of(self.base), self.view.forward
        self.loader = lambda indices: loader(forward(indices))
        uncut = memory.known[id(self.base)].uncut
        self.uncut = None if uncut is None else lambda indices: uncut(forward(indices))


def _remembered(memory: _Memory, loader: Loader) -> Loader:
    """A loader that asks for each element once."""
    # most tensors are read at one place only
    last_count = -1
    last_indices: Indices = ()
    last_node: Node | None = None
    others: dict[tuple[int, Indices], Node] | None = None

    def load(indices: Indices) -> Node:
        nonlocal last_count, last_indices, last_node, others
        count = memory.num_samples
        if last_node is None:
            node = loader(indices)
            last_count, last_indices, last_node = count, indices, node
            return node
        if count == last_count and (indices is last_indices or indices == last_indices):
            return last_node
        if others is None:
            others = {}
        found = others.get((count, indices))
        if found is None:
            found = others[count, indices] = loader(indices)
        return found

    return load


class _Memory(Context):
    """The tensors of a run, by their identity."""

    def __init__(self, params: Tensor, arguments: Sequence[Tensor], virtual: bool) -> None:
        super().__init__(Graph(), params.shape[0])
        self.params = params
        self.virtual = virtual
        self.dtype = params.dtype
        self.known: dict[int, _Known] = {id(params): _Known(params, self._load_param, True)}
        self.sources: list[Tensor] = []
        self.derived: dict[int, tuple[int, Callable[[Tensor], Tensor]]] = {}
        self.source_numbers: dict[int, int] = {}
        self.writes = 0
        """How often memory has changed."""
        self.without_slope = False
        """Whether loaders are asked for by an operation that is constant almost everywhere."""
        self._kept: list[Tensor] = []
        """Tensors whose identity must not be reused."""
        self._uniform: dict[int, tuple[Tensor, float, int]] = {}
        """Data of one value: tensor, value, version."""
        self._written: set[int] = set()
        """Memory that has changed."""
        self._loaders: dict[int, Loader] = {}
        self._spread: dict[tuple[int, Indices, tuple[int, ...]], int] = {}
        self._groups: dict[int, list[Tensor]] = {}
        """What was detached from one another, by each of them."""
        for argument in arguments:
            if id(argument) in self.source_numbers:
                # the same tensor twice: the second takes a number all the same
                self.sources.append(argument.detach())
            else:
                loader = self._source(argument, own=True)
                self.known[id(argument)] = _Known(argument, loader, False)

    # -- what a context does

    def loader_of(self, value: Any) -> Loader:
        """The loader of a tensor or number met in an operation, as it is now."""
        known = self.known.get(id(value))
        if known is not None:
            if isinstance(known, _Shown) and known.stamp != self.writes:
                known.look(self)
            if known.uncut is not None and self.without_slope:
                return known.uncut
            return known.loader
        if isinstance(value, Tensor):
            return self._data(value)
        if isinstance(value, (bool, int, float)):
            node = self.graph.const(float(value))
            return lambda indices: node
        raise UntraceableError(f"an operation takes a {type(value).__name__}")

    def is_data(self, value: Any) -> bool:
        """Whether a tensor is neither made of the parameters nor of what belongs to problems."""
        return id(value) not in self.known

    def depends(self, value: Any) -> bool:
        """Whether a tensor is made of the parameters."""
        known = self.known.get(id(value))
        if known is None:
            return False
        if isinstance(known, _Shown) and known.stamp != self.writes:
            known.look(self)
        return known.depends

    def _root_of(self, tensor: Tensor) -> Tensor:
        """What a known tensor is a view of, in the end."""
        known = self.known[id(tensor)]
        while isinstance(known, _Shown):
            tensor = known.base
            known = self.known[id(tensor)]
        return tensor

    # -- leaves

    def _load_param(self, indices: Indices) -> Node:
        problem, which = indices
        if problem is not PROBLEM_INDEX and problem != PROBLEM_INDEX and self.num_problems > 1:
            raise UntraceableError("the parameters of one problem are used for another")
        return self.graph.param(self.fixed(which))

    def _data(self, tensor: Tensor) -> Loader:
        """Data: what the function closes over or makes."""
        loader = self._loaders.get(id(tensor))
        if loader is not None:
            return loader
        if self.adopts_any((tensor,)):
            return self.loader_of(tensor)
        value = self._value_of(tensor)
        if value is None:
            return self._source(tensor)
        node = self.graph.const(value)
        return lambda indices: node

    def _value_of(self, tensor: Tensor) -> float | None:
        """The one value of a tensor, where that is known."""
        if tensor.is_complex():
            raise UntraceableError("complex numbers")
        if tensor.ndim == 0:
            return float(tensor.detach())
        return self.uniform_value(tensor)

    def uniform_value(self, tensor: Tensor) -> float | None:
        """The one value of a tensor that was made of it."""
        uniform = self._uniform.get(id(tensor))
        if uniform is not None and uniform[2] == tensor._version:
            return uniform[1]
        return None

    def _source(self, tensor: Tensor, own: bool = False) -> Loader:
        """Elements of a tensor, read where they lie."""
        if tensor.is_complex():
            raise UntraceableError("complex numbers")
        if tensor.layout != torch.strided:
            raise UntraceableError(f"data of layout {tensor.layout}")
        wide = torch.promote_types(tensor.dtype, self.dtype)
        if tensor.is_floating_point() and wide != self.dtype:
            raise UntraceableError(f"data of dtype {tensor.dtype}")
        number = self.source_numbers.setdefault(id(tensor), len(self.sources))
        if number == len(self.sources):
            self.sources.append(tensor.detach())
            self._kept.append(tensor)
        shape, strides = tensor.shape, tensor.stride()
        # one element that stands for many: the same for all
        same = [strides[d] == 0 or shape[d] == 1 for d in range(len(shape))]
        if not own and self._has_equal_rows(tensor):
            same[0] = True
        plain = not any(same)
        boolean = tensor.dtype == torch.bool
        graph = self.graph
        flipped: dict[tuple[int, ...], Loader] = {}

        def load(indices: Indices) -> Node:
            if not plain:
                indices = tuple([START if s else i for s, i in zip(same, indices, strict=True)])
            if own and not same[0] and indices[0] != PROBLEM_INDEX and self.num_problems > 1:
                raise UntraceableError("the data of one problem are used for another")
            if self.sizes:
                number_here, indices = self._joined(number, indices)
                node = graph.load(number_here, indices)
                return graph.apply("ne", node, self.zero) if boolean else node
            backwards = tuple([d for d, i in enumerate(indices) if i.sample < 0])
            if backwards and self.num_samples > 1:
                # memory is read forwards only
                if own:
                    raise DataError("data of the problems are read backwards")
                if backwards not in flipped:
                    flipped[backwards] = self._source(tensor.detach().flip(backwards))
                turned = list(indices)
                for d in backwards:
                    turned[d] = indices[d] * -1 + Index(shape[d] - 1)
                return flipped[backwards](tuple(turned))
            node = graph.load(number, indices)
            return graph.apply("ne", node, self.zero) if boolean else node

        self._loaders[id(tensor)] = load
        return load

    def _joined(self, number: int, indices: Indices) -> tuple[int, Indices]:
        """A source and where to read it, with several dimensions as the samples."""
        steps = [self.steps(index.sample) for index in indices]
        if all(self._is_even(along) for along in steps):
            ends = [along[-1] for along in steps]
            return number, tuple(
                [Index(i.offset, i.problem, end) for i, end in zip(indices, ends, strict=True)]
            )
        # the samples do not lie at equal distances in any dimension: a source of their shape
        rows = [d for d, index in enumerate(indices) if index.problem]
        if any(indices[d].problem != 1 for d in rows) or len(rows) > 1:
            raise JointError(0)
        key = (number, indices, self.sizes)
        if key not in self._spread:
            sizes = self.sizes

            def spread(source: Tensor) -> Tensor:
                strides = source.stride()
                offset = sum(s * i.offset for s, i in zip(strides, indices, strict=True))
                along = [
                    sum(s * step[k] for s, step in zip(strides, steps, strict=True))
                    for k in range(len(sizes))
                ]
                if min(along) < 0:
                    raise JointError(0)
                shape = [*(source.shape[d] for d in rows), *sizes]
                view = source.as_strided(
                    shape, [*(strides[d] for d in rows), *along], source.storage_offset() + offset
                )
                return view.reshape(*shape[: len(rows)], -1)

            self.sources.append(spread(self.sources[number]))
            self._spread[key] = len(self.sources) - 1
            self.derived[len(self.sources) - 1] = (number, spread)
        return self._spread[key], (*(PROBLEM_INDEX for _ in rows), Index(0, 0, 1))

    def _is_even(self, steps: list[int]) -> bool:
        """Whether samples at these steps along each dimension lie at equal distances."""
        return all(
            outer == inner * size
            for outer, inner, size in zip(steps, steps[1:], self.sizes[1:], strict=False)
        )

    def _has_equal_rows(self, tensor: Tensor) -> bool:
        """Whether data made for a few rows are the same for each of them."""
        count = self.num_problems
        if count == 1 or tensor.shape[0] != count or self.virtual:
            return False
        return torch.equal(tensor[1:], tensor[:1].expand(count - 1, *tensor.shape[1:]))

    # -- tensors of the run

    def forget(self) -> None:
        """Let go of all tensors but the sources."""
        self.known.clear()
        self._loaders.clear()
        self._spread.clear()
        self._uniform.clear()
        self._groups.clear()
        self._kept.clear()

    def add(self, tensor: Tensor, loader: Loader, depends: bool) -> None:
        """Know the result of an operation."""
        self.known[id(tensor)] = _Known(tensor, _remembered(self, loader), depends)

    def add_view(self, tensor: Tensor, base: Tensor, view: View) -> None:
        """Know a view of a known tensor."""
        self.known[id(tensor)] = _Shown(tensor, base, view, self)

    def add_detached(self, tensor: Tensor, base: Tensor) -> None:
        """Know a tensor that shares memory but no derivative with another."""
        uncut, depends = self.loader_of(base), self.depends(base)
        loader = self._constant_only(uncut) if depends else uncut
        root = self._root_of(base)
        group = self._groups.setdefault(id(root), [root])
        group.append(tensor)
        self._groups[id(tensor)] = group
        self.known[id(tensor)] = _Known(tensor, loader, depends, uncut if depends else None)

    def add_uniform(self, tensor: Tensor, value: float) -> None:
        """Know data of one value."""
        if not tensor.is_inference():  # such a tensor does not tell when it changes
            self._uniform[id(tensor)] = (tensor, value, tensor._version)

    def _constant_only(self, loader: Loader) -> Loader:
        """A loader of what has no derivative anyway.

        torch itself detaches that; only there cutting off changes nothing.
        """

        def load(indices: Indices) -> Node:
            node = loader(indices)
            if has_derivative(node):
                raise UntraceableError("aten.detach cuts off a derivative")
            return node

        return load

    def adopts_any(self, values: Sequence[Any]) -> bool:
        """Whether data among arguments show memory that has been given expressions since.

        Those are known from then on.
        """
        if not self._written:
            return False
        found = False
        for value in values:
            if isinstance(value, (list, tuple)):
                found |= self.adopts_any(value)
            elif isinstance(value, Tensor) and id(value) not in self.known:
                if value.untyped_storage()._cdata not in self._written:
                    continue
                if value._base is None or id(value._base) not in self.known:
                    raise UntraceableError("a tensor shares memory with one that was written to")
                self.adopt(value)
                found = True
        return found

    def adopt(self, target: Tensor) -> None:
        """Know data that an operation is about to write to, as they are before."""
        if id(target) in self.known:
            return
        if id(target) in self.source_numbers:
            raise UntraceableError("data are changed that were read before")
        base = target._base
        if base is not None:
            self.adopt(base)
            if not base.is_contiguous():
                raise UntraceableError("a view of what is not contiguous is written to")
            self.add_view(target, base, strided_view(self, base, target))
            return
        value = self._value_of(target)
        loader = self._source(target.clone()) if value is None else self.loader_of(value)
        self.known[id(target)] = _Known(target, loader, False)

    def write(self, target: Tensor, loader: Loader, depends: bool) -> None:
        """Give a known tensor other expressions; so get what shares its memory."""
        known = self.known[id(target)]
        while isinstance(known, _Shown):
            inverse, base = known.view.inverse, known.base
            if inverse is None:
                raise UntraceableError("an element is written that stands for many")
            loader = _patched(loader, inverse, self.loader_of(base))
            target, known = base, self.known[id(base)]
        if target is self.params or id(target) in self.source_numbers:
            raise UntraceableError("data are changed that were read before")
        loader = _remembered(self, loader)
        self.known[id(target)] = _Known(target, loader, depends or known.depends)
        for other in self._groups.get(id(target), ()):
            if other is not target:
                self.known[id(other)] = _Known(other, _gone, True)
        self.writes += 1
        self._written.add(target.untyped_storage()._cdata)

    def check_unread(self, value: Any, name: str) -> None:
        """Raise where an operation on data is about to change what expressions stand for."""
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()._cdata
        read = any(s.untyped_storage()._cdata == storage for s in self.sources)
        if read or storage in self._written:
            raise UntraceableError(f"aten.{name}: data are changed that were read before")


def _gone(indices: Indices) -> Node:
    raise UntraceableError("a tensor is read after a write into what was detached from it")


def _patched(patch: Loader, inverse: Callable[[Indices], Indices | None], before: Loader) -> Loader:
    """A loader of what a patch covers, and of what was before elsewhere."""

    def load(indices: Indices) -> Node:
        inner = inverse(indices)
        return before(indices) if inner is None else patch(inner)

    return load


class _Operation:
    """What the tracer knows of an aten operation."""

    __slots__ = (
        *("constant", "func", "in_place", "known", "lowering", "mutable", "name"),
        *("uniform", "view"),
    )

    def __init__(self, func: Any) -> None:
        self.func = func
        """Kept alive, so that its identity is not reused."""
        name = func.overloadpacket.__name__
        self.name = name
        self.mutable = func._schema.is_mutable
        self.view = VIEWS.get(name)
        self.uniform = UNIFORM.get(name)
        self.lowering = None if self.mutable else LOWERINGS.get(name)
        self.in_place = False
        if self.mutable and func._overloadname != "out" and name.endswith("_"):
            self.lowering = IN_PLACE.get(name) or LOWERINGS.get(name[:-1])
            self.in_place = self.lowering is not None
        self.constant = name in SUPPORTED_CONSTANT
        self.known = bool(self.lowering or self.view or name == "detach")


_OPERATIONS: dict[int, _Operation] = {}
"""By the identity of the operation: hashing one takes longer."""


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of one run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled, and torch's way of saying so imports its compiler."""
        return False

    def __init__(self, memory: _Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        operation = _OPERATIONS.get(id(func))
        if operation is None:
            operation = _OPERATIONS[id(func)] = _Operation(func)
        values = args if not kwargs else (*args, *kwargs.values())
        known = self.memory.known
        touched = depends = False
        for value in values:
            if id(value) in known:
                touched = True
                depends = depends or self.memory.depends(value)
            elif value.__class__ is list or value.__class__ is tuple:
                for entry in value:
                    if id(entry) in known:
                        touched = True
                        depends = depends or self.memory.depends(entry)
        if not touched:
            return self._on_data(operation, func, args, kwargs or {})
        try:
            if depends and not torch.is_grad_enabled():
                raise UntraceableError(
                    f"aten.{operation.name} runs where differentiation is switched off"
                )
            return self._on_known(operation, func, args, kwargs or {}, depends)
        except UntraceableError as error:
            self.memory.without_slope = False
            if depends or isinstance(error, DataError):
                raise
            raise DataError(str(error)) from None

    def _on_data(self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operation that has to do neither with parameters nor with problems."""
        memory = self.memory
        if memory.adopts_any((*args, *kwargs.values())):
            return self.__torch_dispatch__(func, (), args, kwargs)
        if operation.mutable:
            for value in (*args, *kwargs.values()):
                memory.check_unread(value, operation.name)
        result = func(*args, **kwargs)
        if operation.uniform is not None:
            memory.add_uniform(result, float(operation.uniform(args)))
        elif operation.name == "detach":
            # torch itself detaches what is made without operands, and only the copy is seen again
            value = memory.uniform_value(args[0])
            if value is not None:
                memory.add_uniform(result, value)
        return result

    def _on_known(
        self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords, depends: bool
    ) -> Any:
        """Run an operation on what has expressions, and give its results theirs."""
        memory = self.memory
        if not operation.known:
            raise UntraceableError(f"aten.{operation.name} has no lowering")
        if operation.in_place:
            return self._in_place(operation, func, args, kwargs, depends)
        if memory.virtual:
            result = self._virtual_result(operation, func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if operation.lowering is not None:
            self._lower(operation, args, kwargs, result, depends and operation.uniform is None)
        elif operation.view is not None:
            views = operation.view(memory, args, kwargs, result)
            if isinstance(views, list):
                for output, view in zip(result, views, strict=True):
                    memory.add_view(output, args[0], view)
            else:
                memory.add_view(result, args[0], views)
        else:
            memory.add_detached(result, args[0])
        return result

    def _lower(
        self, operation: _Operation, args: Arguments, kwargs: Keywords, result: Any, depends: bool
    ) -> None:
        """Give an operation's results their expressions."""
        memory = self.memory
        outputs = [result] if isinstance(result, Tensor) else result
        for output in outputs:
            if output.dtype is not memory.dtype and output.is_floating_point():
                args = _in_precision(output.dtype, operation.name, args)
        assert operation.lowering is not None
        memory.without_slope = operation.constant
        loaders = operation.lowering(memory, args, kwargs, result)
        memory.without_slope = False
        if not isinstance(loaders, list):
            memory.add(outputs[0], loaders, depends)
            return
        for output, loader in zip(outputs, loaders, strict=True):
            memory.add(output, loader, depends)

    def _in_place(
        self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords, depends: bool
    ) -> Any:
        memory, target = self.memory, args[0]
        if target.is_floating_point() and target.dtype != memory.dtype:
            raise UntraceableError(f"aten.{operation.name} writes dtype {target.dtype}")
        same = operation.name != "copy_" or target.dtype == args[1].dtype
        if not target.is_floating_point() and not same:
            raise UntraceableError(f"a conversion to {target.dtype}")
        assert operation.lowering is not None
        try:
            memory.adopt(target)
            loader = operation.lowering(memory, args, kwargs, target)
            assert callable(loader)
            memory.write(target, loader, depends)
        except UntraceableError as error:
            raise type(error)(f"aten.{operation.name}: {error}") from None
        return target if memory.virtual else func(*args, **kwargs)

    def call(self, function: Callable[..., Tensor], op: str, args: Arguments) -> Tensor:
        """Call one of this package's functions, which the graph knows as a whole."""
        memory = self.memory
        if not any(id(value) in memory.known for value in args):
            return function(*args)
        depends = any(memory.depends(value) for value in args)
        if depends and not torch.is_grad_enabled():
            raise UntraceableError(f"{op} runs where differentiation is switched off")
        if memory.virtual:
            result = self._elementwise(args, memory.dtype)
        else:
            self.paused = True
            try:
                result = function(*args)
            finally:
                self.paused = False
        loaders = memory.operands(args, result.shape)
        memory.add(
            result,
            lambda i: memory.graph.apply(op, *(memory.number(load(i)) for load in loaders)),
            depends,
        )
        return result

    def _virtual_result(
        self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords
    ) -> Any:
        """What an operation returns, without numbers."""
        dtype = self.memory.dtype
        if operation.name in ("clone", "_to_copy"):
            return self._elementwise(args[:1], kwargs.get("dtype") or args[0].dtype)
        if operation.name in ELEMENTWISE:
            tensors = [a for a in args if isinstance(a, Tensor)]
            if operation.name in TRUTH_VALUED:
                return self._elementwise(tensors, torch.bool)
            if any(t.is_floating_point() for t in tensors):
                return self._elementwise(tensors, dtype)
        result = func(*args, **kwargs)
        if operation.view is not None or not operation.lowering:
            return result
        if isinstance(result, Tensor):
            return _placeholder(result.shape, result.dtype, result.device)
        return [_placeholder(r.shape, r.dtype, r.device) for r in result]

    def _elementwise(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        shapes = [value.shape for value in values if isinstance(value, Tensor)]
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        return _placeholder(shape, dtype, self.memory.params.device)


def _in_precision(dtype: torch.dtype, name: str, args: Arguments) -> Arguments:
    """Arguments as they are in another precision than the parameters'.

    Where truth values meet numbers, torch computes in its default precision, exactly but for the
    numbers; all else would have to be rounded at each step.
    """
    tensors = [a for a in args if isinstance(a, Tensor) and a.ndim]
    if name not in ("mul", "where") or any(t.dtype != torch.bool for t in tensors):
        raise UntraceableError(f"aten.{name} gives dtype {dtype}")
    return tuple([float(torch.tensor(a, dtype=dtype)) if isinstance(a, float) else a for a in args])


EXITS = frozenset(
    {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.untyped_storage}
)
"""Methods that read a tensor's memory."""

_WATCHED: dict[Any, str] = {**dict.fromkeys(EXITS, ""), **FUNCTIONS}


class _Guard(TorchFunctionMode):
    """Sees what operations do not tell.

    Values that leave torch without an operation are stopped: what they decide would be frozen.
    This package's special functions are known as a whole.
    """

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        op = _WATCHED.get(func)
        if op is not None:
            if op:
                return self.tracer.call(func, op, args)
            if id(args[0]) in self.tracer.memory.known:
                raise UntraceableError(f"Tensor.{func.__name__} takes numbers out of torch")
        return func(*args, **kwargs) if kwargs else func(*args)
