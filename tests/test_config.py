"""The tree of settings of a run: what is shipped is fine, contradictions are refused."""

from pathlib import Path

import pytest

from mbrl.config.schema import Config, load
from mbrl.errors import ConfigError

SHIPPED = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_fine_and_named_after_its_file(path: Path) -> None:
    assert load(path).name == path.stem


MULTIPLE = "expected a multiple of"
LENGTH = "expected at least learn_model.sequence_length = 16, got"
RATIO = "learn_model.train_ratio: expected a batch"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("collect.steps_per_iteration=12", f"collect.steps_per_iteration: {MULTIPLE} 8"),
        ("collect.num_collectors=3", f"{MULTIPLE} 24 "),
        ("learn_model.num_learners=3", f"learn_model.batch_size: {MULTIPLE} 3 learners"),
        ("learn_policy.num_learners=3", f"policy.dreams: {MULTIPLE} 3 learners"),
        ("env_steps=100", "collect.prefill_steps: expected at most env_steps = 100"),
        ("collect.prefill_steps=8", f"{LENGTH} 8"),
        ("replay.capacity_steps=9", f"{LENGTH} 9"),
        ("device=gpu", "device"),
        ("device=cuda:1 learn_policy.num_learners=1", "device: expected cuda with num_learners"),
        ("learn_model.train_ratio=8 collect.prefill_steps=64", f"{RATIO} .* got 512 rows"),
        (
            "learn_model.train_ratio=1 collect.steps_per_iteration=64",
            rf"{RATIO} \(.* = 1024 rows\) .* got 64 rows",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, overrides: str, message: str) -> None:
    path = write(tmp_path, "env: {id: MinAtar/Breakout-v1}\n")
    with pytest.raises(ConfigError, match=message):
        load(path, overrides.split())


def test_a_baseline_owes_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "env: {id: MinAtar/Breakout-v1}\n")
    assert load(path, ["learn_model.train_ratio=0.1", "agent=ppo"]).agent == "ppo"


def test_the_run_folder_is_named_after_the_config_unless_given(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\nenv: {id: MinAtar/Breakout-v1}\n")
    assert load(path).run_dir == Path("runs/mine")
    assert load(path, ["run.dir=/elsewhere"]).run_dir == Path("/elsewhere")


def test_settings_are_frozen() -> None:
    config = Config.model_validate({"env": {"id": "MinAtar/Breakout-v1"}})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
