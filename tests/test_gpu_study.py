"""`make gpu-study`: pieces that arrive whole or not at all, a device or a sentence, and resumes."""

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.gpu_study import StudyError, device, pace, study
from deploy.gpu_study.__main__ import main
from deploy.gpu_study.install import install
from deploy.gpu_study.study import CONFIG, Study, games
from deploy.gpu_study.wheels import join, read_manifest, requirements, split
from mbrl.config.schema import load
from mbrl.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


# Pieces


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three files, 35 bytes in all, in pieces of at most 16."""
    (tmp_path / "wheels").mkdir()
    for name, content in {"a": b"0123456789", "b": b"", "c": bytes(range(25))}.items():
        (tmp_path / "wheels" / f"{name}-1.whl").write_bytes(content)
    split(tmp_path, 16, HERE, ["a==1"])
    return tmp_path


def test_pieces_are_the_files_end_to_end_and_none_is_larger_than_asked(packed: Path) -> None:
    pieces = sorted((packed / "pieces").iterdir())
    assert [one.name for one in pieces] == ["000", "001", "002"]
    assert [one.stat().st_size for one in pieces] == [16, 16, 3]
    assert b"".join(one.read_bytes() for one in pieces) == b"0123456789" + bytes(range(25))
    manifest = read_manifest(packed)
    digest = hashlib.sha256(b"0123456789").hexdigest()
    assert manifest["wheels"][0] == {"name": "a-1.whl", "bytes": 10, "sha256": digest}


def test_joined_files_have_the_bytes_of_those_that_were_cut(packed: Path) -> None:
    joined = join(packed, read_manifest(packed))
    found = {one.name: one.read_bytes() for one in joined.iterdir()}
    assert found == {"a-1.whl": b"0123456789", "b-1.whl": b"", "c-1.whl": bytes(range(25))}


def test_a_file_that_ends_where_a_piece_does_needs_no_empty_piece(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1.whl").write_bytes(bytes(32))
    assert [one["bytes"] for one in split(tmp_path, 16, HERE, [])["pieces"]] == [16, 16]


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "expected the bytes that manifest.json lists, got others in 001; bring those again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "got others in 001"),
        (Path.unlink, "expected 3 pieces, 001 not here; bring them"),
    ],
)
def test_a_broken_or_missing_piece_is_one_clear_error(
    packed: Path, harm: Callable[[Path], Any], said: str
) -> None:
    harm(packed / "pieces" / "001")
    with pytest.raises(StudyError, match=said):
        join(packed, read_manifest(packed))
    assert not (packed / "joined").exists()


def test_a_list_that_is_missing_or_leads_elsewhere_is_refused(packed: Path) -> None:
    path = packed / "manifest.json"
    path.write_text(path.read_text().replace("a-1.whl", "../a-1.whl"))
    with pytest.raises(StudyError, match=r"expected plain names of files, got '\.\./a-1\.whl'"):
        read_manifest(packed)
    path.unlink()
    with pytest.raises(StudyError, match="expected the list that `make gpu-wheels` writes"):
        read_manifest(packed)


def test_everything_but_torch_and_the_viewers_is_packed() -> None:
    names = [one.split("=")[0].split(">")[0] for one in requirements()]
    assert {"ray[default,rllib]", "ale-py", "pyarrow", "pytest"} <= set(names)
    assert not {"torch", "tensorboard", "imageio-ffmpeg", "ruff"} & set(names)


def test_pieces_larger_than_a_transfer_takes_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["wheels", "--piece-mb", "61"]) == 2
    assert "expected more than 0 and at most 60, got 61" in capsys.readouterr().err


# The environment


def write_wheel(folder: Path) -> Path:
    """A wheel of one module that says 1, in a piece of its own."""
    (folder / "wheels").mkdir(parents=True)
    info = "reverietiny-1.dist-info"
    files = {
        "reverietiny.py": "one = 1\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: reverietiny\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "wheels" / "reverietiny-1-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    split(folder, 10**6, HERE, ["reverietiny"])
    return folder


def test_the_environment_has_the_wheels_this_checkout_and_the_machines_torch(
    tmp_path: Path,
) -> None:
    folder = write_wheel(tmp_path / "gpu")
    python = install(folder)
    code = "import reverietiny, mbrl, importlib.util as u; "
    code += "print(mbrl.__file__, u.find_spec('torch').origin)"
    done = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / "mbrl" / "__init__.py"), torch.__file__]
    made = (folder / "venv" / "installed").stat().st_mtime_ns
    (folder / "pieces" / "000").unlink()  # not looked at again
    assert install(folder) == python
    assert (folder / "venv" / "installed").stat().st_mtime_ns == made


def test_wheels_for_another_python_are_refused_with_both_ways_out(packed: Path) -> None:
    path = packed / "manifest.json"
    path.write_text(path.read_text().replace(f'"{HERE}"', '"3.99"'))
    with pytest.raises(StudyError, match=r"PYTHON=python3\.99.*--python-version " + HERE):
        install(packed)


# The device


def test_without_a_gpu_the_check_says_why_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["device", "--device", "cuda"])
    for cuda, listed, said in (
        (None, None, "was built without CUDA"),
        ("13.0", None, "nvidia-smi finds no driver or no card"),
        ("13.0", "NVIDIA H100, 580.1", "nvidia-smi lists NVIDIA H100, 580.1, torch"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(device, "driver", lambda listed=listed: listed)
        assert device.main() == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line and "rehearse without one: GPU_STUDY_ARGS='--device cpu'" in line


def test_a_device_is_looked_at_by_a_product_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    found = device.look(torch.device("cpu"))
    assert 0 < found["matmul_error"] < 0.02 and found["matmul_tflops"] > 0
    monkeypatch.setattr(device, "product_error", lambda where: 0.5)
    with pytest.raises(ConfigError, match="got an error of 50%"):
        device.look(torch.device("cpu"))


# The runs

RUN = """#!{python}
import json, pathlib, signal, sys, time
settings = dict(pair.split("=", 1) for pair in sys.argv[5:])
folder, end = pathlib.Path(settings["run.dir"]), int(settings["env_steps"])
if settings.get("fails"):
    sys.exit("boom")
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").touch()
saved = sorted((folder / "checkpoints").glob("*"))
steps, stop = int(saved[-1].name) if saved else 0, []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
while steps < end and (not stop or settings.get("deaf")):
    time.sleep(0.02)
    steps += 1
    line = {{"env_steps": steps, "wall_time_s": steps / 10, "kind": "eval", "eval/mean": 2.0}}
    with (folder / "metrics.jsonl").open("a") as out:
        out.write(json.dumps(line) + "\\n")
