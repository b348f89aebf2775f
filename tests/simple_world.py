"""A world of a moving dot, and world models for it, that several tests share."""

import numpy as np
import torch
from gymnasium import spaces
from tiny import model_settings

from mbrl.episode import SequenceBatch
from mbrl.world_model.layouts import make_world_model

IMAGE = spaces.Box(0, 1, (8, 8, 2), np.uint8)
ACTIONS = spaces.Discrete(3)
WORLD_MODELS_2018 = {
    "code": {"kind": "gaussian", "groups": 8},
    "decoder": {"kind": "deconv", "likelihood": "mse", "sees_hidden": False},
    "joint": False,
}


def make(observation_space=IMAGE, action_space=ACTIONS, **changes):
    torch.manual_seed(0)
    return make_world_model(observation_space, action_space, model_settings(**changes))


def random_batch(batch=3, length=6, space=IMAGE, seed=0):
    """A dot that moves by the action, and now and then a reward, an end and a start."""
    rng = np.random.default_rng(seed)
    action = rng.integers(0, 3, (batch, length))
    obs = np.zeros((batch, length, *space.shape), np.uint8)
    column = np.cumsum(action, 1) % 8
    for b, t in np.ndindex(batch, length):
        obs[b, t, t % 8, column[b, t], 0] = space.high.max()
    is_first = rng.random((batch, length)) < 0.2
    return SequenceBatch(
        obs=obs,
        prev_action=np.where(is_first, 0, action),
        reward=np.where(is_first, 0, column == 0).astype(np.float32),
        terminated=(column == 7) & ~is_first,
        is_first=is_first,
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
