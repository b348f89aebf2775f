"""Walk: a family of environments in one file. A walker looks for the goal in an empty room.

Ids: `Walk/Small-v0` (5 x 5) and `Walk/Large-v0` (9 x 9). Observations are uint8 (S, S, 2), the
walker's place and the goal's; the reward is 1 at the goal, where the episode ends.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.family import Family

SIZES = {"Walk/Small-v0": 5, "Walk/Large-v0": 9}
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])


class WalkEnv(gym.Env[NDArray[np.uint8], int]):
    """See the module's docstring."""

    def __init__(self, size: int) -> None:
        """Make a room of `size` x `size` cells."""
        self.size = size
        self.observation_space = gym.spaces.Box(0, 1, (size, size, 2), np.uint8)
        self.action_space = gym.spaces.Discrete(len(MOVES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Put the goal anywhere, and the walker into the middle."""
        super().reset(seed=seed)
        self.goal = self.np_random.integers(self.size, size=2)
        self.place = np.array([self.size // 2, self.size // 2])
        return self._picture(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one step; walls stop it."""
        self.place = np.clip(self.place + MOVES[action], 0, self.size - 1)
        there = bool((self.place == self.goal).all())
        return self._picture(), float(there), there, False, {}

    def _picture(self) -> NDArray[np.uint8]:
        picture = np.zeros((self.size, self.size, 2), np.uint8)
        picture[(*self.place, 0)] = picture[(*self.goal, 1)] = 1
        return picture


def register() -> None:
    """Tell gymnasium about both ids, once per process."""
    for env_id, size in SIZES.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=WalkEnv, kwargs={"size": size})


def make(env_id: str, kwargs: dict[str, Any], *, max_episode_steps: int) -> gym.Env[Any, Any]:
    """Build one room; a wrapper for all rooms would go around it here."""
    register()
    return gym.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)


FAMILY = Family(make=make, register=register, defaults={"max_episode_steps": 100})
