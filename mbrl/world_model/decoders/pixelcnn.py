"""PixelCNN decoder: p(x | z, h) as a product over pixels, each conditioned on those before it.

The code and the time state say *where* things are; what they look like is local and is this
decoder's business (Gated PixelCNN, van den Oord et al., arXiv:1606.05328; the idea of pairing it
with a VAE's code: PixelVAE, arXiv:1611.05013, and VLAE, arXiv:1611.02731). Two stacks of shifted
convolutions, so that no mask is needed: the vertical one sees whole rows above, the horizontal one
the row so far.

The stacks work on blocks of b x b pixels (space to depth), because convolutions at full resolution
are most of the cost: at 64 x 64, blocks of 4 make a frame about ten times cheaper. Nothing is lost
by it: within a block a masked head (MADE, arXiv:1502.03509) models the sub-pixels and their
channels one after another, so the likelihood is still exact and still autoregressive in every
pixel. With L layers a block depends on L + 1 rows of blocks above it and on the blocks up to L + 1
to its left, nothing else; a receptive field this small cannot place an object, which is why the
condition enters not only as a global bias but also as a spatial map, at every gate and once more
past all gates.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.errors import ConfigError
from mbrl.world_model.decoders.base import Decoder
from mbrl.world_model.decoders.condition import SpatialCondition
from mbrl.world_model.decoders.marginal import PixelMarginal
from mbrl.world_model.decoders.sampling import gate, sample_blocks
from mbrl.world_model.settings import DecoderSettings

Conditions = tuple[list[tuple[Tensor, Tensor | None]], Tensor]


def shift_down(x: Tensor) -> Tensor:
    """Move an image (N, C, H, W) one row down; the first row becomes zero."""
    return functional.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Move an image (N, C, H, W) one pixel right; the first column becomes zero."""
    return functional.pad(x, (1, 0, 0, 0))[..., :-1]


