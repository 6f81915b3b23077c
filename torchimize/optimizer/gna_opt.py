"""A Gauss-Newton optimiser in torch.optim's form, one parameter tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class GNA(torch.optim.Optimizer):
    """Precondition each parameter tensor's gradient by its own Gauss-Newton block.

    For every tensor p with a gradient: p ← p − lr · H⁺ · p.grad, where H = JᵀJ of the model's
    output with respect to p, or p's block of the exact Hessian of Σ output².

    Parameters
    ----------
    params : iterable
        Parameters of ``model``, as for any torch optimiser.
    lr : float
        Factor of the step, > 0.
    model : torch.nn.Module
        Called on the batch given to :meth:`step`.
    hessian_approx : bool, default True
        False takes the exact Hessian block.

    Raises
    ------
    ValueError
        ``lr`` is not positive, or a parameter is not one of the model's.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> optimizer = GNA(model.parameters(), lr=1.0, model=model)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (model(x) - 1).square().sum()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(x, closure)
    >>> model.weight.detach().round(decimals=6).tolist()
    [[1.0, 0.5]]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        model: nn.Module,
        hessian_approx: bool = True,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"`lr` is {lr}; wanted a number > 0")
        super().__init__(params, {"lr": lr, "hessian_approx": hessian_approx})
        self.model = model
        self._names = {id(tensor): name for name, tensor in model.named_parameters()}
        for group in self.param_groups:
            for tensor in group["params"]:
                if id(tensor) not in self._names:
                    raise ValueError("`params` holds a tensor that is not a parameter of `model`")

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, x: Tensor, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Take one step.

        Parameters
        ----------
        x : Tensor
            The current batch, the model's input.
        closure : callable, optional
            Evaluates the loss and its gradients.

        Returns
        -------
        Tensor or None
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = []
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                curvature = self._curvature(tensor, x, group["hessian_approx"])
                newton = torch.linalg.pinv(curvature, hermitian=True) @ tensor.grad.reshape(-1)
                updates.append((tensor, group["lr"] * newton.reshape(tensor.shape)))
        for tensor, update in updates:
            tensor.sub_(update)
        return loss

    def _curvature(self, tensor: Tensor, x: Tensor, hessian_approx: bool) -> Tensor:
        """The (n, n) block of a tensor of n numbers."""
        name = self._names[id(tensor)]

        def output(flat: Tensor) -> Tensor:
            replaced = {name: flat.reshape(tensor.shape)}
            result: Tensor = torch.func.functional_call(self.model, replaced, (x,))
            return result.reshape(-1)

        flat = tensor.detach().reshape(-1)
        if hessian_approx:
            jacobian: Tensor = torch.func.jacrev(output)(flat)
            return jacobian.mT @ jacobian
        hessian: Tensor = torch.func.hessian(lambda q: output(q).square().sum())(flat)
        return hessian
