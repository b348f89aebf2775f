"""Trials of the flow study: one arm on one set of images with one seed and one budget.

Their settings follow from `SHARED`, the arm and the command. What happens to a result that is there
already: `mbrl.studies.trial`. Imports neither torch nor Ray.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mbrl.config import file as config_file
from mbrl.errors import ConfigError
from mbrl.studies import trial
from mbrl.studies.flows.arms import ARMS, SHARED
from mbrl.studies.flows.images import Source
from mbrl.studies.flows.settings import FlowStudySettings, TrainSettings
from mbrl.studies.options import as_words
from mbrl.world_model.settings import FlowSettings


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
        """Where the costs of its arm go."""
        return self.result_path.with_name(f"{self.arm}.cost.json")

    @property
    def beside(self) -> list[Path]:
        """The costs of its arm, which depend on all settings but the seed."""
        return [self.cost_path]

    @property
    def about_path(self) -> Path:
        """Where the study says what the images are."""
        return self.result_path.with_name("images.json")

    def config(self) -> FlowStudySettings:
        """The resolved settings.

        Raises:
            ConfigError: an override is wrong.
        """
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
        """Refuse a result or run folder that was made with images of another digest.

        Raises:
            ConfigError: which it is, and the way out.
        """
        for path in (self.result_path, self.run_dir / "settings.json"):
            if path.exists():
                made_with = json.loads(path.read_text(encoding="utf-8")).get("digest", digest)
                if made_with != digest:
                    raise ConfigError(
                        f"bench flow: {path} was made with other images called {self.subject} "
                        f"(digest {made_with} became {digest}); use other folders with --out and "
                        f"--results, or remove it"
                    )


def words_of(trial: Trial) -> list[str]:
    """How the command begins that measures what depends on no arm, without folders."""
    return [*trial.words(), *as_words(trial.source)]


def is_fresh(path: Path, version: int, settings: dict[str, Any], digest: str | None) -> bool:
    """Whether a file of costs is there, of this version, these settings and, if known, images."""
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    same = digest is None or found.get("digest") == digest
    return bool(same and found.get("version") == version and found.get("settings") == settings)


def known_digest(trial: Trial) -> str | None:
    """The digest of the images, as the study wrote it down; None if it did not yet."""
    path = trial.about_path
    return json.loads(path.read_text(encoding="utf-8"))["digest"] if path.exists() else None


def command_line(
    call: Callable[[Trial], object], description: str, arguments: Sequence[str] | None
) -> int:
    """Call something with the trial of the `trial.json` that is the only argument."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("path", help="a trial.json")
    return trial.command_line(Trial, call, parser.parse_args(arguments).path)
