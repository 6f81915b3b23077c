"""The workloads' models in jax.numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import erf


def spot(x: Any, a: Any, cx: Any, cy: Any, s: Any, b: Any) -> Any:
    return a * jnp.exp(-((x[0] - cx) ** 2 + (x[1] - cy) ** 2) / (2 * s**2)) + b


def decay(x: Any, a: Any, t: Any, b: Any) -> Any:
    return a * jnp.exp(-x / t) + b


def two_decays(x: Any, a1: Any, t1: Any, a2: Any, t2: Any, b: Any) -> Any:
    return a1 * jnp.exp(-x / t1) + a2 * jnp.exp(-x / t2) + b


def skewed(x: Any, a: Any, mu: Any, sigma: Any, eta: Any) -> Any:
    z = (x - mu) / sigma
    return a * jnp.exp(-z * z / 2) * (1 + erf(eta * z / math.sqrt(2)))


def peaks(x: Any, *params: Any) -> Any:
    value = 0.0
    for a, mu, s in zip(params[::3], params[1::3], params[2::3], strict=True):
        value = value + a * jnp.exp(-(((x - mu) / s) ** 2) / 2)
    return value


def peak(x: Any, a: Any, c: Any, s: Any, b: Any) -> Any:
    return a * jnp.exp(-((x - c) ** 2) / (2 * s**2)) + b


MODELS: dict[str, Callable[..., Any]] = {
    "W1": spot,
    "W2": decay,
    "W3": two_decays,
    "W4": skewed,
    "W5": peaks,
    "gauss1d": peak,
}
