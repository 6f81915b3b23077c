"""What the fits take beyond the data: the process's peak size, where Linux tells it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

PROCESS = Path("/proc/self")


def reset_peak() -> float | None:
    """Forget the largest size so far; MiB of now, None where this is impossible."""
    gc.collect()
    try:
        # Freed blocks that the allocator keeps would hide what the fits take.
        ctypes.CDLL(None).malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError):
        return None
    return peak()


def peak() -> float:
    """Largest size since then, in MiB."""
    # Not getrusage's: that one begins with the size of the process that started this one.
    status = (PROCESS / "status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
