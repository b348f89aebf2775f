"""The fidelity study: its arms, and what its trials measure."""

import json
from pathlib import Path

import pytest
from fidelity_trials import GAME, STEPS, make_trial

from mbrl.config.schema import load
from mbrl.errors import ConfigError
from mbrl.studies.arms import choose
from mbrl.studies.fidelity.arms import ARMS
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.study import STUDY
from mbrl.studies.fidelity.tables import tables
from mbrl.studies.fidelity.train import run

ROOT = Path(__file__).resolve().parent.parent

# Arms


@pytest.mark.parametrize("arm", choose("all", ARMS))
def test_every_arm_is_a_valid_config(arm: str, tmp_path: Path) -> None:
    config = make_trial(tmp_path, arm=arm, overrides=()).config()
    assert (config.env, config.env_steps, config.seed) == (GAME.env, STEPS, 0)


def test_an_arm_has_the_world_model_of_the_atari_configs_and_learns_as_they_do(
    tmp_path: Path,
) -> None:
    arm = make_trial(tmp_path, arm="pixelcnn_past_long", overrides=()).config()
    atari = load(ROOT / "configs" / "atari.yaml")
    assert arm.world_model == atari.world_model
    assert arm.learn_model == atari.learn_model.model_copy(update={"max_starts": 1})


def test_the_world_models_arm_is_that_of_the_shipped_config(tmp_path: Path) -> None:
    shipped = load(ROOT / "configs" / "world_models_2018.yaml")
    config = make_trial(tmp_path, arm="world_models", overrides=()).config()
    arm, theirs = config.world_model, shipped.world_model
    assert config.learn_model.lr == shipped.learn_model.lr
    assert (arm.encoder.kind, arm.joint) == (theirs.encoder.kind, theirs.joint)
    assert (arm.code, arm.kl) == (theirs.code, theirs.kl)
    assert arm.decoder.kind == theirs.decoder.kind == "world_models"


# One trial


def test_a_game_with_nuisances_is_measured_to_the_end(tmp_path: Path) -> None:
    game = GAMES["synthetic_pong_nuisance"]
    trial = make_trial(tmp_path / "out", game=game.name, steps=2400)
    assert run(trial) is True
    measures = json.loads(trial.result_path.read_text())["measures"]
    assert {"texture_id", "noise_id"} == measures["nuisance"].keys()
    assert measures["nuisance"]["noise_id"]["chance"] == 1 / 8
    shown = tables(STUDY.aggregate(game.name, trial.results))
    assert "texture by luck, at most" in shown["nuisance"][1].head
    assert "R² of the ball's row from z" in shown["nuisance"][1].head


def test_a_texture_that_only_held_out_frames_have_is_refused_before_training(
    tmp_path: Path,
) -> None:
    trial = make_trial(tmp_path, game="synthetic_pong_nuisance", steps=STEPS)
    with pytest.raises(ConfigError, match=r"every texture of the held-out frames.*--steps"):
        run(trial)
    assert not (trial.run_dir / "metrics.jsonl").exists()
