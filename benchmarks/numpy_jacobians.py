"""Exact Jacobians of the workloads in NumPy, for SciPy's loop.

The workloads' own are written in torch; a loop over small problems would spend most of its time on
crossing over. Each is ``jacobian(x, *params)``: (N, P).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf

Array = npt.NDArray[np.float64]


def spot(x: Array, a: float, cx: float, cy: float, s: float, b: float) -> Array:
    """W1."""
    u, v = (x[0] - cx) / s, (x[1] - cy) / s
    square = u * u + v * v
    bell = np.exp(-0.5 * square)
    height = a / s * bell
    return np.stack([bell, height * u, height * v, height * square, np.ones_like(bell)], 1)


def decay(x: Array, a: float, t: float, b: float) -> Array:
    """W2."""
    fall = np.exp(-x / t)
    return np.stack([fall, a / t**2 * fall * x, np.ones_like(x)], 1)


def two_decays(x: Array, a1: float, t1: float, a2: float, t2: float, b: float) -> Array:
    """W3."""
    return np.concatenate([decay(x, a1, t1, 0.0)[:, :2], decay(x, a2, t2, b)], 1)


def skewed(x: Array, a: float, mu: float, sigma: float, eta: float) -> Array:
    """W4."""
    z = (x - mu) / sigma
    bell = np.exp(-0.5 * z * z)
    rise = 1 + erf(eta * z / math.sqrt(2))
    slope = math.sqrt(2 / math.pi) * np.exp(-0.5 * (eta * z) ** 2)
    along_z = a * bell * (eta * slope - z * rise)
    return np.stack([bell * rise, -along_z / sigma, -along_z * z / sigma, a * bell * slope * z], 1)


def peaks(x: Array, *params: float) -> Array:
    """W5."""
    a, mu, s = np.reshape(params, (-1, 3)).T
    z = (x[:, None] - mu) / s
    bell = np.exp(-0.5 * z * z)
    height = a / s * bell
    return np.stack([bell, height * z, height * z * z], 2).reshape(len(x), -1)


def peak(x: Array, a: float, c: float, s: float, b: float) -> Array:
    """gauss1d."""
    return np.concatenate([peaks(x, a, c, s), np.ones((len(x), 1))], 1)


JACOBIANS: dict[str, Callable[..., Any]] = {
    "W1": spot,
    "W2": decay,
    "W3": two_decays,
    "W4": skewed,
    "W5": peaks,
    "gauss1d": peak,
}
