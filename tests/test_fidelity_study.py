"""The fidelity study: trials resume and are skipped, results add up, reports show what there is."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fidelity_trials import GAME, STEPS, TINY, make_trial

from mbrl.__main__ import main
from mbrl.errors import ConfigError
from mbrl.replay import ReplayStore
from mbrl.run import checkpoint, provenance
from mbrl.run.metrics import read_metrics
from mbrl.studies.fidelity import trial as trial_module
from mbrl.studies.fidelity.arms import SUPERVISED
from mbrl.studies.fidelity.frames import collect_frames
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.measure import Sizes
from mbrl.studies.fidelity.pictures import Pictures
from mbrl.studies.fidelity.results import aggregate, look_up
from mbrl.studies.fidelity.study import study
from mbrl.studies.fidelity.tables import tables
from mbrl.studies.fidelity.trial import QUICK, Training, run
from mbrl.studies.fidelity.trials import (
    MEASURES,
    Trial,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fidelity") / "frames"
    collect_frames(GAME, folder, STEPS, 1000, trial_module.FRAMES_SEED)
    return folder


@pytest.fixture
def out(tmp_path: Path, frames: Path) -> Path:
    shutil.copytree(frames, tmp_path / "out" / "frames")
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """One thread, and afterwards threads and signals as they were."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


def training(trial: Trial) -> Training:
    store = ReplayStore(trial.frames_dir / "train", GAME.env.name)
    return Training(trial, GAME, trial.config(GAME.env), store)


# The command


