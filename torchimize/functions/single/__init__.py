"""One problem: parameters (P,), residuals of any shape."""

from torchimize.functions.single.gda_fun_single import gradient_descent
from torchimize.functions.single.gna_fun_single import lsq_gna
from torchimize.functions.single.lma_fun_single import lsq_lma

__all__ = ["gradient_descent", "lsq_gna", "lsq_lma"]