class GatedLayer(nn.Module):
    """One gated layer of both stacks, with the vertical stack feeding the horizontal one.

    The last layer has no vertical output: nobody would see it.
    """

    def __init__(self, maps: int) -> None:
        """Build for stacks of `maps` channels."""
        super().__init__()
        self.vertical = nn.Conv2d(maps, 2 * maps, (2, 3))
        self.horizontal = nn.Conv2d(maps, 2 * maps, (1, 2))
        self.link = nn.Conv2d(2 * maps, 2 * maps, 1)
        self.out = nn.Conv2d(maps, 2 * maps, 1)

    def forward(
        self, v: Tensor, h: Tensor, h_condition: Tensor, v_condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new vertical and horizontal stacks and what goes to the head.

        Without a condition for the vertical stack, that stack is returned as it came.
        """
        a = self.vertical(functional.pad(v, (1, 1, 1, 0)))
        b = self.horizontal(functional.pad(h, (1, 0))) + self.link(a) + h_condition
        residual, skip = self.out(gate(b)).chunk(2, 1)
        below = v if v_condition is None else v + gate(a + v_condition)
        return below, h + residual, skip


def to_blocks(image: Tensor, block: int) -> Tensor:
    """Pixels to blocks of sub-pixels: (N, C, H, W) to (N, H / b, W / b, S), S = b * b * C.

    Sub-pixels are in the order in which they are modelled: row by row, channels of a pixel last.
    """
    n, channels, height, width = image.shape
    parts = image.view(n, channels, height // block, block, width // block, block)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(n, height // block, width // block, -1)


def from_blocks(blocks: Tensor, channels: int, block: int) -> Tensor:
    """The inverse of `to_blocks`."""
    n, rows, columns, _ = blocks.shape
    parts = blocks.view(n, rows, columns, block, block, channels).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(n, channels, rows * block, columns * block)


def level_features(levels: int, count: int) -> Tensor:
    """What stands for each level on the way in, (V, count): cosines of growing frequency.

    Fixed, so that no gradient has to be scattered back into a table; with `count` = V - 1 they tell
    all levels apart linearly (they are the discrete cosine transform), with fewer smoothly.
    """
    frequency = math.pi * torch.arange(1, count + 1)
    return torch.cos((torch.arange(levels)[:, None] + 0.5) / levels * frequency)


class MaskedHead(nn.Module):
    """Logits of the S sub-pixels of a block, each given the context and the sub-pixels before it.

    One hidden layer with `units` of its own for each sub-pixel: those of sub-pixel s see the
    sub-pixels before s only (MADE, Germain et al., arXiv:1502.03509).
    """

    mask: Tensor

    def __init__(self, maps: int, subpixels: int, embedding: int, levels: int, units: int) -> None:
        """Build for contexts (..., maps) and embedded sub-pixels (..., S, E)."""
        super().__init__()
        self.subpixels, self.units = subpixels, units
        self.context = nn.Linear(maps, subpixels * units)
        self.before = nn.Linear(subpixels * embedding, subpixels * units, bias=False)
        order = torch.arange(subpixels)
        mask = order.repeat_interleave(units)[:, None] > order.repeat_interleave(embedding)
        self.register_buffer("mask", mask.float(), persistent=False)
        self.weight = nn.Parameter(torch.zeros(subpixels, units, levels))
        self.bias = nn.Parameter(torch.zeros(subpixels, levels))

    def forward(self, context: Tensor, embedded: Tensor) -> Tensor:
        """Contexts (N, h, w, maps) and embedded blocks (N, h, w, S, E) to (N, h, w, S, V).

        The result is a view; in memory the axis S comes first, as the matrix products leave it.
        """
        hidden = self.context(context)
        if self.subpixels > 1:
            weight = self.before.weight * self.mask
            hidden = hidden + functional.linear(embedded.flatten(-2), weight)
        hidden = functional.silu(hidden).view(-1, self.subpixels, self.units)
        logits = torch.bmm(hidden.transpose(0, 1), self.weight.to(hidden.dtype))
        return logits.unflatten(1, context.shape[:3]).permute(1, 2, 3, 0, 4)


class AuxiliaryHead(nn.Module):
    """A second guess at the frame from the spatial condition alone, every sub-pixel at once.

    It cannot lean on earlier pixels, so what it learns has to come from (z, h) (AGAVE, Lucas and
    Verbeek, arXiv:1711.11479). Used in training only.
    """

    def __init__(self, maps: int, hidden: int, subpixels: int, levels: int) -> None:
        """Build for spatial conditions of `maps` channels."""
        super().__init__()
        self.subpixels = subpixels
        last = nn.Linear(hidden, subpixels * levels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(maps, hidden), nn.SiLU(), last)

    def forward(self, spatial: Tensor) -> Tensor:
        """Map (N, maps, h, w) to logits (N, h, w, S, V)."""
        logits: Tensor = self.layers(spatial.permute(0, 2, 3, 1))
        return logits.unflatten(-1, (self.subpixels, -1))


def subpixel_nats(logits: Tensor, blocks: Tensor) -> Tensor:
    """Nats of sub-pixels (N, h, w, S) under logits (N, h, w, S, V): (N, S * h * w) float32."""
    logits, target = logits.permute(3, 0, 1, 2, 4), blocks.permute(3, 0, 1, 2)  # as they lie
    nats = functional.cross_entropy(
        logits.flatten(0, 3).float(), target.flatten().long(), reduction="none"
    )
    return nats.view(target.shape).transpose(0, 1).flatten(1)


class PixelCNNDecoder(Decoder):
    """Autoregressive categorical likelihood over V intensity levels per channel."""

    table: Tensor

    def __init__(
        self, shape: tuple[int, int, int], levels: int, features: int, settings: DecoderSettings
    ) -> None:
        """Build for images of `shape` (C, H, W) with `levels` values and (N, features).

        Raises:
            ConfigError: the image does not divide into blocks.
        """
        super().__init__(shape, levels, settings)
        channels, height, width = shape
        block = self.block = settings.block
        if height % block or width % block:
            raise ConfigError(
                f"world_model.decoder.block: expected a divisor of the image's height and width, "
                f"got {block} for {height} x {width}; choose another block, or 1"
            )
        maps, layers, embedding = settings.channels, settings.layers, settings.embedding
        subpixels = block * block * channels
        self.condition = nn.Sequential(
            nn.Linear(features, settings.hidden), nn.LayerNorm(settings.hidden), nn.SiLU()
        )
        self.spatial = SpatialCondition(
            settings.hidden,
            settings.map_channels,
            settings.map_products,
            height // block,
            width // block,
        )
        gates = 2 * maps * (2 * layers - 1)  # both stacks of every layer, horizontal of the last
        self.global_bias = nn.Linear(settings.hidden, gates)
        self.local_bias = nn.Conv2d(self.spatial.channels, gates, 1, bias=False)
        # past the gates, straight to the head: objects find their places several times sooner
        self.local_start = nn.Conv2d(self.spatial.channels, maps, 1)
        self.register_buffer("table", level_features(levels, embedding), persistent=False)
        # one more input channel marks the inside of the image: padding is no black pixel
        self.vertical_in = nn.Conv2d(subpixels * embedding + 1, maps, (1, 3), padding=(0, 1))
        self.horizontal_in = nn.Conv2d(subpixels * embedding + 1, maps, 1)
        self.stack = nn.ModuleList(GatedLayer(maps) for _ in range(layers))
        self.head = MaskedHead(maps, subpixels, embedding, levels, settings.head_units)
        self.marginal = PixelMarginal(shape, levels) if settings.marginal else None
        self.auxiliary = (
            AuxiliaryHead(self.spatial.channels, settings.hidden, subpixels, levels)
            if settings.auxiliary > 0
            else None
        )

    def _conditions(self, features: Tensor) -> Conditions:
        """What (z, h) adds, on the grid of blocks."""
        condition = self.condition(features)
        return self._biases(condition, self.spatial(condition))

    def _biases(self, condition: Tensor, spatial: Tensor) -> Conditions:
        """The biases that a condition vector and a spatial condition amount to.

        Returns:
            The bias of each layer's horizontal and vertical gates, each (N, 2F, h, w), None for the
            last layer's vertical one; and what the sum of the skip connections starts from,
            (N, F, h, w).
        """
        bias = self.local_bias(spatial) + self.global_bias(condition)[..., None, None]
        parts = bias.chunk(2 * len(self.stack) - 1, 1)
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        return list(pairs), self.local_start(spatial)

    def _visible(self, blocks: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """In training with input dropout, (N, h, w, S): which pixels the decoder may see."""
        if not (self.training and self.settings.input_dropout > 0):
            return None
        pixels = (*blocks.shape[:3], self.block**2)
        draw = torch.rand(pixels, generator=generator, device=blocks.device)
        return (draw >= self.settings.input_dropout).repeat_interleave(self.shape[0], -1)

    def _logits(
        self,
        blocks: Tensor,
        conditions: Conditions,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Logits of each sub-pixel given those before it: (N, h, w, S) to (N, h, w, S, V)."""
        embedded = self.table[blocks.long()]
        if visible is not None:
            embedded = embedded * visible.unsqueeze(-1)
        context = functional.silu(self._skips(embedded.flatten(-2), conditions))
        logits: Tensor = self.head(context.permute(0, 2, 3, 1), embedded)
        return logits + self._start()

    def _skips(self, flat: Tensor, conditions: Conditions) -> Tensor:
        """Both stacks: embedded blocks (N, h, w, S E) to what goes to the head, (N, F, h, w)."""
        seen = torch.cat([flat, torch.ones_like(flat[..., :1])], -1).permute(0, 3, 1, 2)
        v = self.vertical_in(shift_down(seen))
        h = self.horizontal_in(shift_right(seen))
        biases, skips = conditions
        for layer, (h_condition, v_condition) in zip(self.stack, biases, strict=True):
            v, h, skip = layer(v, h, h_condition, v_condition)
            skips = skips + skip
        return skips

    def _start(self) -> Tensor:
        """The logits that all frames start from, (h, w, S, V) or (S, V) float32."""
        if self.marginal is None:
            return self.head.bias
        by_level = to_blocks(self.marginal().transpose(0, 1), self.block)
        return by_level.permute(1, 2, 3, 0) + self.head.bias

    def nats(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Nats of each sub-pixel; with `decoder.auxiliary`, also the weighted auxiliary nats."""
        if self.marginal is not None and self.training:
            self.marginal.update(image)
        blocks = to_blocks(image, self.block)
        condition = self.condition(features)
        spatial = self.spatial(condition)
        biases = self._biases(condition, spatial)
        logits = self._logits(blocks, biases, self._visible(blocks, generator))
        nats = subpixel_nats(logits, blocks)
        if self.auxiliary is None or not self.training:
            return nats, None
        guess = self.auxiliary(spatial) + self._start()
        return nats, self.settings.auxiliary * subpixel_nats(guess, blocks).sum(1)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw free-running samples, (N, F) to (N, C, H, W) uint8 levels.

        The Gumbel noise of every pixel is drawn once; every `decoder.sampler` then gives the same
        images, in different time (`mbrl.world_model.decoders.sampling`).
        """
        noise = self.gumbel(len(features), features.device, generator)
        blocks = sample_blocks(self, self.settings.sampler, features, noise)
        return from_blocks(blocks, self.shape[0], self.block)

    def gumbel(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Gumbel noise for n images on the grid of blocks, (N, h, w, S, V)."""
        channels, height, width = self.shape
        grid = (height // self.block, width // self.block, self.block**2 * channels)
        uniform = torch.rand((n, *grid, self.levels), generator=generator, device=device)
        return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
