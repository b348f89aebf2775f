"""Tables of a study: one summary (`mbrl.studies.fidelity.results.aggregate`) in, rows of text out.

The terminal, the HTML report and the documentation all show these rows, so they cannot disagree.
A mean stands with its 95 % interval where there are three seeds or more, and alone where there are
not; a measure that an arm does not have is a dash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.results import look_up

DASH = "–"
SHOWN = 4
"""Objects in a table; results have all of them."""
HORIZONS = (1, 5, 15, 30, 50)


@dataclass(frozen=True)
class Column:
    """One measure: its heading, its name in the summary and how it is written."""

    title: str
    name: str
    digits: int = 2


COLUMNS = (
    Column("centroid, px", "centroid_px"),
    Column("strongest, px", "position_px", 1),
    Column("probe F1", "probe_f1/mean"),
    Column("KL, nats", "nats_per_frame", 1),
    Column("pixels, bits", "bits_per_frame", 0),
    Column("shuffle gain, bits", "shuffle_gain_bits", 0),
    Column("PSNR, dB", "reconstruction/psnr_db", 1),
    Column("error after 15, px", "drift/15/position_px", 1),
    Column("train, ms", "train_ms_per_frame", 1),
    Column("sample, ms", "sample_ms_per_frame", 1),
)
"""What the summary table shows beside the objects; what a game does not have is left out."""
CODE = (
    Column("F1 from z alone", "probes/z/f1/mean"),
    Column("from h", "probes/h/f1/mean"),
    Column("from [z, h]", "probes/zh/f1/mean"),
    Column("majority guess", "probes/majority/f1/mean"),
    Column("accuracy from [z, h]", "probes/zh/accuracy/mean"),
    *(
        Column(f"{reader} R² {features}", f"probes/{kind}/{name}_r2/mean")
        for name, reader in (("ridge", "ridge"), ("network", "network"))
        for kind, features in (("z", "z alone"), ("zh", "[z, h]"))
    ),
    Column("shuffled z, bits", "information/shuffle_gain_bits", 0),
    Column("shuffled h, bits", "information/shuffle_hidden_gain_bits", 0),
    Column("aged, bits", "information/aged_bits", 1),
)
"""What the code knows, and whether the decoder reads it."""
AHEAD = tuple(
    Column("next frame" if step == 0 else f"after {step}", f"ahead/{step}/mean")
    for step in (0, 1, 5, 15)
)
"""What h knows of the frame it has not seen yet, and of later ones."""
NUISANCE = tuple(
    Column(f"{title} {source}", f"nuisance/{title}_id/{kind}", 0 if kind == "episodes" else 2)
    for title in ("texture", "noise")
    for kind, source in (
        *((kind, f"from {kind}") for kind in ("z", "h", "zh")),
        *((f"{kind}_network", f"from {kind}, network") for kind in ("z", "h", "zh")),
        ("chance", "by chance"),
        ("luck", "by luck, at most"),
        *((("episodes", "episodes"),) if title == "texture" else ()),
    )
)
"""What a code should not hold, in games that have it."""

TABLES = (
    "main",
    "variants",
    "objects",
    "code",
    "variables",
    "ahead",
    "drift",
    "dreams",
    "nuisance",
)
"""Names of all tables."""


@dataclass(frozen=True)
class Rows:
    """A table as text: the headings, and one row per arm, first its title."""

    head: list[str]
    rows: list[list[str]]
    arms: list[str]


def objects(summary: Mapping[str, Any]) -> list[str]:
    """Names of the game's objects, the ball first; of many (Freeway's cars) the first `SHOWN`."""
    found = [
        name.removesuffix("_recall")
        for arm in summary["arms"].values()
        for name in arm
        if name.endswith("_recall")
    ]
    return sorted(dict.fromkeys(found), key=lambda name: name != "ball")[:SHOWN]


def columns_of(summary: Mapping[str, Any]) -> list[Column]:
    """Columns of the summary: first the objects, then the rest."""
    names = objects(summary)
    recall = [Column(f"{spoken(name)} recall", f"{name}_recall") for name in names]
    precision = [Column(f"{spoken(name)} precision", f"objects/{name}/precision") for name in names]
    after = [
        Column(f"{spoken(name)} {measure} after 15", f"drift/15/{name}_{measure}")
        for name in names[:1]
        for measure in ("recall", "present")
    ]
    before = [column.name for column in COLUMNS].index("drift/15/position_px")
    return [*recall, *precision, *COLUMNS[:before], *after, *COLUMNS[before:]]


def object_columns(summary: Mapping[str, Any]) -> list[Column]:
    """What stands beside recall: the recall by chance, near without clean, drawn anywhere."""
    return [
        Column(f"{spoken(name)} {title}", f"objects/{name}/{measure}")
        for title, measure in (
            ("recall by chance", "shuffled_recall"),
            ("near", "near"),
            ("present", "present"),
        )
        for name in objects(summary)
    ]


def variable_columns(summary: Mapping[str, Any]) -> list[Column]:
    """F1 of every variable that is probed, in the order of the game's list."""
    probed = {name for arm in summary["arms"].values() for name in arm.get("probe_f1", {})}
    game = GAMES.get(summary["game"])
    names = [name for name in game.variables if name in probed] if game else []
    every = [Column(spoken(name), f"probe_f1/{name}") for name in names]
    return [*every, Column("mean", "probe_f1/mean")] if every else []


