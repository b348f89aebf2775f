"""The fidelity study of one game: what decoders keep of its small objects, and what codes know.

What the arms are: `mbrl/studies/fidelity/arms.py`. What is measured: `measure.py` beside it. This
module imports neither torch nor Ray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mbrl.errors import ConfigError
from mbrl.studies.fidelity.arms import SUPERVISED
from mbrl.studies.fidelity.games import find_game
from mbrl.studies.fidelity.trial import Trial, without_effect
from mbrl.studies.minatar.games import MINATAR_GAMES
from mbrl.studies.study import Study, StudyOptions, Tree


class Fidelity(Study[Trial]):
    """World models of one game, trained on the same frames for the same CPU time."""

    trial = Trial
    description = (
        "Collect frames of a game, train every arm on them for the same CPU time, measure what its "
        "pictures, its code and its dreams keep, and report. Finished runs are kept and half-done "
        "ones resume; a result made with other settings is refused."
    )
    words = (
        "pong, breakout, minatar_asterix, ... (an unknown one lists all; those of MinAtar have "
        "arms and options of their own, see --help behind the name), and settings of every run, "
        "such as world_model.hidden=128 (world_model, learn_model)"
    )

    def of(self, words: Sequence[str]) -> Study[Any]:
        """This study, or for a game of MinAtar the one that measures those."""
        if not any(word in MINATAR_GAMES for word in words):
            return self
        from mbrl.studies.minatar.study import STUDY

        return STUDY

    def chosen(self, names: str, example: Trial, console: Console) -> list[str]:
        """The arms that can be made.

        The arm that learns labels is left out of "all", and that said, where the game has none or
        settings are changed that it does not have. Asked for by name, it is refused instead.
        """
        game = find_game(example.game, example.study)
        chosen = super().chosen(names, example, console)
        if SUPERVISED not in chosen:
            return chosen
        problem = None if game.variables else f"expected a game with labels, got {game.name}"
        if problem and names != "all":
            raise ConfigError(f"--arms: {SUPERVISED}: {problem}; leave the arm out")
        setting = without_effect(example.overrides)
        if names == "all" and not problem and setting:
            problem = f"it has no {setting.partition('=')[0]}"
        if problem:
            console.print(f"{SUPERVISED}: left out: {problem}", highlight=False)
            chosen.remove(SUPERVISED)
        return chosen

    def prepare(self, trials: Sequence[Trial], options: StudyOptions) -> None:
        """Collect the game's frames if anything is missing."""
        from mbrl.studies.fidelity.train import frames_of

        if not all(trial.is_done() for trial in trials):
            frames_of(trials[0])

    def make(self, trial: Trial) -> bool:
        """Train and measure a world model, or the reader of labels."""
        from mbrl.studies.fidelity.train import run

        return run(trial)

    def summary(self, trials: Sequence[Tree], folder: Path) -> Tree:
        """What all trials of a game say together."""
        from mbrl.studies.results import distinct, summary_of

        def about(runs: Sequence[Tree]) -> Tree:
            return {"steps": distinct(run["settings"]["steps"] for run in runs)}

        return summary_of(Trial, [_with_cost(one) for one in trials], about)

    def show(self, folder: Path, summary: Tree, trials: Sequence[Tree]) -> tuple[Table, Path]:
        """A table for a terminal, and the report of a game."""
        from mbrl.studies.fidelity.report import write_report
        from mbrl.studies.fidelity.tables import terminal

        return terminal(summary), write_report(folder, summary, trials)


def _with_cost(trial: Tree) -> Tree:
    """A world model's trial with CPU milliseconds of training for each row of a batch.

    A GPU may be shared by any number of runs, so times on one are left out, those of drawing too.
    """
    if trial["arm"] == SUPERVISED:
        return trial
    measures = dict(trial["measures"])
    if "card" in trial["machine"]:  # measured on a GPU
        measures.pop("sample_ms_per_frame", None)
    if trial["settings"].get("device", "cpu") == "cpu":
        measures["train_ms_per_frame"] = 1000 * trial["cpu_s"] / trial["rows"]
    return {**trial, "measures": measures}


STUDY = Fidelity()
