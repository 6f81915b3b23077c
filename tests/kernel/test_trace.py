"""Traced functions against the functions themselves and torch's forward mode; what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, dropout

from torchimize import numpy_models
from torchimize.kernel.trace import Trace, UntraceableError, trace
from torchimize.lsq.jacobian import Forward
from torchimize.lsq.traced import TracedDerivative, TracedFunction

Function = Callable[[Tensor], Tensor]

A, P, N = 3, 4, 7
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5}
DTYPES = [torch.float64, torch.float32]

X = torch.linspace(0.2, 1.7, N, dtype=torch.float64)
GRID = torch.linspace(-1.0, 1.0, 3 * N, dtype=torch.float64).reshape(3, N)
MASK = torch.tensor([True, False, True, True, False, False, True])
COUNTS = torch.tensor([0, 1, 2, 3, 5, 8, 13])


def points(dtype: torch.dtype = torch.float64, seed: int = 0, batch: int = A) -> Tensor:
    """Parameters (A, 4) between 0.5 and 2."""
    generator = torch.Generator().manual_seed(seed)
    return (0.5 + 1.5 * torch.rand(batch, P, generator=generator, dtype=torch.float64)).to(dtype)


def derivative_of(found: Trace) -> TracedDerivative:
    return TracedDerivative(TracedFunction(found, found.sources, {}))


def assert_as_forward(
    function: Function, params: Tensor, elsewhere: Tensor, arguments: Sequence[Tensor] = ()
) -> Trace:
    """Trace at ``params``; values and columns must be right there and ``elsewhere``."""
    found = trace(function, params, arguments)
    traced = derivative_of(found)

    def flat(params: Tensor) -> Tensor:
        return function(params).reshape(params.shape[0], -1)

    for at in (params, elsewhere):
        value, columns = traced(function, at, None)
        whole, wanted = Forward(vmapped=False)(flat, at, None)
        assert value.dtype == columns.dtype == params.dtype
        assert columns.isfinite().all()
        tolerance = TOLERANCE[params.dtype]
        for one, other in ((value, whole), (columns, wanted)):
            size = float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * size)
    return found


def columns_of(params: Tensor) -> list[Tensor]:
    return [params[:, j, None] for j in range(params.shape[1])]


# ------------------------------------------------------------------ models of x and parameters


def x_of(params: Tensor) -> Tensor:
    return X.to(params.dtype)


Curve = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

CURVES: dict[str, Curve] = {
    "sum of exponentials": lambda x, a, b, c, d: a * torch.exp(-b * x) + c * torch.exp(-d * x),
    "gaussian": lambda x, a, b, c, d: a * torch.exp(-0.5 * ((x - b) / c) ** 2) + d,
    "lorentzian": lambda x, a, b, c, d: a * c**2 / ((x - b) ** 2 + c**2) + d * x,
    "sigmoids": lambda x, a, b, c, d: a / (1 + torch.exp(-b * (x - c))) + torch.sigmoid(d * x),
    "powers": lambda x, a, b, c, d: a * x**b + c**x + (d + x) ** 3 - x**-2 + a**-0.5,
    "power of powers": lambda x, a, b, c, d: (a + x) ** (b * x) * 2.0 ** (c * x) - x**d,
    "waves": lambda x, a, b, c, d: a * torch.sin(b * x + c) + torch.cos(d * x) * torch.tan(x / 2),
    "logarithms": lambda x, a, b, c, d: (
        torch.log(a + x) + torch.log2(b * x) + torch.log10(c + x) + torch.log1p(d * x)
    ),
    "hyperbolic": lambda x, a, b, c, d: (
        torch.sinh(a * x) - torch.cosh(b * x) + torch.tanh(c * x) + torch.asinh(d * x)
    ),
    "inverse": lambda x, a, b, c, d: (
        torch.asin(a * x / 5) + torch.acos(b * x / 5) + torch.atan(c * x) + torch.atanh(d * x / 5)
    ),
    "special": lambda x, a, b, c, d: (
        torch.erf(a * x) + torch.erfc(b * x) + torch.lgamma(c + x) + torch.special.i0(d * x)
    ),
    "more special": lambda x, a, b, c, d: (
        torch.special.i0e(a * x) + torch.expm1(b * x) + torch.exp2(c * x) + torch.acosh(d + 1 + x)
    ),
    "arctangent of two": lambda x, a, b, c, d: torch.atan2(a * x - c, b + d * x),
    "roots": lambda x, a, b, c, d: (
        torch.sqrt(a + x) + torch.rsqrt(b + x) + torch.reciprocal(c + x) + torch.square(d * x)
    ),
    "steps": lambda x, a, b, c, d: (
        a * torch.floor(3 * x) + b * torch.ceil(x) + c * torch.round(x) + d * torch.sign(x - 1)
    ),
    "steps of parameters": lambda x, a, b, c, d: (
        a * x * torch.floor(10 * b * x) + c * torch.trunc(d)
    ),
    "where": lambda x, a, b, c, d: torch.where(x < b, a * x, c * x + d),
    "where of numbers": lambda x, a, b, c, d: torch.where(a * x > b, 2.0, c) + torch.where(
        x > d, d, 0.5
    ),
    "where and a number": lambda x, a, b, c, d: torch.where(x > 1, a * b * x, 0.0) * c - d,
    "clamp": lambda x, a, b, c, d: (
        torch.clamp(a * x, 0.5, 2) + (b * x).clamp(min=1.0) + (c * x).clamp(max=1) + d
    ),
    "clamp_min, clamp_max": lambda x, a, b, c, d: (
        (a * x).clamp_min(0.7) + (b * x).clamp_max(0.9) + torch.clamp(c * x, b * 0.5, d)
    ),
    "relu": lambda x, a, b, c, d: torch.relu(a - b * x) + c + d * torch.nn.functional.relu(x - 1),
    "extremes": lambda x, a, b, c, d: torch.maximum(a * x, b) + torch.minimum(c * x, d * x * x),
    "magnitude": lambda x, a, b, c, d: torch.abs(a - b * x) * c - (d - x).abs(),
    "truth as numbers": lambda x, a, b, c, d: a * (x < b) + c * (x > d).to(x.dtype),
    "truth combined": lambda x, a, b, c, d: (
        torch.where((x > a / 2) & (x < b) | ~(x < c), d * x, a) * ((x > 1) & (x < a))
    ),
    "logical words": lambda x, a, b, c, d: torch.where(
        torch.logical_or(torch.logical_and(x > a, x < b), torch.logical_not(x < c)), d, a * x
    ),
    "comparisons": lambda x, a, b, c, d: (
        a * (x <= b) + b * (x >= c) + c * (x == x) + d * (x != d)
    ),
    "masked_fill": lambda x, a, b, c, d: (a * x + b).masked_fill(x > c, 0.25) * d,
    "boolean data": lambda x, a, b, c, d: torch.where(MASK, a * x, b * x) + c * MASK + d,
    "integer data": lambda x, a, b, c, d: a * COUNTS + b * x**COUNTS.to(x.dtype) + c ** (
        COUNTS / 13
    ).to(x.dtype) + d,
    "integers compared": lambda x, a, b, c, d: torch.where(COUNTS > 2, a * x, b * COUNTS) + c * d,
    "numbers of torch": lambda x, a, b, c, d: (
        torch.tensor(2.5) * a * x + b / torch.tensor(3) + c * torch.tensor(True) + d
    ),
    "numbers of Python": lambda x, a, b, c, d: 2 * a * x - 1 + True * b / 3 - (1 - c) + 2**d,
    "full_like and its kin": lambda x, a, b, c, d: (
        a * torch.full_like(b, 2.0) * x
        + torch.zeros_like(c * x)
        + d * torch.ones_like(x * c)
        + a.new_full((1,), 3.0) * b
        + a.new_ones(2)[:1] * c
        + a.new_zeros(1)
    ),
    "in place": lambda x, a, b, c, d: (a * x).mul_(b).add_(c, alpha=0.5).sub_(d * x).div_(2).exp_(),
    "alpha": lambda x, a, b, c, d: (
        torch.add(a * x, b, alpha=3) - torch.sub(c, d * x, alpha=0.5) + torch.rsub(a, b, alpha=2)
    ),
    "addcmul": lambda x, a, b, c, d: (
        torch.addcmul(a, b, x, value=2.0) + torch.addcdiv(c, d, x, value=-0.5)
    ),
    "isnan": lambda x, a, b, c, d: torch.where(torch.isnan(a * x), 0.0, b * x) + c + d,
    "isfinite": lambda x, a, b, c, d: torch.where(torch.isfinite(a * x), b * x, 0.0) + c + d,
    "detached constants": lambda x, a, b, c, d: a * (x.detach() > 1) * x + b * (c > x).detach() + d,
    "converted": lambda x, a, b, c, d: (
        (a * x).to(x.dtype).clone().contiguous() + b.type_as(x) + c * d
    ),
    "unused": lambda x, a, b, c, d: a * x + 0 * b + x * x,
    "polynomial": lambda x, a, b, c, d: ((a * x + b) * x + c) * x + d,
    "negatives": lambda x, a, b, c, d: -(a - b * x) * -c / -(d + x) - -x,
    "one expression often": lambda x, a, b, c, d: sum(
        (torch.exp(-k * a * x) * b for k in range(1, 4)), start=c * d
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("name", CURVES)
def test_curves(name: str, dtype: torch.dtype) -> None:
    model = CURVES[name]

    def function(params: Tensor) -> Tensor:
        return model(x_of(params), *columns_of(params)).expand(params.shape[0], N)

    found = assert_as_forward(function, points(dtype), points(dtype, seed=1))
    assert found.trailing == (N,) and found.num_params == P and len(found.pieces) == 1


def accumulated(params: Tensor) -> Tensor:
    a, b, c, d = columns_of(params)
    x = x_of(params)
    value = a * x
    for k in range(1, 4):
        value += b * x**k
        value *= c
    value -= d
    return value


def accumulated_from_zero(params: Tensor) -> Tensor:
    value = torch.zeros_like(x_of(params) * params[:, :1])
    for j in range(P):
        value += params[:, j, None] * x_of(params) ** j
    return value


def accumulated_from_a_number(params: Tensor) -> Tensor:
    return sum(params[:, j, None] * x_of(params) ** j for j in range(P))  # type: ignore[return-value]


def accumulated_into_data(params: Tensor) -> Tensor:
    background = torch.zeros(params.shape[0], N, dtype=params.dtype) + x_of(params)
    background += params[:, :1] * params[:, 1:2]
    background *= params[:, 2:3] + params[:, 3:]
    return background


def a_name_kept_from_before(params: Tensor) -> Tensor:
    value = params[:, :1] * x_of(params)
    before = value.clone()
    twice = value * 2
    value += params[:, 1:2]
    return before * value * params[:, 2:3] + twice * params[:, 3:]


def a_mask_in_place(params: Tensor) -> Tensor:
    a, b, c, d = columns_of(params)
    x = x_of(params)
    mask = x > a / 2
    mask &= x < b
    return torch.where(mask, c * x, d)


def recurrence(params: Tensor) -> Tensor:
    """Chebyshev polynomials: every term is used twice, so their number must not grow as 1.6**k."""
    a, b, c, d = columns_of(params)
    u = x_of(params) / 2 - a / 8
    before, now = torch.ones_like(u), u
    total = b + c * now
    for _ in range(40):
        before, now = now, 2 * u * now - before
        total = total + d * now / 40
    return total


def doubled_thirty_times(params: Tensor) -> Tensor:
    value = params[:, :1] * x_of(params) / 4
    for _ in range(30):
        value = value * value * 0.5 + value * 0.5
    return value + params[:, 1:2] * params[:, 2:3] * params[:, 3:]


def overwritten_temporaries(params: Tensor) -> Tensor:
    """Data made on the way and freed: a later tensor may have the same identity."""
    total = params[:, :1] * 0
    for k in range(1, 9):
        total = total + params[:, k % P, None] * (x_of(params) * k)
    return total


# ------------------------------------------------------------ functions of B × C × N and others


def channels(params: Tensor) -> Tensor:
    a, b, c, d = columns_of(params)
    x = x_of(params)
    return torch.stack([a * x, b * x * x + c, torch.exp(-d * x)], 1)


def channels_by_broadcast(params: Tensor) -> Tensor:
    return params[:, :3, None] * GRID.to(params.dtype) + params[:, 3, None, None]


def channels_joined(params: Tensor) -> Tensor:
    a, b = (params[:, j, None, None] for j in range(2))
    grid = GRID.to(params.dtype)
    return torch.cat([a * grid[:2], torch.sin(b * grid), (a * b * grid[1:]).neg()], dim=-2)


def five_channels(params: Tensor) -> Tensor:
    x = x_of(params)
    return torch.stack([params[:, k % P, None] ** (k + 1) * x for k in range(5)], dim=-2)


def samples_first(params: Tensor) -> Tensor:
    return channels(params).transpose(1, 2)


def two_short_dimensions(params: Tensor) -> Tensor:
    both = channels(params)[:, None] * torch.tensor([1.0, -2.0], dtype=params.dtype)[:, None, None]
    return both


def unbound(params: Tensor) -> Tensor:
    a, b, c, d = params.unbind(1)
    return (a * b)[:, None] * x_of(params) + (c - d).unsqueeze(-1)


def splits(params: Tensor) -> Tensor:
    first, second = params[..., None].split(2, dim=1)
    left, middle, right = params.split([1, 2, 1], dim=-1)
    halves = params.chunk(2, dim=1)
    value = (first * second).sum(1) * x_of(params) + left * right * middle[:, -1:]
    return value + (halves[0] - halves[1]).prod(1, keepdim=True)


def slices(params: Tensor) -> Tensor:
    x = x_of(params)
    full = params[:, :1] * torch.linspace(0, 1, 2 * N, dtype=params.dtype)
    return full[:, ::2] * params[:, -1:] + full[:, 1::2] * x - full[:, -N:] + full[:, N // 2 : -4]


def strided_parameters(params: Tensor) -> Tensor:
    even, odd = params[:, ::2], params[:, 1::2]
    return even[:, :1] * torch.exp(-odd[:, :1] * x_of(params)) + even[:, -1:] * odd[:, -1:]


def selects(params: Tensor) -> Tensor:
    curves = channels(params)
    return (
        curves[:, -1]
        - curves.select(1, 0) * curves[:, 1, 2, None]
        + curves[..., -1].sum(1)[:, None]
    )


def reshapes(params: Tensor) -> Tensor:
    matrix = params.reshape(-1, 2, 2)
    again = params.view(params.shape[0], 1, 2, 2).flatten(2)
    return (matrix[:, 0, 1, None] * x_of(params) + matrix[:, 1, :1]) * again[:, 0, 3, None]


def samples_folded(params: Tensor) -> Tensor:
    x = torch.linspace(0, 1, 12, dtype=params.dtype)
    folded = (params[:, :1] * x).reshape(-1, 6, 2)
    return folded[..., 0] * params[:, 1:2] + folded[..., 1].square() * params[:, 2:3]


def dimensions_moved(params: Tensor) -> Tensor:
    curves = channels(params)
    moved = curves.movedim(1, -1).permute(2, 0, 1).transpose(0, 1)
    return (curves * moved.mT.mT)[:, None].squeeze(1).swapaxes(1, 2).swapaxes(-1, -2)


def squeezes(params: Tensor) -> Tensor:
    value = params[:, None, :, None, None] * x_of(params)
    return value.squeeze(1).squeeze(-2).squeeze((1, -1)).sum(1) + params[:, :1].squeeze(1)[:, None]


def expands(params: Tensor) -> Tensor:
    x = x_of(params).expand(params.shape[0], N)
    wide = params[:, :1].expand(-1, N) * params[:, 1:2].expand_as(x)
    return wide * x + params[:, 2:3].broadcast_to(x.shape)


def einsum(params: Tensor) -> Tensor:
    basis = torch.stack([x_of(params) ** k for k in range(P)])
    return (
        torch.einsum("bp,pn->bn", params, basis) + torch.einsum("bp,bp->b", params, params)[:, None]
    )


def matrix_product(params: Tensor) -> Tensor:
    basis = torch.stack([x_of(params) ** k for k in range(P)])
    return params.sin() @ basis + (params[:, None] @ params[..., None])[..., 0] * x_of(params)


def batched_product(params: Tensor) -> Tensor:
    rotation = torch.stack(
        [params[:, 0].cos(), -params[:, 0].sin(), params[:, 0].sin(), params[:, 0].cos()], -1
    ).reshape(-1, 2, 2)
    return rotation @ (params[:, 1, None, None] * GRID[:2].to(params.dtype)) + params[:, 2:, None]


def product_with_a_vector_of_samples(params: Tensor) -> Tensor:
    points = torch.stack([x_of(params), x_of(params).square()], -1)
    return (points * params[:, None, :2]) @ torch.eye(2, dtype=params.dtype)


def reductions(params: Tensor) -> Tensor:
    curves = channels(params)
    total = curves.sum(1) + curves.mean(1) + curves.prod(1)
    return total + curves.sum((1,), keepdim=True)[:, 0] + curves.amax(1) - curves.amin(dim=1)


def means_of_parameters(params: Tensor) -> Tensor:
    return (params - params.mean(1, keepdim=True))[:, :1] * x_of(params) + params.sum(-1, True)


def normalised_over_few_samples(params: Tensor) -> Tensor:
    curve = torch.exp(-params[:, :1] * x_of(params)) + params[:, 1:2]
    return curve / curve.sum(-1, keepdim=True)


def two_pieces(params: Tensor) -> Tensor:
    x = x_of(params)
    return torch.cat([params[:, :1] * x, params[:, 1:2] * torch.exp(-params[:, 2:3] * x[:4])], 1)


def pieces_in_channels(params: Tensor) -> Tensor:
    x = x_of(params)
    rising = params[:, :1, None] * torch.cat([x, x + 2])
    parts = torch.cat([channels(params), -channels(params) * params[:, 3, None, None]], -1)
    return parts + rising


def pieces_of_pieces(params: Tensor) -> Tensor:
    inner = two_pieces(params)
    both = torch.cat([inner, inner.square(), params[:, :1]], dim=-1)
    return both * torch.linspace(1, 2, both.shape[1], dtype=params.dtype) + params[:, 3:]


def an_empty_piece(params: Tensor) -> Tensor:
    return torch.cat(
        [torch.empty(0, dtype=params.dtype), two_pieces(params)[:, :0], channels(params)[:, 0]], 1
    )


def one_number(params: Tensor) -> Tensor:
    return params[:, 0] * torch.exp(params[:, 1]) - params[:, 2] / params[:, 3]


def one_sample(params: Tensor) -> Tensor:
    return one_number(params)[:, None]


def nothing_but_data(params: Tensor) -> Tensor:
    return torch.zeros_like(params[:, :1]) + x_of(params)


FUNCTIONS: list[Function] = [
    *(accumulated, accumulated_from_zero, accumulated_from_a_number, accumulated_into_data),
    *(a_name_kept_from_before, a_mask_in_place, recurrence, doubled_thirty_times),
    *(overwritten_temporaries, channels, channels_by_broadcast, channels_joined, five_channels),
    *(samples_first, two_short_dimensions, unbound, splits, slices, strided_parameters, selects),
    *(reshapes, samples_folded, dimensions_moved, squeezes, expands, einsum, matrix_product),
    *(batched_product, product_with_a_vector_of_samples, reductions, means_of_parameters),
    *(normalised_over_few_samples, two_pieces, pieces_in_channels, pieces_of_pieces),
    *(an_empty_piece, one_number, one_sample, nothing_but_data),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions(function: Function, dtype: torch.dtype) -> None:
    params = points(dtype)
    found = assert_as_forward(function, params, points(dtype, seed=1))
    assert found.trailing == tuple(function(params).shape[1:])


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_of_one_problem(function: Function) -> None:
    assert_as_forward(function, points(batch=1), points(seed=1, batch=1))


def test_layout_of_the_output() -> None:
    found = trace(channels, points())
    assert found.trailing == (3, N) and found.sample_dim == 1
    assert [piece.position for piece in found.pieces] == [(0, 0), (1, 0), (2, 0)]
    found = trace(samples_first, points())
    assert found.trailing == (N, 3) and found.sample_dim == 0
    assert [piece.position for piece in found.pieces] == [(0, 0), (0, 1), (0, 2)]
    found = trace(two_pieces, points())
    assert {(piece.start, piece.length) for piece in found.pieces} == {(0, N), (N, 4)}
    assert trace(one_number, points()).trailing == ()


def test_rows_can_be_others_than_traced() -> None:
    found = trace(channels, points())
    other = points(seed=5, batch=11)
    value, columns = derivative_of(found)(channels, other, None)
    wanted_value, wanted = Forward()(lambda p: channels(p).flatten(1), other, None)
    torch.testing.assert_close(value, wanted_value)
    torch.testing.assert_close(columns, wanted)


# -------------------------------------------------------------------- what belongs to problems


def test_arguments_of_the_problems() -> None:
    x = X + torch.arange(A, dtype=torch.float64)[:, None] / 10
    weights = torch.rand(A, 3, 1, generator=torch.Generator().manual_seed(2)).double()
    keep = torch.rand(A, 3, N, generator=torch.Generator().manual_seed(3)) < 0.7

    def function(params: Tensor) -> Tensor:
        curves = params[:, :3, None] * torch.exp(-params[:, 3, None, None] * x[:, None])
        # true values are counted as numbers, more than one of them too
        return weights * curves * keep + keep.sum(1, keepdim=True) * params[:, :1, None] * ~keep

    found = assert_as_forward(function, points(), points(seed=1), [x, weights, keep])
    for number, argument in enumerate((x, weights, keep)):
        assert found.sources[number].data_ptr() == argument.data_ptr()
    assert len(found.sources) == 3


def test_an_argument_twice() -> None:
    x = X.repeat(A, 1)

    def function(params: Tensor) -> Tensor:
        return params[:, :1] * x + params[:, 1:2] * other

    other = x.square()
    found = assert_as_forward(function, points(), points(seed=1), [x, x, other])
    assert found.sources[2].data_ptr() == other.data_ptr()


def test_closures_over_all_rows() -> None:
    x = X + torch.arange(A, dtype=torch.float64)[:, None] / 10
    transposed = (x * 2).T.contiguous()

    def function(params: Tensor) -> Tensor:
        return params[:, :1] * x.cos() + (params.T[1] * transposed).T + params[:, 2:3] * x[:, -1:]

    assert_as_forward(function, points(), points(seed=1))


def test_one_problem_without_a_batch_dimension() -> None:
    def function(params: Tensor) -> Tensor:
        p = params[0]
        curve = p[0] * torch.exp(-p[1] * X) + p[2]
        return torch.cat([curve, p[3] * curve[:3]])[None]

    assert_as_forward(function, points(batch=1), points(seed=1, batch=1))


def test_data_that_require_gradients() -> None:
    weight = X.clone().requires_grad_()

    def function(params: Tensor) -> Tensor:
        return params[:, :1] * weight

    value, columns = derivative_of(trace(function, points()))(function, points(), None)
    assert not value.requires_grad and not columns.requires_grad
    torch.testing.assert_close(columns[:, 0], X.expand(A, -1))


def test_parameters_are_not_touched() -> None:
    params = points()
    before = params.clone()
    trace(accumulated, params.requires_grad_())
    assert torch.equal(params.detach(), before) and params.grad is None


# ------------------------------------------------------------------------ slopes at the corners


def test_slopes_at_corners_are_torchs() -> None:
    params = torch.tensor([[1.0, 1.0, 0.0, 2.0], [2.0, 1.0, 0.0, 1.0]], dtype=torch.float64)

    def function(params: Tensor) -> Tensor:
        a, b, c, d = columns_of(params)
        return torch.cat(
            [
                *(torch.maximum(a, b), torch.minimum(a, b), torch.clamp(a, 1.0, 2.0)),
                *(torch.clamp(d, b, a), torch.relu(c), torch.relu(c) + torch.abs(c)),
                *(torch.where(c > 0, a, b), torch.stack([a, b], 1).amax(1), d.clamp_min(1)),
            ],
            1,
        )

    assert_as_forward(function, params, points())
    columns = derivative_of(trace(function, params))(function, params, None)[1][0]
    # maximum and minimum share the slope at a tie, clamp has 1 on its limit, relu 0 at 0
    assert columns[0, :3].tolist() == [0.5, 0.5, 1.0]
    assert columns[2].tolist() == [0.0] * 9


def test_nan_stays_nan() -> None:
    params = torch.full((1, P), torch.nan, dtype=torch.float64)

    def function(params: Tensor) -> Tensor:
        a, b, c, d = columns_of(params)
        return torch.cat([torch.relu(a), torch.clamp(b, 0, 1), torch.maximum(c, d), d**2], 1)

    found = trace(function, torch.ones(1, P, dtype=torch.float64))
    value, _ = derivative_of(found)(function, params, None)
    assert value.isnan().all() and function(params).isnan().all()


# -------------------------------------------------------------------------------- NumPy's words


def numpy_gaussian(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a * np.exp(-0.5 * ((x - b) / c) ** 2) + d  # type: ignore[return-value]


def numpy_piecewise(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    value = np.where(x < b, a * x, c * np.sqrt(x)) + np.minimum(d, x)
    return value + np.heaviside(x - 1, 0.5) * np.clip(a, 0, 1)  # type: ignore[no-any-return]


def numpy_mixture(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    total = np.zeros_like(x)
    for k in range(1, 4):
        total = total + a / k * np.cos(k * b * x)
    return total + np.log1p(np.abs(c)) * np.arctan2(x, d)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("model", [numpy_gaussian, numpy_piecewise, numpy_mixture])
def test_models_in_numpys_words(model: Curve, dtype: torch.dtype) -> None:
    on_tensors = numpy_models.in_numpy_words(model)

    def function(params: Tensor) -> Tensor:
        return on_tensors(x_of(params), *columns_of(params))

    params = points(dtype)
    assert_as_forward(function, params, points(dtype, seed=1))
    found = trace(function, params)
    value, _ = derivative_of(found)(function, params, None)
    # NumPy itself, on arrays
    wanted = model(X.numpy(), *(c.double().numpy() for c in columns_of(params)))  # type: ignore[arg-type]
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(value.numpy(), wanted, rtol=tolerance, atol=tolerance)


# -------------------------------------------------------------------------------- what is refused


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value / 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 7


def _data_changed(p: Tensor) -> Tensor:
    data = X.clone()
    value = p[:, :1] * data
    data.mul_(2.0)
    return value


def _written_after_detach(p: Tensor) -> Tensor:
    value = torch.zeros_like(p[:, :1] * X)
    same = value.detach()
    same += 1
    return value * p[:, :1]


def _written_after_detaching_twice(p: Tensor) -> Tensor:
    value = torch.zeros_like(p[:, :1] * X)
    same = value.detach().detach()
    same += 1
    return value * p[:, :1]


def _branch(p: Tensor) -> Tensor:
    return p[:, :1] * X if p[0, 0] > 0 else -p[:, :1] * X


def _without_gradient(p: Tensor) -> Tensor:
    with torch.no_grad():
        weight = p[:, 1:2].exp()
    return p[:, :1] * X * weight


def _deep(p: Tensor) -> Tensor:
    value = p[:, :1] * X
    for k in range(3000):
        value = value * 0.9 + k
    return value


def _nine_times_nine_times_nine(p: Tensor) -> Tensor:
    nine = p[:, [0, 1, 2, 3, 0, 1, 2, 3, 0]]
    return nine[:, :, None, None] * nine[:, None, :, None] * nine[:, None, None]


LONG = torch.linspace(0, 1, 100, dtype=torch.float64)

REFUSED: list[tuple[str, str, Function]] = [
    ("sum over the samples", "reduction over 100", lambda p: p * (p[:, :1] * LONG).sum(1, True)),
    ("mean over the samples", "reduction over 100", lambda p: (p[:, :1] * LONG).mean(1)),
    ("sum of everything", "reduction", lambda p: p[:, :1] * p.sum()),
    ("sum over the problems", "reduction", lambda p: p[:, :1] - p[:, :1].mean(0)),
    ("product over the samples", "product over 100", lambda p: (p[:, :1] * LONG) @ LONG[:, None]),
    ("gather", "aten.gather", lambda p: (p[:, :1] * X).gather(1, (p > 1).long())),
    ("searchsorted", "aten.bucketize", lambda p: p * torch.bucketize(p, X)),
    ("in-place into the parameters", "aten.mul_", lambda p: p.mul_(2)),
    ("in-place into data read before", "aten.mul_", _data_changed),
    ("in-place after detach", "detached", _written_after_detach),
    ("in-place after two", "detached", _written_after_detaching_twice),
    ("in-place view", "aten.unsqueeze_", lambda p: (p * 1).unsqueeze_(-1) * X),
    ("float32 in float64", "float32", lambda p: (p[:, :1].float() * X.float()).double()),
    ("conversion to integers", "int64", lambda p: p[:, :1] * (p[:, 1:2] * X).long()),
    ("complex", "complex", lambda p: (torch.exp(1j * p[:, :1]) * X).real),
    ("complex number", "complex", lambda p: (p[:, :1] * torch.tensor(1j) * X).abs()),
    ("item", "aten._local_scalar_dense", lambda p: p[:, :1] * X * p[0, 1].item()),
    ("float", "aten._local_scalar_dense", lambda p: p[:, :1] * X * float(p[0, 1])),
    ("list", "tolist", lambda p: p[:, :1] * X * p.tolist()[0][1]),
    ("array", "numpy", lambda p: p[:, :1] * torch.from_numpy(np.exp(p.numpy()))[:, 1:2]),
    ("asarray", "__array__|numpy", lambda p: p[:, :1] * torch.from_numpy(np.asarray(p) * 2.0)),
    ("dlpack", "dlpack|is_pinned", lambda p: p * torch.from_dlpack(p)),
    ("branch", "aten._local_scalar_dense", _branch),
    ("equal", "aten.equal", lambda p: p * 2 if torch.equal(p, p) else p),
    ("random numbers", "aten.rand_like", lambda p: p * torch.rand_like(p)),
    ("noise", "aten.normal_", lambda p: (p * 1).normal_()),
    ("dropout", "empty_like|bernoulli|native_dropout", lambda p: dropout(p[:, :1] * X)),
    ("fft", "aten._fft", lambda p: torch.fft.rfft(p[:, :1] * X).abs()),
    ("cumsum", "cumulative sum over 100", lambda p: (p[:, :1] * LONG).cumsum(1)),
    ("a piece each", "pieces", lambda p: torch.stack([p[:, 0] * k for k in range(200)], 1)),
    ("sort", "aten.sort", lambda p: (p[:, :1] * X).sort(1)[0]),
    ("convolution", "aten.convolution", lambda p: conv1d(p[:, None], X[None, None, :3])),
    ("inverse", "aten.linalg_inv_ex", lambda p: torch.linalg.inv(p.reshape(-1, 2, 2))),
    ("rounding to decimals", "aten.round", lambda p: torch.round(p[:, :1] * X, decimals=1)),
    ("detach", "aten.detach", lambda p: p[:, :1].detach() * p[:, 1:2] * X),
    ("data", "aten.detach", lambda p: p[:, :1].data * p[:, 1:2] * X),
    ("no_grad", "switched off", _without_gradient),
    ("an own derivative", "switched off", lambda p: _Half.apply(p[:, :1] * X)),  # type: ignore[no-untyped-call]
    ("another problem", "one problem", lambda p: p[:1, :1] * X + p[:, :1]),
    ("problems joined", "problems", lambda p: torch.cat([p[:1], p[1:]])[:, :1] * X),
    ("many short dimensions", "too many short", _nine_times_nine_times_nine),
    ("not a tensor", "list", lambda p: [p]),  # type: ignore[arg-type,return-value]
    ("no elements", "no elements", lambda p: p[:, :0]),
    ("depth", "too many operations", _deep),
]  # fmt: skip


@pytest.mark.parametrize(("what", "named", "function"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused(what: str, named: str, function: Function) -> None:
    with pytest.raises(UntraceableError, match=named):
        trace(function, points())


def test_sparse_data_are_refused() -> None:
    basis = torch.eye(P, dtype=torch.float64).to_sparse()
    with pytest.raises(UntraceableError):
        trace(lambda p: p @ basis, points())


def test_errors_of_the_function_are_its_own() -> None:
    def function(params: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trace(function, points())
