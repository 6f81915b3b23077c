"""Derivatives by tracing: which functions get one, and that it is right for any rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchimize
from torchimize import curve_fit, least_squares
from torchimize.batch import BatchFunction
from torchimize.kernel.trace import UntraceableError
from torchimize.lsq.curve import model_function, parse_abscissa
from torchimize.lsq.jacobian import Forward
from torchimize.lsq.likelihood import Data, LeastSquares
from torchimize.lsq.problem import Problem, build_problem, check_bounds
from torchimize.lsq.traced import (
    TracedDerivative,
    TracedFunction,
    trace_derivative,
    trace_function,
)

B, N = 8, 6
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
T = torch.linspace(0.1, 2.0, N, dtype=torch.float64)
ROWS = [None, [6, 1, 3, 7], [5], [0, 0, 2]]


def starts(batch: int = B, count: int = 3, seed: int = 0) -> Tensor:
    """Parameters (B, P) between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(batch, count, generator=generator, dtype=torch.float64)


def data(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def build(function: BatchFunction, params0: Tensor, jacobian: Any = None, **bounds: Any) -> Problem:
    lower, upper = check_bounds(bounds.get("bounds"), params0, "x0")
    return build_problem(function, LeastSquares(Data()), params0, lower, upper, jacobian)


def derivative_of(
    function: Callable[..., Any], params0: Tensor, *args: Any, bounds: Any = None, **kwargs: Any
) -> TracedDerivative | None:
    """The traced derivative as the solver would get it, rows probed first."""
    wrapped = BatchFunction(function, len(params0), args, kwargs)
    wrapped.probe(params0)
    return trace_derivative(wrapped, params0, *check_bounds(bounds, params0, "x0"))


def assert_right(
    derivative: TracedDerivative | None,
    function: Callable[[Tensor], Tensor],
    params0: Tensor,
) -> None:
    """Values and columns for several choices of rows, away from where it was traced.

    ``function`` is that of the whole batch, all arguments bound.
    """
    assert derivative is not None and derivative.name == "traced"
    everywhere = params0 * 1.3 + 0.1
    tolerance = TOLERANCE[params0.dtype]
    value, columns = Forward()(lambda p: function(p).reshape(len(params0), -1), everywhere, None)
    for chosen in ROWS:
        rows = None if chosen is None else torch.tensor(chosen).clamp(max=len(params0) - 1)
        params = everywhere if rows is None else everywhere[rows]
        found = derivative(_never_called, params, rows)
        for one, other in zip(found, (value, columns), strict=True):
            wanted = other if rows is None else other[rows]
            torch.testing.assert_close(one, wanted, rtol=tolerance, atol=tolerance)


def _never_called(params: Tensor) -> Tensor:
    raise AssertionError("a traced derivative needs no function")


# -------------------------------------------------------------------------- rows and arguments


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, B])
def test_arguments_are_cut_with_the_rows(batch: int, dtype: torch.dtype) -> None:
    x, weight = data(batch, N).to(dtype), data(batch, 1, seed=2).to(dtype)
    keep = data(batch, N, seed=3) < 0.6
    shared = T.to(dtype)

    def function(p: Tensor, x: Tensor, shared: Tensor, *, weight: Tensor, keep: Tensor) -> Tensor:
        curve = p[:, :1] * torch.exp(-p[:, 1:2] * x) + p[:, 2:] * shared
        return torch.where(keep, weight * curve, 0.5 * p[:, :1])

    params0 = starts(batch).to(dtype)
    found = derivative_of(function, params0, x, shared, weight=weight, keep=keep)
    assert_right(found, lambda p: function(p, x, shared, weight=weight, keep=keep), params0)


def test_arguments_of_several_shapes() -> None:
    cube, counts = data(B, 2, N), torch.arange(B * 2).reshape(B, 2)

    def function(p: Tensor, cube: Tensor, counts: Tensor) -> Tensor:
        both = p[:, :1, None] * cube.sin() + (p[:, 1:2] * counts)[..., None]
        return both * p[:, 2, None, None]

    params0 = starts()
    found = derivative_of(function, params0, cube, counts)
    assert_right(found, lambda p: function(p, cube, counts), params0)


