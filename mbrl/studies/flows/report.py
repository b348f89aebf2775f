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
_IMAGES = (
    "{train:,} to learn from, {held_out:,} held out, of which {duplicates_removed:,} equal a "
    "training image and are not measured; {shape[0]} x {shape[1]} x {shape[2]}, {bits} bits"
)
_SHOWN = 4
_WIDEST = 128
"""Pixels that an image may take of a sheet."""


def colour(arm: str) -> str:
    """An arm's colour, the same in every figure; grey beyond the first six."""
    return dict(zip(ARMS, COLOURS, strict=False)).get(arm, GREY)


def write_report(folder: Path, summary: Summary, trials: Sequence[Mapping[str, Any]]) -> Path:
    """Write `report.html` and the PNG files; `folder` has the run folders of the trials."""
    drawn = {"learning": learning_figure(summary, trials), "memory": memory_figure(summary)}
    return write_page(
        folder,
        summary,
        title=f"What shared couplings cost on {summary['images']}",
        lead=_LEAD,
        arms=ARMS,
        colour=colour,
        tables=tables(summary),
        figures={name: figure for name, figure in drawn.items() if figure is not None},
        captions=_CAPTIONS,
        sheets=picture_sheets(folder, summary),
        warnings=warnings_of(summary),
        protocol={
            "images": _IMAGES.format(**summary["about"]) if summary["about"] else "–",
            "budget": "CPU minutes of one thread per run: `runs` in the tables is seeds × minutes",
            "measures": "every measure is defined in docs/flows.md",
        },
    )


def learning_figure(summary: Summary, trials: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Held-out bits per dimension against CPU minutes of every run."""
    curves = [(one["arm"], held_out_curve(one)) for one in trials]
    curves = [(arm, curve) for arm, curve in curves if len(curve) > 1]
    if not curves:
        return None
    marginal = summary["about"].get("baselines", {}).get("marginal")
    with style():
        figure, [axes] = beside(1, width=6.0)
        for arm, curve in curves:
            about = summary["runs"][arm]
            width = 1.6 if about["main"] else 0.9
            named = {"color": colour(arm), "label": about["title"]}
            axes.plot(*curve.T, linewidth=width, alpha=0.8, **named)
        if marginal is not None:
            axes.axhline(marginal, linestyle=":", color=GREY)
        axes.set(yscale="log", xlim=(0, None), xlabel="CPU minutes")
        axes.set_title("held-out images, bits per dimension", fontsize=10, loc="left")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        legend_below(figure, axes)
    return figure


def memory_figure(summary: Summary) -> Figure | None:
    """Megabytes kept for the backward pass against steps per scale, in every memory mode."""
    costs = {arm: summary["costs"][arm] for arm in (REFERENCE, DEFAULT) if arm in summary["costs"]}
    if not costs:
        return None
    with style():
        figure, [axes] = beside(1, width=5.0)
        depths: list[int] = []
        for arm, cost in costs.items():
            for mode, marker, own in zip(MODES, "osD", COLOURS, strict=False):
                by_depth = cost["saved_by_steps"][mode]
                depths = [int(depth) for depth in by_depth]
                axes.plot(
                    depths,
                    [value / 1e6 for value in by_depth.values()],
                    marker=marker,
                    color=own,
                    linestyle="-" if arm == REFERENCE else "--",
                    label=mode,
                )
        axes.set(xscale="log", yscale="log", xlabel="steps per scale")
        axes.xaxis.set_major_locator(FixedLocator(depths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_title("kept for the backward pass, MB", fontsize=10, loc="left")
        legend_below(figure, axes)
    return figure


def picture_sheets(folder: Path, summary: Summary) -> list[tuple[Path, str]]:
    """Write the sheets of samples and interpolations; each path with its caption.

    Main arms that have pictures here, or all if there is no main one, are shown by a first seed.
    """
    found: dict[str, Mapping[str, NDArray[Any]]] = {}
    runs = summary["runs"]
    for arm, about in ({a: r for a, r in runs.items() if r["main"]} or runs).items():
        path = folder / f"{arm}-{about['seeds'][0]}" / "pictures.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                found[about["title"]] = dict(file)
    if not found:
        return []
    first = next(iter(found.values()))
    samples: dict[str, NDArray[np.uint8]] = {"real images": first["real"][0]}
    for title, pictures in found.items():
        for temperature, drawn in zip(pictures["temperatures"], pictures["samples"], strict=True):
            samples[f"{title}, T = {temperature:g}"] = drawn
    paths: dict[str, NDArray[np.uint8]] = {}
    for which, faded in enumerate(first["interpolation_fade"][:_SHOWN], 1):
        paths[f"cross-fade {which}"] = faded
        for title, pictures in found.items():
            if len(pictures["interpolation_flow"]) >= which:
                paths[f"{title} {which}"] = pictures["interpolation_flow"][which - 1]
    scale = max(1, _WIDEST // first["real"].shape[2])
    return [
        (sheet(folder / "figures" / f"{name}.png", rows, [], scale), PICTURE_CAPTIONS[name])
        for name, rows in (("samples", samples), ("interpolation", paths))
    ]


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
