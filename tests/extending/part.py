"""An encoder of dense layers: a world-model part for frames whose pixels are no neighbours."""

import math

import torch
from torch import Tensor, nn

from mbrl.world_model.encoder import Encoder, Seen
from mbrl.world_model.normalise import MeanFrame
from mbrl.world_model.settings import EncoderSettings


class DenseEncoder(Encoder):
    """The frame minus the mean frame, a normalised layer, and the raw parameters of q(z | x)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        raw_size: int,
        settings: EncoderSettings,
        context: int = 0,
        location_size: int | None = None,
    ) -> None:
        """Build for frames of `shape` (C, H, W).

        Args:
            shape: of a frame.
            raw_size: of what comes out.
            settings: of the section `world_model.encoder`; those of all kinds.
            context: D, if the posterior is recurrent and the encoder gets h as well; else 0.
            location_size: how many raw parameters say where z is, and not how sure that is.
        """
        super().__init__()
        self.mean_frame = MeanFrame(shape)
        self.layers = nn.Sequential(
            nn.Linear(math.prod(shape) + context, 128),
            nn.LayerNorm(128),
            nn.SiLU(),
            nn.Linear(128, raw_size),
        )

    def learn(self, seen: Seen) -> None:
        """Take frames that are trained on into the mean frame, which checkpoints hold."""
        self.mean_frame.update(seen.frames)

    def forward(self, seen: Seen, context: Tensor | None = None) -> Tensor:
        """Frames (..., C, H, W), and a context (..., D) if built for one, to (..., raw_size)."""
        shown = self.mean_frame(seen.frames).flatten(-3)  # (..., C * H * W)
        if context is not None:
            shown = torch.cat([shown, context], -1)  # (..., C * H * W + D)
        raw: Tensor = self.layers(shown)
        return raw
