"""The Python door: train, open the run folder, act with its agent, dream in its world model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from tiny import config

import mbrl
from mbrl.config import file as config_file
from mbrl.errors import CheckpointError, ConfigError, MbrlError
from mbrl.evaluate import judge
from mbrl.seeding import seed

ROOT = Path(__file__).resolve().parent.parent
PPO = {"num_envs": 2, "batch_steps": 32, "minibatch_size": 32, "epochs": 1, "dense": 16}
DQN = {"num_envs": 2, "learning_starts": 16, "buffer_steps": 200, "dense": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mbrl.OpenRun:
    """A dream run, trained through the door and opened."""
    folder, seen = tmp_path_factory.mktemp("door") / "run", list[int]()
    mbrl.train(config(folder), lambda run: seen.append(run.env_steps), env_steps=64)
    assert seen[-1] == 64
    return mbrl.open_run(folder)


def play(run: mbrl.OpenRun, agent: Any, steps: int = 20) -> list[int]:
    """Actions of a single environment's first steps."""
    env = run.env()
    obs, _ = env.reset(seed=0)
    actions, is_first = [], True
    for _ in range(steps):
        actions.append(agent.act(obs, is_first))
        obs, _, terminated, truncated, _ = env.step(actions[-1])
        if is_first := terminated or truncated:
            obs, _ = env.reset()
    return actions


def evaluated(run: mbrl.OpenRun, agent: Any) -> list[float]:
    """Returns of the run's final evaluation, played again."""
    return judge(agent.policy, run.config, final=True).returns


def test_a_run_tells_its_settings_result_metrics_and_replay(run: mbrl.OpenRun) -> None:
    assert (run.config.env_steps, run.config.agent) == (64, "dream")
    assert run.result()["env_steps"] == 64
    assert {line["kind"] for line in run.metrics()} == {"train", "eval"}
    assert [line["env_steps"] for line in run.metrics("eval")][-1] == 64
    assert sum(episode.steps for episode in run.replay().episodes()) == 64


def test_an_agent_plays_an_environment_and_repeats_from_its_seed(run: mbrl.OpenRun) -> None:
    actions = play(run, run.agent(seed=1))
    assert all(type(action) is int for action in actions)
    assert play(run, run.agent(seed=1)) == actions


def test_an_agent_plays_the_evaluation_that_its_run_recorded(run: mbrl.OpenRun) -> None:
    """Its weights are the final ones: with the evaluation's stream come the same returns."""
    agent = run.agent()
    agent.policy.generator.manual_seed(seed(run.config.seed, "evaluate", 64))
    assert evaluated(run, agent) == run.result()["eval"]["returns"]


def test_an_agent_remembers_the_episode_until_it_is_told_of_a_new_one(run: mbrl.OpenRun) -> None:
    agent, obs = run.agent(), run.env().observation_space.sample()
    hidden = []
    for is_first in (None, None, True):
        agent.act(obs, is_first)
        hidden.append(agent.policy.latent.hidden.clone())
    assert not hidden[0].equal(hidden[1])
    assert hidden[0].equal(hidden[2])  # the state before the first frame does not know the frame


def test_a_batch_gets_an_action_each_and_other_shapes_are_refused(
    run: mbrl.OpenRun,
) -> None:
    agent, obs = run.agent(), run.env().observation_space.sample()
    with pytest.raises(ValueError, match=r"expected \(10, 10, 4\) or .* got \(10, 4\)"):
        agent.act(obs[0])
    with pytest.raises(ValueError, match=r"got .* of float64"):
        agent.act(obs.astype(float))
    agent.act(obs)
    with pytest.raises(ValueError, match="expected 1 observations, as before, got 2"):
        agent.act(np.stack([obs, obs]))
    agent.reset()
    both = np.stack([obs, obs])
    assert agent.act(both).shape == (2,)
    assert agent.act(both, is_first=[True, False], explore=True).shape == (2,)


