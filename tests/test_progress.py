"""The bar and the state that a callback sees."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest
import torch
from torch import Tensor

import torchimize
from problems import workloads
from torchimize import IterationState
from torchimize.progress import ProgressBar

W = workloads.make("gauss1d", 40, seed=3)


def test_bar_counts_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(1000, show=True) as bar:
        bar.advance(400)
        bar.advance(600)
    shown = capsys.readouterr().err
    assert re.search(r"100%.*1\.00k/1\.00k.*fit/s", shown), shown


def test_bar_that_is_not_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # without a bar its library is not even looked for
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with ProgressBar(1000, show=False) as bar:
        bar.advance(1000)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_bar_is_closed_after_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(10, show=True)
    with pytest.raises(KeyboardInterrupt), bar:
        bar.advance(3)
        raise KeyboardInterrupt
    assert bar._bar.disable, "tqdm disables a bar that has been closed"
    assert capsys.readouterr().err.endswith("\n")


def test_progress_of_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = torchimize.least_squares(W.residual, W.start, args=(W.y,))
    assert capsys.readouterr().err == ""
    result = torchimize.least_squares(W.residual, W.start, args=(W.y,), progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"100%.*40\.0/40\.0", shown), shown
    assert torch.equal(result.x, quiet.x)


def test_interrupt_leaves_a_clean_exception(capsys: pytest.CaptureFixture[str]) -> None:
    def residual(p: Tensor, y: Tensor) -> Tensor:
        if len(p) > 10:  # a trial step, not a look at the function
            raise KeyboardInterrupt
        return W.residual(p, y)

    start = W.start.clone()
    with pytest.raises(KeyboardInterrupt) as error:
        torchimize.least_squares(residual, start, args=(W.y,), progress=True, engine="eager")
    assert error.value.__cause__ is None and error.value.__context__ is None
    assert torch.equal(start, W.start)
    assert capsys.readouterr().err.endswith("\n")


def test_state_is_frozen() -> None:
    state = IterationState(1, *(torch.zeros(2) for _ in range(4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.iteration = 2  # type: ignore[misc]
    assert [field.name for field in dataclasses.fields(IterationState)] == [
        "iteration", "x", "cost", "nfev", "running",
    ]  # fmt: skip


def test_states_of_a_fit() -> None:
    seen: list[IterationState] = []
    result = torchimize.least_squares(W.residual, W.start, args=(W.y,), callback=seen.append)
    assert [state.iteration for state in seen] == list(range(1, len(seen) + 1))
    for state in seen:
        assert state.x.shape == (40, 4) and state.x.dtype == torch.float64
        assert state.cost.shape == state.nfev.shape == state.running.shape == (40,)
        assert (state.cost.dtype, state.running.dtype) == (torch.float64, torch.bool)
    costs = torch.stack([state.cost for state in seen])
    assert bool((costs[1:] <= costs[:-1]).all())
    running = torch.stack([state.running for state in seen])
    assert bool((running[:-1] | ~running[1:]).all()), "a stopped problem stays stopped"
    assert not bool(seen[-1].running.any())
    torch.testing.assert_close(seen[-1].x, result.x, rtol=0, atol=0)


def test_states_are_copies() -> None:
    kept: list[IterationState] = []

    def meddle(state: IterationState) -> None:
        kept.append(dataclasses.replace(state, x=state.x.clone()))
        state.x.zero_()
        state.cost.zero_()
        state.nfev.zero_()
        state.running.zero_()

    result = torchimize.least_squares(W.residual, W.start, args=(W.y,), callback=meddle)
    untouched = torchimize.least_squares(W.residual, W.start, args=(W.y,), callback=lambda _: None)
    assert torch.equal(result.x, untouched.x) and torch.equal(result.nfev, untouched.nfev)
    assert len(kept) > 1 and not torch.equal(kept[0].x, kept[-1].x)