def spoken(name: str) -> str:
    """An object's name in a heading."""
    return name.replace("_", " ")


def drift_columns(summary: Mapping[str, Any]) -> list[Column]:
    """Columns for open-loop dreams by horizon: of the ball, or of a game's first object."""
    measures: list[tuple[str, str, int]] = []
    for name in objects(summary)[:1]:
        measures.append((f"{name}_recall", f"{spoken(name)} recall", 2))
        measures.append((f"{name}_present", "present", 2))
    if measures:
        measures.append(("position_px", "px", 1))
    else:
        measures.append(("pixel_mse", "squared error", 4))
    return [
        Column(f"{title}, {horizon}", f"drift/{horizon}/{name}", digits)
        for name, title, digits in measures
        for horizon in HORIZONS
    ]


def dream_columns(summary: Mapping[str, Any]) -> list[Column]:
    """What stands beside drift: how many dreams it is about, and what knowing nothing would get."""
    lead = objects(summary)[:1]
    standing = [
        Column(f"{title}, {horizon}", f"drift/{horizon}/{name}_{measure}", digits)
        for name in lead
        for title, measure, digits in (
            ("dreams", "frames", 0),
            ("px if it stood still", "still_px", 1),
        )
        for horizon in HORIZONS
    ]
    pixels = [
        Column(f"squared error if it stood still, {horizon}", f"drift/{horizon}/still_mse", 4)
        for horizon in (() if lead else HORIZONS)
    ]
    rewards = [
        Column(f"{title}, {horizon}", f"drift/{horizon}/{measure}", 3)
        for horizon in (15, 50)
        for title, measure in (
            ("error of summed reward", "reward_sum_error"),
            ("of predicting none", "reward_sum_error_of_none"),
            ("error of going on", "continue_error"),
            ("error at an ending", "ending_error"),
        )
    ]
    calm = [
        Column("recall with likeliest codes, 15", "drift/15/likeliest_recall"),
        Column("px with likeliest codes, 15", "drift/15/likeliest_px", 1),
    ]
    endings = [Column("endings", "drift/15/ending_frames", 0)]
    return [*standing, *calm, *pixels, *rewards, *endings]


def nuisance_columns(summary: Mapping[str, Any]) -> list[Column]:
    """What a code should not hold, and beside it the objects that it should, from z alone."""
    if not any(arm.get("nuisance") for arm in summary["arms"].values()):
        return []
    held = [
        Column(f"R² of the {spoken(name)}'s row from z", f"positions/z/{name}/row_r2")
        for name in objects(summary)
    ]
    return [*NUISANCE, *held]


def summary_rows(
    summary: Mapping[str, Any],
    columns: Sequence[Column] | None = None,
    main: bool | None = None,
) -> Rows:
    """One row per arm, one cell per measure that any arm has.

    Where not all arms were made on one kind of processor, the last column says on which an arm was,
    since CPU minutes of different ones are not worth the same.

    Args:
        summary: of one game.
        columns: which measures; `columns_of` if None.
        main: only main arms, only the others, or all.
    """
    runs = summary["runs"]
    arms = [arm for arm in summary["arms"] if main is None or runs[arm]["main"] == main]
    wanted = columns_of(summary) if columns is None else columns
    shown = [column for column in wanted if any(_mean(summary, arm, column.name) for arm in arms)]
    mixed = len({one for arm in arms for one in runs[arm].get("processors", [])}) > 1
    rows = [
        [runs[arm]["title"], budget(runs[arm]), updates(runs[arm])]
        + [cell(look_up(summary["arms"][arm], column.name), column.digits) for column in shown]
        + (["; ".join(runs[arm]["processors"])] if mixed else [])
        for arm in arms
    ]
    head = ["arm", "runs", "updates", *(column.title for column in shown)]
    return Rows([*head, *(["processor"] if mixed else [])], rows, arms)


