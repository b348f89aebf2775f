"""What every decoder is, and the two parts that most are built with.

A decoder says how many nats each of its variables (pixels, usually) costs. What is measured and
what is minimised are both sums of those. `SpatialCondition` lays (z, h) out as maps, since neither
convolutions with a small field nor one bias for all pixels can place an object. `PixelMarginal`
counts what is true of every frame, so that gradients go into what moves from the first update on.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.settings import DecoderSettings
from mbrl.world_model.normalise import follow


class Decoder(nn.Module, ABC):
    """p(x | z, h) of integer images (N, C, H, W), levels in [0, V), given features (N, F)."""

    def __init__(self, shape: tuple[int, int, int], levels: int, settings: DecoderSettings) -> None:
        """Keep what all decoders need: the image's shape (C, H, W), V and the settings."""
        super().__init__()
        self.shape, self.levels, self.settings = shape, levels, settings

    @abstractmethod
    def nats(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """What images cost: (N, C, H, W) levels and (N, F) to (N, variables) nats, in any order.

        They sum to -log p. Whatever is drawn for a bound is drawn from `generator`.
        """

    @property
    def needs_initialise(self) -> bool:
        """Whether `initialise` has anything to do."""
        return False

    def initialise(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Set what depends on data, from one batch as in `nats`, before the first update.

        Every rank calls this, with a batch of its own, and ends with the same weights.
        """

    @abstractmethod
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw free-running samples, (N, F) to (N, C, H, W) uint8 levels."""

    def log_prob(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood in nats, (N,): summed over pixels and channels."""
        return -self.nats(image, features, generator).sum(1)


def condition_vector(features: int, hidden: int) -> nn.Sequential:
    """(z, h) to a vector: (N, features) to (N, hidden)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.SiLU())


class SpatialCondition(nn.Module):
    """(z, h) to a map: where on the frame is what.

    Three kinds of maps, concatenated: a dense layer to at most 5 x 5, then nearest doublings with a
    convolution each; products of a profile over rows and a profile over columns, which can say "at
    this row and that column" in one step, sharply; and two coordinates, so that position is never a
    matter of the borders.
    """

    coordinates: Tensor

    def __init__(self, features: int, maps: int, products: int, height: int, width: int) -> None:
        """Build for conditions (N, features): `maps` grown and `products` multiplied maps."""
        super().__init__()
        self.doublings = max(0, math.ceil(math.log2(max(height, width) / 5)))
        self.base = (math.ceil(height / 2**self.doublings), math.ceil(width / 2**self.doublings))
        self.size = (height, width)
        self.maps, self.products = maps, products
        self.channels = maps + products + 2
        self.dense = nn.Linear(features, maps * self.base[0] * self.base[1])
        self.convs = nn.ModuleList(
            nn.Conv2d(maps, maps, 3, padding=1) for _ in range(max(1, self.doublings))
        )
        self.profiles = nn.Linear(features, products * (height + width)) if products else None
        rows = torch.linspace(-1, 1, height).view(1, 1, height, 1).expand(1, 1, height, width)
        columns = torch.linspace(-1, 1, width).view(1, 1, 1, width).expand(1, 1, height, width)
        self.register_buffer("coordinates", torch.cat([rows, columns], 1), persistent=False)

    def forward(self, condition: Tensor) -> Tensor:
        """(N, features) to (N, channels, H, W)."""
        x = self.dense(condition).unflatten(-1, (self.maps, *self.base))
        x = x.contiguous(memory_format=torch.channels_last)
        for index, conv in enumerate(self.convs):
            if index < self.doublings:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = functional.silu(conv(x))
        parts = [x[..., : self.size[0], : self.size[1]]]
        if self.profiles is not None:
            profiles = self.profiles(condition).unflatten(-1, (self.products, -1))
            rows, columns = functional.silu(profiles).split(list(self.size), -1)
            parts.append(rows.unsqueeze(-1) * columns.unsqueeze(-2))
        parts.append(self.coordinates.to(x.dtype).expand(len(x), -1, -1, -1))
        return torch.cat(parts, 1)


class PixelMarginal(nn.Module):
    """Running frequencies of the V levels at every pixel, as logits to add to a decoder's own.

    A small share of the uniform keeps every level possible: an object may appear where none was
    seen before.
    """

    frequency: Tensor
    batches: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        uniform_share: float = 0.01,
        slowest_rate: float = 0.01,
    ) -> None:
        """Start from the uniform distribution over `levels` for images of `shape` (C, H, W)."""
        super().__init__()
        channels, height, width = shape
        self.uniform_share, self.slowest_rate = uniform_share, slowest_rate
        frequency = torch.full((channels, levels, height, width), 1 / levels)
        self.register_buffer("frequency", frequency)
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, image: Tensor) -> None:
        """Take in a batch of images, integer levels (N, C, H, W)."""
        channels, levels, height, width = self.frequency.shape
        place = torch.arange(channels * height * width, device=image.device)
        cells = image.flatten(1).long() + levels * place
        counts = torch.bincount(cells.flatten(), minlength=self.frequency.numel())
        counts = counts.view(channels, height, width, levels).movedim(-1, 1)
        self.batches += 1
        follow(self.frequency, counts / len(image), self.batches, self.slowest_rate)

    def forward(self) -> Tensor:
        """Log-probabilities (C, V, H, W)."""
        levels = self.frequency.shape[1]
        share = self.uniform_share
        return torch.log((1 - share) * self.frequency + share / levels)
