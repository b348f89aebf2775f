"""ImageFlow: an invertible network between images and Gaussian noise, conditional or not.

In: integer images (N, C, H, W) and features (N, F), or none. Out: their log-likelihood in nats (a
bound, for the integers; see `dequantise`), latents that are standard normal under the model, and
images from such latents in a single pass. It knows nothing of world models or training.

L scales: squeeze, K steps, and half of the channels leave with a learned Gaussian prior of their
own (RealNVP, arXiv:1605.08803; Glow, arXiv:1807.03039). With `sharing` other than none, the steps
of a scale call one coupling network (after NanoFlow, arXiv:2006.06280).
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.errors import ConfigError
from mbrl.world_model.decoders.condition import SpatialCondition
from mbrl.world_model.decoders.flow.coupling import Condition, Estimator
from mbrl.world_model.decoders.flow.dequantise import Uniform, Variational
from mbrl.world_model.decoders.flow.layers import squeeze, unsqueeze
from mbrl.world_model.decoders.flow.priors import GaussianPrior, TopPrior, normal_log_prob
from mbrl.world_model.decoders.flow.steps import Kind, Stage
from mbrl.world_model.decoders.flow.surface import Grid, Quantiles
from mbrl.world_model.settings import FlowSettings


def most_scales(height: int, width: int) -> int:
    """How often both sides of an image can be halved."""
    return min((side & -side).bit_length() - 1 for side in (height, width))


def expect_divisible(shape: tuple[int, int, int], scales: int) -> None:
    """Raise ConfigError unless both sides can be halved `scales` times."""
    _, height, width = shape
    most = most_scales(height, width)
    if scales > most:
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
        """Build for images of `shape` (C, H, W) and (N, features); 0 features: unconditional.

        Args:
            shape: (C, H, W).
            levels: V, values a channel takes.
            features: F.
            settings: of the flow.
            hidden: width of the condition vector made from the features.
            map_channels: grown maps of the spatial condition.
            map_products: multiplied maps of it.

        Raises:
            ConfigError: the image cannot be halved so many times.
        """
        super().__init__()
        expect_divisible(shape, settings.scales)
        self.shape, self.levels, self.settings = shape, levels, settings
        channels, height, width = shape
        realnvp = settings.variant == "realnvp"
        self.condition, self.spatial, maps = None, None, 0
        if features:
            self.condition = nn.Sequential(
                nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.SiLU()
            )
            side = 1 if realnvp else 2  # as large as the first steps' activations
            self.spatial = SpatialCondition(
                hidden, map_channels, map_products, height // side, width // side
            )
            maps = self.spatial.channels
        vector = hidden if features else 0
        self.core = self._core(maps, vector) if settings.sharing == "global" else None
        self.surface = Quantiles(shape, levels) if settings.marginal else Grid(levels)
        self.dequantise: Uniform | Variational = (
            Variational(shape, levels, settings)
            if settings.dequantisation == "variational"
            else Uniform()
        )
        stages: list[Stage] = []
        priors: list[GaussianPrior] = []
        for scale in range(settings.scales):
            if realnvp:
                count = -(-settings.steps // 2)
                board = (channels, height, width)
                stages.append(
                    Stage(board, "checkerboard", settings, maps, vector, self.core, count)
                )
            channels, height, width = 4 * channels, height // 2, width // 2
            kind: Kind = "halves" if realnvp else "glow"
            count = settings.steps // 2 if realnvp else settings.steps
            size = (channels, height, width)
            stages.append(Stage(size, kind, settings, maps, vector, self.core, count))
            if scale < settings.scales - 1:
                channels //= 2
                priors.append(GaussianPrior(channels, channels, maps))
        self.stages = nn.ModuleList(stages)
        self.priors = nn.ModuleList(priors)
        self.top = TopPrior(channels, height, width, maps)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def _core(self, maps: int, vector: int) -> Estimator:
        """The one network of `sharing: global`, as wide at the entrance as the last scale."""
        inputs = self.shape[0] * 2**self.settings.scales
        return Estimator(inputs, None, self.settings.width, maps, vector)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the activations: that of the weights."""
        return self.top.out.weight.dtype

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of the latents, by scale."""
        channels, height, width = self.shape
        shapes = []
        for _ in range(self.settings.scales - 1):
            channels, height, width = 2 * channels, height // 2, width // 2
            shapes.append((channels, height, width))
        return [*shapes, (4 * channels, height // 2, width // 2)]

    # -- the condition ----------------------------------------------------------------------------

    def _conditions(self, features: Tensor | None) -> list[Condition]:
        """The condition at the size of every stage."""
        if self.condition is None or self.spatial is None:
            return [Condition(None, None)] * len(self.stages)
        if features is None:
            raise ValueError("this flow was built for features: expected (N, F), got None")
        vector = self.condition(features)
        map_ = self.spatial(vector)
        conditions = [Condition(map_, vector)]
        for _ in range(len(self.stages) - 1 if self.settings.variant == "glow" else 0):
            map_ = functional.avg_pool2d(map_, 2)
            conditions.append(Condition(map_, vector))
        for index in range(2 * self.settings.scales - 1 if len(conditions) == 1 else 0):
            if index % 2 == 0:
                map_ = functional.avg_pool2d(map_, 2)
            conditions.append(Condition(map_, vector))
        return conditions[: len(self.stages)]

    # -- forwards ---------------------------------------------------------------------------------

    def _scales(self, conditions: list[Condition]) -> Iterator[list[tuple[Stage, Condition]]]:
        """The stages of each scale, each with its condition."""
        pairs = [(cast(Stage, s), c) for s, c in zip(self.stages, conditions, strict=True)]
        each = len(pairs) // self.settings.scales
        for start in range(0, len(pairs), each):
            yield pairs[start : start + each]

    def _prior(self, scale: int) -> GaussianPrior:
        return cast(GaussianPrior, self.priors[scale])

    def _enter(self, image: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Integer images to the flow's numbers, and what that adds to the log-probability, (N,)."""
        self._expect(image)
        noise, log_q = self.dequantise(image, self.dtype, generator)
        y, log_det = self.surface(image, noise)
        return y, log_det - log_q

    def _forward(
        self, y: Tensor, conditions: list[Condition], initialise: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """The flow's numbers to latents by scale, and log|det| (N,)."""
        total, latents, first = y.new_zeros(len(y)), [], True
        for scale, stages in enumerate(self._scales(conditions)):
            for place, (stage, condition) in enumerate(stages):
                if place == len(stages) - 1:
                    y = squeeze(y)
                if initialise:
                    y = stage.initialise(y, condition, self.core, first)
                    first = False
                else:
                    y, log_det = stage(y, condition, self.core)
                    total = total + log_det
            map_ = stages[-1][1].map
            if scale < self.settings.scales - 1:
                y, out = y.chunk(2, 1)
                latent, log_det = self._prior(scale).standardise(out, y, map_)
            else:
                latent, log_det = self.top.standardise(y, self.top.known(len(y)), map_)
            latents.append(latent)
            total = total + log_det
        return latents, total

    def _expect(self, image: Tensor) -> None:
        if image.shape[1:] != self.shape:
            raise ValueError(
                f"image: expected (N, {', '.join(map(str, self.shape))}), got {tuple(image.shape)}"
            )

    def see(self, image: Tensor) -> None:
        """Take images (N, C, H, W) that are trained on into the pixels' marginals.

        The density is another one afterwards, so this is no part of `log_prob`. With several ranks
        all must call it.
        """
        self._expect(image)
        self.surface.see(image)

    def initialise(
        self,
        image: Tensor,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set every ActNorm from one batch, once; later calls do nothing.

        With several ranks all must call it, each with images of its own: the statistics are those
        of all together, so the weights stay equal.
        """
        if bool(self.initialised):
            return
        with torch.no_grad():
            y, _ = self._enter(image, generator)
            self._forward(y, self._conditions(features), initialise=True)
            self.initialised.fill_(True)

    def log_prob(
        self,
        image: Tensor,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A bound on the log-probability of integer images, exact up to the noise drawn.

        Args:
            image: (N, C, H, W) integer levels in [0, V).
            features: (N, F), or None if the flow is unconditional.
            generator: random stream of the dequantisation noise.

        Returns:
            (N,) nats.
        """
        y, more = self._enter(image, generator)
        return self.log_density(y, features) + more

    def log_density(self, y: Tensor, features: Tensor | None = None) -> Tensor:
        """Exact log-density of the flow's numbers y (N, C, H, W), (N,)."""
        latents, total = self._forward(y, self._conditions(features))
        return total + torch.stack([normal_log_prob(latent) for latent in latents]).sum(0)

    @torch.no_grad()
    def encode(
        self,
        image: Tensor,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """Images to latents, (N, c, h, w) by scale, standard normal under the model."""
        y, _ = self._enter(image, generator)
        return self._forward(y, self._conditions(features))[0]

    # -- backwards --------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, latents: Sequence[Tensor], features: Tensor | None = None) -> Tensor:
        """Latents by scale to the numbers they stand for, (N, C, H, W); in one pass."""
        scales = list(self._scales(self._conditions(features)))
        y = latents[-1]
        for scale in reversed(range(self.settings.scales)):
            stages = scales[scale]
            map_ = stages[-1][1].map
            if scale == self.settings.scales - 1:
                y = self.top.restore(y, self.top.known(len(y)), map_)
            else:
                y = torch.cat([y, self._prior(scale).restore(latents[scale], y, map_)], 1)
            for place in reversed(range(len(stages))):
                stage, condition = stages[place]
                y = stage.inverse(y, condition, self.core)
                if place == len(stages) - 1:
                    y = unsqueeze(y)
        return y

    def decode(self, latents: Sequence[Tensor], features: Tensor | None = None) -> Tensor:
        """Latents by scale to images, (N, C, H, W) uint8 levels."""
        return self.surface.to_levels(self.restore(latents, features))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        features: Tensor | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw images, (count, C, H, W) uint8 levels, in one pass.

        Args:
            count: N.
            features: (N, F), or None if the flow is unconditional.
            temperature: deviation of the latents; None: the settings'.
            generator: random stream, on the flow's device.
        """
        scale = self.settings.temperature if temperature is None else temperature
        device = self.top.out.weight.device
        latents = [
            scale
            * torch.randn((count, *shape), generator=generator, device=device, dtype=self.dtype)
            for shape in self.latent_shapes
        ]
        return self.decode(latents, features)
