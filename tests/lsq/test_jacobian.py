"""Every kind of derivative against one that was written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchimize.batch import BatchFunction
from torchimize.lsq.jacobian import (
    Derivative,
    FiniteDifference,
    Forward,
    Reverse,
    UserJacobian,
    choose_automatic,
)
from torchimize.lsq.likelihood import Data, LeastSquares
from torchimize.lsq.problem import build_problem, check_bounds

T = torch.linspace(0.1, 2, 7, dtype=torch.float64)
EXACT: list[Derivative] = [Forward(), Forward(vmapped=False), Reverse()]
DTYPES = [torch.float64, torch.float32]


def function(params: Tensor) -> Tensor:
    """A exp(−k t) + c t²: (A, 3) to (A, 7)."""
    amplitude, rate, slope = (params[:, j, None] for j in range(3))
    t = T.to(params.dtype)
    return amplitude * torch.exp(-rate * t) + slope * t * t


def columns_by_hand(params: Tensor) -> Tensor:
    """Columns (A, 3, 7)."""
    amplitude, rate, _ = (params[:, j, None] for j in range(3))
    t = T.to(params.dtype)
    decay = torch.exp(-rate * t)
    return torch.stack([decay, -amplitude * t * decay, (t * t).expand_as(decay)], 1)


def points(batch: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(batch, 3, generator=generator, dtype=torch.float64)
    return (0.5 + 2 * drawn).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("derivative", EXACT, ids=["vmapped", "one by one", "reverse"])
def test_automatic_derivatives(derivative: Derivative, dtype: torch.dtype) -> None:
    params = points(dtype=dtype)
    value, columns = derivative(function, params, None)
    assert columns.shape == (5, 3, 7) and columns.dtype == dtype
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    wanted = columns_by_hand(params.double()).to(dtype)
    torch.testing.assert_close(columns, wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(value, function(params), rtol=tolerance, atol=tolerance)


# the truncation error of one step, and the rounding error over the step
TOLERANCES = {
    (2, torch.float64): 2e-7,
    (3, torch.float64): 1e-9,
    (2, torch.float32): 5e-3,
    (3, torch.float32): 3e-4,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3])
def test_finite_differences(count: int, dtype: torch.dtype) -> None:
    params = points(dtype=dtype)
    derivative = FiniteDifference(count, None, None)
    assert derivative.name == f"{count}-point"
    value, columns = derivative(function, params, None)
    assert torch.equal(value, function(params))
    assert columns.shape == (5, 3, 7) and columns.dtype == dtype
    tolerance = TOLERANCES[count, dtype]
    wanted = columns_by_hand(params.double())
    torch.testing.assert_close(columns.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [2, 3])
def test_finite_differences_of_parameters_of_any_size(count: int) -> None:
    # f = sin(p/s) s² with p of the order of s: the derivative is s cos(p/s)
    size = torch.tensor([1e-12, 1e-3, 1.0, 1e9], dtype=torch.float64)[:, None]

    def scaled(params: Tensor) -> Tensor:
        return size**2 * torch.sin(params / size)

    params = 0.7 * size
    _, columns = FiniteDifference(count, None, None)(scaled, params, None)
    wanted = (size * torch.cos(params / size))[:, None]
    torch.testing.assert_close(columns, wanted, rtol=1e-7 if count == 2 else 1e-9, atol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_finite_difference_at_zero(count: int) -> None:
    params = torch.zeros(2, 3, dtype=torch.float64)
    _, columns = FiniteDifference(count, None, None)(function, params, None)
    torch.testing.assert_close(columns, columns_by_hand(params), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3])
def test_finite_differences_stay_in_the_box(count: int, dtype: torch.dtype) -> None:
    params = points(6, dtype)
    lower, upper = params - 1, params + 1
    lower[0], upper[1] = params[0], params[1]  # on a bound
    lower[2] = params[2] * (1 - 3 * torch.finfo(dtype).eps)  # hardly any room on one side
    lower[3] = upper[3] = params[3]  # held
    lower[4, 0], upper[4, 1] = params[4, 0], params[4, 1]
    seen: list[Tensor] = []

    def recorded(at: Tensor) -> Tensor:
        seen.append(at)
        return function(at)

    _, columns = FiniteDifference(count, lower, upper)(recorded, params, None)
    for at in seen:
        assert bool(((lower <= at) & (at <= upper)).all())
    free = torch.tensor([0, 1, 2, 4, 5])
    wanted = columns_by_hand(params.double())
    # one-sided at a bound, so the truncation error is that of a one-sided difference
    tolerance = {(2, torch.float64): 2e-7, (3, torch.float64): 5e-5}.get((count, dtype), 3e-2)
    torch.testing.assert_close(columns[free].double(), wanted[free], rtol=tolerance, atol=tolerance)
    assert torch.equal(columns[3], torch.zeros_like(columns[3]))


@pytest.mark.parametrize("count", [2, 3])
def test_finite_differences_cut_the_box_to_the_rows(count: int) -> None:
    params = points(6)
    lower, upper = params.clone(), params + 1
    upper[0] = params[0]
    lower[0] = params[0] - 1
    rows = torch.tensor([4, 0])

    def inside(at: Tensor) -> Tensor:
        assert bool(((lower[rows] <= at) & (at <= upper[rows])).all())
        return function(at)

    _, columns = FiniteDifference(count, lower, upper)(inside, params[rows], rows)
    torch.testing.assert_close(columns, columns_by_hand(params[rows]), rtol=1e-4, atol=1e-4)


def test_derivatives_of_rows_do_not_depend_on_the_others() -> None:
    params = points(40)
    rows = torch.tensor([3, 17, 39])
    for derivative in [*EXACT, FiniteDifference(2, None, None), FiniteDifference(3, None, None)]:
        _, together = derivative(function, params, None)
        _, alone = derivative(function, params[rows], None)
        torch.testing.assert_close(together[rows], alone, rtol=1e-6, atol=1e-6)
        damaged = params.clone()
        damaged[5] = torch.nan
        _, others = derivative(function, damaged, None)
        healthy = torch.arange(40) != 5
        assert torch.equal(others[healthy], together[healthy])
        assert bool(others[5, 0].isnan().all()) or isinstance(derivative, (Forward, Reverse))


@pytest.mark.parametrize("trailing", [(7,), (7, 1), (1, 7)])
def test_user_jacobian_of_any_trailing_shape(trailing: tuple[int, ...]) -> None:
    params, rows = points(), torch.tensor([1, 4])
    asked: list[Tensor | None] = []

    def jacobian(at: Tensor, which: Tensor | None) -> Tensor:
        asked.append(which)
        return columns_by_hand(at).mT.reshape(len(at), *trailing, 3)

    derivative = UserJacobian(jacobian)
    value, columns = derivative(function, params[rows], rows)
    assert torch.equal(columns, columns_by_hand(params[rows]))
    assert torch.equal(value, function(params[rows]))
    assert len(asked) == 1 and asked[0] is rows


# ----------------------------------------------------------------------- the automatic choice


def check_choice(
    function: Callable[[Tensor], Tensor], params: Tensor, wanted: Tensor, tolerance: float
) -> Derivative:
    """The derivative that was chosen, having compared its columns with the true ones."""
    derivative = choose_automatic(function, params)
    _, columns = derivative(function, params, None)
    torch.testing.assert_close(columns, wanted, rtol=tolerance, atol=tolerance)
    return derivative


def test_chooses_forward_mode_in_one_pass() -> None:
    derivative = check_choice(function, points(), columns_by_hand(points()), 1e-13)
    assert isinstance(derivative, Forward) and derivative.vmapped


def test_chooses_reverse_mode_for_fewer_residuals_than_parameters() -> None:
    def short(params: Tensor) -> Tensor:
        return torch.stack([params.prod(-1), params.square().sum(-1)], -1)

    params = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 1.0, 5.0]], dtype=torch.float64)
    wanted = torch.stack([params.prod(-1, keepdim=True) / params, 2 * params], -1)
    assert isinstance(check_choice(short, params, wanted, 1e-13), Reverse)


def test_as_many_residuals_as_parameters_stay_in_forward_mode() -> None:
    params = points()
    wanted = torch.diag_embed(2 * params)
    assert isinstance(check_choice(torch.square, params, wanted, 1e-13), Forward)


def test_a_branch_on_a_value_stays_in_forward_mode() -> None:
    def branching(params: Tensor) -> Tensor:
        sign = 1.0 if bool((params[:, 0] > -1e9).all()) else -1.0
        return sign * function(params)

    params = points()
    derivative = check_choice(branching, params, columns_by_hand(params), 1e-13)
    assert isinstance(derivative, Forward)


class Double(torch.autograd.Function):
    """x to 2x with a forward derivative of its own, and no rule for vmap."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


