"""Models written with NumPy's functions, made functions of tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from torchimize.numpy_models.conversion import (
    NumberEscape,
    UnsupportedNumpyFunction,
    Working,
    working_of,
)
from torchimize.numpy_models.views import as_tensor, gather
from torchimize.numpy_models.wrapper import NumpyTensor


class _NumpyMet(BaseException):
    """A NumPy function met a tensor; no ``except Exception`` of a model may catch it."""


class _Probe(Tensor):
    """A tensor that tells when NumPy gets hold of it."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise _NumpyMet

    def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
        raise _NumpyMet

    def __array_function__(self, *args: Any, **kwargs: Any) -> Any:
        raise _NumpyMet


def uses_numpy(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether a function hands its tensors to NumPy's or scipy's functions.

    An array or NumPy number beside a tensor (``array * tensor``) counts too.

    Parameters
    ----------
    function : callable
        Any function of tensors. It is called once on copies of the tensors, and once more where it
        fails for another reason than NumPy.
    args : sequence
        Its arguments, tensors anywhere in them.
    kwargs : mapping, optional
        Its keyword arguments.

    Returns
    -------
    bool
        True where `in_numpy_words` should wrap the function: NumPy met a tensor, or the function
        fails on tensors and works when wrapped. False where it runs with torch, and where it fails
        either way, so that the caller meets the error.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> uses_numpy(lambda x, a: a * np.exp(-x), [torch.ones(3), torch.ones(())])
    True
    >>> uses_numpy(lambda x, a: a * torch.exp(-x), [torch.ones(3), torch.ones(())])
    False
    """
    args, kwargs = tuple(args), dict(kwargs or {})

    def probing(entry: Any) -> Any:
        return entry.detach().clone().as_subclass(_Probe) if isinstance(entry, Tensor) else entry

    try:
        function(*tree_map(probing, args), **tree_map(probing, kwargs))
    except _NumpyMet:
        return True
    except Exception:
        try:
            in_numpy_words(function)(*args, **kwargs)
        except Exception:
            return False
        return True
    return False


def in_numpy_words(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a function written with NumPy's functions one of tensors.

    Parameters
    ----------
    function : callable
        Takes arrays and numbers, returns an array, a number, or a list or tuple of these.

    Returns
    -------
    callable
        Takes tensors anywhere in the arguments and returns one tensor of their dtype and device. It
        can be differentiated, mapped and traced like a function written with torch. Nothing writes
        into its arguments.

    Raises
    ------
    UnsupportedNumpyFunction
        From the returned function: a function without a counterpart is called, and named.
    NumberEscape
        From the returned function: plain numbers of a tensor are asked for.

    Notes
    -----
    A list of results is stacked along a new first dimension, as ``np.array`` does.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> model = in_numpy_words(lambda x, a, b: a * np.exp(-b * x))
    >>> x, a, b = torch.zeros(2), torch.tensor(3.0), torch.tensor(1.0)
    >>> torch.func.jvp(lambda a: model(x, a, b), (a,), (torch.ones(()),))
    (tensor([3., 3.]), tensor([1., 1.]))
    """

    @functools.wraps(function)
    def on_tensors(*args: Any, **kwargs: Any) -> Tensor:
        working = working_of(
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        )

        def wrapped(entry: Any) -> Any:
            return NumpyTensor(entry, working) if isinstance(entry, Tensor) else entry

        try:
            result = function(*tree_map(wrapped, args), **tree_map(wrapped, kwargs))
        except (NumberEscape, UnsupportedNumpyFunction):
            raise
        except (TypeError, ValueError) as error:
            raise _explained(error) from error
        return _one_tensor(result, working)

    return on_tensors


def _one_tensor(result: Any, working: Working) -> Tensor:
    if isinstance(result, list | tuple):
        if not result:
            return torch.zeros(0, dtype=working.dtype, device=working.device)
        rows = np.empty(len(result), dtype=object)
        for index, entry in enumerate(result):
            rows[index] = NumpyTensor(_one_tensor(entry, working), working)
        return gather(rows, working)
    if result is None:
        raise TypeError("the model returned None; an array or a number is wanted")
    return as_tensor(result, working)


def _explained(error: Exception) -> Exception:
    """Find the reason behind an error that NumPy raised for one of ours."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NumberEscape | UnsupportedNumpyFunction):
            return cause
        cause = cause.__cause__ or cause.__context__
    name = _library_function(error.__traceback__)
    if name is not None and "ufunc" in str(error):
        return UnsupportedNumpyFunction(name)
    return error


def _library_function(traceback: TracebackType | None) -> str | None:
    """Name the function of NumPy or scipy that the model called when the error was raised."""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.split(".")[0] in ("numpy", "scipy"):
            public = ".".join(part for part in module.split(".") if not part.startswith("_"))
            return f"{public}.{traceback.tb_frame.f_code.co_name}"
        traceback = traceback.tb_next
    return None
