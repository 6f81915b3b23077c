"""What lowerings work with: indices, loaders, and the run that they belong to.

A *loader* is a function from the index of an element to the scalar expression of that element. The
index of the problems is symbolic, as is that of the samples; where an expression changes along the
samples (two tensors joined, a row shifted around), reading raises :class:`JointError`, and the
samples are read again in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from torchimize.kernel.graph import CONDITIONS, Graph, Index, Node

Indices = tuple[Index, ...]
Loader = Callable[[Indices], Node]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

MAX_UNROLLED = 64
"""Longest sum, and largest number of output dimensions besides the samples, that is unrolled."""

PROBLEM_INDEX = Index(0, 1, 0)

START = Index()

FAR = 2**62
"""Further than any index goes."""


RADIX = 2**40
"""Larger than any step."""


def combined(steps: Sequence[int]) -> int:
    """Steps along several dimensions as one number, which adds and multiplies as they do."""
    total = 0
    for step in steps:
        total = total * RADIX + step
    return total


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
    block : int
        Or: the samples are rows of so many, one behind the other.
    """

    def __init__(self, cut: int, period: int = 0, block: int = 0) -> None:
        self.cut, self.period, self.block = cut, period, block


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
        self.sizes: tuple[int, ...] = ()
        """Sizes of several dimensions that are read as the samples, the last one fastest: then the
        ``sample`` of an index holds a step for each of them, see :func:`combined`."""
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
        forward = broadcast(own, shape)
        return lambda indices: loader(forward(indices))

    def stay(self, index: Index, start: int, end: int) -> None:
        """Raise where an index that begins in [start, end) leaves it along the samples."""
        step = index.sample
        if step == 0 or self.num_samples == 1:
            return
        if self.sizes:
            low, high = self._extent(index)
            if low < start or high >= end:
                raise JointError(0)
            return
        if step > 0:
            inside = -(-(end - index.offset) // step)
        else:
            inside = (index.offset - start) // -step + 1
        if inside < self.num_samples:
            raise JointError(inside)

    def is_inside(self, index: Index, start: int, end: int) -> bool:
        """Whether an index is in [start, end), for all samples that are read."""
        if index.problem:
            if (index, start, end) == (PROBLEM_INDEX, 0, self.num_problems):
                return True
            raise UntraceableError("some of the problems are set apart")
        if index.offset < start:
            self.stay(index, -FAR, start)
            return False
        if index.offset >= end:
            self.stay(index, end, FAR)
            return False
        self.stay(index, start, end)
        return True

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
        if self.sizes and sample:
            return self._joined_divmod(index, size)
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
        try:
            self.stay(index, quotient * size, (quotient + 1) * size)
        except JointError as joint:
            block = size if (remainder, sample) == (0, 1) else 0
            raise JointError(joint.cut, 0, block) from None
        raise AssertionError("the samples leave the block that they begin in")

    def _extent(self, index: Index) -> tuple[int, int]:
        """The least and the largest value of an index over joined samples."""
        low = high = index.offset
        for step, size in zip(self.steps(index.sample), self.sizes, strict=True):
            low, high = low + min(0, step * (size - 1)), high + max(0, step * (size - 1))
        return low, high

    def steps(self, sample: int) -> list[int]:
        """The steps along each of the joined dimensions."""
        found = []
        for _ in self.sizes:
            step = (sample + RADIX // 2) % RADIX - RADIX // 2
            found.append(step)
            sample = (sample - step) // RADIX
        return found[::-1]

    def _joined_divmod(self, index: Index, size: int) -> tuple[Index, Index]:
        """Quotient and remainder, each dimension in one of them."""
        steps = self.steps(index.sample)
        inner = combined([step if step % size else 0 for step in steps])
        remainder = Index(index.offset % size, 0, inner)
        low, high = self._extent(remainder)
        if low < 0 or high >= size:
            raise JointError(0)
        outer = combined([0 if step % size else step // size for step in steps])
        return Index(index.offset // size, index.problem // size, outer), remainder


Lowering = Callable[[Context, Arguments, Keywords, Any], Loader | list[Loader]]
"""(context, arguments, keyword arguments, result) to the loaders of the results."""


def only(loader: Loader | list[Loader]) -> Loader:
    """The loader of an operation with one result."""
    assert callable(loader)
    return loader


def argument(args: Arguments, kwargs: Keywords, place: int, name: str, default: Any) -> Any:
    """An argument by place or name; None counts as missing."""
    value = args[place] if len(args) > place else kwargs.get(name)
    return default if value is None else value


def wrapped(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim % ndim if ndim else 0


def positions(ranges: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
    """All combinations of one number from each range, the last one fastest."""
    result: list[tuple[int, ...]] = [()]
    for r in ranges:
        result = [(*head, k) for head in result for k in r]
    return result


def broadcast(shape: Sequence[int], wanted: Sequence[int]) -> Callable[[Indices], Indices]:
    """The map from indices of the shape ``wanted`` to those of ``shape``."""
    skip = len(wanted) - len(shape)
    places = [
        None if size == 1 and wanted[skip + d] != 1 else skip + d for d, size in enumerate(shape)
    ]
    return lambda indices: tuple([START if d is None else indices[d] for d in places])
