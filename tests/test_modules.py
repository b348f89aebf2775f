"""Networks and action heads: shapes, scaling, and agreement with torch's own distributions."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.modules import (
    CategoricalHead,
    GaussianHead,
    PixelEncoder,
    PixelModule,
    latent_spec,
    make_head,
)
from agents.settings import DreamPolicySettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def categorical(logits: torch.Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Categorical(logits=logits)


def diagonal(inputs: torch.Tensor) -> torch.distributions.Distribution:
    normal = torch.distributions.Normal(inputs[:, :2], inputs[:, 2:].exp())
    return torch.distributions.Independent(normal, 1)


@pytest.mark.parametrize(
    ("space", "reference"),
    [(gym.spaces.Discrete(4), categorical), (gym.spaces.Box(-1, 1, (2,), np.float32), diagonal)],
)
def test_heads_agree_with_torch(space: gym.Space[Any], reference: Any) -> None:
    head, inputs = make_head(space), torch.randn(6, 4).clamp(-2, 0.5)
    action = head.sample(inputs, head.noise((6,), None))
    expected = reference(inputs)
    assert torch.allclose(head.log_prob(inputs, action), expected.log_prob(action), atol=1e-5)
    assert torch.allclose(head.entropy(inputs), expected.entropy(), atol=1e-5)
    assert torch.equal(head.mode(inputs), expected.mode)


def test_categorical_head_samples_with_the_probabilities_it_is_given() -> None:
    head = CategoricalHead(gym.spaces.Discrete(3))
    p = torch.tensor([0.1, 0.3, 0.6])
    noise = head.noise((20_000,), torch.Generator().manual_seed(0))
    drawn = head.sample(p.log().expand(20_000, 3), noise)
    share = torch.bincount(drawn, minlength=3) / 20_000
    assert torch.allclose(share, p, atol=0.015)


def test_gaussian_head_clips_and_stretches_to_the_bounds() -> None:
    space = gym.spaces.Box(np.array([0.0, -2.0], np.float32), np.array([1.0, 4.0], np.float32))
    got = GaussianHead(space).to_env(torch.tensor([[-5.0, 0.0], [0.5, 9.0]]))
    assert torch.allclose(got, torch.tensor([[0.0, 1.0], [0.75, 4.0]]))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Box(-np.inf, np.inf, (1,)), "finite bounds"),
        (gym.spaces.MultiBinary(3), "Discrete or Box"),
    ],
)
def test_action_spaces_without_a_head_are_refused(space: gym.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(space)


def test_latent_module_samples_repeatably_from_the_generator_it_is_given() -> None:
    module = latent_spec(DreamPolicySettings(), 7, gym.spaces.Discrete(5)).build()
    features = torch.randn(64, 7)
    draws = [
        module.act(features, explore=True, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


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
