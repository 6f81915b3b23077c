"""Products, linear algebra and Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchimize.numpy_models.conversion import UnsupportedNumpyFunction, Working, floating
from torchimize.numpy_models.registry import Axis, implements, promoted, tensor_of, truth


@implements("dot")
def _dot(a: Any, b: Any, out: None = None, *, working: Working) -> Tensor:
    first, second = promoted(tensor_of(a, working), tensor_of(b, working))
    if first.ndim == 0 or second.ndim == 0:
        return first * second
    if second.ndim <= 2:
        return torch.matmul(first, second)
    product: Tensor = torch.tensordot(first, second, dims=([first.ndim - 1], [second.ndim - 2]))
    return product


@implements("vdot")
def _vdot(a: Any, b: Any, *, working: Working) -> Tensor:
    first, second = promoted(tensor_of(a, working).reshape(-1), tensor_of(b, working).reshape(-1))
    return (torch.conj(first) * second).sum()


@implements("inner")
def _inner(a: Any, b: Any, *, working: Working) -> Tensor:
    return torch.inner(*promoted(tensor_of(a, working), tensor_of(b, working)))


@implements("outer")
def _outer(a: Any, b: Any, out: None = None, *, working: Working) -> Tensor:
    return tensor_of(a, working).reshape(-1, 1) * tensor_of(b, working).reshape(1, -1)


@implements("tensordot")
def _tensordot(a: Any, b: Any, axes: Any = 2, *, working: Working) -> Tensor:
    first, second = promoted(tensor_of(a, working), tensor_of(b, working))
    if not isinstance(axes, int):
        axes = [[d] if isinstance(d, int) else [int(i) for i in d] for d in axes]
    product: Tensor = torch.tensordot(first, second, dims=axes)
    return product


@implements("einsum")
def _einsum(subscripts: Any, *operands: Any, working: Working, **kwargs: Any) -> Tensor:
    if not isinstance(subscripts, str):
        raise UnsupportedNumpyFunction("numpy.einsum", " with lists of subscripts")
    tensors = promoted(*(tensor_of(operand, working) for operand in operands))
    return torch.einsum(subscripts, *tensors)


@implements("kron")
def _kron(a: Any, b: Any, *, working: Working) -> Tensor:
    return torch.kron(*promoted(tensor_of(a, working), tensor_of(b, working)))


@implements("cross", "linalg.cross")
def _cross(
    a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None,
    *, working: Working,
) -> Tensor:  # fmt: skip
    if axis is not None:
        axisa = axisb = axisc = axis
    first, second = (
        tensor_of(a, working).movedim(axisa, -1),
        tensor_of(b, working).movedim(axisb, -1),
    )
    product: Tensor = torch.linalg.cross(*promoted(first, second), dim=-1)
    return product.movedim(-1, axisc)


@implements("convolve")
def _convolve(a: Any, v: Any, mode: str = "full", *, working: Working) -> Tensor:
    long, short = promoted(tensor_of(a, working), tensor_of(v, working))
    if long.ndim != 1 or short.ndim != 1:
        raise ValueError(f"convolve takes one dimension, got {long.ndim} and {short.ndim}")
    if len(long) < len(short):
        long, short = short, long
    padded = torch.nn.functional.pad(long, (len(short) - 1, len(short) - 1))
    full = padded.unfold(0, len(short), 1) @ short.flip(0)
    if mode == "full":
        return full
    if mode == "same":
        return full.narrow(0, (len(short) - 1) // 2, len(long))
    if mode == "valid":
        return full.narrow(0, len(short) - 1, len(long) - len(short) + 1)
    raise ValueError(f"mode is 'full', 'same' or 'valid', got {mode!r}")


@implements("trace")
def _trace(a: Tensor, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    return torch.diagonal(a, offset, axis1, axis2).sum(-1)


@implements("diagonal")
def _diagonal(a: Tensor, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    return torch.diagonal(a, offset, axis1, axis2)


@implements("diag")
def _diag(v: Tensor, k: int = 0) -> Tensor:
    return torch.diag(v, k)


@implements("tril")
def _tril(m: Tensor, k: int = 0) -> Tensor:
    return torch.tril(m, k)


@implements("triu")
def _triu(m: Tensor, k: int = 0) -> Tensor:
    return torch.triu(m, k)


@implements("linalg.norm")
def _norm(
    x: Any, ord: Any = None, axis: Axis = None, keepdims: Any = False, *, working: Working
) -> Tensor:
    x = floating(tensor_of(x, working), working)
    return torch.linalg.norm(x, ord, axis, truth(keepdims))  # type: ignore[no-any-return]


@implements("linalg.inv")
def _inv(a: Tensor, *, working: Working) -> Tensor:
    return torch.linalg.inv(floating(a, working))  # type: ignore[no-any-return]


@implements("linalg.det")
def _det(a: Tensor, *, working: Working) -> Tensor:
    return torch.linalg.det(floating(a, working))  # type: ignore[no-any-return]


@implements("linalg.solve")
def _solve(a: Any, b: Any, *, working: Working) -> Tensor:
    a, b = promoted(floating(tensor_of(a, working), working), tensor_of(b, working))
    if b.ndim == 1:
        return torch.linalg.solve(a, b.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]
    return torch.linalg.solve(a, b)  # type: ignore[no-any-return]


def _one_dimensional(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def adapter(
        a: Any, n: int | None = None, axis: int = -1, norm: str | None = None, out: None = None,
        *, working: Working,
    ) -> Tensor:  # fmt: skip
        return transform(floating(tensor_of(a, working), working), n, axis, norm)

    return adapter


def _several_dimensional(transform: Callable[..., Tensor], axes: Any) -> Callable[..., Tensor]:
    default = axes

    def adapter(
        a: Any, s: Any = None, axes: Any = default, norm: str | None = None, out: None = None,
        *, working: Working,
    ) -> Tensor:  # fmt: skip
        return transform(floating(tensor_of(a, working), working), s, axes, norm)

    return adapter


for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    implements(f"fft.{_name}")(_one_dimensional(getattr(torch.fft, _name)))
for _name in ("fft", "ifft", "rfft", "irfft"):
    implements(f"fft.{_name}2")(_several_dimensional(getattr(torch.fft, f"{_name}2"), (-2, -1)))
    implements(f"fft.{_name}n")(_several_dimensional(getattr(torch.fft, f"{_name}n"), None))


@implements("fft.fftshift")
def _fftshift(x: Tensor, axes: Any = None) -> Tensor:
    return torch.fft.fftshift(x, axes)  # type: ignore[no-any-return]


@implements("fft.ifftshift")
def _ifftshift(x: Tensor, axes: Any = None) -> Tensor:
    return torch.fft.ifftshift(x, axes)  # type: ignore[no-any-return]
