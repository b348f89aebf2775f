"""Tables of the fidelity study: a summary in, rows of text out (`mbrl.studies.tables`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.tables import (
    Column,
    Rows,
    measured_rows,
    not_empty,
    summary_rows,
    terminal_table,
)

Summary = Mapping[str, Any]
HORIZONS = (1, 5, 15, 30, 50)

FRAMES = (
    Column("centroid, px", "centroid_px"),
    Column("strongest, px", "position_px", 1),
    Column("probe F1", "probe_f1/mean"),
    Column("KL, nats", "nats_per_frame", 1),
    Column("pixels, bits", "bits_per_frame", 0),
    Column("shuffle gain, bits", "shuffle_gain_bits", 0),
    Column("PSNR, dB", "reconstruction/psnr_db", 1),
)
DREAMS_AND_COSTS = (
    Column("error after 15, px", "drift/15/position_px", 1),
    Column("train, ms", "train_ms_per_frame", 1),
    Column("sample, ms", "sample_ms_per_frame", 1),
)
CODE = (
    Column("F1 from z alone", "probes/z/f1/mean"),
    Column("from h", "probes/h/f1/mean"),
    Column("from [z, h]", "probes/zh/f1/mean"),
    Column("majority guess", "probes/majority/f1/mean"),
    Column("accuracy from [z, h]", "probes/zh/accuracy/mean"),
    *(
        Column(f"{reader} R² {features}", f"probes/{kind}/{reader}_r2/mean")
        for reader in ("ridge", "network")
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
READERS = {
    **{kind: f"from {kind}" for kind in ("z", "h", "zh")},
    **{f"{kind}_network": f"from {kind}, network" for kind in ("z", "h", "zh")},
    "chance": "by chance",
    "luck": "by luck, at most",
}
NUISANCE = (
    *(Column(f"texture {title}", f"nuisance/texture_id/{kind}") for kind, title in READERS.items()),
    Column("texture episodes", "nuisance/texture_id/episodes", 0),
    *(Column(f"noise {title}", f"nuisance/noise_id/{kind}") for kind, title in READERS.items()),
)
"""What a code should not hold, in games that have it."""


def objects(summary: Summary) -> list[str]:
    """Names of the game's objects, the ball first."""
    found = [
        name.removesuffix("_recall")
        for arm in summary["arms"].values()
        for name in arm
        if name.endswith("_recall")
    ]
    return sorted(dict.fromkeys(found), key=lambda name: name != "ball")


def spoken(name: str) -> str:
    """An object's name in a heading."""
    return name.replace("_", " ")


def _each(names: Sequence[str], *measures: tuple[str, str]) -> list[Column]:
    """Columns of objects: each measure, as title and path, of each object."""
    return [
        Column(title.format(spoken(name)), path.format(name))
        for title, path in measures
        for name in names
    ]


def _over(horizons: Sequence[int], *measures: tuple[str, str, int]) -> list[Column]:
    """Columns of dreams: each measure, as name, title and digits, at each horizon."""
    return [
        Column(f"{title}, {horizon}", f"drift/{horizon}/{name}", digits)
        for name, title, digits in measures
        for horizon in horizons
    ]


def columns_of(summary: Summary) -> list[Column]:
    """Columns of the summary; what a game does not have is left out."""
    names = objects(summary)
    of_frames = _each(names, ("{} recall", "{}_recall"), ("{} precision", "objects/{}/precision"))
    of_dreams = _each(
        names[:1],
        ("{} recall after 15", "drift/15/{}_recall"),
        ("{} present after 15", "drift/15/{}_present"),
    )
    return [*of_frames, *FRAMES, *of_dreams, *DREAMS_AND_COSTS]


def variable_columns(summary: Summary) -> list[Column]:
    """F1 of every variable that is probed, in the order of the game's list."""
    probed = {name for arm in summary["arms"].values() for name in arm.get("probe_f1", {})}
    game = GAMES.get(summary["game"])
    names = [name for name in game.variables if name in probed] if game else []
    every = [Column(spoken(name), f"probe_f1/{name}") for name in names]
    return [*every, Column("mean", "probe_f1/mean")] if every else []


