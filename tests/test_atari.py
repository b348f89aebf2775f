import gymnasium as gym
import numpy as np
import pytest

from envs import EnvError, EnvSettings, make_env
from envs.atari import SeededGame


def play(env, seed: int, steps: int = 40) -> list[tuple[bytes, float]]:
    rng = np.random.default_rng(3)
    obs, _ = env.reset(seed=seed)
    seen = [(obs.tobytes(), 0.0)]
    for _ in range(steps):
        obs, reward, terminated, *_ = env.step(int(rng.integers(env.action_space.n)))
        seen.append((obs.tobytes(), float(reward)))
        if terminated:
            break
    return seen


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (64, 64, 1)),
        ({"grayscale": False}, (64, 64, 3)),
        ({"image_size": 84, "frame_skip": 1, "noop_max": 0}, (84, 84, 1)),
    ],
)
def test_frames_are_uint8_with_a_channel_axis(settings: dict, shape: tuple[int, ...]) -> None:
    env = make_env(EnvSettings(id="ALE/Pong-v5", **settings))
    obs, _ = env.reset(seed=0)
    after = env.step(0)[0]
    assert obs.shape == after.shape == env.observation_space.shape == shape
    assert obs.dtype == after.dtype == np.uint8
    assert len(np.unique(after)) > 2
    assert not np.shares_memory(obs, after)


@pytest.mark.parametrize("game", ["Pong", "Seaquest", "Krull"])
def test_an_episode_depends_on_its_seed_and_not_on_the_one_before(game: str) -> None:
    # Seaquest and Krull start differently after a plain reset of the console.
    settings = EnvSettings(id=f"ALE/{game}-v5")
    used, new = make_env(settings), make_env(settings)
    play(used, seed=1, steps=150)
    play(used, seed=2, steps=150)
    assert play(used, 7) == play(new, 7)
    assert play(used, 8) != play(new, 7)


def test_resets_with_a_seed_do_not_load_the_rom_again(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(EnvSettings(id="ALE/Pong-v5"))

    def load_game() -> None:
        raise AssertionError("loaded the ROM")

    monkeypatch.setattr(env.unwrapped, "load_game", load_game)
    env.reset(seed=1)
    env.reset(seed=2)


def test_life_loss_is_a_signal_and_not_an_ending() -> None:
    env = make_env(EnvSettings(id="ALE/Breakout-v5"))
    _, info = env.reset(seed=0)
    lives = info["lives"]
    assert lives == 5
    losses = []
    rng = np.random.default_rng(0)
    for _ in range(2000):
        *_, terminated, truncated, info = env.step(int(rng.integers(4)))
        assert info["life_loss"] == (info["lives"] < lives)
        lives = info["lives"]
        losses.append((info["life_loss"], terminated))
        if terminated or truncated:
            break
    assert sum(loss for loss, _ in losses) == 5
    assert losses[-1] == (True, True)
    assert sum(ended for _, ended in losses) == 1


class Echo(gym.Env):
    """Remembers the actions that reached it; has the parts of ALE's env that seeding needs."""

    action_space = gym.spaces.Discrete(100)
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)

    class ale:
        @staticmethod
        def cloneState() -> int:
            return 0

        @staticmethod
        def restoreState(state: int) -> None:
            pass

    def seed_game(self, seed: int) -> None:
        pass

    def reset(self, *, seed=None, options=None):
        self.actions: list[int] = []
        return np.zeros(1, np.float32), {}

    def step(self, action: int):
        self.actions.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_sticky_frames_repeat_the_last_action_as_often_as_stated() -> None:
    echo = Echo()
    env = SeededGame(echo, sticky_actions=0.25)
    env.reset(seed=0)
    n = 20_000
    for step in range(n):
        env.step(step % 100)
    repeats = [new == old for old, new in zip(echo.actions, echo.actions[1:], strict=False)]
    # Standard error sqrt(0.25 * 0.75 / 20000) = 0.003; five of them.
    assert abs(np.mean(repeats) - 0.25) < 0.015


def test_no_action_sticks_across_episodes() -> None:
    echo = Echo()
    env = SeededGame(echo, sticky_actions=0.9)
    firsts = set()
    for seed in range(40):
        env.reset(seed=seed)
        env.step(7)
        firsts.add(echo.actions[0])
        for _ in range(60):  # 7 sticks by now
            env.step(7)
    assert firsts == {0, 7}  # idle or obeyed, and with 40 seeds both are seen


def test_what_a_setting_decides_is_refused_in_kwargs() -> None:
    with pytest.raises(EnvError, match=r"expected env.frame_skip, got env.kwargs"):
        make_env(EnvSettings(id="ALE/Pong-v5", kwargs={"frameskip": 4}))


def test_all_actions_can_be_asked_for() -> None:
    env = make_env(EnvSettings(id="ALE/Pong-v5", kwargs={"full_action_space": True}))
    assert env.action_space.n == 18


def test_memory_is_given_when_asked_for_and_follows_the_game() -> None:
    assert "ram" not in make_env(EnvSettings(id="ALE/Pong-v5")).reset(seed=0)[1]
    env = make_env(EnvSettings(id="ALE/Pong-v5", ram=True, sticky_actions=0.0))
    _, info = env.reset(seed=0)
    assert info["ram"].shape == (128,) and info["ram"].dtype == np.uint8
    rows = []
    for _ in range(12):
        _, _, _, _, info = env.step(3)  # the paddle goes down: its row, byte 51, grows
        rows.append(int(info["ram"][51]))
        assert np.array_equal(info["ram"], env.unwrapped.ale.getRAM())
    assert rows[-1] > rows[0] and rows == sorted(rows)