def tables(summary: Mapping[str, Any]) -> dict[str, tuple[str, Rows]]:
    """Every table of a study that has something in it, by name, with its heading."""
    wanted = {
        "main": ("Main arms", _measured(summary, main=True)),
        "variants": ("Variants and ablations", _measured(summary, main=False)),
        "objects": (
            "Objects: recall by chance, near and present",
            _measured(summary, object_columns(summary)),
        ),
        "code": ("What the code knows", _measured(summary, CODE)),
        "variables": (
            "F1 by variable: linear probes of [z, h], or labels given",
            _measured(summary, variable_columns(summary)),
        ),
        "ahead": ("What h knows of the state: ridge R²", _measured(summary, AHEAD)),
        "drift": ("How long dreams stay true", _measured(summary, drift_columns(summary))),
        "dreams": (
            "Beside drift: dreams, standing still, rewards",
            _measured(summary, dream_columns(summary)),
        ),
        "nuisance": (
            "Nuisance: what a code should not hold",
            _measured(summary, nuisance_columns(summary)),
        ),
    }
    return {name: (title, rows) for name, (title, rows) in wanted.items() if rows.rows}


def _measured(
    summary: Mapping[str, Any],
    columns: Sequence[Column] | None = None,
    main: bool | None = None,
) -> Rows:
    """`summary_rows` of the arms that have any of the measures."""
    wanted = columns_of(summary) if columns is None else columns
    every = summary_rows(summary, wanted, main)
    there = [any(_mean(summary, arm, one.name) for one in wanted) for arm in every.arms]
    rows, arms = list(compress(every.rows, there)), list(compress(every.arms, there))
    return Rows(every.head, rows, arms)


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
    """Seeds and minutes of an arm's runs, `3 × 30`; `3` if a number of updates ended them."""
    if about.get("equal_updates"):
        return f"{len(about['seeds'])}"
    minutes = " or ".join(f"{value:g}" for value in about["cpu_minutes"])
    return f"{len(about['seeds'])} × {minutes}"


def updates(about: Mapping[str, Any]) -> str:
    """Updates of an arm's runs, `9,800` or `9,800–10,100`."""
    return "–".join(
        f"{count:,}" for count in sorted({min(about["updates"]), max(about["updates"])})
    )


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """A few means of every arm, for a terminal of 80 columns; the report has all the rest."""
    lead = objects(summary)[:1]
    columns = [
        *(Column(_short(name, objects(summary)), f"{name}_recall") for name in objects(summary)),
        Column("F1", "probe_f1/mean"),
        Column("KL", "nats_per_frame", 1),
        Column("bits", "bits_per_frame", 0),
        *(Column(f"{_short(name, lead)}@15", f"drift/15/{name}_recall") for name in lead),
        Column("px@15", "drift/15/position_px", 1),
    ]
    rows = summary_rows(summary, columns)
    table = Table(
        title=f"{summary['game']}, means over seeds",
        caption="recall of objects, probe F1, nats and bits per frame, dreams after 15 steps",
        box=SIMPLE_HEAD,
        padding=0,
    )
    # the last column, if it is there; it would leave the numbers no room
    head = [title for title in rows.head if title != "processor"]
    for title in head:
        first = title == "arm"  # the only column that may be broken where the terminal is narrow
        table.add_column(title, justify="left" if first else "right", no_wrap=not first)
    for row in rows.rows:
        table.add_row(row[0], *(text.partition(" (")[0] for text in row[1 : len(head)]))
    return table


def _short(name: str, others: Sequence[str]) -> str:
    """The first word of an object's name, or all of it where others begin alike."""
    first = name.partition("_")[0]
    alone = [other.partition("_")[0] for other in others].count(first) == 1
    return first if alone else spoken(name)


def _mean(summary: Mapping[str, Any], arm: str, name: str) -> bool:
    statistics = look_up(summary["arms"][arm], name)
    return statistics is not None and statistics["mean"] is not None
