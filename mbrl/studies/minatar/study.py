"""The study of MinAtar's games: whether models know how a game goes, or their replay by heart.

What the arms are: `arms.py` beside it. What is measured: `measure.py`. This module imports neither
torch nor Ray.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mbrl.studies.minatar.trial import Trial
from mbrl.studies.study import Study, StudyOptions, Tree


class MinAtar(Study[Trial]):
    """World models of one game, trained on the same steps of one policy for the same updates."""

    trial = Trial
    description = (
        "Collect steps of one policy on a game of MinAtar, train every arm on them for the same "
        "number of updates, judge it on new episodes of that policy, and report. Finished runs "
        "are kept and half-done ones resume; a result made with other settings is refused."
    )
    words = (
        "minatar_asterix, minatar_breakout, minatar_freeway, minatar_seaquest or "
        "minatar_space_invaders, and settings of every run, such as learn_model.lr=0.0003 "
        "(world_model, learn_model)"
    )

    def prepare(self, trials: Sequence[Trial], options: StudyOptions) -> None:
        """Collect the episodes of every seed if anything is missing."""
        from mbrl.studies.minatar.episodes import episodes_of

        missing = {trial.seed: trial for trial in trials if not trial.is_done()}
        for trial in missing.values():
            episodes_of(trial)

    def make(self, trial: Trial) -> bool:
        """Train and measure a world model."""
        from mbrl.studies.minatar.train import run

        return run(trial)

    def summary(self, trials: Sequence[Tree], folder: Path) -> Tree:
        """What all trials of a game say together."""
        from mbrl.studies.results import distinct, summary_of

        def about(runs: Sequence[Tree]) -> Tree:
            return {
                "steps": distinct(run["settings"]["steps"] for run in runs),
                "policies": distinct(run["settings"]["policy"] for run in runs),
            }

        return summary_of(Trial, trials, about)

    def aggregate(self, subject: str, results: Path) -> Tree:
        """As of every study; and gather all games beside the folder of the results."""
        from mbrl.studies.minatar.gathered import gather
        from mbrl.studies.results import write_json

        summary = super().aggregate(subject, results)
        write_json(results.with_suffix(".json"), gather(results))
        return summary

    def show(self, folder: Path, summary: Tree, trials: Sequence[Tree]) -> tuple[Table, Path]:
        """A table for a terminal, and the report of a game."""
        from mbrl.studies.minatar.report import write_report
        from mbrl.studies.minatar.tables import terminal

        return terminal(summary), write_report(folder, summary)


STUDY = MinAtar()
