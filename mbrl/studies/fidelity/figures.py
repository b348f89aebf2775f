"""Figures of a study: a summary and its trials in, PNG files and inline SVG out.

Every figure shows every seed where there is room (thin lines) and the mean on top. An arm has a
colour and a marker of its own, so that no two differ in colour alone. Which measures exist is
looked up, so a game without memory gets fewer figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Locator, LogLocator, NullLocator

from mbrl.report.figures import style
from mbrl.studies.fidelity.arms import ARMS, SUPERVISED, SWEEP
from mbrl.studies.fidelity.tables import objects
from mbrl.studies.panels import beside, legend_below
from mbrl.studies.report import GREY
from mbrl.studies.results import look_up

Summary = Mapping[str, Any]

_PLAIN = "{x:g}"
# Okabe & Ito (2008); yellow is left out, it vanishes on white
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


def colour(arm: str) -> str:
    """An arm's colour, the same in every figure; most variants of the PixelCNN are grey."""
    return _LOOKS[arm][0] if arm in _LOOKS else GREY


def marker(arm: str) -> str:
    """An arm's marker; most variants of the PixelCNN share one."""
    return _LOOKS[arm][1] if arm in _LOOKS else "."


def figures(summary: Summary, trials: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Every figure there are numbers for, by name."""
    drawn = {
        "drift": drift_figure(summary),
        "learning": learning_figure(trials),
        "field": field_figure(summary),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def drift_figure(summary: Summary) -> Figure | None:
    """The ball (or a game's first object) and the reward of dreams against the horizon.

    Every arm is there: main arms with all their seeds, the others thin.
    """
    wanted = [
        *_of_lead(summary, "{name}_recall", "recall of the {title}"),
        *_of_lead(summary, "{name}_present", "a {title} is drawn anywhere"),
        *_of_lead(summary, "position_px", "distance of the {title}, pixels"),
        *(() if objects(summary) else (("pixel_mse", "squared error of pixels"),)),
        ("reward_error", "error of the reward"),
    ]
    panels = [panel for panel in wanted if _horizons(summary, panel[0])]
    main = main_arms(summary) or list(summary["arms"])

    def draw(axes: Axes, name: str) -> None:
        for arm in sorted(summary["arms"], key=main.__contains__):  # main arms on top
            _draw_drift(axes, summary, arm, name, thin=arm not in main)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, FixedLocator(_horizons(summary, name)))
        axes.set_xlabel("steps dreamt")
        _set_range(axes, name)

    return _panels(panels, draw, width=3.0)


def learning_figure(trials: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Nats per frame and KL of training against its minutes, main arms, every seed."""
    models = [one for one in trials if one["arm"] != SUPERVISED]
    shown = [one for one in models if one["arm"] in ARMS and ARMS[one["arm"]].main] or models
    if not any(len(one["curve"]["cpu_minutes"]) > 1 for one in shown):
        return None
    calibrated = [
        one for one in shown if one["settings"]["world_model"]["decoder"].get("likelihood") != "mse"
    ]
    panels = [("kl", "KL of the code, nats per frame")]
    if calibrated:
        panels.append(("nats_per_frame", "pixels, nats per frame"))

    def draw(axes: Axes, name: str) -> None:
        titled: set[str] = set()
        for run in shown if name == "kl" else calibrated:
            arm, line = run["arm"], run["curve"]
            title = None if arm in titled else ARMS[arm].title if arm in ARMS else arm
            titled.add(arm)
            y = np.array([math.nan if v is None else v for v in line[name]], float)
            axes.plot(
                line["cpu_minutes"], y, color=colour(arm), linewidth=1.3, alpha=0.8, label=title
            )
        axes.set_xlabel("minutes of training")
        axes.set_xlim(left=0)
        if name == "nats_per_frame":
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis, LogLocator(subs=(1, 2, 5)))
        else:  # a code may begin with thousands of nats and end with none
            axes.set_yscale("symlog", linthresh=10, linscale=1.5)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(_PLAIN)

    return _panels(panels, draw)


def field_figure(summary: Summary) -> Figure | None:
    """What the receptive field changes: KL, probe F1, recall and bits against PixelCNN layers."""
    arms = [arm for arm in SWEEP if arm in summary["arms"]]
    wanted = (
        ("nats_per_frame", "KL of the code, nats"),
        ("probe_f1/mean", "probes, mean F1"),
        ("bits_per_frame", "pixels, bits per frame"),
        *_of_lead(summary, "{name}_recall", "{title} recall"),
    )
    panels = [panel for panel in wanted if any(_has(summary, arm, panel[0]) for arm in arms)]
    if len(arms) < 2:
        return None
    layers = {arm: int(arm.rpartition("_")[2]) for arm in arms}

    def draw(axes: Axes, name: str) -> None:
        found = {layers[arm]: _mean(summary, arm, name) for arm in arms}
        there = {layer: mean for layer, mean in found.items() if mean is not None}
        axes.plot(list(there), list(there.values()), "o-", color=colour("pixelcnn"))
        axes.set_xticks(list(layers.values()))
        axes.set_xlabel("layers")
        _set_range(axes, name)

    return _panels(panels, draw, width=2.7, legend=False)


# -- parts ----------------------------------------------------------------------------------------


def _panels(
    panels: Sequence[tuple[str, str]],
    draw: Callable[[Axes, str], None],
    *,
    width: float = 3.5,
    legend: bool = True,
) -> Figure | None:
    """A figure with a panel for each measure and title, if there is any; `draw` fills one."""
    if not panels:
        return None
    with style():
        figure, grid = beside(len(panels), width=width)
        for axes, (name, title) in zip(grid, panels, strict=True):
            draw(axes, name)
            axes.set_title(title, fontsize=10, loc="left")
        if legend:
            legend_below(figure, grid[0])
    return figure


def _of_lead(summary: Summary, name: str, title: str) -> list[tuple[str, str]]:
    """A measure of the game's first object with its title; none in a game without objects."""
    words = [{"name": one, "title": one.replace("_", " ")} for one in objects(summary)[:1]]
    return [(name.format(**one), title.format(**one)) for one in words]


def _plain_ticks(axis: Axis, locator: Locator) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_PLAIN)


