"""The opponents: stock RLlib algorithms on the real environment, nothing patched.

`ModelFree` builds an algorithm from its public configuration (`agents.baselines`), trains it by a
number of environment steps and hands out a policy for evaluation. It counts steps itself, in the
environments: RLlib's own lifetime counters are not right after a restore. State is tensors and
numbers only, a replay buffer included, which RLlib's checkpoints leave out.

What a resumed run does not repeat: RLlib's random generators and half-played episodes are not part
of the state, so a resumed baseline goes on with fresh episodes and does not equal an uninterrupted
one bit for bit. Priorities of a prioritised buffer start again at their largest value.
"""

import contextlib
import copy
import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis.target_network_api import TargetNetworkAPI
from ray.tune.registry import register_env

from agents.baselines import BASELINES, Baseline
from agents.heads import make_head
from agents.settings import Settings
from agents.state import State, adam_of, load_adam, pack_episodes, unpack_episodes, weights_of

_names = itertools.count()


class CountSteps(gym.Wrapper[Any, Any, Any, Any]):
    """Counts the calls of `step`; the sum over all environments is the budget that was used."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        """Step and count."""
        self.steps += 1
        return super().step(action)


def counted_from_zero(space: gym.Space[Any]) -> gym.Space[Any]:
    """The actions as RLlib draws them: it knows no choices that start elsewhere.

    Raises:
        ValueError: its algorithms cannot choose such actions.
    """
    one_axis = len(space.shape or ()) == 1
    if isinstance(space, gym.spaces.Discrete):
        return gym.spaces.Discrete(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete) and one_axis:
        return gym.spaces.MultiDiscrete(space.nvec)
    if isinstance(space, gym.spaces.Box) and one_axis and space.dtype.kind == "f":  # type: ignore[union-attr]
        return space
    raise ValueError(
        f"expected Discrete actions, or one axis of a MultiDiscrete or of a Box of floats, for "
        f"RLlib's algorithms, got {space}; use agent=dream, or an env.factory that flattens them"
    )


def _shifted(env: gym.Env[Any, Any], from_zero: gym.Space[Any]) -> gym.Env[Any, Any]:
    """The environment with choices that are counted from zero; itself if they are."""
    start = np.asarray(getattr(env.action_space, "start", 0))
    if not start.any():
        return env
    return gym.wrappers.TransformAction(env, lambda action: action + start, from_zero)


def _count(env_runner: Any) -> int:
    """Steps of all environments of an env runner since it was built."""
    total = 0
    for env in env_runner.env.unwrapped.envs:
        while not isinstance(env, CountSteps):  # `_build` wraps every environment in one
            env = env.env
        total += env.steps
    return total


class ModelFreePolicy:
    """Acts with a frozen copy of a baseline's network; `version` counts its training iterations."""

    def __init__(
        self,
        baseline: Baseline,
        settings: Settings,
        module: Any,
        action_space: gym.Space[Any],
        version: int,
        seed: int,
    ) -> None:
        self.version = version
        self._baseline, self._module = baseline, module
        self._random_share = baseline.random_share(settings) if baseline.random_share else None
        self._head = make_head(action_space)
        self._generator = torch.Generator().manual_seed(seed)

    def reset(self, num_envs: int) -> None:
        """Nothing is remembered between steps."""

    @torch.no_grad()
    def act(
        self, obs: NDArray[Any], is_first: NDArray[np.bool_], explore: bool = True
    ) -> NDArray[Any]:
        """Actions, (E,) int64 or (E, *shape) float32, for observations (E, *shape).

        With `explore` it samples from the policy, or acts at random now and then, as the algorithm
        does in training; without it, it takes the best action. `is_first` is ignored.
        """
        seen = torch.from_numpy(np.ascontiguousarray(obs))
        inputs = self._baseline.action_inputs(self._module, seen)
        action = self._head.mode(inputs)
        if explore:
            noise = self._head.noise((len(obs),), self._generator)
            if self._random_share is None:
                action = self._head.sample(inputs, noise)
            else:
                at_random = torch.rand(len(obs), generator=self._generator) < self._random_share
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
        kind: str,
        settings: Settings,
        env_creator: Callable[[], gym.Env[Any, Any]],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        seed: int,
        num_env_runners: int = 0,
    ) -> None:
        """Build the algorithm, in a process that is connected to Ray.

        Args:
            kind: a name in `BASELINES`.
            settings: of that kind.
            env_creator: makes one environment; travels to the env runners.
            observation_space: of that environment; a Box of shape (H, W, C) or (F,).
            action_space: of that environment, a Discrete, a MultiDiscrete or a Box.
            seed: for RLlib, which seeds its process-wide generators and environments with it.
            num_env_runners: 0 samples in this process.

        Raises:
            ValueError: the algorithm cannot choose such actions.
            RuntimeError: Ray is not running.
        """
        baseline = BASELINES[kind]
        if baseline.discrete_only and not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(
                f"expected a Discrete action space for {kind}, got {action_space}; use ppo"
            )
        from_zero = counted_from_zero(action_space)
        self.kind, self.settings, self.seed = kind, settings, seed
        self._baseline, self._action_space = baseline, action_space
        self._env_creator = env_creator
        self._spaces, self._num_env_runners = (observation_space, from_zero), num_env_runners
        self._algo: Algorithm | None = None
        self._build(steps_done=0, version=0)

    def _build(self, steps_done: int, version: int) -> None:
        self.close()
        if not ray.is_initialized():
            raise RuntimeError("expected Ray to run, got none (RLlib starts one); call ray.init()")
        for chatty in ("ray.rllib", "ray.tune"):  # notices about API stacks and slow set-up
            logging.getLogger(chatty).setLevel(logging.ERROR)
        config = self._baseline.config(self.settings, steps_done)
        name, creator, actions = f"reverie-{next(_names)}", self._env_creator, self._spaces[1]
        register_env(name, lambda _: CountSteps(_shifted(creator(), actions)))
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
            `episode_return` of training episodes that ended; RLlib's losses of the last iteration.
        """
        start, first_version = self.env_steps, self.version
        results: dict[str, Any] = {}
        while self.env_steps < start + env_steps:
            results = self.algo.train()
            self.version += 1
            group, local = self.algo.env_runner_group, self._num_env_runners == 0
            counts = group.foreach_env_runner(_count, local_env_runner=local)
            self.env_steps = self._steps_before + sum(counts)
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

    def policy(self) -> ModelFreePolicy:
        """A frozen copy of the newest network, for acting."""
        return ModelFreePolicy(
            self._baseline,
            self.settings,
            copy.deepcopy(self._module()),
            self._action_space,
            self.version,
            (self.seed + self.version) % 2**31,
        )

    def _learner(self) -> Any:
        return self.algo.learner_group._learner

    def _module(self) -> Any:
        return self._learner().module[DEFAULT_MODULE_ID].unwrapped()

    def get_state(self) -> State:
        """Everything needed to go on, as tensors and numbers: see the module's docstring."""
        state: State = {
            "kind": self.kind,
            "module": weights_of(self._module()),
            "adam": adam_of(self._learner()),
            "env_steps": self.env_steps,
            "version": self.version,
        }
        buffer = self.algo.local_replay_buffer
        return state if buffer is None else {**state, "replay": pack_episodes(buffer.episodes)}

    def set_state(self, state: State) -> None:
        """Go on from `get_state`.

        Raises:
            ValueError: the state is of another kind of baseline.
        """
        if state["kind"] != self.kind:
            raise ValueError(f"expected the state of a {self.kind} baseline, got {state['kind']}")
        self._build(int(state["env_steps"]), int(state["version"]))
        self._module().load_state_dict(state["module"])
        load_adam(self._learner(), state["adam"])
        self.algo.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.algo.learner_group, inference_only=True
        )
        episodes = unpack_episodes(state.get("replay", {}), *self._spaces)
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
    settings: Settings,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    state: State,
    seed: int,
) -> ModelFreePolicy:
    """The policy that `ModelFree.get_state` holds, without an environment and without Ray.

    Settings and spaces are those of the baseline; the seed is of the random actions.
    """
    baseline = BASELINES[state["kind"]]
    spec = baseline.config(settings, 0).get_multi_rl_module_spec(
        spaces={DEFAULT_MODULE_ID: (observation_space, counted_from_zero(action_space))}
    )
    with torch.random.fork_rng(devices=[]):
        module = spec.build()[DEFAULT_MODULE_ID]
    if isinstance(module, TargetNetworkAPI):
        module.make_target_networks()
    module.load_state_dict(state["module"])
    return ModelFreePolicy(baseline, settings, module, action_space, int(state["version"]), seed)
