"""How an image becomes the levels that a world model speaks of, and back: the one way in and out.

A pixel of whole numbers has as many values as its space has. Where there are few of them, or the
image is so small that it is rather a grid of symbols, each is a level of its own; else levels are
intensities, many values in one. A pixel of floats is an intensity from 0 to its bound.
"""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.images import LEVELS
from mbrl.errors import ConfigError
from mbrl.streams import streams_of

_FEW = 32  # values, of which each is a level
_SMALL = 11  # pixels of height and width, up to which an image is a grid of symbols
_INTENSITIES = 16


class Images:
    """The images of one environment.

    Attributes:
        shape: (C, H, W).
        low: the least value of a pixel.
        span: the largest value less the least.
        levels: V, that the model tells apart.
        exact: each value of a pixel is a level.
    """

    low: float
    span: float

    def __init__(self, space: spaces.Space[np.ndarray], levels: int | None = None) -> None:
        """Take in a space, and how many levels are wanted; None for as many as suit it.

        Raises:
            ConfigError: it is not one image (H, W, C), or has fewer values than levels.
        """
        box = _one_image(space)
        height, width, channels = box.shape
        self.shape = (channels, height, width)
        self.dtype = torch.from_numpy(np.zeros(0, box.dtype)).dtype
        whole = np.dtype(box.dtype).kind != "f"
        least, most = (bound.flat[0].item() for bound in (box.low, box.high))
        self.low, self.span = (int(least), int(most) - int(least)) if whole else (least, most)
        self._values = int(self.span) + 1 if whole else LEVELS
        self._small = max(height, width) <= _SMALL
        every = whole and (self._values <= _FEW or self._small)
        self.levels = levels or (self._values if every else _INTENSITIES)
        if self.levels > self._values:
            raise ConfigError(
                f"world_model.decoder.levels: expected at most {self._values}, the number of "
                f"values a pixel takes here, got {self.levels}"
            )
        self.exact = whole and self.levels == self._values
        self._plain = self.low == 0 and self.dtype == torch.uint8

    def to_levels(self, obs: Tensor) -> Tensor:
        """Images (..., H, W, C) to integer levels (..., C, H, W) in [0, V), uint8."""
        image = obs.movedim(-1, -3)
        if self.exact:
            return image if self._plain else (image.to(torch.int64) - self.low).to(torch.uint8)
        if not self.dtype.is_floating_point:
            above = image.to(torch.int32)
            above = above - int(self.low) if self.low else above
            return (above * self.levels // self._values).to(torch.uint8)
        share = image.float() / self.span
        return (share * self.levels).floor().clamp(0, self.levels - 1).to(torch.uint8)

    def to_pixels(self, levels: Tensor) -> Tensor:
        """Levels (..., C, H, W) to images (..., H, W, C) of the space, each level's middle."""
        image = levels.movedim(-3, -1)
        if self.exact:
            return image if self._plain else (image.to(torch.int64) + self.low).to(self.dtype)
        if not self.dtype.is_floating_point:
            width = self._values / self.levels
            return ((image.float() + 0.5) * width - 0.5 + self.low).round().to(self.dtype)
        return ((image.float() + 0.5) * (self.span / self.levels)).to(self.dtype)

    def intensities(self, obs: Tensor) -> Tensor:
        """Images (..., H, W, C) to float32 (..., C, H, W) in [0, 1].

        Written out channel by channel: a view would let the convolutions choose channels last, in
        which normalising each map by itself takes half of all training on a CPU.
        """
        image = obs.movedim(-1, -3)  # (..., C, H, W)
        frames = torch.empty(image.shape, device=obs.device).copy_(image)
        return (frames.sub_(self.low) if self.low else frames).div_(self.span)

    def doubt(self, obs: Tensor) -> str:
        """What to tell the user of images in which there is little to see, else nothing.

        All pixels fall into one level, or a grid of symbols uses few of the values it declares.
        """
        if not obs.is_floating_point():  # torch finds no least of the larger unsigned types
            obs = obs.to(torch.int64)
        least, most = obs.min().item(), obs.max().item()
        seen = f"values from {least:g} to {most:g}, of {self.low:g} to {self.low + self.span:g}"
        levels = self.to_levels(obs)
        if int(levels.min()) == int(levels.max()):
            way = "set env.image_values to the number of values that there are"
            if least == most:
                way = "look at what the environment shows"
            elif self.dtype.is_floating_point:
                way = "scale the images in an env.factory, or raise world_model.decoder.levels"
            return (
                f"sees nothing, as all pixels of the first batch are in one of its {self.levels} "
                f"levels ({seen}); {way}"
            )
        if self.exact and self._small and 8 * (most - self.low) <= self.span:
            return (
                f"reads a grid of symbols that uses few of its values ({seen}); set "
                f"env.image_values to their number, such as 11 for MiniGrid, which is learnt faster"
            )
        return ""


def _one_image(space: spaces.Space[np.ndarray]) -> spaces.Box:
    """The Box of an observation that is one image (H, W, C)."""
    streams = streams_of(space)
    box = streams[0].space
    if len(streams) == 1 and streams[0].column == "obs":
        if streams[0].kind == "image" and isinstance(box, spaces.Box) and len(box.shape) == 3:
            return box
        got, way = str(space), "use another layout, or wrap the environment to return images"
    else:
        got = ", ".join(f"{one.column} ({one.kind})" for one in streams)
        images = [one.column.partition(".")[2] for one in streams if one.kind == "image"]
        way = "use another layout"
        if images:
            way = f"choose one with env.observe: [{images[0]}], which drops the others"
    raise ConfigError(
        f"world_model.layout: expected one image (H, W, C) as observations for grid and flat, "
        f"got {got}; {way}"
    )
