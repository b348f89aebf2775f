"""What is to be seen in images of a game: its objects, counted and placed by their detectors.

Fitted on training images in the study's own levels. A game without objects or with more than one
backdrop, images too small to show them, or a user's own images have no sight; then only what a
model says of images can be scored. Images of half the side are enlarged first, so that places and
distances are in the same pixels for both.
"""

import numpy as np
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import rng_of
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.objects import (
    FITTED,
    Detector,
    Floats,
    contrast,
    fit_detectors,
    texture_byte,
    truth,
)
from mbrl.studies.flows.images import SIDE, ImageSet
from mbrl.studies.flows.interpolation import count_objects

Images = NDArray[np.uint8]

SIDES = (SIDE // 2, SIDE)
"""Sides of images in which objects are still seen; in smaller ones a ball is a shade of grey."""


class Sight:
    """Detectors of the objects that can be told from what else is in their region."""

    def __init__(self, images: ImageSet, game: str) -> None:
        """Fit on random training images."""
        known = GAMES[game]
        if images.train_ram is None:
            raise ValueError(f"{game}: expected the console's memory with every frame")
        rows = rng_of(0, "flows/sight").permutation(len(images.train))[:FITTED]
        self.images = images
        frames, ram = self.frames(images.train[rows]), images.train_ram[rows]
        self.backdrop = np.median(frames, axis=0).astype(np.float64)
        found = fit_detectors(known.objects, contrast(frames, self.backdrop), ram)
        self.detectors: dict[str, Detector] = {
            name: detector for name, detector in found.items() if detector.alone
        }

    @property
    def lead(self) -> str | None:
        """The object that interpolations follow: the first one, the ball where there is one."""
        return next(iter(self.detectors), None)

    def frames(self, levels: Images) -> Images:
        """Images (N, H, W, C) of levels as frames (N, SIDE, SIDE, C) of intensities, enlarged."""
        return enlarged(self.images.pixels(levels), SIDE // levels.shape[1])

    def contrasts(self, levels: Images) -> Floats:
        """(N, SIDE, SIDE, 2) of images (N, H, W, C) of levels, by the usual backdrop."""
        return contrast(self.frames(levels), self.backdrop)

    def counts(self, levels: Images) -> dict[str, NDArray[np.int64]]:
        """How many there are of each object in images (N, H, W, C) of levels, (N,) each."""
        contrasts = self.contrasts(levels)
        return {
            name: count_objects(detector, contrasts) for name, detector in self.detectors.items()
        }

    def places(self, name: str, levels: Images) -> Floats:
        """Where the strongest one is, (N, 2) row and column; NaN where none is present."""
        found = self.detectors[name].strongest(self.contrasts(levels))
        return np.where(found.present[:, None], found.position, np.nan)

    def visible(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the object is really there, once, in held-out images."""
        if self.images.held_out_ram is None:
            return np.zeros(len(rows), np.bool_)
        levels, ram = self.images.held_out[rows], self.images.held_out_ram[rows]
        detector = self.detectors[name]
        contrasts = self.contrasts(levels)
        return truth(detector, contrasts, ram).visible & (count_objects(detector, contrasts) == 1)


def sight_of(images: ImageSet, game: str | None) -> Sight | None:
    """The sight of a game's images, or None where there is none."""
    sides = set(images.shape[1:])
    if game is None or len(sides) > 1 or not sides <= set(SIDES) or not GAMES[game].objects:
        return None
    if images.train_ram is None or texture_byte(GAMES[game]) is not None:
        return None
    sight = Sight(images, game)
    return sight if sight.detectors else None


def enlarged(images: Images, factor: int) -> Images:
    """Images (N, H, W, C) with every pixel repeated `factor` times along rows and columns."""
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
