"""What is true of every frame, learned by counting instead of by gradient.

Most pixels of a game always look the same. A decoder that starts from each pixel's running level
frequencies has nothing left to learn but what differs from them, so its first updates already go
into what moves; without this, the first hundreds of updates only learn the background.
"""

import torch
from torch import Tensor, nn

from mbrl.world_model.normalise import follow


def zero_last_layer(head: nn.Sequential) -> None:
    """Let a head start by adding nothing to the marginal."""
    for parameter in head[-1].parameters():
        nn.init.zeros_(parameter)


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
