"""Every pixel by itself, given (z, h): the smallest decoder with a likelihood."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.base import Decoder, PixelMarginal
from mbrl.world_model.decoders.settings import DecoderSettings
from mbrl.world_model.losses import inverse_cdf_sample


class LinearDecoder(Decoder):
    """One linear layer to the logits of all pixels, added to how often each level was seen."""

    def __init__(
        self, shape: tuple[int, int, int], levels: int, features: int, settings: DecoderSettings
    ) -> None:
        """Build for images of `shape` (C, H, W) with `levels` values and (N, features)."""
        super().__init__(shape, levels, settings)
        channels, height, width = shape
        self.out = nn.Linear(features, channels * levels * height * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.marginal = PixelMarginal(shape, levels)

    def _logits(self, features: Tensor) -> Tensor:
        """(N, F) to (N, C, V, H, W)."""
        own, marginal = self.out(features).float(), self.marginal()
        logits: Tensor = own.unflatten(1, marginal.shape) + marginal
        return logits

    def nats(self, image: Tensor, features: Tensor, generator: Generator | None = None) -> Tensor:
        """Nats of each pixel, (N, C * H * W)."""
        if self.training:
            self.marginal.update(image)
        logits = self._logits(features).transpose(1, 2)  # (N, V, C, H, W)
        return functional.cross_entropy(logits, image.long(), reduction="none").flatten(1)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: Generator | None = None) -> Tensor:
        """(N, F) to (N, C, H, W) uint8 levels."""
        probs = self._logits(features).softmax(2).movedim(2, -1)  # (N, C, H, W, V)
        return inverse_cdf_sample(probs, generator).to(torch.uint8)