def test_takes_one_direction_after_the_other_where_vmap_cannot() -> None:
    def without_vmap(params: Tensor) -> Tensor:
        doubled: Tensor = Double.apply(params)
        return function(0.5 * doubled)

    params = points()
    with pytest.raises(RuntimeError, match="vmap"):
        Forward()(without_vmap, params, None)
    derivative = check_choice(without_vmap, params, columns_by_hand(params), 1e-13)
    assert isinstance(derivative, Forward) and not derivative.vmapped


def detached(params: Tensor) -> Tensor:
    return function(params.detach())


def by_numpy(params: Tensor) -> Tensor:
    return torch.from_numpy(function(params.detach()).numpy())


def by_items(params: Tensor) -> Tensor:
    return torch.stack(
        [function(torch.tensor([[v.item() for v in row]], dtype=params.dtype))[0] for row in params]
    )


def one_detached(params: Tensor) -> Tensor:
    """Only the rate leaves torch."""
    return function(torch.stack([params[:, 0], params[:, 1].detach(), params[:, 2]], -1))


def one_item(params: Tensor) -> Tensor:
    """Only the rate leaves torch, as Python numbers."""
    rate = torch.tensor([v.item() for v in params[:, 1]], dtype=params.dtype)
    return function(torch.stack([params[:, 0], rate, params[:, 2]], -1))


