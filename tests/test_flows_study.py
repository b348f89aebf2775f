"""The flow study: arms are settings, trials resume, and what is there is kept or refused."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_trials import TINY, make_trial, write_images, write_trial

from mbrl.__main__ import main
from mbrl.errors import ConfigError
from mbrl.run.metrics import read_metrics
from mbrl.studies.flows import train as train_module
from mbrl.studies.flows.arms import ARMS, choose
from mbrl.studies.flows.images import Source, load_images
from mbrl.studies.flows.train import Training
from mbrl.studies.flows.trial import parsed, run
from mbrl.studies.flows.trials import is_done, plan, refuse_others

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """One thread, and afterwards threads and signals as they were."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


# The command


def words(path: Path, out: Path, *more: str) -> list[str]:
    line = ["bench", "flow", *TINY, "--images", str(path), "--quick", "--minutes", "0.002"]
    return [*line, "--seeds", "1", "--out", str(out), "--results", str(out / "results"), *more]


@pytest.mark.timeout(400)
def test_the_command_trains_measures_and_reports_and_then_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "out", write_images(tmp_path / "some.npz")
    line = words(path, out, "--arms", "level", "--no-costs")
    done = subprocess.run(
        [sys.executable, "-m", "mbrl", *line],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "results" / "some" / "level-0.json").read_text())
    assert {"command", "commit", "machine", "seed", "settings", "curve"} <= result.keys()
    assert result["command"].startswith("mbrl bench flow flow.scales=2")
    assert str(tmp_path) not in json.dumps(result)
    assert 0 < result["measures"]["bits_per_dim"] < 20
    # a level that no training image has fills 3 millionths of its pixel's distribution, and float32
    # may come back beside it; that seen ones return exactly is shown in test_flow.py
    assert result["measures"]["round_trip"] == pytest.approx(1, abs=0.01)
    assert result["rows"] == 4 * result["updates"]
    summary = json.loads((out / "results" / "some.json").read_text())
    assert summary["about"]["baselines"]["uniform"] == 5
    assert summary["about"]["train"] == 54
    page = (out / "report.html").read_text()
    assert "by level" in page and "not to be quoted" in page
    assert 'src="http' not in page and 'href="http' not in page
    for name in ("samples", "interpolation"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a finished trial was started again")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    monkeypatch.setenv("MBRL_COMMIT", "unknown")
    assert main(line) == 0
    assert "some level seed 0: done before" in capsys.readouterr().out
    # with other settings, or other images of the same name, nothing is done at all
    assert main([*line[:2], "train.lr=0.5", *line[2:]]) == 2
    assert "train.lr: 0.002 became 0.5" in capsys.readouterr().err
    write_images(path, seed=1)
    assert main(line) == 2
    assert "holds results of other images called some" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["pongg"], "expected a game out of pong, breakout.*did you mean pong?"),
        ([], "expected a game, or --images.*neither"),
        (["pong", "breakout"], "expected one game"),
        (["pong", "--arms", "level,glow"], "--arms: expected main, all or distinct names out of"),
        (["pong", "flow.widht=3"], "did you mean flow.width"),
        (["pong", "--seeds", "0"], "at least one seed"),
        (["pong", "--minutes", "0"], "minutes above 0"),
        (["pong", "--jobs", "0"], "at least one job"),
        (["pong", "--bits", "9"], "1 to 8 bits"),
        (["pong", "--size", "0"], "--size: expected at least 1 pixel, got 0"),
        (["--images", "nowhere"], "--images nowhere: expected a folder.*got nothing there"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "flow", *given, *folders]) == 2
    error = capsys.readouterr().err.strip()
    first, _, second = said.partition(".*")
    assert error.startswith("mbrl: ") and first in error and second in error
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_halved_so_often_are_refused(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(source.path or Path(), tmp_path / "out")
    line[line.index("flow.scales=2")] = "flow.scales=4"
    assert main(line) == 2
    assert "expected at most 3 for images of 8 x 8" in capsys.readouterr().err


# Arms


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting_and_can_be_trained(
    arm: str, source: Source, tmp_path: Path
) -> None:
    with Training(make_trial(source, tmp_path, arm=arm), load_images(source)) as one:
        assert math.isfinite(one._learn()["bits_per_dim"])


def test_main_arms_are_the_three_of_the_claim() -> None:
    assert choose("main") == ["none", "level", "level+film+proj"]
    assert {(ARMS[name].seeds, ARMS[name].minutes) for name in choose("main")} == {(3, 20.0)}
    assert {(arm.seeds, arm.minutes) for arm in ARMS.values() if not arm.main} == {(1, 20.0)}


def test_main_arms_differ_in_sharing_alone_at_32_steps(source: Source, tmp_path: Path) -> None:
    flows = [make_trial(source, tmp_path, arm=arm, overrides=()).config() for arm in choose("main")]
    assert [one.flow.sharing for one in flows] == ["none", "level", "level+film+proj"]
    assert {(one.flow.steps, one.flow.scales) for one in flows} == {(32, 3)}
    rest = [one.model_dump() for one in flows]
    for one in rest:
        del one["flow"]["sharing"]
    assert rest[0] == rest[1] == rest[2]


def test_main_arms_come_first_each_with_its_first_seed(source: Source, tmp_path: Path) -> None:
    trials = plan(
        source,
        ["global", "none", "level"],
        seeds=2,
        minutes=None,
        overrides=(),
        out=tmp_path,
        results=tmp_path,
    )
    names = [trial.name for trial in trials]
    assert names == ["none-0", "level-0", "none-1", "level-1", "global-0", "global-1"]


@pytest.mark.parametrize("game", ["pong", None])
def test_a_trial_s_command_names_the_trial(game: str | None, tmp_path: Path) -> None:
    images = Source(game=game, size=32) if game else Source(path=tmp_path / "x.npz", bits=8)
    trial = make_trial(images, tmp_path, arm="level+film", seed=3)
    assert trial.command[1:3] == ["-m", "mbrl.studies.flows.trial"]
    assert parsed("", trial.command[3:]) == trial


# One trial


def test_a_stopped_trial_goes_on_from_its_checkpoint(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Training._learn

    def learn_and_be_told_to_stop(training: Training) -> dict[str, float]:
        metrics = learn(training)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Training, "_learn", learn_and_be_told_to_stop)
    assert run(make_trial(source, tmp_path, minutes=10.0)) is False
    monkeypatch.undo()
    before = read_metrics(tmp_path / "level-0")[-1]
    trial = make_trial(source, tmp_path, minutes=before["study/cpu_s"] / 60 + 0.002)
    assert not trial.result_path.exists() and run(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] > before["study/updates"] == 1
    updates = [line["study/updates"] for line in read_metrics(tmp_path / "level-0", "train")]
    assert updates == sorted(set(updates)) and updates[0] == 1


def test_a_resumed_trial_equals_one_that_never_stopped(source: Source, tmp_path: Path) -> None:
    images = load_images(source)
    with Training(make_trial(source, tmp_path / "a"), images) as whole:
        for _ in range(4):
            whole._learn()
    with Training(make_trial(source, tmp_path / "b"), images) as half:
        half._learn()
        half._learn()
        half._save()
    with Training(make_trial(source, tmp_path / "b"), images) as again:
        assert again.updates == 2 and again.cpu_s == half.cpu_s
        again._learn()
        again._learn()
    wanted = whole.flow.state_dict()
    for name, value in again.flow.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_loss_that_is_not_finite_is_a_result_and_no_crash(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flow: Any, *_: Any) -> torch.Tensor:
        return math.nan * sum(weight.sum() for weight in flow.parameters())

    monkeypatch.setattr(train_module, "loss_of", broken)
    trial = make_trial(source, tmp_path)
    assert run(trial) is True and is_done(trial)
    result = json.loads(trial.result_path.read_text())
    assert result["measures"]["diverged"] == 1 and result["measures"]["bits_per_dim"] is None
    assert result["updates"] == 1
    monkeypatch.undo()
    assert run(trial) is True  # and it is not tried again


def test_updates_whose_gradient_is_not_finite_are_left_out_ten_in_a_row_diverge(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Training(make_trial(source, tmp_path), load_images(source)) as one:
        one._learn()
        before = [weight.clone() for weight in one.flow.parameters()]
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
        for _ in range(9):
            one._learn()
        assert one.skipped == 9 and not one.over
        assert all(map(torch.equal, before, one.flow.parameters()))
        one._learn()
        assert one.diverged and one.over


# What is there already


def test_results_of_the_same_settings_are_kept_and_others_refused(
    source: Source, tmp_path: Path
) -> None:
    trial = make_trial(source, tmp_path)
    write_trial(trial, {"bits_per_dim": 1.0})
    refuse_others([trial])
    assert is_done(trial) and not is_done(make_trial(source, tmp_path, minutes=1.0))
    for changes, said in (
        ({"minutes": 0.001}, "minutes: 0.002 became 0.001"),
        ({"overrides": (*TINY, "flow.width=5")}, "flow.width: 4 became 5"),
        ({"quick": False}, "quick: True became False"),
    ):
        with pytest.raises(ConfigError, match=f"bench flow: .*{said}.*--force"):
            refuse_others([make_trial(source, tmp_path, **changes)])
    refuse_others([make_trial(source, tmp_path, minutes=0.001)], force=True)
    assert not trial.result_path.exists()


def test_a_trial_on_changed_images_is_refused_done_or_begun(source: Source, tmp_path: Path) -> None:
    trial = make_trial(source, tmp_path)
    assert run(trial) is True
    begun = json.loads((trial.run_dir / "settings.json").read_text())
    assert begun["digest"] == load_images(source).digest
    assert source.path is not None
    write_images(source.path, seed=1)
    with pytest.raises(ConfigError, match=r"level-0\.json was made with other images called some"):
        run(trial)
    trial.result_path.unlink()
    with pytest.raises(ConfigError, match=r"settings\.json was made with other images"):
        run(trial)
    write_images(source.path)  # as they were
    assert run(trial) is True


def test_an_arm_with_other_settings_than_those_that_are_there_is_refused(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trial(make_trial(source, tmp_path, arm="none"), {"bits_per_dim": 1.0})
    line = words(source.path or Path(), tmp_path, "--arms", "level", "--no-costs")
    for force in ([], ["--force"]):
        assert main([*line[:2], "train.lr=0.5", *line[2:], *force]) == 2
        said = capsys.readouterr().err
        assert "of the same images and settings" in said and "train.lr: 0.5 became 0.002" in said
    assert make_trial(source, tmp_path, arm="none").result_path.exists()
