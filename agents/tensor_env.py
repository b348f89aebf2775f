"""TensorEnv: N environments stepped at once as tensors on one device.

This is the whole of what the dream learner knows about a dream. There are no episode objects, no
automatic resets and no Python per environment: an ending is a probability, and rows after it count
less. `agents.dream_ppo` rolls one out inside the learner process.
"""

from typing import Protocol, runtime_checkable

import gymnasium as gym
import torch

Info = dict[str, torch.Tensor]
"""Extra tensors of a step, each with N rows or none; the learner reports their means."""


@runtime_checkable
class TensorEnv(Protocol):
    """N environments at once; every tensor is on `device`.

    Attributes:
        num_envs: N, constant.
        obs_dim: F, features per observation.
        action_space: gymnasium Discrete or Box, of one environment.
        device: where observations come from and actions must be.
    """

    @property
    def num_envs(self) -> int: ...  # noqa: D102

    @property
    def obs_dim(self) -> int: ...  # noqa: D102

    @property
    def action_space(self) -> gym.Space: ...  # type: ignore[type-arg]  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def reset(self) -> torch.Tensor:
        """Start N new environments and return their observations, (N, F) floating point."""
        ...

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        """Step all environments once, without resets.

        Args:
            action: (N,) int64 for Discrete, counted from 0; for Box (N, *shape) float32.

        Returns:
            obs (N, F), the state arrived in; reward (N,) for the action; continue probability (N,)
            in [0, 1], zero where the state arrived in is terminal; and extra tensors.
        """
        ...


@runtime_checkable
class ShareableTensorEnv(TensorEnv, Protocol):
    """A TensorEnv that can be split over several learner processes."""

    def share(self, index: int, count: int) -> TensorEnv:
        """One of `count` equal parts, for the learner with this index; travels to its process.

        Called anew for each call of `DreamPPO.learn`. Parts have N / count environments, and random
        streams of their own, which differ from call to call.
        """
        ...


@runtime_checkable
class MovableTensorEnv(TensorEnv, Protocol):
    """A TensorEnv that can go to another device, such as a learner's GPU."""

    def to(self, device: torch.device) -> TensorEnv:
        """The same environments there; called in the process that is going to step them."""
        ...
