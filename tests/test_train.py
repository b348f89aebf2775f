"""The loop end to end: the real command, Ray actors that die, files that break, bad configs."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium import spaces
from tiny import config

from agents.dream_ppo import PolicyLearningError
from envs import EnvError
from mbrl.actors import RemoteCollectors
from mbrl.config import file as config_file
from mbrl.config.schema import load
from mbrl.errors import CollectError, ConfigError, TrainingError
from mbrl.replay import ReplayStore
from mbrl.run import checkpoint
from mbrl.run.metrics import read_metrics
from mbrl.run.run import Run
from mbrl.train import train

ROOT = Path(__file__).resolve().parent.parent
REMOTE = {"collect": {"num_collectors": 2, "num_envs": 2, "steps_per_iteration": 16}}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mbrl", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def mbrl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(), cwd=ROOT, capture_output=True, text=True
    )


def stored_steps(run_dir: Path) -> int:
    return sum(info.steps for info in ReplayStore(run_dir / "replay").segments())


def lines_with_finite_losses(run_dir: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run_dir, "train")
    for name in ("world_model/loss", "policy/value_loss"):
        assert all(np.isfinite(line[name]) for line in lines)
    return lines


def test_a_gpu_that_is_not_there_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one that PyTorch finds, got cuda:99"):
        train(config(tmp_path / "run", device="cuda:99"))
    assert not (tmp_path / "run").exists()


# -- the real command -----------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_debug_config_runs_the_whole_loop(tmp_path: Path) -> None:
    """Two collector actors, two iterations of everything, evaluation, checkpoint, video."""
    run_dir = tmp_path / "run"
    done = mbrl("train", "configs/debug.yaml", f"run.dir={run_dir}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # neither Ray nor RLlib has anything to complain about
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["agent"], result["env_id"]) == ("dream", "MinAtar/Breakout-v1")
    assert result["env_steps"] == result["budget"]["collected_steps"] == 512
    assert result["eval"]["episodes"] == len(result["eval"]["returns"]) == 4
    assert [steps for steps, _ in result["curve"]] == [256, 512]
    assert [line["env_steps"] for line in lines_with_finite_losses(run_dir)] == [256, 512]
    assert [line["env_steps"] for line in read_metrics(run_dir, "eval")] == [256, 512]
    assert stored_steps(run_dir) == 512
    writers = {info.writer for info in ReplayStore(run_dir / "replay").segments()}
    assert writers == {"c0", "c1"}
    assert checkpoint.steps(run_dir / "checkpoints") == [256, 512]
    for made in ("config.yaml", "provenance.json", "report.html", "videos/dream-000000512.mp4"):
        assert (run_dir / made).stat().st_size > 0, made
    assert list(run_dir.rglob("*tfevents*"))
    assert "return" in done.stdout and str(run_dir) in done.stdout


@pytest.mark.timeout(300)
def test_sigterm_stops_a_run_with_actors_safely_and_the_same_config_resumes(
    ray_session: None, tmp_path: Path
) -> None:
    """Ray installs a handler of its own, which must not be the one that answers."""
    run_dir, path = tmp_path / "run", tmp_path / "tiny.yaml"
    path.write_text(config_file.dump(config(run_dir, env_steps=10**6, **REMOTE)))
    process = subprocess.Popen(
        command("train", path), env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not checkpoint.steps(run_dir / "checkpoints") and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "the same command resumes" in output
    stopped_at, _ = checkpoint.load(run_dir / "checkpoints")
    assert not (run_dir / "result.json").exists()
    goal = stopped_at + 32
    assert train(config(run_dir, env_steps=goal, **REMOTE))["env_steps"] == goal
    assert stored_steps(run_dir) == goal
    # the actors began new episodes under new names
    assert "c0r1" in {info.writer for info in ReplayStore(run_dir / "replay").segments()}


@pytest.mark.parametrize("flag", ["--check", "--print-config"])
def test_looking_at_a_config_starts_nothing(flag: str) -> None:
    code = (
        "import sys; from mbrl.__main__ import main\n"
        f"code = main(['train', 'configs/cluster.yaml', '{flag}'])\n"
        "heavy = {'ray', 'torch', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = "num_collectors: 8" if flag == "--print-config" else "fine"
    assert expected in done.stdout


MISTAKES = """
env: {id: MinAtar/Breakout-v1}
learn_model:
  batch_sise: 4
