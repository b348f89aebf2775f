"""Everything that is measured of one trained world model, in one call.

A model, a game, training frames and held-out frames go in; a nested dictionary of numbers, ready
for JSON, comes out. Each number is defined where it is made: objects in `objects`, dreams in
`drift`, the code's contents in `probes` and `readout`, rate and distortion in `information`, the
time of a sample here. When a number changes its meaning, `Trial.measures` is raised. Torch should
have one thread (`studies.trial.command_line`), as the time of a sample is that of one core.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mbrl.studies.fidelity import readout
from mbrl.studies.fidelity.drift import drift, squared_difference
from mbrl.studies.fidelity.follow import decoded, follow, quantised, rng_of, stream
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Game, Ram
from mbrl.studies.fidelity.information import ageing, information, strangers
from mbrl.studies.fidelity.objects import Images, Scene, object_scores
from mbrl.studies.fidelity.probes import EPOCHS
from mbrl.studies.trial import plain
from mbrl.world_model.model import ImageWorldModel

FEWEST_RECALLED = 20  # frames, of every object, for a median of its distances to be printed


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults take a few CPU minutes at 64 x 64."""

    sampled: int = 512  # held-out frames drawn for recall and the time of a sample
    informed: int = 512  # held-out frames for rate and distortion
    candidates: int = 512  # dreams for drift, at each horizon
    dreamed: int = 128  # those of them that are drawn
    fitted: int = 18000  # training rows of the probes
    scored: int = 3000  # held-out rows of the probes
    epochs: int = EPOCHS  # upper limit of the probes' training


@torch.no_grad()
def measure(
    model: ImageWorldModel,
    game: Game,
    train: Frames,
    held_out: Frames,
    seed: int,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Measure one trained model; the same seed gives the same numbers, times apart.

    Backdrops, masses and probes are fitted on `train`, the frames it was trained on; everything is
    scored on `held_out`, frames of other episodes. The model is in evaluation mode.

    Returns:
        Numbers, None where there is no number. At the top, what results are compared by:
        `NAME_recall` of each object; `centroid_px`, the largest of the objects' median centroid
        errors, None if one was recalled in fewer than `FEWEST_RECALLED` frames; `position_px`, the
        largest of the objects'; `probe_f1`, weighted F1 from [z, h], with `ball`, the mean over
        variables of the ball; `nats_per_frame`, `bits_per_frame`, `shuffle_gain_bits`, and
        `squared_error` in place of bits for arms without a likelihood; `sample_ms_per_frame`.
        Below, in full: `drift`, `objects`, `probes`, `positions`, `ahead`, `nuisance`,
        `information`, `reconstruction`, `rows`, and `cpu_s` of each part. Without the console's
        memory, objects, probes and what follows from them are missing.
    """
    sizes = sizes or Sizes()
    report, cpu_s = dict[str, Any](), dict[str, float]()
    with _clock(cpu_s, "objects"):
        scene = Scene(model, game, train, seed) if game.objects and train.ram is not None else None
        report |= _samples(model, scene, held_out, seed, sizes.sampled)
    with _clock(cpu_s, "information"):
        followed = follow(model, held_out, sizes.informed, seed, "information", keep_every=4)
        detail = information(model, held_out, followed, seed) | ageing(model, held_out, seed)
        names = ("nats_per_frame", "bits_per_frame", "shuffle_gain_bits", "squared_error")
        report |= {**{name: detail[name] for name in names}, "information": detail}
    with _clock(cpu_s, "drift"):
        report["drift"] = drift(
            model, scene, held_out, seed, candidates=sizes.candidates, drawn=sizes.dreamed
        )
    if train.ram is not None and game.variables:
        with _clock(cpu_s, "probes"):
            report |= _readout(model, game, train, held_out, seed, sizes)
    tree: dict[str, Any] = plain({**report, "cpu_s": cpu_s})
    return tree


@contextmanager
def _clock(spent: dict[str, float], part: str) -> Iterator[None]:
    """Note the CPU seconds that the block takes."""
    began = time.process_time()
    yield
    spent[part] = round(time.process_time() - began, 2)


def _samples(
    model: ImageWorldModel, scene: Scene | None, held_out: Frames, seed: int, count: int
) -> dict[str, Any]:
    """Free-running samples of held-out frames: what they show of objects, pixels, and time."""
    followed = follow(model, held_out, count, seed, "objects", keep_every=8)
    followed = followed.take(np.arange(min(count, len(followed.rows))))
    real = quantised(model, held_out.obs[followed.rows])
    began = time.process_time()
    images = decoded(model, followed.latent, stream(seed, "objects/pixels", model.device))
    taken = time.process_time() - began
    error = squared_difference(images, real, model.images.span)
    psnr = -10 * math.log10(error) if error > 0 else math.inf
    report: dict[str, Any] = {
        "sample_ms_per_frame": 1000 * taken / len(images),
        "reconstruction": {"mse": error, "psnr_db": psnr, "frames": float(len(images))},
    }
    if scene is not None:
        objects = _objects(scene, real, images, held_out.memory[followed.rows], seed)
        report |= {f"{name}_recall": scores["recall"] for name, scores in objects.items()}
        report |= {**_distances(objects), "objects": objects}
    return report


def _objects(
    scene: Scene, real: Images, images: Images, ram: Ram, seed: int
) -> dict[str, dict[str, float]]:
    """`object_scores` by object, and `shuffled_recall`, the recall by chance.

    That is each drawing judged by another frame's truth: what a model gets that puts the object
    where it is most often.
    """
    drawn = scene.contrasts(images, ram)
    partner = strangers(len(drawn), rng_of(seed, "objects/strangers"))
    report = {}
    for name, place in scene.truths(real, ram).items():
        detector = scene.detectors[name]
        by_chance = object_scores(detector, place, drawn[partner])["recall"]
        report[name] = {**object_scores(detector, place, drawn), "shuffled_recall": by_chance}
    return report


def _distances(objects: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`centroid_px` and `position_px` over all objects; see `measure`."""
    enough = all(scores["recalled"] >= FEWEST_RECALLED for scores in objects.values())
    centroids = [scores["centroid_px"] for scores in objects.values() if enough]
    positions = [scores["position_px"] for scores in objects.values()]
    largest = float(np.max(centroids)) if centroids else math.nan
    return {"centroid_px": largest, "position_px": float(np.max(positions))}


def _readout(
    model: ImageWorldModel, game: Game, train: Frames, held_out: Frames, seed: int, sizes: Sizes
) -> dict[str, Any]:
    """Probes, regressions and nuisances."""
    reading, rows = readout.read(model, train, held_out, seed, sizes.fitted, sizes.scored)
    probes = readout.probe_report(game, reading, seed, epochs=sizes.epochs)
    scores = dict(probes["zh"]["f1"]) if probes else {}
    ball = [value for name, value in scores.items() if "ball" in name and name in game.variables]
    if ball:
        scores["ball"] = float(np.mean(ball))
    return {
        "probe_f1": scores,
        "probes": probes,
        "positions": readout.position_report(game, reading),
        "ahead": readout.ahead_report(game, reading),
        "nuisance": readout.nuisances(game, reading, seed, epochs=sizes.epochs),
        "rows": rows,
    }
