"""The machines of the fused engine: a whole fit, one evaluation, and the covariance.

The algorithm is not written here: the step policy runs on tensors of graph nodes, and so does the
covariance of :mod:`torchimize.lsq.covariance`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from torchimize.kernel.graph import PROBLEM, Graph, Node
from torchimize.kernel.lanes import NodeBlocks, NodeTensor, tensor
from torchimize.kernel.machine import Field, History, Machine, Output
from torchimize.lsq.fused.model import Model, node_of
from torchimize.lsq.fused.plan import Expressions, Plan
from torchimize.lsq.inverse import well_conditioned_inverse
from torchimize.lsq.policy import Policy, Proposal, State
from torchimize.status import RUNNING, Status

CONDITIONS = frozenset(
    {"trusted", "fixed", "fresh", "lost_sight", "usable", "limited", "bent", "free"}
)
"""Fields of state and proposal that are truth values."""

VECTORS = frozenset(
    {"params", "lower", "upper", "fixed", "gradient", "scale", "last_step", "size"}
    | {"step", "params_trial", "free", "judged"}
)
"""Fields with one number per parameter."""


OUT_OF_RANGE = -100
"""Status of a problem that a kernel of float32 did not take on; never leaves the engine."""

COST_RANGE = (1e-16, 1e20)
"""Costs at the start from which float32 goes down without under- or overflow on the way."""

SQUARED_NORM_RANGE = (1e-30, 1e30)
"""The same for the squared norms of the Jacobian's columns."""


