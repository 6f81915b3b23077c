"""The Jacobian helpers, against derivatives written out."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

import torchimize.functions
from problems import workloads
from torchimize.functions import (
    batch_jacobian_approx_t,
    jacobian_approx_loop,
    jacobian_approx_t,
)

X = torch.linspace(0, 2, 6, dtype=torch.float64)


def decay(p: Tensor) -> Tensor:
    """(..., 2) to (..., 6)."""
    return p[..., :1] * torch.exp(-p[..., 1:] * X)


def decay_jacobian(p: Tensor) -> Tensor:
    fall = torch.exp(-p[..., 1:] * X)
    return torch.stack([fall, -p[..., :1] * X * fall], -1)


@pytest.mark.parametrize("trailing", [(6,), (2, 3), (1, 3, 2)])
def test_jacobian_of_one_problem(trailing: tuple[int, ...]) -> None:
    p = torch.tensor([3.0, 0.7], dtype=torch.float64)
    jacobian = jacobian_approx_t(p, lambda p: decay(p).reshape(trailing))
    assert jacobian.shape == (*trailing, 2) and not jacobian.requires_grad
    torch.testing.assert_close(jacobian, decay_jacobian(p).reshape(*trailing, 2))
    scalar = jacobian_approx_t(p, lambda p: (p**2).sum())
    torch.testing.assert_close(scalar, 2 * p)


def test_jacobian_can_be_differentiated_again() -> None:
    p = torch.tensor([3.0, 0.7], dtype=torch.float64, requires_grad=True)
    jacobian = jacobian_approx_t(p, decay, create_graph=True)
    (second,) = torch.autograd.grad(jacobian[2, 1], p)
    x = float(X[2])
    fall = np.exp(-0.7 * x)
    np.testing.assert_allclose(second, [-x * fall, 3 * x * x * fall], rtol=1e-12)
    assert not jacobian_approx_t(p, decay).requires_grad


@pytest.mark.parametrize("name", workloads.names())
def test_batch_jacobian(name: str) -> None:
    w = workloads.make(name, 3, seed=4)
    jacobian = batch_jacobian_approx_t(w.start, lambda p: w.residual(p, w.y))
    wanted = w.residual_jacobian(w.start, w.y)
    assert jacobian.shape == wanted.shape and not jacobian.requires_grad
    torch.testing.assert_close(jacobian, wanted, rtol=1e-9, atol=1e-10)


def test_batch_jacobian_can_be_differentiated_again() -> None:
    p = torch.tensor([[3.0, 0.7], [2.0, 1.1]], dtype=torch.float64, requires_grad=True)
    jacobian = batch_jacobian_approx_t(p, lambda p: decay(p)[:, None], create_graph=True)
    (second,) = torch.autograd.grad(jacobian[1, 0, 2, 1], p)
    x = float(X[2])
    fall = np.exp(-1.1 * x)
    np.testing.assert_allclose(second, [[0, 0], [-x * fall, 2 * x * x * fall]], rtol=1e-12)
    assert not batch_jacobian_approx_t(p, lambda p: decay(p)[:, None]).requires_grad


def test_batch_jacobian_evaluates_once_and_in_linear_memory() -> None:
    # memory quadratic in N would need 4 · 50000² numbers here
    x = torch.linspace(0, 1, 50_000, dtype=torch.float64)
    calls = 0

    def function(p: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (p[:, :1] * x + p[:, 1:] * x**2)[:, None]

    p = torch.ones(4, 2, dtype=torch.float64)
    jacobian = batch_jacobian_approx_t(p, function)
    assert calls == 1
    wanted = torch.stack([x, x**2], -1).expand(4, 1, 50_000, 2)
    torch.testing.assert_close(jacobian, wanted)


def test_loop() -> None:
    p = torch.tensor([3.0, 0.7], dtype=torch.float64)
    jacobian = jacobian_approx_loop(p, decay)
    assert jacobian.shape == (6, 2)
    torch.testing.assert_close(jacobian, decay_jacobian(p), rtol=1e-6, atol=1e-6)
    scalar = jacobian_approx_loop(p, lambda p: (p**2).sum())
    assert scalar.shape == (2,)
    torch.testing.assert_close(scalar, 2 * p, rtol=1e-6, atol=1e-6)


def test_loop_takes_forward_differences_of_its_step() -> None:
    # (p + d)² − p² over d is 2p + d
    p = torch.tensor([3.0], dtype=torch.float64)
    assert float(jacobian_approx_loop(p, lambda p: p[0] ** 2, dp=0.5)) == pytest.approx(6.5)
    doubled = jacobian_approx_loop(p, lambda p, factor: factor * p[0] ** 2, 0.5, (2.0,))
    assert float(doubled) == pytest.approx(13.0)
    assert p.tolist() == [3.0]


def test_signatures_and_import_paths() -> None:
    from torchimize.functions import jacobian

    def named(function: object) -> list[tuple[str, object]]:
        parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
        return [(name, parameter.default) for name, parameter in parameters.items()]

    empty = inspect.Parameter.empty
    both = [("p", empty), ("f", empty), ("create_graph", False)]
    assert named(jacobian.jacobian_approx_t) == both
    assert named(jacobian.batch_jacobian_approx_t) == both
    assert named(jacobian.jacobian_approx_loop) == [
        ("p", empty), ("f", empty), ("dp", 1e-8), ("args", ()),
    ]  # fmt: skip
    for name in ("jacobian_approx_t", "batch_jacobian_approx_t", "jacobian_approx_loop"):
        assert getattr(jacobian, name) is getattr(torchimize.functions, name)
