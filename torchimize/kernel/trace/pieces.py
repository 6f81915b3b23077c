"""What a trace is: the output in pieces, each with one expression of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from torchimize.kernel.graph import Graph, Index, Node, reachable
from torchimize.kernel.lowerings.context import (
    MAX_UNROLLED,
    PROBLEM_INDEX,
    START,
    Indices,
    JointError,
    UntraceableError,
    combined,
    positions,
)
from torchimize.kernel.trace.memory import Memory

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


class Reader:
    """Reads the expressions of an output, piece by piece."""

    def __init__(self, memory: Memory, output: Tensor) -> None:
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
