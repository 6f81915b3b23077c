"""Rerouting a function's calls of ``torch.special`` to functions with right derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import torchimize.special_functions.airy as airy
import torchimize.special_functions.bessel as bessel
import torchimize.special_functions.gamma as gamma
import torchimize.special_functions.polynomials as polynomials
from torchimize.special_functions.elementwise import TensorFunction


def _heaviside(x: Tensor, values: Tensor) -> Tensor:
    return torch.where(x == 0, values, (x > 0).to(values.dtype))


CORRECTIONS: Mapping[Any, TensorFunction] = {
    torch.special.airy_ai: airy.airy_ai,
    torch.special.bessel_j0: bessel.bessel_j0,
    torch.special.bessel_j1: bessel.bessel_j1,
    torch.special.bessel_y0: bessel.bessel_y0,
    torch.special.bessel_y1: bessel.bessel_y1,
    torch.special.modified_bessel_i0: bessel.modified_bessel_i0,
    torch.special.modified_bessel_i1: bessel.modified_bessel_i1,
    torch.special.modified_bessel_k0: bessel.modified_bessel_k0,
    torch.special.modified_bessel_k1: bessel.modified_bessel_k1,
    torch.special.scaled_modified_bessel_k0: bessel.scaled_modified_bessel_k0,
    torch.special.scaled_modified_bessel_k1: bessel.scaled_modified_bessel_k1,
    torch.special.spherical_bessel_j0: bessel.spherical_bessel_j0,
    torch.special.zeta: gamma.zeta,
    **dict.fromkeys((torch.special.gammainc, torch.igamma, Tensor.igamma), gamma.gammainc),
    **dict.fromkeys((torch.special.gammaincc, torch.igammac, Tensor.igammac), gamma.gammaincc),
    **dict.fromkeys((torch.heaviside, Tensor.heaviside), _heaviside),
    **{
        getattr(torch.special, name): getattr(polynomials, name)
        for name in vars(polynomials)
        if "_polynomial_" in name
    },
}
"""Functions of torch whose derivative is zero or missing, each with the function that has it."""


class CorrectDerivatives(TorchFunctionMode):
    """While active, calls of the functions in `CORRECTIONS` get the right derivative.

    Works with ``torch.func`` transforms, entered around them or within the transformed function. A
    call with ``out=`` is left alone: torch differentiates none of those.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor(0.5, dtype=torch.float64)
    >>> with CorrectDerivatives():
    ...     slope = torch.func.grad(torch.special.bessel_j0)(x)
    >>> bool(torch.isclose(slope, -torch.special.bessel_j1(x)))
    True
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if "out" not in kwargs:
            func = CORRECTIONS.get(func, func)
        return func(*args, **kwargs)


class _Recording(TorchFunctionMode):
    """Notes whether a function in `CORRECTIONS` was called."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.met = self.met or func in CORRECTIONS
        return func(*args, **(kwargs or {}))


def needs_correction(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether a function calls one of torch's functions that have no right derivative.

    Parameters
    ----------
    function : callable
        Any function of tensors. It is called once, on copies of the tensors.
    args : sequence
        Its arguments.
    kwargs : mapping, optional
        Its keyword arguments.

    Returns
    -------
    bool
        True where `CorrectDerivatives` must be active while `function` runs.

    Raises
    ------
    Exception
        Whatever `function` raises.

    Examples
    --------
    >>> import torch
    >>> needs_correction(torch.special.bessel_y1, [torch.ones(2)])
    True
    >>> needs_correction(torch.special.i1, [torch.ones(2)])
    False
    """

    def copied(entry: Any) -> Any:
        return entry.detach().clone() if isinstance(entry, Tensor) else entry

    copied_args = tree_map(copied, tuple(args))
    copied_kwargs = tree_map(copied, dict(kwargs or {}))
    with _Recording() as recording:
        function(*copied_args, **copied_kwargs)
    return bool(recording.met)