@pytest.mark.timeout(400)
def test_the_command_trains_measures_and_reports_and_then_has_nothing_left_to_do(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = out / "results"
    words = ["bench", "fidelity", GAME.name, *TINY, "--arms", "pixelcnn", "--quick"]
    words += ["--seeds", "1", "--minutes", "0.005", "--steps", str(STEPS)]
    words += ["--out", str(out), "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "mbrl", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((results / GAME.name / "pixelcnn-0.json").read_text())
    assert {"command", "commit", "machine", "seed", "settings", "curve"} <= result.keys()
    assert result["cpu_s"] >= 0.3
    assert result["rows"] == result["updates"] * 2 * 4
    assert result["command"].startswith("mbrl bench fidelity synthetic_pong world_model.hidden=16")
    assert result["command"].endswith("--quick")
    assert str(out.parent) not in result["command"]
    assert 0 <= result["measures"]["ball_recall"] <= 1
    assert result["curve"]["cpu_minutes"][-1] == pytest.approx(result["cpu_s"] / 60, abs=2e-3)
    summary = json.loads((results / f"{GAME.name}.json").read_text())
    assert list(summary["arms"]) == ["pixelcnn"]
    assert look_up(summary["arms"]["pixelcnn"], "drift/15/ball_recall") is not None
    page = (out / "report.html").read_text()
    assert "PixelCNN" in page and "not to be quoted" in page
    assert 'src="http' not in page and 'href="http' not in page
    for name in ("samples", "dream_1", "drift", "cost"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    pictures = Pictures.read(out / "pixelcnn-0" / "pictures.npz")
    assert pictures.real.shape == pictures.samples.shape
    assert pictures.strip_real.shape == pictures.strips.shape

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a finished trial was started again")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    monkeypatch.setenv("MBRL_COMMIT", "unknown")
    assert main(words) == 0
    assert "pixelcnn seed 0: done before" in capsys.readouterr().out
    # and with other settings nothing is done at all
    assert main([*words[:4], "world_model.hidden=8", *words[4:]]) == 2
    said = capsys.readouterr().err
    assert "world_model.hidden: 16 became" in said and "--force" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pongg"], "expected a game out of pong, breakout.*did you mean pong?"),
        (["pong", "--arms", "pixelcnn,cnn"], "--arms: expected main, all or distinct names out of"),
        (["pong", "--arms", "pixelcnn,pixelcnn"], "distinct names"),
        (["pong", "env.id=x"], "expected overrides of world_model"),
        (["pong", "world_model.hiden=3"], "did you mean world_model.hidden"),
        (["pong", "--seeds", "0"], "at least one seed"),
        (["pong", "--minutes", "0"], "minutes above 0"),
        (["pong", "--steps", "100"], "800 steps"),
        (["pong", "--jobs", "0"], "at least one job"),
        (["pong", "--updates", "0"], "at least one update"),
        (["pong", "--device", "cuda:99"], "expected one that PyTorch finds, got cuda:99"),
        (["pong", "--device", "gpu"], "got gpu"),
        (["pong", "--device", "auto"], "--device cpu, cuda or cuda:N, got auto"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "fidelity", *words, *folders]) == 2
    error = capsys.readouterr().err.strip()
    first, _, second = said.partition(".*")
    assert error.startswith("mbrl: ") and first in error and second in error
    assert not (tmp_path / "out").exists()


def test_a_failed_trial_is_named_the_others_go_on_and_the_exit_code_is_one(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = out.parent / "started"
    code = f"import sys; open({str(started)!r}, 'a').write('x'); sys.exit('no more memory')"
    monkeypatch.setattr(Trial, "command", [sys.executable, "-c", code])
    words = ["bench", "fidelity", GAME.name, *TINY, "--arms", "pixelcnn,deconv_mse", "--seeds", "2"]
    words += ["--steps", str(STEPS), "--out", str(out), "--results", str(out / "results")]
    assert main(words) == 1
    at_once, said = capsys.readouterr()
    assert at_once.count("failed with exit code 1: no more memory") == 4
    assert "pixelcnn seed 0 failed with exit code 1: no more memory" in said
    assert "deconv_mse seed 1 failed" in said and "the same command goes on" in said
    assert started.read_text() == "xxxx"


def test_each_trial_has_one_core_and_keeps_its_memory(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = out.parent / "told"
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    code = f"import os; open({str(told)!r}, 'w').write(' '.join(os.environ[n] for n in {names}))"
    monkeypatch.setattr(Trial, "command", [sys.executable, "-c", code])
    folders = {"out": out, "results": out / "results"}
    [failed] = study(GAME.name, TINY, arms="pixelcnn", seeds=1, steps=STEPS, **folders)
    assert failed.endswith("was stopped before its end")
    assert told.read_text() == "1 4294967296 8589934592"


# One trial


def test_a_game_with_nuisances_is_measured_to_the_end(tmp_path: Path) -> None:
    game = GAMES["synthetic_pong_nuisance"]
    trial = make_trial(tmp_path / "out", game=game.name, steps=2400)
    assert run(trial) is True
    measures = json.loads(trial.result_path.read_text())["measures"]
    assert {"texture_id", "noise_id"} == measures["nuisance"].keys()
    assert measures["nuisance"]["noise_id"]["chance"] == 1 / 8
    shown = tables(aggregate(game.name, trial.results))
    assert "texture by luck, at most" in shown["nuisance"][1].head
    assert "R² of the ball's row from z" in shown["nuisance"][1].head


def test_a_texture_that_only_held_out_frames_have_is_refused_before_training(
    tmp_path: Path,
) -> None:
    trial = make_trial(tmp_path, game="synthetic_pong_nuisance", steps=STEPS)
    with pytest.raises(ConfigError, match=r"every texture of the held-out frames.*--steps"):
        run(trial)
    assert not (trial.run_dir / "metrics.jsonl").exists()


def test_a_stopped_trial_goes_on_from_its_checkpoint(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Training._learn

    def learn_and_be_told_to_stop(training: Training) -> dict[str, float]:
        metrics = learn(training)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Training, "_learn", learn_and_be_told_to_stop)
    assert run(make_trial(out, minutes=10.0)) is False
    monkeypatch.undo()
    before = read_metrics(out / "pixelcnn-0")[-1]
    assert not (out / "results" / GAME.name / "pixelcnn-0.json").exists()
    trial = make_trial(out, minutes=before["study/cpu_s"] / 60 + 0.005)
    assert run(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] > before["study/updates"]
    assert result["cpu_s"] >= before["study/cpu_s"] + 0.29
    updates = [line["study/updates"] for line in read_metrics(out / "pixelcnn-0", "train")]
    assert updates == sorted(set(updates))
    assert before["study/updates"] in updates


@pytest.mark.parametrize(
    ("arm", "overrides", "ends"), [("pixelcnn", TINY, 8), (SUPERVISED, (), 16)]
)
def test_a_trial_ends_after_its_updates_and_says_so(
    out: Path, arm: str, overrides: tuple[str, ...], ends: int
) -> None:
    trial = make_trial(out, arm=arm, overrides=overrides, minutes=5.0, updates=6)
    assert run(trial)
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] == ends  # 4 or 16 at a time
    assert result["cpu_s"] < 60
    assert result["command"].endswith("--updates 6")
    assert trial.command[-3:] == ["--updates", "6", "--quick"]


def test_a_resumed_trial_equals_one_that_never_stopped(out: Path) -> None:
    with training(make_trial(out, seed=1)) as whole:
        begin = whole.learner.state_dict()
        whole._learn()
        whole._learn()
        wanted = whole.learner.model_state()
    with training(make_trial(out, seed=2)) as half:
        half.learner.load_state_dict(begin)
        half._learn()
        half._save()
    with training(make_trial(out, seed=2)) as again:
        assert (again.cpu_s, again.rows) == (half.cpu_s, half.rows) and again.cpu_s > 0
        again._learn()
        assert again.learner.updates == whole.learner.updates == 8
        for name, value in again.learner.model_state().items():
            assert torch.equal(value, wanted[name]), name


def test_a_trial_names_every_commit_and_machine_it_was_trained_with(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit in ("abc", "abc", "def"):
        machine = {"cpu": "fast" if commit == "abc" else "slow"}
        monkeypatch.setattr(provenance, "commit", lambda commit=commit: commit)
        monkeypatch.setattr(provenance, "machine", lambda _, machine=machine: machine)
        with training(make_trial(out)) as one:
            monkeypatch.setattr(provenance, "commit", lambda: "later")
            one._learn()
            one._save()
        if commit == "abc":
            assert "other_machines" not in one.spent()
    assert one.spent()["commit"] == "abc, def"
    assert one.spent()["other_machines"] == [{"cpu": "fast"}] and one.machines[1]["cpu"] == "slow"
    assert one.spent()["measured_by"] == "def"
    # one that is only measured on a third machine, by other code, was not trained there
    monkeypatch.setattr(provenance, "commit", lambda: "third")
    monkeypatch.setattr(provenance, "machine", lambda _: {"cpu": "third"})
    with training(make_trial(out)) as measured:
        spent = measured.spent()
    assert (spent["commit"], spent["measured_by"]) == ("abc, def", "third")
    assert spent["other_machines"] == [{"cpu": "fast"}, {"cpu": "slow"}]


def test_a_checkpoint_that_does_not_say_who_trained_it_is_unknown_not_this_machine(
    out: Path,
) -> None:
    with training(make_trial(out)) as one:
        one._learn()
        one.commits = one.machines = []
        state = one._state()
        checkpoint.save(one.checkpoints, one.updates, {**state, "cpu_s": 1.0, "rows": 8})
    with training(make_trial(out)) as again:
        spent = again.spent()
    assert spent["commit"] == "unknown" and spent["other_machines"] == [{"cpu": "unknown"}]


def test_lines_beyond_the_checkpoint_are_told_once(out: Path) -> None:
    with training(make_trial(out)) as first:
        first._tell(first._learn())
        first._save()
        first._tell(first._learn())  # and then the process dies
    with training(make_trial(out)):
        pass
    assert [line["study/updates"] for line in read_metrics(out / "pixelcnn-0")] == [4]


def test_a_result_of_older_measures_is_measured_anew_without_training(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(out)
    measured: list[Sizes] = []

    def measure(*arguments: Any) -> dict[str, Any]:
        measured.append(arguments[-1])
        return {"ball_recall": float(len(measured))}

    monkeypatch.setattr(trial_module, "measure", measure)
    monkeypatch.setattr(trial_module, "draw", lambda *_: None)
    assert run(trial) is True
    first = json.loads(trial.result_path.read_text())
    assert first["measures_version"] == MEASURES
    assert measured == [QUICK]
    trial.result_path.write_text(json.dumps({**first, "measures_version": MEASURES - 1}))
    learn = Training._learn

    def no_training(_: Training) -> dict[str, float]:
        raise AssertionError("a finished trial was trained again")

    monkeypatch.setattr(Training, "_learn", no_training)
    assert run(trial) is True
    again = json.loads(trial.result_path.read_text())
    assert again["measures"] == {"ball_recall": 2.0} and again["measures_version"] == MEASURES
    assert (again["updates"], again["cpu_s"]) == (first["updates"], first["cpu_s"])
    assert again["curve"] == first["curve"]
    assert run(trial) is True and len(measured) == 2  # nothing is left to do
    # without its checkpoint it is trained from the beginning
    trial.result_path.write_text(json.dumps({**first, "measures_version": MEASURES - 1}))
    shutil.rmtree(trial.run_dir)
    monkeypatch.setattr(Training, "_learn", learn)
    assert run(trial) is True
    last = json.loads(trial.result_path.read_text())
    assert last["updates"] > 0 and last["measures"] == {"ball_recall": 3.0}
