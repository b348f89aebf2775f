"""The VAE of World Models (Ha & Schmidhuber, arXiv:1803.10122), layer by layer, for 64 x 64 frames.

It is here as the opponent: the network that worked on CarRacing and lost Pong's ball, with its own
plain encoder. Layers are those of the paper's appendix and of its `vae.py`. What still differs: the
standard deviation of the code is bounded (`GaussianCode`), frames may be grey, and the dynamics are
a GRU with a Gaussian prior instead of an LSTM with a mixture.
"""

import torch
from torch import Tensor, nn

from mbrl.errors import ConfigError
from mbrl.world_model.decoders.base import Decoder
from mbrl.world_model.decoders.settings import WorldModelsDecoderSettings
from mbrl.world_model.encoder import Encoder, Seen
from mbrl.world_model.settings import WorldModelsEncoderSettings

SIZE = 64


def _expect_size(shape: tuple[int, int, int]) -> None:
    if shape[1:] != (SIZE, SIZE):
        raise ConfigError(
            f"world_models: expected frames of {SIZE} x {SIZE}, got {shape[1]} x {shape[2]}; set "
            f"env.image_size: {SIZE}, or use the kind deconv, which takes any size"
        )


class WorldModelsEncoder(Encoder):
    """Frames (N, C, 64, 64) to raw posterior parameters, with no protection against collapse."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        raw_size: int,
        settings: WorldModelsEncoderSettings,
        context: int = 0,
        location_size: int | None = None,
    ) -> None:
        """Build for frames of `shape` (C, 64, 64), without a context.

        Raises:
            ConfigError: the frames have another size.
        """
        super().__init__()
        _expect_size(shape)
        layers: list[nn.Module] = []
        channels = shape[0]
        for maps in (32, 64, 128, 256):
            layers += [nn.Conv2d(channels, maps, 4, stride=2), nn.ReLU()]
            channels = maps
        self.convs = nn.Sequential(*layers)
        self.out = nn.Linear(256 * 2 * 2, raw_size)

    def forward(self, seen: Seen, context: Tensor | None = None) -> Tensor:
        """As in `Encoder`; it sees whole frames."""
        flat = self.convs(seen.frames.flatten(0, -4)).flatten(1)  # (N, 256 * 2 * 2)
        return self.out(flat).unflatten(0, seen.frames.shape[:-3])  # (..., raw_size)


class WorldModelsDecoder(Decoder):
    """Features to the mean of every pixel; its nats are squared errors of intensities in [0, 1]."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        features: int,
        settings: WorldModelsDecoderSettings,
    ) -> None:
        """Build for images of `shape` (C, 64, 64) and (N, features).

        Raises:
            ConfigError: the images have another size.
        """
        super().__init__(shape, levels, settings)
        _expect_size(shape)
        self.dense = nn.Linear(features, 1024)
        self.convs = nn.Sequential(
            nn.ConvTranspose2d(1024, 128, 5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 6, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(32, shape[0], 6, stride=2),
        )

    def _means(self, features: Tensor) -> Tensor:
        """(N, F) to intensities (N, C, 64, 64) in [0, 1]."""
        return torch.sigmoid(self.convs(self.dense(features)[..., None, None]).float())

    def nats(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Squared error of each pixel's intensity, (N, C * H * W)."""
        target = image.float() / (self.levels - 1)
        return (self._means(features) - target).square().flatten(1)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The means, (N, F) to (N, C, H, W) uint8 levels: what the 2018 system shows."""
        return (self._means(features) * (self.levels - 1)).round().to(torch.uint8)
