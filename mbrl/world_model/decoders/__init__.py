"""Decoders: the observation likelihoods p(x | z, h) a world model can be trained with.

To add one: a module with `log_prob(image, features)` and `sample(features, generator)`, and one
line in `DECODERS`.
"""

from typing import Protocol

import torch
from torch import Tensor

from mbrl.world_model.decoders.deconv import DeconvDecoder
from mbrl.world_model.decoders.pixelcnn import PixelCNNDecoder


class Decoder(Protocol):
    """What the world model needs of a decoder. Images are integer levels (N, C, H, W)."""

    def log_prob(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(N, C, H, W) and (N, F) to nats (N,)."""
        ...

    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, F) to free-running samples (N, C, H, W), uint8 levels."""
        ...


DECODERS: dict[str, type[DeconvDecoder] | type[PixelCNNDecoder]] = {
    "deconv": DeconvDecoder,
    "pixelcnn": PixelCNNDecoder,
}
