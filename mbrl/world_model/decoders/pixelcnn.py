"""PixelCNN decoder: p(x | z, h) as a product over pixels, each conditioned on those before it.

The code and the time state say *where* things are; what they look like is local and is this
decoder's business (Gated PixelCNN, van den Oord et al., arXiv:1606.05328; the idea of pairing it
with a VAE's code: PixelVAE, arXiv:1611.05013, and VLAE, arXiv:1611.02731). Two stacks of shifted
convolutions, so that no mask is needed: the vertical one sees whole rows above, the horizontal one
the row so far. With L layers a pixel depends on L + 1 rows above it and on the pixels up to L + 1
to its left, nothing else; a receptive field this small cannot place an object, which is why the
condition enters not only as a global bias but also as a spatial map, at every gate and once more
past all gates. Channels of one pixel are modelled in order by the head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.marginal import PixelMarginal, one_hot_levels, zero_last_layer
from mbrl.world_model.settings import DecoderSettings


def shift_down(x: Tensor) -> Tensor:
    """Move an image (N, C, H, W) one row down; the first row becomes zero."""
    return functional.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Move an image (N, C, H, W) one pixel right; the first column becomes zero."""
    return functional.pad(x, (1, 0, 0, 0))[..., :-1]


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) for the two halves of the channels."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class SpatialCondition(nn.Module):
    """(z, h) to a map of the image's size: dense to at most 5 x 5, then nearest doublings.

    Two coordinate channels are added at full size, so that position is never a matter of the
    borders.
    """

    coordinates: Tensor

    def __init__(self, features: int, maps: int, height: int, width: int) -> None:
        """Build for conditions (N, features) and maps (N, maps, height, width)."""
        super().__init__()
        self.doublings = max(0, math.ceil(math.log2(max(height, width) / 5)))
        self.base = (math.ceil(height / 2**self.doublings), math.ceil(width / 2**self.doublings))
        self.size = (height, width)
        self.maps = maps
        self.dense = nn.Linear(features, maps * self.base[0] * self.base[1])
        self.convs = nn.ModuleList(
            nn.Conv2d(maps, maps, 3, padding=1) for _ in range(max(1, self.doublings))
        )
        rows = torch.linspace(-1, 1, height).view(1, 1, height, 1).expand(1, 1, height, width)
        columns = torch.linspace(-1, 1, width).view(1, 1, 1, width).expand(1, 1, height, width)
        self.register_buffer("coordinates", torch.cat([rows, columns], 1), persistent=False)

    def forward(self, condition: Tensor) -> Tensor:
        """Map (N, features) to (N, maps + 2, H, W)."""
        x = self.dense(condition).unflatten(-1, (self.maps, *self.base))
        x = x.contiguous(memory_format=torch.channels_last)
        for index, conv in enumerate(self.convs):
            if index < self.doublings:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = functional.silu(conv(x))
        x = x[..., : self.size[0], : self.size[1]]
        return torch.cat([x, self.coordinates.to(x.dtype).expand(len(x), -1, -1, -1)], 1)


