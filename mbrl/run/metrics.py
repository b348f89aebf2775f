"""`metrics.jsonl`, the source that every plot and report reads: one JSON object per line.

Each line has `env_steps`, `wall_time_s` and `kind`, then flat `group/name` keys. Trackers are
mirrors of it (`mbrl/run/mirrors.py`). Nothing here knows what a metric means.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mbrl.run.durable import write_atomically
from mbrl.run.mirrors import Mirrors, Opener

_RESERVED = ("env_steps", "wall_time_s", "kind")


class MetricsLog:
    """Appends to `metrics.jsonl` of a run folder, and goes on where an earlier process stopped.

    Every line is on its way to the disk when `write` returns. A value that is not finite is stored
    as `null`, because JSON has no word for it, and reads back as NaN: a gap in a curve.
    `wall_time_s` goes on from the last line in the file, so pauses between processes do not count.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mirrors: Sequence[Opener] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create the file; a line that was cut off by a crash is removed.

        The folder is made if missing, and the trackers are opened at the first write.
        """
        self.path = run_dir / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._mirrors = Mirrors(mirrors)
        self._go_on()

    @property
    def wall_time_s(self) -> float:
        """Seconds the run has been at work, earlier processes included."""
        return self._offset_s + self._clock() - self._started

    def write(self, kind: str, env_steps: int, metrics: Mapping[str, Any]) -> None:
        """Append one line.

        Args:
            kind: "train" or "eval".
            env_steps: real environment steps so far.
            metrics: numbers, strings or lists of numbers, by flat `group/name`. Numbers also go to
                the mirrors.

        Raises:
            ValueError: a metric has one of the three reserved names.
            TypeError: a value is of another type.
        """
        head = {"env_steps": int(env_steps), "wall_time_s": round(self.wall_time_s, 3)}
        plain = {name: _plain(name, value) for name, value in metrics.items()}
        line = {**head, "kind": kind, **plain}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        numbers = {k: float(v) for k, v in plain.items() if isinstance(v, int | float)}
        self._mirrors.write(int(env_steps), numbers)

    def truncate_after(self, env_steps: int, counter: str = "env_steps") -> None:
        """Drop every line beyond a checkpoint, so that a resumed run records each step once.

        `wall_time_s` goes on from the last line that remains. `counter` is what counts as steps
        where a run learns from frames that are all there.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        remaining = [line for line in lines if json.loads(line)[counter] <= env_steps]
        self._file.close()
        write_atomically(self.path, b"".join(remaining))
        self._go_on()
        self._mirrors.restart_after(env_steps)

    def close(self) -> None:
        """Finish the file and the mirrors."""
        self._file.close()
        self._mirrors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_on(self) -> None:
        """Open the file behind its last whole line."""
        self._file = self.path.open("ab")
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
        lines = self.path.read_bytes().splitlines()
        self._offset_s = max((json.loads(line)["wall_time_s"] for line in lines), default=0.0)
        self._started = self._clock()


def read_metrics(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Lines of a run's `metrics.jsonl`, or those of one kind, also while it is being written.

    Returns:
        One dict per line, `null` metrics as NaN. A last line without its end is left out; an empty
        list if there is no file yet.

    Raises:
        ValueError: a line before the last is not JSON; the message names file and line.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected one JSON object per line ({error}); "
                "the file was changed by hand or by two runs at once: remove that line"
            ) from error
        if kind is None or record["kind"] == kind:
            found.append({k: math.nan if v is None else v for k, v in record.items()})
    return found


def _plain(name: str, value: Any) -> Any:
    """A metric as a value that JSON has."""
    if name in _RESERVED:
        raise ValueError(f"metric {name!r}: this name is reserved, use a `group/name` of your own")
    if isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0):
        value = value.item()  # also tensors with one value, without importing torch
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    raise TypeError(
        f"metric {name!r}: expected a number, a string or a list of numbers, got "
        f"{type(value).__name__}"
    )
