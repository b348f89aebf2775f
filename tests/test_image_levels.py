"""Pixels of any space become levels and come back; a model that cannot see says so."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from simple_world import ACTIONS
from tiny import model_settings

from mbrl.episode import SequenceBatch
from mbrl.world_model.images import Images
from mbrl.world_model.layouts import make_world_model


def box(low: float, high: float, shape: tuple[int, ...], dtype: type = np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "levels", "exact"),
    [
        (box(0, 1, (64, 64, 1)), 2, True),
        (box(0, 1, (64, 64, 1), np.bool_), 2, True),
        (box(0, 10, (64, 64, 20)), 11, True),
        (box(5, 15, (9, 9, 1), np.int32), 11, True),
        (box(-1, 1, (3, 3, 1), np.int8), 3, True),
        (box(0, 31, (64, 64, 1)), 32, True),
        (box(0, 32, (64, 64, 1)), 16, False),
        (box(0, 255, (7, 7, 3)), 256, True),
        (box(0, 255, (12, 11, 3)), 16, False),
        (box(0, 99, (12, 12, 1), np.uint16), 16, False),
        (box(0, 99, (12, 12, 1), np.uint64), 16, False),
        (box(0, 1, (9, 9, 1), np.float32), 16, False),
    ],
)
def test_levels_follow_the_space(space: spaces.Box, levels: int, exact: bool) -> None:
    images = Images(space)
    assert (images.levels, images.exact) == (levels, exact)
    space.seed(0)
    obs = torch.as_tensor(space.sample())[None]
    found = images.to_levels(obs)
    assert found.dtype == torch.uint8 and found.shape == (1, *images.shape)
    assert int(found.min()) >= 0 and int(found.max()) < levels
    back = images.to_pixels(found)
    assert back.dtype == obs.dtype and back.shape == obs.shape
    far = (back.double() - obs.double()).abs().max()
    assert far == 0 if exact else far <= images.span / levels / 2 + 1
    assert torch.equal(images.to_levels(back), found)
    shares = images.intensities(obs)
    assert shares.dtype == torch.float32 and shares.min() >= 0 and shares.max() <= 1
    assert "sees nothing, as all pixels" in images.doubt(torch.as_tensor(space.low)[None])


def test_floats_are_cut_into_equal_levels() -> None:
    images = Images(box(0, 1, (8, 8, 1), np.float32), levels=4)
    obs = torch.tensor([0, 0.24, 0.25, 0.99, 1.0, 1.5, -0.5]).view(-1, 1, 1, 1)
    levels = images.to_levels(obs)
    assert levels.flatten().tolist() == [0, 0, 1, 3, 3, 3, 0]
    assert images.to_pixels(levels).flatten().tolist()[:4] == [0.125, 0.125, 0.375, 0.875]


@pytest.mark.parametrize(
    ("space", "values", "message"),
    [
        (box(0, 255, (64, 64, 1)), (0, 10), r"one of its 16 levels \(values from 0 to 10, of 0 to"),
        (box(0, 255, (64, 64, 1)), (0, 0), "look at what the environment shows"),
        (box(0, 1, (9, 9, 1), np.float32), (0, 0.01), "scale the images"),
        (box(0, 255, (7, 7, 3)), (0, 10), "uses few of its values .* set env.image_values"),
        (box(0, 10, (7, 7, 3)), (0, 10), "^$"),
        (box(0, 255, (64, 64, 1)), (0, 16), "^$"),
    ],
)
def test_a_model_that_sees_too_little_says_so(
    space: spaces.Box, values: tuple[float, float], message: str
) -> None:
    obs = np.full((2, 3, *space.shape), values[0], space.dtype)
    obs[0, 0, 0] = values[1]
    assert re.search(message, Images(space).doubt(torch.as_tensor(obs)))


@pytest.mark.parametrize("layout", ["grid", "flat"])
def test_symbols_that_differ_by_one_are_told_apart(layout: str) -> None:
    torch.manual_seed(0)
    space = box(0, 10, (5, 5, 2), np.int64)
    model = make_world_model(space, ACTIONS, model_settings(layout=layout, bf16=False))
    rng = np.random.default_rng(0)
    batch = SequenceBatch(
        obs=rng.integers(0, 11, (4, 6, 5, 5, 2)),
        prev_action=np.zeros((4, 6), np.int64),
        reward=np.zeros((4, 6), np.float32),
        terminated=np.zeros((4, 6), np.bool_),
        is_first=np.arange(24).reshape(4, 6) % 6 == 0,
    )
    loss, _, _ = model.train().loss(batch)
    assert torch.isfinite(loss)
    before = model.initial(4, torch.device("cpu"))
    latent = model.observe(before, *model.inputs(batch)).latent.flatten()
    pictures = model.decode(latent)
    assert pictures.dtype == torch.int64 and pictures.shape == (24, 5, 5, 2)
    if layout == "grid":  # the code is the frame
        assert torch.equal(pictures, torch.as_tensor(batch.obs).flatten(0, 1))
