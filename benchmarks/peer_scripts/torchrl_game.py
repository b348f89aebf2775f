"""The game as an environment of TorchRL, which makes it by name in whatever process it likes."""

from typing import Any

import gymnasium as gym
import numpy as np
from game import make_game
from torchrl.envs import GymWrapper


class ChannelsFirst(gym.ObservationWrapper[Any, Any, Any]):
    """Images (3, 64, 64), as TorchRL's networks take them."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap a game of (64, 64, 3) uint8 images."""
        super().__init__(env)
        height, width, channels = env.observation_space.shape or ()
        self.observation_space = gym.spaces.Box(0, 255, (channels, height, width), np.uint8)

    def observation(self, observation: Any) -> Any:
        """One image."""
        return np.ascontiguousarray(observation.transpose(2, 0, 1))


def plain_game(id: str, frames: str) -> gym.Env[Any, Any]:
    """The game, with images turned."""
    env = make_game(id, frames)
    return ChannelsFirst(env) if frames == "image" else env


def make(seed: int | None, env_index: int, num_envs: int, *, id: str, frames: str) -> GymWrapper:
    """What `env.factory` of TorchRL's example is called with; see its README."""
    env = GymWrapper(plain_game(id, frames), device="cpu")
    env.set_seed(0 if seed is None else seed)
    return env
