"""Tables of MinAtar's games: a summary in, rows of text out (`mbrl.studies.tables`)."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from mbrl.studies.results import look_up
from mbrl.studies.tables import Column, Rows, cell, not_empty, summary_rows, terminal_table

Summary = Mapping[str, Any]

REFERENCES = {"copy_last": "copy of the last frame", "best_possible": "the game, played again"}
"""What stands beside the arms, by its name in the measures."""
STEPS = ("0", "1", "5", "10")
MAIN = (
    Column("picture, least F1", "least/0"),
    *(Column(f"share of best, {step}", f"least_of_best/{step}") for step in STEPS[1:]),
    Column("goes on", "heads/goes_on", 3),
    Column("at an ending", "heads/ends", 3),
    Column("reward where it pays", "heads/paid"),
    Column("reward error", "heads/reward_error", 3),
    Column("of predicting none", "heads/reward_error_of_none", 3),
)
LOSS = tuple(
    Column(f"{title}, {where}", f"loss/{part}/{name}", digits)
    for name, title, digits in (("nats_per_frame", "pixels", 2), ("kl", "KL", 2))
    for part, where in (("train", "trained on"), ("held_out", "new"))
)


def channels_of(summary: Summary) -> list[str]:
    """The game's channels, in the order of its frames."""
    first = next(iter(summary["arms"].values()))
    return list(first["held_out"]["0"])


def reference(summary: Summary, name: str, step: str, channel: str) -> Mapping[str, Any] | None:
    """F1 of a reference, from the arm with most seeds: arms of a seed share their windows."""
    arm = max(summary["arms"], key=lambda one: len(summary["runs"][one]["seeds"]))
    return look_up(summary["arms"][arm], f"{name}/{step}/{channel}")


def channel_rows(summary: Summary, step: str) -> Rows:
    """F1 of every channel after so many steps: references, and arms on new and trained episodes."""
    channels = channels_of(summary)
    lines = []
    for name, title in REFERENCES.items():
        found = [reference(summary, name, step, channel) for channel in channels]
        lines.append((name, [title, *(cell(one, 2) for one in found)]))
    for arm, measures in summary["arms"].items():
        for part, where in (("held_out", "new"), ("train", "trained on")):
            found = [look_up(measures, f"{part}/{step}/{channel}") for channel in channels]
            title = f"{summary['runs'][arm]['title']}, {where}"
            lines.append((arm, [title, *(cell(one, 2) for one in found)]))
    head = ["episodes", *(channel.replace("_", " ") for channel in channels)]
    return Rows(head, [row for _, row in lines], [name for name, _ in lines])


def tables(summary: Summary) -> dict[str, tuple[str, Rows]]:
    """Every table of a game, by name, with its heading."""
    titles = {"0": "F1 of the frame just seen", "1": "F1 after 1 dreamt step"}
    wanted = {
        "main": ("The least channel, and the heads", summary_rows(summary, MAIN)),
        **{
            f"f1_{step}": (
                titles.get(step, f"F1 after {step} dreamt steps"),
                channel_rows(summary, step),
            )
            for step in STEPS
        },
        "loss": ("Loss on trained and on new episodes, nats", summary_rows(summary, LOSS)),
    }
    return not_empty(wanted)


def terminal(summary: Summary) -> Table:
    """A few means of every arm, for a terminal of 80 columns; the report has all the rest."""
    columns = [
        Column("F1", "least/0"),
        *(Column(f"@{step}", f"least_of_best/{step}") for step in STEPS[1:]),
        Column("KL", "loss/held_out/kl", 1),
        Column("goes on", "heads/goes_on", 3),
        Column("ends", "heads/ends"),
    ]
    return terminal_table(
        f"{summary['game']}, new episodes, means over seeds",
        "picture: F1 of the worst channel; after 1, 5, 10 dreamt steps: as a share of what the "
        "cloned game allows",
        summary_rows(summary, columns),
    )
