"""NumPy's and scipy.special's ufuncs and their counterparts in torch."""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchimize import special_functions as special
from torchimize.numpy_models.conversion import Working, floating, number

Operand = Tensor | complex


class Unavailable(Exception):
    """The counterpart covers the ufunc, but not for these arguments."""


class Rule(NamedTuple):
    """A ufunc's counterpart.

    Attributes
    ----------
    function : callable
        Of as many operands as the ufunc has inputs; returns a tensor or, for several outputs, a
        tuple.
    keeps_integers : bool
        Whether integers stay integers. Elsewhere they take the working dtype first.
    takes_numbers : bool
        Whether Python numbers may be passed as they are. Elsewhere they become tensors.
    """

    function: Callable[..., Any]
    keeps_integers: bool = False
    takes_numbers: bool = False

    def __call__(self, operands: Sequence[Operand], working: Working) -> Any:
        """Apply the counterpart with the dtypes NumPy would use."""
        if all(isinstance(x, Tensor) and x.dtype is working.dtype for x in operands):
            return self.function(*operands)
        inexact = not self.keeps_integers or any(
            isinstance(entry, float | complex) and not isinstance(entry, bool)
            for entry in operands
            if not isinstance(entry, Tensor)
        )
        prepared: list[Operand] = []
        whole = not any(_is_inexact(entry) for entry in operands)
        for entry in operands:
            if isinstance(entry, Tensor):
                prepared.append(floating(entry, working) if inexact else entry)
            elif self.takes_numbers:
                prepared.append(entry)
            elif whole and not inexact and not isinstance(entry, bool):
                prepared.append(torch.tensor(entry, device=working.device))
            else:
                prepared.append(number(entry, working))
        if not any(isinstance(entry, Tensor) for entry in prepared):
            prepared = [number(entry, working) for entry in operands]  # type: ignore[arg-type]
        return self.function(*prepared)


def _is_inexact(entry: Operand) -> bool:
    if isinstance(entry, Tensor):
        return entry.dtype.is_floating_point or entry.dtype.is_complex
    return isinstance(entry, float | complex)


def _promoted(*tensors: Tensor) -> list[Tensor]:
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return [tensor.to(dtype) for tensor in tensors]


def _subtract(a: Any, b: Any) -> Any:
    # torch refuses to subtract booleans and other numbers from each other, NumPy counts them
    if _is_truth(a) != _is_truth(b):
        a, b = _counted(a), _counted(b)
    return a - b


def _is_truth(x: Operand) -> bool:
    return x.dtype is torch.bool if isinstance(x, Tensor) else isinstance(x, bool)


def _counted(x: Operand) -> Operand:
    return x.to(torch.int64) if isinstance(x, Tensor) and x.dtype is torch.bool else x


def _extreme(tensors: Callable[..., Tensor], bound: str) -> Callable[..., Tensor]:
    def extreme(a: Operand, b: Operand) -> Tensor:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return tensors(a, b)
        tensor, limit = (a, b) if isinstance(a, Tensor) else (b, a)
        return torch.clamp(tensor, **{bound: limit})  # type: ignore[arg-type]

    return extreme


def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    step = torch.where(x == 0, at_zero, (x > 0).to(x.dtype))
    return torch.where(torch.isnan(x), x, step)


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _modulo(exact: Callable[..., Tensor], rounding: str) -> Callable[..., Tensor]:
    """Complete a remainder: torch has no derivative with respect to the divisor."""

    def modulo(a: Tensor, b: Tensor) -> Tensor:
        if not (_is_inexact(a) or _is_inexact(b)):
            return exact(a, b)
        # with the quotient a step function: exact in value, and d(a - quotient b) in derivative
        a_fixed, b_fixed = a.detach(), b.detach()
        quotient = torch.div(a_fixed, b_fixed, rounding_mode=rounding)
        return exact(a_fixed, b_fixed) + (a - a_fixed) - quotient * (b - b_fixed)

    return modulo


_remainder = _modulo(torch.remainder, "floor")
_fmod = _modulo(torch.fmod, "trunc")


