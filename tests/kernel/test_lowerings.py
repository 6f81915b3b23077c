"""Every operation that is traced: against the function itself, forward mode and differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from torchimize import special_functions as special
from torchimize.kernel.lowerings import FUNCTIONS, IN_PLACE, LOWERINGS, UNIFORM
from torchimize.kernel.lowerings.context import DataError
from torchimize.kernel.lowerings.elementwise import BINARY, TRUTH_VALUED, UNARY
from torchimize.kernel.lowerings.views import VIEWS
from torchimize.kernel.trace import Piece, Trace, UntraceableError, trace
from torchimize.lsq.jacobian import FiniteDifference, Forward
from torchimize.lsq.traced import TracedDerivative, TracedFunction

Function = Callable[[Tensor], Tensor]

P, N = 4, 7
X = torch.linspace(0.2, 1.7, N, dtype=torch.float64)
PRIOR = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
MATRIX = torch.linspace(-1.0, 2.0, P * N, dtype=torch.float64).reshape(P, N)


def points(batch: int, seed: int) -> Tensor:
    """Parameters (A, 4) between 0.5 and 2."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 1.5 * torch.rand(batch, P, generator=generator, dtype=torch.float64)


def derivative_of(found: Trace) -> TracedDerivative:
    return TracedDerivative(TracedFunction(found, found.sources, {}))


def assert_right(function: Function, exact: bool = True) -> Trace:
    """Values and columns of a trace at the point where it was made and at another one."""

    def flat(params: Tensor) -> Tensor:
        return function(params).reshape(len(params), -1)

    for batch, virtual in ((3, False), (1, False), (5, True)):
        found = trace(function, points(batch, 0), virtual=virtual)
        for seed in (0, 1):
            params = points(batch, seed)
            value, columns = derivative_of(found)(function, params, None)
            torch.testing.assert_close(value, flat(params), rtol=1e-13, atol=1e-13)
            _, wanted = FiniteDifference(3)(flat, params, None)
            torch.testing.assert_close(columns, wanted, rtol=1e-6, atol=1e-7)
            if exact:
                _, wanted = Forward(vmapped=False)(flat, params, None)
                torch.testing.assert_close(columns, wanted, rtol=1e-11, atol=1e-12)
    return found


def columns_of(params: Tensor) -> list[Tensor]:
    return [params[:, j, None] for j in range(params.shape[1])]


def channels(p: Tensor) -> Tensor:
    a, b, c, d = columns_of(p)
    return torch.stack([a * X, b * X * X + c, torch.exp(-d * X)], 1)


def decay(p: Tensor) -> Tensor:
    return p[:, :1] * torch.exp(-p[:, 1:2] * X) + p[:, 2:3]


# ------------------------------------------------------------------------ functions of numbers

ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "digamma": torch.digamma,
    "psi": torch.special.psi,
    "gammaln": torch.special.gammaln,
    "polygamma 0": lambda x: torch.polygamma(0, x),
    "polygamma 1": lambda x: torch.polygamma(1, x),
    "polygamma 4": lambda x: torch.special.polygamma(4, x),
    "erfcx": torch.special.erfcx,
    "erfinv": lambda x: torch.erfinv(x / 10),
    "ndtr": torch.special.ndtr,
    "ndtri": lambda x: torch.special.ndtri(x / 10),
    "log_ndtr": lambda x: torch.special.log_ndtr(-3 * x),
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "sinc": torch.sinc,
    "sinc of zero": lambda x: torch.sinc(x * (x > 1)),
    "entr": torch.special.entr,
    "logit": lambda x: torch.logit(x / 10),
    "logit with eps": lambda x: torch.logit(x / 5, eps=0.2),
    "frac": torch.frac,
    "degrees": lambda x: torch.deg2rad(x) + torch.rad2deg(x),
    "float_power": lambda x: torch.float_power(x, 2.5),
    "positive": torch.positive,
    "special names": lambda x: (
        torch.special.expit(x) + torch.special.exp2(x) + torch.special.expm1(x)
    ),
    "special erf": lambda x: torch.special.erf(x) - torch.special.erfc(x),
    "sgn": lambda x: x * torch.sgn(x - 1),
    "signbit": lambda x: x * torch.signbit(x - 1),
    "infinite": lambda x: torch.where(torch.isinf(x), 0, x) + torch.isinf(1 / (x * 0)),
    "infinite on one side": lambda x: torch.where(torch.isposinf(x) | torch.isneginf(x), 0.0, x),
    "isclose": lambda x: torch.where(torch.isclose(x, x), x, 0),
    "nan_to_num": lambda x: torch.nan_to_num(torch.where(x > 1, torch.nan, x), 0.3),
    "nan_to_num of infinities": lambda x: torch.nan_to_num(
        torch.where(x > 2, torch.inf, torch.where(x < 1, -torch.inf, x)), posinf=2.0, neginf=1.0
    ),
    "softplus": functional.softplus,
    "softplus with both": lambda x: functional.softplus(x, 2, 1),
    "logsigmoid": functional.logsigmoid,
    "silu": functional.silu,
    "mish": functional.mish,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "elu": lambda x: functional.elu(x - 1),
    "selu": lambda x: functional.selu(x - 1),
    "celu": lambda x: functional.celu(x - 1, 2.0),
    "leaky_relu": lambda x: functional.leaky_relu(x - 1),
    "hardtanh": functional.hardtanh,
    "relu6": functional.relu6,
    "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "fmod": lambda x: torch.fmod(x, 0.7),
    "remainder": lambda x: x % 0.7,
    "division to the floor": lambda x: torch.div(x, 0.7, rounding_mode="floor") * x,
    "division towards zero": lambda x: torch.div(x - 1, 0.7, rounding_mode="trunc") * x,
    "copysign": lambda x: torch.copysign(x, x - 1) + torch.copysign(x, -2.0),
    "exclusive or": lambda x: torch.where((x > 0.5) ^ (x > 1), x, 1.0),
    "logical_xor": lambda x: torch.where(torch.logical_xor(x > 0.5, x > 1), x, 1.0),
    "a sum of truth values is one": lambda x: x * ((x > 0.5) + (x > 1)),
    "to bool": lambda x: x * (x - x.floor()).bool(),
    "data cut off": lambda x: torch.where(x.detach() > 1, x, x * x),
    "nansum": lambda x: torch.where(x > 1, torch.nan, x).nansum(1, True) * X,
    "nanmean": lambda x: torch.where(x > 1, torch.nan, x).nanmean(1, True) * X,
    "horner": lambda x: ((2 * x - 1) * x + 3) * x - 4,
    "legendre": lambda x: special.legendre_polynomial_p(x, 4),
    "hermite": lambda x: special.hermite_polynomial_h(x, 3),
    "laguerre of several degrees": lambda x: special.laguerre_polynomial_l(x, torch.arange(N)),
}

