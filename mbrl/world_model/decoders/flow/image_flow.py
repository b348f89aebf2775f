"""ImageFlow: an invertible network between images and Gaussian noise, conditional or not.

In: integer images (N, C, H, W) and features (N, F), or none. Out: their log-likelihood in nats (a
bound, for integers), latents that are standard normal under the model, and images from such latents
in a single pass. It knows nothing of world models or training.

Noise fills each level's bin and a surface makes real numbers of it. Then come L scales: squeeze, K
steps, and half of the channels leave with a learned Gaussian prior of their own (RealNVP,
arXiv:1605.08803; Glow, arXiv:1807.03039). Steps may share a network (NanoFlow, arXiv:2006.06280).
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from mbrl.errors import ConfigError
from mbrl.world_model.decoders.base import PixelMarginal, SpatialCondition
from mbrl.world_model.decoders.flow.layers import Condition, Estimator, ZeroConv, soft_clamp
from mbrl.world_model.decoders.flow.steps import Stage
from mbrl.world_model.settings import FlowSettings

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
UNSEEN = 1e-4
"""Probability that is shared evenly by all levels of a pixel, so that none is impossible. It costs
as many nats at every pixel, so it is small."""
TAIL = 1e-9
"""Probability at either end that is cut off, so that no number is infinite."""
NOISE_STEPS, NOISE_MAPS = 4, 16
LOG_DEVIATION_LIMIT = 5.0


# -- the surface: from levels and noise to numbers ------------------------------------------------


def centred(image: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Levels, integer or not, in [0, V) to numbers in [-0.5, 0.5)."""
    return image.to(dtype) / levels - 0.5


class Grid(nn.Module):
    """Levels side by side in [-0.5, 0.5), as published flows on photographs have them."""

    def __init__(self, levels: int) -> None:
        """Build for V levels."""
        super().__init__()
        self.levels = levels

    def see(self, image: Tensor) -> None:
        """Do nothing: the grid is the same for all images."""

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers like `noise` (N, C, H, W), and log|dy / du|, (N,)."""
        y = centred(image.to(noise.dtype) + noise, self.levels, noise.dtype)
        return y, y.new_full((len(y),), -y[0].numel() * math.log(self.levels))

    def to_levels(self, y: Tensor) -> Tensor:
        """The level whose bin y is in; the outermost ones for numbers beyond them. uint8."""
        return ((y + 0.5) * self.levels).floor().clamp(0, self.levels - 1).to(torch.uint8)


class Quantiles(nn.Module):
    """Each pixel's own distribution function, counted in training, then the normal's quantiles.

    Most pixels of a game always look the same, and a Gaussian fits noise that fills a bin evenly at
    log(2 pi e / 12) / 2 = 0.18 nats too many, 720 for a frame of 64 x 64. Here such a pixel is
    Gaussian from the start, and the flow starts from the likelihood of the pixels' marginals (the
    first step of Gaussianization, Chen and Gopinath, NIPS 2000, pixel by pixel).
    """

    def __init__(self, shape: tuple[int, int, int], levels: int) -> None:
        """Start from uniform marginals of V levels, for images of `shape` (C, H, W)."""
        super().__init__()
        # a plain mean over all batches: it settles, and the flow's input settles with it
        self.marginal = PixelMarginal(shape, levels, uniform_share=UNSEEN, slowest_rate=0.0)

    def see(self, image: Tensor) -> None:
        """Take images that are trained on into the marginals."""
        self.marginal.update(image)

    def _bins(self) -> tuple[Tensor, Tensor]:
        """Probability of each level and of all below it, (C, V, H, W) float64."""
        probability = self.marginal().double().exp()
        return probability, probability.cumsum(1) - probability

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers like `noise` (N, C, H, W), and log|dy / du|, (N,)."""
        index = image.long().unsqueeze(2)
        probability, below = (
            part.expand(len(image), *part.shape).gather(2, index).squeeze(2)
            for part in self._bins()
        )
        y = torch.special.ndtri((below + noise * probability).clamp(TAIL, 1 - TAIL))
        log_det = probability.log() + 0.5 * y.square() + HALF_LOG_TWO_PI
        return y.to(noise.dtype), log_det.flatten(1).sum(1).to(noise.dtype)

    def to_levels(self, y: Tensor) -> Tensor:
        """The level whose bin y is in, uint8."""
        _, below = self._bins()
        edges = below[:, 1:].permute(0, 2, 3, 1).contiguous()
        inside = torch.special.ndtr(y.double()).permute(1, 2, 3, 0).contiguous()
        return torch.searchsorted(edges, inside, right=True).permute(3, 0, 1, 2).to(torch.uint8)


