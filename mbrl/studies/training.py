"""Training for so much CPU time: the loop that every study's trials share.

The budget is the CPU time that this process spends in updates, summed over resumes: other work on
the machine makes a trial last longer, but hardly changes how many updates it gets (they share
caches and memory); checkpoints and measures do not count. On a graphics card, where this process
may wait while the card works, the time that passes is counted instead. A line of metrics is written
about every 20 seconds, a checkpoint every two minutes. SIGTERM and Ctrl-C checkpoint and stop. What
is learnt, a study's own subclass knows.
"""

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from mbrl.device import pick_device
from mbrl.errors import ConfigError
from mbrl.run import checkpoint, provenance
from mbrl.run.metrics import MetricsLog, read_metrics
from mbrl.studies.trials import BaseTrial

LINE_S = 20.0
CHECKPOINT_S = 120.0


class BudgetedTraining(ABC):
    """Something that learns until its CPU time is used up; a context manager.

    Attributes:
        run_dir: gets `checkpoints/` and `metrics.jsonl`.
        minutes: the budget.
        title: names it on the terminal.
        env_steps: what the lines of metrics say of environment steps.
        group: of the metrics, as in `group/name`.
        cpu_s: spent so far.
        rows: learnt from so far.
        commits: of the code that trained.
        machines: that it trained on, as `mbrl.run.provenance.machine` says; what a CPU minute is
            worth depends on them, and so does the precision.
        device: that learns, or if it is not here, the one to measure with.
        over: learning has ended before its time.
    """

    at_once = 1
    """Updates of one call of `_update`, which ends when they have ended on the device, too."""

    def __init__(
        self, trial: BaseTrial, *, env_steps: int, group: str, device: torch.device | None = None
    ) -> None:
        """Open the log, and take up the newest checkpoint if there is one.

        What `_begin` needs has to be there before. Without a `device`, it is the CPU.
        """
        self.device = device or torch.device("cpu")
        self.run_dir, self.minutes = trial.run_dir, trial.minutes
        self._wanted, self._ends_after = trial.device, trial.updates
        self.title = f"{trial.arm} seed {trial.seed}"
        self.env_steps, self.group = env_steps, group
        self.checkpoints = self.run_dir / "checkpoints"
        self.log = MetricsLog(self.run_dir)
        self.cpu_s, self.rows = 0.0, 0
        self.commits: list[str] = []
        self.machines: list[dict[str, Any]] = []
        self.over = False
        self._stop = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._resume()

    # -- what a study says ------------------------------------------------------------------------

    @property
    @abstractmethod
    def updates(self) -> int:
        """Updates so far, resumed ones included."""

    @abstractmethod
    def _update(self) -> dict[str, float]:
        """Make `at_once` updates; their mean metrics. Adds to `rows`, may set `over`."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What training goes on from."""

    @abstractmethod
    def _begin(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, or begin if it is empty."""

    @abstractmethod
    def _in_words(self, metrics: Mapping[str, float]) -> str:
        """The metrics that the terminal should show."""

    def _measured(self) -> dict[str, float]:
        """Further metrics of a line, made outside the budget."""
        return {}

    # -- what all share ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Heed signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, lambda *_: self._stop.set())
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the log and the signals."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.log.close()

    @property
    def used_up(self) -> bool:
        """Whether there is no more to do: time or updates are over, or learning is."""
        enough = self._ends_after is not None and self.updates >= self._ends_after
        return self.over or enough or self.cpu_s >= 60 * self.minutes

    def go_on(self) -> bool:
        """Learn until the budget is used or a signal came; returns whether it is `used_up`.

        Raises:
            ConfigError: there is something to learn, and the card to learn it on is not here.
        """
        if not self.used_up:
            pick_device(self._wanted)
        sums: dict[str, float] = {}
        updates, told, saved = 0, time.monotonic(), time.monotonic()
        while not self.used_up and not self._stop.is_set():
            metrics = self._learn()
            updates += self.at_once
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * self.at_once
            over = self.used_up or self._stop.is_set()
            if time.monotonic() - told >= LINE_S or over:
                self._tell({name: value / updates for name, value in sums.items()})
                sums, updates, told = {}, 0, time.monotonic()
            if time.monotonic() - saved >= CHECKPOINT_S or over:
                self._save()
                saved = time.monotonic()
        return self.used_up

    def spent(self) -> dict[str, Any]:
        """What training took, by what code and where else than here; for the result.

        `commit` is of the code that trained, `measured_by` of the one that is running, which
        measures; `trained_here` is there, and false, if the machine that is running only measures.
        """
        elsewhere = [one for one in self.machines if one != self._here[1]]
        return {
            "cpu_s": round(self.cpu_s, 2),
            "wall_time_s": round(self.log.wall_time_s, 1),
            "updates": self.updates,
            "rows": self.rows,
            "commit": ", ".join(self.commits),
            "measured_by": self._here[0],
            "machine": self._here[1],
            **({"other_machines": elsewhere} if elsewhere else {}),
            **({} if self._here[1] in self.machines else {"trained_here": False}),
        }

    @property
    def _unit(self) -> str:
        """What minutes are of."""
        return "CPU " if self._wanted == "cpu" else ""

    def _learn(self) -> dict[str, float]:
        commit, machine = self._here
        if commit not in self.commits:
            self.commits.append(commit)
        if self.machines[-1:] != [machine]:
            self.machines = [*(one for one in self.machines if one != machine), machine]
        clock = time.process_time if self.device.type == "cpu" else time.monotonic
        began = clock()
        metrics = self._update()
        self.cpu_s += clock() - began
        return metrics

    def _tell(self, metrics: Mapping[str, float]) -> None:
        counts = {
            "study/updates": self.updates,
            "study/cpu_s": round(self.cpu_s, 2),
            "study/rows": self.rows,
        }
        metrics = {**metrics, **self._measured()}
        named = {f"{self.group}/{name}": value for name, value in metrics.items()}
        self.log.write("train", self.env_steps, {**counts, **named})
        minutes, seconds = divmod(int(self.cpu_s), 60)
        print(
            f"[{minutes}:{seconds:02d} of {self.minutes:g} {self._unit}min] {self.title}: "
            f"{self.updates:,} updates, {self._in_words(metrics)}",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            **self._state(),
            "cpu_s": self.cpu_s,
            "rows": self.rows,
            "commits": self.commits,
            "machines": self.machines,
            "over": self.over,
            "minutes": self.minutes,
        }
        checkpoint.save(self.checkpoints, self.updates, state)
        checkpoint.prune(self.checkpoints, keep=1)

    def _refuse_a_longer_run(self, minutes: float) -> None:
        """A run that had a budget of more `minutes`, and has used more than the present one."""
        if minutes > self.minutes and self.cpu_s >= 60 * self.minutes:
            self.log.close()
            raise ConfigError(
                f"{self.run_dir}: expected a run of {self.minutes:g} {self._unit}minutes at most, "
                f"got one stopped after {self.cpu_s / 60:.3g} of {minutes:g}; go on with "
                f"{minutes:g}, use another folder, or --force to make it anew"
            )

    def _resume(self) -> None:
        state: dict[str, Any] = {}
        if checkpoint.steps(self.checkpoints):
            _, state = checkpoint.load(self.checkpoints)
            self.cpu_s, self.rows = state["cpu_s"], state["rows"]
            self.over = state.get("over", False)
            self._refuse_a_longer_run(state.get("minutes", self.minutes))
        self._begin(state)
        # a checkpoint of before these were kept says so, rather than nothing
        unknown = self.cpu_s > 0
        self.commits = state.get("commits", ["unknown"] if unknown else [])
        self.machines = state.get("machines", [{"cpu": "unknown"}] if unknown else [])
        # what is running now, whatever is committed until the end; it counts once it has learnt
        self._here = provenance.commit(), provenance.machine(self.device)
        self.log.truncate_after(self.updates, counter="study/updates")


def curve(run_dir: Path, names: Mapping[str, str]) -> dict[str, list[float | None]]:
    """How training went: one list for each name, with a number for each line of the metrics.

    Args:
        run_dir: of a run.
        names: metrics by what to call them; `study/cpu_s` is given in minutes.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in names}
    for line in read_metrics(run_dir, "train"):
        for name, key in names.items():
            value = line.get(key, math.nan) / (60 if key == "study/cpu_s" else 1)
            columns[name].append(float(f"{value:.6g}") if math.isfinite(value) else None)
    return columns
