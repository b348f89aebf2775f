"""Everything that is measured of one trained world model, in one call.

A model, a game, training frames and held-out frames go in; a nested dictionary of numbers, ready
for JSON, comes out. Each number is defined where it is made: objects in `objects`, dreams in
`drift`, the code's contents in `probes`, `readout` and `nuisance`, rate and distortion in
`information`, time in `cost`. When a number changes its meaning, `trials.MEASURES` is raised.
Nothing is trained here but probes, and nothing in the model changes.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mbrl.studies.fidelity.cost import timed_samples
from mbrl.studies.fidelity.drift import drift, squared_difference
from mbrl.studies.fidelity.follow import follow, quantised, rng_of
from mbrl.studies.fidelity.information import ageing, information, strangers
from mbrl.studies.fidelity.objects import Floats, Truth, object_scores
from mbrl.studies.fidelity.probes import EPOCHS
from mbrl.studies.fidelity.readout import (
    ahead_report,
    nuisances,
    position_report,
    probe_report,
    read,
)
from mbrl.studies.fidelity.scene import Scene
from mbrl.studies.trial import plain
from mbrl.world_model.model import WorldModel

if TYPE_CHECKING:
    from mbrl.studies.fidelity.frames import Frames
    from mbrl.studies.fidelity.games import Game

FEWEST_RECALLED = 20
"""Frames in which every object must be recalled for a median of its distances to be printed."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults take a few CPU minutes at 64 x 64.

    Attributes:
        sampled: held-out frames drawn for recall and the time of a sample.
        informed: held-out frames for rate and distortion.
        candidates, dreamed: dreams for drift, and how many of them are drawn, at each horizon.
        fitted, scored: training and held-out rows of the probes.
        epochs: upper limit of the probes' training.
    """

    sampled: int = 512
    informed: int = 512
    candidates: int = 512
    dreamed: int = 128
    fitted: int = 18000
    scored: int = 3000
    epochs: int = EPOCHS


def measure(
    model: WorldModel,
    game: "Game",
    train: "Frames",
    held_out: "Frames",
    seed: int,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Measure one trained model; the same seed gives the same numbers, times apart.

    Args:
        model: any arm; it is put into evaluation mode and back.
        game: with objects and variables, if `train` has the console's memory.
        train: the frames it was trained on, for backdrops, masses and fitting probes.
        held_out: frames of other episodes; everything is scored on these.
        seed: of the measurement's random streams.
        sizes: how much of everything.

    Returns:
        Numbers, None where there is no number. At the top, what results are compared by:
        `NAME_recall` of each object; `centroid_px`, the largest of the objects' median centroid
        errors, None if one was recalled in fewer than `FEWEST_RECALLED` frames; `position_px`, the
        largest of the median distances of the strongest thing drawn in an object's region, of
        objects without doubles (free-running samples of held-out frames);
        `probe_f1`, weighted F1 from [z, h] by variable and category, with `mean` and `ball`, the
        mean over variables of the ball;
        `nats_per_frame`, `bits_per_frame`, `shuffle_gain_bits`, and `squared_error` in place of
        bits for arms without a likelihood; `drift` by horizon; `sample_ms_per_frame`. Below, in
        full: `objects`, `probes`, `positions`, `ahead`, `nuisance`, `information`,
        `reconstruction`, `rows`, and `cpu_s` of each part.
        Without the console's memory, objects, probes and what follows from them are missing.
    """
    sizes = sizes or Sizes()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            report, clock = _untrained_part(model, game, train, held_out, seed, sizes)
        report["cpu_s"] = clock.spent
    finally:
        model.train(was_training)
    tree: dict[str, Any] = plain(report)
    return tree


