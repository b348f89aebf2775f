"""Finding a game's small objects in pictures, and saying whether a drawing shows them.

A console's memory says where the ball is; this module says whether a drawing of that moment (a
sample of a decoder, an open-loop dream) shows it there. The detector that judges a drawing has
first to find the object in the real frame.

The detector is simple enough to check by hand. *Contrast* is the difference of a picture from the
backdrop, the per-pixel median of training frames (a moving object is hardly ever in one place half
of the time). Of the contrast an object owns the brighter part, the darker part or both, which keeps
a white boxer apart from a black one. Its *mass* at a place is its contrast in its window there. It
is *present* where the mass reaches half of the median mass that it has in real training frames. Its
position is the contrast-weighted centroid in the window. It is *recalled* where it is drawn near
its real place and its region holds hardly anything else: a whole column of paddle, or a lattice of
balls, has the object near any place, and shows nothing.

A model draws in its own intensity levels, so a `Scene`, all detectors of one game for one model, is
fitted in these.

Source: the detector and the scores are our own, as no published one measures drawings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbrl.errors import ConfigError
from mbrl.replay import ReplayStore
from mbrl.studies.fidelity.follow import quantised, rng_of
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Bools, Floats, Game, Ram, SceneObject
from mbrl.world_model.model import ImageWorldModel

Images = NDArray[np.uint8]

ENOUGH_MASS = 0.5  # share of its real mass from which on something is the object
ONE_SIDED = 0.9  # share of its real contrast on one side from which an object owns that side only
ROOM = 0.5  # share of an object's usual load that a clean drawing may have beside it in its region
HAZE = 0.25  # share of an object's usual peak below which a pixel is haze, and no part of the load
TEXTURE = "texture_id"  # the variable that says which of several static backdrops a frame has
FITTED = 1024  # training frames that backdrops and masses are learnt from


# -- arrays ---------------------------------------------------------------------------------------


def contrast(images: Images, backdrop: Floats) -> Floats:
    """How far every pixel of images (N, H, W, C) is from the backdrop, summed over channels.

    The backdrop is (H, W, C), or one per image.

    Returns:
        (N, H, W, 2) float64 >= 0, in intensities of 0 to 255 per channel: how much brighter, and
        how much darker. Their sum is |image - backdrop|.
    """
    difference = images.astype(np.float64) - backdrop
    return np.stack([difference.clip(min=0).sum(-1), (-difference).clip(min=0).sum(-1)], -1)


def box_sums(values: Floats, window: tuple[int, int]) -> Floats:
    """Sum of maps (N, H, W) over a window centred on each pixel, with zeros outside: (N, H, W)."""
    rows, columns = window
    padded = np.pad(values, ((0, 0), (rows // 2 + 1, rows // 2), (columns // 2 + 1, columns // 2)))
    total = padded.cumsum(1).cumsum(2)
    return (
        total[:, rows:, columns:]
        - total[:, :-rows, columns:]
        - total[:, rows:, :-columns]
        + total[:, :-rows, :-columns]
    )


def crop(values: Floats, region: tuple[int, int, int, int]) -> Floats:
    """The region (top, left, bottom, right) of maps (N, H, W); bottom and right are outside it."""
    top, left, bottom, right = region
    return values[:, top:bottom, left:right]


def centroids(values: Floats, centre: NDArray[np.int64], window: tuple[int, int]) -> Floats:
    """Weighted centroid of maps (N, H, W) in a window around each `centre` (N, 2).

    (N, 2), row and column; NaN where the window is empty.
    """
    rows, columns = window
    padded = np.pad(values, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)))
    # an index of the padded map is rows // 2 more, so the window of a centre starts at the centre
    row = centre[:, 0, None, None] + np.arange(rows)[None, :, None]
    column = centre[:, 1, None, None] + np.arange(columns)[None, None, :]
    weight = padded[np.arange(len(values))[:, None, None], row, column]
    total = weight.sum((1, 2))
    places = (row - rows // 2, column - columns // 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(weight * place).sum((1, 2)) / total for place in places], -1)


def distance(a: Floats, b: Floats) -> Floats:
    """Euclidean distance in pixels of places (N, 2) and (N, 2): (N,)."""
    return np.hypot(a[:, 0] - b[:, 0], a[:, 1] - b[:, 1])


def share(flags: Bools) -> float:
    """The share of true ones, NaN of none."""
    return float(flags.mean()) if len(flags) else math.nan


def median(values: Floats) -> float:
    """The median, NaN of none."""
    return float(np.median(values)) if len(values) else math.nan


# -- detectors ------------------------------------------------------------------------------------


class Sightings(NamedTuple):
    """What a detector found in N pictures."""

    position: Floats  # (N, 2), [row, column] of the centroid in pixels; NaN where there is none
    present: Bools  # (N,), whether the mass there is enough to be the object


@dataclass(frozen=True)
class Detector:
    """Finds one object in contrasts (N, H, W, 2).

    What it knows are medians over real training frames. Masses are counted from `floor`, which is 0
    where the backdrop is still, and more where noise covers it.
    """

    target: SceneObject
    mass: float  # of the object
    floor: float = 0.0  # mass of a window anywhere in its region
    sides: tuple[float, float] = (1.0, 1.0)  # weights of brighter and darker contrast, 0 or 1
    peak: float = 0.0  # contrast of its strongest pixel
    load: float = 0.0  # what its whole region usually holds, see `loads`

    @property
    def threshold(self) -> float:
        """The mass from which on something is the object."""
        return self.floor + ENOUGH_MASS * (self.mass - self.floor)

    def loads(self, contrasts: Floats) -> Floats:
        """Contrast of the whole region, (N,), of pixels above `HAZE` of the object's peak."""
        inside = crop(contrasts, self.target.region) @ np.asarray(self.sides)
        return np.where(inside > HAZE * self.peak, inside, 0.0).sum((1, 2))

    def clean(self, contrasts: Floats, real: Floats) -> Bools:
        """Whether drawn regions hold no more than the object and `ROOM` for half another, (N,).

        Where a real region holds more than usual (a ball flies past the paddle; its load is in
        `real`, (N,)), the drawing may, too.
        """
        return self.loads(contrasts) <= ROOM * self.load + np.maximum(self.load, real)

    def strongest(self, contrasts: Floats) -> Sightings:
        """The heaviest place of the whole region."""
        return self._best(contrasts, None)

    def near(self, contrasts: Floats, places: Floats) -> Sightings:
        """The heaviest place within the object's radius of `places` (N, 2), row and column.

        Present only if its centroid, too, is within the radius; nothing is near NaN.
        """
        found = self._best(contrasts, places)
        with np.errstate(invalid="ignore"):
            close = distance(found.position, places) <= self.target.radius
        return Sightings(found.position, found.present & close)

    def _best(self, contrasts: Floats, places: Floats | None) -> Sightings:
        target = self.target
        inside = crop(contrasts @ np.asarray(self.sides), target.region)
        masses = box_sums(inside, target.window)
        if places is not None:
            masses = np.where(_near(target, masses.shape, places), masses, -1.0)
        flat = masses.reshape(len(masses), math.prod(masses.shape[1:]))
        best = flat.argmax(1)
        heaviest = flat[np.arange(len(flat)), best]
        centre = np.stack(np.unravel_index(best, masses.shape[1:]), -1)
        # the heaviest window is not unique for an object smaller than it: centre it, then measure
        for _ in range(2):
            centroid = centroids(inside, centre, target.window)
            centre = np.where(np.isnan(centroid), centre, centroid).round().astype(np.int64)
        return Sightings(centroid + np.array(target.region[:2]), heaviest >= self.threshold)


