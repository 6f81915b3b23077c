"""Watches a run: every operation gives its results expressions, and what no operation tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchimize.kernel.derivative import SUPPORTED_CONSTANT
from torchimize.kernel.lowerings import FUNCTIONS, IN_PLACE, LOWERINGS, UNIFORM
from torchimize.kernel.lowerings.context import Arguments, DataError, Keywords, UntraceableError
from torchimize.kernel.lowerings.elementwise import ELEMENTWISE, TRUTH_VALUED
from torchimize.kernel.lowerings.views import VIEWS
from torchimize.kernel.trace.memory import Memory


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that takes no memory."""
    return torch.zeros((), dtype=dtype, device=device).expand(tuple(shape))


class _Operation:
    """What the tracer knows of an aten operation."""

    __slots__ = (
        *("constant", "func", "in_place", "known", "lowering", "mutable", "name"),
        *("uniform", "view"),
    )

    def __init__(self, func: Any) -> None:
        self.func = func
        """Kept alive, so that its identity is not reused."""
        name = func.overloadpacket.__name__
        self.name = name
        self.mutable = func._schema.is_mutable
        self.view = VIEWS.get(name)
        self.uniform = UNIFORM.get(name)
        self.lowering = None if self.mutable else LOWERINGS.get(name)
        self.in_place = False
        if self.mutable and func._overloadname != "out" and name.endswith("_"):
            self.lowering = IN_PLACE.get(name) or LOWERINGS.get(name[:-1])
            self.in_place = self.lowering is not None
        self.constant = name in SUPPORTED_CONSTANT
        self.known = bool(self.lowering or self.view or name == "detach")


