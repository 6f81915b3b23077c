"""A user's function in torch's words and with right derivatives, whatever it was written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchimize import numpy_models
from torchimize.special_functions import CorrectDerivatives, needs_correction

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named arguments of a call."""


def in_torch_words(
    function: Callable[..., Any], few: Arguments, everything: Arguments
) -> Callable[..., Any]:
    """The function, wrapped where it needs it; found out by trying it.

    A function in NumPy's words runs on wrapped tensors; one that calls functions of torch whose
    derivative is zero or missing gets the right ones.

    Parameters
    ----------
    function : callable
    few : (args, kwargs)
        A call on a few problems, cheap.
    everything : (args, kwargs)
        A call on all of them, for a function that closes over all problems' data.
    """
    if numpy_models.uses_numpy(function, *few):
        return numpy_models.in_numpy_words(function)
    try:
        corrected = needs_correction(function, *few)
    except Exception:
        if numpy_models.uses_numpy(function, *everything):
            return numpy_models.in_numpy_words(function)
        try:
            corrected = needs_correction(function, *everything)
        except Exception:
            return function  # the caller meets the error where it can be explained
    if not corrected:
        return function

    def with_right_derivatives(*args: Any, **kwargs: Any) -> Any:
        with CorrectDerivatives():
            return function(*args, **kwargs)

    return with_right_derivatives
