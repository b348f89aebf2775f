"""Making one trial of the flow study: images in, a trained flow, measures and pictures out.

All training images set the pixels' marginals, the first batch the flow's normalisations
(`ImageFlow.see`, `ImageFlow.initialise`). An update minimises bits per dimension on a batch of
training images drawn at random, with fresh dequantisation noise; its gradient's norm is bounded and
its learning rate grows from 0 over the first updates, since couplings on near-constant frames
diverge easily.

A run *diverges* if its loss is not finite, or ten gradients in a row are not (their updates are
left out and counted), or if held-out images cost no finite number in the end, or more than twice
what knowing nothing does. It has a result: `diverged` is 1, and what cannot be measured is null.
How the budget counts and what a signal does: `mbrl.studies.training`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.numerics import autocast, restore_generator
from mbrl.seeding import seed as derive
from mbrl.studies import training
from mbrl.studies.flows.images import ImageSet, load_images
from mbrl.studies.flows.measure import QUICK, Sizes, bits_per_dim, measure, to_tensor
from mbrl.studies.flows.trial import FlowStudySettings, TrainSettings, Trial
from mbrl.studies.training import BudgetedTraining, Tree
from mbrl.world_model.decoders.flow import ImageFlow

LINES = {
    "cpu_minutes": "study/cpu_s",
    "updates": "study/updates",
    "bits_per_dim": "flow/bits_per_dim",
    "held_out_bits_per_dim": "flow/held_out_bits_per_dim",
}
"""What a result tells of how training went, and the metrics it is made of."""
HELD_OUT_S = 60.0
"""CPU seconds of training between two looks at held-out images."""
WATCHED, WATCHED_QUICK = 128, 16
"""Held-out images that those looks are taken at; the same every time, with the same noise."""
SKIPPED_IN_A_ROW = 10
INITIAL, SEEN = 64, 1024
"""Images of the batch that sets the normalisations; images at a time that marginals count."""


def run(trial: Trial) -> bool:
    """Make one trial, or what is left of it; whether it is done.

    Raises:
        MbrlError: its settings or its images are wrong or not those of its folder.
    """
    images = load_images(trial.source)
    trial.refuse_other_images(images.digest)

    def make(trial: Trial) -> Tree | None:
        one = Training(trial, images)
        return one.made(one.flow, lambda: measured(one))

    return training.run(trial, make, LINES, {"digest": images.digest})


def measured(trained: "Training") -> dict[str, Any]:
    """The measures of a trained flow, or of one that diverged; its pictures go to its folder."""
    trial = trained.trial
    of_training = {
        "skipped": float(trained.skipped),
        "train_ms_per_image": 1000 * trained.cpu_s / max(1, trained.rows),
    }
    sizes, found = QUICK if trial.quick else Sizes(), None
    if not trained.diverged:
        found = measure(trained.flow, trained.images, trial.source.game, trial.seed, sizes)
    if found is None:
        return {"bits_per_dim": None, "diverged": 1.0, **of_training}
    np.savez_compressed(
        trial.run_dir / "pictures.npz",
        allow_pickle=False,
        temperatures=np.asarray(sizes.temperatures),
        **found.pictures,
    )
    return {"diverged": 0.0, **found.numbers, **of_training}


def build(shape: tuple[int, int, int], levels: int, config: FlowStudySettings) -> ImageFlow:
    """An unconditional flow on images of `shape` (C, H, W) and V levels."""
    return ImageFlow(shape, levels, 0, config.flow)


def optimizer_of(flow: torch.nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    kind = torch.optim.Adamax if train.optimizer == "adamax" else torch.optim.Adam
    return kind(flow.parameters(), lr=train.lr)


def loss_of(
    flow: ImageFlow, batch: Tensor, generator: torch.Generator | None, bf16: bool
) -> Tensor:
    """Mean bits per dimension of a batch (N, C, H, W) of levels."""
    with autocast(batch.device, bf16):
        nats = -flow.log_prob(batch, generator=generator).mean()
    return nats / (batch[0].numel() * math.log(2))


class Training(BudgetedTraining):
    """A flow that learns images until its budget is spent; a context manager."""

    def __init__(self, trial: Trial, images: ImageSet) -> None:
        """Build the flow, and load the newest checkpoint if there is one."""
        self.trial, self.images, self.config = trial, images, trial.config()
        torch.manual_seed(derive(trial.seed, "flows/weights"))
        self.flow = build(images.shape, images.levels, self.config)
        self.optimizer = optimizer_of(self.flow, self.config.train)
        self.generator = torch.Generator().manual_seed(derive(trial.seed, "flows/noise"))
        self.rng = np.random.default_rng(derive(trial.seed, "flows/batches"))
        self.done, self.skipped, self._in_a_row = 0, 0, 0
        self.diverged = False
        self._watched_at = -math.inf
        super().__init__(trial, env_steps=0, group="flow")

    @property
    def updates(self) -> int:
        """Updates so far, resumed and left-out ones included."""
        return self.done

    def _batch(self, count: int) -> Tensor:
        rows = self.rng.integers(len(self.images.train), size=count)
        return to_tensor(self.images.train[rows])

    def _update(self) -> dict[str, float]:
        train = self.config.train
        if self.done == 0:
            for images in np.array_split(self.images.train, -(-len(self.images.train) // SEEN)):
                self.flow.see(to_tensor(images))
            self.flow.initialise(self._batch(INITIAL), generator=self.generator)
        for group in self.optimizer.param_groups:
            group["lr"] = train.lr * min(1.0, (self.done + 1) / max(1, train.warmup_updates))
        loss = loss_of(self.flow, self._batch(train.batch_size), self.generator, train.bf16)
        self.done += 1
        self.rows += train.batch_size
        bits = float(loss.detach())
        norm = self._step(loss) if math.isfinite(bits) else math.nan
        if not math.isfinite(bits) or self._in_a_row >= SKIPPED_IN_A_ROW:
            self.diverged = self.over = True
        return {"bits_per_dim": bits, "gradient_norm": norm}

    def _step(self, loss: Tensor) -> float:
        """Follow the gradient if it is finite; returns its norm."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.config.train.clip))
        if math.isfinite(norm):
            self.optimizer.step()
            self._in_a_row = 0
        else:
            self.skipped += 1
            self._in_a_row += 1
        return norm

    def _measured(self) -> dict[str, float]:
        """Now and then: bits per dimension of held-out images; NaN in between."""
        ends = self.budget_spent
        if self.diverged or (self.cpu_s - self._watched_at < HELD_OUT_S and not ends):
            return {"held_out_bits_per_dim": math.nan}
        self._watched_at = self.cpu_s
        rows = self.images.measured(WATCHED_QUICK if self.trial.quick else WATCHED)
        bits = bits_per_dim(self.flow, self.images.held_out[rows], seed=0, draws=1)
        return {"held_out_bits_per_dim": bits}

    def _state(self) -> dict[str, Any]:
        return {
            "flow": self.flow.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": self.rng.bit_generator.state,
            "counts": [self.done, self.skipped, self._in_a_row],
            "diverged": self.diverged,
            "watched_at": self._watched_at,
        }

    def _begin(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self.flow.load_state_dict(state["flow"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_generator(self.generator, state["generator"])
        self.rng.bit_generator.state = state["rng"]
        self.done, self.skipped, self._in_a_row = state["counts"]
        self.diverged, self._watched_at = state["diverged"], state["watched_at"]

    def _in_words(self, metrics: Mapping[str, float]) -> str:
        held_out = metrics["held_out_bits_per_dim"]
        seen = f", held out {held_out:.3f}" if math.isfinite(held_out) else ""
        ended = ", diverged" if self.diverged else ""
        return f"{metrics['bits_per_dim']:.3f} bits per dimension{seen}{ended}"
