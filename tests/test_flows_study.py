"""The flow study: its arms, and what its trials end with and refuse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_trials import TINY, trial_in, write_images, write_trial

from mbrl.__main__ import main
from mbrl.errors import ConfigError
from mbrl.studies.flows import train as train_module
from mbrl.studies.flows.arms import ARMS
from mbrl.studies.flows.images import load_images
from mbrl.studies.flows.train import Training, run
from mbrl.studies.flows.trial import Trial


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting_and_can_be_trained(arm: str, tmp_path: Path) -> None:
    trial = trial_in(tmp_path, arm=arm)
    with Training(trial, load_images(trial.source)) as one:
        assert math.isfinite(one.learn()["bits_per_dim"])


def test_a_loss_that_is_not_finite_is_a_result_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flow: Any, *_: Any) -> torch.Tensor:
        return math.nan * sum(weight.sum() for weight in flow.parameters())

    monkeypatch.setattr(train_module, "loss_of", broken)
    trial = trial_in(tmp_path)
    assert run(trial) is True and trial.is_done()
    result = json.loads(trial.result_path.read_text())
    assert result["measures"]["diverged"] == 1 and result["measures"]["bits_per_dim"] is None
    assert result["updates"] == 1
    monkeypatch.undo()
    assert run(trial) is True  # and it is not tried again


def test_updates_whose_gradient_is_not_finite_are_left_out_ten_in_a_row_diverge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_in(tmp_path)
    with Training(trial, load_images(trial.source)) as one:
        one.learn()
        before = [weight.clone() for weight in one.flow.parameters()]
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
        for _ in range(9):
            one.learn()
        assert one.skipped == 9 and not one.over
        assert all(map(torch.equal, before, one.flow.parameters()))
        one.learn()
        assert one.diverged and one.over


def test_a_trial_on_changed_images_is_refused_done_or_begun(tmp_path: Path) -> None:
    trial = trial_in(tmp_path)
    assert run(trial) is True
    begun = json.loads((trial.run_dir / "settings.json").read_text())
    assert begun["digest"] == load_images(trial.source).digest
    write_images(tmp_path / "some.npz", seed=1)
    with pytest.raises(ConfigError, match=r"level-0\.json was made with other images called some"):
        run(trial)
    trial.result_path.unlink()
    with pytest.raises(ConfigError, match=r"settings\.json was made with other images"):
        run(trial)
    write_images(tmp_path / "some.npz")  # as they were
    assert run(trial) is True


def command(trial: Trial, *more: str) -> list[str]:
    folders = ["--out", str(trial.out), "--results", str(trial.results)]
    images = ["--images", str(trial.source.path), "--no-costs"]
    return [*trial.command()[1:], *images, *folders, *more]


def test_scales_the_images_do_not_have_and_other_settings_than_those_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(trial_in(tmp_path, overrides=("flow.scales=4",)))) == 2
    assert "expected at most 3 for images of 8 x 8" in capsys.readouterr().err
    write_trial(trial_in(tmp_path, arm="none"), {"bits_per_dim": 1.0})
    other = trial_in(tmp_path, overrides=("train.lr=0.5", *TINY))
    for force in ([], ["--force"]):
        assert main(command(other, *force)) == 2
        said = capsys.readouterr().err
        assert "of the same images and settings" in said and "train.lr: 0.5 became 0.002" in said
    assert trial_in(tmp_path, arm="none").result_path.exists()
