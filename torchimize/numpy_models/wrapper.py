"""The wrapper that takes both vocabularies, NumPy's and torch's."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import torchimize.numpy_models.dispatch as dispatch
import torchimize.numpy_models.indexing as indexing
from torchimize.numpy_models.conversion import (
    NumberEscape,
    is_plain,
    numpy_dtype,
    plain_array,
    torch_dtype,
)
from torchimize.numpy_models.views import TensorView, as_tensor

_METHODS: dict[str, Any] = {
    name: getattr(np, name)
    for name in (
        *("sum", "prod", "mean", "std", "var", "min", "max", "any", "all", "argmin", "argmax"),
        *("cumsum", "cumprod", "clip", "round", "dot", "ravel", "squeeze", "swapaxes", "copy"),
        *("repeat", "take", "trace", "diagonal", "argsort", "nonzero", "searchsorted"),
        *("conj", "conjugate"),
    )
}


class NumpyTensor(TensorView, np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor that NumPy's and scipy.special's functions and operators accept.

    Parameters
    ----------
    tensor : Tensor
        Any shape, dtype and device, wrapped by ``torch.func`` transforms or not.
    working : Working, optional
        The floating dtype and the device that numbers and constant arrays take beside it; by
        default the tensor's own.

    Attributes
    ----------
    tensor : Tensor
        The current values.

    Notes
    -----
    - The functions in `ufuncs.UFUNCS`, `ufuncs.scipy_ufuncs` and `functions.FUNCTIONS` work, and
      torch's functions and methods. Others raise `UnsupportedNumpyFunction`.
    - Methods that NumPy and torch both have mean NumPy's (``std`` divides by N, ``repeat`` repeats
      elements); called with ``dim=`` or ``keepdim=`` they mean torch's.
    - Python numbers, NumPy scalars and constant floating or integer arrays never promote: they
      take the dtype of the tensors. A dtype ``float`` stands for the model's precision too.
    - Assignments to items, ``+=`` and its kin and ``out=`` change what the wrapper shows, and views
      of it. They never write into a tensor, so the caller's stay as they are. As a parameter is a
      number in the user's eyes, ``+=`` on a wrapper without samples (no dimension, or a last one
      of length 1) leaves other names for it alone.
    - ``float()``, ``complex()``, ``item()`` and everything else that asks for a plain number of a
      floating tensor, such as ``math.exp``, raises `NumberEscape`: the derivative would be lost
      silently. So do, while the tensor is differentiated, ``np.asarray(p, dtype=float)`` and
      assigning it into a plain array. ``int()`` and ``range()`` of an integer tensor and ``bool()``
      of any tensor without dimensions work where torch has the value, which under ``vmap`` it has
      not.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> x = NumpyTensor(torch.tensor([0.0, 1.0]))
    >>> (2 * np.exp(x)).tensor
    tensor([2.0000, 5.4366])
    """

    __slots__ = ()

    # --- the protocols ---

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return dispatch.call_ufunc(type(self), ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return dispatch.call_function(type(self), func, args, kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch.call_torch(cls, func, args, kwargs or {})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Answer NumPy's constructors, without losing a derivative.

        What is neither differentiated, mapped nor traced becomes a plain array, such as the data
        in ``x = np.asarray(x, dtype=float)``. Otherwise ``np.array([f(p), g(p)])`` becomes an array
        of wrappers, one an element, which work in NumPy's loops and become one tensor again where
        they meet a wrapper, and at the end.
        """
        tensor = self.tensor
        if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            return self.numpy()  # type: ignore[no-any-return]
        if tensor.ndim and is_plain(tensor):
            return plain_array(tensor)
        snapshot = type(self)(self.tensor, self.working)
        objects = np.empty(self.size, dtype=object)
        for position in range(self.size):
            objects[position] = snapshot.element(position)
        return objects.reshape(self.shape)

    # --- items and writing in place ---

    def __getitem__(self, key: Any) -> Any:
        key = self._after_leading(self._key(key))
        if indexing.is_view(key):
            shown = self.as_view(lambda tensor: indexing.select(tensor, key))
        else:
            shown = type(self)(indexing.select(self.tensor, key), self.working)
        shown.leading = min(self.leading, shown.ndim)
        return shown

    def __setitem__(self, key: Any, value: Any) -> None:
        key = self._after_leading(self._key(key))
        values = as_tensor(value, self.working)
        if isinstance(key, Tensor) and key.dtype is torch.bool:
            self.write(indexing.assign_where(self.tensor, key, values))
        else:
            view = functools.partial(indexing.select, key=key)
            self.write(indexing.assign(self.tensor, view, values))

    def _key(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return tuple(self._key(entry) for entry in key)
        if isinstance(key, slice):
            ends = (key.start, key.stop, key.step)
            return slice(*(None if end is None else operator.index(end) for end in ends))
        if isinstance(key, NumpyTensor):
            return key.tensor
        if isinstance(key, np.ndarray | list):
            return as_tensor(key, self.working, integers=True)
        return operator.index(key) if isinstance(key, np.integer) else key

    def _after_leading(self, key: Any) -> Any:
        """Apply an index to the dimensions that the user made."""
        is_mask = isinstance(key, Tensor) and key.dtype is torch.bool
        # a mask with as many dimensions as the wrapper differs between problems
        if not self.leading or (is_mask and key.ndim > self.ndim - self.leading):
            return key
        return (slice(None),) * self.leading + (key if isinstance(key, tuple) else (key,))

    def __len__(self) -> int:
        return len(self.tensor) if not self.leading else self.shape[self.leading]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def _in_place(self, ufunc: np.ufunc, other: Any) -> Any:
        result = ufunc(self, other)
        if not isinstance(result, NumpyTensor):
            return result
        is_number = not self.shape or self.shape[-1] == 1
        # further leading dimensions are those of problems; NumPy knows no other growth in place
        same_samples = result.shape[result.ndim - self.ndim :] == self.shape
        if not self.is_view and (is_number or not same_samples):
            return result
        self.check_casting(result.tensor)
        self.write(result.tensor)
        return self

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(np.add, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(np.subtract, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(np.multiply, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(np.true_divide, other)

    def __ifloordiv__(self, other: Any) -> Any:
        return self._in_place(np.floor_divide, other)

    def __imod__(self, other: Any) -> Any:
        return self._in_place(np.remainder, other)

    def __ipow__(self, other: Any) -> Any:
        return self._in_place(np.power, other)

    def __imatmul__(self, other: Any) -> Any:
        return self._in_place(np.matmul, other)

    def __iand__(self, other: Any) -> Any:
        return self._in_place(np.bitwise_and, other)

    def __ior__(self, other: Any) -> Any:
        return self._in_place(np.bitwise_or, other)

    def __ixor__(self, other: Any) -> Any:
        return self._in_place(np.bitwise_xor, other)

    # --- attributes ---

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the dimensions."""
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.tensor.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.tensor.numel()

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's name of the dtype."""
        return numpy_dtype(self.tensor.dtype)

    @property
    def T(self) -> Any:
        """The dimensions in reverse order."""
        return np.transpose(self)

    @property
    def mT(self) -> Any:
        """The last two dimensions exchanged."""
        return np.swapaxes(self, -1, -2)

    @property
    def real(self) -> Any:
        """The real part."""
        return self.wrapped(torch.real(self.tensor))

    @property
    def imag(self) -> Any:
        """The imaginary part."""
        return np.imag(self)

    @property
    def flat(self) -> Iterator[Any]:
        """The elements one after another."""
        return iter(np.ravel(self))

    # --- methods whose arguments NumPy and torch write differently ---

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        """Give another shape, as ``ndarray.reshape``."""
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Any:
        """Permute the dimensions, as ``ndarray.transpose``; two of more than two as torch does."""
        order: Any = axes[0] if len(axes) == 1 else axes or None
        if len(axes) == 2 != self.ndim:
            return np.swapaxes(self, *axes)
        return np.transpose(self, order)

    def astype(self, dtype: Any, **kwargs: Any) -> Any:
        """Convert to a dtype; ``float`` stands for the model's precision."""
        return self.wrapped(self.tensor.to(torch_dtype(dtype, self.working), copy=True))

    def flatten(self, order: str = "C") -> Any:
        """Copy the elements into one dimension."""
        return self.wrapped(self.tensor.reshape(-1).clone())

    def fill(self, value: Any) -> None:
        """Assign one value to all elements."""
        self[...] = value

    def sort(self, axis: int = -1, **kwargs: Any) -> None:
        """Sort in place, as ``ndarray.sort``."""
        self.write(torch.sort(self.tensor, dim=axis).values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        method = getattr(torch.Tensor, name, None)
        if name in _METHODS:
            return functools.partial(self._method, _METHODS[name], method)
        if callable(method):
            return functools.partial(self._torch_method, method)
        return tree_map(self.wrapped, getattr(self.tensor, name))

    def _method(self, numpy_function: Any, torch_method: Any, /, *args: Any, **kwargs: Any) -> Any:
        if torch_method is not None and not kwargs.keys().isdisjoint({"dim", "keepdim"}):
            return self._torch_method(torch_method, *args, **kwargs)
        return numpy_function(self, *args, **kwargs)

    def _torch_method(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        return dispatch.call_torch(type(self), method, (self, *args), kwargs)

    # --- leaving torch ---

    def _numbers(self, convert: Callable[[Tensor], Any], what: str) -> Any:
        tensor = self.tensor
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise NumberEscape(
                f"the model asks for plain numbers ({what}) of a tensor of dtype {tensor.dtype}, "
                f"and its derivative would be lost: use np.exp instead of math.exp and its kin, "
                f"leave out np.asarray(..., dtype=float), and assign into np.zeros_like(...) of a "
                f"tensor of the model instead of np.zeros(...)"
            )
        return convert(tensor)

    def item(self, *args: Any) -> Any:
        """Return a Python number, which a floating tensor refuses."""
        return self._numbers(lambda tensor: tensor.reshape(-1)[args or ...].item(), "item()")

    def tolist(self) -> Any:
        """Return Python numbers, which a floating tensor refuses."""
        return self._numbers(lambda tensor: tensor.tolist(), "tolist()")

    def numpy(self, **kwargs: Any) -> Any:
        """Return a plain array, which a floating tensor refuses."""
        return np.array(self._numbers(lambda tensor: tensor.tolist(), "numpy()"), self.dtype)

    def __float__(self) -> float:
        return float(self._numbers(lambda tensor: tensor.item(), "float()"))

    def __complex__(self) -> complex:
        return complex(self._numbers(lambda tensor: tensor.item(), "complex()"))

    def __int__(self) -> int:
        return int(self._numbers(lambda tensor: tensor.item(), "int()"))

    def __index__(self) -> int:
        return operator.index(self._numbers(lambda tensor: tensor.item(), "an index"))

    def __bool__(self) -> bool:
        return bool(self.tensor)

    def __repr__(self) -> str:
        return f"NumpyTensor({self.tensor!r})"

    def __format__(self, spec: str) -> str:
        return format(self.tensor, spec)
