"""Robust losses ρ(z) of the squared residual z, with their first two derivatives.

The cost of a problem is ``½ Σ C² ρ((r/C)²)`` with C = ``f_scale``. Each loss is elementwise, so it
can be traced into a kernel as it stands. The definitions are those of SciPy's ``least_squares``
(see also Triggs et al. 2000, "Bundle adjustment: a modern synthesis", section 3.3 and appendix).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""z to (ρ, ρ', ρ'')."""


def soft_l1(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ = 2 (√(1 + z) − 1), a smooth |r|."""
    root = torch.sqrt(1 + z)
    return 2 * z / (root + 1), 1 / root, -0.5 / (root * root * root)


def huber(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ = z up to 1, 2√z − 1 beyond."""
    inside = z <= 1
    root = torch.sqrt(torch.where(inside, torch.ones_like(z), z))
    return (
        torch.where(inside, z, 2 * root - 1),
        1 / root,
        torch.where(inside, torch.zeros_like(z), -0.5 / (root * root * root)),
    )


def cauchy(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ = ln(1 + z)."""
    slope = 1 / (1 + z)
    return torch.log1p(z), slope, -slope * slope


def arctan(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ = arctan z, bounded."""
    slope = 1 / (1 + z * z)
    return torch.atan(z), slope, -2 * z * slope * slope


LOSSES: dict[str, Loss | None] = {
    "linear": None,
    "soft_l1": soft_l1,
    "huber": huber,
    "cauchy": cauchy,
    "arctan": arctan,
}
"""By SciPy's names; None is least squares itself."""


def robust_terms(loss: Loss, residual: Tensor, f_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """A loss as the three terms that a step needs, per sample.

    Parameters
    ----------
    loss : Loss
    residual : Tensor
        r, any shape.
    f_scale : float
        C > 0, the residual at which the loss starts to matter.

    Returns
    -------
    value, slope, curvature : Tensor
        ½ C² ρ, ρ' r, and max(ρ' + 2 ρ'' (r/C)², eps): the cost, its derivative with respect to r
        and the positive part of its second derivative, with z = (r/C)². The floor keeps the
        Gauss-Newton block positive.
    """
    z = (residual / f_scale) ** 2
    rho, slope, bend = loss(z)
    floor = torch.finfo(residual.dtype).eps
    return 0.5 * f_scale**2 * rho, slope * residual, (slope + 2 * bend * z).clamp(min=floor)


def poisson_terms(model: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Poisson counts as the three terms that a step needs, per sample.

    Half the deviance of Laurence and Chromy 2010 (Nature Methods 7, 338), up to nothing: its
    minimum is the maximum-likelihood estimate.

    Parameters
    ----------
    model, counts : Tensor
        Expected counts f > 0, and the counts y ≥ 0.

    Returns
    -------
    value, slope, curvature : Tensor
        f − y + y ln(y/f) (f where y = 0), 1 − y/f, and y/f². Not finite where f ≤ 0.
    """
    ratio = counts / model
    some = counts > 0
    value = torch.where(some, model - counts + torch.xlogy(counts, ratio), model)
    value = torch.where(model > 0, value, torch.full_like(model, torch.inf))
    return value, 1 - ratio, ratio / model
