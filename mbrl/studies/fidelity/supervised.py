"""What an encoder reads that is given the answers: as in the AtariARI benchmark.

Published scores are of frames of 210 x 160. At 64 x 64 neighbouring values of a position look
nearly alike, so what there is to be read has to be measured on our own frames. Here the world
model's own encoder and the classifiers on top of it are one network, trained by cross-entropy on
the labels of all training frames for the same CPU time as a variant (Anand et al.,
arXiv:1906.08226, the supervised column of their tables). It sees one frame and no past, so z alone
is what compares with it. It is a reference of one budget, no bound.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from mbrl.device import reachable
from mbrl.errors import ConfigError
from mbrl.seeding import seed as derive
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Game
from mbrl.studies.fidelity.probes import Labels, Targets, classification_report, not_seen_in
from mbrl.studies.fidelity.readout import read_variables
from mbrl.studies.fidelity.trial import Trial
from mbrl.studies.training import BudgetedTraining
from mbrl.world_model.encoder import NormalisedEncoder, Seen
from mbrl.world_model.settings import NormalisedSettings

BATCH = 64
LEARNING_RATE, HALVED_AFTER = 1e-3, 2000
"""Adam's rate at update u is LEARNING_RATE / (1 + u / HALVED_AFTER): a larger budget goes on."""
SCORED_AT_ONCE = 512


class LabelReader(nn.Module):
    """An encoder with one linear classifier per variable, all on the same features.

    `classes` are the byte values of each variable that occur in training, ascending.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        settings: NormalisedSettings,
        names: tuple[str, ...],
        classes: list[Labels],
        features: int = 256,
    ) -> None:
        """Build for frames of `shape` (C, H, W).

        The encoder does not standardise its outputs, which is there to keep a code alive.
        """
        super().__init__()
        self.names, self.classes = names, classes
        plain = settings.model_copy(update={"deviation": None, "subtract_past": False})
        self.encoder = NormalisedEncoder(shape, features, plain)
        self.sizes = [len(values) for values in classes]
        self.out = nn.Linear(features, sum(self.sizes))

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, classes) of each variable for frames (N, H, W, C) uint8.

        In training mode the encoder takes the frames into its running statistics.
        """
        seen = Seen(obs.permute(0, 3, 1, 2).float() / 255)
        if self.training:
            self.encoder.learn(seen)
        return self.out(silu(self.encoder(seen))).split(self.sizes, 1)

    @torch.no_grad()
    def guesses(self, obs: NDArray[np.uint8]) -> Labels:
        """The most probable value of each variable, (M, V), for frames (M, H, W, C)."""
        was_training, parts = self.training, []
        self.eval()
        for some in torch.as_tensor(obs).split(SCORED_AT_ONCE):
            pairs = zip(self.classes, self(some.to(self.out.weight.device)), strict=True)
            found = [values[logits.argmax(1).cpu().numpy()] for values, logits in pairs]
            parts.append(np.stack(found, 1))
        self.train(was_training)
        return np.concatenate(parts)


class SupervisedTraining(BudgetedTraining):
    """A `LabelReader` that learns until its CPU time is spent; a context manager."""

    at_once = 16

    def __init__(
        self, trial: Trial, game: Game, settings: NormalisedSettings, frames: Frames
    ) -> None:
        """Build the reader, and load the newest checkpoint if there is one.

        A ConfigError if none of the game's variables changes enough.
        """
        names = read_variables(game, frames)
        if not names:
            raise ConfigError(
                f"arm {trial.arm}: expected labels that change in the frames of {game.name}, got "
                f"none; collect more with --steps"
            )
        labels = [frames.memory[:, game.variables[name].index].astype(np.int64) for name in names]
        classes, indices = zip(*(np.unique(y, return_inverse=True) for y in labels), strict=True)
        self.obs, self.seed, device = frames.obs, trial.seed, reachable(trial.device)
        self.labels = torch.as_tensor(np.stack(indices, 1), device=device)
        height, width, channels = frames.obs.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(trial.seed, "supervised/weights"))
            reader = LabelReader((channels, height, width), settings, names, list(classes))
        self.reader = reader.to(device)
        self.optimizer = torch.optim.Adam(self.reader.parameters(), lr=LEARNING_RATE, fused=True)
        super().__init__(trial, env_steps=trial.steps, group="supervised", device=device)

    @property
    def updates(self) -> int:
        """Updates so far, resumed ones included."""
        return self.rows // BATCH

    def _update(self) -> dict[str, float]:
        # rows follow from the count of updates alone, so a resumed run draws what it would have
        rng = np.random.default_rng(derive(self.seed, "supervised/rows", self.updates))
        nats = torch.zeros((), device=self.device)
        for rows in rng.integers(len(self.obs), size=(self.at_once, BATCH)):
            rate = LEARNING_RATE / (1 + self.updates / HALVED_AFTER)
            self.optimizer.param_groups[0]["lr"] = rate
            logits = self.reader(torch.as_tensor(self.obs[rows], device=self.device))
            wanted = self.labels[torch.as_tensor(rows, device=self.device)]
            pairs = zip(logits, wanted.T, strict=True)
            loss = torch.stack([cross_entropy(part, labels) for part, labels in pairs]).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            nats += loss.detach()
            self.rows += BATCH
        return {"nats": float(nats) / self.at_once}

    def _state(self) -> dict[str, Any]:
        return {"reader": self.reader.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _begin(self, state: Mapping[str, Any]) -> None:
        if state:
            self.reader.load_state_dict(state["reader"])
            self.optimizer.load_state_dict(state["optimizer"])

    def _in_words(self, metrics: Mapping[str, float]) -> str:
        return f"{metrics['nats']:.2f} nats of all labels"


def supervised_report(
    reader: LabelReader, game: Game, train: Frames, held_out: Frames
) -> dict[str, Any]:
    """Score a trained reader on all held-out frames that are no copies of training frames.

    `probe_f1`: weighted F1, where world models have that of linear probes; `supervised`: see
    `probes.classification_report`; `rows`: how many were scored and dropped.
    """
    obs = np.asarray(held_out.obs, np.uint8)
    new = not_seen_in(np.asarray(train.obs, np.uint8), obs)
    columns = [game.variables[name].index for name in reader.names]
    labels = held_out.memory[new][:, columns]
    targets = Targets(reader.names, labels[:0], labels[:0], labels)
    report = classification_report(targets, reader.guesses(obs[new]), game.categories)
    return {
        "probe_f1": report["f1"],
        "supervised": report,
        "rows": {"test": float(new.sum()), "copies_dropped": float((~new).sum())},
    }
