"""Environments whose actions are odd but legal; they remember what they were given."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NESTED = spaces.Dict(
    gear=spaces.Discrete(3, start=-1),
    arm=spaces.Dict(
        keys=spaces.MultiBinary(2),
        force=spaces.Box(-2, 2, (2, 2), np.float64),
        notch=spaces.Box(-3, 250, (), np.int16),
    ),
    legs=spaces.Tuple([spaces.MultiDiscrete([2, 4]), spaces.Box(0, 1, (1,), np.float16)]),
)

SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "from -1": spaces.Discrete(3, start=-1),
    "from 5": spaces.Discrete(2, start=5),
    "one action": spaces.Discrete(1),
    "multi discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi discrete (2, 2)": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, -1], [0, 7]]),
    "multi binary": spaces.MultiBinary(3),
    "multi binary (2, 2)": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-2, 2, (2,)),
    "box float64": spaces.Box(-0.1, 0.1, (2,), np.float64),
    "box float16": spaces.Box(-0.1, 0.1, (2,), np.float16),
    "box 0-d": spaces.Box(-1, 1, ()),
    "box (2, 2)": spaces.Box(-1, 1, (2, 2)),
    "box of integers": spaces.Box(-1, 2, (2,), np.int8),
    "box of bytes": spaces.Box(0, 255, (2, 1), np.uint8),
    "box of bools": spaces.Box(0, 1, (2,), np.bool_),
    "no bounds": spaces.Box(-np.inf, np.inf, (2,)),
    "no upper bound": spaces.Box(5.0, np.inf, (1,)),
    "1e30": spaces.Box(-1e30, 1e30, (2,)),
    "3e38": spaces.Box(np.float32(-3e38), np.float32(3e38), (2,)),
    "integers without bounds": spaces.Box(-np.inf, np.inf, (2,), np.int32),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,))]),
    "nested": NESTED,
}

given: list[Any] = []
"""Copies of all actions that environments of this module were given, in order."""


class OddActions(gym.Env[Any, Any]):
    """Episodes of five steps of tiny images; a step pays what its action's numbers add up to."""

    def __init__(self, actions: str) -> None:
        self.observation_space = spaces.Box(0, 255, (8, 8, 1), np.uint8)
        self.action_space = SPACES[actions]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        given.append(copy.deepcopy(action))
        self.t += 1
        return self._seen(), float(np.clip(total(action), -9, 9)), self.t == 5, False, {}

    def _seen(self) -> np.ndarray[Any, Any]:
        return np.full((8, 8, 1), 40 * self.t, np.uint8)


class Replacing(OddActions):
    """Replaces its action space in every `reset`, as highway-env does."""

    def __init__(self, after: str = "from -1") -> None:
        super().__init__("discrete")
        self.after, self.resets = after, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.resets += 1
        grows = self.after == "grows"
        self.action_space = (
            spaces.Discrete(1 + self.resets) if grows else copy.copy(SPACES[self.after])
        )
        self.action_space.seed(None)
        return super().reset(seed=seed)


def total(action: Any) -> float:
    """All numbers of an action added up."""
    if isinstance(action, dict):
        return sum(map(total, action.values()))
    if isinstance(action, tuple):
        return sum(map(total, action))
    return float(np.sum(action))
