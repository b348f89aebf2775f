"""What the arms draw: a trained model in, `pictures.npz` out; many of those in, one PNG out.

Two kinds of pictures, of the same held-out moments for every arm and seed, so that they can be laid
under each other:

* *samples*: free-running samples of p(x | z, h) beside the real frames;
* *strips*: open-loop dreams. The model sees 16 real frames and from then on only the real actions;
  drawn at each of `HORIZONS` steps, beside what really happened.

Moments are chosen by the console's memory alone: first those where every object is to be seen, and
dreams in which they stay longest. Pixels are never smoothed: enlarging is by whole factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mbrl.studies.fidelity.drift import HORIZONS, rally_lengths, roll_out
from mbrl.studies.fidelity.follow import BURN_IN, decoded, filtered, rng_of, stream
from mbrl.studies.panels import sheet
from mbrl.world_model.model import WorldModel

if TYPE_CHECKING:
    from mbrl.studies.fidelity.frames import Frames
    from mbrl.studies.fidelity.games import Game

Images = NDArray[np.uint8]

SAMPLES, STRIPS = 6, 3
_CANDIDATES = 400
_SEED = 0  # the same moments for every arm and seed


@dataclass(frozen=True)
class Pictures:
    """What one trial drew.

    Attributes:
        real: (n, H, W, C), held-out frames.
        samples: (n, H, W, C), free-running samples of the same moments.
        strip_real: (s, horizons, H, W, C), what happened after 16 frames.
        strips: (s, horizons, H, W, C), what the model dreamt.
        horizons: steps after the last frame seen.
    """

    real: Images
    samples: Images
    strip_real: Images
    strips: Images
    horizons: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> "Pictures":
        """Read what `draw` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in cls.__dataclass_fields__})

    def write(self, path: Path) -> None:
        """Write all arrays into one file."""
        np.savez_compressed(path, **vars(self))


def draw(model: WorldModel, frames: "Frames", game: "Game", path: Path) -> Pictures:
    """Draw samples and dreams of a game's chosen moments, and keep them in a file.

    Args:
        model: in evaluation mode.
        frames: held-out rows.
        game: tells where its objects are.
        path: the .npz file.
    """
    generator = stream(_SEED, "pictures", model.device)
    horizons = _fitting(frames)
    starts = _stills(frames, game)
    last = filtered(model, frames, starts, BURN_IN, generator).latent[:, -1]
    begin = _dreams(frames, game, max(horizons, default=0))
    shape = (len(begin), 0, *frames.obs.shape[1:])
    dreams = np.zeros(shape, np.uint8)
    if horizons:
        rollouts = roll_out(model, frames, begin, horizons, _SEED, "pictures")
        drawn = [decoded(model, rollouts.latents[horizon], generator) for horizon in horizons]
        dreams = np.stack(drawn, 1)
    rows = begin[:, None] + BURN_IN - 1 + np.asarray(horizons, np.int64)
    pictures = Pictures(
        real=np.asarray(frames.obs[starts + BURN_IN - 1], np.uint8),
        samples=decoded(model, last, generator),
        strip_real=np.asarray(frames.obs[rows], np.uint8),
        strips=dreams,
        horizons=np.asarray(horizons, np.int64),
    )
    pictures.write(path)
    return pictures


def _fitting(frames: "Frames") -> list[int]:
    """The horizons that some held-out episode is long enough for."""
    return [horizon for horizon in HORIZONS if BURN_IN + horizon <= frames.longest]


def _visible(frames: "Frames", game: "Game") -> NDArray[np.bool_]:
    """(N,) rows on which the memory says that every object is to be seen; all if it says none."""
    seen = np.ones(len(frames.obs), bool)
    if frames.ram is not None:
        for target in game.objects:
            seen &= target.locate(frames.ram)[1]
    return seen


def _stills(frames: "Frames", game: "Game") -> NDArray[np.int64]:
    """Starts of windows whose last row is worth a picture."""
    starts = np.unique(frames.windows(BURN_IN, _CANDIDATES, rng_of(_SEED, "pictures/stills")))
    worth = _visible(frames, game)[starts + BURN_IN - 1]
    order = np.argsort(~worth, kind="stable")
    ranked = starts[order][: max(SAMPLES, int(worth.sum()))]
    return ranked[np.linspace(0, len(ranked) - 1, min(SAMPLES, len(ranked))).astype(int)]


def _dreams(frames: "Frames", game: "Game", length: int) -> NDArray[np.int64]:
    """Starts of windows after whose first rows the objects stay visible longest."""
    if length == 0:
        return np.zeros(0, np.int64)
    rng = rng_of(_SEED, "pictures/dreams")
    starts = np.unique(frames.windows(BURN_IN + length, _CANDIDATES, rng))
    rows = starts[:, None] + BURN_IN - 1 + np.arange(length + 1)
    stays = rally_lengths(_visible(frames, game)[rows])
    chosen: list[int] = []
    for place in np.argsort(-stays, kind="stable"):
        if all(abs(int(starts[place]) - other) > length for other in chosen):
            chosen.append(int(starts[place]))
        if len(chosen) == STRIPS:
            break
    return np.asarray(chosen, np.int64)


# -- putting them on one sheet ------------------------------------------------------------------


def sample_sheet(path: Path, arms: Mapping[str, Pictures], scale: int = 4) -> Path:
    """Real frames above each arm's samples of the same moments.

    Args:
        path: the PNG.
        arms: by title, in the order of the rows; of one game.
        scale: pixels per pixel.
    """
    first = next(iter(arms.values()))
    rows = {"real frame": first.real, **{title: one.samples for title, one in arms.items()}}
    return sheet(path, rows, [], scale)


def strip_sheet(path: Path, arms: Mapping[str, Pictures], which: int = 0, scale: int = 4) -> Path:
    """What really happened above each arm's dream of it, one column per horizon.

    Args:
        path: the PNG.
        arms: by title, in the order of the rows; of one game.
        which: of the moments.
        scale: pixels per pixel.
    """
    first = next(iter(arms.values()))
    rows = {
        "what happened": first.strip_real[which],
        **{title: one.strips[which] for title, one in arms.items()},
    }
    return sheet(path, rows, [f"+{horizon} steps" for horizon in first.horizons], scale)
