"""Learning inside a tensor environment: it learns, it resumes exactly, it fails loudly."""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray import cloudpickle

from agents import numerics
from agents.dream_learner import roll_out
from agents.dream_ppo import DreamPPO, PolicyLearningError
from agents.settings import DreamPolicySettings

# Ray Data copies its own deprecated settings when a learner actor starts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

FAST = DreamPolicySettings(
    horizon=8, dreams=128, minibatch_size=256, epochs=3, hidden=(32,), lr=3e-3, gamma=0.9
)


class Corridor:
    """Five rooms in a row, entered in the middle. Action 1 goes right, 0 left.

    The right end pays 1 and the left end 0.2; both are terminal. Always right is optimal: two steps
    to the end, so the value of the middle is gamma.
    """

    obs_dim = 5
    action_space = gym.spaces.Discrete(2)
    device = torch.device("cpu")

    def __init__(self, num_envs: int, reward: float = 1.0) -> None:
        self.num_envs = num_envs
        self.reward = reward
        self.place = torch.full((num_envs,), 2)

    def reset(self) -> torch.Tensor:
        self.place = torch.full((self.num_envs,), 2)
        return self._obs()

    def _obs(self) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.place, 5).float()

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.place = (self.place + 2 * action - 1).clamp(0, 4)
        right, left = self.place == 4, self.place == 0
        reward = self.reward * right.float() + 0.2 * self.reward * left.float()
        info: Any = {"right": right.float()}
        return self._obs(), reward, 1.0 - (right | left).float(), info

    def share(self, index: int, count: int) -> "Corridor":
        return Corridor(self.num_envs // count, self.reward)

    def to(self, device: torch.device) -> "Corridor":
        return self


class Aim:
    """The observation is a point in [-1, 1]; the action in [-4, 4] should be 3 times it."""

    obs_dim = 1
    action_space = gym.spaces.Box(-4.0, 4.0, (1,), np.float32)
    device = torch.device("cpu")

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.generator = torch.Generator().manual_seed(0)
        self.point = torch.zeros(num_envs, 1)

    def reset(self) -> torch.Tensor:
        self.point = torch.rand(self.num_envs, 1, generator=self.generator) * 2 - 1
        return self.point

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if action.min() < -4 or action.max() > 4:
            raise ValueError("action out of bounds")
        reward = -((action - 3 * self.point) ** 2).squeeze(1)
        info: Any = {}
        return self.reset(), reward, torch.ones(self.num_envs), info


def new_agent(seed: int = 0, settings: DreamPolicySettings = FAST, **kwargs: Any) -> DreamPPO:
    return DreamPPO(settings, 5, Corridor.action_space, seed=seed, **kwargs)


def changed(**changes: Any) -> DreamPolicySettings:
    return FAST.model_copy(update=changes)


def right_probability(agent: DreamPPO) -> torch.Tensor:
    """Probability of going right in the three inner rooms."""
    with torch.no_grad():
        return agent.module.policy(torch.eye(5)).softmax(-1)[1:4, 1]


def test_first_policy_is_uniform_and_first_values_are_zero() -> None:
    agent = new_agent()
    batch = {"obs": torch.eye(5)}
    assert torch.equal(right_probability(agent), torch.full((3,), 0.5))
    assert agent.module.compute_values(batch).abs().max() < 1e-2


@pytest.mark.parametrize("critic", ["twohot", "mse"])
@pytest.mark.parametrize("reward", [1.0, 300.0])
def test_policy_goes_to_the_better_end_and_values_it_right(critic: str, reward: float) -> None:
    agent = new_agent(settings=changed(critic=critic))
    metrics = agent.learn(Corridor(128, reward), rounds=60)
    assert right_probability(agent).min() > 0.95
    assert metrics["dream_steps"] == 60 * 8 * 128
    if critic == "twohot" or reward == 1.0:
        value = agent.module.compute_values({"obs": torch.eye(5)})
        assert value[3].item() == pytest.approx(reward, rel=0.1)
        assert value[2].item() == pytest.approx(0.9 * reward, rel=0.1)


def test_a_critic_says_returns_beyond_its_limit_and_remembers_how_wide_it_is() -> None:
    narrow = changed(value_limit=10.0)
    agent, other = new_agent(settings=narrow), new_agent(settings=narrow)
    for one in agent._each(lambda learner: learner.latent_module.bins):
        assert one[-1] == 10
    agent.learn(Corridor(64, reward=1e6), rounds=1)
    other.set_state(agent.get_state())
    for one in (agent, other):
        (bins,) = one._each(lambda learner: learner.latent_module.bins)
        assert 5e5 < bins[-1] < 4e6


def test_features_that_are_maps_go_through_a_convolution() -> None:
    agent = new_agent(settings=changed(maps=8), feature_map=(1, 5, 1))
    agent.learn(Corridor(128), rounds=60)
    assert agent.module.torso is not None
    assert right_probability(agent).min() > 0.95


def test_q_learning_values_every_action_and_takes_the_best_but_for_its_share() -> None:
    agent = new_agent(settings=changed(algorithm="q", epsilon=0.2, lam=0.5))
    assert right_probability(agent).tolist() == pytest.approx([0.1] * 3)  # the first, at first
    agent.learn(Corridor(128), rounds=60)
    assert right_probability(agent).tolist() == pytest.approx([0.9] * 3)
    values = agent.module.value_logits(torch.eye(5))
    assert values[3, 1].item() == pytest.approx(1.0, abs=0.1)
    assert values[2, 1].item() == pytest.approx(0.9, abs=0.1)
    assert values[1, 0].item() == pytest.approx(0.2, abs=0.1)
    assert agent.module.act(torch.eye(5)[1:4], explore=False).tolist() == [1, 1, 1]


def test_q_values_are_the_same_numbers_in_any_unit() -> None:
    agent = new_agent(settings=changed(algorithm="q"))
    agent.learn(Corridor(128), rounds=3)
    module: Any = agent.module
    before, count = module.value_logits(torch.eye(5)), module._run(torch.eye(5), module.critic)
    module.measure_in(float(module.unit) / 8)
    assert torch.allclose(module.value_logits(torch.eye(5)), before, rtol=1e-6)
    after = module._run(torch.eye(5), module.critic)
    assert torch.allclose(after, 8 * count) and count.abs().max() > 0


def test_what_acts_is_the_running_mean_of_the_rounds() -> None:
    """The first round's network stays with a share of 0.05."""
    agent = new_agent(settings=changed(algorithm="q", average=0.05))
    module: Any = agent.module
    agent.learn(Corridor(128), rounds=1)
    first = [newest.clone() for _, newest in module._steady_parameters()]
    assert all(torch.equal(*pair) for pair in module._steady_parameters())
    unit = float(module.unit)
    agent.learn(Corridor(128), rounds=1)
    last = len(first) - 2  # what counts in units
    for index, (mean, newest) in enumerate(module._steady_parameters()):
        old = first[index] * (unit / float(module.unit) if index >= last else 1.0)
        assert torch.allclose(mean, 0.05 * old + 0.95 * newest, atol=1e-6)
    mean_values = module._run(torch.eye(5), module.steady_critic)
    assert torch.equal(module.acting(torch.eye(5)), module._greedy(mean_values))


def test_q_learning_of_continuous_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a Discrete action space"):
        DreamPPO(changed(algorithm="q"), 1, Aim.action_space, seed=0)


def test_policy_learns_continuous_actions_within_their_bounds() -> None:
    settings = changed(horizon=4, gamma=0.5, entropy=0.0, lr=5e-3)
    agent = DreamPPO(settings, 1, Aim.action_space, seed=0)
    agent.learn(Aim(128), rounds=150)
    points = torch.linspace(-1, 1, 9).unsqueeze(1)
    aimed = agent.module.act(points, explore=False)
    assert (aimed - 3 * points).abs().mean() < 0.4


def test_rows_of_a_rollout_follow_from_the_actions_in_them() -> None:
    agent = new_agent()
    rollout = roll_out(Corridor(16), agent.module, 4, torch.Generator().manual_seed(1))
    assert rollout.obs.shape == (5, 16, 5)
    place = torch.full((16,), 2)
    for k in range(4):
        assert torch.equal(rollout.obs[k].argmax(-1), place)
        place = (place + 2 * rollout.action[k] - 1).clamp(0, 4)
        assert torch.equal(rollout.continue_prob[k], ((place != 0) & (place != 4)).float())


@pytest.mark.parametrize("has", [True, False])
def test_actor_and_critic_compute_in_bfloat16_where_the_device_has_it(
    has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "has_bfloat16", lambda device: has)
    wished, plain = (new_agent(settings=changed(autocast=wish)) for wish in (True, False))
    wished.learn(Corridor(128), rounds=1)  # the last layers start at zero
    plain.module.load_state_dict(wished.get_weights())
    features = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    inputs = wished.module.policy(features)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, plain.module.policy(features)) is not has
    rollout = roll_out(Corridor(16), wished.module, 4, torch.Generator().manual_seed(1))
    assert rollout.obs.dtype == (torch.bfloat16 if has else torch.float32)


