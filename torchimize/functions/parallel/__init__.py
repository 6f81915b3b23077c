"""A batch of problems: parameters (B, P), residuals (B, C, N)."""

from torchimize.functions.parallel.gda_fun_parallel import (
    gradient_descent_parallel,
    gradient_descent_parallel_plain,
)
from torchimize.functions.parallel.gna_fun_parallel import (
    lsq_gna_parallel,
    lsq_gna_parallel_plain,
)
from torchimize.functions.parallel.lma_fun_parallel import lsq_lma_parallel
from torchimize.functions.parallel.newton_parallel import newton_step_parallel

__all__ = [
    "gradient_descent_parallel",
    "gradient_descent_parallel_plain",
    "lsq_gna_parallel",
    "lsq_gna_parallel_plain",
    "lsq_lma_parallel",
    "newton_step_parallel",
]
