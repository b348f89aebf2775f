"""What a space is made of: named columns, each with one leaf.

In: any gymnasium space, and values of it. Out: the leaves by the name of their column, and the
values of the leaves in the same order. Box, Discrete, MultiDiscrete and MultiBinary are leaves;
Dict and Tuple are taken apart, nested ones too. It refuses what has no fixed size, and knows
nothing of what the numbers mean.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from envs.errors import EnvError

Leaf = Box | Discrete[Any] | MultiDiscrete | MultiBinary
"""A space whose values are one array of a fixed shape."""

Space = gym.Space[Any]


def columns_of_space(space: Space, name: str = "obs") -> dict[str, Leaf]:
    """The leaves by column: `obs`, or `obs.<key>`, `obs.<outer>.<inner>`, `obs.0` of a Tuple.

    Raises:
        EnvError: a leaf has no fixed size (Text, Graph, Sequence, OneOf), two have one name, or
            there is none.
    """
    found: dict[str, Leaf] = {}
    unfit: dict[str, Space] = {}
    for column, leaf in _walk(space, name):
        if column in found or column in unfit:
            raise EnvError(
                f"expected names that differ once the keys are joined by dots, got {column} twice "
                f"in {space}; rename a key in an env.factory"
            )
        if isinstance(leaf, Box | Discrete | MultiDiscrete | MultiBinary):
            found[column] = leaf
        else:
            unfit[column] = leaf
    if unfit or not found:
        raise EnvError(_unfit(space, name, found, unfit))
    return found


def _walk(space: Space, name: str) -> Iterator[tuple[str, Space]]:
    """Every part that is neither a Dict nor a Tuple, by its column."""
    if isinstance(space, Dict | Tuple):
        for key, part in parts_of(space).items():
            yield from _walk(part, f"{name}.{key}")
    else:
        yield name, space


def parts_of(space: Dict | Tuple) -> dict[Any, Space]:
    """The parts of one level by key, those of a Tuple by their number."""
    return dict(space.spaces if isinstance(space, Dict) else enumerate(space.spaces))


def _unfit(space: Space, name: str, found: dict[str, Leaf], unfit: dict[str, Space]) -> str:
    """What to say of parts that cannot be stored."""
    kinds = "Box, Discrete, MultiDiscrete, MultiBinary, or Dict and Tuple of them"
    if not unfit:
        return f"expected {kinds}, got nothing in {space}"
    parts = [f"{type(part).__name__} at {column}" for column, part in unfit.items()]
    way = "convert it in an env.factory"
    if found and name == "obs":
        way = f"drop it with env.observe: [{', '.join(key[len(name) + 1 :] for key in found)}]"
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
    for key, part in parts_of(space).items():
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
        for key, part in parts_of(space).items():
            found += [str(key), *(f"{key}.{name}" for name in names_in(part))]
    return found
