"""One trial: frames in, a world model trained for so many CPU minutes, measures and pictures out.

    python -m mbrl.fidelity.trial pong pixelcnn --seed 0 --minutes 30 --steps 100000 ...

`mbrl bench fidelity` starts these; by hand it is the way to make one run. In the run folder:

    settings.json  metrics.jsonl  checkpoints/  pictures.npz  log.txt

The budget is the CPU time that this process spends in `WorldModelLearner.learn`, summed over
resumes: other work on the machine makes a trial last longer, but hardly changes how many updates it
gets (they share caches and memory); checkpoints and measures do not count. A line of metrics is
written about every 20 seconds, a checkpoint every two minutes. SIGTERM and Ctrl-C checkpoint and
stop; the same command goes on.
"""

import argparse
import contextlib
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from envs import make_env
from envs.errors import EnvError
from mbrl import checkpoint, provenance
from mbrl.config import Config
from mbrl.errors import MbrlError
from mbrl.fidelity.frames import collect_frames, load_frames
from mbrl.fidelity.games import GAMES, Game
from mbrl.fidelity.measure import Sizes, measure
from mbrl.fidelity.pictures import draw
from mbrl.fidelity.trials import MEASURES, Trial, is_done, refuse_others
from mbrl.learn_model import WorldModelLearner
from mbrl.progress import MetricsLog, read_metrics
from mbrl.replay import ReplayStore
from mbrl.run import lock_folder, write_atomically
from mbrl.world_model.model import WorldModel

LINE_S = 20.0
CHECKPOINT_S = 120.0
UPDATES_AT_ONCE = 4
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
        with Training(trial, game, trial.config(game.env), stores[0]) as training:
            if not training.go_on():
                return False
            model, spent = training.learner.model.eval(), training.spent()
        began = time.monotonic()
        train, held_out = load_frames(stores[0]), load_frames(stores[1])
        draw(model, held_out, game, trial.run_dir / "pictures.npz")
        learn = training.learner.settings
        sizes = replace(
            QUICK if trial.quick else Sizes(), timed=(learn.batch_size, learn.sequence_length)
        )
        measures = measure(model, game, train, held_out, trial.seed, sizes)
        spent["measuring_s"] = round(time.monotonic() - began, 1)
        write_result(trial, settings, measures, model, spent)
    return True


class Training:
    """A world model that learns from a store until its CPU time is used up; a context manager."""

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
        )
        self.checkpoints = trial.run_dir / "checkpoints"
        self.log = MetricsLog(trial.run_dir)
        self.cpu_s, self.rows = 0.0, 0
        self.commits: list[str] = []
        self._stop = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._resume()

    def __enter__(self) -> "Training":
        """Heed signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, lambda *_: self._stop.set())
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the ring, the log and the signals."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.learner.close()
        self.log.close()

    def go_on(self) -> bool:
        """Learn until the budget is used or a signal came; returns whether it is used."""
        budget = 60 * self.trial.minutes
        sums: dict[str, float] = {}
        updates, told, saved = 0, time.monotonic(), time.monotonic()
        while self.cpu_s < budget and not self._stop.is_set():
            metrics = self._learn()
            updates += UPDATES_AT_ONCE
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * UPDATES_AT_ONCE
            over = self.cpu_s >= budget or self._stop.is_set()
            if time.monotonic() - told >= LINE_S or over:
                self._tell({name: value / updates for name, value in sums.items()})
                sums, updates, told = {}, 0, time.monotonic()
            if time.monotonic() - saved >= CHECKPOINT_S or over:
                self._save()
                saved = time.monotonic()
        return self.cpu_s >= budget

    def spent(self) -> dict[str, Any]:
        """What training took, for the result."""
        return {
            "cpu_s": round(self.cpu_s, 1),
            "wall_time_s": round(self.log.wall_time_s, 1),
            "updates": self.learner.updates,
            "rows": self.rows,
            "commit": ", ".join(self.commits),
        }

    def _learn(self) -> dict[str, float]:
        began = time.process_time()
        metrics, _ = self.learner.learn(UPDATES_AT_ONCE)
        self.cpu_s += time.process_time() - began
        learn = self.learner.settings
        self.rows += UPDATES_AT_ONCE * learn.batch_size * learn.sequence_length
        return metrics

    def _tell(self, metrics: Mapping[str, float]) -> None:
        counts = {
            "study/updates": self.learner.updates,
            "study/cpu_s": round(self.cpu_s, 2),
            "study/rows": self.rows,
        }
        named = {f"world_model/{name}": value for name, value in metrics.items()}
        self.log.write("train", self.trial.steps, {**counts, **named})
        minutes, seconds = divmod(int(self.cpu_s), 60)
        print(
            f"[{minutes}:{seconds:02d} of {self.trial.minutes:g} CPU min] {self.trial.arm} "
            f"seed {self.trial.seed}: {self.learner.updates:,} updates, "
            f"{metrics['nats_per_frame']:.1f} nats per frame, KL {metrics['kl']:.2f}",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "learner": self.learner.state_dict(),
            "segments": self.learner.segments(),
            "cpu_s": self.cpu_s,
            "rows": self.rows,
            "commits": self.commits,
        }
        checkpoint.save(self.checkpoints, self.learner.updates, state)
        checkpoint.prune(self.checkpoints, keep=1)

    def _resume(self) -> None:
        state: dict[str, Any] = {}
        if checkpoint.steps(self.checkpoints):
            _, state = checkpoint.load(self.checkpoints)
        self.learner.refresh(state.get("segments"))
        if state:
            self.learner.load_state_dict(state["learner"])
            self.cpu_s, self.rows = state["cpu_s"], state["rows"]
        # of the code that is running now, whatever is committed until the end
        self.commits = list(dict.fromkeys([*state.get("commits", []), provenance.commit()]))
        self.log.truncate_after(self.learner.updates, counter="study/updates")


def write_result(
    trial: Trial,
    settings: Mapping[str, Any],
    measures: Mapping[str, Any],
    model: WorldModel,
    spent: Mapping[str, Any],
) -> None:
    """Write the trial's JSON, last of all, so that it is there only if everything is."""
    words = ["mbrl", "bench", "fidelity", trial.game, *trial.overrides, "--arms", trial.arm]
    words += ["--seeds", f"{trial.seed + 1}", "--minutes", f"{trial.minutes:g}"]
    words += ["--steps", f"{trial.steps}", *(["--quick"] if trial.quick else [])]
    result = {
        "game": trial.game,
        "arm": trial.arm,
        "seed": trial.seed,
        "command": shlex.join(words),
        "machine": provenance.machine(),
        "cpu_minutes": trial.minutes,
        **spent,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "overrides": list(trial.overrides),
        "settings": settings,
        "measures_version": MEASURES,
        "measures": measures,
        "curve": curve(trial.run_dir),
    }
    trial.result_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(trial.result_path, json.dumps(result, indent=1, allow_nan=False))


def curve(run_dir: Path) -> dict[str, list[float | None]]:
    """How training went: CPU minutes, nats per frame and KL of every line of the metrics."""
    names = {
        "cpu_minutes": "study/cpu_s",
        "nats_per_frame": "world_model/nats_per_frame",
        "kl": "world_model/kl",
    }
    columns: dict[str, list[float | None]] = {name: [] for name in names}
    for line in read_metrics(run_dir, "train"):
        for name, key in names.items():
            value = line[key] / 60 if key == "study/cpu_s" else line[key]
            columns[name].append(round(value, 4) if math.isfinite(value) else None)
    return columns


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