env_steps: many
collect: {num_envs: 0}
"""


def test_mistakes_in_a_config_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(MISTAKES)
    done = mbrl("train", path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    for place, words in (("4", "batch_size"), ("5", "env_steps"), ("6", "num_envs")):
        (line,) = [line for line in done.stderr.splitlines() if words in line]
        assert f"wrong.yaml:{place}" in line, done.stderr
    done = mbrl("train", "debug", "env.id=MinAtar/Brakeout-v1", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Brakeout" in done.stderr


# -- in this process ------------------------------------------------------------------------------


def test_counts_are_exact_and_ratios_hold(tmp_path: Path) -> None:
    result = train(config(tmp_path / "run"))
    budget = result["budget"]
    assert result["env_steps"] == budget["collected_steps"] == stored_steps(tmp_path / "run") == 96
    assert budget["replayed_rows"] == 8 * 96  # train_ratio 8; no remainder at these sizes
    assert budget["model_updates"] == 8 * 96 / (4 * 8)
    assert budget["imagined_steps"] == 8 * 96  # dream_ratio 8
    assert budget["policy_rounds"] == 8 * 96 / (16 * 4)
    assert budget["evaluation_episodes"] == 2 + 2 + 3  # at 32, 64 and the end
    assert [steps for steps, _ in result["curve"]] == [32, 64, 96]


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Run(config(tmp_path / "run")) as run, ThreadPoolExecutor() as threads:
        threads.submit(run.handle_signals).result()  # where Python allows none
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stopping
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_truncated_file_in_the_store_is_quarantined_and_training_goes_on(tmp_path: Path) -> None:
    def damage(run: Run) -> None:
        if run.env_steps == 48:
            store = ReplayStore(run.dir / "replay")
            (first, *_) = store.segments()
            whole = (store.data / first.name).read_bytes()
            name = first.name.replace("c0-000000", "c0-000900")
            (store.data / name).write_bytes(whole[: len(whole) // 2])

    result = train(config(tmp_path / "run"), on_iteration=damage)
    assert result["env_steps"] == result["budget"]["collected_steps"] == 96
    assert len(list((tmp_path / "run/replay/bad").iterdir())) == 1
    counted = [line["replay/quarantined"] for line in read_metrics(tmp_path / "run", "train")]
    assert counted == [0, 0, 1, 1, 1]
    assert stored_steps(tmp_path / "run") == 96


def test_environments_that_crash_are_counted_and_all_real_steps_too(tmp_path: Path) -> None:
    kwargs = {"crash_at": 9, "min_length": 10, "max_length": 10}
    with pytest.raises(CollectError, match="crashes at step 9"):
        train(config(tmp_path / "run", env={"id": "reverie/Counting-v0", "kwargs": kwargs}))
    lines = read_metrics(tmp_path / "run", "train")
    assert lines and lines[-1]["collect/env_restarts"] > 0
    assert stored_steps(tmp_path / "run") == lines[-1]["env_steps"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": {"algorithm": "q"}},  # refused while everyone is built
        {"env": {"id": None, "factory": "odd_envs.StepAlwaysFails"}},  # and at the first step
        {"agent": "dqn"},
    ],
)
def test_a_refused_run_leaves_no_claim_on_its_folder(
    ray_session: None, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    right = {"env": {"id": None, "factory": f"{__name__}.Slider"}, "env_steps": 32}
    with pytest.raises((ConfigError, EnvError)):
        train(config(tmp_path / "run", **{**right, **wrong}))
    assert (tmp_path / "run/config.yaml").exists()
    assert train(config(tmp_path / "run", **right))["env_steps"] == 32
    (made_by,) = json.loads((tmp_path / "run/provenance.json").read_text())
    assert made_by
    with pytest.raises(ConfigError, match="was made with other settings"):
        train(config(tmp_path / "run", **right, learn_model={"lr": 0.5}))


def test_a_policy_that_cannot_learn_is_a_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PolicyLearningError("expected a finite loss")

    monkeypatch.setattr("agents.dream_ppo.DreamPPO.learn", fail)
    with pytest.raises(TrainingError, match="policy: expected a finite loss"):
        train(config(tmp_path / "run"))


def test_replay_on_disk_stays_within_its_limit_and_resuming_still_works(tmp_path: Path) -> None:
    def settings(env_steps: int) -> Any:
        replay = {"max_disk_gb": 1e-6, "capacity_steps": 40}  # nothing but what is pinned
        return config(tmp_path / "run", env_steps=env_steps, replay=replay)

    train(settings(96))
    kept = ReplayStore(tmp_path / "run/replay").segments()
    assert 32 <= sum(info.rows for info in kept) < 80
    assert train(settings(128))["env_steps"] == 128


def test_losses_on_episodes_held_out_are_logged_and_those_stay_so_on_resume(tmp_path: Path) -> None:
    def settings(env_steps: int) -> Any:
        replay = {"holdout": 0.3}
        return config(tmp_path / "run", env_steps=env_steps, replay=replay)

    train(settings(96))
    assert train(settings(128))["env_steps"] == 128 == stored_steps(tmp_path / "run")
    lines = read_metrics(tmp_path / "run", "train")
    assert len(lines) == 7
    for name in ("loss", "nats_per_frame", "kl", "reward", "continue"):
        assert all(
            np.isfinite([line[f"holdout/{name}"], line[f"world_model/{name}"]]).all()
            for line in lines
        )


def test_the_shipped_world_models_2018_config_learns_and_acts(tmp_path: Path) -> None:
    """Its own model, on Pong's own images; only the counts are small."""
    small = (
        *("env_steps=96", "collect.num_envs=2", "collect.prefill_steps=64"),
        "collect.until_reward=false",
        *("collect.steps_per_iteration=32", "collect.num_collectors=0", "run.threads=1"),
        *("learn_model.train_ratio=4", "learn_model.batch_size=4", "learn_model.num_learners=0"),
        *("learn_policy.dream_ratio=8", "learn_policy.num_learners=0", "policy.dreams=16"),
        *("evaluate.final_episodes=1", "evaluate.num_envs=1", "env.max_episode_steps=64"),
        *("device=cpu", "run.video=false", f"run.dir={tmp_path / 'run'}"),
    )
    settings = load(ROOT / "configs" / "world_models_2018.yaml", small)
    assert settings.world_model.decoder.kind == "world_models" and not settings.world_model.joint
    budget = train(settings)["budget"]
    assert budget["model_updates"] >= 2 and budget["imagined_steps"] > 0
    lines_with_finite_losses(tmp_path / "run")