_OPERATIONS: dict[int, _Operation] = {}
"""By the identity of the operation: hashing one takes longer."""


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of one run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled, and torch's way of saying so imports its compiler."""
        return False

    def __init__(self, memory: Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        operation = _OPERATIONS.get(id(func))
        if operation is None:
            operation = _OPERATIONS[id(func)] = _Operation(func)
        values = args if not kwargs else (*args, *kwargs.values())
        known = self.memory.known
        touched = depends = False
        for value in values:
            if id(value) in known:
                touched = True
                depends = depends or self.memory.depends(value)
            elif value.__class__ is list or value.__class__ is tuple:
                for entry in value:
                    if id(entry) in known:
                        touched = True
                        depends = depends or self.memory.depends(entry)
        if not touched:
            return self._on_data(operation, func, args, kwargs or {})
        try:
            if depends and not torch.is_grad_enabled():
                raise UntraceableError(
                    f"aten.{operation.name} runs where differentiation is switched off"
                )
            return self._on_known(operation, func, args, kwargs or {}, depends)
        except UntraceableError as error:
            self.memory.without_slope = False
            if depends or isinstance(error, DataError):
                raise
            raise DataError(str(error)) from None

    def _on_data(self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operation that has to do neither with parameters nor with problems."""
        memory = self.memory
        if memory.adopts_any((*args, *kwargs.values())):
            return self.__torch_dispatch__(func, (), args, kwargs)
        if operation.mutable:
            for value in (*args, *kwargs.values()):
                memory.check_unread(value, operation.name)
        result = func(*args, **kwargs)
        if operation.uniform is not None:
            memory.add_uniform(result, float(operation.uniform(args)))
        elif operation.name == "detach":
            # torch itself detaches what is made without operands, and only the copy is seen again
            value = memory.uniform_value(args[0])
            if value is not None:
                memory.add_uniform(result, value)
        return result

    def _on_known(
        self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords, depends: bool
    ) -> Any:
        """Run an operation on what has expressions, and give its results theirs."""
        memory = self.memory
        if not operation.known:
            raise UntraceableError(f"aten.{operation.name} has no lowering")
        if operation.in_place:
            return self._in_place(operation, func, args, kwargs, depends)
        if memory.virtual:
            result = self._virtual_result(operation, func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if operation.lowering is not None:
            self._lower(operation, args, kwargs, result, depends and operation.uniform is None)
        elif operation.view is not None:
            views = operation.view(memory, args, kwargs, result)
            if isinstance(views, list):
                for output, view in zip(result, views, strict=True):
                    memory.add_view(output, args[0], view)
            else:
                memory.add_view(result, args[0], views)
        else:
            memory.add_detached(result, args[0])
        return result

    def _lower(
        self, operation: _Operation, args: Arguments, kwargs: Keywords, result: Any, depends: bool
    ) -> None:
        """Give an operation's results their expressions."""
        memory = self.memory
        outputs = [result] if isinstance(result, Tensor) else result
        for output in outputs:
            if output.dtype is not memory.dtype and output.is_floating_point():
                args = _in_precision(output.dtype, operation.name, args)
        assert operation.lowering is not None
        memory.without_slope = operation.constant
        loaders = operation.lowering(memory, args, kwargs, result)
        memory.without_slope = False
        if not isinstance(loaders, list):
            memory.add(outputs[0], loaders, depends)
            return
        for output, loader in zip(outputs, loaders, strict=True):
            memory.add(output, loader, depends)

    def _in_place(
        self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords, depends: bool
    ) -> Any:
        memory, target = self.memory, args[0]
        if target.is_floating_point() and target.dtype != memory.dtype:
            raise UntraceableError(f"aten.{operation.name} writes dtype {target.dtype}")
        same = operation.name != "copy_" or target.dtype == args[1].dtype
        if not target.is_floating_point() and not same:
            raise UntraceableError(f"a conversion to {target.dtype}")
        assert operation.lowering is not None
        try:
            memory.adopt(target)
            loader = operation.lowering(memory, args, kwargs, target)
            assert callable(loader)
            memory.write(target, loader, depends)
        except UntraceableError as error:
            raise type(error)(f"aten.{operation.name}: {error}") from None
        return target if memory.virtual else func(*args, **kwargs)

    def call(self, function: Callable[..., Tensor], op: str, args: Arguments) -> Tensor:
        """Call one of this package's functions, which the graph knows as a whole."""
        memory = self.memory
        if not any(id(value) in memory.known for value in args):
            return function(*args)
        depends = any(memory.depends(value) for value in args)
        if depends and not torch.is_grad_enabled():
            raise UntraceableError(f"{op} runs where differentiation is switched off")
        if memory.virtual:
            result = self._elementwise(args, memory.dtype)
        else:
            self.paused = True
            try:
                result = function(*args)
            finally:
                self.paused = False
        loaders = memory.operands(args, result.shape)
        memory.add(
            result,
            lambda i: memory.graph.apply(op, *(memory.number(load(i)) for load in loaders)),
            depends,
        )
        return result

    def _virtual_result(
        self, operation: _Operation, func: Any, args: Arguments, kwargs: Keywords
    ) -> Any:
        """What an operation returns, without numbers."""
        dtype = self.memory.dtype
        if operation.name in ("clone", "_to_copy"):
            return self._elementwise(args[:1], kwargs.get("dtype") or args[0].dtype)
        if operation.name in ELEMENTWISE:
            tensors = [a for a in args if isinstance(a, Tensor)]
            if operation.name in TRUTH_VALUED:
                return self._elementwise(tensors, torch.bool)
            if any(t.is_floating_point() for t in tensors):
                return self._elementwise(tensors, dtype)
        result = func(*args, **kwargs)
        if operation.view is not None or not operation.lowering:
            return result
        if isinstance(result, Tensor):
            return placeholder(result.shape, result.dtype, result.device)
        return [placeholder(r.shape, r.dtype, r.device) for r in result]

    def _elementwise(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        shapes = [value.shape for value in values if isinstance(value, Tensor)]
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        return placeholder(shape, dtype, self.memory.params.device)


def _in_precision(dtype: torch.dtype, name: str, args: Arguments) -> Arguments:
    """Arguments as they are in another precision than the parameters'.

    Where truth values meet numbers, torch computes in its default precision, exactly but for the
    numbers; all else would have to be rounded at each step.
    """
    tensors = [a for a in args if isinstance(a, Tensor) and a.ndim]
    if name not in ("mul", "where") or any(t.dtype != torch.bool for t in tensors):
        raise UntraceableError(f"aten.{name} gives dtype {dtype}")
    return tuple([float(torch.tensor(a, dtype=dtype)) if isinstance(a, float) else a for a in args])


EXITS = frozenset(
    {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.untyped_storage}
)
"""Methods that read a tensor's memory."""

_WATCHED: dict[Any, str] = {**dict.fromkeys(EXITS, ""), **FUNCTIONS}


class Guard(TorchFunctionMode):
    """Sees what operations do not tell.

    Values that leave torch without an operation are stopped: what they decide would be frozen.
    This package's special functions are known as a whole.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        op = _WATCHED.get(func)
        if op is not None:
            if op:
                return self.tracer.call(func, op, args)
            if id(args[0]) in self.tracer.memory.known:
                raise UntraceableError(f"Tensor.{func.__name__} takes numbers out of torch")
        return func(*args, **kwargs) if kwargs else func(*args)
