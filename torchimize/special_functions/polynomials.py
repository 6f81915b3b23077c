"""Orthogonal polynomials by their recurrence in the degree (NIST DLMF 18.9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchimize.special_functions.elementwise import alike

Polynomial = Callable[[Tensor, Tensor | int], Tensor]
Recurrence = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def _polynomial(first: Callable[[Tensor], Tensor], following: Recurrence) -> Polynomial:
    def polynomial(x: Tensor, n: Tensor | int) -> Tensor:
        (x,) = alike((x,))
        highest = int(n.max()) if isinstance(n, Tensor) else int(n)
        below, here = torch.ones_like(x), first(x)
        if not isinstance(n, Tensor):
            if highest < 1:
                return below if highest == 0 else torch.zeros_like(x)
            for degree in range(1, highest):
                below, here = here, following(degree, x, here, below)
            return here
        result = torch.where(n == 0, below, torch.where(n == 1, here, 0.0))
        for degree in range(1, highest):
            below, here = here, following(degree, x, here, below)
            result = torch.where(n == degree + 1, here, result)
        return result

    return polynomial


def _chebyshev(n: int, x: Tensor, here: Tensor, below: Tensor) -> Tensor:
    return 2 * x * here - below


chebyshev_polynomial_t = _polynomial(lambda x: 1 * x, _chebyshev)
chebyshev_polynomial_u = _polynomial(lambda x: 2 * x, _chebyshev)
chebyshev_polynomial_v = _polynomial(lambda x: 2 * x - 1, _chebyshev)
chebyshev_polynomial_w = _polynomial(lambda x: 2 * x + 1, _chebyshev)
hermite_polynomial_h = _polynomial(
    lambda x: 2 * x, lambda n, x, here, below: 2 * x * here - 2 * n * below
)
hermite_polynomial_he = _polynomial(lambda x: 1 * x, lambda n, x, here, below: x * here - n * below)
laguerre_polynomial_l = _polynomial(
    lambda x: 1 - x, lambda n, x, here, below: ((2 * n + 1 - x) * here - n * below) / (n + 1)
)
legendre_polynomial_p = _polynomial(
    lambda x: 1 * x, lambda n, x, here, below: ((2 * n + 1) * x * here - n * below) / (n + 1)
)


def _shifted(polynomial: Polynomial) -> Polynomial:
    return lambda x, n: polynomial(2 * x - 1, n)


shifted_chebyshev_polynomial_t = _shifted(chebyshev_polynomial_t)
shifted_chebyshev_polynomial_u = _shifted(chebyshev_polynomial_u)
shifted_chebyshev_polynomial_v = _shifted(chebyshev_polynomial_v)
shifted_chebyshev_polynomial_w = _shifted(chebyshev_polynomial_w)
