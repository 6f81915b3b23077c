"""The tables of ``cpu.py``: each from the records of all measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from competitors import COMPETITORS
from tabulate import tabulate

Record = dict[str, Any]

NOTHING = "–"
ALL_SOLVED = 0.999
"""Share of fits from which on a competitor counts as the fastest."""

OURS = ("torchimize", "torchimize-eager")


def digits(value: float | None, number: int = 3) -> str:
    """Rounded to what a repetition of the measurement would confirm."""
    if value is None:
        return NOTHING
    rounded = float(f"{value:.{number}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:,g}"


def speed(record: Record | None) -> str:
    """Fits per second, with the share that is solved where that is not all."""
    if record is None:
        return NOTHING
    text = digits(record["fits_per_second"])
    # Rounded down, so that 100 % means all.
    share = int(record["solved"] * 1e4) / 1e4
    return text if record["solved"] == 1 else f"{text} ({share:.2%})"


class Records:
    """Finds what a table shows."""

    def __init__(self, records: Iterable[Record], tolerance: float) -> None:
        self.all = list(records)
        self.tolerance = tolerance
        self.workloads = list(dict.fromkeys(r["workload"] for r in self.all))
        self.dtypes = list(dict.fromkeys(r["dtype"] for r in self.all))

    def find(
        self, peer: str, workload: str, dtype: str, batch: int | None = None, default: bool = False
    ) -> Record | None:
        """A competitor's record for one batch size, or for its largest up to 10⁴."""
        tolerance = None if default else self.tolerance
        met = [
            record
            for record in self.all
            if (record["peer"], record["workload"], record["dtype"]) == (peer, workload, dtype)
            and record["tolerance"] == tolerance
            and (record["batch"] <= 10_000 if batch is None else record["batch"] == batch)
        ]
        return max(met, key=lambda record: record["batch"], default=None)

    def peers(self, dtype: str, default: bool = False) -> list[str]:
        """Those with a record, in the order of the tables."""
        tolerance = None if default else self.tolerance
        met = {r["peer"] for r in self.all if r["dtype"] == dtype and r["tolerance"] == tolerance}
        return [name for name in COMPETITORS if name in met]


def render(
    headers: Sequence[str], rows: Sequence[Sequence[str]], style: str, texts: int = 1
) -> str:
    """A table whose first `texts` columns are words and whose others are numbers."""
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    return str(tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True))


def speeds(records: Records, dtype: str, style: str, default: bool = False) -> str:
    """Fits per second, a row for each competitor."""
    rows, peers = [], records.peers(dtype, default)
    found = {
        peer: [records.find(peer, name, dtype, default=default) for name in records.workloads]
        for peer in peers
    }
    for peer, row in found.items():
        rows.append([COMPETITORS[peer].label, *map(speed, row)])
    others = [row for peer, row in found.items() if peer not in OURS]
    if "torchimize" in found and others:
        ratios = map(ratio, found["torchimize"], zip(*others, strict=True))
        rows.append(["torchimize ÷ fastest other", *ratios])
    return render(["", *records.workloads], rows, style)


def ratio(ours: Record | None, others: Iterable[Record | None]) -> str:
    """How many times as fast as the fastest that solves all."""
    rates = [r["fits_per_second"] for r in others if r is not None and r["solved"] >= ALL_SOLVED]
    if ours is None or not rates:
        return NOTHING
    return digits(ours["fits_per_second"] / max(rates))


def batches(records: Records, sizes: Sequence[int], style: str) -> str:
    """torchimize over the batch: fits per second, memory, first fit."""
    headers = ["", "", *(f"B = {size:,}" for size in sizes), "peak MiB", "first fit, s"]
    rows = []
    for workload in records.workloads:
        for dtype in records.dtypes:
            row = [records.find("torchimize", workload, dtype, size) for size in sizes]
            met = [record for record in row if record is not None]
            if met:
                first = min(record["first_seconds"] for record in met)
                peak = digits(met[-1]["peak_mib"])
                rows.append([workload, dtype, *map(speed, row), peak, digits(first, 2)])
    return render(headers, rows, style, texts=2)


def evaluations(records: Records, dtype: str, style: str) -> str:
    """Mean model evaluations a fit, as each competitor counts them."""
    rows = []
    for peer in records.peers(dtype):
        row = [records.find(peer, workload, dtype) for workload in records.workloads]
        counts = [None if record is None else record["evaluations"] for record in row]
        if any(count is not None for count in counts):
            rows.append([COMPETITORS[peer].label, *map(digits, counts)])
    return render(["", *records.workloads], rows, style)


def memory(records: Records, dtype: str, style: str) -> str:
    """Peak MiB beyond the data, of those that take batches."""
    rows = []
    for peer in records.peers(dtype):
        if not COMPETITORS[peer].loop:
            row = [records.find(peer, workload, dtype) for workload in records.workloads]
            sizes = [None if record is None else record["peak_mib"] for record in row]
            rows.append([COMPETITORS[peer].label, *map(digits, sizes)])
    return render(["", *records.workloads], rows, style)


def single(records: Records, style: str) -> str:
    """Microseconds a call for one problem in float64, of those that one would take for it."""
    rows = []
    for peer in ("torchimize", "torchimize-eager", "scipy", "scipy-exact", "scipy-trf"):
        row = [records.find(peer, workload, "float64", 1) for workload in records.workloads]
        times = (None if record is None else 1e6 / record["fits_per_second"] for record in row)
        rows.append([COMPETITORS[peer].label.removesuffix(", loop"), *map(digits, times)])
    return render(["", *records.workloads], rows, style)


def missing(failures: Sequence[dict[str, str]]) -> str:
    """Who could not run, where, and why: lines of text."""
    places: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        place = f"{failure['workload']} {failure['dtype']}"
        places.setdefault((failure["peer"], failure["reason"]), []).append(place)
    lines = [
        f"- {COMPETITORS[peer].label}: not measured on {', '.join(where)}: {reason}"
        for (peer, reason), where in places.items()
    ]
    return "\n".join(lines)
