"""The games side by side on one card: start or resume, watch, copy results, stop in time.

Each game is one `mbrl train` in a process and a run folder of its own. A call lasts a given time:
some of it before the end the runs are asked to stop, they checkpoint, and the next call goes on
from their folders. Results are copied while the runs work, so that a call that is cut off leaves
what it had: `OUT/<game>/metrics.jsonl`, `OUT/<game>/result.json`, `OUT/summary.json`.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.gpu_study import ROOT, StudyError

GAMES = {"boxing": "ALE/Boxing-v5", "pong": "ALE/Pong-v5", "breakout": "ALE/Breakout-v5"}
CONFIG = "configs/gpu.yaml"
REHEARSAL = (
    "collect.num_collectors=1",
    "collect.num_envs=2",
    "collect.prefill_steps=128",
    "collect.steps_per_iteration=64",
    "learn_model.batch_size=4",
    "learn_model.train_ratio=4",
    "learn_policy.dream_ratio=8",
    "policy.dreams=32",
    "evaluate.every_steps=256",
    "evaluate.episodes=1",
    "evaluate.final_episodes=1",
    "evaluate.num_envs=1",
    "env.max_episode_steps=200",
    "run.threads=1",
)
"""Sizes with which a CPU comes to the end of the same path."""
COPY_S, LOOK_S = 20.0, 1.0
KILL_S = 5.0
"""Before the end of a call, what still works is ended."""


@dataclass(kw_only=True)
class Game:
    """One game's run.

    Attributes:
        python: interpreter of the environment.
        settings: `key=value` pairs behind the config.
        run_dir: its run folder, which a later call goes on from.
        problem: why it ended too early, in a line; empty if it did not.
    """

    name: str
    python: Path
    settings: list[str]
    run_dir: Path
    env_steps: int
    process: subprocess.Popen[bytes] | None = None
    problem: str = ""

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.run_dir / "config.yaml").exists()

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.run_dir.with_suffix(".log")

    @property
    def result(self) -> dict[str, Any]:
        """Its `result.json`; empty until the run has finished."""
        path = self.run_dir / "result.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("env_steps", 0) >= self.env_steps else {}

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines of its `metrics.jsonl` so far."""
        path = self.run_dir / "metrics.jsonl"
        written = path.read_bytes() if path.exists() else b""
        return [json.loads(one) for one in written.splitlines(True) if one.endswith(b"\n")]

    @property
    def checkpoint(self) -> int:
        """Env steps of the newest checkpoint, 0 if there is none."""
        folders = (self.run_dir / "checkpoints").glob("*")
        return max((int(one.name) for one in folders if one.name.isdecimal()), default=0)

    def start(self, environment: dict[str, str]) -> None:
        """Run the command, unless it has finished before."""
        if self.result:
            return
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.python), "-m", "mbrl", "train", CONFIG, *self.settings],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches it through us alone
            )

    def working(self) -> bool:
        """Whether its process is at work; notes why one ended that should not have."""
        if self.process is None:
            return False
        code = self.process.poll()
        if code is None:
            return True
        if code != 0 and not self.problem:
            said = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            self.problem = f"exit code {code}: {' '.join(said)} (all of it: {self.log})"
        return False

    def ask_to_stop(self) -> None:
        """Let the run checkpoint and end by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End the run, with everything it has started, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def summary(self) -> dict[str, Any]:
        """Where it stands, for people and for `summary.json`."""
        lines = self.lines()
        last = lines[-1] if lines else {}
        steps, spent = last.get("env_steps", 0), last.get("wall_time_s", 0.0)
        state = "stopped" if steps or self.checkpoint else "not begun"
        if self.working():
            state = "running"
        elif self.result or self.problem:
            state = "finished" if self.result else "failed"
        evaluations = [line for line in lines if line["kind"] == "eval"]
        return {
            "env_id": GAMES[self.name],
            "state": state,
            "problem": self.problem,
            "env_steps": steps,
            "of": self.env_steps,
            "checkpoint": self.checkpoint,
            "wall_time_s": spent,
            "steps_per_s": round(steps / spent, 2) if spent else 0.0,
            "curve": [
                [line["env_steps"], line["wall_time_s"], line["eval/mean"]] for line in evaluations
            ],
            "final": self.result.get("eval"),
            "budget": self.result.get("budget"),
            "command": shlex.join(["mbrl", "train", CONFIG, *self.settings]),
        }


@dataclass(kw_only=True)
class Study:
    """All games of one call.

    Attributes:
        out: folder that results are copied to.
        about: where the numbers come from, as `deploy.gpu_study.device` prints it.
        environment: of the runs' processes.
        began: `time.monotonic()` of the call, `minutes` after which everything has ended.
        stop_s: how long before that the runs are asked to stop.
    """

    games: list[Game]
    out: Path
    about: dict[str, Any]
    environment: dict[str, str]
    began: float
    minutes: float
    stop_s: float
    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    _copied: float = field(default=0.0)

    @property
    def left_s(self) -> float:
        """Seconds until the end of the call."""
        return self.began + 60 * self.minutes - self.clock()

    def run(self) -> bool:
        """Work until the games are finished or the time is over; whether all have finished.

        Raises:
            StudyError: there is no time left to begin, or a run failed; what the runs had is
                copied, and the same command goes on.
        """
        if self.left_s <= self.stop_s:
            raise StudyError(
                f"expected time to train before the runs are asked to stop, got {self.left_s:.0f} "
                f"s of which {self.stop_s:.0f} s are for stopping; the same command goes on from "
                f"here, or give it more with --minutes"
            )
        try:
            for game in self.games:
                known = f"goes on from {game.checkpoint:,}" if game.checkpoint else "begins"
                self.say(f"{game.name}: {'finished before' if game.result else known}")
                game.start(self.environment)
            self._watch(until=self.stop_s)
        finally:
            self._stop()
            self.copy()
        if failed := [f"{game.name}: {game.problem}" for game in self.games if game.problem]:
            raise StudyError("; ".join(failed) + "; the same command goes on")
        return all(game.result for game in self.games)

    def _watch(self, until: float) -> None:
        """Wait and copy while runs work and more than `until` seconds are left."""
        while any([game.working() for game in self.games]) and self.left_s > until:
            time.sleep(LOOK_S)
            if self.clock() - self._copied >= COPY_S:
                self.copy()

    def _stop(self) -> None:
        """Ask those at work to stop; end those that have not at the end of the call."""
        for game in self.games:
            game.ask_to_stop()
        self._watch(until=KILL_S)
        for game in self.games:
            if game.working():
                game.end()
                self.say(f"{game.name}: ended before it stopped; goes on from {game.checkpoint:,}")

    def copy(self) -> None:
        """Put what there is into the output folder, and say where the games stand."""
        self._copied = self.clock()
        for game in self.games:
            for name in ("metrics.jsonl", "result.json"):
                if (game.run_dir / name).exists():
                    (self.out / game.name).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(game.run_dir / name, self.out / game.name / name)
        found = {game.name: game.summary() for game in self.games}
        self.out.mkdir(parents=True, exist_ok=True)
        written = self.out / "summary.json.new"
        written.write_text(json.dumps({**self.about, "games": found}, indent=1) + "\n")
        written.replace(self.out / "summary.json")
        self.say("   ".join(_in_words(name, one) for name, one in found.items()))


def environment(games: int) -> dict[str, str]:
    """Variables of the runs' processes, so many at once: the cores are shared out."""
    threads = max(1, min(4, len(os.sched_getaffinity(0)) // games))
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}


def _in_words(name: str, found: dict[str, Any]) -> str:
    said = f"{name} {found['state']}, {found['env_steps']:,} steps, {found['steps_per_s']:.0f}/s"
    return f"{said}, return {found['curve'][-1][2]:.1f}" if found["curve"] else said


def games(
    python: Path, runs: Path, names: list[str], device: str, env_steps: int, settings: list[str]
) -> list[Game]:
    """The runs, each with its settings.

    Args:
        python: interpreter of the environment.
        runs: folder of the run folders.
        names: keys of `GAMES`.
        device: what torch calls it; on "cpu" the runs take the sizes of a rehearsal.
        env_steps: agent steps of each game.
        settings: further `key=value` pairs, the same in every call.
    """
    if unknown := [name for name in names if name not in GAMES]:
        raise StudyError(f"expected games among {', '.join(GAMES)}, got {', '.join(unknown)}")
    sizes = REHEARSAL if device == "cpu" else ()
    made = []
    for name in names:
        run_dir = runs / name
        # the runs work in the checkout; a path inside it says nothing of the machine
        shown = run_dir.relative_to(ROOT) if run_dir.is_relative_to(ROOT) else run_dir
        chosen = [f"env.id={GAMES[name]}", f"name={name}", f"run.dir={shown}"]
        chosen += [f"device={device}", f"env_steps={env_steps}", *sizes, *settings]
        made.append(
            Game(name=name, python=python, settings=chosen, run_dir=run_dir, env_steps=env_steps)
        )
    return made
