"""Tables of a study: one summary (`mbrl.fidelity.results.aggregate`) in, rows of text out.

The terminal, the HTML report and the documentation all show these rows, so they cannot disagree.
A mean stands with its 95 % interval where there are three seeds or more, and alone where there are
not; a measure that an arm does not have is a dash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from mbrl.fidelity.results import look_up

DASH = "–"


@dataclass(frozen=True)
class Column:
    """One measure: its heading, its name in the summary and how it is written."""

    title: str
    name: str
    digits: int = 2


COLUMNS = (
    Column("ball recall", "ball_recall"),
    Column("ball precision", "objects/ball/precision"),
    Column("own paddle", "own_paddle_recall"),
    Column("other paddle", "other_paddle_recall"),
    Column("centroid, px", "centroid_px"),
    Column("probe F1", "probe_f1/mean"),
    Column("KL, nats", "nats_per_frame", 1),
    Column("pixels, bits", "bits_per_frame", 0),
    Column("shuffle gain, bits", "shuffle_gain_bits", 0),
    Column("ball after 15", "drift/15/ball_recall"),
    Column("near after 15", "drift/15/ball_near"),
    Column("error after 15, px", "drift/15/position_px", 1),
    Column("train, ms", "train_ms_per_frame", 1),
    Column("sample, ms", "sample_ms_per_frame", 1),
)
"""What the summary table shows, in this order; what a game does not have is left out."""


_ON_TERMINAL = (
    Column("ball", "ball_recall"),
    Column("own", "own_paddle_recall"),
    Column("other", "other_paddle_recall"),
    Column("F1", "probe_f1/mean"),
    Column("KL", "nats_per_frame", 1),
    Column("bits", "bits_per_frame", 0),
    Column("ball@15", "drift/15/ball_recall"),
    Column("px@15", "drift/15/position_px", 1),
)


@dataclass(frozen=True)
class Rows:
    """A table as text: the headings, and one row per arm, first its title."""

    head: list[str]
    rows: list[list[str]]
    arms: list[str]


def summary_rows(
    summary: Mapping[str, Any], columns: Sequence[Column] = COLUMNS, main: bool | None = None
) -> Rows:
    """One row per arm, one cell per measure that any arm has.

    Args:
        summary: of one game.
        columns: which measures.
        main: only main arms, only the others, or all.
    """
    runs = summary["runs"]
    arms = [arm for arm in summary["arms"] if main is None or runs[arm]["main"] == main]
    shown = [column for column in columns if any(_mean(summary, arm, column.name) for arm in arms)]
    rows = [
        [runs[arm]["title"], budget(runs[arm])]
        + [cell(look_up(summary["arms"][arm], column.name), column.digits) for column in shown]
        for arm in arms
    ]
    return Rows(["arm", "runs", *(column.title for column in shown)], rows, arms)


def cell(statistics: Mapping[str, Any] | None, digits: int) -> str:
    """A mean with its interval, `0.98 (0.97–0.99)`, or as much of it as there is."""
    if statistics is None or statistics["mean"] is None:
        return DASH
    mean = f"{statistics['mean']:.{digits}f}"
    if statistics["ci95"] is None:
        return mean
    low, high = statistics["ci95"]
    return f"{mean} ({low:.{digits}f}–{high:.{digits}f})"


def budget(about: Mapping[str, Any]) -> str:
    """Seeds and CPU minutes of an arm's runs, such as `3 × 30`."""
    minutes = " or ".join(f"{value:g}" for value in about["cpu_minutes"])
    return f"{len(about['seeds'])} × {minutes}"


def markdown_table(rows: Rows) -> str:
    """The rows as Markdown."""
    lines = [rows.head, ["---"] * len(rows.head), *rows.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """A few means of every arm, for a terminal; the report has intervals and all the rest."""
    rows = summary_rows(summary, _ON_TERMINAL)
    table = Table(
        title=f"{summary['game']}, means over seeds",
        caption="recall of objects, probe F1, nats and bits per frame, dreams after 15 steps",
    )
    for title in rows.head:
        table.add_column(title, justify="left" if title == "arm" else "right", no_wrap=True)
    for row in rows.rows:
        table.add_row(row[0], row[1], *(text.partition(" (")[0] for text in row[2:]))
    return table


def _mean(summary: Mapping[str, Any], arm: str, name: str) -> bool:
    statistics = look_up(summary["arms"][arm], name)
    return statistics is not None and statistics["mean"] is not None
