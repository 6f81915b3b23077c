"""What comes back from a fit: SciPy's fields, batched; the large ones only when asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from torchimize.arrays import Output
from torchimize.status import CovarianceStatus, Status


class Messages(Sequence[Any]):
    """One sentence per problem, written only when it is read.

    Indexed like the other fields: a position gives a sentence, anything else more messages.

    Parameters
    ----------
    codes : array of int8
        In the batch's shape.
    table : type
        :class:`~torchimize.Status` or :class:`~torchimize.CovarianceStatus`.
    """

    def __init__(self, codes: Any, table: type[Status] | type[CovarianceStatus]) -> None:
        self._codes = np.asarray(codes)
        self._table = table

    @property
    def shape(self) -> tuple[int, ...]:
        """The batch's shape."""
        return self._codes.shape

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, Tensor):
            index = index.numpy(force=True)
        codes = self._codes[index]
        if np.ndim(codes) == 0:
            return self._table(int(codes)).message
        return Messages(codes, self._table)

    def __repr__(self) -> str:
        codes, counts = np.unique(self._codes, return_counts=True)
        lines = (
            f"{count} × {self._table(code).message!r}"
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
        )
        return f"Messages({', '.join(lines)})"


class Result(Mapping[str, Any]):
    """The outcome of a batch of fits.

    Fields are attributes and, as in SciPy, also items. ``fun``, ``jac``, ``grad`` and
    ``optimality`` are computed at first access, in chunks, so a result of 10⁷ fits holds none of
    them. For one problem (a start without batch dimension) the batch dimension is dropped.

    Attributes
    ----------
    x : (B, P)
        Solution; the best point where a problem failed.
    cost : (B,), float64
        ½ Σ ρ at the solution.
    fun : (B, ...)
        Residuals at the solution, with the function's trailing shape.
    jac : (B, ..., P)
        Jacobian there; under a robust loss scaled so that JᵀJ is the Gauss-Newton block.
    grad : (B, P)
        Gradient of the cost.
    optimality : (B,)
        The largest component of the projected gradient: where one points out of the box, only the
        room that is left counts.
    active_mask : (B, P), int
        −1 on the lower bound, 1 on the upper one, 0 inside.
    nfev, njev : (B,), int
        Residual evaluations (those of finite differences not counted) and Jacobians.
    status : (B,), int
        Codes of :class:`~torchimize.Status`.
    engine, engine_reason : str
        Which engine ran, 'fused' or 'eager', and why.
    message : str, or :class:`Messages` of the batch's shape
    success : (B,), bool
        ``status > 0``.
    popt, pcov, stderr : (..., P), (..., P, P), (..., P)
        From :func:`~torchimize.curve_fit`: solution, its covariance and standard errors.
    covariance_status, covariance_message : (...,)
        Codes of :class:`~torchimize.CovarianceStatus`: why error bars are missing.
    chi_square, reduced_chi_square, degrees_of_freedom : (...,)
    log_likelihood, aic, aicc, bic, r_squared : (...,)
        Goodness of fit; see :mod:`torchimize.lsq.statistics`.

    Examples
    --------
    >>> import torch, torchimize
    >>> result = torchimize.least_squares(lambda x: x**2 - 2, torch.ones(3, 1, dtype=torch.float64))
    >>> bool(result.success.all()), result["x"].shape
    (True, torch.Size([3, 1]))
    """

    def __init__(
        self,
        output: Output,
        fields: Mapping[str, Any],
        lazy: Mapping[str, Callable[[], Any]],
    ) -> None:
        self._output = output
        self._fields = dict(fields)
        self._lazy = dict(lazy)

    def add(self, **fields: Any) -> None:
        """Add fields."""
        self._fields.update(fields)

    def add_lazy(self, fields: Mapping[str, Callable[[], Any]]) -> None:
        """Add fields that are computed at first access."""
        self._lazy.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a result has no field {name!r}; it has {list(self)}") from None

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields and name in self._lazy:
            self._fields[name] = self._lazy[name]()
        return self._fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fields or name in self._lazy

    def __copy__(self) -> Result:
        return Result(self._output, self._fields, self._lazy)

    def __deepcopy__(self, memo: dict[int, Any]) -> Result:
        return Result(self._output, copy.deepcopy(self._fields, memo), self._lazy)

    def __getstate__(self) -> dict[str, Any]:
        """What has been computed travels; what would need the user's function does not."""
        return {"_output": self._output, "_fields": self._fields, "_lazy": {}}

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._fields, *self._lazy])

    def __len__(self) -> int:
        return len(set(self._fields) | set(self._lazy))

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *self])

    def __repr__(self) -> str:
        if self._output.single:
            lines = [f"{name}: {self._fields[name]!r}" for name in self._fields]
            waiting = [name for name in self._lazy if name not in self._fields]
            if waiting:
                lines.append(f"computed when asked for: {', '.join(waiting)}")
        else:
            count = int(np.prod(self["message"].shape))
            solved = int(self["success"].sum())
            lines = [
                f"{solved} of {count} fits succeeded",
                f"x: {tuple(self['x'].shape)}",
                f"message: {self['message']!r}",
                f"fields: {', '.join(self)}",
            ]
        return "Result\n  " + "\n  ".join(lines)


def message_field(
    output: Output, codes: Tensor, table: type[Status] | type[CovarianceStatus]
) -> Any:
    """The sentence of one problem, or :class:`Messages` in the batch's shape."""
    if output.single:
        return table(int(codes[0])).message
    return Messages(codes.numpy(force=True).reshape(output.batch_shape), table)


def status_fields(output: Output, status: Tensor) -> dict[str, Any]:
    """``status``, ``message`` and ``success`` from codes (B,)."""
    return {
        "status": output.scalar(status),
        "message": message_field(output, status, Status),
        "success": output.scalar(status > 0),
    }
