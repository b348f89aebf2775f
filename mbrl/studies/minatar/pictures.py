"""What a trained model dreams of one moment: `pictures.npz` out; many of those in, one PNG out.

The moment is the window of the new episodes in which most cells change, of the first `_CANDIDATES`,
so it is the same for all arms of a seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.minatar import GameCopy, frame_to_rgb
from mbrl.seeding import seed as derive
from mbrl.studies.fidelity.drift import roll_out
from mbrl.studies.fidelity.follow import BURN_IN, decoded, stream
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.minatar.measure import LONGEST
from mbrl.studies.panels import sheet
from mbrl.world_model.model import WorldModel

STEPS = (0, 1, 2, 3, 4, 5, 7, 10)  # dreamt steps that are drawn
DREAMS = 2
SCALE = 8  # enlarges every cell on a sheet
_CANDIDATES = 128
Planes = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """What one trial drew."""

    real: Planes  # (n, H, W, C), what happened, n = len(STEPS)
    clone: Planes  # (n, H, W, C), the real game played on; empty after its end
    dreams: Planes  # (DREAMS, n, H, W, C)

    @classmethod
    def read(cls, path: Path) -> "Pictures":
        """Read what `draw` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in cls.__dataclass_fields__})


def draw(
    model: WorldModel,
    frames: Frames,
    starts: NDArray[np.int64],
    games: Sequence[GameCopy],
    seed: int,
    path: Path,
) -> Pictures:
    """Dream of the liveliest of the windows at `starts`, and write the pictures to `path` (.npz).

    `games` are behind the windows' first frames.
    """
    rows = starts[:_CANDIDATES, None] + np.arange(LONGEST + 1)
    changes = [np.count_nonzero(np.diff(frames.obs[one].astype(np.int8), axis=0)) for one in rows]
    chosen = int(np.argmax(changes))
    begin = np.repeat(starts[chosen] - (BURN_IN - 1), DREAMS)
    dreams = roll_out(model, frames, begin, STEPS, seed, "minatar/pictures")
    generator = stream(seed, "minatar/pictures/pixels", model.device)
    real = np.asarray(frames.obs[rows[chosen]], np.uint8)
    actions = frames.prev_action[rows[chosen][1:]].tolist()
    played, alive = games[chosen].play(actions, derive(seed, "minatar/pictures"))
    played *= alive[:, None, None, None]
    pictures = Pictures(
        real=real[list(STEPS)],
        clone=np.concatenate([real[:1], played])[list(STEPS)],
        dreams=np.stack([decoded(model, dreams.latents[step], generator) for step in STEPS], 1),
    )
    np.savez_compressed(path, **vars(pictures))
    return pictures


def dream_sheet(path: Path, arms: Mapping[str, Pictures]) -> Path:
    """Write a PNG: what happened, and below it a clone's future and each arm's dreams, by title."""
    first = next(iter(arms.values()))
    rows = {"what happened": first.real, "the game, played again": first.clone}
    for title, one in arms.items():
        for number, dream in enumerate(one.dreams):
            rows[f"{title}, dream {number + 1}"] = dream
    painted = {name: frame_to_rgb(planes) for name, planes in rows.items()}
    return sheet(path, painted, [f"+{step}" for step in STEPS], SCALE)
