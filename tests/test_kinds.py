"""Sections that come in kinds: which keys hold, and what is said of those that do not."""

from pathlib import Path

import pytest

from mbrl.config import file as config_file
from mbrl.config.changes import filled
from mbrl.config.kinds import without_unknown
from mbrl.config.schema import Config, load
from mbrl.errors import ConfigError

ATARI = Path(__file__).resolve().parent.parent / "configs" / "atari_pong.yaml"


def written(folder: Path, decoder: str) -> Path:
    """A config on top of Atari's, whose decoder is a PixelCNN on blocks of 4."""
    path = folder / "mine.yaml"
    path.write_text(f"extends: {ATARI}\nworld_model:\n  decoder: {decoder}\n", encoding="utf-8")
    return path


def test_a_layer_that_changes_the_kind_drops_what_earlier_ones_said_of_others(tmp_path: Path):
    decoder = load(written(tmp_path, "{kind: deconv, hidden: 64}")).world_model.decoder
    assert decoder.model_dump() == {
        **{"kind": "deconv", "levels": 16, "fraction": 0.25, "sees_hidden": True},
        **{"likelihood": "categorical", "channels": 32, "map_products": 16, "hidden": 64},
        "marginal": True,
    }
    encoder = load(ATARI, ["world_model.encoder.kind=world_models"]).world_model.encoder
    assert encoder.model_dump() == {"kind": "world_models"}


@pytest.mark.parametrize(
    ("decoder", "overrides"),
    [
        ("{block: 2, kind: deconv}", []),
        ("{kind: deconv}", ["world_model.decoder.block=2"]),
        ("{}", ["world_model.decoder.block=2", "world_model.decoder.kind=deconv"]),
        ("{}", ["world_model.decoder={block: 2}", "world_model.decoder.kind=deconv"]),
        ("{}", ["world_model={decoder: {block: 2}}", "world_model.decoder.kind=deconv"]),
    ],
    ids=["in one file", "after it", "in one command", "as a section", "in a section"],
)
def test_a_key_that_the_kind_does_not_have_is_refused_and_its_kind_named(
    tmp_path: Path, decoder: str, overrides: list[str]
):
    said = r"decoder.block: unknown setting of kind: deconv; it is one of kind: pixelcnn$"
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path, decoder), overrides)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("decoder.kind=decon", "decoder.kind: expected 'pixelcnn', 'deconv'.*, got 'decon'"),
        ("decoder=flow", "decoder: expected a mapping of settings, got 'flow'"),
        ("decoder.laers=3", r"decoder.laers: unknown setting; did you mean .*decoder.layers\?"),
        ("decoder={kind: flow, flow: {scale: 1}}", r"flow.scale: .*decoder.flow.scales\?"),
        ("decoder={kind: flow, flow: {steps: 1}}", "decoder.flow.steps: expected greater"),
        ("decoder.channels=true", "decoder.channels: expected a number, got true"),
    ],
)
def test_mistakes_inside_a_kind_are_named_by_their_place(override: str, said: str):
    with pytest.raises(ConfigError, match=said):
        load(ATARI, [f"world_model.{override}"])


def test_a_config_of_any_kind_is_read_back_as_it_was_written(tmp_path: Path):
    for kind in ("pixelcnn", "deconv", "flow", "world_models"):
        config = load(ATARI, [f"world_model.decoder.kind={kind}"])
        (tmp_path / "config.yaml").write_text(config_file.dump(config), encoding="utf-8")
        assert load(tmp_path / "config.yaml") == config


def test_an_old_run_that_held_the_keys_of_all_kinds_goes_on():
    config = load(ATARI, ["world_model.decoder.kind=deconv", "world_model.code.kind=gaussian"])
    now = config.model_dump(mode="json")
    old = config.model_dump(mode="json")
    old["world_model"]["decoder"] |= {"layers": 3, "block": 4, "flow": {"scales": 3}}
    old["world_model"]["code"] |= {"classes": 16, "unimix": 0.01}
    assert without_unknown(old, Config) == now and filled(old, Config) == now
    old["world_model"]["decoder"]["sharpness"] = 3  # of no kind
    assert filled(old, Config) != now


def test_from_python_a_new_kind_drops_keys_of_the_old_one_and_nothing_else():
    given = {"hidden": 16}
    settings = {"world_model": given, "world_model.decoder.kind": "deconv"}
    config = load(ATARI, settings)
    assert config_file.change(config, settings).world_model.decoder.kind == "deconv"
    changed = config_file.change(load(ATARI), {"world_model.decoder.kind": "flow"})
    assert changed.world_model.decoder.kind == "flow" and given == {"hidden": 16}


@pytest.mark.parametrize(("key", "said"), [("layerz", "did you mean"), ("auxiliary", "is gone")])
def test_a_new_kind_does_not_hide_what_is_wrong_in_earlier_layers(tmp_path: Path, key, said):
    path = written(tmp_path, f"{{{key}: 3}}")
    with pytest.raises(ConfigError, match=f"decoder.{key}: .*{said}"):
        load(path, ["world_model.decoder.kind=deconv"])


def test_an_old_2018_decoder_held_a_likelihood_that_it_did_not_read():
    old = load(ATARI, ["world_model.decoder.kind=world_models"]).model_dump(mode="json")
    old["world_model"]["decoder"]["likelihood"] = "categorical"
    assert filled(old, Config)["world_model"]["decoder"]["likelihood"] == "mse"
