"""The opponents: stock RLlib PPO and DQN on the real environment, nothing patched.

`ModelFree` builds the algorithm from its public configuration, trains it by a number of environment
steps and hands out a policy for evaluation. It counts steps itself, in the environments: RLlib's
own lifetime counters are not right after a restore. State is tensors and numbers only, DQN's replay
buffer included, which RLlib's checkpoints leave out.

What a resumed run does not repeat: RLlib's random generators and half-played episodes are not part
of the state, so a resumed baseline goes on with fresh episodes and does not equal an uninterrupted
one bit for bit. Priorities of a prioritised buffer start again at their largest value.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from agents.action_heads import make_head
from agents.episode_arrays import pack_episodes, unpack_episodes
from agents.modules import PixelCatalog, PixelModule
from agents.settings import DQNSettings, PPOSettings

State = dict[str, Any]
"""Nested dict with string keys and tensors, numbers or strings as leaves."""

Kind = Literal["ppo", "dqn"]
EnvCreator = Callable[[], gym.Env[Any, Any]]

_names = itertools.count()


class CountSteps(gym.Wrapper[Any, Any, Any, Any]):
    """Counts the calls of `step`; the sum over all environments is the budget that was used."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap one environment."""
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        """Step and count."""
        self.steps += 1
        return super().step(action)


def start_ray() -> None:
    """Start a small local Ray if this process has none (RLlib would start a larger one)."""
    for chatty in ("ray.rllib", "ray.tune"):  # notices about API stacks and slow set-up
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if not ray.is_initialized():
        ray.init(
            "local",  # or it would join a head that somebody started on this machine
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )


def _count(env_runner: Any) -> int:
    """Steps of all environments of an env runner since it was built."""
    envs = getattr(env_runner.env.unwrapped, "envs", [])
    return sum(_counter(env).steps for env in envs)


def _counter(env: gym.Env[Any, Any]) -> CountSteps:
    while not isinstance(env, CountSteps):
        if not isinstance(env, gym.Wrapper):
            raise RuntimeError(f"expected a step counter around {env}, found none")
        env = env.env
    return env


def ppo_config(settings: PPOSettings) -> AlgorithmConfig:
    """Stock PPO with these settings, without an environment."""
    return (
        PPOConfig()
        .env_runners(num_envs_per_env_runner=settings.num_envs)
        .training(
            lr=settings.lr,
            gamma=settings.gamma,
            lambda_=settings.lam,
            clip_param=settings.clip,
            entropy_coeff=settings.entropy,
            vf_loss_coeff=settings.value_coeff,
            vf_clip_param=math.inf,
            use_kl_loss=False,
            grad_clip=settings.grad_clip,
            num_epochs=settings.epochs,
            minibatch_size=settings.minibatch_size,
            train_batch_size_per_learner=settings.batch_steps,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=PixelModule, model_config={"dense": settings.dense}
            )
        )
    )


def dqn_config(settings: DQNSettings, steps_done: int) -> AlgorithmConfig:
    """Stock DQN with these settings, without an environment.

    Args:
        settings: see `DQNSettings`.
        steps_done: steps an earlier process took; schedules go on from there.
    """
    span = settings.epsilon_start - settings.epsilon_end
    left = max(0, settings.epsilon_steps - steps_done)
    now = settings.epsilon_end + span * left / settings.epsilon_steps
    kind = "PrioritizedEpisodeReplayBuffer" if settings.prioritized else "EpisodeReplayBuffer"
    priorities = {"alpha": 0.5, "beta": 0.4} if settings.prioritized else {}
    return (
        DQNConfig()
        .env_runners(num_envs_per_env_runner=settings.num_envs)
        .training(
            lr=settings.lr,
            gamma=settings.gamma,
            train_batch_size_per_learner=settings.batch_size,
            training_intensity=settings.training_intensity,
            num_steps_sampled_before_learning_starts=max(0, settings.learning_starts - steps_done),
            replay_buffer_config={"type": kind, "capacity": settings.buffer_steps, **priorities},
            target_network_update_freq=settings.target_update_steps,
            n_step=settings.n_step,
            double_q=settings.double_q,
            dueling=settings.dueling,
            num_atoms=1,
            epsilon=[(0, now), (left, settings.epsilon_end)] if left else settings.epsilon_end,
            grad_clip=settings.grad_clip,
        )
        .reporting(min_sample_timesteps_per_iteration=0)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=DefaultDQNTorchRLModule,
                catalog_class=PixelCatalog,
                model_config={"dense": settings.dense},
            )
        )
    )


