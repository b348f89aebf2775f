"""Making one trial of MinAtar's games: episodes in, a trained model, measures and pictures out.

How the budget counts and what a signal does: `mbrl.studies.training`.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from envs import make_env
from envs.minatar import channel_names
from mbrl.studies import training
from mbrl.studies.fidelity.follow import rng_of
from mbrl.studies.fidelity.frames import load_frames
from mbrl.studies.minatar.episodes import episodes_of, games_at
from mbrl.studies.minatar.measure import Sizes, measure, require_windows, windows
from mbrl.studies.minatar.pictures import draw
from mbrl.studies.minatar.trial import Trial
from mbrl.studies.training import Tree
from mbrl.studies.world_model import LINES, WorldModelTraining

QUICK = Sizes(windows=16, clones=2, batches=1)
"""Measures of seconds, to try the study out; too few windows to quote."""


def run(trial: Trial) -> bool:
    """Make one trial, or what is left of it; whether it is done (`mbrl.studies.training.run`)."""
    return training.run(trial, _make, LINES)


def _make(trial: Trial) -> Tree | None:
    """Train a world model, draw and measure; None if a signal came."""
    config, stores = trial.config(), episodes_of(trial)
    train, new = map(load_frames, stores)
    sizes = QUICK if trial.quick else Sizes()
    starts = {
        name: require_windows(name, windows(frames, sizes.windows, rng_of(trial.seed, name)))
        for name, frames in (("train", train), ("held_out", new))
    }
    world = WorldModelTraining(trial, config, stores[0])
    model, learn = world.learner.model, config.learn_model

    def measured() -> Mapping[str, Any]:
        with contextlib.closing(make_env(config.env)) as env:
            channels = channel_names(env)
        games = games_at(config.env, stores[1], new, starts["held_out"], trial.seed)
        draw(model, new, starts["held_out"], games, trial.seed, trial.run_dir / "pictures.npz")
        batch = learn.batch_size, learn.sequence_length
        return measure(model, channels, train, new, starts, games, trial.seed, batch, sizes)

    return world.made(model, measured)
