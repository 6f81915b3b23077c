"""A tensor behind a wrapper: what views of it show, and what is written into them.

Tensors themselves are never written into. A write gives the wrapper another tensor, and the wrapper
whose view it is as well; a view whose base has changed since looks again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from torchimize.numpy_models import indexing
from torchimize.numpy_models.conversion import Working, constant, number, working_of

View = Callable[[Tensor], Tensor]


class TensorView:
    """The values of a wrapper.

    Parameters
    ----------
    tensor : Tensor
        Any shape, dtype and device.
    working : Working, optional
        The floating dtype and the device that numbers and constant arrays take beside it; by
        default the tensor's own.
    """

    __slots__ = (
        "_base",
        "_base_shape",
        "_position",
        "_seen",
        "_tensor",
        "_view",
        "_writes",
        "leading",
        "working",
    )

    def __init__(self, tensor: Tensor | None, working: Working | None = None) -> None:
        if working is None:
            working = working_of([] if tensor is None else [tensor])
        self.working = working
        # dimensions of problems that assignments have put before those the user made
        self.leading = 0
        self._tensor = tensor
        self._base: TensorView | None = None
        self._base_shape: torch.Size | None = None
        self._view: View | None = None
        self._position: int | None = None
        self._seen = 0
        self._writes = 0

    @property
    def tensor(self) -> Tensor:
        """The current values."""
        if self._base is not None and (self._tensor is None or self._seen != self._base._version):
            base = self._base.tensor
            if self._base_shape is not None and base.shape != self._base_shape:
                raise RuntimeError(
                    f"a view of an array of shape {tuple(self._base_shape)} is read after an "
                    f"assignment gave that array the shape {tuple(base.shape)}"
                )
            assert self._view is not None
            self._tensor = self._view(base)
            self._seen = self._base._version
        assert self._tensor is not None
        return self._tensor

    @property
    def is_view(self) -> bool:
        """Whether it shows another wrapper's values."""
        return self._base is not None

    @property
    def _version(self) -> int:
        return self._writes + (0 if self._base is None else self._base._version)

    def wrapped(self, value: Any) -> Any:
        """Wrap a tensor, with the same working dtype; leave everything else alone."""
        return type(self)(value, self.working) if isinstance(value, Tensor) else value

    def as_view(self, view: View) -> Self:
        """Show part of the values; what has no dimension left is a number and not a view."""
        shown = type(self)(view(self.tensor), self.working)
        if shown.tensor.ndim:
            shown._base, shown._view = self, view
            shown._base_shape, shown._seen = self.tensor.shape, self._version
        return shown

    def element(self, position: int) -> Self:
        """One element in the order of memory, looked up when it is needed."""
        element = type(self)(None, self.working)
        element._base, element._position = self, position
        element._view = lambda tensor: tensor.reshape(-1)[position]
        return element

    def write(self, tensor: Tensor) -> None:
        """Show new values, and have the array show them whose view this is."""
        if self._base is not None and self._view is not None:
            if tensor.shape != self.tensor.shape:
                raise ValueError(
                    f"a view of shape {tuple(self.tensor.shape)} cannot take values of shape "
                    f"{tuple(tensor.shape)}"
                )
            self._base.write(indexing.assign(self._base.tensor, self._view, tensor))
            self._seen = self._base._version
        dimensions = self.tensor.ndim
        self._tensor = tensor.to(self.tensor.dtype)
        self.leading += tensor.ndim - dimensions
        self._writes += 1
        if self._base is not None:
            self._seen = self._base._version

    def check_casting(self, values: Tensor) -> None:
        """Raise where NumPy would not write values of another dtype."""
        own = self.tensor.dtype
        if not torch.can_cast(values.dtype, own):
            raise TypeError(
                f"values of dtype {values.dtype} cannot be written into an array of dtype {own}; "
                f"make the array with dtype=float"
            )

    def reshaped(self, view: View) -> Self:
        """Show the values in another shape; NumPy copies where the memory forbids a view."""
        if self._base is not None and self._view is not None:
            positions = torch.arange(self._base.tensor.numel()).reshape(self._base.tensor.shape)
            shown = self._view(positions)
            try:
                shown.view(view(shown).shape)
            except RuntimeError:
                return type(self)(view(self.tensor), self.working)
        return self.as_view(view)


