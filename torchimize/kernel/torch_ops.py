"""A graph as plain torch operations: the renderer that runs anywhere torch does.

A program holds every node as a tensor that broadcasts against (A, n): parameters are (A, 1), an
abscissa (1, n), and only what depends on both is (A, n). Loads are strided views of their source,
so nothing is gathered. Intermediates are dropped after their last use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchimize import special_functions as special
from torchimize.kernel.graph import PROBLEM, SAMPLE, Index, Node, reachable
from torchimize.kernel.lowerings.context import PROBLEM_INDEX, UntraceableError
from torchimize.kernel.trace import Trace
from torchimize.special_functions import airy, bessel, faddeeva, gamma

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
    "copysign": torch.copysign, "fmod": torch.fmod, "remainder": torch.remainder,
    "floor_divide": torch.floor_divide,
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt,
    "ge": torch.ge, "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not,
    "isnan": torch.isnan, "isfinite": torch.isfinite, "where": torch.where,
    "erfcx": torch.special.erfcx, "erfinv": torch.erfinv, "ndtri": torch.special.ndtri,
    "log_ndtr": torch.special.log_ndtr, "trigamma": partial(torch.polygamma, 1),
    **{f"polygamma{n}": partial(torch.polygamma, n) for n in range(2, 6)},
    "bessel_j0": special.bessel_j0, "bessel_j1": special.bessel_j1,
    "bessel_y0": special.bessel_y0, "bessel_y1": special.bessel_y1,
    "bessel_k0": torch.special.modified_bessel_k0, "bessel_k1": torch.special.modified_bessel_k1,
    "scaled_bessel_k0": torch.special.scaled_modified_bessel_k0,
    "scaled_bessel_k1": torch.special.scaled_modified_bessel_k1,
    "spherical_bessel_j0": torch.special.spherical_bessel_j0,
    "spherical_bessel_j0_slope": bessel.spherical_slope,
    "airy_ai": special.airy_ai, "airy_ai_slope": airy.airy_ai_slope,
    "faddeeva_real": special.faddeeva_real, "faddeeva_imag": special.faddeeva_imag,
    "faddeeva_real_slope": faddeeva.slope_real, "faddeeva_imag_slope": faddeeva.slope_imag,
    "gammainc": torch.special.gammainc, "gammaincc": torch.special.gammaincc,
    "gammainc_order_slope": gamma.order_slope, "zeta": torch.special.zeta,
    "zeta_exponent_slope": gamma.exponent_slope, "cube_root": special.cube_root,
}  # fmt: skip
"""Graph operations by torch's names."""

SCALAR_ARGUMENTS = frozenset(
    {"add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge", "fmod", "remainder"}
)
"""Operations whose torch form takes a Python number as second argument."""


class Step(NamedTuple):
    """One operation of a program: ``slots[target] = function(slots of arguments)``, then drop.

    ``number`` is a second argument that is no slot.
    """

    function: Callable[..., Tensor]
    arguments: tuple[int, ...]
    number: float | None
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
        self.loads: list[Node] = []
        self.params: list[Node] = []
        as_tensors = set(kept)
        self.steps: list[Step] = []
        for node in order:
            args = node.args
            if not args:
                if node.op == "load":
                    self.loads.append(node)
                elif node.op == "param":
                    self.params.append(node)
                continue
            op = node.op
            if op not in OPERATIONS:
                raise UntraceableError(f"{op!r} has no torch form")
            number: float | None = None
            serials = tuple([arg.serial for arg in args])
            drop = tuple({s for s in serials if last[s] == node.serial and s not in kept})
            if len(args) == 2 and op in SCALAR_ARGUMENTS:
                # a number may stand second, or first where the operation commutes
                if args[0].op == "const" and op in ("add", "mul"):
                    args, serials = (args[1], args[0]), serials[::-1]
                if args[1].op == "const":
                    number, serials = float(args[1].value), serials[:1]  # type: ignore[arg-type]
            as_tensors.update(serials)
            self.steps.append(Step(OPERATIONS[op], serials, number, node.serial, drop))
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
        if self.params:
            columns = params[:, :, None].unbind(1)
            for node in self.params:
                slots[node.serial] = columns[node.value]  # type: ignore[call-overload]
        for node in self.consts:
            slots[node.serial] = params.new_full((1, 1), _in_range(node.value, params.dtype))
        for node in self.loads:
            view = strided_view(sources, node.value, params.shape[0], length)
            converted = view.dtype in (params.dtype, torch.bool)
            slots[node.serial] = view if converted else view.to(params.dtype)
        for function, arguments, number, target, drop in self.steps:
            if number is not None:
                slots[target] = function(slots[arguments[0]], number)
            elif len(arguments) == 2:
                slots[target] = function(slots[arguments[0]], slots[arguments[1]])
            else:
                slots[target] = function(*[slots[arg] for arg in arguments])
            for serial in drop:
                slots.pop(serial, None)
        return [slots[serial] for serial in self.outputs]


