"""Comparisons: what is missing is run by the real command, what is done is kept, numbers add up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbrl.compare import best_rival_ratio, compare, summarise
from mbrl.config.schema import load
from mbrl.errors import ConfigError, MbrlError
from mbrl.run import checkpoint
from mbrl.run.record import RunRecord
from mbrl.run.run import Run

CONFIG = """
name: tiny
agent: random
env: {id: reverie/Counting-v0}
env_steps: 64
evaluate: {final_episodes: 3, num_envs: 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def write_run(folder: Path, agent: str, seed: int, curve: list[list[float]]) -> RunRecord:
    """A finished run whose final score is the last point of its curve."""
    folder.mkdir(parents=True)
    result = {
        "agent": agent,
        "env_id": "x",
        "seed": seed,
        "env_steps": int(curve[-1][0]),
        "wall_time_s": 1.0,
        "eval": {"episodes": 1, "mean": curve[-1][1], "std": 0.0, "returns": [curve[-1][1]]},
        "curve": curve,
        "budget": {"collected_steps": curve[-1][0]},
        "commit": "abc",
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(f"agent: {agent}")
    return RunRecord.read(folder)


def test_compare_runs_what_is_missing_and_keeps_what_is_done(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = compare(config, agents=["random"], seeds=1, out=out)
    first = (out / "random" / "seed0" / "result.json").stat().st_mtime_ns
    # counting pays 1 + 2 + ... + n over an episode of n steps, whatever is done
    lengths = json.loads((out / "random/seed0/result.json").read_text())["eval"]["lengths"]
    expected = sum(n * (n + 1) / 2 for n in lengths) / 3
    assert result["agents"]["random"]["returns"] == [pytest.approx(expected)]
    again = compare(config, agents=["random"], seeds=2, out=out)
    assert (out / "random" / "seed0" / "result.json").stat().st_mtime_ns == first
    assert len(again["agents"]["random"]["returns"]) == 2
    assert json.loads((out / "result.json").read_text())["seeds"] == [0, 1]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "random" in (out / "report.html").read_text()


def test_summary_gives_every_seed_its_interval_and_the_mean_curve(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(seed), "a", seed, [[0, 0.0], [100, final]])
        for seed, final in enumerate((1.0, 2.0, 3.0, 4.0))
    ]
    summary = summarise(runs)
    assert summary["returns"] == [1.0, 2.0, 3.0, 4.0]
    assert summary["iqm"] == 2.5  # the middle half is 2 and 3
    low, high = summary["ci95"]
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert summary["curve"] == [[0.0, 0.0], [100.0, 2.5]]


def test_steps_ratio_is_taken_against_the_best_rival_at_its_own_final_score(tmp_path: Path) -> None:
    runs = {
        "dream": [write_run(tmp_path / "d", "dream", 0, [[0, 0.0], [50, 2.0], [100, 4.0]])],
        "ppo": [write_run(tmp_path / "p", "ppo", 0, [[0, 0.0], [100, 1.0]])],
        "dqn": [write_run(tmp_path / "q", "dqn", 0, [[0, 0.0], [100, 2.0]])],
        "random": [write_run(tmp_path / "r", "random", 0, [[100, 9.0]])],
    }
    ratio = best_rival_ratio(runs, ["dream", "ppo", "dqn", "random"])
    assert ratio is not None
    assert (ratio["against"], ratio["threshold"]) == ("dqn", 2.0)
    assert ratio["value"] == pytest.approx(2.0)  # 100 steps against 50
    alone = {name: runs[name] for name in ("dream", "random")}
    assert best_rival_ratio(alone, list(alone)) is None


@pytest.mark.parametrize("agents", [["dream", "sac"], ["ppo", "ppo"]])
def test_agents_must_be_known_and_distinct(config: Path, agents: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected distinct agents out of dream, ppo, dqn"):
        compare(config, agents=agents, seeds=1)


def test_a_failed_run_is_named_with_its_log(config: Path, tmp_path: Path) -> None:
    overrides = ["env.kwargs.nan_at=2"]
    with pytest.raises(MbrlError, match=r"random seed 0 failed with exit code .*log\.txt"):
        compare(config, overrides, agents=["random"], seeds=1, out=tmp_path / "out")


def test_runs_of_other_settings_or_a_larger_budget_are_refused(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compare(config, agents=["random"], seeds=1, out=out)
    with pytest.raises(ConfigError, match=r"ppo\.lr: .* became 0\.5.*--out"):
        compare(config, ["ppo.lr=0.5"], agents=["random"], seeds=1, out=out)

    def again() -> None:
        with pytest.raises(ConfigError, match="env_steps: 64 became 32"):
            compare(config, agents=["random"], seeds=1, env_steps=32, out=out)

    again()
    folder = out / "random" / "seed0"
    (folder / "result.json").unlink()  # as if it had been stopped on its way
    checkpoint.save(folder / "checkpoints", 33, {})
    again()


def test_an_interrupted_comparison_ends_its_run_and_starts_no_more(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mbrl", "compare", str(config)]
    command += ["evaluate.final_episodes=8000", "--agents", "random", "--seeds", "2"]
    command += ["--out", str(out)]
    home = str(Path(__file__).resolve().parent.parent)
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": home})
    deadline = time.monotonic() + 60
    while not (out / "random/seed0/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    process.wait(timeout=60)
    assert process.returncode != 0
    assert not (out / "random" / "seed1").exists()
    with Run(load(config, [f"run.dir={out / 'random/seed0'}", "evaluate.final_episodes=8000"])):
        pass  # nobody holds the folder any more
