"""Figures of a study: a summary and its trials in, PNG files and inline SVG out.

Every figure shows every seed where there is room (thin lines, small dots) and the mean on top.
Colours are fixed by arm, with a marker of their own, so that no two arms are told apart by colour
alone. Which measures exist is looked up, so a game without memory gets fewer
figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from numpy.typing import NDArray

from mbrl.report.figures import style
from mbrl.studies.fidelity.arms import ARMS, SUPERVISED, SWEEP
from mbrl.studies.fidelity.results import look_up
from mbrl.studies.fidelity.tables import objects
from mbrl.studies.panels import beside, legend_below

Summary = Mapping[str, Any]

_PLAIN = "{x:g}"
# of variants, those that differ in what a frame costs; the picture of costs tells them apart
_DESIGNS = {
    "pixelcnn_2": "*",
    "pixelcnn_narrow": "<",
    "pixelcnn_blocks_of_2": "$2$",
    "pixelcnn_pixels": "$1$",
    "pixelcnn_all_rows": "$=$",
}

# Okabe & Ito (2008); yellow is left out, it vanishes on white. Every arm that is no
# variant of the PixelCNN has a marker of its own.
_LOOKS = {
    "pixelcnn": ("#D55E00", "o"),
    "pixelcnn_stagewise": ("#CC79A7", "s"),
    "deconv_categorical": ("#0072B2", "D"),
    "world_models": ("#009E73", "^"),
    "world_models_norm": ("#7fceb9", "v"),
    "deconv_mse": ("#56B4E9", "P"),
    "flow": ("#E69F00", "X"),
    "pixelcnn_past": ("#8C2D04", "p"),
    "pixelcnn_past_long": ("#5B2A86", "h"),
    "deconv_past": ("#08306B", "d"),
}
_GREY, _INK = "#8a8f98", "#222222"


def colour(arm: str) -> str:
    """An arm's colour, the same in every figure; most variants of the PixelCNN are grey."""
    return _LOOKS[arm][0] if arm in _LOOKS else _GREY


def marker(arm: str) -> str:
    """An arm's marker; most variants of the PixelCNN share one."""
    return _LOOKS[arm][1] if arm in _LOOKS else "."


