"""NumPy's functions: the table, filled by the modules that hold the adapters."""

from torchimize.numpy_models import choices, products, reductions, shaping
from torchimize.numpy_models.registry import FUNCTIONS as FUNCTIONS
from torchimize.numpy_models.registry import Adapter as Adapter

ADAPTERS = (choices, products, reductions, shaping)
"""The modules that fill the table when they are imported."""
