import itertools
from typing import Any

import numpy as np
import pytest

from envs import EnvError, EnvSettings, VectorEnv, make_env
from envs.pong import (
    BACKGROUND,
    PATTERNS,
    SERVE_PAUSE,
    SPRITE,
    STATE,
    TEXTURES,
    VELOCITY_OFFSET,
    PongEnv,
    court,
    pattern,
    rebound,
    texture,
)

STAY, UP, DOWN = 0, 1, 2


def state(info: dict[str, Any]) -> dict[str, int]:
    """The state by name, velocities with their sign."""
    values = dict(zip(STATE, info["ram"].tolist(), strict=True))
    for axis in ("row", "column"):
        values[f"ball_velocity_{axis}"] -= VELOCITY_OFFSET
    return values


def play(env: PongEnv, steps: int, seed: int = 0) -> list[tuple[np.ndarray, dict[str, int]]]:
    """Pictures and states of random play over as many episodes as it takes."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    seen = [(obs, state(info))]
    for _ in range(steps):
        obs, _, over, _, info = env.step(int(rng.integers(3)))
        if over:
            obs, info = env.reset()
        seen.append((obs, state(info)))
    return seen


def place(env: PongEnv, ball: tuple[int, int], velocity: tuple[int, int]) -> None:
    """Put the ball somewhere, in play."""
    env._pause = 0
    (env._row, env._column), (env._down, env._right) = ball, velocity


@pytest.mark.parametrize(("size", "ball"), [(64, 2), (64, 4), (40, 1), (16, 1)])
def test_state_equals_pixels_exactly(size: int, ball: int) -> None:
    layout, visible = court(size, ball), 0
    for obs, now in play(PongEnv(size=size, ball=ball), 400):
        expected = np.full((size, size, 1), BACKGROUND, np.uint8)
        own = slice(layout.own_column, layout.own_column + layout.paddle_width)
        other = slice(layout.other_column, layout.other_column + layout.paddle_width)
        expected[now["own_row"] : now["own_row"] + layout.paddle_height, own] = SPRITE
        expected[now["other_row"] : now["other_row"] + layout.paddle_height, other] = SPRITE
        if now["ball_visible"]:
            top, left = now["ball_row"], now["ball_column"]
            assert 0 <= top <= size - ball and 0 <= left <= size - ball
            expected[top : top + ball, left : left + ball] = SPRITE
        else:
            assert (now["ball_row"], now["ball_column"]) == (0, 0)
            assert (now["ball_velocity_row"], now["ball_velocity_column"]) == (0, 0)
        np.testing.assert_array_equal(obs, expected)
        assert now["texture_id"] == now["noise_id"] == 0
        visible += now["ball_visible"]
    assert 50 < visible < 400


def test_court_of_64_pixels_by_hand() -> None:
    layout = court()
    assert (layout.paddle_height, layout.paddle_width) == (8, 2)
    assert (layout.other_column, layout.own_column) == (4, 58)
    assert (layout.speed, layout.steepest) == (2, 3)


def test_ball_flies_straight_and_bounces_off_top_and_bottom() -> None:
    env = PongEnv()
    env.reset(seed=0)
    place(env, (5, 20), (-3, 2))
    path = [state(env.step(STAY)[4]) for _ in range(4)]
    assert [(s["ball_row"], s["ball_column"]) for s in path] == [(2, 22), (1, 24), (4, 26), (7, 28)]
    assert [s["ball_velocity_row"] for s in path] == [-3, 3, 3, 3]
    place(env, (61, 20), (2, 2))  # the lowest row of a ball of 2 is 62
    path = [state(env.step(STAY)[4]) for _ in range(2)]
    assert [(s["ball_row"], s["ball_velocity_row"]) for s in path] == [(61, -2), (59, -2)]


def test_paddles_return_the_ball_from_their_faces_and_steeper_from_their_ends() -> None:
    assert [rebound(offset, 3, 2) for offset in (-1, -0.5, 0.4, 1)] == [-3, -2, 1, 3]
    assert (rebound(0.0, 3, 2), rebound(0.0, 3, -2)) == (1, -1)
    env = PongEnv()
    for paddle, expected in ((24, 2), (28, 1), (32, -2)):  # its middle: rows 28, 32 and 36
        env.reset(seed=0)
        env._own = paddle
        place(env, (30, 55), (1, 2))
        now = state(env.step(STAY)[4])  # the ball's middle comes to row 32
        assert (now["ball_row"], now["ball_column"]) == (31, 56)  # right before column 58
        assert (now["ball_velocity_row"], now["ball_velocity_column"]) == (expected, -2)
    env._other = 28
    place(env, (31, 7), (1, -2))
    now = state(env.step(STAY)[4])
    assert (now["ball_column"], now["ball_velocity_column"]) == (6, 2)  # right after column 5


@pytest.mark.parametrize(("column", "velocity", "reward"), [(54, 2, -1.0), (7, -2, 1.0)])
def test_a_missed_ball_is_a_point_and_the_next_comes_after_a_pause(
    column: int, velocity: int, reward: float
) -> None:
    env = PongEnv()
    env.reset(seed=0)
    env._own = env._other = 0
    place(env, (55, column), (1, velocity))
    for _ in range(6):
        _, won, over, _, info = env.step(STAY)
        if won:
            break
        assert state(info)["ball_visible"] == 1
    assert won == reward and not over
    visible = [state(info)["ball_visible"]]
    visible += [state(env.step(STAY)[4])["ball_visible"] for _ in range(SERVE_PAUSE)]
    assert visible == [0] * SERVE_PAUSE + [1]


def test_actions_move_the_own_paddle_and_walls_stop_it() -> None:
    env = PongEnv()
    _, info = env.reset(seed=0)
    assert state(info)["own_row"] == 28
    rows = [state(env.step(action)[4])["own_row"] for action in (UP, UP, STAY, DOWN)]
    assert rows == [26, 24, 24, 26]
    assert [state(env.step(DOWN)[4])["own_row"] for _ in range(20)][-1] == 56
    with pytest.raises(ValueError, match="expected an action of 0, 1 or 2, got 3"):
        env.step(3)


def test_opponent_follows_the_ball_imperfectly() -> None:
    env = PongEnv()
    env.reset(seed=0)
    moves = []
    for _ in range(300):
        env._other = 28
        place(env, (50, 40), (1, -2))
        moves.append(state(env.step(STAY)[4])["other_row"] - 28)
    assert set(moves) == {0, 2}  # asleep or on its way
    assert 0.6 < np.mean(np.array(moves) == 2) < 0.8
    place(env, (50, 20), (1, 2))
    assert state(env.step(STAY)[4])["other_row"] == env._other  # the ball flies away: it waits


def test_episode_ends_when_one_side_has_the_points() -> None:
    env = PongEnv(points=2)
    env.reset(seed=0)
    rewards, over = [], False
    while not over:
        _, reward, over, truncated, _ = env.step(UP)
        rewards.append(reward)
        assert not truncated
    assert sorted((rewards.count(1), rewards.count(-1)))[1] == 2
    with pytest.raises(RuntimeError, match=r"expected reset\(\)"):
        env.step(STAY)


def test_seed_and_actions_decide_everything() -> None:
    dials = {"texture": 1.0, "noise": 5.0}
    one, two, other = (play(PongEnv(**dials), 300, seed) for seed in (3, 3, 4))
    for (obs, now), (again, same) in zip(one, two, strict=True):
        np.testing.assert_array_equal(obs, again)
        assert now == same
    assert any((a[0] != b[0]).any() for a, b in zip(one, other, strict=True))


def test_texture_is_static_within_and_differs_across_episodes() -> None:
    env, used = PongEnv(texture=0.5), {}
    for seed in range(60):
        obs, info = env.reset(seed=seed)
        index = state(info)["texture_id"]
        pictures = [(obs, info)] + [env.step(UP)[::4] for _ in range(12)]
        for obs, info in pictures:
            assert state(info)["texture_id"] == index
            background = np.rint(BACKGROUND + 0.5 * 64 * texture(index, 64))
            between = slice(8, 56)  # columns that only the ball enters
            strange = obs[:, between, 0] != background[:, between]
            assert strange.sum() == 4 * state(info)["ball_visible"]
        used[index] = background
    assert sorted(used) == list(range(TEXTURES))
    for one, other in itertools.combinations(used.values(), 2):
        assert np.mean(one != other) > 0.9


def test_contrast_scales_the_texture() -> None:
    spread = {}
    for contrast in (0.25, 1.0):
        obs, _ = PongEnv(texture=contrast).reset(seed=0)
        spread[contrast] = obs[:, 10:50].astype(float).std()
    assert spread[1.0] / spread[0.25] == pytest.approx(4, rel=0.02)
    assert spread[1.0] == pytest.approx(64 / np.sqrt(3), rel=0.1)  # uniform in [-64, 64]


def test_noise_is_the_frames_pattern_plus_fresh_noise() -> None:
    seen = play(PongEnv(noise=6.0), 400)
    ids = [now["noise_id"] for _, now in seen]
    counts = np.bincount(ids, minlength=PATTERNS)
    assert len(counts) == PATTERNS and counts.min() > 25  # 50 expected, standard deviation 6.6
    rest = []
    for obs, now in seen:
        empty = obs[:, 8:56, 0].astype(float) - BACKGROUND
        rest.append((empty - 6.0 * pattern(now["noise_id"], 64)[:, 8:56])[:8])
    assert np.median(np.std(rest, axis=(1, 2))) == pytest.approx(6, rel=0.05)
    assert abs(np.corrcoef(rest[0].ravel(), rest[1].ravel())[0, 1]) < 0.2
    assert {now["texture_id"] for _, now in seen} == {0}


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"size": 8}, "size: expected 16 to 255 pixels, got 8"),
        ({"size": 256}, "size: expected 16 to 255 pixels, got 256"),
        ({"ball": 9}, "ball: expected 1 to 8 pixels for size=64, got 9"),
        ({"texture": 1.5}, "texture: expected a contrast of 0 to 1, got 1.5"),
        ({"noise": -1}, "noise: expected 0 to 64 grey levels, got -1"),
        ({"points": 0}, "points: expected at least 1, got 0"),
    ],
)
def test_dials_out_of_range_are_refused(dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PongEnv(**dials)
    with pytest.raises(EnvError, match=message):
        make_env(EnvSettings(id="reverie/Pong-v0", kwargs=dials))


def test_it_is_an_environment_like_any_other_and_truncates_endless_play() -> None:
    assert EnvSettings(id="reverie/Pong-v0").applied()["max_episode_steps"] == 2_000
    settings = EnvSettings(id="reverie/Pong-v0", kwargs={"noise": 2}, max_episode_steps=3)
    vector = VectorEnv(settings, num_envs=2)
    for index in range(2):
        vector.reset(index, seed=index)
    truncated = [vector.step(np.array([UP, DOWN])).truncateds.tolist() for _ in range(3)]
    assert truncated == [[False] * 2, [False] * 2, [True] * 2]
    vector.close()
