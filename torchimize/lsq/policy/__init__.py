"""The step policy: the algorithm, written once on per-problem scalars and P×P blocks.

Nothing here evaluates a user's function, moves a tensor or looks at a value: an engine does. The
eager engine calls these functions on (B,), (B, P) and (B, P, P) tensors.
"""

from torchimize.lsq.policy.iteration import Policy
from torchimize.lsq.policy.rules import GaussNewton, Marquardt, Nielsen, Rule, TrustRegion
from torchimize.lsq.policy.state import Proposal, State
from torchimize.lsq.policy.stop import AbsoluteTests, RelativeTests

__all__ = [
    "AbsoluteTests",
    "GaussNewton",
    "Marquardt",
    "Nielsen",
    "Policy",
    "Proposal",
    "RelativeTests",
    "Rule",
    "State",
    "TrustRegion",
]
