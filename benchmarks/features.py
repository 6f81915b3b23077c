"""What a feature costs where it is used: bounds, weights, masks, losses, a likelihood.

One process on one core; the rounds are interleaved. Every fit is checked against fits of the same
objective that start at the truth behind the data. Results go to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import common
import tables
import torch
from torch import Tensor

from problems import workloads
from torchimize import FitWarning, curve_fit

BATCH = 10_000
TOLERANCE = 1e-6
TYPICAL_ERROR = {"W1": 15.0, "W2": 5.0}
"""Of a sample: W1's is that of its brightest third."""

MASKED = 0.05
"""Share of the samples that are NaN where they are masked."""


class Case(NamedTuple):
    """What a call gets besides the tolerance."""

    x: Tensor
    y: Tensor
    more: dict[str, Any]


def plain(work: workloads.Workload) -> Case:
    return Case(work.x, work.y, {})


def bounds(work: workloads.Workload) -> Case:
    """A box around all starts and truths, half as wide again."""
    both = torch.cat([work.start, work.truth])
    low, high = both.amin(0), both.amax(0)
    return Case(work.x, work.y, {"bounds": (low - (high - low) / 4, high + (high - low) / 4)})


def weights(work: workloads.Workload) -> Case:
    generator = torch.Generator().manual_seed(1)
    spread = torch.rand(work.y.shape, generator=generator, dtype=torch.float64).to(work.y.dtype)
    return Case(work.x, work.y, {"sigma": TYPICAL_ERROR[work.name] * (0.5 + spread)})


def mask(work: workloads.Workload) -> Case:
    generator = torch.Generator().manual_seed(2)
    holes = torch.rand(work.y.shape, generator=generator) < MASKED
    return Case(work.x, work.y.masked_fill(holes, torch.nan), {"nan_policy": "omit"})


def own_x(work: workloads.Workload) -> Case:
    """Each problem has an x of its own (here with the same values)."""
    x = work.x.expand(len(work.y), *work.x.shape)
    return Case(x.contiguous(), work.y, {})


def huber(work: workloads.Workload) -> Case:
    scale = 1.5 * TYPICAL_ERROR[work.name]
    return Case(work.x, work.y, {"loss": "huber", "f_scale": scale})


def poisson(work: workloads.Workload) -> Case:
    """The maximum likelihood of counts."""
    return Case(work.x, work.y.round().clamp(min=0), {"likelihood": "poisson"})


FEATURES: dict[str, Callable[[workloads.Workload], Case]] = {
    "plain": plain,
    "bounds": bounds,
    "sigma per sample": weights,
    "5 % NaN, masked": mask,
    "x per problem": own_x,
    "Huber loss": huber,
    "Poisson likelihood": poisson,
}


def fit(work: workloads.Workload, case: Case, start: Tensor, **more: Any) -> Any:
    return curve_fit(work.model, case.x, case.y, p0=start, **case.more, **more)


def check(work: workloads.Workload, case: Case) -> dict[str, Any]:
    """Share that is solved, evaluations a fit, engine."""
    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), TOLERANCE)
    found = fit(work, case, work.start, full_output=True, **tolerances)[2]
    best = fit(work, case, work.truth, full_output=True)[2].cost
    # Minus the logarithm of a likelihood can have either sign.
    slack = (common.SOLVED - 1) * best.abs()
    return {
        "solved": float((found.cost <= best + slack).double().mean()),
        "evaluations": float(found.nfev.double().mean()),
        "engine": found.engine,
    }


def measure(name: str, dtype: str, rounds: int, batch: int) -> list[dict[str, Any]]:
    """One record a feature."""
    work = workloads.make(name, batch, getattr(torch, dtype))
    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), TOLERANCE)
    cases = {feature: make(work) for feature, make in FEATURES.items()}
    found = {feature: check(work, case) for feature, case in cases.items()}
    seconds: dict[str, list[float]] = {feature: [] for feature in cases}
    for _ in range(rounds):
        for feature, case in cases.items():
            began = time.process_time()
            fit(work, case, work.start, **tolerances)
            seconds[feature].append(time.process_time() - began)
    return [
        {
            "workload": name,
            "dtype": dtype,
            "feature": feature,
            "fits_per_second": batch / median(seconds[feature]),
            **found[feature],
        }
        for feature in cases
    ]


def table(records: list[dict[str, Any]], style: str) -> str:
    """Fits per second of plain fits; of the others time a fit, and an evaluation, in its units."""
    columns = list(dict.fromkeys((r["workload"], r["dtype"]) for r in records))
    found = {(r["workload"], r["dtype"], r["feature"]): r for r in records}
    rows = []
    for feature in FEATURES:
        row = [feature]
        for column in columns:
            record, base = found[(*column, feature)], found[(*column, "plain")]
            if feature == "plain":
                row.append(f"{tables.speed(record)} fits/s")
                continue
            each = base["fits_per_second"] / record["fits_per_second"]
            passes = record["evaluations"] / base["evaluations"]
            text = f"{each:.2f} ({each / passes:.2f})"
            text += "" if record["solved"] == 1 else f", {record['solved']:.2%} solved"
            row.append(text if record["engine"] == base["engine"] else f"{text}, eager")
        rows.append(row)
    return tables.render(["", *(" ".join(column) for column in columns)], rows, style)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="folder")
    options = parser.parse_args()
    common.one_core()
    # The costs say which fits failed.
    warnings.simplefilter("ignore", FitWarning)
    records = [
        record
        for name in TYPICAL_ERROR
        for dtype in ("float64", "float32")
        for record in measure(name, dtype, options.rounds, options.batch)
    ]
    machine = common.machine()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{machine['date']}-features.json"
    path.write_text(
        json.dumps({"machine": machine, "records": records}, indent=1) + "\n", encoding="utf-8"
    )
    (options.output / "features.rst").write_text(table(records, "rst") + "\n", encoding="utf-8")
    print(table(records, "simple"))


if __name__ == "__main__":
    main()