def test_weights_follow_from_the_seed_alone_and_leave_the_global_generator_alone() -> None:
    def trained(seed: int) -> torch.Tensor:
        agent = new_agent(seed)
        agent.learn(Corridor(128), rounds=2)
        return agent.get_weights()["actor.0.weight"]

    before = torch.get_rng_state()
    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("autocast", [False, True])
def test_stop_and_resume_equals_never_stopped_bit_for_bit(
    autocast: bool, bfloat16_everywhere: None
) -> None:
    whole = new_agent(settings=changed(autocast=autocast))
    whole.learn(Corridor(128), rounds=3)
    saved = copy.deepcopy(whole.get_state())
    expected = whole.learn(Corridor(128), rounds=3)

    resumed = new_agent(99, changed(autocast=autocast))
    resumed.set_state(saved)
    got = resumed.learn(Corridor(128), rounds=3)

    assert resumed.version == whole.version == 6
    for name, weight in whole.get_weights().items():
        assert torch.equal(weight, resumed.get_weights()[name]), name
    for name in ("policy_loss", "value_loss", "return", "return_scale", "kl", "env/right"):
        assert got[name] == expected[name], name
    whole.set_state(saved)  # an older state, into the same agent
    assert torch.equal(whole.module.actor[0].weight, saved["module"]["actor.0.weight"])


