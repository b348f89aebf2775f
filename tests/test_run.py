"""What a run folder remembers of its settings, and when going on with it is refused."""

from pathlib import Path

import yaml
from tiny import config

from mbrl.config import file as config_file
from mbrl.run.run import changed_settings


def write(folder: Path, tree: dict) -> None:
    (folder / "config.yaml").write_text(yaml.dump(tree), encoding="utf-8")


def dumped(folder: Path) -> dict:
    return yaml.safe_load(config_file.dump(config(folder)))


def test_a_new_folder_has_no_other_settings(tmp_path: Path) -> None:
    assert changed_settings(tmp_path, config(tmp_path)) == []


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
    (tmp_path / "config.yaml").write_text(config_file.dump(made), encoding="utf-8")
    assert changed_settings(tmp_path, made) == []


def test_a_setting_that_is_no_more_is_named(tmp_path: Path) -> None:
    tree = dumped(tmp_path)
    tree["world_model"]["encoder"]["sharpness"] = 3
    write(tmp_path, tree)
    (said,) = changed_settings(tmp_path, config(tmp_path))
    assert said.startswith("world_model.encoder.sharpness: 3 became")


def test_budget_and_folder_may_change(tmp_path: Path) -> None:
    write(tmp_path, dumped(tmp_path))
    assert changed_settings(tmp_path, config(tmp_path / "elsewhere", env_steps=5000)) == []
