"""What a compiled kernel does: sums over samples, a step of the state, until each problem is done.

A machine is all of an algorithm that runs on many small problems at once, as nodes of one graph::

    state = initial
    repeat
        sums  = Σ over the samples of products that depend on the state
        state = updated(state, sums)
    until finished(state)
    write the outputs

Renderers (:mod:`~torchimize.kernel.llvm`, :mod:`~torchimize.kernel.triton`) make a kernel of it.
Leaves of the graph, besides constants:

``load``
    An element of some tensor. ``value`` is its name, any hashable; which tensor and which element
    is said when a kernel is bound to its data. ``depends`` tells
    whether it differs between problems and between samples.
``state``, ``state_condition``
    The field named ``value``, as it was before the step.
``sum``
    Σ over the samples of a run: ``value`` = (run, pair).
``length``
    Number of samples of run ``value``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torchimize.kernel.graph import PROBLEM, SAMPLE, Graph, Loop, Node, reachable


@dataclass
class Run:
    """Samples that are summed over in one loop.

    Attributes
    ----------
    pairs : list of (Node, Node)
        The products that are summed.
    """

    pairs: list[tuple[Node, Node]] = field(default_factory=list)


@dataclass(frozen=True)
class Field:
    """One number of the state.

    Attributes
    ----------
    name : hashable
    initial : Node
        A constant or a load that does not depend on the sample.
    updated : Node
    """

    name: Hashable
    initial: Node
    updated: Node


@dataclass(frozen=True)
class Output:
    """Numbers of the state that are written side by side when a problem is done.

    Attributes
    ----------
    name : str
    fields : sequence of hashable
        Their names.
    dtype : str
        'real' (the kernel's own), 'float64', 'float32', 'int64' or 'int8'.
    """

    name: str
    fields: Sequence[Hashable]
    dtype: str


@dataclass(frozen=True)
class History:
    """Numbers of the state that are written after every step.

    Attributes
    ----------
    fields : sequence of hashable
    step : hashable
        The field that holds, before the step, which entry to write.
    """

    fields: Sequence[Hashable]
    step: Hashable


@dataclass
class Machine:
    """See the module.

    Attributes
    ----------
    graph : Graph
    runs : list of Run
    fields : list of Field
    finished : Node
        Condition.
    outputs : list of Output
    booleans : frozenset
        Names of loads whose tensors are truth values, read as 0 and 1.
    singles : frozenset
        Names of loads whose tensors are float32 where the kernel computes in float64.
    history : History, optional
    """

    graph: Graph
    runs: list[Run]
    fields: list[Field]
    finished: Node
    outputs: list[Output]
    booleans: frozenset[Hashable] = frozenset()
    singles: frozenset[Hashable] = frozenset()
    history: History | None = None

    def without_dead_fields(self) -> Machine:
        """The same machine with the fields that an output or the end depends on, and no others."""
        by_name = {f.name: f for f in self.fields}
        live = {name for output in self.outputs for name in output.fields}
        if self.history is not None:
            live |= {*self.history.fields, self.history.step}
        sums = [node for run in self.runs for pair in run.pairs for node in pair]
        while True:
            roots = [by_name[name].updated for name in live]
            found = {
                node.value
                for node in everything([*sums, self.finished, *roots])
                if node.op in ("state", "state_condition")
            }
            if found <= live:
                break
            live |= found
        return replace(self, fields=[f for f in self.fields if f.name in live])

    def loads(self) -> list[Node]:
        """The loads that anything needs, in the order of the graph."""
        roots = [node for run in self.runs for pair in run.pairs for node in pair]
        roots += [node for f in self.fields for node in (f.initial, f.updated)]
        return [node for node in everything([*roots, self.finished]) if node.op == "load"]

    def loads_of(self, run: Run) -> list[Node]:
        """The loads that the products of a run need."""
        roots = [node for pair in run.pairs for node in pair]
        return [node for node in everything(roots) if node.op == "load"]


def everything(roots: Iterable[Node]) -> list[Node]:
    """The nodes that ``roots`` need, those within loops too, in the order of the graph."""
    found: dict[int, Node] = {}
    waiting = list(roots)
    seen: set[int] = set()
    while waiting:
        for node in reachable(waiting):
            found[node.serial] = node
        waiting = []
        for node in list(found.values()):
            if node.op in ("loop", "loop_condition"):
                loop: Loop = node.value[0]  # type: ignore[index]
                if id(loop) not in seen:
                    seen.add(id(loop))
                    assert loop.todo is not None
                    waiting += [*loop.updated, loop.todo]
    return [found[serial] for serial in sorted(found)]


class Sums:
    """Builds the sums of products of one graph, each product summed once.

    A factor that does not depend on the sample leaves the sum.

    Parameters
    ----------
    graph : Graph
    num_runs : int
    """

    def __init__(self, graph: Graph, num_runs: int) -> None:
        self.graph = graph
        self.runs = [Run() for _ in range(num_runs)]
        self._known: dict[tuple[int, int, int], Node] = {}

    def total(self, run: int, a: Node, b: Node) -> Node:
        """Σ a·b over the samples of a run."""
        g = self.graph
        (scale_a, a), (scale_b, b) = split(g, a), split(g, b)
        if a.serial > b.serial:
            a, b = b, a
        key = (run, a.serial, b.serial)
        if key not in self._known:
            if a.op == b.op == "const":
                self._known[key] = g.leaf("length", run, 0)
            else:
                pairs = self.runs[run].pairs
                self._known[key] = g.leaf("sum", (run, len(pairs)), PROBLEM)
                pairs.append((a, b))
        return g.mul(g.mul(scale_a, scale_b), self._known[key])


def split(g: Graph, node: Node) -> tuple[Node, Node]:
    """A node as (factor that does not depend on the sample, the rest)."""
    if not node.depends & SAMPLE:
        return node, g.const(1.0)
    if node.op == "neg":
        factor, rest = split(g, node.args[0])
        return g.neg(factor), rest
    if node.op == "mul":
        a, b = node.args
        if not a.depends & SAMPLE:
            return a, b
        if not b.depends & SAMPLE:
            return b, a
    return g.const(1.0), node


def load(g: Graph, name: Hashable, depends: int) -> Node:
    """A load by name."""
    return g.leaf("load", name, depends)
