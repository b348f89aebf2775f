"""What an observation is made of: named streams, each of one kind.

In: a gymnasium space. Out: a stream for each column of replay, with its kind, which is what a world
model chooses an encoder and a likelihood by. An observation is a plain array where the space is a
leaf, and a dict of arrays by column where it is a Dict or a Tuple; leading axes are the caller's.
Values stay what the environment gave until they are inside a world model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs import EnvError
from envs.images import is_image
from envs.spaces import Leaf, choices_of, columns_of_space
from mbrl.errors import ConfigError

Array = NDArray[np.generic]
Kind = Literal["image", "vector", "categories"]
Types = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and dtype of one row, by column."""

_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True)
class Stream:
    """One column of observations.

    Attributes:
        column: its column in replay: `obs`, or `obs.<key>` (`obs.<outer>.<inner>`; parts of a Tuple
            by number).
        kind: "image" as `envs.images.is_image` decides; "categories" of Discrete, MultiDiscrete and
            MultiBinary; "vector" of any other Box.
        space: the leaf.
        shape: of one observation as stored; () for a Discrete.
        dtype: of one observation as stored.
        sizes: of kind "categories", the number of values of each entry, flattened.
        starts: of kind "categories", the least value of each entry, flattened.
    """

    column: str
    kind: Kind
    space: Leaf
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sizes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()


def streams_of(space: spaces.Space[Any]) -> tuple[Stream, ...]:
    """The streams of a space, in the order of the space.

    Raises:
        ConfigError: a part has no fixed size: Text, Graph, Sequence.
    """
    try:
        leaves = columns_of_space(space)
    except EnvError as error:
        raise ConfigError(f"observations: {error}") from error
    return tuple(_stream(column, leaf) for column, leaf in leaves.items())


def _stream(column: str, leaf: Leaf) -> Stream:
    shape, dtype = tuple(leaf.shape or ()), np.dtype(leaf.dtype)
    if isinstance(leaf, spaces.Box):
        return Stream(column, "image" if is_image(leaf) else "vector", leaf, shape, dtype)
    sizes, starts = (tuple(part.reshape(-1).tolist()) for part in choices_of(leaf))
    return Stream(column, "categories", leaf, shape, dtype, sizes, starts)


def types_of(space: spaces.Space[Any]) -> Types:
    """Shape and dtype of the rows that hold observations of a space, by column."""
    return {stream.column: (stream.shape, stream.dtype) for stream in streams_of(space)}


def columns_of(obs: _A | dict[str, _A]) -> dict[str, _A]:
    """Observations by column: a plain array is the column `obs`; a dict is unchanged."""
    return obs if isinstance(obs, dict) else {"obs": obs}


def obs_of(columns: Mapping[str, _A]) -> _A | dict[str, _A]:
    """The inverse of `columns_of`; columns that hold no observation are left out."""
    found = {name: column for name, column in columns.items() if is_obs(name)}
    return found.get("obs", found)


def is_obs(column: str) -> bool:
    """Whether a column is a stream of observations."""
    return column == "obs" or column.startswith("obs.")


def mapped(function: Callable[[_A], _B], obs: _A | dict[str, _A]) -> _B | dict[str, _B]:
    """A function of the array, or of every array, of observations."""
    if isinstance(obs, dict):
        return {column: function(part) for column, part in obs.items()}
    return function(obs)
