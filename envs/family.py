"""Family: all that this package knows of one family of environments, written in the family's file.

A family is a prefix of ids with a preprocessing of its own. `envs.families` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym


def _has_no_ids() -> None:
    """For families whose ids gymnasium knows by itself."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of environments.

    Attributes:
        make: called with the id, the kwargs of the constructor, and by name every setting in
            `defaults`; returns the environment.
        defaults: the settings of `EnvSettings` that the family takes, and what each is when a
            config does not give it. All other settings are refused.
        register: tells gymnasium about the family's ids, once per process; raises `EnvError` if a
            package is missing.
    """

    make: Callable[..., gym.Env[Any, Any]]
    defaults: dict[str, Any]
    register: Callable[[], None] = _has_no_ids