def test_a_dream_is_a_vector_environment(run: mbrl.OpenRun) -> None:
    env = run.dream_env(num_envs=5, horizon=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    obs, _ = env.reset(seed=3)
    ends = []
    for _ in range(4):
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        ends.append(terminated | truncated)
        assert reward.shape == (5,) and np.isfinite(reward).all()
    assert (ends[0] | ends[1] | ends[2]).all()
    assert np.array_equal(run.dream_env(5, 3).reset(seed=3)[0], env.reset(seed=3)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore:.*already in registry")  # RLlib registers its wrapper anew
@pytest.mark.parametrize(
    ("agent", "settings"), [("ppo", {"ppo": PPO}), ("dqn", {"dqn": DQN}), ("random", {})]
)
def test_a_baseline_acts_and_has_no_dream(
    tmp_path: Path, ray_session: None, agent: str, settings: dict[str, Any]
) -> None:
    mbrl.train(config(tmp_path / "run", agent=agent, **settings))
    run = mbrl.open_run(tmp_path / "run")
    assert set(play(run, run.agent())) <= set(range(6))
    if agent != "random":  # greedy baselines have no randomness
        assert evaluated(run, run.agent()) == run.result()["eval"]["returns"]
    with pytest.raises(MbrlError, match=f"agent=dream has, got agent={agent}"):
        run.dream_env()
    with pytest.raises(MbrlError, match="only dream and model_free store it"):
        run.replay()


def test_an_unfinished_run_opens_and_says_what_it_does_not_have_yet(tmp_path: Path) -> None:
    with pytest.raises(MbrlError, match=r"expected a run folder, with config\.yaml in it"):
        mbrl.open_run(tmp_path)
    (tmp_path / "config.yaml").write_text(config_file.dump(config(tmp_path)))
    run = mbrl.open_run(tmp_path)
    assert run.metrics() == []
    with pytest.raises(MbrlError, match="expected the result of finished work"):
        run.result()
    for ask in (run.agent, run.dream_env):
        with pytest.raises(CheckpointError, match="expected a complete checkpoint"):
            ask()


def test_train_is_called_the_same_before_and_after_its_module_is_imported(tmp_path: Path) -> None:
    made = config_file.dump(config(tmp_path / "never", env_steps=10**6))
    (tmp_path / "c.yaml").write_text(made)
    code = f"""
import json, sys
import mbrl
light = sorted({{"torch", "ray"}} & sys.modules.keys())
from mbrl.errors import ConfigError
said = []
def refused(call):
    try:
        call({str(tmp_path / "c.yaml")!r}, env_stepz=3)
    except ConfigError as error:
        said.append(str(error))
refused(mbrl.train)
from mbrl.train import train
import mbrl.train as module
refused(mbrl.train)
refused(module)
print(json.dumps([light, said, train is module.train, train is mbrl.train.train]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    light, said, *same = json.loads(done.stdout.splitlines()[-1])
    assert (light, same) == ([], [True, True])
    assert len(said) == 3 and len(set(said)) == 1 and "did you mean env_steps" in said[0]


def test_settings_come_from_a_file_a_shipped_name_or_settings_made_before(tmp_path: Path) -> None:
    shipped = mbrl.load_config("quickstart", env_steps=7700, **{"learn_model.lr": 0.5})
    assert (shipped.name, shipped.env_steps, shipped.learn_model.lr) == ("quickstart", 7700, 0.5)
    (tmp_path / "mine.yaml").write_text("env: {id: MinAtar/Breakout-v1}\n")
    mine = mbrl.load_config(tmp_path / "mine.yaml")
    assert mbrl.load_config(mine) is mine
    changed = mbrl.load_config(mine, seed=3, **{"world_model.hidden": 64})
    assert (changed.seed, changed.world_model.hidden) == (3, 64)
    assert mbrl.load_config(changed, seed=0, **{"world_model.hidden": 256}) == mine
    for start in (mine, tmp_path / "mine.yaml"):
        with pytest.raises(ConfigError, match=r"override 'seed': seed: expected .* got -1"):
            mbrl.load_config(start, seed=-1)


def test_gymnasium_makes_the_same_dreams_by_their_id(run: mbrl.OpenRun) -> None:
    settings: dict[str, Any] = {"num_envs": 3, "horizon": 4, "seed": 5}
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        by_id = gymnasium.make_vec("reverie/Dream-v0", run=run.dir, autoreset_mode=mode, **settings)
        ours = run.dream_env(**settings, autoreset_mode=mode)
        assert by_id.metadata["autoreset_mode"] is mode
        played = []
        for dreams in (by_id, ours):
            obs = [dreams.reset()[0]]
            obs += [dreams.step(np.zeros(3, int))[0] for _ in range(6)]
            played.append(np.stack(obs))
        assert np.array_equal(*played)