class ModelFreePolicy:
    """Acts with a frozen copy of a baseline's network.

    Attributes:
        version: training iterations the copy has seen.
    """

    def __init__(
        self,
        kind: Kind,
        module: Any,
        action_space: gym.Space[Any],
        version: int,
        epsilon: float,
        seed: int,
    ) -> None:
        """`epsilon` is the share of random actions of an exploring DQN."""
        self.version = version
        self._kind, self._module, self._epsilon = kind, module, epsilon
        self._head = make_head(action_space)
        self._generator = torch.Generator().manual_seed(seed)

    def reset(self, num_envs: int) -> None:
        """Nothing is remembered between steps."""

    @torch.no_grad()
    def act(
        self, obs: NDArray[Any], is_first: NDArray[np.bool_], explore: bool = True
    ) -> NDArray[Any]:
        """Actions for a batch of observations.

        Args:
            obs: (E, *shape), as the environments gave them.
            is_first: (E,), ignored.
            explore: PPO samples from its policy, DQN acts at random now and then; without it both
                take what they think best.

        Returns:
            (E,) int64 or (E, *shape) float32.
        """
        batch = {Columns.OBS: torch.from_numpy(np.ascontiguousarray(obs))}
        if self._kind == "ppo":
            inputs = self._module.policy(batch[Columns.OBS])
        else:
            inputs = self._module.compute_q_values(batch)["qf_preds"]
        action = self._head.mode(inputs)
        if explore:
            noise = self._head.noise((len(obs),), self._generator)
            if self._kind == "ppo":
                action = self._head.sample(inputs, noise)
            else:
                at_random = torch.rand(len(obs), generator=self._generator) < self._epsilon
                action = torch.where(at_random, noise.argmax(-1), action)
        return self._head.to_env(action).numpy()


