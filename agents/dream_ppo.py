"""DreamPPO: the policy that learns in dreams, as a trainer holds it, and its RLlib configuration.

`DreamPPO` builds the learners (this process alone, or n Ray actors), sends them an environment to
dream in, and gives out weights and a state of tensors and numbers. `DreamPPOConfig` is the same as
an ordinary RLlib configuration. What happens inside a learner is in `agents.dream_learner`.
"""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from agents.dream_algorithm import DreamPPOAlgorithm, IdleEnv
from agents.dream_learner import DreamPPOLearner, PolicyLearningError, State
from agents.modules import LatentModule, latent_model_config, latent_spec
from agents.settings import DreamPolicySettings
from agents.tensor_env import MovableTensorEnv, ShareableTensorEnv, TensorEnv

__all__ = ["DreamPPO", "DreamPPOConfig", "PolicyLearningError"]


MakeEnv = Callable[[int, int], TensorEnv]
"""(index of the learner, number of learners) to that learner's environments."""


class DreamPPOConfig(PPOConfig):
    """RLlib configuration whose learners are `DreamPPOLearner`s.

    Example:
        `DreamPPOConfig().dream(settings, seed=0, make_env=make).learners(num_learners=2)`, then
        `.build_algo()`.
    """

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
            make_env: for `build_algo` only: called in each learner's process with its index and the
                number of learners, it gives that learner's environments.
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
        return self.training(
            lr=settings.lr,
            gamma=settings.gamma,
            lambda_=settings.lam,
            clip_param=settings.clip,
            entropy_coeff=settings.entropy,
            vf_loss_coeff=settings.value_coeff,
            grad_clip=settings.grad_clip,
            num_epochs=settings.epochs,
            minibatch_size=min(settings.minibatch_size, settings.dreams * settings.horizon),
            train_batch_size_per_learner=settings.dreams * settings.horizon,
        )

    def get_default_learner_class(self) -> type[Learner]:
        """`DreamPPOLearner`."""
        return DreamPPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """`LatentModule`; RLlib fills in the spaces."""
        model_config = latent_model_config(DreamPolicySettings(**self.dream_settings))
        return RLModuleSpec(module_class=LatentModule, model_config=model_config)


def _learn(learner: DreamPPOLearner, env: Any, rounds: int) -> dict[str, float]:
    if isinstance(env, list):
        env = ray.get(env[learner._learner_index])
        if isinstance(env, MovableTensorEnv):
            env = env.to(learner._device)
    return learner.learn_in_dream(env, rounds)


class DreamPPO:
    """A dream policy and its learners: what a trainer holds.

    Attributes:
        version: rounds learned so far.
    """

    def __init__(
        self,
        settings: DreamPolicySettings,
        obs_dim: int,
        action_space: gym.Space,  # type: ignore[type-arg]
        seed: int,
        num_learners: int = 0,
        device: str = "cpu",
    ) -> None:
        """Build the learners.

        Args:
            settings: see `DreamPolicySettings`; `dreams` is up to the environment.
            obs_dim: F, features per observation.
            action_space: Discrete or Box.
            seed: of the first weights and of the actions in dreams.
            num_learners: 0 learns in this process, without Ray; n > 0 starts n Ray actors.
            device: a torch device. On GPUs every learner has one of its own: this process' learner
                the one named, Ray's learners those that Ray gives them.
        """
        self.settings = settings
        self.num_learners = num_learners
        spec = latent_spec(settings, obs_dim, action_space)
        config = DreamPPOConfig().dream(settings, seed)
        place = torch.device(device)
        config.learners(
            num_learners=num_learners,
            num_gpus_per_learner=int(place.type != "cpu"),
            local_gpu_idx=place.index or 0,
        )
        self._group = config.build_learner_group(rl_module_spec=spec)
        with torch.random.fork_rng(devices=[]):
            self._acting: LatentModule = spec.build()
        self._stale = True
        self.version = 0

    def learn(self, env: TensorEnv, rounds: int) -> dict[str, float]:
        """Dream and learn for `rounds` rounds.

        Args:
            env: all dreams together; with more than one learner it must be shareable.
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

    def _shares(self, env: TensorEnv) -> Any:
        if self.num_learners == 0:
            return env
        count = self.num_learners
        if count == 1 and not isinstance(env, ShareableTensorEnv):
            return [ray.put(env)]
        if not isinstance(env, ShareableTensorEnv) or env.num_envs % count:
            raise ValueError(
                f"expected an environment with share(index, count) and a multiple of {count} "
                f"environments, got {type(env).__name__} with {env.num_envs}; change policy.dreams "
                "or the number of policy learners"
            )
        return [ray.put(env.share(index, count)) for index in range(count)]

    def _each(self, function: Any, **kwargs: Any) -> list[Any]:
        """Call on every learner; the first error of a learner is raised here."""
        results = []
        for result in self._group.foreach_learner(function, **kwargs):
            value = result.get()
            if not result.ok:
                raise value
            results.append(value)
        return results

    @property
    def module(self) -> LatentModule:
        """A copy of the network on the CPU, for acting, with the newest weights."""
        if self._stale:
            self._acting.load_state_dict(self.get_weights())
            self._stale = False
        return self._acting

    def get_weights(self) -> dict[str, Tensor]:
        """The newest weights, as copies on the CPU."""
        weights: dict[str, Tensor] = self._each(_weights)[0]
        return weights

    def get_state(self) -> State:
        """Everything needed to go on exactly here, as tensors and numbers on the CPU."""
        states = self._each(_state)
        own = {str(index): state["own"] for index, state in enumerate(states)}
        return {
            "module": states[0]["module"],
            "adam": states[0]["adam"],
            "learners": own,
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


def _weights(learner: DreamPPOLearner) -> dict[str, Tensor]:
    state = learner.latent_module.state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def _to_cpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _to_cpu(value) for key, value in tree.items()}
    return tree.cpu() if isinstance(tree, Tensor) else tree


def _state(learner: DreamPPOLearner) -> State:
    state: State = _to_cpu(learner.dream_state())
    return state


def _set_state(learner: DreamPPOLearner, state: State) -> None:
    own = state["learners"][str(learner._learner_index)]
    learner.set_dream_state({"module": state["module"], "adam": state["adam"], "own": own})
