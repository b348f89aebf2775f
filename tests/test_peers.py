"""The comparison with peers, without them: what is recorded, and what is said of a failure."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peers, table
from benchmarks.peers import SYSTEMS, PeerError, System

FAKE = """\
import json, sys
task = json.loads(sys.argv[1])
if task["settings"].get("broken") == task["part"]:
    raise ValueError("no such game")
found = {"packages": {"torch": "9"}}
if task["part"] == "speed":
    found |= {"replayed_frames_per_s": 10.0, "imagined_steps_per_s": 150.0}
    found |= {"dreamt_steps_per_s": 300.0, "parameters": 7_500_000}
else:
    kinds = {"greedy": task["seed"] + 1.0, "sampled": 0.0}
    found["score"] = {kind: {"mean": mean, "returns": [mean]} for kind, mean in kinds.items()}
    found |= {"env_steps": 64, "replayed_rows": 4096, "wall_s": 30.0}
open(task["out"], "w").write(json.dumps(found))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three systems, of which one has no speed and one no score; nothing is pinned to a core."""
    (tmp_path / "run_fake.py").write_text(FAKE)
    known = {
        name: System(what=name, script="run_fake.py", frames="game", settings={"broken": part})
        for name, part in {"whole": "", "slow": "speed", "lost": "score"}.items()
    }
    monkeypatch.setattr(peers, "SYSTEMS", known)
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peers.os, "sched_setaffinity", lambda *_: None)
    return tmp_path


def measured(folder: Path, *words: str) -> dict[str, Any]:
    given = peers.parse(["--dir", str(folder / "d"), "--out", str(folder / "r.json"), *words])
    peers.run(given)
    return dict(json.loads((folder / "r.json").read_text()))


def test_what_fails_is_recorded_with_its_reason_and_does_not_stop_the_others(machine: Path) -> None:
    found = measured(machine, "--rounds", "2", "--minutes", "0.1", "--seeds", "2")
    whole, slow, lost = found["systems"].values()
    assert whole["replayed_frames_per_s"] == 10 and len(whole["rounds"]) == 2
    assert whole["score"] == {"greedy": 1.5, "sampled": 0.0}
    assert [run["seed"] for run in whole["runs"]] == [0, 1] and "failed" not in whole
    assert slow["failed"] == "speed: exit code 1: ValueError: no such game"
    assert "parameters" not in slow and "score" not in slow
    assert lost["failed"].startswith("score: ") and lost["imagined_steps_per_s"] == 150
    text = table.peers_section(found)
    assert "| whole (`whole`) | 10 x 10 cells | 7.50 M | 10.0 | 150 | 1.50 | 0.00 |" in text
    assert "`slow` failed: speed: exit code 1: ValueError: no such game." in text


def test_systems_that_are_not_asked_for_keep_what_they_have(machine: Path) -> None:
    first = measured(machine, "--rounds", "1", "--minutes", "0")
    again = measured(machine, "--rounds", "2", "--minutes", "0", "--systems", "lost")
    assert list(again["systems"]) == ["whole", "slow", "lost"]
    assert again["systems"]["whole"] == first["systems"]["whole"]
    assert len(again["systems"]["lost"]["rounds"]) == 2
    with pytest.raises(SystemExit, match="same game, MinAtar/Asterix-v1, to go on with, got MinA"):
        measured(machine, "--game", "MinAtar/Asterix-v1")
    assert json.loads((machine / "r.json").read_text()) == again


def test_an_environment_is_made_once_and_again_when_its_versions_change(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def call(command: list[str], log: Path, limit_s: float) -> None:
        made.append(command[-1])
        if command[-1].endswith("bad.txt"):
            raise PeerError("exit code 1: ERROR: No matching distribution found for nothing==9")
        Path(command[-1]).mkdir(parents=True, exist_ok=True) if "venv" in command else None

    monkeypatch.setattr(peers, "call", call)
    system = System(what="good", script="run_fake.py", frames="game", packages="good.txt")
    home, listed = machine / "good", machine / "good.txt"
    for text in ("one==1\n", "one==1\n", "one==2\n"):
        listed.write_text(text)
        assert peers.interpreter(system, machine, "") == home / "bin" / "python"
    assert made == [str(home), str(listed)] * 2
    (machine / "bad.txt").write_text("nothing==9\n")
    system = System(what="bad", script="run_fake.py", frames="game", packages="bad.txt")
    monkeypatch.setattr(peers, "SYSTEMS", {"bad": system})
    found = measured(machine, "--minutes", "0")["systems"]["bad"]["failed"]
    assert found == "install: exit code 1: ERROR: No matching distribution found for nothing==9"


def test_a_system_that_hangs_is_ended_with_everything_it_started(tmp_path: Path) -> None:
    command = "sleep 60 & echo $!; wait"
    with pytest.raises(PeerError, match="took longer than 2 s"):
        peers.call(["sh", "-c", command], tmp_path / "log", 2.0)
    status = Path("/proc", (tmp_path / "log").read_text().strip(), "status")
    deadline = time.monotonic() + 20
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_command_line_names_the_systems_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.parse([]).systems == list(SYSTEMS)
    assert {"reverie_flat", "reverie_grid", "reverie_64", "rllib_dreamerv3_xs"} <= set(SYSTEMS)
    with pytest.raises(SystemExit):
        peers.parse(["--systems", "reverie_flat,dreamer"])
    assert "got ['dreamer']" in capsys.readouterr().err


def test_every_system_has_its_script_and_every_package_a_version() -> None:
    for system in SYSTEMS.values():
        assert (peers.SCRIPTS / system.script).exists()
        if system.packages:
            lines = (peers.SCRIPTS / system.packages).read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#"))


def test_painted_frames_keep_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(peers.SCRIPTS))
    import game

    env, plain = (
        game.make_game("MinAtar/Breakout-v1", "image"),
        game.make_game("MinAtar/Breakout-v1", "game"),
    )
    image, cells = env.reset(seed=3)[0], plain.reset(seed=3)[0]
    middles = (np.arange(10) * 64 + 32) // 10
    assert image.shape == (64, 64, 3) and env.observation_space.contains(image)
    assert (image[middles][:, middles].any(-1) == cells.any(-1)).all()
    vector = game.make_game("MinAtar/Breakout-v1", "vector").reset(seed=3)[0]
    assert (vector == cells.ravel()).all()


def test_rates_leave_the_first_piece_of_work_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.peer_scripts.task import rates

    pieces = iter([{"rows": (1.0, 100.0)}, {"rows": (30.0, 2.0)}, {"rows": (10.0, 2.0)}])
    assert rates(lambda: next(pieces), seconds=0.0) == {"rows": 15.0}
