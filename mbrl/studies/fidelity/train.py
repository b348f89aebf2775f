"""Making one trial of the fidelity study: frames in, a trained model, measures and pictures out.

How the budget counts and what a signal does: `mbrl.studies.training`.
"""

from collections.abc import Mapping
from typing import Any, cast

from mbrl.replay import ReplayStore
from mbrl.studies import training
from mbrl.studies.fidelity.arms import SUPERVISED
from mbrl.studies.fidelity.frames import collect_frames, load_frames
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.measure import Sizes, measure
from mbrl.studies.fidelity.objects import require_backdrops
from mbrl.studies.fidelity.pictures import draw
from mbrl.studies.fidelity.supervised import SupervisedTraining, supervised_report
from mbrl.studies.fidelity.trial import Trial
from mbrl.studies.training import Tree
from mbrl.studies.world_model import LINES, WorldModelTraining
from mbrl.world_model.model import ImageWorldModel
from mbrl.world_model.settings import NormalisedSettings

FRAMES_SEED = 0
QUICK = Sizes(
    sampled=16,
    informed=64,
    candidates=32,
    dreamed=8,
    fitted=256,
    scored=128,
    epochs=2,
)
"""Measures of seconds, to try the study out; too few frames to quote."""


def run(trial: Trial) -> bool:
    """Make one trial, or what is left of it; whether it is done (`mbrl.studies.training.run`)."""
    make = _read_labels if trial.arm == SUPERVISED else _model_world
    return training.run(trial, make, LINES)


def frames_of(trial: Trial) -> tuple[ReplayStore, ReplayStore]:
    """Frames to train on and held-out ones, collected if they are missing."""
    game, steps = GAMES[trial.game], (trial.steps, trial.held_out_steps)
    return collect_frames(game, trial.frames_dir, *steps, FRAMES_SEED)


def _model_world(trial: Trial) -> Tree | None:
    """Train a world model, draw and measure; None if a signal came."""
    game, stores = GAMES[trial.game], frames_of(trial)
    require_backdrops(game, *stores)
    world = WorldModelTraining(trial, trial.config(), stores[0])
    model = cast(ImageWorldModel, world.learner.model)  # as games show images

    def measured() -> Mapping[str, Any]:
        train, held_out = load_frames(stores[0]), load_frames(stores[1])
        draw(model, held_out, game, trial.run_dir / "pictures.npz")
        return measure(model, game, train, held_out, trial.seed, QUICK if trial.quick else Sizes())

    return world.made(model, measured)


def _read_labels(trial: Trial) -> Tree | None:
    """Train an encoder on the labels and score it; None if a signal came."""
    game, (train, held_out) = GAMES[trial.game], map(load_frames, frames_of(trial))
    encoder = trial.config().world_model.encoder.model_dump()
    reading = SupervisedTraining(trial, game, NormalisedSettings.model_validate(encoder), train)
    reader = reading.reader
    return reading.made(reader, lambda: supervised_report(reader, game, train, held_out))
