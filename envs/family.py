"""Family: all that this package knows of one family of environments, written in the family's file.

A family is a prefix of ids with a preprocessing of its own. `envs.families` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.images import prepare_images

Reset = tuple[NDArray[np.uint8], dict[str, Any]]
"""An image and `info`."""
Step = tuple[NDArray[np.uint8], SupportsFloat, bool, bool, dict[str, Any]]
"""An image, the reward, terminated, truncated and `info`."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of environments.

    Attributes:
        make: called with the id, the kwargs of the constructor, and by name every setting in
            `defaults`; returns the environment.
        defaults: the settings of `EnvSettings` that the family takes, and what each is when a
            config does not give it. All other settings are refused.
        register: tells gymnasium about the family's ids, if importing its file does not.
    """

    make: Callable[..., gym.Env[Any, Any]]
    defaults: dict[str, Any]
    register: Callable[[], None] = lambda: None


def make_plain(
    env_id: str,
    kwargs: dict[str, Any],
    *,
    max_episode_steps: int | None,
    image_size: int | None = None,
    grayscale: bool | None = None,
    **more: Any,
) -> gym.Env[Any, Any]:
    """Build any id that gymnasium knows, or learns by importing the module in `module:Id`.

    `kwargs` and `more` are for the constructor.
    """
    env = gym.make(
        env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **more, **kwargs
    )
    return prepare_images(env, image_size, grayscale)
