"""Environments that are odd: legal ones that surprise, and ones that break a promise.

Each is one class or factory named for what is odd about it; `settings_of` makes the `EnvSettings`
of one. The observation is a picture of the step number unless the oddity is another.
"""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from envs import EnvSettings

SIDE = 8
FOREVER_S = 3600.0


class Picture(gym.Env[Any, Any]):
    """The sound one: 64 pixels count the steps, two actions, reward 1, an end after `length`."""

    def __init__(self, length: int | None = 6) -> None:
        self.observation_space: Any = spaces.Box(0, 1, (SIDE, SIDE, 1), np.uint8)
        self.action_space: Any = spaces.Discrete(2)
        self.length, self.t = length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.picture(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.picture(), 1.0, self.t == self.length, False, {}

    def picture(self) -> Any:
        lit = np.arange(SIDE * SIDE) < self.t % (SIDE * SIDE)
        return lit.astype(np.uint8).reshape(SIDE, SIDE, 1)


class Endless(Picture):
    """No episode ever ends."""

    def __init__(self) -> None:
        super().__init__(length=None)


class ResetWithoutSeed(Picture):
    def reset(self, *, options: Any = None) -> Any:  # type: ignore[override]
        return super().reset()


class ResetWithoutOptions(Picture):
    def reset(self, *, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class ResetOfOldGym(Picture):
    """`reset` returns the observation alone."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class ResetNeedsOptions(Picture):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if not options:
            raise ValueError("choose a level")
        return super().reset(seed=seed)


class ResetFailsTwice(Picture):
    """The first two resets of the process fail, then all is well."""

    failures = 2

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if ResetFailsTwice.failures:
            ResetFailsTwice.failures -= 1
            raise ConnectionError(f"the simulator is not up yet, {ResetFailsTwice.failures}")
        return super().reset(seed=seed)


class StepAlwaysFails(Picture):
    def step(self, action: Any) -> Any:
        raise ValueError("no such joint")


class NewActionSpaceAtReset(Picture):
    """`reset` puts an equal action space in place of the old one, as highway-env does."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.action_space = spaces.Discrete(2)
        return super().reset(seed=seed)


class OtherActionSpaceAtReset(Picture):
    """From the second episode on there is one action more."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        self.action_space = spaces.Discrete(2 if self.resets == 1 else 3)
        return super().reset(seed=seed)


class TextObservations(Picture):
    """Nothing here can be modelled."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(8)

    def picture(self) -> Any:
        return "hello"


class BareAssertion(Picture):
    """Its constructor fails without a word."""

    def __init__(self) -> None:
        super().__init__()
        assert self.length is None


class Slow(Picture):
    """Every step takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def step(self, action: Any) -> Any:
        time.sleep(self.seconds)
        return super().step(action)


class Hangs(Picture):
    """Step `at` of an episode does not return; with `once`, only the first time that file lacks."""

    def __init__(self, at: int, once: str | None = None) -> None:
        super().__init__()
        self.at, self.once = at, once

    def step(self, action: Any) -> Any:
        if self.t == self.at and self._first_time():
            time.sleep(FOREVER_S)
        return super().step(action)

    def _first_time(self) -> bool:
        if self.once is None:
            return True
        try:
            with open(self.once, "x"):
                return True
        except FileExistsError:
            return False


class DiesAt(Hangs):
    """Step `at` takes its process down."""

    def step(self, action: Any) -> Any:
        if self.t == self.at and self._first_time():
            os._exit(3)
        return Picture.step(self, action)


class DiesAtBirth(Picture):
    """Its constructor takes the process down."""

    def __init__(self) -> None:
        os._exit(3)


class Leaves(Picture):
    """A step asks Python to end, and says that all is well."""

    def step(self, action: Any) -> Any:
        raise SystemExit(0)


class OutOfBounds(Picture):
    """Measurements beyond the bounds that are declared."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def picture(self) -> Any:
        return np.array([self.t, -self.t], np.float32)


def limited(limit: int) -> gym.Env[Any, Any]:
    """Never ends by itself, but the factory cuts it."""
    return TimeLimit(Endless(), limit)


def vector_only(num_envs: int, **_: Any) -> Any:
    """A vector of its own making."""
    return gym.vector.SyncVectorEnv([Picture] * num_envs)


VECTOR_ONLY = "reverie-tests/VectorOnly-v0"
gym.register(VECTOR_ONLY, vector_entry_point="odd_envs:vector_only")


def settings_of(factory: Any, max_episode_steps: int | None = None, **kwargs: Any) -> EnvSettings:
    """Settings that make one of this module's environments."""
    name = f"{__name__}.{factory.__name__}"
    return EnvSettings(factory=name, kwargs=kwargs, max_episode_steps=max_episode_steps)
