"""What a person sees of a run at work: one live line on a terminal, else a line now and then."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_PLAIN_INTERVAL_S = 10.0
_RATE_WINDOW_S = 30.0


class Progress:
    """How far a run is, with what it does now, its score, its speed and the time left."""

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

        `start_steps` are the env steps at which this process took the run up, for the time left.
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

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._say_plain()

    def aim(self, total_steps: int) -> None:
        """Expect another number of env steps than was said at first."""
        self._total = total_steps

    def update(
        self,
        *,
        env_steps: int | None = None,
        phase: str | None = None,
        eval_mean: float | None = None,
        replayed_rows: int | None = None,
    ) -> None:
        """Show what is new; what is left out stays as it was.

        `phase` is what the run is doing now, in a word or two; `replayed_rows` are a total.
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

    def _facts(self) -> str:
        facts = [self._phase] if self._phase else []
        if self._eval_mean is not None:
            facts.append(f"eval {self._eval_mean:.2f}")
        if self.rows_per_s is not None:
            facts.append(f"{self.rows_per_s:,.0f} rows/s")
        if self.seconds_left is not None:
            facts.append(f"{_duration(self.seconds_left)} left")
        return " · ".join(facts)

    def _count(self) -> str:
        return f"{self._steps:,}/{self._total:,} env steps"

    def _say_plain(self) -> None:
        self._last_plain = self._clock()
        elapsed = _duration(self._clock() - self._began)
        share = f"({100 * self._steps / max(self._total, 1):.0f} %)"
        words = " ".join(filter(None, [f"[{elapsed}]", self._title, self._count(), share]))
        self.print(" · ".join(filter(None, [words, self._facts()])))

    def _line(self) -> Table:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=self._steps, width=24)
        facts = Text(self._facts(), style="cyan")
        line.add_row(Text(self._title, style="bold"), bar, Text(self._count()), facts)
        return line


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
