"""The arm that is given the labels: it learns them, resumes, and is refused without any."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity_trials import GAME, STEPS, make_trial

from mbrl.__main__ import main
from mbrl.studies.fidelity.frames import Frames, collect_frames, load_frames
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.report import write_report
from mbrl.studies.fidelity.results import aggregate, look_up, read_trials
from mbrl.studies.fidelity.supervised import LabelReader, SupervisedTraining, supervised_report
from mbrl.studies.fidelity.tables import tables
from mbrl.studies.fidelity.trial import FRAMES_SEED, run
from mbrl.studies.fidelity.trials import Trial
from mbrl.world_model.settings import NormalisedSettings

SETTINGS = NormalisedSettings(channels=(4, 4), hidden=16)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frames, Frames]:
    folder = tmp_path_factory.mktemp("supervised") / "frames"
    train, held_out = collect_frames(GAME, folder, STEPS, 1000, FRAMES_SEED)
    return load_frames(train), load_frames(held_out)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arms that a study would make, which it then takes for done."""
    arms: list[str] = []
    monkeypatch.setattr("mbrl.studies.fidelity.study.run_all", lambda *_: [])
    monkeypatch.setattr(
        "mbrl.studies.fidelity.study.refuse_others",
        lambda trials, *_: arms.extend(trial.arm for trial in trials),
    )
    monkeypatch.setattr("mbrl.studies.fidelity.study.is_done", lambda _: True)
    return arms


def supervised(out: Path, **changes: object) -> Trial:
    return make_trial(out, arm="supervised", overrides=(), **changes)


