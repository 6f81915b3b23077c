"""What a user sees while a batch is being solved: a bar, and the state that a callback gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from torch import Tensor

from torchimize.arrays import Output


@dataclass(frozen=True)
class IterationState:
    """The batch after an iteration, as a callback gets it; a copy that the caller may keep.

    Attributes
    ----------
    iteration : int
        Iterations so far, 1 after the first.
    x : Tensor (B, P)
        The best point of every problem so far.
    cost : Tensor (B,) of float64
        The cost there.
    nfev : Tensor (B,) of int64
        Residual evaluations of each problem so far.
    running : Tensor (B,) of bool
        Problems that have not stopped.
    """

    iteration: int
    x: Tensor
    cost: Tensor
    nfev: Tensor
    running: Tensor


def presented(
    callback: Callable[[IterationState], object], output: Output
) -> Callable[[IterationState], object]:
    """A callback that sees the batch in the user's own form."""

    def call(state: IterationState) -> object:
        return callback(
            replace(
                state,
                x=output(state.x),
                cost=output.scalar(state.cost),
                nfev=output.scalar(state.nfev),
                running=output.scalar(state.running),
            )
        )

    return call


class ProgressBar:
    """A tqdm bar of problems done and fits per second; nothing where it is not wanted.

    Parameters
    ----------
    total : int
        B.
    show : bool
    """

    def __init__(self, total: int, show: bool) -> None:
        self.total = total
        self.show = show
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        if self.show:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self.total, unit="fit", unit_scale=True)
        return self

    def advance(self, count: int) -> None:
        """Report ``count`` more problems done."""
        if self._bar is not None:
            self._bar.update(count)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
