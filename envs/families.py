"""FAMILIES: every family of environments, by the prefix of its ids.

To add one: a file with a `FAMILY`, and its line here. An environment that needs no preprocessing of
ours needs neither: ids of no family, and factories, belong to `PLAIN`.
"""

from typing import Any

import gymnasium as gym

from envs import atari, car_racing, counting, minatar, pong
from envs.family import Family
from envs.images import prepare_images

FAMILIES: dict[str, Family] = {
    "ALE/": atari.FAMILY,
    "MinAtar/": minatar.FAMILY,
    "CarRacing-v": car_racing.FAMILY,
    "reverie/Counting": counting.FAMILY,
    "reverie/Pong": pong.FAMILY,
}


def make_plain(
    env_id: str,
    kwargs: dict[str, Any],
    *,
    max_episode_steps: int | None,
    image_size: int | None,
    grayscale: bool | None,
) -> gym.Env[Any, Any]:
    """Build any id that gymnasium knows, or learns by importing the module in `module:Id`."""
    env = gym.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
    return prepare_images(env, image_size, grayscale)


PLAIN = Family(
    make=make_plain,
    defaults={"max_episode_steps": None, "image_size": None, "grayscale": None},
)
"""Ids of no family, and factories."""

SETTINGS = dict.fromkeys(n for family in (*FAMILIES.values(), PLAIN) for n in family.defaults)
"""Every setting of `EnvSettings` that only some families take, in a fixed order."""


def family_of(env_id: str | None) -> Family:
    """The family whose prefix an id starts with, or `PLAIN`.

    The id may have a leading `module:`; None stands for a factory.
    """
    name = (env_id or "").rpartition(":")[2]
    return next((found for prefix, found in FAMILIES.items() if name.startswith(prefix)), PLAIN)