def _divmod(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return _floor_divide(a, b), _remainder(a, b)


def _modf(x: Tensor) -> tuple[Tensor, Tensor]:
    whole = torch.trunc(x)
    return x - whole, whole


def _sign(x: Tensor) -> Tensor:
    if x.dtype.is_complex:
        return torch.sgn(x)
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.dtype.is_floating_point else x.sign()


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(*_promoted(a, b))


def _vecdot(a: Tensor, b: Tensor) -> Tensor:
    return (torch.conj(a) * b).sum(-1)


def _positive(x: Tensor) -> Tensor:
    return x.clone()


def _table() -> dict[np.ufunc, Rule]:
    numbers: dict[str, Callable[..., Any]] = {
        "add": operator.add,
        "subtract": _subtract,
        "multiply": operator.mul,
        "power": operator.pow,
        "negative": operator.neg,
        "positive": _positive,
        "absolute": operator.abs,
        "less": operator.lt,
        "less_equal": operator.le,
        "greater": operator.gt,
        "greater_equal": operator.ge,
        "equal": operator.eq,
        "not_equal": operator.ne,
        "bitwise_and": operator.and_,
        "bitwise_or": operator.or_,
        "bitwise_xor": operator.xor,
        "invert": operator.invert,
        "left_shift": operator.lshift,
        "right_shift": operator.rshift,
        "maximum": _extreme(torch.maximum, "min"),
        "minimum": _extreme(torch.minimum, "max"),
    }
    integers: dict[str, Callable[..., Any]] = {
        "floor_divide": _floor_divide,
        "divmod": _divmod,
        "remainder": _remainder,
        "fmod": _fmod,
        "fmax": torch.fmax,
        "fmin": torch.fmin,
        "sign": _sign,
        "square": torch.square,
        "conjugate": torch.conj_physical,
        "rint": torch.round,
        "floor": torch.floor,
        "ceil": torch.ceil,
        "trunc": torch.trunc,
        "gcd": torch.gcd,
        "lcm": torch.lcm,
        "logical_and": torch.logical_and,
        "logical_or": torch.logical_or,
        "logical_xor": torch.logical_xor,
        "logical_not": torch.logical_not,
        "isnan": torch.isnan,
        "isinf": torch.isinf,
        "isfinite": torch.isfinite,
        "signbit": torch.signbit,
        "matmul": _matmul,
        "vecdot": _vecdot,
        "ldexp": torch.ldexp,
    }
    inexact: dict[str, Callable[..., Any]] = {
        "fabs": torch.abs,
        "reciprocal": torch.reciprocal,
        "sqrt": torch.sqrt,
        "cbrt": special.cube_root,
        "exp": torch.exp,
        "exp2": torch.exp2,
        "expm1": torch.expm1,
        "log": torch.log,
        "log2": torch.log2,
        "log10": torch.log10,
        "log1p": torch.log1p,
        "logaddexp": torch.logaddexp,
        "logaddexp2": torch.logaddexp2,
        "sin": torch.sin,
        "cos": torch.cos,
        "tan": torch.tan,
        "arcsin": torch.asin,
        "arccos": torch.acos,
        "arctan": torch.atan,
        "sinh": torch.sinh,
        "cosh": torch.cosh,
        "tanh": torch.tanh,
        "arcsinh": torch.asinh,
        "arccosh": torch.acosh,
        "arctanh": torch.atanh,
        "hypot": torch.hypot,
        "arctan2": torch.atan2,
        "degrees": torch.rad2deg,
        "rad2deg": torch.rad2deg,
        "radians": torch.deg2rad,
        "deg2rad": torch.deg2rad,
        "heaviside": _heaviside,
        "copysign": torch.copysign,
        "nextafter": torch.nextafter,
        "modf": _modf,
    }
    table = {
        **{getattr(np, name): Rule(f, True, True) for name, f in numbers.items()},
        **{getattr(np, name): Rule(f, True) for name, f in integers.items() if hasattr(np, name)},
        **{getattr(np, name): Rule(f) for name, f in inexact.items()},
    }
    table[np.divide] = Rule(operator.truediv, takes_numbers=True)
    table[np.float_power] = Rule(operator.pow, takes_numbers=True)
    return table


UFUNCS: dict[np.ufunc, Rule] = _table()
"""NumPy's ufuncs."""


def counterpart(ufunc: np.ufunc) -> Rule | None:
    """Look a ufunc up; scipy's only if the user has imported them."""
    found = UFUNCS.get(ufunc)
    if found is None and "scipy.special" in sys.modules:
        found = scipy_ufuncs().get(ufunc)
    return found


# --- scipy.special ---


def _gamma(x: Tensor) -> Tensor:
    value = torch.exp(torch.lgamma(x))
    negative = (x < 0) & (torch.remainder(torch.floor(x), 2) == 1)
    return torch.where(negative, -value, value)


def _log_gamma(x: Tensor) -> Tensor:
    return torch.where(x < 0, math.nan, torch.lgamma(x))


def _beta_log(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _beta(a: Tensor, b: Tensor) -> Tensor:
    def sign(x: Tensor) -> Tensor:
        return 1 - 2 * ((x < 0) & (torch.remainder(torch.floor(x), 2) == 1)).to(x.dtype)

    return sign(a) * sign(b) * sign(a + b) * torch.exp(_beta_log(a, b))


def _zeta_of_one(x: Tensor) -> Tensor:
    return special.zeta(x, 1.0)


def _exp10(x: Tensor) -> Tensor:
    return torch.exp(x * math.log(10.0)) if x.dtype.is_complex else torch.pow(10.0, x)


def _cosm1(x: Tensor) -> Tensor:
    half = torch.sin(x / 2)
    return -2 * half * half


def _exprel(x: Tensor) -> Tensor:
    near = x.abs() < 1e-5
    safe = torch.where(near, 1.0, x)
    return torch.where(near, 1 + x / 2 + x * x / 6, torch.expm1(safe) / safe)


def _erfcinv(x: Tensor) -> Tensor:
    return torch.special.ndtri(x / 2) * -math.sqrt(0.5)  # type: ignore[no-any-return]


def _dawsn(x: Tensor) -> Tensor:
    return special.faddeeva_imag(x, 0.0) * (math.sqrt(math.pi) / 2)


def _wofz(z: Tensor) -> Tensor:
    if not z.dtype.is_complex:
        z = torch.complex(z, torch.zeros_like(z))
    x, y = z.real, z.imag
    return torch.complex(special.faddeeva_real(x, y), special.faddeeva_imag(x, y))


def _rel_entr(x: Tensor, y: Tensor) -> Tensor:
    usable = (x > 0) & (y > 0)
    value = torch.where(usable, x, 1.0)
    value = value * torch.log(value / torch.where(usable, y, 1.0))
    return torch.where(usable, value, torch.where((x == 0) & (y >= 0), 0.0, math.inf))


def _huber(delta: Tensor, r: Tensor) -> Tensor:
    size = r.abs()
    value = torch.where(size <= delta, r * r / 2, delta * (size - delta / 2))
    return torch.where(delta < 0, math.inf, value)


def _pseudo_huber(delta: Tensor, r: Tensor) -> Tensor:
    ratio = torch.where(delta > 0, r / torch.where(delta > 0, delta, 1.0), 0.0)
    value = delta * delta * ratio * ratio / (torch.sqrt(1 + ratio * ratio) + 1)
    return torch.where(delta < 0, math.inf, value)


def _boxcox(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.log(x) * _exprel(exponent * torch.log(x))


def _inv_boxcox(x: Tensor, exponent: Tensor) -> Tensor:
    linear = exponent == 0
    safe = torch.where(linear, 1.0, exponent)
    return torch.where(linear, torch.exp(x), torch.exp(torch.log1p(safe * x) / safe))


def _log_ndtr(x: Tensor) -> Tensor:
    # torch's own has no batching rule under vmap
    low = x < -1
    below, above = torch.where(low, x, -1.0), torch.where(low, 0.0, x)
    tail = torch.log(torch.special.erfcx(below * -math.sqrt(0.5)) / 2) - below * below / 2
    return torch.where(low, tail, torch.log1p(-torch.erfc(above * math.sqrt(0.5)) / 2))


def _log_expit(x: Tensor) -> Tensor:
    return -torch.logaddexp(-x, torch.zeros_like(x))


def _by_order(name: str, functions: Sequence[Callable[[Tensor], Tensor]]) -> Callable[..., Tensor]:
    """Bessel functions of scipy's, whose first argument is the order: 0 and 1 exist in torch."""

    def function(order: Operand, x: Tensor) -> Tensor:
        if isinstance(order, Tensor) or order not in (0, 1):
            met = "a tensor" if isinstance(order, Tensor) else str(order)
            raise Unavailable(
                f"scipy.special.{name} has a counterpart in torch for the orders 0 and 1, got {met}"
            )
        return functions[int(order.real)](x)

    return function


def _degree_first(polynomial: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(degree: Operand, x: Tensor) -> Tensor:
        if isinstance(degree, complex) or (
            not isinstance(degree, Tensor) and degree != int(degree)
        ):
            raise Unavailable(f"polynomials have an integer degree, got {degree}")
        return polynomial(x, degree if isinstance(degree, Tensor) else int(degree))

    return function


@functools.cache
def scipy_ufuncs() -> dict[np.ufunc, Rule]:
    """Collect the ufuncs of ``scipy.special``, which the user must have imported."""
    scipy_special = sys.modules["scipy.special"]
    inexact: dict[str, Callable[..., Any]] = {
        "erf": torch.special.erf,
        "erfc": torch.special.erfc,
        "erfcx": torch.special.erfcx,
        "erfinv": torch.special.erfinv,
        "erfcinv": _erfcinv,
        "expit": torch.special.expit,
        "logit": torch.special.logit,
        "log_expit": _log_expit,
        "gammaln": torch.special.gammaln,
        "loggamma": _log_gamma,
        "gamma": _gamma,
        "rgamma": lambda x: 1 / _gamma(x),
        "psi": torch.special.psi,
        "digamma": torch.special.psi,
        "beta": _beta,
        "betaln": _beta_log,
        "gammainc": special.gammainc,
        "gammaincc": special.gammaincc,
        "_zeta": special.zeta,
        "_riemann_zeta": _zeta_of_one,
        "j0": special.bessel_j0,
        "j1": special.bessel_j1,
        "y0": special.bessel_y0,
        "y1": special.bessel_y1,
        "i0": torch.special.i0,
        "i0e": torch.special.i0e,
        "i1": torch.special.i1,
        "i1e": torch.special.i1e,
        "k0": special.modified_bessel_k0,
        "k0e": special.scaled_modified_bessel_k0,
        "k1": special.modified_bessel_k1,
        "k1e": special.scaled_modified_bessel_k1,
        "ndtr": torch.special.ndtr,
        "ndtri": torch.special.ndtri,
        "log_ndtr": _log_ndtr,
        "xlogy": torch.special.xlogy,
        "xlog1py": torch.special.xlog1py,
        "entr": torch.special.entr,
        "rel_entr": _rel_entr,
        "exp2": torch.exp2,
        "exp10": _exp10,
        "expm1": torch.expm1,
        "exprel": _exprel,
        "log1p": torch.log1p,
        "cosm1": _cosm1,
        "cbrt": special.cube_root,
        "voigt_profile": special.voigt_profile,
        "wofz": _wofz,
        "dawsn": _dawsn,
        "huber": _huber,
        "pseudo_huber": _pseudo_huber,
        "boxcox": _boxcox,
        "inv_boxcox": _inv_boxcox,
    }
    j, y = (special.bessel_j0, special.bessel_j1), (special.bessel_y0, special.bessel_y1)
    i, ie = (torch.special.i0, torch.special.i1), (torch.special.i0e, torch.special.i1e)
    k = (special.modified_bessel_k0, special.modified_bessel_k1)
    ke = (special.scaled_modified_bessel_k0, special.scaled_modified_bessel_k1)
    orders = {"jv": j, "jn": j, "yv": y, "yn": y, "iv": i, "ive": ie, "kv": k, "kn": k, "kve": ke}
    degrees = {
        "eval_chebyt": special.chebyshev_polynomial_t,
        "eval_chebyu": special.chebyshev_polynomial_u,
        "eval_hermite": special.hermite_polynomial_h,
        "eval_hermitenorm": special.hermite_polynomial_he,
        "eval_laguerre": special.laguerre_polynomial_l,
        "eval_legendre": special.legendre_polynomial_p,
    }
    rules = {name: Rule(function) for name, function in inexact.items()}
    for name, functions in orders.items():
        rules[name] = Rule(_by_order(name, functions), takes_numbers=True)
    for name, polynomial in degrees.items():
        rules[name] = Rule(_degree_first(polynomial), takes_numbers=True)
    homes = (scipy_special, sys.modules.get("scipy.special._ufuncs"))
    found: dict[np.ufunc, Rule] = {}
    for name, rule in rules.items():
        ufunc = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
        if isinstance(ufunc, np.ufunc) and ufunc not in UFUNCS:
            found[ufunc] = rule
    return found
