"""Synthetic workloads: batches of small fits of one model, with noise and a known truth.

============ =================================================== ==== ======= ==================
name         model f(x; p)                                        P   N       noise
============ =================================================== ==== ======= ==================
``W1``       a·exp(−((X−cx)² + (Y−cy)²) / (2s²)) + b              5   225     Poisson counts
``W2``       a·exp(−x/T) + b                                      3   20      N(0, 5²)
``W3``       a₁·exp(−x/T₁) + a₂·exp(−x/T₂) + b                    5   64      N(0, 1)
``W4``       a·exp(−z²/2)·(1 + erf(ηz/√2)), z = (x−μ)/σ           4   2×2000  N(0, 0.01²)
``W5``       Σₖ aₖ·exp(−((x−μₖ)/sₖ)²/2), five peaks               15  500     N(0, 0.02²)
``gauss1d``  a·exp(−(x−c)²/(2s²)) + b                             4   50      N(0, 1)
============ =================================================== ==== ======= ==================

Everything is drawn in float64 from the seed alone and then rounded to the dtype asked for, so a
float32 workload is the float64 one, rounded. More than :data:`BLOCK` problems come in blocks, each
from a seed of its own: a larger workload begins with the blocks of a smaller one. SciPy is needed
by :func:`best_costs` and by the NumPy form of ``W4`` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SOLVED", "Workload", "best_costs", "costs", "make", "names"]

SOLVED = 1.001
"""A fit counts as solved where its cost is at most this much of the best known one."""

BLOCK = 10_000
"""Problems that are drawn at a time, so that 10⁶ need little more memory than they take."""

STRIDE = 1_000_003
"""From one block's seed to the next one's."""

Parameter = Tensor | float
TorchModel = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Workload:
    """B fits of one model: P parameters, C channels of N samples. All tensors share a dtype.

    Attributes
    ----------
    name : str
    x : Tensor (C·N,) or (k, N)
        The variable, or k variables, shared by all problems; repeated for each channel.
    y : Tensor (B, C·N)
        Noisy data, channel after channel.
    truth, start : Tensor (B, P)
        Parameters behind the data, and where a fit begins.
    channels : int
        C.
    model : callable
        ``model(x, *params)`` in torch functions; each parameter a number or a tensor that
        broadcasts against (..., C·N).
    model_numpy : callable
        The same with NumPy's and SciPy's functions.
    jacobian : callable
        ``jacobian(x, *params)``: the model's derivatives, (..., C·N, P).
    """

    name: str
    x: Tensor
    y: Tensor
    truth: Tensor
    start: Tensor
    channels: int
    model: TorchModel
    model_numpy: Callable[..., Any]
    jacobian: TorchModel

    def residual(self, p: Tensor, y: Tensor) -> Tensor:
        """Model minus data: (A, P) and (A, C·N) to (A, C, N), for any A of the problems."""
        value = self.model(self.x.to(p), *_columns(p)) - y
        return value.reshape(p.shape[0], self.channels, -1)

    def residual_jacobian(self, p: Tensor, y: Tensor) -> Tensor:
        """Derivatives of :meth:`residual`: (A, P) to (A, C, N, P)."""
        value = self.jacobian(self.x.to(p), *_columns(p))
        return value.reshape(p.shape[0], self.channels, -1, p.shape[1])


def names() -> tuple[str, ...]:
    """All names, in the order of the table."""
    return tuple(_MAKERS)


def make(
    name: str, num_problems: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Workload:
    """Draw a workload.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    num_problems : int
        B.
    dtype : torch.dtype, default float64
    seed : int, default 0

    Raises
    ------
    ValueError
        Unknown name.

    Examples
    --------
    >>> workload = make("W2", 10)
    >>> workload.residual(workload.start, workload.y).shape
    torch.Size([10, 1, 20])
    """
    if name not in _MAKERS:
        raise ValueError(f"no workload {name!r}; wanted one of {names()}")
    x, *drawn, channels, functions = _MAKERS[name](_Draw(seed), min(BLOCK, num_problems))
    y, truth, start = (part.new_empty(num_problems, part.shape[1], dtype=dtype) for part in drawn)
    for block, begin in enumerate(range(0, num_problems, BLOCK)):
        if block:
            size = min(BLOCK, num_problems - begin)
            _, *drawn, _, _ = _MAKERS[name](_Draw(seed + block * STRIDE), size)
        for whole, part in zip((y, truth, start), drawn, strict=True):
            whole[begin : begin + BLOCK] = part
    return Workload(name, x.to(dtype).contiguous(), y, truth, start, channels, *functions)


def costs(workload: Workload, params: Tensor) -> Tensor:
    """½ Σ r² of every problem, (B,) in float64, at parameters (B, P) of any dtype."""
    x, y, params = workload.x.double(), workload.y.double(), params.double()
    return 0.5 * (workload.model(x, *_columns(params)) - y).square().sum(-1)


def best_costs(workload: Workload) -> Tensor:
    """The lower of the costs that MINPACK reaches from truth and from start: (B,) in float64."""
    import scipy.optimize

    x = workload.x.double()
    x_numpy = x.numpy()

    def best(row: int) -> float:
        y = workload.y[row].double().numpy()
        found = [
            scipy.optimize.least_squares(
                lambda p: workload.model_numpy(x_numpy, *p) - y,
                begin[row].double().numpy(),
                jac=lambda p: workload.jacobian(x, *torch.as_tensor(p)).numpy(),
                method="lm",
                x_scale="jac",
                ftol=1e-13,
                xtol=1e-13,
                gtol=1e-13,
            ).cost
            for begin in (workload.truth, workload.start)
        ]
        return float(min(found))

    return torch.tensor([best(row) for row in range(len(workload.y))], dtype=torch.float64)


class _Draw:
    """Random numbers in float64 from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(*shape, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * unit

    def normal(self, sigma: float, *shape: int) -> Tensor:
        return sigma * torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def poisson(self, mean: Tensor) -> Tensor:
        return torch.poisson(mean, generator=self.generator)


_Functions = tuple[TorchModel, Callable[..., Any], TorchModel]
_Parts = tuple[Tensor, Tensor, Tensor, Tensor, int, _Functions]


def _columns(p: Tensor) -> list[Tensor]:
    return list(p[:, :, None].unbind(1))


def _stack(*derivatives: Parameter) -> Tensor:
    """Derivatives by parameter, (..., N) each or constant, as (..., N, P)."""
    tensors = [torch.as_tensor(d) for d in derivatives]
    # All that vary have the same shape. (`max` with a key is not for torch.compile.)
    shape: tuple[int, ...] = ()
    for tensor in tensors:
        shape = shape if tensor.dim() < len(shape) else tuple(tensor.shape)
    return torch.stack([tensor.expand(shape) for tensor in tensors], -1)


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------ W1: a spot on a background


def _spot(x: Tensor, a: Any, cx: Any, cy: Any, s: Any, b: Any) -> Tensor:
    value: Tensor = a * torch.exp(-((x[0] - cx) ** 2 + (x[1] - cy) ** 2) / (2 * s**2)) + b
    return value


def _spot_numpy(x: Any, a: Any, cx: Any, cy: Any, s: Any, b: Any) -> Any:
    return a * np.exp(-((x[0] - cx) ** 2 + (x[1] - cy) ** 2) / (2 * s**2)) + b


def _spot_jacobian(x: Tensor, a: Any, cx: Any, cy: Any, s: Any, b: Any) -> Tensor:
    u, v = (x[0] - cx) / s, (x[1] - cy) / s
    bell = torch.exp(-(u * u + v * v) / 2)
    height = a * bell / s
    return _stack(bell, height * u, height * v, height * (u * u + v * v), torch.ones_like(bell))


def _make_spot(draw: _Draw, batch: int) -> _Parts:
    index = torch.arange(15, dtype=torch.float64)
    x = torch.stack([index.repeat(15), index.repeat_interleave(15)])
    truth = _vector(500, 7, 7, 2, 10) * draw.uniform(0.9, 1.1, batch, 5)
    start = truth * draw.uniform(0.9, 1.1, batch, 5)
    y = draw.poisson(_spot(x, *_columns(truth)))
    return x, y, truth, start, 1, (_spot, _spot_numpy, _spot_jacobian)


# ------------------------------------------------------------------------ W2, W3: decays


def _decay(x: Tensor, a: Any, t: Any, b: Any) -> Tensor:
    value: Tensor = a * torch.exp(-x / t) + b
    return value


def _decay_numpy(x: Any, a: Any, t: Any, b: Any) -> Any:
    return a * np.exp(-x / t) + b


def _decay_jacobian(x: Tensor, a: Any, t: Any, b: Any) -> Tensor:
    fall = torch.exp(-x / t)
    return _stack(fall, a * fall * x / t**2, torch.ones_like(fall))


def _make_decay(draw: _Draw, batch: int) -> _Parts:
    x = torch.linspace(10, 200, 20, dtype=torch.float64)
    truth = torch.stack(
        [draw.uniform(500, 1500, batch), draw.uniform(20, 100, batch), draw.uniform(10, 50, batch)],
        1,
    )
    y = _decay(x, *_columns(truth)) + draw.normal(5, batch, 20)
    start = torch.stack([y[:, 0] - y[:, 19], torch.full_like(y[:, 0], 50), y[:, 19]], 1)
    return x, y, truth, start, 1, (_decay, _decay_numpy, _decay_jacobian)


def _two_decays(x: Tensor, a1: Any, t1: Any, a2: Any, t2: Any, b: Any) -> Tensor:
    value: Tensor = a1 * torch.exp(-x / t1) + a2 * torch.exp(-x / t2) + b
    return value


def _two_decays_numpy(x: Any, a1: Any, t1: Any, a2: Any, t2: Any, b: Any) -> Any:
    return a1 * np.exp(-x / t1) + a2 * np.exp(-x / t2) + b


def _two_decays_jacobian(x: Tensor, a1: Any, t1: Any, a2: Any, t2: Any, b: Any) -> Tensor:
    fast, slow = torch.exp(-x / t1), torch.exp(-x / t2)
    return _stack(
        fast, a1 * fast * x / t1**2, slow, a2 * slow * x / t2**2, torch.ones_like(fast + slow)
    )


def _make_two_decays(draw: _Draw, batch: int) -> _Parts:
    x = torch.linspace(3, 300, 64, dtype=torch.float64)
    ranges = ((300, 700), (8, 16), (300, 700), (50, 100), (10, 50))
    truth = torch.stack([draw.uniform(low, high, batch) for low, high in ranges], 1)
    y = _two_decays(x, *_columns(truth)) + draw.normal(1, batch, 64)
    half = (y[:, 0] - y[:, 63]) / 2
    start = torch.stack(
        [half, torch.full_like(half, 8), half, torch.full_like(half, 100), y[:, 63]], 1
    )
    return x, y, truth, start, 1, (_two_decays, _two_decays_numpy, _two_decays_jacobian)


# ------------------------------------------------------------ W4: a skewed peak, twice


def _skewed(x: Tensor, a: Any, mu: Any, sigma: Any, eta: Any) -> Tensor:
    z = (x - mu) / sigma
    value: Tensor = a * torch.exp(-z * z / 2) * (1 + torch.erf(eta * z / math.sqrt(2)))
    return value


def _skewed_numpy(x: Any, a: Any, mu: Any, sigma: Any, eta: Any) -> Any:
    import scipy.special

    z = (x - mu) / sigma
    return a * np.exp(-z * z / 2) * (1 + scipy.special.erf(eta * z / math.sqrt(2)))


def _skewed_jacobian(x: Tensor, a: Any, mu: Any, sigma: Any, eta: Any) -> Tensor:
    z = (x - mu) / sigma
    bell = torch.exp(-z * z / 2)
    rise = 1 + torch.erf(eta * z / math.sqrt(2))
    # d erf(ηz/√2) / d(ηz)
    slope = math.sqrt(2 / math.pi) * torch.exp(-((eta * z) ** 2) / 2)
    along_z = a * bell * (eta * slope - z * rise)
    return _stack(bell * rise, -along_z / sigma, -along_z * z / sigma, a * bell * slope * z)


def _make_skewed(draw: _Draw, batch: int) -> _Parts:
    x = torch.linspace(-1000, 1000, 2000, dtype=torch.float64).repeat(2)
    truths = torch.stack([_vector(10, -1, 80, 5), _vector(5, -2, 60, 5), _vector(8, 0, 90, 3)])
    starts = torch.stack([_vector(7.5, -0.75, 40, 3), _vector(6, -1, 50, 4), _vector(7, -1, 80, 4)])
    kind = torch.arange(batch) % 3
    truth = truths[kind] * draw.uniform(0.9, 1.1, batch, 4)
    y = _skewed(x, *_columns(truth)) + draw.normal(0.01, batch, 4000)
    return x, y, truth, starts[kind], 2, (_skewed, _skewed_numpy, _skewed_jacobian)


# ------------------------------------------------------------------------ W5: five peaks


def _peaks(x: Tensor, *params: Any) -> Tensor:
    return torch.stack(
        [
            a * torch.exp(-(((x - mu) / s) ** 2) / 2)
            for a, mu, s in zip(params[::3], params[1::3], params[2::3], strict=True)
        ]
    ).sum(0)


def _peaks_numpy(x: Any, *params: Any) -> Any:
    value = 0.0
    for a, mu, s in zip(params[::3], params[1::3], params[2::3], strict=True):
        value = value + a * np.exp(-(((x - mu) / s) ** 2) / 2)
    return value


def _peaks_jacobian(x: Tensor, *params: Any) -> Tensor:
    derivatives = []
    for a, mu, s in zip(params[::3], params[1::3], params[2::3], strict=True):
        z = (x - mu) / s
        bell = torch.exp(-z * z / 2)
        height = a * bell / s
        derivatives += [bell, height * z, height * z * z]
    return _stack(*derivatives)


def _make_peaks(draw: _Draw, batch: int) -> _Parts:
    x = torch.linspace(0, 1, 500, dtype=torch.float64)
    middle = (torch.arange(5, dtype=torch.float64) + 0.5).expand(batch, 5) / 5
    truth = torch.stack(
        [
            draw.uniform(1, 3, batch, 5),
            middle + draw.uniform(-0.02, 0.02, batch, 5),
            draw.uniform(0.03, 0.06, batch, 5),
        ],
        2,
    ).reshape(batch, 15)
    start = torch.stack(
        [torch.full_like(middle, 2), middle, torch.full_like(middle, 0.045)], 2
    ).reshape(batch, 15)
    y = _peaks(x, *_columns(truth)) + draw.normal(0.02, batch, 500)
    return x, y, truth, start, 1, (_peaks, _peaks_numpy, _peaks_jacobian)


# ------------------------------------------------------------ gauss1d: a peak on a level


def _peak(x: Tensor, a: Any, c: Any, s: Any, b: Any) -> Tensor:
    value: Tensor = a * torch.exp(-((x - c) ** 2) / (2 * s**2)) + b
    return value


def _peak_numpy(x: Any, a: Any, c: Any, s: Any, b: Any) -> Any:
    return a * np.exp(-((x - c) ** 2) / (2 * s**2)) + b


def _peak_jacobian(x: Tensor, a: Any, c: Any, s: Any, b: Any) -> Tensor:
    z = (x - c) / s
    bell = torch.exp(-z * z / 2)
    height = a * bell / s
    return _stack(bell, height * z, height * z * z, torch.ones_like(bell))


def _make_peak(draw: _Draw, batch: int) -> _Parts:
    x = torch.arange(50, dtype=torch.float64)
    truth = _vector(50, 25, 4, 10) * draw.uniform(0.9, 1.1, batch, 4)
    start = truth * draw.uniform(0.9, 1.1, batch, 4)
    y = _peak(x, *_columns(truth)) + draw.normal(1, batch, 50)
    return x, y, truth, start, 1, (_peak, _peak_numpy, _peak_jacobian)


_MAKERS: dict[str, Callable[[_Draw, int], _Parts]] = {
    "W1": _make_spot,
    "W2": _make_decay,
    "W3": _make_two_decays,
    "W4": _make_skewed,
    "W5": _make_peaks,
    "gauss1d": _make_peak,
}
