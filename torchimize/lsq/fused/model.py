"""The function, its derivatives and the likelihood as sums over the samples."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor

from torchimize.kernel.derivative import forward
from torchimize.kernel.graph import PROBLEM, SAMPLE, Graph, Node
from torchimize.kernel.lanes import NodeTensor, tensor
from torchimize.kernel.machine import Sums
from torchimize.kernel.rewrite import Rewriter
from torchimize.lsq.fused.plan import Expressions, Plan, run_lengths
from torchimize.lsq.policy.loss import LOSSES, poisson_terms, robust_information, robust_terms


class Model:
    """Cost, gradient, normal matrix and column norms at the trial point, as sums.

    Attributes
    ----------
    sums : Sums
    cost : Node
    gradient, norms : list of Node
        P each.
    matrix : dict of (i, j) to Node
        Lower triangle.
    booleans, singles : frozenset
        Names of loads that are truth values, or float32 in a kernel of float64.
    """

    def __init__(self, plan: Plan, expressions: Expressions, graph: Graph) -> None:
        self.plan = plan
        trace, size = expressions.trace, plan.num_params
        inner, values = expressions.named()
        self.inner, self.graph = inner, graph
        lengths = run_lengths(trace)
        self.sums = Sums(graph, len(lengths))
        self._rewrite = Rewriter(graph, self._leaf, _masks(plan, inner, len(trace.pieces)))
        runs = range(-1, len(lengths))
        self.booleans: frozenset[Hashable] = frozenset(
            [("fixed", j) for j in range(size)]
            + [("mask", k) for k in range(len(trace.pieces))]
            + [
                ("model", k, run)
                for k, node in enumerate(expressions.loads)
                if expressions.is_boolean(node)
                for run in runs
            ]
        )
        self.singles: frozenset[Hashable] = frozenset()
        if plan.data_bits < plan.bits:
            pieces = range(len(trace.pieces))
            self.singles = (
                frozenset(
                    [(name, j) for name in ("lower", "upper") for j in range(size)]
                    + [("model", k, run) for k, _ in enumerate(expressions.loads) for run in runs]
                    + [(name, k) for name in ("observed", "weight") for k in pieces]
                )
                - self.booleans
            )
        zero = graph.const(0.0)
        self.cost = zero
        self.gradient = [zero] * size
        self.matrix = {(i, j): zero for i in range(size) for j in range(i + 1)}
        squares = [zero] * size
        # pieces of a run with the same columns, such as channels that share a model: their slopes
        # are added before they meet the columns
        slopes: dict[tuple[int, ...], tuple[list[Node | None], Node]] = {}
        for number, (piece, value) in enumerate(zip(trace.pieces, values, strict=True)):
            run = lengths.index(piece.length)
            sample = _Sample(plan, inner, number, value)
            columns = [None if c is None else sample.whiten(c) for c in forward(inner, value, size)]
            self.cost = graph.add(self.cost, self._total(run, *sample.value))
            key = (run, *(-1 if c is None else c.serial for c in columns))
            slope = sample.slope
            if key in slopes:
                slope = inner.add(slopes[key][1], slope)
            slopes[key] = (columns, slope)
            for i, column in enumerate(columns):
                if column is None:
                    continue
                curved, weighted = (
                    column if factor is None else inner.mul(factor, column)
                    for factor in (sample.curvature, sample.weight)
                )
                if sample.weight is not None:
                    squares[i] = graph.add(squares[i], self._total(run, weighted, column))
                for j in range(i + 1):
                    other = columns[j]
                    if other is not None:
                        entry = self._total(run, curved, other)
                        self.matrix[i, j] = graph.add(self.matrix[i, j], entry)
        for (run, *_), (columns, slope) in slopes.items():
            for i, column in enumerate(columns):
                if column is not None:
                    entry = self._total(run, column, slope)
                    self.gradient[i] = graph.add(self.gradient[i], entry)
        if plan.loss == "linear" and plan.likelihood != "poisson":
            squares = [self.matrix[i, i] for i in range(size)]
        self.norms = [graph.apply("sqrt", square) for square in squares]

    def _leaf(self, node: Node) -> Node:
        if node.op == "param":
            return self.graph.leaf("state", ("params_trial", node.value), PROBLEM)
        return self.graph.leaf(node.op, node.value, node.depends)

    def _total(self, run: int, a: Node, b: Node) -> Node:
        return self.sums.total(run, self._rewrite(a), self._rewrite(b))


def _masks(plan: Plan, graph: Graph, num_pieces: int) -> list[Node]:
    """The conditions of the pieces' masks, where there are any."""
    for name, own in plan.data:
        if name == "mask":
            return [_mask(graph, piece, own) for piece in range(num_pieces)]
    return []


