"""Speed and score beside other implementations of a world model, each in its own environment.

    python -m benchmarks.peers [--systems all] [--rounds 3] [--minutes 20] [--seeds 1]

Every system runs in a process of its own, one after another, on the same one core and one thread:
`benchmarks/peer_scripts/run_*.py` say what of it is measured and with which settings. RLlib comes
with this project; SheepRL and TorchRL get an environment each, in `runs/peers`, made here with pip
from the versions in `benchmarks/peer_scripts/*.txt`. A system that cannot be installed or does not
run is reported as failed, with the reason.

Speed: rows of replay that the world model is trained on, without dreams; imagined steps with what
actor and critic learn from them; and imagined steps alone. All are per second of the process's own
CPU time, which on an idle core is the time of day, and which other work disturbs less. They are
medians of rounds in which the systems take turns. Each has the batch and the networks of its own
config, so parameters stand beside the speeds; what is the same is the size of the frames: 64 x 64 x
3, or the game's own cells, which the peers take as a vector. By their configs the peers compute in
float32 and decode every row; this project computes in bfloat16 where the processor can, and decodes
a random share.

Score: the real game after the same wall-clock time of training, from building the agent to the end
of the iteration that passes the limit. Afterwards all play the same episodes, with the likeliest
actions and with sampled ones. Peers replay `--train-ratio` rows per env step, not the 1,024 of
their configs: with those they would take a few hundred steps in such a time, after the first 1,024
in which none of them learns.

Results are written after every measurement. Systems that are not asked for keep what they have.
"""

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_scripts.task import Task
from mbrl.run.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks" / "peer_scripts"
SPEEDS = ("replayed_frames_per_s", "imagined_steps_per_s", "dreamt_steps_per_s")
OURS = "run_reverie.py"
STARTUP_S = 900.0  # of a process, with its first update and what it plays in the end
FRAMES = {"image": "64 x 64 x 3", "vector": "cells as a vector", "game": "10 x 10 cells"}


class PeerError(RuntimeError):
    """A system that could not be installed or measured; the text says why, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One line of the comparison.

    Attributes:
        what: it is, in words.
        script: in `peer_scripts`.
        frames: see `Task`.
        packages: file in `peer_scripts` with the versions of its environment; None for ours.
        settings: see `Task`.
        plays: it takes part in the score.
    """

    what: str
    script: str
    frames: str
    packages: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    plays: bool = True


def _peer(what: str, script: str, packages: str | None = None) -> list[System]:
    """A peer on images and on vectors."""
    return [
        System(what=what, script=script, frames=frames, packages=packages)
        for frames in ("image", "vector")
    ]


def _systems() -> dict[str, System]:
    rllib = _peer("RLlib DreamerV3 XS", "run_rllib.py")
    sheeprl = _peer("SheepRL DreamerV3 XS", "run_sheeprl.py", "sheeprl.txt")
    torchrl = _peer("TorchRL DreamerV3, 1 M", "run_torchrl.py", "torchrl.txt")
    return {
        "reverie_flat": System(
            what="minatar, flat",
            script=OURS,
            frames="game",
            settings={"config": "minatar_flat"},
        ),
        "reverie_grid": System(
            what="minatar, grid",
            script=OURS,
            frames="game",
            settings={"config": "minatar"},
        ),
        "reverie_64": System(
            what="atari_pong",
            script=OURS,
            frames="image",
            settings={"config": "atari_pong"},
            plays=False,
        ),
        "rllib_dreamerv3_xs": rllib[0],
        "rllib_dreamerv3_xs_vector": rllib[1],
        "sheeprl_dreamerv3_xs": sheeprl[0],
        "sheeprl_dreamerv3_xs_vector": sheeprl[1],
        "torchrl_dreamerv3_1m": torchrl[0],
        "torchrl_dreamerv3_1m_vector": torchrl[1],
    }


SYSTEMS = _systems()


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `systems` becomes a list of names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--systems", default="all", help=f"comma-separated, of {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the speed part; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a system in each round")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training; 0 leaves it out")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each system for its score")
    parser.add_argument("--episodes", type=int, default=50, help="played after training, each way")
    parser.add_argument("--game", default="MinAtar/Breakout-v1", help="that all learn to play")
    parser.add_argument(
        "--train-ratio", type=int, default=64, help="replayed rows of a peer's step"
    )
    parser.add_argument("--core", type=int, help="that all run on; default: the last")
    parser.add_argument("--pip-args", default="", help='for the peers, such as "--index-url ..."')
    parser.add_argument("--dir", type=Path, default=Path("runs/peers"), help="environments, logs")
    parser.add_argument("--out", type=Path, default=Path("results/peers/training.json"))
    given = parser.parse_args(words)
    given.systems = list(SYSTEMS) if given.systems == "all" else given.systems.split(",")
    if unknown := [name for name in given.systems if name not in SYSTEMS]:
        parser.error(f"--systems: expected names out of {', '.join(SYSTEMS)}, got {unknown}")
    return given


# Environments


