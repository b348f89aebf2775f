"""`mbrl check-env`: can this environment be trained on, with these settings?

In: a config. Out: lines, each said as soon as it is known, and a verdict. First the environment by
itself (`envs.contract`: does it keep its promises?), then a rehearsal: the parts that `mbrl train`
is made of collect some steps into a throw-away folder and take two updates of the world model. So
what is accepted is decided where it is decided for a run, and nowhere else. The whole is bounded in
time, an environment that never comes back included.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from rich.console import Console

from envs import EnvError, VectorEnv
from envs.contract import EnvReport, Watch, check_env, row
from mbrl.config.schema import WITH_WORLD_MODEL, Config
from mbrl.errors import MbrlError
from mbrl.run.progress import Progress
from mbrl.run.run import Run
from mbrl.train import Crew

Say = Callable[[str], None]

UPDATES = 2
_SHARE = 0.5  # of the seconds left that a rehearsal may collect for
_ROWS = 4  # sequences' worth of steps that it wants to collect


class Verdict(IntEnum):
    """What came out, as the exit code of the command; 2 is an error of the command itself."""

    READY = 0
    PROBLEMS = 1
    NO_TIME = 3


_WORDS = {
    Verdict.READY: "ready",
    Verdict.PROBLEMS: "see what is wrong above",
    Verdict.NO_TIME: "not known, the time was over",
}


class NoTimeError(Exception):
    """The time was over before the rehearsal was."""


def check(config: Config, steps: int, seconds: float, say: Say) -> Verdict:
    """Look at the environment of a run, and rehearse the run.

    Args:
        config: the run; its budget, folder and actors do not count.
        steps: random steps to try the environment with.
        seconds: how long all of it may take.
        say: called with each line as soon as it is known.

    Raises:
        EnvError: the environment cannot be made at all, or `steps` is not positive.
    """
    watch = Watch(seconds)
    with (
        tempfile.TemporaryDirectory(prefix="reverie-check-") as folder,
        _guarded(watch, say, Path(folder)),
    ):
        apart = config.collect.apart
        report = check_env(config.env, steps, config.seed, apart=apart, watch=watch, say=say)
        verdict = Verdict.PROBLEMS if report.problems else Verdict.READY
        try:
            _rehearse(config, Path(folder), report, watch, say)
        except NoTimeError as late:
            say(row("note", f"{late}; --seconds gives it more."))
            verdict = verdict or Verdict.NO_TIME
        except (MbrlError, EnvError, ValueError, SystemExit) as error:
            ended = isinstance(error, SystemExit)
            say(row("refused", "the environment ends its process" if ended else str(error)))
            verdict = Verdict.PROBLEMS
        say(row("verdict", _WORDS[verdict]))
        return verdict


@contextmanager
def _guarded(watch: Watch, say: Say, folder: Path) -> Iterator[None]:
    """End this process when the time is over and something has not come back."""

    def end() -> None:
        what, seconds = watch.doing
        hangs = what.endswith("of the environment")
        said = f"The time is over, and {what} has not come back for {seconds:.1f} s."
        verdict = Verdict.PROBLEMS if hangs else Verdict.NO_TIME
        say(row("problem" if hangs else "note", said))
        say(row("verdict", _WORDS[verdict]))
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(verdict)

    timer = threading.Timer(watch.seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _rehearse(config: Config, folder: Path, report: EnvReport, watch: Watch, say: Say) -> None:
    """Collect and learn as a run does, as far as this process can.

    Raises:
        NoTimeError: it cannot collect enough for an update, or has no time for one.
        EnvError, MbrlError, ValueError: a run would be refused as well.
    """
    if config.agent not in WITH_WORLD_MODEL:
        VectorEnv(config.env, 1, apart=config.collect.apart).close()  # what evaluates it
        say(row("training", f"not tried: RLlib, not we, trains agent={config.agent}"))
        return
    run = Run(_small(config, folder, report.steps_per_second, watch))
    run.progress = Progress(1, console=Console(quiet=True))
    try:
        watch.begin("building the world model and the policy")
        crew = Crew(run)
        try:
            _learn(crew, watch, say)
        finally:
            crew.close()
    finally:
        run.close()


def _small(config: Config, folder: Path, pace: float, watch: Watch) -> Config:
    """The same run in one process and in that folder, with as few steps as an update needs.

    `pace` is steps of one environment per second.
    """
    length = config.learn_model.sequence_length
    affordable = int(pace * max(0.0, watch.left) * _SHARE)
    envs = max(1, min(4, config.collect.num_envs, affordable // length))
    wanted = min(config.collect.prefill_steps, _ROWS * length * envs, affordable)
    steps = wanted // envs * envs
    if steps < length:
        raise NoTimeError(
            f"The environment takes {pace:.3g} steps per second, so the {watch.left:.0f} s that "
            f"are left are too few to collect the {length} of one sequence "
            "(learn_model.sequence_length)"
        )
    alone = {"num_collectors": 0, "num_envs": envs, "prefill_steps": steps}
    parts = {
        "collect": config.collect.model_copy(update=alone),
        "learn_model": config.learn_model.model_copy(update={"num_learners": 0}),
        "learn_policy": config.learn_policy.model_copy(update={"num_learners": 0}),
        "run": config.run.model_copy(
            update={"dir": folder, "video": False, "tensorboard": False, "wandb": False}
            | {"mlflow": False, "ray_address": None}
        ),
        "replay": config.replay.model_copy(
            update={"ring_dir": None, "holdout": 0.0, "init_from": None}
        ),
    }
    return config.model_copy(update=parts)


def _learn(crew: Crew, watch: Watch, say: Say) -> None:
    """Random steps, updates of the world model, and one step with the policy."""
    collect = crew.config.collect
    watch.begin(f"collecting {collect.prefill_steps} steps")
    crew.collectors.begin(collect.prefill_steps, 0, at_random=True)
    (receipt,) = crew.collect()
    crew.refresh_replay()
    for update in range(1, UPDATES + 1):
        if watch.over():
            raise NoTimeError(f"There was no time for update {update} of the world model")
        watch.begin(f"update {update} of the world model")
        metrics, _ = crew.learner.learn(1)
        say(
            row(
                "training",
                f"update {update} on {receipt.steps:,} collected steps: loss {metrics['loss']:.4g}",
            )
        )
    crew.publish()
    watch.begin("a step with the policy")
    crew.collectors.begin(collect.num_envs, receipt.steps, at_random=False)
    crew.collect()
    say(row("policy", f"{crew.config.policy.algorithm} has acted on what the model sees"))
