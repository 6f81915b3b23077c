"""Tensors whose elements are graph nodes: torch code run on them becomes part of a kernel.

The step policy is written in torch operations on per-problem scalars (B,), vectors (B, P) and
blocks (B, P, P). Here B is 1, a stand-in for "every problem", and each element is a node; running
the policy on such tensors writes its formulas into the graph, with everything known beforehand
(no box, no fixed parameter, no late phase) already gone.

Integers, and both floating types, are numbers of the kernel's one type; truth values are nodes of
:data:`~torchimize.kernel.graph.CONDITIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from torchimize.kernel.graph import CONDITIONS, Graph, Node

Array = Any
"""A NumPy array of objects, all nodes."""


class NodeTensor:
    """An array of nodes with the part of torch.Tensor's interface that the policy uses.

    Parameters
    ----------
    graph : Graph
    nodes : array of Node
        Shape (1,), (1, P) or (1, P, P).
    dtype : torch.dtype
        What :func:`torch.finfo` is asked about: the kernel's type, or bool.

    Examples
    --------
    >>> import torch
    >>> from torchimize.kernel.graph import Graph
    >>> graph = Graph()
    >>> p = tensor(graph, [[graph.param(0), graph.param(1)]], torch.float64)
    >>> torch.where(p > 0, p, 0.0).sum(-1)
    NodeTensor([%7 = add(%5, %6)])
    """

    __array_priority__ = 1000

    def __init__(self, graph: Graph, nodes: Array, dtype: torch.dtype) -> None:
        self.graph = graph
        self.nodes = nodes
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"NodeTensor({self.nodes.tolist()})"

    @property
    def shape(self) -> tuple[int, ...]:
        """With 1 for the problems."""
        return cast("tuple[int, ...]", self.nodes.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return cast(int, self.nodes.ndim)

    # -- elementwise

    def _apply(self, op: str, *args: Any, dtype: torch.dtype | None = None) -> NodeTensor:
        arrays = [_nodes(self.graph, arg) for arg in args]
        values = np.frompyfunc(lambda *nodes: self.graph.apply(op, *nodes), len(arrays), 1)(*arrays)
        return NodeTensor(self.graph, _array(values), dtype or self.dtype)

    def _compare(self, op: str, *args: Any) -> NodeTensor:
        return self._apply(op, *args, dtype=torch.bool)

    def __add__(self, other: Any) -> NodeTensor:
        return self._apply("add", self, other)

    def __radd__(self, other: Any) -> NodeTensor:
        return self._apply("add", other, self)

    def __sub__(self, other: Any) -> NodeTensor:
        return self._apply("sub", self, other)

    def __rsub__(self, other: Any) -> NodeTensor:
        return self._apply("sub", other, self)

    def __mul__(self, other: Any) -> NodeTensor:
        if other is not self and self.dtype == torch.bool:
            self, other = other, self
        if isinstance(other, NodeTensor) and other.dtype == torch.bool:
            return cast(NodeTensor, where(other, self, 0.0))
        return self._apply("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> NodeTensor:
        # one reciprocal a divisor, however often it divides
        one = self.graph.const(1.0)
        other = NodeTensor(self.graph, _nodes(self.graph, other), self.dtype)
        inverse = np.frompyfunc(lambda node: self.graph.div(one, node), 1, 1)(other.nodes)
        return self._apply("mul", self, NodeTensor(self.graph, _array(inverse), self.dtype))

    def __rtruediv__(self, other: Any) -> NodeTensor:
        return NodeTensor(self.graph, _nodes(self.graph, other), self.dtype) / self

    def __pow__(self, exponent: Any) -> NodeTensor:
        return self._apply("pow", self, exponent)

    def __neg__(self) -> NodeTensor:
        return self._apply("neg", self)

    def __and__(self, other: Any) -> NodeTensor:
        return self._compare("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> NodeTensor:
        return self._compare("or", self, other)

    __ror__ = __or__

    def __invert__(self) -> NodeTensor:
        return self._compare("not", self)

    def __lt__(self, other: Any) -> NodeTensor:
        return self._compare("lt", self, other)

    def __le__(self, other: Any) -> NodeTensor:
        return self._compare("le", self, other)

    def __gt__(self, other: Any) -> NodeTensor:
        return self._compare("gt", self, other)

    def __ge__(self, other: Any) -> NodeTensor:
        return self._compare("ge", self, other)

    def __eq__(self, other: object) -> NodeTensor:  # type: ignore[override]
        return self._compare("eq", self, other)

    def __ne__(self, other: object) -> NodeTensor:  # type: ignore[override]
        return self._compare("ne", self, other)

    __hash__ = None  # type: ignore[assignment]

    def abs(self) -> NodeTensor:
        """|a|."""
        return self._apply("abs", self)

    def sqrt(self) -> NodeTensor:
        """√a."""
        return self._apply("sqrt", self)

    def clamp(self, min: Any = None, max: Any = None) -> NodeTensor:
        """Within bounds; what is NaN stays so."""
        result = self
        if min is not None:
            result = self._apply("maximum", min, result)
        if max is not None:
            result = self._apply("minimum", max, result)
        return result

    # -- one type for all numbers

    def double(self) -> NodeTensor:
        """The tensor itself."""
        return self

    def to(self, dtype: torch.dtype) -> NodeTensor:
        """The tensor itself."""
        return self

    # -- shape

    def __getitem__(self, key: Any) -> NodeTensor:
        return NodeTensor(self.graph, _array(self.nodes[key]), self.dtype)

    def reshape(self, *shape: Any) -> NodeTensor:
        """Another shape."""
        return NodeTensor(self.graph, self.nodes.reshape(*shape), self.dtype)

    def expand(self, *shape: int) -> NodeTensor:
        """Repeated to a shape; −1 keeps a size."""
        wanted = tuple(
            own if size == -1 else size for own, size in zip(self.shape, shape, strict=True)
        )
        return NodeTensor(self.graph, np.broadcast_to(self.nodes, wanted), self.dtype)

    # -- over the parameters

    def _reduce(self, op: str, dim: int) -> NodeTensor:
        moved = np.moveaxis(self.nodes, dim, 0)
        total = moved[0]
        for part in moved[1:]:
            total = np.frompyfunc(lambda a, b: self.graph.apply(op, a, b), 2, 1)(total, part)
        return NodeTensor(self.graph, _array(total), self.dtype)

    def sum(self, dim: int) -> NodeTensor:
        """Sum along a dimension."""
        return self._reduce("add", dim)

    def amax(self, dim: int) -> NodeTensor:
        """Largest along a dimension."""
        return self._reduce("maximum", dim)

    def all(self, dim: int) -> NodeTensor:
        """Whether all along a dimension hold."""
        return self._reduce("and", dim)

    def any(self, dim: int) -> NodeTensor:
        """Whether any along a dimension holds."""
        return self._reduce("or", dim)

    # -- torch.function(tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = FUNCTIONS.get(func)
        if handler is None:
            raise NotImplementedError(f"{getattr(func, '__name__', func)} on tensors of nodes")
        return handler(*args, **(kwargs or {}))


def _array(value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _nodes(graph: Graph, value: Any) -> Array:
    """The nodes of an operand: of a tensor, or a number's."""
    if isinstance(value, NodeTensor):
        return value.nodes
    if isinstance(value, (bool, int, float)):
        return _array(graph.const(float(value)))
    raise TypeError(f"tensors of nodes do not mix with {type(value).__name__}")


