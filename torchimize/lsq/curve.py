"""Curve data brought into one form: y (B, N), one x for all or one per problem, σ as weights.

The model sees one x, variables first: (N,), (k, N), or (k, A, N) where x differs per problem, and
each parameter as (A, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchimize.arrays import data_tensor
from torchimize.batch import BatchFunction
from torchimize.errors import DtypeError, ShapeError
from torchimize.lsq import settings
from torchimize.lsq.likelihood import Data, LeastSquares, Likelihood, Poisson


@dataclass(frozen=True)
class Abscissa:
    """x as the model wants it.

    Attributes
    ----------
    shared : object
        (N,), (k, N), or whatever else the user passed, the same for all problems; None where x
        differs.
    per_problem : Tensor (B, N) or (B, k, N), or None
    """

    shared: Any
    per_problem: Tensor | None

    def isnan(self, num_samples: int) -> Tensor | None:
        """Samples without an x: (N,) or (B, N) of bool."""
        x = self.shared if self.per_problem is None else self.per_problem
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[-1] != num_samples:
            return None
        missing = x.isnan()
        variables = missing.ndim - (1 if self.per_problem is None else 2)
        return missing.any(-2) if variables else missing

    def filled(self, num_samples: int) -> Abscissa:
        """The same with a valid neighbour's x where x is NaN.

        Such samples are masked, but a NaN would still reach the others through reverse mode.
        """
        missing = self.isnan(num_samples)
        if missing is None or not bool(missing.any()):
            return self
        valid = torch.where(missing, 0, 1).argmax(-1, keepdim=True)
        if self.per_problem is None:
            return Abscissa(torch.where(missing, self.shared[..., valid], self.shared), None)
        x = self.per_problem
        if x.ndim == 3:
            valid, missing = valid[:, None].expand(-1, x.shape[1], 1), missing[:, None]
        return Abscissa(None, torch.where(missing, x.gather(-1, valid), x))


def parse_abscissa(xdata: Any, ydata: Tensor, dtype: torch.dtype) -> Abscissa:
    """Sort out which x belongs to whom.

    Parameters
    ----------
    xdata : array-like, or any object
        (N,); (k, N) or a tuple of k variables; the shape of ``ydata``, one x per problem;
        (..., k, N), both. A tuple may mix (N,) and (..., N). Anything that is not numeric is
        passed to the model as it is.
    ydata : Tensor (..., N)
    dtype : torch.dtype

    Raises
    ------
    ShapeError
        Where the shape is none of these.
    """
    batch_shape, num_samples = ydata.shape[:-1], ydata.shape[-1]

    def convert(value: Any) -> Tensor:
        return data_tensor(value, "xdata", dtype, ydata.device)

    if isinstance(xdata, (tuple, list)) and any(_is_array(v) and v.ndim > 0 for v in xdata):
        variables = [convert(v) for v in xdata]
        if all(v.ndim <= 1 for v in variables) or not batch_shape:
            return Abscissa(torch.stack([v.expand(num_samples) for v in variables]), None)
        if all(v.shape in (ydata.shape, (num_samples,)) for v in variables):
            spread = [v.expand(ydata.shape).reshape(-1, num_samples) for v in variables]
            return Abscissa(None, torch.stack(spread, 1))
    try:
        x = convert(xdata)
    except DtypeError:
        raise
    except TypeError:
        return Abscissa(xdata, None)
    if batch_shape and x.shape == ydata.shape and not isinstance(xdata, tuple):
        return Abscissa(None, x.reshape(-1, num_samples))
    if x.ndim <= 2 and (x.ndim == 0 or x.shape[-1] == num_samples):
        return Abscissa(x, None)
    if x.ndim == len(batch_shape) + 2 and (*x.shape[:-2], x.shape[-1]) == tuple(ydata.shape):
        return Abscissa(None, x.reshape(-1, *x.shape[-2:]))
    raise ShapeError(
        f"`xdata` has shape {tuple(x.shape)}, `ydata` {tuple(ydata.shape)}; "
        f"wanted ({num_samples},), (k, {num_samples}), the shape of `ydata`, or "
        f"({', '.join(map(str, (*batch_shape, 'k', num_samples)))})"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "shape")


def model_function(
    model: Callable[..., Any],
    abscissa: Abscissa,
    num_problems: int,
    num_samples: int,
    origin: Callable[..., Any] | None = None,
) -> BatchFunction:
    """``model(x, *params)`` as a function of the parameters (A, P) alone: (A, N).

    Parameters
    ----------
    model : callable
    abscissa : Abscissa
    num_problems, num_samples : int
        B and N.
    origin : callable, optional
        What the user wrote.
    """

    def function(params: Tensor, *x: Tensor) -> Tensor:
        value = _numbers(model(_variables(abscissa, x), *_columns(params)), "model", params)
        if value.ndim < 2 and params.shape[0] > 1:
            raise ShapeError(
                f"the model returned shape {tuple(value.shape)} for {params.shape[0]} problems: it "
                "mixes them, or ignores its parameters. Each parameter comes as one column, "
                f"({params.shape[0]}, 1); sum over the samples with axis=-1, keepdims=True"
            )
        try:
            return value.to(params.dtype).expand(params.shape[0], num_samples)
        except RuntimeError:
            raise ShapeError(
                f"the model returned shape {tuple(value.shape)} for {params.shape[0]} problems of "
                f"{num_samples} samples; wanted ({params.shape[0]}, {num_samples})"
            ) from None

    return BatchFunction(
        function,
        num_problems,
        _rowwise(abscissa),
        name="model values",
        origin=origin,
        given=(abscissa.shared,) if isinstance(abscissa.shared, Tensor) else (),
    )


def model_jacobian(
    jacobian: Callable[..., Any], abscissa: Abscissa, num_problems: int
) -> BatchFunction:
    """``jac(x, *params)`` as a function of the parameters (A, P) alone: (A, N, P)."""

    def function(params: Tensor, *x: Tensor) -> Tensor:
        value = jacobian(_variables(abscissa, x), *_columns(params))
        value = _numbers(value, "Jacobian", params).to(params.dtype)
        if value.ndim == 2:
            value = value.expand(params.shape[0], -1, -1)
        return value

    return BatchFunction(function, num_problems, _rowwise(abscissa), name="Jacobian")


def _numbers(value: Any, name: str, params: Tensor) -> Tensor:
    """What a model or Jacobian returned, as a real tensor."""
    try:
        tensor = torch.as_tensor(value, device=params.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"the {name} returned {type(value).__name__}; wanted a tensor or numbers"
        ) from None
    if tensor.is_complex():
        raise DtypeError(
            f"the {name} returned {tensor.dtype}; wanted real numbers (stack real and imaginary "
            "parts as samples)"
        )
    return tensor


def _columns(params: Tensor) -> list[Tensor]:
    return list(params[:, :, None].unbind(1))


def _rowwise(abscissa: Abscissa) -> tuple[Tensor, ...]:
    return () if abscissa.per_problem is None else (abscissa.per_problem,)


def _variables(abscissa: Abscissa, x: tuple[Tensor, ...]) -> Any:
    if not x:
        return abscissa.shared
    return x[0].movedim(1, 0) if x[0].ndim == 3 else x[0]


def parse_data(ydata: Tensor, sigma: Tensor | None, missing: Tensor | None, omit: bool) -> Data:
    """Observations, weights and mask.

    Parameters
    ----------
    ydata : Tensor (..., N)
    sigma : Tensor or None
        Standard deviations, a number, (N,) or the shape of ``ydata``; or covariance matrices,
        (N, N) or (..., N, N).
    missing : Tensor (N,) or (B, N) of bool, or None
        Samples without x.
    omit : bool
        Mask samples whose x or y is NaN.

    Raises
    ------
    ShapeError
        ``sigma`` has another shape.
    ValueError
        A σ that is not positive, a covariance that is not positive definite.
    """
    num_samples = ydata.shape[-1]
    observed = ydata.reshape(-1, num_samples)
    mask = None
    if omit:
        gone = observed.isnan()
        if missing is not None:
            gone = gone | missing
        if bool(gone.any()):
            # without a single sample there is nothing to fit: its NaN stay, and its status says so
            mask = ~gone | gone.all(-1, keepdim=True)
            observed = torch.where(mask, observed, 0.0)
    if sigma is None:
        return Data(observed, mask=mask)
    if sigma.shape in ((), (num_samples,), ydata.shape):
        spread = sigma.reshape(-1, num_samples) if sigma.ndim > 1 else sigma.expand(num_samples)
        if mask is not None:
            spread = torch.where(mask, spread, 1.0)
        if not bool((spread > 0).all()):
            raise ValueError("`sigma` must be positive: it holds standard deviations")
        return Data(observed, weight=1 / spread, mask=mask)
    square = (num_samples, num_samples)
    if sigma.shape not in (square, (*ydata.shape[:-1], *square)):
        raise ShapeError(
            f"`sigma` has shape {tuple(sigma.shape)}; wanted a number, ({num_samples},), the shape "
            f"of `ydata` {tuple(ydata.shape)}, or covariance matrices ({num_samples}, "
            f"{num_samples}) or {(*ydata.shape[:-1], *square)}"
        )
    covariance = sigma if sigma.ndim == 2 else sigma.reshape(-1, *square)
    if mask is not None:
        both = mask[:, :, None] & mask[:, None, :]
        eye = torch.eye(num_samples, dtype=sigma.dtype, device=sigma.device)
        covariance = torch.where(both, covariance, eye)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        raise ValueError("`sigma` must be symmetric positive definite where it is a covariance")
    return Data(observed, factor=factor, mask=mask)


def check_nan(
    y: Tensor,
    abscissa: Abscissa,
    missing: Tensor | None,
    nan_policy: str | None,
    check_finite: bool | None,
) -> None:
    """Raise for an unknown policy, and for data that a policy or ``check_finite`` refuses."""
    if nan_policy not in (None, "omit", "raise"):
        raise ValueError(f"unknown `nan_policy` {nan_policy!r}; wanted None, 'omit' or 'raise'")
    if nan_policy == "raise":
        has_nan = bool(y.isnan().any()) or (missing is not None and bool(missing.any()))
        if has_nan:
            raise ValueError("the data contain NaN; nan_policy='omit' ignores such samples")
    if check_finite and nan_policy != "omit":
        arrays = (y, abscissa.shared, abscissa.per_problem)
        if not all(bool(v.isfinite().all()) for v in arrays if isinstance(v, Tensor)):
            raise ValueError("array must not contain infs or NaNs")


def parse_likelihood(
    name: str,
    data: Any,
    loss: str | Callable[..., Any],
    f_scale: float,
    has_sigma: bool,
    numpy: bool,
) -> Likelihood:
    """The likelihood of a name, ``'gaussian'`` or ``'poisson'``, with its data and robust loss.

    Raises
    ------
    ValueError
        Unknown name; counts with a robust loss, a σ, or negative.
    """
    parsed = settings.parse_loss(loss, numpy)
    scale = settings.check_f_scale(f_scale)
    if name == "gaussian":
        return LeastSquares(data, parsed, scale)
    if name != "poisson":
        raise ValueError(f"unknown `likelihood` {name!r}; wanted 'gaussian' or 'poisson'")
    if parsed is not None or has_sigma:
        raise ValueError(
            "likelihood='poisson' knows the scatter of counts: it takes no `sigma` and no `loss`"
        )
    if bool((data.observed < 0).any()):
        raise ValueError("`ydata` holds negative values; likelihood='poisson' wants counts ≥ 0")
    return Poisson(data)
