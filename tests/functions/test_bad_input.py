"""What the functional API refuses: one clear error each, nothing computed, nothing changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchimize import Status
from torchimize.errors import DtypeError, ShapeError
from torchimize.functions import (
    gradient_descent,
    gradient_descent_parallel,
    gradient_descent_parallel_plain,
    lsq_gna,
    lsq_gna_parallel,
    lsq_gna_parallel_plain,
    lsq_lma,
    lsq_lma_parallel,
    newton_step_parallel,
)

SINGLE = [lsq_lma, lsq_gna, gradient_descent]
PARALLEL = [lsq_lma_parallel, lsq_gna_parallel, gradient_descent_parallel]
EVERY = SINGLE + PARALLEL


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without defaults, called as the others are."""

    def call(
        p: Any, residual: Any, jac_function: Any = None, args: Any = (), wvec: Any = None
    ) -> Any:
        return function(p, residual, jac_function, wvec)

    call.__name__ = function.__name__
    return call


BATCHED = PARALLEL + [
    plain(f)
    for f in (lsq_gna_parallel_plain, gradient_descent_parallel_plain, newton_step_parallel)
]


def by_name(function: Any) -> str:
    return str(function.__name__)


def residual(p: Tensor) -> Tensor:
    """(P,) to (P,), and (B, P) to (B, 1, P)."""
    return p**2 - 2 if p.ndim == 1 else (p**2 - 2)[:, None, :]


def jacobian(p: Tensor) -> Tensor:
    return torch.diag_embed(2 * p) if p.ndim == 1 else torch.diag_embed(2 * p)[:, None]


def start(function: Any) -> Tensor:
    """A good start (P,) or (B, P) for a function."""
    one = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return one if function in SINGLE else one.repeat(5, 1)


class Forbidden:
    """A function that must not be called."""

    def __call__(self, *_: Any) -> Tensor:
        raise AssertionError("the function was called before the input was checked")


# ------------------------------------------------------------ the parameters


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("p", [[1.0, 2.0], 3.0, None, "p"])
def test_p_is_no_tensor(function: Any, p: Any) -> None:
    with pytest.raises(TypeError) as error:
        function(p, Forbidden())
    assert isinstance(error.value, DtypeError)
    assert "`p` is " + type(p).__name__ in str(error.value) and "tensor" in str(error.value)


@pytest.mark.parametrize("function", EVERY + BATCHED, ids=by_name)
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.bool, torch.complex64, torch.complex128]
)
def test_p_is_not_real_floating(function: Any, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError) as error:
        function(start(function).to(dtype), Forbidden())
    assert isinstance(error.value, DtypeError)
    assert f"`p` has dtype {dtype}" in str(error.value) and "float64 or float32" in str(error.value)


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_p_is_of_too_little_precision(function: Any, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"`p` has dtype {dtype}; wanted float64 or float32"):
        function(start(function).to(dtype), Forbidden())


@pytest.mark.parametrize("function", SINGLE, ids=by_name)
@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (0, 3)])
def test_p_of_a_batch_given_to_a_single_function(function: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        function(torch.ones(shape), Forbidden())
    assert isinstance(error.value, ShapeError)
    assert f"`p` has shape {shape}; wanted (P,)" in str(error.value)


@pytest.mark.parametrize("function", BATCHED, ids=by_name)
def test_p_of_one_problem_given_to_a_parallel_function(function: Any) -> None:
    with pytest.raises(ShapeError, match=r"`p` has shape \(3,\); wanted \(B, P\)"):
        function(torch.ones(3), Forbidden())


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_p_of_wrong_rank(function: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as error:
        function(torch.ones(shape), Forbidden())
    assert f"`p` has shape {shape}; wanted (P,)" in str(error.value)


@pytest.mark.parametrize("function", EVERY, ids=by_name)
def test_no_parameters(function: Any) -> None:
    p = torch.ones(0) if function in SINGLE else torch.ones(4, 0)
    with pytest.raises(ShapeError, match=r"`p` has shape .*0\)?.*at least one parameter"):
        function(p, Forbidden())


# ------------------------------------------------------------ what functions return


@pytest.mark.parametrize("function", BATCHED, ids=by_name)
@pytest.mark.parametrize(
    ("make", "met"),
    [
        (lambda p: p**2, r"2 dimensions, shape \(B, 3\)"),
        (lambda p: (p**2)[:, None, None], r"4 dimensions, shape \(B, 1, 1, 3\)"),
        (lambda p: p.sum(1), "1 dimensions"),
    ],
)
def test_residuals_of_wrong_rank(function: Any, make: Any, met: str) -> None:
    with pytest.raises(ShapeError, match=met + r".*wanted 3: \(B, C, N\)"):
        function(start(function), make)


@pytest.mark.parametrize("function", BATCHED, ids=by_name)
@pytest.mark.parametrize(
    "make",
    [
        lambda p: (p**2)[None],
        lambda p: torch.cat([p, p])[:, None],
        lambda p: p.sum(),
        lambda p: torch.ones(4, 1, 3, dtype=p.dtype),
    ],
)
def test_residuals_of_wrong_batch(function: Any, make: Any) -> None:
    with pytest.raises(ShapeError) as error:
        function(start(function), make)
    message = str(error.value)
    assert "returned residuals of shape" in message and "(5, 3)" in message
    assert "wanted (5, ...), one row per problem" in message


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex128, torch.bool])
def test_residuals_that_are_not_real_floating(function: Any, dtype: torch.dtype) -> None:
    with pytest.raises(DtypeError, match=rf"residuals have dtype {dtype}.*torch.float64"):
        function(start(function), lambda p: residual(p).to(dtype))


