"""VectorEnv: E environments stepped together, each with its own seeds and its own accidents.

In: settings and actions. Out: arrays of one row per environment. It exists because gymnasium's
vectors reset by themselves with seeds of their own, and die whole when one environment dies. Here
the caller starts every episode with a seed it chose, and a crashed environment is closed, made anew
and reported. It refuses to know who acts, and what an episode is used for.

Crashes (any exception from the environment) and broken promises (a NaN reward, an observation of
another shape) are different: the first can be bad luck and is survived, the second would poison the
data and stops the run; `envs.promises` says which. A new environment that fails with the same words
as the two before it, each before its first step, is no bad luck either.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.actions import ActionPart, parts_of, stored_type, to_step
from envs.errors import EnvError, told
from envs.make import assumed, make_env
from envs.process import ProcessEnv
from envs.promises import Promise
from envs.settings import EnvSettings
from envs.spaces import columns_of_space, values_of

logger = logging.getLogger(__name__)

HOPELESS = 3
"""Environments of one slot that fail with the same words before their first step: then it ends."""

LARGEST = float(np.finfo(np.float32).max)
"""Rewards are stored as float32; this bound refuses NaN and infinity too."""


Obs = NDArray[Any] | dict[str, NDArray[Any]]
"""Observations of E environments: one array (E, *shape), or one for each column `obs.<key>` where
the space is a Dict or a Tuple."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStep:
    """What one step of all environments gave. The arrays are new each step and safe to keep.

    Attributes:
        obs: `Obs`, where the actions led; the final observation if the episode ended, the
            observation before the step if the environment crashed.
        rewards: (E,) float32, raw; 0 where it crashed.
        terminateds: (E,) bool, the MDP ended.
        truncateds: (E,) bool, the episode was cut from outside.
        life_loss: (E,) bool, this step cost a life (`info["life_loss"]`, False if not given).
        crashed: (E,) bool, the environment raised and was made anew; the step did not happen.
    """

    obs: Obs
    rewards: NDArray[np.float32]
    terminateds: NDArray[np.bool_]
    truncateds: NDArray[np.bool_]
    life_loss: NDArray[np.bool_]
    crashed: NDArray[np.bool_]