INEXACT = {
    # torch's own derivative is off by 1e-8, and missing
    "hardsigmoid": functional.hardsigmoid,
    "floor division": lambda x: x // 0.7 * x,
}


@pytest.mark.parametrize("name", ONE | INEXACT)
def test_functions_of_one_number(name: str) -> None:
    function = (ONE | INEXACT)[name]
    assert_right(lambda p: function(p[:, :1] * X + 0.1) * p[:, 1:2] + p[:, 2:3], exact=name in ONE)


TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hypot": torch.hypot,
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "xlogy": torch.xlogy,
    "xlog1py": torch.special.xlog1py,
    "xlogy at zero": lambda a, b: torch.xlogy(a * (a > 1), b - 1.5 * (a <= 1)),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3) + torch.lerp(a, b, a / 5),
    "fmax": lambda a, b: torch.fmax(torch.where(a > 1, torch.nan, a), b),
    "fmin": lambda a, b: torch.fmin(a, torch.where(a > 1, torch.nan, b)),
    "copysign": lambda a, b: torch.copysign(a, b - 1.5),
    "fmod": torch.fmod,
    "remainder": lambda a, b: torch.remainder(a - 1, b),
    "max of two": lambda a, b: torch.max(a, b) - torch.min(a * a, b),
    "clamp by tensors": lambda a, b: torch.clamp(a, b * 0.3, b),
    "addcmul": lambda a, b: torch.addcmul(a, b, a, value=2.0) - torch.addcdiv(a, a, b),
    "distance": lambda a, b: functional.pairwise_distance(torch.stack([a, b], -1), PRIOR[:2]),
}


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_numbers(name: str) -> None:
    function = TWO[name]
    assert_right(lambda p: function(p[:, :1] * X + 0.1, p[:, 1:2] + X * p[:, 2:3]) * p[:, 3:])


def test_heaviside() -> None:
    def function(p: Tensor) -> Tensor:
        return torch.heaviside(p[:, :1] * X - 1, X) * p[:, 1:2] + torch.heaviside(X * 0, p[:, 2:3])

    assert_right(function, exact=False)


PACKAGED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "airy_ai": lambda a, b: special.airy_ai(a - b),
    "bessel_j0": lambda a, b: special.bessel_j0(a * b),
    "bessel_j1": lambda a, b: special.bessel_j1(a * b),
    "bessel_y0": lambda a, b: special.bessel_y0(a * b),
    "bessel_y1": lambda a, b: special.bessel_y1(a * b),
    "modified_bessel_i0": lambda a, b: special.modified_bessel_i0(a - b),
    "modified_bessel_i1": lambda a, b: special.modified_bessel_i1(a - b),
    "modified_bessel_k0": lambda a, b: special.modified_bessel_k0(a * b),
    "modified_bessel_k1": lambda a, b: special.modified_bessel_k1(a * b),
    "scaled_modified_bessel_k0": lambda a, b: special.scaled_modified_bessel_k0(a * b),
    "scaled_modified_bessel_k1": lambda a, b: special.scaled_modified_bessel_k1(a * b),
    "spherical_bessel_j0": lambda a, b: special.spherical_bessel_j0(a - b),
    "faddeeva_real": lambda a, b: special.faddeeva_real(a, b),
    "faddeeva_imag": lambda a, b: special.faddeeva_imag(a - 1, b),
    "voigt_profile": lambda a, b: special.voigt_profile(a, b, 0.3),
    "voigt_profile of its width": lambda a, b: special.voigt_profile(X - 1, a, b),
    "gammainc": special.gammainc,
    "gammaincc": special.gammaincc,
    "zeta": lambda a, b: special.zeta(a + 1.5, b),
    "cube_root": lambda a, b: special.cube_root(a - b),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_special_functions_are_known_as_a_whole(name: str) -> None:
    function = PACKAGED[name]
    found = assert_right(
        lambda p: function(p[:, :1] * X + 0.1, p[:, 1:2] + X * p[:, 2:3]) * p[:, 3:]
    )
    assert {n.op for n in found.order} & set(FUNCTIONS.values()), "not as a whole"


