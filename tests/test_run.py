"""What a run folder remembers of its settings, and when going on with it is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import config, merged

from mbrl.config import file as config_file
from mbrl.config.changes import filled, revive
from mbrl.config.schema import Config, load
from mbrl.errors import ConfigError
from mbrl.run.run import changed_settings
from mbrl.world_model.settings import WorldModelSettings

# config.yaml of a run begun before settings were removed and decoders had settings of their own
BEGUN_LONG_AGO = """
name: old
seed: 0
agent: dream
env: {id: MinAtar/Breakout-v1, factory: null, kwargs: {}, max_episode_steps: null,
  image_size: null, grayscale: null, frame_skip: null, sticky_actions: null, noop_max: null,
  ram: false}
env_steps: 10000
device: auto
run: {dir: null, checkpoint_every_steps: 1000, keep_checkpoints: 2, video: true, wandb: false,
  tensorboard: true, mlflow: false, threads: null, ray_address: null}
collect: {num_collectors: 0, num_envs: 8, steps_per_iteration: 64, prefill_steps: 512,
  fragment_steps: 256, fragment_s: 30.0, max_restarts: 100}
replay: {capacity_steps: 1000000, ring_dir: null, max_disk_gb: null}
world_model:
  encoder: {kind: normalised, channels: [16, 32], hidden: 128, norm: frame, deviation: null,
    subtract_mean: true, pixel_floor: null, subtract_past: false, keep_whole: false}
  code: {kind: categorical, groups: 16, classes: 16, unimix: 0.01}
  hidden: 256
  posterior: frame
  prior_hidden: 128
  decoder: {kind: deconv, likelihood: categorical, levels: null, channels: 16, layers: 2, block: 1,
    embedding: 4, head_units: 32, map_channels: 16, map_products: 0, hidden: 128, fraction: 1.0,
    input_dropout: 0.0, auxiliary: 0.0, loss_floor: 0.0, sampler: fixed_point, marginal: true,
    sees_hidden: true,
    flow: {variant: glow, scales: 3, steps: 8, width: 64, coupling: affine, memory: plain,
      sharing: level+film+proj, marginal: true, dequantisation: uniform, temperature: 0.7}}
  heads: {hidden: 128, reward_bins: 41, reward_limit: 20.0, reward_weight: 1.0,
    continue_weight: 1.0}
  kl: {free_nats: 1.0, soft_free_nats: null, warmup_updates: 0, dynamics: 1.0,
    representation: 0.1}
  joint: true
  bf16: true
"""
NOW = "name: old\nenv: {id: MinAtar/Breakout-v1}\nworld_model: {decoder: {kind: deconv}}\n"


def write(folder: Path, settings: str | dict[str, Any]) -> None:
    text = settings if isinstance(settings, str) else yaml.dump(settings)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    (folder / "metrics.jsonl").write_text("{}\n")  # it has done something


def dumped(folder: Path) -> dict[str, Any]:
    return yaml.safe_load(config_file.dump(config(folder)))


def test_a_setting_that_did_not_exist_yet_had_its_default(tmp_path: Path) -> None:
    tree = dumped(tmp_path)
    del tree["world_model"]["encoder"]["subtract_past"]
    write(tmp_path, tree)
    assert changed_settings(tmp_path, config(tmp_path)) == []
    now = config(tmp_path, world_model={"encoder": {"subtract_past": True}})
    assert changed_settings(tmp_path, now) == [
        "world_model.encoder.subtract_past: False became True"
    ]


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    """What YAML 1.1 takes for a boolean, a date or a text is none of them in ours."""
    env = {"kwargs": {"mode": "on", "day": "2020-01-01", "rate": 1e-5, "code": "012"}}
    made = config(tmp_path, env=env)
    write(tmp_path, config_file.dump(made))
    assert changed_settings(tmp_path, made) == []


def test_an_unknown_setting_of_an_old_run_is_named(tmp_path: Path) -> None:
    tree = dumped(tmp_path)
    tree["world_model"]["encoder"]["sharpness"] = 3
    write(tmp_path, tree)
    said = [one for one in changed_settings(tmp_path, config(tmp_path)) if "sharpness" in one]
    assert said == ["world_model.encoder.sharpness: 3 became None"]
    with pytest.raises(ConfigError, match=r"got others: world_model.encoder.sharpness: Extra"):
        revive(tree, Config)


def test_budget_and_folder_may_change(tmp_path: Path) -> None:
    assert changed_settings(tmp_path, config(tmp_path)) == []  # nothing was made yet
    write(tmp_path, dumped(tmp_path))
    assert changed_settings(tmp_path, config(tmp_path / "elsewhere", env_steps=5000)) == []


def test_an_old_run_goes_on_where_removed_settings_had_no_effect(tmp_path: Path) -> None:
    (tmp_path / "now.yaml").write_text(NOW)
    write(tmp_path, BEGUN_LONG_AGO)
    now = load(tmp_path / "now.yaml")
    assert changed_settings(tmp_path, now) == []
    assert revive(yaml.safe_load(BEGUN_LONG_AGO), Config) == now


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("decoder", "auxiliary", 0.1, "the auxiliary head is gone"),
        ("decoder", "loss_floor", 0.003, "the floor under a pixel's nats is gone"),
        ("decoder", "input_dropout", 0.2, "input dropout is gone"),
        ("kl", "warmup_updates", 500, "use world_model.kl.soft_free_nats"),
    ],
)
def test_an_old_run_with_a_removed_setting_at_work_is_refused_with_the_way_out(
    tmp_path: Path, section: str, key: str, value: float, said: str
) -> None:
    (tmp_path / "now.yaml").write_text(NOW)
    old = merged(yaml.safe_load(BEGUN_LONG_AGO), {"world_model": {section: {key: value}}})
    write(tmp_path, old)
    (difference,) = changed_settings(tmp_path, load(tmp_path / "now.yaml"))
    assert difference.startswith(f"world_model.{section}.{key}: {value} (")
    assert said in difference
    with pytest.raises(ConfigError, match=f"expected settings that still exist, got .*{key}"):
        revive(old, Config)
    # a part of the tree, as studies keep it
    part = filled(old["world_model"], WorldModelSettings, "world_model")
    assert part[section][key] == value