@pytest.mark.parametrize("batch", [2, B])
def test_the_same_argument_twice(batch: int) -> None:
    x, y = data(batch, N), data(batch, N, seed=2)

    def function(p: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return p[:, :1] * first + torch.exp(p[:, 1:2] * second) - p[:, 2:] * third

    params0 = starts(batch)
    assert_right(derivative_of(function, params0, x, x, y), lambda p: function(p, x, x, y), params0)


def test_arguments_that_are_no_tensors() -> None:
    def function(p: Tensor, power: int, words: dict[str, Any], *, offset: float = 0.0) -> Tensor:
        return p[:, :1] * T**power + p[:, 1:2] * words["slope"] * T + p[:, 2:] + offset

    params0 = starts()
    found = derivative_of(function, params0, 3, {"slope": 2.0}, offset=0.5)
    assert_right(found, lambda p: function(p, 3, {"slope": 2.0}, offset=0.5), params0)


def test_closures_over_all_problems() -> None:
    x = data(B, N)
    offset = data(B, seed=4)

    def function(p: Tensor) -> Tensor:
        return p[:, :1] * torch.exp(-p[:, 1:2] * x) + p[:, 2:] + offset[:, None]

    params0 = starts()
    wrapped = BatchFunction(function, B)
    wrapped.probe(params0)
    assert not wrapped.any_rows
    assert_right(derivative_of(function, params0), function, params0)


def test_closures_with_the_problems_elsewhere() -> None:
    by_sample = data(N, B)

    def function(p: Tensor) -> Tensor:
        return (p.T[:1] * by_sample).T + p[:, 1:2] * p[:, 2:]

    params0 = starts()
    assert_right(derivative_of(function, params0), function, params0)
    result = least_squares(lambda p: function(p) - function(params0 + 0.1), params0)
    torch.testing.assert_close(function(result.x), function(params0 + 0.1), rtol=1e-6, atol=1e-6)


def test_data_made_in_the_call() -> None:
    # one row for each problem of the call, all alike: the trace must not keep those of its own
    def function(p: Tensor, phase: Tensor) -> Tensor:
        ramp = torch.arange(p.shape[0] * N, dtype=p.dtype).reshape(-1, N) % N
        background = torch.full((p.shape[0], N), 0.25, dtype=p.dtype)
        background += p[:, 2:]
        return p[:, :1] * ramp + p[:, 1:2] * phase + background

    phase = data(B, N)
    found = derivative_of(function, starts(), phase)
    assert_right(found, lambda p: function(p, phase), starts())


def test_data_made_in_the_call_that_differ_between_its_rows() -> None:
    # they belong to places in the call, so it takes all problems at once
    def function(p: Tensor) -> Tensor:
        return p[:, :1] * T + torch.arange(p.shape[0])[:, None] * p[:, 1:2] * p[:, 2:]

    wrapped = BatchFunction(function, B)
    wrapped.probe(starts())
    assert not wrapped.any_rows
    assert_right(derivative_of(function, starts()), function, starts())


def test_data_made_in_the_call_that_nobody_can_place() -> None:
    # claims to be callable on any rows, and makes different data for each of them
    def function(p: Tensor) -> Tensor:
        return p[:, :1] * T + torch.arange(p.shape[0])[:, None] * p[:, 1:2]

    wrapped = BatchFunction(function, B)
    with pytest.raises(UntraceableError, match="rows of one call"):
        trace_function(wrapped, starts(), *check_bounds(None, starts(), "x0"))


# ------------------------------------------------------------------- data of all the problems


def traced_of(function: Callable[..., Any], params0: Tensor, *args: Any) -> TracedFunction:
    """The traced function as the solver would get it, rows probed first; raises where it cannot."""
    wrapped = BatchFunction(function, len(params0), args)
    wrapped.probe(params0)
    return trace_function(wrapped, params0, *check_bounds(None, params0, "x0"))


def test_what_a_closure_computes_is_not_computed_for_all_problems() -> None:
    observed, strides = data(B, N), []

    def function(p: Tensor) -> Tensor:
        value = p[:, :1] * torch.exp(-p[:, 1:2] * T) + p[:, 2:]
        strides.append(value.stride())
        return value - observed

    traced = traced_of(function, starts())
    # one number that stands for all, at least while it was watched
    assert (0, 0) in strides
    assert traced.rowwise == {1: 0}
    assert traced.sources[1].data_ptr() == observed.data_ptr(), "a copy"


def test_images_of_the_problems() -> None:
    observed, side, turned = data(B, 9, 8), data(B, 9, 1, seed=3), data(8, B, 9, seed=4)
    rows = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]

    def function(p: Tensor, y: Tensor, side: Tensor, z: Tensor) -> Tensor:
        a, b, c = (p[:, j, None, None] for j in range(3))
        return a * torch.exp(-b * rows * T[:1]) * z - y + c * side

    params0 = starts()
    arguments = (observed, side, turned.permute(1, 2, 0))

    def whole(p: Tensor) -> Tensor:
        return function(p, *arguments)

    for traced in (traced_of(function, params0, *arguments), traced_of(whole, params0)):
        assert len(traced.trace.pieces) == 1
        assert_right(TracedDerivative(traced), whole, params0)
        where = [source.data_ptr() for source in traced.sources]
        assert where.count(observed.data_ptr()) == 2, "a view of what lies in one row"