def _near(target: SceneObject, shape: tuple[int, ...], places: Floats) -> Bools:
    """Which pixels of the region, (N, rows, columns), are within the radius of `places` (N, 2)."""
    top, left, _, _ = target.region
    row, column = np.indices(shape[1:])
    rows_away = row + top - places[:, 0, None, None]
    with np.errstate(invalid="ignore"):
        return np.hypot(rows_away, column + left - places[:, 1, None, None]) <= target.radius


def _typical_excess(masses: Floats, target: SceneObject, places: Floats) -> float:
    """How much more mass there is, in the median, at `places` than elsewhere in the region."""
    last = np.array(masses.shape[1:]) - 1
    index = (places - np.array(target.region[:2])).round().astype(np.int64).clip(0, last)
    there = masses[np.arange(len(masses)), index[:, 0], index[:, 1]]
    return max(0.0, float(np.median(there) - np.median(masses)))


def fit_detector(target: SceneObject, contrasts: Floats, ram: Ram) -> Detector:
    """Learn what an object looks like from contrasts (N, H, W, 2) and memories (N, R).

    A ValueError if it is visible in none of these training frames, or has no contrast there.
    """
    places, visible = target.locate(ram)
    seen, places = contrasts[visible], places[visible]
    if len(seen) == 0:
        raise ValueError(f"{target.name}: visible in none of {len(contrasts)} training frames")
    parts = [box_sums(crop(seen[..., i], target.region), target.window) for i in range(2)]
    brighter, darker = (_typical_excess(part, target, places) for part in parts)
    share_brighter = brighter / max(brighter + darker, 1e-9)
    sides = (float(share_brighter > 1 - ONE_SIDED), float(share_brighter < ONE_SIDED))
    masses = sides[0] * parts[0] + sides[1] * parts[1]
    near = _near(target, masses.shape, places)
    floor = float(np.median(masses))
    mass = float(np.median(np.where(near, masses, 0.0).max((1, 2))))
    if mass <= floor:
        raise ValueError(
            f"{target.name}: expected it to stand out near where the memory says it is, got a "
            f"median mass of {mass:g} against {floor:g} elsewhere; check its region and `locate`"
        )
    weighted = crop(seen, target.region) @ np.asarray(sides)
    peak = float(np.median(np.where(near, weighted, 0.0).max((1, 2))))
    detector = Detector(target, mass, floor, sides, peak=peak)
    return replace(detector, load=float(np.median(detector.loads(seen))))


