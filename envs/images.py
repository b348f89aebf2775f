"""Images as the rest of Reverie wants them: uint8 (H, W, C).

In: an environment. Out: the same environment, its image observations resized, turned to grey, or
given the channel axis they lack. It refuses to convert floats or channel-first images, because it
cannot know what they mean; `envs.contract.describe_limits` says so to the user.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import GrayscaleObservation, ResizeObservation, TransformObservation

from envs.errors import EnvError


def is_image(space: gym.Space[Any]) -> bool:
    """True for a uint8 Box of two or three axes that could be (H, W) or (H, W, C)."""
    return (
        isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
    )


def prepare_images(
    env: gym.Env[Any, Any], image_size: int | None, grayscale: bool | None
) -> gym.Env[Any, Any]:
    """Make image observations uint8 (H, W, C); leave other observations alone.

    Args:
        env: any environment.
        image_size: height and width to resize to (area interpolation), or None for no resizing.
        grayscale: True to turn three colour channels into one intensity channel.

    Returns:
        The environment, wrapped where needed.

    Raises:
        EnvError: resizing or grey was asked for, but the observation is not such an image.
    """
    space = env.observation_space
    if not is_image(space):
        if image_size is not None or grayscale:
            raise EnvError(
                f"expected uint8 image observations for image_size and grayscale, got {space}; "
                f"remove these settings or convert the observation in an env.factory"
            )
        return env
    shape = space.shape or ()
    if grayscale:
        if shape[2:] != (3,):
            raise EnvError(
                f"expected colour images (H, W, 3) to turn to grey, got shape {shape}; "
                f"remove env.grayscale"
            )
        env = GrayscaleObservation(env, keep_dim=True)
    if image_size is not None and shape[:2] != (image_size, image_size):
        env = ResizeObservation(env, (image_size, image_size))
    return _with_channel_axis(env)


def _with_channel_axis(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Turn (H, W) observations into (H, W, 1)."""
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 2:
        return env
    with_axis = gym.spaces.Box(space.low[..., None], space.high[..., None], dtype=np.uint8)
    return TransformObservation(env, lambda obs: obs[..., None], with_axis)
