"""The surface of a flow: between levels with noise in their bins and the numbers it works on.

In: integer images (N, C, H, W) and noise in [0, 1). Out: real numbers and how the density changes
on the way, and the way back to levels. Nothing here is learnt by gradient.

Most pixels of a game always look the same, and noise that fills a bin evenly is the one thing a
Gaussian cannot fit: it costs log(2 pi e / 12) / 2 = 0.18 nats too many for each such pixel, 720 for
a frame of 64 x 64, before anything that moves is described. `Quantiles` therefore sends every pixel
through its own distribution, counted in training, and out through the normal's. A pixel that never
changes is then Gaussian already, the flow starts from the likelihood of the pixels' marginals, and
what is left to it is how pixels go together (the first step of Gaussianization, Chen and Gopinath,
NIPS 2000, pixel by pixel). `Grid` is the plain way, which published flows on photographs take.
"""

import math

import torch
from torch import Tensor, nn

from mbrl.world_model.decoders.marginal import PixelMarginal

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
UNSEEN = 1e-4
"""Probability that is shared evenly by all levels of a pixel, so that none is impossible. It costs
as many nats at every pixel, so it is small."""
TAIL = 1e-9
"""Probability at either end that is cut off, so that no number is infinite."""


def centred(image: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Levels, integer or not, in [0, V) to numbers in [-0.5, 0.5)."""
    return image.to(dtype) / levels - 0.5


class Grid(nn.Module):
    """Levels side by side in [-0.5, 0.5)."""

    def __init__(self, levels: int) -> None:
        """Build for V levels."""
        super().__init__()
        self.levels = levels

    def see(self, image: Tensor) -> None:
        """Do nothing: the grid is the same for all images."""

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers like `noise` (N, C, H, W), and log|dy / du|, (N,)."""
        y = centred(image.to(noise.dtype) + noise, self.levels, noise.dtype)
        return y, y.new_full((len(y),), -y[0].numel() * math.log(self.levels))

    def to_levels(self, y: Tensor) -> Tensor:
        """The level whose bin y is in; the outermost ones for numbers beyond them. uint8."""
        return ((y + 0.5) * self.levels).floor().clamp(0, self.levels - 1).to(torch.uint8)


class Quantiles(nn.Module):
    """Each pixel's own distribution function, then the normal's quantiles."""

    def __init__(self, shape: tuple[int, int, int], levels: int) -> None:
        """Start from uniform marginals of V levels, for images of `shape` (C, H, W)."""
        super().__init__()
        self.levels = levels
        # a plain mean over all batches: it settles, and what the flow reads settles with it
        self.marginal = PixelMarginal(shape, levels, uniform_share=UNSEEN, slowest_rate=0.0)

    def see(self, image: Tensor) -> None:
        """Take images that are trained on into the marginals."""
        self.marginal.update(image)

    def _bins(self) -> tuple[Tensor, Tensor]:
        """Probability of each level and of all below it, (C, V, H, W) float64."""
        probability = self.marginal().double().exp()
        return probability, probability.cumsum(1) - probability

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers like `noise` (N, C, H, W), and log|dy / du|, (N,)."""
        index = image.long().unsqueeze(2)
        probability, below = (
            part.expand(len(image), *part.shape).gather(2, index).squeeze(2)
            for part in self._bins()
        )
        y = torch.special.ndtri((below + noise * probability).clamp(TAIL, 1 - TAIL))
        log_det = probability.log() + 0.5 * y.square() + HALF_LOG_TWO_PI
        return y.to(noise.dtype), log_det.flatten(1).sum(1).to(noise.dtype)

    def to_levels(self, y: Tensor) -> Tensor:
        """The level whose bin y is in, uint8."""
        _, below = self._bins()
        edges = below[:, 1:].permute(0, 2, 3, 1).contiguous()
        inside = torch.special.ndtr(y.double()).permute(1, 2, 3, 0).contiguous()
        return torch.searchsorted(edges, inside, right=True).permute(3, 0, 1, 2).to(torch.uint8)
