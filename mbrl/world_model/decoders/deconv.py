"""Deconvolution decoder: every pixel at once, independent given (z, h).

With `mse` it is the decoder of World Models (Ha & Schmidhuber, arXiv:1803.10122), which finds small
objects too cheap to keep; with `categorical` it is the control that shows how much of PixelCNN's
advantage belongs to the likelihood alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.base import (
    Decoder,
    PixelMarginal,
    SpatialCondition,
    condition_vector,
)
from mbrl.world_model.decoders.settings import DeconvSettings
from mbrl.world_model.losses import inverse_cdf_sample


class DeconvDecoder(Decoder):
    """Features to a map of the image's size, then per-pixel means or logits."""

    def __init__(
        self, shape: tuple[int, int, int], levels: int, features: int, settings: DeconvSettings
    ) -> None:
        """Build for images of `shape` (C, H, W) with `levels` values and (N, features)."""
        super().__init__(shape, levels, settings)
        self.gaussian = settings.likelihood == "mse"
        channels, height, width = shape
        maps = 2 * settings.channels
        self.condition = condition_vector(features, settings.hidden)
        self.spatial = SpatialCondition(settings.hidden, maps, settings.map_products, height, width)
        outputs = channels if self.gaussian else channels * levels
        self.head = nn.Sequential(
            nn.Conv2d(self.spatial.channels, maps, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(maps, outputs, 1),
        )
        counted = settings.marginal and not self.gaussian
        self.marginal = PixelMarginal(shape, levels) if counted else None
        if self.marginal is not None:  # the head starts by adding nothing to it
            for parameter in self.head[-1].parameters():
                nn.init.zeros_(parameter)

    def _logits(self, features: Tensor) -> Tensor:
        """Logits of each pixel, (N, F) to (N, C, V, H, W)."""
        logits = self._outputs(features).unflatten(1, (self.shape[0], self.levels))
        return logits if self.marginal is None else logits + self.marginal()

    def _outputs(self, features: Tensor) -> Tensor:
        return self.head(self.spatial(self.condition(features))).float()

    def nats(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Nats of each pixel; for `mse` the squared error of intensities in [0, 1], as in 2018."""
        if self.gaussian:
            target = image.float() / (self.levels - 1)
            return (self._outputs(features) - target).square().flatten(1)
        if self.marginal is not None and self.training:
            self.marginal.update(image)
        logits = self._logits(features).transpose(1, 2)  # (N, V, C, H, W)
        nats = functional.cross_entropy(logits, image.long(), reduction="none")
        return nats.flatten(1)  # (N, C * H * W)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, F) to (N, C, H, W) uint8 levels: the Gaussian's mean, a draw of the categorical."""
        if self.gaussian:
            means = self._outputs(features).clamp(0, 1)
            return (means * (self.levels - 1)).round().to(torch.uint8)
        probs = self._logits(features).softmax(2)
        return inverse_cdf_sample(probs.movedim(2, -1), generator).to(torch.uint8)
