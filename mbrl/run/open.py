"""A run folder opened from Python: its settings and numbers, its agent, its replay and its dreams.

A run at work can be opened too. Nothing is written, save that broken replay files are moved aside.
Everything computes on the CPU.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from agents.model_free import saved_policy
from envs import make_env
from envs.actions import parts_of, stored_type, to_step
from envs.spaces import values_of
from mbrl.acting import ActingPolicy, RandomPolicy
from mbrl.actors import SnapshotPolicy
from mbrl.collect import spaces_of
from mbrl.config.changes import revive
from mbrl.config.schema import WITH_WORLD_MODEL, Config
from mbrl.config.yaml import parse_value
from mbrl.episode import Obs
from mbrl.errors import MbrlError
from mbrl.flat_observations import FlatObservations, FlatPolicy
from mbrl.imagine import DreamEnv, DreamVectorEnv
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.run import checkpoint
from mbrl.run.metrics import read_metrics
from mbrl.run.record import read_result
from mbrl.seeding import seed as stream
from mbrl.streams import obs_of, streams_of, types_of
from mbrl.world_model.layouts import make_world_model

_SEARCHED = 16  # times as many rows are read as dreams begin at, of a replay that may be large


class OpenRun:
    """What a run folder holds, of a finished run or not.

    Attributes:
        dir: the folder.
        config: the resolved settings.
    """

    def __init__(self, path: Path | str) -> None:
        """Read its settings.

        Raises:
            MbrlError: it is no run folder.
            ConfigError: it was made with settings that this version no longer has.
        """
        self.dir = Path(path)
        settings = self.dir / "config.yaml"
        if not settings.is_file():
            raise MbrlError(
                f"{self.dir}: expected a run folder, with config.yaml in it, found none; "
                "`mbrl train` makes one, by default runs/<name of the config>"
            )
        self.config = revive(parse_value(settings.read_text(encoding="utf-8")), Config)

    def result(self) -> dict[str, Any]:
        """What `result.json` holds.

        Raises:
            MbrlError: the run is unfinished.
        """
        return read_result(self.dir / "result.json")

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, or those of one kind, such as "train" or "eval"."""
        return read_metrics(self.dir, kind)

    def replay(self) -> ReplayStore:
        """The real experience a dream run has collected.

        Raises:
            MbrlError: a baseline keeps none, or the run has not collected yet.
        """
        if not (self.dir / "replay" / "data").is_dir():
            raise MbrlError(
                f"{self.dir}: expected collected experience in replay/data, found none; "
                f"only {' and '.join(WITH_WORLD_MODEL)} store it, and this run has "
                f"agent={self.config.agent}"
            )
        return ReplayStore(self.dir / "replay")

    def env(self) -> gym.Env[Any, Any]:
        """One real environment, made as the run makes it."""
        return make_env(self.config.env)

    def agent(self, seed: int = 0) -> "Agent":
        """The agent of the newest checkpoint.

        Args:
            seed: of its random stream: codes are samples, and so are actions that explore.

        Raises:
            CheckpointError: there is no checkpoint yet, or it is damaged.
        """
        config, own = self.config, stream(seed, "act")
        observation_space, action_space = self._spaces()
        policy: ActingPolicy
        if config.agent == "random":
            policy = RandomPolicy(action_space, own)
        elif config.agent in WITH_WORLD_MODEL:
            state = self._state()
            weights = {
                "policy": state["policy"]["module"],
                "version": state["policy"]["version"],
                "world_model": state["learner"]["model"],
            }
            policy = SnapshotPolicy(config, observation_space, action_space, own).load(weights)
        else:
            settings, saved = getattr(config, config.agent), self._state()["agent"]
            flat = FlatObservations.where_needed(observation_space)
            shown = observation_space if flat is None else flat.space
            policy = saved_policy(settings, shown, action_space, saved, own)
            policy = policy if flat is None else FlatPolicy(policy, flat)
        return Agent(policy, observation_space, action_space)

    def dream_env(
        self,
        num_envs: int = 8,
        horizon: int = 15,
        seed: int = 0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> DreamVectorEnv:
        """The world model of the newest checkpoint as an environment, without pixels.

        Dreams begin at the latents of real rows, as many as an update of the world model replays,
        drawn from segments of replay that are drawn at random; terminal rows are left out.

        Args:
            num_envs: N, dreams side by side.
            horizon: steps after which a dream is truncated.
            seed: of the starts and of the dreams.
            autoreset_mode: what follows the end of a dream, as in gymnasium.

        Returns:
            An environment whose observations are the features (N, F) that the policy sees.
            `gymnasium.make_vec("reverie/Dream-v0", num_envs=N, run=folder)` gives the same.

        Raises:
            MbrlError: the run has no world model, no replay or no checkpoint yet.
        """
        if self.config.agent not in WITH_WORLD_MODEL:
            raise MbrlError(
                f"{self.dir}: expected a run with a world model to dream in, which agent=dream "
                f"has, got agent={self.config.agent}"
            )
        observation_space, action_space = self._spaces()
        model = make_world_model(observation_space, action_space, self.config.world_model).eval()
        model.load_state_dict(self._state()["learner"]["model"])
        generator = torch.Generator().manual_seed(stream(seed, "dream"))
        rng = np.random.default_rng(stream(seed, "replay"))
        store, learn = self.replay(), self.config.learn_model
        segments, picked, rows = store.segments(), list[int](), 0
        for index in rng.permutation(len(segments)):
            if rows < _SEARCHED * learn.batch_size * learn.sequence_length:
                picked.append(index)
                rows += segments[index].rows
        action_shape, action_dtype = stored_type(action_space)
        with SequenceSampler(
            capacity_steps=max(1, rows),
            obs=types_of(observation_space),
            action_shape=action_shape,
            action_dtype=action_dtype,
        ) as sampler:
            sampler.refresh(store, [segments[index].name for index in sorted(picked)])
            batch = sampler.sample(learn.batch_size, learn.sequence_length, rng)
        alive = torch.as_tensor(~batch.terminated).flatten()
        before = model.initial(learn.batch_size, torch.device("cpu"))
        observed = model.observe(before, *model.inputs(batch), generator)
        starts = observed.latent.flatten()[alive]
        dream = DreamEnv(model, action_space, starts, num_envs, generator)
        return DreamVectorEnv(dream, horizon, autoreset_mode)

    def world_model_weights(self) -> dict[str, torch.Tensor]:
        """Weights of the newest checkpoint's world model, on the CPU, by their names.

        Raises:
            MbrlError: the run has no world model, or no checkpoint yet.
        """
        if self.config.agent not in WITH_WORLD_MODEL:
            raise MbrlError(
                f"{self.dir}: expected a run with a world model (agent=dream), got "
                f"agent={self.config.agent}"
            )
        weights: dict[str, torch.Tensor] = self._state()["learner"]["model"]
        return weights

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return spaces_of(self.config.env, self.config.collect.apart)

    def _state(self) -> dict[str, Any]:
        return checkpoint.load(self.dir / "checkpoints")[1]


open_run = OpenRun
"""`mbrl.open_run(path)` opens a run folder."""


class Agent:
    """Acts on raw observations, and remembers what it has seen of each episode.

    Attributes:
        policy: who chooses, such as `mbrl.evaluate.evaluate` takes.
        observation_space: of one environment, as is `action_space`.
    """

    def __init__(
        self,
        policy: ActingPolicy,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.policy, self._slots = policy, 0

    def act(self, obs: Any, is_first: ArrayLike | None = None, *, explore: bool = False) -> Any:
        """Choose an action for one environment, or for E of them at once.

        Args:
            obs: one observation as the environment gives it, or E of them stacked: (E, *shape),
                of a Dict or a Tuple each part.
            is_first: whether it is an episode's first: a bool, or (E,). Left out, the first call
                begins episodes and every later one goes on.
            explore: sample the action, as in training, instead of taking the best.

        Returns:
            For one observation what the environment's `step` takes; else E actions as replay holds
            them: (E,) int64 of a Discrete, (E, A) float32 of a Box, (E,) with fields of a Dict.

        Raises:
            ValueError: another shape or dtype, or another E in the middle of episodes.
        """
        batch, slots, single = self._batch(obs)
        actions = self.policy.act(batch, self._first(is_first, slots), explore)
        if not single:
            return actions
        return to_step(self.action_space, parts_of(self.action_space), actions, 1)[0]

    def _batch(self, obs: Any) -> tuple[Obs, int, bool]:
        """Observations of E slots, E, and whether it was a single one."""
        try:
            values = values_of(self.observation_space, obs)
        except TypeError as error:
            raise ValueError(f"obs: {error}") from error
        columns: dict[str, NDArray[Any]] = {}
        single = False
        for one, value in zip(streams_of(self.observation_space), values, strict=True):
            array = np.asarray(value)
            if one.kind == "categories" and array.dtype.kind in "iub":
                array = array.astype(one.dtype)
            single = array.shape == one.shape
            columns[one.column] = array = array[None] if single else array
            if array.shape[1:] != one.shape or array.dtype != one.dtype:
                raise ValueError(
                    f"{one.column}: expected {one.shape} or (E, *{one.shape}) of "
                    f"{one.dtype}, got {np.shape(value)} of {array.dtype}"
                )
        sizes = {len(column) for column in columns.values()}
        if len(sizes) > 1:
            raise ValueError(f"obs: expected parts of one number of slots, got {sorted(sizes)}")
        return obs_of(columns), sizes.pop(), single

    def reset(self) -> None:
        """Forget all episodes: the next call of `act` begins new ones."""
        self._slots = 0

    def _first(self, is_first: ArrayLike | None, slots: int) -> NDArray[np.bool_]:
        """(E,) bool; all true at the first call, which also prepares the memory."""
        given = np.asarray(False if is_first is None else is_first, np.bool_)
        first = np.broadcast_to(given, slots).copy()
        if slots != self._slots:
            if self._slots and not first.all():
                raise ValueError(
                    f"obs: expected {self._slots} observations, as before, got {slots}; begin new "
                    "episodes with is_first=True, or call reset()"
                )
            self.policy.reset(slots)
            self._slots, first = slots, np.ones(slots, np.bool_)
        return first
