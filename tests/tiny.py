"""The smallest settings that still run every part; shared by tests of the core."""

from pathlib import Path
from typing import Any

from mbrl.config.kinds import without_unknown
from mbrl.config.schema import Config
from mbrl.studies.worlds.one import MODEL as MODEL
from mbrl.world_model.settings import WorldModelSettings

BREAKOUT = {"id": "MinAtar/Breakout-v1"}
QUIET = {"video": False, "tensorboard": False, "threads": 1}


def model_settings(**changes: Any) -> WorldModelSettings:
    """A world model of a few thousand weights; nested changes are merged."""
    return WorldModelSettings(**without_unknown(merged(MODEL, changes), WorldModelSettings))


def config(run_dir: Path, **changes: Any) -> Config:
    """A run of seconds in one process; nested changes are merged."""
    tree = {
        "name": "tiny",
        "env": BREAKOUT,
        "env_steps": 96,
        "device": "cpu",
        "world_model": MODEL,
        "collect": dict(
            num_envs=2,
            steps_per_iteration=16,
            prefill_steps=32,
            until_reward=False,
            fragment_steps=10,
        ),
        "learn_model": dict(train_ratio=8, batch_size=4, sequence_length=8, max_starts=64),
        "learn_policy": {"dream_ratio": 8},
        "policy": {"dreams": 16, "horizon": 4, "minibatch_size": 32, "hidden": (16,)},
        "evaluate": {"every_steps": 32, "episodes": 2, "final_episodes": 3, "num_envs": 2},
        "run": {"dir": run_dir, "checkpoint_every_steps": 32, **QUIET},
    }
    return Config(**without_unknown(merged(tree, changes), Config))


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tree` with `changes` in it; dicts are merged, everything else is replaced."""
    result = dict(tree)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else value
    return result
