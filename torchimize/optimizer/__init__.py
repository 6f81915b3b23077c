"""Where users of the older torchimize look for its optimiser."""

from torchimize.optimizer.gna_opt import GNA

__all__ = ["GNA"]
