"""What every benchmark shares: alternate the contestants, take medians, print and write them.

A machine is rarely idle, so a speed alone says little. Contestants take turns, round after round,
and a ratio is the median of the ratios within each round: whatever slowed one of them slowed the
other too. A benchmark turns the speeds into rows (what, figure, unit, and what it is compared to);
the same rows are printed, written to JSON and shown in `docs/benchmarks.md`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.run.provenance import provenance

Contestant = Callable[[], Mapping[str, float]]
"""Does a piece of work and returns speeds (or any figures) by name."""


def timed(name: str, work: Callable[[], float], seconds: float = 0.0) -> Contestant:
    """A contestant whose speed is units of work per second of wall time.

    Args:
        name: of the figure.
        work: does something and returns how many units that was.
        seconds: the work is repeated for at least this long.
    """

    def contest() -> dict[str, float]:
        units, spent, start = 0.0, 0.0, time.perf_counter()
        while spent <= seconds:
            units += work()
            spent = time.perf_counter() - start
        return {name: units / spent}

    return contest


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        what: what was measured.
        value: the figure, a median.
        unit: of the figure, such as "rows/s".
        against: what it is compared to; empty if it is the yardstick itself.
        against_value: the yardstick's figure, in the same unit.
        ratio: how many times the yardstick's figure; the median of the rounds' own ratios.
    """

    what: str
    value: float
    unit: str
    against: str = ""
    against_value: float | None = None
    ratio: float | None = None


class Speeds:
    """Figures by name, round by round."""

    def __init__(self, rounds: Sequence[Mapping[str, float]]) -> None:
        """Keep the figures of all rounds, each with the same names."""
        self.rounds = {name: [float(figures[name]) for figures in rounds] for name in rounds[0]}

    def median(self, name: str) -> float:
        """The middle round."""
        return float(np.median(self.rounds[name]))

    def ratio(self, name: str, other: str) -> float:
        """Median over rounds of how many times the other's figure."""
        return float(np.median(np.divide(self.rounds[name], self.rounds[other])))

    def row(self, name: str, unit: str, against: str = "") -> Row:
        """A line of the table, alone or compared to another figure."""
        if not against:
            return Row(what=name, value=self.median(name), unit=unit)
        return Row(
            what=name,
            value=self.median(name),
            unit=unit,
            against=against,
            against_value=self.median(against),
            ratio=self.ratio(name, against),
        )


def alternate(contestants: Sequence[Contestant], rounds: int) -> Speeds:
    """Let all contestants work once per round, in the same order."""
    return Speeds([_merged([contest() for contest in contestants]) for _ in range(rounds)])


def _merged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for part in parts:
        if clash := merged.keys() & part.keys():
            raise ValueError(f"expected a name per figure, got {sorted(clash)} twice")
        merged.update(part)
    return merged


def options(doc: str | None, out: str, rounds: int) -> argparse.ArgumentParser:
    """Options that every benchmark has, for more to be added to."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="the median of these counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, for all contestants")
    parser.add_argument("--out", type=Path, default=Path(out), help="JSON file to write")
    return parser


def report(
    name: str, doc: str | None, given: argparse.Namespace, rows: Sequence[Row], details: Any
) -> None:
    """Print the rows and write them with where they come from.

    Args:
        name: of the benchmark's module.
        doc: of the module; its first line says what is measured.
        given: parsed options; `out` is written.
        rows: the table.
        details: sizes, settings and round-by-round figures, as JSON.
    """
    title = (doc or name).splitlines()[0]
    print(f"\n{title}\n")
    width = max(len(row.what) for row in rows)
    for row in rows:
        line = f"  {row.what:<{width}}  {number(row.value):>10} {row.unit}"
        if row.ratio is not None:
            line += f"   {number(row.ratio)} x {row.against}"
        elif row.against:
            line += f"   ({row.against})"
        print(line)
    threads = os.environ.get("OMP_NUM_THREADS")
    command = f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip()
    written = {
        "title": title,
        "command": f"OMP_NUM_THREADS={threads} {command}" if threads else command,
        **provenance(),
        "load_average": round(os.getloadavg()[0], 1),
        "rounds": given.rounds,
        "rows": [asdict(row) for row in rows],
        "details": details,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(written, indent=2) + "\n")
    print(f"\nwritten to {given.out}")


def number(value: float) -> str:
    """Three significant digits, thousands grouped."""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{digits}f}"