@pytest.mark.parametrize("leaving", [detached, by_numpy, by_items, one_detached, one_item])
def test_values_that_leave_torch_are_differenced(leaving: Callable[[Tensor], Tensor]) -> None:
    params = points(3)
    derivative = check_choice(leaving, params, columns_by_hand(params), 1e-8)
    assert isinstance(derivative, FiniteDifference) and derivative.points == 3


def test_a_parameter_without_influence_is_no_reason_for_differences() -> None:
    def flat(params: Tensor) -> Tensor:
        return function(params * torch.tensor([1.0, 1.0, 0.0], dtype=params.dtype))

    params = points()
    wanted = columns_by_hand(params) * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)[:, None]
    assert isinstance(check_choice(flat, params, wanted, 1e-13), Forward)


def test_a_function_without_a_forward_derivative_is_reversed_or_differenced() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x**3

    params = points()
    wanted = torch.diag_embed(3 * params.square())
    derivative = check_choice(Cube.apply, params, wanted, 1e-8)
    assert not isinstance(derivative, Forward)


@pytest.mark.parametrize("jac", ["forward", "reverse", "2-point", "3-point", None])
def test_a_problem_uses_what_was_asked_for(jac: str | None) -> None:
    params = points()
    lower, upper = check_bounds((0.0, 9.0), params, "params")
    batch_function = BatchFunction(function, len(params))
    problem = build_problem(batch_function, LeastSquares(Data()), params, lower, upper, jac)
    assert problem.derivative.name == (jac or "traced")
    residual, columns = problem.residual_and_columns(params, None)
    torch.testing.assert_close(columns, columns_by_hand(params), rtol=1e-6, atol=1e-6)
    cost, gradient, normal_matrix, norms = problem.linearise(params, None)
    exact = columns_by_hand(params).numpy()
    np.testing.assert_allclose(cost, 0.5 * np.square(residual.numpy()).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(norms, np.linalg.norm(exact, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(
        gradient, np.einsum("bpm,bm->bp", exact, residual.numpy()), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        normal_matrix, np.einsum("bpm,bqm->bpq", exact, exact), rtol=1e-5, atol=1e-6
    )


def test_differences_that_were_fallen_back_to_stay_in_the_box() -> None:
    params = points(3)
    seen: list[Tensor] = []

    def recorded(at: Tensor) -> Tensor:
        seen.append(at.detach())
        return by_numpy(at)

    lower, upper = check_bounds((params, params + 2), params, "params")
    problem = build_problem(
        BatchFunction(recorded, 3), LeastSquares(Data()), params, lower, upper, None
    )
    assert problem.derivative.name == "3-point"
    columns = problem.residual_and_columns(params, None)[1]
    torch.testing.assert_close(columns, columns_by_hand(params), rtol=1e-4, atol=1e-4)
    lowest = params.amin(0)
    for at in seen:
        assert bool((at >= lowest).all())


def test_a_silent_zero_is_noticed_at_a_bound() -> None:
    # outside the box, at rates below 0, the function is NaN
    params = torch.tensor([[1.0, 0.0, 1.0]] * 3, dtype=torch.float64)

    def rooted(at: Tensor) -> Tensor:
        amplitude, rate, slope = (at[:, j, None] for j in range(3))
        root = torch.as_tensor(np.sqrt(rate.detach().numpy()))
        return amplitude * torch.exp(-root * T) + slope * T

    lower, upper = check_bounds((0.0, 9.0), params, "params")
    problem = build_problem(
        BatchFunction(rooted, 3), LeastSquares(Data()), params, lower, upper, None
    )
    assert problem.derivative.name == "3-point"
    assert bool((problem.residual_and_columns(params, None)[1][:, 1] != 0).all())
