"""Results that are there already are kept, gone on with, or refused; they are never mixed up."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fidelity_trials import GAME, TINY, make_trial, write_trial

from mbrl.errors import ConfigError
from mbrl.run import provenance
from mbrl.studies.fidelity.results import aggregate
from mbrl.studies.fidelity.trials import MEASURES, changed_settings, is_done, refuse_others
from mbrl.studies.training import BudgetedTraining


def test_a_result_of_the_same_settings_and_budget_is_kept(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    write_trial(trial)
    refuse_others([trial], GAME.env)
    assert is_done(trial)


def test_a_result_of_older_measures_is_not_done_and_in_no_table(tmp_path: Path) -> None:
    trial, new = make_trial(tmp_path), make_trial(tmp_path, arm="deconv_mse")
    write_trial(trial, {"ball_recall": 1.0}, measures_version=MEASURES - 1)
    write_trial(new, {"ball_recall": 0.5})
    refuse_others([trial], GAME.env)
    assert not is_done(trial) and is_done(new)
    assert list(aggregate(GAME.name, tmp_path / "results")["arms"]) == ["deconv_mse"]
    result = json.loads(trial.result_path.read_text())
    del result["measures_version"]  # as the first version wrote it
    trial.result_path.write_text(json.dumps(result))
    assert not is_done(trial)


def test_a_result_of_a_smaller_budget_goes_on(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, minutes=1.0))
    longer = make_trial(tmp_path, minutes=2.0)
    refuse_others([longer], GAME.env)
    assert not is_done(longer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minutes": 0.001}, "minutes: 0.005 became 0.001"),
        ({"steps": 900}, "steps: 800 became 900"),
        ({"quick": False}, "quick: True became False"),
        ({"overrides": (*TINY, "learn_model.lr=0.5")}, r"learn_model.lr: 0.\d+ became 0.5"),
    ],
)
def test_a_result_of_other_settings_is_refused_unless_forced(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_trial(make_trial(tmp_path))
    other = make_trial(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"{said}.*--force"):
        refuse_others([other], GAME.env)
    refuse_others([other], GAME.env, force=True)
    assert not other.result_path.exists()


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.run_dir.mkdir(parents=True)
    changed = {**trial.settings(GAME.env), "steps": 5}
    (trial.run_dir / "settings.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="steps: 5 became 800"):
        refuse_others([trial], GAME.env)


class Counting(BudgetedTraining):
    """An update takes a CPU minute and learns nothing."""

    updates = 0

    def _update(self) -> dict[str, float]:
        raise AssertionError("nothing is to be learnt here")

    def _state(self) -> dict[str, Any]:
        return {}

    def _begin(self, state: Any) -> None:
        pass

    def _in_words(self, metrics: Any) -> str:
        return ""


def stopped(tmp_path: Path, minutes: float, after: float) -> None:
    """A run of so many minutes, stopped after fewer of them or none."""
    with Counting(make_trial(tmp_path, minutes=minutes), env_steps=800, group="x") as run:
        run.cpu_s = 60 * after
        run._save()


def test_a_run_that_was_stopped_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path, minutes=3.0, after=2.0)
    with pytest.raises(
        ConfigError, match=r"of 2 CPU minutes at most, got one stopped after 2 of 3"
    ):
        Counting(make_trial(tmp_path, minutes=2.0), env_steps=800, group="x")
    for minutes in (2.1, 3.0, 4.0):
        Counting(make_trial(tmp_path, minutes=minutes), env_steps=800, group="x").log.close()


def test_a_budget_that_an_update_went_beyond_is_used_up_and_no_other_one(tmp_path: Path) -> None:
    stopped(tmp_path, minutes=2.0, after=2.1)
    with Counting(make_trial(tmp_path, minutes=2.0), env_steps=800, group="x") as run:
        assert run.go_on()


class Waiting(Counting):
    """An update waits for a twentieth of a second."""

    def _update(self) -> dict[str, float]:
        time.sleep(0.05)
        self.updates += 1
        return {}


@pytest.mark.parametrize(("device", "least", "most"), [("cpu", 0.0, 0.04), ("meta", 0.1, 5.0)])
def test_waiting_counts_on_a_card_and_not_on_a_cpu(
    tmp_path: Path, device: str, least: float, most: float
) -> None:
    trial = make_trial(tmp_path, minutes=1.0, updates=2)
    with Waiting(trial, env_steps=800, group="x", device=torch.device(device)) as run:
        assert run.go_on()
    assert run.updates == 2
    assert least <= run.cpu_s < most


def test_a_run_that_was_trained_elsewhere_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "machine", lambda device: {"card": "a card"})
    trial = make_trial(tmp_path, minutes=1.0, updates=1)
    with Waiting(trial, env_steps=800, group="x") as run:
        run.go_on()
        assert "trained_here" not in run.spent()
    monkeypatch.undo()
    with Waiting(trial, env_steps=800, group="x") as run:
        spent = run.spent()
        run._learn()
        assert "trained_here" not in run.spent()
    assert spent["trained_here"] is False
    assert spent["machine"] != {"card": "a card"} == spent["other_machines"][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_its_card_a_run_is_measured_but_does_not_go_on(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, minutes=1.0, updates=2, device="cuda")
    with Waiting(trial, env_steps=800, group="x") as run:
        with pytest.raises(ConfigError, match="that PyTorch finds, got cuda; it finds no GPU here"):
            run.go_on()
        run.updates = 2
        assert run.go_on()


def test_a_result_of_a_core_is_not_gone_on_with_on_a_card(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path))
    with pytest.raises(ConfigError, match="device: None became cuda"):
        refuse_others([make_trial(tmp_path, device="cuda:1")], GAME.env)
    write_trial(make_trial(tmp_path, seed=1, device="cuda"))
    refuse_others([make_trial(tmp_path, seed=1, device="cuda:1")], GAME.env)
    with pytest.raises(ConfigError, match="device: cuda became None"):
        refuse_others([make_trial(tmp_path, seed=1)], GAME.env)


def test_a_setting_that_did_not_exist_counts_with_its_default(tmp_path: Path) -> None:
    new = make_trial(tmp_path).settings(GAME.env)
    old = json.loads(json.dumps(new))
    del old["world_model"]["kl"]["free_nats"]
    assert changed_settings(old, new) == []
    old["world_model"]["gone"] = 1
    assert changed_settings(old, new) != []


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.result_path.parent.mkdir(parents=True)
    trial.result_path.write_text("{}")
    with pytest.raises(ConfigError, match=r"pixelcnn-0\.json: expected the result of a trial"):
        refuse_others([trial], GAME.env)
