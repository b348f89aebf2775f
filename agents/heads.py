"""Action heads: what the outputs of a policy network mean as actions of a space.

A head turns (N, `inputs`) network outputs into samples, log-probabilities and entropies. `noise` is
drawn for a whole rollout in one call, which makes sampling cheap, and `sample` is a pure function
of it. The layouts are those of RLlib's `TorchCategorical`, `TorchMultiCategorical` and
`TorchDiagGaussian`.

Actions live twice: the *raw* action is what was drawn, choices counted from 0 and numbers as the
Gaussian gives them, which the learner stores. The environment gets choices counted from where its
space starts, and numbers clipped to [-1, 1] and stretched to the bounds of its space (RLlib's
`normalize_actions`), whole ones where it takes whole ones.

Parts of an action are independent given the state: their log-probabilities and entropies add up.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOG_STD_RANGE = (-5.0, 1.0)
IMPOSSIBLE = -1e9
"""The logit of a choice that does not exist; finite, so that zero times it is zero."""


class Head(Protocol):
    """What a policy needs of the actions of a space.

    Attributes:
        inputs: I, network outputs per row.
        width: W, numbers of a raw action.
        draws: random numbers per action.
    """

    inputs: int
    width: int
    draws: int

    def noise(self, rows: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Noise for `rows` actions, (*rows, draws) float32, on the generator's device."""
        ...

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Raw actions (N, ...) with this noise."""
        ...

    def mode(self, inputs: Tensor) -> Tensor:
        """Most likely raw actions (N, ...)."""
        ...

    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:
        """Log-probability (N,) of raw actions."""
        ...

    def entropy(self, inputs: Tensor) -> Tensor:
        """Entropy (N,) in nats."""
        ...

    def to_env(self, action: Tensor) -> Tensor:
        """Raw actions as the environment counts them, in one tensor.

        (N, *shape) of one space, int64 for whole numbers and choices, else float32; (N, P) float64
        with all parts side by side of a Dict or Tuple.
        """
        ...


class CategoricalHead:
    """Discrete actions from logits (N, A); raw actions are (N,) int64 counted from 0.

    The methods are those of `Head`.
    """

    def __init__(self, space: gym.spaces.Discrete[Any]) -> None:
        self.inputs = self.draws = int(space.n)
        self.width, self.start = 1, int(space.start)

    def noise(self, rows: tuple[int, ...], generator: torch.Generator | None) -> Tensor:  # noqa: D102
        return _gumbel((*rows, self.draws), generator)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:  # noqa: D102
        return (inputs + noise).argmax(-1)

    def mode(self, inputs: Tensor) -> Tensor:  # noqa: D102
        return inputs.argmax(-1)

    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:  # noqa: D102
        return inputs.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, inputs: Tensor) -> Tensor:  # noqa: D102
        log_p = inputs.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def to_env(self, action: Tensor) -> Tensor:  # noqa: D102
        return action + self.start if self.start else action


class ChoicesHead:
    """C independent categoricals; inputs are the logits of all, one after the other.

    Raw actions are (N, C) int64 counted from 0. The methods are those of `Head`.
    """

    def __init__(self, sizes: Sequence[int], start: NDArray[Any], shape: Sequence[int]) -> None:
        """Of C = product of `shape` choices among `sizes` values each, counted from `start`."""
        self.width, self.shape = len(sizes), tuple(shape)
        self.inputs = self.draws = sum(sizes)
        self.start = torch.from_numpy(np.asarray(start, np.int64).reshape(-1))
        begin = np.cumsum(sizes) - sizes
        place = np.arange(max(sizes))
        known = place < np.asarray(sizes)[:, None]
        self.index = torch.from_numpy(np.where(known, begin[:, None] + place, 0))  # (C, largest)
        self.known = torch.from_numpy(known)

    def _logits(self, inputs: Tensor) -> Tensor:
        """(N, I) to (N, C, largest), impossible where a choice has fewer values."""
        logits = inputs[..., self.index.to(inputs.device)]
        return logits.masked_fill(~self.known.to(inputs.device), IMPOSSIBLE)

    def noise(self, rows: tuple[int, ...], generator: torch.Generator | None) -> Tensor:  # noqa: D102
        return _gumbel((*rows, self.draws), generator)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:  # noqa: D102
        return self._logits(inputs + noise).argmax(-1)

    def mode(self, inputs: Tensor) -> Tensor:  # noqa: D102
        return self._logits(inputs).argmax(-1)

    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:  # noqa: D102
        log_p = self._logits(inputs).log_softmax(-1)
        return log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self, inputs: Tensor) -> Tensor:  # noqa: D102
        log_p = self._logits(inputs).log_softmax(-1)
        return -(log_p.exp() * log_p).sum((-2, -1))

    def to_env(self, action: Tensor) -> Tensor:  # noqa: D102
        return (action + self.start.to(action.device)).reshape(-1, *self.shape)


class GaussianHead:
    """Box actions from a diagonal Gaussian; inputs (N, 2A) are means, then log standard deviations.

    Raw actions are (N, A) float32, unbounded. Whole numbers are the nearest ones, and all of them
    have an equal share of [-1, 1]. The methods are those of `Head`.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        """Of a space with A numbers, which must have finite bounds."""
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(
                f"expected a Box action space with finite bounds, got {space}; give it those that "
                "the environment expects"
            )
        self.shape = space.shape
        self.actions = self.width = self.draws = int(np.prod(space.shape))
        self.inputs = 2 * self.actions
        self.whole = space.dtype.kind in "iub"  # type: ignore[union-attr]
        kind = np.float64 if self.whole else np.float32
        self.low = torch.from_numpy(np.asarray(space.low, kind)).reshape(-1)
        self.high = torch.from_numpy(np.asarray(space.high, kind)).reshape(-1)

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
        if self.whole:
            share = (action.double().clamp(-1.0, 1.0) + 1.0) * (0.5 * (high - low + 1))
            return (low + share - 0.5).round().clamp(low, high).long().reshape(-1, *self.shape)
        scaled = low + (action.clamp(-1.0, 1.0) + 1.0) * (0.5 * (high - low))
        return scaled.reshape(-1, *self.shape)


