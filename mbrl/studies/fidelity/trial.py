"""One trial: frames in, a world model trained for so many CPU minutes, measures and pictures out.

    python -m mbrl.studies.fidelity.trial pong pixelcnn --seed 0 --minutes 30 --steps 100000 ...

`mbrl bench fidelity` starts these; by hand it is the way to make one run. In the run folder:

    settings.json  metrics.jsonl  checkpoints/  pictures.npz  log.txt

How the budget counts and what a signal does: `mbrl.studies.training`. The same command goes on.
"""

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from envs import make_env
from envs.errors import EnvError
from mbrl.config.schema import Config
from mbrl.device import reachable
from mbrl.errors import MbrlError
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore
from mbrl.run.durable import lock_folder, write_atomically
from mbrl.studies.fidelity.arms import SUPERVISED
from mbrl.studies.fidelity.frames import collect_frames, load_frames
from mbrl.studies.fidelity.games import GAMES, Game
from mbrl.studies.fidelity.measure import Sizes, measure, plain
from mbrl.studies.fidelity.pictures import draw
from mbrl.studies.fidelity.scene import require_backdrops
from mbrl.studies.fidelity.supervised import SupervisedTraining, supervised_report
from mbrl.studies.fidelity.trials import MEASURES, Trial, is_done, named_folders, refuse_others
from mbrl.studies.training import BudgetedTraining, curve

UPDATES_AT_ONCE = 4
FRAMES_SEED = 0
CURVE = {
    "cpu_minutes": "study/cpu_s",
    "nats_per_frame": "world_model/nats_per_frame",
    "kl": "world_model/kl",
    "kl_weight": "world_model/kl_weight",
}
"""What a result tells of how training went, and the metrics it is made of; None without a model."""
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
    """Make one trial, or what is left of it.

    Returns:
        Whether it is done; False if a signal stopped it, after a checkpoint.

    Raises:
        MbrlError: its settings are wrong or not those of its folder, or training cannot go on.
    """
    game = GAMES[trial.game]
    refuse_others([trial], game.env)
    if is_done(trial):
        return True
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    settings = trial.settings(game.env)
    with lock_folder(trial.run_dir):
        write_atomically(trial.run_dir / "settings.json", json.dumps(settings, indent=1))
        stores = collect_frames(
            game, trial.frames_dir, trial.steps, trial.held_out_steps, FRAMES_SEED
        )
        make = _read_labels if trial.arm == SUPERVISED else _model_world
        made = make(trial, game, stores)
        if made is None:
            return False
        write_result(trial, settings, made)
    return True


@dataclass(frozen=True)
class Made:
    """What a trial came to.

    Attributes:
        measures: for the result.
        spent: what training and measuring took, see `BudgetedTraining.spent`.
        parameters: numbers that were trained.
    """

    measures: Mapping[str, Any]
    spent: Mapping[str, Any]
    parameters: int


Stores = tuple[ReplayStore, ReplayStore]
"""Frames to train on, and held-out ones."""


def _model_world(trial: Trial, game: Game, stores: Stores) -> Made | None:
    """Train a world model, draw and measure; None if a signal came."""
    require_backdrops(game, *stores)
    with Training(trial, game, trial.config(game.env), stores[0]) as training:
        if not training.go_on():
            return None
        model, spent = training.learner.model.eval(), training.spent()
    began = time.monotonic()
    train, held_out = load_frames(stores[0]), load_frames(stores[1])
    draw(model, held_out, game, trial.run_dir / "pictures.npz")
    sizes = QUICK if trial.quick else Sizes()
    measures = measure(model, game, train, held_out, trial.seed, sizes)
    return _made(measures, spent, began, model)


