"""A run folder and what every kind of run does with it: settle the config, log, checkpoint, finish.

    runs/<name>/config.yaml  provenance.json  metrics.jsonl  replay/  checkpoints/  videos/
                result.json  report.html

The same command on the same folder resumes; a different config on it is refused, except for
settings that only say when to stop or where to show progress. A run that was refused, or died,
before it left anything holds no claim: the next one starts its folder anew. The folder is locked
while a run is at work.
"""

import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mbrl.config import file as config_file
from mbrl.config.changes import differences, filled
from mbrl.config.schema import Config
from mbrl.config.yaml import parse_value
from mbrl.errors import ConfigError
from mbrl.evaluate import EvalResult
from mbrl.report.html import write_run_report
from mbrl.run import checkpoint, provenance
from mbrl.run.durable import lock_folder, write_atomically
from mbrl.run.metrics import MetricsLog
from mbrl.run.mirrors import TRACKERS, opener
from mbrl.run.progress import Progress
from mbrl.run.record import RunRecord, read_result

# may differ between the command that started a run and the one that resumes it
_FREE = ("env_steps", "run", "name", "device")
# of sections that else may not: where environments step, and how long they may take
_FREE_INSIDE = {"env": "step_timeout_s", "collect": "vector"}


class Run:
    """The open run folder.

    Attributes:
        config: the resolved settings.
        dir: the folder.
        env_steps: real steps so far; set by the training loop.
        resumed: the state of the checkpoint this run continues from, or None.
        stopping: a signal asked the run to end at the next safe point.
        curve: [env_steps, mean return] of every evaluation so far.
        budget: counts of what was spent, by name.
    """

    def __init__(self, config: Config) -> None:
        """Lock the folder, check that it belongs to this config, and load the newest checkpoint.

        Raises:
            ConfigError: the folder was made with other settings.
            MbrlError: another process is using the folder.
        """
        # absolute, because actors may work in another folder
        self.config, self.dir = config, config.run_dir.resolve()
        self.dir.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.dir)
        self._handlers: dict[int, Any] = {}
        self.stopping = False
        self.env_steps = 0
        self.curve: list[list[float]] = []
        self.budget: dict[str, float] = {}
        self.resumed: dict[str, Any] | None = None
        self.checkpoints = self.dir / "checkpoints"
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> None:
        """Settle the config, open the metrics and go back to the newest checkpoint."""
        config = self.config
        self._settle_config()
        if checkpoint.steps(self.checkpoints):
            self.env_steps, self.resumed = checkpoint.load(self.checkpoints)
            self.curve = [list(point) for point in self.resumed["curve"]]
            self.budget = dict(self.resumed["budget"])
        wanted = [name for name in TRACKERS if getattr(config.run, name)]
        self.log = MetricsLog(self.dir, mirrors=[opener(name, self.dir) for name in wanted])
        self.log.truncate_after(self.env_steps if self.resumed else -1)
        title = f"{config.env.id or config.env.factory} {config.agent} seed {config.seed}"
        self.progress = Progress(config.env_steps, start_steps=self.env_steps, title=title)

    @property
    def finished(self) -> bool:
        """Whether the run's last evaluation is on disk."""
        done = (self.dir / "result.json").exists()
        return done and self.result()["env_steps"] >= self.config.env_steps

    def result(self) -> dict[str, Any]:
        """What `result.json` holds."""
        return read_result(self.dir / "result.json")

    def __enter__(self) -> Self:
        """Show progress and handle signals."""
        self.progress.__enter__()
        self.handle_signals()
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the signal handlers and unlock the folder."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.progress.__exit__()
        self.close()

    def close(self) -> None:
        """Finish the metrics and unlock the folder."""
        self.log.close()
        self._lock.close()

    def handle_signals(self) -> None:
        """Turn SIGTERM and SIGINT into a request to stop safely, until the folder is left.

        Called once more after Ray has started, which installs a handler of its own. Outside the
        main thread Python allows none; whoever started the thread decides when it ends.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.signal(number, self._ask_to_stop)
            self._handlers.setdefault(number, before)

    def _ask_to_stop(self, *_: object) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.request_stop()

    def request_stop(self) -> None:
        """Ask the run to end at its next safe point, with a checkpoint, as a first signal does."""
        self.stopping = True
        self.progress.print("stopping at the next safe point; the same command resumes")

    def spend(self, **counts: float) -> None:
        """Add to the budget."""
        for name, count in counts.items():
            self.budget[name] = self.budget.get(name, 0) + count

    def record_evaluation(self, result: EvalResult, env_steps: int) -> None:
        """Put an evaluation of the weights at `env_steps` on the curve."""
        self.curve.append([env_steps, result.mean])
        episodes, steps = len(result.returns), sum(result.lengths)
        self.spend(evaluation_episodes=episodes, evaluation_steps=steps)
        metrics = {
            "eval/mean": result.mean,
            "eval/std": result.std,
            "eval/episodes": episodes,
            "eval/length": steps / episodes,
            "eval/cut": result.cut,
            "eval/returns": result.returns,
        }
        self.log.write("eval", env_steps, metrics)
        self.progress.update(eval_mean=result.mean)
        limit = self.config.evaluate.max_episode_steps
        cut = (
            f"; {result.cut} did not end and were cut after {limit:,} steps "
            "(evaluate.max_episode_steps)"
        )
        self.progress.print(
            f"{env_steps:>9,} steps  return {result.mean:.2f} ± {result.std:.2f} "
            f"({episodes} episodes, {self.log.wall_time_s:.0f} s{cut if result.cut else ''})"
        )

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of everything the run continues from."""
        whole = {**state, "curve": self.curve, "budget": self.budget}
        checkpoint.save(self.checkpoints, self.env_steps, whole)
        checkpoint.prune(self.checkpoints, self.config.run.keep_checkpoints)

    def finish(self, final: EvalResult) -> dict[str, Any]:
        """Write `result.json` and the report, last of all."""
        config = self.config
        result = {
            "agent": config.agent,
            "env_id": config.env.id or config.env.factory,
            "seed": config.seed,
            "env_steps": self.env_steps,
            "wall_time_s": round(self.log.wall_time_s, 1),
            "eval": final.as_dict(),
            "curve": self.curve,
            "budget": self.budget,
            "commit": provenance.commit(),
            "machine": provenance.machine(),
        }
        write_atomically(self.dir / "result.json", json.dumps(result, indent=1))
        videos = sorted((self.dir / "videos").glob("*.mp4"))[-1:]
        write_run_report(self.dir / "report.html", RunRecord.read(self.dir), videos)
        return result

    def _settle_config(self) -> None:
        changed = changed_settings(self.dir, self.config)
        if changed:
            raise ConfigError(
                f"{self.dir} was made with other settings: {'; '.join(changed)}. "
                f"Resume with the same settings, or choose another folder with run.dir=..."
            )
        if self.finished:
            return
        write_atomically(self.dir / "config.yaml", config_file.dump(self.config))
        path = self.dir / "provenance.json"
        goes_on = path.exists() and _has_work(self.dir)
        made_by = json.loads(path.read_text()) if goes_on else []
        now = {**provenance.provenance(), "device": self.config.device}
        if now not in made_by:
            write_atomically(path, json.dumps([*made_by, now], indent=1))


def _has_work(run_dir: Path) -> bool:
    """Whether a run left something here that one with other settings would mix up or lose.

    That is experience, a line of metrics, a checkpoint or a result.
    """
    metrics = run_dir / "metrics.jsonl"
    return (
        (run_dir / "result.json").exists()
        or (metrics.exists() and metrics.stat().st_size > 0)
        or bool(checkpoint.steps(run_dir / "checkpoints"))
        or any((run_dir / "replay" / "data").glob("*.parquet"))
    )


def changed_settings(run_dir: Path, config: Config) -> list[str]:
    """Settings in which a run folder differs from `config`; none if it holds no work yet.

    What may change between a run and its continuation (budget, device, where things go) does not
    count, and a setting that did not exist yet counts with its default.
    """
    path = run_dir / "config.yaml"
    if not path.exists() or not _has_work(run_dir):
        return []
    old = filled(parse_value(path.read_text(encoding="utf-8")), type(config))
    new = config.model_dump(mode="json")
    return differences(_binding(old), _binding(new))


def _binding(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run may not change."""
    return {
        name: {k: v for k, v in value.items() if k != _FREE_INSIDE[name]}
        if name in _FREE_INSIDE
        else value
        for name, value in tree.items()
        if name not in _FREE
    }