class Clock:
    """CPU seconds by part; `with clock("name"):` adds to one."""

    def __init__(self) -> None:
        """Nothing spent yet."""
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what the block takes."""
        began = time.process_time()
        yield
        taken = time.process_time() - began
        self.spent[part] = round(self.spent.get(part, 0.0) + taken, 2)


def _untrained_part(
    model: WorldModel,
    game: "Game",
    train: "Frames",
    held_out: "Frames",
    seed: int,
    sizes: Sizes,
) -> tuple[dict[str, Any], Clock]:
    """Everything but the time of training."""
    clock, report = Clock(), dict[str, Any]()
    with clock("objects"):
        scene = Scene(model, game, train, seed) if game.objects and train.ram is not None else None
        report |= _samples(model, scene, held_out, seed, sizes.sampled)
    with clock("information"):
        followed = follow(model, held_out, sizes.informed, seed, "information", keep_every=4)
        detail = information(model, held_out, followed, seed)
        names = ("nats_per_frame", "bits_per_frame", "shuffle_gain_bits", "squared_error")
        detail |= ageing(model, held_out, seed)
        report |= {**{name: detail[name] for name in names}, "information": detail}
    with clock("drift"):
        report["drift"] = drift(
            model, scene, held_out, seed, candidates=sizes.candidates, drawn=sizes.dreamed
        )
    if train.ram is not None and game.variables:
        with clock("probes"):
            report |= _readout(model, game, train, held_out, seed, sizes)
    return report, clock


def _samples(
    model: WorldModel, scene: Scene | None, held_out: "Frames", seed: int, count: int
) -> dict[str, Any]:
    """Free-running samples of held-out frames: objects kept, pixels, and time."""
    followed = follow(model, held_out, count, seed, "objects", keep_every=8)
    followed = followed.take(np.arange(min(count, len(followed.rows))))
    real = quantised(model, held_out.obs[followed.rows])
    images, sample_ms = timed_samples(model, followed, seed, "objects/pixels")
    error = squared_difference(images, real, model.high)
    report: dict[str, Any] = {
        "sample_ms_per_frame": sample_ms,
        "reconstruction": {
            "mse": error,
            "psnr_db": -10 * math.log10(error) if error > 0 else math.inf,
            "frames": float(len(images)),
        },
    }
    if scene is None or held_out.ram is None:
        return report
    ram = held_out.ram[followed.rows]
    drawn = scene.contrasts(images, ram)
    objects = _objects(scene, scene.truths(real, ram), drawn, seed)
    return {
        **{f"{name}_recall": scores["recall"] for name, scores in objects.items()},
        **_distances(scene, objects),
        "objects": objects,
        **report,
    }


def _objects(
    scene: Scene, truths: Mapping[str, Truth], drawn: Floats, seed: int
) -> dict[str, dict[str, float]]:
    """`object_scores` by object, and `shuffled_recall`, the recall by chance.

    That is the recall of drawings made from another frame's (z, h). Pixels are drawn independently
    for each frame, so this is each drawing judged by another frame's truth. A model that puts the
    object where it is most often gets no less.
    """
    partner = strangers(len(drawn), rng_of(seed, "objects/strangers"))
    report = {}
    for name, place in truths.items():
        detector = scene.detectors[name]
        by_chance = object_scores(detector, place, drawn[partner])["recall"]
        report[name] = {**object_scores(detector, place, drawn), "shuffled_recall": by_chance}
    return report


def _distances(scene: Scene, objects: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`centroid_px` and `position_px` over all objects; see `measure`."""
    enough = all(scores["recalled"] >= FEWEST_RECALLED for scores in objects.values())
    centroids = [scores["centroid_px"] for scores in objects.values() if enough]
    alone = [name for name in objects if scene.detectors[name].alone]
    positions = [objects[name]["position_px"] for name in alone]
    return {
        "centroid_px": float(np.max(centroids)) if centroids else math.nan,
        "position_px": float(np.max(positions)) if positions else math.nan,
    }


def _readout(
    model: WorldModel, game: "Game", train: "Frames", held_out: "Frames", seed: int, sizes: Sizes
) -> dict[str, Any]:
    """Probes, regressions and nuisances."""
    reading, rows = read(model, train, held_out, seed, fitted=sizes.fitted, scored=sizes.scored)
    probes = probe_report(game, reading, seed, epochs=sizes.epochs)
    scores = dict(probes["zh"]["f1"]) if probes else {}
    ball = [value for name, value in scores.items() if "ball" in name and name in game.variables]
    if ball:
        scores["ball"] = float(np.mean(ball))
    return {
        "probe_f1": scores,
        "probes": probes,
        "positions": position_report(game, reading),
        "ahead": ahead_report(game, reading),
        "nuisance": nuisances(game, reading, seed, epochs=sizes.epochs),
        "rows": rows,
    }
