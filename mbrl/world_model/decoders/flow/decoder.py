"""The flow as a world model's decoder: p(x | z, h) by an invertible network, drawn in one pass."""

import torch
from torch import Generator, Tensor

from mbrl.world_model.decoders.base import Decoder
from mbrl.world_model.decoders.flow.image_flow import ImageFlow
from mbrl.world_model.decoders.settings import FlowDecoderSettings

INITIAL_ROWS = 256
"""Rows of the first batch that the flow is initialised from, at most."""


class FlowDecoder(Decoder):
    """A conditional `ImageFlow`; its nats are those of the whole frame, and a bound."""

    def __init__(
        self, shape: tuple[int, int, int], levels: int, features: int, settings: FlowDecoderSettings
    ) -> None:
        """Build for images of `shape` (C, H, W) with `levels` values and (N, features).

        Raises:
            ConfigError: the image cannot be halved as often as there are scales.
        """
        super().__init__(shape, levels, settings)
        self.flow = ImageFlow(
            shape,
            levels,
            features,
            settings.flow,
            hidden=settings.hidden,
            map_channels=settings.map_channels,
            map_products=settings.map_products,
        )

    @property
    def needs_initialise(self) -> bool:
        """Whether the flow has not seen a batch yet."""
        return not bool(self.flow.initialised)

    def initialise(
        self, image: Tensor, features: Tensor, generator: Generator | None = None
    ) -> None:
        """Let the activations of this batch, or of evenly spaced rows of it, be normalised."""
        self.flow.see(image)
        every = -(-len(image) // INITIAL_ROWS)
        self.flow.initialise(image[::every], features[::every], generator)

    def nats(self, image: Tensor, features: Tensor, generator: Generator | None = None) -> Tensor:
        """Nats of the whole frame, (N, 1); in training, pixels' marginals follow the images."""
        if self.training:
            self.flow.see(image)
        return -self.flow.log_prob(image, features, generator).unsqueeze(1)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: Generator | None = None) -> Tensor:
        """(N, F) to (N, C, H, W) uint8 levels, at the settings' temperature."""
        return self.flow.sample(len(features), features, generator=generator)
