"""The fused engine: model, derivatives, likelihood and step policy as one compiled kernel.

The traced function, what the likelihood makes of its values, and the step policy, run on tensors of
graph nodes, become one machine (:mod:`torchimize.kernel.machine`): sums over the samples at the
trial point, then a step. Where the eager engine evaluates the cost first and derivatives once a
trial is accepted, a kernel sums both in one pass: rejected trials are few, and a second pass over
the samples costs more.
"""

from torchimize.lsq.fused.covariance import inverses, normal_matrices
from torchimize.lsq.fused.run import refine, solve

__all__ = ["inverses", "normal_matrices", "refine", "solve"]
