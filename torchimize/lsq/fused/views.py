"""Where a kernel finds its data: a tensor for each load, by name."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from torchimize.kernel.graph import PROBLEM, SAMPLE, Node
from torchimize.kernel.torch_ops import strided_view
from torchimize.kernel.trace import Piece
from torchimize.lsq.fused.plan import Expressions, Plan, run_lengths
from torchimize.lsq.inverse import largest_condition
from torchimize.lsq.likelihood import LeastSquares
from torchimize.lsq.policy import Policy
from torchimize.lsq.problem import Problem


class Views:
    """The tensors behind the loads of a fit.

    Parameters
    ----------
    problem : Problem
    policy : Policy
    plan : Plan
    expressions : Expressions
    sources : list of Tensor
        What the trace's loads read, with all rows.
    params0 : Tensor (B, P)
        Starts, of the kernel's type.
    scale : Tensor (B, P), optional
    max_iter : int, optional
    """

    def __init__(
        self,
        problem: Problem,
        policy: Policy,
        plan: Plan,
        expressions: Expressions,
        sources: list[Tensor],
        params0: Tensor,
        scale: Tensor | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.problem, self.plan, self.params0 = problem, plan, params0
        self.expressions, self.sources = expressions, sources
        self._lengths = run_lengths(expressions.trace)
        numbers = dict(vars(policy.tests))
        if max_iter is not None:
            numbers["max_iter"] = max_iter
        if isinstance(problem.likelihood, LeastSquares):
            numbers["f_scale"] = problem.likelihood.f_scale
        if plan.inverse:
            # in float32 running totals lose digits with their length
            eps = torch.finfo(plan.dtype).eps
            growth = 1.0 if plan.bits == 64 else 1 + problem.num_residuals / 1024
            numbers["condition"] = largest_condition(eps * growth)
        constants = [cast(float, node.value) for node in expressions.constants]
        real = np.float32 if plan.bits == 32 else np.float64
        with np.errstate(over="ignore"):
            self._numbers = np.array([*numbers.values(), *constants], dtype=real)
        self._places = {name: k for k, name in enumerate(numbers)}
        self._base = int(self._numbers.ctypes.data)
        self._rows: dict[str, Any] = {
            "params0": params0,
            "lower": problem.lower,
            "upper": problem.upper,
            "fixed": problem.fixed,
            "scale": None if scale is None else scale.to(plan.dtype),
        }
        data = problem.likelihood.data
        self._data: dict[str, Any] = {
            "observed": data.observed,
            "weight": data.weight,
            "mask": data.mask,
        }
        self._data_dtype = torch.float32 if plan.data_bits == 32 else torch.float64

    def __getitem__(self, name: Hashable) -> Tensor | int:
        """A tensor, or the address of a number."""
        if isinstance(name, str):
            return self._address(self._places[name])
        kind, number, *run = cast("tuple[Any, ...]", name)
        if kind == "constant":
            return self._address(len(self._places) + number)
        if kind == "model":
            return self._model(self.expressions.loads[number], run[0])
        if kind in self._data:
            samples: Tensor = self._samples(self._data[kind], self.expressions.trace.pieces[number])
            return samples
        column: Tensor = self._rows[kind][:, number]
        shared = self.plan.shared_bounds and kind in ("lower", "upper", "fixed")
        return column[0] if shared else column

    def _address(self, place: int) -> int:
        return self._base + place * self._numbers.itemsize

    def _model(self, load: Node, run: int) -> Tensor:
        length = self._lengths[run] if load.depends & SAMPLE else 1
        view: Tensor = strided_view(self.sources, load.value, self.problem.num_problems, length)
        if view.dtype != torch.bool:
            view = view.to(self._data_dtype)
        if not load.depends & PROBLEM:
            view = view[0]
        return view if load.depends & SAMPLE else view[..., 0]

    def _samples(self, data: Tensor, piece: Piece) -> Tensor:
        """The part of data (M,) or (B, M) that belongs to a piece."""
        trace = self.expressions.trace
        # strides of the output, its dimensions side by side
        stride, offset, along = 1, 0, 1
        for d in reversed(range(len(trace.layout))):
            if d == trace.sample_dim:
                offset, along = offset + stride * piece.start, stride * piece.step
            else:
                offset += stride * piece.position[d]
            stride *= trace.layout[d]
        stop = offset + along * (piece.length - 1) + 1
        return data[..., offset:stop:along]
