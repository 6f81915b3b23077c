"""What each torch operation means for single elements: the tables of the tracer.

An operation is known by what it does to *loaders*, functions from an index to a scalar expression:
pointwise operations compose them, views only rewrite the index, sums over short dimensions unroll.
The idea is that of TorchInductor's lowering (Ansel et al. 2024, "PyTorch 2", section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchimize import special_functions
from torchimize.kernel.graph import Node
from torchimize.kernel.lowerings.context import (
    Arguments,
    Context,
    Indices,
    Keywords,
    Loader,
    Lowering,
    UntraceableError,
)
from torchimize.kernel.lowerings.copies import COPIES
from torchimize.kernel.lowerings.elementwise import ELEMENTWISE
from torchimize.kernel.lowerings.reductions import REDUCTIONS
from torchimize.special_functions import airy


def _copy(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    return t.loader_of(args[0])


def _converted(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    loader = t.loader_of(args[0])
    if result.dtype == torch.bool:
        return lambda indices: t.condition(loader(indices))
    if not result.is_floating_point() and args[0].is_floating_point():
        raise UntraceableError(f"a conversion to {result.dtype}")
    return lambda indices: t.number(loader(indices))


def _constant(value: Callable[[Arguments], float]) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        return t.loader_of(float(value(args)))

    return lower


def _unwritten(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    def load(indices: Indices) -> Node:
        raise UntraceableError("memory is read that was never written")

    return load


def _log_sigmoid(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> list[Loader]:
    load = t.loader_of(args[0])

    def value(indices: Indices) -> Node:
        g, a = t.graph, t.number(load(indices))
        tail = g.apply("log1p", g.apply("exp", g.neg(g.apply("abs", a))))
        return g.sub(g.apply("minimum", a, t.zero), tail)

    return [value, _unwritten(t, args, kwargs, result)]


LOWERINGS: dict[str, Lowering] = {
    **ELEMENTWISE,
    **COPIES,
    **REDUCTIONS,
    "log_sigmoid_forward": _log_sigmoid,
    "clone": _copy,
    "lift_fresh_copy": _copy,
    "_to_copy": _converted,
    "zeros_like": _constant(lambda args: 0.0),
    "ones_like": _constant(lambda args: 1.0),
    "full_like": _constant(lambda args: args[1]),
    "new_zeros": _constant(lambda args: 0.0),
    "new_ones": _constant(lambda args: 1.0),
    "new_full": _constant(lambda args: args[2]),
    "empty_like": _unwritten,
    "new_empty": _unwritten,
}
"""How each aten operation acts on loaders."""

IN_PLACE: dict[str, Lowering] = {
    "zero_": _constant(lambda args: 0.0),
    "fill_": lambda t, args, kwargs, result: t.operand(args[1], args[0].shape),
    "copy_": lambda t, args, kwargs, result: t.operand(args[1], args[0].shape),
}
"""Operations on the memory of their first operand that have no other form."""

UNIFORM: dict[str, Callable[[Arguments], float]] = {
    "zeros": lambda args: 0.0,
    "ones": lambda args: 1.0,
    "full": lambda args: args[1],
    "zeros_like": lambda args: 0.0,
    "ones_like": lambda args: 1.0,
    "full_like": lambda args: args[1],
    "new_zeros": lambda args: 0.0,
    "new_ones": lambda args: 1.0,
    "new_full": lambda args: args[2],
}
"""Operations that make tensors of one value."""

FUNCTIONS: dict[Any, str] = {
    special_functions.airy_ai: "airy_ai",
    airy.airy_ai_slope: "airy_ai_slope",
    special_functions.bessel_j0: "bessel_j0",
    special_functions.bessel_j1: "bessel_j1",
    special_functions.bessel_y0: "bessel_y0",
    special_functions.bessel_y1: "bessel_y1",
    special_functions.modified_bessel_i0: "i0",
    special_functions.modified_bessel_i1: "i1",
    special_functions.modified_bessel_k0: "bessel_k0",
    special_functions.modified_bessel_k1: "bessel_k1",
    special_functions.scaled_modified_bessel_k0: "scaled_bessel_k0",
    special_functions.scaled_modified_bessel_k1: "scaled_bessel_k1",
    special_functions.spherical_bessel_j0: "spherical_bessel_j0",
    special_functions.faddeeva_real: "faddeeva_real",
    special_functions.faddeeva_imag: "faddeeva_imag",
    special_functions.gammainc: "gammainc",
    special_functions.gammaincc: "gammaincc",
    special_functions.zeta: "zeta",
    special_functions.cube_root: "cube_root",
}
"""This package's functions that carry their own derivatives, and the graph's names of them."""