@pytest.mark.parametrize("name", [n for n in PACKAGED if hasattr(torch.special, n)])
def test_torchs_functions_corrected(name: str) -> None:
    # as a face calls them, and as NumPy's words do
    def function(p: Tensor) -> Tensor:
        with special.CorrectDerivatives():
            if name in ("gammainc", "gammaincc"):
                return getattr(torch.special, name)(p[:, :1] + X, p[:, 1:2] * X)  # type: ignore[no-any-return]
            if name == "zeta":
                return torch.special.zeta(p[:, :1] + X + 1, p[:, 1:2])
            return getattr(torch.special, name)(p[:, :1] * X) + p[:, 1:2]  # type: ignore[no-any-return]

    found = assert_right(function)
    assert {n.op for n in found.order} & set(FUNCTIONS.values())


def test_torchs_functions_as_they_are() -> None:
    # their own derivatives are silently zero; the graph's are right
    def function(p: Tensor) -> Tensor:
        x = p[:, :1] * X
        return torch.special.modified_bessel_k0(x) + torch.special.spherical_bessel_j0(x)

    assert_right(function, exact=False)


def test_special_functions_of_data_alone() -> None:
    found = assert_right(lambda p: p[:, :1] * special.bessel_j0(X) + p[:, 1:2])
    assert not {n.op for n in found.order} & set(FUNCTIONS.values())


# ----------------------------------------------------------------------- what follows what


