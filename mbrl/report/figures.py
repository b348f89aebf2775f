"""Figures: learning curves and metrics go in, a PNG file or an inline SVG string comes out.

Drawn with matplotlib's object interface only, so no global figure, backend or style is touched.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from mbrl.report.stats import align
from mbrl.run.durable import write_atomically

Curves = Mapping[str, Sequence[ArrayLike]]

# Legible on white and on near black, and apart from each other for most colour-blind readers.
_COLOURS = {"dream": "#e4572e", "ppo": "#3b82d6", "dqn": "#17a673", "random": "#8a8f98"}
_MORE_COLOURS = ("#a463d1", "#c79a16", "#d6558b", "#5aa7b8")
_STEPS = "real environment steps"
_INK = "#5a5e66"  # becomes the page's own text colour in an SVG
_MANY_TIMES = 3
"""Budgets that differ by more are drawn over the logarithm of the steps."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """A fixed colour for each agent, the same in every figure and table."""
    unknown = [name for name in names if name not in _COLOURS]
    spare = {name: _MORE_COLOURS[i % len(_MORE_COLOURS)] for i, name in enumerate(unknown)}
    return {name: _COLOURS.get(name) or spare[name] for name in names}


def plot_curves(path: Path, curves: Curves, title: str = "") -> Path:
    """Draw every seed's learning curve and the mean of each agent into a PNG.

    `curves` has per agent one (points, 2) array per seed: x, then score. NaN scores are left out.
    """
    return save_png(_curves_figure(curves, title, _STEPS, None, height=4.2), path)


def plot_panels(path: Path, panels: Mapping[str, Curves]) -> Path:
    """As `plot_curves`, with a panel for each game, by name."""
    return save_png(_panels_figure(panels), path)


def panels_svg(panels: Mapping[str, Curves]) -> str:
    """The figure of `plot_panels` as an `<svg>` element that takes on the page's text colour."""
    return to_svg(_panels_figure(panels))


def curves_svg(curves: Curves, *, threshold: float | None = None, over_time: bool = False) -> str:
    """The figure of `plot_curves` as an `<svg>` element that takes on the page's text colour.

    Args:
        curves: as `plot_curves`; with `over_time`, x is wall-clock seconds.
        threshold: a dashed line at this score, if given.
        over_time: minutes or hours are shown.
    """
    xlabel = _STEPS
    if over_time:
        curves, unit = _in_minutes_or_hours(curves)
        xlabel = f"wall-clock time of a run, {unit}"
    return to_svg(_curves_figure(curves, "", xlabel, threshold, height=3.9))