def drift_columns(summary: Summary) -> list[Column]:
    """Columns for open-loop dreams by horizon: of the ball, or of a game's first object."""
    for name in objects(summary)[:1]:
        recall = (f"{name}_recall", f"{spoken(name)} recall", 2)
        return _over(HORIZONS, recall, (f"{name}_present", "present", 2), ("position_px", "px", 1))
    return _over(HORIZONS, ("pixel_mse", "squared error", 4))


def dream_columns(summary: Summary) -> list[Column]:
    """What stands beside drift: how many dreams it is about, and what knowing nothing would get."""
    rewards = (
        ("reward_sum_error", "error of summed reward", 3),
        ("reward_sum_error_of_none", "of predicting none", 3),
        ("continue_error", "error of going on", 3),
        ("ending_error", "error at an ending", 3),
    )
    still = [("still_mse", "squared error if it stood still", 4)]
    for name in objects(summary)[:1]:
        still = [(f"{name}_frames", "dreams", 0), (f"{name}_still_px", "px if it stood still", 1)]
    calm = [
        Column("recall with modes, 15", "drift/15/likeliest_recall"),
        Column("px with modes, 15", "drift/15/likeliest_px", 1),
    ]
    after = [*_over((15,), *rewards), *_over((50,), *rewards)]
    return [*_over(HORIZONS, *still), *calm, *after, Column("endings", "drift/15/ending_frames", 0)]


def nuisance_columns(summary: Summary) -> list[Column]:
    """What a code should not hold, and beside it the objects that it should, from z alone."""
    if not any(arm.get("nuisance") for arm in summary["arms"].values()):
        return []
    return [
        *NUISANCE,
        *_each(objects(summary), ("R² of the {}'s row from z", "positions/z/{}/row_r2")),
    ]


def tables(summary: Summary) -> dict[str, tuple[str, Rows]]:
    """Every table of a study that has something in it, by name, with its heading."""
    found = objects(summary)
    wanted = {
        "objects": (
            "Objects: recall by chance, near and present",
            _each(
                found,
                ("{} recall by chance", "objects/{}/shuffled_recall"),
                ("{} near", "objects/{}/near"),
                ("{} present", "objects/{}/present"),
            ),
        ),
        "code": ("What the code knows", CODE),
        "variables": (
            "F1 by variable: linear probes of [z, h], or labels given",
            variable_columns(summary),
        ),
        "ahead": ("What h knows of the state: ridge R²", AHEAD),
        "drift": ("How long dreams stay true", drift_columns(summary)),
        "dreams": ("Beside drift: dreams, standing still, rewards", dream_columns(summary)),
        "nuisance": ("Nuisance: what a code should not hold", nuisance_columns(summary)),
    }
    main, variants = (measured_rows(summary, columns_of(summary), main) for main in (True, False))
    rest = {
        name: (title, measured_rows(summary, columns)) for name, (title, columns) in wanted.items()
    }
    both = {"main": ("Main arms", main), "variants": ("Variants and ablations", variants)}
    return not_empty({**both, **rest})


def terminal(summary: Summary) -> Table:
    """A few means of every arm, for a terminal of 80 columns; the report has all the rest."""
    short = {name: name.partition("_")[0] for name in objects(summary)}
    lead = list(short.items())[:1]
    columns = [
        *(Column(title, f"{name}_recall") for name, title in short.items()),
        Column("F1", "probe_f1/mean"),
        Column("KL", "nats_per_frame", 1),
        Column("bits", "bits_per_frame", 0),
        *(Column(f"{title}@15", f"drift/15/{name}_recall") for name, title in lead),
        Column("px@15", "drift/15/position_px", 1),
    ]
    return terminal_table(
        f"{summary['game']}, means over seeds",
        "recall of objects, probe F1, nats and bits per frame, dreams after 15 steps",
        summary_rows(summary, columns),
    )
