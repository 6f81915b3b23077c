"""What the code of a kernel depends on, and what it reads at each call.

A kernel is kept by what it computes, never by who asked: tensors and numbers that the user's
function closes over are taken out of the traced expressions and read at each call.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from torchimize.errors import NotFusedError
from torchimize.kernel import triton_driver
from torchimize.kernel.graph import SAMPLE, Graph, Node, reachable
from torchimize.kernel.trace import Trace
from torchimize.lsq.likelihood import LeastSquares, Poisson
from torchimize.lsq.policy import AbsoluteTests, Nielsen, Policy, RelativeTests, Rule
from torchimize.lsq.policy.loss import LOSSES
from torchimize.lsq.problem import Problem

MAX_PARAMS = 24
"""Problems with more parameters take the eager engine: the unrolled P×P algebra of a kernel takes
its compiler seconds."""

LONG_SUM = 16_384
"""With more samples float32 problems are summed in float64: a running total in float32 loses digits
with their number. So are those of rules that do not scale the variables by the Jacobian's columns,
where rounding of the largest entries would hide the smallest."""

FEW_PROBLEMS, LONG = 8, 100_000
"""Fewer problems than lanes leave lanes idle; with many samples each that shows."""

FEW_PARAMS = 16
MUCH_WORK = 20_000_000
"""With more than so many parameters, B·M·P numbers from which the eager engine would take longer
than the compiler does."""


@dataclass(frozen=True)
class Plan:
    """All that the code of a kernel depends on; equal plans share a kernel.

    Attributes
    ----------
    structure : int
        The traced expressions: :attr:`Expressions.structure`.
    num_params : int
    bits : int
        32 or 64: what the kernel computes with.
    data_bits : int
        The type of data and bounds; that of starts and settings is the kernel's own.
    likelihood : str
        'least squares' or 'poisson'.
    loss : str
        A key of :data:`~torchimize.lsq.policy.loss.LOSSES`.
    data : tuple of (str, bool)
        Observations, weights, masks that there are; whether each problem has its own.
    rule : Rule
    tests : type
        Of the stopping tests; their tolerances are read at each call.
    boxed : bool
    fixed, scaled, shared_bounds, limited, inverse, history : bool
        Some parameters are fixed; D is given; all problems have the same box; iterations are
        limited; the inverse of the normal matrix is an output; so is every iterate.
    fisher : bool
        The curvature is that of reports, not that of steps.
    """

    structure: int
    num_params: int
    bits: int
    data_bits: int
    likelihood: str
    loss: str
    data: tuple[tuple[str, bool], ...]
    rule: Rule
    tests: type[RelativeTests] | type[AbsoluteTests]
    boxed: bool
    fixed: bool
    scaled: bool
    shared_bounds: bool
    limited: bool
    inverse: bool
    history: bool
    fisher: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What the kernel computes with."""
        return torch.float32 if self.bits == 32 else torch.float64


NICE = frozenset({0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0})
"""Sizes of constants that belong to a formula; others are taken for data and read at each call."""


def _is_data(node: Node) -> bool:
    return node.op == "const" and abs(cast(float, node.value)) not in NICE


_STRUCTURES: dict[Any, int] = {}
_NUMBERS = itertools.count()