class ModelFree:
    """A stock RLlib algorithm on the real environment.

    Attributes:
        env_steps: environment steps taken so far, over resumes too.
        version: training iterations so far.
    """

    def __init__(
        self,
        kind: Kind,
        settings: PPOSettings | DQNSettings,
        env_creator: EnvCreator,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        seed: int,
        num_env_runners: int = 0,
    ) -> None:
        """Build the algorithm; starts a local Ray if there is none.

        Args:
            kind: "ppo" or "dqn".
            settings: of that kind.
            env_creator: makes one environment; travels to the env runners.
            observation_space: of that environment; a Box of shape (H, W, C) or (F,).
            action_space: of that environment; DQN needs Discrete.
            seed: for RLlib, which seeds its process-wide generators and environments with it.
            num_env_runners: 0 samples in this process.

        Raises:
            ValueError: kind, settings and action space do not fit each other.
        """
        wanted: dict[str, type] = {"ppo": PPOSettings, "dqn": DQNSettings}
        if type(settings) is not wanted.get(kind):
            raise ValueError(
                f"expected kind ppo with PPOSettings or dqn with DQNSettings, got {kind!r} with "
                f"{type(settings).__name__}"
            )
        if kind == "dqn" and not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(
                f"expected a Discrete action space for dqn, got {action_space}; use ppo"
            )
        self.kind: Kind = kind
        self.settings: PPOSettings | DQNSettings = settings
        self.seed: int = seed
        self._env_creator: EnvCreator = env_creator
        self._spaces: tuple[gym.Space[Any], gym.Space[Any]] = (observation_space, action_space)
        self._num_env_runners: int = num_env_runners
        self._algo: Algorithm | None = None
        self._build(steps_done=0, version=0)

    def _build(self, steps_done: int, version: int) -> None:
        self.close()
        start_ray()
        if isinstance(self.settings, PPOSettings):
            config = ppo_config(self.settings)
        else:
            config = dqn_config(self.settings, steps_done)
        name, creator = f"reverie-{next(_names)}", self._env_creator
        register_env(name, lambda _: CountSteps(creator()))
        config.environment(name, observation_space=self._spaces[0], action_space=self._spaces[1])
        config.env_runners(num_env_runners=self._num_env_runners)
        # A resumed run must not replay the episodes it has already seen.
        config.debugging(seed=(self.seed + 7919 * version) % 2**31, log_level="ERROR")
        config.reporting(min_time_s_per_iteration=0)
        self._algo = config.build_algo()
        self._steps_before = steps_done
        self.env_steps, self.version = steps_done, version

    @property
    def algo(self) -> Algorithm:
        """RLlib's algorithm, for its own tools."""
        if self._algo is None:
            raise RuntimeError("expected an open baseline, but it was closed")
        return self._algo

    def learn(self, env_steps: int) -> dict[str, float]:
        """Train for at least `env_steps` more steps, in whole iterations of the algorithm.

        Returns:
            `env_steps`: how many steps were taken in this call, exactly; `iterations`; the mean
            `episode_return` and `episodes` of training episodes that ended; and RLlib's losses of
            the last iteration.
        """
        start, first_version = self.env_steps, self.version
        results: dict[str, Any] = {}
        while self.env_steps < start + env_steps:
            results = self.algo.train()
            self.version += 1
            self.env_steps = self._steps_before + self._count_steps()
        metrics = {
            "env_steps": float(self.env_steps - start),
            "iterations": float(self.version - first_version),
        }
        runner = results.get("env_runners", {})
        if "episode_return_mean" in runner:
            metrics["episode_return"] = float(runner["episode_return_mean"])
        for key, value in results.get("learners", {}).get(DEFAULT_MODULE_ID, {}).items():
            if isinstance(value, int | float | np.number) and math.isfinite(value):
                metrics[key] = float(value)
        return metrics

    def _count_steps(self) -> int:
        group = self.algo.env_runner_group
        local = self._num_env_runners == 0
        return sum(group.foreach_env_runner(_count, local_env_runner=local))

    def policy(self) -> ModelFreePolicy:
        """A frozen copy of the newest network, for acting."""
        source = self._module()
        spec = RLModuleSpec(
            module_class=type(source),
            observation_space=self._spaces[0],
            action_space=self._spaces[1],
            model_config=dict(source.model_config),
            catalog_class=PixelCatalog if self.kind == "dqn" else None,
        )
        with torch.random.fork_rng(devices=[]):
            module = spec.build()
        if self.kind == "dqn":
            module.make_target_networks()
        module.load_state_dict(source.state_dict())
        epsilon = self.settings.epsilon_end if isinstance(self.settings, DQNSettings) else 0.0
        seed = (self.seed + self.version) % 2**31
        return ModelFreePolicy(self.kind, module, self._spaces[1], self.version, epsilon, seed)

    def _learner(self) -> Any:
        return self.algo.learner_group._learner

    def _module(self) -> Any:
        return self._learner().module[DEFAULT_MODULE_ID].unwrapped()

    def get_state(self) -> State:
        """Everything needed to go on, as tensors and numbers: see the module's docstring."""
        adam = self._learner().get_optimizer(DEFAULT_MODULE_ID).state_dict()["state"]
        state: State = {
            "kind": self.kind,
            "module": {k: v.detach().cpu().clone() for k, v in self._module().state_dict().items()},
            "adam": {
                str(i): {k: v.detach().cpu().clone() for k, v in moments.items()}
                for i, moments in adam.items()
            },
            "env_steps": self.env_steps,
            "version": self.version,
        }
        if self.kind == "dqn":
            state["replay"] = pack_episodes(self.algo.local_replay_buffer.episodes)
        return state

    def set_state(self, state: State) -> None:
        """Go on from `get_state`.

        Raises:
            ValueError: the state is of another kind of baseline.
        """
        if state["kind"] != self.kind:
            raise ValueError(f"expected the state of a {self.kind} baseline, got {state['kind']}")
        self._build(int(state["env_steps"]), int(state["version"]))
        self._module().load_state_dict(state["module"])
        optimizer = self._learner().get_optimizer(DEFAULT_MODULE_ID)
        adam = {int(i): dict(moments) for i, moments in state["adam"].items()}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": adam, "param_groups": groups})
        self.algo.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.algo.learner_group, inference_only=True
        )
        if self.kind == "dqn":
            episodes = unpack_episodes(state["replay"], *self._spaces)
            if episodes:
                self.algo.local_replay_buffer.add(episodes)

    def close(self) -> None:
        """Stop the algorithm and its environments; Ray stays up."""
        if self._algo is not None:
            self._algo.stop()
            with contextlib.suppress(OSError):  # RLlib's result folder; only an empty one goes
                Path(self._algo.logdir).rmdir()
            self._algo = None


def saved_policy(
    settings: PPOSettings | DQNSettings,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    state: State,
    seed: int,
) -> ModelFreePolicy:
    """The policy that `ModelFree.get_state` holds, without an environment and without Ray.

    Args:
        settings: those the baseline was built with.
        observation_space: as the baseline's.
        action_space: as the baseline's.
        state: of `get_state`.
        seed: of the random actions.
    """
    kind: Kind = state["kind"]
    config = ppo_config(settings) if isinstance(settings, PPOSettings) else dqn_config(settings, 0)
    spaces = {DEFAULT_MODULE_ID: (observation_space, action_space)}
    with torch.random.fork_rng(devices=[]):
        module = config.get_multi_rl_module_spec(spaces=spaces).build()[DEFAULT_MODULE_ID]
    if kind == "dqn":
        module.make_target_networks()
    module.load_state_dict(state["module"])
    epsilon = settings.epsilon_end if isinstance(settings, DQNSettings) else 0.0
    return ModelFreePolicy(kind, module, action_space, int(state["version"]), epsilon, seed)