(folder / "checkpoints" / f"{{steps:09d}}").mkdir(parents=True)
if steps == end:
    (folder / "result.json").write_text(json.dumps({{"env_steps": steps, "eval": {{"mean": 2.0}}}}))
"""
"""Stands for `mbrl train`: slow steps, a checkpoint when asked to stop, a result at the end."""


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "LOOK_S", 0.02)
    path = tmp_path / "interpreter"
    path.write_text(RUN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def call(
    interpreter: Path, seconds: float, env_steps: int, stop_s: float = 0.0, **settings: str
) -> tuple[Study, Callable[[], dict[str, Any]]]:
    """A study of two games in the test's folder, and what its summary then says."""
    folder = interpreter.parent
    made = games(interpreter, folder / "runs", ["boxing", "pong"], "cuda", env_steps, [])
    made[1].settings.extend(f"{name}={value}" for name, value in settings.items())
    one = Study(
        games=made,
        out=folder / "out",
        about={"commit": "abc"},
        environment=dict(os.environ),
        began=time.monotonic(),
        minutes=seconds / 60,
        stop_s=stop_s,
        say=lambda line: None,
    )
    return one, lambda: json.loads((folder / "out" / "summary.json").read_text())


def test_a_call_stops_in_time_and_the_next_one_goes_on_to_the_end(interpreter: Path) -> None:
    first, summary = call(interpreter, 8.0, 100, stop_s=7.0)
    assert first.run() is False and first.left_s > 5
    found = summary()
    assert found["commit"] == "abc"
    stopped = found["games"]["pong"]
    assert stopped["state"] == "stopped" and 0 < stopped["checkpoint"] < 100
    assert stopped["steps_per_s"] == 10.0 and stopped["final"] is None
    second, summary = call(interpreter, 60.0, 100)
    assert second.run() is True
    finished = summary()["games"]["pong"]
    assert finished["state"] == "finished" and finished["final"] == {"mean": 2.0}
    steps = [point[0] for point in finished["curve"]]
    assert steps == list(range(1, 101))  # went on, began nothing again
    out = interpreter.parent / "out"
    assert sorted(str(one.relative_to(out)) for one in out.rglob("*.json*")) == [
        *("boxing/metrics.jsonl", "boxing/result.json"),
        *("pong/metrics.jsonl", "pong/result.json"),
        "summary.json",
    ]
    third, summary = call(interpreter, 60.0, 100)
    assert third.run() is True and third.games[0].process is None


