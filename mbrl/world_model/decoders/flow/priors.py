"""Where a flow ends: Gaussians whose means and deviations are learned and see the condition.

In: the part of the activations that leaves the flow, what is known of it, and the condition's map.
Out: the same numbers standardised, which are standard normal under the model, and log|det|.
"""

import math

import torch
from torch import Tensor, nn

from mbrl.world_model.decoders.flow.layers import ZeroConv, soft_clamp

LOG_DEVIATION_LIMIT = 5.0


def normal_log_prob(x: Tensor) -> Tensor:
    """Log-density of independent standard normals, (N, ...) to (N,) nats."""
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))


def cosines(channels: int, height: int, width: int) -> Tensor:
    """(1, channels, H, W): products of cosines over rows and columns, lowest frequencies first.

    With H * W of them, a 1 x 1 convolution can give every position a value of its own.
    """
    pairs = sorted(((i, j) for i in range(height) for j in range(width)), key=lambda p: (sum(p), p))
    rows = (torch.arange(height) + 0.5) / height * math.pi
    columns = (torch.arange(width) + 0.5) / width * math.pi
    chosen = [pairs[index % len(pairs)] for index in range(channels)]
    return torch.stack([torch.outer((i * rows).cos(), (j * columns).cos()) for i, j in chosen])[
        None
    ]


class GaussianPrior(nn.Module):
    """p(x | known, condition): independent Gaussians, read off by one zero convolution."""

    def __init__(self, channels: int, known: int, maps: int) -> None:
        """Build for x (N, channels, H, W) given `known` channels and the condition's `maps`."""
        super().__init__()
        self.out = ZeroConv(known + maps, 2 * channels, 3)

    def _moments(self, known: Tensor, map_: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = known if map_ is None else torch.cat([known, map_.to(known.dtype)], 1)
        mean, log_deviation = self.out(seen).to(known.dtype).chunk(2, 1)
        return mean, soft_clamp(log_deviation, LOG_DEVIATION_LIMIT)

    def standardise(self, x: Tensor, known: Tensor, map_: Tensor | None) -> tuple[Tensor, Tensor]:
        """Make x standard normal numbers; returns them and log|det| (N,)."""
        mean, log_deviation = self._moments(known, map_)
        return (x - mean) * (-log_deviation).exp(), -log_deviation.flatten(1).sum(1)

    def restore(self, noise: Tensor, known: Tensor, map_: Tensor | None) -> Tensor:
        """The inverse of `standardise`."""
        mean, log_deviation = self._moments(known, map_)
        return mean + noise * log_deviation.exp()


class TopPrior(GaussianPrior):
    """Where nothing else is known: a map of cosines tells positions apart."""

    grid: Tensor

    def __init__(self, channels: int, height: int, width: int, maps: int) -> None:
        """Build for the activations of the last scale."""
        super().__init__(channels, 2 * channels, maps)
        self.register_buffer("grid", cosines(2 * channels, height, width), persistent=False)

    def known(self, count: int) -> Tensor:
        """The cosines, (count, 2 C, H, W)."""
        return self.grid.expand(count, -1, -1, -1)
