"""World models of a study: trained on a store that is all there, for so long or so many updates.

How the budget counts and what a signal does: `mbrl.studies.training`.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from envs import make_env
from mbrl.config.schema import Config
from mbrl.device import reachable
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore
from mbrl.studies.training import BudgetedTraining
from mbrl.studies.trial import Trial

UPDATES_AT_ONCE = 4
LINES = {
    "cpu_minutes": "study/cpu_s",
    "nats_per_frame": "world_model/nats_per_frame",
    "kl": "world_model/kl",
    "kl_weight": "world_model/kl_weight",
}
"""What a result tells of how training went, and the metrics it is made of; None without a model."""


class WorldModelTraining(BudgetedTraining):
    """A world model that learns from a store until its budget is spent; a context manager."""

    at_once = UPDATES_AT_ONCE

    def __init__(self, trial: Trial, config: Config, store: ReplayStore) -> None:
        """Build the learner of a trial's `config`, and load the newest checkpoint if there is one.

        `config.env_steps` is of the lines of metrics.
        """
        with contextlib.closing(make_env(config.env)) as env:
            spaces = env.observation_space, env.action_space
        self.learner = WorldModelLearner(
            *spaces,
            config.world_model,
            config.learn_model,
            store,
            capacity_steps=max(1, sum(episode.rows for episode in store.fragments())),
            ring_directory=None,
            root_seed=trial.seed,
            device=str(reachable(trial.device)),
        )
        super().__init__(
            trial, env_steps=config.env_steps, group="world_model", device=self.learner.device
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
