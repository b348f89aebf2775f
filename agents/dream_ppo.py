"""DreamPPO: the policy that learns in dreams, as a trainer holds it.

It builds the learners (this process alone, or n Ray actors), sends them an environment to dream in,
and gives out weights and a state of tensors and numbers. What happens inside a learner is in
`agents.dream_learner`.
"""

import time
from typing import Any

import gymnasium as gym
import ray
import torch
from torch import Tensor

from agents.dream_learner import (
    DreamPPOLearner,
    PolicyLearningError,
    Recording,
    ShareableTensorEnv,
    TensorEnv,
    learner_config,
)
from agents.modules import LatentModule, latent_spec
from agents.settings import DreamPolicySettings
from agents.state import State, weights_of

__all__ = ["DreamPPO", "PolicyLearningError", "Recording"]


def _learn(learner: DreamPPOLearner, env: Any, rounds: int) -> dict[str, float]:
    if isinstance(env, list):
        env = ray.get(env[learner._learner_index]).to(learner._device)
    return learner.learn_in_dream(env, rounds)


def _set_state(learner: DreamPPOLearner, state: State) -> None:
    own = state["learners"][str(learner._learner_index)]
    learner.set_dream_state({"module": state["module"], "adam": state["adam"], "own": own})


class DreamPPO:
    """A dream policy and its learners; `version` counts the rounds learned so far."""

    def __init__(
        self,
        settings: DreamPolicySettings,
        obs_dim: int,
        action_space: gym.Space[Any],
        seed: int,
        num_learners: int = 0,
        device: str = "cpu",
        feature_map: tuple[int, int, int] | None = None,
    ) -> None:
        """Build the learners.

        Args:
            settings: how they learn; `dreams` is up to the environment.
            obs_dim: F, features per observation.
            action_space: one that `agents.heads` knows.
            seed: of the first weights and of the actions in dreams.
            num_learners: 0 learns in this process, without Ray; n > 0 starts n Ray actors.
            device: a torch device. On GPUs every learner has one of its own: this process' learner
                the one named, Ray's learners those that Ray gives them.
            feature_map: (rows, columns, maps) if the F features are flattened maps.
        """
        self.settings = settings
        self.num_learners = num_learners
        spec = latent_spec(settings, obs_dim, action_space, feature_map)
        place = torch.device(device)
        config = learner_config(settings, seed).learners(
            num_learners=num_learners,
            num_gpus_per_learner=int(place.type != "cpu"),
            local_gpu_idx=place.index or 0,
        )
        with torch.random.fork_rng(devices=[]):  # first, as it refuses what it cannot act in
            self._acting: LatentModule = spec.build()
        self._group = config.build_learner_group(rl_module_spec=spec)
        self._stale = True
        self.version = 0

    def learn(self, env: TensorEnv | Recording, rounds: int) -> dict[str, float]:
        """Dream and learn, `rounds` times.

        Args:
            env: all dreams together; for learners in Ray it must be a `ShareableTensorEnv`. Or real
                steps, for the learner of this process, in one round.
            rounds: rollouts of `settings.horizon` steps, each followed by its update.

        Returns:
            Metrics, means over learners; `dream_steps` and `dream_steps_per_s` are totals.

        Raises:
            PolicyLearningError: something is not finite.
            ValueError: the environment cannot be shared equally among the learners.
        """
        start = time.perf_counter()
        results = self._each(_learn, env=self._shares(env), rounds=rounds)
        wall = time.perf_counter() - start
        self.version += rounds
        self._stale = True
        metrics = {key: sum(r[key] for r in results) / len(results) for key in results[0]}
        metrics["dream_steps"] = sum(r["dream_steps"] for r in results)
        metrics["dream_steps_per_s"] = metrics["dream_steps"] / wall
        return metrics

    def _shares(self, env: TensorEnv | Recording) -> Any:
        count = self.num_learners
        if count == 0:
            return env
        if not isinstance(env, ShareableTensorEnv) or env.num_envs % count:
            dreams = getattr(env, "num_envs", "none")
            raise ValueError(
                f"expected an environment with share(index, count), to(device) and a multiple of "
                f"{count} environments, got {type(env).__name__} with {dreams}; change "
                "policy.dreams or the number of policy learners"
            )
        return [ray.put(env.share(index, count)) for index in range(count)]

    def _each(self, function: Any, **kwargs: Any) -> list[Any]:
        """Call on every learner; the first error of a learner is raised here."""
        results = list(self._group.foreach_learner(function, **kwargs))
        for result in results:
            if not result.ok:
                raise result.get()
        return [result.get() for result in results]

    @property
    def module(self) -> LatentModule:
        """A copy of the network on the CPU, for acting, with the newest weights."""
        if self._stale:
            self._acting.load_state_dict(self.get_weights())
            self._stale = False
        return self._acting

    def get_weights(self) -> dict[str, Tensor]:
        """The newest weights, as copies on the CPU."""
        weights: dict[str, Tensor] = self._each(lambda one: weights_of(one.latent_module))[0]
        return weights

    def get_state(self) -> State:
        """Everything needed to go on exactly here, as tensors and numbers on the CPU."""
        states = self._each(DreamPPOLearner.dream_state)
        return {
            "module": states[0]["module"],
            "adam": states[0]["adam"],
            "learners": {str(index): state["own"] for index, state in enumerate(states)},
            "version": self.version,
        }

    def set_state(self, state: State) -> None:
        """Go on from `get_state`; the number of learners must be the same.

        Raises:
            ValueError: the state is of another number of learners.
        """
        count = max(1, self.num_learners)
        if len(state["learners"]) != count:
            raise ValueError(
                f"expected the state of {count} learners, got {len(state['learners'])}; resume "
                "with the number of policy learners the run was started with"
            )
        self._each(_set_state, state=state)
        self.version = int(state["version"])
        self._stale = True

    def close(self) -> None:
        """Stop the learners."""
        self._group.shutdown()