def metrics_svg(
    series: Mapping[str, ArrayLike], held_out: Mapping[str, ArrayLike] | None = None
) -> str:
    """Small multiples: one little plot per metric, as one `<svg>` element.

    `series` has per metric, of one or more, a (points, 2) array: env steps, then the value; NaN
    leaves a gap. `held_out` has the same, of episodes held out, for some of the metrics: a dashed
    line beside the other.
    """
    rows = -(-len(series) // 3)
    with style():
        figure = Figure(figsize=(8.4, 1.7 * rows), layout="constrained")
        grid = figure.subplots(rows, 3, squeeze=False)
        for axes in grid.flat[len(series) :]:
            axes.set_visible(False)
        for axes, (name, points) in zip(grid.flat, series.items(), strict=False):
            values = np.asarray(points, dtype=float)
            axes.plot(values[:, 0], values[:, 1], color=_COLOURS["ppo"], linewidth=1.2)
            if held_out and name in held_out:
                values, apart = np.asarray(held_out[name], dtype=float), (0, (4, 2))
                line = {"color": _COLOURS["dream"], "linewidth": 1.2, "linestyle": apart}
                axes.plot(values[:, 0], values[:, 1], label="held out", **line)
                axes.legend(loc="best", frameon=False, fontsize=8)
            axes.set_title(name, fontsize=9, loc="left")
            axes.tick_params(labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            _thousands(axes)
    return to_svg(figure)


def _curves_figure(
    curves: Curves, title: str, xlabel: str, threshold: float | None, height: float
) -> Figure:
    with style():
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        _draw_curves(axes, curves, title)
        if threshold is not None:
            axes.axhline(threshold, color=_INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.8)
        axes.set_xlabel(xlabel)
        axes.legend(loc="best", frameon=False)
    return figure


def _panels_figure(panels: Mapping[str, Curves]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
            _draw_curves(axes, curves, name.replace("_", " "))
            axes.set_xlabel(_STEPS)
            axes.legend(loc="best", frameon=False, fontsize=8)
    return figure


def _draw_curves(axes: Axes, curves: Curves, title: str) -> None:
    """Every arm's curves; over the logarithm of the steps where budgets differ by far."""
    palette = colours(list(curves))
    for name, seeds in curves.items():
        _draw_agent(axes, name, seeds, palette[name])
    axes.set_ylabel("return")
    axes.set_title(title, loc="left", fontsize=12)
    axes.margins(x=0.02)
    ends = [np.asarray(seed, dtype=float)[-1, 0] for seeds in curves.values() for seed in seeds]
    if max(ends) > _MANY_TIMES * min(ends) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    _thousands(axes)


def _draw_agent(axes: Axes, name: str, seeds: Sequence[ArrayLike], colour: str) -> None:
    many = len(seeds) > 1
    for seed in seeds:
        points = np.asarray(seed, dtype=float)
        points = points[~np.isnan(points[:, 1])]
        width, alpha = (1.0, 0.4) if many else (2.2, 1.0)
        marker = "o" if len(points) == 1 else None  # a line of one point would not show
        axes.plot(
            points[:, 0], points[:, 1], color=colour, linewidth=width, alpha=alpha, marker=marker
        )
    label = f"{name}, mean of {len(seeds)} seeds" if many else f"{name}, 1 seed"
    if many and _overlap(seeds):
        steps, scores = align(seeds)
        axes.plot(steps, scores.mean(axis=0), color=colour, linewidth=2.4, label=label)
    else:
        axes.plot([], [], color=colour, linewidth=2.2, label=label)


def _overlap(seeds: Sequence[ArrayLike]) -> bool:
    """Whether there is a range of x that all curves cover; over wall-clock there may be none."""
    xs = [np.asarray(seed, dtype=float)[:, 0] for seed in seeds]
    return bool(max(x[0] for x in xs) <= min(x[-1] for x in xs))


def _thousands(axes: Axes) -> None:
    def thousands(x: float, _: int) -> str:
        return f"{x / 1000:g} k" if abs(x) >= 1000 else f"{x:g}"

    axes.xaxis.set_major_formatter(FuncFormatter(thousands))


def _in_minutes_or_hours(curves: Curves) -> tuple[Curves, str]:
    arrays = {name: [np.asarray(seed, float) for seed in seeds] for name, seeds in curves.items()}
    longest = max(seed[:, 0].max() for seeds in arrays.values() for seed in seeds)
    size, unit = (3600.0, "hours") if longest >= 7200 else (60.0, "minutes")
    scaled = {name: [seed / [size, 1.0] for seed in seeds] for name, seeds in arrays.items()}
    return scaled, unit


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, for as long as it is drawn and saved."""
    settings: dict[Any, Any] = {
        "font.size": 10,
        "font.family": ["DejaVu Sans"],
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _INK,
        "grid.alpha": 0.16,
        "grid.linewidth": 0.7,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "svg.fonttype": "path",
        "svg.hashsalt": "reverie",  # the same figure gives the same file
    }
    with rc_context(settings):
        yield


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; the folder is made if missing."""
    out = io.BytesIO()
    with style():
        figure.savefig(out, format="png", dpi=160, facecolor="white")
    write_atomically(path, out.getvalue())
    return path


def to_svg(figure: Figure) -> str:
    """A figure as an `<svg>` element that takes on the page's text colour."""
    out = io.StringIO()
    save: Callable[..., None] = figure.savefig
    with style():
        save(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
