"""Trackers that repeat `metrics.jsonl` elsewhere: TensorBoard, Weights & Biases, MLflow.

A tracker that cannot be opened stops the run at its first line; one that fails later is dropped
with a warning in the log, so that it does not cost a day of training. The two services are extras
and load only when asked for.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from mbrl.errors import ConfigError

_EXPERIMENT = "reverie"  # in MLflow
_log = logging.getLogger(__name__)


class Mirror(Protocol):
    """One tracker, open for writing."""

    def write(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Repeat finite scalars of one line."""

    def close(self) -> None:
        """Flush and finish."""


Opener = Callable[[int | None], Mirror]
"""Opens a tracker, given the env steps from which on earlier entries are void, or None."""


class Mirrors:
    """All trackers of a run: opened at the first write, dropped one by one if they fail."""

    def __init__(self, openers: Sequence[Opener]) -> None:
        self._openers = tuple(openers)
        self._open: list[Mirror] | None = None
        self._first_step: int | None = None

    def write(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Send the finite scalars to every tracker that still works."""
        if self._open is None:
            try:
                self._open = [opener(self._first_step) for opener in self._openers]
            except Exception as error:
                raise ConfigError(
                    f"expected every tracker of the config to open, but one does not ({error}); "
                    "repair it, or turn it off (run.tensorboard, run.wandb, run.mlflow)"
                ) from error
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        for mirror in tuple(self._open):
            try:
                mirror.write(env_steps, finite)
            except Exception:
                self._open.remove(mirror)
                name = type(mirror).__name__
                _log.warning("%s failed and is off; metrics.jsonl goes on", name, exc_info=True)

    def restart_after(self, env_steps: int) -> None:
        """Reopen at the next write and hide what was sent for later steps, if the tracker can."""
        self.close()
        self._first_step = env_steps + 1

    def close(self) -> None:
        """Finish all trackers."""
        for mirror in self._open or ():
            mirror.close()
        self._open = None


class _TensorBoard:
    """Event files in `<run folder>/tensorboard`."""

    def __init__(self, run_dir: Path, first_step: int | None) -> None:
        from tensorboardX import SummaryWriter  # a twentieth of the import time of torch's own

        # two writers within one second would share a file name; viewers read files in name order
        folder, suffix = str(run_dir / "tensorboard"), f".{time.time_ns()}"
        self._writer = SummaryWriter(folder, filename_suffix=suffix, purge_step=first_step)

    def write(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, env_steps)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run_dir: Path, first_step: int | None) -> None:
        wandb = _load("wandb")
        # The same identity after a resume, and a step axis of our own: W&B's must never go back.
        identity = _identity(run_dir / "wandb_id", lambda: uuid4().hex[:8])
        self._run = wandb.init(dir=str(run_dir), id=identity, resume="allow", name=run_dir.name)
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "env_steps": env_steps})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run_dir: Path, first_step: int | None) -> None:
        mlflow = _load("mlflow")
        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT)

        def start() -> str:
            return str(self._client.create_run(experiment, run_name=run_dir.name).info.run_id)

        self._run_id = _identity(run_dir / "mlflow_id", start)
        self._metric = mlflow.entities.Metric

    def write(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(k, v, now, env_steps) for k, v in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


TRACKERS: dict[str, Callable[[Path, int | None], Mirror]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}
"""By the setting of `run` that turns it on."""


def opener(name: str, run_dir: Path) -> Opener:
    """What opens one of `TRACKERS` for a run; after a resume it goes on under the same identity.

    Raises:
        ConfigError: its package is not installed.
    """
    if name != "tensorboard":  # the others are extras
        _load(name)
    return partial(TRACKERS[name], run_dir)


def _load(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"tracking with {module} is on, but its package cannot be imported ({error}); "
            f"install it with `pip install 'reverie-rl[{module}]'` or turn it off in the config"
        ) from error


def _identity(path: Path, make: Callable[[], str]) -> str:
    """The tracker's name for this run, made once and kept in the run folder."""
    if not path.exists():
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