class _Tensors:
    """Tensors of nodes for what a machine knows of its problems.

    Attributes
    ----------
    names : dict of str to list
        The elements of the fields that were declared.
    """

    def __init__(self, graph: Graph, size: int, dtype: torch.dtype) -> None:
        self.graph, self.size, self.dtype = graph, size, dtype
        self.names: dict[str, list[Hashable]] = {}

    def field(self, name: str, key: str = "") -> NodeTensor:
        """A field of the state, as it was before the step."""
        key = key or name
        op = "state_condition" if name in CONDITIONS else "state"
        kind = torch.bool if name in CONDITIONS else self.dtype
        elements = self.names[key] = elements_of(name, key, self.size)
        leaves = [self.graph.leaf(op, element, PROBLEM) for element in elements]
        if name == "normal_matrix":
            return self.symmetric(leaves)
        return tensor(self.graph, [leaves] if name in VECTORS else leaves, kind)

    def given(self, name: str, shared: bool = False) -> NodeTensor:
        """A row (P,) per problem, or for all."""
        depends = 0 if shared else PROBLEM
        loads = [self.graph.leaf("load", (name, j), depends) for j in range(self.size)]
        if name not in CONDITIONS:
            return tensor(self.graph, [loads], self.dtype)
        zero = self.graph.const(0.0)
        truths = [self.graph.apply("ne", load, zero) for load in loads]
        return tensor(self.graph, [truths], torch.bool)

    def number(self, name: str, depends: int = 0) -> NodeTensor:
        """A number for all problems, or one of each."""
        return tensor(self.graph, [self.graph.leaf("load", name, depends)], self.dtype)

    def constant(self, value: float) -> NodeTensor:
        """A constant as one number per problem."""
        return tensor(self.graph, [self.graph.const(value)], self.dtype)

    def nothing_fixed(self) -> NodeTensor:
        """No parameter."""
        return tensor(self.graph, [[self.graph.const(0.0)] * self.size], torch.bool)

    def symmetric(self, triangle: Sequence[Node]) -> NodeTensor:
        """A matrix from the rows of its lower triangle."""
        rows = [
            [triangle[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(self.size)]
            for i in range(self.size)
        ]
        return tensor(self.graph, [rows], self.dtype)


def elements_of(name: str, key: str, size: int) -> list[Hashable]:
    """The names of a field's numbers."""
    if name == "normal_matrix":
        return [(key, i, j) for i in range(size) for j in range(i + 1)]
    return [(key, j) for j in range(size)] if name in VECTORS else [key]


def build_machine(plan: Plan, expressions: Expressions) -> Machine:
    """A whole fit."""
    graph = Graph()
    model = Model(plan, expressions, graph)
    make = _Tensors(graph, plan.num_params, plan.dtype)
    start = make.given("params0")
    fixed = make.given("fixed", plan.shared_bounds) if plan.fixed else make.nothing_fixed()
    known = {"status": make.constant(float(RUNNING)), "fixed": fixed}
    for name in ("lower", "upper"):
        # without a box the policy does not look at it
        known[name] = make.given(name, plan.shared_bounds) if plan.boxed else start
    before = {
        f.name: known[f.name] if f.name in known else make.field(f.name) for f in fields(State)
    }
    proposed = {f.name: make.field(f.name, _key(f.name)) for f in fields(Proposal)}
    iterations = make.field("iterations")
    first = before["njev"] == 0.0
    before["size"] = cast(
        NodeTensor,
        torch.where(cast(Tensor, first[:, None]), before["params"].abs(), before["size"]),  # type: ignore[call-overload]
    )
    state, proposal = State(**cast(Any, before)), Proposal(**cast(Any, proposed))
    policy = Policy(plan.rule, _tests_at_run_time(plan, make), plan.boxed)
    cost, gradient, norms = (
        cast(Tensor, tensor(graph, nodes, plan.dtype))
        for nodes in ([model.cost], [model.gradient], [model.norms])
    )
    triangle = [model.matrix[i, j] for i in range(plan.num_params) for j in range(i + 1)]
    normal_matrix = cast(Tensor, make.symmetric(triangle))
    blocks = cast(Any, NodeBlocks())

    state = policy.judge(blocks, state, proposal, cost)
    judged = state.params
    if plan.limited:
        spent = state.running & cast(Tensor, iterations >= make.number("max_iter"))
        stopped = torch.full_like(state.status, int(Status.MAX_NFEV))
        state = replace(state, status=torch.where(spent, stopped, state.status))
    where = state.fresh & state.running
    state = policy.at_new_point(blocks, state, where, cost, gradient, normal_matrix, norms)
    if plan.bits == 32:
        outside = where & cast(Tensor, first) & ~_within_range(blocks, cost, normal_matrix)
        code = torch.full_like(state.status, OUT_OF_RANGE)
        state = replace(state, status=torch.where(outside & state.running, code, state.status))
    state, proposal = policy.propose(blocks, state)
    finished = state.status != RUNNING

    after: dict[str, Any] = {"iterations": iterations + 1.0}
    after |= {f.name: getattr(state, f.name) for f in fields(State)}
    after |= {_key(f.name): getattr(proposal, f.name) for f in fields(Proposal)}
    initial: dict[str, float | NodeTensor] = {
        "params": start,
        "params_trial": start,
        "damping_growth": 2.0,
        "fresh": 1.0,
        "status": float(RUNNING),
    }
    names: dict[str, list[Hashable]] = {**make.names, "status": ["status"]}
    if plan.scaled:
        initial["scale"] = make.given("scale")
    history = None
    if plan.history:
        names["judged"] = elements_of("judged", "judged", plan.num_params)
        after["judged"] = judged
        initial["judged"] = start
        history = History(names["judged"], "iterations")
    outputs = [
        Output("params", names["params"], "real"),
        Output("cost", names["cost"], "float64"),
        Output("status", names["status"], "int8"),
        Output("nfev", names["nfev"], "int64"),
        Output("njev", names["njev"], "int64"),
    ]
    if plan.inverse:
        names["inverse"] = elements_of("normal_matrix", "inverse", plan.num_params)
        names["trusted"] = ["trusted"]
        after |= _inverse_where(make, blocks, state, finished)
        outputs.append(_full_matrix("inverse", plan.num_params))
        outputs.append(Output("trusted", names["trusted"], "int8"))
    if plan.history:
        outputs.append(Output("iterations", names["iterations"], "int64"))
    machine = Machine(
        graph=graph,
        runs=model.sums.runs,
        fields=_fields(graph, names, initial, after),
        finished=node_of(finished),
        outputs=outputs,
        booleans=model.booleans,
        singles=model.singles,
        history=history,
    )
    return machine.without_dead_fields()


def _within_range(blocks: Any, cost: Tensor, normal_matrix: Tensor) -> Tensor:
    """Whether a fit that begins like this stays within what float32 can hold: (B,)."""
    # what is 0 may have been flushed to it
    least, most = COST_RANGE
    fits = (cost > least) & (cost < most)
    least, most = SQUARED_NORM_RANGE
    squares = blocks.diagonal(normal_matrix)
    inside: Tensor = ((squares > least) & (squares < most)).all(-1)
    return fits & inside


def _inverse_where(
    make: _Tensors, blocks: Any, state: State, finished: Tensor
) -> dict[str, NodeTensor]:
    """The inverse of the normal matrix, and whether it is trusted, once a problem is done."""
    elements = elements_of("normal_matrix", "inverse", make.size)
    before = tensor(
        make.graph, [[make.graph.leaf("state", e, PROBLEM) for e in elements]], make.dtype
    )
    trusted = make.field("trusted")

    def body(_: Any, __: Any) -> tuple[Any, tuple[Any, ...]]:
        inverse, good = well_conditioned_inverse(
            blocks, state.normal_matrix, ~state.fixed, cast(Any, make.number("condition"))
        )
        nodes = cast(NodeTensor, inverse).nodes[0]
        half = [nodes[i, j] for i in range(make.size) for j in range(i + 1)]
        return ~finished, (tensor(make.graph, [half], make.dtype), good)

    half, good = blocks.repeat(1, finished, body, (before, trusted))
    return {"inverse": make.symmetric(list(half.nodes[0])), "trusted": good}


def _full_matrix(name: str, size: int) -> Output:
    """Both triangles of a symmetric matrix, row by row."""
    places = [(name, max(i, j), min(i, j)) for i in range(size) for j in range(size)]
    return Output(name, places, "float64")


def _key(name: str) -> str:
    """A proposal's field beside the state's of the same name."""
    return "proposed_damping" if name == "damping" else name


def _fields(
    graph: Graph,
    names: dict[str, list[Hashable]],
    initial: dict[str, float | NodeTensor],
    after: dict[str, Any],
) -> list[Field]:
    """The numbers of all fields."""
    found = []
    for key, elements in names.items():
        begin = initial.get(key, 0.0)
        for position, element in enumerate(elements):
            index = (0, *element[1:]) if isinstance(element, tuple) else 0
            start = graph.const(begin) if isinstance(begin, float) else begin.nodes[0, position]
            found.append(Field(element, start, after[key].nodes[index]))
    return found


def _tests_at_run_time(plan: Plan, make: _Tensors) -> Any:
    """The stopping tests with tolerances that are loads."""
    return plan.tests(**{f.name: cast(Any, make.number(f.name)) for f in fields(plan.tests)})


def build_evaluation(plan: Plan, expressions: Expressions) -> Machine:
    """One look at a point: the normal matrix there."""
    graph = Graph()
    model = Model(plan, expressions, graph)
    make = _Tensors(graph, plan.num_params, plan.dtype)
    start = make.given("params0")
    make.field("params_trial")
    make.field("normal_matrix")
    free = torch.ones_like(cast(Tensor, start), dtype=torch.bool)
    if plan.fixed:
        free = ~cast(Tensor, make.given("fixed", plan.shared_bounds))
    triangle = [model.matrix[i, j] for i in range(plan.num_params) for j in range(i + 1)]
    matrix = cast(Tensor, make.symmetric(triangle))
    matrix = torch.where(free[:, :, None] & free[:, None, :], matrix, 0.0)
    names = make.names
    return Machine(
        graph=graph,
        runs=model.sums.runs,
        fields=_fields(
            graph, names, {"params_trial": start}, {"params_trial": start, "normal_matrix": matrix}
        ),
        finished=graph.const(1.0),
        outputs=[_full_matrix("normal_matrix", plan.num_params)],
        booleans=model.booleans,
        singles=model.singles,
    )


def build_inverse(size: int, fixed: bool, shared: bool) -> Machine:
    """Inverses of normal matrices, and where they can be trusted.

    Parameters
    ----------
    size : int
        P.
    fixed, shared : bool
        Whether parameters are fixed, and then the same in all problems.
    """
    graph = Graph()
    make = _Tensors(graph, size, torch.float64)
    elements = elements_of("normal_matrix", "normal_matrix", size)
    triangle = [graph.leaf("load", element, PROBLEM) for element in elements]
    matrix = cast(Tensor, make.symmetric(triangle))
    free = torch.ones_like(matrix[:, 0], dtype=torch.bool)
    if fixed:
        free = ~cast(Tensor, make.given("fixed", shared))
    inverse, trusted = well_conditioned_inverse(
        cast(Any, NodeBlocks()), matrix, free, cast(Any, make.number("condition"))
    )
    names: dict[str, list[Hashable]] = {
        "inverse": elements_of("normal_matrix", "inverse", size),
        "trusted": ["trusted"],
    }
    return Machine(
        graph=graph,
        runs=[],
        fields=_fields(graph, names, {}, {"inverse": inverse, "trusted": trusted}),
        finished=graph.const(1.0),
        outputs=[_full_matrix("inverse", size), Output("trusted", ["trusted"], "int8")],
        booleans=frozenset(("fixed", j) for j in range(size)),
    )