PIECES: dict[str, tuple[Function, list[tuple[int, int, int]]]] = {
    # start, length and step of each piece
    "channels flattened": (
        lambda p: channels(p).flatten(1),
        [(0, N, 1), (N, N, 1), (2 * N, N, 1)],
    ),
    "channels reshaped": (
        lambda p: channels(p).reshape(len(p), -1)[:, 2:],
        [(0, N - 2, 1), (N - 2, N, 1), (2 * N - 2, N, 1)],
    ),
    "channels interleaved": (
        lambda p: channels(p).transpose(1, 2).flatten(1),
        [(0, N, 3), (1, N, 3), (2, N, 3)],
    ),
    "pairs": (
        lambda p: torch.stack([p[:, :1] * X, p[:, 1:2] + X], -1).reshape(len(p), -1),
        [(0, N, 2), (1, N, 2)],
    ),
    "pairs without the last": (
        lambda p: torch.stack([p[:, :1] * X, p[:, 1:2] + X], -1).flatten(1)[:, :-1],
        [(0, N, 2), (1, N - 1, 2)],
    ),
    "parameters after the data": (
        lambda p: torch.cat([decay(p), 0.1 * (p - PRIOR)], -1),
        [(0, N, 1), *((N + k, 1, 1) for k in range(P))],
    ),
    "parameters alone": (lambda p: p * 2 - PRIOR, [(k, 1, 1) for k in range(P)]),
    "parameters reordered": (lambda p: p[:, [2, 0]], [(0, 1, 1), (1, 1, 1)]),
    "samples one by one": (
        lambda p: torch.stack([p[:, 0] * torch.exp(-p[:, 1] * t) for t in X.tolist()], 1),
        [(k, 1, 1) for k in range(N)],
    ),
    "shifted around": (lambda p: decay(p).roll(2, 1), [(0, 2, 1), (2, N - 2, 1)]),
    "shifted back": (lambda p: decay(p).roll((-1, 0), (1, 0)), [(0, N - 1, 1), (N - 1, 1, 1)]),
    "padded": (
        lambda p: functional.pad(decay(p), (1, 2), value=3.0),
        [(0, 1, 1), (1, N, 1), (N + 1, 2, 1)],
    ),
    "cropped": (lambda p: functional.pad(decay(p), (-1, 2)), [(0, N - 1, 1), (N - 1, 2, 1)]),
    "repeated": (lambda p: decay(p).repeat(1, 2) * p[:, 3:], [(0, N, 1), (N, N, 1)]),
    "each twice": (lambda p: decay(p).repeat_interleave(2, 1), [(0, N, 2), (1, N, 2)]),
    "some samples": (lambda p: decay(p)[:, [0, 1, 2, 5, 6]], [(0, 3, 1), (3, 2, 1)]),
    "some samples, far apart": (lambda p: decay(p)[:, [0, 1, 5]], [(0, 1, 1), (1, 2, 1)]),
    "samples by a mask": (lambda p: decay(p)[:, X > 0.6], [(0, 5, 1)]),
    "samples backwards": (lambda p: decay(p).flip(1), [(0, N, 1)]),
    "differences": (lambda p: torch.diff(decay(p), prepend=p[:, :1]), [(0, 1, 1), (1, N - 1, 1)]),
    "gradient": (
        lambda p: torch.gradient(decay(p), dim=1)[0],
        [(0, 1, 1), (1, N - 2, 1), (N - 1, 1, 1)],
    ),
    "running sum": (lambda p: decay(p).cumsum(1), [(k, 1, 1) for k in range(N)]),
    "mapped over problems": (
        lambda p: torch.vmap(lambda q: torch.cat([q[0] * torch.exp(-q[1] * X), q[2:]]))(p),
        [(0, N, 1), (N, 1, 1), (N + 1, 1, 1)],
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces(name: str) -> None:
    function, wanted = PIECES[name]
    found = assert_right(function)
    assert [(piece.start, piece.length, piece.step) for piece in found.pieces] == wanted


def test_samples_of_a_piece() -> None:
    piece = Piece((), 1, 3, trace(decay, points(2, 0)).pieces[0].node, 4)
    assert list(range(20))[piece.samples] == [1, 5, 9]


# -------------------------------------------------------------------- short dimensions and views


SHORT: dict[str, Function] = {
    "matrix times vector": lambda p: (p @ PRIOR)[:, None] * X,
    "matrix times vector by name": lambda p: torch.mv(p, PRIOR)[:, None] * X,
    "dot": lambda p: torch.stack([torch.dot(PRIOR, PRIOR * 2)]) * p,
    "dot of one problem's": lambda p: torch.vmap(lambda q: torch.dot(q, PRIOR) * X)(p),
    "vecdot": lambda p: torch.linalg.vecdot(p, p + PRIOR)[:, None] * X,
    "einsum": lambda p: torch.einsum("bp,pn->bn", p, MATRIX),
    "einsum of three": lambda p: torch.einsum("bi,bj,in->bn", p, p, MATRIX),
    "linear": lambda p: functional.linear(p, MATRIX.T, X),
    "addmm": lambda p: torch.addmm(X, p, MATRIX, beta=0.5, alpha=2),
    "addmm without the first": lambda p: torch.addmm(X * torch.nan, p, MATRIX, beta=0),
    "addmv": lambda p: torch.addmv(p[:, 0], p, PRIOR)[:, None] * X,
    "baddbmm": lambda p: torch.baddbmm(
        X.expand(len(p), 1, N), p[:, None], MATRIX.expand(len(p), P, N)
    )[:, 0],
    "tensordot": lambda p: torch.tensordot(p, MATRIX, 1),
    "inner": lambda p: torch.inner(p, MATRIX.T),
    "outer": lambda p: torch.vmap(lambda q: torch.outer(q[:2], X))(p).sum(1),
    "indices as a list": lambda p: p[:, [0, 2]].sum(1, True) * X + p[:, [3]],
    "indices as a tensor": lambda p: p[:, torch.tensor([2, 0, 1])][:, :1] * X,
    "negative indices": lambda p: p[:, [-1, -2]][:, 1:] * X,
    "indices in two dimensions": lambda p: channels(p)[:, [0, 1], [2, 3]].sum(1, True) * X,
    "indices of indices": lambda p: p[:, torch.tensor([[0, 1], [2, 3]])].sum(2) @ MATRIX[:2],
    "indices apart": lambda p: channels(p)[:, [0, 1], :][:, :, [0, 1]].sum((1, 2))[:, None] * X,
    "a channel twice": lambda p: channels(p)[:, [0, 0, 2]].sum(1),
    "index_select": lambda p: p.index_select(1, torch.tensor([1, 3]))[:, 1:] * X,
    "a new dimension": lambda p: (p[..., None] * X).sum(1),
    "chunks": lambda p: p.chunk(2, 1)[1][:, :1] * X + p.tensor_split(3, 1)[0][:, :1],
    "parameters backwards": lambda p: p.flip(1)[:, :1] * X + p.fliplr()[:, 1:2],
    "backwards twice": lambda p: (p[:, :1] * X + (p[:, 1:2] * X).flip(-1)).flip(1),
    "diagonal": lambda p: (p[:, :2, None] * p[:, None, 1:3]).diagonal(0, 1, 2).sum(1, True) * X,
    "second diagonal": lambda p: torch.diagonal(p[:, :, None] * p[:, None], 1, 1, 2)[:, :1] * X,
    "triangles": lambda p: (
        (
            torch.tril(p[:, :3, None] * MATRIX[:3, :3])
            - torch.triu(p[:, 1:, None] * p[:, None, 1:], 1)
        ).sum((1, 2))[:, None]
        * X
    ),
    "cross": lambda p: torch.linalg.cross(p[:, :3], PRIOR[:3].expand(len(p), 3)) @ MATRIX[:3],
    "norm": lambda p: torch.linalg.norm(p[:, :3], dim=1, keepdim=True) * X,
    "norm 1": lambda p: torch.linalg.vector_norm(p[:, :3] - 1, 1, dim=1, keepdim=True) * X,
    "largest": lambda p: torch.linalg.vector_norm(p - 1, math.inf, dim=1, keepdim=True) * X,
    "smallest": lambda p: torch.linalg.vector_norm(p - 3, -math.inf, dim=1, keepdim=True) * X,
    "norm 3": lambda p: torch.norm(p[:, :3], 3, dim=1, keepdim=True) * X,
    "variance": lambda p: p.var(1, keepdim=True) * X + p.var(1, correction=0)[:, None],
    "deviation": lambda p: p.std(1, unbiased=False, keepdim=True) * X,
    "softmax": lambda p: (torch.softmax(p[:, :3], 1)[..., None] * MATRIX[:3]).sum(1),
    "log_softmax": lambda p: torch.log_softmax(p, 1)[:, :1] * X,
    "logsumexp": lambda p: torch.logsumexp(p, 1, keepdim=True) * X,
    "largest by dimension": lambda p: p.max(1, keepdim=True)[0] * X + p.min(1, True).values,
    "any, all": lambda p: (
        torch.where((p > 1).any(1, True), p[:, :1] * X, X) + (p > 0.6).all(1, True) * p[:, 1:2]
    ),
    "running sum of parameters": lambda p: p.cumsum(1)[:, 1:2] * X,
    "running product of parameters": lambda p: p.cumprod(1) - PRIOR,
    "trapezoids": lambda p: torch.trapezoid(torch.exp(-p[:, :1] * X), X)[:, None] * p[:, 1:],
    "tiled": lambda p: torch.tile(p[:, :2], (1, 3))[:, 4:5] * X,
    "mapped over problems": lambda p: torch.vmap(lambda q: q[0] * torch.exp(-q[1] * X) + q[2])(p),
}


@pytest.mark.parametrize("name", SHORT)
def test_short_dimensions(name: str) -> None:
    found = assert_right(SHORT[name])
    # what is short is unrolled, what is long stays whole
    assert len(found.pieces) == (1 if found.trailing[0] == N else found.trailing[0])


def test_a_small_network() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)]
    network = torch.nn.Sequential(*layers).double().requires_grad_(False)
    assert_right(lambda p: network(X[:, None] * p[:, None, :1])[..., 0] + p[:, 1:2])


