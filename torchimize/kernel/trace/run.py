"""A function run once, watched from start to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchimize.kernel.lowerings.context import UntraceableError
from torchimize.kernel.trace.memory import Memory
from torchimize.kernel.trace.pieces import Reader, Trace
from torchimize.kernel.trace.watch import Guard, Tracer, placeholder


def trace(
    function: Callable[[Tensor], Tensor],
    params: Tensor,
    arguments: Sequence[Tensor] = (),
    *,
    virtual: bool = False,
) -> Trace:
    """Trace a function of the parameters.

    Parameters
    ----------
    function : callable
        (A, P) to (A, ...); row a depends on ``params[a]`` alone.
    params : Tensor (A, P)
        Rows to run it on. The trace of one row serves one row only, that of more any number.
    arguments : sequence of Tensor
        What the function reads that belongs to the problems, A rows each; they become the first
        sources. Everything else that it meets counts as the same for all calls.
    virtual : bool, default False
        Elementwise operations on what depends on the parameters are not carried out, and no
        results are kept, so that a run on many rows costs little more than one on few. The
        function meets zeros instead.

    Returns
    -------
    Trace

    Raises
    ------
    UntraceableError
        Where an operation has no lowering.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0, 1, 5)
    >>> found = trace(lambda p: p[:, :1] * torch.exp(-p[:, 1:] * x), torch.ones(2, 2))
    >>> found.trailing, len(found.sources), found.pieces[0].node.op
    ((5,), 1, 'mul')
    """
    # a fresh tensor, so that its identity stands for the parameters and nothing else
    params = (
        placeholder(params.shape, params.dtype, params.device)
        if virtual
        else params.detach().clone()
    )
    memory = Memory(params, arguments, virtual)
    tracer = Tracer(memory)
    try:
        # switched on so that where the function switches it off can be seen
        with tracer, Guard(tracer), torch.enable_grad():
            output = function(params)
        if not isinstance(output, Tensor):
            raise UntraceableError(f"the function returns {type(output).__name__}, not a tensor")
        if not output.numel():
            raise UntraceableError("the function returns nothing: its output has no elements")
        return Reader(memory, output).trace()
    except RecursionError:
        raise UntraceableError("too many operations on top of each other") from None
    finally:
        # loaders and what holds them refer to each other: without this, thousands of objects
        # would wait for the garbage collector
        memory.forget()
