"""GNA: every parameter tensor's gradient times the inverse of its own curvature block."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchimize.optimizer
from torchimize.optimizer import GNA


def perceptron(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return model


def data(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    return x, y


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    loss: Tensor = 0.5 * (model(x) - y).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def difference_jacobian(model: nn.Module, tensor: Tensor, x: Tensor) -> np.ndarray:
    """Central differences of the model's output (M,) with respect to a tensor's n numbers."""
    columns = []
    flat = tensor.data.reshape(-1)
    with torch.no_grad():
        for k in range(len(flat)):
            kept = float(flat[k])
            flat[k] = kept + 1e-5
            ahead = model(x).reshape(-1)
            flat[k] = kept - 1e-5
            columns.append(((ahead - model(x).reshape(-1)) / 2e-5).numpy())
            flat[k] = kept
    return np.stack(columns, 1)


@pytest.mark.parametrize("lr", [1.0, 0.1])
def test_step_of_every_tensor_against_numpy(lr: float) -> None:
    model = perceptron()
    x, y = data()
    backward(model, x, y)
    expected = []
    for tensor in model.parameters():
        jacobian = difference_jacobian(model, tensor, x)
        assert tensor.grad is not None
        newton = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-9) @ tensor.grad.numpy().reshape(-1)
        expected.append(tensor.detach().numpy() - lr * newton.reshape(tensor.shape))
    assert GNA(model.parameters(), lr=lr, model=model).step(x) is None
    for tensor, wanted in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(tensor.detach(), wanted, rtol=1e-6, atol=1e-6)


def test_exact_hessian_block_of_the_squared_output() -> None:
    model = perceptron(seed=3)
    x, y = data()
    backward(model, x, y)
    expected = {}
    for name, tensor in model.named_parameters():

        def squares(value: Tensor, name: str = name) -> Tensor:
            output: Tensor = torch.func.functional_call(model, {name: value}, (x,))
            return output.square().sum()

        hessian = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            squares, tensor.detach()
        )
        n = tensor.numel()
        assert tensor.grad is not None
        inverse = np.linalg.pinv(hessian.reshape(n, n).numpy(), rcond=1e-12)
        newton = inverse @ tensor.grad.reshape(n).numpy()
        expected[name] = tensor.detach() - 0.5 * torch.tensor(newton).reshape(tensor.shape)
    GNA(model.parameters(), lr=0.5, model=model, hessian_approx=False).step(x)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor.detach(), expected[name], rtol=1e-7, atol=1e-8)


def test_linear_regression_in_one_step() -> None:
    x, _ = data()
    model = nn.Linear(2, 1, bias=False).double()
    truth = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    y = x @ truth.mT
    optimizer = GNA(model.parameters(), lr=1.0, model=model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = 0.5 * (model(x) - y).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(x, closure)
    torch.testing.assert_close(model.weight.detach(), truth, rtol=1e-9, atol=1e-9)


def test_loss_falls_on_a_nonlinear_model() -> None:
    model = perceptron(seed=5)
    x, _ = data()
    with torch.no_grad():
        y = perceptron(seed=6)(x)
    optimizer = GNA(model.parameters(), lr=0.2, model=model)

    def closure() -> Tensor:
        return backward(model, x, y)

    losses = []
    for _ in range(40):
        loss = optimizer.step(x, closure)
        assert loss is not None
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_closure_s_loss_is_returned_and_its_gradients_are_used() -> None:
    model = perceptron()
    x, y = data()
    optimizer = GNA(model.parameters(), lr=0.1, model=model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        assert torch.is_grad_enabled()
        return backward(model, x, y)

    with torch.no_grad():
        expected = 0.5 * (model(x) - y).square().sum()
    loss = optimizer.step(x, closure)
    assert calls == 1 and loss is not None
    torch.testing.assert_close(loss.detach(), expected)


def test_tensors_without_a_gradient_stay() -> None:
    model = perceptron()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    x, y = data()
    backward(model, x, y)
    assert model[0].weight.grad is None
    GNA(model.parameters(), lr=0.1, model=model).step(x)
    after = dict(model.named_parameters())
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["2.weight"], before["2.weight"])


def test_without_any_gradient_nothing_happens() -> None:
    model = perceptron()
    before = [tensor.detach().clone() for tensor in model.parameters()]
    assert GNA(model.parameters(), lr=1.0, model=model).step(data()[0]) is None
    assert all(map(torch.equal, model.parameters(), before))


def test_singular_block_takes_the_shortest_step() -> None:
    # two inputs that are always equal: JᵀJ has rank 1, the pseudo-inverse shares the step
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    optimizer = GNA(model.parameters(), lr=1.0, model=model)
    (0.5 * (model(x) - 4 * x[:, :1]).square().sum()).backward()
    optimizer.step(x)
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0).double())


def test_groups_have_their_own_rates() -> None:
    x, y = data()
    models = [perceptron() for _ in range(3)]
    for model in models:
        backward(model, x, y)
    fast, slow, both = models
    GNA(fast.parameters(), lr=0.5, model=fast).step(x)
    GNA(slow.parameters(), lr=0.1, model=slow).step(x)
    groups = [
        {"params": both[0].parameters(), "lr": 0.5},
        {"params": both[2].parameters(), "lr": 0.1},
    ]
    optimizer = GNA(groups, lr=7.0, model=both)
    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizer.step(x)
    ends = [dict(model.named_parameters()) for model in (fast, slow, both)]
    assert torch.equal(ends[2]["0.weight"], ends[0]["0.weight"])
    assert torch.equal(ends[2]["2.bias"], ends[1]["2.bias"])
    assert not torch.equal(ends[2]["0.weight"], ends[1]["0.weight"])


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_rate_must_be_positive(lr: float) -> None:
    model = perceptron()
    with pytest.raises(ValueError, match=rf"`lr` is {lr}; wanted a number > 0"):
        GNA(model.parameters(), lr=lr, model=model)


def test_parameters_must_be_the_model_s() -> None:
    with pytest.raises(ValueError, match="not a parameter of `model`"):
        GNA(perceptron(1).parameters(), lr=1.0, model=perceptron(2))


def test_signature_and_import_paths() -> None:
    from torchimize.optimizer import gna_opt

    assert gna_opt.GNA is torchimize.optimizer.GNA
    parameters = inspect.signature(GNA).parameters
    assert list(parameters) == ["params", "lr", "model", "hessian_approx"]
    assert parameters["hessian_approx"].default is True
    assert list(inspect.signature(GNA.step).parameters)[:3] == ["self", "x", "closure"]
