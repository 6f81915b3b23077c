"""A graph as plain torch operations: the renderer that runs anywhere torch does.

A program holds every node as a tensor that broadcasts against (A, n): parameters are (A, 1), an
abscissa (1, n), and only what depends on both is (A, n). Loads are strided views of their source,
so nothing is gathered. Intermediates are dropped after their last use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimize.kernel.graph import PROBLEM, SAMPLE, Index, Node, reachable
from torchimize.kernel.trace import PROBLEM_INDEX, Trace, UntraceableError

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg,
    "pow": torch.pow, "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1,
    "log": torch.log, "log2": torch.log2, "log10": torch.log10, "log1p": torch.log1p,
    "sqrt": torch.sqrt, "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "tan": torch.tan,
    "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "atan2": torch.atan2,
    "sinh": torch.sinh, "cosh": torch.cosh, "tanh": torch.tanh, "asinh": torch.asinh,
    "acosh": torch.acosh, "atanh": torch.atanh, "sigmoid": torch.sigmoid, "erf": torch.erf,
    "erfc": torch.erfc, "lgamma": torch.lgamma, "digamma": torch.digamma, "i0": torch.special.i0,
    "i0e": torch.special.i0e, "i1": torch.special.i1, "i1e": torch.special.i1e,
    "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
    "trunc": torch.trunc, "maximum": torch.maximum, "minimum": torch.minimum,
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt,
    "ge": torch.ge, "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not,
    "isnan": torch.isnan, "where": torch.where,
}  # fmt: skip
"""Graph operations by torch's names."""

SCALAR_ARGUMENTS = frozenset(
    {"add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge"}
)
"""Operations whose torch form takes a Python number as second argument."""


@dataclass(frozen=True)
class Step:
    """One operation of a program: ``slots[target] = function(slots of arguments)``, then drop."""

    function: Callable[..., Tensor]
    arguments: tuple[int | float, ...]
    numbers: tuple[bool, ...]
    target: int
    drop: tuple[int, ...]


class Program:
    """Nodes to compute together for runs of samples of one length.

    Parameters
    ----------
    outputs : sequence of Node

    Raises
    ------
    UntraceableError
        Where an operation has no torch form.
    """

    def __init__(self, outputs: Sequence[Node]) -> None:
        order = reachable(outputs)
        kept = {node.serial for node in outputs}
        last: dict[int, int] = {}
        for node in order:
            for arg in node.args:
                last[arg.serial] = node.serial
        self.loads = [node for node in order if node.op == "load"]
        self.params = [node for node in order if node.op == "param"]
        as_tensors = set(kept)
        self.steps: list[Step] = []
        for node in order:
            if not node.args:
                continue
            if node.op not in OPERATIONS:
                raise UntraceableError(f"{node.op!r} has no torch form")
            # a number may stand second, or first where the operation commutes
            args = node.args
            if args[0].op == "const" and node.op in ("add", "mul"):
                args = (args[1], args[0])
            numbers = tuple(
                k == 1 and node.op in SCALAR_ARGUMENTS and arg.op == "const"
                for k, arg in enumerate(args)
            )
            arguments = tuple(
                float(arg.value) if number else arg.serial  # type: ignore[arg-type]
                for arg, number in zip(args, numbers, strict=True)
            )
            as_tensors |= {
                arg.serial for arg, number in zip(args, numbers, strict=True) if not number
            }
            drop = tuple({arg.serial for arg in args if last[arg.serial] == node.serial} - kept)
            self.steps.append(Step(OPERATIONS[node.op], arguments, numbers, node.serial, drop))
        self.consts = [n for n in order if n.op == "const" and n.serial in as_tensors]
        self.outputs = [node.serial for node in outputs]

    def run(self, params: Tensor, sources: Sequence[Tensor], length: int) -> list[Tensor]:
        """Compute the outputs; each broadcasts against (A, length).

        Parameters
        ----------
        params : Tensor (A, P)
        sources : sequence of Tensor
            What loads read; those of problems with A rows.
        length : int
            Samples of the run.
        """
        slots: dict[int, Tensor] = {}
        for node in self.params:
            slots[node.serial] = params[:, node.value, None]  # type: ignore[index]
        for node in self.consts:
            slots[node.serial] = params.new_full((1, 1), _in_range(node.value, params.dtype))
        for node in self.loads:
            view = strided_view(sources, node.value, params.shape[0], length)
            slots[node.serial] = view if view.dtype == torch.bool else view.to(params.dtype)
        for step in self.steps:
            arguments = (
                arg if number else slots[arg]  # type: ignore[index]
                for arg, number in zip(step.arguments, step.numbers, strict=True)
            )
            slots[step.target] = step.function(*arguments)
            for serial in step.drop:
                slots.pop(serial, None)
        return [slots[serial] for serial in self.outputs]


def _in_range(value: Any, dtype: torch.dtype) -> float:
    """A number that the dtype holds: infinite where it is too large, as in arithmetic."""
    return float(value) if abs(value) <= torch.finfo(dtype).max else value * math.inf


def strided_view(sources: Sequence[Tensor], value: Any, rows: int, length: int) -> Tensor:
    """The elements of a load as a view of its source: (A, n), (A, 1), (1, n) or (1, 1)."""
    number: int
    indices: tuple[Index, ...]
    number, indices = value
    source = sources[number]
    strides = source.stride()
    offset = sum(s * i.offset for s, i in zip(strides, indices, strict=True))
    problem = sum(s * i.problem for s, i in zip(strides, indices, strict=True))
    sample = sum(s * i.sample for s, i in zip(strides, indices, strict=True))
    depends = 0
    for index in indices:
        depends |= index.depends
    shape = (rows if depends & PROBLEM else 1, length if depends & SAMPLE else 1)
    return source.as_strided(shape, (problem, sample), source.storage_offset() + offset)


def row_sources(trace: Trace) -> set[int]:
    """Numbers of the sources that hold one row per problem.

    Raises
    ------
    UntraceableError
        Where a source is laid out otherwise, so that taking its rows is not taking problems.
    """
    found = set()
    for node in reachable([piece.node for piece in trace.pieces]):
        if node.op == "load" and node.depends & PROBLEM:
            number: int
            indices: tuple[Index, ...]
            number, indices = node.value  # type: ignore[misc]
            first, *others = indices
            if first != PROBLEM_INDEX or any(index.problem for index in others):
                raise UntraceableError("the problems are not the first dimension of some data")
            found.add(number)
    return found


def fill(
    target: Tensor, trace: Trace, pieces: Sequence[int], values: Sequence[Tensor | None]
) -> None:
    """Write the values of pieces into an output (A, *trailing); None is 0."""
    for number, value in zip(pieces, values, strict=True):
        piece = trace.pieces[number]
        where: list[int | slice] = list(piece.position)
        if trace.trailing:
            where[trace.sample_dim] = slice(piece.start, piece.start + piece.length)
        view = target[(slice(None), *where)]
        if value is None:
            view.zero_()
        else:
            view.copy_(value if trace.trailing else value[:, 0])
