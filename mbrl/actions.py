"""What an action space is to the models: choices, numbers, and one vector of both.

An action has three forms here. *Stored* is a numpy array as `envs.actions` describes it, and what
the environment was given. *Flat* is the same numbers without fields, as a tensor may hold them: of
a leaf just the stored ones, of a Dict or Tuple all parts side by side, (..., P) float64, exact for
whole numbers below 2^53. A *vector* is what a world model reads, (..., A) float32: every choice
one-hot, and every number from -1 to 1 between its bounds.

A one-dimensional Box of floats is its own vector, as it always was, so that models that are trained
stay what they are.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.lib import recfunctions
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.actions import ActionPart, is_leaf, parts_of, stored_type
from envs.errors import EnvError
from mbrl.errors import ConfigError

Array = NDArray[np.generic]


def flat(stored: Array) -> Array:
    """Stored actions (...,) or (..., *shape) in flat form; itself if there are no fields."""
    if stored.dtype.names is None:
        return stored
    fields: NDArray[Any] = stored
    numbers: Array = recfunctions.structured_to_unstructured(fields, dtype=np.float64)
    return numbers


def stored(flat_actions: Array, dtype: np.dtype[Any]) -> Array:
    """Flat actions (...) in stored form, of that dtype; the inverse of `flat`."""
    if dtype.names is None:
        return np.asarray(flat_actions, dtype)
    numbers: Array = recfunctions.unstructured_to_structured(np.asarray(flat_actions), dtype=dtype)
    return numbers


class ActionCodec:
    """Turns what a policy draws into what an environment is given, is stored and is followed.

    Attributes:
        space: of one environment.
        parts: its leaves.
        shape, dtype: of one stored action.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        """Take a space apart.

        Raises:
            ConfigError: it has a part of another kind, or one without finite bounds.
        """
        try:
            self.parts = parts_of(space)
        except EnvError as error:
            raise ConfigError(f"actions: {error}") from error
        self.space = space
        self.shape, self.dtype = stored_type(space)
        for part in self.parts:
            if not (np.isfinite(part.low).all() and np.isfinite(part.high).all()):
                raise ConfigError(
                    f"actions: expected finite bounds, got {part.space}; `envs.make_env` sets them"
                )

    def zeros(self, rows: int, device: torch.device) -> Tensor:
        """Flat actions (rows, ...) of episodes that have none yet."""
        return torch.as_tensor(flat(np.zeros((rows, *self.shape), self.dtype)), device=device)

    def store(self, flat_actions: Tensor) -> Array:
        """Stored actions (N, ...) of flat ones, as near as the environment's numbers allow."""
        numbers = flat_actions.numpy()
        if is_leaf(self.space):
            return _snapped(self.parts[0], numbers)
        actions, begin = np.empty(len(numbers), self.dtype), 0
        for part in self.parts:
            piece = numbers[:, begin : begin + part.entries]
            actions[part.name] = _snapped(part, piece.reshape(-1, *part.shape))
            begin += part.entries
        return actions

    def sample(self, rng: np.random.Generator, rows: int) -> Array:
        """Uniform stored actions (rows, ...)."""
        if not is_leaf(self.space):
            actions = np.empty(rows, self.dtype)
            for part in self.parts:
                actions[part.name] = _sampled(part, rng, rows)
            return actions
        return _sampled(self.parts[0], rng, rows)


