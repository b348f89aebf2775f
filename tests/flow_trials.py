"""Trials of the flow study as tests need them: tiny ones to run, and results as if they were."""

from pathlib import Path
from typing import Any

import numpy as np
from fidelity_trials import write_trial as write_result

from mbrl.studies.flows.images import Source
from mbrl.studies.flows.trial import Trial

TINY = (
    *("flow.scales=2", "flow.steps=2", "flow.width=4"),
    *("train.batch_size=4", "train.warmup_updates=2"),
)


def write_images(path: Path, seed: int = 0) -> Path:
    """Pictures of 8 x 8 pixels with one bright dot on grey."""
    rng = np.random.default_rng(seed)
    images = np.full((60, 8, 8, 1), 40, np.uint8)
    for image in images:
        row, column = rng.integers(0, 7, 2)
        image[row : row + 2, column : column + 2] = rng.integers(150, 256)
    np.savez(path, images=images)
    return path


def curve(*points: tuple[float, float], updates_per_minute: float = 10.0) -> dict[str, Any]:
    """How training went: CPU minutes and held-out bits per dimension."""
    minutes, bits = ([point[place] for point in points] for place in (0, 1))
    updates = [updates_per_minute * minute for minute in minutes]
    names = ("cpu_minutes", "updates", "bits_per_dim", "held_out_bits_per_dim")
    return dict(zip(names, (minutes, updates, bits, bits), strict=True))


def make_trial(source: Source, out: Path, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "source": source,
        "arm": "level",
        "seed": 0,
        "minutes": 0.002,
        "overrides": TINY,
        "out": out,
        "results": out / "results",
        "quick": True,
    }
    return Trial(**{**given, **changes})


def trial_in(folder: Path, **changes: Any) -> Trial:
    """A trial on images in the folder, which are written where they are missing."""
    path = folder / "some.npz"
    return make_trial(Source(path=path if path.exists() else write_images(path)), folder, **changes)


def write_trial(trial: Trial, measures: dict[str, Any], **changes: Any) -> None:
    known = {"digest": "d1", "parameters": 100, "curve": curve()}
    write_result(trial, {"diverged": 0.0, **measures}, **{**known, **changes})
