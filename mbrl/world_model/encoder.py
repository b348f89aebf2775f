"""The VAE's encoder: a frame, and what it remembers of earlier ones, to the parameters of q(z | x).

Three things keep the code alive on game frames, where a static background drowns a few moving
pixels (a plain encoder collapsed under every decoder tried): the encoder sees the frame minus the
running mean frame, each convolution is normalised, and what comes out is standardised across
frames, so that the code differs between frames from the first update on.

With `subtract_past` the encoder subtracts the mean of the earlier frames of the episode. Repeating
what the past tells costs a code no KL to the prior, so one that sees whole frames fills up with
backgrounds that differ between episodes; one that sees what is new leaves them to the recurrent
state (predictive coding: Rao & Ballard, Nature Neuroscience 2:79, 1999).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mbrl.world_model.latent import Memory
from mbrl.world_model.normalise import MeanFrame, Standardised
from mbrl.world_model.settings import NormalisedSettings

LONGEST = 16
"""Earlier frames in a mean. From then on it is a moving one: each frame moves it by 1 / LONGEST."""


@dataclass(frozen=True)
class Seen:
    """What an encoder is shown."""

    frames: Tensor  # (..., C, H, W) float32, intensities
    before: Tensor | None = None  # to subtract from each, of that shape; None: the mean frame

    def at(self, t: int) -> "Seen":
        """All sequences at time t: (B, T, ...) to (B, ...)."""
        return Seen(self.frames[:, t], None if self.before is None else self.before[:, t])


class Encoder(nn.Module, ABC):
    """Frames to raw posterior parameters; most encoders remember nothing between frames."""

    def initial(self, n: int) -> Memory:
        """What n sequences remember before their first frame."""
        return {}

    def look(self, memory: Memory, frames: Tensor, is_first: Tensor) -> tuple[Seen, Memory]:
        """Put frames beside what is remembered of those before; also the memory after the last one.

        Frames are one of each sequence, (N, C, H, W), or T of each, (B, T, C, H, W). Where
        `is_first`, (N,) or (B, T), an episode starts and the past is forgotten.
        """
        return Seen(frames), memory

    def learn(self, seen: Seen) -> None:
        """Take what is trained on into running statistics; most encoders have none."""

    @abstractmethod
    def forward(self, seen: Seen, context: Tensor | None = None) -> Tensor:
        """Frames (..., C, H, W), and a context (..., D) if built for one, to (..., raw_size)."""


class NormalisedEncoder(Encoder):
    """Convolutions, then one dense layer, then the raw parameters of the posterior.

    The first convolution keeps the resolution if the frame is small (at most 16 pixels a side), so
    that objects of one pixel survive; every other one halves it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        raw_size: int,
        settings: NormalisedSettings,
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
        self.standardised: Standardised | None = None
        if settings.deviation is not None:
            self.standardised = Standardised(self.location_size, settings.deviation)

    def initial(self, n: int) -> Memory:
        """The mean of earlier frames (n, C, H, W), if it is subtracted, and their number (n,).

        Before the first frame the mean frame stands for it.
        """
        if self.mean_frame is None or not self.subtracts_past:
            return {}
        mean = self.mean_frame.mean
        return {"past_mean": mean.repeat(n, 1, 1, 1), "past_count": mean.new_zeros(n)}

    def look(self, memory: Memory, frames: Tensor, is_first: Tensor) -> tuple[Seen, Memory]:
        """As in `Encoder`.

        Raises:
            ValueError: the memory is of an encoder that remembers nothing.
        """
        if self.mean_frame is None or not self.subtracts_past:
            return Seen(frames), memory
        if "past_mean" not in memory:
            raise ValueError(
                "encoder: expected a memory of earlier frames, as encoder.subtract_past is true, "
                "got none; start from what WorldModel.initial or observe returned"
            )
        if is_first.ndim == 1:
            seen, memory = self.look(memory, frames.unsqueeze(1), is_first.unsqueeze(1))
            return seen.at(0), memory
        mean, count, means = memory["past_mean"], memory["past_count"], []
        for frame, first in zip(frames.unbind(1), is_first.unbind(1), strict=True):
            mean = torch.where(first[:, None, None, None], self.mean_frame.mean, mean)
            means.append(mean)  # (B, C, H, W)
            count = (torch.where(first, 0, count) + 1).clamp_max(LONGEST)
            mean = torch.lerp(mean, frame, 1 / count[:, None, None, None])
        before = torch.stack(means, 1)  # (B, T, C, H, W)
        return Seen(frames, before), {"past_mean": mean, "past_count": count}

    def learn(self, seen: Seen) -> None:
        """Take frames that are trained on into the mean frame and the pixels' deviations."""
        if self.mean_frame is not None:
            self.mean_frame.update(seen.frames, seen.before)

    def forward(self, seen: Seen, context: Tensor | None = None) -> Tensor:
        """As in `Encoder`."""
        shown = seen.frames
        if self.mean_frame is not None:
            shown = self.mean_frame(seen.frames, seen.before)
        flat = self.convs(shown.flatten(0, -4)).flatten(1)  # (N, maps * h * w)
        if context is not None:
            flat = torch.cat([flat, context.flatten(0, -2)], -1)  # (N, maps * h * w + context)
        raw: Tensor = self.out(nn.functional.silu(self.norm(self.dense(flat))))  # (N, raw_size)
        if self.standardised is not None:
            location, spread = raw.tensor_split([self.location_size], -1)
            raw = torch.cat([self.standardised(location), spread.float()], -1)
        return raw.unflatten(0, shown.shape[:-3])  # (..., raw_size)
