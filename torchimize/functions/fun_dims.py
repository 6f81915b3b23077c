"""A check of a user's functions before a long run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchimize.lsq.jacobian import Forward


def test_fun_dims_parallel(
    p: Tensor,
    function: Callable[..., Tensor],
    jac_function: Callable[..., Tensor] | None = None,
    args: Sequence[Any] = (),
    wvec: Tensor | None = None,
) -> bool:
    """Whether parameters, residuals, Jacobian and weights have the dimensions (B, C, N, P).

    Parameters
    ----------
    p : Tensor (B, P)
    function : callable
        ``function(p, *args)``; should give (B, C, N).
    jac_function : callable, optional
        ``jac_function(p, *args)``; should give (B, C, N, P).
    args : sequence
    wvec : Tensor, optional
        Should be (C,).

    Returns
    -------
    bool
        True.

    Raises
    ------
    AssertionError
        Says which dimensions were met and which were wanted.

    Examples
    --------
    >>> import torch
    >>> from torchimize.functions import test_fun_dims_parallel
    >>> test_fun_dims_parallel(torch.ones(3, 2), lambda p: (p**2)[:, None, :])
    True
    """
    assert p.ndim == 2, f"`p` has shape {tuple(p.shape)}; wanted (B, P)"
    batch, num_params = p.shape
    f = function(p, *args)
    assert f.ndim == 3 and f.shape[0] == batch, (
        f"the function returned shape {tuple(f.shape)}; wanted ({batch}, C, N)"
    )
    if jac_function is None:
        jacobian = Forward()(lambda q: function(q, *args), p, None)[1].movedim(1, -1)
    else:
        jacobian = jac_function(p, *args)
    wanted = (*f.shape, num_params)
    assert jacobian.shape == wanted, (
        f"the Jacobian has shape {tuple(jacobian.shape)}; wanted {wanted}"
    )
    if wvec is not None:
        assert wvec.shape == (f.shape[1],), (
            f"`wvec` has shape {tuple(wvec.shape)}; wanted ({f.shape[1]},)"
        )
    return True


test_fun_dims_parallel.__test__ = False  # type: ignore[attr-defined]
