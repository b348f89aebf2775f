"""Images as the rest of Reverie wants them: (H, W, C).

In: an environment. Out: the same environment, the images among its observations turned to
(H, W, C), resized or made grey. Which arrays are images is decided here, for everybody: whole
numbers of at most 256 values, or floats from 0 to 1 or 0 to 255, in a rectangle. Turning moves
numbers and changes none. Everything else is left as it is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple

from envs.errors import EnvError
from envs.spaces import Space, members_of

Turn = Callable[[Any], Any]

LEVELS = 256
"""Most values that a pixel of whole numbers takes."""
_CHANNELS = 4  # up to so many along the first of three axes are channels, if the last has more
_FLOAT_SIDE = 8  # of a picture of floats; smaller arrays of them are rather measurements


def is_image(space: Space) -> bool:
    """Whether a space is of images: (H, W), (H, W, C), (C, H, W), or a stack of the latter two.

    All entries share one range: whole numbers or bools of 2 to 256 values, or floats in [0, 1] or
    [0, 255] of at least 8 x 8 pixels.
    """
    if not isinstance(space, Box) or not 2 <= len(space.shape) <= 4 or 0 in space.shape:
        return False
    low, high = space.low.min(), space.high.max()
    if (space.low != low).any() or (space.high != high).any():
        return False
    if np.dtype(space.dtype).kind in "uib":
        return 1 <= int(high) - int(low) < LEVELS
    height, width, _ = _turned_shape(space.shape)
    return low == 0 and high in (1, LEVELS - 1) and min(height, width) >= _FLOAT_SIDE


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an image that are height and width, then those that are channels.

    Of three, the first is channels if it has at most 4 entries and the others more, or if the other
    two are a square of which the first is no side. Of four, the first is a stack of such images.
    """
    if len(shape) == 2:
        return 0, 1
    if len(shape) == 4:
        height, width, channel = (1 + axis for axis in _axes(shape[1:]))
        return height, width, 0, channel
    first, second, third = shape
    few = first <= _CHANNELS < min(second, third)
    square = first != second == third > _CHANNELS
    return (1, 2, 0) if few or square else (0, 1, 2)


def _turned_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C); a stack's images count as channels."""
    height, width, *channels = (shape[axis] for axis in _axes(shape))
    return height, width, math.prod(channels)


class _Prepare:
    """Turn, grey, then size: one pass over each image.

    gymnasium's own wrappers are not used because its ResizeObservation drops the axis of a single
    channel while its space keeps it.
    """

    def __init__(self, space: Box, image_size: int | None, grayscale: bool) -> None:
        self._given, self._axes = space.shape, _axes(space.shape)
        self._turned = height, width, channels = _turned_shape(space.shape)
        size = (height, width) if image_size is None else (image_size, image_size)
        self._resize, self._grayscale = size != (height, width), grayscale
        if (self._resize or grayscale) and space.dtype not in (np.uint8, np.float32):
            raise EnvError(
                f"expected images of uint8 or float32 for image_size and grayscale, got {space}; "
                f"remove these settings or convert the observation in an env.factory"
            )
        if grayscale and channels != 3:
            raise EnvError(
                f"expected colour images (H, W, 3) to turn to grey, got shape {space.shape}; "
                f"remove env.grayscale"
            )
        self._shape = (*size, 1 if grayscale else channels)
        self.space = _uniform(space, space.high.flat[0], self._shape)
        self._cv2: Any = None
        if self._resize or grayscale:
            import cv2  # slow to import, and only these two need it

            self._cv2 = cv2

    def __call__(self, observation: Any) -> Any:
        """Prepare one image; what is not as promised is left to who stores it."""
        image: Any = np.asarray(observation)
        if image.shape != self._given:
            return observation
        image = image.transpose(self._axes).reshape(self._turned)
        if self._grayscale:
            image = self._cv2.cvtColor(np.ascontiguousarray(image), self._cv2.COLOR_RGB2GRAY)
        if self._resize:
            size = (self._shape[1], self._shape[0])  # OpenCV's order: width, height
            image = np.ascontiguousarray(image)
            image = self._cv2.resize(image, size, interpolation=self._cv2.INTER_AREA)
        return image.reshape(self._shape)


class PreparedImages(gym.ObservationWrapper[Any, Any, Any]):
    """The images among the observations, prepared."""

    def __init__(self, env: gym.Env[Any, Any], space: Space, prepare: Turn) -> None:
        super().__init__(env)
        self.observation_space, self._prepare = space, prepare

    def observation(self, observation: Any) -> Any:
        """Prepare what is an image; the rest is not touched."""
        return self._prepare(observation)


