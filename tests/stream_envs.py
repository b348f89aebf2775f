"""Environments whose observations are drawn from any space, and remembered as they were shown."""

import copy
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

NESTED = Dict(
    place=Box(-np.inf, np.inf, (3,), np.float64),
    hand=Dict(grip=Discrete(3, start=-1), touch=MultiBinary((2, 2))),
    pair=Tuple([Box(0, 9, (), np.int32), MultiDiscrete([2, 3], start=[5, -5])]),
)
SPACES: dict[str, gym.Space[Any]] = {
    "vector": Box(-1, 1, (4,), np.float32),
    "infinite": Box(np.array([-np.inf, 0.0]), np.array([np.inf, np.inf]), dtype=np.float64),
    "half": Box(-2, 2, (2,), np.float16),
    "number": Box(-1, 1, (), np.float32),
    "matrix": Box(-5, 5, (2, 3), np.float32),
    "cube": Box(-1, 1, (2, 2, 2, 2, 2), np.float32),
    "whole": Box(np.array([0, -7]), np.array([2**40, 7]), dtype=np.int64),
    "unsigned": Box(0, 2**40, (2,), np.uint64),
    "flags": Box(0, 1, (3,), np.bool_),
    "bytes": Box(0, 255, (5,), np.uint8),
    "discrete": Discrete(4),
    "from minus one": Discrete(3, start=-1),
    "single": Discrete(1, start=7),
    "small type": Discrete(5, dtype=np.int32),
    "choices": MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, -3]]),
    "bits": MultiBinary(5),
    "planes of bits": MultiBinary((2, 3)),
    "nothing": Dict(a=Box(0, 1, (0,), np.float32), b=Discrete(2)),
    "dict": Dict(a=Box(-1, 1, (2,), np.float32), b=Discrete(3)),
    "tuple": Tuple([Discrete(2), Box(0, 1, (2,), np.float64)]),
    "nested": NESTED,
    "image": Box(0, 255, (5, 6, 3), np.uint8),
    "levels": Box(5, 15, (4, 4, 2), np.int32),
    "floats": Box(0, 1, (9, 8, 1), np.float32),
}


class Sampled(gym.Env[Any, int]):
    """Episodes of 3 to 6 steps; step t of seed s shows what the space draws with seed 100 s + t.

    `shown` has the observations of every episode so far, by its seed.
    """

    shown: ClassVar[dict[int, list[Any]]] = {}

    def __init__(self, space: str = "vector", in_place: bool = False) -> None:
        self.observation_space = copy.deepcopy(SPACES[space])
        self.action_space = Discrete(2)
        self._in_place, self._buffer = in_place, None
        self._seed, self._t = 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._seed, self._t = self._seed + 1 if seed is None else seed, 0
        Sampled.shown[self._seed] = []
        return self._show(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self._t += 1
        return self._show(), float(self._t), self._t == 3 + self._seed % 4, False, {}

    def _show(self) -> Any:
        self.observation_space.seed((100 * self._seed + self._t) % 2**31)
        seen = self.observation_space.sample()
        Sampled.shown[self._seed].append(copy.deepcopy(seen))
        if not self._in_place:
            return seen
        self._buffer = seen if self._buffer is None else self._buffer
        self._buffer[...] = seen
        return self._buffer


class Scripted(gym.Env[Any, int]):
    """Shows the given observations one after the other, the first at reset, and never ends."""

    def __init__(self, space: gym.Space[Any], script: list[Any]) -> None:
        self.observation_space, self.action_space = space, Discrete(2)
        self._script, self._left = script, iter(script)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._left = iter(self._script)
        return next(self._left), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        return next(self._left), 0.0, False, False, {}