def test_state_of_another_number_of_learners_is_refused() -> None:
    agent = new_agent()
    state = agent.get_state()
    state["learners"]["1"] = state["learners"]["0"]
    with pytest.raises(ValueError, match="state of 1 learners, got 2"):
        agent.set_state(state)


def test_what_is_not_finite_is_an_error_and_leaves_the_weights_alone() -> None:
    agent = new_agent()
    with pytest.raises(PolicyLearningError, match="expected finite returns"):
        agent.learn(Corridor(128, float("nan")), rounds=1)
    assert all(torch.isfinite(w).all() for w in agent.get_weights().values())


@pytest.fixture(scope="module")
def cluster(ray_session: None) -> Iterator[None]:
    # The environments above live in a module that learner processes cannot import.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_two_learners_dream_their_shares_and_keep_equal_weights(cluster: None) -> None:
    agent = new_agent(num_learners=2)
    metrics = agent.learn(Corridor(128), rounds=10)
    assert metrics["dream_steps"] == 10 * 8 * 128
    assert right_probability(agent).min() > 0.55
    first, second = agent._each(lambda learner: learner.dream_state())
    assert torch.equal(first["module"]["actor.0.weight"], second["module"]["actor.0.weight"])
    assert first["own"]["return_scale"] == second["own"]["return_scale"]
    assert not torch.equal(first["own"]["generator"], second["own"]["generator"])

    saved = agent.get_state()
    agent.learn(Corridor(128), rounds=1)
    agent.set_state(saved)
    assert torch.equal(agent.get_weights()["actor.0.weight"], first["module"]["actor.0.weight"])

    with pytest.raises(ValueError, match=r"share\(index, count\)"):
        agent.learn(Corridor(127), rounds=1)
    agent.close()
