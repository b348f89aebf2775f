"""Trials of MinAtar's games: one arm on one game with one seed and a counted budget.

What happens to a result that is there already: `mbrl.studies.trial`. Imports neither torch nor Ray.
"""

import math
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from envs.settings import EnvSettings
from mbrl.config.file import find_config
from mbrl.config.schema import Config, LearnModelSettings, load
from mbrl.errors import ConfigError
from mbrl.studies import trial
from mbrl.studies.minatar.arms import ARMS
from mbrl.studies.minatar.games import MINATAR_GAMES, PREFIX
from mbrl.world_model.settings import WorldModelSettings

FEWEST_STEPS = 400  # eight environments share them
_MAY_CHANGE = ("world_model.", "learn_model.")
_NEW_STEPS = 4  # steps of new episodes for each one of training: they are cheap, and windows few


class Trial(trial.Trial):
    """One run of the study; its arm is a name in `ARMS`, its game one in `MINATAR_GAMES`.

    A seed is of its episodes too: what all arms of one seed learn from is the same, what two seeds
    learn from is not, as a few thousand steps of one policy can be lucky ones.
    """

    study = "fidelity"
    home = "minatar/model"
    kind = "game"
    known_arms = ARMS
    measures = 1
    sections: ClassVar = {
        "env": EnvSettings,
        "world_model": WorldModelSettings,
        "learn_model": LearnModelSettings,
    }

    game: str = Field(description="minatar_asterix, minatar_breakout, ...")
    steps: int = Field(
        4096, ge=FEWEST_STEPS, description=f"env steps to learn from, from {FEWEST_STEPS} on"
    )
    ratio: float | None = Field(
        None,
        gt=0,
        description="replayed rows per env step, unless --updates says how many; default: the "
        "config's learn_model.train_ratio",
    )
    policy: Path | None = Field(
        None,
        description="folder of a finished run whose sampled policy plays all episodes; default: "
        "uniformly random actions",
    )
    device: str = Field("cpu", description="cpu, a core for each run, or cuda, shared by all runs")

    @property
    def subject(self) -> str:
        """The game, by the name it has in results."""
        return self.game.removeprefix(PREFIX)

    @property
    def ends_after(self) -> int:
        """Updates of a run."""
        if self.updates is not None:
            return self.updates
        learn = self.config().learn_model
        ratio = learn.train_ratio if self.ratio is None else self.ratio
        return math.ceil(self.steps * ratio / (learn.batch_size * learn.sequence_length))

    @property
    def episodes_dir(self) -> Path:
        """The episodes that all arms of this seed share."""
        return self.out / f"episodes-{self.seed}"

    @property
    def new_steps(self) -> int:
        """Env steps of the episodes that nothing is trained on."""
        return _NEW_STEPS * self.steps

    def config(self) -> Config:
        """The resolved settings, of `configs/minatar.yaml`, the game, the arm and the overrides."""
        wrong = [one for one in self.overrides if not one.startswith(_MAY_CHANGE)]
        if wrong:
            raise ConfigError(
                f"bench fidelity: expected overrides of world_model.* or learn_model.*, got "
                f"{wrong[0]}; the game, --seeds, --steps, --policy and --out decide the rest"
            )
        game = f"env.id={MINATAR_GAMES[self.game]}"
        config = load(find_config("minatar"), [game, *ARMS[self.arm].overrides, *self.overrides])
        return config.model_copy(update={"seed": self.seed, "env_steps": self.steps})

    def chosen(self) -> dict[str, Any]:
        """How much is learnt from, and who played."""
        return {"steps": self.steps, "policy": self.policy.name if self.policy else "random"}

    def words(self) -> list[str]:
        """How the command begins: with the game's name on the command line."""
        return ["mbrl", "bench", self.study, self.game, *self.overrides]