def test_data_of_lower_precision() -> None:
    # torch promotes them, each number exactly
    assert_right(lambda p: p[:, :1] * X.float() + p[:, 1:2] * X.to(torch.bfloat16))


def test_data_made_in_the_function() -> None:
    def function(p: Tensor) -> Tensor:
        x, counts = torch.linspace(0, 1, N, dtype=p.dtype), torch.arange(N)
        ones = torch.ones(len(p), 1, dtype=p.dtype)
        twos = torch.full((len(p), N), 2.0, dtype=p.dtype)
        unit = torch.eye(P, dtype=p.dtype)
        value = p[:, :1] * x + counts * p[:, 1:2] * ones + twos * p[:, 2:3] + (p @ unit)[:, 3:]
        offset = p.new_tensor([1.0, 2, 3, 4, 5, 6, 7]) + torch.tensor([1.0])
        return value + offset + torch.zeros_like(x) + torch.full_like(x, 0.5) * p[:, :1]

    found = assert_right(function)
    # x, counts, unit, offset: a tensor of one value is that value
    assert len(found.sources) == 4


# ------------------------------------------------------------------------------------- images

HEIGHT, WIDTH = 9, 11
ROWS = torch.linspace(-1.0, 1.0, HEIGHT, dtype=torch.float64)[:, None]
COLUMNS = torch.linspace(-1.0, 1.5, WIDTH, dtype=torch.float64)
GRID = (ROWS * 2 + COLUMNS).contiguous()
STRIDED = torch.rand(
    2 * WIDTH, HEIGHT, generator=torch.Generator().manual_seed(3), dtype=torch.float64
).T[:, ::2]


def spot(p: Tensor) -> Tensor:
    a, b, c, d = (p[:, j, None, None] for j in range(P))
    return a * torch.exp(-((ROWS - b) ** 2 + (COLUMNS - c) ** 2)) + d


