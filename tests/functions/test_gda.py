"""`gradient_descent*` keep a historical name: their step is −l·h, h the solution of J h ≈ f."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

import torchimize.functions
from problems import workloads
from torchimize.functions import (
    gradient_descent,
    gradient_descent_parallel,
    gradient_descent_parallel_plain,
    lsq_gna,
    lsq_gna_parallel,
)

W = workloads.make("gauss1d", 20, seed=1)
LENGTHS = [1.0, 0.5]


def closed(p: Tensor) -> Tensor:
    return W.residual(p, W.y)


def closed_jacobian(p: Tensor) -> Tensor:
    return W.residual_jacobian(p, W.y)


@pytest.mark.parametrize("l", LENGTHS)
def test_first_step_by_hand(l: float) -> None:  # noqa: E741
    path = gradient_descent_parallel(W.start, closed, closed_jacobian, l=l, max_iter=2)
    f, j = closed(W.start).numpy()[:, 0], closed_jacobian(W.start).numpy()[:, 0]
    for row in range(20):
        h = np.linalg.lstsq(j[row], f[row], rcond=None)[0]
        np.testing.assert_allclose(path[1][row], W.start[row].numpy() - l * h, rtol=1e-9)


def test_sign() -> None:
    # f = p − 3 from p = 1: J h = f gives h = −2, and p − h is the solution
    start = torch.tensor([1.0], dtype=torch.float64)
    assert gradient_descent(start, lambda p: p - 3, max_iter=2)[1].tolist() == [pytest.approx(3.0)]
    assert gradient_descent(start, lambda p: p - 3, l=0.25, max_iter=2)[1].tolist() == [1.5]


@pytest.mark.parametrize("l", LENGTHS)
def test_parallel_is_gauss_newton(l: float) -> None:  # noqa: E741
    one = gradient_descent_parallel(W.start, W.residual, W.residual_jacobian, (W.y,), l=l)
    other = lsq_gna_parallel(W.start, W.residual, W.residual_jacobian, (W.y,), l=l)
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    cost = workloads.costs(W, one[-1])
    assert bool((cost <= workloads.SOLVED * workloads.best_costs(W)).all())


@pytest.mark.parametrize("l", LENGTHS)
def test_single_is_gauss_newton(l: float) -> None:  # noqa: E741
    def residual(p: Tensor, y: Tensor) -> Tensor:
        return W.model(W.x, *p) - y

    one = gradient_descent(W.start[0], residual, args=(W.y[0],), l=l)
    other = lsq_gna(W.start[0], residual, args=(W.y[0],), l=l)
    assert len(one) == len(other) and all(map(torch.equal, one, other))
    parallel = gradient_descent_parallel(W.start[:1], W.residual, None, (W.y[:1],), l=l)
    torch.testing.assert_close(one[-1], parallel[-1][0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("steps", [1, 3])
def test_plain_by_hand(l: float, steps: int) -> None:  # noqa: E741
    end = gradient_descent_parallel_plain(W.start, closed, closed_jacobian, None, l, steps)
    p = W.start
    for _ in range(steps):
        h = torch.linalg.lstsq(closed_jacobian(p)[:, 0], closed(p)[:, 0, :, None]).solution[..., 0]
        p = p - l * h
    torch.testing.assert_close(end, p, rtol=1e-9, atol=1e-9)


def test_wvec_and_args() -> None:
    # two channels that want 1 and 5: the weighted mean
    target = torch.tensor([[[1.0], [5.0]]], dtype=torch.float64)
    wvec = torch.tensor([3.0, 1.0])
    start = torch.zeros(2, 1, dtype=torch.float64)
    path = gradient_descent_parallel(start, lambda p, t: p[:, :, None] - t, None, (target,), wvec)
    torch.testing.assert_close(path[-1], torch.full((2, 1), 2.0).double())
    plain = gradient_descent_parallel_plain(
        start, lambda p: p[:, :, None] - target, None, wvec, max_iter=1
    )
    torch.testing.assert_close(plain, torch.full((2, 1), 2.0).double())


def test_start_is_left_alone() -> None:
    start = W.start.clone().requires_grad_()
    path = gradient_descent_parallel(start, closed)
    plain = gradient_descent_parallel_plain(start, closed, None, None, max_iter=2)
    assert torch.equal(start.detach(), W.start)
    assert not path[-1].requires_grad and not plain.requires_grad


def test_new_keywords() -> None:
    ends, result = gradient_descent_parallel(
        W.start,
        W.residual,
        args=(W.y,),
        bounds=(0.0, 70.0),
        loss="soft_l1",
        f_scale=20.0,
        history=False,
        full_output=True,
        callback=lambda state: False,
    )
    assert len(ends) == 2 and bool(result.success.all())
    with_loss = lsq_gna_parallel(W.start, W.residual, args=(W.y,), loss="soft_l1", f_scale=20.0)
    torch.testing.assert_close(ends[1], with_loss[-1], rtol=1e-6, atol=1e-6)
    path = gradient_descent(
        W.start[0],
        lambda p: W.model(W.x, *p) - W.y[0],
        bounds=(W.start[0] - 0.5, W.start[0] + 0.5),
    )
    assert bool(((path[-1] - W.start[0]).abs() <= 0.5).all())
    assert bool(((path[-1] - W.start[0]).abs() == 0.5).any())


def test_signatures() -> None:
    empty = inspect.Parameter.empty
    tail = {"ftol": 1e-8, "ptol": 1e-8, "gtol": 1e-8, "l": 1.0, "max_iter": 100}
    head = {"p": empty, "function": empty, "jac_function": None, "args": ()}
    new = {
        "bounds": None, "loss": "linear", "f_scale": 1.0, "history": True, "full_output": False,
        "callback": None,
    }  # fmt: skip
    for function, old in (
        (gradient_descent, {**head, **tail}),
        (gradient_descent_parallel, {**head, "wvec": None, **tail}),
    ):
        parameters = inspect.signature(function).parameters
        names = list(parameters)
        assert names[: len(old)] == list(old)
        assert [parameters[name].default for name in old] == list(old.values())
        assert [name for name in names[len(old) :] if name in new] == list(new)
        assert all(parameters[name].default == default for name, default in new.items())
    plain = inspect.signature(gradient_descent_parallel_plain).parameters
    assert [(name, parameter.default) for name, parameter in plain.items()] == [
        ("p", empty), ("function", empty), ("jac_function", empty), ("wvec", empty), ("l", 1.0),
        ("max_iter", 100),
    ]  # fmt: skip


def test_import_paths() -> None:
    from torchimize.functions.parallel import gda_fun_parallel as parallel
    from torchimize.functions.single import gda_fun_single as single

    assert single.gradient_descent is torchimize.functions.gradient_descent
    assert parallel.gradient_descent_parallel is torchimize.functions.gradient_descent_parallel
    assert (
        parallel.gradient_descent_parallel_plain
        is torchimize.functions.gradient_descent_parallel_plain
    )
