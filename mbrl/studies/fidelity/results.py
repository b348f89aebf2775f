"""Results of a study: every trial's JSON of one game in, `results/fidelity/<game>.json` out.

    {game, measures_version, arms: {arm: {measure: {mean, ci95, per_seed}}},
     runs: {arm: {title, seeds, cpu_minutes, updates, equal_updates, parameters, processors,
     trained_on}}, seeds, command, commit, machine, other_machines, measured_on}

The file is made anew from all trials that are there, whoever made them, so it never disagrees with
them. `trained_on` is of each seed. Measures keep their tree: `drift: {"15": {ball_recall: {mean,
...}}}`. What they mean is said where they are measured, not here.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.errors import ConfigError
from mbrl.report.stats import stratified_bootstrap_ci
from mbrl.run.durable import write_atomically
from mbrl.studies.fidelity.arms import ARMS, SUPERVISED
from mbrl.studies.fidelity.trials import MEASURES, named_folders
from mbrl.studies.trials import is_current, read_result

FEWEST_SEEDS = 3
"""Fewer seeds get no interval."""

Tree = dict[str, Any]


def aggregate(game: str, results: Path) -> Tree:
    """Summarise all trials of a game and write `<results>/<game>.json`.

    Args:
        game: names the folder of the trials, and the file.
        results: the folder of all games.

    Returns:
        What was written.

    Raises:
        ConfigError: there is no trial yet, or a file is none.
    """
    trials = [_with_cost(trial) for trial in read_trials(game, results)]
    if not trials:
        raise ConfigError(f"{results / game}: expected results of trials, found none")
    summary = {
        "game": game,
        "measures_version": MEASURES,
        **combined(trials, _about, _command(game, trials, results)),
    }
    write_atomically(results / f"{game}.json", json.dumps(summary, indent=1, allow_nan=False))
    return summary


def combined(
    trials: Sequence[Tree], about: Callable[[str, Sequence[Tree]], Tree], command: str
) -> Tree:
    """What the summary of any study holds: `{arms, runs, seeds, command, commit, machine}`.

    Args:
        trials: results, at least one, in the order of the arms.
        about: what stands behind the numbers of an arm, from its name and its results.
        command: that makes all of it.
    """
    by_arm: dict[str, list[Tree]] = {}
    for trial in trials:
        by_arm.setdefault(trial["arm"], []).append(trial)
    machines = distinct(_machines(trials))
    elsewhere = distinct(one["machine"] for one in trials if not one.get("trained_here", True))
    return {
        "arms": {arm: summarise([one["measures"] for one in runs]) for arm, runs in by_arm.items()},
        "runs": {
            arm: {
                **about(arm, runs),
                "processors": distinct(map(_processor, _machines(runs))),
                "trained_on": [
                    " and ".join(sorted({*map(_processor, _machines([r]))})) for r in runs
                ],
            }
            for arm, runs in by_arm.items()
        },
        "seeds": sorted({trial["seed"] for trial in trials}),
        "command": command,
        "commit": ", ".join(
            distinct(
                commit
                for trial in trials
                for commit in (*trial["commit"].split(", "), trial.get("measured_by"))
                if commit
            )
        ),
        "machine": machines[0],
        **({"other_machines": machines[1:]} if machines[1:] else {}),
        **({"measured_on": elsewhere} if elsewhere else {}),
    }


def read_trials(game: str, results: Path) -> list[Tree]:
    """All trials of a game, arms in the order of `ARMS` (unknown ones last), seeds ascending.

    Those of an older version of the measures are left out: their numbers mean something else.
    """
    found = [read_result(path) for path in sorted((results / game).glob("*.json"))]
    current = [trial for trial in found if trial is not None and is_current(trial, MEASURES)]
    return by_arm_and_seed(current, list(ARMS))


def _with_cost(trial: Tree) -> Tree:
    """A world model's trial with what training took: CPU milliseconds for each frame it was shown.

    A frame is a row of a batch, decoded or not. A graphics card may be shared by any number of
    runs, so times on one are left out, those of drawing too.
    """
    if trial["arm"] == SUPERVISED:
        return trial
    measures = dict(trial["measures"])
    if "card" in trial["machine"]:  # measured on one
        measures.pop("sample_ms_per_frame", None)
    if not _on_a_card(trial):
        measures["train_ms_per_frame"] = 1000 * trial["cpu_s"] / trial["rows"]
    return {**trial, "measures": measures}


def by_arm_and_seed(trials: Sequence[Tree], arms: Sequence[str]) -> list[Tree]:
    """Results in the order of the arms, those of unknown arms last, seeds ascending."""

    def place(trial: Tree) -> tuple[int, str, int]:
        known = arms.index(trial["arm"]) if trial["arm"] in arms else len(arms)
        return known, trial["arm"], trial["seed"]

    return sorted(trials, key=place)


def summarise(measures: Sequence[Mapping[str, Any]]) -> Tree:
    """One tree of `{mean, ci95, per_seed}` from one tree of numbers per seed.

    A number that a seed does not have, or that was not finite, is `None` in `per_seed` and left out
    of the mean. `ci95` is the percentile bootstrap of the mean over seeds, which with three
    seeds spans [smallest, largest]; `None` with fewer than three seeds that have the number. Names
    with a slash become branches.
    """
    trees = [dict(leaves(one)) for one in measures]
    names = dict.fromkeys(name for tree in trees for name in tree)
    summary: Tree = {}
    for name in names:
        branch = summary
        for part in name[:-1]:
            branch = branch.setdefault(part, {})
        branch[name[-1]] = _statistics([tree.get(name) for tree in trees])
    return summary


def leaves(
    tree: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Every number of a tree with its names from the outside in."""
    for key, value in tree.items():
        name = (*at, *str(key).split("/"))
        if isinstance(value, Mapping):
            yield from leaves(value, name)
        else:
            yield name, None if value is None else float(value)


