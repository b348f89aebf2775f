"""Trials of the fidelity study: one arm on one game with one seed and one budget.

What happens to a result that is there already: `mbrl.studies.trial`. Imports neither torch nor Ray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from envs.settings import EnvSettings
from mbrl.config.file import find_config
from mbrl.config.schema import Config, LearnModelSettings, load
from mbrl.errors import ConfigError
from mbrl.studies import trial
from mbrl.studies.fidelity.arms import ARMS, SUPERVISED
from mbrl.studies.fidelity.games import find_game
from mbrl.world_model.settings import WorldModelSettings

FEWEST_STEPS = 800  # eight environments share them, and measures need windows of 66 rows
_MAY_CHANGE = ("world_model.", "learn_model.")
_OF_LABELS = tuple(
    f"world_model.encoder.{name}"
    for name in ("channels", "hidden", "norm", "subtract_mean", "pixel_floor")
)
"""What the arm that is given the labels has of a world model's settings."""


class Trial(trial.Trial):
    """One run of the study; its arm is a name in `ARMS`, its game one in `GAMES`."""

    study = "fidelity"
    home = "fidelity"
    kind = "game"
    known_arms = ARMS
    measures = 3
    sections: ClassVar = {
        "env": EnvSettings,
        "world_model": WorldModelSettings,
        "learn_model": LearnModelSettings,
    }

    game: str = Field(description="pong, breakout, ...; an unknown one lists all")
    steps: int = Field(
        100_000, ge=FEWEST_STEPS, description=f"agent steps to learn from, from {FEWEST_STEPS} on"
    )
    device: str = Field(
        "cpu",
        description="cpu, a core for each run, or cuda, shared by all runs, whose minutes then are "
        "those that pass",
    )

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

    def config(self) -> Config:
        """The resolved settings, of `configs/fidelity.yaml`, the arm and the overrides."""
        wrong = [one for one in self.overrides if not one.startswith(_MAY_CHANGE)]
        if wrong:
            raise ConfigError(
                f"bench fidelity: expected overrides of world_model.* or learn_model.*, "
                f"got {wrong[0]}; the game, --seeds, --steps and --out decide the rest"
            )
        if self.arm == SUPERVISED and (unknown := without_effect(self.overrides)):
            raise ConfigError(
                f"bench fidelity: arm {self.arm}: expected overrides of {', '.join(_OF_LABELS)}, "
                f"as it has no more of a world model, got {unknown}; leave the arm out of --arms"
            )
        config = load(find_config("fidelity"), [*ARMS[self.arm].overrides, *self.overrides])
        env = find_game(self.game, self.study).env
        return config.model_copy(update={"env": env, "seed": self.seed, "env_steps": self.steps})

    def chosen(self) -> dict[str, Any]:
        """How many frames are learnt from."""
        return {"steps": self.steps}


def without_effect(overrides: Sequence[str]) -> str | None:
    """The first override that the arm that is given the labels does not have, if any."""
    return next((one for one in overrides if one.partition("=")[0] not in _OF_LABELS), None)