def test_a_run_that_fails_is_told_and_does_not_stop_the_others(interpreter: Path) -> None:
    one, summary = call(interpreter, 60.0, 10, fails="1")
    with pytest.raises(StudyError, match=r"pong: exit code 1: boom .*the same command goes on"):
        one.run()
    found = summary()["games"]
    assert found["boxing"]["state"] == "finished" and found["pong"]["state"] == "failed"


def test_a_run_that_does_not_stop_is_ended_before_the_call_is_over(
    interpreter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "KILL_S", 1.0)
    one, summary = call(interpreter, 3.0, 10**6, stop_s=2.0, deaf="1")
    said: list[str] = []
    one.say = said.append
    assert one.run() is False and one.left_s > 0
    assert "pong: ended before it stopped; goes on from 0" in said
    stopped = {name: game["checkpoint"] > 0 for name, game in summary()["games"].items()}
    assert stopped == {"boxing": True, "pong": False}


def test_a_call_without_time_to_train_starts_nothing(interpreter: Path) -> None:
    one, _ = call(interpreter, 30.0, 10, stop_s=60.0)
    with pytest.raises(StudyError, match="expected time to train before the runs are asked"):
        one.run()
    assert not (interpreter.parent / "runs").exists()


def test_the_settings_of_all_games_are_valid_and_name_no_folder_of_the_machine() -> None:
    for where in ("cuda", "cpu"):
        for game in games(Path("python"), ROOT / "runs" / "gpu", list(study.GAMES), where, 512, []):
            if where == "cuda":
                game.settings[-1] = "env_steps=100000"
            config = load(ROOT / CONFIG, game.settings)
            assert config.env.id == study.GAMES[game.name] and config.device == where
            assert "run.dir=runs/gpu/" in " ".join(game.settings)
    with pytest.raises(StudyError, match="expected games among boxing, pong, breakout, got tennis"):
        games(Path("python"), ROOT, ["tennis"], "cuda", 1, [])


# The pace

SPEED = {"train_ratio": 100.0, "dream_ratio": 500.0, "rows_per_s": 1000.0, "imagined_per_s": 1e4}


def test_ratios_shrink_together_until_the_slowest_run_ends_in_time() -> None:
    # a step takes 0.1 + 0.05 s; 0.75 of 2 minutes leave 0.09 s for each of 1,000
    chosen = {"learn_model.train_ratio": 60.0, "learn_policy.dream_ratio": 300.0}
    fast = {**SPEED, "rows_per_s": 1e6}
    assert pace.fitting([fast, SPEED], 1000, 2) == chosen
    much = {"learn_model.train_ratio": 200.0, "learn_policy.dream_ratio": 1000.0}
    assert pace.fitting([SPEED], 1000, 1000) == much
    little = {"learn_model.train_ratio": 6.2, "learn_policy.dream_ratio": 31.0}
    assert pace.fitting([SPEED], 10**6, 1) == little


def test_ratios_are_chosen_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "side_by_side", lambda *_: [SPEED])

    def settle(minutes: float) -> list[str]:
        [game] = games(Path("python"), tmp_path, ["pong"], "cuda", 1000, [])
        pace.settle(tmp_path / "pace.json", Path("python"), [game], {}, minutes)
        return game.settings[5:]

    assert settle(0) == []
    chosen = ["learn_model.train_ratio=60", "learn_policy.dream_ratio=300"]
    assert settle(2) == chosen
    assert settle(0) == settle(1000) == chosen
    (tmp_path / "pace.json").unlink()
    (tmp_path / "pong").mkdir()
    (tmp_path / "pong" / "config.yaml").touch()
    with pytest.raises(StudyError, match="pong has begun with the config's"):
        settle(2)


# All of it


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_study_goes_through_on_a_cpu(tmp_path: Path) -> None:
    folder = write_wheel(tmp_path / "gpu")
    command = [sys.executable, "-m", "deploy.gpu_study", "run", "--device", "cpu"]
    command += ["--games", "breakout", "--env-steps", "256", "--minutes", "4"]
    command += ["--folder", folder, "--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["games"]["breakout"]["state"] == "finished"
    assert {"command", "commit", "machine"} <= summary.keys()
    assert (tmp_path / "out" / "breakout" / "result.json").exists()
