"""All games in one file, `results/minatar/model.json`, from the summaries of the games.

    {games: {asterix: {layouts: {grid: {"0": {channel: f1}, "1": ..., "5": ..., "10": ...}, ...},
     train: {grid: ...}, copy_last: ..., best_possible: ..., beside: {grid: {least, least_of_best,
     heads, loss}}}}, seeds, command, commit, machine}

Each f1 is `{mean, ci95, per_seed}`. It is made anew from all summaries that are there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.studies.minatar.tables import STEPS, channels_of, reference
from mbrl.studies.results import distinct

Tree = dict[str, Any]
_BESIDE = ("least", "least_of_best", "heads", "loss", "windows")


def gather(results: Path) -> Tree:
    """What the summaries of the games in a folder, at least one, say together."""
    found = {path.stem: _read(path) for path in sorted(results.glob("*.json"))}
    every = list(found.values())
    machines = distinct(
        one for summary in every for one in (summary["machine"], *summary.get("other_machines", []))
    )
    commits = distinct(one for summary in every for one in summary["commit"].split(", "))
    return {
        "games": {name: _game(summary) for name, summary in found.items()},
        "seeds": sorted({seed for summary in every for seed in summary["seeds"]}),
        "command": " && ".join(summary["command"] for summary in every),
        "commit": ", ".join(commits),
        "machine": machines[0],
        **({"other_machines": machines[1:]} if machines[1:] else {}),
    }


def _game(summary: Mapping[str, Any]) -> Tree:
    arms, channels = summary["arms"], channels_of(summary)
    references = {
        name: {step: {c: reference(summary, name, step, c) for c in channels} for step in STEPS}
        for name in ("copy_last", "best_possible")
    }
    beside = {arm: {name: own[name] for name in _BESIDE} for arm, own in arms.items()}
    return {
        "layouts": {arm: measures["held_out"] for arm, measures in arms.items()},
        "train": {arm: measures["train"] for arm, measures in arms.items()},
        **references,
        "beside": beside,
        "runs": summary["runs"],
    }


def _read(path: Path) -> Tree:
    content: Tree = json.loads(path.read_text(encoding="utf-8"))
    return content
