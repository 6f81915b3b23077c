"""Compiled kernels: kept by what they compute, bound to data, and run in chunks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from torchimize.errors import NotFusedError
from torchimize.kernel import driver, triton_driver
from torchimize.kernel.derivative import UnknownDerivativeError
from torchimize.kernel.llvm import UnsupportedError
from torchimize.kernel.machine import Machine

KEPT_KERNELS = 256
"""Compiled kernels that are kept."""

Kernel = driver.Kernel | triton_driver.TritonKernel

_KERNELS: OrderedDict[Hashable, Kernel] = OrderedDict()


def compiled(
    key: Hashable,
    bits: int,
    build: Callable[[], Machine],
    *,
    device: torch.device,
    optimised: bool = True,
) -> Kernel:
    """The kernel of a key for a device, built and compiled where it is not at hand.

    Raises
    ------
    NotFusedError
        Where there is no code for what the machine does, or no compiler.
    """
    key = (device.type, key)
    kernel = _KERNELS.get(key)
    if kernel is None:
        try:
            if device.type == "cpu":
                kernel = driver.Kernel(build(), bits, optimised=optimised)
            else:
                kernel = triton_driver.TritonKernel(build(), bits)
        except (UnsupportedError, UnknownDerivativeError, driver.NoCompilerError) as error:
            raise NotFusedError(str(error)) from None
        _KERNELS[key] = kernel
        while len(_KERNELS) > KEPT_KERNELS:
            _KERNELS.popitem(last=False)
    else:
        with suppress(KeyError):  # another thread may have put it out
            _KERNELS.move_to_end(key)
    return kernel


class Views(Protocol):
    """Where a kernel finds what it reads: a tensor, or the address of a number."""

    def __getitem__(self, name: Hashable, /) -> Tensor | int: ...


def bind(
    kernel: Kernel, lengths: list[int], views: Views, outputs: dict[str, Tensor]
) -> driver.Bound | triton_driver.Bound:
    """A kernel with the lengths of its runs, its data and its outputs.

    Raises
    ------
    NotFusedError
        Where there is no compiler for a GPU.
    """
    found = {name: views[name] for name, _ in kernel.loads}
    try:
        return kernel.bind(lengths, found, outputs)
    except driver.NoCompilerError as error:  # a GPU's code is made here
        raise NotFusedError(str(error)) from None


def chunk_size(kernel: Kernel, count: int, work: int) -> int | None:
    """Problems of a chunk; a GPU takes as many as its memory allows."""
    return driver.chunk_size(count, work) if isinstance(kernel, driver.Kernel) else None


def kept() -> list[Kernel]:
    """The kernels at hand, the one used last at the end."""
    return list(_KERNELS.values())