def common_working(*values: Any) -> Working:
    """Promote what the wrappers among the values work with."""
    found = [value.working for value in values if isinstance(value, TensorView)]
    for value in values:
        if isinstance(value, tuple | list | dict):
            mapped(lambda e: found.append(e.working) if isinstance(e, TensorView) else None, value)
    first = found[0]
    if all(working.dtype is first.dtype for working in found):
        return first
    dtype = functools.reduce(torch.promote_types, [working.dtype for working in found])
    return Working(dtype, first.device)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to all that is not a tuple, a list or a dictionary (fast)."""
    if isinstance(value, TensorView | Tensor | np.ndarray | int | float | str):
        return function(value)
    if type(value) is tuple:
        return tuple([mapped(function, entry) for entry in value])
    if type(value) is list:
        return [mapped(function, entry) for entry in value]
    if type(value) is dict:
        return {key: mapped(function, entry) for key, entry in value.items()}
    return function(value)


def unwrap(value: Any) -> Any:
    """Return the tensor of a wrapper and leave everything else alone."""
    return value.tensor if isinstance(value, TensorView) else value


def as_operand(value: Any, working: Working, integers: bool = False) -> Tensor | complex:
    """Translate an operand: arrays become tensors, NumPy's scalars Python's numbers."""
    if isinstance(value, TensorView):
        return value.tensor
    if isinstance(value, np.generic):
        return value.item()  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return gather(value, working)
        return constant(value, working, integers)
    if isinstance(value, list | tuple):
        return as_operand(np.array(value), working, integers)
    if isinstance(value, Tensor | bool | int | float | complex):
        return value
    raise TypeError(
        f"a model's operands are tensors, arrays and numbers, got {type(value).__name__}"
    )


def as_tensor(value: Any, working: Working, integers: bool = False) -> Tensor:
    """Translate an operand and make a number a tensor too."""
    operand = as_operand(value, working, integers)
    return operand if isinstance(operand, Tensor) else number(operand, working)


def gather(objects: np.ndarray[Any, Any], working: Working) -> Tensor:
    """Make one tensor of an array of wrappers and numbers.

    Elements that came out of one tensor are taken from it at once.
    """
    elements = list(objects.reshape(-1))
    if not elements:
        return torch.zeros(objects.shape, dtype=working.dtype, device=working.device)
    plain = [e for e in elements if not (isinstance(e, TensorView) and e._position is not None)]
    tensors = [as_tensor(element, working) for element in plain]
    if any(tensor.ndim for tensor in tensors):
        tensors = [as_tensor(element, working) for element in elements]
        tensors = list(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]
        dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        stacked = torch.stack([tensor.to(dtype) for tensor in tensors])
        return stacked.reshape(objects.shape + tensors[0].shape)
    sources: list[Tensor] = []
    starts: dict[int, int] = {}
    positions: list[int] = []
    length = 0
    remaining = iter(tensors)
    for element in elements:
        if isinstance(element, TensorView) and element._position is not None:
            source = element._base
            assert source is not None
            if id(source) not in starts:
                starts[id(source)] = length
                sources.append(source.tensor.reshape(-1))
                length += source.tensor.numel()
            positions.append(starts[id(source)] + element._position)
        else:
            sources.append(next(remaining).reshape(1))
            positions.append(length)
            length += 1
    dtype = functools.reduce(torch.promote_types, [source.dtype for source in sources])
    everything = torch.cat([source.to(dtype) for source in sources])
    if positions != list(range(length)):
        everything = everything[torch.tensor(positions, device=everything.device)]
    return everything.reshape(objects.shape)
