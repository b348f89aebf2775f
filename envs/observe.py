"""`env.observe`: the parts of an observation that an agent sees; the others are dropped.

In: an environment whose observations are a Dict or a Tuple, and names of parts. Out: the same
environment without the rest. It changes no value.
"""

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

import gymnasium as gym

from envs.errors import EnvError
from envs.spaces import names_in, part_at


class Observed(gym.ObservationWrapper[Any, Any, Any]):
    """Shows some parts of each observation: one part as it is, several as a dict of them."""

    def __init__(self, env: gym.Env[Any, Any], names: Sequence[str]) -> None:
        """Take parts by name: a key, keys joined by dots, a number in a Tuple.

        Raises:
            EnvError: there is no such part, or the observation has no parts.
        """
        super().__init__(env)
        space = env.observation_space
        known = names_in(space)
        if not known:
            raise EnvError(
                f"env.observe: expected a Dict or a Tuple to choose from, got {space}; remove it"
            )
        self._ways: dict[str, tuple[Any, ...]] = {}
        spaces: dict[str, gym.Space[Any]] = {}
        for name in names:
            found = part_at(space, name)
            if found is None:
                raise EnvError(f"env.observe: expected some of {', '.join(known)}, got {name}")
            self._ways[name], spaces[name] = found
        self._single = names[0] if len(names) == 1 else None
        self.observation_space = (
            gym.spaces.Dict(spaces) if self._single is None else spaces[self._single]
        )

    def observation(self, observation: Any) -> Any:
        """Pick the parts."""
        if self._single is not None:
            return reduce(getitem, self._ways[self._single], observation)
        return {name: reduce(getitem, way, observation) for name, way in self._ways.items()}
