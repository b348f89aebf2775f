"""Trials of the flow study: which runs it is made of, where they live, and whether one is done.

A trial is one arm on one set of images with one seed and one budget. Its settings follow from
`SHARED`, the arm and the command; its result is
`results/flows/<images>/<arm>-<seed>.json`, its run folder `runs/flows/<images>/<arm>-<seed>`. What
happens to a result that is there already: see `studies.trials`. This module starts nothing and
imports
neither torch nor Ray.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mbrl.config import file as config_file
from mbrl.errors import ConfigError
from mbrl.studies import trials as kept
from mbrl.studies.arms import in_order
from mbrl.studies.flows.arms import ARMS, SHARED
from mbrl.studies.flows.images import Source
from mbrl.studies.flows.settings import FlowStudySettings, TrainSettings
from mbrl.world_model.settings import FlowSettings

MEASURES = 2
"""Version of `mbrl.studies.flows.measure`: raised when a number changes its meaning."""
SECTIONS: dict[str, type[BaseModel]] = {"flow": FlowSettings, "train": TrainSettings}
"""Settings by the names that overrides and JSON know them by."""


@dataclass(frozen=True, kw_only=True)
class Trial(kept.BaseTrial):
    """One run of the study; its arm is a name in `ARMS`.

    Attributes:
        source: of the images.
    """

    source: Source

    @property
    def subject(self) -> str:
        """The images."""
        return self.source.name

    @property
    def command(self) -> list[str]:
        """What makes this trial in a process of its own."""
        return self.command_of("mbrl.studies.flows.trial")

    @property
    def cost_path(self) -> Path:
        """Where the costs of its arm go."""
        return self.results / self.source.name / f"{self.arm}.cost.json"

    @property
    def beside(self) -> list[Path]:
        """The costs of its arm, which depend on all settings but the seed."""
        return [self.cost_path]

    @property
    def about_path(self) -> Path:
        """Where the study says what the images are."""
        return self.results / self.source.name / "images.json"

    def command_of(self, module: str) -> list[str]:
        """What does something with this trial, `module` being a program of this room."""
        command = [sys.executable, "-m", module, *self.source.words(self.overrides)]
        for name in ("arm", "seed", "minutes", "out", "results"):
            command += [f"--{name}", f"{getattr(self, name)}"]
        return [*command, *(["--quick"] if self.quick else [])]

    def config(self) -> FlowStudySettings:
        """The resolved settings.

        Raises:
            ConfigError: an override is wrong.
        """
        overrides = [*SHARED, *ARMS[self.arm].overrides, *self.overrides]
        return config_file.load(FlowStudySettings, overrides=overrides)

    def settings(self) -> dict[str, Any]:
        """Everything that decides what comes out, save the budget, ready for JSON."""
        config = self.config().model_dump(mode="json")
        return {"images": self.source.settings(), "seed": self.seed, "quick": self.quick, **config}


def plan(
    source: Source,
    arms: Sequence[str],
    *,
    seeds: int | None,
    minutes: float | None,
    overrides: Sequence[str],
    out: Path,
    results: Path,
    quick: bool = False,
) -> list[Trial]:
    """All trials, in the order in which they are worth most if the study is stopped.

    Args:
        source: of the images.
        arms: names in `ARMS`.
        seeds: 0 .. seeds - 1; None for each arm's own number.
        minutes: CPU minutes of each run; None for each arm's own.
        overrides: for all runs.
        out: folder of the images.
        results: folder of all images.
        quick: measure on a few images only.

    Raises:
        ConfigError: a number is out of range.
    """
    if (seeds is not None and seeds < 1) or (minutes is not None and minutes <= 0):
        raise ConfigError(
            f"bench flow: expected at least one seed and minutes above 0, got --seeds {seeds}, "
            f"--minutes {minutes}"
        )
    return [
        Trial(
            source=source,
            arm=name,
            seed=seed,
            minutes=minutes or ARMS[name].minutes,
            overrides=tuple(overrides),
            out=out,
            results=results,
            quick=quick,
        )
        for name, seed in in_order(arms, ARMS, seeds)
    ]


def is_done(trial: Trial) -> bool:
    """Whether the result is there, of the whole budget and of the present measures."""
    return kept.is_done(trial, MEASURES)


def refuse_others(trials: Sequence[Trial], force: bool = False) -> None:
    """Refuse, or with `force` remove, what was made with other settings or a larger budget.

    Raises:
        ConfigError: the first such result or run folder, and in what it differs.
    """
    for trial in trials:
        trial.config()  # a wrong override is said before anything is touched

    def changes(trial: Trial, old: dict[str, Any]) -> list[str]:
        old = {name: value for name, value in old.items() if name != "digest"}
        return kept.changed_sections(old, trial.settings(), SECTIONS)

    kept.refuse_changed(trials, changes, "bench flow", force)


def refuse_other_images(trial: Trial, digest: str) -> None:
    """Refuse a result or run folder that was made with images of another digest.

    Raises:
        ConfigError: which it is, and the way out.
    """
    for path in (trial.result_path, trial.run_dir / "settings.json"):
        if path.exists():
            made_with = json.loads(path.read_text(encoding="utf-8")).get("digest", digest)
            if made_with != digest:
                raise ConfigError(
                    f"bench flow: {path} was made with other images called {trial.source.name} "
                    f"(digest {made_with} became {digest}); use other folders with --out and "
                    f"--results, or remove it"
                )


def is_fresh(path: Path, version: int, settings: dict[str, Any], digest: str | None) -> bool:
    """Whether a file of costs is there, of this version, these settings and these images.

    Args:
        path: the file.
        version: of what is in it.
        settings: that it is to be made with.
        digest: of the images, if it is known.
    """
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    same = digest is None or found.get("digest") == digest
    return bool(same and found.get("version") == version and found.get("settings") == settings)


def known_digest(trial: Trial) -> str | None:
    """The digest of the images, as the study wrote it down; None if it did not yet."""
    path = trial.about_path
    return json.loads(path.read_text(encoding="utf-8"))["digest"] if path.exists() else None
