"""Action spaces taken apart: parts that are stored side by side, and what `step` is given.

A space is a leaf (Discrete, MultiDiscrete, MultiBinary, Box) or a Dict or Tuple of spaces, nested
or not. Its leaves are its *parts*, in gymnasium's order. Rows of actions are one array: of a leaf
(n, *shape), of a Dict or Tuple (n,) of a structured dtype with a field for each part, named by its
path (`arm.gear`, `0.force`). Choices and whole numbers are int64, all other numbers float32, and
they are what the environment is given: choices count from the space's own start.

Boxes need bounds to draw from and to rescale to. Where a space has none, or absurd ones, a stated
default takes their place (`BoundedActions`). It refuses to know who acts.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from envs.errors import EnvError
from envs.spaces import Leaf, Path, choices_of, leaves_of

ABSURD = 1e9
"""A bound this far out says that there is none: nobody draws a useful action from such a range."""


@dataclass(frozen=True, eq=False)
class ActionPart:
    """One leaf of an action space.

    Attributes:
        path: the keys that lead to it; empty if the space is a leaf itself.
        space: the leaf.
        shape: of its value, () for a Discrete.
        sizes: of choices, the number of values of each entry, flattened; () of numbers.
        low: (entries,) float64, each entry's smallest value; of choices where they start.
        high: (entries,) float64, each entry's largest value.
    """

    path: Path
    space: Leaf
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def name(self) -> str:
        """The path as one word, with dots."""
        return ".".join(map(str, self.path))

    @property
    def entries(self) -> int:
        """Numbers that it has, choices counted as one each."""
        return len(self.low)

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole: choices, and Boxes of integers."""
        return bool(self.sizes) or self.space.dtype.kind in "iub"  # type: ignore[union-attr]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its stored value."""
        return np.dtype(np.int64 if self.whole else np.float32)


def parts_of(space: gym.Space[Any]) -> tuple[ActionPart, ...]:
    """The leaves of an action space.

    Raises:
        EnvError: as in `envs.spaces.leaves_of`, or there is nothing to choose.
    """
    parts = tuple(_part(path, leaf) for path, leaf in leaves_of(space, "actions").items())
    if not sum(part.entries for part in parts):
        raise EnvError(f"expected an action space with something to choose, got {space}")
    return parts


