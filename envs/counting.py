"""The oracle: an environment whose every value follows from the step number.

In: actions. Out: observations that spell, in binary pixels, the step number t, the action that led
there and the length of the episode; reward `float(t)` on arriving at step t; an end at a step that
depends on the seed alone. Alignment tests compute what they expect from t, not from a second
implementation of replay. It refuses to be a game: nothing can be won here.

The picture is uint8 (8, 8, 1) of 0 and 1, most significant bit first:

    rows 0-1   t, 16 bits
    rows 2-3   the action that led here (0 after a reset), 16 bits
    rows 4-5   the length of this episode: the t at which it ends, 16 bits
    rows 6-7   zero

With `ram`, `info["ram"]` is three bytes: t (two bytes, high first) and the action.

It can also misbehave on purpose, for fault tests: raise, or give a NaN reward, at a chosen step.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.family import Family, Reset, Step, make_plain

SIZE = 8
_BITS = 16
_T, _ACTION, _LENGTH = 0, 1, 2  # which pair of rows holds what


def length_for(seed: int, min_length: int = 5, max_length: int = 20) -> int:
    """Steps in the episode that `reset(seed)` starts: `min + seed mod (max - min + 1)`."""
    return min_length + seed % (max_length - min_length + 1)


def read_step(obs: NDArray[np.generic]) -> int:
    """The step number t that a picture (8, 8, 1) spells; 0 after a reset."""
    return _read(obs, _T)


def read_action(obs: NDArray[np.generic]) -> int:
    """The action that led to a picture (8, 8, 1); 0 after a reset."""
    return _read(obs, _ACTION)


def read_length(obs: NDArray[np.generic]) -> int:
    """The t at which the episode of a picture (8, 8, 1) ends."""
    return _read(obs, _LENGTH)


class CountingEnv(gym.Env[NDArray[np.uint8], int]):
    """See the module's docstring. Without a seed, each episode uses the last seed plus one."""

    def __init__(
        self,
        *,
        min_length: int = 5,
        max_length: int = 20,
        num_actions: int = 4,
        truncate: bool = False,
        life_loss_every: int = 0,
        crash_at: int | None = None,
        nan_at: int | None = None,
        ram: bool = False,
    ) -> None:
        """Make the oracle; lengths out of order are a ValueError.

        Args:
            min_length: shortest episode, steps, >= 1.
            max_length: longest episode, steps, < 65,536.
            num_actions: size of the action space.
            truncate: episodes end by truncation instead of termination.
            life_loss_every: `info["life_loss"]` is True on arriving at every multiple of this
                step; 0 for never.
            crash_at: raise RuntimeError instead of arriving at this step; 0 raises in `reset`.
            nan_at: the reward on arriving at this step is NaN.
            ram: give `info["ram"]`.
        """
        if not 1 <= min_length <= max_length < 1 << _BITS:
            raise ValueError(
                f"expected 1 <= min_length <= max_length < {1 << _BITS}, "
                f"got min_length={min_length}, max_length={max_length}"
            )
        self.observation_space = gym.spaces.Box(0, 1, (SIZE, SIZE, 1), np.uint8)
        self.action_space = gym.spaces.Discrete(num_actions)
        self._lengths, self._truncate = (min_length, max_length), truncate
        self._life_loss_every, self._gives_ram = life_loss_every, ram
        self._crash_at, self._nan_at = crash_at, nan_at
        self._seed, self._t, self._length = -1, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start the episode of this seed at t = 0."""
        super().reset(seed=seed, options=options)
        self._seed = self._seed + 1 if seed is None else seed
        self._length = length_for(self._seed, *self._lengths)
        self._t = 0
        if self._crash_at == 0:
            raise RuntimeError("the counting environment crashes in reset, as crash_at says")
        return self._picture(action=0), self._memory(action=0)

    def step(self, action: int) -> Step:
        """Arrive at t + 1."""
        if self._t >= self._length:
            raise RuntimeError("expected reset() after the end of an episode, got step()")
        self._t += 1
        if self._t == self._crash_at:
            raise RuntimeError(
                f"the counting environment crashes at step {self._t}, as crash_at says"
            )
        reward = float("nan") if self._t == self._nan_at else float(self._t)
        end = self._t == self._length
        every = self._life_loss_every
        info = {"life_loss": every > 0 and self._t % every == 0, **self._memory(int(action))}
        terminated, truncated = end and not self._truncate, end and self._truncate
        return self._picture(int(action)), reward, terminated, truncated, info

    def _memory(self, action: int) -> dict[str, Any]:
        """The step and the action as three bytes, if asked for."""
        if not self._gives_ram:
            return {}
        return {"ram": np.array([self._t >> 8, self._t & 255, action], np.uint8)}

    def _picture(self, action: int) -> NDArray[np.uint8]:
        """Spell t, the action and the length in pixels."""
        words = np.zeros(SIZE * SIZE // _BITS, dtype=">u2")
        words[_T], words[_ACTION], words[_LENGTH] = self._t, action, self._length
        return np.unpackbits(words.view(np.uint8)).reshape(SIZE, SIZE, 1)


def _read(obs: NDArray[np.generic], word: int) -> int:
    """The 16-bit number in one pair of rows."""
    if obs.shape != (SIZE, SIZE, 1):
        raise ValueError(f"expected one picture of shape ({SIZE}, {SIZE}, 1), got {obs.shape}")
    return int(np.packbits(obs.astype(np.uint8)).view(">u2")[word])


gym.register("reverie/Counting-v0", entry_point="envs.counting:CountingEnv")
FAMILY = Family(make=make_plain, defaults={"max_episode_steps": None, "ram": False})
