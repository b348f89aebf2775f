"""The two commands: `wheels` where there is a network, `run` on the rented machine."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.gpu_study import ROOT, StudyError
from deploy.gpu_study.install import install
from deploy.gpu_study.pace import settle
from deploy.gpu_study.study import GAMES, Study, environment, games
from deploy.gpu_study.wheels import download, requirements, split

MEGABYTE = 10**6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.call(given))
    except StudyError as error:
        print(f"gpu-study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu-study: stopped; the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.gpu_study", description=__doc__)
    commands = parser.add_subparsers(required=True)
    folder = Path("build", "gpu")

    wheels = commands.add_parser("wheels", help="download all dependencies and cut them up")
    wheels.add_argument("--folder", type=Path, default=folder, help="default: build/gpu")
    wheels.add_argument("--python-version", default="3.12", help="of the machine; default: 3.12")
    wheels.add_argument("--piece-mb", type=float, default=48.0, help="at most 60; default: 48")
    wheels.set_defaults(call=_wheels)

    run = commands.add_parser("run", help="install, look at the device, train, copy results")
    run.add_argument("--folder", type=Path, default=folder, help="default: build/gpu")
    run.add_argument("--runs", type=Path, help="run folders; default: runs/gpu, or runs/gpu_cpu")
    run.add_argument("--out", type=Path, help="results; default: the runs' folder /out")
    run.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    run.add_argument("--games", default=",".join(GAMES), help="comma-separated; default: all")
    run.add_argument("--env-steps", type=int, default=100_000, help="of each; default: 100000")
    run.add_argument("--minutes", type=float, default=9.5, help="of this call; default: 9.5")
    run.add_argument("--stop-seconds", type=float, default=90.0, help="of them; default: 90")
    run.add_argument(
        "--fit-minutes",
        type=float,
        default=0.0,
        help="first measure the speed, and choose ratios with which all games end in so many "
        "minutes of training; default: the config's ratios",
    )
    run.add_argument("--only-install", action="store_true", help="stop after looking at the device")
    run.add_argument("settings", nargs="*", metavar="key=value", help="the same in every call")
    run.set_defaults(call=_run)
    return parser


def _wheels(given: argparse.Namespace) -> int:
    if not 0 < given.piece_mb <= 60:
        raise StudyError(f"--piece-mb: expected more than 0 and at most 60, got {given.piece_mb:g}")
    folder = (ROOT / given.folder).resolve()
    download(folder, given.python_version)
    needed = requirements()
    size = int(given.piece_mb * MEGABYTE)
    manifest = split(folder, size, given.python_version, needed)
    total = sum(one["bytes"] for one in manifest["wheels"]) / MEGABYTE
    print(
        f"{len(manifest['wheels'])} wheels for Python {given.python_version}, {total:.0f} MB in "
        f"{len(manifest['pieces'])} pieces: bring {given.folder}/manifest.json and pieces/"
    )
    return 0


def _run(given: argparse.Namespace) -> int:
    began = time.monotonic()
    # SIGTERM ends the call as Ctrl-C does: the runs checkpoint, results are copied
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs = given.runs or Path("runs", "gpu_cpu" if given.device == "cpu" else "gpu")
    runs = (ROOT / runs).resolve()
    out = given.out or runs / "out"
    python = install((ROOT / given.folder).resolve())
    print(f"installed after {time.monotonic() - began:.0f} s", flush=True)
    about = look(python, given.device)
    print(json.dumps(about["device"]), flush=True)
    if given.only_install:
        return 0
    if given.device == "cpu":
        print("a rehearsal: sizes are for a CPU, and the scores mean nothing", flush=True)
    names = given.games.split(",")
    chosen = games(python, runs, names, given.device, given.env_steps, given.settings)
    variables = environment(len(chosen))
    kept = runs / "pace.json"
    settle(kept, python, chosen, variables, given.fit_minutes)
    pace = json.loads(kept.read_text()) if kept.exists() else None
    print(f"ratios: {json.dumps(pace and pace['chosen'])}", flush=True)
    study = Study(
        games=chosen,
        out=out,
        about={"command": _command(given), **about, "pace": pace},
        environment=variables,
        began=began,
        minutes=given.minutes,
        stop_s=given.stop_seconds,
        say=lambda line: print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True),
    )
    done = study.run()
    print(f"{'all finished' if done else 'the same command goes on'}; results are in {out}")
    return 0


def _command(given: argparse.Namespace) -> str:
    """The call in a form that says nothing of this machine."""
    sizes = [f"--device {given.device}", f"--env-steps {given.env_steps}"]
    sizes += [f"--fit-minutes {given.fit_minutes:g}"] if given.fit_minutes else []
    sizes += given.settings
    return f"make gpu-study GPU_STUDY_ARGS='{' '.join(sizes)}'"


def look(python: Path, device: str) -> dict[str, Any]:
    """What `deploy.gpu_study.device` finds, from a process in the environment.

    Raises:
        StudyError: the device cannot be used; why is on the terminal already.
    """
    command = [str(python), "-m", "deploy.gpu_study.device", "--device", device]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise StudyError(f"the device check ended with exit code {done.returncode}: see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