@pytest.mark.parametrize("function", BATCHED, ids=by_name)
@pytest.mark.parametrize(
    ("make", "met"),
    [
        (lambda p: jacobian(p)[..., 0], "(5, 1, 3)"),
        (lambda p: jacobian(p)[..., :2], "(5, 1, 3, 2)"),
        (lambda p: jacobian(p).transpose(1, 2), "(5, 3, 1, 3)"),
        (lambda p: jacobian(p)[:, 0], "(5, 3, 3)"),
    ],
)
def test_jacobian_of_wrong_shape(function: Any, make: Any, met: str) -> None:
    with pytest.raises(ShapeError) as error:
        function(start(function), residual, make)
    # functions are tried on a few rows first, so the batch may be shorter than B
    message = str(error.value)
    assert "the Jacobian has shape" in message and met.partition(",")[2] in message
    assert ", 1, 3, 3)" in message.partition("wanted")[2]


@pytest.mark.parametrize("function", SINGLE, ids=by_name)
def test_jacobian_of_wrong_shape_for_one_problem(function: Any) -> None:
    with pytest.raises(ShapeError, match=r"Jacobian has shape \(3, 2\); wanted \(3, 3\)"):
        function(start(function), residual, lambda p: jacobian(p)[:, :2])


@pytest.mark.parametrize("function", EVERY, ids=by_name)
def test_jacobian_that_is_not_real_floating(function: Any) -> None:
    with pytest.raises(DtypeError, match=r"Jacobian has dtype torch.int64.*torch.float64"):
        function(start(function), residual, lambda p: jacobian(p).long())


