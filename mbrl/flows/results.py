"""Results of the flow study: every JSON of one set of images in, one summary out.

    results/flows/<images>.json
    {images, about, arms: {arm: {measure: {mean, ci95, per_seed}}}, runs: {arm: {...}},
     costs: {arm: {...}}, samplers: {...}, thresholds, seeds, command, commit, machine}

Made anew from all files that are there, so it never disagrees with them. What the measures mean is
said where they are made: `measure.py`, `cost.py`, `latency.py`, `baselines.py`. Two are made here,
because they compare runs:

* `gap_to_none`, bits per dimension above those of the arm without sharing, same seed;
* `minutes_to/<name>`, CPU minutes until held-out images cost so many bits per dimension; the
  thresholds are what the arm without sharing has after a quarter, a half and all of its budget.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.errors import ConfigError
from mbrl.fidelity.results import Tree, by_arm_and_seed, combined, distinct
from mbrl.flows.arms import ARMS, REFERENCE
from mbrl.flows.trials import MEASURES
from mbrl.run import write_atomically
from mbrl.stats import steps_to_threshold
from mbrl.trials import is_current, read_result

SHARES = {"quarter": 0.25, "half": 0.5, "end": 1.0}
"""Of the budget of the arm without sharing, where the thresholds are read."""


def aggregate(name: str, results: Path) -> Tree:
    """Summarise all results of a set of images and write `<results>/<name>.json`.

    Raises:
        ConfigError: there is no trial yet, or a file is none.
    """
    trials = read_trials(name, results)
    if not trials:
        raise ConfigError(f"{results / name}: expected results of trials, found none")
    thresholds = thresholds_of(trials)
    compared = [{**one, "measures": _compared(one, trials, thresholds)} for one in trials]
    folder = results / name
    costs = {
        arm: _read(path)["costs"] for arm in ARMS if (path := folder / f"{arm}.cost.json").exists()
    }
    latency = folder / "pixelcnn.latency.json"
    summary = {
        "images": name,
        "about": _read(folder / "images.json") if (folder / "images.json").exists() else {},
        "measures_version": MEASURES,
        **combined(compared, _about, _command(trials)),
        "costs": costs,
        "samplers": _read(latency)["ms"] if latency.exists() else {},
        "thresholds": thresholds,
    }
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


def held_out_curve(trial: Mapping[str, Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """CPU minutes and held-out bits per dimension, (points, 2), as far as training went."""
    curve = trial["curve"]
    pairs = zip(curve["cpu_minutes"], curve["held_out_bits_per_dim"], strict=True)
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    return np.asarray(points, np.float64).reshape(-1, 2)


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
    same_seed = [
        one["measures"]["bits_per_dim"]
        for one in trials
        if one["arm"] == REFERENCE and one["seed"] == trial["seed"]
    ]
    bits = measures["bits_per_dim"]
    if trial["arm"] != REFERENCE and same_seed and None not in (bits, same_seed[0]):
        measures["gap_to_none"] = bits - same_seed[0]
    measures["minutes_to"] = {name: minutes_to(trial, at) for name, at in thresholds.items()}
    return measures


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
