"""Training for so much CPU time: the loop that every study's trials share.

The budget is the CPU time that this process spends in updates, summed over resumes: other work on
the machine makes a trial last longer, but hardly changes how many updates it gets; checkpoints and
measures do not count. On a GPU, where this process may wait, the time that passes counts instead.
SIGTERM and Ctrl-C checkpoint and stop. What is learnt, a study's own subclass knows.
"""

import math
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from mbrl.device import pick_device
from mbrl.errors import ConfigError
from mbrl.run import checkpoint, provenance
from mbrl.run.durable import lock_folder
from mbrl.run.metrics import MetricsLog, read_metrics
from mbrl.studies.results import write_json
from mbrl.studies.trial import OneTrial, Trial, plain, refuse_changed

LINE_S = 20.0
CHECKPOINT_S = 120.0
_OWN_STATE = ("cpu_s", "rows", "commits", "machines", "over", "minutes")
Tree = dict[str, Any]


class BudgetedTraining(ABC):
    """Something that learns until its budget is spent; a context manager.

    Attributes:
        at_once: updates of one call of `_update`, which ends when they have ended on the device.
        cpu_s: seconds of the budget spent so far; `rows`, learnt from so far.
        commits: of the code that trained.
        machines: that it trained on, as `mbrl.run.provenance.machine` says; what a CPU minute is
            worth depends on them, and so does the precision.
        device: that learns, or if it is not here, the one to measure with.
        over: learning has ended before its time.
    """

    at_once = 1

    def __init__(
        self, trial: Trial, *, env_steps: int, group: str, device: torch.device | None = None
    ) -> None:
        """Load the newest checkpoint; whatever `_begin` needs has to be there already.

        `env_steps` and `group` are of the lines of metrics, which are called `group/name`.
        """
        self.device = device or torch.device("cpu")
        self.run_dir, self.minutes = trial.run_dir, trial.minutes
        self._wanted, self._ends_after = trial.device, trial.ends_after
        self._unit = f"{trial.unit} minutes"
        self._title = f"{trial.arm} seed {trial.seed}"
        self._env_steps, self._group = env_steps, group
        self.checkpoints = self.run_dir / "checkpoints"
        self.log = MetricsLog(self.run_dir)
        self.cpu_s, self.rows = 0.0, 0
        self.commits: list[str] = []
        self.machines: list[Tree] = []
        self.over = self._stopped = False
        self._handlers: dict[int, Any] = {}
        self._resume()

    @property
    @abstractmethod
    def updates(self) -> int:
        """Updates so far, resumed ones included."""

    @abstractmethod
    def _update(self) -> dict[str, float]:
        """Make `at_once` updates; their mean metrics. Adds to `rows`, may set `over`."""

    @abstractmethod
    def _state(self) -> Tree:
        """What training continues from."""

    @abstractmethod
    def _begin(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, or begin if it is empty."""

    @abstractmethod
    def _in_words(self, metrics: Mapping[str, float]) -> str:
        """The metrics that the terminal should show."""

    def _measured(self) -> dict[str, float]:
        """Further metrics of a line, made outside the budget."""
        return {}

    def __enter__(self) -> Self:
        """Let signals end `train` after the present update, with a checkpoint."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log and restore the signals."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.log.close()

    def _stop(self, *_: object) -> None:
        self._stopped = True

    @property
    def budget_spent(self) -> bool:
        """Whether there is no more to do: time or updates are over, or learning is."""
        enough = self._ends_after is not None and self.updates >= self._ends_after
        return self.over or enough or self.cpu_s >= 60 * self.minutes

    def train(self) -> bool:
        """Learn until the budget is spent or a signal came; returns `budget_spent`.

        Raises:
            ConfigError: there is something to learn, and the GPU to learn it on is not here.
        """
        if not self.budget_spent:
            pick_device(self._wanted)
        sums: dict[str, float] = {}
        updates, logged, saved = 0, time.monotonic(), time.monotonic()
        while not self.budget_spent and not self._stopped:
            metrics = self.learn()
            updates += self.at_once
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * self.at_once
            ends = self.budget_spent or self._stopped
            if time.monotonic() - logged >= LINE_S or ends:
                self.write_line({name: value / updates for name, value in sums.items()})
                sums, updates, logged = {}, 0, time.monotonic()
            if time.monotonic() - saved >= CHECKPOINT_S or ends:
                self.save()
                saved = time.monotonic()
        return self.budget_spent

    def learn(self) -> dict[str, float]:
        """Make `at_once` updates and count what they took; their mean metrics."""
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

    def write_line(self, metrics: Mapping[str, float]) -> None:
        """Write a line of metrics, and say it on the terminal."""
        counts = {"updates": self.updates, "cpu_s": round(self.cpu_s, 2), "rows": self.rows}
        metrics = {**metrics, **self._measured()}
        line = {f"study/{name}": value for name, value in counts.items()}
        line |= {f"{self._group}/{name}": value for name, value in metrics.items()}
        self.log.write("train", self._env_steps, line)
        minutes, seconds = divmod(int(self.cpu_s), 60)
        print(
            f"[{minutes}:{seconds:02d} of {self.minutes:g} {self._unit}] {self._title}: "
            f"{self.updates:,} updates, {self._in_words(metrics)}",
            flush=True,
        )

    def save(self) -> None:
        """Write a checkpoint and remove the one before."""
        own = {name: getattr(self, name) for name in _OWN_STATE}
        checkpoint.save(self.checkpoints, self.updates, {**self._state(), **own})
        checkpoint.prune(self.checkpoints, keep=1)

    def spent(self) -> Tree:
        """What training took, by what code and where else than here; for the result.

        `commit` is of the code that trained, `measured_by` of the one that is running;
        `trained_here` is there, and false, if the machine that is running only measures.
        """
        commit, machine = self._here
        elsewhere = [one for one in self.machines if one != machine]
        return {
            "cpu_s": round(self.cpu_s, 2),
            "wall_time_s": round(self.log.wall_time_s, 1),
            "updates": self.updates,
            "rows": self.rows,
            "commit": ", ".join(self.commits),
            "measured_by": commit,
            "machine": machine,
            **({"other_machines": elsewhere} if elsewhere else {}),
            **({} if machine in self.machines else {"trained_here": False}),
        }

    def made(self, model: nn.Module, measure: Callable[[], Mapping[str, Any]]) -> Tree | None:
        """Train, then measure; parts of a result, or None if a signal stopped the training.

        `measure` is called once the training of `model` is over and its log closed.
        """
        with self:
            if not self.train():
                return None
            spent = self.spent()
        model.eval()
        began = time.monotonic()
        measures = plain(measure())
        return {
            **spent,
            "measuring_s": round(time.monotonic() - began, 1),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "measures": measures,
        }

    def _resume(self) -> None:
        state: Tree = {}
        if checkpoint.steps(self.checkpoints):
            _, state = checkpoint.load(self.checkpoints)
            self.cpu_s, self.rows = state["cpu_s"], state["rows"]
            self.over = state.get("over", False)
            minutes = state.get("minutes", self.minutes)
            if minutes > self.minutes and self.cpu_s >= 60 * self.minutes:
                self.log.close()
                raise ConfigError(
                    f"{self.run_dir}: expected a run of {self.minutes:g} {self._unit} at most, "
                    f"got one stopped after {self.cpu_s / 60:.3g} of {minutes:g}; continue with "
                    f"{minutes:g}, use another folder, or --force to make it anew"
                )
        self._begin(state)
        # a checkpoint of before these were kept says so, rather than nothing
        unknown = self.cpu_s > 0
        self.commits = state.get("commits", ["unknown"] if unknown else [])
        self.machines = state.get("machines", [{"cpu": "unknown"}] if unknown else [])
        # what is running now, whatever is committed until the end; it counts once it has learnt
        self._here: tuple[str, Tree] = provenance.commit(), provenance.machine(self.device)
        self.log.truncate_after(self.updates, counter="study/updates")


def run(
    trial: OneTrial,
    make: Callable[[OneTrial], Tree | None],
    lines: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
) -> bool:
    """Make one trial, or what is left of it; whether it is done.

    Args:
        trial: what to make; its folder is locked.
        make: trains and measures, see `BudgetedTraining.made`.
        lines: of the curve in the result: metrics by what to call them.
        more: written beside the settings and into the result.

    Raises:
        MbrlError: its settings are wrong or not those of its folder, or training cannot continue.
    """
    refuse_changed([trial])
    if trial.is_done():
        return True
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    settings, more = trial.settings(), more or {}
    with lock_folder(trial.run_dir):
        write_json(trial.run_dir / "settings.json", {**settings, **more})
        made = make(trial)
        if made is None:
            return False
        result = {
            trial.kind: trial.subject,
            "arm": trial.arm,
            "seed": trial.seed,
            "command": shlex.join(trial.command()),
            "cpu_minutes": trial.minutes,
            **more,
            "overrides": list(trial.overrides),
            "settings": settings,
            "measures_version": trial.measures,
            **made,
            "curve": _curve(trial.run_dir, lines),
        }
        write_json(trial.result_path, result)  # last of all: it is there only if everything is
    return True


def _curve(run_dir: Path, names: Mapping[str, str]) -> dict[str, list[float | None]]:
    """How training went: a list by each of `names`, with a number for each line of its metric.

    `study/cpu_s` is given in minutes.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in names}
    for line in read_metrics(run_dir, "train"):
        for name, key in names.items():
            value = line.get(key, math.nan) / (60 if key == "study/cpu_s" else 1)
            columns[name].append(float(f"{value:.6g}") if math.isfinite(value) else None)
    return columns
