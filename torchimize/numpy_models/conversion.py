"""From NumPy's numbers, dtypes and arrays to torch's, and the error for what has no counterpart."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

_TORCH_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(name): getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
_NUMPY_DTYPES = {dtype: numpy_dtype for numpy_dtype, dtype in _TORCH_DTYPES.items()}


class Working(NamedTuple):
    """What numbers and constant arrays become: the floating dtype and the device of a model."""

    dtype: torch.dtype
    device: torch.device

    @property
    def complex_dtype(self) -> torch.dtype:
        """The complex dtype of the same precision."""
        return self.dtype.to_complex()


def working_of(tensors: Iterable[Tensor]) -> Working:
    """Promote the floating dtypes of all tensors; the device is the first one's."""
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    for tensor in tensors:
        device = tensor.device if device is None else device
        real = tensor.dtype.to_real() if tensor.dtype.is_complex else tensor.dtype
        if real.is_floating_point:
            dtype = real if dtype is None else torch.promote_types(dtype, real)
    return Working(dtype or torch.get_default_dtype(), device or torch.device("cpu"))


class UnsupportedNumpyFunction(TypeError):
    """A model calls a NumPy or scipy function that has no counterpart in torch here.

    Parameters
    ----------
    name : str
        The function's full name, such as ``numpy.linalg.svd``.
    detail : str, default ''
        What of the function is missing, such as ``' with the argument out'``.

    Attributes
    ----------
    name : str
        As given.

    Examples
    --------
    >>> raise UnsupportedNumpyFunction("numpy.linalg.svd")
    Traceback (most recent call last):
    ...
    torchimize.numpy_models.conversion.UnsupportedNumpyFunction: the model calls numpy.linalg.svd,
    which has no counterpart in torch; write that part with torch
    """

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(
            f"the model calls {name}{detail}, which has no counterpart in torch; "
            f"write that part with torch"
        )
        self.name = name


class NumberEscape(TypeError):
    """A Python number, or an array of numbers, was asked for where a derivative would be lost."""


def full_name(function: Any) -> str:
    """Return a function's name with its package; ufuncs do not know theirs."""
    name = getattr(function, "__name__", repr(function)).lstrip("_")
    if not isinstance(function, np.ufunc):
        module = getattr(function, "__module__", "") or ""
        return f"{module}.{name}" if module else name
    if getattr(np, name, None) is function:
        return f"numpy.{name}"
    special = sys.modules.get("scipy.special")
    return f"scipy.special.{name}" if hasattr(special, name) else name


def torch_dtype(dtype: Any, working: Working) -> torch.dtype:
    """Translate a dtype; Python's ``float`` and ``complex`` stand for the model's own precision."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is float:
        return working.dtype
    if dtype is complex:
        return working.complex_dtype
    found = _TORCH_DTYPES.get(np.dtype(dtype))
    if found is None:
        raise TypeError(f"torch has no dtype {np.dtype(dtype)}")
    return found


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Translate a torch dtype."""
    found = _NUMPY_DTYPES.get(dtype)
    if found is None:
        raise TypeError(f"NumPy has no dtype {dtype}")
    return found


def constant(array: np.ndarray[Any, Any], working: Working, integers: bool = False) -> Tensor:
    """Make a tensor of a constant array, which is copied: nothing may write into the user's.

    Floating and integer arrays take the working dtype, boolean ones stay boolean. With `integers`
    (indices and counts), integer arrays stay so.
    """
    kind = array.dtype.kind
    if kind == "b":
        dtype = torch.bool
    elif kind in "iu":
        dtype = torch.int64 if integers else working.dtype
    elif kind == "f":
        dtype = working.dtype
    elif kind == "c":
        dtype = working.complex_dtype
    else:
        raise TypeError(f"an array of dtype {array.dtype} cannot become a tensor")
    # bfloat16, which NumPy lacks, goes by way of float32
    exact = _NUMPY_DTYPES.get(dtype, np.dtype(np.float32))
    copied = np.array(array, dtype=exact, order="C")
    return torch.from_numpy(copied).to(device=working.device, dtype=dtype)


def number(value: complex, working: Working) -> Tensor:
    """Make a tensor without dimensions of a Python number."""
    if isinstance(value, bool):
        dtype = torch.bool
    elif isinstance(value, complex):
        dtype = working.complex_dtype
    else:
        dtype = working.dtype
    return torch.full((), value, dtype=dtype, device=working.device)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its values: no derivative, no mapping, no trace."""
    return (
        type(tensor) is Tensor
        and not tensor.requires_grad
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
        and _get_current_dispatch_mode() is None
    )


def plain_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Copy a plain tensor into an array."""
    # within a transform of torch.func, what comes out of any operation is wrapped
    with torch._C._DisableFuncTorch():
        if tensor.dtype not in _NUMPY_DTYPES:
            tensor = tensor.float()
        return tensor.cpu().resolve_conj().numpy().copy()


def floating(tensor: Tensor, working: Working) -> Tensor:
    """Give an integer or boolean tensor the working dtype."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return tensor
    return tensor.to(working.dtype)
