"""The tensors of a run and what each of them is made of, writes and shared memory included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimize.kernel.derivative import has_derivative
from torchimize.kernel.graph import Graph, Index, Node
from torchimize.kernel.lowerings.context import (
    PROBLEM_INDEX,
    START,
    Context,
    DataError,
    Indices,
    JointError,
    Loader,
    UntraceableError,
)
from torchimize.kernel.lowerings.views import View, strided_view


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

    def __init__(self, tensor: Tensor, base: Tensor, view: View, memory: Memory) -> None:
        self.tensor, self.base, self.view = tensor, base, view
        self.look(memory)

    def look(self, memory: Memory) -> None:
        """Show what the base is now."""
        self.stamp = memory.writes
        self.depends = memory.depends(self.base)
        loader, forward = memory.loader_of(self.base), self.view.forward
        self.loader = lambda indices: loader(forward(indices))
        uncut = memory.known[id(self.base)].uncut
        self.uncut = None if uncut is None else lambda indices: uncut(forward(indices))


def _remembered(memory: Memory, loader: Loader) -> Loader:
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


class Memory(Context):
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
