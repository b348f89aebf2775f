"""Dream PPO as RLlib sees it: a configuration, and a whole algorithm for RLlib's own tools.

`DreamPPOConfig().dream(settings, seed, make_env).build_algo()` gives an `Algorithm` whose `train()`
dreams and learns, and which `save_to_path`, Tune and callbacks work with. The trainer of this
project takes only the learners (`agents.dream_ppo`). RLlib insists on an environment, so here it is
given an `IdleEnv` that nobody steps.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.dream_learner import DreamPPOLearner
from agents.modules import LatentModule, latent_model_config
from agents.settings import ALGORITHMS, DreamPolicySettings, ppo_arguments
from agents.tensor_env import TensorEnv

MakeEnv = Callable[[int, int], TensorEnv]
"""(index of the learner, number of learners) to that learner's environments."""


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


class DreamPPOConfig(PPOConfig):
    """RLlib configuration whose learners are `DreamPPOLearner`s."""

    def __init__(self, algo_class: type | None = None) -> None:
        """Start from stock PPO, without its adaptive KL penalty."""
        super().__init__(algo_class=algo_class or DreamPPOAlgorithm)
        self.dream_settings = DreamPolicySettings().model_dump()
        self.dream_seed = 0
        self.make_tensor_env: MakeEnv | None = None
        self.rounds_per_iteration = 10
        self.num_env_runners = 0
        self.use_kl_loss = False
        # The loss itself is checked; this skips two reads of every gradient per step.
        self.torch_skip_nan_gradients = True

    def dream(
        self,
        settings: DreamPolicySettings,
        seed: int,
        make_env: MakeEnv | None = None,
        rounds_per_iteration: int = 10,
    ) -> "DreamPPOConfig":
        """Take over the settings.

        Args:
            settings: of the learners.
            seed: of the first weights and of the actions in dreams.
            make_env: for `build_algo` only; called in each learner's process.
            rounds_per_iteration: for `build_algo` only: rounds per `train()`.
        """
        self.dream_settings = settings.model_dump()
        self.dream_seed = seed
        self.rounds_per_iteration = rounds_per_iteration
        if make_env is not None:
            self.make_tensor_env = make_env
            env = make_env(0, 1)
            spaces = {"obs_dim": env.obs_dim, "action_space": env.action_space}
            self.environment(IdleEnv, env_config=spaces)
        rows = settings.dreams * settings.horizon
        arguments = {**ppo_arguments(settings), "train_batch_size_per_learner": rows}
        arguments["minibatch_size"] = min(settings.minibatch_size, rows)
        return self.training(**arguments)

    def get_default_learner_class(self) -> type[Learner]:
        """The `DreamPPOLearner`, or the subclass, that `policy.algorithm` names."""
        module, _, name = ALGORITHMS[self.dream_settings["algorithm"]].partition(":")
        learner: type[Learner] = getattr(import_module(module), name)
        return learner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """`LatentModule`; RLlib fills in the spaces."""
        model_config = latent_model_config(DreamPolicySettings(**self.dream_settings))
        return RLModuleSpec(module_class=LatentModule, model_config=model_config)