class ActionVector(nn.Module):
    """Flat actions to vectors. It has no weights, and `size` is A."""

    def __init__(self, codec: ActionCodec) -> None:
        super().__init__()
        space, self.parts = codec.space, codec.parts
        self.space, self.one = space, is_leaf(space)
        self.size = sum(sum(part.sizes) or part.entries for part in self.parts)
        self.counted = isinstance(space, spaces.Discrete) and space.start == 0
        self.as_it_is = isinstance(space, spaces.Box) and _is_plain(space)
        for i, part in enumerate(self.parts):
            half = np.maximum(0.5 * (part.high - part.low), 1e-9)
            sizes = np.array(part.sizes or [1], np.int64)
            constants = {
                "low": part.low,
                "high": part.high,
                "middle": 0.5 * (part.low + part.high),
                "half": half,
                "offset": np.cumsum(sizes) - sizes,
            }
            for name, values in constants.items():
                self.register_buffer(f"{name}_{i}", torch.as_tensor(values), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """(...,), (..., *shape) or (..., P) to (..., A) float32."""
        if self.counted:
            return nn.functional.one_hot(action.long(), self.size).float()
        if self.as_it_is:
            return action.float()
        if self.one:
            axes = len(self.parts[0].shape)
            flat_action = action.flatten(-axes) if axes else action.unsqueeze(-1)
            return self._vector(0, flat_action)
        pieces = action.split([part.entries for part in self.parts], -1)
        return torch.cat([self._vector(i, piece) for i, piece in enumerate(pieces)], -1)

    def _vector(self, i: int, values: Tensor) -> Tensor:
        """One part's entries (..., entries) as numbers that models read."""
        part = self.parts[i]
        low = self.get_buffer(f"low_{i}")
        if not part.sizes:
            middle, half = self.get_buffer(f"middle_{i}"), self.get_buffer(f"half_{i}")
            return ((values.double() - middle) / half).float()
        choice = values.long() - low.long()
        # before the first action there is none: zero, which need not be one of the choices
        missing = (values == 0) & ((low > 0) | (self.get_buffer(f"high_{i}") < 0))
        choice = choice.masked_fill(missing, 0)
        if len(part.sizes) == 1:
            return nn.functional.one_hot(choice.squeeze(-1), part.sizes[0]).float()
        one_hot = torch.zeros(*values.shape[:-1], sum(part.sizes), device=values.device)
        return one_hot.scatter_(-1, choice + self.get_buffer(f"offset_{i}"), 1.0)


def _is_plain(space: spaces.Box) -> bool:
    """Whether it is a one-dimensional Box of floats."""
    return len(space.shape) == 1 and space.dtype.kind == "f"  # type: ignore[union-attr]


def _sampled(part: ActionPart, rng: np.random.Generator, rows: int) -> Array:
    """Uniform values (rows, *shape) of one part."""
    if isinstance(part.space, spaces.Discrete):
        start = int(part.low[0])
        return rng.integers(start, start + part.sizes[0], rows)
    size = (rows, part.entries)
    if part.whole:
        low, high = part.low.astype(np.int64), part.high.astype(np.int64)
        return rng.integers(low, high + 1, size).reshape(rows, *part.shape)
    drawn = rng.uniform(part.low, part.high, size).reshape(rows, *part.shape)
    return _snapped(part, drawn)


def _snapped(part: ActionPart, values: Array) -> Array:
    """Numbers (N, *shape) as the environment can be given them, inside the bounds of a Box."""
    numbers: NDArray[Any] = values
    if part.whole and numbers.dtype.kind == "f":
        numbers = np.rint(numbers).astype(np.int64)
    if part.sizes:
        return numbers
    bounds: tuple[NDArray[Any], NDArray[Any]]
    if part.whole:
        bounds = part.low.astype(np.int64), part.high.astype(np.int64)
    else:
        if part.space.dtype == np.float16:
            numbers = numbers.astype(np.float16)
        numbers = numbers.astype(np.float32, copy=False)
        bounds = _inwards(part.low, np.inf), _inwards(part.high, -np.inf)
    low, high = (side.reshape(part.shape) for side in bounds)
    return np.clip(numbers, low, high)


def _inwards(bound: NDArray[np.float64], towards: float) -> NDArray[np.float32]:
    """float32 numbers at bounds, or next to them on the inner side where they lie between two."""
    near = bound.astype(np.float32)
    beyond = near < bound if towards > 0 else near > bound
    moved: NDArray[np.float32] = np.where(beyond, np.nextafter(near, np.float32(towards)), near)
    return moved