# -- continuous actions ---------------------------------------------------------------------------


class Slider(gym.Env[np.ndarray, np.ndarray]):
    """A mark at the column that the first action chose; pays the column of the second."""

    observation_space = spaces.Box(0, 1, (8, 8, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.picture(0), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        first, second = (column_of(value) for value in action)
        return self.picture(first), float(second), self.t == 7, False, {}

    def picture(self, column: int) -> np.ndarray:
        picture = np.zeros((8, 8, 1), np.uint8)
        picture[self.t, column] = 1
        return picture


def column_of(value: float) -> int:
    return int(np.clip((value + 1) * 4, 0, 7))


def test_box_actions_go_from_the_environment_through_replay_and_model_into_the_dream(
    tmp_path: Path,
) -> None:
    slider = {"id": None, "factory": f"{__name__}.Slider"}
    result = train(config(tmp_path / "run", env=slider))
    assert result["env_steps"] == 96 and result["budget"]["imagined_steps"] == 8 * 96
    lines_with_finite_losses(tmp_path / "run")
    store = ReplayStore(tmp_path / "run/replay")
    fragments = list(store.fragments())
    assert {fragment.actions.dtype.name for fragment in fragments} == {"float32"}
    for fragment in fragments:  # what was chosen is what the next picture and the reward show
        for row in range(fragment.rows - 1):
            first, second = fragment.actions[row]
            assert fragment.obs[row + 1, fragment.t0 + row + 1, column_of(first), 0] == 1
            assert fragment.rewards[row] == column_of(second)
    versions = {fragment.policy_version for fragment in fragments}
    assert len(versions) > 2  # the dream's policies acted, too
    assert train(config(tmp_path / "run", env=slider, env_steps=128))["env_steps"] == 128


# -- with Ray actors ------------------------------------------------------------------------------


@pytest.mark.timeout(240)
@pytest.mark.parametrize("in_its_fragment", [True, False])
def test_a_killed_collector_is_restarted_and_no_step_is_lost_or_counted_twice(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_its_fragment: bool
) -> None:
    begin, killed = RemoteCollectors.begin, []

    def begin_and_kill(
        collectors: RemoteCollectors, steps: int, env_steps_total: int, at_random: bool
    ) -> None:
        pid = 0
        if env_steps_total == 48 and not killed:
            pid = int(ray.get(collectors.actors[0].pid.remote()))
            killed.append(pid)
        if pid and not in_its_fragment:
            os.kill(pid, signal.SIGKILL)
        begin(collectors, steps, env_steps_total, at_random)
        assert (collectors.weights_in_use is None) == at_random == (env_steps_total == 0)
        if pid and in_its_fragment:
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(RemoteCollectors, "begin", begin_and_kill)
    result = train(config(tmp_path / "run", **REMOTE))
    assert len(killed) == 1
    assert result["env_steps"] == result["budget"]["collected_steps"] == 96
    assert stored_steps(tmp_path / "run") == 96
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["collect/actor_restarts"] for line in lines] == [0, 0, 1, 1, 1]
    writers = [info.writer for info in ReplayStore(tmp_path / "run/replay").segments()]
    assert writers.count("c1") == 5
    assert writers.count("c0") + writers.count("c0r1") == 5 and "c0r1" in writers
    # evaluations of the run beside the training are all there, in order
    evals = [line["env_steps"] for line in read_metrics(tmp_path / "run", "eval")]
    assert evals == [32, 64, 96]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", [{}, REMOTE], ids=["here", "in an actor"])
def test_rewards_that_are_not_finite_stop_the_run_with_a_plain_error(
    ray_session: None, tmp_path: Path, where: dict[str, Any]
) -> None:
    env = {"id": "reverie/Counting-v0", "kwargs": {"nan_at": 4}}
    with pytest.raises((EnvError, CollectError), match="finite float32 reward"):
        train(config(tmp_path / "run", env=env, **where))
    assert stored_steps(tmp_path / "run") == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", ["learn_model", "learn_policy"])
def test_two_learners_as_actors_run_the_loop(ray_session: None, tmp_path: Path, part: str) -> None:
    result = train(config(tmp_path / "run", env_steps=48, **{part: {"num_learners": 2}}))
    assert result["env_steps"] == 48
    assert result["budget"]["replayed_rows"] == result["budget"]["imagined_steps"] == 8 * 48
    _, state = checkpoint.load(tmp_path / "run/checkpoints")
    assert result["budget"]["policy_rounds"] == state["policy"]["version"] == 6
    if part == "learn_model":
        one, two = (rank["rng"]["state"]["state"] for rank in state["learner"]["ranks"])
        assert one != two  # each rank draws its own batches
    else:
        assert len(state["policy"]["learners"]) == 2


PPO = {"batch_steps": 32, "minibatch_size": 16, "epochs": 1, "num_envs": 2, "dense": 16}
DQN = {"learning_starts": 32, "batch_size": 16, "training_intensity": 4}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("agent", "settings"), [("ppo", PPO), ("dqn", DQN)])
def test_the_command_trains_a_baseline_and_goes_on_from_its_checkpoint(
    tmp_path: Path, agent: str, settings: dict[str, Any]
) -> None:
    run_dir, path = tmp_path / "run", tmp_path / "tiny.yaml"
    path.write_text(config_file.dump(config(run_dir, agent=agent, **{agent: settings})))
    for env_steps in (64, 128):
        done = mbrl("train", path, f"env_steps={env_steps}")
        assert done.returncode == 0, done.stderr
        assert f"{agent} on MinAtar/Breakout-v1: return" in done.stdout
        result = json.loads((run_dir / "result.json").read_text())
        assert result["agent"] == agent and len(result["eval"]["returns"]) == 3
        assert env_steps <= result["env_steps"] == result["budget"]["collected_steps"]
        steps, state = checkpoint.load(run_dir / "checkpoints")
        assert steps == result["env_steps"] == state["agent"]["env_steps"]
    points = [steps for steps, _ in result["curve"]]  # the first run's, too
    assert points[0] < 64 < points[1] and points[-1] == result["env_steps"]


@pytest.mark.filterwarnings("ignore:.*Overriding environment", "ignore::DeprecationWarning:ray")
def test_a_baseline_that_is_asked_to_stop_saves_what_it_has_done(
    ray_session: None, tmp_path: Path
) -> None:
    settings = config(tmp_path / "run", agent="ppo", ppo=PPO, env_steps=640)
    with pytest.raises(SystemExit) as stopped:
        train(settings, on_iteration=Run.request_stop)
    assert stopped.value.code == 0
    steps, state = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert 0 < steps == state["agent"]["env_steps"] < 640