class Expressions:
    """The traced pieces with their data-like leaves numbered.

    Attributes
    ----------
    nodes : list of Node
        In the order of the graph.
    loads, constants : list of Node
    structure : int
        A number for what is left when tensors and numbers are taken out; the same for the same.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.nodes = trace.order
        exponents = {node.args[1].serial for node in self.nodes if node.op == "pow"}
        self.loads = [node for node in self.nodes if node.op == "load"]
        self.constants = [n for n in self.nodes if _is_data(n) and n.serial not in exponents]
        lifted = {node.serial for node in self.constants}
        position = {node.serial: k for k, node in enumerate(self.nodes)}
        described = []
        for node in self.nodes:
            if node.args:
                described.append((node.op, *(position[arg.serial] for arg in node.args)))
            elif node.op == "load":
                described.append(("load", node.depends, self.is_boolean(node)))
            else:
                described.append((node.op, None if node.serial in lifted else node.value))
        lengths = run_lengths(trace)
        pieces = tuple(
            (position[piece.node.serial], lengths.index(piece.length)) for piece in trace.pieces
        )
        self.structure = _STRUCTURES.setdefault((tuple(described), pieces), next(_NUMBERS))

    def is_boolean(self, load: Node) -> bool:
        """Whether a load reads truth values."""
        number: int = load.value[0]  # type: ignore[index]
        return self.trace.sources[number].dtype == torch.bool

    def named(self) -> tuple[Graph, list[Node]]:
        """The pieces in a graph of their own, leaves named by their numbers.

        Loads over samples belong to a run: the same element of a tensor read by runs of two
        lengths is two loads.
        """
        graph = Graph()
        lengths = run_lengths(self.trace)
        numbers = {node.serial: k for k, node in enumerate(self.loads)}
        constants = {node.serial: k for k, node in enumerate(self.constants)}
        found: list[Node] = []
        copies: list[dict[int, Node]] = [{} for _ in lengths]
        for piece in self.trace.pieces:
            run = lengths.index(piece.length)
            known = copies[run]
            for node in reachable([piece.node]):
                if node.serial in known:
                    continue
                if node.args:
                    copy = graph.apply(node.op, *(known[arg.serial] for arg in node.args))
                elif node.serial in numbers:
                    name = ("model", numbers[node.serial], run if node.depends & SAMPLE else -1)
                    copy = graph.leaf("load", name, node.depends)
                elif node.serial in constants:
                    copy = graph.leaf("load", ("constant", constants[node.serial]), 0)
                elif node.op == "const":
                    copy = graph.const(cast(float, node.value))
                else:
                    copy = graph.param(cast(int, node.value))
                known[node.serial] = copy
            found.append(known[piece.node.serial])
        return graph, found


def run_lengths(trace: Trace) -> list[int]:
    """Lengths of the pieces, each once: pieces of one length are summed in one loop."""
    return sorted({piece.length for piece in trace.pieces})


def expressions_of(problem: Problem) -> tuple[Expressions, list[Tensor]]:
    """The traced expressions of a problem, and what their loads read, with all rows.

    Raises
    ------
    NotFusedError
        Where there are none, or no kernel could run them.
    """
    if not problem.num_problems:
        raise NotFusedError("there are no problems")
    device = problem.params0.device
    if device.type != "cpu" and (reason := triton_driver.unavailable(device)):
        raise NotFusedError(reason)
    traced = problem.traced
    if isinstance(traced, str):
        raise NotFusedError(traced)
    if "expressions" not in traced.kept:
        traced.kept["expressions"] = Expressions(traced.trace)
    return traced.kept["expressions"], traced.sources


def make_plan(
    problem: Problem,
    policy: Policy,
    expressions: Expressions,
    *,
    scaled: bool = False,
    limited: bool = False,
    inverse: bool = False,
    history: bool = False,
    insist: bool = False,
) -> Plan:
    """What the kernel for a problem depends on.

    Parameters
    ----------
    problem, policy, expressions
    scaled, limited, inverse, history : bool
        See :class:`Plan`.
    insist : bool
        Compile even where that takes longer than the fits.

    Raises
    ------
    NotFusedError
        Where a kernel cannot do what the problem needs.
    """
    likelihood = problem.likelihood
    data = likelihood.data
    if data.factor is not None:
        raise NotFusedError("`sigma` holds covariance matrices")
    size = problem.num_params
    if size > MAX_PARAMS:
        raise NotFusedError(f"more than {MAX_PARAMS} parameters")
    if problem.num_problems < FEW_PROBLEMS and problem.num_residuals > LONG and not insist:
        raise NotFusedError("few problems of many samples: torch's own operations are faster")
    work = problem.num_problems * problem.num_residuals * size
    if size > FEW_PARAMS and work < MUCH_WORK and not insist:
        raise NotFusedError(f"compiling for {size} parameters would take longer than the fits")
    loss = "linear"
    if isinstance(likelihood, LeastSquares) and likelihood.loss is not None:
        known = [name for name, function in LOSSES.items() if function is likelihood.loss]
        if not known:
            raise NotFusedError("the loss is the user's own")
        (loss,) = known
    parts = (("observed", data.observed), ("weight", data.weight), ("mask", data.mask))
    data_bits = bits = 32 if problem.params0.dtype == torch.float32 else 64
    if isinstance(policy.rule, Nielsen) or scaled or problem.num_residuals > LONG_SUM:
        bits = 64
    return Plan(
        structure=expressions.structure,
        num_params=problem.num_params,
        bits=bits,
        data_bits=data_bits,
        likelihood="poisson" if isinstance(likelihood, Poisson) else "least squares",
        loss=loss,
        data=tuple((name, v.ndim == 2) for name, v in parts if v is not None),
        rule=policy.rule,
        tests=cast(Any, type(policy.tests)),
        boxed=policy.boxed,
        fixed=problem.bounded and bool(problem.fixed.any()),
        scaled=scaled,
        shared_bounds=problem.lower.stride(0) == 0 and problem.upper.stride(0) == 0,
        limited=limited,
        inverse=inverse,
        history=history,
    )