def _mask(graph: Graph, piece: int, own: bool) -> Node:
    load = graph.leaf("load", ("mask", piece), SAMPLE | (PROBLEM if own else 0))
    return graph.apply("ne", load, graph.const(0.0))


class _Sample:
    """What the likelihood makes of one value of the function.

    Attributes
    ----------
    value : (Node, Node)
        Two factors of its share of the cost.
    slope : Node
    curvature, weight : Node or None
        None is 1. All as in :mod:`torchimize.lsq.policy.loss`.
    """

    def __init__(self, plan: Plan, graph: Graph, piece: int, value: Node) -> None:
        self.graph = graph
        self.data = {
            name: graph.leaf("load", (name, piece), SAMPLE | (PROBLEM if own else 0))
            for name, own in plan.data
        }
        self.mask: Node | None = None
        if "mask" in self.data:
            self.mask = _mask(graph, piece, dict(plan.data)["mask"])
        dtype = plan.dtype
        one = graph.const(1.0)
        self.curvature: Node | None = None
        self.weight: Node | None = None
        if plan.likelihood == "poisson":
            counts, model = self.data["observed"], value
            if self.mask is not None:
                model = graph.where(self.mask, model, one)
            terms = poisson_terms(
                *(cast(Tensor, tensor(graph, [n], dtype)) for n in (model, counts))
            )
            cost, self.slope, self.curvature, self.weight = (self._masked(t) for t in terms)
            self.value = cost, one
            if plan.fisher:
                information = cast(Tensor, tensor(graph, [graph.div(one, model)], dtype))
                self.curvature = self._masked(information)
            return
        residual = value
        if "observed" in self.data:
            residual = graph.sub(value, self.data["observed"])
        residual = self.whiten(residual)
        if plan.loss == "linear":
            self.value = graph.scale(0.5, residual), residual
            self.slope = residual
            return
        scale = tensor(graph, [graph.leaf("load", "f_scale", 0)], dtype)
        loss = LOSSES[plan.loss]
        assert loss is not None
        terms = robust_terms(
            loss, cast(Tensor, tensor(graph, [residual], dtype)), cast(float, scale)
        )
        cost, self.slope, self.curvature, self.weight = (node_of(term) for term in terms)
        self.value = cost, one
        if plan.fisher:
            # its floor is the eps of the data
            own = torch.float32 if plan.data_bits == 32 else torch.float64
            whitened = cast(Tensor, tensor(graph, [residual], own))
            self.curvature = node_of(robust_information(loss, whitened, cast(float, scale)))

    def whiten(self, column: Node) -> Node:
        """A column as its residual: masked and weighed."""
        if self.mask is not None:
            column = self.graph.where(self.mask, column, self.graph.const(0.0))
        if "weight" in self.data:
            column = self.graph.mul(column, self.data["weight"])
        return column

    def _masked(self, term: Tensor) -> Node:
        node = node_of(term)
        if self.mask is None:
            return node
        return self.graph.where(self.mask, node, self.graph.const(0.0))


def node_of(value: Tensor) -> Node:
    """The node of a tensor of one."""
    (node,) = cast(NodeTensor, value).nodes
    return cast(Node, node)
