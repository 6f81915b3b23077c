"""What can go wrong with an input: three errors, each saying what was met and what was wanted.

They derive from the built-in errors that SciPy raises in the same places, so code that catches
``ValueError`` or ``TypeError`` keeps working.
"""

from __future__ import annotations


class ShapeError(ValueError):
    """An array has the wrong rank, the wrong length, or a batch that does not match."""


class DtypeError(TypeError):
    """A tensor is integer, complex, or of another floating type than its partner."""


class DeviceError(ValueError):
    """Tensors of one problem live on different devices."""


class NotFusedError(RuntimeError):
    """The fused engine cannot run a problem; the message says what stood in the way."""
