"""Odd but legal environments, and a few that break a promise: what people really bring.

An environment is a `Oddity`: sound but for what it says. What it shows and pays follows from the
seed of its reset and the number of the step, so that replay can be compared with it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.wrappers import TimeLimit

Space = gym.Space[Any]


def _count(t: int) -> Any:
    return float(t % 3)


@dataclass(frozen=True)
class Oddity:
    """What an environment is like; the defaults are not odd.

    Attributes:
        reward: of step t, from 1 on.
        length: steps of an episode; None never ends one.
        ends: the two flags of the last step.
        resets: what `reset` is like: "plain", "no seed", "needs options" or "fails twice".
        in_place: it shows one buffer, and changes it.
        leaves: its observations leave their space.
        info: what `step` tells beside.
        limit: a TimeLimit of its own.
    """

    seen: Space = field(default_factory=lambda: Box(-1, 1, (3,)))
    actions: Space = field(default_factory=lambda: Discrete(2))
    reward: Callable[[int], Any] = _count
    length: int | None = 7
    ends: tuple[Any, Any] = (True, False)
    resets: str = "plain"
    in_place: bool = False
    leaves: bool = False
    info: Callable[[], dict[str, Any]] = dict
    limit: int | None = None


_INFINITE = Box(-np.inf, np.inf, (2,))
ODDITIES = {
    "nothing odd": Oddity(),
    "actions from -1": Oddity(actions=Discrete(3, start=-1)),
    "one action": Oddity(actions=Discrete(1)),
    "actions MultiDiscrete": Oddity(actions=MultiDiscrete([2, 3])),
    "actions MultiBinary": Oddity(actions=MultiBinary(3)),
    "actions without bounds": Oddity(actions=_INFINITE),
    "actions up to 1e30": Oddity(actions=Box(-1e30, 1e30, (2,))),
    "actions in whole numbers": Oddity(actions=Box(-3, 3, (2,), np.int64)),
    "action of no dimension": Oddity(actions=Box(-1, 1, ())),
    "actions 2 x 2": Oddity(actions=Box(-1, 1, (2, 2))),
    "actions Dict": Oddity(actions=Dict(go=Discrete(3), turn=Box(-1, 1, (2,)))),
    "image (H, W)": Oddity(seen=Box(0, 255, (12, 12), np.uint8)),
    "image (C, H, W)": Oddity(seen=Box(0, 255, (3, 12, 14), np.uint8)),
    "image 30 x 50 x 3": Oddity(seen=Box(0, 255, (30, 50, 3), np.uint8)),
    "image 2 x 2": Oddity(seen=Box(0, 255, (2, 2, 1), np.uint8)),
    "20 planes of 0 to 10": Oddity(seen=Box(0, 10, (8, 8, 20), np.uint8)),
    "image of floats": Oddity(seen=Box(0, 1, (9, 8, 1))),
    "image int32": Oddity(seen=Box(0, 255, (8, 8, 3), np.int32)),
    "image from 5 to 15": Oddity(seen=Box(5, 15, (8, 8, 2), np.int32)),
    "numbers without bounds": Oddity(seen=Box(-np.inf, np.inf, (4,), np.float64)),
    "number of no dimension": Oddity(seen=Box(-1, 1, ())),
    "five dimensions": Oddity(seen=Box(-1, 1, (2, 2, 2, 2, 2))),
    "seen Discrete from 7": Oddity(seen=Discrete(3, start=7)),
    "seen MultiDiscrete": Oddity(seen=MultiDiscrete([2, 3], start=[5, -5])),
    "seen MultiBinary": Oddity(seen=MultiBinary((2, 3))),
    "Dict in Tuple in Dict": Oddity(
        seen=Dict(a=Tuple([Dict(b=Discrete(2)), Box(-1, 1, (2,))]), c=MultiBinary(2))
    ),
    "a buffer changed in place": Oddity(in_place=True),
    "rewards bool": Oddity(reward=lambda t: t % 2 == 0),
    "rewards array(1.0)": Oddity(reward=lambda t: np.array(1.0)),
    "rewards array([1.0])": Oddity(reward=lambda t: np.array([1.0])),
    "rewards 1e6": Oddity(reward=lambda t: 1e6 * (-1) ** t),
    "rewards 1e-6": Oddity(reward=lambda t: 1e-6 * (t % 2)),
    "rewards constant": Oddity(reward=lambda t: 1.0),
    "rewards none": Oddity(reward=lambda t: 0.0),
    "terminated 1": Oddity(ends=(1, 0)),
    "both flags at once": Oddity(ends=(True, True)),
    "episodes of one step": Oddity(length=1),
    "never ends": Oddity(length=None),
    "a TimeLimit of its own": Oddity(length=None, limit=9),
    "info with a lambda": Oddity(info=lambda: {"call": lambda: None}),
    "reset fails twice": Oddity(resets="fails twice"),
    "reset without seed": Oddity(resets="no seed"),
    "reset needs options": Oddity(resets="needs options"),
    "observations leave their space": Oddity(leaves=True),
    "Text": Oddity(seen=Text(5)),
}


class Odd(gym.Env[Any, Any]):
    """An environment that is odd in one way."""

    def __init__(self, oddity: Oddity) -> None:
        self.oddity = oddity
        self.observation_space = copy.deepcopy(oddity.seen)
        self.action_space = copy.deepcopy(oddity.actions)
        self._seed = self._t = self._failed = 0
        self._buffer: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: D102
        super().reset(seed=seed)
        if self.oddity.resets == "needs options" and not options:
            raise KeyError("level")
        if self.oddity.resets == "fails twice" and self._failed < 2:
            self._failed += 1
            raise OSError("the simulator is not up yet")
        self._seed, self._t = self._seed + 1 if seed is None else seed, 0
        return self._show(), {}

    def step(self, action: Any) -> Any:  # noqa: D102
        odd = self.oddity
        self._t += 1
        ended = self._t == odd.length
        flags = odd.ends if ended else (type(odd.ends[0])(0), False)
        return self._show(), odd.reward(self._t), *flags, odd.info()

    def _show(self) -> Any:
        self.observation_space.seed((self._seed * 1009 + self._t) % 2**31)
        drawn = self.observation_space.sample()
        if self.oddity.leaves and self._t == 3:
            return drawn + 5
        if not self.oddity.in_place:
            return drawn
        if self._buffer is None:
            self._buffer = drawn.copy()
        self._buffer[...] = drawn
        return self._buffer


class OddWithoutSeed(Odd):
    """Its `reset` knows no seed."""

    def reset(self, *, options: Any = None) -> Any:  # type: ignore[override]  # noqa: D102
        return super().reset(options=options)


def make(name: str) -> gym.Env[Any, Any]:
    """The environment of that name; a factory for `env.factory`."""
    oddity = ODDITIES[name]
    env: gym.Env[Any, Any] = (OddWithoutSeed if oddity.resets == "no seed" else Odd)(oddity)
    return env if oddity.limit is None else TimeLimit(env, oddity.limit)
