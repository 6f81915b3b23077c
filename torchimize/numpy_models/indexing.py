"""NumPy's indexing and item assignment on tensors, without writing into them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def select(tensor: Tensor, key: Any) -> Tensor:
    """Index as NumPy does: also by slices with a negative step, and integers beside arrays.

    Parameters
    ----------
    tensor : Tensor
        Any shape.
    key : object
        NumPy's index, its arrays as tensors.
    """
    entries = list(key) if isinstance(key, tuple) else [key]
    _check_masks(tensor, entries)
    arrays = any(isinstance(entry, Tensor | list) for entry in entries)
    consumed = sum(_dimensions(entry) for entry in entries)
    dimension = 0
    translated: list[Any] = []
    for entry in entries:
        if entry is Ellipsis:
            dimension += tensor.ndim - consumed
        elif isinstance(entry, slice) and entry.step is not None and entry.step < 0:
            tensor = tensor.flip(dimension)
            entry = _mirrored(entry, tensor.shape[dimension])
        elif arrays and isinstance(entry, int) and not isinstance(entry, bool):
            # NumPy counts an integer beside an array as one of the arrays
            entry = torch.tensor([entry], device=tensor.device)
        translated.append(entry)
        dimension += _dimensions(entry)
    return tensor[tuple(translated)]


def is_view(key: Any) -> bool:
    """Whether NumPy answers an index with a view, which writes through to its base."""
    entries = key if isinstance(key, tuple) else (key,)
    return all(
        entry is None or entry is Ellipsis or isinstance(entry, slice | int) for entry in entries
    )


def _dimensions(entry: Any) -> int:
    if entry is None or entry is Ellipsis or isinstance(entry, bool):
        return 0
    if isinstance(entry, Tensor) and entry.dtype is torch.bool:
        return entry.ndim
    return 1


def _mirrored(entry: slice, length: int) -> slice:
    """Count from the other end, where the step is positive."""
    indices = range(*entry.indices(length))
    if not len(indices):
        return slice(0, 0)
    return slice(length - 1 - indices[0], length - indices[-1], -indices.step)


def _check_masks(tensor: Tensor, entries: list[Any]) -> None:
    for entry in entries:
        if not (isinstance(entry, Tensor) and entry.dtype is torch.bool and len(entries) == 1):
            continue
        if entry.shape != tensor.shape[: entry.ndim]:
            raise IndexError(
                f"a mask of shape {tuple(entry.shape)} cannot select from shape "
                f"{tuple(tensor.shape)}: where a mask differs between problems, each would keep "
                f"another number of samples; use np.where(mask, ..., ...)"
            )


def assign(tensor: Tensor, view: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Return a copy of `tensor` in which the elements that `view` shows have new values.

    Parameters
    ----------
    tensor : Tensor
        Any shape, left as it is.
    view : callable
        Selects elements of a tensor of that shape, in any order and form.
    value : Tensor
        Broadcastable to what `view` selects. Further leading dimensions (problems) are given to
        the result too.

    Returns
    -------
    Tensor
        The dtype of `tensor`, differentiable with respect to both.
    """
    count = tensor.numel()
    numbers = torch.arange(count, device=tensor.device).reshape(tensor.shape)
    positions = view(numbers)
    value = value.to(tensor.dtype)
    extra = value.shape[: max(0, value.ndim - positions.ndim)]
    try:
        value = value.broadcast_to(extra + positions.shape)
    except RuntimeError:
        raise ValueError(
            f"values of shape {tuple(value.shape)} cannot be assigned to a selection of shape "
            f"{tuple(positions.shape)}"
        ) from None
    if not positions.numel():
        return tensor.broadcast_to(extra + tensor.shape).clone()
    positions = positions.reshape(-1)
    source = torch.full((count,), -1, device=tensor.device, dtype=torch.int64)
    source = source.scatter(0, positions, torch.arange(len(positions), device=tensor.device))
    incoming = value.reshape((*extra, -1))[..., source.clamp(min=0)]
    kept = tensor.reshape(-1).broadcast_to((*extra, count))
    return torch.where(source >= 0, incoming, kept).reshape(extra + tensor.shape)


def assign_where(tensor: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `tensor` with new values where a mask is true.

    Parameters
    ----------
    tensor : Tensor
        Any shape, left as it is.
    mask : Tensor of bool
        The leading dimensions of `tensor`, or broadcastable against it (a mask per problem).
    value : Tensor
        As many values as the mask has true entries (with the remaining dimensions, if any), or
        values that broadcast against the mask: one, or one a problem.
    """
    leading = mask.shape == tensor.shape[: mask.ndim]
    if leading and value.ndim == 1 + tensor.ndim - mask.ndim and value.shape[0] != 1:
        return assign(tensor, lambda numbers: numbers[mask], value)
    if leading:
        mask = mask.reshape(mask.shape + (1,) * (tensor.ndim - mask.ndim))
    elif value.ndim == 1 and math.prod(value.shape) > 1:
        raise ValueError(
            f"{value.shape[0]} values cannot be assigned by a mask of shape {tuple(mask.shape)} "
            f"to shape {tuple(tensor.shape)}: where a mask differs between problems, use "
            f"np.where(mask, ..., ...)"
        )
    return torch.where(mask, value.to(tensor.dtype), tensor)
