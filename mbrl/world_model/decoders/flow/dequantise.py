"""From integer levels to real numbers: noise that fills each level's bin, and what it costs.

A density says nothing of integers. With noise u in [0, 1) from q(u | x), log P(x) is at least the
mean of log p(x + u) - log q(u | x) (Theis et al., arXiv:1511.01844), so what a flow reports is a
bound on the discrete likelihood, in nats of the integer image. Uniform noise has log q = 0; a flow
of its own (variational dequantisation, Flow++, arXiv:1902.00275) makes the bound tighter.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.flow.coupling import Condition
from mbrl.world_model.decoders.flow.layers import squeeze, unsqueeze
from mbrl.world_model.decoders.flow.priors import normal_log_prob
from mbrl.world_model.decoders.flow.steps import Stage
from mbrl.world_model.decoders.flow.surface import centred
from mbrl.world_model.settings import FlowSettings

NOISE_STEPS = 4
NOISE_MAPS = 16


class Uniform(nn.Module):
    """Noise that is uniform in [0, 1)."""

    def forward(
        self, image: Tensor, dtype: torch.dtype, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Noise like image (N, C, H, W), and log q(u | x): (N,) zeros."""
        noise = torch.rand(image.shape, generator=generator, device=image.device, dtype=dtype)
        return noise, noise.new_zeros(len(image))


class Variational(nn.Module):
    """Noise from a small flow that sees the image.

    The flow's output goes through the normal distribution function. So it starts as uniform noise
    exactly, and never leaves the bin.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int, settings: FlowSettings) -> None:
        """Build for images of `shape` (C, H, W) with sides that are even."""
        super().__init__()
        channels, height, width = shape
        self.levels = levels
        self.see = nn.Conv2d(4 * channels, NOISE_MAPS, 3, padding=1)
        small = settings.model_copy(update={"variant": "glow", "sharing": "level+film+proj"})
        squeezed = (4 * channels, height // 2, width // 2)
        self.stage = Stage(squeezed, "glow", small, NOISE_MAPS, 0, steps=NOISE_STEPS)

    def forward(
        self, image: Tensor, dtype: torch.dtype, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Noise like image (N, C, H, W), and log q(u | x), (N,) nats."""
        seen = self.see(squeeze(centred(image, self.levels, dtype)))
        condition = Condition(functional.silu(seen), None)
        shape = (len(image), self.see.in_channels, *seen.shape[2:])
        start = torch.randn(shape, generator=generator, device=image.device, dtype=dtype)
        end, log_det = self.stage(start, condition)
        noise = (0.5 * torch.erfc(-end / math.sqrt(2))).clamp_max(1 - torch.finfo(dtype).eps)
        log_q = normal_log_prob(start) - log_det - normal_log_prob(end)
        return unsqueeze(noise), log_q
