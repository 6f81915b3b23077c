"""NumPy's and torch's dispatch protocols, for wrapped tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from torchimize.numpy_models import functions, ufuncs
from torchimize.numpy_models.conversion import (
    NumberEscape,
    UnsupportedNumpyFunction,
    Working,
    full_name,
    numpy_dtype,
    torch_dtype,
)
from torchimize.numpy_models.views import (
    TensorView,
    as_operand,
    as_tensor,
    common_working,
    mapped,
    unwrap,
)
from torchimize.special_functions.correction import CORRECTIONS

Wrapper = type[TensorView]

# NumPy answers these with views, which write through to the array that they show.
_VIEWS = frozenset(
    getattr(np, name)
    for name in (
        *("transpose", "squeeze", "swapaxes", "moveaxis", "expand_dims"),
        *("atleast_1d", "atleast_2d", "flip"),
    )
)
_SHAPES = frozenset({np.reshape, np.ravel})
_REDUCTIONS: dict[np.ufunc, Callable[..., Any]] = {
    np.add: np.sum,
    np.multiply: np.prod,
    np.maximum: np.max,
    np.minimum: np.min,
    np.logical_and: np.all,
    np.logical_or: np.any,
}
_ACCUMULATIONS: dict[np.ufunc, Callable[..., Any]] = {
    np.add: np.cumsum,
    np.multiply: np.cumprod,
}


def call_ufunc(
    wrapper: Wrapper, ufunc: np.ufunc, method: str, inputs: Any, kwargs: dict[str, Any]
) -> Any:
    """Run a ufunc or a method of one with torch."""
    rule = ufuncs.counterpart(ufunc)
    if rule is None:
        raise UnsupportedNumpyFunction(full_name(ufunc))
    out = kwargs.pop("out", (None,))
    working = common_working(*inputs, *out)
    if method == "__call__":
        result = _call(ufunc, rule, inputs, kwargs, out[0], working)
    elif method == "outer":
        a, b = (as_tensor(entry, working) for entry in inputs)
        result = rule([a.reshape(a.shape + (1,) * b.ndim), b], working)
    else:
        table = {"reduce": _REDUCTIONS, "accumulate": _ACCUMULATIONS}.get(method, {})
        if ufunc not in table:
            raise UnsupportedNumpyFunction(f"{full_name(ufunc)}.{method}")
        array = wrapper(as_tensor(inputs[0], working), working)
        result = table[ufunc](array, *inputs[1:], **{"axis": 0, **kwargs})
    return _into(out, _wrapped(wrapper, result, working), ufunc)


def _call(
    ufunc: np.ufunc,
    rule: ufuncs.Rule,
    inputs: Any,
    kwargs: dict[str, Any],
    out: Any,
    working: Working,
) -> Any:
    where, dtype = kwargs.pop("where", True), kwargs.pop("dtype", None)
    unknown = kwargs.keys() - {"casting", "order", "subok"}
    if unknown:
        named = ", ".join(sorted(unknown))
        raise UnsupportedNumpyFunction(full_name(ufunc), f" with the argument {named}")
    operands = [as_operand(entry, working) for entry in inputs]
    mask = None if where is True else as_tensor(where, working)
    if mask is not None:
        # one half lies in nearly all domains: what is masked out sends no NaN into a derivative
        operands = [
            torch.where(mask, entry, 0.5)
            if isinstance(entry, Tensor) and entry.dtype.is_floating_point
            else entry
            for entry in operands
        ]
    try:
        result = rule(operands, working)
    except ufuncs.Unavailable as error:
        raise UnsupportedNumpyFunction(full_name(ufunc), f" ({error})") from error
    if mask is not None:
        result = torch.where(mask, result, 0.0 if out is None else as_tensor(out, working))
    return result if dtype is None else result.to(torch_dtype(dtype, working))


def call_function(wrapper: Wrapper, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a NumPy function with torch."""
    if function in _ON_WRAPPERS:
        return _ON_WRAPPERS[function](wrapper, *args, **kwargs)
    adapter = functions.FUNCTIONS.get(function)
    if adapter is None:
        raise UnsupportedNumpyFunction(full_name(function))
    working = common_working(args, kwargs)
    kwargs = dict(kwargs)
    out = kwargs.pop("out", None)

    def translated(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return as_operand(value, working, adapter.integers)
        return unwrap(value)

    named = mapped(translated, kwargs)
    if function in _VIEWS | _SHAPES and len(args) and isinstance(args[0], TensorView):
        show = args[0].reshaped if function in _SHAPES else args[0].as_view
        rest = mapped(translated, args[1:])
        return show(lambda tensor: adapter(function, (tensor, *rest), named, working))
    result = adapter(function, mapped(translated, args), named, working)
    return _into((out,), _wrapped(wrapper, result, working), function)


def call_torch(wrapper: Wrapper, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a torch function, with the right derivative; what it writes stays in the wrapper."""
    working = common_working(args, kwargs)
    function = CORRECTIONS.get(function, function)
    if isinstance(kwargs.get("out"), TensorView):
        raise TypeError("out= of a torch function cannot be a tensor of the model")
    name = getattr(function, "__name__", "")
    tensors, named = mapped(unwrap, args), mapped(unwrap, kwargs)
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], TensorView):
        args[0].write(function(tensors[0].clone(), *tensors[1:], **named))
        return args[0]
    return _wrapped(wrapper, function(*tensors, **named), working)


def _wrapped(wrapper: Wrapper, result: Any, working: Working) -> Any:
    if isinstance(result, Tensor):
        return wrapper(result, working)
    # torch's named results (values and indices) keep their names
    return tree_map(lambda t: wrapper(t, working) if isinstance(t, Tensor) else t, result)


def _into(out: Any, result: Any, function: Any) -> Any:
    """Write results into the arrays given as ``out=``."""
    if all(target is None for target in out):
        return result
    results = result if isinstance(result, tuple) else (result,)
    for target, values in zip(out, results, strict=True):
        if not isinstance(target, TensorView):
            raise NumberEscape(
                f"{full_name(function)} is asked to write a tensor of the model into a "
                f"{type(target).__name__} (out= or its kin such as +=), where its derivative would "
                f"be lost: make that with np.zeros_like(...) of a tensor of the model"
            )
        target.check_casting(values.tensor)
        target.write(values.tensor)
    return out[0] if len(results) == 1 else out


# --- functions that take wrappers as they are ---


def _piecewise(
    wrapper: Wrapper, x: Any, condlist: Any, funclist: Any, *args: Any, **kw: Any
) -> TensorView:
    """Evaluate each function everywhere and choose: conditions may depend on parameters."""
    conditions = list(condlist) if isinstance(condlist, list | tuple) else [condlist]
    working = common_working(x, conditions)
    if not isinstance(x, TensorView):
        x = wrapper(as_tensor(x, working), working)
    masks = [as_tensor(condition, working).to(torch.bool) for condition in conditions]
    choices = [as_tensor(f(x, *args, **kw) if callable(f) else f, working) for f in funclist]
    otherwise = choices.pop() if len(choices) == len(masks) + 1 else torch.zeros_like(x.tensor)
    if len(choices) != len(masks):
        raise ValueError(f"{len(masks)} conditions need as many functions, got {len(funclist)}")
    result = otherwise
    for mask, choice in zip(masks, choices, strict=True):
        result = torch.where(mask, choice, result)
    return wrapper(result, working)


def _copyto(
    wrapper: Wrapper, dst: Any, src: Any, casting: str = "same_kind", where: Any = True
) -> None:
    if not isinstance(dst, TensorView):
        raise NumberEscape("numpy.copyto would write a tensor of the model into a plain array")
    values = as_tensor(src, dst.working)
    dst.check_casting(values)
    mask = as_tensor(where, dst.working)
    dst.write(torch.where(mask, values.to(dst.tensor.dtype), dst.tensor))


def _result_type(wrapper: Wrapper, *arrays_and_dtypes: Any) -> np.dtype[Any]:
    entries = (unwrap(entry) for entry in arrays_and_dtypes)
    return np.result_type(*(numpy_dtype(e.dtype) if isinstance(e, Tensor) else e for e in entries))


def _size(wrapper: Wrapper, a: Any, axis: int | None = None) -> int:
    return int(a.size) if axis is None else int(a.shape[axis])


_ON_WRAPPERS: dict[Any, Callable[..., Any]] = {
    np.piecewise: _piecewise,
    np.copyto: _copyto,
    np.result_type: _result_type,
    np.shape: lambda wrapper, a: a.shape,
    np.ndim: lambda wrapper, a: a.ndim,
    np.size: _size,
    np.iscomplexobj: lambda wrapper, x: x.tensor.dtype.is_complex,
    np.isrealobj: lambda wrapper, x: not x.tensor.dtype.is_complex,
    np.array_repr: lambda wrapper, arr, *args, **kwargs: repr(arr),
    np.array_str: lambda wrapper, a, *args, **kwargs: str(a.tensor),
}
