"""Results of the flow study: every JSON of one set of images in, one summary out.

    results/flows/<images>.json
    {images, about, arms: {arm: {measure: {mean, ci95, per_seed}}}, runs: {arm: {...}},
     costs: {arm: {...}}, latency: {size: {...}}, thresholds, left_out, seeds, command,
     commit, machine}

Made anew from all files that are there, so it never disagrees with them; what does not belong to
the others is refused or stands in `left_out` with the reason (`together.py`). What the measures
mean is said where they are made: `measure.py`, `cost.py`, `latency.py`, `baselines.py`. Three are
made here, because they compare runs:

* `gap_to_none`, bits per dimension above those of the arm without sharing, same seed, at the end;
  of runs with another budget, after as many CPU minutes as both have, from their curves;
* `gap_at_updates`, the same after equally many updates, as many as both have, from their curves;
* `minutes_to/<name>`, CPU minutes until held-out images cost so many bits per dimension; the
  thresholds are what the arm without sharing has after a quarter, a half and all of its budget.
  None for a run that never gets there, so that the mean is that of the others; nothing for one
  that had less time and did not get there.

A run that diverged is counted, and in no mean.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.errors import ConfigError
from mbrl.report.stats import steps_to_threshold
from mbrl.run.durable import write_atomically
from mbrl.studies.fidelity.results import Tree, by_arm_and_seed, combined, distinct
from mbrl.studies.flows.arms import ARMS, REFERENCE
from mbrl.studies.flows.together import costs_of, expect_one_study, latency_of, outdated
from mbrl.studies.flows.trials import MEASURES
from mbrl.studies.trials import is_current, read_result

SHARES = {"quarter": 0.25, "half": 0.5, "end": 1.0}
"""Of the budget of the arm without sharing, where the thresholds are read."""


def aggregate(name: str, results: Path) -> Tree:
    """Summarise all results of a set of images and write `<results>/<name>.json`.

    Raises:
        ConfigError: there is no trial yet, or a file is none, or they were made with different
            images or settings.
    """
    trials = read_trials(name, results)
    if not trials:
        raise ConfigError(f"{results / name}: expected results of trials, found none")
    folder = results / name
    about = _read(folder / "images.json") if (folder / "images.json").exists() else {}
    expect_one_study(trials, folder)
    if about and trials[0].get("digest", about["digest"]) != about["digest"]:
        raise ConfigError(
            f"{folder}: expected results of the images in images.json ({about['digest']}), got "
            f"those of others ({trials[0]['digest']}); remove what does not belong here"
        )
    thresholds = thresholds_of(trials)
    costs, bad_costs, machine = costs_of(folder, list(ARMS), trials)
    latency, bad_latency = latency_of(folder, trials, machine)
    compared = [{**one, "measures": _compared(one, trials, thresholds)} for one in trials]
    summary = {
        "images": name,
        "about": about,
        "measures_version": MEASURES,
        **combined(compared, _about, _command(trials)),
        "costs": costs,
        "latency": latency.get("ms", {}),
        "thresholds": thresholds,
        "left_out": {**outdated(folder), **bad_costs, **bad_latency},
    }
    for arm, measures in summary["arms"].items():
        measures |= _in_short(arm, summary)
    write_atomically(results / f"{name}.json", json.dumps(summary, indent=1, allow_nan=False))
    return summary


def read_trials(name: str, results: Path) -> list[Tree]:
    """All trials of a set of images, in the order of the arms, seeds ascending."""
    found = [read_result(path) for path in sorted((results / name).glob("*-[0-9]*.json"))]
    current = [one for one in found if one is not None and is_current(one, MEASURES)]
    return by_arm_and_seed(current, list(ARMS))


def thresholds_of(trials: Sequence[Tree]) -> dict[str, float]:
    """Held-out bits per dimension of the arm without sharing, by share of its budget.

    Of several seeds the mean; none of a run that diverged.
    """
    found: dict[str, list[float]] = {}
    for trial in trials:
        curve = held_out_curve(trial)
        if trial["arm"] != REFERENCE or len(curve) == 0 or trial["measures"]["diverged"]:
            continue
        for name, share in SHARES.items():
            at = share * curve[-1, 0]
            found.setdefault(name, []).append(float(np.interp(at, curve[:, 0], curve[:, 1])))
    return {name: float(np.mean(values)) for name, values in found.items()}


def held_out_curve(
    trial: Mapping[str, Any], by: str = "cpu_minutes"
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """CPU minutes, or updates, and held-out bits per dimension, (points, 2), as far as it went."""
    curve = trial["curve"]
    if by not in curve:
        return np.zeros((0, 2))
    pairs = zip(curve[by], curve["held_out_bits_per_dim"], strict=True)
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    return np.asarray(points, np.float64).reshape(-1, 2)


def gap_at(trial: Mapping[str, Any], reference: Mapping[str, Any], by: str) -> float | None:
    """Held-out bits per dimension above the reference's, after as much as both have.

    Between two looks at held-out images the line from one to the other counts.

    Args:
        trial: a result.
        reference: the result it is compared with.
        by: what there is as much of: "updates" or "cpu_minutes".
    """
    curves = [held_out_curve(one, by) for one in (trial, reference)]
    if min(map(len, curves)) == 0:
        return None
    at = min(curve[-1, 0] for curve in curves)
    if at < max(curve[0, 0] for curve in curves):
        return None
    here, there = (float(np.interp(at, curve[:, 0], curve[:, 1])) for curve in curves)
    return here - there


def minutes_to(trial: Mapping[str, Any], bits: float) -> float | None:
    """CPU minutes until held-out images cost so little; None if they never do."""
    curve = held_out_curve(trial)
    if len(curve) == 0:
        return None
    minutes = steps_to_threshold(curve * np.array([1.0, -1.0]), -bits)
    return minutes if math.isfinite(minutes) else None


def _compared(trial: Tree, trials: Sequence[Tree], thresholds: Mapping[str, float]) -> Tree:
    """A trial's measures, and those that compare it with the arm without sharing."""
    measures = dict(trial["measures"])
    if measures["diverged"]:
        return {"diverged": 1.0}
    same_seed = [
        one
        for one in trials
        if one["arm"] == REFERENCE != trial["arm"]
        and one["seed"] == trial["seed"]
        and not one["measures"]["diverged"]
    ]
    for reference in same_seed:
        measures["gap_to_none"] = (
            measures["bits_per_dim"] - reference["measures"]["bits_per_dim"]
            if trial["cpu_minutes"] == reference["cpu_minutes"]
            else gap_at(trial, reference, "cpu_minutes")
        )
        measures["gap_at_updates"] = gap_at(trial, reference, "updates")
    whole = max((one["cpu_minutes"] for one in trials if one["arm"] == REFERENCE), default=0.0)
    reached = {name: minutes_to(trial, at) for name, at in thresholds.items()}
    measures["minutes_to"] = {
        name: minutes
        for name, minutes in reached.items()
        if minutes is not None or trial["cpu_minutes"] >= SHARES[name] * whole
    }
    return measures


