import numpy as np

from envs import EnvSettings, make_env
from envs.contract import check_env


def test_it_keeps_its_promises_with_continuous_actions() -> None:
    report = check_env(EnvSettings(id="CarRacing-v3"), steps=25)
    assert report.ok
    assert report.observation_space == "Box(0, 255, (64, 64, 3), uint8)"
    assert report.action_space.endswith("(3,), float32)")


def test_it_takes_discrete_actions_grey_frames_and_a_limit() -> None:
    settings = {"grayscale": True, "image_size": 32, "max_episode_steps": 2}
    env = make_env(EnvSettings(id="CarRacing-v3", kwargs={"continuous": False}, **settings))
    assert env.action_space.n == 5
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (32, 32, 1) and obs.dtype == np.uint8
    assert [env.step(3)[3] for _ in range(2)] == [False, True]
    env.close()