def tensor(graph: Graph, nodes: Any, dtype: torch.dtype) -> NodeTensor:
    """A tensor of nodes from nested lists."""
    depth, inner = 0, nodes
    while isinstance(inner, (list, tuple)):
        depth, inner = depth + 1, inner[0]
    shape, level = [], nodes
    for _ in range(depth):
        shape.append(len(level))
        level = level[0]
    array = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        element = nodes
        for k in index:
            element = element[k]
        array[index] = element
    return NodeTensor(graph, array, dtype)


def where(condition: Any, this: Any, other: Any) -> Any:
    """torch.where for tensors of nodes."""
    like = this if isinstance(this, NodeTensor) else other
    dtype = like.dtype if isinstance(like, NodeTensor) else torch.float64
    return condition._apply("where", condition, this, other, dtype=dtype)


def _full_like(like: NodeTensor, value: float) -> NodeTensor:
    node = like.graph.const(float(value))
    nodes = np.empty(like.shape, dtype=object)
    nodes.fill(node)
    return NodeTensor(like.graph, nodes, like.dtype)


def _zeros_like(like: NodeTensor, dtype: torch.dtype | None = None) -> NodeTensor:
    filled = _full_like(like, 0.0)
    return NodeTensor(like.graph, filled.nodes, dtype or like.dtype)


