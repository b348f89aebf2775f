"""What the arms draw: a trained model in, `pictures.npz` out; many of those in, one PNG out.

*Samples* are free-running samples of p(x | z, h) beside the real frames. *Strips* are open-loop
dreams: the model sees 16 real frames and from then on only the real actions.

Moments are the same for every arm and seed, and chosen by the console's memory alone: first those
where every object is to be seen, and dreams in which they stay longest. Pixels are never smoothed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbrl.studies.fidelity.drift import HORIZONS, rally_lengths, roll_out
from mbrl.studies.fidelity.follow import BURN_IN, decoded, filtered, rng_of, stream
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Game
from mbrl.studies.fidelity.objects import Images
from mbrl.studies.panels import sheet
from mbrl.world_model.model import ImageWorldModel

SAMPLES, STRIPS = 6, 3
SCALE = 4  # enlarges every pixel on a sheet
_CANDIDATES = 400
_SEED = 0  # the same moments for every arm and seed


@dataclass(frozen=True)
class Pictures:
    """What one trial drew."""

    real: Images  # (n, H, W, C), held-out frames
    samples: Images  # (n, H, W, C), free-running samples of the same moments
    strip_real: Images  # (s, horizons, H, W, C), what happened after 16 frames
    strips: Images  # (s, horizons, H, W, C), what the model dreamt
    horizons: NDArray[np.int64]  # steps after the last frame seen

    @classmethod
    def read(cls, path: Path) -> "Pictures":
        """Read what `draw` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in cls.__dataclass_fields__})

    def write(self, path: Path) -> None:
        """Write all arrays into one file."""
        np.savez_compressed(path, **vars(self))


def draw(model: ImageWorldModel, frames: Frames, game: Game, path: Path) -> Pictures:
    """Draw samples and dreams of chosen moments of held-out rows; write them to `path` (.npz)."""
    generator = stream(_SEED, "pictures", model.device)
    starts = _stills(frames, game)
    last = filtered(model, frames, starts, BURN_IN, generator).latent[:, -1]
    begin = _dreams(frames, game, max(HORIZONS))
    rollouts = roll_out(model, frames, begin, HORIZONS, _SEED, "pictures")
    dreams = [decoded(model, rollouts.latents[horizon], generator) for horizon in HORIZONS]
    rows = np.stack([rollouts.rows(horizon) for horizon in HORIZONS], 1)
    pictures = Pictures(
        real=np.asarray(frames.obs[starts + BURN_IN - 1], np.uint8),
        samples=decoded(model, last, generator),
        strip_real=np.asarray(frames.obs[rows], np.uint8),
        strips=np.stack(dreams, 1),
        horizons=np.asarray(HORIZONS, np.int64),
    )
    pictures.write(path)
    return pictures


def _visible(frames: Frames, game: Game) -> NDArray[np.bool_]:
    """(N,) rows on which the memory says that every object is to be seen; all if it says none."""
    seen = np.ones(len(frames.obs), bool)
    if frames.ram is not None:
        for target in game.objects:
            seen &= target.locate(frames.ram)[1]
    return seen


def _stills(frames: Frames, game: Game) -> NDArray[np.int64]:
    """Starts of windows whose last row is worth a picture."""
    starts = np.unique(frames.windows(BURN_IN, _CANDIDATES, rng_of(_SEED, "pictures/stills")))
    worth = _visible(frames, game)[starts + BURN_IN - 1]
    order = np.argsort(~worth, kind="stable")
    ranked = starts[order][: max(SAMPLES, int(worth.sum()))]
    return ranked[np.linspace(0, len(ranked) - 1, min(SAMPLES, len(ranked))).astype(int)]


def _dreams(frames: Frames, game: Game, length: int) -> NDArray[np.int64]:
    """Starts of windows after whose first rows the objects stay visible longest."""
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


def sample_sheet(path: Path, arms: Mapping[str, Pictures]) -> Path:
    """Write a PNG: real frames, and below them each arm's samples of the same moments, by title."""
    rows = {"real frame": next(iter(arms.values())).real}
    rows |= {title: one.samples for title, one in arms.items()}
    return sheet(path, rows, [], SCALE)


def strip_sheet(path: Path, arms: Mapping[str, Pictures]) -> Path:
    """The same of what really happened, and each arm's first dream of it; a column per horizon."""
    first = next(iter(arms.values()))
    rows = {"what happened": first.strip_real[0]}
    rows |= {title: one.strips[0] for title, one in arms.items()}
    return sheet(path, rows, [f"+{horizon} steps" for horizon in first.horizons], SCALE)
