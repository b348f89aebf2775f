"""What every decoder is: a likelihood of images that can be trained, measured and sampled.

A decoder says how many nats each of its variables (pixels, usually) costs. What is measured and
what is minimised are both sums of those.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mbrl.world_model.decoders.settings import DecoderSettings


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
        """What an image costs, variable by variable: nats whose sum is -log p.

        Args:
            image: (N, C, H, W) integer levels.
            features: (N, F).
            generator: random stream of whatever is drawn.

        Returns:
            (N, variables), in any order.
        """

    @property
    def needs_initialise(self) -> bool:
        """Whether `initialise` has anything to do."""
        return False

    def initialise(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Set what depends on data, from one batch as in `nats`, before the first update.

        With several ranks every one calls this, with a batch of its own, and ends with the same
        weights. Most decoders have nothing to set.
        """

    @abstractmethod
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw free-running samples, (N, F) to (N, C, H, W) uint8 levels."""

    def log_prob(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood in nats, (N,): summed over pixels and channels."""
        return -self.nats(image, features, generator).sum(1)
