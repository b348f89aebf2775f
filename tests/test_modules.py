"""Networks: shapes and scaling."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.modules import PixelEncoder, PixelModule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.mark.parametrize(
    ("shape", "high"), [((10, 10, 4), 1), ((64, 64, 3), 255), ((36, 40, 1), 9)]
)
def test_pixel_module_takes_images_as_the_environment_gives_them(
    shape: tuple[int, int, int], high: int
) -> None:
    space = gym.spaces.Box(0, high, shape, np.uint8)
    spec = RLModuleSpec(PixelModule, space, gym.spaces.Discrete(6), model_config={"dense": 32})
    module: Any = spec.build()
    obs = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    out = module.forward_train({"obs": obs})
    assert out["action_dist_inputs"].shape == (3, 6)
    assert module.compute_values({"obs": obs}).shape == (3,)


def test_pixel_encoder_divides_by_the_upper_bound_of_its_space() -> None:
    torch.manual_seed(0)
    bright = PixelEncoder(gym.spaces.Box(0, 200, (10, 10, 1), np.uint8), 8)
    unit = PixelEncoder(gym.spaces.Box(0, 1, (10, 10, 1), np.uint8), 8)
    unit.load_state_dict(bright.state_dict())
    picture = torch.randint(0, 2, (2, 10, 10, 1), dtype=torch.uint8)
    assert torch.allclose(bright(picture * 200), unit(picture), atol=1e-6)


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Box(0, 255, (64, 64), np.uint8), gym.spaces.Box(0, np.inf, (8, 8, 1), np.float32)],
)
def test_observations_a_pixel_encoder_cannot_take_are_refused(space: gym.spaces.Box) -> None:
    with pytest.raises(ValueError, match="expected"):
        PixelEncoder(space, 8)
