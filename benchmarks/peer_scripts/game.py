"""The real game as a peer sees it, and the judgement that all systems share.

A peer's networks do not take 10 x 10 frames of binary channels. "image" paints the channels in the
colours of `envs.minatar` and enlarges the frame to 64 x 64 by repeating cells (6 or 7 pixels each);
"vector" lays all cells and channels out as numbers of 0 and 1. Rules, sticky actions and step limit
are those of `envs`: every system plays by the same code.
"""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs import EnvSettings, make_env
from envs.minatar import frame_to_rgb

SIDE = 64
FIRST_SEED = 1_000_000  # of the judgement's episodes, far from any seed of training


class TimeIsUp(BaseException):
    """Ends a training loop that knows no time limit; no handler of `Exception` takes it."""


class Seen(gym.ObservationWrapper[Any, Any, Any]):
    """The game as "image", (64, 64, 3) uint8, "vector", (H * W * C,) float32, or "game"."""

    def __init__(self, env: gym.Env[Any, Any], frames: str) -> None:
        """Wrap a game of (H, W, C) uint8 frames of 0 and 1."""
        super().__init__(env)
        self.frames = frames
        height, width, _ = env.observation_space.shape or ()
        self.rows, self.columns = np.arange(SIDE) * height // SIDE, np.arange(SIDE) * width // SIDE
        if frames == "image":
            self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        elif frames == "vector":
            size = int(np.prod(env.observation_space.shape or ()))
            self.observation_space = gym.spaces.Box(0.0, 1.0, (size,), np.float32)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[Any]:
        """One frame, in the form that was asked for."""
        if self.frames == "image":
            return frame_to_rgb(observation)[self.rows][:, self.columns]
        if self.frames == "vector":
            return observation.astype(np.float32).ravel()
        return observation


class Watched(gym.Wrapper[Any, Any, Any, Any]):
    """Counts the steps of all games of this process, and ends training when its time is up."""

    steps = 0
    deadline = float("inf")  # of time.monotonic()

    def step(self, action: Any) -> Any:
        """Take a step.

        Raises:
            TimeIsUp: the deadline has passed.
        """
        if time.monotonic() > Watched.deadline:
            raise TimeIsUp
        Watched.steps += 1
        return self.env.step(action)


def make_game(id: str, frames: str) -> gym.Env[Any, Any]:
    """The game `id` in the form that a system takes."""
    return Seen(make_env(EnvSettings(id=id)), frames)


def cells(id: str) -> tuple[int, int, int]:
    """(H, W, C) of a game's own frames."""
    height, width, channels = make_game(id, "game").observation_space.shape or ()
    return height, width, channels


def make_watched(id: str, frames: str) -> gym.Env[Any, Any]:
    """The same, watched, for training."""
    return Watched(make_game(id, frames))


def judge(
    env: gym.Env[Any, Any],
    episodes: int,
    act: Callable[[NDArray[Any], bool, bool], int],
) -> dict[str, Any]:
    """Play the same episodes with the likeliest actions ("greedy") and with sampled ones.

    Args:
        env: from `make_game`, or one with the same spaces.
        episodes: episode i starts from seed `FIRST_SEED` + i.
        act: (observation, whether it is an episode's first, whether to sample) to an action.
    """
    found: dict[str, Any] = {}
    for name, sample in (("greedy", False), ("sampled", True)):
        returns = [_episode(env, FIRST_SEED + i, act, sample) for i in range(episodes)]
        found[name] = {"mean": float(np.mean(returns)), "returns": returns}
    return found


def _episode(
    env: gym.Env[Any, Any],
    seed: int,
    act: Callable[[NDArray[Any], bool, bool], int],
    sample: bool,
) -> float:
    obs, _ = env.reset(seed=seed)
    total, first, over = 0.0, True, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(act(obs, first, sample))
        total, first, over = total + float(reward), False, terminated or truncated
    return total
