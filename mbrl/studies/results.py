"""Results of a study: the JSON of every trial in, one summary for each subject out.

    results/<study>/<subject>.json
    {game or images, measures_version, arms: {arm: {measure: {mean, ci95, per_seed}}},
     runs: {arm: {title, seeds, cpu_minutes, updates, equal_updates, parameters, processors,
     trained_on}}, seeds, command, commit, machine, other_machines, measured_on}

A summary is made anew from all trials that are there, so it never disagrees with them.
`trained_on` is of each seed. Measures keep their tree: `drift: {"15": {ball_recall: {mean, ...}}}`.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.report.stats import stratified_bootstrap_ci
from mbrl.run.durable import write_atomically
from mbrl.studies.arms import Arm
from mbrl.studies.trial import Trial, is_current, read_result

FEWEST_SEEDS = 3
"""Fewer seeds get no interval."""

Tree = dict[str, Any]


def read_trials(kind: type[Trial], subject: str, results: Path) -> list[Tree]:
    """All results of a subject, arms in the order of the study (unknown last), seeds ascending.

    Those of an older version of the measures are left out: their numbers mean something else.
    """
    found = [read_result(path) for path in trial_files(results / subject)]
    current = [one for one in found if one is not None and is_current(one, kind.measures)]
    order = list(kind.known_arms)
    order += sorted({one["arm"] for one in current} - set(order))
    return sorted(current, key=lambda one: (order.index(one["arm"]), one["seed"]))


def trial_files(folder: Path) -> list[Path]:
    """Files of trials, named `<arm>-<seed>.json`."""
    return sorted(folder.glob("*-[0-9]*.json"))


def summary_of(
    kind: type[Trial],
    trials: Sequence[Tree],
    about: Callable[[Sequence[Tree]], Tree] = lambda _: {},
    more: Mapping[str, Any] | None = None,
) -> Tree:
    """What all trials of one subject, at least one, say together.

    `about` says what else stands behind the numbers of one arm, `more` are further parts.
    """
    runs: dict[str, list[Tree]] = {}
    for trial in trials:
        runs.setdefault(trial["arm"], []).append(trial)
    known = kind.known_arms
    return {
        kind.kind: trials[0][kind.kind],
        "measures_version": kind.measures,
        "arms": {arm: summarise([one["measures"] for one in own]) for arm, own in runs.items()},
        "runs": {arm: {**_about(known.get(arm), own), **about(own)} for arm, own in runs.items()},
        "seeds": sorted({trial["seed"] for trial in trials}),
        "command": _command(trials),
        **_provenance(trials),
        **(more or {}),
    }


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a result; its folder is made if missing."""
    write_atomically(path, json.dumps(tree, indent=1, allow_nan=False))


def summarise(measures: Sequence[Mapping[str, Any]]) -> Tree:
    """One tree of `{mean, ci95, per_seed}` from one tree of numbers per seed.

    A number that a seed does not have is `None` in `per_seed` and left out of the mean. `ci95` is
    the percentile bootstrap of the mean over seeds; `None` with fewer than three seeds that have
    the number. Names with a slash become branches.
    """
    trees = [dict(_leaves(one)) for one in measures]
    names = dict.fromkeys(name for tree in trees for name in tree)
    summary: Tree = {}
    for name in names:
        branch = summary
        for part in name[:-1]:
            branch = branch.setdefault(part, {})
        branch[name[-1]] = _statistics([tree.get(name) for tree in trees])
    return summary


def _leaves(
    tree: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Every number of a tree with its names from the outside in."""
    for key, value in tree.items():
        name = (*at, *key.split("/"))
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name, None if value is None else float(value)


def look(tree: Mapping[str, Any], name: str) -> Any:
    """What a tree has at a path such as `drift/15/ball_recall`; None if it is not there."""
    branch: Any = tree
    for part in name.split("/"):
        branch = branch.get(part) if isinstance(branch, Mapping) else None
    return branch


def look_up(measures: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The statistics of one measure of an arm by its path; None if it is not there."""
    found = look(measures, name)
    return found if isinstance(found, Mapping) and "per_seed" in found else None


def distinct(values: Iterable[Any]) -> list[Any]:
    """Different values, in the order in which they first come; they need no hash."""
    every = list(values)
    return [value for place, value in enumerate(every) if value not in every[:place]]


def _statistics(values: Sequence[float | None]) -> Tree:
    there = [value for value in values if value is not None]
    ci95 = None
    if len(there) >= FEWEST_SEEDS:
        rng = np.random.default_rng(0)
        ci95 = list(stratified_bootstrap_ci([there], lambda scores: scores.mean(-1), rng=rng))
    mean = float(np.mean(there)) if there else None
    return {"mean": mean, "ci95": ci95, "per_seed": list(values)}


def _about(arm: Arm | None, runs: Sequence[Tree]) -> Tree:
    """What stands behind the numbers of one arm."""
    return {
        "title": arm.title if arm else runs[0]["arm"],
        "main": arm is not None and arm.main,
        "seeds": [run["seed"] for run in runs],
        "cpu_minutes": distinct(run["cpu_minutes"] for run in runs),
        "updates": [run["updates"] for run in runs],
        "parameters": runs[0]["parameters"],
        "quick": any(run["settings"].get("quick", False) for run in runs),
        "equal_updates": all(
            run["updates"] >= run["settings"].get("updates", math.inf) for run in runs
        ),
        "processors": distinct(map(_processor, _machines(runs))),
        "trained_on": [" and ".join(sorted({*map(_processor, _machines([r]))})) for r in runs],
    }


def _provenance(trials: Sequence[Tree]) -> Tree:
    """Commits and machines that trained and measured."""
    machines = distinct(_machines(trials))
    elsewhere = distinct(one["machine"] for one in trials if not one.get("trained_here", True))
    commits = [
        commit
        for trial in trials
        for commit in (*trial["commit"].split(", "), trial.get("measured_by"))
    ]
    return {
        "commit": ", ".join(filter(None, distinct(commits))),
        "machine": machines[0],
        **({"other_machines": machines[1:]} if machines[1:] else {}),
        **({"measured_on": elsewhere} if elsewhere else {}),
    }


def _machines(trials: Sequence[Tree]) -> Iterator[Tree]:
    """Every machine that every trial was trained on."""
    for trial in trials:
        if trial.get("trained_here", True):
            yield trial["machine"]
        yield from trial.get("other_machines", [])


def _processor(machine: Tree) -> str:
    """What of a machine decides how much a minute is worth, as far as it was recorded."""
    if "card" in machine:  # a GPU
        return str(machine["card"])
    if "vectors" not in machine:
        return "not recorded"
    return f"{machine['vectors']}, bfloat16" if machine.get("bfloat16") else machine["vectors"]


def _command(trials: Sequence[Tree]) -> str:
    """The shortest commands that make all of the trials, joined by &&."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, int]] = {}
    for trial in trials:
        words = shlex.split(trial["command"])
        arms, seeds = words.index("--arms"), words.index("--seeds")
        known = groups.setdefault((tuple(words[:arms]), tuple(words[seeds + 2 :])), {})
        known[trial["arm"]] = max(known.get(trial["arm"], 0), trial["seed"] + 1)
    commands = []
    for (first, last), counts in groups.items():
        for count in sorted(set(counts.values()), reverse=True):
            names = ",".join(arm for arm, seeds in counts.items() if seeds == count)
            commands.append([*first, "--arms", names, "--seeds", f"{count}", *last])
    return " && ".join(map(shlex.join, commands))