def evaluate(
    order: Sequence[Node],
    outputs: Sequence[Node],
    params: Tensor,
    sources: Sequence[Tensor],
    length: int,
) -> list[Tensor]:
    """Compute nodes once, without a program: quicker for a single run, all results are kept.

    Parameters
    ----------
    order : sequence of Node
        What the outputs need, arguments before their users.
    outputs : sequence of Node
    params, sources, length
        As for :meth:`Program.run`.

    Raises
    ------
    UntraceableError
        Where an operation has no torch form.
    """
    slots: dict[int, Tensor] = {}
    numbers: dict[int, float] = {}
    columns = params[:, :, None].unbind(1)
    rows, dtype = params.shape[0], params.dtype

    def tensor_of(node: Node) -> Tensor:
        tensor = slots.get(node.serial)
        if tensor is None:
            number = _in_range(node.value, dtype)
            tensor = slots[node.serial] = params.new_full((1, 1), number)
        return tensor

    for node in order:
        op, args = node.op, node.args
        if not args:
            if op == "param":
                slots[node.serial] = columns[node.value]  # type: ignore[call-overload]
            elif op == "load":
                view = strided_view(sources, node.value, rows, length)
                slots[node.serial] = view if view.dtype is torch.bool else view.to(dtype)
            else:
                numbers[node.serial] = float(node.value)  # type: ignore[arg-type]
            continue
        function = OPERATIONS.get(op)
        if function is None:
            raise UntraceableError(f"{op!r} has no torch form")
        if len(args) == 1:
            result = function(tensor_of(args[0]))
        elif len(args) == 2:
            a, b = args
            if a.serial in numbers and op in ("add", "mul"):
                a, b = b, a
            number = numbers.get(b.serial) if op in SCALAR_ARGUMENTS else None
            result = function(tensor_of(a), tensor_of(b) if number is None else number)
        else:
            result = function(*[tensor_of(arg) for arg in args])
        slots[node.serial] = result
    return [tensor_of(node) for node in outputs]


def _in_range(value: Any, dtype: torch.dtype) -> float:
    """A number that the dtype holds: infinite where it is too large, as in arithmetic."""
    return float(value) if abs(value) <= torch.finfo(dtype).max else value * math.inf


def strided_view(sources: Sequence[Tensor], value: Any, rows: int, length: int) -> Tensor:
    """The elements of a load as a view of its source: (A, n), (A, 1), (1, n) or (1, 1)."""
    number: int
    indices: tuple[Index, ...]
    number, indices = value
    source = sources[number]
    offset = source.storage_offset()
    problem = sample = depends = 0
    for stride, index in zip(source.stride(), indices, strict=True):
        offset += stride * index.offset
        problem += stride * index.problem
        sample += stride * index.sample
        depends |= index.depends
    shape = (rows if depends & PROBLEM else 1, length if depends & SAMPLE else 1)
    return source.as_strided(shape, (problem, sample), offset)


def row_sources(trace: Trace) -> dict[int, int]:
    """Numbers of the sources that hold one row per problem, and which dimension is the problems'.

    Raises
    ------
    UntraceableError
        Where a source is laid out otherwise, so that taking its rows is not taking problems.
    """
    found: dict[int, int] = {}
    for node in trace.order:
        if node.op == "load" and node.depends & PROBLEM:
            number: int
            indices: tuple[Index, ...]
            number, indices = node.value  # type: ignore[misc]
            dim, *others = [d for d, index in enumerate(indices) if index.problem]
            if others or indices[dim] != PROBLEM_INDEX or found.get(number, dim) != dim:
                raise UntraceableError("some data have no dimension for the problems alone")
            found[number] = dim
    return found


def fill(
    target: Tensor, trace: Trace, pieces: Sequence[int], values: Sequence[Tensor | None]
) -> None:
    """Write the values of pieces into an output (A, *layout); None is 0."""
    for number, value in zip(pieces, values, strict=True):
        piece = trace.pieces[number]
        where: list[int | slice] = list(piece.position)
        if trace.layout:
            where[trace.sample_dim] = piece.samples
        view = target[(slice(None), *where)]
        if value is None:
            view.zero_()
        else:
            view.copy_(value if trace.layout else value[:, 0])
