"""What is to be seen in images of a game: its objects, counted, placed and followed.

Whether a model's pictures are pictures shows in their objects: how many there are, and whether one
moves evenly along a path of pictures (a cross-fade shows it twice, and then it jumps). There is no
sight of a game without objects or with more than one backdrop, of images too small to show them,
and of a user's own images; then only likelihoods can be scored. Images of half the side are
enlarged first, so that distances are in the same pixels for both. The scores are our own.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import rng_of
from mbrl.studies.fidelity.games import GAMES, Bools, Floats
from mbrl.studies.fidelity.objects import (
    FITTED,
    HAZE,
    Detector,
    contrast,
    crop,
    fit_detectors,
    texture_byte,
    truth,
)
from mbrl.studies.flows.images import SIDE, ImageSet

Images = NDArray[np.uint8]

SIDES = (SIDE // 2, SIDE)
"""Sides of images in which objects are still seen; in smaller ones a ball is a shade of grey."""
LEAST = 0.25
"""Share of an object's usual mass below which a blob is a speck, and no object."""


class Sight:
    """Detectors of a game's objects."""

    def __init__(self, images: ImageSet, game: str) -> None:
        """Fit on random training images."""
        if images.train_ram is None:
            raise ValueError(f"{game}: expected the console's memory with every frame")
        rows = rng_of(0, "flows/sight").permutation(len(images.train))[:FITTED]
        self.images = images
        frames, ram = self.frames(images.train[rows]), images.train_ram[rows]
        self.backdrop = np.median(frames, axis=0).astype(np.float64)
        contrasts = contrast(frames, self.backdrop)
        self.detectors = fit_detectors(GAMES[game].objects, contrasts, ram)

    @property
    def lead(self) -> str:
        """The object that interpolations follow: the first one, the ball where there is one."""
        return next(iter(self.detectors))

    def frames(self, levels: Images) -> Images:
        """Images (N, H, W, C) of levels as frames (N, SIDE, SIDE, C) of intensities, enlarged."""
        factor = SIDE // levels.shape[1]
        return self.images.pixels(levels).repeat(factor, axis=1).repeat(factor, axis=2)

    def contrasts(self, levels: Images) -> Floats:
        """(N, SIDE, SIDE, 2) of images (N, H, W, C) of levels, by the usual backdrop."""
        return contrast(self.frames(levels), self.backdrop)

    def counts(self, levels: Images) -> dict[str, NDArray[np.int64]]:
        """How many there are of each object in images (N, H, W, C) of levels, (N,) each."""
        contrasts = self.contrasts(levels)
        return {name: count_objects(one, contrasts) for name, one in self.detectors.items()}

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
    return Sight(images, game)


def count_objects(detector: Detector, contrasts: Floats) -> NDArray[np.int64]:
    """How many of an object there are in pictures, wherever they are in its region.

    One is a blob of pixels that touch (also at corners), each above `HAZE` of the object's usual
    peak, whose contrast sums to at least `LEAST` of its usual mass. (N, H, W, 2) to (N,).
    """
    inside = crop(contrasts, detector.target.region) @ np.asarray(detector.sides)
    least = LEAST * (detector.mass - detector.floor)
    strong = (inside > HAZE * detector.peak).astype(np.uint8)
    counts = []
    for flags, values in zip(strong, inside, strict=True):
        _, blobs = cv2.connectedComponents(flags)  # 0 is everything else
        masses = np.bincount(blobs.ravel(), values.ravel())[1:]
        counts.append((masses >= least).sum())
    return np.asarray(counts, np.int64)


def path_scores(places: Floats) -> dict[str, float]:
    """Whether an object goes evenly and straight from its first place to its last.

    From rows and columns in pixels (N, K, 2) along N paths of K points, NaN where there is none, to
    means over the paths without NaN whose ends differ; NaN if there is none. `straightness`:
    distance of the ends over the length of the way, in (0, 1]. `monotonicity`: share of the steps
    that go forward, by more than a hundredth of the whole, as seen from the first place to the
    last. `largest_step`: over the mean step. Even motion has 1, 1 and 1, a jump 1, 1 / (K - 1) and
    K - 1. `seen`: share of all points, on all paths, where there is one.
    """
    seen: Bools = np.asarray(np.isfinite(places).all(-1))
    whole = places[seen.all(1)]
    span = whole[:, -1] - whole[:, 0]
    distance = np.hypot(span[:, 0], span[:, 1])
    whole, span, distance = whole[distance > 0], span[distance > 0], distance[distance > 0]
    steps = np.diff(whole, axis=1)
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    forward = (steps * span[:, None]).sum(-1) / np.square(distance)[:, None]
    scores = {"straightness": np.nan, "monotonicity": np.nan, "largest_step": np.nan}
    if len(whole):
        scores = {
            "straightness": float((distance / lengths.sum(1)).mean()),
            "monotonicity": float((forward > 0.01).mean(1).mean()),
            "largest_step": float((lengths.max(1) / lengths.mean(1)).mean()),
        }
    return {**scores, "seen": float(seen.mean())}