def fit_detectors(
    objects: Sequence[SceneObject], contrasts: Floats, ram: Ram
) -> dict[str, Detector]:
    """One detector per object, by name; see `fit_detector`."""
    return {target.name: fit_detector(target, contrasts, ram) for target in objects}


# -- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """Where an object really is in N frames; places are row and column."""

    anchor: Floats  # (N, 2), where the memory says it is; NaN where it does not
    place: Floats  # (N, 2), its centroid in the real frame near there; NaN where not visible
    visible: Bools  # (N,), the memory says so, and the detector finds it there in the real frame
    claimed: Bools  # (N,), the memory says so
    absent: Bools  # (N,), neither the memory nor the detector has it anywhere in its region
    load: Floats  # (N,), of its region in the real frame


def truth(detector: Detector, contrasts: Floats, ram: Ram) -> Truth:
    """Where the object is in real frames with contrasts (N, H, W, 2) and memories (N, R).

    Drawings are searched near where the memory says it is. Distances are from the centroid in the
    real frame, so a perfect drawing has an error of 0 whatever the memory's map to pixels misses.
    """
    places, claimed = detector.target.locate(ram)
    anchor = np.where(claimed[:, None], places, np.nan)
    found = detector.near(contrasts, anchor)
    visible = claimed & found.present
    absent = ~claimed & ~detector.strongest(contrasts).present
    place = np.where(visible[:, None], found.position, np.nan)
    return Truth(anchor, place, visible, claimed, absent, detector.loads(contrasts))


def object_scores(detector: Detector, real: Truth, drawn: Floats) -> dict[str, float]:
    """Whether drawings show an object, from their contrasts (N, H, W, 2) and the truth.

    Returns:
        Shares in [0, 1] and distances in pixels; NaN where there was nothing to measure.
        `near`: of frames where it is visible, drawn within the radius of where the memory says it
            is, whatever else is drawn.
        `recall`: near and clean: its region holds at most 1.5 times the object's usual load (see
            `Detector.clean`).
        `present`: drawn anywhere in its region, of the same frames.
        `centroid_px`, `centroid_px_mean`: median and mean distance of a recalled object's centroid
            from its real one.
        `position_px`: median distance of the strongest thing drawn, where something is.
        `precision`: how often that is within the radius.
        `phantom`: drawn although it is absent, of the frames where it is absent.
        `detector`: found in the real frame where the memory says it is, of frames where it says so.
        `frames`, `recalled`: how many frames it is visible in, and recalled in.
    """
    seen = real.visible
    near = detector.near(drawn[seen], real.anchor[seen])
    recalled = near.present & detector.clean(drawn[seen], real.load[seen])
    error = distance(near.position, real.place[seen])[recalled]
    strongest = detector.strongest(drawn[seen])
    anywhere = distance(strongest.position, real.place[seen])[strongest.present]
    return {
        "recall": share(recalled),
        "near": share(near.present),
        "present": share(strongest.present),
        "centroid_px": median(error),
        "centroid_px_mean": float(error.mean()) if len(error) else math.nan,
        "position_px": median(anywhere),
        "precision": share(anywhere <= detector.target.radius),
        "phantom": share(detector.strongest(drawn[real.absent]).present),
        "detector": share(real.visible[real.claimed]),
        "frames": float(seen.sum()),
        "recalled": float(recalled.sum()),
    }


