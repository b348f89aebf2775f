"""Trials: which runs a fidelity study is made of, where they live, and whether one is done already.

A trial is one arm on one game with one seed and one budget. Its settings follow from
`configs/fidelity.yaml`, the arm and the command; its result is
`results/fidelity/<game>/<arm>-<seed>.json`, its run folder `runs/fidelity/<game>/<arm>-<seed>`.

What happens to a result that is there already: see `mbrl.studies.trials`.

This module starts nothing and imports neither torch nor Ray.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from envs.settings import EnvSettings
from mbrl.config.file import find_config
from mbrl.config.schema import Config, LearnModelSettings, load
from mbrl.errors import ConfigError
from mbrl.studies import trials as kept
from mbrl.studies.arms import in_order
from mbrl.studies.fidelity.arms import ARMS, SUPERVISED
from mbrl.world_model.settings import WorldModelSettings

_STUDY = "fidelity"
MEASURES = 3
"""Version of `studies.fidelity.measure`: raised when a number changes its meaning. Without one:
1."""
FEWEST_STEPS = 800
"""Fewer are too few for the windows of the measures: eight environments share them."""
_SECTIONS: dict[str, type[BaseModel]] = {
    "env": EnvSettings,
    "world_model": WorldModelSettings,
    "learn_model": LearnModelSettings,
}
_MAY_CHANGE = ("world_model.", "learn_model.")
_HEEDED = tuple(
    f"world_model.encoder.{name}"
    for name in ("channels", "hidden", "norm", "subtract_mean", "pixel_floor")
)
"""What the arm that is given the labels has of a world model's settings."""


@dataclass(frozen=True, kw_only=True)
class Trial(kept.BaseTrial):
    """One run of the study; its arm is a name in `ARMS`.

    Attributes:
        game: a name in `GAMES`.
        steps: agent steps of the training frames.
    """

    game: str
    steps: int

    @property
    def subject(self) -> str:
        """The game."""
        return self.game

    @property
    def frames_dir(self) -> Path:
        """The frames that all runs of the game share."""
        return self.out / "frames"

    @property
    def held_out_steps(self) -> int:
        """Agent steps of the frames that nothing is trained on."""
        return max(1000, 12 * self.steps // 100)

    @property
    def command(self) -> list[str]:
        """What makes this trial in a process of its own."""
        command = [sys.executable, "-m", "mbrl.studies.fidelity.trial", self.game, self.arm]
        command += self.overrides
        for name in ("seed", "minutes", "steps", "device", "out", "results"):
            command += [f"--{name}", f"{getattr(self, name)}"]
        command += [] if self.updates is None else ["--updates", f"{self.updates}"]
        return [*command, *(["--quick"] if self.quick else [])]

    def config(self, env: EnvSettings) -> Config:
        """The resolved settings.

        Args:
            env: the game's environment.

        Raises:
            ConfigError: an override is wrong, or about something that the study decides.
        """
        wrong = [one for one in self.overrides if not one.startswith(_MAY_CHANGE)]
        if wrong:
            raise ConfigError(
                f"bench fidelity: expected overrides of world_model.* or learn_model.*, "
                f"got {wrong[0]}; the game, --seeds, --steps and --out decide the rest"
            )
        if self.arm == SUPERVISED and (unheard := unheeded(self.overrides)):
            raise ConfigError(
                f"bench fidelity: arm {self.arm}: expected overrides of {', '.join(_HEEDED)}, as "
                f"it has no more of a world model, got {unheard}; leave the arm out of --arms"
            )
        config = load(find_config(_STUDY), [*ARMS[self.arm].overrides, *self.overrides])
        changes = {"env": env, "seed": self.seed, "env_steps": self.steps}
        return config.model_copy(update=changes)

    def settings(self, env: EnvSettings) -> dict[str, Any]:
        """Everything that decides what comes out, save the minutes, ready for JSON.

        The kind of device is in it, as minutes of a card and of a core are not worth the same.
        """
        config = self.config(env).model_dump(mode="json", include={"seed", *_SECTIONS})
        card = {"device": "cuda"} if self.on_a_card else {}
        ends = {} if self.updates is None else {"updates": self.updates}
        return {"steps": self.steps, "quick": self.quick, **card, **ends, **config}


def named_folders(results: Path, game: str) -> list[str]:
    """Options for folders beside the usual ones, such as `results/fidelity_long`, else none."""
    if not results.name.startswith(f"{_STUDY}_"):
        return []
    return ["--results", f"results/{results.name}", "--out", f"runs/{results.name}/{game}"]


def unheeded(overrides: Sequence[str]) -> str | None:
    """The first override that the arm that is given the labels would not heed, if there is any."""
    return next((one for one in overrides if one.partition("=")[0] not in _HEEDED), None)


def plan(
    game: str,
    arms: Sequence[str],
    *,
    seeds: int | None,
    minutes: float | None,
    steps: int,
    overrides: Sequence[str],
    out: Path,
    results: Path,
    quick: bool = False,
    device: str = "cpu",
    updates: int | None = None,
) -> list[Trial]:
    """All trials, in the order in which they are worth most if the study is stopped.

    Main arms come first, every one of them with seed 0 before any with seed 1.

    Args:
        game: a name in `GAMES`.
        arms: names in `ARMS`.
        seeds: 0 .. seeds - 1; None for each arm's own number.
        minutes: CPU minutes of each run; None for each arm's own.
        steps: as in `Trial`, and so are the others.
        overrides: for all runs.
        out: folder of the game.
        results: folder of all games.
        quick: measure on a few frames only.
        device: as in `Trial`.
        updates: as in `Trial`, at least 1.

    Raises:
        ConfigError: a number is out of range.
    """
    too_short = steps < FEWEST_STEPS
    if updates is not None and updates < 1:
        raise ConfigError(f"bench fidelity: expected at least one update, got --updates {updates}")
    if (seeds is not None and seeds < 1) or (minutes is not None and minutes <= 0) or too_short:
        raise ConfigError(
            f"bench fidelity: expected at least one seed, minutes above 0 and {FEWEST_STEPS} "
            f"steps, got --seeds {seeds}, --minutes {minutes}, --steps {steps}"
        )
    return [
        Trial(
            game=game,
            arm=name,
            seed=seed,
            minutes=minutes or ARMS[name].minutes,
            steps=steps,
            overrides=tuple(overrides),
            out=out,
            results=results,
            quick=quick,
            device=device,
            updates=updates,
        )
        for name, seed in in_order(arms, ARMS, seeds)
    ]


def is_done(trial: Trial) -> bool:
    """Whether the result is there, of the whole budget and of the present measures.

    That its settings are the same is up to `refuse_others`.
    """
    return kept.is_done(trial, MEASURES)


def refuse_others(trials: Sequence[Trial], env: EnvSettings, force: bool = False) -> None:
    """Refuse, or with `force` remove, what was made with other settings or a larger budget.

    Raises:
        ConfigError: the first such result or run folder, and in what it differs.
    """

    def changes(trial: Trial, old: dict[str, Any]) -> list[str]:
        return changed_settings(old, trial.settings(env))

    for trial in trials:
        trial.settings(env)  # a wrong override is said before anything is touched
    kept.refuse_changed(trials, changes, "bench fidelity", force)


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that differ; one that did not exist yet counts with its default."""
    return kept.changed_sections(old, new, _SECTIONS)