# -- the priors: where numbers leave the flow -----------------------------------------------------


def normal_log_prob(x: Tensor) -> Tensor:
    """Log-density of independent standard normals, (N, ...) to (N,) nats."""
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))


def cosines(channels: int, height: int, width: int) -> Tensor:
    """(1, channels, H, W): products of cosines over rows and columns, lowest frequencies first."""
    pairs = sorted(((i, j) for i in range(height) for j in range(width)), key=lambda p: (sum(p), p))
    rows = (torch.arange(height) + 0.5) / height * math.pi
    columns = (torch.arange(width) + 0.5) / width * math.pi
    chosen = [pairs[index % len(pairs)] for index in range(channels)]
    maps = [torch.outer((i * rows).cos(), (j * columns).cos()) for i, j in chosen]
    return torch.stack(maps)[None]


class GaussianPrior(nn.Module):
    """p(x | known, condition): independent Gaussians, read off by one zero convolution.

    Where the flow ends nothing is known; there a map of cosines tells positions apart.
    """

    grid: Tensor | None

    def __init__(self, shape: tuple[int, int, int], maps: int, top: bool) -> None:
        """Build for x, and as much that is known, of `shape`; `top` where the flow ends."""
        super().__init__()
        channels = shape[0]
        known = 2 * channels if top else channels
        self.out = ZeroConv(known + maps, 2 * channels, 3)
        grid = cosines(known, *shape[1:]) if top else None
        self.register_buffer("grid", grid, persistent=False)

    def _moments(self, known: Tensor, map_: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.grid is not None:
            known = self.grid.expand(len(known), -1, -1, -1)
        seen = known if map_ is None else torch.cat([known, map_.to(known.dtype)], 1)
        mean, log_deviation = self.out(seen).to(known.dtype).chunk(2, 1)
        return mean, soft_clamp(log_deviation, LOG_DEVIATION_LIMIT)

    def standardise(self, x: Tensor, known: Tensor, map_: Tensor | None) -> tuple[Tensor, Tensor]:
        """Make x standard normal numbers; returns them and log|det| (N,)."""
        mean, log_deviation = self._moments(known, map_)
        return (x - mean) * (-log_deviation).exp(), -log_deviation.flatten(1).sum(1)

    def restore(self, noise: Tensor, known: Tensor, map_: Tensor | None) -> Tensor:
        """The inverse of `standardise`."""
        mean, log_deviation = self._moments(known, map_)
        return mean + noise * log_deviation.exp()


# -- dequantisation: noise that fills each level's bin --------------------------------------------


class Uniform(nn.Module):
    """Noise u that is uniform in [0, 1), so that log q(u | x) = 0.

    A density does not give probabilities of integers. With noise from q, log P(x) is at least the
    mean of log p(x + u) - log q(u | x) (Theis et al., arXiv:1511.01844): flows report a bound.
    """

    def forward(
        self, image: Tensor, dtype: torch.dtype, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Noise like image (N, C, H, W), and log q(u | x): (N,) zeros."""
        noise = torch.rand(image.shape, generator=generator, device=image.device, dtype=dtype)
        return noise, noise.new_zeros(len(image))


class Variational(nn.Module):
    """Noise from a small flow that sees the image: a tighter bound (Flow++, arXiv:1902.00275).

    Its output goes through the normal distribution function: it starts as uniform noise exactly,
    and never leaves the bin.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int, settings: FlowSettings) -> None:
        """Build for images of `shape` (C, H, W) with sides that are even."""
        super().__init__()
        channels, height, width = shape
        self.levels = levels
        self.see = nn.Conv2d(4 * channels, NOISE_MAPS, 3, padding=1)
        small = settings.model_copy(update={"variant": "glow", "sharing": "level+film+proj"})
        squeezed = (4 * channels, height // 2, width // 2)
        self.stage = Stage(squeezed, "glow", small, NOISE_STEPS, NOISE_MAPS)

    def forward(
        self, image: Tensor, dtype: torch.dtype, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Noise like image (N, C, H, W), and log q(u | x), (N,) nats."""
        seen = self.see(functional.pixel_unshuffle(centred(image, self.levels, dtype), 2))
        condition = Condition(functional.silu(seen), None)
        shape = (len(image), self.see.in_channels, *seen.shape[2:])
        start = torch.randn(shape, generator=generator, device=image.device, dtype=dtype)
        end, log_det = self.stage(start, condition)
        noise = (0.5 * torch.erfc(-end / math.sqrt(2))).clamp_max(1 - torch.finfo(dtype).eps)
        log_q = normal_log_prob(start) - log_det - normal_log_prob(end)
        return functional.pixel_shuffle(noise, 2), log_q


# -- the flow -------------------------------------------------------------------------------------


def most_scales(height: int, width: int) -> int:
    """How often both sides of an image can be halved."""
    return min((side & -side).bit_length() - 1 for side in (height, width))


def _expect_divisible(height: int, width: int, scales: int) -> None:
    if scales > (most := most_scales(height, width)):
        way = f"lower it to {most}" if most else "use decoder.kind: pixelcnn, which takes any size,"
        raise ConfigError(
            f"decoder.flow.scales: expected at most {most} for images of {height} x {width}, whose "
            f"sides are halved at every scale, got {scales}; {way} or resize the images"
        )


class ImageFlow(nn.Module):
    """p(x) or p(x | features) of images with V levels per channel."""

    initialised: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        features: int,
        settings: FlowSettings,
        *,
        hidden: int = 128,
        map_channels: int = 16,
        map_products: int = 0,
    ) -> None:
        """Build for images of `shape` (C, H, W) with V levels and (N, features); 0: unconditional.

        The features become a vector of width `hidden`, and that a map of `map_channels` grown and
        `map_products` multiplied channels.

        Raises:
            ConfigError: the image cannot be halved so many times.
        """
        super().__init__()
        channels, height, width = shape
        _expect_divisible(height, width, settings.scales)
        self.shape, self.levels, self.settings = shape, levels, settings
        self.condition, self.spatial, maps = None, None, 0
        if features:
            layers = nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.SiLU()
            self.condition = nn.Sequential(*layers)
            side = 1 if settings.variant == "realnvp" else 2  # as large as the first stage
            size = height // side, width // side
            self.spatial = SpatialCondition(hidden, map_channels, map_products, *size)
            maps = self.spatial.channels
        vector, self.core = hidden if features else 0, None
        if settings.sharing == "global":  # as wide at the entrance as the last scale
            inputs = channels * 2**settings.scales
            self.core = Estimator(inputs, None, settings.width, maps, vector)
        self.surface = Quantiles(shape, levels) if settings.marginal else Grid(levels)
        variational = settings.dequantisation == "variational"
        self.dequantise = Variational(shape, levels, settings) if variational else Uniform()
        self.stages = nn.ModuleList(self._make_stages(maps, vector))
        *shapes, top = self.latent_shapes
        self.priors = nn.ModuleList(GaussianPrior(one, maps, top=False) for one in shapes)
        self.top = GaussianPrior(top, maps, top=True)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def _make_stages(self, maps: int, vector: int) -> list[Stage]:
        """All stages: one for each scale of Glow, before and after the squeeze for RealNVP."""
        (channels, height, width), settings = self.shape, self.settings
        steps, stages, more = settings.steps, list[Stage](), (maps, vector, self.core)
        for scale in range(settings.scales):
            board = (channels << scale, height >> scale, width >> scale)
            squeezed = (4 * board[0], board[1] // 2, board[2] // 2)
            if settings.variant == "realnvp":
                stages.append(Stage(board, "checkerboard", settings, -(-steps // 2), *more))
                stages.append(Stage(squeezed, "halves", settings, steps // 2, *more))
            else:
                stages.append(Stage(squeezed, "glow", settings, steps, *more))
        return stages

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the activations: that of the weights."""
        return self.top.out.weight.dtype

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of the latents, by scale."""
        (channels, height, width), last = self.shape, self.settings.scales
        scales = range(1, last + 1)
        return [(channels << (s if s < last else s + 1), height >> s, width >> s) for s in scales]

    def _pairs(self, features: Tensor | None) -> list[tuple[Stage, Condition]]:
        """The stages in order, each with the condition at its size."""
        stages = [cast(Stage, stage) for stage in self.stages]
        if self.condition is None or self.spatial is None:
            return [(stage, Condition(None, None)) for stage in stages]
        if features is None:
            raise ValueError("this flow was built for features: expected (N, F), got None")
        vector = self.condition(features)
        map_, pairs = self.spatial(vector), []
        for stage in stages:
            if map_.shape[2] > stage.shape[1]:
                map_ = functional.avg_pool2d(map_, 2)
            pairs.append((stage, Condition(map_, vector)))
        return pairs

    # -- forwards ---------------------------------------------------------------------------------

    def _enter(self, image: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Integer images to the flow's numbers, and what that adds to the log-probability, (N,)."""
        self._expect(image)
        noise, log_q = self.dequantise(image, self.dtype, generator)
        y, log_det = self.surface(image, noise)
        return y, log_det - log_q

    def to_latents(
        self, y: Tensor, features: Tensor | None, initialise: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """The flow's numbers y (N, C, H, W) to latents by scale, and log|det| (N,)."""
        total, latents, priors = y.new_zeros(len(y)), list[Tensor](), [*self.priors, self.top]
        for index, (stage, condition) in enumerate(self._pairs(features)):
            last = stage.kind != "checkerboard"  # of its scale
            y = functional.pixel_unshuffle(y, 2) if last else y
            if initialise:
                y = stage.initialise(y, condition, first=index == 0)
            else:
                y, log_det = stage(y, condition)
                total = total + log_det
            if last:
                prior = cast(GaussianPrior, priors[len(latents)])
                y, out = (y, y) if prior is self.top else y.chunk(2, 1)
                latent, log_det = prior.standardise(out, y, condition.map)
                latents.append(latent)
                total = total + log_det
        return latents, total

    def _expect(self, image: Tensor) -> None:
        if image.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"image: expected (N, {expected}), got {tuple(image.shape)}")

    def see(self, image: Tensor) -> None:
        """Take images (N, C, H, W) that are trained on into the pixels' marginals; all ranks must.

        The density is another one afterwards, so this is no part of `log_prob`.
        """
        self._expect(image)
        self.surface.see(image)

    @torch.no_grad()
    def initialise(
        self, image: Tensor, features: Tensor | None = None, generator: Generator | None = None
    ) -> None:
        """Set every ActNorm from one batch, once; later calls do nothing.

        All ranks must call it: the statistics are those of all together, so weights stay equal.
        """
        if bool(self.initialised):
            return
        y, _ = self._enter(image, generator)
        self.to_latents(y, features, initialise=True)
        self.initialised.fill_(True)

    def log_prob(
        self, image: Tensor, features: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """A bound on the log-probability of images, (N,) nats, exact up to the noise drawn.

        `image` has integer levels in [0, V), (N, C, H, W); `features` are (N, F), or None if the
        flow is unconditional.
        """
        y, more = self._enter(image, generator)
        return self.log_density(y, features) + more

    def log_density(self, y: Tensor, features: Tensor | None = None) -> Tensor:
        """Exact log-density of the flow's numbers y (N, C, H, W), (N,)."""
        latents, total = self.to_latents(y, features)
        return total + torch.stack([normal_log_prob(latent) for latent in latents]).sum(0)

    @torch.no_grad()
    def encode(
        self, image: Tensor, features: Tensor | None = None, generator: Generator | None = None
    ) -> list[Tensor]:
        """Images to latents, (N, c, h, w) by scale, standard normal under the model."""
        y, _ = self._enter(image, generator)
        return self.to_latents(y, features)[0]

    # -- backwards --------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, latents: Sequence[Tensor], features: Tensor | None = None) -> Tensor:
        """Latents by scale to the numbers they stand for, (N, C, H, W); in one pass."""
        left, y = list(zip([*self.priors, self.top], latents, strict=True)), latents[-1]
        for stage, condition in reversed(self._pairs(features)):
            last = stage.kind != "checkerboard"  # of its scale
            if last:
                prior, latent = left.pop()
                out = cast(GaussianPrior, prior).restore(latent, y, condition.map)
                y = out if prior is self.top else torch.cat([y, out], 1)
            y = stage.inverse(y, condition)
            y = functional.pixel_shuffle(y, 2) if last else y
        return y

    def decode(self, latents: Sequence[Tensor], features: Tensor | None = None) -> Tensor:
        """Latents by scale to images, (N, C, H, W) uint8 levels."""
        return self.surface.to_levels(self.restore(latents, features))

    def noise(self, count: int, temperature: float, generator: Generator | None) -> list[Tensor]:
        """Gaussian noise with deviation `temperature`: latents (count, c, h, w) by scale."""
        empty = [self.top.out.weight.new_empty((count, *shape)) for shape in self.latent_shapes]
        return [temperature * one.normal_(generator=generator) for one in empty]

    @torch.no_grad()
    def sample(
        self,
        count: int,
        features: Tensor | None = None,
        temperature: float | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draw images in one pass, (N, C, H, W) uint8 levels, given features (N, F) or None.

        `temperature` is the deviation of the latents, by default the settings'.
        """
        scale = self.settings.temperature if temperature is None else temperature
        return self.decode(self.noise(count, scale, generator), features)
