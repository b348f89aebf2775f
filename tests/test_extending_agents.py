"""An environment family and a baseline are each added by one file and one line in a list.

The files are those of docs/extending.md. Each is added to a copy of the packages, where the real
command trains with it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)  # several processes, two of which train

ROOT = Path(__file__).resolve().parent.parent
NEW = ROOT / "tests" / "extending"

SMALL = [
    "env_steps=64",
    "device=cpu",
    "world_model={hidden: 16, prior_hidden: 16, code: {groups: 4, classes: 4}}",
    "world_model.decoder={channels: 4, layers: 1, hidden: 16}",
    "collect={num_envs: 4, prefill_steps: 32, steps_per_iteration: 32}",
    "learn_model={train_ratio: 4, batch_size: 4, sequence_length: 8}",
    "learn_policy.dream_ratio=4",
    "policy={dreams: 16, horizon: 4, minibatch_size: 32, hidden: [16]}",
    "evaluate={episodes: 2, final_episodes: 2, num_envs: 2}",
    "run={video: false, tensorboard: false, threads: 1, dir: run}",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("mbrl", "agents", "envs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def add(path: Path, imports: str, name: str, line: str) -> None:
    """Import `name` where `path` imports its like, and put `line` at the end of its list."""
    text = path.read_text(encoding="utf-8")
    assert text.count(imports) == 1
    begun, end = text.replace(imports, f"{imports}, {name}").split("\n}\n", 1)
    path.write_text(f"{begun}\n    {line}\n}}\n{end}", encoding="utf-8")


def mbrl(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "mbrl", *words]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def trained(tree: Path, *words: str) -> Any:
    done = mbrl(tree, "train", "configs/minatar.yaml", *SMALL, *words)
    assert done.returncode == 0, done.stderr
    return json.loads((tree / "run" / "result.json").read_text(encoding="utf-8"))


def test_a_family_of_environments_is_one_file_and_one_line(tree: Path) -> None:
    shutil.copy(NEW / "family.py", tree / "envs" / "walk.py")
    add(tree / "envs" / "families.py", "minatar, pong", "walk", '"Walk/": walk.FAMILY,')
    result = trained(tree, "env.id=Walk/Small-v0", "env.max_episode_steps=20")
    assert (result["env_id"], result["env_steps"]) == ("Walk/Small-v0", 64)
    refused = mbrl(tree, "train", "configs/minatar.yaml", "env={id: Walk/Small-v0, noop_max: 3}")
    assert "Walk/Small-v0 can honour (max_episode_steps), got noop_max=3" in refused.stderr
    unknown = mbrl(tree, "check-env", "Walk/Smal-v0")
    assert "the nearest known ids are Walk/Small-v0" in unknown.stderr


def test_a_baseline_is_one_file_and_one_line(tree: Path) -> None:
    shutil.copy(NEW / "baseline.py", tree / "agents" / "baselines" / "a2c.py")
    add(tree / "agents/baselines/__init__.py", "import dqn, ppo", "a2c", '"a2c": a2c.BASELINE,')
    result = trained(tree, "agent=a2c", "a2c={num_envs: 2, batch_steps: 32, dense: 16}")
    assert result["agent"] == "a2c" and 64 <= result["env_steps"] < 96
    refused = mbrl(tree, "train", "configs/minatar.yaml", "a2c.lr=0")
    assert "a2c.lr: expected greater than 0, got 0" in refused.stderr
