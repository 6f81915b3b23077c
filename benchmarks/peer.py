"""One competitor on one workload, in this process on one core: fits what it is told to.

``cpu.py`` starts it and talks to it in lines of JSON. The first line that it says is about its
first fits, compilation included; then it answers requests. The clock runs over whole fits, from
data in memory to parameters (and to covariances, where the competitor gives them); imports, data
and a first call lie before it, the check of the solutions after it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import common
import competitors
import numpy as np
import stored
import torch
from memory import peak, reset_peak

from problems.workloads import Workload
from torchimize import FitWarning

FIRST = 100
"""Problems in a batched competitor's first call."""

COUNTED = 1000
"""Problems whose evaluations a batched competitor counts; a loop counts a tenth of them."""

WARMED = 100_000
"""Problems in the call before the clock starts, where a batch has more."""


def batches(num_problems: int, size: int) -> Iterator[slice]:
    """Slices of `size` problems, one after the other."""
    for begin in range(0, num_problems - size + 1, size):
        yield slice(begin, begin + size)


class Bench:
    """A competitor and its workload."""

    def __init__(self, name: str, workload: Workload, tolerance: float | None) -> None:
        self.workload = workload
        self.loop = competitors.entry(name).loop
        began = time.perf_counter()
        self.competitor = competitors.build(name, workload, tolerance)
        self.competitor.fit(slice(0, 1 if self.loop else min(FIRST, len(workload.y))))
        self.first_seconds = time.perf_counter() - began
        self.warm: set[int] = set()

    def count(self) -> float | None:
        """Mean evaluations a fit."""
        wanted = COUNTED // 10 if self.loop else COUNTED
        return self.competitor.evaluations(slice(0, min(wanted, len(self.workload.y))))

    def measure(self, batch: int, budget: float, costs: str) -> dict[str, Any]:
        """Fit batches for `budget` seconds of this process, each problem at most once more.

        At least one batch; all over again where all problems are done before. The costs of the
        first passage go to a file.
        """
        slices = list(batches(len(self.workload.y), batch))
        if batch not in self.warm:
            self.competitor.fit(slice(0, min(batch, WARMED)))
            self.warm.add(batch)
        before = reset_peak()
        found, fits = [], 0
        began = time.process_time()
        while True:
            for rows in slices:
                params = self.competitor.fit(rows)
                seconds = time.process_time() - began
                if fits < len(slices) * batch:
                    found.append(params)
                fits += batch
                if seconds > budget:
                    memory = None if before is None else peak() - before
                    np.save(costs, common.costs(self.workload, torch.cat(found)).numpy())
                    return {"fits": fits, "seconds": seconds, "peak_mib": memory}


def answer(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def serve(options: argparse.Namespace, out: TextIO) -> None:
    """Set up, then answer what comes in."""
    workload = stored.read(
        options.workload, options.problems, getattr(torch, options.dtype), options.data
    )
    bench = Bench(options.competitor, workload, options.tolerance)
    evaluations = bench.count()
    hello = {"first_seconds": bench.first_seconds, "evaluations": evaluations}
    answer(out, {**hello, "detail": bench.competitor.detail})
    for line in sys.stdin:
        answer(out, bench.measure(**json.loads(line)))


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("competitor", choices=[*competitors.COMPETITORS, "reference"])
    parser.add_argument("--workload", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--problems", type=int, required=True)
    parser.add_argument("--tolerance", type=float, help="the competitor's own if not given")
    parser.add_argument("--data", type=Path, required=True, help="folder with the workload")
    options = parser.parse_args()
    # What a library prints must not come between the lines of JSON.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    common.one_core()
    # The costs say which fits failed.
    warnings.simplefilter("ignore", FitWarning)
    try:
        serve(options, out)
    except Exception as error:
        answer(out, {"error": f"{type(error).__name__}: {error}".partition("\n")[0]})
        sys.exit(1)


if __name__ == "__main__":
    main()
