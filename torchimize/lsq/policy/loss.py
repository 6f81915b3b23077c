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


TRUSTED_SHARE = 0.1
"""Least curvature of a step, as a share of ρ': see :func:`robust_terms`."""


def robust_terms(
    loss: Loss, residual: Tensor, f_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A loss as the four terms that a step needs, per sample.

    Parameters
    ----------
    loss : Loss
    residual : Tensor
        r, any shape.
    f_scale : float
        C > 0, the residual at which the loss starts to matter.

    Returns
    -------
    value, slope, curvature, weight : Tensor
        ½ C² ρ and ρ' r, the cost and its derivative with respect to r; the curvature of the step's
        model, max(ρ' + 2 ρ'' z, ρ'/10) with z = (r/C)²; and ρ', the weight of a sample in the
        scale of the parameters.

    Notes
    -----
    ρ' + 2 ρ'' z is the second derivative of the cost. Beyond a kink or an inflection it is zero or
    negative; a floor of eps there makes the model flat and lets a step run anywhere. Taking ρ'
    alone (iteratively reweighted least squares) bounds the cost from above but converges slowly.
    A tenth of ρ' keeps the step in sight of the outliers, and where samples are near, where the
    second derivative is larger, the fast convergence. The scale takes ρ' whole: with the curvature
    in it, a start far from all samples would look as if the parameters hardly mattered, and the
    trust region would let the first step go anywhere.
    """
    z = (residual / f_scale) ** 2
    rho, slope, bend = loss(z)
    curvature = torch.maximum(slope + 2 * bend * z, TRUSTED_SHARE * slope)
    floor = torch.finfo(residual.dtype).eps
    value = 0.5 * f_scale**2 * rho
    return value, slope * residual, curvature.clamp(min=floor), slope.clamp(min=floor)


def robust_information(loss: Loss, residual: Tensor, f_scale: float) -> Tensor:
    """The curvature that SciPy scales its Jacobian with: max(ρ' + 2 ρ'' z, eps)."""
    z = (residual / f_scale) ** 2
    _, slope, bend = loss(z)
    return (slope + 2 * bend * z).clamp(min=torch.finfo(residual.dtype).eps)


def poisson_terms(model: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Poisson counts as the four terms that a step needs, per sample.

    Half the deviance of Laurence and Chromy 2010 (Nature Methods 7, 338), up to nothing: its
    minimum is the maximum-likelihood estimate.

    Parameters
    ----------
    model, counts : Tensor
        Expected counts f > 0, and the counts y ≥ 0.

    Returns
    -------
    value, slope, curvature, weight : Tensor
        f − y + y ln(y/f) (f where y = 0), 1 − y/f, y/f², and y/f² again. Not finite where f ≤ 0.
    """
    ratio = counts / model
    some = counts > 0
    value = torch.where(some, model - counts + torch.xlogy(counts, ratio), model)
    value = torch.where(model > 0, value, torch.full_like(model, torch.inf))
    curvature = ratio / model
    return value, 1 - ratio, curvature, curvature
