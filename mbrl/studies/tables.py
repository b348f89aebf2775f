"""Tables of a study: a summary (`mbrl.studies.results.summary_of`) in, rows of text out.

The terminal, the HTML report and the documentation all show these rows, so they cannot disagree.
A mean stands with its 95 % interval where there are three seeds or more, and alone where there are
not; a measure that an arm does not have is a dash. Which columns there are, each study says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mbrl.studies.results import look_up

Summary = Mapping[str, Any]
DASH = "–"


@dataclass(frozen=True)
class Column:
    """One measure of an arm.

    Attributes:
        title: its heading.
        name: its path in the summary of an arm; empty for one that is always shown.
        digits: behind the point.
        text: what is written of an arm instead of mean and interval.
    """

    title: str
    name: str
    digits: int = 2
    text: Callable[[Summary, str], str] | None = None


@dataclass(frozen=True)
class Rows:
    """A table as text: the headings, and one row for each of `arms`, first its title."""

    head: list[str]
    rows: list[list[str]]
    arms: list[str]


Tables = Mapping[str, tuple[str, Rows]]
"""Tables with their headings, by name."""


def summary_rows(summary: Summary, columns: Sequence[Column], main: bool | None = None) -> Rows:
    """One row per arm, main or other ones or all, and one cell per measure that any arm has.

    Where not all arms were made on one kind of processor, the last column says on which an arm was,
    since CPU minutes of different ones are not worth the same.
    """
    runs = summary["runs"]
    arms = [arm for arm in summary["arms"] if main is None or runs[arm]["main"] == main]
    shown = [column for column in columns if any(_has(summary, arm, column) for arm in arms)]
    mixed = len({one for arm in arms for one in runs[arm].get("processors", [])}) > 1
    rows = [
        [runs[arm]["title"], budget(runs[arm]), updates(runs[arm])]
        + [_text(summary, arm, column) for column in shown]
        + (["; ".join(runs[arm]["processors"])] if mixed else [])
        for arm in arms
    ]
    head = ["arm", "runs", "updates", *(column.title for column in shown)]
    return Rows([*head, *(["processor"] if mixed else [])], rows, arms)


def measured_rows(summary: Summary, columns: Sequence[Column], main: bool | None = None) -> Rows:
    """`summary_rows` of the arms that have any of the measures."""
    every = summary_rows(summary, columns, main)
    there = [any(_has(summary, arm, column) for column in columns) for arm in every.arms]
    return Rows(every.head, [*compress(every.rows, there)], [*compress(every.arms, there)])


def not_empty(wanted: Tables) -> dict[str, tuple[str, Rows]]:
    """The tables that have something in them."""
    return {name: (title, rows) for name, (title, rows) in wanted.items() if rows.rows}


def cell(statistics: Mapping[str, Any] | None, digits: int) -> str:
    """A mean with its interval, `0.98 (0.97–0.99)`, or as much of it as there is."""
    if statistics is None or statistics["mean"] is None:
        return DASH
    mean = f"{statistics['mean']:.{digits}f}"
    if statistics["ci95"] is None:
        return mean
    low, high = statistics["ci95"]
    return f"{mean} ({low:.{digits}f}–{high:.{digits}f})"


def number(value: float | None, digits: int = 0) -> str:
    """A number that stands for itself, `1,234.5`."""
    return DASH if value is None else f"{value:,.{digits}f}"


def share(value: float | None, of: float | None) -> str:
    """A part of something in percent, `3.5 %`."""
    return DASH if value is None or not of else f"{100 * value / of:.3g} %"


def budget(about: Mapping[str, Any]) -> str:
    """Seeds and minutes of an arm's runs, `3 × 30`; `3` if a number of updates ended them."""
    if about.get("equal_updates"):
        return f"{len(about['seeds'])}"
    minutes = " or ".join(f"{value:g}" for value in about["cpu_minutes"])
    return f"{len(about['seeds'])} × {minutes}"


def updates(about: Mapping[str, Any]) -> str:
    """Updates of an arm's runs, `9,800` or `9,800–10,100`."""
    least_and_most = sorted({min(about["updates"]), max(about["updates"])})
    return "–".join(f"{count:,}" for count in least_and_most)


def terminal_table(title: str, caption: str, rows: Rows, padding: int = 0) -> Table:
    """Rows for a terminal, without intervals and processors, which the report has."""
    # the processor is the last column, if it is there; it would leave the numbers no room
    head = [name for name in rows.head if name != "processor"]
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, padding, 0, 0))
    for name in head:
        first = name == "arm"  # the only column that may be broken where the terminal is narrow
        table.add_column(name, justify="left" if first else "right", no_wrap=not first)
    for row in rows.rows:
        table.add_row(row[0], *(text.partition(" (")[0] for text in row[1 : len(head)]))
    return table


def _text(summary: Summary, arm: str, column: Column) -> str:
    if column.text is not None:
        return column.text(summary, arm)
    return cell(look_up(summary["arms"][arm], column.name), column.digits)


def _has(summary: Summary, arm: str, column: Column) -> bool:
    if not column.name:
        return True
    statistics = look_up(summary["arms"][arm], column.name)
    return statistics is not None and statistics["mean"] is not None
