import numpy as np
import pytest

from envs import EnvError, EnvSettings, make_env
from envs.minatar import frame_to_rgb

GAMES = {"Asterix": (4, 5), "Breakout": (4, 3), "Freeway": (7, 3), "Seaquest": (10, 6)}
GAMES["SpaceInvaders"] = (6, 4)


def play(env, seed: int, actions: list[int]) -> list[tuple[bytes, float, bool]]:
    obs, _ = env.reset(seed=seed)
    seen = [(obs.tobytes(), 0.0, False)]
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
        seen.append((obs.tobytes(), reward, terminated))
        if terminated:
            break
    return seen


@pytest.mark.parametrize(("game", "sizes"), GAMES.items())
def test_observations_are_binary_uint8_and_actions_minimal(
    game: str, sizes: tuple[int, int]
) -> None:
    channels, actions = sizes
    env = make_env(EnvSettings(id=f"MinAtar/{game}-v1"))
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.uint8 and obs.shape == (10, 10, channels)
    assert set(np.unique(obs)) == {0, 1}
    assert env.observation_space.high.max() == 1
    assert env.observation_space.contains(obs)
    assert env.action_space.n == actions
    assert make_env(EnvSettings(id=f"MinAtar/{game}-v0")).action_space.n == 6


@pytest.mark.parametrize("game", GAMES)
def test_an_episode_depends_on_its_seed_and_not_on_the_one_before(game: str) -> None:
    settings = EnvSettings(id=f"MinAtar/{game}-v1", sticky_actions=0.5)
    used, new = make_env(settings), make_env(settings)
    rng = np.random.default_rng(0)
    actions = rng.integers(used.action_space.n, size=150).tolist()
    for other in range(3):  # leaves another last action behind each time
        play(used, seed=other, actions=rng.integers(1, used.action_space.n, size=20).tolist())
        assert play(used, 7, actions) == play(new, 7, actions)
    assert play(used, 8, actions) != play(new, 7, actions)


def test_observations_are_safe_to_keep() -> None:
    env = make_env(EnvSettings(id="MinAtar/Breakout-v1"))
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step(1)[0]
    assert not np.shares_memory(first, second)
    assert (first == kept).all()


def test_freeway_terminates_by_its_own_clock() -> None:
    env = make_env(EnvSettings(id="MinAtar/Freeway-v1"))
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(2501)]
    assert ends == [(False, False)] * 2500 + [(True, False)]


def test_sticky_actions_of_zero_always_obey() -> None:
    env = make_env(EnvSettings(id="MinAtar/Breakout-v1", sticky_actions=0.0))
    obs, _ = env.reset(seed=0)
    columns = [int(np.flatnonzero(obs[9, :, 0])[0])]
    for _ in range(3):
        columns.append(int(np.flatnonzero(env.step(1)[0][9, :, 0])[0]))
    assert columns == [4, 3, 2, 1]


def test_the_sticky_probability_has_one_name() -> None:
    settings = EnvSettings(id="MinAtar/Breakout-v1", kwargs={"sticky_action_prob": 0.2})
    with pytest.raises(EnvError, match=r"expected env\.sticky_actions"):
        make_env(settings)


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_the_last_channel_is_painted_on_top(kind: type) -> None:
    frame = np.zeros((5, 1, 2, 3), kind)
    frame[:, 0, 1, [0, 2]] = 1
    rgb = frame_to_rgb(frame)
    assert rgb.dtype == np.uint8
    assert rgb.tolist() == [[[[0, 0, 0], [116, 78, 130]]]] * 5


def test_more_channels_than_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 10 channels, got 11"):
        frame_to_rgb(np.zeros((1, 1, 11), np.uint8))
