"""What the fits take beyond the data: the process's peak size."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path


def reset_peak() -> float | None:
    """Forget the largest size so far; MiB of now, None where this is impossible."""
    gc.collect()
    try:
        # Freed blocks that the allocator keeps would hide what the fits take.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError):
        return None
    return peak()


def peak() -> float:
    """Largest size of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
