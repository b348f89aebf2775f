"""Observations as one vector, for learners that read nothing else: the baselines.

In: observations of any space. Out: (N, F) float32. Categories are one-hot, images are intensities
from 0 to 1, numbers stay as they are; streams follow one another as in `mbrl.streams`. One image
(H, W, C) and one vector of numbers need none of this, and are left alone.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.spaces import values_of
from mbrl.acting import ActingPolicy
from mbrl.episode import Obs
from mbrl.streams import Array, Stream, columns_of, streams_of

Floats = NDArray[np.float32]


class FlatObservations:
    """Turns observations of a space into vectors.

    Attributes:
        space: of the vectors.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        """A ConfigError if a part of the space has no fixed size."""
        self.streams = streams_of(space)
        size = sum(map(_size, self.streams))
        self.space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    @classmethod
    def where_needed(cls, space: spaces.Space[Any]) -> "FlatObservations | None":
        """For a space that is neither one vector nor one image with a positive upper bound."""
        flat = cls(space)
        stream = flat.streams[0]
        if len(flat.streams) > 1 or stream.column != "obs" or stream.kind == "categories":
            return flat
        fits = len(stream.shape) == 1
        if stream.kind == "image" and isinstance(stream.space, spaces.Box):
            fits = len(stream.shape) == 3 and stream.space.high.flat[0] > 0
        return None if fits else flat

    def of_rows(self, obs: Obs) -> Floats:
        """Observations of N rows as (N, F)."""
        columns = columns_of(obs)
        return np.concatenate([_flat(one, columns[one.column]) for one in self.streams], 1)


class FlattenedEnv(gym.ObservationWrapper[Floats, Any, Any]):
    """An environment whose observations are vectors."""

    def __init__(self, env: gym.Env[Any, Any], flat: FlatObservations) -> None:
        super().__init__(env)
        self._flat, self.observation_space = flat, flat.space

    def observation(self, observation: Any) -> Floats:
        """One observation as (F,)."""
        values = values_of(self.env.observation_space, observation)
        columns = {
            one.column: np.asarray(value)[None]
            for one, value in zip(self._flat.streams, values, strict=True)
        }
        return self._flat.of_rows(columns)[0]


class FlatPolicy:
    """A policy that reads vectors, for who shows it observations as they are."""

    def __init__(self, policy: ActingPolicy, flat: FlatObservations) -> None:
        self._policy, self._flat = policy, flat
        self.version = policy.version

    def reset(self, num_envs: int) -> None:
        """As the policy's."""
        self._policy.reset(num_envs)

    def act(self, obs: Obs, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """As the policy's."""
        return self._policy.act(self._flat.of_rows(obs), is_first, explore)


def _size(stream: Stream) -> int:
    """Numbers that a stream becomes."""
    if stream.kind == "categories":
        return sum(stream.sizes)
    return int(np.prod(stream.shape, dtype=np.int64))


def _flat(stream: Stream, rows: Array) -> Floats:
    """(N, *shape) as (N, size)."""
    flat = rows.reshape(len(rows), -1)
    if stream.kind == "categories":
        sizes = np.array(stream.sizes)
        place = np.concatenate([[0], np.cumsum(sizes)[:-1]]) + flat - np.array(stream.starts)
        hot = np.zeros((len(rows), int(sizes.sum())), np.float32)
        np.put_along_axis(hot, place.astype(np.int64), 1, axis=1)
        return hot
    numbers = flat.astype(np.float32)
    if stream.kind == "image" and isinstance(stream.space, spaces.Box):
        low, high = float(stream.space.low.flat[0]), float(stream.space.high.flat[0])
        numbers = (numbers - np.float32(low)) / np.float32(high - low)
    return numbers
