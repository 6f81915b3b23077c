"""The user's words for a method, checked and turned into a policy: losses, tolerances, scaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimize.arrays import data_tensor
from torchimize.errors import ShapeError
from torchimize.lsq.policy import (
    GaussNewton,
    Marquardt,
    Policy,
    RelativeTests,
    Rule,
    TrustRegion,
)
from torchimize.lsq.policy.loss import LOSSES, Loss
from torchimize.lsq.problem import DERIVATIVES, Problem

METHODS: dict[str | None, type[Rule]] = {
    None: TrustRegion,
    "trf": TrustRegion,
    "dogbox": TrustRegion,
    "lm": Marquardt,
    "gn": GaussNewton,
}


def parse_loss(loss: str | Callable[..., Any], numpy: bool) -> Loss | None:
    """A loss by name, or a callable as SciPy takes it: z (m,) to (3, m), ρ and two derivatives.

    Parameters
    ----------
    loss : str or callable
    numpy : bool
        Hand NumPy arrays to the callable.

    Raises
    ------
    ValueError
        Unknown name; a callable whose result has another shape.
    """
    if callable(loss):
        return _CallableLoss(loss, numpy)
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"unknown `loss` {loss!r}; wanted one of {tuple(LOSSES)} or a callable")
    return LOSSES[loss]


class _CallableLoss:
    def __init__(self, loss: Callable[..., Any], numpy: bool) -> None:
        self.loss, self.numpy = loss, numpy

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = z.reshape(-1)
        out = self.loss(flat.numpy(force=True) if self.numpy else flat)
        if isinstance(out, (tuple, list)) and any(isinstance(part, Tensor) for part in out):
            out = torch.stack(list(out))
        rho = torch.as_tensor(out, dtype=z.dtype, device=z.device)
        if rho.shape != (3, flat.shape[0]):
            raise ShapeError(
                f"the return value of `loss` has shape {tuple(rho.shape)}; "
                f"wanted (3, {flat.shape[0]}): ρ, ρ' and ρ'' of each z"
            )
        first, second, third = rho.reshape(3, *z.shape)
        return first, second, third


def check_f_scale(f_scale: float) -> float:
    """A positive finite number."""
    value = as_number(f_scale, "f_scale")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`f_scale` is {f_scale}; wanted a positive number")
    return value


def as_number(value: Any, name: str) -> float:
    """A Python float of a number-like argument."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` is {value!r}; wanted a number") from None


def check_count(value: Any, name: str) -> int:
    """A whole number ≥ 1."""
    number = as_number(value, name)
    if not (math.isfinite(number) and number >= 1 and int(number) == number):
        raise ValueError(f"`{name}` is {value}; wanted a whole number ≥ 1")
    return int(number)


def check_factor(value: Any, name: str) -> float:
    """A positive finite factor of the classical dampings."""
    number = as_number(value, name)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"`{name}` is {value}; wanted a positive number")
    return number


def check_tolerance(value: float | None, name: str, least: float) -> float:
    """A tolerance, at least what the dtype can express; None switches its test off."""
    if value is None:
        return 0.0
    value = as_number(value, name)
    if not value >= 0:
        raise ValueError(f"`{name}` is {value}; wanted a number ≥ 0, or None to switch it off")
    return max(value, least) if value > 0 else 0.0


def relative_tests(
    dtype: torch.dtype,
    ftol: float | None,
    xtol: float | None,
    gtol: float | None,
    max_nfev: int | None,
    num_params: int,
) -> RelativeTests:
    """Stopping tests for a dtype.

    Tolerances below what the dtype can express count as that: eps, and for ``ftol`` in float32
    8 eps. There the cost, though summed in float64, carries the rounding of its float32 residuals:
    looking for smaller falls refuses good steps and spends evaluations on noise.

    Raises
    ------
    ValueError
        A negative tolerance, all of them off, ``max_nfev`` below 1.
    """
    eps = torch.finfo(dtype).eps
    values = (
        check_tolerance(ftol, "ftol", 8 * eps if dtype == torch.float32 else eps),
        check_tolerance(xtol, "xtol", eps),
        check_tolerance(gtol, "gtol", eps),
    )
    if not any(values):
        raise ValueError("at least one of `ftol`, `xtol`, `gtol` must be positive")
    if max_nfev is None:
        max_nfev = 200 * (num_params + 1)
    return RelativeTests(*values, max_nfev=check_count(max_nfev, "max_nfev"))


def refined_policy(
    refine: bool,
    policy: Policy,
    ftol: float | None,
    xtol: float | None,
    gtol: float | None,
    max_nfev: int | None,
    params0: Tensor,
) -> Policy | None:
    """The policy that finishes float32 fits in float64; None where there is nothing to refine."""
    if not refine or params0.dtype == torch.float64:
        return None
    tests = relative_tests(torch.float64, ftol, xtol, gtol, max_nfev, params0.shape[1])
    return replace(policy, tests=tests)


def parse_x_scale(x_scale: Any, params0: Tensor) -> Tensor | None:
    """Fixed D = 1/x_scale (B, P) of float64; None for the Jacobian's own scaling.

    Raises
    ------
    ValueError
        Neither 'jac' nor positive numbers of a fitting shape.
    """
    if x_scale is None or (isinstance(x_scale, str) and x_scale == "jac"):
        return None
    if isinstance(x_scale, str):
        raise ValueError(f"unknown `x_scale` {x_scale!r}; wanted 'jac' or positive numbers")
    tensor = data_tensor(x_scale, "x_scale", torch.float64, params0.device)
    if not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
        raise ValueError("`x_scale` must be 'jac' or array_like with positive numbers")
    try:
        return 1 / tensor.expand(params0.shape)
    except RuntimeError:
        raise ShapeError(
            f"inconsistent shapes between `x_scale` {tuple(tensor.shape)} and `x0` "
            f"{tuple(params0.shape)}; wanted a number, ({params0.shape[1]},) or the shape of `x0`"
        ) from None


def parse_method(method: str | None, fixed_scale: bool) -> Rule:
    """The rule of a method's name; a fixed scale is kept by the trust region only.

    Raises
    ------
    ValueError
        Unknown method.
    """
    if not (method is None or isinstance(method, str)) or method not in METHODS:
        raise ValueError(f"unknown `method` {method!r}; wanted one of {tuple(METHODS)}")
    if METHODS[method] is TrustRegion:
        return TrustRegion(scale_by_columns=not fixed_scale)
    return METHODS[method]()


def check_jac(jac: object) -> None:
    """Raise for an unknown derivative."""
    if jac is not None and not callable(jac) and jac not in DERIVATIVES:
        raise ValueError(f"unknown `jac` {jac!r}; wanted one of {DERIVATIVES} or a callable")


def build_policy(rule: Rule, problem: Problem, tests: RelativeTests) -> Policy:
    """A rule and its tests, for a problem with or without a box."""
    return Policy(rule, tests, boxed=problem.bounded)