def _ones_like(like: NodeTensor, dtype: torch.dtype | None = None) -> NodeTensor:
    filled = _full_like(like, 1.0)
    return NodeTensor(like.graph, filled.nodes, dtype or like.dtype)


def _maximum(a: NodeTensor, b: NodeTensor) -> NodeTensor:
    return a._apply("maximum", a, b)


def _minimum(a: NodeTensor, b: NodeTensor) -> NodeTensor:
    return a._apply("minimum", a, b)


def _pointwise(op: str) -> Callable[..., NodeTensor]:
    def apply(a: NodeTensor) -> NodeTensor:
        return a._apply(op, a)

    return apply


def _xlogy(a: NodeTensor, b: NodeTensor) -> NodeTensor:
    product = a * b._apply("log", b)
    return cast(NodeTensor, where(a == 0, 0.0, product))


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.where: where,
    torch.maximum: _maximum,
    torch.minimum: _minimum,
    torch.isfinite: lambda a: a._compare("isfinite", a),
    torch.sqrt: _pointwise("sqrt"),
    torch.log1p: _pointwise("log1p"),
    torch.atan: _pointwise("atan"),
    torch.exp: _pointwise("exp"),
    torch.log: _pointwise("log"),
    torch.xlogy: _xlogy,
    torch.full_like: _full_like,
    torch.zeros_like: _zeros_like,
    torch.ones_like: _ones_like,
    Tensor.__rsub__: lambda a, b: b - a,
}
"""torch's functions that the policy and the likelihoods call."""


