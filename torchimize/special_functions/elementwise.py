"""Joining a function with its known derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

TensorFunction = Callable[..., Tensor]


def elementwise(value: TensorFunction, *partials: TensorFunction) -> TensorFunction:
    """Join an elementwise function and its partial derivatives into one that torch differentiates.

    Parameters
    ----------
    value : callable
        Function of k tensors of one shape, dtype and device.
    *partials : callable
        k functions of the same arguments: the partial derivatives. Where they can be
        differentiated, the result can be differentiated as often.

    Returns
    -------
    callable
        Function of k broadcastable tensors or numbers, at least one of them a tensor. Works under
        ``torch.func.jvp``, ``vjp``, ``vmap`` and nested transforms (at most two nested ``jvp``).
        Integer tensors become the default floating dtype.

    Raises
    ------
    TypeError
        From the returned function: no argument is a tensor, or one is complex.
    NotImplementedError
        From the returned function: more than two ``jvp`` are nested.

    Examples
    --------
    >>> import torch
    >>> square = elementwise(lambda x: x * x, lambda x: 2 * x)
    >>> torch.func.grad(square)(torch.tensor(3.0))
    tensor(6.)
    """

    class Joined(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Tensor) -> Tensor:
            return value(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)
            ctx.set_materialize_grads(False)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
            return _along(partials, ctx.saved_tensors, tangents)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor | None) -> Any:
            inputs = ctx.saved_tensors
            gradients = tuple(
                partial(*inputs) * gradient if needed and gradient is not None else None
                for partial, needed in zip(partials, ctx.needs_input_grad, strict=True)
            )
            return gradients if len(gradients) > 1 else gradients[0]

    def joined(*inputs: Tensor | float) -> Tensor:
        if torch._C._is_torch_function_mode_enabled():
            # as with torch's own functions, a mode may know the whole by name
            return handle_torch_function(joined, (), *inputs)
        tensors = alike(inputs)
        if _nested_jvps() > 1:
            return _to_second_order(value, partials, tensors)
        return Joined.apply(*tensors)  # type: ignore[no-any-return, no-untyped-call]

    return joined


def alike(inputs: Sequence[Tensor | float]) -> list[Tensor]:
    """Bring numbers and tensors to one floating dtype, device and shape."""
    first = next((entry for entry in inputs if isinstance(entry, Tensor)), None)
    if first is None:
        met = ", ".join(type(entry).__name__ for entry in inputs)
        raise TypeError(f"at least one argument must be a tensor, got {met}")
    dtype = first.dtype
    for entry in inputs:
        if isinstance(entry, Tensor):
            dtype = torch.promote_types(dtype, entry.dtype)
    if dtype.is_complex:
        raise TypeError(f"real tensors are wanted, got {dtype}")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    tensors = [
        entry.to(dtype)
        if isinstance(entry, Tensor)
        else torch.full((), entry, dtype=dtype, device=first.device)
        for entry in inputs
    ]
    if len(tensors) == 1:
        return tensors
    return list(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]


def _along(
    partials: Sequence[TensorFunction], inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Tensor | None:
    total: Tensor | None = None
    for partial, tangent in zip(partials, tangents, strict=True):
        if tangent is not None:
            term = partial(*inputs) * tangent
            total = term if total is None else total + term
    return total


def _nested_jvps() -> int:
    stack = torch._C._functorch.get_interpreter_stack() or ()
    jvp = torch._C._functorch.TransformType.Jvp
    return sum(interpreter.key() == jvp for interpreter in stack)


# Orders of differentiation that `_to_second_order` still has to provide for.
_order: ContextVar[int] = ContextVar("order", default=2)


def _to_second_order(
    value: TensorFunction, partials: Sequence[TensorFunction], inputs: Sequence[Tensor]
) -> Tensor:
    """Compose the function from operations whose first and second derivatives are the right ones.

    torch calls a Function's jvp with forward differentiation switched off, so an outer jvp would
    silently find a zero. With o the inputs cut from all differentiation and d = x - o (zero),
    f(o) + (f'(o) + f'(x)) d / 2 has the value f, the derivative f' and the second derivative f''.
    The slope f'(x), itself such a function, needs one order less.
    """
    if _nested_jvps() > 2:
        raise NotImplementedError(
            f"special functions can be differentiated under at most 2 nested torch.func.jvp, "
            f"got {_nested_jvps()}; use torch.func.vjp or grad for the inner ones"
        )
    fixed = [entry.detach() for entry in inputs]
    total = value(*fixed)
    order = _order.get()
    if order == 0:
        return total
    for partial, entry, still in zip(partials, inputs, fixed, strict=True):
        slope = _at_order(0, partial, fixed)
        if order == 2:
            slope = (slope + _at_order(1, partial, inputs)) / 2
        total = total + slope * (entry - still)
    return total


def _at_order(order: int, function: TensorFunction, inputs: Sequence[Tensor]) -> Tensor:
    token = _order.set(order)
    try:
        return function(*inputs)
    finally:
        _order.reset(token)
