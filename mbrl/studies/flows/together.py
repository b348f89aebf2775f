"""Which results may stand in one summary: those of one study, and nothing older or other beside.

In: results and costs as they were written. Out: those that belong together, and for every other
file why it was left out. Trials that differ in what makes numbers comparable are refused, since no
choice among them would be right: their images (by digest), the settings that all arms share, and,
of one arm, all but the seed. What numbers mean is not known here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl.config.changes import differences, filled
from mbrl.errors import ConfigError
from mbrl.studies.flows import cost, latency
from mbrl.studies.flows.trials import MEASURES, SECTIONS, Trial
from mbrl.studies.trials import is_current, read_result

Tree = dict[str, Any]


def as_tree(trial: Trial) -> Tree:
    """A trial that is about to be made, with what is compared of its result."""
    return {
        "arm": trial.arm,
        "seed": trial.seed,
        "settings": trial.settings(),
        "overrides": list(trial.overrides),
    }


def expect_one_study(trials: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Refuse results that were made with different images or settings.

    Raises:
        ConfigError: the first two that do not belong together, and in what they differ.
    """
    by_arm: dict[str, Mapping[str, Any]] = {}
    for one in trials:
        like = by_arm.setdefault(one["arm"], one)
        changed = _differences(_shared(trials[0]), _shared(one))
        changed += _differences(_of_arm(like["settings"]), _of_arm(one["settings"]))
        first = like if like is not one and _shared(trials[0]) == _shared(one) else trials[0]
        if changed:
            raise ConfigError(
                f"bench flow: {folder}: expected results of the same images and settings, but "
                f"those of {first['arm']}-{first['seed']} and {one['arm']}-{one['seed']} differ: "
                f"{'; '.join(dict.fromkeys(changed))}. Use other folders with --out and "
                f"--results, or remove what does not belong here"
            )


def outdated(folder: Path) -> dict[str, str]:
    """Trials that were measured by another version of the measures, by file, and why."""
    found = {path.name: read_result(path) for path in sorted(folder.glob("*-[0-9]*.json"))}
    return {
        name: "made by another version of the measures"
        for name, one in found.items()
        if one is not None and not is_current(one, MEASURES)
    }


def costs_of(
    folder: Path, arms: Sequence[str], trials: Sequence[Mapping[str, Any]]
) -> tuple[Tree, dict[str, str], Tree | None]:
    """Costs by arm, by file why others were left out, and the machine they are of.

    Ratios of times mean something on one machine only: that of the first arm whose costs are fit;
    None if there are none.
    """
    good, bad = {}, {}
    machine: Tree | None = None
    for arm in arms:
        path = folder / f"{arm}.cost.json"
        if not path.exists():
            continue
        side = json.loads(path.read_text(encoding="utf-8"))
        runs = [one for one in trials if one["arm"] == arm]
        why = _unfit(side, cost.VERSION, runs or trials, list(_SHARED if not runs else []))
        why = why or _elsewhere(side, machine)
        if why:
            bad[path.name] = why
        else:
            good[arm] = side["costs"]
            machine = machine or side.get("machine")
    return good, bad, machine


def latency_of(
    folder: Path, trials: Sequence[Mapping[str, Any]], machine: Tree | None
) -> tuple[Tree, dict[str, str]]:
    """Latencies of PixelCNN's samplers and of a decoder-sized flow, or why they are left out.

    Args:
        folder: of the images.
        trials: whose they are.
        machine: that the costs beside them are of, if there are any.
    """
    path = folder / latency.NAME
    if not path.exists():
        return {}, {}
    side = json.loads(path.read_text(encoding="utf-8"))
    why = _unfit(side, latency.VERSION, trials, ["images", "quick"])
    if why := why or _elsewhere(side, machine):
        return {}, {path.name: why}
    return side, {}


_SHARED = ("images", "quick", "train")
"""Settings that are the same for all arms."""


def _unfit(
    side: Mapping[str, Any], version: int, runs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> str:
    """Why something beside the trials does not belong to them; empty if it does."""
    if side.get("version") != version:
        return "made by another version"
    settings = side.get("settings", {})
    for one in runs[:1]:
        mine, its = _of_arm(one["settings"]), _of_arm(settings)
        if names:
            mine, its = ({name: tree.get(name) for name in names} for tree in (mine, its))
        if changed := _differences(its, mine):
            return f"made with other settings ({'; '.join(changed)})"
        if None not in (one.get("digest"), side.get("digest")) and one["digest"] != side["digest"]:
            return "made with other images"
    return ""


def _elsewhere(side: Mapping[str, Any], machine: Tree | None) -> str:
    """Why times do not compare with those of a machine, if there is one; empty if they do."""
    other = machine is not None and side.get("machine") != machine
    return "timed on another machine" if other else ""


def _shared(one: Mapping[str, Any]) -> Tree:
    """What every result of a study has in common."""
    settings = _of_arm(one["settings"])
    return {
        "digest of the images": one.get("digest"),
        "overrides": ", ".join(sorted(one.get("overrides", []))),
        **{name: settings.get(name) for name in _SHARED},
    }


def _of_arm(settings: Mapping[str, Any]) -> Tree:
    """What every seed of an arm has in common; settings that did not exist yet by default."""
    shared = {name: value for name, value in settings.items() if name != "seed"}
    for name, model in SECTIONS.items():
        if isinstance(shared.get(name), Mapping):
            shared[name] = filled(shared[name], model, name)
    return shared


def _differences(old: Tree, new: Tree) -> list[str]:
    """In what two trees differ; a digest that is not known differs from none."""
    key = "digest of the images"
    if None in (old.get(key, ""), new.get(key, "")):
        old, new = ({k: v for k, v in tree.items() if k != key} for tree in (old, new))
    return differences(old, new)
