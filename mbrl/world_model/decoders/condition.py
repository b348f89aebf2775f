"""Where on the frame is what: the condition (z, h) laid out as maps.

Convolutions with a small field cannot place an object by themselves, nor can a single bias for all
pixels. Every decoder that works on a grid therefore gets maps, made here.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        """Map (N, features) to (N, channels, H, W)."""
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