class MixedHead:
    """Independent parts of a Dict or Tuple: inputs and raw actions of all, one after the other.

    Raw actions are (N, W) float32, choices too. The methods are those of `Head`.
    """

    def __init__(self, heads: Sequence["ChoicesHead | GaussianHead"]) -> None:
        """Of the leaves' heads, in the space's order."""
        self.heads = tuple(heads)
        self.inputs = sum(head.inputs for head in heads)
        self.width = sum(head.width for head in heads)
        self.draws = sum(head.draws for head in heads)

    def _inputs(self, inputs: Tensor) -> Sequence[Tensor]:
        return inputs.split([head.inputs for head in self.heads], -1)

    def _actions(self, action: Tensor) -> list[Tensor]:
        pieces = action.split([head.width for head in self.heads], -1)
        return [
            piece.long() if isinstance(head, ChoicesHead) else piece
            for head, piece in zip(self.heads, pieces, strict=True)
        ]

    def noise(self, rows: tuple[int, ...], generator: torch.Generator | None) -> Tensor:  # noqa: D102
        return torch.cat([head.noise(rows, generator) for head in self.heads], -1)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:  # noqa: D102
        noises = noise.split([head.draws for head in self.heads], -1)
        parts = zip(self.heads, self._inputs(inputs), noises, strict=True)
        return torch.cat([head.sample(one, drawn).float() for head, one, drawn in parts], -1)

    def mode(self, inputs: Tensor) -> Tensor:  # noqa: D102
        parts = zip(self.heads, self._inputs(inputs), strict=True)
        return torch.cat([head.mode(one).float() for head, one in parts], -1)

    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:  # noqa: D102
        parts = zip(self.heads, self._inputs(inputs), self._actions(action), strict=True)
        return torch.stack([head.log_prob(one, drawn) for head, one, drawn in parts]).sum(0)

    def entropy(self, inputs: Tensor) -> Tensor:  # noqa: D102
        parts = zip(self.heads, self._inputs(inputs), strict=True)
        return torch.stack([head.entropy(one) for head, one in parts]).sum(0)

    def to_env(self, action: Tensor) -> Tensor:  # noqa: D102
        parts = zip(self.heads, self._actions(action), strict=True)
        return torch.cat(
            [head.to_env(one).reshape(len(one), -1).double() for head, one in parts], -1
        )


def make_head(space: gym.Space[Any]) -> Head:
    """The head for an action space.

    Raises:
        ValueError: a part of it is neither Discrete, MultiDiscrete, MultiBinary nor Box, or a Box
            has no finite bounds.
    """
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(space)
    leaves = _leaf_heads(space)
    return MixedHead(leaves) if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) else leaves[0]


def _leaf_heads(space: gym.Space[Any]) -> list[ChoicesHead | GaussianHead]:
    """The heads of a space's leaves, in gymnasium's order."""
    if isinstance(space, gym.spaces.Dict):
        return [head for one in space.spaces.values() for head in _leaf_heads(one)]
    if isinstance(space, gym.spaces.Tuple):
        return [head for one in space.spaces for head in _leaf_heads(one)]
    if isinstance(space, gym.spaces.Discrete):
        return [ChoicesHead([int(space.n)], np.array(space.start), ())]
    if isinstance(space, gym.spaces.MultiDiscrete):
        return [ChoicesHead(space.nvec.reshape(-1).tolist(), space.start, space.shape)]
    if isinstance(space, gym.spaces.MultiBinary):
        count = math.prod(space.shape)
        return [ChoicesHead([2] * count, np.zeros(count), space.shape)]
    if isinstance(space, gym.spaces.Box):
        return [GaussianHead(space)]
    raise ValueError(
        f"expected actions of Discrete, MultiDiscrete, MultiBinary or Box spaces, or a Dict or "
        f"Tuple of those, got {space}; wrap the environment"
    )


def _gumbel(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator else "cpu"
    uniform = torch.rand(*shape, generator=generator, device=device)
    uniform.clamp_min_(torch.finfo(uniform.dtype).tiny)  # 0 would be noise without an end
    return uniform.log_().neg_().log_().neg_()
