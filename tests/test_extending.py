"""Each file of docs/extending.md, with its one line in a list, works in a copy of the packages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mbrl.run import checkpoint

pytestmark = pytest.mark.timeout(300)  # several processes that train

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "env_steps=64",
    "device=cpu",
    "world_model={hidden: 16, prior_hidden: 16, code: {groups: 4, classes: 4}}",
    "collect={num_envs: 4, prefill_steps: 32, steps_per_iteration: 32}",
    "learn_model={train_ratio: 4, batch_size: 4, sequence_length: 8}",
    "learn_policy.dream_ratio=4",
    "policy={dreams: 16, horizon: 4, minibatch_size: 32, hidden: [16]}",
    "evaluate={episodes: 2, final_episodes: 2, num_envs: 2}",
    "run={video: false, tensorboard: false, threads: 1, dir: run}",
)


class Addition(NamedTuple):
    """A file, and the line to put before another in a list."""

    example: str
    target: str
    list_in: str
    before: str
    line: str


MODEL = "mbrl/world_model/"
DECODER = Addition(
    "decoder.py",
    MODEL + "decoders/linear.py",
    MODEL + "decoders/settings.py",
    '        "deconv": Kind(',
    '        "linear": Kind(DecoderSettings, "mbrl.world_model.decoders.linear:LinearDecoder"),',
)
PART = Addition(
    "part.py",
    MODEL + "dense.py",
    MODEL + "settings.py",
    '        "normalised": Kind(',
    '        "dense": Kind(EncoderSettings, "mbrl.world_model.dense:DenseEncoder"),',
)
ALGORITHM = Addition(
    "algorithm.py",
    "agents/reinforce.py",
    "agents/settings.py",
    '    "ppo": "agents.dream_learner:DreamPPOLearner",',
    '    "reinforce": "agents.reinforce:ReinforceLearner",',
)
BASELINE = Addition(
    "baseline.py",
    "agents/baselines/a2c.py",
    "agents/baselines/__init__.py",
    '    "ppo": "agents.baselines.ppo",',
    '    "a2c": "agents.baselines.a2c",',
)
FAMILY = Addition(
    "family.py",
    "envs/walk.py",
    "envs/families.py",
    '    "MinAtar/": "envs.minatar",',
    '    "Walk/": "envs.walk",',
)
STUDY = Addition(
    "study.py",
    "mbrl/studies/coins.py",
    "mbrl/studies/bench.py",
    '    "fidelity": (',
    '    "coins": ("mbrl.studies.coins", "how fast the bias of a coin is learnt"),',
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("mbrl", "agents", "envs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def add(tree: Path, addition: Addition) -> None:
    shutil.copy(ROOT / "tests" / "extending" / addition.example, tree / addition.target)
    path = tree / addition.list_in
    text = path.read_text(encoding="utf-8")
    assert text.count(addition.before) == 1, f"{path}: {addition.before}"
    text = text.replace(addition.before, f"{addition.line}\n{addition.before}")
    path.write_text(text, encoding="utf-8")


def mbrl(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "mbrl", *words]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def trained(tree: Path, *words: str) -> Any:
    done = mbrl(tree, "train", "minatar", *SMALL, *words)
    assert done.returncode == 0, done.stderr
    return json.loads((tree / "run" / "result.json").read_text(encoding="utf-8"))


def saved_weights(tree: Path) -> set[str]:
    _, state = checkpoint.load(tree / "run" / "checkpoints")
    return set(state["learner"]["model"]) if "learner" in state else set()


@pytest.mark.parametrize(
    ("additions", "chosen", "weights", "wrong", "said"),
    [
        (
            (DECODER, PART, ALGORITHM),
            (
                "world_model.decoder.kind=linear",
                "world_model.encoder.kind=dense",
                "policy={algorithm: reinforce, epochs: 1}",
            ),
            ("decoder.out.weight", "encoder.layers.0.weight"),
            "policy.algorithm=reinforse",
            "policy.algorithm: expected one of reinforce, ppo, q, got reinforse",
        ),
        (
            (BASELINE,),
            ("agent=a2c", "a2c={num_envs: 2, batch_steps: 32, dense: 16}"),
            (),
            "a2c.lr=0",
            "a2c.lr: expected greater than 0, got 0",
        ),
        (
            (FAMILY,),
            ("env.id=Walk/Small-v0", "env.max_episode_steps=20"),
            (),
            "env={id: Walk/Small-v0, noop_max: 3}",
            "Walk/Small-v0 can honour (max_episode_steps), got noop_max=3",
        ),
    ],
    ids=["decoder, encoder and algorithm", "baseline", "family"],
)
def test_a_part_is_one_file_and_one_line_and_a_run_trains_it(
    tree: Path,
    additions: tuple[Addition, ...],
    chosen: tuple[str, ...],
    weights: tuple[str, ...],
    wrong: str,
    said: str,
) -> None:
    for addition in additions:
        add(tree, addition)
    result = trained(tree, *chosen)
    assert 64 <= result["env_steps"] < 96
    assert set(weights) <= saved_weights(tree)
    assert said in mbrl(tree, "train", "minatar", wrong).stderr


def test_a_study_is_one_file_and_one_line_and_continues_with_a_larger_budget(tree: Path) -> None:
    add(tree, STUDY)
    for minutes in ("0.001", "0.002"):
        done = mbrl(tree, "bench", "coins", "penny", "--seeds", "1", "--minutes", minutes)
        assert done.returncode == 0, done.stderr
    results = tree / "results" / "coins"
    fast = json.loads((results / "penny" / "fast-0.json").read_text(encoding="utf-8"))
    assert fast["cpu_minutes"] == 0.002 and fast["settings"]["learn"] == {"lr": 0.1}
    assert fast["measures"]["error"] < 0.5
    summary = json.loads((results / "penny.json").read_text(encoding="utf-8"))
    assert set(summary["arms"]) == {"slow", "fast"}
    assert (tree / "runs" / "coins" / "penny" / "report.html").is_file()
    refused = mbrl(tree, "bench", "coins", "penny", "--seeds", "1", "--heads", "0.4")
    assert "heads: 0.7 became 0.4" in refused.stderr
