"""A user's function in torch's words, whether it was written in torch's or in NumPy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchimize import numpy_models

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named arguments of a call."""


def in_torch_words(
    function: Callable[..., Any], few: Arguments, everything: Arguments
) -> Callable[..., Any]:
    """The function, wrapped where it uses NumPy's words; found out by trying it.

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
        function(*few[0], **few[1])
    except Exception:
        if numpy_models.uses_numpy(function, *everything):
            return numpy_models.in_numpy_words(function)
    return function
