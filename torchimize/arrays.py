"""Array-likes in, NumPy arrays out; tensors in, tensors out, on their own device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchimize.errors import DeviceError, DtypeError


def as_tensor(value: Any, name: str) -> Tensor:
    """An array-like as a tensor that shares no memory with later writes of ours.

    Raises
    ------
    TypeError
        Where the value is not numeric.
    """
    if isinstance(value, Tensor):
        return value.detach()
    try:
        if np.ma.isMaskedArray(value) and np.ma.is_masked(value):
            # what is masked counts as not measured, like NaN
            floating = np.result_type(value.dtype, np.float32)
            value = np.ma.filled(value.astype(floating), np.nan)
        array = np.asarray(value)
        if array.dtype == np.longdouble:
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        return torch.as_tensor(np.ascontiguousarray(array).reshape(array.shape))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"`{name}` is {type(value).__name__}; wanted numbers, an array or a tensor (rows of "
            "different lengths: fill the short ones with NaN)"
        ) from None


def start_tensor(value: Any, name: str) -> Tensor:
    """A start as a tensor; Python numbers become float64, integer arrays are left to be refused."""
    tensor = as_tensor(value, name)
    if not isinstance(value, (Tensor, np.ndarray)) and not tensor.is_complex():
        flat = [value] if not isinstance(value, Iterable) else value
        if not any(isinstance(v, (Tensor, np.ndarray)) for v in flat):
            tensor = tensor.to(torch.float64)
    return tensor


def data_tensor(value: Any, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Data as a tensor of the fit's dtype; integers and booleans are converted.

    Raises
    ------
    DtypeError
        Where the data are complex.
    DeviceError
        Where a tensor lives on another device than the fit.
    """
    tensor = as_tensor(value, name)
    if tensor.is_complex():
        raise DtypeError(
            f"`{name}` is complex; wanted real numbers (stack real and imaginary parts as samples)"
        )
    if isinstance(value, Tensor) and tensor.device != device and tensor.ndim > 0:
        raise DeviceError(f"`{name}` is on {tensor.device}, the other tensors on {device}")
    return tensor.to(device=device, dtype=dtype)


@dataclass(frozen=True)
class Output:
    """How results leave: with the user's batch dimensions, as NumPy arrays or tensors.

    Attributes
    ----------
    batch_shape : tuple of int
        () for one problem.
    numpy : bool
    """

    batch_shape: tuple[int, ...]
    numpy: bool

    @property
    def single(self) -> bool:
        """Whether there is one problem without a batch dimension."""
        return self.batch_shape == ()

    def __call__(self, value: Tensor) -> Any:
        """(B, ...) in the form the user expects."""
        value = value.reshape((*self.batch_shape, *value.shape[1:]))
        return value.numpy(force=True) if self.numpy else value

    def scalar(self, value: Tensor) -> Any:
        """(B,) in the form the user expects; a Python number for one problem."""
        return value[0].item() if self.single else self(value)
