"""How the numbers a policy network puts out become actions, for Discrete and Box action spaces.

A head turns (N, `inputs`) network outputs into samples, log-probabilities and entropies. `noise`
is drawn for a whole rollout in one call from the caller's generator, which is what makes sampling
cheap, and `sample` is a pure function of it. The layouts are those of RLlib's `TorchCategorical`
and `TorchDiagGaussian`, so stock RLlib can act with the same outputs.

Box actions live twice: the *raw* action is the Gaussian sample, which the learner stores; the
environment gets it clipped to [-1, 1] and stretched to the bounds of its space, RLlib's
`normalize_actions`.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

LOG_STD_RANGE = (-5.0, 1.0)


class CategoricalHead:
    """Discrete actions from logits (N, A); raw actions are (N,) int64 counted from 0.

    Attributes:
        inputs: A, network outputs per row.
    """

    def __init__(self, space: gym.spaces.Discrete[Any]) -> None:
        """Of a space of A actions."""
        self.inputs = int(space.n)
        self.start = int(space.start)

    def noise(self, rows: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Noise for `rows` actions, (*rows, ...) float32, on the generator's device."""
        device = generator.device if generator else "cpu"
        uniform = torch.rand(*rows, self.inputs, generator=generator, device=device)
        return uniform.log_().neg_().log_().neg_()  # Gumbel

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Raw actions (N, ...) with this noise."""
        return (inputs + noise).argmax(-1)

    def mode(self, inputs: Tensor) -> Tensor:
        """Most likely raw actions (N, ...)."""
        return inputs.argmax(-1)

    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:
        """Log-probability (N,) of raw actions."""
        return inputs.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, inputs: Tensor) -> Tensor:
        """Entropy (N,) in nats."""
        log_p = inputs.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def to_env(self, action: Tensor) -> Tensor:
        """Raw actions as the environment takes them."""
        return action + self.start if self.start else action


class GaussianHead:
    """Box actions from a diagonal Gaussian; inputs (N, 2A) are means, then log standard deviations.

    Raw actions are (N, A) float32, unbounded. The methods are those of `CategoricalHead`.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        """Of a space with A numbers, which must have finite bounds."""
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(
                f"expected a Box action space with finite bounds, got {space}; "
                "wrap the environment in gymnasium.wrappers.RescaleAction or ClipAction"
            )
        self.shape = space.shape
        self.actions = int(np.prod(space.shape))
        self.inputs = 2 * self.actions
        self.low = torch.from_numpy(np.asarray(space.low, np.float32)).reshape(-1)
        self.high = torch.from_numpy(np.asarray(space.high, np.float32)).reshape(-1)

    def _split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = inputs.chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def noise(self, rows: tuple[int, ...], generator: torch.Generator | None) -> Tensor:  # noqa: D102
        device = generator.device if generator else "cpu"
        return torch.randn(*rows, self.actions, generator=generator, device=device)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:  # noqa: D102
        mean, log_std = self._split(inputs)
        return mean + log_std.exp() * noise

    def mode(self, inputs: Tensor) -> Tensor:  # noqa: D102
        return self._split(inputs)[0]

    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:  # noqa: D102
        mean, log_std = self._split(inputs)
        z = (action - mean) * (-log_std).exp()
        return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, inputs: Tensor) -> Tensor:  # noqa: D102
        _, log_std = self._split(inputs)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def to_env(self, action: Tensor) -> Tensor:  # noqa: D102
        low, high = self.low.to(action.device), self.high.to(action.device)
        scaled = low + (action.clamp(-1.0, 1.0) + 1.0) * (0.5 * (high - low))
        return scaled.reshape(-1, *self.shape)


ActionHead = CategoricalHead | GaussianHead


def make_head(space: gym.Space[Any]) -> ActionHead:
    """The head for an action space.

    Raises:
        ValueError: the space is neither Discrete nor Box.
    """
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(space)
    if isinstance(space, gym.spaces.Box):
        return GaussianHead(space)
    raise ValueError(
        f"expected a Discrete or Box action space, got {space}; flatten it in an env wrapper"
    )
