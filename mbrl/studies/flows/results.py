"""Results of the flow study: every JSON of one set of images in, one summary out.

    results/flows/<images>.json
    what `mbrl.studies.results` says, and {about, costs: {arm: {...}}, latency: {size: {...}},
    thresholds, left_out}

Trials that differ in what makes numbers comparable are refused, since no choice among them would be
right; what else does not belong to the others stands in `left_out` with the reason. Three measures
are made here, because they compare runs:

* `gap_to_none`, bits per dimension above those of the arm without sharing, same seed, at the end;
  of runs with another budget, after as many CPU minutes as both have, from their curves;
* `gap_at_updates`, the same after equally many updates, as many as both have, from their curves;
* `minutes_to/<name>`, CPU minutes until held-out images cost so many bits per dimension; the
  thresholds are what the arm without sharing has after a quarter, a half and all of its budget.
  None for a run that never gets there, so that the mean is that of the others; nothing for one
  that had less time and did not get there.

A run that diverged is counted, and in no mean.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl.config.changes import differences, filled
from mbrl.errors import ConfigError
from mbrl.report.stats import steps_to_threshold
from mbrl.studies.flows import cost
from mbrl.studies.flows.arms import ARMS, REFERENCE
from mbrl.studies.flows.trial import Trial, read_side
from mbrl.studies.results import Tree, summary_of, trial_files
from mbrl.studies.trial import is_current, read_result

SHARES = {"quarter": 0.25, "half": 0.5, "end": 1.0}
"""Of the budget of the arm without sharing, where the thresholds are read."""
_SHARED = ("images", "quick", "train")
"""Settings that are the same for all arms."""
_OF_IMAGES = ("images", "quick")
"""Those of them that latencies depend on."""


def summary_of_images(trials: Sequence[Tree], folder: Path) -> Tree:
    """What all results of a set of images, at least one, say together.

    Raises:
        ConfigError: they were made with different images or settings.
    """
    about = read_side(folder / "images.json")
    expect_one_study(trials, folder)
    if about and trials[0].get("digest", about["digest"]) != about["digest"]:
        raise ConfigError(
            f"{folder}: expected results of the images in images.json ({about['digest']}), got "
            f"those of others ({trials[0]['digest']}); remove what does not belong here"
        )
    thresholds = thresholds_of(trials)
    costs, latency, left_out = beside(folder, trials)
    compared = [{**one, "measures": _compared(one, trials, thresholds)} for one in trials]
    more = {"about": about, "costs": costs, "latency": latency}
    more |= {"thresholds": thresholds, "left_out": left_out}
    summary = summary_of(Trial, compared, _about, more)
    for arm, measures in summary["arms"].items():
        measures |= _in_short(arm, summary)
    return summary


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


def held_out_curve(trial: Mapping[str, Any], by: str = "cpu_minutes") -> NDArray[np.float64]:
    """CPU minutes, or updates, and held-out bits per dimension, (points, 2), as far as it went."""
    curve = trial["curve"]
    if by not in curve:
        return np.zeros((0, 2))
    pairs = zip(curve[by], curve["held_out_bits_per_dim"], strict=True)
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    return np.asarray(points, np.float64).reshape(-1, 2)


def gap_at(trial: Mapping[str, Any], reference: Mapping[str, Any], by: str) -> float | None:
    """Held-out bits per dimension above the reference's, after as much `by` as both have.

    Between two looks at held-out images the line from one to the other counts.
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
    references = [one for one in trials if one["arm"] == REFERENCE]
    for reference in references:
        alike = reference["seed"] == trial["seed"] and not reference["measures"]["diverged"]
        if trial["arm"] == REFERENCE or not alike:
            continue
        measures["gap_to_none"] = (
            measures["bits_per_dim"] - reference["measures"]["bits_per_dim"]
            if trial["cpu_minutes"] == reference["cpu_minutes"]
            else gap_at(trial, reference, "cpu_minutes")
        )
        measures["gap_at_updates"] = gap_at(trial, reference, "updates")
    whole = max((one["cpu_minutes"] for one in references), default=0.0)
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


def _about(runs: Sequence[Tree]) -> Tree:
    """What stands behind the numbers of one arm of this study."""
    return {
        "diverged": sum(bool(run["measures"]["diverged"]) for run in runs),
        "flow": runs[0]["settings"]["flow"],
        "train": runs[0]["settings"]["train"],
    }


# -- what belongs together ------------------------------------------------------------------------


def as_tree(trial: Trial) -> Tree:
    """A trial that is about to be made, with what is compared of its result."""
    known = {"arm": trial.arm, "seed": trial.seed, "overrides": trial.overrides}
    return {**known, "settings": trial.settings()}


def expect_one_study(trials: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Raise ConfigError if results were made with different images or settings."""
    by_arm: dict[str, Mapping[str, Any]] = {}
    for one in trials:
        like = by_arm.setdefault(one["arm"], one)
        others = _changes(trials[0], one, _SHARED)
        changed = others + _changes(like, one)
        first = trials[0] if others else like
        if changed:
            raise ConfigError(
                f"bench flow: {folder}: expected results of the same images and settings, but "
                f"those of {first['arm']}-{first['seed']} and {one['arm']}-{one['seed']} differ: "
                f"{'; '.join(dict.fromkeys(changed))}. Use other folders with --out and "
                f"--results, or remove what does not belong here"
            )


def beside(folder: Path, trials: Sequence[Mapping[str, Any]]) -> tuple[Tree, Tree, dict[str, str]]:
    """What was measured beside the trials: costs by arm, latencies by size, and what is left out.

    Times compare on one machine only: that of the first arm whose costs belong to the trials. What
    is left out stands by file with the reason; trials of other measures are among it.
    """
    costs, latency, machine = Tree(), Tree(), None
    left_out = {
        path.name: "made by another version of the measures"
        for path in trial_files(folder)
        if not is_current(read_result(path) or {}, Trial.measures)
    }
    files = {arm: folder / f"{arm}.cost.json" for arm in ARMS} | {"": folder / cost.LATENCY}
    for arm, path in files.items():
        if not path.exists():
            continue
        side = read_side(path)
        like = next((one for one in trials if one["arm"] == arm), None)
        names = () if like else _SHARED if arm else _OF_IMAGES
        if side.get("version") != cost.VERSION:
            left_out[path.name] = "made by another version"
        elif changed := _changes(side, like or trials[0], names):
            left_out[path.name] = f"made with other images or settings ({'; '.join(changed)})"
        elif machine not in (None, side.get("machine")):
            left_out[path.name] = "timed on another machine"
        elif arm:
            costs[arm], machine = side["costs"], side.get("machine")
        else:
            latency = side["ms"]
    return costs, latency, left_out


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str] = ()
) -> list[str]:
    """In what settings of these names, or all but the seed, differ, images and overrides included.

    A digest or overrides that one of the two does not tell count as equal; settings that did not
    exist yet have their defaults.
    """
    trees: list[Tree] = []
    for one in (old, new):
        tree = {name: value for name, value in one["settings"].items() if name != "seed"}
        for name, model in Trial.sections.items():
            if isinstance(tree.get(name), Mapping):
                tree[name] = filled(tree[name], model, name)
        trees.append({name: tree.get(name) for name in names or tree})
    for tree, one in zip(trees, (old, new), strict=True):
        if None not in (old.get("digest"), new.get("digest")):
            tree["digest of the images"] = one["digest"]
        if "overrides" in old and "overrides" in new:
            tree["overrides"] = ", ".join(sorted(one["overrides"]))
    return differences(trees[0], trees[1])
