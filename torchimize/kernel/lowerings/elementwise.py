"""Elementwise operations: graph operations of the same meaning, or expressions of several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimize.kernel.graph import Graph, Node
from torchimize.kernel.lowerings.context import (
    Arguments,
    Context,
    Indices,
    Keywords,
    Loader,
    Lowering,
    UntraceableError,
    argument,
    only,
)


def _simple(op: str, count: int) -> Lowering:
    """A graph operation on the first ``count`` arguments, as numbers."""
    if count == 1:

        def lower_one(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
            apply, number, load = t.graph.apply, t.number, t.loader_of(args[0])
            return lambda indices: apply(op, number(load(indices)))

        return lower_one

    def lower_two(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        apply, number, shape = t.graph.apply, t.number, result.shape
        a, b = t.operand(args[0], shape), t.operand(args[1], shape)
        return lambda indices: apply(op, number(a(indices)), number(b(indices)))

    return lower_two


def _logical(op: str, count: int) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        if result.dtype != torch.bool:
            raise UntraceableError("bitwise operations on whole numbers")
        loaders = t.operands(args[:count], result.shape)
        return lambda indices: t.graph.apply(op, *(t.condition(load(indices)) for load in loaders))

    return lower


def _xor(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    both, either = (only(_logical(op, 2)(t, args, kwargs, result)) for op in ("and", "or"))
    apply = t.graph.apply
    return lambda indices: apply("and", either(indices), apply("not", both(indices)))


def _expression(build: Callable[..., Node], count: int = 1) -> Lowering:
    """An operation on the first ``count`` arguments, as ``build(graph, *nodes)``."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        loaders = t.operands(args[:count], result.shape)
        return lambda indices: build(t.graph, *(t.number(load(indices)) for load in loaders))

    return lower


def _formula(build: Callable[..., Node], *options: tuple[str, Any]) -> Lowering:
    """An operation on one tensor with options, as ``build(graph, node, *options)``."""

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        load = t.loader_of(args[0])
        values = [
            argument(args, kwargs, place, name, default)
            for place, (name, default) in enumerate(options, start=1)
        ]
        return lambda indices: build(t.graph, t.number(load(indices)), *values)

    return lower


def _with_alpha(op: str, reverse: bool = False) -> Lowering:
    plain = _simple(op, 2)

    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader | list[Loader]:
        if len(args) == 2 and not kwargs and not reverse and result.dtype is not torch.bool:
            return plain(t, args, kwargs, result)
        a, b = t.operand(args[0], result.shape), t.operand(args[1], result.shape)
        alpha = argument(args, kwargs, 2, "alpha", 1)
        apply, number, scale = t.graph.apply, t.number, t.graph.scale
        if result.dtype == torch.bool:
            # a sum of truth values is one of them
            return lambda indices: apply("or", t.condition(a(indices)), t.condition(b(indices)))

        def load(indices: Indices) -> Node:
            first, second = number(a(indices)), number(b(indices))
            if reverse:
                first, second = second, first
            if alpha != 1:
                second = scale(float(alpha), second)
            return apply(op, first, second)

        return load

    return lower


_quotient, _floor_quotient = _simple("div", 2), _simple("floor_divide", 2)