def figures(summary: Summary, trials: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Every figure there are numbers for, by name."""
    makers: dict[str, Callable[[], Figure | None]] = {
        "drift": lambda: drift_figure(summary),
        "cost": lambda: cost_figure(summary),
        "learning": lambda: learning_figure(trials),
        "field": lambda: field_figure(summary),
    }
    drawn = {name: make() for name, make in makers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def drift_figure(summary: Summary) -> Figure | None:
    """The ball (or a game's first object) and the reward of dreams against the horizon.

    Every arm is there: main arms with all their seeds, the others thin.
    """
    lead = [(name, name.replace("_", " ")) for name in objects(summary)[:1]]
    wanted = [
        *((f"{name}_recall", f"recall of the {title}") for name, title in lead),
        *((f"{name}_present", f"a {title} is drawn anywhere") for name, title in lead),
        *(("position_px", f"distance of the {title}, pixels") for _, title in lead),
        *(() if lead else (("pixel_mse", "squared error of pixels"),)),
        ("reward_error", "error of the reward"),
    ]
    panels = [panel for panel in wanted if _horizons(summary, panel[0])]
    if not panels:
        return None
    main = main_arms(summary) or list(summary["arms"])
    with style():
        figure, grid = beside(len(panels), width=3.0)
        for axes, (name, label) in zip(grid, panels, strict=True):
            horizons = _horizons(summary, name)
            for arm in sorted(summary["arms"], key=main.__contains__):  # main arms on top
                _draw_drift(axes, summary, arm, name, horizons, thin=arm not in main)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(horizons))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(_PLAIN)
            axes.set_xlabel("steps dreamt")
            _title_and_range(axes, name, label)
        legend_below(figure, grid[0])
    return figure


def cost_figure(summary: Summary) -> Figure | None:
    """Ball recall and probe F1 against CPU milliseconds per frame trained.

    Milliseconds of different processors do not compare: runs are left out that were not trained
    where the PixelCNN was.
    """
    lead = [(name, name.replace("_", " ")) for name in objects(summary)[:1]]
    wanted = (
        *((f"{name}_recall", f"{title} recall, free-running samples") for name, title in lead),
        ("probe_f1/mean", "linear probes, mean F1 from [z, h]"),
        *((f"drift/15/{name}_recall", f"{title} recall, 15 dreamt steps") for name, title in lead),
    )
    comparable = _timed_alike(summary)
    panels = [panel for panel in wanted if any(_has(summary, arm, panel[0]) for arm in comparable)]
    if not panels:
        return None
    with style():
        figure, grid = beside(len(panels))
        for axes, (name, label) in zip(grid, panels, strict=True):
            for arm in (one for one in comparable if _has(summary, one, name)):
                x, y = (
                    np.array(_per_seed(summary, arm, one))[comparable[arm]]
                    for one in ("train_ms_per_frame", name)
                )
                design = arm in _DESIGNS
                many: dict[str, Any] = {
                    "color": _INK if design else colour(arm),
                    "marker": _DESIGNS.get(arm, marker(arm)),
                    "linestyle": "none",
                }
                if len(x) > 1:
                    axes.plot(x, y, markersize=4, alpha=0.45, **many)
                size = 9 if design or colour(arm) != _GREY else 5
                mean = float(np.nanmean(x)), float(np.nanmean(y))
                title = ARMS[arm].title if design else _legend_title(summary, arm)
                axes.plot(*mean, markersize=size, label=title, **many)
            axes.set_xscale("log")
            left, right = axes.dataLim.intervalx
            # so that a difference of a percent looks like one
            axes.set_xlim(left / 1.5, right * 1.5)
            axes.set_ylim(-0.03, 1.03)
            _plain_ticks(axes.xaxis, (1, 1.5, 2, 3, 5, 7))
            axes.set_xlabel("training, ms per frame, one thread")
            axes.set_title(label, fontsize=10, loc="left")
        legend_below(figure, grid[0])
    return figure


def learning_figure(trials: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Nats per frame and KL of training against its minutes, main arms, every seed."""
    models = [one for one in trials if one["arm"] != SUPERVISED]
    shown = [one for one in models if one["arm"] in ARMS and ARMS[one["arm"]].main] or models
    if not any(len(one["curve"]["cpu_minutes"]) > 1 for one in shown):
        return None
    calibrated = [one for one in shown if "mse" not in _likelihood(one)]
    with style():
        figure, grid = beside(2 if calibrated else 1)
        panels = [("kl", "KL of the code, nats per frame", shown)]
        if calibrated:
            panels.append(("nats_per_frame", "pixels, nats per frame", calibrated))
        for axes, (name, label, runs) in zip(grid, panels, strict=True):
            titled: set[str] = set()
            for run in runs:
                arm, line = run["arm"], run["curve"]
                title = None if arm in titled else ARMS[arm].title if arm in ARMS else arm
                titled.add(arm)
                y = np.array([math.nan if v is None else v for v in line[name]], float)
                axes.plot(
                    line["cpu_minutes"], y, color=colour(arm), linewidth=1.3, alpha=0.8, label=title
                )
            axes.set_xlabel("minutes of training")
            axes.set_title(label, fontsize=10, loc="left")
            axes.set_xlim(left=0)
            if name == "nats_per_frame":
                axes.set_yscale("log")
                _plain_ticks(axes.yaxis, (1, 2, 5))
            else:  # a code may begin with thousands of nats and end with none
                axes.set_yscale("symlog", linthresh=10, linscale=1.5)
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter(_PLAIN)
        legend_below(figure, grid[0])
    return figure


def field_figure(summary: Summary) -> Figure | None:
    """What the receptive field changes: KL, probe F1, recall and bits against PixelCNN layers."""
    arms = [arm for arm in SWEEP if arm in summary["arms"]]
    wanted = (
        ("nats_per_frame", "KL of the code, nats"),
        ("probe_f1/mean", "probes, mean F1"),
        ("bits_per_frame", "pixels, bits per frame"),
        *((f"{name}_recall", f"{name.replace('_', ' ')} recall") for name in objects(summary)[:1]),
    )
    panels = [panel for panel in wanted if any(_has(summary, arm, panel[0]) for arm in arms)]
    if len(arms) < 2 or not panels:
        return None
    layers = {arm: int(arm.rpartition("_")[2]) for arm in arms}
    with style():
        figure, grid = beside(len(panels), width=2.7)
        for axes, (name, label) in zip(grid, panels, strict=True):
            there = [arm for arm in arms if _has(summary, arm, name)]
            means = [look_up(summary["arms"][arm], name)["mean"] for arm in there]  # type: ignore[index]
            axes.plot([layers[arm] for arm in there], means, "o-", color=colour("pixelcnn"))
            axes.set_xticks(list(layers.values()))
            axes.set_xlabel("layers")
            _title_and_range(axes, name, label)
    return figure


# -- parts --------------------------------------------------------------------------------------


def _plain_ticks(axis: Axis, subs: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, at these multiples of powers of ten (if two show)."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_PLAIN)


def _title_and_range(axes: Axes, name: str, label: str) -> None:
    """A panel's title, and its range: all of 0 to 1 for a share, from 0 on for anything else."""
    axes.set_title(label, fontsize=10, loc="left")
    if name.endswith(("_recall", "_present", "f1/mean")):
        axes.set_ylim(-0.03, 1.03)
    else:
        # the margin is a share of all that is shown, not of how little the numbers differ
        axes.set_ylim(0, 1.08 * max(axes.dataLim.y1, 1e-6))


def main_arms(summary: Summary) -> list[str]:
    """Main arms that have results."""
    return [arm for arm in summary["arms"] if summary["runs"][arm]["main"]]


def _timed_alike(summary: Summary) -> dict[str, NDArray[np.bool_]]:
    """Of arms with a time of training, which seeds were trained on one processor: (S,) by arm.

    It is the PixelCNN's, or that of its processors which most runs share; without a PixelCNN, that
    which most runs do.
    """
    on = {
        arm: summary["runs"][arm]["trained_on"] for arm in _arms_with(summary, "train_ms_per_frame")
    }
    every = [processor for arm in on.values() for processor in arm]
    chosen = max(on.get("pixelcnn", every), key=every.count, default=None)
    alike = {arm: np.array([one == chosen for one in seeds]) for arm, seeds in on.items()}
    return {arm: seeds for arm, seeds in alike.items() if seeds.any()}


def _legend_title(summary: Summary, arm: str) -> str:
    variant = colour(arm) == _GREY and arm.startswith("pixelcnn")
    return "variants of the PixelCNN" if variant else summary["runs"][arm]["title"]


def _draw_drift(
    axes: Axes, summary: Summary, arm: str, name: str, horizons: list[int], *, thin: bool
) -> None:
    seeds = np.array(
        [_per_seed(summary, arm, f"drift/{horizon}/{name}") for horizon in horizons], float
    )
    if not np.isfinite(seeds).any():
        return
    for seed in seeds.T if seeds.shape[1] > 1 and not thin else ():
        axes.plot(horizons, seed, color=colour(arm), linewidth=0.9, alpha=0.4)
    there = np.isfinite(seeds).any(1)
    means = np.array([np.nanmean(row) for row in seeds[there]])
    axes.plot(
        np.asarray(horizons)[there],
        means,
        marker=marker(arm),
        markersize=3 if thin else 5,
        color=colour(arm),
        linewidth=0.9 if thin else 2.2,
        alpha=0.7 if thin else 1.0,
        label=_legend_title(summary, arm),
    )


def _horizons(summary: Summary, name: str) -> list[int]:
    """Horizons at which some arm has this measure."""
    found = {
        int(horizon)
        for arm in summary["arms"]
        for horizon in summary["arms"][arm].get("drift", {})
        if horizon.isdigit() and _has(summary, arm, f"drift/{horizon}/{name}")
    }
    return sorted(found)


def _per_seed(summary: Summary, arm: str, name: str) -> list[float]:
    statistics = look_up(summary["arms"][arm], name)
    if statistics is None:
        return [math.nan] * len(summary["runs"][arm]["seeds"])
    return [math.nan if value is None else value for value in statistics["per_seed"]]


def _has(summary: Summary, arm: str, name: str) -> bool:
    statistics = look_up(summary["arms"][arm], name)
    return statistics is not None and statistics["mean"] is not None


def _arms_with(summary: Summary, *names: str) -> list[str]:
    return [arm for arm in summary["arms"] if all(_has(summary, arm, name) for name in names)]


def _likelihood(trial: Mapping[str, Any]) -> str:
    return str(trial["settings"]["world_model"]["decoder"]["likelihood"])
