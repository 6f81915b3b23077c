"""The main job on real data: the NIST table, then 100,000 bootstrap fits in one call.

``make demo`` runs it. The two parts are `nist_table` and `bootstrap`; `draw` makes the picture.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from tabulate import SEPARATING_LINE, tabulate
from torch import Tensor

from torchimize import Result, curve_fit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from problems import nist  # noqa: E402  (the reader of the data sets lives with the tests)

BLUE, ORANGE, GREY = "#2a6fbb", "#d9601a", "#555555"


def nist_table(device: torch.device) -> str:
    """Fit the 27 data sets of NIST from both official starts; print a table, return a summary."""
    rows: list[list[object]] = []
    solved, evaluations, seconds = 0, 0, 0.0
    for problem in nist.load_all():
        x, starts = problem.x.to(device), problem.starts.to(device)
        y = problem.y.to(device).expand(2, -1)
        began = time.perf_counter()
        # Both starts in one call: y is (2, N), p0 is (2, P), and every setting is the default.
        popt, _, result = curve_fit(problem.model, x, y, p0=starts, full_output=True)
        popt, stderr = popt.cpu(), result.stderr.cpu()
        elapsed = time.perf_counter() - began
        lre = nist.log_relative_error(popt, problem.certified)
        lre_stderr = nist.log_relative_error(stderr, problem.certified_sd)
        solved += int((lre >= 6).sum())
        evaluations += int(result.nfev.sum())
        seconds += elapsed
        for start in range(2):
            once = (problem.name, problem.level, f"{1e3 * elapsed:.0f}")
            name, level, milliseconds = once if start == 0 else ("", "", "")
            rows.append(
                [
                    name,
                    level,
                    start + 1,
                    f"{problem.certified[0]:.10e}",
                    f"{popt[start, 0]:.10e}",
                    f"{lre[start]:.1f}",
                    f"{lre_stderr[start]:.1f}",
                    int(result.nfev[start]),
                    milliseconds,
                ]
            )
    rows.append(SEPARATING_LINE)
    rows.append(
        [
            "total",
            "",
            len(rows) - 1,
            "",
            "",
            f"{solved} ≥ 6",
            "",
            evaluations,
            f"{1e3 * seconds:.0f}",
        ]
    )
    headers = [
        "data set", "level", "start", "b1, certified", "b1, ours",
        "LRE", "LRE\nof std. errors", "evaluations", "ms",
    ]  # fmt: skip
    align = ["left", "left"] + ["right"] * 7
    print(tabulate(rows, headers, colalign=align, disable_numparse=True))
    print("LRE: correct decimal digits of the worst parameter. The first ms include torch's start.")
    return (
        f"NIST: {solved} of {len(rows) - 2} runs solved to 6 digits or more, "
        f"{evaluations} residual evaluations, {seconds:.1f} s"
    )


def response(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    """Chwirut2: ultrasonic response behind a metal distance x."""
    return torch.exp(-b1 * x) / (b2 + b3 * x)


class Bootstrap(NamedTuple):
    """A fit (P parameters), and the same fit on B resampled data sets."""

    popt: Tensor
    pcov: Tensor
    refits: Tensor
    result: Result
    seconds: float


def bootstrap(problem: nist.NistProblem, num_fits: int, device: torch.device) -> Bootstrap:
    """Fit once, then refit the curve plus resampled residuals `num_fits` times, in one call."""
    x, y = problem.x.to(device), problem.y.to(device)
    popt, pcov = curve_fit(response, x, y, p0=problem.starts[0].to(device))
    curve = response(x, *popt)

    # P parameters were fitted to these residuals, so they scatter less than the errors did.
    residual = (y - curve) * (len(y) / problem.degrees_of_freedom) ** 0.5
    generator = torch.Generator().manual_seed(2026)
    picks = torch.randint(len(y), (num_fits, len(y)), generator=generator).to(device)
    resampled = curve + residual[picks]

    began = time.perf_counter()
    refits, _, result = curve_fit(response, x, resampled, p0=popt, full_output=True)
    result.success.sum().item()  # waits for the device
    return Bootstrap(popt, pcov, refits, result, time.perf_counter() - began)


def bootstrap_table(problem: nist.NistProblem, found: Bootstrap) -> str:
    """Print the spread of the refits beside the certified errors; return a summary."""
    spread = found.refits.std(0).cpu()
    rows = [
        [f"b{j + 1}", problem.certified[j], found.popt[j], problem.certified_sd[j], spread[j],
         spread[j] / problem.certified_sd[j]]
        for j in range(len(spread))
    ]  # fmt: skip
    headers = ["", "certified", "ours", "certified sd", "bootstrap sd", "ratio"]
    print(tabulate(rows, headers, floatfmt=("", ".8g", ".8g", ".5g", ".5g", ".3f")))
    num_fits, converged = len(found.refits), int(found.result.success.sum())
    return (
        f"Bootstrap: {converged:,} of {num_fits:,} refits of {problem.name} converged in one call, "
        f"{found.seconds:.2f} s, {num_fits / found.seconds:,.0f} fits per second\n"
        f"Engine: {found.result.engine} ({found.result.engine_reason})"
    )


def draw(problem: nist.NistProblem, found: Bootstrap, path: Path) -> None:
    """Data, fit and band; how the refits scatter, one parameter alone and two together."""
    popt, pcov, refits = found.popt.cpu(), found.pcov.cpu(), found.refits.cpu()
    x = torch.linspace(problem.x.min() * 0.8, problem.x.max() * 1.02, 300, dtype=popt.dtype)
    curve = response(x, *popt)
    # Delta method: var f(x) = J Σ Jᵀ, with J = ∂f/∂p at the fit.
    jacobian = torch.func.jacfwd(lambda p: response(x, *p))(popt)
    band = 1.96 * ((jacobian @ pcov) * jacobian).sum(-1).sqrt()
    few = response(x, *refits[:40, :, None].unbind(1))

    figure = Figure(figsize=(12, 7), layout="constrained", dpi=150)
    axes = figure.subplot_mosaic(
        [["fit", "b1"], ["fit", "joint"], ["rest", "joint"]],
        width_ratios=[1.35, 1], height_ratios=[1.25, 0.25, 0.85],
    )  # fmt: skip
    for name, center, points in (
        ("fit", torch.zeros_like(curve), problem.y),
        ("rest", curve, problem.y - response(problem.x, *popt)),
    ):
        panel = axes[name]
        for k, line in enumerate(few):
            label = f"{len(few)} of the {len(refits):,} bootstrap fits" if k == 0 else None
            panel.plot(x, line - center, color=BLUE, alpha=0.18, linewidth=0.7, label=label)
        low, high = curve - center - band, curve - center + band
        panel.fill_between(
            x, low, high, color=ORANGE, alpha=0.3, linewidth=0, label="95 % band of the covariance"
        )
        panel.plot(x, curve - center, color=ORANGE, linewidth=1.8, label="fit")
        panel.plot(
            problem.x, points, "o", color=GREY, markersize=4, markeredgecolor="white",
            markeredgewidth=0.5, label="measured",
        )  # fmt: skip
        panel.set_xlim(float(x[0]), float(x[-1]))
    axes["fit"].set(ylabel="ultrasonic response", title=f"{problem.name}: {problem.formula[:-4]}")
    axes["fit"].tick_params(labelbottom=False)
    axes["fit"].legend(frameon=False, loc="upper right")
    axes["rest"].set(xlabel="metal distance", ylabel="response − fit")

    certified, sd = problem.certified, problem.certified_sd
    window = [(float(c - 4.2 * s), float(c + 4.2 * s)) for c, s in zip(certified, sd, strict=True)]
    panel = axes["b1"]
    panel.hist(refits[:, 0], bins=80, density=True, color=BLUE, alpha=0.5, label="bootstrap fits")
    z = torch.linspace(-4, 4, 200, dtype=popt.dtype)
    density = torch.exp(-0.5 * z**2) / (sd[0] * (2 * torch.pi) ** 0.5)
    panel.plot(certified[0] + z * sd[0], density, color=ORANGE, label="certified value and sd")
    panel.axvline(float(certified[0]), color=ORANGE, linewidth=1, linestyle=":")
    panel.set(xlabel="b1", yticks=[], title=f"{len(refits):,} refits in {found.seconds:.1f} s")
    panel.set_xlim(window[0])
    panel.set_ylim(top=1.3 * float(density.max()))
    panel.legend(frameon=False, loc="upper left")

    panel = axes["joint"]
    pair = [1, 2]
    panel.hexbin(
        *refits[:, pair].T, gridsize=70, extent=(*window[1], *window[2]), mincnt=1, cmap="Blues",
        bins="log", linewidths=0.1,
    )  # fmt: skip
    # The points with (p − p̂)ᵀ Σ⁻¹ (p − p̂) = q; two normal variables are within q = −2 ln 0.05
    # with probability 95 %.
    factor = torch.linalg.cholesky(pcov[pair][:, pair])
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=popt.dtype)
    radius = (-2 * torch.tensor(0.05, dtype=popt.dtype).log()).sqrt()
    ellipse = popt[pair, None] + radius * factor @ torch.stack([angle.cos(), angle.sin()])
    offset = torch.linalg.solve_triangular(factor, (refits[:, pair] - popt[pair]).T, upper=False)
    inside = (offset.square().sum(0) < radius**2).double().mean()
    panel.plot(
        *ellipse, color=ORANGE, label=f"95 % ellipse of the covariance\n({inside:.1%} inside)"
    )
    panel.plot(*certified[pair], "+", color=ORANGE, markersize=10, label="certified")
    panel.set(xlabel="b2", ylabel="b3", xlim=window[1], ylim=window[2])
    panel.legend(frameon=False, loc="upper right")
    for panel in axes.values():
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fits", type=int, default=100_000, help="bootstrap fits (100,000)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo.png", help="picture")
    options = parser.parse_args()
    # The library computes where the data are; choosing the place is the caller's business.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    nist_summary = nist_table(device)
    problem = nist.load("Chwirut2")
    found = bootstrap(problem, options.fits, device)
    print(f"\n{len(found.refits):,} bootstrap fits of {problem.name}\n")
    bootstrap_summary = bootstrap_table(problem, found)
    draw(problem, found, options.output)
    print(f"\nPicture: {options.output}\n\n{nist_summary}\n{bootstrap_summary}")


if __name__ == "__main__":
    main()
