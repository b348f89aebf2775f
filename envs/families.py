"""FAMILIES: every family of environments, by the prefix of its ids.

To add one: a file with a `FAMILY`, and its line here. An environment that needs no preprocessing of
ours needs neither: ids of no family, and factories, belong to `PLAIN`.
"""

from importlib import import_module

from envs.family import Family, make_plain

_FILES = {
    "ALE/": "envs.atari",
    "MinAtar/": "envs.minatar",
    "CarRacing-v": "envs.car_racing",
    "reverie/Counting": "envs.counting",
    "reverie/Pong": "envs.pong",
}
FAMILIES: dict[str, Family] = {id_: import_module(file).FAMILY for id_, file in _FILES.items()}

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
