import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from odd_envs import (
    VECTOR_ONLY,
    BareAssertion,
    ResetWithoutOptions,
    ResetWithoutSeed,
    limited,
    settings_of,
)
from pydantic import ValidationError
from stream_envs import Scripted

from envs import EnvError, EnvSettings, make_env
from envs.contract import check_env
from envs.images import prepare_images

SHAPES = {
    "reverie/Counting-v0": (8, 8, 1),
    "MinAtar/Breakout-v1": (10, 10, 4),
    "MinAtar/Freeway-v1": (10, 10, 7),
    "ale_py:ALE/Pong-v5": (64, 64, 1),
    "reverie/Pong-v0": (64, 64, 1),
}


class Picture(gym.Env[np.ndarray, int]):
    """One image of any shape, all ones unless it is given, again and again."""

    def __init__(self, shape: tuple[int, ...] = (), pixels: np.ndarray | None = None) -> None:
        self.pixels = np.ones(shape, np.uint8) if pixels is None else pixels
        self.observation_space = gym.spaces.Box(0, 255, self.pixels.shape, np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.pixels, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.pixels, 0.0, False, False, {}


def not_an_env() -> int:
    return 3


def here(name: str) -> str:
    return f"{__name__}.{name}"


@pytest.mark.parametrize(("env_id", "shape"), SHAPES.items())
def test_every_family_gives_uint8_images_and_keeps_its_promises(
    env_id: str, shape: tuple[int, ...]
) -> None:
    assert check_env(EnvSettings(id=env_id), steps=60 if "ALE" in env_id else 400).ok
    env = make_env(EnvSettings(id=env_id))
    obs, _ = env.reset(seed=1)
    assert obs.dtype == np.uint8 and obs.shape == env.observation_space.shape == shape
    env.close()


def test_settings_fill_in_the_defaults_of_the_family() -> None:
    applied = EnvSettings(id="MinAtar/Breakout-v1", sticky_actions=0.0).applied()
    assert applied == {"max_episode_steps": 5000, "sticky_actions": 0.0}
    assert EnvSettings(id="reverie/Pong-v0").applied()["max_episode_steps"] == 2_000


@pytest.mark.parametrize(
    ("env_id", "name", "value"),
    [
        ("MinAtar/Breakout-v1", "image_size", 64),
        ("MinAtar/Breakout-v1", "grayscale", False),
        ("CarRacing-v3", "frame_skip", 4),
        ("CartPole-v1", "sticky_actions", 0.25),
        ("reverie/Counting-v0", "noop_max", 0),
        ("CartPole-v1", "ram", True),
    ],
)
def test_a_setting_that_does_not_apply_is_refused(env_id: str, name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        EnvSettings(id=env_id, **{name: value})
    error = caught.value.errors()[0]
    assert error["loc"] == (name,)
    assert f"expected a setting that {env_id} can honour (max_episode_steps" in error["msg"]


@pytest.mark.parametrize("given", [{}, {"id": "CartPole-v1", "factory": "a.b"}])
def test_exactly_one_of_id_and_factory_is_needed(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one of id and factory"):
        EnvSettings(**given)


@pytest.mark.parametrize("env_id", ["CartPole-v1", *SHAPES])
def test_the_step_limit_of_any_environment_can_be_set(env_id: str) -> None:
    env = make_env(EnvSettings(id=env_id, max_episode_steps=3))
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


def test_an_id_in_a_module_registers_itself(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_worlds.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_env(EnvSettings(id="my_worlds:Mine-v0")).observation_space.shape == (4,)


def test_a_factory_is_called_with_its_kwargs_and_cut_resized_and_turned_grey() -> None:
    images = {"kwargs": {"shape": (20, 30, 3)}, "image_size": 16, "grayscale": True}
    env = make_env(EnvSettings(factory=here("Picture"), max_episode_steps=1, **images))
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (16, 16, 1)
    assert obs.dtype == np.uint8
    assert env.step(0)[3] is True


@pytest.mark.parametrize(
    ("pixels", "settings", "shape", "level"),
    [
        (np.ones((5, 6)), {}, (5, 6, 1), 1),  # a channel axis for two axes
        (np.tile([[[0], [100]]], (16, 8, 1)), {"image_size": 8}, (8, 8, 1), 50),  # areas averaged
        (np.tile([0, 100, 0], (8, 8, 1)), {"grayscale": True}, (8, 8, 1), 59),  # 0.587 of green
    ],
)
def test_images_are_resized_and_turned_grey(
    pixels: np.ndarray, settings: dict[str, Any], shape: tuple[int, ...], level: int
) -> None:
    given = {"image_size": None, "grayscale": False, **settings}
    obs, _ = prepare_images(Picture(pixels=pixels.astype(np.uint8)), **given).reset(seed=0)
    assert obs.shape == shape and (obs == level).all()


def box(low: float, high: float, shape: tuple[int, ...], dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "axes", "shape"),
    [
        (box(0, 255, (3, 30, 50)), (1, 2, 0), (30, 50, 3)),
        (box(0, 10, (20, 9, 9), np.int32), (1, 2, 0), (9, 9, 20)),
        (box(0, 1, (30, 50), np.float32), (0, 1), (30, 50, 1)),
        (box(0, 255, (4, 84, 84)), (1, 2, 0), (84, 84, 4)),
        (box(0, 255, (4, 9, 8, 3)), (1, 2, 0, 3), (9, 8, 12)),
        (box(0, 255, (4, 3, 9, 8)), (2, 3, 0, 1), (9, 8, 12)),
        (box(5, 9, (2, 2), np.int64), (0, 1), (2, 2, 1)),
    ],
)
def test_axes_of_images_are_turned_and_no_number_is_changed(
    space: spaces.Box, axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    space.seed(0)
    seen = space.sample()
    pair = spaces.Dict(eye=space, ear=spaces.Discrete(2))
    for whole, shown in ((space, seen), (pair, {"eye": seen, "ear": 1})):
        env = prepare_images(Scripted(whole, [shown]), None, None)
        obs, _ = env.reset(seed=0)
        assert env.observation_space.contains(obs)
        turned = obs if whole is space else obs["eye"]
        assert turned.shape == shape and turned.dtype == space.dtype
        assert np.array_equal(turned, seen.transpose(axes).reshape(shape))


def test_what_is_no_image_is_left_alone() -> None:
    same = box(0, 255, (8, 9, 3)), box(-1, 1, (8, 9, 3), np.float32), spaces.Text(3)
    for space in (*same, spaces.Dict(a=same[0], b=same[2])):
        env = Scripted(space, [])
        assert prepare_images(env, None, None) is env
    env = prepare_images(Scripted(same[0], [np.zeros((3, 9, 8), np.uint8)]), 16, None)
    assert env.reset(seed=0)[0].shape == (3, 9, 8)  # a broken promise is for others to tell
    with pytest.raises(EnvError, match=r"images of uint8 or float32 for image_size"):
        prepare_images(Scripted(box(0, 9, (5, 5), np.int32), []), 16, None)


GRID = spaces.Dict(
    image=box(0, 255, (7, 7, 3)),
    robot=spaces.Dict(speed=spaces.Box(-1, 1, (2,)), gear=spaces.Discrete(3)),
    mission=spaces.Text(9),
    hands=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
)


class Grid(Scripted):
    def __init__(self) -> None:
        seen = {
            "image": np.full((7, 7, 3), 10, np.uint8),
            "robot": {"speed": np.zeros(2, np.float32), "gear": 1},
            "mission": "go",
            "hands": (1, 2),
        }
        super().__init__(GRID, [seen] * 9)


@pytest.mark.parametrize(
    ("names", "space", "seen"),
    [
        (["robot.gear"], spaces.Discrete(3), 1),
        (["hands.1"], spaces.Discrete(3), 2),
        (["hands"], GRID["hands"], (1, 2)),
        (["robot.gear", "hands"], None, {"robot.gear": 1, "hands": (1, 2)}),
    ],
)
def test_parts_of_an_observation_are_dropped(names: list[str], space: Any, seen: Any) -> None:
    env = make_env(EnvSettings(factory=here("Grid"), observe=names))
    assert env.reset(seed=0)[0] == seen and env.observation_space.contains(seen)
    assert space is None or env.observation_space == space


def test_an_image_that_is_chosen_may_have_fewer_values_than_it_says() -> None:
    env = make_env(EnvSettings(factory=here("Grid"), observe=["image"], image_values=11))
    assert env.observation_space == box(0, 10, (7, 7, 3))
    assert env.step(0)[0].max() == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observe": ["image", "robot.legs"]}, r"expected some of image, robot, robot\.speed, "),
        (
            {"observe": ["image"], "image_size": 16, "image_values": 300},
            "less than or equal to 256",
        ),
        ({"observe": ["robot", "robot.gear"]}, "do not overlap, got robot and robot.gear"),
        ({"observe": ["image", "image"]}, "do not overlap"),
        ({"observe": []}, "at least 1"),
        ({"image_values": 256}, "that take more than 256 values"),
        (
            {"factory": here("Picture"), "kwargs": {"shape": (5, 6)}, "observe": ["a"]},
            "or a Tuple to",
        ),
    ],
)
def test_wrong_choices_among_observations_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((EnvError, ValidationError), match=message):
        make_env(EnvSettings(**{"factory": here("Grid"), **settings}))


@pytest.mark.parametrize(
    ("env_id", "near"),
    [
        ("MinAtar/Brekout-v1", "MinAtar/Breakout-v1"),
        ("ALE/Pogn-v5", "ALE/Pong-v5"),
        ("Cartpole-v1", "CartPole-v1"),
        ("Counting", "reverie/Counting-v0"),
        ("qqqqqqqqqqqq", "no known id looks like it"),
    ],
)
def test_an_unknown_id_is_refused_with_the_nearest_known_ones(env_id: str, near: str) -> None:
    with pytest.raises(EnvError, match=f"unknown environment '{env_id}'.*{near}"):
        make_env(EnvSettings(id=env_id))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "no_such_room:X-v0"}, "no_such_room"),
        ({"factory": "no_such_room.fn"}, "no_such_room"),
        ({"factory": here("missing")}, "expected a function missing in module"),
        ({"factory": here("not_an_env")}, r"to return a gymnasium\.Env, got int"),
        ({"id": "CartPole-v1", "image_size": 64}, "expected image observations for image_size and"),
        (
            {"factory": here("Picture"), "kwargs": {"shape": (5, 6)}, "grayscale": True},
            r"expected colour images \(H, W, 3\)",
        ),
        (
            {"id": "reverie/Counting-v0", "kwargs": {"min_length": 9, "max_length": 3}},
            "cannot make reverie/Counting-v0 with kwargs .*min_length",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(EnvSettings(**settings))


def test_importing_envs_imports_no_game_and_no_learning_library() -> None:
    code = (
        "import sys, envs; heavy = {'torch', 'ray', 'ale_py', 'minatar', 'Box2D', 'matplotlib'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            settings_of(ResetWithoutSeed),
            r"expected reset\(\*, seed=None, options=None\).* add seed$",
        ),
        (settings_of(ResetWithoutOptions), r"got ResetWithoutOptions.reset\(seed.*; add options$"),
        (
            settings_of(limited, limit=5, max_episode_steps=9),
            "env.max_episode_steps: expected at most 5, at which odd_envs.limited cuts",
        ),
        (EnvSettings(id=VECTOR_ONLY), "got one with a vector entry point only"),
        (
            settings_of(BareAssertion),
            r"AssertionError without a reason, at odd_envs.py:\d+: assert self.length is None",
        ),
    ],
)
def test_an_environment_that_cannot_keep_our_promises_is_one_sentence(
    settings: EnvSettings, message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(settings)


def test_a_limit_that_an_environment_keeps_is_taken() -> None:
    env = make_env(settings_of(limited, limit=5, max_episode_steps=3))
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


def test_an_unknown_id_inside_a_known_one_is_not_said_of_the_known_one() -> None:
    gym.register("reverie-tests/Outer-v0", entry_point=lambda: gym.make("Inner-v0"))
    with pytest.raises(EnvError, match=r"cannot make reverie-tests/Outer.*NameNotFound") as got:
        make_env(EnvSettings(id="reverie-tests/Outer-v0"))
    assert "nearest" not in str(got.value)
