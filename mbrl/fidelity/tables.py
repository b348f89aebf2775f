"""Tables of a study: one summary (`mbrl.fidelity.results.aggregate`) in, rows of text out.

The terminal, the HTML report and the documentation all show these rows, so they cannot disagree.
A mean stands with its 95 % interval where there are three seeds or more, and alone where there are
not; a measure that an arm does not have is a dash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
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


CODE = (
    Column("F1 from z", "probes/z/f1/mean"),
    Column("from h", "probes/h/f1/mean"),
    Column("from [z, h]", "probes/zh/f1/mean"),
    Column("majority guess", "probes/majority/f1/mean"),
    Column("ridge R² [z, h]", "probes/zh/ridge_r2/mean"),
    Column("network R² [z, h]", "probes/zh/network_r2/mean"),
    Column("shuffled z, bits", "information/shuffle_gain_bits", 0),
    Column("shuffled h, bits", "information/shuffle_hidden_gain_bits", 0),
)
"""What the code knows, and whether the decoder reads it."""
DRIFT = tuple(
    Column(f"{title} {horizon}", f"drift/{horizon}/{name}", digits)
    for name, title, digits in (
        ("ball_recall", "ball,", 2),
        ("ball_near", "near,", 2),
        ("position_px", "px,", 1),
    )
    for horizon in (1, 5, 15, 30, 50)
)
"""Open-loop dreams by horizon."""
NUISANCE = tuple(
    Column(f"{title} from {kind}", f"nuisance/{name}/{kind}")
    for name, title in (("texture_id", "texture"), ("noise_id", "noise"))
    for kind in ("z", "h", "zh", "chance")
)
"""What a code should not hold, in games that have it."""

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


TABLES = ("main", "variants", "code", "drift", "nuisance")
"""Names of all tables."""


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


def tables(summary: Mapping[str, Any]) -> dict[str, tuple[str, Rows]]:
    """Every table of a study that has something in it, by name, with its heading."""
    wanted = {
        "main": ("Main arms", summary_rows(summary, main=True)),
        "variants": ("Variants and ablations", summary_rows(summary, main=False)),
        "code": ("What the code knows", summary_rows(summary, CODE)),
        "drift": ("How long dreams stay true", summary_rows(summary, DRIFT)),
        "nuisance": ("Nuisance: what a code should not hold", summary_rows(summary, NUISANCE)),
    }
    return {
        name: (title, rows)
        for name, (title, rows) in wanted.items()
        if rows.rows and len(rows.head) > 2
    }


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
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for title in rows.head:
        first = title == "arm"  # the only column that may be broken where the terminal is narrow
        table.add_column(title, justify="left" if first else "right", no_wrap=not first)
    for row in rows.rows:
        table.add_row(row[0], row[1], *(text.partition(" (")[0] for text in row[2:]))
    return table


def _mean(summary: Mapping[str, Any], arm: str, name: str) -> bool:
    statistics = look_up(summary["arms"][arm], name)
    return statistics is not None and statistics["mean"] is not None
