"""The fidelity study of one game: frames, then every trial that is missing, then the report.

Each trial is a process of its own (`studies.fidelity.trial`) with one thread; what is done is kept,
what is half done resumes, what fails is reported while the others go on. The summary and the report
are made anew from everything that is there, also after a failure, so a stopped study shows what it
has. What the arms are: `studies.fidelity.arms`. What is measured: `studies.fidelity.measure`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mbrl.errors import ConfigError
from mbrl.run.children import run_all
from mbrl.studies.fidelity.arms import SUPERVISED, choose
from mbrl.studies.fidelity.results import aggregate, read_trials
from mbrl.studies.fidelity.trials import MEASURES, Trial, is_done, plan, refuse_others, unheeded
from mbrl.studies.trials import child

if TYPE_CHECKING:
    from mbrl.studies.fidelity.games import Game


def study(
    game: str,
    overrides: Sequence[str] = (),
    *,
    arms: str = "main",
    seeds: int | None = None,
    minutes: float | None = None,
    steps: int = 100_000,
    jobs: int = 1,
    out: Path | None = None,
    results: Path = Path("results/fidelity"),
    quick: bool = False,
    force: bool = False,
    device: str = "cpu",
    updates: int | None = None,
) -> list[str]:
    """Run what is missing and write summary and report.

    Args:
        game: a name in `GAMES`.
        overrides: `key=value` for every trial, of `world_model` or `learn_model`.
        arms: "main", "all", or names in `ARMS` with commas between.
        seeds: 0 .. seeds - 1; None for each arm's own number.
        minutes: CPU minutes of training per trial; None for each arm's own.
        steps: agent steps of the frames that are trained on.
        jobs: trials side by side, one core each.
        out: run folders, frames and report; default: runs/fidelity/<game>.
        results: JSON files.
        quick: measure on a few frames only, to try things out; the numbers are not to be quoted.
        force: make anew what is there with other settings, instead of refusing.
        device: what learns: cpu, one core for each trial, or cuda, which all of them share.
        updates: after how many a trial ends before its minutes are over.

    Returns:
        One sentence for each trial that failed.

    Raises:
        ConfigError: the command asks for something unknown or contradictory.
    """
    console = Console()
    known = find_game(game)
    if device == "auto":  # a study has to be on one kind, and to say on which
        raise ConfigError("bench fidelity: expected --device cpu, cuda or cuda:N, got auto")
    if jobs < 1:
        raise ConfigError(f"bench fidelity: expected at least one job, got --jobs {jobs}")
    folder = out or Path("runs") / "fidelity" / game
    trials = plan(
        game,
        _possible(choose(arms), arms, known, overrides, console),
        seeds=seeds,
        minutes=minutes,
        steps=steps,
        overrides=overrides,
        out=folder,
        results=results,
        quick=quick,
        device=device,
        updates=updates,
    )
    refuse_others(trials, known.env, force)
    missing = [trial for trial in trials if not is_done(trial)]
    if any(not (trial.run_dir / "checkpoints").exists() for trial in missing):
        from mbrl.device import pick_device

        pick_device(device)  # before anything is collected; what is begun may only need measuring
    if missing:
        _collect(known, trials[0])
    failed = run_all(
        [child(trial, f"{trial.game} {trial.arm} seed {trial.seed}", MEASURES) for trial in trials],
        jobs,
        console,
    )
    if read_trials(game, results):
        _report(game, folder, results, console)
    return failed


def _possible(
    names: list[str], asked: str, game: "Game", overrides: Sequence[str], console: Console
) -> list[str]:
    """The arms that can be made: without labels, none can be learnt.

    Of "all", the arm that learns labels is left out, and that said, also where settings are changed
    that it does not have; asked for by name, it refuses them itself (`Trial.config`).

    Raises:
        ConfigError: it was asked for by name, and the game has no labels.
    """
    if SUPERVISED not in names:
        return names
    problem = None if game.variables else f"expected a game with labels, got {game.name}"
    if problem and asked != "all":
        raise ConfigError(f"--arms: {SUPERVISED}: {problem}; leave the arm out")
    if asked == "all" and not problem and (setting := unheeded(overrides)):
        problem = f"it has no {setting.partition('=')[0]}"
    if problem:
        console.print(f"{SUPERVISED}: left out: {problem}", highlight=False)
        return [name for name in names if name != SUPERVISED]
    return names


def find_game(name: str, study: str = "bench fidelity") -> "Game":
    """The game of that name.

    Args:
        name: a name in `GAMES`.
        study: the command, for the message.

    Raises:
        ConfigError: there is none; the known ones are listed.
    """
    from mbrl.studies.fidelity.games import GAMES

    if name not in GAMES:
        near = difflib.get_close_matches(name, GAMES, n=1)
        raise ConfigError(
            f"{study}: expected a game out of {', '.join(GAMES)}; got {name}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return GAMES[name]


def _collect(game: "Game", trial: Trial) -> None:
    """Gather the frames before the trials start, so that two do not gather them twice."""
    from mbrl.studies.fidelity.frames import collect_frames
    from mbrl.studies.fidelity.trial import FRAMES_SEED

    collect_frames(game, trial.frames_dir, trial.steps, trial.held_out_steps, FRAMES_SEED)


def _report(game: str, folder: Path, results: Path, console: Console) -> None:
    from mbrl.studies.fidelity.report import write_report
    from mbrl.studies.fidelity.tables import terminal_table

    summary = aggregate(game, results)
    console.print(terminal_table(summary))
    report = write_report(folder, summary, read_trials(game, results))
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