def _read_labels(trial: Trial, game: Game, stores: Stores) -> Made | None:
    """Train an encoder on the labels and score it; None if a signal came."""
    train, held_out = load_frames(stores[0]), load_frames(stores[1])
    encoder = trial.config(game.env).world_model.encoder
    with SupervisedTraining(trial, game, encoder, train) as training:
        if not training.go_on():
            return None
        spent = training.spent()
    began = time.monotonic()
    measures = plain(supervised_report(training.reader, game, train, held_out))
    return _made(measures, spent, began, training.reader)


def _made(
    measures: Mapping[str, Any], spent: Mapping[str, Any], began: float, model: nn.Module
) -> Made:
    taken = round(time.monotonic() - began, 1)
    parameters = sum(weight.numel() for weight in model.parameters())
    return Made(measures, {**spent, "measuring_s": taken}, parameters)


class Training(BudgetedTraining):
    """A world model that learns from a store until its CPU time is used up; a context manager."""

    at_once = UPDATES_AT_ONCE

    def __init__(self, trial: Trial, game: Game, config: Config, store: ReplayStore) -> None:
        """Build the learner, and take up the newest checkpoint if there is one."""
        self.trial = trial
        with contextlib.closing(make_env(game.env)) as env:
            spaces = env.observation_space, env.action_space
        self.learner = WorldModelLearner(
            *spaces,
            config.world_model,
            config.learn_model,
            store,
            capacity_steps=max(1, sum(episode.rows for episode in store.episodes())),
            ring_directory=None,
            root_seed=trial.seed,
            device=str(reachable(trial.device)),
        )
        super().__init__(
            trial, env_steps=trial.steps, group="world_model", device=self.learner.device
        )

    def __exit__(self, *problem: object) -> None:
        """Let go of the ring as well."""
        self.learner.close()
        super().__exit__(*problem)

    @property
    def updates(self) -> int:
        """Updates so far, resumed ones included."""
        return self.learner.updates

    def _update(self) -> dict[str, float]:
        metrics, _ = self.learner.learn(UPDATES_AT_ONCE)
        learn = self.learner.settings
        self.rows += UPDATES_AT_ONCE * learn.batch_size * learn.sequence_length
        return metrics

    def _state(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "segments": self.learner.segments()}

    def _begin(self, state: Mapping[str, Any]) -> None:
        self.learner.refresh(state.get("segments"))
        if state:
            self.learner.load_state_dict(state["learner"])

    def _in_words(self, metrics: Mapping[str, float]) -> str:
        return f"{metrics['nats_per_frame']:.1f} nats per frame, KL {metrics['kl']:.2f}"


def write_result(trial: Trial, settings: Mapping[str, Any], made: Made) -> None:
    """Write the trial's JSON, last of all, so that it is there only if everything is."""
    words = ["mbrl", "bench", "fidelity", trial.game, *trial.overrides, "--arms", trial.arm]
    words += ["--seeds", f"{trial.seed + 1}", "--minutes", f"{trial.minutes:g}"]
    words += ["--steps", f"{trial.steps}", *(["--quick"] if trial.quick else [])]
    words += ["--device", "cuda"] if trial.on_a_card else []
    words += [] if trial.updates is None else ["--updates", f"{trial.updates}"]
    words += named_folders(trial.results, trial.game)
    result = {
        "game": trial.game,
        "arm": trial.arm,
        "seed": trial.seed,
        "command": shlex.join(words),
        "cpu_minutes": trial.minutes,
        **made.spent,
        "parameters": made.parameters,
        "overrides": list(trial.overrides),
        "settings": settings,
        "measures_version": MEASURES,
        "measures": made.measures,
        "curve": curve(trial.run_dir, CURVE),
    }
    trial.result_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(trial.result_path, json.dumps(result, indent=1, allow_nan=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make one trial of the fidelity study.")
    parser.add_argument("game", choices=list(GAMES))
    parser.add_argument("arm")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("results/fidelity"))
    options = vars(parser.parse_args(arguments))
    torch.set_num_threads(1)
    try:
        run(Trial(**{**options, "overrides": tuple(options["overrides"])}))
    except (MbrlError, EnvError) as error:
        print(f"mbrl: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
