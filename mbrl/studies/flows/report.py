"""The report of the flow study: what `mbrl.studies.report` shows of a set of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from numpy.typing import NDArray

from mbrl.report.figures import style
from mbrl.studies.flows.arms import ARMS, DEFAULT, REFERENCE
from mbrl.studies.flows.cost import MODES
from mbrl.studies.flows.results import held_out_curve
from mbrl.studies.flows.step import TRUSTED
from mbrl.studies.flows.tables import is_busy, tables
from mbrl.studies.panels import beside, legend_below, sheet
from mbrl.studies.report import COLOURS, GREY, write_page

Summary = Mapping[str, Any]

_LEAD = (
    "Every arm learnt the same images for the same CPU time and is measured on held-out ones. Bits "
    "per dimension: lower is better. A number with an interval is the mean of three seeds or more "
    "with its 95 % bootstrap interval; a number alone has fewer, or is a cost, measured once."
)
_CAPTIONS = {
    "learning": "Held-out images while training: every seed, over its CPU time. Dotted: "
    "what the images cost by the frequencies of each place.",
    "memory": "Kept for the backward pass of one batch, parameters excluded, by steps per scale. "
    "Solid: no sharing; dashed: by level with FiLM and projection.",
}
PICTURE_CAPTIONS = {
    "samples": "Samples at several temperatures below real held-out images.",
    "interpolation": "From one held-out image to another: through the latents, and by cross-fading "
    "the pixels.",
}
_SHOWN = 4
_WIDEST = 128
"""Pixels that an image may take of a sheet."""


def colour(arm: str) -> str:
    """An arm's colour, the same in every figure; grey beyond the first six."""
    place = list(ARMS).index(arm) if arm in ARMS else len(COLOURS)
    return COLOURS[place] if place < len(COLOURS) else GREY


def write_report(folder: Path, summary: Summary, trials: Sequence[Mapping[str, Any]]) -> Path:
    """Write `report.html` and the PNG files; `folder` has the run folders of the trials."""
    return write_page(
        folder,
        summary,
        title=f"What shared couplings cost on {summary['images']}",
        lead=_LEAD,
        arms=ARMS,
        colour=colour,
        tables=tables(summary),
        figures=figures(summary, trials),
        captions=_CAPTIONS,
        sheets=picture_sheets(folder, summary),
        warnings=warnings_of(summary),
        protocol={
            "images": _images(summary["about"]),
            "budget": "CPU minutes of one thread per run: `runs` in the tables is seeds × minutes",
            "measures": "every measure is defined in docs/flows.md",
        },
    )


# -- figures -------------------------------------------------------------------------------------