def _in_short(arm: str, summary: Mapping[str, Any]) -> Tree:
    """The costs of an arm that its measures are read beside, once more, without their tree."""
    runs, cost = summary["runs"], summary["costs"].get(arm)
    found: Tree = {"parameters": runs[arm]["parameters"]}
    if REFERENCE in runs:
        found["parameter_ratio"] = found["parameters"] / runs[REFERENCE]["parameters"]
    if cost:
        found["saved_bytes"] = cost.get("saved_bytes")
        found["step_ms"] = {n: one["step_ms"] for n, one in cost.get("ranks", {}).items()}
    return found


def _about(arm: str, runs: Sequence[Tree]) -> Tree:
    """What stands behind the numbers of one arm."""
    return {
        "title": ARMS[arm].title if arm in ARMS else arm,
        "main": arm in ARMS and ARMS[arm].main,
        "seeds": [run["seed"] for run in runs],
        "cpu_minutes": distinct(run["cpu_minutes"] for run in runs),
        "updates": [run["updates"] for run in runs],
        "parameters": runs[0]["parameters"],
        "diverged": sum(bool(run["measures"]["diverged"]) for run in runs),
        "flow": runs[0]["settings"]["flow"],
        "train": runs[0]["settings"]["train"],
        "quick": any(run["settings"]["quick"] for run in runs),
    }


def _command(trials: Sequence[Tree]) -> str:
    """The shortest commands that make all of it, joined by &&."""
    groups: dict[tuple[str, ...], dict[str, int]] = {}  # arms of one budget, with their seeds
    for trial in trials:
        words = shlex.split(trial["command"])
        arms, seeds = words.index("--arms"), words.index("--seeds")
        key = (*words[:arms], *words[seeds + 2 :])
        known = groups.setdefault(key, {})
        known[trial["arm"]] = max(known.get(trial["arm"], 0), trial["seed"] + 1)
    commands = []
    for words_, arms_ in groups.items():
        for count in sorted(set(arms_.values()), reverse=True):
            names = ",".join(arm for arm, n in arms_.items() if n == count)
            commands.append(shlex.join([*words_, "--arms", names, "--seeds", str(count)]))
    return " && ".join(commands)


def _read(path: Path) -> Tree:
    found: Tree = json.loads(path.read_text(encoding="utf-8"))
    return found
