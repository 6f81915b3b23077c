"""Fits per second, evaluations and memory on one CPU core: torchimize beside its competitors.

Each competitor is a process of its own (``peer.py``) with one thread on one core. The rounds are
interleaved, so that a slow minute of the machine meets everyone. Results go to
``benchmarks/results``: a JSON file, the tables and the picture that the documentation shows.
``--quick`` measures less, in a few minutes, and prints only.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import common
import picture
import rounds
import tables
from competitors import COMPETITORS

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "gauss1d")
DTYPES = ("float64", "float32")
PACKAGES = ("scipy", "llvmlite", "jax", "jaxopt", "optimistix", "jaxfit", "lmfit")

FULL = rounds.Setting([1, 100, 10_000, 1_000_000], rounds=5, budget=1.0, patience=30.0)
QUICK = rounds.Setting([1, 100, 10_000], rounds=1, budget=0.3, patience=10.0)
QUICK_WORKLOADS = ("W1", "W2", "W3")


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    found = {**common.machine(), "load": os.getloadavg()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def legend(machine: dict[str, Any], setting: rounds.Setting) -> str:
    """Machine, versions, how it was measured."""
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "numpy", *PACKAGES) if machine[name]
    )
    return (
        f"One core of {machine['processor']}, one thread, {machine['date']}; Python "
        f"{machine['python']}, {versions}. Medians of {setting.rounds} rounds; every fit was "
        "checked, and a share in brackets is what was solved where that is not all."
    )


def texts(result: dict[str, Any], style: str) -> dict[str, str]:
    """All tables by name."""
    setting = rounds.Setting(**result["setting"])
    records = tables.Records(result["records"], rounds.TOLERANCE)
    made = {"legend": legend(result["machine"], setting)}
    for dtype in records.dtypes:
        made[f"speed-{dtype}"] = tables.speeds(records, dtype, style)
    made["batches"] = tables.batches(records, setting.batches, style)
    made["single"] = tables.single(records, style)
    for dtype in records.dtypes:
        made[f"evaluations-{dtype}"] = tables.evaluations(records, dtype, style)
        made[f"memory-{dtype}"] = tables.memory(records, dtype, style)
        made[f"defaults-{dtype}"] = tables.speeds(records, dtype, style, default=True)
    made["missing"] = tables.missing(result["failures"])
    return made


def write(result: dict[str, Any], folder: Path) -> None:
    """JSON, tables, picture."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['machine']['date']}-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, text in texts(result, "rst").items():
        (folder / f"cpu-{name}.rst").write_text(f"{text}\n", encoding="utf-8")
    picture.draw(tables.Records(result["records"], rounds.TOLERANCE), folder / "cpu.svg")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes; prints only")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--competitors", nargs="+", choices=COMPETITORS, default=[*COMPETITORS])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--budget", type=float, help="seconds a cell and round")
    parser.add_argument(
        "--patience", type=float, help="seconds a cell that is repeated, and a large batch"
    )
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    chosen = {name: getattr(options, name) for name in setting._fields}
    setting = setting._replace(**{name: value for name, value in chosen.items() if value})
    setting = setting._replace(batches=sorted(setting.batches))
    workloads = options.workloads or (QUICK_WORKLOADS if options.quick else WORKLOADS)
    dtypes = options.dtypes or (DTYPES[:1] if options.quick else DTYPES)
    result: dict[str, Any] = {"machine": machine(), "setting": setting._asdict()}
    result.update(records=[], failures=[])
    for workload in workloads:
        records, failures = rounds.measure(workload, dtypes, options.competitors, setting)
        result["records"] += records
        result["failures"] += failures
    for name, text in texts(result, "simple").items():
        if text:
            print(f"{name}\n\n{text}\n")
    folder = options.output or (None if options.quick else common.RESULTS)
    if folder is not None:
        write(result, folder)
        print(f"Written to {folder}")


if __name__ == "__main__":
    main()
