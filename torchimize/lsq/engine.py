"""Which engine runs a problem: the fused one wherever it can, the eager one elsewhere."""

from __future__ import annotations

from torch import Tensor

from torchimize.errors import NotFusedError
from torchimize.lsq import eager, fused
from torchimize.lsq.eager import Callback
from torchimize.lsq.policy import Policy
from torchimize.lsq.problem import Problem
from torchimize.lsq.solution import Solution

ENGINES = ("auto", "fused", "eager")


def check_engine(engine: object) -> None:
    """Raise for an unknown engine."""
    if engine not in ENGINES:
        raise ValueError(f"unknown `engine` {engine!r}; wanted one of {ENGINES}")


def solve(
    problem: Problem,
    policy: Policy,
    engine: str,
    *,
    scale: Tensor | None = None,
    covariance: bool = False,
    keep_history: bool = False,
    max_iter: int | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    refined: Policy | None = None,
) -> Solution:
    """Run a policy on every problem until all have stopped.

    Parameters
    ----------
    problem : Problem
    policy : Policy
    engine : {'auto', 'fused', 'eager'}
        'auto' takes the fused engine where it can run the problem; 'fused' insists on it.
    covariance : bool
        Keep what the covariance of a least-squares fit is made of.
    scale, keep_history, max_iter, callback, progress
        See :func:`torchimize.lsq.eager.solve`.
    refined : Policy, optional
        Finishes float32 fits in float64, by the fused engine only.

    Raises
    ------
    NotFusedError
        With ``engine='fused'`` or ``refined``, where the fused engine cannot run the problem.
    ValueError
        Where no problem at all has a finite start.
    """
    reason = "engine='eager' was asked for"
    if engine != "eager":
        try:
            if callback is not None:
                raise NotFusedError("a callback sees every iteration")
            if keep_history and max_iter is None:
                raise NotFusedError("a history of unlimited length was asked for")
            solution = fused.solve(
                problem,
                policy,
                scale=scale,
                keep_inverse=covariance,
                keep_history=keep_history,
                max_iter=max_iter,
                progress=progress,
                insist=engine == "fused",
            )
            if refined is not None:
                solution = fused.refine(problem, refined, solution, scale)
            return solution
        except NotFusedError as error:
            if engine == "fused":
                raise
            reason = str(error)
    if refined is not None:
        raise NotFusedError(f"refine=True needs the fused engine, which could not run: {reason}")
    solution = eager.solve(
        problem,
        policy,
        scale=scale,
        keep_normal_matrix=covariance,
        keep_history=keep_history,
        max_iter=max_iter,
        callback=callback,
        progress=progress,
    )
    solution.engine_reason = reason
    return solution
