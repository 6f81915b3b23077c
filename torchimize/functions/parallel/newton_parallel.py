"""What a Newton-type step is made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchimize.functions._solve import set_up


def newton_step_parallel(
    p: Tensor,
    function: Callable[[Tensor], Tensor],
    jac_function: Callable[[Tensor], Tensor] | None,
    wvec: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residuals, gradient and Gauss-Newton block at a point.

    Parameters
    ----------
    p : Tensor (B, P), float64 or float32
    function : callable
        (B, P) to (B, C, N).
    jac_function : callable or None
        (B, P) to (B, C, N, P); None differentiates automatically.
    wvec : Tensor (C,) or None
        Weights of the channels' squares.

    Returns
    -------
    p : Tensor (B, P)
        As given.
    f : Tensor (B, C, N)
        Residuals, unweighted.
    gradient : Tensor (B, P)
        Σ_c wvec_c Σ_n J r.
    normal_matrix : Tensor (B, P, P)
        Σ_c wvec_c Σ_n J Jᵀ.

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit.

    Examples
    --------
    >>> import torch
    >>> from torchimize.functions import newton_step_parallel
    >>> p = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> _, f, g, h = newton_step_parallel(p, lambda p: (p**2)[:, None, :], None, None)
    >>> f.tolist(), g.tolist(), h.tolist()
    ([[[1.0, 4.0]]], [[2.0, 16.0]], [[[4.0, 0.0], [0.0, 16.0]]])
    """
    problem = set_up(p, function, jac_function, (), wvec, parallel=True)
    params = problem.params0
    residuals = problem.value(params, None).reshape(-1, *problem.trailing)
    _, gradient, normal_matrix, _ = problem.linearise(params, None)
    return p, residuals, gradient.to(p.dtype), normal_matrix.to(p.dtype)
