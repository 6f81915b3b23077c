"""The table of NumPy's functions, and what their adapters share.

Each adapter gets tensors in the place of arrays, and Python numbers. One with an argument `working`
is given the floating dtype and device of the model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchimize.numpy_models.conversion import (
    UnsupportedNumpyFunction,
    Working,
    full_name,
    number,
)

Axis = int | Sequence[int] | None
Function = TypeVar("Function", bound=Callable[..., Any])


class Adapter(NamedTuple):
    """A NumPy function's counterpart.

    Attributes
    ----------
    function : callable
        On tensors.
    keywords : frozenset of str
        The names of its arguments.
    integers : bool
        Whether constant integer arrays (indices, counts) stay integer.
    """

    function: Callable[..., Any]
    keywords: frozenset[str]
    integers: bool

    def __call__(
        self, numpy_function: Any, args: Any, kwargs: dict[str, Any], working: Working
    ) -> Any:
        """Call the counterpart, or name the argument that it does not know."""
        kwargs = {name: value for name, value in kwargs.items() if not _is_default(name, value)}
        unknown = kwargs.keys() - self.keywords
        if unknown:
            raise UnsupportedNumpyFunction(
                full_name(numpy_function), f" with the argument {', '.join(sorted(unknown))}"
            )
        if "working" in self.keywords:
            kwargs["working"] = working
        return self.function(*args, **kwargs)


# Arguments that steer NumPy's memory and sorting, and have no say in the result.
_WITHOUT_EFFECT = frozenset({"order", "subok", "casting", "optimize", "copy", "kind", "stable"})


def _is_default(name: str, value: Any) -> bool:
    return name in _WITHOUT_EFFECT or (name in {"out", "where", "initial"} and missing(value))


def missing(value: Any) -> bool:
    """Whether an argument is left out, or as good as."""
    return value is None or value is True or value is np._NoValue


FUNCTIONS: dict[Any, Adapter] = {}
"""NumPy's functions, each with its adapter."""


def implements(*names: str, integers: bool = False) -> Callable[[Function], Function]:
    """Register an adapter under NumPy's names; names that this NumPy lacks are passed over."""

    def register(function: Function) -> Function:
        keywords = frozenset(inspect.signature(function).parameters)
        for name in names:
            home: Any = np
            for part in name.split("."):
                home = getattr(home, part, None)
            if home is not None:
                FUNCTIONS[home] = Adapter(function, keywords, integers)
        return function

    return register


def tensor_of(x: Any, working: Working) -> Tensor:
    """Make one tensor of a tensor, a number or a nested sequence of these."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, list | tuple):
        return joined(torch.stack, [tensor_of(entry, working) for entry in x])
    return number(x, working)


def axes_of(x: Tensor, axis: Axis) -> tuple[int, ...]:
    """Return the axes that NumPy means."""
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(axis) if isinstance(axis, list | tuple) else (int(axis),)  # type: ignore[arg-type]


def flattened(x: Tensor, axis: int | None) -> tuple[Tensor, int]:
    """Where the axis is None, NumPy works on all elements in a row."""
    return (x.reshape(-1), 0) if axis is None else (x, int(axis))


def truth(keepdims: Any) -> bool:
    """Read ``keepdims``, for which NumPy has a third value."""
    return bool(keepdims) and keepdims is not np._NoValue


def joined(join: Callable[..., Tensor], tensors: list[Tensor], *rest: Any) -> Tensor:
    """Join tensors after giving them one dtype."""
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return join([tensor.to(dtype) for tensor in tensors], *rest)


def promoted(*tensors: Tensor) -> list[Tensor]:
    """Give tensors one dtype."""
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return [tensor.to(dtype) for tensor in tensors]


def shape_of(shape: Any) -> tuple[int, ...]:
    """Read a shape, or one length."""
    if isinstance(shape, list | tuple):
        return tuple(int(length) for length in shape)
    return (int(shape),)