def _divide(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader | list[Loader]:
    mode = kwargs.get("rounding_mode") if kwargs else None
    if mode is None:
        return _quotient(t, args, kwargs, result)
    if mode == "floor":
        return _floor_quotient(t, args, kwargs, result)
    loader = only(_quotient(t, args, kwargs, result))
    return lambda indices: t.graph.apply("trunc", loader(indices))


def _clamp(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    bounds = [argument(args, kwargs, 1, "min", None), argument(args, kwargs, 2, "max", None)]
    value = t.operand(args[0], result.shape)
    limits = [None if b is None else t.operand(b, result.shape) for b in bounds]

    def load(indices: Indices) -> Node:
        node = t.number(value(indices))
        # aten's clamp has slope 1 on the limit itself, where a maximum would share it
        for limit, op in zip(limits, ("lt", "gt"), strict=True):
            if limit is not None:
                bound = t.number(limit(indices))
                node = t.graph.where(t.graph.apply(op, node, bound), bound, node)
        return node

    return load


def _clamp_max(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    return _clamp(t, (args[0], None, args[1]), {}, result)


def _where(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    condition, a, b = t.operands(args[:3], result.shape)
    where, number = t.graph.where, t.number
    return lambda i: where(t.condition(condition(i)), number(a(i)), number(b(i)))


def _masked_fill(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    value, mask, fill = args[:3]
    return _where(t, (mask, fill, value), kwargs, result)


def _round(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    if kwargs.get("decimals"):
        raise UntraceableError("aten.round to decimals")
    loader = t.loader_of(args[0])
    return lambda indices: t.graph.apply("round", t.number(loader(indices)))


def _add_scaled(op: str) -> Lowering:
    def lower(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
        loaders = t.operands(args[:3], result.shape)
        factor = float(kwargs.get("value", 1))

        def load(indices: Indices) -> Node:
            a, b, c = (t.number(loader(indices)) for loader in loaders)
            return t.graph.add(a, t.graph.scale(factor, t.graph.apply(op, b, c)))

        return load

    return lower


def _polygamma(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    order, value = (args[1], args[0]) if isinstance(args[0], Tensor) else args[:2]
    ops = ("digamma", "trigamma", *(f"polygamma{n}" for n in range(2, 5)))
    if order >= len(ops):
        raise UntraceableError(f"polygamma of order {order}")
    load = t.loader_of(value)
    return lambda indices: t.graph.apply(ops[order], t.number(load(indices)))


# expressions ------------------------------------------------------------------------------------


def _reciprocal(g: Graph, a: Node) -> Node:
    return g.div(g.const(1.0), a)


def _square(g: Graph, a: Node) -> Node:
    return g.mul(a, a)


def _relu(g: Graph, a: Node) -> Node:
    # slope 0 at 0, where a maximum would share it; NaN stays
    zero = g.const(0.0)
    return g.where(g.apply("le", a, zero), zero, a)


def _times_log(log: str, least: float) -> Callable[[Graph, Node, Node], Node]:
    """The product a · log(b), 0 where a = 0 though the logarithm may be infinite."""

    def build(g: Graph, a: Node, b: Node) -> Node:
        nothing = g.apply("eq", a, g.const(0.0))
        outside = g.apply("and", nothing, g.apply("le", b, g.const(least)))
        inside = g.where(outside, g.const(least + 1), b)
        return g.mul(a, g.apply(log, inside))

    return build


def _entropy(g: Graph, a: Node) -> Node:
    zero = g.const(0.0)
    least = g.where(g.apply("lt", a, zero), g.const(-math.inf), zero)
    return g.where(g.apply("le", a, zero), least, g.neg(g.mul(a, g.apply("log", a))))


def _hypotenuse(g: Graph, a: Node, b: Node) -> Node:
    return g.apply("sqrt", g.add(g.mul(a, a), g.mul(b, b)))


def _add_exponentials(exp: str, scale: float) -> Callable[[Graph, Node, Node], Node]:
    """The logarithm of a sum of powers; ``scale`` is the base's 1/log."""

    def build(g: Graph, a: Node, b: Node) -> Node:
        smaller = g.apply(exp, g.neg(g.apply("abs", g.sub(a, b))))
        return g.add(g.apply("maximum", a, b), g.scale(scale, g.apply("log1p", smaller)))

    return build


def _sinc(g: Graph, a: Node) -> Node:
    zero, one = g.const(0.0), g.const(1.0)
    centre = g.apply("eq", a, zero)
    angle = g.scale(math.pi, g.where(centre, one, a))
    return g.where(centre, one, g.div(g.apply("sin", angle), angle))


def _heaviside(g: Graph, a: Node, values: Node) -> Node:
    zero, one = g.const(0.0), g.const(1.0)
    step = g.where(g.apply("gt", a, zero), one, zero)
    return g.where(g.apply("eq", a, zero), values, step)


def _lerp(g: Graph, a: Node, b: Node, weight: Node) -> Node:
    return g.add(a, g.mul(weight, g.sub(b, a)))


def _logit(g: Graph, a: Node, eps: float | None) -> Node:
    if eps is not None:
        for op, bound in (("lt", g.const(eps)), ("gt", g.const(1 - eps))):
            a = g.where(g.apply(op, a, bound), bound, a)
    return g.apply("log", g.div(a, g.sub(g.const(1.0), a)))


def _fractional(g: Graph, a: Node) -> Node:
    return g.sub(a, g.apply("trunc", a))


def _is_infinite(g: Graph, a: Node) -> Node:
    return g.apply("eq", g.apply("abs", a), g.const(math.inf))


def _without_nan(op: str) -> Callable[[Graph, Node, Node], Node]:
    def build(g: Graph, a: Node, b: Node) -> Node:
        larger = g.where(g.apply("isnan", a), b, g.apply(op, a, b))
        return g.where(g.apply("isnan", b), a, larger)

    return build


def _softplus(g: Graph, a: Node, beta: float, threshold: float) -> Node:
    scaled = g.scale(beta, a)
    soft = g.scale(1 / beta, g.apply("log1p", g.apply("exp", scaled)))
    return g.where(g.apply("gt", scaled, g.const(threshold)), a, soft)


def _gelu(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    load = t.loader_of(args[0])
    smooth = kwargs.get("approximate", "none") == "tanh"

    def value(indices: Indices) -> Node:
        g, a = t.graph, t.number(load(indices))
        if smooth:
            cube = g.scale(0.044715, g.mul(a, g.mul(a, a)))
            rise = g.apply("tanh", g.scale(math.sqrt(2 / math.pi), g.add(a, cube)))
        else:
            rise = g.apply("erf", g.scale(math.sqrt(0.5), a))
        return g.mul(g.scale(0.5, a), g.add(g.const(1.0), rise))

    return value


def _silu(g: Graph, a: Node) -> Node:
    return g.mul(a, g.apply("sigmoid", a))


def _elu(g: Graph, a: Node, alpha: float, scale: float, input_scale: float) -> Node:
    low = g.scale(alpha * scale, g.apply("expm1", g.scale(input_scale, a)))
    return g.where(g.apply("gt", a, g.const(0.0)), g.scale(scale, a), low)


def _celu(g: Graph, a: Node, alpha: float) -> Node:
    return _elu(g, a, alpha, 1.0, 1 / alpha)


def _mish(g: Graph, a: Node) -> Node:
    return g.mul(a, g.apply("tanh", _softplus(g, a, 1.0, 20.0)))


def _hardsigmoid(g: Graph, a: Node) -> Node:
    # slope 0 at both ends, as hardtanh's
    return g.scale(1 / 6, _hardtanh(g, g.add(a, g.const(3.0)), 0.0, 6.0))


def _is_negative(g: Graph, a: Node) -> Node:
    return g.apply("lt", g.apply("copysign", g.const(1.0), a), g.const(0.0))


def _leaky_relu(g: Graph, a: Node, slope: float) -> Node:
    return g.where(g.apply("gt", a, g.const(0.0)), a, g.scale(slope, a))


def _hardtanh(g: Graph, a: Node, low: float, high: float) -> Node:
    # slope 0 on the limits, unlike clamp
    for op, bound in (("le", g.const(low)), ("ge", g.const(high))):
        a = g.where(g.apply(op, a, bound), bound, a)
    return a


def _nan_to_num(t: Context, args: Arguments, kwargs: Keywords, result: Any) -> Loader:
    load, limits = t.loader_of(args[0]), torch.finfo(result.dtype)
    nan = float(argument(args, kwargs, 1, "nan", 0.0))
    highest = float(argument(args, kwargs, 2, "posinf", limits.max))
    lowest = float(argument(args, kwargs, 3, "neginf", limits.min))

    def value(indices: Indices) -> Node:
        g, a = t.graph, t.number(load(indices))
        node = g.where(g.apply("eq", a, g.const(math.inf)), g.const(highest), a)
        node = g.where(g.apply("eq", a, g.const(-math.inf)), g.const(lowest), node)
        return g.where(g.apply("isnan", a), g.const(nan), node)

    return value


UNARY = {
    **{name: name for name in (
        "neg", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "abs", "sin",
        "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
        "sigmoid", "erf", "erfc", "lgamma", "digamma", "i0", "erfinv", "sign", "floor", "ceil",
        "trunc", "isnan",
    )},
    "sgn": "sign", "special_erf": "erf", "special_erfc": "erfc", "special_expit": "sigmoid",
    "special_expm1": "expm1", "special_exp2": "exp2", "special_i0e": "i0e", "special_i1": "i1",
    "special_i1e": "i1e", "special_erfcx": "erfcx", "special_ndtri": "ndtri",
    "special_log_ndtr": "log_ndtr", "special_airy_ai": "airy_ai",
    "special_bessel_j0": "bessel_j0", "special_bessel_j1": "bessel_j1",
    "special_bessel_y0": "bessel_y0", "special_bessel_y1": "bessel_y1",
    "special_modified_bessel_i0": "i0", "special_modified_bessel_i1": "i1",
    "special_modified_bessel_k0": "bessel_k0", "special_modified_bessel_k1": "bessel_k1",
    "special_scaled_modified_bessel_k0": "scaled_bessel_k0",
    "special_scaled_modified_bessel_k1": "scaled_bessel_k1",
    "special_spherical_bessel_j0": "spherical_bessel_j0",
}  # fmt: skip
"""aten's names of functions of one number, and the graph's."""

BINARY = {
    **{name: name for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "atan2", "pow", "maximum", "minimum", "mul",
        "copysign", "fmod", "remainder", "floor_divide",
    )},
    "igamma": "gammainc", "igammac": "gammaincc", "special_zeta": "zeta",
}  # fmt: skip
"""The same for functions of two numbers."""

ELEMENTWISE: dict[str, Lowering] = {
    **{name: _simple(op, 1) for name, op in UNARY.items()},
    **{name: _simple(op, 2) for name, op in BINARY.items()},
    "div": _divide,
    "add": _with_alpha("add"),
    "sub": _with_alpha("sub"),
    "rsub": _with_alpha("sub", reverse=True),
    "logical_and": _logical("and", 2),
    "logical_or": _logical("or", 2),
    "logical_not": _logical("not", 1),
    "logical_xor": _xor,
    "bitwise_and": _logical("and", 2),
    "bitwise_or": _logical("or", 2),
    "bitwise_xor": _xor,
    "bitwise_not": _logical("not", 1),
    "reciprocal": _expression(_reciprocal),
    "rsqrt": _expression(lambda g, a: _reciprocal(g, g.apply("sqrt", a))),
    "square": _expression(_square),
    "relu": _expression(_relu),
    "frac": _expression(_fractional),
    "deg2rad": _expression(lambda g, a: g.scale(math.pi / 180, a)),
    "rad2deg": _expression(lambda g, a: g.scale(180 / math.pi, a)),
    "isinf": _expression(_is_infinite),
    "isposinf": _expression(lambda g, a: g.apply("eq", a, g.const(math.inf))),
    "isneginf": _expression(lambda g, a: g.apply("eq", a, g.const(-math.inf))),
    "sinc": _expression(_sinc),
    "special_entr": _expression(_entropy),
    "silu": _expression(_silu),
    "mish": _expression(_mish),
    "hardsigmoid": _expression(_hardsigmoid),
    "signbit": _expression(_is_negative),
    "xlogy": _expression(_times_log("log", 0.0), 2),
    "special_xlog1py": _expression(_times_log("log1p", -1.0), 2),
    "hypot": _expression(_hypotenuse, 2),
    "logaddexp": _expression(_add_exponentials("exp", 1.0), 2),
    "logaddexp2": _expression(_add_exponentials("exp2", 1 / math.log(2.0)), 2),
    "heaviside": _expression(_heaviside, 2),
    "fmax": _expression(_without_nan("maximum"), 2),
    "fmin": _expression(_without_nan("minimum"), 2),
    "lerp": _expression(_lerp, 3),
    "logit": _formula(_logit, ("eps", None)),
    "softplus": _formula(_softplus, ("beta", 1.0), ("threshold", 20.0)),
    "elu": _formula(_elu, ("alpha", 1.0), ("scale", 1.0), ("input_scale", 1.0)),
    "celu": _formula(_celu, ("alpha", 1.0)),
    "leaky_relu": _formula(_leaky_relu, ("negative_slope", 0.01)),
    "hardtanh": _formula(_hardtanh, ("min_val", -1.0), ("max_val", 1.0)),
    "nan_to_num": _nan_to_num,
    "gelu": _gelu,
    "polygamma": _polygamma,
    "round": _round,
    "addcmul": _add_scaled("mul"),
    "addcdiv": _add_scaled("div"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "where": _where,
    "masked_fill": _masked_fill,
}
"""Operations with one result, which has the broadcast shape of the operands."""

TRUTH_VALUED = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isposinf", "isneginf", "signbit"}
    | {"logical_and", "logical_or", "logical_not", "logical_xor"}
    | {"bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor"}
)
"""Elementwise operations whose results are truth values."""
