"""Trials: runs of a study whose results are kept, gone on with or refused, never mixed up.

A trial is one run with one seed and one budget; its result is a JSON file, its run folder holds
checkpoints and metrics. What happens to a result that is there already:

* made with the same settings and budget: kept, the run is skipped;
* the same, but measured by an older version of the measures: measured anew from its checkpoint,
  or trained anew if that is gone;
* made with a smaller budget and otherwise the same: the run goes on from its checkpoint;
* anything else: refused, since numbers would stand beside settings they were not made with. `force`
  removes it and makes it anew.

What is trained and measured, each study knows for itself. This module starts nothing and imports
neither torch nor Ray.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from mbrl.config.changes import differences, filled
from mbrl.errors import ConfigError
from mbrl.run.children import Child

ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    # glibc gives freed memory back at once, and asking for it again costs a fifth of the time of a
    # training step on 64 x 64 frames: keep it instead
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
"""The environment of a run."""


@dataclass(frozen=True, kw_only=True)
class BaseTrial(ABC):
    """What every study's trial is.

    Attributes:
        arm: a name among the study's arms.
        seed: of everything that is drawn; what is learnt from is the same for all.
        minutes: of training; CPU minutes if that is what learns.
        overrides: `key=value` on top of the arm.
        out: folder of the runs, figures and report.
        results: folder with one folder of results per subject.
        quick: measure on a little only, to try things out.
        device: what learns: "cpu", one core of it, or "cuda" (or "cuda:1"), a graphics card that
            runs may share, whose `minutes` are those that pass. Measuring needs no card.
        updates: after how many a run ends, if its minutes are not over before: arms compared by
            what they learn from as much, not in as much time. None: the minutes decide alone.
    """

    arm: str
    seed: int
    minutes: float
    overrides: tuple[str, ...]
    out: Path
    results: Path
    quick: bool = False
    device: str = "cpu"
    updates: int | None = None

    @property
    def on_a_card(self) -> bool:
        """Whether a graphics card learns."""
        return self.device != "cpu"

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is learnt: the game, or the images."""

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """What makes this trial in a process of its own."""

    @property
    def name(self) -> str:
        """Of the run folder and of the result."""
        return f"{self.arm}-{self.seed}"

    @property
    def run_dir(self) -> Path:
        """Checkpoints, metrics, pictures and log."""
        return self.out / self.name

    @property
    def beside(self) -> Sequence[Path]:
        """Further files that were made with its settings, and go when it is removed."""
        return ()

    @property
    def result_path(self) -> Path:
        """Where the measures go."""
        return self.results / self.subject / f"{self.name}.json"


OneTrial = TypeVar("OneTrial", bound=BaseTrial)


def read_result(path: Path) -> dict[str, Any] | None:
    """A trial's result, or None if there is none.

    Raises:
        ConfigError: the file is not a result.
    """
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"arm", "seed", "cpu_minutes", "settings", "measures"} - result.keys()
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: expected the result of a trial ({error}); remove it") from error
    if missing:
        raise ConfigError(f"{path}: expected the result of a trial, it lacks {sorted(missing)}")
    return result


def is_current(result: Mapping[str, Any], measures: int) -> bool:
    """Whether a result was measured by this version of the measures."""
    return bool(result.get("measures_version", 1) == measures)


def is_done(trial: BaseTrial, measures: int) -> bool:
    """Whether the result is there, of the whole budget and of this version of the measures.

    That its settings are the same is up to `refuse_changed`.
    """
    result = read_result(trial.result_path)
    enough = result is not None and result["cpu_minutes"] >= trial.minutes
    return enough and result is not None and is_current(result, measures)


def refuse_changed(
    trials: Sequence[OneTrial],
    changes: Callable[[OneTrial, dict[str, Any]], list[str]],
    study: str,
    force: bool = False,
) -> None:
    """Refuse, or with `force` remove, what was made with other settings or a larger budget.

    Args:
        trials: that are about to be made.
        changes: how a trial's settings differ from those that something was made with.
        study: the command, for the message.
        force: remove instead of refusing.

    Raises:
        ConfigError: the first such result or run folder, and in what it differs.
    """
    for trial in trials:
        changed: list[str] = []
        if result := read_result(trial.result_path):
            changed += changes(trial, result["settings"])
            if result["cpu_minutes"] > trial.minutes:
                changed.append(f"minutes: {result['cpu_minutes']:g} became {trial.minutes:g}")
        begun = trial.run_dir / "settings.json"
        if begun.exists():
            changed += changes(trial, json.loads(begun.read_text(encoding="utf-8")))
        if changed and force:
            remove(trial)
        elif changed:
            raise ConfigError(
                f"{study}: {trial.result_path} or {trial.run_dir} was made with other "
                f"settings: {'; '.join(dict.fromkeys(changed))}. Use the same settings, other "
                f"folders with --out and --results, or --force to make it anew"
            )


def remove(trial: BaseTrial) -> None:
    """Remove a trial's result, what was made beside it, and its run folder."""
    for path in (trial.result_path, *trial.beside):
        path.unlink(missing_ok=True)
    shutil.rmtree(trial.run_dir, ignore_errors=True)


def changed_sections(
    old: Mapping[str, Any], new: dict[str, Any], sections: Mapping[str, type[BaseModel]]
) -> list[str]:
    """Settings that differ; one that did not exist yet counts with its default."""
    known = {name: filled(old.get(name, {}), model, name) for name, model in sections.items()}
    return differences({**old, **known}, new)


def child(trial: BaseTrial, title: str, measures: int) -> Child:
    """A trial as a process of its own, on one core."""

    def summary() -> str:
        result = read_result(trial.result_path) or {}
        return (
            f"{result['updates']:,} updates in {result['cpu_s'] / 60:.3g} "
            f"{'minutes of a card' if trial.on_a_card else 'CPU minutes'} "
            f"({result['wall_time_s'] / 60:.1f} minutes), see {trial.result_path}"
        )

    return Child(
        title=title,
        command=trial.command,
        log=trial.run_dir / "log.txt",
        done=lambda: is_done(trial, measures),
        environment=ONE_CORE,
        summary=summary,
    )
