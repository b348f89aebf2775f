"""The figure of a game: a summary in, F1 of every channel against dreamt steps out."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl.report.figures import style
from mbrl.studies.minatar.tables import REFERENCES, STEPS, channels_of, reference
from mbrl.studies.panels import legend_below
from mbrl.studies.report import COLOURS, GREY
from mbrl.studies.results import look_up

Summary = Mapping[str, Any]

_COLOURS = {
    "grid": COLOURS[1],
    "flat": COLOURS[0],
    "grid_independent": COLOURS[2],
    "best_possible": "#1d1f23",
    "copy_last": GREY,
}
_PER_ROW = 5


def colour(arm: str) -> str:
    """The colour of an arm or a reference, the same in every figure."""
    return _COLOURS.get(arm, COLOURS[3])


def figures(summary: Summary) -> dict[str, Figure]:
    """Every figure, by name."""
    return {"f1": f1_figure(summary)}


def f1_figure(summary: Summary) -> Figure:
    """A panel for each channel. Solid: new episodes, with every seed; dashed: trained on."""
    channels = channels_of(summary)
    columns = min(_PER_ROW, len(channels))
    rows = math.ceil(len(channels) / columns)
    with style():
        figure = Figure(figsize=(2.5 * columns, 2.3 * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(channels) :]:
            axes.set_visible(False)
        for axes, channel in zip(grid.flat, channels, strict=False):
            _draw(axes, summary, channel)
        legend_below(figure, grid[0, 0])
    return figure


def _draw(axes: Axes, summary: Summary, channel: str) -> None:
    for name, title in REFERENCES.items():
        found = [reference(summary, name, step, channel) for step in STEPS]
        line = [_mean(one) for one in found]
        axes.plot(range(len(STEPS)), line, color=colour(name), linewidth=1.6, label=title)
    for arm, measures in summary["arms"].items():
        title, own = summary["runs"][arm]["title"], colour(arm)
        new, trained = (
            [look_up(measures, f"{part}/{step}/{channel}") for step in STEPS]
            for part in ("held_out", "train")
        )
        for seed in range(len(summary["runs"][arm]["seeds"])):
            values = [_seed(one, seed) for one in new]
            axes.plot(range(len(STEPS)), values, color=own, linewidth=0.7, alpha=0.45)
        line = [_mean(one) for one in new]
        axes.plot(range(len(STEPS)), line, color=own, linewidth=2, marker="o", label=title)
        dashed = [_mean(one) for one in trained]
        axes.plot(range(len(STEPS)), dashed, color=own, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.set_title(channel.replace("_", " "), fontsize=9, loc="left")
    axes.set_xticks(range(len(STEPS)), STEPS)
    axes.set_xlabel("steps dreamt")
    axes.set_ylim(-0.02, 1.02)


def _mean(statistics: Mapping[str, Any] | None) -> float:
    value = None if statistics is None else statistics["mean"]
    return math.nan if value is None else value


def _seed(statistics: Mapping[str, Any] | None, seed: int) -> float:
    value = None if statistics is None else statistics["per_seed"][seed]
    return math.nan if value is None else value
