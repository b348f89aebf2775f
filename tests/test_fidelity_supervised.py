"""The arm that is given the labels: it learns them, and is left out where there are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity_trials import GAME, make_trial

from mbrl.__main__ import main
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.report import write_report
from mbrl.studies.fidelity.study import STUDY, Fidelity
from mbrl.studies.fidelity.supervised import LabelReader, SupervisedTraining, supervised_report
from mbrl.studies.fidelity.tables import tables
from mbrl.studies.fidelity.train import run
from mbrl.studies.fidelity.trial import Trial
from mbrl.studies.results import look_up, read_trials
from mbrl.world_model.settings import NormalisedSettings

SETTINGS = NormalisedSettings(channels=(4, 4), hidden=16)


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
    nothing = np.zeros(rows)
    flags = {"terminated": nothing.astype(bool), "is_first": nothing.astype(bool)}
    reward = nothing.astype(np.float32)
    return Frames(obs=obs, prev_action=nothing.astype(int), reward=reward, ram=ram, **flags)


def test_what_a_frame_shows_is_learnt_and_scored_on_other_frames(tmp_path: Path) -> None:
    train, held_out = lights(400, seed=0), lights(200, seed=1)
    trial = supervised(tmp_path)
    with SupervisedTraining(trial, GAMES["pong"], SETTINGS, train) as training:
        assert training.reader.names == ("ball_x",)  # the only byte that varies
        assert [list(values) for values in training.reader.classes] == [[7, 50, 90, 200]]
        before = supervised_report(training.reader, GAMES["pong"], train, held_out)
        for _ in range(8):
            training.learn()
        after = supervised_report(training.reader, GAMES["pong"], train, held_out)
    assert before["probe_f1"]["mean"] < 0.7
    assert set(after["probe_f1"].values()) == {1.0} and "ball_x" in after["probe_f1"]
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


def test_its_result_stands_in_the_tables_beside_the_probes_of_codes(tmp_path: Path) -> None:
    trial = supervised(tmp_path / "out")
    assert run(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] > 0 and result["rows"] == 64 * result["updates"]
    assert set(result["measures"]) == {"probe_f1", "supervised", "rows"}
    assert run(trial) is True  # and nothing is left to do
    summary = STUDY.aggregate(GAME.name, trial.results)
    f1 = look_up(summary["arms"]["supervised"], "probe_f1/mean")
    assert f1 is not None
    assert "train_ms_per_frame" not in summary["arms"]["supervised"]  # a cost of world models
    shown = tables(summary)
    assert set(shown) == {"variants", "variables"}
    _, rows = shown["variables"]
    assert rows.rows[0][0] == "labels given" and rows.rows[0][-1] == f"{f1['mean']:.2f}"
    page = write_report(
        trial.out, summary, read_trials(Trial, GAME.name, trial.results)
    ).read_text()
    assert "labels given" in page


@pytest.mark.parametrize(
    ("game", "words", "there"),
    [("car_racing", (), False), ("pong", ("learn_model.lr=0.1",), False), ("pong", (), True)],
)
def test_of_all_arms_it_is_left_out_where_it_cannot_be(
    game: str,
    words: tuple[str, ...],
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mbrl.studies.study.run_all", lambda *_: [])
    monkeypatch.setattr(Fidelity, "prepare", lambda *_: None)
    monkeypatch.setattr("mbrl.studies.study.child", lambda trial: asked.append(trial.arm))
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "fidelity", game, *words, "--arms", "all", *folders]) == 0
    assert "pixelcnn" in asked and ("supervised" in asked) == there