def figures(summary: Summary, trials: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Every figure there are numbers for, by name."""
    drawn = {"learning": learning_figure(summary, trials), "memory": memory_figure(summary)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def learning_figure(summary: Summary, trials: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Held-out bits per dimension against CPU minutes: main arms, and all of them."""
    curves = [(one["arm"], held_out_curve(one)) for one in trials]
    curves = [(arm, curve) for arm, curve in curves if len(curve) > 1]
    if not curves:
        return None
    marginal = summary["about"].get("baselines", {}).get("marginal")
    with style():
        figure, grid = beside(1, width=6.0)
        for arm, curve in curves:
            main = arm in ARMS and ARMS[arm].main
            grid[0].plot(
                curve[:, 0],
                curve[:, 1],
                color=colour(arm),
                linewidth=1.6 if main else 0.9,
                alpha=0.8,
                label=summary["runs"][arm]["title"],
            )
        if marginal is not None:
            grid[0].axhline(marginal, linestyle=":", color=GREY)
        grid[0].set_yscale("log")
        grid[0].set_xlim(left=0)
        grid[0].set_xlabel("CPU minutes")
        grid[0].set_title("held-out images, bits per dimension", fontsize=10, loc="left")
        for part in (grid[0].yaxis.set_major_formatter, grid[0].yaxis.set_minor_formatter):
            part(ScalarFormatter())
        legend_below(figure, grid[0])
    return figure


def memory_figure(summary: Summary) -> Figure | None:
    """Megabytes kept for the backward pass against steps per scale, in every memory mode."""
    costs = {arm: summary["costs"][arm] for arm in (REFERENCE, DEFAULT) if arm in summary["costs"]}
    if not costs:
        return None
    with style():
        figure, grid = beside(1, width=5.0)
        depths: list[int] = []
        for arm, cost in costs.items():
            for place, mode in enumerate(MODES):
                by_depth = cost["saved_by_steps"][mode]
                depths = [int(depth) for depth in by_depth]
                grid[0].plot(
                    depths,
                    [value / 1e6 for value in by_depth.values()],
                    marker="osD"[place],
                    color=COLOURS[place],
                    linestyle="-" if arm == REFERENCE else "--",
                    label=mode,
                )
        grid[0].set_xscale("log")
        grid[0].set_yscale("log")
        grid[0].xaxis.set_major_locator(FixedLocator(depths))
        grid[0].xaxis.set_minor_locator(NullLocator())
        grid[0].xaxis.set_major_formatter(ScalarFormatter())
        grid[0].set_xlabel("steps per scale")
        grid[0].set_title("kept for the backward pass, MB", fontsize=10, loc="left")
        legend_below(figure, grid[0])
    return figure


# -- pictures ------------------------------------------------------------------------------------


def picture_sheets(folder: Path, summary: Summary) -> list[tuple[Path, str]]:
    """Write the sheets of samples and interpolations; each path with its caption.

    Each main arm, or each arm if there is no main one, is shown by its first seed; those without
    pictures here are left out.
    """
    found: dict[str, Mapping[str, NDArray[Any]]] = {}
    runs = summary["runs"]
    for arm, about in ({a: r for a, r in runs.items() if r["main"]} or runs).items():
        path = folder / f"{arm}-{about['seeds'][0]}" / "pictures.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                found[about["title"]] = {name: file[name] for name in file.files}
    if not found:
        return []
    first = next(iter(found.values()))
    scale = max(1, _WIDEST // first["real"].shape[2])
    drawn: dict[str, NDArray[np.uint8]] = {"real images": first["real"][0]}
    for title, pictures in found.items():
        for place, temperature in enumerate(pictures["temperatures"]):
            drawn[f"{title}, T = {temperature:g}"] = pictures["samples"][place]
    paths: dict[str, NDArray[np.uint8]] = {}
    for which in range(min(_SHOWN, len(first["interpolation_fade"]))):
        paths[f"cross-fade {which + 1}"] = first["interpolation_fade"][which]
        for title, pictures in found.items():
            if len(pictures["interpolation_flow"]) > which:
                paths[f"{title} {which + 1}"] = pictures["interpolation_flow"][which]
    figures_dir = folder / "figures"
    return [
        (sheet(figures_dir / "samples.png", drawn, [], scale), PICTURE_CAPTIONS["samples"]),
        (
            sheet(figures_dir / "interpolation.png", paths, [], scale),
            PICTURE_CAPTIONS["interpolation"],
        ),
    ]


# -- words ---------------------------------------------------------------------------------------


def warnings_of(summary: Summary) -> list[str]:
    """Reasons to doubt the numbers of this study."""
    runs, costs = summary["runs"], summary["costs"]
    warnings = []
    left_out = [f"{name} ({why})" for name, why in summary.get("left_out", {}).items()]
    if left_out:
        warnings.append(f"Left out, make anew or remove: {', '.join(left_out)}.")
    busy = [arm for arm, cost in costs.items() if any(is_busy(cost, n) for n in ("1", "2"))]
    if busy:
        warnings.append(
            f"Other work ran on the machine (load above {TRUSTED:g}) when steps on ranks were "
            f"timed, so these times are not to be trusted: {', '.join(busy)}."
        )
    diverged = [about["title"] for about in runs.values() if about["diverged"]]
    if diverged:
        warnings.append(f"Diverged in some runs, which no mean holds: {', '.join(diverged)}.")
    if len({tuple(about["cpu_minutes"]) for about in runs.values()}) > 1:
        warnings.append("Not all runs were trained for the same time.")
    if REFERENCE not in runs:
        warnings.append("The arm without sharing is not there: no gaps, ratios or thresholds.")
    return warnings


def _images(about: Mapping[str, Any]) -> str:
    """What was learnt from and measured on."""
    if not about:
        return "–"
    return (
        f"{about['train']:,} to learn from, {about['held_out']:,} held out, of which "
        f"{about['duplicates_removed']:,} equal a training image and are not measured; "
        f"{' x '.join(map(str, about['shape']))}, {about['bits']} bits"
    )