class NodeBlocks:
    """The P×P operations of the step policy, unrolled; see :class:`torchimize.lsq.policy.Blocks`.

    Symmetric matrices are (1, P, P) tensors with the same node on both sides of the diagonal. A
    factor is the pair of L (unit lower triangle) and 1/d of L d Lᵀ, which needs no square root.
    """

    def factor(self, matrix: NodeTensor, shift: NodeTensor) -> tuple[Any, NodeTensor]:
        """L d Lᵀ of ``matrix + shift I``, and where all of d is positive."""
        g, a = matrix.graph, matrix.nodes[0]
        size = len(a)
        (extra,) = shift.nodes
        lower: dict[tuple[int, int], Node] = {}
        scaled: dict[tuple[int, int], Node] = {}
        inverse: list[Node] = []
        exists = g.const(1.0)
        for i in range(size):
            for j in range(i + 1):
                entry = g.add(a[i, i], extra) if i == j else a[i, j]
                for k in range(j):
                    entry = g.sub(entry, g.mul(scaled[i, k], lower[j, k]))
                if j < i:
                    scaled[i, j], lower[i, j] = entry, g.mul(entry, inverse[j])
            positive = g.apply("gt", entry, g.const(0.0))
            exists = g.apply("and", exists, positive)
            inverse.append(g.div(g.const(1.0), g.where(positive, entry, g.const(1.0))))
        found = NodeTensor(g, _array(np.array([exists], dtype=object)), torch.bool)
        return (lower, inverse), found

    def _half(self, factor: Any, vector: NodeTensor) -> list[Node]:
        """L⁻¹ vector."""
        g, (lower, _), (b,) = vector.graph, factor, vector.nodes
        half: list[Node] = []
        for i in range(len(b)):
            entry = b[i]
            for k in range(i):
                entry = g.sub(entry, g.mul(lower[i, k], half[k]))
            half.append(entry)
        return half

    def solve(self, factor: Any, vector: NodeTensor) -> NodeTensor:
        """(L d Lᵀ)⁻¹ vector."""
        g, (lower, inverse) = vector.graph, factor
        half = self._half(factor, vector)
        size = len(half)
        solution = [g.mul(h, d) for h, d in zip(half, inverse, strict=True)]
        for i in reversed(range(size)):
            for k in range(i + 1, size):
                solution[i] = g.sub(solution[i], g.mul(lower[k, i], solution[k]))
        return tensor(g, [solution], vector.dtype)

    def inverse_form(self, factor: Any, vector: NodeTensor) -> NodeTensor:
        """Vectorᵀ (L d Lᵀ)⁻¹ vector."""
        g, (_, inverse) = vector.graph, factor
        total = g.const(0.0)
        for h, d in zip(self._half(factor, vector), inverse, strict=True):
            total = g.add(total, g.mul(g.mul(h, h), d))
        return tensor(g, [total], vector.dtype)

    def inverse(self, factor: Any, matrix: NodeTensor) -> NodeTensor:
        """(L d Lᵀ)⁻¹ = L⁻ᵀ d⁻¹ L⁻¹, of the shape of ``matrix``."""
        g, (lower, inverse), size = matrix.graph, factor, matrix.shape[-1]
        unit: dict[tuple[int, int], Node] = {}  # L⁻¹, whose diagonal is 1
        for j in range(size):
            for i in range(j + 1, size):
                entry = g.neg(lower[i, j])
                for k in range(j + 1, i):
                    entry = g.sub(entry, g.mul(lower[i, k], unit[k, j]))
                unit[i, j] = entry
        found: list[Node] = []
        for i in range(size):
            for j in range(i + 1):
                total = g.mul(inverse[i], unit[i, j]) if j < i else inverse[i]
                for k in range(i + 1, size):
                    total = g.add(total, g.mul(g.mul(inverse[k], unit[k, i]), unit[k, j]))
                found.append(total)
        rows = [
            [found[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(size)]
            for i in range(size)
        ]
        return tensor(g, [rows], matrix.dtype)

    def multiply(self, matrix: NodeTensor, vector: NodeTensor) -> NodeTensor:
        """Matrix times vector."""
        return (matrix * vector[:, None, :]).sum(-1)

    def diagonal(self, matrix: NodeTensor) -> NodeTensor:
        """The diagonal."""
        nodes = np.array([np.diagonal(matrix.nodes[0])], dtype=object)
        return NodeTensor(matrix.graph, nodes, matrix.dtype)

    def scaled(self, matrix: NodeTensor, scale: NodeTensor) -> NodeTensor:
        """Matrix over scale scaleᵀ."""
        inverse = 1 / scale
        return matrix * (inverse[:, :, None] * inverse[:, None, :])

    def restricted(self, matrix: NodeTensor, free: NodeTensor) -> NodeTensor:
        """The identity's rows and columns where not free."""
        eye = np.empty(matrix.shape, dtype=object)
        eye.fill(matrix.graph.const(0.0))
        for k in range(matrix.shape[-1]):
            eye[0, k, k] = matrix.graph.const(1.0)
        identity = NodeTensor(matrix.graph, eye, matrix.dtype)
        both = free[:, :, None] & free[:, None, :]
        return cast(NodeTensor, where(both, matrix, identity))

    def repeat(
        self,
        times: int,
        todo: NodeTensor,
        body: Callable[..., tuple[NodeTensor, tuple[NodeTensor, ...]]],
        carried: Sequence[NodeTensor],
    ) -> tuple[NodeTensor, ...]:
        """A loop that runs while any problem is in ``todo``, at most ``times`` times."""
        graph = todo.graph
        shapes = [part.shape for part in carried]
        dtypes = [part.dtype for part in carried]
        sizes = [math.prod(shape) for shape in shapes]

        def pack(nodes: Sequence[Node]) -> list[NodeTensor]:
            parts, start = [], 0
            for shape, dtype, size in zip(shapes, dtypes, sizes, strict=True):
                array = np.empty(size, dtype=object)
                array[:] = nodes[start : start + size]
                parts.append(NodeTensor(graph, array.reshape(shape), dtype))
                start += size
            return parts

        def flat(parts: Sequence[NodeTensor]) -> tuple[Node, ...]:
            return tuple(
                node
                for part, shape in zip(parts, shapes, strict=True)
                for node in np.broadcast_to(part.nodes, shape).ravel()
            )

        def on_nodes(nodes: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
            again, updated = body(*pack(nodes))
            return again.nodes[0], flat(updated)

        return tuple(pack(graph.loop(times, todo.nodes[0], flat(carried), on_nodes)))


def is_condition(node: Node) -> bool:
    """Whether a node is a truth value."""
    return node.op in CONDITIONS
