"""A study: every trial that is missing, side by side, then what comes after them, then the report.

Each trial is a process of its own on one core; what is done is kept, what is half done resumes,
what fails is reported while the others continue. The summary and the report are made anew from
everything that is there, also after a failure. This module imports neither torch nor Ray, and
neither does that of a subclass: what trains, measures and draws is imported where it is called.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic

from pydantic import Field
from rich.console import Console
from rich.table import Table

from mbrl.config.base import Settings
from mbrl.errors import ConfigError
from mbrl.run.children import Child, run_all
from mbrl.studies.arms import choose, in_order
from mbrl.studies.options import SUBJECT, read_options
from mbrl.studies.trial import ONE_CORE, OneTrial, process, read_result, refuse_changed

Tree = dict[str, Any]
MAKER = "mbrl.studies.bench"
"""The module that makes the trial of a file."""


class StudyOptions(Settings):
    """What a command says of all its trials together; the rest is the trials' own."""

    arms: str = Field("main", description="main, all, or names with commas between")
    seeds: int | None = Field(
        None, ge=1, description="seeds 0 .. N-1; default: 3 for main arms, 1 for the others"
    )
    jobs: int = Field(1, ge=1, description="runs side by side")
    force: bool = Field(False, description="make anew what is there with other settings")


class Study(ABC, Generic[OneTrial]):
    """What a study trains, measures and shows.

    Attributes:
        trial: the class of its trials, whose fields are options of its command as well.
        words: what the words of the command are, for its help.
    """

    trial: type[OneTrial]
    options: ClassVar[type[StudyOptions]] = StudyOptions
    description: ClassVar[str]
    words: ClassVar[str]

    def of(self, words: Sequence[str]) -> "Study[Any]":
        """The study that a command with these words is of: this one, or one it hands them to."""
        return self

    def chosen(self, names: str, example: OneTrial, console: Console) -> list[str]:
        """The arms of `--arms` that can be made; the console hears what is left out.

        `example` is a trial that differs from those to be made in arm, seed and minutes.
        """
        return choose(names, self.trial.known_arms)

    def check(self, trials: Sequence[OneTrial]) -> None:
        """Refuse what contradicts the results that are there, before anything is touched."""

    def prepare(self, trials: Sequence[OneTrial], options: StudyOptions) -> None:
        """Gather what all trials learn from, so that two do not gather it twice."""

    @abstractmethod
    def make(self, trial: OneTrial) -> bool:
        """Train and measure one trial in this process; whether it is done."""

    def after(self, trials: Sequence[OneTrial], options: StudyOptions) -> list[Child]:
        """What is measured one at a time when the trials are done."""
        return []

    def summary(self, trials: Sequence[Tree], folder: Path) -> Tree:
        """What the results of a subject, all in one folder, say together."""
        from mbrl.studies.results import summary_of

        return summary_of(self.trial, trials)

    @abstractmethod
    def show(self, folder: Path, summary: Tree, trials: Sequence[Tree]) -> tuple[Table, Path]:
        """A table for a terminal, and the HTML report, written with its pictures."""

    def bench(self, given: Mapping[str, Any]) -> list[str]:
        """Run what is missing and write summary and report; one sentence for each failed trial.

        `given` has the values of the options by the names of their fields, and `words`.

        Raises:
            MbrlError: the command asks for something unknown or contradictory.
        """
        console = Console()
        options = read_options(self.options, given)
        trials = self.plan(given, options, console)
        self.check(trials)
        refuse_changed(trials, options.force)
        missing = [trial for trial in trials if not trial.is_done()]
        if any(not (trial.run_dir / "checkpoints").exists() for trial in missing):
            from mbrl.device import pick_device

            pick_device(trials[0].device)  # what is begun may only need measuring
        self.prepare(trials, options)
        failed = run_all([child(trial) for trial in trials], options.jobs, console)
        failed += run_all(self.after(trials, options), 1, console)
        self._show(trials[0], console)
        return failed

    def plan(
        self, given: Mapping[str, Any], options: StudyOptions, console: Console
    ) -> list[OneTrial]:
        """All trials, in the order in which they are worth most if the study is stopped."""
        known = self.trial.known_arms
        example = self._example(given)
        names = self.chosen(options.arms, example, console)
        trials = []
        for name, seed in in_order(names, known, options.seeds):
            minutes = given.get("minutes") or known[name].minutes
            update = {"arm": name, "seed": seed, "minutes": minutes}
            trials.append(example.model_copy(update=update))
        return trials

    def _example(self, given: Mapping[str, Any]) -> OneTrial:
        """A trial with the options of a command, of no arm yet."""
        words = given["words"]
        subjects = [word for word in words if "=" not in word]
        if len(subjects) > 1:
            raise ConfigError(
                f"bench {self.trial.study}: expected one game and key=value settings, "
                f"got {' and '.join(subjects)}"
            )
        values = {
            "minutes": 1.0,
            "results": Path("results") / self.trial.home,
            "out": Path("runs") / self.trial.home,
            **{name: value for name, value in given.items() if value is not None},
            "arm": "",
            "seed": 0,
            "overrides": tuple(word for word in words if "=" in word),
            SUBJECT: next(iter(subjects), None),
        }
        example = read_options(self.trial, values)
        if given.get("out") is None:
            example = example.model_copy(update={"out": example.out / example.subject})
        return example

    def aggregate(self, subject: str, results: Path) -> Tree:
        """Summarise all results of a subject and write `<results>/<subject>.json`.

        Raises:
            ConfigError: there is none yet, a file is none, or they do not belong together.
        """
        from mbrl.studies.results import read_trials, write_json

        trials = read_trials(self.trial, subject, results)
        if not trials:
            raise ConfigError(f"{results / subject}: expected results of trials, found none")
        summary = self.summary(trials, results / subject)
        write_json(results / f"{subject}.json", summary)
        return summary

    def _show(self, trial: OneTrial, console: Console) -> None:
        from mbrl.studies.results import read_trials

        if trials := read_trials(self.trial, trial.subject, trial.results):
            summary = self.aggregate(trial.subject, trial.results)
            table, report = self.show(trial.out, summary, trials)
            console.print(table)
            console.print(f"report: {report}", highlight=False, soft_wrap=True)


def child(trial: OneTrial) -> Child:
    """A trial as a process of its own, on one core."""

    def summary() -> str:
        result = read_result(trial.result_path) or {}
        cpu, wall = result["cpu_s"] / 60, result["wall_time_s"] / 60
        spent = f"{cpu:.3g} {trial.unit} minutes ({wall:.1f} minutes)"
        return f"{result['updates']:,} updates in {spent}, see {trial.result_path}"

    return Child(
        title=trial.title,
        command=() if trial.is_done() else process(MAKER, trial),
        log=trial.run_dir / "log.txt",
        done=trial.is_done,
        environment=ONE_CORE,
        summary=summary,
    )
