"""Arms are settings alone, and trials come in the order in which they are worth most."""

from pathlib import Path

import pytest
from fidelity_trials import GAME, STEPS, make_trial

from mbrl.studies.fidelity.arms import ARMS, REFERENCE, SWEEP, choose
from mbrl.studies.fidelity.trials import (
    plan,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_config(arm: str, tmp_path: Path) -> None:
    config = make_trial(tmp_path, arm=arm, overrides=()).config(GAME.env)
    assert (config.env, config.env_steps, config.seed) == (GAME.env, STEPS, 0)


def test_main_arms_are_the_four_of_the_claim_and_the_one_that_ships() -> None:
    assert choose("main") == [
        *("world_models", "deconv_categorical", "pixelcnn", "pixelcnn_stagewise", "pixelcnn_past")
    ]
    assert choose("all") == list(ARMS)
    assert {(ARMS[name].seeds, ARMS[name].minutes) for name in choose("main")} == {(3, 30.0)}
    others = {name: arm for name, arm in ARMS.items() if not arm.main}
    beside_a_main_arm = {name for name, arm in others.items() if arm.minutes == 30.0}
    assert {(a.seeds, a.minutes) for a in others.values()} == {(1, 15.0), (1, 30.0)}
    assert beside_a_main_arm == {
        *("deconv_past", "pixelcnn_past_long", "world_models_norm", "pixelcnn_stagewise_free")
    }


def test_an_arm_has_the_world_model_of_the_atari_configs_and_learns_as_they_do(
    tmp_path: Path,
) -> None:
    from mbrl.config.schema import load

    arm = make_trial(tmp_path, arm="pixelcnn_past_long", overrides=()).config(GAME.env)
    atari = load(ROOT / "configs" / "atari.yaml")
    assert arm.world_model == atari.world_model
    assert arm.learn_model == atari.learn_model.model_copy(update={"max_starts": 1})


def test_the_sweep_varies_layers_alone(tmp_path: Path) -> None:
    configs = [make_trial(tmp_path, arm=arm, overrides=()).config(GAME.env) for arm in SWEEP]
    assert [config.world_model.decoder.layers for config in configs] == [1, 2, 3, 5, 8]
    rest = {c.world_model.decoder.model_copy(update={"layers": 0}) for c in configs}
    assert len(rest) == 1


def test_the_reference_of_the_variants_has_the_settings_of_the_main_arm(tmp_path: Path) -> None:
    reference, main_arm = (
        make_trial(tmp_path, arm=arm, overrides=()).settings(GAME.env)
        for arm in (REFERENCE, "pixelcnn")
    )
    assert reference == main_arm
    assert (ARMS[REFERENCE].seeds, ARMS[REFERENCE].minutes) == (1, 15.0)


def test_the_world_models_arm_is_that_of_the_shipped_config(tmp_path: Path) -> None:
    from mbrl.config.schema import load

    shipped = load(ROOT / "configs" / "world_models_2018.yaml").world_model
    config = make_trial(tmp_path, arm="world_models", overrides=()).config(GAME.env)
    arm = config.world_model
    assert config.learn_model.lr == load(ROOT / "configs" / "world_models_2018.yaml").learn_model.lr
    assert (arm.encoder.kind, arm.joint) == (shipped.encoder.kind, shipped.joint)
    assert (arm.code, arm.kl) == (shipped.code, shipped.kl)
    assert arm.decoder.kind == shipped.decoder.kind == "world_models"


def test_every_main_arm_has_its_first_seed_before_any_has_a_second(tmp_path: Path) -> None:
    trials = plan(
        "pong",
        ["pixelcnn_1", "pixelcnn", "world_models"],
        seeds=None,
        minutes=None,
        steps=1000,
        overrides=(),
        out=tmp_path,
        results=tmp_path,
    )
    assert [trial.name for trial in trials] == [
        *("pixelcnn-0", "world_models-0", "pixelcnn-1", "world_models-1"),
        *("pixelcnn-2", "world_models-2", "pixelcnn_1-0"),
    ]
    assert [trial.minutes for trial in trials] == [30.0] * 6 + [15.0]


# Numbers
