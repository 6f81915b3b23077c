"""The eager engine: a pool of running problems, one torch call for all of them at a time.

The pool holds at most ``capacity`` problems. Problems that have stopped leave it, new ones take
their places, so no work is spent on the stopped and the calls stay large until the last few. On an
accelerator the host looks at the pool only every few iterations; between two looks stopped
problems are carried along unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy import Policy, State
from torchimize.lsq.problem import Problem
from torchimize.lsq.solution import Solution
from torchimize.progress import IterationState, ProgressBar
from torchimize.status import RUNNING, Status

POOL_NUMBERS = 1_000_000
"""Numbers that the pool's P×P blocks may hold on a CPU; bounds the memory whatever B is."""

DEVICE_POOL_NUMBERS = 64 * POOL_NUMBERS
"""The same on an accelerator, which wants a hundred thousands of problems at a time."""

LOOK_EVERY = 8
"""Iterations between two looks of the host on an accelerator."""

Callback = Callable[[IterationState], object]


def solve(
    problem: Problem,
    policy: Policy,
    *,
    scale: Tensor | None = None,
    keep_normal_matrix: bool = False,
    keep_history: bool = False,
    max_iter: int | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    capacity: int | None = None,
    look_every: int | None = None,
) -> Solution:
    """Run a policy on every problem until all have stopped.

    Parameters
    ----------
    problem : Problem
    policy : Policy
    scale : Tensor (B, P), optional
        Initial D, for rules that keep it.
    keep_normal_matrix, keep_history : bool
        Fill these fields of the solution; a history makes all problems iterate in step.
    max_iter : int, optional
        Iterations; None leaves the limit to the policy's tests.
    callback : callable, optional
        Gets an :class:`~torchimize.progress.IterationState` after each iteration; stops all
        problems by returning a true value or raising StopIteration.
    progress : bool
        Show a bar.
    capacity : int, optional
        Problems in the pool.
    look_every : int, optional
        Iterations between two looks; 1 on a CPU.

    Raises
    ------
    ValueError
        Where no problem at all has a finite start.
    """
    watched = keep_history or callback is not None
    in_step = watched or not problem.function.any_rows
    run = _Run(problem, policy, scale, keep_normal_matrix, 1 if watched else look_every)
    if capacity is None or in_step:
        per_problem = problem.num_params * (problem.num_params + 12)
        on_cpu = problem.params0.device.type == "cpu"
        numbers = POOL_NUMBERS if on_cpu else DEVICE_POOL_NUMBERS
        capacity = problem.num_problems if in_step else max(256, numbers // per_problem)
    history = [problem.params0.clone()] if keep_history else None
    iteration = 0
    with ProgressBar(problem.num_problems, progress) as bar:
        while run.load(capacity):
            last = iteration == max_iter
            if last:
                run.stop(Status.MAX_NFEV)
            else:
                run.iterate()
                iteration += 1
                if history is not None and run.moved:
                    history.append(run.current_params())
                if callback is not None and run.report(callback, iteration):
                    last = True
                    run.stop(Status.CALLBACK)
            if last or iteration % run.look_every == 0:
                bar.advance(run.retire())
    solution = run.solution
    solution.history = history
    if problem.num_problems and bool((solution.status == int(Status.NON_FINITE_START)).all()):
        raise ValueError("Residuals are not finite in the initial point.")
    return solution


class _Run:
    """One solve: the pool, and the solution that it fills."""

    def __init__(
        self,
        problem: Problem,
        policy: Policy,
        scale: Tensor | None,
        keep_normal_matrix: bool,
        look_every: int | None,
    ) -> None:
        self.problem, self.policy, self.scale = problem, policy, scale
        params0 = problem.params0
        on_cpu = params0.device.type == "cpu"
        self.look_every = look_every or (1 if on_cpu else LOOK_EVERY)
        self.may_synchronise = self.look_every == 1
        self.blocks = CholeskyBlocks(self.may_synchronise)
        batch, num_params = params0.shape
        device = params0.device
        self.solution = Solution(
            params=params0.clone(),
            cost=torch.full((batch,), torch.nan, dtype=torch.float64, device=device),
            status=torch.full((batch,), RUNNING, dtype=torch.int8, device=device),
            nfev=torch.zeros(batch, dtype=torch.int64, device=device),
            njev=torch.zeros(batch, dtype=torch.int64, device=device),
            normal_matrix=(
                torch.zeros(batch, num_params, num_params, dtype=torch.float64, device=device)
                if keep_normal_matrix
                else None
            ),
            history=None,
        )
        self.next_row = 0
        self.rows = torch.zeros(0, dtype=torch.int64, device=device)
        self.state = self._start(self.rows)
        self.moved = False

    def _start(self, rows: Tensor) -> State:
        problem = self.problem
        state = State.start(
            problem.params0.index_select(0, rows),
            problem.lower.index_select(0, rows),
            problem.upper.index_select(0, rows),
            problem.fixed.index_select(0, rows),
        )
        if self.scale is not None:
            everywhere = torch.ones_like(state.fresh)
            state = state.update(everywhere, scale=self.scale.index_select(0, rows))
        return state

    def load(self, capacity: int) -> bool:
        """Fill the pool where half of it is free; whether anything runs or waits."""
        waiting = self.problem.num_problems - self.next_row
        if waiting and 2 * len(self.rows) <= capacity:
            count = min(waiting, capacity - len(self.rows))
            rows = torch.arange(self.next_row, self.next_row + count, device=self.rows.device)
            self.next_row += count
            self.rows = torch.cat([self.rows, rows])
            self.state = self.state.join(self._start(rows))
        return len(self.rows) > 0

    def iterate(self) -> None:
        """One trial of every running problem."""
        policy, blocks = self.policy, self.blocks
        state = self.state
        where = state.fresh & state.running
        derivatives = self._evaluate(self.problem.linearise, state.params, where)
        if derivatives is not None:
            state = policy.at_new_point(blocks, state, where, *derivatives)
        state, proposal = policy.propose(blocks, state)
        tried = state.running & proposal.usable
        trial = self._evaluate(
            lambda p, r: (self.problem.cost(p, r),), proposal.params_trial, tried
        )
        self.moved = trial is not None
        if trial is not None:
            state = policy.judge(blocks, state, proposal, *trial)
        self.state = state

    def _evaluate(
        self,
        function: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]],
        params: Tensor,
        where: Tensor,
    ) -> tuple[Tensor, ...] | None:
        """Call on the problems in ``where`` (B,); rows of zeros for the others, None for none."""
        if not self.may_synchronise:
            return function(params, self._user_rows(self.rows))
        index = where.nonzero()[:, 0]
        if len(index) == 0:
            return None
        if len(index) == len(where):
            return function(params, self._user_rows(self.rows))
        values = function(params.index_select(0, index), self.rows.index_select(0, index))
        return tuple(
            value.new_zeros(len(where), *value.shape[1:]).index_copy(0, index, value)
            for value in values
        )

    def _user_rows(self, rows: Tensor) -> Tensor | None:
        """None where the pool is the whole batch in order, so that nothing need be gathered."""
        return None if len(rows) == self.problem.num_problems else rows

    def current_params(self) -> Tensor:
        """Where every problem is now: (B, P)."""
        return self.solution.params.index_copy(0, self.rows, self.state.params)

    def report(self, callback: Callback, iteration: int) -> bool:
        """Tell the callback; whether it wants to stop."""
        solution = self.solution
        running = self.state.running
        seen = IterationState(
            iteration=iteration,
            x=self.current_params(),
            cost=solution.cost.index_copy(0, self.rows, self.state.cost),
            nfev=solution.nfev.index_copy(0, self.rows, self.state.nfev),
            running=torch.zeros_like(solution.status, dtype=torch.bool).index_copy(
                0, self.rows, running
            ),
        )
        try:
            return bool(callback(seen))
        except StopIteration:
            return True

    def stop(self, status: Status) -> None:
        """Stop every running problem."""
        state = self.state
        self.state = state.update(state.running, status=torch.full_like(state.status, int(status)))

    def retire(self) -> int:
        """Move stopped problems from the pool to the solution; how many."""
        running = self.state.running
        stopped = (~running).nonzero()[:, 0]
        count = len(stopped)
        if count == 0:
            return 0
        gone, rows = self.state.take(stopped), self.rows.index_select(0, stopped)
        solution = self.solution
        for name in ("params", "cost", "status", "nfev", "njev"):
            getattr(solution, name).index_copy_(0, rows, getattr(gone, name))
        if solution.normal_matrix is not None:
            solution.normal_matrix.index_copy_(0, rows, gone.normal_matrix)
        keep = running.nonzero()[:, 0]
        self.state, self.rows = self.state.take(keep), self.rows.index_select(0, keep)
        return count