class FewerValues(gym.Wrapper[Any, Any, Any, Any]):
    """Says of images of whole numbers that they take fewer values than their space declares."""

    def __init__(self, env: gym.Env[Any, Any], values: int) -> None:
        """An EnvError if there is no such image."""
        super().__init__(env)
        changed = _fewer(env.observation_space, values)
        if changed is None:
            raise EnvError(
                f"env.image_values: expected images of whole numbers that take more than {values} "
                f"values, got {env.observation_space}; remove it"
            )
        self.observation_space = changed


def _fewer(space: Space, values: int) -> Space | None:
    """A space whose images of whole numbers have so many values; None if nothing changes."""
    if isinstance(space, Dict | Tuple):
        parts = members_of(space)
        changed = {key: _fewer(part, values) for key, part in parts.items()}
        if not any(changed.values()):
            return None
        both = [(key, changed[key] or part) for key, part in parts.items()]
        return Dict(both) if isinstance(space, Dict) else Tuple([part for _, part in both])
    whole = isinstance(space, Box) and np.dtype(space.dtype).kind in "ui"
    if not whole or not isinstance(space, Box) or not is_image(space):
        return None
    high = int(space.low.flat[0]) + values - 1
    if high >= int(space.high.flat[0]):
        return None
    return _uniform(space, high, space.shape)


def _uniform(space: Box, high: Any, shape: tuple[int, ...]) -> Box:
    """A space of the type and least value of another, with this largest value and shape."""
    dtype: Any = np.dtype(space.dtype).type
    return Box(space.low.flat[0], dtype(high), shape, dtype)


def prepare_images(
    env: gym.Env[Any, Any], image_size: int | None, grayscale: bool | None
) -> gym.Env[Any, Any]:
    """Make images (H, W, C), those in a Dict or a Tuple too; leave all else alone.

    Args:
        env: any environment.
        image_size: height and width to resize to (area interpolation), or None.
        grayscale: turn RGB into one channel, weighted as the eye does (ITU-R BT.601).

    Raises:
        EnvError: resizing or grey was asked for, but no observation is such an image.
    """
    space = env.observation_space
    if (image_size is not None or grayscale) and not _holds_image(space):
        raise EnvError(
            f"expected image observations for image_size and grayscale, got {space}; "
            f"remove these settings or convert the observation in an env.factory"
        )
    prepared, prepare = _prepared(space, image_size, bool(grayscale))
    return env if prepare is None else PreparedImages(env, prepared, prepare)


def _holds_image(space: Space) -> bool:
    if isinstance(space, Dict | Tuple):
        return any(map(_holds_image, members_of(space).values()))
    return is_image(space)


def _prepared(space: Space, image_size: int | None, grayscale: bool) -> tuple[Space, Turn | None]:
    """The space of prepared observations, and what prepares one; None if there is nothing to do."""
    if isinstance(space, Dict | Tuple):
        parts = {
            key: _prepared(part, image_size, grayscale) for key, part in members_of(space).items()
        }
        turns = {key: turn for key, (_, turn) in parts.items() if turn is not None}
        if not turns:
            return space, None
        spaces = {key: part for key, (part, _) in parts.items()}
        if isinstance(space, Dict):
            return Dict(list(spaces.items())), _in_dict(turns)
        return Tuple(list(spaces.values())), _in_tuple(turns)
    if not isinstance(space, Box) or not is_image(space):
        return space, None
    same_size = image_size is None or space.shape[:2] == (image_size, image_size)
    if _axes(space.shape) == (0, 1, 2) and same_size and not grayscale:
        return space, None
    prepare = _Prepare(space, image_size, grayscale)
    return prepare.space, prepare


def _in_dict(turns: dict[Any, Turn]) -> Turn:
    def prepare(observation: Any) -> Any:
        if not isinstance(observation, Mapping) or not turns.keys() <= observation.keys():
            return observation
        return {**observation, **{key: turn(observation[key]) for key, turn in turns.items()}}

    return prepare


def _in_tuple(turns: dict[Any, Turn]) -> Turn:
    def prepare(observation: Any) -> Any:
        if not isinstance(observation, tuple | list) or len(observation) <= max(turns):
            return observation
        return tuple(turns[at](one) if at in turns else one for at, one in enumerate(observation))

    return prepare
