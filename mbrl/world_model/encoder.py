"""The VAE's encoder: a frame in, the parameters of q(z | x) out.

Two things keep the code alive on game frames, where a static background drowns a few moving pixels
(a plain encoder collapsed under every decoder tried): each convolution is normalised, and the
encoder sees the frame minus the running mean frame.
"""

import torch
from torch import Tensor, nn

from mbrl.world_model.settings import EncoderSettings


class MeanFrame(nn.Module):
    """The running per-pixel mean of the frames trained on: cumulative first, then moving."""

    mean: Tensor
    batches: Tensor

    def __init__(self, shape: tuple[int, ...], slowest_rate: float = 0.01) -> None:
        """Start at zero frames seen; `shape` is (C, H, W)."""
        super().__init__()
        self.slowest_rate = slowest_rate
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, frames: Tensor) -> None:
        """Take in a batch of frames (N, C, H, W)."""
        batch_mean = frames.mean(0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(batch_mean)
            batch_mean /= torch.distributed.get_world_size()
        self.batches += 1
        rate = (1 / self.batches).clamp_min(self.slowest_rate)
        self.mean += rate * (batch_mean - self.mean)

    def forward(self, frames: Tensor) -> Tensor:
        """Subtract the mean frame."""
        return frames - self.mean


class Encoder(nn.Module):
    """Convolutions, then one dense layer, then the raw parameters of the posterior.

    The first convolution keeps the resolution if the frame is small (at most 16 pixels a side), so
    that objects of one pixel survive; every other one halves it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        raw_size: int,
        settings: EncoderSettings,
        context: int = 0,
    ) -> None:
        """Build for frames of `shape` (C, H, W) and an optional context vector of that size."""
        super().__init__()
        channels, height, width = shape
        self.mean_frame = MeanFrame(shape) if settings.subtract_mean else None
        layers: list[nn.Module] = []
        for index, maps in enumerate(settings.channels):
            small = index == 0 and max(height, width) <= 16
            stride = 1 if small else 2
            kernel = 3 if small or max(height, width) <= 16 else 4
            layers.append(nn.Conv2d(channels, maps, kernel, stride, padding=1))
            if settings.norm:
                layers.append(nn.GroupNorm(1, maps))
            layers.append(nn.SiLU())
            channels = maps
            height = (height + 2 - kernel) // stride + 1
            width = (width + 2 - kernel) // stride + 1
        self.convs = nn.Sequential(*layers)
        self.dense = nn.Linear(channels * height * width + context, settings.hidden)
        self.norm = nn.LayerNorm(settings.hidden) if settings.norm else nn.Identity()
        self.out = nn.Linear(settings.hidden, raw_size)

    def see(self, frames: Tensor) -> None:
        """Take frames (N, C, H, W) that are trained on into the running mean."""
        if self.mean_frame is not None:
            self.mean_frame.update(frames)

    def forward(self, frames: Tensor, context: Tensor | None = None) -> Tensor:
        """Map frames (N, C, H, W), float in [0, 1], to raw posterior parameters (N, raw_size)."""
        if self.mean_frame is not None:
            frames = self.mean_frame(frames)
        flat = self.convs(frames).flatten(1)
        if context is not None:
            flat = torch.cat([flat, context], -1)
        return self.out(nn.functional.silu(self.norm(self.dense(flat))))
