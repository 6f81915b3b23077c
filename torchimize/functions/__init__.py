"""The functional API: least squares as plain functions of tensors.

Single functions take parameters (P,), their ``_parallel`` variants (B, P) with residuals
(B, C, N): batch, channels, samples. All return the list of iterates, start first.
"""

from torchimize.functions.fun_dims import test_fun_dims_parallel
from torchimize.functions.jacobian import (
    batch_jacobian_approx_t,
    jacobian_approx_loop,
    jacobian_approx_t,
)
from torchimize.functions.parallel import (
    gradient_descent_parallel,
    gradient_descent_parallel_plain,
    lsq_gna_parallel,
    lsq_gna_parallel_plain,
    lsq_lma_parallel,
    newton_step_parallel,
)
from torchimize.functions.single import gradient_descent, lsq_gna, lsq_lma

__all__ = [
    "batch_jacobian_approx_t",
    "gradient_descent",
    "gradient_descent_parallel",
    "gradient_descent_parallel_plain",
    "jacobian_approx_loop",
    "jacobian_approx_t",
    "lsq_gna",
    "lsq_gna_parallel",
    "lsq_gna_parallel_plain",
    "lsq_lma",
    "lsq_lma_parallel",
    "newton_step_parallel",
    "test_fun_dims_parallel",
]
