"""How busy the machine is with other work: whether times by the clock can be trusted.

In: nothing. Out: how many tasks want a core. The system's load average looks a minute back, so
after a process of our own it still counts that one; hence a look at the present moment as well.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

TRUSTED = 0.5
"""Tasks of others, on average, up to which times of several ranks are worth quoting."""
SECONDS, PAUSE_S = 2.0, 0.05
_PROC = Path("/proc/loadavg")


class Load(NamedTuple):
    """What the machine is doing.

    Attributes:
        before: mean number of tasks running or waiting for a core just now, this one left out.
        average: the system's load average over the last minute, our own work included.
    """

    before: float
    average: float

    def as_numbers(self) -> dict[str, float]:
        """For a tree of costs."""
        return {"load_before": self.before, "load_average": self.average}


def look(seconds: float = SECONDS) -> Load:
    """Do nothing for so long, and see who else is at work.

    Where the kernel does not say who is running (Linux: /proc/loadavg), `before` is the average.
    """
    average = os.getloadavg()[0]
    counts = []
    for _ in range(max(1, round(seconds / PAUSE_S))):
        time.sleep(PAUSE_S)
        running = _running()
        if running is None:
            return Load(average, average)
        counts.append(running - 1)
    return Load(sum(counts) / len(counts), average)


def _running() -> int | None:
    """Tasks that run or wait for a core, this one included; None if nobody says."""
    try:
        return max(1, int(_PROC.read_text(encoding="ascii").split()[3].partition("/")[0]))
    except OSError:
        return None