def stored_type(space: gym.Space[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of one stored action; EnvError as in `parts_of`.

    () int64 of a Discrete, (A,) float32 of a one-dimensional Box of floats, () and a structured
    dtype of a Dict or Tuple.
    """
    parts = parts_of(space)
    if is_leaf(space):
        return parts[0].shape, parts[0].dtype
    return (), np.dtype([(part.name, part.dtype, part.shape) for part in parts])


def is_leaf(space: gym.Space[Any]) -> bool:
    """Whether an action is one value rather than a dict or tuple of them."""
    return not isinstance(space, spaces.Dict | spaces.Tuple)


def column(actions: Any, part: ActionPart) -> Any:
    """A part's values in rows of stored actions."""
    return actions[part.name] if part.path else actions


def to_step(space: gym.Space[Any], parts: Sequence[ActionPart], actions: Any, rows: int) -> Any:
    """Rows of stored actions as `step` takes them: a sequence of fresh values.

    A Discrete is a Python int, a Dict a dict, a Tuple a tuple, all others arrays of the space's
    dtype. Nothing is clipped.

    Raises:
        ValueError: another shape, a choice that the space does not have, or numbers that are not
            whole where the environment takes whole ones.
    """
    if is_leaf(space):
        return _checked(parts[0], actions, rows)
    fields, got = tuple(part.name for part in parts), np.asarray(actions).dtype
    if got.names != fields:
        raise ValueError(f"actions: expected an array with the fields {fields}, got {got}")
    values = {part.path: _checked(part, actions[part.name], rows) for part in parts}
    return [_nested(space, (), values, row) for row in range(rows)]


def from_step(space: gym.Space[Any], actions: Any, rows: int) -> NDArray[Any]:
    """Batched actions as gymnasium's vectors take them, (rows, ...) in every leaf, as stored."""
    parts, (shape, dtype) = parts_of(space), stored_type(space)
    stored = np.empty((rows, *shape), dtype)
    for part in parts:
        value = actions
        for key in part.path:
            value = value[key]
        column(stored, part)[...] = np.asarray(value)
    return stored


def bounded(space: gym.Space[Any], bound: float) -> gym.Space[Any]:
    """The space with finite bounds: itself if it has them, else a copy.

    A side without a bound lies at `bound` (-`bound` below), but at least `bound` from the other
    side; of whole numbers at the whole number that lies next to it outwards.
    """
    if isinstance(space, spaces.Dict):
        inner = {key: bounded(one, bound) for key, one in space.spaces.items()}
        same = all(one is space.spaces[key] for key, one in inner.items())
        return space if same else spaces.Dict(OrderedDict(inner))
    if isinstance(space, spaces.Tuple):
        members = [bounded(one, bound) for one in space.spaces]
        same = all(a is b for a, b in zip(members, space.spaces, strict=True))
        return space if same else spaces.Tuple(members)
    if not isinstance(space, Box) or space.dtype == np.bool_:
        return space
    open_low, open_high = _absurd(space.low), _absurd(space.high)
    if not (open_low.any() or open_high.any()):
        return space
    reach = float(math.ceil(bound)) if np.issubdtype(space.dtype, np.integer) else bound
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    low = np.where(open_low, np.where(open_high, -reach, np.minimum(-reach, high - reach)), low)
    high = np.where(open_high, np.where(open_low, reach, np.maximum(reach, low + reach)), high)
    kind: Any = space.dtype
    return Box(low.astype(kind), high.astype(kind), space.shape, kind)


class BoundedActions(gym.Wrapper[Any, Any, Any, Any]):
    """Shows an action space with finite bounds; actions pass as they are."""

    def __init__(self, env: gym.Env[Any, Any], bound: float) -> None:
        super().__init__(env)
        self.bound = bound
        self._theirs: gym.Space[Any] | None = None

    @property
    def action_space(self) -> gym.Space[Any]:
        """The environment's space, which `reset` may replace, with finite bounds."""
        if self.env.action_space is not self._theirs:
            self._theirs = self.env.action_space
            self._shown = bounded(self._theirs, self.bound)
        return self._shown

    @action_space.setter
    def action_space(self, space: gym.Space[Any]) -> None:
        raise AttributeError("the action space is the environment's own")

    @property
    def assumed(self) -> str:
        """What is assumed, in one sentence."""
        ours = self.action_space
        return (
            f"Actions are {self._theirs}, without finite bounds that mean anything; they are taken "
            f"as {ours}: set env.action_bound (now {self.bound:g}) to what the environment expects"
        )


def with_bounds(env: gym.Env[Any, Any], bound: float) -> gym.Env[Any, Any]:
    """The environment with an action space that has finite bounds; itself if it has one."""
    space = env.action_space
    return env if bounded(space, bound) is space else BoundedActions(env, bound)


def _part(path: Path, leaf: Leaf) -> ActionPart:
    shape = tuple(leaf.shape or ())
    if isinstance(leaf, Box):
        low, high = (side.astype(np.float64).reshape(-1) for side in (leaf.low, leaf.high))
        return ActionPart(path, leaf, shape, (), low, high)
    sizes, starts = (side.reshape(-1) for side in choices_of(leaf))
    low = starts.astype(np.float64)
    return ActionPart(path, leaf, shape, tuple(sizes.tolist()), low, low + sizes - 1)


def _absurd(side: NDArray[Any]) -> NDArray[np.bool_]:
    wide: NDArray[np.bool_] = ~(np.abs(side.astype(np.float64)) < ABSURD)
    return wide


def _checked(part: ActionPart, actions: Any, rows: int) -> Any:
    """One part's values, (rows, *shape), as `step` takes them."""
    name = f"actions.{part.name}" if part.path else "actions"
    values, shape = np.asarray(actions), (rows, *part.shape)
    kind = values.dtype.kind
    if part.whole and (values.shape != shape or kind not in "iub"):
        raise ValueError(
            f"{name}: expected {shape} integers, got shape {values.shape} of {values.dtype}"
        )
    if values.shape != shape or kind not in "iubf":
        raise ValueError(f"{name}: expected shape {shape}, got {values.shape} of {values.dtype}")
    if part.sizes:
        low, high = (side.reshape(part.shape) for side in (part.low, part.high))
        if (values < low).any() or (values > high).any():
            raise ValueError(
                f"{name}: expected {_said(part.low)} to {_said(part.high)}, got {values.tolist()}"
            )
    if isinstance(part.space, Discrete):
        return values.tolist()
    dtype: Any = part.space.dtype
    fresh = np.array(values, dtype=dtype)
    if dtype.kind in "iu" and (fresh != values).any():
        raise ValueError(f"{name}: expected numbers that {dtype} holds, got {values.tolist()}")
    return fresh if part.shape else [np.array(value, dtype) for value in fresh]


def _nested(space: gym.Space[Any], path: Path, values: dict[Path, Any], row: int) -> Any:
    """One action of a Dict or Tuple, put together again."""
    if isinstance(space, spaces.Dict):
        items = space.spaces.items()
        return {key: _nested(one, (*path, key), values, row) for key, one in items}
    if isinstance(space, spaces.Tuple):
        members = enumerate(space.spaces)
        return tuple(_nested(one, (*path, i), values, row) for i, one in members)
    return values[path][row]


def _said(values: NDArray[np.float64]) -> str:
    """One number where all are equal, else all of them."""
    numbers = values.astype(np.int64).tolist()
    return str(numbers[0] if len(set(numbers)) == 1 else numbers)