def look_up(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The statistics of one measure, named as `drift/15/ball_recall`; None if it is not there."""
    branch: Any = summary
    for part in name.split("/"):
        branch = branch.get(part) if isinstance(branch, Mapping) else None
    return branch if isinstance(branch, Mapping) and "per_seed" in branch else None


def _statistics(values: Sequence[float | None]) -> Tree:
    there = [value for value in values if value is not None and math.isfinite(value)]
    ci95 = None
    if len(there) >= FEWEST_SEEDS:
        low, high = stratified_bootstrap_ci(
            [there], lambda scores: scores.mean(-1), rng=np.random.default_rng(0)
        )
        ci95 = [low, high]
    mean = float(np.mean(there)) if there else None
    return {"mean": mean, "ci95": ci95, "per_seed": list(values)}


def _about(arm: str, runs: Sequence[Tree]) -> Tree:
    """What stands behind the numbers of one arm."""
    return {
        "title": ARMS[arm].title if arm in ARMS else arm,
        "main": arm in ARMS and ARMS[arm].main,
        "seeds": [run["seed"] for run in runs],
        "cpu_minutes": distinct(run["cpu_minutes"] for run in runs),
        "steps": distinct(run["settings"]["steps"] for run in runs),
        "updates": [run["updates"] for run in runs],
        "parameters": runs[0]["parameters"],
        "quick": any(run["settings"].get("quick", False) for run in runs),
        "equal_updates": all(
            run["updates"] >= run["settings"].get("updates", math.inf) for run in runs
        ),
    }


def _machines(trials: Sequence[Tree]) -> Iterator[Tree]:
    """Every machine that every trial was trained on."""
    for trial in trials:
        here = [trial["machine"]] if trial.get("trained_here", True) else []
        yield from (*here, *trial.get("other_machines", []))


def _on_a_card(trial: Tree) -> bool:
    """Whether any of a trial was trained on a graphics card."""
    return bool(trial["settings"].get("device", "cpu") != "cpu")


def _processor(machine: Tree) -> str:
    """What of a machine decides how much a minute is worth, as far as it was recorded."""
    if "card" in machine:
        return str(machine["card"])
    if "vectors" not in machine:
        return "not recorded"
    return f"{machine['vectors']}, bfloat16" if machine.get("bfloat16") else machine["vectors"]


def _command(game: str, trials: Sequence[Tree], results: Path) -> str:
    """The shortest commands that make all of it, joined by &&."""
    groups: dict[tuple[Any, ...], dict[str, int]] = {}  # arms of one budget, with their seeds
    for trial in trials:
        settings = trial["settings"]
        ends = settings.get("updates")
        options = [
            *(["--quick"] if settings.get("quick") else []),
            *(["--device", "cuda"] if _on_a_card(trial) else []),
            *(["--updates", f"{ends}"] if ends else []),
            *named_folders(results, game),
        ]
        key = (trial["cpu_minutes"], settings["steps"], tuple(trial["overrides"]), tuple(options))
        arms = groups.setdefault(key, {})
        arms[trial["arm"]] = max(arms.get(trial["arm"], 0), trial["seed"] + 1)
    commands = []
    for (minutes, steps, overrides, options), arms in groups.items():
        for seeds in sorted(set(arms.values()), reverse=True):
            names = ",".join(arm for arm, count in arms.items() if count == seeds)
            words = ["mbrl", "bench", "fidelity", game, *overrides, "--arms", names]
            words += ["--seeds", f"{seeds}", "--minutes", f"{minutes:g}", "--steps", f"{steps}"]
            commands.append(shlex.join([*words, *options]))
    return " && ".join(commands)


def distinct(values: Iterator[Any]) -> list[Any]:
    """Different values, in the order in which they first come."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
