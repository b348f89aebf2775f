"""The flow study of one set of images: every trial that is missing, then costs, then the report.

Each trial is a process of its own (`studies.flows.trial`) with one thread; what is done is kept,
what
is half done resumes, what fails is reported while the others go on. Costs come after the trials and
one at a time, because clocks and ranks want idle cores. The summary and the report are made anew
from everything that is there, also after a failure, so a stopped study shows what it has. What the
arms are: `studies.flows.arms`. What is measured: `studies.flows.measure`, `studies.flows.cost`.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from mbrl.errors import ConfigError
from mbrl.run.children import Child, run_all
from mbrl.studies.flows import cost, latency
from mbrl.studies.flows.arms import choose
from mbrl.studies.flows.baselines import described
from mbrl.studies.flows.images import Source, load_images
from mbrl.studies.flows.measure import QUICK, Sizes
from mbrl.studies.flows.report import write_report
from mbrl.studies.flows.results import aggregate, read_trials
from mbrl.studies.flows.tables import terminal_table
from mbrl.studies.flows.together import Tree, as_tree, expect_one_study
from mbrl.studies.flows.trials import MEASURES, Trial, plan, refuse_others
from mbrl.studies.trials import ONE_CORE, child, remove
from mbrl.world_model.decoders.flow.image_flow import most_scales


def study(
    source: Source,
    overrides: Sequence[str] = (),
    *,
    arms: str = "main",
    seeds: int | None = None,
    minutes: float | None = None,
    jobs: int = 1,
    out: Path | None = None,
    results: Path = Path("results/flows"),
    quick: bool = False,
    costs: bool = True,
    force: bool = False,
) -> list[str]:
    """Run what is missing and write summary and report.

    Args:
        source: of the images.
        overrides: `key=value` for every trial, of `flow` or `train`.
        arms: "main", "all", or names in `ARMS` with commas between.
        seeds: 0 .. seeds - 1; None for each arm's own number.
        minutes: CPU minutes of training per trial; None for each arm's own.
        jobs: trials side by side, one core each.
        out: run folders and report; default: runs/flows/<images>.
        results: JSON files.
        quick: measure on a few images only, to try things out; the numbers are not to be quoted.
        costs: measure memory, step times and latencies as well.
        force: make anew what is there with other settings, instead of refusing.

    Returns:
        One sentence for each trial that failed.

    Raises:
        MbrlError: the command asks for something unknown, or the images cannot be read.
    """
    if jobs < 1:
        raise ConfigError(f"bench flow: expected at least one job, got --jobs {jobs}")
    folder = out or Path("runs") / "flows" / source.name
    trials = plan(
        source,
        choose(arms),
        seeds=seeds,
        minutes=minutes,
        overrides=overrides,
        out=folder,
        results=results,
        quick=quick,
    )
    others = _others(trials, results / source.name)
    expect_one_study([*map(as_tree, trials), *others], results / source.name)
    refuse_others(trials, force)
    console = Console()
    _describe(trials, force)
    failed = run_all(
        [child(one, f"{source.name} {one.arm} seed {one.seed}", MEASURES) for one in trials],
        jobs,
        console,
    )
    if costs:
        failed += run_all(_costs(trials), 1, console)
    if read_trials(source.name, results):
        summary = aggregate(source.name, results)
        console.print(terminal_table(summary))
        report = write_report(folder, summary, read_trials(source.name, results))
        console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return failed


def _describe(trials: Sequence[Trial], force: bool) -> None:
    """Read the images once before any trial does, and write what they are and cost by themselves.

    Raises:
        ConfigError: results are there that were made with other images of the same name, or an arm
            cannot halve the images as often as it should.
    """
    source, quick = trials[0].source, trials[0].quick
    path = trials[0].about_path
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    settings = {**source.settings(), "quick": quick}
    if before and before["settings"] == settings and source.game:
        _expect_scales(before["shape"], trials)
        return  # a game's frames follow from its settings
    images = load_images(source)
    _expect_scales(images.shape, trials)
    same = before is not None and before["digest"] == images.digest
    if before is not None and same and before["settings"] == settings:
        return
    if before is not None and not same:
        if not force:
            raise ConfigError(
                f"bench flow: {path.parent} holds results of other images called {images.name}; "
                f"use other folders with --out and --results, or --force to make them anew"
            )
        planned = [{**as_tree(trial), "digest": images.digest} for trial in trials]
        expect_one_study([*planned, *_others(trials, path.parent)], path.parent)
        for trial in trials:
            remove(trial)
    found = described(images, (QUICK if quick else Sizes()).images)
    cost.write_side(path, trials[0], {**found, "settings": settings})


def _others(trials: Sequence[Trial], folder: Path) -> list[Tree]:
    """Results that are there of runs that are not among these trials."""
    mine = {trial.name for trial in trials}
    found = read_trials(folder.name, folder.parent)
    return [one for one in found if f"{one['arm']}-{one['seed']}" not in mine]


def _expect_scales(shape: Sequence[int], trials: Sequence[Trial]) -> None:
    """Refuse images whose sides cannot be halved once for every scale."""
    _, height, width = shape
    most = most_scales(height, width)
    scales = max(trial.config().flow.scales for trial in trials)
    if scales > most:
        raise ConfigError(
            f"flow.scales: expected at most {most} for images of {height} x {width}, whose sides "
            f"are halved at every scale, got {scales}; lower it or choose another --size"
        )


def _costs(trials: Sequence[Trial]) -> list[Child]:
    """One child for the costs of each arm, and one for PixelCNN's samplers."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.arm, trial)

    name = trials[0].source.name
    children = [
        Child(
            title=f"{name} costs of {trial.arm}",
            command=trial.command_of("mbrl.studies.flows.cost"),
            log=trial.out / f"costs_{trial.arm}.txt",
            done=partial(cost.is_done, trial),
            environment=ONE_CORE,
        )
        for trial in first.values()
    ]
    samplers = Child(
        title=f"{name} samplers of PixelCNN",
        command=trials[0].command_of("mbrl.studies.flows.latency"),
        log=trials[0].out / "samplers.txt",
        done=partial(latency.is_done, trials[0]),
        environment=ONE_CORE,
    )
    return [*children, samplers]
