"""Torch code on tensors of nodes: what a kernel makes of it is what torch computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize.kernel.driver import Kernel
from torchimize.kernel.graph import PROBLEM, Graph
from torchimize.kernel.lanes import NodeBlocks, NodeTensor, is_condition, tensor
from torchimize.kernel.machine import Field, Machine, Output, load
from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy import (
    AbsoluteTests,
    GaussNewton,
    Marquardt,
    Nielsen,
    Policy,
    Proposal,
    RelativeTests,
    State,
    TrustRegion,
)
from torchimize.lsq.policy.loss import LOSSES, poisson_terms, robust_terms
from torchimize.status import RUNNING

DOUBLE = torch.float64


def nodes_like(graph: Graph, name: str, value: Tensor) -> NodeTensor:
    """A tensor of loads of the shape of ``value`` (B, ...), truth values as conditions."""
    shape = value.shape[1:]
    truths = value.dtype == torch.bool
    array = np.empty((1, *shape), dtype=object)
    for index in np.ndindex(*shape):
        node = load(graph, (name, *index), PROBLEM)
        array[(0, *index)] = graph.apply("ne", node, graph.const(0.0)) if truths else node
    return NodeTensor(graph, array, torch.bool if truths else DOUBLE)


def computed(function: Callable[..., Any], **given: Tensor) -> list[Tensor]:
    """What a kernel gives for ``function`` of tensors (B, ...) by name: a list of (B, ...)."""
    graph = Graph()
    made = function(**{name: nodes_like(graph, name, value) for name, value in given.items()})
    parts = list(made) if isinstance(made, (tuple, list)) else [made]
    nodes = [node for part in parts for node in part.nodes.ravel()]
    state = [Field(k, graph.const(0.0), node) for k, node in enumerate(nodes)]
    outputs = [Output("out", [f.name for f in state], "real")]
    machine = Machine(graph, [], state, graph.const(1.0), outputs)
    kernel = Kernel(machine, 64)
    batch = len(next(iter(given.values())))
    views: dict[Any, Tensor] = {}
    for name, value in given.items():
        for index in np.ndindex(*value.shape[1:]):
            views[name, *index] = value[(slice(None), *index)].double()
    out = torch.zeros(batch, len(nodes), dtype=DOUBLE)
    kernel.bind([], views, {"out": out}).run(0, batch)
    found, start = [], 0
    for part in parts:
        size = part.nodes.size
        flat = out[:, start : start + size]
        start += size
        value = flat.reshape(batch, *part.shape[1:])
        found.append(value.bool() if part.dtype == torch.bool else value)
    return found


def assert_torch(
    function: Callable[..., Any], tolerance: float = 1e-13, **given: Tensor
) -> list[Tensor]:
    """The kernel's results are torch's."""
    found = computed(function, **given)
    wanted = function(**given)
    parts = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
    for one, other in zip(found, parts, strict=True):
        torch.testing.assert_close(
            one, other.to(one.dtype).expand(one.shape), rtol=tolerance, atol=tolerance,
            equal_nan=True,
        )  # fmt: skip
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


# ------------------------------------------------------------------------------------- elementwise

A, C = draw(30, 3), draw(30, 3, seed=1)
V = draw(30, seed=2)
M = draw(30, 3, 3, seed=3)
ODD = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1.0, -2.0]).double()

EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "a + b": lambda a, c, v: (a + c, a + 1, 2.5 + a, a + v[:, None]),
    "a - b": lambda a, c, v: (a - c, a - 1, 2.5 - a, v[:, None] - a),
    "a * b": lambda a, c, v: (a * c, a * 3, 0.5 * a, a * v[:, None]),
    "a / b": lambda a, c, v: (a / c, a / 3, 2.0 / a, a / v[:, None]),
    "-a": lambda a, c, v: -a,
    "a ** n": lambda a, c, v: (a**2, a**3, a.abs() ** 0.5),
    "compare": lambda a, c, v: (a < c, a <= c, a > 0.5, a >= c, a == a, a != c, a == 0),
    "truth": lambda a, c, v: ((a < c) & (c < 0), (a < c) | (c < 0), ~(a < c)),
    "truth times number": lambda a, c, v: (a * (c > 0), (c > 0) * a),
    "where": lambda a, c, v: (
        torch.where(a < c, a, c),
        torch.where(a < 0, 0.0, a),
        torch.where(a < 0, a, 1.0),
        torch.where((v > 0)[:, None], a, c),
        torch.where(a < c, a < 0, c < 0),
    ),
    "extremes": lambda a, c, v: (torch.maximum(a, c), torch.minimum(a, c), a.clamp(min=0.2),
                                 a.clamp(max=0.1), a.clamp(min=-0.3, max=0.4)),
    "functions": lambda a, c, v: (
        a.abs(), a.abs().sqrt(), torch.sqrt(a * a), torch.exp(a), torch.log(a.abs()),
        torch.log1p(a.abs()), torch.atan(a), torch.xlogy(a.abs() * (a > 0), c.abs()),
        torch.isfinite(a),
    ),
    "filled": lambda a, c, v: (torch.full_like(a, 2.5), torch.zeros_like(a), torch.ones_like(a),
                               torch.zeros_like(a, dtype=torch.bool)),
    "over parameters": lambda a, c, v: (a.sum(-1), a.amax(-1), (a < 1).all(-1), (a > 1).any(-1)),
    "shapes": lambda a, c, v: (a[:, 0], a[:, None, :] * c[:, :, None], a[:, 1:], a.reshape(-1, 3),
                               v[:, None].expand(-1, 3), a.double(), a.to(torch.float64)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_operations_are_torchs(name: str) -> None:
    assert_torch(EXPRESSIONS[name], a=A, c=C, v=V)


def test_operations_on_what_is_not_finite() -> None:
    a, c = (part.reshape(-1) for part in torch.meshgrid(ODD, ODD, indexing="ij"))

    def function(a: Any, c: Any) -> tuple[Any, ...]:
        return (
            torch.maximum(a, c), torch.minimum(a, c), a.clamp(min=1.0), a.clamp(max=-1.0),
            a.clamp(min=-0.5, max=0.5), torch.where(a < c, a, c), torch.where(a == c, 0.0, a - c),
            a + c, a - c, a * c, a < c, a >= c, a == c, a != c, torch.isfinite(a), a.abs(),
            torch.isfinite(a) & (c > 0), ~(a < c), torch.sqrt(a), a == a,
        )  # fmt: skip

    assert_torch(function, 0, a=a, c=c)


def test_functions_without_a_node_form_are_named() -> None:
    graph = Graph()
    a = tensor(graph, [[graph.param(0), graph.param(1)]], DOUBLE)
    with pytest.raises(NotImplementedError, match="cumsum"):
        torch.cumsum(cast(Tensor, a), -1)
    with pytest.raises(TypeError, match="Tensor"):
        _ = a + torch.ones(2)
    with pytest.raises(TypeError, match="NoneType"):
        _ = a * None


def test_tensors_of_nodes_look_like_tensors() -> None:
    graph = Graph()
    rows = [[[graph.param(2 * i + j) for j in range(2)] for i in range(3)]]
    a = tensor(graph, rows, torch.float32)
    assert a.shape == (1, 3, 2) and a.ndim == 3 and a.dtype == torch.float32
    assert torch.finfo(cast(Any, a.dtype)).eps == 2.0**-23
    assert (a < 0).dtype == torch.bool and a[0, 1].shape == (2,)
    assert all(is_condition(node) for node in (a < 0).nodes.ravel())
    assert not any(is_condition(node) for node in a.nodes.ravel())
    assert "param" in repr(a) and a[:, None].shape == (1, 1, 3, 2)


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss is not None])
def test_losses_are_torchs(loss: str) -> None:
    function = LOSSES[loss]
    assert function is not None
    residual = torch.cat([draw(40) * 3, torch.tensor([0.0, 0.7, -0.7, 1e3, -1e6]).double()])
    found = assert_torch(lambda r: robust_terms(function, r, 0.7), r=residual)
    assert len(found) == 4


def test_poisson_terms_are_torchs() -> None:
    model = torch.tensor([0.5, 2.0, 3.0, 0.0, -1.0, 7.0, torch.nan]).double()
    counts = torch.tensor([0.0, 2.0, 5.0, 1.0, 2.0, 0.0, 1.0]).double()

    def terms(f: Any, y: Any) -> tuple[Any, ...]:
        value, *others = poisson_terms(f, y)
        fine = torch.isfinite(value)
        return value, *(torch.where(fine, other, 0.0) for other in others)

    assert_torch(terms, f=model, y=counts)


# ------------------------------------------------------------------------------------------ blocks


def matrices(size: int, batch: int = 25) -> Tensor:
    """Positive definite ones, and one each that is singular, indefinite, not finite."""
    root = draw(batch, size, size + 2, seed=size)
    matrix = root @ root.mT
    matrix[1] = 0
    matrix[2] = -matrix[2]
    matrix[3, 0, 0] = torch.nan
    return matrix


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blocks_are_those_of_the_eager_engine(size: int) -> None:
    matrix, vector = matrices(size), draw(25, size, seed=7)
    shift = torch.linspace(0, 0.5, 25, dtype=DOUBLE)
    shift[1] = 0
    scale = 0.5 + draw(25, size, seed=8).abs()
    free = draw(25, size, seed=9) > -0.7

    def function(blocks: Any, m: Any, v: Any, t: Any, s: Any, f: Any) -> tuple[Any, ...]:
        factor, exists = blocks.factor(m, t)
        several = (
            blocks.solve(factor, v),
            blocks.inverse_form(factor, v),
            blocks.inverse(factor, m),
        )
        known = [
            torch.where(exists.reshape(exists.shape + (1,) * (part.ndim - 1)), part, 0.0)
            for part in several
        ]
        return (
            exists,
            *known,
            blocks.multiply(m, v),
            blocks.diagonal(m),
            blocks.scaled(m, s),
            blocks.restricted(m, f),
        )

    given = {"m": matrix, "v": vector, "t": shift, "s": scale, "f": free}
    found = computed(lambda **k: function(NodeBlocks(), **k), **given)
    wanted = function(CholeskyBlocks(), **given)
    assert torch.equal(found[0], wanted[0])
    assert found[0].tolist()[:5] == [True, False, False, False, True]
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, equal_nan=True)


def test_the_inverse_is_one() -> None:
    matrix = matrices(4)[5:]

    def function(m: Any) -> Any:
        blocks: Any = NodeBlocks()
        factor, _ = blocks.factor(m, torch.zeros_like(m[:, 0, 0]))
        return blocks.inverse(factor, m)

    (inverse,) = computed(function, m=matrix)
    eye = torch.eye(4, dtype=DOUBLE).expand(20, 4, 4)
    torch.testing.assert_close(inverse @ matrix, eye, rtol=0, atol=1e-9)
    assert torch.equal(inverse, inverse.mT)


@pytest.mark.parametrize("times", [1, 3, 40])
def test_repeating(times: int) -> None:
    # halve what is above 1; carried: a vector, a number, truth values, and what never changes
    start, limit = torch.exp(3 * draw(50, 3)), torch.ones(50).double()

    def function(blocks: Any, x: Any, limit: Any) -> Any:
        todo = (x > limit[:, None]).any(-1)

        def body(x: Any, count: Any, small: Any, limit: Any) -> tuple[Any, tuple[Any, ...]]:
            large = x > limit[:, None]
            x = torch.where(large, 0.5 * x, x)
            count = torch.where(large.any(-1), count + 1.0, count)
            again = (x > limit[:, None]).any(-1)
            return again, (x, count, small | ~large, limit)

        carried = (x, torch.zeros_like(limit), torch.zeros_like(x, dtype=torch.bool), limit)
        return blocks.repeat(times, todo, body, carried)

    x, count, small, same = computed(lambda **k: function(NodeBlocks(), **k), x=start, limit=limit)
    wanted = function(CholeskyBlocks(), x=start, limit=limit)
    for one, other in zip((x, count, small, same), wanted, strict=True):
        # a vector that is done already may learn so in a round for others
        if one.dtype != torch.bool:
            torch.testing.assert_close(one, other)
    assert len(set(count.tolist())) > (0 if times == 1 else 2)
    assert bool((x <= 1).all()) == (times == 40) and torch.equal(same, limit)


# ------------------------------------------------------------------------------------ the policy

SIZE, BATCH = 3, 60


def somewhere(boxed: bool) -> tuple[State, Proposal, tuple[Tensor, ...]]:
    """States and proposals of every kind, and derivatives at the trial points."""
    root = draw(BATCH, SIZE, 6, seed=20)
    matrix = root @ root.mT
    matrix[7] = 0
    matrix[8, :, 0], matrix[8, 0, :] = 0, 0
    gradient, params = draw(BATCH, SIZE, seed=21), draw(BATCH, SIZE, seed=22)
    gradient[9] = 0
    params[10] = 0
    infinite = torch.full_like(params, torch.inf)
    lower, upper = -infinite, infinite
    if boxed:
        lower, upper = params - 0.3, params + 0.4
        lower[::3], upper[1::4] = params[::3], params[1::4]
        lower[:, 1] = -torch.inf
    number = torch.arange(BATCH)
    state = State.start(params, lower, upper, torch.zeros_like(params, dtype=torch.bool))
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1)
    state = replace(
        state,
        cost=draw(BATCH, seed=23).abs() + 0.1,
        gradient=draw(BATCH, SIZE, seed=24),
        normal_matrix=matrix.flip(0).contiguous(),
        scale=diagonal.flip(0).sqrt() + 0.1,
        trust_radius=10.0 ** draw(BATCH, seed=25),
        damping=torch.where(number % 2 == 0, 0.0, 10.0 ** draw(BATCH, seed=26)),
        last_step=0.1 * draw(BATCH, SIZE, seed=27),
        lost_sight=number % 5 == 4,
        fresh=number % 7 == 6,
        nfev=number % 11 + 1,
        njev=torch.where(number % 4 == 0, 0, number),
        failures=number % 22,
    )
    step = 0.2 * draw(BATCH, SIZE, seed=28)
    trial = torch.minimum(torch.maximum(params + step, lower), upper)
    proposal = Proposal(
        step=trial - params,
        params_trial=trial,
        scaled_norm=(state.scale * step).norm(dim=-1),
        predicted_reduction=draw(BATCH, seed=29).abs(),
        damping=state.damping,
        usable=number % 6 != 5,
        limited=number % 3 == 1,
        bent=number % 8 == 7,
        free=number[:, None].expand(-1, SIZE) % 9 != 8,
    )
    cost = state.cost - draw(BATCH, seed=30).clamp(min=-0.5)
    cost[11], cost[12], cost[13] = torch.nan, torch.inf, 0.0
    gradient[14, 0], matrix[15, 1, 1] = torch.nan, torch.inf
    return state, proposal, (cost, gradient, matrix, diagonal.sqrt())


RULES: dict[str, Any] = {
    "trust region": TrustRegion(),
    "trust region, given scale": TrustRegion(scale_by_columns=False),
    "nielsen": Nielsen(1e-3),
    "marquardt": Marquardt(),
    "gauss-newton": GaussNewton(0.7),
}
TESTS: dict[str, Any] = {
    "relative": RelativeTests(0.2, 0.3, 1e-3, max_nfev=9),
    "absolute": AbsoluteTests(0.3, 0.05, 0.05, max_nfev=9),
}


@pytest.mark.parametrize("boxed", [False, True], ids=["free", "boxed"])
@pytest.mark.parametrize(
    ("rule", "tests"),
    [
        *(("trust region", "relative"), ("trust region, given scale", "relative")),
        *(("nielsen", "absolute"), ("marquardt", "relative"), ("gauss-newton", "absolute")),
    ],
)
def test_a_step_of_the_policy(rule: str, tests: str, boxed: bool) -> None:
    policy = Policy(RULES[rule], TESTS[tests], boxed)
    state, proposal, derivatives = somewhere(boxed)
    names = [f.name for f in fields(State)], [f.name for f in fields(Proposal)]

    def advance(blocks: Any, given: dict[str, Any], constant: Callable[..., Any]) -> list[Any]:
        before = {n: given[f"s_{n}"] for n in names[0] if n not in ("status", "fixed")}
        before["status"] = constant(given["s_cost"], RUNNING)
        before["fixed"] = torch.zeros_like(given["s_params"], dtype=torch.bool)
        now = State(**before)
        trial = Proposal(**{n: given[f"p_{n}"] for n in names[1]})
        now = policy.judge(blocks, now, trial, given["cost"])
        where = now.fresh & now.running
        now = policy.at_new_point(
            blocks, now, where, *(given[n] for n in ("cost", "gradient", "matrix", "norms"))
        )
        now, trial = policy.propose(blocks, now)
        # what cannot be used may be anything
        known = [getattr(now, n) for n in names[0] if n not in ("lower", "upper")]
        for name in names[1]:
            part = getattr(trial, name)
            usable = trial.usable.reshape(trial.usable.shape + (1,) * (part.ndim - 1))
            known.append(
                part & usable if part.dtype == torch.bool else torch.where(usable, part, 0.0)
            )
        return known

    given: dict[str, Any] = {f"s_{n}": getattr(state, n) for n in names[0]}
    given |= {f"p_{n}": getattr(proposal, n) for n in names[1]}
    given |= dict(zip(("cost", "gradient", "matrix", "norms"), derivatives, strict=True))
    del given["s_status"], given["s_fixed"]

    def symmetric(nodes: NodeTensor) -> NodeTensor:
        """The same node on both sides of the diagonal."""
        array = nodes.nodes.copy()
        for i, j in np.ndindex(SIZE, SIZE):
            array[0, i, j] = nodes.nodes[0, max(i, j), min(i, j)]
        return NodeTensor(nodes.graph, array, nodes.dtype)

    def on_nodes(**made: NodeTensor) -> list[Any]:
        made["s_normal_matrix"] = symmetric(made["s_normal_matrix"])
        made["matrix"] = symmetric(made["matrix"])
        return advance(
            NodeBlocks(),
            dict(made),
            lambda like, value: tensor(like.graph, [like.graph.const(float(value))], DOUBLE),
        )

    found = computed(on_nodes, **given)
    wanted = advance(
        CholeskyBlocks(),
        given,
        lambda like, value: torch.full_like(like, value, dtype=torch.int8),
    )
    labels = [n for n in names[0] if n not in ("lower", "upper")] + list(names[1])
    status = wanted[labels.index("status")]
    assert len(set(status.tolist())) >= 4, "the states are all of one kind"
    for label, one, other in zip(labels, found, wanted, strict=True):
        other = other.to(one.dtype).expand(one.shape)
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, equal_nan=True, msg=label)


def test_nested_lists_of_nodes() -> None:
    graph = Graph()
    nodes: Sequence[Any] = [[graph.param(0), graph.param(1)], [graph.param(2), graph.param(3)]]
    made = tensor(graph, nodes, DOUBLE)
    assert made.nodes[1, 0] is graph.param(2) and made.shape == (2, 2)
    assert tensor(graph, [graph.param(0)], DOUBLE).shape == (1,)
