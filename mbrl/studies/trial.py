"""Trials: runs of a study whose results are kept, continued or refused, never mixed up.

A trial is one arm with one seed and one budget. Its run folder holds checkpoints, metrics and the
trial itself (`trial.json`), from which a process of its own makes it; its result is a JSON file.
What happens to a result that is there already:

* made with the same settings and budget: kept, the run is skipped;
* the same, but measured by an older version of the measures: measured anew from its checkpoint;
* made with a smaller budget and otherwise the same: the run continues from its checkpoint;
* anything else: refused, since numbers would stand beside settings they were not made with.
  `force` removes it and makes it anew.

This module imports neither torch nor Ray.
"""

import json
import math
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, Field, field_validator

from envs.errors import EnvError
from mbrl.config.base import Settings
from mbrl.config.changes import differences, filled
from mbrl.errors import ConfigError, MbrlError
from mbrl.run import record
from mbrl.studies.arms import Arm
from mbrl.studies.options import as_words

FILE = "trial.json"
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    # glibc gives freed memory back at once, and asking for it again costs a fifth of the time of a
    # training step on 64 x 64 frames: keep it instead
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
"""The environment of a run."""


class Trial(Settings, ABC):
    """One run of a study; a study's own subclass adds what it learns from.

    A field with a description is an option of the study's command; `minutes`, `out` and `results`
    have no default, as it depends on the arm, the study and its subject.
    """

    study: ClassVar[str]  # in `mbrl bench`
    home: ClassVar[str]  # name of its folders in runs and results
    kind: ClassVar[str]  # what a subject is called in results: "game" or "images"
    known_arms: ClassVar[Mapping[str, Arm]]
    measures: ClassVar[int]  # version of the measures, raised when a number changes its meaning
    sections: ClassVar[Mapping[str, type[BaseModel]]]  # settings by their names in JSON

    arm: str
    seed: int  # of everything that is drawn; what is learnt from is the same for all
    overrides: tuple[str, ...] = ()
    minutes: float = Field(
        gt=0, description="minutes of training per run; default: the arm's own, see below"
    )
    updates: int | None = Field(
        None, ge=1, description="end a run after so many updates, if its minutes are not over"
    )
    quick: bool = Field(False, description="measure on a little only, to try things out")
    device: str = "cpu"  # a subclass that computes elsewhere too makes it an option
    out: Path = Field(description="run folders, report and so on; default: runs/STUDY/SUBJECT")
    results: Path = Field(description="JSON of every run and of all together; default: results/...")

    @field_validator("device")
    @classmethod
    def _one_kind(cls, device: str) -> str:
        """A study has to be on one kind of device, and to say on which."""
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError(f"expected cpu, cuda or cuda:N, got {device}")
        return device

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is learnt: the game, or the images; names files."""

    @abstractmethod
    def config(self) -> BaseModel:
        """The resolved settings.

        Raises:
            ConfigError: an override is wrong, or about something that the study decides.
        """

    @abstractmethod
    def chosen(self) -> dict[str, Any]:
        """Everything else that decides what comes out, ready for JSON."""

    @property
    def ends_after(self) -> int | None:
        """Updates after which a run ends; None if its minutes alone end it."""
        return self.updates

    @property
    def unit(self) -> str:
        """What `minutes` are of: a GPU, which runs may share, or one core."""
        return "CPU" if self.device == "cpu" else "GPU"

    @property
    def name(self) -> str:
        """Of the run folder and of the result."""
        return f"{self.arm}-{self.seed}"

    @property
    def title(self) -> str:
        """Names it on the terminal."""
        return f"{self.subject} {self.arm} seed {self.seed}"

    @property
    def run_dir(self) -> Path:
        """Checkpoints, metrics, pictures and log."""
        return self.out / self.name

    @property
    def beside(self) -> Sequence[Path]:
        """Further files that were made with its settings, and are removed with it."""
        return ()

    @property
    def result_path(self) -> Path:
        """Where the measures go."""
        return self.results / self.subject / f"{self.name}.json"

    def settings(self) -> dict[str, Any]:
        """Everything that decides what comes out, save the minutes, ready for JSON."""
        gpu = {"device": "cuda"} if self.unit == "GPU" else {}
        ends = {} if self.ends_after is None else {"updates": self.ends_after}
        config = self.config().model_dump(mode="json", include=set(self.sections))
        return {"seed": self.seed, "quick": self.quick, **gpu, **ends, **self.chosen(), **config}

    def changes(self, old: Mapping[str, Any]) -> list[str]:
        """In what it differs from settings that something was made with.

        One that did not exist yet counts with its default; a digest of what is learnt from is none.
        """
        known = {n: filled(old.get(n, {}), model, n) for n, model in self.sections.items()}
        before = {name: value for name, value in {**old, **known}.items() if name != "digest"}
        return differences(before, self.settings())

    def words(self) -> list[str]:
        """How the command that makes it begins, up to its overrides."""
        return ["mbrl", "bench", self.study, self.subject, *self.overrides]

    def command(self) -> list[str]:
        """The command that makes this trial and those of smaller seeds."""
        chosen = ["--arms", self.arm, "--seeds", f"{self.seed + 1}"]
        words = [*self.words(), *chosen, "--minutes", f"{self.minutes:g}", *as_words(self)]
        home = Path(self.home)
        if self.results.name.startswith(f"{home.name}_"):  # beside the usual ones
            folder = (home.parent / self.results.name).as_posix()
            words += ["--results", f"results/{folder}", "--out", f"runs/{folder}/{self.subject}"]
        return words

    def write(self) -> Path:
        """Write `trial.json` for a process of its own; returns its path."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / FILE
        whole = {"study": self.study, "trial": self.model_dump(mode="json")}
        path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        return path

    def is_done(self) -> bool:
        """Whether the result is there, of the whole budget and of the present measures."""
        if result := read_result(self.result_path):
            return is_current(result, self.measures) and result["cpu_minutes"] >= self.minutes
        return False

    def remove(self) -> None:
        """Remove its result, what was made beside it, and its run folder."""
        for path in (self.result_path, *self.beside):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)


