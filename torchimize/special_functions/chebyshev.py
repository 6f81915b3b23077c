"""Chebyshev series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def chebyshev_series(t: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Sum ``coefficients[k]`` times the k-th Chebyshev polynomial at t, by Clenshaw's recurrence.

    Parameters
    ----------
    t : Tensor
        Points in [-1, 1], any shape.
    coefficients : sequence of float
        From degree 0 upward. The tail that t's dtype cannot see is left out.

    Returns
    -------
    Tensor
        Shape and dtype of t.

    Examples
    --------
    >>> import torch
    >>> chebyshev_series(torch.tensor([0.5]), (1.0, 2.0, 3.0))
    tensor([0.5000])
    """
    visible = torch.finfo(t.dtype).eps / 32 * max(abs(c) for c in coefficients)
    length = max(k for k, c in enumerate(coefficients) if abs(c) >= visible) + 1
    twice = 2 * t
    here, after = torch.zeros_like(t), torch.zeros_like(t)
    for coefficient in reversed(coefficients[1:length]):
        here, after = twice * here - after + coefficient, here
    return t * here - after + coefficients[0]
