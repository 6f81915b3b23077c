"""Batches in pieces whose Jacobians stay in the cache; batched competitors are fastest so."""

from __future__ import annotations

import math
from collections.abc import Iterator


def piece_size(numbers: float, num_samples: int, num_params: int) -> int:
    """Problems a piece: a power of two, with about `numbers` in their Jacobians together."""
    return 1 << max(0, round(math.log2(numbers / (num_samples * num_params))))


def pieces(rows: slice, size: int) -> Iterator[slice]:
    """Slices of one length that cover `rows`; the last one may repeat problems of the one before.

    One length, since these competitors compile for each they meet.
    """
    total = rows.stop - rows.start
    if total < 8 * size:
        size = math.ceil(total / math.ceil(total / size))
    for begin in range(rows.start, rows.stop, size):
        end = min(begin + size, rows.stop)
        yield slice(end - size, end)
