"""The dream agent learns: from pixels and rewards alone to most of what can be won, by a seed.

Every part must do its share. If rewards are not learned, the policy is not improved, or collection
or replay give other rows than were played, the score stays near that of random play, 0.16. A world
model without endings shows in how long its dreams go on.
"""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mbrl.config.schema import Config
from mbrl.train import train

BEST = 1.0

SETTINGS: dict[str, Any] = {
    "env_steps": 4096,
    "device": "cpu",
    "world_model": {
        "hidden": 64,
        "prior_hidden": 64,
        "code": {"groups": 8, "classes": 8},
        "encoder": {"hidden": 64},
        "decoder": {"channels": 8, "layers": 1, "hidden": 64, "fraction": 0.25},
        "heads": {"hidden": 64},
    },
    "collect": {"steps_per_iteration": 128},
    "learn_model": {
        "train_ratio": 96,
        "batch_size": 32,
        "sequence_length": 8,
        "lr": 2e-3,
        "warmup_updates": 20,
    },
    "learn_policy": {"dream_ratio": 240},
    "policy": {"horizon": 8, "hidden": (64, 64), "lr": 1e-3},
    "evaluate": {"every_steps": 4096},  # only at the end
}


class Catch(gym.Env[Any, Any]):
    """The README's: a ball falls through 8 rows, and a paddle that can reach any column waits."""

    observation_space = gym.spaces.Box(0, 1, (8, 8, 2), np.uint8)  # ball, paddle
    action_space = gym.spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.row, self.column, self.paddle = -1, self.np_random.integers(8), 4
        return self.step(1)[0], {}

    def step(self, action: Any) -> Any:
        self.row, self.paddle = self.row + 1, min(7, max(0, self.paddle + action - 1))
        image = np.zeros((8, 8, 2), np.uint8)
        image[self.row, self.column, 0] = image[7, self.paddle, 1] = 1
        caught = self.row == 7 and self.column == self.paddle
        return image, float(caught), self.row == 7, False, {}


@pytest.mark.timeout(600)
def test_the_dream_agent_learns_to_catch(tmp_path: Path) -> None:
    run = {"dir": tmp_path / "run", "video": False, "tensorboard": False, "threads": 1}
    env = {"factory": f"{__name__}.Catch"}
    result = train(Config(name="catch", seed=0, env=env, run=run, **SETTINGS))
    assert result["eval"]["mean"] >= 0.8 * BEST
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["world_model/continue"] < 0.1  # nats; a head that knows nothing pays ln 2
    # A dream of 8 steps starts at any of an episode's 7 pictures before the last. From there the
    # game goes on for 3 steps on average; what is dreamt after the end is not trained.
    assert 3 / 8 - 0.1 < last["policy/cont"] < 5 / 8
