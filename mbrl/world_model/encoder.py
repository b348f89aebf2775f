"""The VAE's encoder: a frame in, the parameters of q(z | x) out.

Three things keep the code alive on game frames, where a static background drowns a few moving
pixels (a plain encoder collapsed under every decoder tried): the encoder sees the frame minus the
running mean frame, each convolution is normalised, and what comes out is standardised across
frames, so that the code differs between frames from the first update on.

With `subtract_past` it sees the frame minus the mean of those before it (see `past`), with
`keep_whole` both.
"""

import torch
from torch import Tensor, nn

from mbrl.world_model.running import mean_of_ranks, next_rate
from mbrl.world_model.settings import EncoderSettings


class MeanFrame(nn.Module):
    """The running per-pixel mean of the frames trained on: cumulative first, then moving.

    With a floor, frames are also divided by the running deviation of each pixel, or by the floor
    where that is larger: a ball that is seldom anywhere then weighs as much as a score that always
    shows.

    Where other means are given to `update` and to `forward`, those are subtracted, and the
    deviation is the root mean square of what is left: of full looks at first frames, as many as
    sequences are short, and of what is new in all others.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(
        self, shape: tuple[int, ...], floor: float | None = None, slowest_rate: float = 0.01
    ) -> None:
        """Start at zero frames seen; `shape` is (C, H, W), `floor` in units of intensity."""
        super().__init__()
        self.floor, self.slowest_rate = floor, slowest_rate
        self.register_buffer("mean", torch.zeros(shape))
        if floor is not None:
            self.register_buffer("square", torch.zeros(shape))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, frames: Tensor, before: Tensor | None = None) -> None:
        """Take in a batch of frames, with what is subtracted from them instead of their mean.

        Args:
            frames: (N, C, H, W).
            before: of the same shape; either in every call, here and to `forward`, or in none.
        """
        self.batches += 1
        rate = next_rate(self.batches, self.slowest_rate)
        self.mean += rate * (mean_of_ranks(frames.mean(0)) - self.mean)
        if self.floor is not None:
            left = frames if before is None else frames - before
            self.square += rate * (mean_of_ranks(left.square().mean(0)) - self.square)

    def forward(self, frames: Tensor, before: Tensor | None = None) -> Tensor:
        """Subtract the mean frame, or `before`, and with a floor divide by the deviation."""
        left = frames - (self.mean if before is None else before)
        if self.floor is None:
            return left
        variance = self.square - self.mean.square() if before is None else self.square
        return left / variance.clamp_min(self.floor**2).sqrt()


class Standardised(nn.Module):
    """Batch normalisation of the posterior's raw parameters: mean 0 and a set deviation at first.

    A fresh encoder's outputs differ by a few hundredths between frames, so a sampled code says next
    to nothing, the decoder learns to do without it, and no gradient ever comes back. Standardising
    them forbids that (BN-VAE, Zhu et al., arXiv:2004.12585). In training the statistics are the
    batch's, and the gradient goes through them: with running ones instead, the code of Pong stayed
    empty. A batch should therefore hold many short sequences rather than few long ones. Afterwards
    the running statistics are used: cumulative first, then moving.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int, deviation: float, slowest_rate: float = 0.05) -> None:
        """Build for (N, size); `deviation` is what each parameter's spread starts at."""
        super().__init__()
        self.slowest_rate = slowest_rate
        self.scale = nn.Parameter(torch.full((size,), deviation))
        self.shift = nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, raw: Tensor) -> Tensor:
        """Standardise (N, size) to float32 (N, size)."""
        raw = raw.float()
        mean, variance = self.mean, self.variance
        if self.training and len(raw) > 1:
            variance, mean = torch.var_mean(raw, 0, correction=0)
            self._follow(mean.detach(), variance.detach())
        return (raw - mean) * torch.rsqrt(variance + 1e-8) * self.scale + self.shift

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        self.batches += 1
        rate = next_rate(self.batches, self.slowest_rate)
        self.mean += rate * (mean_of_ranks(mean) - self.mean)
        self.variance += rate * (mean_of_ranks(variance) - self.variance)


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
        location_size: int | None = None,
    ) -> None:
        """Build for frames of `shape` (C, H, W) and an optional context vector of that size.

        With `deviation`, the first `location_size` raw parameters are standardised (default: all).
        """
        super().__init__()
        channels, height, width = shape
        self.mean_frame = MeanFrame(shape, settings.pixel_floor) if settings.subtract_mean else None
        self.subtracts_past = settings.subtract_past
        self.whole_frame = MeanFrame(shape, settings.pixel_floor) if settings.keep_whole else None
        channels *= 1 + settings.keep_whole
        layers: list[nn.Module] = []
        for index, maps in enumerate(settings.channels):
            small = index == 0 and max(height, width) <= 16
            stride = 1 if small else 2
            kernel = 3 if small or max(height, width) <= 16 else 4
            layers.append(nn.Conv2d(channels, maps, kernel, stride, padding=1))
            if settings.norm != "none":
                layers.append(nn.GroupNorm(1 if settings.norm == "frame" else maps, maps))
            layers.append(nn.SiLU())
            channels = maps
            height = (height + 2 - kernel) // stride + 1
            width = (width + 2 - kernel) // stride + 1
        self.convs = nn.Sequential(*layers)
        self.dense = nn.Linear(channels * height * width + context, settings.hidden)
        self.norm = nn.LayerNorm(settings.hidden) if settings.norm != "none" else nn.Identity()
        self.out = nn.Linear(settings.hidden, raw_size)
        self.location_size = raw_size if location_size is None else location_size
        self.standardised = (
            Standardised(self.location_size, settings.deviation)
            if settings.deviation is not None
            else None
        )

    @property
    def expected(self) -> Tensor | None:
        """(C, H, W), the mean frame; None unless past frames are to be subtracted.

        It stands for them where there are none.
        """
        if self.mean_frame is None or not self.subtracts_past:
            return None
        return self.mean_frame.mean

    def see(self, frames: Tensor, before: Tensor | None = None) -> None:
        """Take frames that are trained on into the running mean; arguments as in `forward`."""
        self._expect_the_past(before)
        if self.mean_frame is not None:
            self.mean_frame.update(frames, before)
        if self.whole_frame is not None:
            self.whole_frame.update(frames)

    def forward(
        self, frames: Tensor, context: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Map frames to raw posterior parameters.

        Args:
            frames: (N, C, H, W), float in [0, 1].
            context: (N, context), where the encoder was built for one.
            before: (N, C, H, W), the mean of the frames before each, if the encoder subtracts it.

        Returns:
            (N, raw_size).

        Raises:
            ValueError: `before` is missing, or is not subtracted.
        """
        self._expect_the_past(before)
        shown = frames if self.mean_frame is None else self.mean_frame(frames, before)
        if self.whole_frame is not None:
            shown = torch.cat([shown, self.whole_frame(frames)], 1)
        flat = self.convs(shown).flatten(1)
        if context is not None:
            flat = torch.cat([flat, context], -1)
        raw: Tensor = self.out(nn.functional.silu(self.norm(self.dense(flat))))
        if self.standardised is None:
            return raw
        location, spread = raw.tensor_split([self.location_size], -1)
        return torch.cat([self.standardised(location), spread.float()], -1)

    def _expect_the_past(self, before: Tensor | None) -> None:
        if (before is not None) != self.subtracts_past:
            expected = "the mean of the frames before each" if self.subtracts_past else "no past"
            raise ValueError(
                f"encoder: expected {expected}, as subtract_past is {self.subtracts_past}"
            )
