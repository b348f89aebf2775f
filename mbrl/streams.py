"""What an observation is made of: named streams, each of one kind.

An observation is one array, or a dict of arrays by column where the environment gives a Dict or a
Tuple; nested ones are flattened to `obs.a.b`. What makes inputs of values is the model's business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from mbrl.errors import ConfigError

Kind = Literal["image", "vector", "categories"]


@dataclass(frozen=True)
class Stream:
    """One part of an observation.

    Attributes:
        column: its column in replay: "obs", or "obs.<key>"; parts of a Tuple by number.
        kind: image, vector, or categories.
        space: the leaf: Box, Discrete, MultiDiscrete or MultiBinary.
        shape: of one observation, as stored; () for a Discrete.
        sizes: of categories: the number of values of each entry, flattened.
        starts: of categories: the lowest value of each entry, flattened.
    """

    column: str
    kind: Kind
    space: spaces.Space[Any]
    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()


def streams_of(space: spaces.Space[Any]) -> tuple[Stream, ...]:
    """The streams of observations from a space, in its order.

    Raises:
        ConfigError: it has a part that is neither numbers nor categories.
    """
    return tuple(_stream(column, leaf) for column, leaf in _leaves("obs", space))


def columns_of(obs: Any) -> dict[str, Any]:
    """An observation by column: {"obs": obs} of a plain array, a dict as it is."""
    return dict(obs) if isinstance(obs, Mapping) else {"obs": obs}


def _leaves(column: str, space: spaces.Space[Any]) -> Iterator[tuple[str, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = [(str(place), part) for place, part in enumerate(space.spaces)]
    else:
        yield column, space
        return
    for key, part in parts:
        yield from _leaves(f"{column}.{key}", part)


def _stream(column: str, space: spaces.Space[Any]) -> Stream:
    shape = space.shape or ()
    if isinstance(space, spaces.Box):
        image = space.dtype == np.uint8 and len(shape) == 3
        return Stream(column, "image" if image else "vector", space, shape)
    if isinstance(space, spaces.Discrete):
        return Stream(column, "categories", space, (), (int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete):
        sizes, starts = space.nvec.ravel().tolist(), space.start.ravel().tolist()
        return Stream(column, "categories", space, shape, tuple(sizes), tuple(starts))
    if isinstance(space, spaces.MultiBinary):
        count = int(np.prod(shape))
        return Stream(column, "categories", space, shape, (2,) * count, (0,) * count)
    raise ConfigError(
        f"{column}: expected a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space, got "
        f"{space}; name the others in env.observe to leave it out"
    )