class VectorEnv:
    """E single environments, in this process or each in one of its own, without autoreset.

    Every slot must be `reset` before its first step, and again after it ended or crashed.

    Attributes:
        num_envs: E.
        single_observation_space: of one environment.
        single_action_space: of one environment; after the first reset, which may have replaced it.
        assumed: what is assumed of the actions, in one sentence, or "".
        restarts: environments made anew after a crash, since the start.
        columns: the current observations by column, `obs` alone unless the space is a Dict or a
            Tuple; never changed afterwards, so safe to keep.
        ram: (E, R) console memory (`info["ram"]`) in line with `obs` and as safe to keep. Labels
            for measuring only; None without the setting `ram`, and before the first reset.
    """

    def __init__(
        self,
        settings: EnvSettings,
        num_envs: int,
        *,
        max_restarts: int = 10,
        apart: bool = False,
    ) -> None:
        """Make the environments; nothing is reset yet.

        Args:
            settings: the same for all of them.
            num_envs: E, >= 1.
            max_restarts: crashes survived in a row, that is without any episode ending properly
                in between.
            apart: give each environment a process, so that they step side by side, and one
                that hangs (`settings.step_timeout_s`) or takes its process down is just a crash.

        Raises:
            EnvError: an environment cannot be made, or its spaces cannot be put in one array.
        """
        self._settings, self._apart = settings, apart
        self._envs = [self._ready(self._make())]
        obs_space = self._envs[0].observation_space
        try:
            leaves = columns_of_space(obs_space)
        except EnvError as error:
            self._refuse(error)
        self._settled = False
        self._take_action_space(0)
        self._envs += [self._make() for _ in range(num_envs - 1)]
        for env in self._envs:
            self._ready(env)
        self.num_envs = num_envs
        self.single_observation_space: gym.Space[Any] = obs_space
        self.restarts = 0
        self._max_restarts = max_restarts
        self._crashes_in_a_row = 0
        self._stillborn: list[list[str]] = [[] for _ in range(num_envs)]
        self._promises = [Promise(column, leaf) for column, leaf in leaves.items()]
        self._in_parts = list(leaves) != ["obs"]
        self.columns: dict[str, NDArray[Any]] = {
            one.column: np.zeros((num_envs, *one.shape), one.dtype) for one in self._promises
        }
        self.ram: NDArray[np.uint8] | None = None  # its width is known after the first reset
        self._running, self._seeds = [False] * num_envs, [0] * num_envs
        self._clock = 0  # steps of the whole vector
        self._started = [0] * num_envs  # the clock when each slot's episode began

    @property
    def obs(self) -> Obs:
        """What every environment shows now; safe to keep."""
        return self.columns if self._in_parts else self.columns["obs"]

    def reset(self, index: int, seed: int) -> None:
        """Start a new episode in slot `index`, with a seed in [0, 2**31).

        Raises:
            EnvError: the environment keeps crashing, or the observation is not as promised.
        """
        self._seeds[index] = seed
        self._started[index] = self._clock
        while True:
            try:
                result: Any = self._envs[index].reset(seed=seed)
                break
            except Exception as error:
                self._remake(index, error)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise EnvError(
                f"{self._where(index)}: expected (obs, dict) from reset(), got {result!r:.200}"
            )
        self._place(index, *result)
        self._take_action_space(index)
        self._settled = True
        self._running[index] = True

    def step(self, actions: NDArray[Any]) -> VectorStep:
        """Take one step in every slot.

        Actions are (E, ...) as `envs.actions` describes them: (E,) integers for a Discrete space,
        (E, A) floats for a Box. They are copied, not clipped.

        Raises:
            EnvError: a slot was not reset, an environment keeps crashing, or it broke its promise
                (reward not finite, observation of another shape or dtype).
            ValueError: the actions have the wrong shape, are not among the choices, or are not
                whole where the environment takes whole numbers.
        """
        if not all(self._running):
            self._refuse_unreset()
        choices = to_step(self.single_action_space, self._parts, actions, self.num_envs)
        n, ram = self.num_envs, None if self.ram is None else self.ram.copy()
        columns = {name: np.empty_like(before) for name, before in self.columns.items()}
        step = VectorStep(
            obs=columns if self._in_parts else columns["obs"],
            rewards=np.zeros(n, np.float32),
            terminateds=np.zeros(n, bool),
            truncateds=np.zeros(n, bool),
            life_loss=np.zeros(n, bool),
            crashed=np.zeros(n, bool),
        )
        for env, choice in zip(self._envs, choices, strict=True):
            if isinstance(env, ProcessEnv):
                env.begin_step(choice)
        for i, env in enumerate(self._envs):
            try:
                result: Any = (
                    env.finish_step() if isinstance(env, ProcessEnv) else env.step(choices[i])
                )
            except Exception as error:
                self._remake(i, error)
                for name, before in self.columns.items():
                    columns[name][i] = before[i]
                step.crashed[i] = True
            else:
                info = self._take(i, result, step, columns)
                if ram is not None:
                    ram[i] = self._checked_ram(i, info)
        for one in self._promises:
            one.watch(columns[one.column], self._where)
        self._clock += 1
        self.columns, self.ram = columns, ram
        return step

    def _take(
        self, i: int, result: Any, step: VectorStep, columns: dict[str, NDArray[Any]]
    ) -> dict[str, Any]:
        """Write what one environment's step gave into row `i`; its info."""
        try:
            seen, reward, terminated, truncated, info = result
            if not -LARGEST < reward < LARGEST:
                raise EnvError(
                    f"{self._where(i)}: expected a finite float32 reward, got {reward}; mend the "
                    f"environment, or decide in an env.factory what such a reward means"
                )
            step.rewards[i] = reward
            if terminated or truncated:
                step.terminateds[i] = terminated
                step.truncateds[i] = truncated
                self._running[i] = False
                self._crashes_in_a_row = 0
            if info.get("life_loss", False):
                step.life_loss[i] = True
        except (TypeError, ValueError, AttributeError) as error:
            raise EnvError(
                f"{self._where(i)}: expected (obs, number, bool, bool, dict) from step(), "
                f"got {result!r:.200}"
            ) from error
        self._write(i, seen, columns)
        if self._stillborn[i]:
            self._stillborn[i] = []
        return info

    def replay(self, index: int, actions: Iterable[Any]) -> bool:
        """Take recorded actions in one slot, just reset with the recorded seed.

        That is how a stopped run finds its open episodes again. Actions are rows as in `step`.

        Returns:
            True if the episode is still open after all of them. False if it ended or crashed on the
            way: the environment does not repeat itself, and the slot must be reset.

        Raises:
            EnvError: the slot was not reset, or the environment keeps crashing.
        """
        if not self._running[index]:
            self._refuse_unreset()
        space, last = self.single_action_space, None
        shape, dtype = stored_type(space)
        recorded = list(actions)
        rows = np.array(recorded, dtype).reshape(len(recorded), *shape)
        for choice in to_step(space, self._parts, rows, len(rows)):
            try:
                obs, _, terminated, truncated, info = self._envs[index].step(choice)
            except Exception as error:
                self._remake(index, error)
                return False
            last = obs, info
            if terminated or truncated:
                self._running[index] = False
                return False
        if last is not None:
            self._place(index, *last)
        return True

    def close(self) -> None:
        """Close every environment; the vector cannot be used afterwards."""
        for env in self._envs:
            env.close()  # type: ignore[no-untyped-call]
        self._envs = []
        self._running = [False] * self.num_envs

    def _take_action_space(self, index: int) -> None:
        """Take over slot `index`'s action space, which a first reset may replace, but no later one.

        Raises:
            EnvError: it has parts that nobody can choose, or it changed.
        """
        space = self._envs[index].action_space
        if self._settled and space != self.single_action_space:
            raise EnvError(
                f"{self._where(index)}: expected the actions {self.single_action_space} in every "
                f"episode, got {space}; one policy cannot choose among actions that change"
            )
        if not self._settled:
            try:
                self._parts: tuple[ActionPart, ...] = parts_of(space)
            except EnvError as error:
                self._refuse(error)
            self.single_action_space: gym.Space[Any] = space
            self.assumed = assumed(self._envs[index])

    def _remake(self, index: int, error: Exception) -> None:
        """Replace a crashed environment, or give up after too many crashes in a row."""
        where, said = self._where(index), told(error)
        call = "step()" if self._running[index] else "reset()"
        began = self._running[index] and self._clock > self._started[index]
        self._running[index] = False
        self.restarts += 1
        self._crashes_in_a_row += 1
        if self._crashes_in_a_row > self._max_restarts:
            raise EnvError(
                f"{where} crashed after {self._max_restarts} restarts in a row: "
                f"{said}; mend the environment, or raise max_restarts"
            ) from error
        self._stillborn[index] = [] if began else [*self._stillborn[index], said][-HOPELESS:]
        if self._stillborn[index] == [said] * HOPELESS:
            raise EnvError(
                f"{where}: {HOPELESS} environments made one after the other failed in their first "
                f"{call}, always with {said}; mend the environment, or give it what it needs with "
                "env.kwargs or an env.factory"
            ) from error
        logger.warning(
            "%s crashed and is made anew (%d so far)", where, self.restarts, exc_info=error
        )
        try:
            self._envs[index].close()  # type: ignore[no-untyped-call]
        except Exception:
            logger.warning("%s could not be closed after its crash", where, exc_info=True)
        self._envs[index] = self._ready(self._make())

    def _make(self) -> gym.Env[Any, Any]:
        """One more environment, which may not be ready yet."""
        return ProcessEnv(self._settings) if self._apart else make_env(self._settings)

    def _ready(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        if isinstance(env, ProcessEnv):
            env.wait_until_ready()
        return env

    def _where(self, index: int) -> str:
        """Names one slot and how to see its trouble again."""
        return (
            f"environment {index} ({self._settings.name}, episode seed {self._seeds[index]}, "
            f"step {self._clock - self._started[index]})"
        )

    def _place(self, index: int, obs: Any, info: dict[str, Any]) -> None:
        """Show what one slot gave, without changing what was given out before."""
        columns = {name: before.copy() for name, before in self.columns.items()}
        self._write(index, obs, columns)
        for one in self._promises:
            one.watch(columns[one.column][index : index + 1], lambda _: self._where(index))
        self.columns = columns
        if self._settings.ram:
            got = self._checked_ram(index, info)
            shape = (self.num_envs, len(got))
            self.ram = np.zeros(shape, np.uint8) if self.ram is None else self.ram.copy()
            self.ram[index] = got

    def _checked_ram(self, index: int, info: dict[str, Any]) -> NDArray[np.uint8]:
        """This slot's `info["ram"]`, refused unless it is the bytes that the setting asks for."""
        got = info.get("ram")
        if (
            isinstance(got, np.ndarray)
            and (got.dtype, got.ndim) == (np.uint8, 1)
            and (self.ram is None or got.shape == self.ram.shape[1:])
        ):
            return got
        width = "R" if self.ram is None else self.ram.shape[1]
        raise EnvError(
            f'{self._where(index)}: expected info["ram"], ({width},) uint8, as env.ram asks for, '
            f"got {type(got).__name__} {got!r:.80}; set env.ram to false, or mend the environment"
        )

    def _write(self, index: int, obs: Any, columns: dict[str, NDArray[Any]]) -> None:
        """Copy an observation into row `index`; refuse what is not what the space promises."""
        try:
            if not self._in_parts:  # this runs for every slot and step
                columns["obs"][index] = self._promises[0].checked(obs)
                return
            values = values_of(self.single_observation_space, obs)
            for one, value in zip(self._promises, values, strict=True):
                columns[one.column][index] = one.checked(value)
        except (TypeError, ValueError) as error:
            raise EnvError(f"{self._where(index)}: {error}") from error

    def _refuse(self, error: EnvError) -> NoReturn:
        """Refuse a space."""
        self._envs[0].close()  # type: ignore[no-untyped-call]
        raise EnvError(f"{self._settings.name}: {error}") from error

    def _refuse_unreset(self) -> NoReturn:
        waiting = [i for i, running in enumerate(self._running) if not running]
        raise EnvError(f"expected reset(index, seed) before step() for slots {waiting}, got none")
