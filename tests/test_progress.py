import io
from typing import Any

import pytest
from rich.console import Console

from mbrl.run.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain_progress(clock: Clock, **options: Any) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=40)
    return Progress(1000, console=console, clock=clock, **options), out


def test_without_a_terminal_a_line_comes_at_once_every_ten_seconds_and_at_the_end() -> None:
    clock = Clock()
    progress, out = plain_progress(clock, title="dream")
    with progress:
        for step in range(0, 251, 10):
            progress.update(env_steps=step, phase="collect", replayed_rows=step * 8)
            clock.now += 1
    lines = out.getvalue().splitlines()
    assert lines == [
        "[0:00] dream 0/1,000 env steps (0 %) · collect",
        "[0:10] dream 100/1,000 env steps (10 %) · collect · 80 rows/s · 1:30 left",
        "[0:20] dream 200/1,000 env steps (20 %) · collect · 80 rows/s · 1:20 left",
        "[0:26] dream 250/1,000 env steps (25 %) · collect · 80 rows/s · 1:18 left",
    ]


def test_time_left_counts_only_the_steps_of_this_process() -> None:
    clock = Clock()
    progress, _ = plain_progress(clock, start_steps=800)
    assert progress.seconds_left is None
    clock.now += 50
    progress.update(env_steps=900)
    assert progress.seconds_left == pytest.approx(50)


def test_rate_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    progress, _ = plain_progress(clock)
    rows = 0
    for rate in (10, 1000):
        for _ in range(60):
            clock.now += 1
            rows += rate
            progress.update(replayed_rows=rows)
    assert progress.rows_per_s == pytest.approx(1000, rel=0.05)


def test_on_a_terminal_the_live_line_tells_all_facts() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    clock = Clock()
    with Progress(1000, title="dream", console=console, clock=clock) as progress:
        clock.now += 10
        progress.update(env_steps=500, phase="learn model", eval_mean=3.14159)
        progress.print("checkpoint [saved]")
    text = out.getvalue()
    for fact in ("dream", "500/1,000 env steps", "learn model · eval 3.14 · 0:10 left"):
        assert fact in text
    assert "checkpoint [saved]" in text
