"""Jacobians of a torch function at a point, on their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimize.lsq.jacobian import Forward


def jacobian_approx_t(
    p: Tensor, f: Callable[[Tensor], Tensor], create_graph: bool = False
) -> Tensor:
    """The exact Jacobian of one problem, by forward mode.

    Parameters
    ----------
    p : Tensor (P,)
    f : callable
        (P,) to (...).
    create_graph : bool, default False
        Keep the graph, so that the Jacobian can be differentiated with respect to ``p``.

    Returns
    -------
    Tensor (..., P)

    Examples
    --------
    >>> import torch
    >>> jacobian_approx_t(torch.tensor([1.0, 2.0]), lambda p: p**2)
    tensor([[2., 0.],
            [0., 4.]])
    """
    jacobian: Tensor = torch.func.jacfwd(f)(p)
    return jacobian if create_graph else jacobian.detach()


def batch_jacobian_approx_t(
    p: Tensor, f: Callable[[Tensor], Tensor], create_graph: bool = False
) -> Tensor:
    """The exact Jacobians of a batch, by forward mode over the P directions.

    Parameters
    ----------
    p : Tensor (B, P)
    f : callable
        (B, P) to (B, C, N); row b depends on ``p[b]`` alone.
    create_graph : bool, default False
        Keep the graph, so that the Jacobian can be differentiated with respect to ``p``.

    Returns
    -------
    Tensor (B, C, N, P)

    Examples
    --------
    >>> import torch
    >>> batch_jacobian_approx_t(torch.ones(3, 2), lambda p: (p**2)[:, None, :]).shape
    torch.Size([3, 1, 2, 2])
    """
    _, columns = Forward()(f, p, None)
    jacobian = columns.movedim(1, -1)
    return jacobian if create_graph else jacobian.detach()


def jacobian_approx_loop(
    p: Tensor, f: Callable[..., Tensor], dp: float = 1e-8, args: Sequence[Any] = ()
) -> Tensor:
    """The Jacobian by forward differences, one parameter after the other.

    Parameters
    ----------
    p : Tensor (P,)
    f : callable
        ``f(p, *args)``: (P,) to (N,) or to a scalar.
    dp : float, default 1e-8
        Absolute step; use about 1e-3 in float32.
    args : sequence

    Returns
    -------
    Tensor (N, P), or (P,) for a scalar ``f``

    Examples
    --------
    >>> import torch
    >>> p = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> jacobian_approx_loop(p, lambda p: (p**2).sum()).round(decimals=5).tolist()
    [2.0, 4.0]
    """
    value = f(p, *args)
    steps = dp * torch.eye(len(p), dtype=p.dtype, device=p.device)
    return torch.stack([(f(p + step, *args) - value) / dp for step in steps], -1)
