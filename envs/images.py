"""Images as the rest of Reverie wants them: uint8 (H, W, C).

In: an environment. Out: the same environment, its image observations resized, turned to grey, or
given the channel axis they lack. It refuses to convert floats or channel-first images, because it
cannot know what they mean; `envs.contract.describe_limits` says so to the user.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.errors import EnvError


class PreparedImages(gym.ObservationWrapper[NDArray[np.uint8], Any, NDArray[np.uint8]]):
    """Grey, then size, then a channel axis: one pass over each image.

    gymnasium's own wrappers are not used because its ResizeObservation drops the axis of a single
    channel while its space keeps it.
    """

    def __init__(
        self, env: gym.Env[NDArray[np.uint8], Any], image_size: int | None, grayscale: bool
    ) -> None:
        super().__init__(env)
        import cv2  # slow to import, and only images need it

        self._cv2 = cv2
        self._grayscale = grayscale
        space = env.observation_space
        height, width, *channels = space.shape or ()
        self._resize = image_size is not None and (height, width) != (image_size, image_size)
        if image_size is not None:
            height = width = image_size
        self._shape = (height, width, 1 if grayscale or not channels else channels[0])
        low, high = int(space.low.min()), int(space.high.max())  # type: ignore[attr-defined]
        self.observation_space = gym.spaces.Box(low, high, self._shape, np.uint8)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Prepare one image, (H, W) or (H, W, C), to the shape of the space."""
        image: Any = observation
        if self._grayscale:
            image = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY)
        if self._resize:
            size = (self._shape[1], self._shape[0])  # OpenCV's order: width, height
            image = self._cv2.resize(image, size, interpolation=self._cv2.INTER_AREA)
        return np.asarray(image, dtype=np.uint8).reshape(self._shape)


def prepare_images(
    env: gym.Env[Any, Any], image_size: int | None, grayscale: bool | None
) -> gym.Env[Any, Any]:
    """Make images, which are uint8 (H, W) or (H, W, C), (H, W, C); leave other observations alone.

    Args:
        env: any environment.
        image_size: height and width to resize to (area interpolation), or None.
        grayscale: turn RGB into one channel, weighted as the eye does (ITU-R BT.601).

    Raises:
        EnvError: resizing or grey was asked for, but the observation is not such an image.
    """
    space = env.observation_space
    shape = space.shape or ()
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8 or len(shape) not in (2, 3):
        if image_size is not None or grayscale:
            raise EnvError(
                f"expected uint8 image observations for image_size and grayscale, got {space}; "
                f"remove these settings or convert the observation in an env.factory"
            )
        return env
    if grayscale and shape[2:] != (3,):
        raise EnvError(
            f"expected colour images (H, W, 3) to turn to grey, got shape {shape}; "
            f"remove env.grayscale"
        )
    resized = image_size is not None and shape[:2] != (image_size, image_size)
    if not grayscale and not resized and len(shape) == 3:
        return env
    return PreparedImages(env, image_size, bool(grayscale))
