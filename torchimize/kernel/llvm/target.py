"""What code is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What code is made for.

    Attributes
    ----------
    bits : int
        32 or 64: the kernel's floating type.
    lanes : int
        Problems per vector.
    scalef : bool
        The processor scales by powers of two in one instruction (AVX-512).
    x86 : bool
        Denormals are switched off through MXCSR.
    accumulators : int
        Sums that are kept in registers.
    tile : int
        Rows and columns of a register tile.
    """

    bits: int
    lanes: int
    scalef: bool = False
    x86: bool = True
    accumulators: int = 12
    tile: int = 4

    @property
    def bytes(self) -> int:
        """Size of a vector."""
        return self.bits // 8 * self.lanes
