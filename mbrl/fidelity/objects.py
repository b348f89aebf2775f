"""Finding a game's small objects in pictures, and saying whether a picture has kept them.

A console's memory says where the ball is; this module says whether a drawing of that moment shows
it there. Pictures and places go in, rates and distances in pixels come out. It never asks who drew
the pictures: real frames, samples of a decoder and open-loop dreams are treated alike, and the same
detector that judges a drawing has first to find the object in the real frame.

The detector is simple enough to check by hand. *Contrast* is |picture - backdrop|, summed over
channels, where the backdrop is the per-pixel median of training frames (a moving object is hardly
ever in one place half of the time). An object's *mass* at a place is the contrast inside its
window around that place, of pixels inside its region. An object is *present* where the mass reaches
half of the median mass it has in real training frames. Its position is the contrast-weighted
centroid in the window.

Source: the positions in the console's memory are AtariARI's (Anand et al., arXiv:1906.08226); the
detector and the scores are our own, as no published one measures drawings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mbrl.fidelity.games import SceneObject

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Images = NDArray[np.uint8]

ENOUGH_MASS = 0.5
CHUNK = 1024


def contrast(images: Images, backdrop: Floats) -> Floats:
    """How far every pixel is from the backdrop, summed over channels.

    Args:
        images: (N, H, W, C) uint8.
        backdrop: (H, W, C), or one per image, (N, H, W, C).

    Returns:
        (N, H, W) float64, in intensities of 0 to 255 per channel.
    """
    return np.abs(images.astype(np.float64) - backdrop).sum(-1)


def box_sums(values: Floats, window: tuple[int, int]) -> Floats:
    """Sum over a window centred on each pixel; what lies outside the picture counts as zero.

    Args:
        values: (N, H, W).
        window: (rows, columns), both odd.

    Returns:
        (N, H, W).

    Raises:
        ValueError: a side of the window is even, so that it has no centre.
    """
    rows, columns = window
    if rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"window: expected odd rows and columns, got {window}")
    padded = np.pad(values, ((0, 0), (rows // 2 + 1, rows // 2), (columns // 2 + 1, columns // 2)))
    total = padded.cumsum(1).cumsum(2)
    return (
        total[:, rows:, columns:]
        - total[:, :-rows, columns:]
        - total[:, rows:, :-columns]
        + total[:, :-rows, :-columns]
    )


@dataclass(frozen=True)
class Sightings:
    """What a detector found in N pictures.

    Attributes:
        position: (N, 2) float, [row, column] of the centroid in pixels; NaN where there is none.
        present: (N,) bool, whether the mass there is enough to be the object.
    """

    position: Floats
    present: Bools


@dataclass(frozen=True)
class Detector:
    """Finds one object in contrast maps (N, H, W).

    Attributes:
        target: the object.
        mass: its median mass in real training frames.
        floor: the median mass of a window in its region in real training frames: 0 where the
            backdrop is still, more where noise covers it. Masses are counted from here.
    """

    target: "SceneObject"
    mass: float
    floor: float = 0.0

    @property
    def threshold(self) -> float:
        """The mass from which on something is the object."""
        return self.floor + ENOUGH_MASS * (self.mass - self.floor)

    def strongest(self, contrasts: Floats) -> Sightings:
        """The heaviest place of the whole region, whatever the truth is."""
        return self._best(contrasts, None)

    def near(self, contrasts: Floats, places: Floats) -> Sightings:
        """The heaviest place within the object's radius of `places` (N, 2), row and column.

        Present only if its centroid, too, is within the radius. A place that is NaN has nothing
        near it.
        """
        found = self._best(contrasts, places)
        with np.errstate(invalid="ignore"):
            close = distance(found.position, places) <= self.target.radius
        return Sightings(found.position, found.present & close)

    def _best(self, contrasts: Floats, places: Floats | None) -> Sightings:
        parts = [
            self._best_of_few(
                contrasts[i : i + CHUNK], None if places is None else places[i : i + CHUNK]
            )
            for i in range(0, len(contrasts), CHUNK)
        ]
        if not parts:
            return Sightings(np.zeros((0, 2)), np.zeros(0, bool))
        return Sightings(
            np.concatenate([part.position for part in parts]),
            np.concatenate([part.present for part in parts]),
        )

    def _best_of_few(self, contrasts: Floats, places: Floats | None) -> Sightings:
        top, left, _, _ = self.target.region
        inside = crop(contrasts, self.target.region)
        masses = box_sums(inside, self.target.window)
        allowed = np.ones(masses.shape, bool)
        if places is not None:
            row, column = np.indices(masses.shape[1:])
            with np.errstate(invalid="ignore"):
                allowed = (
                    np.hypot(
                        row + top - places[:, 0, None, None],
                        column + left - places[:, 1, None, None],
                    )
                    <= self.target.radius
                )
        masses = np.where(allowed, masses, -1.0)
        flat = masses.reshape(len(masses), -1)
        best = flat.argmax(1)
        heaviest = flat[np.arange(len(flat)), best]
        centre = np.stack(np.unravel_index(best, masses.shape[1:]), -1)
        # the heaviest window is not unique for an object smaller than it: centre it, then measure
        for _ in range(2):
            centroid = centroids(inside, centre, self.target.window)
            centre = np.where(np.isnan(centroid), centre, centroid).round().astype(np.int64)
        return Sightings(centroid + np.array([top, left]), heaviest >= self.threshold)


def crop(values: Floats, region: tuple[int, int, int, int]) -> Floats:
    """The region (top, left, bottom, right) of maps (N, H, W); bottom and right are outside it."""
    top, left, bottom, right = region
    return values[:, top:bottom, left:right]


def centroids(values: Floats, centre: NDArray[np.int64], window: tuple[int, int]) -> Floats:
    """Weighted centroid of maps (N, H, W) in a window around each `centre` (N, 2).

    Returns:
        (N, 2), row and column; NaN where the window is empty.
    """
    rows, columns = window
    padded = np.pad(values, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)))
    # an index of the padded map is rows // 2 more, so the window of a centre starts at the centre
    row = centre[:, 0, None, None] + np.arange(rows)[None, :, None]
    column = centre[:, 1, None, None] + np.arange(columns)[None, None, :]
    weight = padded[np.arange(len(values))[:, None, None], row, column]
    total = weight.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [
                (weight * (row - rows // 2)).sum((1, 2)) / total,
                (weight * (column - columns // 2)).sum((1, 2)) / total,
            ],
            -1,
        )


def distance(a: Floats, b: Floats) -> Floats:
    """Euclidean distance in pixels of places (N, 2) and (N, 2): (N,)."""
    return np.hypot(a[:, 0] - b[:, 0], a[:, 1] - b[:, 1])


def fit_detector(target: "SceneObject", contrasts: Floats, ram: NDArray[np.uint8]) -> Detector:
    """Learn an object's mass from real frames.

    Args:
        target: the object; its `locate` says from the memory where it is.
        contrasts: (N, H, W) of real training frames.
        ram: (N, R), the console's memory with each of them.

    Raises:
        ValueError: the object is visible in none of the frames, or has no contrast there.
    """
    places, visible = target.locate(ram)
    seen = contrasts[visible]
    if len(seen) == 0:
        raise ValueError(f"{target.name}: visible in none of {len(contrasts)} training frames")
    masses = box_sums(crop(seen, target.region), target.window)
    top, left, _, _ = target.region
    row, column = np.indices(masses.shape[1:])
    near = (
        np.hypot(
            row + top - places[visible][:, 0, None, None],
            column + left - places[visible][:, 1, None, None],
        )
        <= target.radius
    )
    floor = float(np.median(masses))
    mass = float(np.median(np.where(near, masses, 0.0).max((1, 2))))
    if mass <= floor:
        raise ValueError(
            f"{target.name}: expected it to stand out near where the memory says it is, got a "
            f"median mass of {mass:g} against {floor:g} elsewhere; check its region and `locate`"
        )
    return Detector(target, mass, floor)


@dataclass(frozen=True)
class Truth:
    """Where an object really is in N frames.

    Attributes:
        place: (N, 2), its centroid in the real frame, row and column; NaN where not visible.
        visible: (N,) bool: the memory says so, and the detector finds it there in the real frame.
        claimed: (N,) bool: the memory says so.
        absent: (N,) bool: neither the memory nor the detector has it anywhere in its region.
    """

    place: Floats
    visible: Bools
    claimed: Bools
    absent: Bools


def truth(detector: Detector, contrasts: Floats, ram: NDArray[np.uint8]) -> Truth:
    """Where the object is in real frames with these contrasts (N, H, W) and memories (N, R).

    The memory says which of the things in the picture is the object; its exact place is then the
    centroid measured in the real frame, so that a small error in the memory's map to pixels is not
    counted against a drawing.
    """
    places, claimed = detector.target.locate(ram)
    places = np.where(claimed[:, None], places, np.nan)
    found = detector.near(contrasts, places)
    visible = claimed & found.present
    absent = ~claimed & ~detector.strongest(contrasts).present
    return Truth(np.where(visible[:, None], found.position, np.nan), visible, claimed, absent)


def object_scores(detector: Detector, real: Truth, drawn: Floats) -> dict[str, float]:
    """Whether drawings have kept an object.

    Args:
        detector: of the object.
        real: the truth of the frames drawn.
        drawn: (N, H, W) contrasts of the drawings of those frames.

    Returns:
        Shares in [0, 1] and distances in pixels; NaN where there was nothing to measure.
        `recall`: drawn within the radius of its real place, of frames where it is visible.
        `present`: drawn anywhere in its region, of the same frames.
        `centroid_px`, `centroid_px_mean`: median and mean distance of a recalled object's centroid
            from its real one.
        `position_px`: median distance of the strongest thing drawn, wherever it is, of the frames
            where something is.
        `precision`: of the visible frames in which something is drawn, how often the strongest is
            within the radius.
        `phantom`: drawn although it is absent, of the frames where it is absent.
        `detector`: found in the real frame where the memory says it is, of frames where it says so.
        `frames`: how many frames it is visible in.
    """
    seen = real.visible
    near = detector.near(drawn[seen], real.place[seen])
    strongest = detector.strongest(drawn[seen])
    error = distance(near.position, real.place[seen])[near.present]
    anywhere = distance(strongest.position, real.place[seen])[strongest.present]
    return {
        "recall": share(near.present),
        "present": share(strongest.present),
        "centroid_px": median(error),
        "centroid_px_mean": float(error.mean()) if len(error) else float("nan"),
        "position_px": median(anywhere),
        "precision": share(anywhere <= detector.target.radius),
        "phantom": share(detector.strongest(drawn[real.absent]).present),
        "detector": share(real.visible[real.claimed]),
        "frames": float(seen.sum()),
    }


def share(flags: Bools) -> float:
    """The share of true ones, NaN of none."""
    return float(flags.mean()) if len(flags) else float("nan")


def median(values: Floats) -> float:
    """The median, NaN of none."""
    return float(np.median(values)) if len(values) else float("nan")


def fit_detectors(
    objects: "Sequence[SceneObject]", contrasts: Floats, ram: NDArray[np.uint8]
) -> dict[str, Detector]:
    """One detector per object, by name; see `fit_detector`."""
    return {target.name: fit_detector(target, contrasts, ram) for target in objects}
