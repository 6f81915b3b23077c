"""Joining arrays and changing their shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimize.numpy_models.conversion import Working, torch_dtype
from torchimize.numpy_models.registry import (
    Axis,
    axes_of,
    flattened,
    implements,
    joined,
    promoted,
    shape_of,
    tensor_of,
)


@implements("concatenate", "concat")
def _concatenate(
    arrays: Any, axis: int | None = 0, out: None = None, *, dtype: Any = None, working: Working
) -> Tensor:
    tensors = [tensor_of(array, working) for array in arrays]
    if axis is None:
        tensors, axis = [tensor.reshape(-1) for tensor in tensors], 0
    result = joined(torch.cat, tensors, axis)
    return result if dtype is None else result.to(torch_dtype(dtype, working))


@implements("stack")
def _stack(
    arrays: Any, axis: int = 0, out: None = None, *, dtype: Any = None, working: Working
) -> Tensor:
    tensors = [tensor_of(array, working) for array in arrays]
    # a number beside parameters of many problems stands for one number a problem
    full = max(tensors, key=lambda tensor: tensor.ndim).shape
    tensors = [tensor.broadcast_to(full) if tensor.ndim == 0 else tensor for tensor in tensors]
    result = joined(torch.stack, tensors, axis)
    return result if dtype is None else result.to(torch_dtype(dtype, working))


def _stacking(join: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def stacking(tup: Any, *, working: Working) -> Tensor:
        return joined(join, [tensor_of(array, working) for array in tup])

    return stacking


implements("vstack")(_stacking(torch.vstack))
implements("hstack")(_stacking(torch.hstack))
implements("dstack")(_stacking(torch.dstack))
implements("column_stack")(_stacking(torch.column_stack))


@implements("append")
def _append(arr: Any, values: Any, axis: int | None = None, *, working: Working) -> Tensor:
    return _concatenate([arr, values], axis, working=working)


def _filled(
    like: Any, value: Any, dtype: Any, shape: Any, device: None, working: Working
) -> Tensor:
    like = tensor_of(like, working)
    wanted = like.dtype if dtype is None else torch_dtype(dtype, working)
    size = like.shape if shape is None else shape_of(shape)
    filled = tensor_of(value, working).to(wanted).broadcast_to(size)
    return filled.clone()


@implements("zeros_like", "empty_like")
def _zeros_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None,
    *, device: None = None, working: Working,
) -> Tensor:  # fmt: skip
    return _filled(a, 0, dtype, shape, device, working)


@implements("ones_like")
def _ones_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None,
    *, device: None = None, working: Working,
) -> Tensor:  # fmt: skip
    return _filled(a, 1, dtype, shape, device, working)


@implements("full_like")
def _full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True,
    shape: Any = None, *, device: None = None, working: Working,
) -> Tensor:  # fmt: skip
    return _filled(a, fill_value, dtype, shape, device, working)


@implements("copy")
def _copy(a: Tensor) -> Tensor:
    return a.clone()


@implements("reshape")
def _reshape(a: Tensor, shape: Any = None, order: str = "C", *, newshape: Any = None) -> Tensor:
    return torch.reshape(a, shape_of(newshape if shape is None else shape))


@implements("ravel")
def _ravel(a: Tensor) -> Tensor:
    return torch.reshape(a, (-1,))


@implements("transpose", "permute_dims")
def _transpose(a: Tensor, axes: Any = None) -> Tensor:
    return a.permute(tuple(reversed(range(a.ndim))) if axes is None else shape_of(axes))


@implements("matrix_transpose", "linalg.matrix_transpose")
def _matrix_transpose(x: Tensor) -> Tensor:
    return x.mT


@implements("moveaxis")
def _moveaxis(a: Tensor, source: Any, destination: Any) -> Tensor:
    return torch.movedim(a, shape_of(source), shape_of(destination))


@implements("swapaxes")
def _swapaxes(a: Tensor, axis1: int, axis2: int) -> Tensor:
    return torch.swapaxes(a, axis1, axis2)


@implements("expand_dims")
def _expand_dims(a: Tensor, axis: Any) -> Tensor:
    axes = shape_of(axis)
    dimensions = a.ndim + len(axes)
    for d in sorted(d % dimensions for d in axes):
        a = a.unsqueeze(d)
    return a


@implements("squeeze")
def _squeeze(a: Tensor, axis: Any = None) -> Tensor:
    if axis is None:
        return a.squeeze()
    for d in shape_of(axis):
        if a.shape[d] != 1:
            raise ValueError(f"axis {d} of shape {tuple(a.shape)} has not the length 1")
    return a.squeeze(shape_of(axis))


@implements("atleast_1d")
def _atleast_1d(*arys: Tensor) -> Any:
    return torch.atleast_1d(*arys)  # type: ignore[no-untyped-call]


@implements("atleast_2d")
def _atleast_2d(*arys: Tensor) -> Any:
    return torch.atleast_2d(*arys)  # type: ignore[no-untyped-call]


@implements("broadcast_to")
def _broadcast_to(array: Any, shape: Any, *, working: Working) -> Tensor:
    return tensor_of(array, working).broadcast_to(shape_of(shape))


@implements("broadcast_arrays")
def _broadcast_arrays(*args: Any, working: Working) -> tuple[Tensor, ...]:
    return tuple(torch.broadcast_tensors(*(tensor_of(array, working) for array in args)))  # type: ignore[no-untyped-call]


@implements("meshgrid")
def _meshgrid(
    *xi: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy", working: Working
) -> tuple[Tensor, ...]:
    tensors = [tensor_of(x, working).reshape(-1) for x in xi]
    grids = torch.meshgrid(*promoted(*tensors), indexing=indexing)
    if not sparse:
        return tuple(grids)
    dimensions = len(grids)
    axes = [1, 0, *range(2, len(xi))] if indexing == "xy" and len(xi) > 1 else range(len(xi))
    return tuple(
        tensor.reshape([-1 if d == axis else 1 for d in range(dimensions)])
        for tensor, axis in zip(tensors, axes, strict=True)
    )


@implements("tile")
def _tile(A: Tensor, reps: Any) -> Tensor:
    return torch.tile(A, shape_of(reps))


@implements("repeat", integers=True)
def _repeat(a: Tensor, repeats: Any, axis: int | None = None) -> Tensor:
    flat, dimension = flattened(a, axis)
    return torch.repeat_interleave(flat, repeats, dim=dimension)


@implements("roll", integers=True)
def _roll(a: Tensor, shift: Any, axis: Any = None) -> Tensor:
    if axis is None:
        return torch.roll(a.reshape(-1), int(shift)).reshape(a.shape)
    shifts, axes = shape_of(shift), shape_of(axis)
    return torch.roll(a, shifts * len(axes) if len(shifts) == 1 else shifts, axes)


@implements("flip")
def _flip(m: Tensor, axis: Axis = None) -> Tensor:
    return torch.flip(m, axes_of(m, axis))


@implements("fliplr")
def _fliplr(m: Tensor) -> Tensor:
    return torch.fliplr(m)


@implements("flipud")
def _flipud(m: Tensor) -> Tensor:
    return torch.flipud(m)


@implements("split", "array_split", integers=True)
def _split(ary: Tensor, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    if isinstance(indices_or_sections, Tensor):
        indices_or_sections = indices_or_sections.tolist()
    sections = indices_or_sections
    return list(
        torch.tensor_split(ary, sections if isinstance(sections, int) else tuple(sections), axis)
    )


@implements("sort")
def _sort(a: Tensor, axis: int | None = -1) -> Tensor:
    flat, dimension = flattened(a, axis)
    return torch.sort(flat, dim=dimension).values


@implements("argsort")
def _argsort(a: Tensor, axis: int | None = -1) -> Tensor:
    flat, dimension = flattened(a, axis)
    return torch.argsort(flat, dim=dimension, stable=True)


@implements("take", integers=True)
def _take(
    a: Any, indices: Any, axis: int | None = None, out: None = None, *, working: Working
) -> Tensor:
    flat, dimension = flattened(tensor_of(a, working), axis)
    index = indices if isinstance(indices, Tensor) else torch.tensor(indices, device=flat.device)
    return flat[(slice(None),) * (dimension % flat.ndim) + (index.to(torch.int64),)]


@implements("take_along_axis", integers=True)
def _take_along_axis(arr: Tensor, indices: Tensor, axis: int | None = -1) -> Tensor:
    flat, dimension = flattened(arr, axis)
    return torch.take_along_dim(flat, indices, dimension)


@implements("searchsorted")
def _searchsorted(a: Any, v: Any, side: str = "left", *, working: Working) -> Tensor:
    a, v = promoted(tensor_of(a, working), tensor_of(v, working))
    return torch.searchsorted(a.contiguous(), v.contiguous(), right=side == "right")