def lights(rows: int, seed: int) -> Frames:
    """Frames of 16 x 16 in which one of four corners is lit, and a memory that says which."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(4, size=rows)
    obs = rng.integers(20, size=(rows, 16, 16, 1)).astype(np.uint8)
    for row, where in enumerate(corner):
        top, left = 8 * (where // 2), 8 * (where % 2)
        obs[row, top : top + 8, left : left + 8] += 150
    ram = np.zeros((rows, 128), np.uint8)
    ram[:, GAMES["pong"].variables["ball_x"].index] = np.array([7, 50, 90, 200])[corner]
    zeros = np.zeros(rows)
    return Frames(
        obs=obs,
        prev_action=zeros.astype(np.int64),
        reward=zeros.astype(np.float32),
        terminated=zeros.astype(bool),
        is_first=zeros.astype(bool),
        ram=ram,
    )


def test_what_a_frame_shows_is_learnt_and_scored_on_other_frames(tmp_path: Path) -> None:
    train, held_out = lights(400, seed=0), lights(200, seed=1)
    trial = supervised(tmp_path)
    with SupervisedTraining(trial, GAMES["pong"], SETTINGS, train) as training:
        assert training.reader.names == ("ball_x",)  # the only byte that varies
        assert [list(values) for values in training.reader.classes] == [[7, 50, 90, 200]]
        before = supervised_report(training.reader, GAMES["pong"], train, held_out)
        for _ in range(8):
            training._update()
        after = supervised_report(training.reader, GAMES["pong"], train, held_out)
    assert before["probe_f1"]["mean"] < 0.7
    assert after["probe_f1"] == pytest.approx(
        {
            "ball_x": 1.0,
            "small_object_localization": 1.0,
            "mean": 1.0,
            "across_categories": 1.0,
        }
    )
    assert after["supervised"]["accuracy"]["ball_x"] == 1.0
    assert training.updates == 8 * 16 and training.rows == 8 * 16 * 64


def test_frames_that_were_learnt_from_are_not_scored(tmp_path: Path) -> None:
    train, held_out = lights(50, seed=0), lights(30, seed=1)
    held_out.obs[:10] = train.obs[5:15]
    with SupervisedTraining(supervised(tmp_path), GAMES["pong"], SETTINGS, train) as training:
        report = supervised_report(training.reader, GAMES["pong"], train, held_out)
    assert report["rows"] == {"test": 20.0, "copies_dropped": 10.0}


def test_scoring_leaves_the_running_mean_of_frames_alone() -> None:
    reader = LabelReader((1, 16, 16), SETTINGS, ("a",), [np.array([3, 9])])
    reader(torch.full((2, 16, 16, 1), 255, dtype=torch.uint8))
    assert reader.encoder.mean_frame is not None
    seen = reader.encoder.mean_frame.mean.clone()
    assert torch.equal(seen, torch.ones(1, 16, 16))
    found = reader.guesses(np.zeros((5, 16, 16, 1), np.uint8))
    assert found.shape == (5, 1) and set(found.flat) <= {3, 9}
    assert torch.equal(reader.encoder.mean_frame.mean, seen) and reader.training


def test_a_resumed_run_equals_one_that_never_stopped(
    tmp_path: Path, frames: tuple[Frames, Frames]
) -> None:
    train, _ = frames
    with SupervisedTraining(supervised(tmp_path / "whole"), GAME, SETTINGS, train) as whole:
        whole._learn()
        whole._learn()
    with SupervisedTraining(supervised(tmp_path / "half"), GAME, SETTINGS, train) as half:
        half._learn()
        half._save()
    with SupervisedTraining(supervised(tmp_path / "half"), GAME, SETTINGS, train) as again:
        assert again.updates == half.updates == 16
        again._learn()
    assert again.updates == whole.updates == 32
    wanted = whole.reader.state_dict()
    for name, value in again.reader.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_its_result_stands_in_the_tables_beside_the_probes_of_codes(
    tmp_path: Path, frames: tuple[Frames, Frames]
) -> None:
    trial = supervised(tmp_path / "out")
    assert run(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["command"].startswith("mbrl bench fidelity synthetic_pong")
    assert result["updates"] > 0 and result["rows"] == 64 * result["updates"]
    assert set(result["measures"]) == {"probe_f1", "supervised", "rows"}
    assert run(trial) is True  # and nothing is left to do
    summary = aggregate(GAME.name, trial.results)
    f1 = look_up(summary["arms"]["supervised"], "probe_f1/mean")
    assert f1 is not None
    shown = tables(summary)
    assert set(shown) == {"variants", "variables"}
    _, rows = shown["variables"]
    probed = result["measures"]["probe_f1"]
    names = [name.replace("_", " ") for name in GAME.variables if name in probed]
    assert len(names) > 3 and rows.head[3:] == [*names, "mean"]
    assert rows.rows[0][0] == "labels given" and rows.rows[0][-1] == f"{f1['mean']:.2f}"
    page = write_report(trial.out, summary, read_trials(GAME.name, trial.results)).read_text()
    assert "labels given" in page


def test_a_game_without_labels_has_no_such_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "fidelity", "car_racing", "--arms", "supervised", *folders]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mbrl: ") and "expected a game with labels, got car_racing" in said
    assert not (tmp_path / "out").exists() and not asked
    assert main(["bench", "fidelity", "car_racing", "--arms", "all", *folders]) == 0
    assert "pixelcnn" in asked and "supervised" not in asked


@pytest.mark.parametrize("setting", ["learn_model.lr=0.1", "world_model.encoder.deviation=3.0"])
def test_settings_that_it_does_not_have_are_refused_by_name(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "fidelity", "pong", setting, "--arms", "supervised", *folders]) == 2
    said = capsys.readouterr().err
    assert "expected overrides of world_model.encoder.channels, " in said
    assert f"got {setting}" in said


def test_of_all_arms_it_is_left_out_where_settings_change_that_it_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    words = ["--arms", "all", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "r")]
    assert main(["bench", "fidelity", "pong", "learn_model.lr=0.1", *words]) == 0
    assert "pixelcnn" in asked and "supervised" not in asked
    assert "supervised: left out: it has no learn_model.lr" in capsys.readouterr().out
    assert main(["bench", "fidelity", "pong", "world_model.encoder.hidden=64", *words]) == 0
    assert "supervised" in asked
