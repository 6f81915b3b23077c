"""The check of a user's functions before a long run."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

import torchimize.functions
from problems import workloads
from torchimize.functions import fun_dims

W = workloads.make("W4", 3, seed=0)
P = torch.ones(3, 2)


def residual(p: Tensor) -> Tensor:
    return (p**2)[:, None, :]


def jacobian(p: Tensor) -> Tensor:
    return torch.diag_embed(2 * p)[:, None]


@pytest.mark.parametrize("analytic", [True, False])
def test_true_where_everything_fits(analytic: bool) -> None:
    assert (
        fun_dims.test_fun_dims_parallel(
            W.start,
            W.residual,
            W.residual_jacobian if analytic else None,
            (W.y,),
            torch.ones(2),
        )
        is True
    )
    assert fun_dims.test_fun_dims_parallel(P, residual) is True
    assert fun_dims.test_fun_dims_parallel(P.clone().requires_grad_(), residual, jacobian) is True


def test_parameters_of_wrong_rank() -> None:
    with pytest.raises(AssertionError, match=r"`p` has shape \(2,\); wanted \(B, P\)"):
        fun_dims.test_fun_dims_parallel(torch.ones(2), residual)


def test_residuals_of_wrong_rank() -> None:
    with pytest.raises(AssertionError, match=r"returned shape \(3, 2\); wanted \(3, C, N\)"):
        fun_dims.test_fun_dims_parallel(P, lambda p: p**2)


def test_residuals_of_wrong_batch() -> None:
    with pytest.raises(AssertionError, match=r"returned shape \(1, 3, 2\); wanted \(3, C, N\)"):
        fun_dims.test_fun_dims_parallel(P, lambda p: (p**2)[None])


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ((3, 1, 2), lambda p: jacobian(p)[..., 0]),
        ((3, 1, 2, 3), lambda p: torch.cat([jacobian(p), jacobian(p)[..., :1]], -1)),
        ((3, 2, 1, 2), lambda p: jacobian(p).transpose(1, 2)),
    ],
)
def test_jacobian_of_wrong_shape(shape: tuple[int, ...], make: object) -> None:
    with pytest.raises(AssertionError) as error:
        fun_dims.test_fun_dims_parallel(P, residual, make)  # type: ignore[arg-type]
    assert f"the Jacobian has shape {shape}; wanted (3, 1, 2, 2)" in str(error.value)


def test_weights_of_wrong_length() -> None:
    with pytest.raises(AssertionError, match=r"`wvec` has shape \(2,\); wanted \(1,\)"):
        fun_dims.test_fun_dims_parallel(P, residual, wvec=torch.ones(2))


def test_not_collected_as_a_test() -> None:
    assert getattr(fun_dims.test_fun_dims_parallel, "__test__", True) is False
    assert torchimize.functions.test_fun_dims_parallel is fun_dims.test_fun_dims_parallel


def test_signature() -> None:
    parameters = inspect.signature(fun_dims.test_fun_dims_parallel).parameters
    empty = inspect.Parameter.empty
    assert [(name, parameter.default) for name, parameter in parameters.items()] == [
        ("p", empty), ("function", empty), ("jac_function", None), ("args", ()), ("wvec", None),
    ]  # fmt: skip