def interpreter(system: System, folder: Path, pip_args: str) -> Path:
    """The Python of the system's environment, which is made if it is not there or out of date.

    Raises:
        PeerError: pip could not install it.
    """
    if system.packages is None:
        return Path(sys.executable)
    listed = SCRIPTS / system.packages
    home = folder / listed.stem
    python, stamp = home / "bin" / "python", home / ".installed"
    wanted = hashlib.sha256(listed.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {listed.stem} into {home}", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    log = folder / f"{listed.stem}-install.log"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [*pip, *shlex.split(pip_args), "--requirement", str(listed)],
    ):
        call(command, log, 3600.0)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def call(command: Sequence[str], log: Path, limit_s: float) -> None:
    """Run a command with everything it starts on one thread each; its words go to a file.

    Raises:
        PeerError: it failed or took longer than the limit, after which it is ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    surroundings = {**os.environ, **one, "PYTHONPATH": str(ROOT)}
    with log.open("w", encoding="utf-8") as words:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=surroundings,
            start_new_session=True,
        )
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise PeerError(f"it took longer than {limit_s:.0f} s") from None
        finally:  # what it has started itself must not slow down the next
            _end(child)
    if code:
        raise PeerError(f"exit code {code}: {_last_words(log)}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def _last_words(log: Path) -> str:
    """The last line that says something, without the folders of this machine."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    text = lines[-1] if lines else "it said nothing"
    for folder in (ROOT, Path.home()):
        text = text.replace(str(folder), "…")
    return text[:300]


# Measuring


def measure(name: str, part: str, given: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """What one system answers to one task.

    Raises:
        PeerError: it could not be installed, or failed.
    """
    system = SYSTEMS[name]
    python = interpreter(system, given.dir.resolve(), given.pip_args)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        task = Task(
            part=part,
            frames=system.frames,
            settings=system.settings,
            game=given.game,
            seconds=given.seconds,
            minutes=given.minutes,
            train_ratio=given.train_ratio,
            episodes=given.episodes,
            seed=seed,
            out=str(out),
        )
        command = [str(python), str(SCRIPTS / system.script), json.dumps(asdict(task))]
        limit = STARTUP_S + (given.seconds if part == "speed" else 120 * given.minutes)
        call(command, given.dir / f"{name}-{part}.log", limit)
        return json.loads(out.read_text(encoding="utf-8"))


def with_speed(record: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """A system's record with one more round: the speeds are medians over its rounds."""
    rounds = [*record.get("rounds", []), {name: answer[name] for name in SPEEDS}]
    medians = {name: float(np.median([one[name] for one in rounds])) for name in SPEEDS}
    return {**record, **answer, **medians, "rounds": rounds}


def with_score(record: Mapping[str, Any], answer: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A system's record with the score of one more seed; `score` has the means over seeds."""
    found = dict(answer)
    packages = found.pop("packages")
    runs = [*record.get("runs", []), {"seed": seed, **found}]
    score = {
        kind: float(np.mean([run["score"][kind]["mean"] for run in runs]))
        for kind in ("greedy", "sampled")
    }
    return {**record, "packages": packages, "score": score, "runs": runs}


class Comparison:
    """The results file: a record per system, written whenever one changes.

    Attributes:
        systems: name to record; `failed` in one says which part failed, and why.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        """Begin new records for the systems that are asked for, beside those that are there.

        Raises:
            SystemExit: what is there is of another machine or game.
        """
        self.given = given
        found = provenance()
        origin = {
            "command": f"python -m benchmarks.peers {shlex.join(sys.argv[1:])}".strip(),
            "commit": found["commit"],
        }
        self.head = {
            "title": (__doc__ or "").splitlines()[0],
            **origin,
            "machine": found["machine"],
            "game": given.game,
        }
        self.systems = self._before()
        for name in given.systems:
            about = SYSTEMS[name]
            self.systems[name] = {"what": about.what, "frames": FRAMES[about.frames], **origin}
            if about.script != OURS:
                self.systems[name]["train_ratio"] = given.train_ratio

    def _before(self) -> dict[str, Any]:
        out = self.given.out
        if not out.exists():
            return {}
        found = json.loads(out.read_text(encoding="utf-8"))
        for name in ("machine", "game"):
            if found[name] != self.head[name]:
                sys.exit(
                    f"{out}: expected results of the same {name}, {self.head[name]}, to go on "
                    f"with, got {found[name]}; name another file with --out, or remove this one"
                )
        return dict(found["systems"])

    def note(self, name: str, record: dict[str, Any]) -> None:
        """Replace a system's record, and write the file."""
        self.systems[name] = {**record, "load_average": round(os.getloadavg()[0], 1)}
        ordered = {known: self.systems[known] for known in SYSTEMS if known in self.systems}
        out = self.given.out
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.head, "systems": ordered}, indent=2)
        out.write_text(text + "\n", encoding="utf-8")

    def attempt(self, name: str, part: str, seed: int = 0) -> None:
        """Install a system or measure a part of it, unless it has failed before."""
        record = self.systems[name]
        if "failed" in record:
            return
        print(f"{name}: {part}", flush=True)
        try:
            if part == "install":
                interpreter(SYSTEMS[name], self.given.dir.resolve(), self.given.pip_args)
            elif part == "speed":
                self.note(name, with_speed(record, measure(name, part, self.given)))
            else:
                self.note(name, with_score(record, measure(name, part, self.given, seed), seed))
        except PeerError as error:
            self.note(name, {**record, "failed": f"{part}: {error}"})
            print(f"{name}: failed, {self.systems[name]['failed']}", flush=True)


def run(given: argparse.Namespace) -> None:
    """Measure the systems in turn."""
    comparison = Comparison(given)
    for name in given.systems:
        comparison.attempt(name, "install")
    core = max(os.sched_getaffinity(0)) if given.core is None else given.core
    os.sched_setaffinity(0, {core})  # which everything that is started inherits
    for _ in range(given.rounds):
        for name in given.systems:
            comparison.attempt(name, "speed")
    for seed in range(given.seeds if given.minutes else 0):
        for name in given.systems:
            if SYSTEMS[name].plays:
                comparison.attempt(name, "score", seed)


def main() -> None:
    """Measure and say where the results are."""
    given = parse()
    # what is at work is ended with this process
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(given)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
