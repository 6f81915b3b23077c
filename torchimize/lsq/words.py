"""A user's function in torch's words and with right derivatives, whatever it was written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from torchimize import numpy_models
from torchimize.special_functions import CorrectDerivatives, needs_correction

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named arguments of a call."""


TORCH, NUMPY, CORRECTED = "torch", "numpy", "corrected"

_WORDS: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()
"""What functions were found to be written in, so that they are tried once only."""


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
    try:
        words = _WORDS.get(function)
    except TypeError:  # neither hashable nor weakly referenced
        words = None
    if words is None:
        words = _words_of(function, few, everything)
        if words is None:
            return function  # the caller meets the error where it can be explained
        with suppress(TypeError):
            _WORDS[function] = words
    if words == NUMPY:
        return numpy_models.in_numpy_words(function)
    if words == TORCH:
        return function

    def with_right_derivatives(*args: Any, **kwargs: Any) -> Any:
        with CorrectDerivatives():
            return function(*args, **kwargs)

    return with_right_derivatives


def _words_of(function: Callable[..., Any], few: Arguments, everything: Arguments) -> str | None:
    """What a function is written in; None where it fails however it is called."""
    if numpy_models.uses_numpy(function, *few):
        return NUMPY
    try:
        corrected = needs_correction(function, *few)
    except Exception:
        if numpy_models.uses_numpy(function, *everything):
            return NUMPY
        try:
            corrected = needs_correction(function, *everything)
        except Exception:
            return None
    return CORRECTED if corrected else TORCH
