"""Comparisons: what is missing is run by the real command, what is done is kept, numbers add up."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mbrl.__main__ import _budgets, main
from mbrl.compare import compare, fitting
from mbrl.config import file as config_file
from mbrl.config.file import find_config
from mbrl.config.schema import load
from mbrl.errors import ConfigError, MbrlError
from mbrl.report.comparison import summarise
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


def test_without_names_every_baseline_that_can_act_is_compared() -> None:
    control = find_config("control")
    assert fitting([control], ["env.id=CartPole-v1"]) == ("dream", "ppo", "dqn")
    assert fitting([control], ["env.id=Pendulum-v1"]) == ("dream", "ppo")
    assert fitting([control], ids=["CartPole-v1", "Pendulum-v1"]) == ("dream", "ppo")


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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"agents": ["dream", "sac"]}, "--agents: expected some of dream, .*random, got sac$"),
        ({"agents": [""]}, "--agents: expected some of dream, .*random, got $"),
        ({"agents": ["ppo", "ppo"]}, "a name of its own .*, got ppo more than once"),
        ({"variants": ["dream=seed=3"]}, "a name of its own .*, got dream more than once"),
        ({"variants": ["flat"]}, "--variant: expected a name and its settings, .* got flat"),
        ({"variants": ["a/b=seed=3"]}, "--variant: expected a name and its settings"),
        ({"variants": ["x='seed=3"]}, "--variant x: No closing quotation"),
        ({"variants": ["x=policy.horizn=3"]}, "did you mean policy.horizon"),
        ({"seeds": 0}, "expected 1 seed and job or more, got 0 and 1"),
        (
            {"agents": ["dream", "ppo"], "env_steps": {"dqn": 9}},
            "--env-steps: expected steps of dream, ppo, got some of dqn",
        ),
        ({"games": ["reverie/Counting-v0"] * 2}, "games and configs of different names"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_one_fault_it_has(
    config: Path, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        compare(config, ["env_steps=600"], out=tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_several_configs_are_several_games_and_take_no_other_games(
    config: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--games: expected one config, .* got 2"):
        compare([config, config], games=["reverie/Counting-v0"], agents=["random"])
    with pytest.raises(ConfigError, match="different names, got tiny, tiny"):
        compare([config, config], agents=["random"])


def test_budgets_are_one_number_or_one_for_each_arm() -> None:
    assert _budgets("20000") == 20000
    assert _budgets("dream=20000, ppo=500000") == {"dream": 20000, "ppo": 500000}
    with pytest.raises(argparse.ArgumentTypeError, match="expected 20000, or such as dream=20000"):
        _budgets("dream=")


def test_report_only_starts_nothing_and_shows_what_is_finished(
    config: Path, tmp_path: Path
) -> None:
    def report() -> dict[str, Any]:
        out, agents = tmp_path / "out", ["dream", "ppo"]
        return compare(config, agents=agents, env_steps=600, seeds=2, out=out, report_only=True)

    with pytest.raises(MbrlError, match=r"expected a finished run of dream in .*, got none"):
        report()
    for agent in ("dream", "ppo"):
        words = [f"agent={agent}", "env_steps=600", "seed=0"]
        finish(config, tmp_path / "out" / agent / "seed0", words, [[0, 0.0], [600, 1.0]])
    assert list(report()["agents"]["ppo"]["seeds"]) == ["0"]


def finish(config: Path, run_dir: Path, words: list[str], curve: list[list[float]]) -> None:
    """Leave what a finished run of these settings leaves."""
    settings = load(config, words)
    write_run(run_dir, settings.agent, settings.seed, curve)
    (run_dir / "config.yaml").write_text(config_file.dump(settings))


def test_games_variants_and_budgets_have_folders_of_their_own_and_one_sentence(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything is there already but for one run, which the real command makes."""
    out = tmp_path / "out"
    other = "MinAtar/SpaceInvaders-v1"
    for game, env_id in (("counting", "reverie/Counting-v0"), ("space_invaders", other)):
        for arm, agent, words, steps in (
            ("dream", "dream", [], 600),
            ("ppo", "ppo", [], 1800),
            ("still", "dream", ["learn_model.train_dynamics=false"], 600),
            ("floor", "random", ["evaluate.final_episodes=4"], 1),
        ):
            if (game, arm) == ("counting", "floor"):
                continue
            given = [f"env.id={env_id}", f"agent={agent}", *words, f"env_steps={steps}", "seed=0"]
            curve = [[0.0, 0.0], [float(steps), 6.0 if agent == "dream" else steps / 200]]
            finish(config, out / game / arm / "seed0", given, curve)
    command = [
        *("mbrl", "compare", str(config), "--games", f"reverie/Counting-v0,{other}"),
        *("--agents", "dream,ppo", "--variant", "still=learn_model.train_dynamics=false"),
        *("--variant", "floor=agent=random evaluate.final_episodes=4"),
        *("--env-steps", "dream=600,ppo=1800,floor=1", "--seeds", "1", "--out", str(out)),
    ]
    assert main(command[1:]) == 0
    said = capfd.readouterr().out
    assert "counting floor seed 0: running" in said and said.count("done before") == 7
    whole = json.loads((out / "all.json").read_text())
    # ppo reaches the 6 of 600 steps after 1,200
    lead = "On one seed only, over 2 games dream needs 2.0 times fewer env steps than the best"
    assert whole["sentence"].startswith(lead) and said.count(lead) == 1
    assert said.index(lead) < said.index(f"{other}: On one seed only, dream needs 2.0 times")
    assert list(whole["games"]) == ["counting", "space_invaders"]
    assert whole["command"].split()[3:] == [
        *("--games", f"reverie/Counting-v0,{other}", "--agents", "dream,ppo"),
        *("--variant", "still=learn_model.train_dynamics=false"),
        *("--variant", "'floor=agent=random", "evaluate.final_episodes=4'"),
        *("--env-steps", "dream=600,ppo=1800,floor=1", "--seeds", "1"),
    ]
    for folder in (out, out / "counting", out / "space_invaders"):
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert lead[:17] in (folder / "report.html").read_text()
    result = json.loads((out / "counting" / "result.json").read_text())
    assert list(result["agents"]) == ["dream", "ppo", "still", "floor"]
    assert result["env_steps"] == 1
    assert not list(out.glob("**/.*.tmp"))


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