def test_sources_are_the_users_own_memory() -> None:
    observed, weight = data(B, N), data(N)
    traced = traced_of(
        lambda p, y: (p[:, :1] * T - y) * weight * p[:, 1:], starts(count=2), observed
    )
    assert traced.rowwise == {0: 0}
    where = {source.data_ptr() for source in traced.sources}
    assert where == {observed.data_ptr(), weight.data_ptr(), T.data_ptr()}
    few = traced.sources_of(torch.tensor([5, 2]))
    assert torch.equal(few[0], observed[[5, 2]]) and few[1] is traced.sources[1]


def test_data_that_are_prepared_in_the_function() -> None:
    """What no graph can have is computed where only data are concerned."""
    observed = data(B, N)

    def function(p: Tensor, y: Tensor) -> Tensor:
        long = y.repeat(1, 30)
        size = long.sum(1, keepdim=True) + torch.linalg.qr(y).R.abs().max() * 0
        with torch.no_grad():
            order = y.sort(1)[0].flip(1)
        return (p[:, :1] * T - order) / size + p[:, 1:2] * y[:, y[0].argsort()] * p[:, 2:]

    def whole(p: Tensor) -> Tensor:
        return function(p, observed)

    assert_right(derivative_of(whole, starts()), whole, starts())
    # as an argument it comes cut to rows; the order of the first row's samples is another then
    argsort = observed[0].argsort()

    def cut(p: Tensor, y: Tensor) -> Tensor:
        return (p[:, :1] * T - y.sort(1)[0]) / y.repeat(1, 30).sum(1, True) + p[:, 1:] * y[
            :, argsort
        ]

    found = derivative_of(cut, starts(count=2), observed)
    assert_right(found, lambda p: cut(p, observed), starts(count=2))


