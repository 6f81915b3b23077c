"""What a Newton step is made of, against NumPy's einsum."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

import torchimize.functions
from problems import workloads
from torchimize.functions import lsq_gna_parallel_plain, newton_step_parallel

W = workloads.make("W4", 5, seed=2)


def closed(p: Tensor) -> Tensor:
    return W.residual(p, W.y.to(p))


def closed_jacobian(p: Tensor) -> Tensor:
    return W.residual_jacobian(p, W.y)


@pytest.mark.parametrize("weights", [None, (1.0, 1.0), (0.3, 7.0), (0.0, 2.0)])
@pytest.mark.parametrize("analytic", [True, False])
def test_parts_by_einsum(weights: tuple[float, ...] | None, analytic: bool) -> None:
    wvec = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    p, f, gradient, normal = newton_step_parallel(
        W.start, closed, closed_jacobian if analytic else None, wvec
    )
    r, j = closed(W.start).numpy(), closed_jacobian(W.start).numpy()
    w = np.ones(2) if weights is None else np.array(weights)
    assert torch.equal(p, W.start)
    assert f.shape == (5, 2, 2000) and gradient.shape == (5, 4) and normal.shape == (5, 4, 4)
    np.testing.assert_allclose(f, r, rtol=1e-12)
    scale = np.abs(np.einsum("bcnp,bcn->bcnp", j, r)).sum((1, 2))
    wanted = np.einsum("c,bcnp,bcn->bp", w, j, r)
    np.testing.assert_array_less(np.abs(gradient.numpy() - wanted), 1e-12 * scale * w.max())
    np.testing.assert_allclose(normal, np.einsum("c,bcnp,bcnq->bpq", w, j, j), rtol=1e-9, atol=1e-9)


def test_parts_make_a_gauss_newton_step() -> None:
    wvec = torch.tensor([0.3, 7.0], dtype=torch.float64)
    p, _, gradient, normal = newton_step_parallel(W.start, closed, closed_jacobian, wvec)
    step = -torch.linalg.solve(normal, gradient[..., None])[..., 0]
    plain = lsq_gna_parallel_plain(W.start, closed, closed_jacobian, wvec, max_iter=1)
    torch.testing.assert_close(p + step, plain, rtol=1e-8, atol=1e-8)


def test_float32_and_a_start_that_requires_grad() -> None:
    start = W.start.float().requires_grad_()
    p, f, gradient, normal = newton_step_parallel(start, closed, None, None)
    assert torch.equal(p, start)
    assert {f.dtype, gradient.dtype, normal.dtype} == {torch.float32}
    exact = newton_step_parallel(W.start.float().double(), closed, None, None)
    torch.testing.assert_close(f, exact[1].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normal, exact[3].float(), rtol=1e-4, atol=1e-4)


def test_signature_and_import_path() -> None:
    from torchimize.functions.parallel.newton_parallel import newton_step_parallel as same

    assert same is newton_step_parallel is torchimize.functions.newton_step_parallel
    parameters = inspect.signature(newton_step_parallel).parameters
    assert list(parameters) == ["p", "function", "jac_function", "wvec"]
    assert all(p.default is inspect.Parameter.empty for p in parameters.values())
