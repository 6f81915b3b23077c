"""Fits per second against the batch size, a panel for each workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from competitors import COMPETITORS
from matplotlib.figure import Figure
from tables import Records

COLUMNS = 3


def draw(records: Records, path: Path) -> None:
    """Save the picture: float64, and float32 dashed for torchimize; loops are level lines."""
    # The same records give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "torchimize"
    rows = -(-len(records.workloads) // COLUMNS)
    figure = Figure(figsize=(10, 0.8 + 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).ravel()
    largest = max(record["batch"] for record in records.all)
    handles: dict[str, Any] = {}
    for panel, workload in zip(panels, records.workloads, strict=False):
        for number, peer in enumerate(COMPETITORS):
            for dtype in records.dtypes if peer == "torchimize" else records.dtypes[:1]:
                points = sorted(
                    (record["batch"], record["fits_per_second"])
                    for record in records.all
                    if (record["peer"], record["workload"], record["dtype"])
                    == (peer, workload, dtype)
                    and record["tolerance"] == records.tolerance
                )
                if not points:
                    continue
                loop = COMPETITORS[peer].loop
                if loop:
                    points = [(1, points[0][1]), (largest, points[0][1])]
                (line,) = panel.loglog(
                    *zip(*points, strict=True),
                    color=f"C{number % 10}" if number < 10 else "black",
                    linewidth=2.5 if peer == "torchimize" else 1,
                    linestyle="--" if dtype != records.dtypes[0] else ":" if loop else "-",
                    marker="" if loop else ".",
                )
                label = COMPETITORS[peer].label
                handles[label if dtype == records.dtypes[0] else f"{label}, {dtype}"] = line
        panel.set_title(workload)
        panel.grid(alpha=0.3)
    for panel in panels[len(records.workloads) :]:
        panel.set_axis_off()
    for panel in panels[-COLUMNS:]:
        panel.set_xlabel("problems a call")
    for panel in panels[::COLUMNS]:
        panel.set_ylabel("fits per second")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
