"""The dream as an environment, over a stub world model that can be followed by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from agents.dream_learner import ShareableTensorEnv
from mbrl.errors import TrainingError
from mbrl.imagine import DreamEnv, DreamVectorEnv
from mbrl.world_model.latent import ImaginedStep, Latent

ACTIONS = spaces.Discrete(3)
LAST = 9


class CountingModel:
    """A state that is a number: it grows by one, pays itself, and ends for sure at LAST."""

    feature_size = 2
    feature_map = None

    def features(self, latent):
        return latent.features

    def imagine_step(self, latent, action, generator=None):
        count = latent.hidden + 1
        following = Latent(count, action.float().unsqueeze(-1))
        reward = count.squeeze(-1)
        return ImaginedStep(following, reward, (reward < LAST).float())


def starts(*values):
    hidden = torch.tensor(values, dtype=torch.float32).unsqueeze(-1)
    return Latent(hidden, torch.zeros_like(hidden))


def dream(*values, num_envs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return DreamEnv(CountingModel(), ACTIONS, starts(*values), num_envs, generator)


def test_dream_env_is_a_tensor_env_that_can_be_shared_and_moved():
    env = dream(0)
    assert isinstance(env, ShareableTensorEnv)
    assert (env.num_envs, env.obs_dim, env.device.type) == (4, 2, "cpu")
    assert env.to(torch.device("cpu")) is env  # it is there already


def test_reset_draws_real_starts_only():
    obs = dream(2, 5, num_envs=64).reset()
    assert obs.shape == (64, 2)
    assert set(obs[:, 1].tolist()) == {2.0, 5.0}


def test_step_returns_what_the_action_led_to():
    env = dream(3)
    env.reset()
    obs, reward, continue_prob, info = env.step(torch.tensor([0, 1, 2, 1]))
    assert obs.tolist() == [[0, 4], [1, 4], [2, 4], [1, 4]]
    assert (reward.tolist(), continue_prob.tolist(), info) == ([4.0] * 4, [1.0] * 4, {})


def test_dreams_need_a_start():
    with pytest.raises(TrainingError, match="expected at least one real latent"):
        dream()


def test_shares_divide_dreams_and_starts_and_never_repeat_a_stream():
    env = dream(*range(10), num_envs=8)
    first, second = env.share(0, 2), env.share(1, 2)
    assert first.num_envs == second.num_envs == 4
    assert first.starts.hidden.squeeze(-1).tolist() == [0, 2, 4, 6, 8]
    assert second.starts.hidden.squeeze(-1).tolist() == [1, 3, 5, 7, 9]
    seeds = {part.generator.initial_seed() for part in (first, second, env.share(0, 2))}
    assert len(seeds) == 3


@pytest.fixture
def vector():
    return DreamVectorEnv(dream(LAST - 3), horizon=100)


def test_vector_spaces_and_dtypes_are_gymnasiums(vector):
    obs, info = vector.reset(seed=1)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert vector.single_observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert vector.action_space == spaces.MultiDiscrete([3] * 4)
    assert obs in vector.observation_space
    assert info == {}
    obs, reward, terminated, truncated, info = vector.step(vector.action_space.sample())
    assert obs in vector.observation_space
    assert reward.shape == terminated.shape == truncated.shape == (4,)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float32, np.bool_, np.bool_)


def test_vector_terminates_where_the_model_says_so_and_restarts_on_the_next_step(vector):
    vector.reset(seed=1)
    action = np.ones(4, np.int64)
    seen = [vector.step(action) for _ in range(5)]
    states = [obs[0, 1] for obs, *_ in seen]
    rewards = [reward[0] for _, reward, *_ in seen]
    ends = [bool(terminated[0]) for _, _, terminated, _, _ in seen]
    # from 6: 7, 8, 9 (the end), then the reset to 6 whose action is ignored, then 7 again
    assert states == [7, 8, 9, 6, 7]
    assert rewards == [7, 8, 9, 0, 7]
    assert ends == [False, False, True, False, False]


def test_vector_truncates_at_the_horizon_and_does_not_call_it_an_end():
    vector = DreamVectorEnv(dream(0), horizon=2)
    vector.reset(seed=1)
    action = np.zeros(4, np.int64)
    seen = [vector.step(action) for _ in range(4)]
    assert [bool(step[3][0]) for step in seen] == [False, True, False, False]
    assert not any(step[2].any() for step in seen)
    assert [step[0][0, 1] for step in seen] == [1, 2, 0, 1]


def test_vector_repeats_itself_under_a_seed():
    played = []
    for _ in range(2):
        vector = DreamVectorEnv(dream(*range(8), num_envs=5, seed=9), horizon=3)
        first, _ = vector.reset(seed=7)
        played.append([first, *[vector.step(np.full(5, k % 3))[0] for k in range(8)]])
    assert np.array_equal(*played)


def test_vector_passes_through_gymnasiums_own_wrappers(vector):
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    wrapped.reset(seed=1)
    info = {}
    for _ in range(3):
        *_, info = wrapped.step(np.zeros(4, np.int64))
    assert info["episode"]["r"].tolist() == [24.0] * 4  # 7 + 8 + 9
    assert info["episode"]["l"].tolist() == [3] * 4


def test_vector_in_the_same_step_mode_shows_the_next_start_and_where_the_last_ended():
    vector = DreamVectorEnv(dream(LAST - 3), horizon=100, autoreset_mode="SameStep")
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert DreamVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    vector.reset(seed=1)
    seen = [vector.step(np.ones(4, np.int64)) for _ in range(5)]
    assert [obs[0, 1] for obs, *_ in seen] == [7, 8, 6, 7, 8]  # 9 is the end, 6 the next start
    assert [reward[0] for _, reward, *_ in seen] == [7, 8, 9, 7, 8]
    assert [bool(step[2][0]) for step in seen] == [False, False, True, False, False]
    assert [set(step[4]) for step in seen[:2]] == [set(), set()]
    infos = seen[2][4]
    assert [final[1] for final in infos["final_obs"]] == [9] * 4
    assert infos["_final_obs"].all() and "final_info" in infos


def test_vector_truncated_in_the_same_step_mode_gives_the_final_observation_too():
    vector = DreamVectorEnv(dream(0), horizon=2, autoreset_mode=AutoresetMode.SAME_STEP)
    vector.reset(seed=1)
    _, (obs, _, terminated, truncated, infos) = [vector.step(np.zeros(4, int)) for _ in range(2)]
    assert truncated.all() and not terminated.any()
    assert obs[:, 1].tolist() == [0] * 4
    assert [final[1] for final in infos["final_obs"]] == [2] * 4


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_resets_only_what_the_mask_picks(mode):
    vector = DreamVectorEnv(dream(0), horizon=8, autoreset_mode=mode)
    vector.reset(seed=1)
    for _ in range(3):
        vector.step(np.zeros(4, int))
    mask = np.array([True, False, False, True])
    obs, _ = vector.reset(options={"reset_mask": mask})
    assert obs[:, 1].tolist() == [0, 3, 3, 0]
    assert vector.step(np.zeros(4, int))[0][:, 1].tolist() == [1, 4, 4, 1]
    for _ in range(4):
        *_, truncated, _ = vector.step(np.zeros(4, int))
    assert truncated.tolist() == [False, True, True, False]  # the horizon is each dream's own


@pytest.mark.parametrize("mask", [[True] * 4, np.ones(4), np.ones(3, bool), np.zeros(4, bool)])
def test_vector_refuses_another_mask(vector, mask):
    vector.reset()
    with pytest.raises(ValueError, match=r"reset_mask: expected a numpy array \(4,\) of bool"):
        vector.reset(options={"reset_mask": mask})


def test_vector_asks_for_the_reset_it_needs(vector):
    with pytest.raises(ResetNeeded):
        vector.step(np.zeros(4, int))
    with pytest.raises(ResetNeeded):
        vector.reset(options={"reset_mask": np.array([True, False, False, False])})
    by_hand = DreamVectorEnv(dream(0), horizon=1, autoreset_mode="Disabled")
    by_hand.reset()
    by_hand.step(np.zeros(4, int))
    with pytest.raises(ResetNeeded, match=r"\[0, 1, 2, 3\]"):
        by_hand.step(np.zeros(4, int))
    by_hand.reset(options={"reset_mask": by_hand.done})
    assert by_hand.step(np.zeros(4, int))[0][:, 1].tolist() == [1] * 4


@pytest.mark.filterwarnings("ignore:.*already in registry")  # RLlib registers its wrapper anew
def test_stock_rllib_ppo_trains_in_a_dream(ray_session):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    register_env(
        "reverie-test-dream",
        lambda config: DreamVectorEnv(dream(0, 3, num_envs=config["num_envs"]), horizon=5),
    )
    config = (
        PPOConfig()
        .environment("reverie-test-dream", env_config={"num_envs": 8})
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=8,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .training(train_batch_size=80, minibatch_size=40, num_epochs=1)
    )
    algo = config.build_algo()
    try:
        result = algo.train()
    finally:
        algo.stop()
    # every dream from 0 pays 1+2+3+4+5 and from 3 pays 4+5+6+7+8 before it is cut or ends
    assert 15 <= result["env_runners"]["episode_return_mean"] <= 30
    assert result["env_runners"]["num_env_steps_sampled"] >= 80
