"""What an observation space promises, and one sentence when an environment breaks it.

In: a space, and what an environment showed. Out: arrays, or an `EnvError`. Another shape or type
cannot be stored, and numbers that are not finite would poison every model: both end the run, as
does a category or a pixel that its space does not have. Measurements outside the bounds of their
Box are only told of, once for each column: many good environments declare bounds that they leave.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from envs.errors import EnvError
from envs.images import is_image
from envs.spaces import Leaf, choices_of

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_TYPED = np.ndarray, np.generic


class Promise:
    """What one leaf of a space promises of each value.

    Attributes:
        column: its name.
        shape, dtype: of one value as it is stored.
    """

    def __init__(self, column: str, leaf: Leaf) -> None:
        self.column, self._leaf = column, leaf
        self.shape: tuple[int, ...] = leaf.shape or ()
        self.dtype: np.dtype[Any] = np.dtype(leaf.dtype)
        self._is_box = isinstance(leaf, Box)
        self._strict = not self._is_box or is_image(leaf)
        self._low, self._high = map(self._needed, _bounds(leaf))

    def _needed(self, bound: Array) -> Any:
        """A bound to compare with, one number if it can be; None if no number of the type is out.

        Floats always are compared, as some are not finite.
        """
        first = bound.flat[0] if bound.size else 0
        if not (bound == first).all():
            return bound
        all_in = self.dtype.kind != "f" and first in _limits(self.dtype)
        return None if all_in else first

    def checked(self, value: Any) -> Array:
        """One value as an array of the promised shape and type.

        Python's numbers and lists, which have no type of their own, take the promised one, as do
        the whole numbers of a category.

        Raises:
            ValueError: it is of another shape or type; the message says which.
        """
        typed = isinstance(value, _TYPED)
        if typed and value.dtype == self.dtype and value.shape == self.shape:
            return value
        expected = (
            f"expected observations of shape {self.shape} and dtype {self.dtype} for "
            f"{self.column}, as its space says"
        )
        try:
            got = np.asarray(value)
        except ValueError as error:  # lists of lists of different lengths
            raise ValueError(f"{expected}, got {type(value).__name__}: {error}") from error
        kinds = "iub" if self.dtype.kind in "iub" else "iubf"
        if got.shape != self.shape or got.dtype.kind not in kinds or (typed and self._is_box):
            raise ValueError(f"{expected}, got {got.shape} and {got.dtype}")
        converted = got.astype(self.dtype)
        if got.dtype.kind in kinds[:3] and (converted != got).any():
            raise ValueError(f"{expected}, got {value!r:.60}")
        return converted

    def watch(self, rows: Array, where: Callable[[int], str]) -> None:
        """Look at values (E, *shape) for those that the space does not hold.

        `where` names row i in a message. Costs a comparison of all rows at once.

        Raises:
            EnvError: a number is not finite, or is a category or pixel that there is none of.
        """
        above = self._low is None or (rows >= self._low).all()
        if not above or not (self._high is None or (rows <= self._high).all()):
            self._tell(rows, where)

    def _tell(self, rows: Array, where: Callable[[int], str]) -> None:
        """Find the first value outside; refuse it, or tell of it and look no more."""
        low, high = (
            limit if bound is None else bound
            for bound, limit in zip((self._low, self._high), _limits(self.dtype), strict=True)
        )
        inside = (rows >= low) & (rows <= high)
        index = tuple(int(i) for i in np.argwhere(~inside)[0])
        seen, entry = rows[index], list(index[1:])
        place = f"{where(index[0])}: expected {self.column} within {self._leaf}, got {seen}"
        place += f" at {entry}" if entry else ""
        if not np.isfinite(seen):
            raise EnvError(
                f"{place}; mend the environment, or replace such values in an env.factory"
            )
        if self._strict:
            raise EnvError(f"{place}; mend the environment, or widen its observation_space")
        logger.warning("%s; it is stored as it is, and this is said once", place)
        self._low, self._high = map(self._needed, map(np.asarray, _limits(self.dtype)))


def _bounds(leaf: Leaf) -> tuple[Array, Array]:
    """The least and the largest value of each entry; finite ones for floats without bounds."""
    if isinstance(leaf, Box):
        least, most = _limits(np.dtype(leaf.dtype))
        return np.maximum(leaf.low, least), np.minimum(leaf.high, most)
    sizes, starts = choices_of(leaf)
    return starts.astype(leaf.dtype), (starts + sizes - 1).astype(leaf.dtype)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the largest finite number of a type."""
    if dtype.kind == "b":
        return np.False_, np.True_
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return dtype.type(info.min), dtype.type(info.max)