def test_residuals_of_the_parameters_themselves() -> None:
    prior, own = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64), data(B, 3, seed=6)

    def function(p: Tensor, y: Tensor) -> Tensor:
        curve = p[:, :1] * torch.exp(-p[:, 1:2] * T) + p[:, 2:]
        return torch.cat([curve - y, 0.1 * (p - prior), p - own], -1)

    observed = data(B, N)
    wrapped = BatchFunction(function, B, (observed,))
    wrapped.probe(starts())
    assert not wrapped.any_rows
    assert_right(
        derivative_of(function, starts(), observed), lambda p: function(p, observed), starts()
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_the_caller(mode: Callable[[], Any]) -> None:
    def function(p: Tensor, y: Tensor) -> Tensor:
        curve = torch.ones(len(p), N, dtype=p.dtype)
        curve *= p[:, :1]
        return curve * torch.exp(-p[:, 1:2] * T) + p[:, 2:] - y

    observed = data(B, N)
    with mode():
        found = derivative_of(function, starts(), observed)
    assert_right(found, lambda p: function(p, observed), starts())


def test_shared_data_expanded_to_the_rows() -> None:
    def function(p: Tensor) -> Tensor:
        x = T.expand(p.shape[0], N)
        return p[:, :1] * torch.exp(-p[:, 1:2] * x) + p[:, 2:]

    assert_right(derivative_of(function, starts()), function, starts())


def test_one_problem_without_a_batch_dimension() -> None:
    def function(p: Tensor, x: Tensor) -> Tensor:
        return p[0] * torch.exp(-p[1] * x) + p[2]

    # as many samples as problems, as parameters, and others
    for x in (T[:1], T[:3], T, T.expand(1, N)[0]):
        params0 = starts(1)
        wrapped = BatchFunction(function, 1, (x,), single=True)
        wrapped.probe(params0)
        found = trace_derivative(wrapped, params0, *check_bounds(None, params0, "x0"))
        assert found is not None
        value, columns = found(_never_called, params0 + 0.2, None)
        wanted, slopes = Forward()(lambda p: function(p[0], x)[None], params0 + 0.2, None)  # noqa: B023
        torch.testing.assert_close(value, wanted, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(columns, slopes, rtol=1e-13, atol=1e-13)


def test_columns_without_influence_are_zero() -> None:
    def function(p: Tensor) -> Tensor:
        return p[:, :1] * T

    found = derivative_of(function, starts())
    assert found is not None
    _, columns = found(_never_called, starts(), None)
    assert torch.equal(columns[:, 0], T.expand(B, N))
    assert torch.equal(columns[:, 1:], torch.zeros(B, 2, N, dtype=torch.float64))


def test_pieces_of_several_lengths_and_channels() -> None:
    def function(p: Tensor) -> Tensor:
        curves = torch.stack([p[:, :1] * T, torch.exp(-p[:, 1:2] * T)], 1)
        return torch.cat([curves, p[:, 2:, None] * T[:2] + curves[..., :2]], -1)

    found = derivative_of(function, starts())
    assert found is not None and len(found.runs) == 2
    assert_right(found, function, starts())


# ----------------------------------------------------------------------------------- curve_fit


def model(x: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a * torch.exp(-b * x) + c


def model_of_two(x: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a * torch.exp(-b * x[0]) + c * x[1] ** 2


@pytest.mark.parametrize(
    ("x", "function"),
    [
        (T, model),
        (data(B, N), model),
        (data(2, N), model_of_two),
        (data(B, 2, N), model_of_two),
    ],
    ids=["one x", "x per problem", "two variables", "two variables per problem"],
)
def test_curves(x: Tensor, function: Callable[..., Tensor]) -> None:
    params0 = starts()
    abscissa = parse_abscissa(x, torch.zeros(B, N, dtype=torch.float64), torch.float64)
    wrapped = model_function(function, abscissa, B, N)
    wrapped.probe(params0)
    assert wrapped.any_rows
    found = trace_derivative(wrapped, params0, *check_bounds(None, params0, "p0"))

    def whole(p: Tensor) -> Tensor:
        moved = x.movedim(1, 0) if x.ndim == 3 else x
        return function(moved, *(p[:, j, None] for j in range(3)))

    assert_right(found, whole, params0)

    truth = starts(seed=5) + 0.3
    fitted, _ = curve_fit(function, x, whole(truth), params0)
    torch.testing.assert_close(fitted, truth, rtol=1e-6, atol=1e-6)


def test_a_model_in_numpys_words() -> None:
    def words(x: Any, a: Any, b: Any, c: Any) -> Any:
        return a * np.exp(-b * x) + c

    truth = starts(seed=5) + 0.3
    observed = model(T, *(truth[:, j, None] for j in range(3)))
    fitted, _ = curve_fit(words, T.numpy(), observed.numpy(), starts().numpy())
    np.testing.assert_allclose(fitted, truth.numpy(), rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------- traces not to be used


def escape_to_numpy(p: Tensor) -> Tensor:
    rate = torch.from_numpy(np.exp(p[:, 1:2].numpy()))
    return p[:, :1] * T * rate + p[:, 2:]


def escape_to_a_list(p: Tensor) -> Tensor:
    return p[:, :1] * T + torch.tensor(p.tolist(), dtype=p.dtype)[:, 1:2] * p[:, 2:]


def escape_to_a_list_of_numbers(p: Tensor) -> Tensor:
    rate = [row[1] ** 2 for row in p.tolist()]
    return p[:, :1] * T + torch.tensor(rate, dtype=p.dtype)[:, None] + p[:, 2:]


def escape_of_a_difference(p: Tensor) -> Tensor:
    # stays as it is where both parameters move by the same step
    difference = torch.from_numpy(p[:, 1:2].numpy() - p[:, 2:].numpy())
    return p[:, :1] * T + difference * T**2


def escape_of_a_ratio(p: Tensor) -> Tensor:
    ratio = torch.from_numpy(p[:, 1:2].numpy() / p[:, 2:].numpy())
    return p[:, :1] * T + ratio * T**2


def escape_by_item(p: Tensor) -> Tensor:
    return torch.stack([row[0] * T + row[1].item() ** 2 + row[2] for row in p])


def escape_by_float(p: Tensor) -> Tensor:
    return torch.stack([row[0] * T + float(row[1]) * T**2 + row[2] for row in p])


def branch(p: Tensor) -> Tensor:
    if bool((p[:, 1] > 0).all()):
        return p[:, :1] * T + p[:, 1:2] * p[:, 2:]
    return p[:, :1] * T - p[:, 1:2] * p[:, 2:]


def branch_on_a_number(p: Tensor) -> Tensor:
    signs = [1.0 if row[1] > 0.5 else -1.0 for row in p.tolist()]
    rows = [sign * row[1] * T + row[0] for sign, row in zip(signs, p, strict=True)]
    return torch.stack(rows) * p[:, 2:]


def detached(p: Tensor) -> Tensor:
    return p[:, :1] * T + p[:, 1:2].detach() ** 2 * p[:, 2:]


def without_differentiation(p: Tensor) -> Tensor:
    with torch.no_grad():
        weight = p[:, 1:2] ** 2
    return p[:, :1] * T + weight * p[:, 2:]


def fft(p: Tensor) -> Tensor:
    return torch.fft.rfft(p[:, :1] * torch.exp(-p[:, 1:2] * T) + p[:, 2:]).abs()


def cumulative(p: Tensor) -> Tensor:
    x = torch.linspace(0.1, 2.0, 40, dtype=p.dtype)
    return torch.cumsum(p[:, :1] * torch.exp(-p[:, 1:2] * x), 1) + p[:, 2:]


def interpolated(p: Tensor) -> Tensor:
    place = torch.searchsorted(T, (T * p[:, 1:2]).contiguous()).clamp(max=N - 1)
    return p[:, :1] * T[place] + p[:, 2:]


UNTRACED = [
    *(escape_to_numpy, escape_to_a_list, escape_to_a_list_of_numbers, escape_of_a_difference),
    *(escape_of_a_ratio, escape_by_item, escape_by_float, branch, branch_on_a_number, detached),
    *(without_differentiation, fft, cumulative, interpolated),
]


@pytest.mark.parametrize("function", UNTRACED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("batch", [1, 2, B])
def test_functions_without_a_trace(function: Callable[[Tensor], Tensor], batch: int) -> None:
    equal = torch.ones(batch, 3, dtype=torch.float64)
    for params0 in (starts(batch), equal):
        assert derivative_of(function, params0) is None


def test_random_functions_have_no_trace() -> None:
    def function(p: Tensor) -> Tensor:
        return p[:, :1] * T + torch.randn(N, dtype=p.dtype) * p[:, 1:2] + p[:, 2:]

    wrapped = BatchFunction(function, B)
    assert trace_derivative(wrapped, starts(), *check_bounds(None, starts(), "x0")) is None


def test_functions_that_remember_have_no_trace() -> None:
    calls = []

    def function(p: Tensor) -> Tensor:
        calls.append(None)
        return p[:, :1] * T * len(calls)

    wrapped = BatchFunction(function, B)
    assert trace_derivative(wrapped, starts(), *check_bounds(None, starts(), "x0")) is None


def test_a_data_dependent_switch_is_met_away_from_the_start() -> None:
    # the trace is right at the start, where the switch has not been thrown yet
    def function(p: Tensor) -> Tensor:
        value = p[:, :1] * T
        return value + p[:, 1:2] * (max(row[0] for row in p.tolist()) > 1.0)

    params0 = torch.ones(B, 2, dtype=torch.float64)
    assert derivative_of(function, params0) is None


def test_what_fails_while_it_is_watched() -> None:
    def function(p: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("watched")
        return p[:, :1] * T + p[:, 1:2]

    problem = build(BatchFunction(function, B), starts())
    assert problem.derivative.name == "forward"


@pytest.mark.parametrize("function", UNTRACED, ids=lambda f: f.__name__)
def test_untraced_functions_are_differentiated_otherwise(
    function: Callable[[Tensor], Tensor],
) -> None:
    params0 = starts()
    problem = build(BatchFunction(function, B), params0)
    assert problem.derivative.name != "traced"


REASONS: list[tuple[str, str, Callable[..., Any]]] = [
    ("an operation", "aten._fft_r2c", fft),
    ("numbers that leave torch", "numpy", escape_to_numpy),
    ("a number", "aten._local_scalar_dense", escape_by_item),
    ("a branch", "aten._local_scalar_dense", branch),
    ("no differentiation", "switched off", without_differentiation),
    ("a gather", "searchsorted", interpolated),
    ("a long sum", "cumulative sum over 40", cumulative),
    ("no tensor", "TypeError", lambda p: p["a"]),
    ("random numbers", "other values than the function", lambda p: p * torch.randn(3).double()),
]


@pytest.mark.parametrize(("what", "named", "function"), REASONS, ids=[r[0] for r in REASONS])
def test_reasons_are_said(what: str, named: str, function: Callable[..., Any]) -> None:
    wrapped = BatchFunction(function, B)
    for batch in (starts(), starts(2)):
        with pytest.raises(UntraceableError, match=named):
            trace_function(wrapped, batch, *check_bounds(None, batch, "x0"))


def test_the_reason_of_no_problems() -> None:
    empty = torch.zeros(0, 3, dtype=torch.float64)
    with pytest.raises(UntraceableError, match="no problems"):
        trace_function(BatchFunction(ordinary, 0), empty, empty, empty)


def test_the_reason_is_the_first_that_matters() -> None:
    # the data are prepared by an operation that no graph has, the parameters by another
    def function(p: Tensor, y: Tensor) -> Tensor:
        return torch.fft.rfft(p[:, :1] * y.sort(1)[0]).abs()

    with pytest.raises(UntraceableError, match=r"aten\._fft"):
        traced_of(function, starts(), data(B, N))


# --------------------------------------------------------------------------------------- bounds


def test_the_proof_stays_inside_the_bounds() -> None:
    met = []

    def function(p: Tensor) -> Tensor:
        met.append(p.detach().clone())
        return p[:, :1] * torch.log(p[:, 1:2] * T) + torch.sqrt(1 - p[:, 2:])

    params0 = torch.tensor([[0.5, 1e-3, 1.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    lower = torch.tensor([0.0, 1e-3, 0.0], dtype=torch.float64)
    upper = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    wrapped = BatchFunction(function, 2)
    found = trace_derivative(wrapped, params0, *check_bounds((lower, upper), params0, "x0"))
    assert found is not None
    everywhere = torch.stack(met)
    assert bool(((everywhere >= lower) & (everywhere <= upper)).all())
    moved = (everywhere != params0).any(0)
    assert bool(moved.all()), "a parameter on its bound moves to the other side"


def test_the_proof_changes_differences_and_ratios_of_parameters() -> None:
    met = []

    def function(p: Tensor) -> Tensor:
        met.append(p.detach().clone())
        return p[:, :1] * T + p[:, 1:2] * p[:, 2:]

    params0 = torch.ones(2, 3, dtype=torch.float64)
    found = trace_derivative(
        BatchFunction(function, 2), params0, *check_bounds(None, params0, "x0")
    )
    assert found is not None
    moved = met[-1][0]
    assert len({round(v, 9) for v in moved.tolist()} | {1.0}) == 4, "all steps differ"


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_escapes_at_a_bound_are_found(side: str) -> None:
    params0 = starts()
    bound = params0[:, 1].clone()
    limits = torch.full_like(params0, -torch.inf if side == "lower" else torch.inf)
    limits[:, 1] = bound
    bounds = (limits, torch.inf) if side == "lower" else (-torch.inf, limits)
    assert derivative_of(escape_to_numpy, params0, bounds=bounds) is None


def test_a_pinned_parameter_may_escape() -> None:
    # equal bounds: the parameter never moves, so what is made of it is data
    truth = starts(seed=5)
    params0 = starts()
    params0[:, 1] = truth[:, 1]
    lower, upper = torch.full_like(params0, -10.0), torch.full_like(params0, 10.0)
    lower[:, 1] = upper[:, 1] = truth[:, 1]
    rows = torch.arange(B, dtype=torch.float64)[:, None]
    observed = escape_to_numpy(truth)

    def function(p: Tensor, rows: Tensor, observed: Tensor) -> Tensor:
        return escape_to_numpy(p) - observed

    result = least_squares(function, params0, args=(rows, observed), bounds=(lower, upper))
    torch.testing.assert_close(result.x, truth, rtol=1e-6, atol=1e-6)


def test_a_pinned_parameter_of_a_traced_function() -> None:
    truth = starts(seed=5)
    params0 = starts()
    params0[:, 1] = truth[:, 1]
    bounds = tuple(
        torch.stack([torch.full((B,), v).double(), truth[:, 1], torch.full((B,), v).double()], 1)
        for v in (-10.0, 10.0)
    )
    observed = model(T, *(truth[:, j, None] for j in range(3)))
    found = derivative_of(
        lambda p: model(T, *(p[:, j, None] for j in range(3))), params0, bounds=bounds
    )
    assert_right(found, lambda p: model(T, *(p[:, j, None] for j in range(3))), params0)
    fitted, _ = curve_fit(model, T, observed, params0, bounds=bounds)
    torch.testing.assert_close(fitted, truth, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------- what is chosen


def ordinary(p: Tensor) -> Tensor:
    return p[:, :1] * torch.exp(-p[:, 1:2] * T) + p[:, 2:]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (None, "traced"),
        ("forward", "forward"),
        ("reverse", "reverse"),
        ("2-point", "2-point"),
        ("3-point", "3-point"),
    ],
)
def test_names_of_derivatives(asked: str | None, given: str) -> None:
    problem = build(BatchFunction(ordinary, B), starts(), asked)
    assert problem.derivative.name == given
    params = starts(seed=7)
    value, columns = problem.derivative(lambda p: problem.value(p, None), params, None)
    wanted_value, wanted = Forward()(ordinary, params, None)
    tolerance = 1e-13 if given in ("traced", "forward", "reverse") else 1e-5
    torch.testing.assert_close(value, wanted_value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(columns, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 2, 3, B])
def test_ordinary_models_are_traced(batch: int) -> None:
    assert build(BatchFunction(ordinary, batch), starts(batch)).derivative.name == "traced"
    abscissa = parse_abscissa(T, torch.zeros(batch, N, dtype=torch.float64), torch.float64)
    curve = model_function(model, abscissa, batch, N)
    assert build(curve, starts(batch)).derivative.name == "traced"
    single = BatchFunction(lambda p: p[0] * torch.exp(-p[1] * T) + p[2], 1, single=True)
    assert build(single, starts(1)).derivative.name == "traced"


def test_without_problems_nothing_is_traced() -> None:
    problem = build(BatchFunction(ordinary, 0), torch.zeros(0, 3, dtype=torch.float64))
    assert problem.derivative.name == "forward"


def test_where_nothing_is_finite_at_the_start() -> None:
    def function(p: Tensor) -> Tensor:
        return p[:, :1] * torch.log(p[:, 1:2] - 5) * T + p[:, 2:]

    # NaN at the start and beside it: values prove nothing there, yet all operations were seen
    found = derivative_of(function, starts())
    assert_right(found, function, starts() + 8)


def test_fits_agree_with_forward_mode() -> None:
    observed = ordinary(starts(seed=9)) + 0.01 * data(B, N, seed=10)
    traced = least_squares(lambda p: ordinary(p) - observed, starts())
    forward = least_squares(lambda p: ordinary(p) - observed, starts(), "forward")
    torch.testing.assert_close(traced.x, forward.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(traced.cost, forward.cost, rtol=1e-9, atol=1e-15)


def test_a_closure_over_all_data_needs_no_whole_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is called for all problems; its traced Jacobian comes in chunks all the same."""
    t = torch.linspace(0.1, 4, 20, dtype=torch.float64)
    truth = torch.linspace(0.5, 2, 300, dtype=torch.float64)[:, None]
    y = 3 * torch.exp(-truth * t)
    seen: set[int] = set()

    def residual(p: Tensor) -> Tensor:
        return p[:, :1] * torch.exp(-p[:, 1:] * t) - y

    def spy(
        self: TracedDerivative, function: object, params: Tensor, rows: Tensor | None
    ) -> object:
        seen.add(len(params))
        return call(self, function, params, rows)

    call = TracedDerivative.__call__
    monkeypatch.setattr(TracedDerivative, "__call__", spy)
    monkeypatch.setattr("torchimize.lsq.problem.CACHE_NUMBERS", 50 * 2 * 20)
    result = torchimize.least_squares(
        residual, torch.ones(300, 2, dtype=torch.float64), engine="eager"
    )
    torch.testing.assert_close(result.x[:, 1:], truth, rtol=1e-6, atol=0)
    # the proof of the trace looks at all of them, the iterations at fifty a time
    assert seen - {300} and max(seen - {300}) <= 50