OneTrial = TypeVar("OneTrial", bound=Trial)


def read_result(path: Path) -> dict[str, Any] | None:
    """A trial's result, or None if there is none; `record.read_result` says what is wrong."""
    keys = ("arm", "seed", "cpu_minutes", "settings", "measures")
    return record.read_result(path, *keys) if path.exists() else None


def is_current(result: Mapping[str, Any], measures: int) -> bool:
    """Whether a result was measured by this version of the measures."""
    return bool(result.get("measures_version", 1) == measures)


def refuse_changed(trials: Sequence[Trial], force: bool = False) -> None:
    """Refuse, or with `force` remove, what was made with other settings or a larger budget.

    Raises:
        ConfigError: the first such result or run folder, and in what it differs.
    """
    for trial in trials:
        trial.config()  # a wrong override is said before anything is touched
    for trial in trials:
        changed: list[str] = []
        if result := read_result(trial.result_path):
            changed += trial.changes(result["settings"])
            if result["cpu_minutes"] > trial.minutes:
                changed.append(f"minutes: {result['cpu_minutes']:g} became {trial.minutes:g}")
        begun = trial.run_dir / "settings.json"
        if begun.exists():
            changed += trial.changes(json.loads(begun.read_text(encoding="utf-8")))
        if changed and force:
            trial.remove()
        elif changed:
            raise ConfigError(
                f"bench {trial.study}: {trial.result_path} or {trial.run_dir} was made with other "
                f"settings: {'; '.join(dict.fromkeys(changed))}. Use the same settings, other "
                f"folders with --out and --results, or --force to make it anew"
            )


def plain(tree: Any) -> Any:
    """The same tree for JSON: plain floats, and None for what is no finite number."""
    if isinstance(tree, Mapping):
        return {str(name): plain(value) for name, value in tree.items()}
    if tree is None or not math.isfinite(tree):
        return None
    return float(tree)


def process(module: str, trial: Trial) -> list[str]:
    """What starts a module on a trial in a process of its own; writes the trial's file."""
    return [sys.executable, "-m", module, str(trial.write())]


def command_line(kind: type[OneTrial], call: Callable[[OneTrial], object], path: str) -> int:
    """Call something with the trial of a `trial.json`, on one thread; returns the exit code."""
    import torch

    torch.set_num_threads(1)
    whole = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        call(kind.model_validate(whole["trial"]))
    except (MbrlError, EnvError) as error:
        print(f"mbrl: {error}", file=sys.stderr)
        return 2
    return 0
