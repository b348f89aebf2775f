"""Making one trial of the fidelity study: frames in, a trained model, measures and pictures out.

How the budget counts and what a signal does: `mbrl.studies.training`.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from envs import make_env
from mbrl.device import reachable
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore
from mbrl.studies import training
from mbrl.studies.fidelity.arms import SUPERVISED
from mbrl.studies.fidelity.frames import collect_frames, load_frames
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.measure import Sizes, measure
from mbrl.studies.fidelity.objects import require_backdrops
from mbrl.studies.fidelity.pictures import draw
from mbrl.studies.fidelity.supervised import SupervisedTraining, supervised_report
from mbrl.studies.fidelity.trial import Trial
from mbrl.studies.training import BudgetedTraining, Tree
from mbrl.world_model.settings import NormalisedSettings

UPDATES_AT_ONCE = 4
FRAMES_SEED = 0
LINES = {
    "cpu_minutes": "study/cpu_s",
    "nats_per_frame": "world_model/nats_per_frame",
    "kl": "world_model/kl",
    "kl_weight": "world_model/kl_weight",
}
"""What a result tells of how training went, and the metrics it is made of; None without a model."""
QUICK = Sizes(
    sampled=16,
    informed=64,
    candidates=32,
    dreamed=8,
    fitted=256,
    scored=128,
    epochs=2,
)
"""Measures of seconds, to try the study out; too few frames to quote."""


def run(trial: Trial) -> bool:
    """Make one trial, or what is left of it; whether it is done (`mbrl.studies.training.run`)."""
    make = _read_labels if trial.arm == SUPERVISED else _model_world
    return training.run(trial, make, LINES)


def frames_of(trial: Trial) -> tuple[ReplayStore, ReplayStore]:
    """Frames to train on and held-out ones, collected if they are missing."""
    game, steps = GAMES[trial.game], (trial.steps, trial.held_out_steps)
    return collect_frames(game, trial.frames_dir, *steps, FRAMES_SEED)


def _model_world(trial: Trial) -> Tree | None:
    """Train a world model, draw and measure; None if a signal came."""
    game, stores = GAMES[trial.game], frames_of(trial)
    require_backdrops(game, *stores)
    world = Training(trial, stores[0])
    model = world.learner.model

    def measured() -> Mapping[str, Any]:
        train, held_out = load_frames(stores[0]), load_frames(stores[1])
        draw(model, held_out, game, trial.run_dir / "pictures.npz")
        return measure(model, game, train, held_out, trial.seed, QUICK if trial.quick else Sizes())

    return world.made(model, measured)


def _read_labels(trial: Trial) -> Tree | None:
    """Train an encoder on the labels and score it; None if a signal came."""
    game, (train, held_out) = GAMES[trial.game], map(load_frames, frames_of(trial))
    encoder = trial.config().world_model.encoder.model_dump()
    reading = SupervisedTraining(trial, game, NormalisedSettings.model_validate(encoder), train)
    reader = reading.reader
    return reading.made(reader, lambda: supervised_report(reader, game, train, held_out))


class Training(BudgetedTraining):
    """A world model that learns from a store until its budget is spent; a context manager."""

    at_once = UPDATES_AT_ONCE

    def __init__(self, trial: Trial, store: ReplayStore) -> None:
        """Build the learner, and load the newest checkpoint if there is one."""
        config = trial.config()
        with contextlib.closing(make_env(config.env)) as env:
            spaces = env.observation_space, env.action_space
        self.learner = WorldModelLearner(
            *spaces,
            config.world_model,
            config.learn_model,
            store,
            capacity_steps=max(1, sum(episode.rows for episode in store.episodes())),
            ring_directory=None,
            root_seed=trial.seed,
            device=str(reachable(trial.device)),
        )
        super().__init__(
            trial, env_steps=trial.steps, group="world_model", device=self.learner.device
        )

    def __exit__(self, *problem: object) -> None:
        """Close the ring as well."""
        self.learner.close()
        super().__exit__(*problem)

    @property
    def updates(self) -> int:
        """Updates so far, resumed ones included."""
        return self.learner.updates

    def _update(self) -> dict[str, float]:
        metrics, _ = self.learner.learn(UPDATES_AT_ONCE)
        learn = self.learner.settings
        self.rows += UPDATES_AT_ONCE * learn.batch_size * learn.sequence_length
        return metrics

    def _state(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "segments": self.learner.segments()}

    def _begin(self, state: Mapping[str, Any]) -> None:
        self.learner.refresh(state.get("segments"))
        if state:
            self.learner.load_state_dict(state["learner"])

    def _in_words(self, metrics: Mapping[str, float]) -> str:
        return f"{metrics['nats_per_frame']:.1f} nats per frame, KL {metrics['kl']:.2f}"
