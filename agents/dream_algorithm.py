"""Dream PPO as a whole RLlib algorithm, for people who live in RLlib's own tools.

`DreamPPOConfig(...).dream(settings, seed, make_env=...).build_algo()` gives an `Algorithm` whose
`train()` dreams and learns, and which `save_to_path`, Tune and callbacks work with. The trainer of
this project does not need it: it holds a `DreamPPO`, which has no env runners at all. RLlib insists
on having one, so here it is given an `IdleEnv` that nobody steps.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo import PPO

from agents.dream_learner import DreamPPOLearner
from agents.tensor_env import TensorEnv


class IdleEnv(gym.Env[Any, Any]):
    """Has the spaces of a TensorEnv and refuses to be stepped."""

    def __init__(self, config: dict[str, Any]) -> None:
        """`config` has `obs_dim` and `action_space`."""
        bound = np.inf
        self.observation_space = gym.spaces.Box(-bound, bound, (config["obs_dim"],), np.float32)
        self.action_space = config["action_space"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A zero observation."""
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: Any) -> Any:
        """Always an error."""
        raise RuntimeError("expected nobody to step IdleEnv: dreams are rolled out in the learner")


def _learn(learner: DreamPPOLearner, rounds: int) -> dict[str, float]:
    count = max(1, learner.config.num_learners)
    env: TensorEnv | None = getattr(learner, "tensor_env", None)
    if env is None:
        env = learner.config.make_tensor_env(learner._learner_index, count)
        learner.tensor_env = env
    return learner.learn_in_dream(env, rounds)


class DreamPPOAlgorithm(PPO):
    """PPO whose iterations are `rounds_per_iteration` rounds in the dream."""

    def training_step(self) -> None:
        """Let every learner dream and learn in its own environment."""
        rounds = self.config.rounds_per_iteration
        for result in self.learner_group.foreach_learner(_learn, rounds=rounds):
            metrics = result.get()
            if not result.ok:
                raise metrics
            self.metrics.log_dict(metrics, key="dream", window=1)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True
        )
