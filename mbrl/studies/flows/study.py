"""The flow study of one set of images: what sharing coupling networks saves, and costs in bits.

Costs come after the trials and one at a time, because clocks and ranks want idle cores. This module
imports neither torch nor Ray.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field
from rich.table import Table

from mbrl.errors import ConfigError
from mbrl.run.children import Child
from mbrl.studies.flows.trial import Trial, read_side
from mbrl.studies.study import Study, StudyOptions, Tree
from mbrl.studies.trial import ONE_CORE, process


class FlowOptions(StudyOptions):
    """What a command says of the study, costs included."""

    costs: bool = Field(True, description="do not measure memory, step times and latencies")


class Flows(Study[Trial]):
    """Normalising flows trained on the same images for the same CPU time."""

    trial = Trial
    options = FlowOptions
    description = (
        "Train normalising flows on the same images for the same CPU time, measure densities, "
        "samples, memory, step times and latencies, and report. Images are a game's frames, "
        "collected if they are missing, or your own. Finished runs are kept and half-done ones "
        "resume; a result made with other settings is refused."
    )
    words = (
        "pong, breakout, ..., car_racing, unless --images is given; and settings of every run, "
        "such as flow.width=32 or train.lr=0.001"
    )

    def check(self, trials: Sequence[Trial]) -> None:
        """Refuse trials that would not belong to the results that are there."""
        _expect_to_fit(trials)

    def prepare(self, trials: Sequence[Trial], options: StudyOptions) -> None:
        """Read the images once before any trial does, and write what they are and cost.

        Raises:
            ConfigError: results of other images of the same name are there, or an arm cannot halve
                the images as often as it should.
        """
        from mbrl.studies.flows import cost
        from mbrl.studies.flows.baselines import baselines
        from mbrl.studies.flows.images import load_images
        from mbrl.studies.flows.measure import QUICK, Sizes

        first = trials[0]
        before = read_side(first.about_path)
        settings = {**first.source.settings(), "quick": first.quick}
        same = before.get("settings") == settings
        if same and first.source.game:  # whose frames follow from the settings
            _expect_scales(before["shape"], trials)
            return
        images = load_images(first.source)
        _expect_scales(images.shape, trials)
        if before and before["digest"] != images.digest:
            _make_room(trials, images.digest, options.force)
        elif same:
            return
        count = (QUICK if first.quick else Sizes()).images
        found = {**images.about(), "baselines": baselines(images, count), "settings": settings}
        cost.write_side(first.about_path, first, found)

    def make(self, trial: Trial) -> bool:
        """Train and measure a flow."""
        from mbrl.studies.flows.train import run

        return run(trial)

    def after(self, trials: Sequence[Trial], options: StudyOptions) -> list[Child]:
        """One child for the costs of each arm."""
        from mbrl.studies.flows import cost

        if isinstance(options, FlowOptions) and not options.costs:
            return []
        return [
            Child(
                title=f"{trial.subject} costs of {trial.arm}",
                command=() if cost.is_done(trial) else process(cost.__name__, trial),
                log=trial.out / f"costs_{trial.arm}.txt",
                done=partial(cost.is_done, trial),
                environment=ONE_CORE,
            )
            for trial in trials
            if trial.seed == 0
        ]

    def summary(self, trials: Sequence[Tree], folder: Path) -> Tree:
        """What all results of a set of images say together."""
        from mbrl.studies.flows.results import summary_of_images

        return summary_of_images(trials, folder)

    def show(self, folder: Path, summary: Tree, trials: Sequence[Tree]) -> tuple[Table, Path]:
        """A table for a terminal, and the report of a set of images."""
        from mbrl.studies.flows.report import write_report
        from mbrl.studies.flows.tables import terminal

        return terminal(summary), write_report(folder, summary, trials)


def _make_room(trials: Sequence[Trial], digest: str, force: bool) -> None:
    """Remove what was made with other images of the same name, if `force` says so."""
    folder = trials[0].result_path.parent
    if not force:
        raise ConfigError(
            f"bench flow: {folder} holds results of other images called {folder.name}; "
            f"use other folders with --out and --results, or --force to make them anew"
        )
    _expect_to_fit(trials, digest=digest)
    for trial in trials:
        trial.remove()


def _expect_to_fit(trials: Sequence[Trial], **known: str) -> None:
    """Refuse trials that do not belong to the results of runs that are not among them."""
    from mbrl.studies.flows.results import as_tree, expect_one_study
    from mbrl.studies.results import read_trials

    first, mine = trials[0], {trial.name for trial in trials}
    found = read_trials(Trial, first.subject, first.results)
    others = [one for one in found if f"{one['arm']}-{one['seed']}" not in mine]
    planned = [{**as_tree(trial), **known} for trial in trials]
    expect_one_study([*planned, *others], first.result_path.parent)


def _expect_scales(shape: Sequence[int], trials: Sequence[Trial]) -> None:
    """Refuse images whose sides cannot be halved once for every scale."""
    from mbrl.world_model.decoders.flow.image_flow import most_scales

    _, height, width = shape
    most = most_scales(height, width)
    scales = max(trial.config().flow.scales for trial in trials)
    if scales > most:
        raise ConfigError(
            f"flow.scales: expected at most {most} for images of {height} x {width}, whose sides "
            f"are halved at every scale, got {scales}; lower it or choose another --size"
        )


STUDY = Flows()
