"""What a space is made of: leaves, each with the keys that lead to it and a column of its own.

In: any gymnasium space, of observations or actions, and values of it. Out: the leaves by their keys
or by the name of their column, and the values of the leaves in the same order. Box, Discrete,
MultiDiscrete and MultiBinary are leaves; Dict and Tuple are taken apart, nested ones too. It
refuses what has no fixed size, and knows nothing of what the numbers mean.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from numpy.typing import NDArray

from envs.errors import EnvError

Choices = Discrete[Any] | MultiDiscrete | MultiBinary
"""A leaf whose entries are categories."""

Leaf = Box | Choices
"""A space whose values are one array of a fixed shape."""

Path = tuple[Any, ...]
"""Keys that lead to a leaf; empty where the space is a leaf itself."""

Space = gym.Space[Any]


def columns_of_space(space: Space, name: str = "obs") -> dict[str, Leaf]:
    """The leaves by column: `obs`, or `obs.<key>`, `obs.<outer>.<inner>`, `obs.0` of a Tuple.

    Raises:
        EnvError: as in `leaves_of`.
    """
    return {column_at(name, path): leaf for path, leaf in leaves_of(space, name).items()}


def leaves_of(space: Space, name: str) -> dict[Path, Leaf]:
    """The leaves by the keys that lead to them, in gymnasium's order.

    Args:
        space: of what there is.
        name: the column of the whole, "obs" or "actions".

    Raises:
        EnvError: a leaf has no fixed size (Text, Graph, Sequence, OneOf), two have one column, or
            there is none.
    """
    found: dict[Path, Leaf] = {}
    unfit: dict[str, Space] = {}
    columns: set[str] = set()
    for path, leaf in _walk(space, ()):
        column = column_at(name, path)
        if column in columns:
            raise EnvError(
                f"expected names that differ once the keys are joined by dots, got {column} twice "
                f"in {space}; rename a key in an env.factory"
            )
        columns.add(column)
        if isinstance(leaf, Box | Discrete | MultiDiscrete | MultiBinary):
            found[path] = leaf
        else:
            unfit[column] = leaf
    if unfit or not found:
        raise EnvError(_unfit(space, name, found, unfit))
    return found


def _walk(space: Space, path: Path) -> Iterator[tuple[Path, Space]]:
    """Every part that is neither a Dict nor a Tuple, by its path."""
    if isinstance(space, Dict | Tuple):
        for key, part in members_of(space).items():
            yield from _walk(part, (*path, key))
    else:
        yield path, space


def column_at(name: str, path: Path) -> str:
    """The column of the leaf that a path leads to."""
    return ".".join((name, *map(str, path)))


def choices_of(leaf: Choices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many values each entry of a leaf has, and which is its least; both of its shape."""
    if isinstance(leaf, MultiBinary):
        return np.full(leaf.shape, 2), np.zeros(leaf.shape, np.int64)
    sizes = leaf.n if isinstance(leaf, Discrete) else leaf.nvec
    return np.asarray(sizes, np.int64), np.asarray(leaf.start, np.int64)


def members_of(space: Dict | Tuple) -> dict[Any, Space]:
    """The parts of one level by key, those of a Tuple by their number."""
    return dict(space.spaces if isinstance(space, Dict) else enumerate(space.spaces))


def _unfit(space: Space, name: str, found: dict[Path, Leaf], unfit: dict[str, Space]) -> str:
    """What to say of parts that cannot be stored."""
    kinds = "Box, Discrete, MultiDiscrete, MultiBinary, or Dict and Tuple of them"
    if not unfit:
        return f"expected {kinds}, got nothing in {space}"
    parts = [f"{type(part).__name__} at {column}" for column, part in unfit.items()]
    way = "convert it in an env.factory"
    if name == "actions":
        way = "choose among finitely many in an env.factory"
    elif found:
        way = f"drop it with env.observe: [{', '.join('.'.join(map(str, key)) for key in found)}]"
    return f"expected {kinds}, got {', '.join(parts)}; {way}"


def values_of(space: Space, value: Any) -> list[Any]:
    """What a value of `space` holds, in the order of `columns_of_space`; nothing is converted.

    Raises:
        TypeError: a Dict's value has other keys, a Tuple's another length; the message says where.
    """
    found: list[Any] = []
    _unfold(space, value, found)
    return found


def _unfold(space: Space, value: Any, found: list[Any]) -> None:
    if isinstance(space, Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            got = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise TypeError(f"expected a dict with the keys {list(space.spaces)}, got {got}")
        for key, part in space.spaces.items():
            _unfold(part, value[key], found)
    elif isinstance(space, Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            size = len(value) if isinstance(value, tuple | list) else type(value).__name__
            raise TypeError(f"expected a tuple of {len(space.spaces)} parts, got {size}")
        for part, one in zip(space.spaces, value, strict=True):
            _unfold(part, one, found)
    else:
        found.append(value)


def part_at(space: Space, path: str) -> tuple[tuple[Any, ...], Space] | None:
    """The keys that lead to a part named as columns are, without the leading `obs.`; and the part.

    None if there is no such part.
    """
    if not isinstance(space, Dict | Tuple):
        return None
    for key, part in members_of(space).items():
        name = str(key)
        if path == name:
            return (key,), part
        if path.startswith(name + ".") and (below := part_at(part, path[len(name) + 1 :])):
            return (key, *below[0]), below[1]
    return None


def names_in(space: Space) -> list[str]:
    """All that `part_at` finds in a Dict or a Tuple."""
    found = []
    if isinstance(space, Dict | Tuple):
        for key, part in members_of(space).items():
            found += [str(key), *(f"{key}.{name}" for name in names_in(part))]
    return found
