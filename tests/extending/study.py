"""A study in one file: how fast the bias of a coin is learnt, with several step sizes.

`mbrl bench coins` tosses coins instead of training models, and all else is as in a real study:
arms, budgets, checkpoints, a JSON file per run, intervals over seeds, a report. A study that is
larger has its tables and its training in modules of their own, which its `Study` imports late, so
that commands start quickly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from rich.table import Table
from torch import nn

from mbrl.config.base import Settings
from mbrl.config.file import load
from mbrl.seeding import seed as derive
from mbrl.studies import training, trial
from mbrl.studies.arms import Arm
from mbrl.studies.report import COLOURS, write_page
from mbrl.studies.study import Study, Tree
from mbrl.studies.tables import Column, measured_rows, summary_rows, terminal_table

ARMS = {
    "slow": Arm("small steps", ("learn.lr=0.01",), main=True, budget=(0.01, 0.01)),
    "fast": Arm("large steps", ("learn.lr=0.1",), main=True, budget=(0.01, 0.01)),
}
COLUMNS = [Column("error of the bias", "error", digits=3)]


class LearnSettings(Settings):
    """How a coin is learnt: what an arm may change."""

    lr: float = Field(0.1, gt=0, description="step size")


class AllSettings(Settings):
    """All settings of a trial."""

    learn: LearnSettings = LearnSettings()


class Trial(trial.Trial):
    """One coin, one arm, one seed; a field with a description is an option of the command."""

    study = "coins"
    home = "coins"
    kind = "game"
    known_arms = ARMS
    measures = 1
    sections: ClassVar = {"learn": LearnSettings}

    game: str = Field("coin", description="a name of the coin")
    heads: float = Field(0.7, gt=0, lt=1, description="how often it shows heads")

    @property
    def subject(self) -> str:
        """The coin, which names the files."""
        return self.game

    def config(self) -> AllSettings:
        """The settings of the arm, and then those of the command."""
        return load(AllSettings, overrides=[*ARMS[self.arm].overrides, *self.overrides])

    def chosen(self) -> dict[str, Any]:
        """What else decides what comes out."""
        return {"heads": self.heads}


class Training(training.BudgetedTraining):
    """Gradient steps on tosses of the coin, until the minutes are spent."""

    def __init__(self, one: Trial) -> None:
        """Begin, or continue from the newest checkpoint."""
        self.coin, self.heads = nn.Linear(1, 1, bias=False), one.heads
        nn.init.zeros_(self.coin.weight)
        self.optimizer = torch.optim.SGD(self.coin.parameters(), lr=one.config().learn.lr)
        self.generator = torch.Generator().manual_seed(derive(one.seed, "coins/tosses"))
        super().__init__(one, env_steps=0, group="coin")

    @property
    def updates(self) -> int:
        """A toss is an update."""
        return self.rows

    def _update(self) -> dict[str, float]:
        toss = (torch.rand(1, generator=self.generator) < self.heads).float()
        logit = self.coin(torch.ones(1))
        loss = nn.functional.binary_cross_entropy_with_logits(logit, toss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.rows += 1
        return {"nats": loss.item()}

    def _state(self) -> dict[str, Any]:
        return {"coin": self.coin.state_dict(), "generator": self.generator.get_state()}

    def _begin(self, state: Mapping[str, Any]) -> None:
        if state:
            self.coin.load_state_dict(state["coin"])
            self.generator.set_state(state["generator"])

    def _in_words(self, metrics: Mapping[str, float]) -> str:
        return f"{metrics['nats']:.3f} nats a toss"

    def measure(self) -> dict[str, float]:
        """How far the learnt bias is from the true one."""
        return {"error": abs(self.coin.weight.sigmoid().item() - self.heads)}


def make(one: Trial) -> Tree | None:
    """Train and measure; None if a signal stopped the training."""
    learnt = Training(one)
    return learnt.made(learnt.coin, learnt.measure)


class Coins(Study[Trial]):
    """What the machinery asks of a study."""

    trial = Trial
    description = "Learn the bias of a coin with several step sizes."
    words = "a name of the coin, and settings of every run, such as learn.lr=0.5"

    def make(self, one: Trial) -> bool:
        """Make one trial in this process; its result shows how `nats` went."""
        return training.run(one, make, {"nats": "coin/nats"})

    def show(self, folder: Path, summary: Tree, trials: Sequence[Tree]) -> tuple[Table, Path]:
        """One table, for the terminal and as a page."""
        page = write_page(
            folder,
            summary,
            title=f"How fast the bias of {summary['game']} is learnt",
            lead="Lower is better.",
            arms=ARMS,
            colour=lambda arm: COLOURS[list(ARMS).index(arm)],
            tables={"main": ("All arms", measured_rows(summary, COLUMNS))},
            figures={},
            captions={},
            sheets=[],
            warnings=[],
            protocol={"coin": str(summary["game"])},
        )
        table = terminal_table("coins", "", summary_rows(summary, COLUMNS), padding=1)
        return table, page


STUDY = Coins()