# -- one game -------------------------------------------------------------------------------------


def texture_byte(game: Game) -> int | None:
    """Which byte of the memory names the texture, if the game has more than one."""
    variable = game.variables.get(TEXTURE)
    return None if variable is None else variable.index


class Backdrops:
    """The still picture behind each frame: the per-pixel median of training frames.

    A game with several static textures has one for each value of its variable `texture_id`.
    """

    def __init__(self, images: Images, ram: Ram, texture: int | None) -> None:
        """Fit on quantised images (N, H, W, C); `texture` is the byte that names the texture."""
        self._texture = texture
        names = self._names(ram)
        self._stills = {
            int(name): np.median(images[names == name], axis=0).astype(np.float64)
            for name in np.unique(names)
        }

    def of(self, ram: Ram) -> Floats:
        """The backdrops of frames with memories (n, R): (H, W, C), or (n, H, W, C) if they differ.

        A texture that no training frame had is a ValueError.
        """
        order, place = np.unique(self._names(ram), return_inverse=True)
        unknown = sorted(set(order.tolist()) - self._stills.keys())
        if unknown:
            raise ValueError(f"texture {unknown}: expected one of {sorted(self._stills)}")
        if len(self._stills) == 1:
            return next(iter(self._stills.values()))
        return np.stack([self._stills[int(name)] for name in order])[place]

    def _names(self, ram: Ram) -> Ram:
        """Which texture each frame has, 0 where there is but one."""
        return np.zeros(len(ram), np.uint8) if self._texture is None else ram[:, self._texture]


class Scene:
    """Detectors of all objects of a game, for drawings of one model."""

    def __init__(self, model: ImageWorldModel, game: Game, train: Frames, seed: int) -> None:
        """Fit on random training frames; a ValueError as in `fit_detector`."""
        texture = texture_byte(game)
        rows = _rows(rng_of(seed, "scene"), train.memory, texture)
        images, ram = quantised(model, train.obs[rows]), train.memory[rows]
        self.backdrops = Backdrops(images, ram, texture)
        self.detectors = fit_detectors(game.objects, self.contrasts(images, ram), ram)

    def contrasts(self, images: Images, ram: Ram) -> Floats:
        """(N, H, W, 2) contrasts of images in the model's levels, drawn or `quantised`."""
        return contrast(images, self.backdrops.of(ram))

    def truths(self, images: Images, ram: Ram) -> dict[str, Truth]:
        """Where every object is in real, quantised images with their memories."""
        contrasts = self.contrasts(images, ram)
        return {name: truth(found, contrasts, ram) for name, found in self.detectors.items()}


def _rows(rng: np.random.Generator, ram: Ram, texture: int | None) -> NDArray[np.int64]:
    """`FITTED` random rows, as many of each texture as there are of any."""
    order = rng.permutation(len(ram))
    if texture is None:
        return order[:FITTED]
    names = ram[order, texture]
    known = np.unique(names)
    return np.concatenate([order[names == name][: FITTED // len(known)] for name in known])


def require_backdrops(game: Game, train: ReplayStore, held_out: ReplayStore) -> None:
    """Refuse with a ConfigError, before anything is trained, textures that training never shows."""
    texture = texture_byte(game)
    if texture is None:
        return
    known, wanted = (
        {int(one) for ep in store.fragments() if ep.ram is not None for one in ep.ram[:, texture]}
        for store in (train, held_out)
    )
    if wanted - known:
        raise ConfigError(
            f"{game.name}: expected every texture of the held-out frames among the training "
            f"frames, got {sorted(wanted)} and {sorted(known)}; collect more frames with --steps, "
            f"into another --out"
        )