class GatedLayer(nn.Module):
    """One gated layer of both stacks, with the vertical stack feeding the horizontal one."""

    def __init__(self, maps: int) -> None:
        """Build for stacks of `maps` channels."""
        super().__init__()
        self.vertical = nn.Conv2d(maps, 2 * maps, (2, 3))
        self.horizontal = nn.Conv2d(maps, 2 * maps, (1, 2))
        self.link = nn.Conv2d(2 * maps, 2 * maps, 1)
        self.out = nn.Conv2d(maps, 2 * maps, 1)

    def forward(
        self, v: Tensor, h: Tensor, v_condition: Tensor, h_condition: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new vertical and horizontal stacks and what goes to the head."""
        a = self.vertical(functional.pad(v, (1, 1, 1, 0)))
        b = self.horizontal(functional.pad(h, (1, 0))) + self.link(a) + h_condition
        residual, skip = self.out(gate(b)).chunk(2, 1)
        return v + gate(a + v_condition), h + residual, skip


class PixelCNNDecoder(nn.Module):
    """Autoregressive categorical likelihood over V intensity levels per channel."""

    channel_order: Tensor

    def __init__(
        self, shape: tuple[int, int, int], levels: int, features: int, settings: DecoderSettings
    ) -> None:
        """Build for images of `shape` (C, H, W) with `levels` values and (N, features)."""
        super().__init__()
        self.shape, self.levels, self.input_dropout = shape, levels, settings.input_dropout
        channels, height, width = shape
        maps, layers = settings.channels, settings.layers
        self.condition = nn.Sequential(
            nn.Linear(features, settings.hidden), nn.LayerNorm(settings.hidden), nn.SiLU()
        )
        self.spatial = SpatialCondition(settings.hidden, settings.map_channels, height, width)
        self.global_bias = nn.Linear(settings.hidden, 4 * maps * layers)
        self.local_bias = nn.Conv2d(settings.map_channels + 2, 4 * maps * layers, 1, bias=False)
        # past the gates, straight to the head: objects find their places several times sooner
        self.local_start = nn.Conv2d(settings.map_channels + 2, maps, 1)
        # one more input channel marks the inside of the image: padding is no black pixel
        inputs = channels * (1 if levels == 2 else levels)
        self.vertical_in = nn.Conv2d(inputs + 1, maps, (1, 3), padding=(0, 1))
        self.horizontal_in = nn.Conv2d(inputs + 1, maps, 1)
        self.stack = nn.ModuleList(GatedLayer(maps) for _ in range(layers))
        self.head = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(maps, 2 * maps, 1),
            nn.SiLU(),
            nn.Conv2d(2 * maps, channels * levels, 1),
        )
        self.marginal = PixelMarginal(shape, levels) if settings.marginal else None
        if self.marginal is not None:
            zero_last_layer(self.head)
        # within a pixel, the levels of channels before c shift the logits of channel c
        self.chain = (
            nn.Linear(channels * levels, channels * levels, bias=False) if channels > 1 else None
        )
        order = torch.arange(channels).repeat_interleave(levels)
        self.register_buffer("channel_order", (order.unsqueeze(1) > order), persistent=False)
        if self.chain is not None:
            nn.init.zeros_(self.chain.weight)

    def _conditions(self, features: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """What (z, h) adds.

        Returns:
            The bias of each layer's vertical and horizontal gates, each (N, 2F, H, W), and what the
            sum of the skip connections starts from, (N, F, H, W).
        """
        condition = self.condition(features)
        spatial = self.spatial(condition)
        bias = self.local_bias(spatial) + self.global_bias(condition)[..., None, None]
        parts = bias.chunk(2 * len(self.stack), 1)
        return list(zip(parts[::2], parts[1::2], strict=True)), self.local_start(spatial)

    def _visible(self, image: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """In training with input dropout, (N, 1, H, W): which pixels the stacks may see."""
        if not (self.training and self.input_dropout > 0):
            return None
        n, _, height, width = image.shape
        draw = torch.rand(n, 1, height, width, generator=generator, device=image.device)
        return draw >= self.input_dropout

    def _logits(
        self,
        image: Tensor,
        conditions: tuple[list[tuple[Tensor, Tensor]], Tensor],
        visible: Tensor | None = None,
    ) -> Tensor:
        """Logits of each pixel given those before it: (N, C, H, W) to (N, C, V, H, W) float32."""
        one_hot = one_hot_levels(image, self.levels)
        seen = image.float() if self.levels == 2 else one_hot
        if visible is not None:
            seen = seen * visible
        inside = torch.ones_like(seen[:, :1])
        seen = torch.cat([seen, inside], 1).contiguous(memory_format=torch.channels_last)
        v = self.vertical_in(shift_down(seen))
        h = self.horizontal_in(shift_right(seen))
        biases, skips = conditions
        for layer, (v_condition, h_condition) in zip(self.stack, biases, strict=True):
            v, h, skip = layer(v, h, v_condition, h_condition)
            skips = skips + skip
        logits = self.head(skips).float()
        if self.chain is not None:
            weight = (self.chain.weight * self.channel_order)[..., None, None]
            logits = logits + functional.conv2d(one_hot, weight)
        logits = logits.unflatten(1, (self.shape[0], self.levels))
        return logits if self.marginal is None else logits + self.marginal()

    def log_prob(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood of images given features.

        Args:
            image: (N, C, H, W) integer levels in [0, V).
            features: (N, F).
            generator: random stream of the input dropout, if there is any.

        Returns:
            (N,) nats, summed over pixels and channels.
        """
        if self.marginal is not None and self.training:
            self.marginal.update(one_hot_levels(image, self.levels))
        logits = self._logits(image, self._conditions(features), self._visible(image, generator))
        return -functional.cross_entropy(
            logits.transpose(1, 2), image.long(), reduction="none"
        ).sum((1, 2, 3))

    @torch.no_grad()
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw free-running samples, (N, F) to (N, C, H, W) uint8 levels.

        The Gumbel noise of every pixel is drawn once; then x <- argmax(logits(x) + noise) is
        repeated until nothing changes. Each pixel depends only on earlier ones, so the fixed point
        is unique and equal to what pixel-by-pixel sampling with the same noise gives, but game
        frames settle in tens of passes instead of C * H * W (Wiggers & Hoogeboom,
        arXiv:2002.09928).
        """
        conditions = self._conditions(features)
        noise = self.gumbel(len(features), features.device, generator)
        image = torch.zeros(len(features), *self.shape, dtype=torch.uint8, device=features.device)
        for _ in range(math.prod(self.shape)):
            settled = (self._logits(image, conditions) + noise).argmax(2).to(torch.uint8)
            if torch.equal(settled, image):
                break
            image = settled
        return image

    def gumbel(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Gumbel noise for n images, (N, C, V, H, W)."""
        size = (n, self.shape[0], self.levels, *self.shape[1:])
        uniform = torch.rand(size, generator=generator, device=device)
        return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
