"""What a run says of itself while it goes: `metrics.jsonl`, its mirrors, and lines on the terminal.

`metrics.jsonl` is the source that every plot and report reads: one JSON object per line, each with
`env_steps`, `wall_time_s` and `kind`, then flat `group/name` keys. Trackers are mirrors of it
(`mbrl/run/mirrors.py`). Nothing here knows what a metric means.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mbrl.run.mirrors import Mirror, Mirrors

_RESERVED = ("env_steps", "wall_time_s", "kind")
_PLAIN_INTERVAL_S = 10.0
_RATE_WINDOW_S = 30.0


class MetricsLog:
    """Appends to `metrics.jsonl` of a run folder, and goes on where an earlier process stopped.

    Every line is on its way to the disk when `write` returns. A value that is not finite is stored
    as `null`, because JSON has no word for it, and reads back as NaN: a gap in a curve.

    `wall_time_s` counts the seconds a run has been at work: it goes on from the last line that is
    in the file, so pauses between a stop and a resume are not counted.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        mirrors: Sequence[Callable[[int | None], Mirror]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create the file; a line that was cut off by a crash is removed.

        Args:
            run_dir: the run folder, made if missing.
            mirrors: functions that open a tracker; see `run.mirrors`. They are called at the first
                write, with the env steps from which on earlier entries are void, or None.
            clock: seconds, only differences are used.
        """
        self.path = Path(run_dir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._started = clock()
        self._mirrors = Mirrors(mirrors)
        self._file = self.path.open("ab")
        _cut_half_line(self.path)
        self._offset_s = self._last_wall_time_s()

    @property
    def wall_time_s(self) -> float:
        """Seconds the run has been at work, earlier processes included."""
        return self._offset_s + self._clock() - self._started

    def write(self, kind: str, env_steps: int, metrics: Mapping[str, Any]) -> None:
        """Append one line.

        Args:
            kind: "train", "eval" or another word that tells lines apart.
            env_steps: real environment steps so far.
            metrics: numbers, strings or lists of numbers, by flat `group/name`. Numbers also go to
                the mirrors.

        Raises:
            ValueError: a metric has one of the three reserved names.
            TypeError: a value is of another type.
        """
        head = {"env_steps": int(env_steps), "wall_time_s": round(self.wall_time_s, 3)}
        line = {**head, "kind": kind, **{k: _plain(k, v) for k, v in metrics.items()}}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        self._mirrors.write(
            int(env_steps), {k: float(v) for k, v in numbers.items() if k not in _RESERVED}
        )

    def truncate_after(self, env_steps: int, counter: str = "env_steps") -> int:
        """Drop every line beyond a checkpoint, so that a resumed run tells each step once.

        Args:
            env_steps: of the checkpoint; lines with more steps go.
            counter: what counts as steps, where a run learns from frames that are all there.

        Returns:
            The number of lines dropped. `wall_time_s` goes on from the last line kept.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)[counter] <= env_steps]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        temporary.replace(self.path)
        self._file = self.path.open("ab")
        self._started = self._clock()
        self._offset_s = self._last_wall_time_s()
        self._mirrors.restart_after(env_steps)
        return len(lines) - len(kept)

    def close(self) -> None:
        """Finish the file and the mirrors."""
        self._file.close()
        self._mirrors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _last_wall_time_s(self) -> float:
        lines = self.path.read_bytes().splitlines()
        return max((float(json.loads(line)["wall_time_s"]) for line in lines), default=0.0)


def read_metrics(path: Path | str, kind: str | None = None) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`, also of one that is being written.

    Args:
        path: the file, or the run folder that holds it.
        kind: only lines of this kind.

    Returns:
        One dict per line, `null` metrics as NaN. A last line without its end is left out; an empty
        list if there is no file yet.

    Raises:
        ValueError: a line before the last is not JSON; the message names file and line.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
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


def _cut_half_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def _plain(name: str, value: Any) -> Any:
    """A metric as JSON can say it."""
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


class Progress:
    """Tells a person how far a run is: one live line on a terminal, else a line now and then.

    Usage:
        with Progress(total_steps=10_000, title="quickstart dream") as progress:
            progress.update(env_steps=512, phase="learn model", replayed_rows=40_000)
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_steps: int = 0,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is shown before the first update.

        Args:
            total_steps: env steps of the whole run.
            start_steps: env steps at which this process took the run up, for the time left.
            title: shown in front.
            console: where to; stdout by default.
            clock: seconds.
        """
        self.console = console or Console()
        self._title, self._total, self._start = title, total_steps, start_steps
        self._steps = start_steps
        self._clock = clock
        self._began = clock()
        self._last_plain = -math.inf
        self._phase = ""
        self._eval_mean: float | None = None
        self._rows: deque[tuple[float, int]] = deque()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._line, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._say_plain()

    def update(
        self,
        *,
        env_steps: int | None = None,
        phase: str | None = None,
        eval_mean: float | None = None,
        replayed_rows: int | None = None,
    ) -> None:
        """Tell what is new; what is left out stays as it was.

        Args:
            env_steps: real environment steps of the run so far.
            phase: what the run is doing now, in a word or two.
            eval_mean: mean return of the latest evaluation.
            replayed_rows: rows of experience trained on so far, in total.
        """
        self._steps = self._steps if env_steps is None else env_steps
        self._phase = self._phase if phase is None else phase
        self._eval_mean = self._eval_mean if eval_mean is None else eval_mean
        now = self._clock()
        if replayed_rows is not None:
            self._rows.append((now, replayed_rows))
            while len(self._rows) > 2 and self._rows[1][0] < now - _RATE_WINDOW_S:
                self._rows.popleft()
        if self._live is None and now - self._last_plain >= _PLAIN_INTERVAL_S:
            self._say_plain()

    def print(self, message: str) -> None:
        """Print a message of its own, above the live line if there is one."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    @property
    def rows_per_s(self) -> float | None:
        """Replayed rows per second of the last half minute; None before there are two counts."""
        if len(self._rows) < 2 or self._rows[-1][0] <= self._rows[0][0]:
            return None
        (t0, n0), (t1, n1) = self._rows[0], self._rows[-1]
        return (n1 - n0) / (t1 - t0)

    @property
    def seconds_left(self) -> float | None:
        """At the pace of this process so far; None before its first env step."""
        done = self._steps - self._start
        if done <= 0:
            return None
        return max(self._total - self._steps, 0) * (self._clock() - self._began) / done

    def _facts(self) -> list[str]:
        facts = [self._phase] if self._phase else []
        if self._eval_mean is not None:
            facts.append(f"eval {self._eval_mean:.2f}")
        if self.rows_per_s is not None:
            facts.append(f"{self.rows_per_s:,.0f} rows/s")
        if self.seconds_left is not None:
            facts.append(f"{_duration(self.seconds_left)} left")
        return facts

    def _count(self) -> str:
        return f"{self._steps:,}/{self._total:,} env steps"

    def _say_plain(self) -> None:
        self._last_plain = self._clock()
        elapsed = _duration(self._clock() - self._began)
        share = f"({100 * self._steps / max(self._total, 1):.0f} %)"
        words = [f"[{elapsed}]", *([self._title] if self._title else []), self._count(), share]
        self.print(" · ".join([" ".join(words), *self._facts()]))

    def _line(self) -> Table:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=self._steps, width=24)
        facts = Text(" · ".join(self._facts()), style="cyan")
        line.add_row(Text(self._title, style="bold"), bar, Text(self._count()), facts)
        return line


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