def _set_range(axes: Axes, name: str) -> None:
    """All of 0 to 1 for a share, from 0 on for anything else."""
    if name.endswith(("_recall", "_present", "f1/mean")):
        axes.set_ylim(-0.03, 1.03)
    else:
        # the margin is a share of all that is shown, not of how little the numbers differ
        axes.set_ylim(0, 1.08 * max(axes.dataLim.y1, 1e-6))


def main_arms(summary: Summary) -> list[str]:
    """Main arms that have results."""
    return [arm for arm in summary["arms"] if summary["runs"][arm]["main"]]


def _legend_title(summary: Summary, arm: str) -> str:
    variant = colour(arm) == GREY and arm.startswith("pixelcnn")
    return "variants of the PixelCNN" if variant else summary["runs"][arm]["title"]


def _draw_drift(axes: Axes, summary: Summary, arm: str, name: str, *, thin: bool) -> None:
    horizons = np.array(_horizons(summary, name))
    seeds = np.array([_per_seed(summary, arm, f"drift/{one}/{name}") for one in horizons], float)
    there = np.isfinite(seeds).any(1)
    if not there.any():
        return
    if seeds.shape[1] > 1 and not thin:
        axes.plot(horizons, seeds, color=colour(arm), linewidth=0.9, alpha=0.4)
    means = np.array([np.nanmean(row) for row in seeds[there]])
    size, width, alpha = (3, 0.9, 0.7) if thin else (5, 2.2, 1.0)
    axes.plot(
        horizons[there],
        means,
        color=colour(arm),
        marker=marker(arm),
        markersize=size,
        linewidth=width,
        alpha=alpha,
        label=_legend_title(summary, arm),
    )


def _horizons(summary: Summary, name: str) -> list[int]:
    """Horizons at which some arm has this measure."""
    found = {
        horizon
        for arm, measures in summary["arms"].items()
        for horizon in filter(str.isdigit, measures.get("drift", {}))
        if _has(summary, arm, f"drift/{horizon}/{name}")
    }
    return sorted(map(int, found))


def _per_seed(summary: Summary, arm: str, name: str) -> list[float]:
    found = look_up(summary["arms"][arm], name)
    values = [None] * len(summary["runs"][arm]["seeds"]) if found is None else found["per_seed"]
    return [math.nan if value is None else value for value in values]


def _mean(summary: Summary, arm: str, name: str) -> float | None:
    found = look_up(summary["arms"][arm], name)
    return None if found is None else found["mean"]


def _has(summary: Summary, arm: str, name: str) -> bool:
    return _mean(summary, arm, name) is not None
