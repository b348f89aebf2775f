"""Stock RLlib baselines: they learn, their steps are counted exactly, they resume."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.baselines import dqn as dqn_baseline
from agents.baselines.dqn import DQNSettings
from agents.baselines.ppo import PPOSettings
from agents.model_free import ModelFree
from agents.settings import Settings
from agents.state import pack_episodes, unpack_episodes

# RLlib 2.60 uses parts of itself, of Ray and of gymnasium that these packages have deprecated.
pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:gymnasium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PPO = PPOSettings(num_envs=4, batch_steps=256, minibatch_size=64, epochs=8, lr=2e-3, dense=16)
DQN = DQNSettings(
    num_envs=2,
    learning_starts=100,
    training_intensity=16,
    epsilon_steps=300,
    target_update_steps=50,
    lr=2e-3,
    gamma=0.5,
    dense=16,
)
OBS = gym.spaces.Box(0, 1, (5, 5, 2), np.uint8)
ACTIONS = gym.spaces.Discrete(2)

steps_seen = 0
taken: set[int] = set()  # by `FromFive`


class Lamp(gym.Env[Any, Any]):
    """One of two channels is lit; naming it pays 1. Episodes have `length` steps."""

    observation_space = OBS
    action_space = ACTIONS

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def _obs(self) -> Any:
        self.lit = int(self.np_random.integers(2))
        obs = np.zeros(OBS.shape, np.uint8)
        obs[:, :, self.lit] = 1
        return obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        global steps_seen
        steps_seen += 1
        reward = float(action == self.lit)
        self.t += 1
        return self._obs(), reward, self.t >= self.length, False, {}


def new_agent(kind: str, settings: Settings, seed: int = 0, env: Any = Lamp) -> ModelFree:
    return ModelFree(kind, settings, env, OBS, ACTIONS, seed=seed)


def share_right(agent: ModelFree, explore: bool) -> float:
    """Share of right answers over 200 pictures."""
    policy = agent.policy()
    policy.reset(200)
    lit = np.arange(200) % 2
    obs = np.zeros((200, 5, 5, 2), np.uint8)
    obs[np.arange(200), :, :, lit] = 1
    return float((policy.act(obs, np.zeros(200, bool), explore=explore) == lit).mean())


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            assert isinstance(key, str)
            yield from leaves(value)
    else:
        yield tree


@pytest.fixture(scope="module")
def agents(ray_session: None) -> Iterator[dict[str, ModelFree]]:
    both = {"ppo": new_agent("ppo", PPO), "dqn": new_agent("dqn", DQN)}
    yield both
    for agent in both.values():
        agent.close()


@pytest.mark.parametrize(("kind", "steps", "explores"), [("ppo", 2_000, 0.8), ("dqn", 600, 0.9)])
def test_a_baseline_learns_counts_its_steps_and_resumes(
    agents: dict[str, ModelFree], kind: str, steps: int, explores: float
) -> None:
    agent, before = agents[kind], steps_seen
    metrics = agent.learn(steps)
    assert metrics["env_steps"] == agent.env_steps == steps_seen - before
    assert steps <= agent.env_steps < steps + 256
    assert share_right(agent, explore=False) == 1.0
    assert share_right(agent, explore=True) > explores

    state = agent.get_state()
    assert all(isinstance(leaf, torch.Tensor | int | float | str) for leaf in leaves(state))
    other = new_agent(kind, agent.settings, seed=5)
    other.set_state(state)
    assert (other.env_steps, other.version) == (agent.env_steps, agent.version)
    again = other.get_state()
    for group in {"module", "adam", "replay"} & state.keys():
        for got, expected in zip(leaves(again[group]), leaves(state[group]), strict=True):
            assert torch.equal(got, expected)
    if kind == "dqn":
        assert int(state["replay"]["steps"].sum()) == agent.env_steps
        assert other.algo.local_replay_buffer.get_num_timesteps() == agent.env_steps
    metrics = other.learn(50)
    assert other.env_steps == agent.env_steps + metrics["env_steps"]
    assert "total_loss" in metrics  # gradient steps, at once
    assert share_right(other, explore=False) == 1.0
    other.close()
    with pytest.raises(ValueError, match=f"state of a {kind} baseline, got sac"):
        agent.set_state({"kind": "sac"})


def test_learning_goes_on_when_no_episode_ends() -> None:
    agent = new_agent("ppo", PPO, env=lambda: Lamp(length=10**9))
    metrics = agent.learn(300)
    assert metrics["env_steps"] >= 300
    assert "episode_return" not in metrics
    agent.close()


@pytest.mark.parametrize(
    ("done", "expected"),
    [(0, [(0, 1.0), (100, 0.0)]), (25, [(0, 0.75), (75, 0.0)]), (100, 0.0), (500, 0.0)],
)
def test_resumed_dqn_goes_on_with_its_exploration_schedule(done: int, expected: Any) -> None:
    settings = DQNSettings(
        epsilon_start=1.0, epsilon_end=0.0, epsilon_steps=100, learning_starts=50
    )
    config = dqn_baseline.config(settings, steps_done=done)
    assert config.epsilon == expected
    assert config.num_steps_sampled_before_learning_starts == max(0, 50 - done)


def test_packed_episodes_keep_endings_and_running_episodes() -> None:
    packed = {
        "obs": torch.arange(7, dtype=torch.uint8).reshape(7, 1),
        "actions": torch.tensor([0, 1, 1, 0]),
        "rewards": torch.tensor([0.0, 1.0, 2.0, 3.0]),
        "steps": torch.tensor([2, 1, 1]),
        "terminated": torch.tensor([True, False, False]),
        "truncated": torch.tensor([False, True, False]),
    }
    episodes = unpack_episodes(packed, gym.spaces.Box(0, 255, (1,), np.uint8), ACTIONS)
    assert [e.is_done for e in episodes] == [True, True, False]
    again = pack_episodes(episodes)
    assert set(again) == set(packed)
    for name, tensor in packed.items():
        assert torch.equal(again[name], tensor), name
    assert pack_episodes([]) == {}
    assert unpack_episodes({}, OBS, ACTIONS) == []


class FromFive(Lamp):
    """Counts its actions from 5."""

    action_space = gym.spaces.Discrete(2, start=5)

    def step(self, action: Any) -> Any:
        taken.add(int(action))
        return super().step(int(action) - 5)


def test_choices_that_start_elsewhere_reach_the_environment_as_it_counts_them() -> None:
    agent = ModelFree("ppo", PPO, FromFive, OBS, FromFive.action_space, seed=0)
    try:
        agent.learn(256)
        drawn = agent.policy().act(np.zeros((64, 5, 5, 2), np.uint8), np.ones(64, bool))
    finally:
        agent.close()
    assert taken == {5, 6} and set(drawn.tolist()) == {5, 6}


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 3, (2,), np.int64),
        gym.spaces.Box(-1, 1, (2, 2)),
        gym.spaces.MultiBinary(3),
        gym.spaces.Dict(a=ACTIONS),
    ],
)
def test_actions_that_rllib_cannot_draw_are_refused(space: gym.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected Discrete actions, or one axis .* agent=dream"):
        ModelFree("ppo", PPO, Lamp, OBS, space, seed=0)


def test_dqn_refuses_continuous_actions() -> None:
    box = gym.spaces.Box(-1, 1, (2,), np.float32)
    with pytest.raises(ValueError, match="Discrete"):
        ModelFree("dqn", DQN, Lamp, OBS, box, seed=0)
