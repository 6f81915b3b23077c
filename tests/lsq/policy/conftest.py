"""States and proposals for the policy's tests, with only those numbers given that matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from torchimize.linalg import CholeskyBlocks
from torchimize.lsq.policy import Proposal, State


@pytest.fixture
def blocks() -> CholeskyBlocks:
    """The eager engine's P×P operations."""
    return CholeskyBlocks()


def double(value: Any) -> torch.Tensor:
    """Numbers as float64; whole numbers and truth values keep their type."""
    tensor = torch.as_tensor(value)
    if tensor.is_floating_point():
        return torch.as_tensor(value, dtype=torch.float64)
    return tensor


@pytest.fixture
def make_state() -> Callable[..., State]:
    """``make_state(params, **fields)``: a state without a box, at params (B, P)."""

    def make(params: Any, **fields: Any) -> State:
        start = double(params)
        infinite = torch.full_like(start, torch.inf)
        state = State.start(start, -infinite, infinite, torch.zeros_like(start, dtype=torch.bool))
        new = {name: double(value) for name, value in fields.items()}
        for name, value in new.items():
            assert value.shape == getattr(state, name).shape, name
            assert value.dtype == getattr(state, name).dtype, name
        return replace(state, **new)

    return make


@pytest.fixture
def make_proposal() -> Callable[..., Proposal]:
    """``make_proposal(state, step, **fields)``: a usable Gauss-Newton step (B, P)."""

    def make(state: State, step: Any, **fields: Any) -> Proposal:
        values = double(step)
        proposal = Proposal(
            step=values,
            params_trial=state.params + values,
            scaled_norm=(state.scale * values).norm(dim=-1),
            predicted_reduction=torch.ones_like(state.cost),
            damping=torch.zeros_like(state.cost),
            usable=torch.ones_like(state.fresh),
            limited=torch.zeros_like(state.fresh),
            free=~state.fixed,
            bent=torch.zeros_like(state.fresh),
        )
        new = {name: double(value) for name, value in fields.items()}
        for name, value in new.items():
            assert value.shape == getattr(proposal, name).shape, name
        return replace(proposal, **new)

    return make
