import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from envs import EnvSettings
from envs.contract import check_env
from envs.errors import EnvError

IMAGE, MOVES = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2)


class Bad(gym.Env):
    """Breaks one promise, chosen by name."""

    def __init__(self, fault: str = "") -> None:
        self.observation_space, self.action_space = IMAGE, MOVES
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        if self.fault != "unseeded":
            super().reset(seed=seed)
        if self.fault != "leftovers" or not hasattr(self, "t"):
            self.t = 0
        if self.fault == "reset shape":
            return np.zeros((8, 8), np.uint8), {}
        return self._obs(), {}

    def _obs(self) -> Any:
        obs = self.np_random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        obs[0, 0, 0] = self.t
        return obs

    def step(self, action: int) -> Any:
        self.t += 1
        obs, reward, terminated, truncated, info = self._obs(), 1.0, self.t >= 100, False, {}
        match self.fault:
            case "dtype":
                obs = obs.astype(np.float32)
            case "kind":
                obs = [1, 2]
            case "nan":
                reward = float("nan")
            case "vector reward":
                reward = np.ones(2)
            case "flag":
                terminated = 0
            case "info":
                info = None
            case "four":
                return obs, reward, terminated, info
            case "raise":
                raise KeyError("lost")
        return obs, reward, terminated, truncated, info


def settings_for(fault: str) -> EnvSettings:
    return EnvSettings(factory=f"{__name__}.Bad", kwargs={"fault": fault})


def test_a_sound_env_has_no_problems() -> None:
    report = check_env(settings_for(""), steps=50)
    assert report.ok and report.problems == ()
    assert report.steps == 50 and report.episode_lengths == ()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("reset shape", r"reset\(\): expected observations of shape \(8, 8, 3\).*got \(8, 8\)"),
        ("dtype", r"step\(\): expected observations of .* dtype uint8 .* got .* float32"),
        ("kind", r"step\(\): expected observations of .* got \(2,\)"),
        ("nan", "The reward must be finite, got nan"),
        ("vector reward", "The reward must be one number"),
        ("flag", "terminated must be a bool, got int"),
        ("info", "info must be a dict, got NoneType"),
        ("four", r"step\(\) must return \(obs, reward, terminated, truncated, info\)"),
        ("raise", "At step 0 it raised KeyError: 'lost'"),
        ("unseeded", "The same seed and actions gave another episode in two copies"),
        ("leftovers", "another episode in a used environment after reset, from step 0 on"),
    ],
)
def test_a_broken_promise_is_one_sentence(fault: str, sentence: str) -> None:
    report = check_env(settings_for(fault), steps=20)
    assert not report.ok
    matching = [problem for problem in report.problems if re.search(sentence, problem)]
    assert len(matching) == 1, report.problems


def test_the_report_shows_what_the_oracle_does_by_its_seed() -> None:
    report = check_env(EnvSettings(id="reverie/Counting-v0"), steps=20, seed=0)
    assert report.episode_lengths == (5, 6, 7)  # seeds 0, 1, 2
    assert report.episode_returns == (15.0, 21.0, 28.0)
    assert report.reward_range == (1.0, 7.0)
    assert report.same_in_two_copies and report.same_after_reuse
    lines = report.lines
    assert lines[0] == "environment  reverie/Counting-v0"
    assert "wrappers     OrderEnforcing < CountingEnv" in lines
    assert "episodes     3 ended, 5 to 7 steps, mean return 21.3 at random" in lines


def test_nested_observations_are_compared_too() -> None:
    report = check_env(EnvSettings(id="Blackjack-v1"), steps=50)
    assert report.problems == ()


def test_steps_must_be_positive() -> None:
    with pytest.raises(EnvError, match="steps: expected at least 1, got 0"):
        check_env(settings_for(""), steps=0)
