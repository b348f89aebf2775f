"""Trials of the flow study: one arm on one set of images with one seed and one budget.

Their settings follow from `SHARED`, the arm and the command. What happens to a result that is there
already: `mbrl.studies.trial`. Imports neither torch nor Ray.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mbrl.config import file as config_file
from mbrl.config.base import Settings
from mbrl.errors import ConfigError
from mbrl.studies import trial
from mbrl.studies.flows.arms import ARMS, SHARED
from mbrl.studies.flows.images import Source
from mbrl.world_model.settings import FlowSettings


class TrainSettings(Settings):
    """How a flow is trained."""

    batch_size: int = Field(16, ge=1, description="images of an update")
    optimizer: Literal["adam", "adamax"] = Field(
        "adamax", description="Glow was trained with Adamax"
    )
    lr: float = Field(0.002, gt=0, description="learning rate after the warm-up")
    warmup_updates: int = Field(100, ge=0, description="updates over which it grows from 0")
    clip: float = Field(
        1.0, gt=0, description="largest norm of the gradient of bits per dimension; longer is cut"
    )
    bf16: bool = Field(
        False, description="run the coupling networks in bfloat16 where the device has it"
    )


class FlowStudySettings(Settings):
    """All settings of a trial."""

    flow: FlowSettings = FlowSettings()
    train: TrainSettings = TrainSettings()


class Trial(trial.Trial):
    """One run of the study; its arm is a name in `ARMS`."""

    study = "flow"
    home = "flows"
    kind = "images"
    known_arms = ARMS
    measures = 2
    sections: ClassVar = {"flow": FlowSettings, "train": TrainSettings}

    source: Source

    @property
    def subject(self) -> str:
        """The images."""
        return self.source.name

    @property
    def cost_path(self) -> Path:
        """Where the costs of its arm go, which depend on all settings but the seed."""
        return self.result_path.with_name(f"{self.arm}.cost.json")

    @property
    def beside(self) -> list[Path]:
        """The costs of its arm."""
        return [self.cost_path]

    @property
    def about_path(self) -> Path:
        """Where the study says what the images are."""
        return self.result_path.with_name("images.json")

    def config(self) -> FlowStudySettings:
        """The resolved settings."""
        overrides = [*SHARED, *ARMS[self.arm].overrides, *self.overrides]
        return config_file.load(FlowStudySettings, overrides=overrides)

    def chosen(self) -> dict[str, Any]:
        """The images."""
        return {"images": self.source.settings()}

    def words(self) -> list[str]:
        """How the command that makes it begins, up to its overrides."""
        game = [self.source.game] if self.source.game else []
        return ["mbrl", "bench", self.study, *game, *self.overrides]

    def refuse_other_images(self, digest: str) -> None:
        """Raise ConfigError if its result or run folder was made with images of another digest."""
        for path in (self.result_path, self.run_dir / "settings.json"):
            made_with = read_side(path).get("digest", digest)
            if made_with != digest:
                raise ConfigError(
                    f"bench flow: {path} was made with other images called {self.subject} "
                    f"(digest {made_with} became {digest}); use other folders with --out and "
                    f"--results, or remove it"
                )


def read_side(path: Path) -> dict[str, Any]:
    """What a JSON file of the study holds; nothing if it is not there."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