@pytest.mark.parametrize("function", EVERY, ids=by_name)
def test_an_error_of_the_function_itself_comes_through(function: Any) -> None:
    def broken(p: Tensor) -> Tensor:
        raise KeyError("something of the user's")

    with pytest.raises(KeyError, match="something of the user's"):
        function(start(function), broken)


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("function", BATCHED, ids=by_name)
@pytest.mark.parametrize("shape", [(2,), (1, 1), (5,), (0,)])
def test_wvec_of_wrong_shape(function: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as error:
        function(start(function), residual, wvec=torch.ones(shape))
    assert f"`wvec` has shape {shape}; wanted (1,), one weight per channel" in str(error.value)


@pytest.mark.parametrize("function", BATCHED, ids=by_name)
@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_wvec_must_not_be_negative(function: Any, weight: float) -> None:
    with pytest.raises(ValueError, match="`wvec` must not be negative"):
        function(start(function), residual, wvec=torch.tensor([weight]))


# --------------------------------------------------------------------------------------- keywords


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("name", ["ftol", "ptol", "gtol"])
@pytest.mark.parametrize("value", [-1e-8, math.nan, -math.inf])
def test_negative_tolerance(function: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` is {value}; wanted a number ≥ 0"):
        function(start(function), residual, **{name: value})


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_max_iter(function: Any, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`max_iter` is {value}; wanted a whole number ≥ 1"):
        function(start(function), residual, max_iter=value)


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("value", ["l2", "", None])
def test_unknown_loss(function: Any, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        function(start(function), residual, loss=value)
    assert f"unknown `loss` {value!r}" in str(error.value) and "'soft_l1'" in str(error.value)


@pytest.mark.parametrize("function", EVERY, ids=by_name)
def test_loss_of_wrong_shape(function: Any) -> None:
    with pytest.raises(ShapeError, match=r"`loss` has shape.*wanted \(3, "):
        function(start(function), residual, loss=lambda z: torch.stack([z, z]))


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_f_scale(function: Any, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`f_scale` is {value}; wanted a positive number"):
        function(start(function), residual, loss="huber", f_scale=value)


@pytest.mark.parametrize("function", EVERY, ids=by_name)
def test_bounds(function: Any) -> None:
    p = start(function)
    with pytest.raises(ValueError, match="each lower bound must be at most its upper bound"):
        function(p, Forbidden(), bounds=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"parameter 2 of problem 0 starts at 3.*\[0, 2.5\]"):
        function(p, Forbidden(), bounds=(0.0, 2.5))
    with pytest.raises(ShapeError, match=r"lower bounds have shape \(2,\).*\(3,\)"):
        function(p, Forbidden(), bounds=(torch.zeros(2), 5.0))
    with pytest.raises(ValueError, match=r"2 elements: \(lower, upper\)"):
        function(p, Forbidden(), bounds=(0.0,))
    with pytest.raises(ValueError, match="`bounds` contain NaN"):
        function(p, Forbidden(), bounds=(math.nan, 5.0))


def test_start_outside_names_its_argument_and_its_problem() -> None:
    p = torch.ones(5, 3, dtype=torch.float64)
    p[3, 1] = -2
    with pytest.raises(
        ValueError, match=r"`p` .*parameter 1 of problem 3 starts at -2.*\[0, inf\]"
    ):
        lsq_lma_parallel(p, Forbidden(), bounds=(0.0, math.inf))


# ------------------------------------------------------------------------- empty and non-finite


@pytest.mark.parametrize("function", PARALLEL, ids=by_name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("analytic", [True, False])
def test_empty_batch(function: Any, dtype: torch.dtype, analytic: bool) -> None:
    p = torch.empty(0, 3, dtype=dtype)
    path, result = function(p, residual, jacobian if analytic else None, full_output=True)
    assert isinstance(path, list) and len(path) >= 1
    assert all(entry.shape == (0, 3) and entry.dtype == dtype for entry in path)
    assert result.x.shape == (0, 3) and result.status.shape == (0,) and len(result.message) == 0


@pytest.mark.parametrize(
    "function", [lsq_gna_parallel_plain, gradient_descent_parallel_plain], ids=by_name
)
def test_empty_batch_of_plain_functions(function: Any) -> None:
    assert function(torch.empty(0, 3), residual, None, None).shape == (0, 3)


def test_empty_batch_of_a_newton_step() -> None:
    p, f, gradient, normal = newton_step_parallel(torch.empty(0, 3), residual, jacobian, None)
    assert p.shape == gradient.shape == (0, 3) and normal.shape == (0, 3, 3)
    assert f.shape[0] == 0 and f.ndim == 3


@pytest.mark.parametrize("function", EVERY, ids=by_name)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_start_is_finite(function: Any, value: float) -> None:
    p = start(function)
    p[..., 1] = value
    before = p.clone()
    with pytest.raises(ValueError, match="Residuals are not finite in the initial point"):
        function(p, residual)
    torch.testing.assert_close(p, before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("function", EVERY, ids=by_name)
def test_function_that_gives_nan_everywhere(function: Any) -> None:
    with pytest.raises(ValueError, match="Residuals are not finite in the initial point"):
        function(start(function), lambda p: residual(p) * math.nan)


@pytest.mark.parametrize("function", PARALLEL, ids=by_name)
def test_one_finite_start_is_enough(function: Any) -> None:
    p = torch.full((4, 3), math.nan, dtype=torch.float64)
    p[2] = 1.0
    path, result = function(p, residual, full_output=True)
    bad = Status.NON_FINITE_START
    assert result.status.tolist()[:2] == [bad, bad] and result.status[3] == bad
    assert bool(result.success[2])
    torch.testing.assert_close(path[-1][2], torch.full((3,), math.sqrt(2)).double())


@pytest.mark.parametrize("function", PARALLEL, ids=by_name)
def test_infinite_jacobian_at_the_start_is_that_problem_s_status(function: Any) -> None:
    # the square root at zero: a finite value, an infinite slope
    p = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    path, result = function(p, lambda p: (torch.sqrt(p) - 1.5)[:, None], full_output=True)
    assert result.status[0] == Status.NON_FINITE and bool(result.success[1])
    assert float(path[-1][0, 0]) == 0.0
    assert float(path[-1][1, 0]) == pytest.approx(2.25, rel=1e-7)
