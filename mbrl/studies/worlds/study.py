"""`mbrl bench worlds`: the table of environments, an environment in a process of its own each.

What a row says is kept beside the run as soon as it is known, so that a command that is given again
goes on where the last one ended. A process that takes too long is ended, and the column that it was
at says so.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mbrl.errors import ConfigError
from mbrl.run.provenance import commit, machine
from mbrl.studies.worlds.listed import WORLDS, World
from mbrl.studies.worlds.one import COLUMNS

MISSING = "not installed"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="environments of the table; default: all"
    )
    parser.add_argument("--lists", default=",".join(WORLDS), help="comma-separated; default: both")
    parser.add_argument("--steps", type=int, default=2000, help="env steps of each; default: 2000")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="that each may take; default: 300"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path("runs/worlds"), help="of the runs; default: runs/worlds"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/worlds.json"), help="default: results/worlds.json"
    )


def command(given: Mapping[str, Any]) -> list[str]:
    """Do what the command line says."""
    lists = str(given["lists"]).split(",")
    if unknown := [name for name in lists if name not in WORLDS]:
        raise ConfigError(
            f"bench worlds --lists: expected {', '.join(WORLDS)}, got {', '.join(unknown)}"
        )
    words = ["mbrl bench worlds", *map(shlex.quote, given["names"]), f"--steps {given['steps']}"]
    return bench(
        lists,
        list(given["names"]),
        given["steps"],
        given["seconds"],
        given["dir"].resolve(),
        given["out"],
        " ".join(words),
        lambda line: print(line, flush=True),
    )


def bench(
    lists: list[str],
    only: list[str],
    steps: int,
    seconds: float,
    folder: Path,
    out: Path,
    command: str,
    say: Callable[[str], None],
) -> list[str]:
    """Fill the table; returns a sentence for each row that failed.

    Args:
        lists: which of `WORLDS`.
        only: names, or none for all.
        steps: env steps that each is trained for.
        seconds: that each may take.
        folder: where the runs are.
        out: the JSON that the documents are made from.
        command: that made it.
        say: called with a line for each environment.

    Raises:
        ConfigError: a name is of no environment.
    """
    worlds = {world.name: world for name in lists for world in WORLDS[name]}
    if unknown := [name for name in only if name not in worlds]:
        raise ConfigError(
            f"bench worlds: expected names among {', '.join(worlds)}; got {', '.join(unknown)}"
        )
    rows: dict[str, dict[str, str]] = {}
    for number, (name, world) in enumerate(worlds.items(), 1):
        if only and name not in only:
            continue
        row = _row(world, number, folder, steps, seconds)
        rows[name] = {"package": world.package, **row}
        told = next((row[c] for c in COLUMNS if c in row and row[c] != "ok"), "ok")
        say(f"{name}: {row.get('installed', told)}")
        _write(out, rows, command, steps)
    return [
        f"{name}: {column}: {value}"
        for name, row in rows.items()
        for column, value in row.items()
        if value.startswith("failed")
    ]


def _row(world: World, number: int, folder: Path, steps: int, seconds: float) -> dict[str, str]:
    """One environment's columns, as far as it came."""
    if world.package != "odd" and not _installed(world.package):
        return {"installed": MISSING}
    here = folder / f"{number:02d}"
    asked, found = here / "world.json", here / "world.found.json"
    wish = {"name": world.name, "env": world.env, "steps": steps}
    done = here / "done.json"
    if done.exists() and json.loads(done.read_text(encoding="utf-8"))["wish"] == _plain(wish):
        row: dict[str, str] = json.loads(done.read_text(encoding="utf-8"))["row"]
        return row
    if here.exists():
        shutil.rmtree(here)
    here.mkdir(parents=True)
    asked.write_text(json.dumps(wish), encoding="utf-8")
    said = _run(asked, here / "log.txt", seconds)
    row = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    if said and (missing := [name for name in COLUMNS if name not in row]):
        row[missing[0]] = f"failed: {said}"
    done.write_text(json.dumps({"wish": _plain(wish), "row": row}), encoding="utf-8")
    return row


def _run(asked: Path, log: Path, seconds: float) -> str:
    """Run one environment's process; what went wrong with it, or ""."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mbrl.studies.worlds.one", str(asked)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"not done after {seconds:.0f} s"
    if code == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1] if lines else 'without a word'}"


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _write(out: Path, rows: dict[str, dict[str, str]], command: str, steps: int) -> None:
    whole = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "steps": steps,
        "envs": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
