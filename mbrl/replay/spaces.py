"""Spaces as JSON, so that a segment says what its rows are made of.

In: a gymnasium space. Out: text from which the same space is built again, in type, shape and every
bound. Plain JSON: an infinite bound is the text "inf" or "-inf". Random streams of a space are not
kept.

    {"type": "Box", "dtype": "float32", "shape": [2], "low": "-inf", "high": [1.0, 2.0]}
    {"type": "Discrete", "dtype": "int64", "n": 3, "start": -1}
    {"type": "MultiDiscrete", "dtype": "int64", "nvec": [2, 3], "start": [0, 0]}
    {"type": "MultiBinary", "n": [4]}
    {"type": "Dict", "spaces": [["key", {...}], ...]}
    {"type": "Tuple", "spaces": [{...}, ...]}
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mbrl.errors import ReplayError

Space = spaces.Space[Any]
_Array = NDArray[Any]


def space_to_json(space: Space) -> str:
    """A space as JSON.

    Raises:
        ReplayError: a part is of another type, or a key of a Dict is no string.
    """
    return json.dumps(_tree(space), allow_nan=False)


def space_from_json(text: str) -> Space:
    """The space that `space_to_json` was given.

    Raises:
        ReplayError: the text is no such space.
    """
    try:
        return _space(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ReplayError(f"expected a space as JSON, got {text:.200}: {error!r}") from error


def _tree(space: Space) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        if odd := [key for key in space.spaces if not isinstance(key, str)]:
            raise ReplayError(
                f"expected keys of a Dict that are strings, got {odd}; rename them in an "
                f"env.factory"
            )
        return {"type": "Dict", "spaces": [[key, _tree(one)] for key, one in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [_tree(one) for one in space.spaces]}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": _plain(space.n)}
    if isinstance(space, spaces.Discrete):
        return {
            "type": "Discrete",
            "dtype": np.dtype(space.dtype).name,
            "n": int(space.n),
            "start": int(space.start),
        }
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "dtype": np.dtype(space.dtype).name,
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
        }
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "dtype": np.dtype(space.dtype).name,
            "shape": list(space.shape),
            "low": _bound(space.low, space.bounded_below, "-inf"),
            "high": _bound(space.high, space.bounded_above, "inf"),
        }
    raise ReplayError(f"expected a space with a fixed size, got {space}")


def _plain(n: Any) -> Any:
    return int(n) if isinstance(n, int | np.integer) else [int(one) for one in n]


def _bound(bound: _Array, bounded: NDArray[np.bool_], infinite: str) -> Any:
    """Nested lists, or one value if all entries share it.

    Whole numbers cannot be infinite; there the mask says which bounds were meant to be.
    """
    finite = np.isfinite(bound) if bound.dtype.kind == "f" else bounded
    values = [
        one if known else infinite
        for one, known in zip(bound.ravel().tolist(), finite.ravel().tolist(), strict=True)
    ]
    if all(one == values[0] for one in values):
        return values[0] if values else 0
    nested = np.empty(len(values), object)
    nested[:] = values
    return nested.reshape(bound.shape).tolist()


def _box(tree: dict[str, Any]) -> spaces.Box:
    dtype, shape = np.dtype(tree["dtype"]), tuple(tree["shape"])
    bounds: list[_Array] = []
    masks: list[NDArray[np.bool_]] = []
    for side, infinite in (("low", "-inf"), ("high", "inf")):
        given = np.broadcast_to(np.asarray(tree[side], object), shape)
        mask = np.asarray(given != infinite, np.bool_).reshape(shape)
        if dtype.kind == "f":
            bound = given.astype(np.float64).astype(dtype)
        else:
            bound = np.full(shape, _end(dtype, side), dtype)
            bound[mask] = given[mask]
        bounds.append(bound)
        masks.append(mask)
    low, high = bounds
    box = spaces.Box(low, high, shape, dtype.type)
    box.bounded_below, box.bounded_above = masks
    return box


def _end(dtype: np.dtype[Any], side: str) -> int:
    """What gymnasium puts in place of an infinite bound of whole numbers."""
    if dtype.kind == "b":
        return int(side == "high")
    info = np.iinfo(dtype)
    return info.min if side == "low" else info.max


def _nested_tuple(tree: dict[str, Any]) -> spaces.Tuple:
    return spaces.Tuple([_space(one) for one in tree["spaces"]])


_MAKE: dict[str, Callable[[dict[str, Any]], Space]] = {
    "Box": _box,
    "Discrete": lambda tree: spaces.Discrete(
        tree["n"], start=tree["start"], dtype=np.dtype(tree["dtype"]).type
    ),
    "MultiDiscrete": lambda tree: spaces.MultiDiscrete(
        np.array(tree["nvec"]), np.dtype(tree["dtype"]).type, start=np.array(tree["start"])
    ),
    "MultiBinary": lambda tree: spaces.MultiBinary(tree["n"]),
    "Dict": lambda tree: spaces.Dict([(key, _space(one)) for key, one in tree["spaces"]]),
    "Tuple": _nested_tuple,
}


def _space(tree: dict[str, Any]) -> Space:
    return _MAKE[tree["type"]](tree)
