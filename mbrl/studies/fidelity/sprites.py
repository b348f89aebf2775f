"""From a console's memory to places in a picture: the geometry of one object.

The Atari 2600 draws 210 x 160 pixels; our frames are 64 x 64 by area interpolation, so that row =
y * 64 / 210 and column = x * 64 / 160. A byte of memory holds a coordinate up to a sign and an
offset. This module turns such bytes into centres of objects in pixels of the frame, and says when
an object can be seen; it knows no game, and looks at no picture.

Two things no such map can know. A frame is the maximum of the last two screens, so what moves fast
is drawn twice while the memory is that of the newer one. And the pixel of index i has its middle
at i, so that centroids of pixel indices compare with these centres.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ram = NDArray[np.uint8]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Locate = Callable[[Ram], tuple[Floats, Bools]]
"""Memory (N, R) to centres (N, 2) [row, column] in pixels, and whether it can be seen (N,)."""

SCREEN = (210.0, 160.0)
FRAME = 64.0
ENOUGH = 0.6
"""An object counts as visible if at least this share of its height and of its width is."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a game, and where a detector shall look for it.

    Attributes:
        name: "ball", "own_paddle", "other_paddle", ...
        region: (top, left, bottom, right) in pixels of the frame, bottom and right outside.
        locate: memory (N, R) to centres (N, 2) [row, column] and visible (N,) bool.
        radius: pixels; a drawing this near counts as recalled.
        window: (rows, columns), odd: a box that holds the whole object.
    """

    name: str
    region: tuple[int, int, int, int]
    locate: Locate
    radius: float = 3.0
    window: tuple[int, int] = (3, 3)


@dataclass(frozen=True)
class Axis:
    """An object's middle along one axis: sign * ram[index] + offset, in screen pixels.

    Attributes:
        offset: added; the middle itself where there is no index.
        size: of the object along this axis, screen pixels.
        index: which byte of the memory; None for an object that never moves along this axis.
        sign: 1 or -1.
        flip: (index, shift): where that byte is 0 the sprite looks the other way, and its middle is
            `shift` screen pixels farther.
    """

    offset: float
    size: float
    index: int | None = None
    sign: int = 1
    flip: tuple[int, float] | None = None

    def middle(self, ram: Ram) -> Floats:
        """Screen coordinate of the middle, (N,)."""
        places = np.full(len(ram), self.offset)
        if self.index is not None:
            places += self.sign * ram[:, self.index].astype(np.float64)
        if self.flip is not None:
            index, shift = self.flip
            places += np.where(ram[:, index] == 0, shift, 0.0)
        return places


def sprite(
    row: Axis,
    column: Axis,
    field: tuple[float, float, float, float],
    shown: Callable[[Ram], Bools] | None = None,
) -> Locate:
    """Locate an Atari object of known size.

    Args:
        row: its vertical middle and height.
        column: its horizontal middle and width.
        field: (top, left, bottom, right) in screen pixels; the part of an object that is outside is
            hidden, and its centre is that of the part that is left.
        shown: memory (N, R) to (N,) bool: False where it is not drawn at all.
    """
    top, left, bottom, right = field

    def locate(ram: Ram) -> tuple[Floats, Bools]:
        rows, whole_rows = _clip(row.middle(ram), row.size, top, bottom)
        columns, whole_columns = _clip(column.middle(ram), column.size, left, right)
        centres = np.stack([to_frame(rows, SCREEN[0]), to_frame(columns, SCREEN[1])], -1)
        visible = whole_rows & whole_columns
        return centres, visible if shown is None else visible & shown(ram)

    return locate


def to_frame(places: Floats, extent: float) -> Floats:
    """Screen coordinates to pixel indices of a frame of 64, `extent` being the screen's size."""
    return places * (FRAME / extent) - 0.5


def region_of(field: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """The pixels of the frame that lie wholly inside a field given in screen pixels."""
    down, across = FRAME / SCREEN[0], FRAME / SCREEN[1]
    top, left, bottom, right = field
    return (
        int(np.ceil(top * down - 1e-9)),
        int(np.ceil(left * across - 1e-9)),
        int(np.floor(bottom * down + 1e-9)),
        int(np.floor(right * across + 1e-9)),
    )


def _clip(middle: Floats, size: float, low: float, high: float) -> tuple[Floats, Bools]:
    """The middle of the part between `low` and `high`, and whether that part is large enough."""
    first = np.clip(middle - size / 2, low, high)
    last = np.clip(middle + size / 2, low, high)
    return (first + last) / 2, (last - first) >= ENOUGH * size
