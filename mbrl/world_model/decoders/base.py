"""What every decoder is: a likelihood of images that can be trained, measured and sampled.

A decoder says how many nats each of its variables (pixels, usually) costs; what is measured and
what is minimised are both sums of those, and differ only by what is meant to keep the code alive:
a floor under what is solved, and terms of a decoder's own.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mbrl.world_model.settings import DecoderSettings


class Decoder(nn.Module, ABC):
    """p(x | z, h) of integer images (N, C, H, W), levels in [0, V), given features (N, F)."""

    def __init__(self, shape: tuple[int, int, int], levels: int, settings: DecoderSettings) -> None:
        """Keep what all decoders need: the image's shape (C, H, W), V and the settings."""
        super().__init__()
        self.shape, self.levels, self.settings = shape, levels, settings

    @abstractmethod
    def nats(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What an image costs, variable by variable.

        Args:
            image: (N, C, H, W) integer levels.
            features: (N, F).
            generator: random stream of whatever training draws.

        Returns:
            (N, D) nats, D variables in any order, whose sum is -log p; and (N,) further terms that
            training minimises, if there are any (None when not training).
        """

    @property
    def needs_initialise(self) -> bool:
        """Whether `initialise` has anything to do."""
        return False

    def initialise(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Set what depends on data, from one batch, before the first update; most have nothing.

        With several ranks every one calls this, with a batch of its own, and ends with the same
        weights.

        Args:
            image: (N, C, H, W) integer levels.
            features: (N, F).
            generator: random stream of whatever is drawn.
        """

    @abstractmethod
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw free-running samples, (N, F) to (N, C, H, W) uint8 levels."""

    def log_prob(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood in nats, (N,): summed over pixels and channels."""
        return -self.nats(image, features, generator)[0].sum(1)

    def objective(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """What training minimises, and the nats within it, each (N,).

        Variables that cost less than `decoder.loss_floor` nats are solved and not pushed further
        (SimPLe, arXiv:1903.00374, clips its pixel loss so).
        """
        each, further = self.nats(image, features, generator)
        floor = self.settings.loss_floor
        loss = (each.clamp_min(floor) if floor > 0 else each).sum(1)
        return (loss if further is None else loss + further), each.detach().sum(1)
