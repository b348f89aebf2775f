"""The flow study: its arms, and what its trials end with and refuse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_trials import TINY, make_trial, write_images, write_trial

from mbrl.__main__ import main
from mbrl.errors import ConfigError
from mbrl.studies.flows import train as train_module
from mbrl.studies.flows.arms import ARMS
from mbrl.studies.flows.images import Source, load_images
from mbrl.studies.flows.train import Training, run
from mbrl.studies.flows.trial import Trial


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


# Arms


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting_and_can_be_trained(
    arm: str, source: Source, tmp_path: Path
) -> None:
    with Training(make_trial(source, tmp_path, arm=arm), load_images(source)) as one:
        assert math.isfinite(one.learn()["bits_per_dim"])


# One trial


def test_a_loss_that_is_not_finite_is_a_result_and_no_crash(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flow: Any, *_: Any) -> torch.Tensor:
        return math.nan * sum(weight.sum() for weight in flow.parameters())

    monkeypatch.setattr(train_module, "loss_of", broken)
    trial = make_trial(source, tmp_path)
    assert run(trial) is True and trial.is_done()
    result = json.loads(trial.result_path.read_text())
    assert result["measures"]["diverged"] == 1 and result["measures"]["bits_per_dim"] is None
    assert result["updates"] == 1
    monkeypatch.undo()
    assert run(trial) is True  # and it is not tried again


def test_updates_whose_gradient_is_not_finite_are_left_out_ten_in_a_row_diverge(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Training(make_trial(source, tmp_path), load_images(source)) as one:
        one.learn()
        before = [weight.clone() for weight in one.flow.parameters()]
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
        for _ in range(9):
            one.learn()
        assert one.skipped == 9 and not one.over
        assert all(map(torch.equal, before, one.flow.parameters()))
        one.learn()
        assert one.diverged and one.over


# What is there already


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


def command(trial: Trial, *more: str) -> list[str]:
    folders = ["--out", str(trial.out), "--results", str(trial.results)]
    images = ["--images", str(trial.source.path), "--no-costs"]
    return [*trial.command()[1:], *images, *folders, *more]


def test_images_that_cannot_be_halved_so_often_are_refused(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(make_trial(source, tmp_path, overrides=("flow.scales=4",)))) == 2
    assert "expected at most 3 for images of 8 x 8" in capsys.readouterr().err


def test_an_arm_with_other_settings_than_those_that_are_there_is_refused(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trial(make_trial(source, tmp_path, arm="none"), {"bits_per_dim": 1.0})
    other = make_trial(source, tmp_path, overrides=("train.lr=0.5", *TINY))
    for force in ([], ["--force"]):
        assert main(command(other, *force)) == 2
        said = capsys.readouterr().err
        assert "of the same images and settings" in said and "train.lr: 0.5 became 0.002" in said
    assert make_trial(source, tmp_path, arm="none").result_path.exists()
