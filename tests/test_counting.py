import numpy as np
import pytest

from envs import EnvError, EnvSettings, make_env
from envs.counting import CountingEnv, length_for, read_action, read_length, read_step


def test_length_follows_from_the_seed() -> None:
    assert [length_for(seed) for seed in (0, 1, 15, 16)] == [5, 6, 20, 5]
    assert length_for(123, min_length=7, max_length=7) == 7


def test_pixels_spell_step_action_and_length() -> None:
    env = CountingEnv()
    obs, _ = env.reset(seed=3)
    rows = [[0] * 8] * 5 + [[0, 0, 0, 0, 1, 0, 0, 0]] + [[0] * 8] * 2  # 8, the highest bit first
    assert obs[..., 0].tolist() == rows and obs.dtype == np.uint8
    assert (read_step(obs), read_action(obs), read_length(obs)) == (0, 0, 8)
    for t, action in enumerate([3, 0, 2, 1], start=1):
        obs, reward, terminated, truncated, _ = env.step(action)
        assert (read_step(obs), read_action(obs), read_length(obs)) == (t, action, 8)
        assert reward == float(t)
        assert not terminated and not truncated


def test_numbers_above_one_byte_are_read_back() -> None:
    env = CountingEnv(min_length=300, max_length=300)
    env.reset(seed=0)
    for _ in range(299):
        obs = env.step(0)[0]
    assert (read_step(obs), read_length(obs)) == (299, 300)


@pytest.mark.parametrize("truncate", [False, True])
def test_episode_ends_at_its_length(truncate: bool) -> None:
    env = CountingEnv(truncate=truncate)
    env.reset(seed=1)
    ends = [env.step(0)[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(not truncate, truncate)]
    with pytest.raises(RuntimeError, match=r"expected reset\(\)"):
        env.step(0)


def test_without_a_seed_the_next_one_is_used() -> None:
    env = CountingEnv()
    env.reset(seed=10)
    obs, _ = env.reset()
    assert read_length(obs) == length_for(11)


def test_it_crashes_and_gives_nan_where_asked() -> None:
    env = CountingEnv(nan_at=2, crash_at=3)
    env.reset(seed=0)
    assert [env.step(0)[1], np.isnan(env.step(0)[1])] == [1.0, True]
    with pytest.raises(RuntimeError, match="crashes at step 3"):
        env.step(0)
    with pytest.raises(RuntimeError, match="crashes in reset"):
        CountingEnv(crash_at=0).reset(seed=0)


def test_lives_are_lost_at_multiples() -> None:
    env = CountingEnv(life_loss_every=2)
    env.reset(seed=0)
    assert [env.step(0)[4]["life_loss"] for _ in range(4)] == [False, True, False, True]


def test_lengths_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 <= min_length <= max_length"):
        CountingEnv(min_length=3, max_length=2)


def test_reading_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one picture"):
        read_step(np.zeros((2, 8, 8, 1), np.uint8))


def test_unknown_version_is_refused() -> None:
    with pytest.raises(EnvError, match="reverie/Counting-v0"):
        make_env(EnvSettings(id="reverie/Counting-v7"))