IMAGES: dict[str, Function] = {
    "rows and columns": spot,
    "a grid": lambda p: p[:, :1, None] * torch.sin(p[:, 1:2, None] * GRID) + p[:, 2:3, None],
    "a grid laid out otherwise": lambda p: p[:, :1, None] * STRIDED + spot(p),
    "part of a grid": lambda p: p[:, :1, None] * GRID[:, 2:] - (spot(p) * GRID)[:, :, 1:-1],
    "on its side": lambda p: (spot(p) * GRID).transpose(1, 2),
    "truth values": lambda p: torch.where(GRID > 0.3, spot(p), p[:, :1, None] * (ROWS > 0)),
    "one behind the other": lambda p: spot(p).flatten(1) * p[:, 1:2],
    "data one behind the other": lambda p: spot(p).flatten(1) * GRID.flatten() + GRID.view(-1),
    "one behind the other and back": lambda p: (
        (spot(p).flatten(1) * GRID.flatten()).reshape(len(p), HEIGHT, WIDTH) - COLUMNS
    ),
    "nine by nine by eleven": lambda p: spot(p)[:, None] * ROWS[:, None] + GRID[:, None, :] ** 2,
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_one_run_of_samples(name: str) -> None:
    found = assert_right(IMAGES[name])
    (piece,) = found.pieces
    shape = tuple(IMAGES[name](points(3, 0)).shape[1:])
    assert found.trailing == shape
    assert found.layout == (math.prod(shape),) and piece.length == math.prod(shape)


def test_images_of_several_channels() -> None:
    def function(p: Tensor) -> Tensor:
        return torch.stack([spot(p), p[:, :1, None] * GRID, spot(p).square()], 1)

    found = assert_right(function)
    assert found.trailing == (3, HEIGHT, WIDTH)
    assert found.layout == (3, HEIGHT * WIDTH) and found.sample_dim == 1
    assert [piece.position for piece in found.pieces] == [(0, 0), (1, 0), (2, 0)]


def test_images_that_change_along_their_rows() -> None:
    def function(p: Tensor) -> Tensor:
        return torch.cat([spot(p)[:, :4], spot(p)[:, 4:] * GRID[4:]], 1) + p[:, :1, None]

    found = assert_right(function)
    assert found.layout == found.trailing == (HEIGHT, WIDTH) and len(found.pieces) == HEIGHT


def test_images_backwards() -> None:
    found = assert_right(lambda p: spot(p).flip(1, 2) * GRID)
    assert len(found.pieces) == HEIGHT, "memory is read forwards only"


# ------------------------------------------------------------------------------ memory written to


def items_of_zeros(p: Tensor) -> Tensor:
    out = torch.zeros(len(p), N, dtype=p.dtype)
    out[:, :3] = p[:, :1] * X[:3]
    out[:, 3:-1] = p[:, 1:2] * X[3:-1]
    return out


def channels_of_nothing(p: Tensor) -> Tensor:
    out = torch.empty(len(p), 2, N, dtype=p.dtype)
    out[:, 0] = p[:, :1] * X
    out[:, 1] = p[:, 1:2] + out[:, 0]
    return out


def views_see_what_is_written(p: Tensor) -> Tensor:
    out = p[:, :1] * X
    before = out * 1
    view = out[:, 2:]
    out[:, 1:4] += p[:, 1:2]
    out[:, 0].mul_(p[:, 2])
    out += 1
    return out * view[:, :1] - before


def a_view_is_written_before_its_base_is_read(p: Tensor) -> Tensor:
    value = p[:, :1] * X
    value[:, 0].add_(1.0)
    value[:, 2] = p[:, 1]
    return value


def every_other(p: Tensor) -> Tensor:
    out = torch.zeros(len(p), N, dtype=p.dtype)
    out[:, ::2] = p[:, :1]
    out[:, 1::2] = p[:, 1:2] * X[1::2]
    return out


def the_other_way_round(p: Tensor) -> Tensor:
    out = torch.zeros(N, len(p), dtype=p.dtype)
    out[:] = (p[:, :1] * X).T
    out.T[:, 2] = p[:, 3]
    return out.T


def through_another_shape(p: Tensor) -> Tensor:
    out = torch.zeros(len(p), 2 * N, dtype=p.dtype)
    out.view(len(p), 2, N)[:, 1] = p[:, :1] * X
    return out + p[:, 1:2]


def a_matrix_by_elements(p: Tensor) -> Tensor:
    matrix = torch.zeros(len(p), 2, 2, dtype=p.dtype)
    matrix[:, 0, 0] = p[:, 0].cos()
    matrix[:, 0, 1] = -p[:, 0].sin()
    matrix[:, 1, 1] = 1
    return (matrix @ torch.stack([X, X**2]) * p[:, 1, None, None]).sum(1)


def copied(p: Tensor) -> Tensor:
    return torch.empty(len(p), N, dtype=p.dtype).copy_(p[:, :1] * X) + torch.empty_like(
        p[:, :1]
    ).fill_(2.0)


def erased(p: Tensor) -> Tensor:
    value = p[:, :1] * X
    value[:, 1:3].zero_()
    value[:, 3].fill_(7.0)
    return value * p[:, 1:2]


def a_mask_fills(p: Tensor) -> Tensor:
    value = p[:, :1] * X
    value.masked_fill_(value > 1.5, 2.0)
    return value.clamp_(max=1.9).add_(p[:, 1:2])


def a_view_of_data_taken_before(p: Tensor) -> Tensor:
    out = torch.ones(len(p), N, dtype=p.dtype)
    first = out[:, :2]
    out *= p[:, :1] * X
    return out * first[:, 1:]


def data_of_a_view_taken_before(p: Tensor) -> Tensor:
    out = torch.ones(len(p), N, dtype=p.dtype)
    first, last = out[:, :2], out[:, -1:]
    out *= p[:, :1] * X
    return torch.cat([first.square(), last * 2], 1) + p[:, 1:2]


def filled_with_data(p: Tensor) -> Tensor:
    out = torch.zeros(len(p), N, dtype=p.dtype)
    out[:, 1:] = X[1:]
    out[:, 0] = 3.0
    out *= p[:, :1]
    return out


def accumulated_over_parts(p: Tensor) -> Tensor:
    out = torch.zeros(len(p), 3 * N, dtype=p.dtype)
    for k in range(3):
        out[:, k * N : (k + 1) * N] += p[:, k, None] * X
    out[:, N // 2 : -N] -= p[:, 3:]
    return out


WRITES = [
    *(items_of_zeros, channels_of_nothing, views_see_what_is_written, every_other, copied, erased),
    *(a_view_is_written_before_its_base_is_read, the_other_way_round, through_another_shape),
    *(data_of_a_view_taken_before, a_matrix_by_elements, a_mask_fills),
    *(a_view_of_data_taken_before, filled_with_data),
    accumulated_over_parts,
]


@pytest.mark.parametrize("function", WRITES, ids=lambda f: f.__name__)
def test_memory_written_to(function: Function) -> None:
    assert_right(function)


def _one_element_of_many(p: Tensor) -> Tensor:
    out = (p[:, :1] * 1).expand(len(p), N)
    out[:, :1].add_(1)
    return out * X


def _data_of_the_outside(p: Tensor) -> Tensor:
    value = p[:, :1] * OUTSIDE
    OUTSIDE[1] = 2.0
    return value


def _read_then_written(p: Tensor) -> Tensor:
    data = X.clone()
    value = p[:, :1] * data
    data += p[:, 1:2].mean()
    return value


def _nothing_written(p: Tensor) -> Tensor:
    return torch.empty_like(p[:, :1]) * X


def _some_problems(p: Tensor) -> Tensor:
    out = p * 1
    out[1:] = 2.0
    return out


def _shared_memory_without_a_base(p: Tensor) -> Tensor:
    out = torch.zeros(len(p), N, dtype=p.dtype)
    same = out.detach()
    out += p[:, :1]
    return p * (same * X).sum()


def _not_contiguous(p: Tensor) -> Tensor:
    out = torch.zeros_like(torch.zeros(N, len(p), dtype=p.dtype).T)
    out[:, :2] = p[:, :1]
    return out


def _into_single_precision(p: Tensor) -> Tensor:
    return torch.zeros(len(p), N).add_(p[:, :1] * X) + p[:, :1]


def _into_whole_numbers(p: Tensor) -> Tensor:
    return torch.zeros(len(p), N, dtype=torch.int64).copy_(p[:, :1] * X) * p[:, :1]


def _special_without_differentiation(p: Tensor) -> Tensor:
    x = p[:, :1] * X
    with torch.no_grad():
        return special.bessel_j0(x)


OUTSIDE = X.clone()

REFUSED: list[tuple[str, str, Function]] = [
    ("memory shown more than once", "stands for many", _one_element_of_many),
    ("data read before", "aten.fill_|changed", _data_of_the_outside),
    ("data read before, by parameters", "aten.add_", _read_then_written),
    ("memory never written", "never written", _nothing_written),
    ("some of the problems", "some of the problems", _some_problems),
    ("shared memory", "shares memory", _shared_memory_without_a_base),
    ("no order of elements", "not contiguous", _not_contiguous),
    ("into single precision", "float32", _into_single_precision),
    ("into whole numbers", "int64", _into_whole_numbers),
    ("a special function alone", "bessel_j0 runs where", _special_without_differentiation),
    ("complex data", "complex", lambda p: (p[:, :1] * X.to(torch.complex128)).real),
    ("an index by parameters", "aten.index", lambda p: X[(p[:, :1] > 1).long()] * p),
    ("a gather by data", "aten.gather", lambda p: p.gather(1, torch.zeros(len(p), P).long())),
    ("roll of everything", "aten.roll", lambda p: (p[:, :1] * X).roll(1)),
    ("another problem's", "one problem", lambda p: p.flip(0) * 2),
    ("problems shifted around", "problem", lambda p: p.roll(1, 0) * 2),
    ("order 5", "order 5", lambda p: torch.polygamma(5, p)),
    ("order 0", "order 0", lambda p: torch.linalg.vector_norm(p, 0, dim=1)),
    ("the position of a maximum", "position", lambda p: p.max(1)[1] * p[:, 0]),
    ("memory read as integers", "int64", lambda p: p.view(torch.int64) * 1.0),
    ("whole numbers by bits", "whole numbers", lambda p: (p * 0 + 1) * (COUNT(p) & 1)),
    ("a long running sum", "cumulative", lambda p: (p[:, :1] * torch.ones(30).double()).cumsum(1)),
    ("pieces without end", "pieces", lambda p: (p[:, :1] * torch.ones(200).double())[:, BACK]),
]

BACK = (torch.arange(200) ** 2) % 199


def COUNT(p: Tensor) -> Tensor:
    return (p > 1).sum(1, True)


@pytest.mark.parametrize(("what", "named", "function"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused(what: str, named: str, function: Function) -> None:
    with pytest.raises(UntraceableError, match=named):
        found = trace(function, points(3, 0))
        derivative_of(found)


def test_data_of_higher_precision_are_refused() -> None:
    with pytest.raises(UntraceableError, match="float64"):
        trace(lambda p: p[:, :1] * X, points(3, 0).float())


def test_an_argument_of_another_problem_is_refused() -> None:
    own = points(3, 5)
    for function in (lambda p: p * own.mean(0), lambda p: p * own.flip(0), lambda p: p + own[:1]):
        with pytest.raises(UntraceableError, match="one problem"):
            trace(function, points(3, 0), [own])


def test_what_has_to_do_with_data_only_is_told_apart() -> None:
    own = MATRIX[:3]
    prepared: list[Function] = [
        lambda p: p[:, :1] * own.sort(1)[0],
        lambda p: p[:, :1] * own.repeat(1, 30).sum(1, True),
        lambda p: p[:, :1] * own.flip(1),
        lambda p: p[:, :1] * own[:, [0, 2, 1]],
    ]
    for function in prepared:
        with pytest.raises(DataError):
            trace(function, points(3, 0), [own])
    with pytest.raises(UntraceableError) as caught:
        trace(lambda p: (p[:, :1] * own).sort(1)[0], points(3, 0), [own])
    assert not isinstance(caught.value, DataError)


def test_slopes_at_corners_are_torchs() -> None:
    def function(p: Tensor) -> Tensor:
        a, b, c, d = columns_of(p)
        zero = a - b
        parts = [
            *(torch.copysign(zero, c), torch.hypot(a, b), torch.logaddexp(a, b)),
            *(functional.hardtanh(zero, 0.0, 1.0), functional.elu(zero), torch.sinc(zero)),
            *(functional.leaky_relu(zero), functional.softplus(zero), functional.logsigmoid(zero)),
            torch.linalg.vector_norm(torch.cat([zero, zero], 1), dim=1, keepdim=True),
            *(torch.xlogy(zero, d), torch.special.i1(zero), torch.special.i1e(zero)),
            *(torch.cat([a, b, c], 1).max(1, keepdim=True)[0], torch.cat([a, b], 1).amin(1, True)),
        ]
        return torch.cat(parts, 1)

    params = torch.tensor([[1.0, 1.0, 0.5, 2.0]], dtype=torch.float64)
    value, columns = derivative_of(trace(function, params))(function, params, None)
    wanted_value, wanted = Forward(vmapped=False)(function, params, None)
    torch.testing.assert_close(value, wanted_value, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(columns, wanted, rtol=1e-14, atol=1e-15)


# ---------------------------------------------------------------------------- names of the tables


def in_domain(name: str, x: Tensor) -> Tensor:
    """Numbers between 0 and 4 moved to where a function is defined and smooth."""
    if name in ("asin", "acos", "atanh", "erfinv", "special_ndtri"):
        return x / 5 + 0.1
    return x + 1.1 if name in ("acosh", "special_zeta") else x + 0.1


# off by up to 3e-6 (see the package's special functions), and so would be the comparison
IMPRECISE = {f"special_bessel_{name}" for name in ("j0", "j1", "y0", "y1")} | {"special_airy_ai"}


@pytest.mark.parametrize("name", UNARY)
def test_names_of_functions_of_one_number(name: str) -> None:
    operation = getattr(torch.ops.aten, name)

    def function(p: Tensor) -> Tensor:
        return operation(in_domain(name, p[:, :1] * X)) * p[:, 1:2]  # type: ignore[no-any-return]

    found = trace(function, points(3, 0))
    assert UNARY[name] in {node.op for node in found.order}
    value, columns = derivative_of(found)(function, points(3, 1), None)
    tolerance = 1e-5 if name in IMPRECISE else 1e-12
    torch.testing.assert_close(value, function(points(3, 1)), rtol=tolerance, atol=tolerance)
    _, wanted = FiniteDifference(3)(function, points(3, 1), None)
    if name not in IMPRECISE:
        torch.testing.assert_close(columns, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", BINARY)
def test_names_of_functions_of_two_numbers(name: str) -> None:
    operation = getattr(torch.ops.aten, name)

    def function(p: Tensor) -> Tensor:
        a, b = in_domain(name, p[:, :1] * X), p[:, 1:2] + X / 10
        return operation(a, b) * p[:, 2:3]  # type: ignore[no-any-return]

    found = trace(function, points(3, 0))
    assert BINARY[name] in {node.op for node in found.order}
    value, columns = derivative_of(found)(function, points(3, 1), None)
    torch.testing.assert_close(value, function(points(3, 1)), rtol=1e-13, atol=1e-13)
    _, wanted = FiniteDifference(3)(function, points(3, 1), None)
    torch.testing.assert_close(columns, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LOWERINGS.keys() | VIEWS.keys() | IN_PLACE.keys() | UNIFORM.keys())
def test_names_are_torchs(name: str) -> None:
    assert hasattr(torch.ops.aten, name)


@pytest.mark.parametrize("name", sorted(TRUTH_VALUED))
def test_truth_values_without_numbers(name: str) -> None:
    """What a virtual run takes for a truth value is one."""
    values = (X > 1, X < 1.5) if name.startswith("bitwise") else (X, X)
    count = 1 if name.endswith(("not", "bit")) or name.startswith("is") else 2
    assert getattr(torch.ops.aten, name)(*values[:count]).dtype == torch.bool
