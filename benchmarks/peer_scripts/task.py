"""What `benchmarks/peers.py` asks of a system, and how it is answered.

In goes one JSON object on the command line (`Task`), out comes one in the file it names. Each
`run_*.py` beside this file is such a system; it runs in the environment of the system it measures,
so nothing here needs more than torch. A system speaks as much as it likes on standard output.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "gymnasium", "minatar", "ray", "sheeprl", "lightning", "torchrl", "tensordict")
"""Whose versions an answer says, where they are installed."""

clock = time.process_time
"""What speeds are measured with: CPU time, which on an idle core is the time of day."""

Parts = Mapping[str, tuple[float, float]]
"""Figure to (units of work, seconds), of one piece of work."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement of one system.

    Attributes:
        part: "speed" or "score".
        frames: what the system sees of a game: "image" (64, 64, 3), "vector" (a number per cell
            and channel) or "game" (as the game gives it).
        settings: the system's own, such as a config and what is changed in it.
        game: id of the real environment.
        seconds: of the speed part, by `clock`, after a first update that does not count.
        minutes: of training in the score part.
        train_ratio: replayed rows per env step of a peer.
        episodes: of the judgement after training.
        seed: of everything.
        out: JSON file to write.
    """

    part: str
    frames: str
    settings: Mapping[str, Any]
    game: str
    seconds: float
    minutes: float
    train_ratio: int
    episodes: int
    seed: int
    out: str


def rates(work: Callable[[], Parts], seconds: float) -> dict[str, float]:
    """Units per second of each figure, over pieces of work that follow a first one.

    Args:
        work: does a piece and says what it was.
        seconds: pieces are added until they took this long together.
    """
    work()
    units: dict[str, float] = {}
    spent: dict[str, float] = {}
    start = clock()
    while not spent or clock() - start < seconds:
        for name, (count, took) in work().items():
            units[name] = units.get(name, 0.0) + count
            spent[name] = spent.get(name, 0.0) + took
    return {name: units[name] / spent[name] for name in units}


def clocked(action: Callable[[], Any]) -> float:
    """Seconds of `clock` that an action takes."""
    start = clock()
    action()
    return clock() - start


def numbers(*modules: torch.nn.Module) -> int:
    """Parameters of modules, each counted once."""
    return sum({id(p): p.numel() for one in modules for p in one.parameters()}.values())


def versions() -> dict[str, str]:
    """Versions of the packages that matter most in this environment."""
    found = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    return {name: found[name] for name in PACKAGES if name in found}


def answer(
    speed: Callable[[Task], Mapping[str, Any]], score: Callable[[Task], Mapping[str, Any]]
) -> None:
    """Do the task on the command line and write what was found."""
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    found = {"speed": speed, "score": score}[task.part](task)
    Path(task.out).write_text(json.dumps({**found, "packages": versions()}), encoding="utf-8")
