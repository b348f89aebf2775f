"""PixelCNN decoder: p(x | z, h) as a product over pixels, each conditioned on those before it.

The code and the time state say *where* things are; what they look like is local and this decoder's
business (Gated PixelCNN, arXiv:1606.05328; with a VAE's code: PixelVAE, arXiv:1611.05013, and VLAE,
arXiv:1611.02731). Two stacks of shifted convolutions need no mask: the vertical one sees whole rows
above, the horizontal one the row so far.

The stacks work on blocks of b x b pixels: at 64 x 64, blocks of 4 make a frame about ten times
cheaper. Within a block a masked head (MADE, arXiv:1502.03509) models the sub-pixels and their
channels one after another, so the likelihood stays exact. With L layers a block depends on L + 1
rows of blocks above it and on L + 1 blocks to its left. A field this small cannot place an object,
so the condition enters also as a spatial map, at every gate and once more past all gates.

Samples are drawn all blocks at once: guess the frame, then draw blocks anew from the frame so far,
until nothing changes. Every block depends on earlier ones only, so the fixed point is the frame
that drawing one sub-pixel after another gives. Game frames reach it in tens of passes (Wiggers &
Hoogeboom, arXiv:2002.09928), each of the blocks alone whose field holds one that has just changed.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.errors import ConfigError
from mbrl.world_model.decoders.base import (
    Decoder,
    PixelMarginal,
    SpatialCondition,
    condition_vector,
)
from mbrl.world_model.decoders.settings import PixelCNNSettings

Conditions = tuple[list[tuple[Tensor, Tensor | None]], Tensor]
"""Biases of each layer's horizontal and vertical gates, each (N, 2 F, h, w), None for the vertical
ones of the last layer; and what the sum of skip connections starts from, (N, F, h, w)."""
CELLS_AT_ONCE = 2**17
"""Blocks in memory at a time; larger batches are drawn in parts, which changes no frame."""


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) for the two halves of the channels."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


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
        self, v: Tensor, h: Tensor, h_condition: Tensor, v_condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new vertical and horizontal stacks, and what goes to the head.

        The last layer has no condition for the vertical stack, which nobody would see.
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


class MaskedHead(nn.Module):
    """Logits of the S sub-pixels of a block, each given the context and the sub-pixels before it.

    One hidden layer, with `units` for each sub-pixel that see the sub-pixels before it only.
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


class PixelCNNDecoder(Decoder):
    """Autoregressive categorical likelihood over V intensity levels per channel."""

    table: Tensor

    def __init__(
        self, shape: tuple[int, int, int], levels: int, features: int, settings: PixelCNNSettings
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
        self.condition = condition_vector(features, settings.hidden)
        grid = height // block, width // block
        self.spatial = SpatialCondition(
            settings.hidden, settings.map_channels, settings.map_products, *grid
        )
        gates = 2 * maps * (2 * layers - 1)  # both stacks of every layer, horizontal of the last
        self.global_bias = nn.Linear(settings.hidden, gates)
        self.local_bias = nn.Conv2d(self.spatial.channels, gates, 1, bias=False)
        # past the gates, straight to the head: objects find their places several times sooner
        self.local_start = nn.Conv2d(self.spatial.channels, maps, 1)
        # what stands for each level on the way in: fixed cosines of growing frequency, (V, E)
        frequency = math.pi * torch.arange(1, embedding + 1)
        table = torch.cos((torch.arange(levels)[:, None] + 0.5) / levels * frequency)
        self.register_buffer("table", table, persistent=False)
        # one more input channel marks the inside of the image: padding is no black pixel
        self.vertical_in = nn.Conv2d(subpixels * embedding + 1, maps, (1, 3), padding=(0, 1))
        self.horizontal_in = nn.Conv2d(subpixels * embedding + 1, maps, 1)
        self.layers = [GatedLayer(maps) for _ in range(layers)]
        self.stack = nn.ModuleList(self.layers)
        self.head = MaskedHead(maps, subpixels, embedding, levels, settings.head_units)
        self.marginal = PixelMarginal(shape, levels) if settings.marginal else None

    def conditions(self, features: Tensor) -> Conditions:
        """What (z, h) adds, on the grid of blocks."""
        condition = self.condition(features)
        spatial = self.spatial(condition)
        bias = self.local_bias(spatial) + self.global_bias(condition)[..., None, None]
        parts = bias.chunk(2 * len(self.stack) - 1, 1)
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        return list(pairs), self.local_start(spatial)

    def logits(self, blocks: Tensor, conditions: Conditions) -> Tensor:
        """Of each sub-pixel given those before it: (N, h, w, S) to (N, h, w, S, V)."""
        embedded = self.table[blocks.long()]  # (N, h, w, S, E)
        context = functional.silu(self._skips(embedded.flatten(-2), conditions))
        logits: Tensor = self.head(context.permute(0, 2, 3, 1), embedded)
        return logits + self.start()

    def _skips(self, flat: Tensor, conditions: Conditions) -> Tensor:
        """Both stacks: embedded blocks (N, h, w, S E) to what goes to the head, (N, F, h, w)."""
        seen = torch.cat([flat, torch.ones_like(flat[..., :1])], -1).permute(0, 3, 1, 2)
        v = self.vertical_in(functional.pad(seen, (0, 0, 1, 0))[:, :, :-1])  # one row down
        h = self.horizontal_in(functional.pad(seen, (1, 0))[..., :-1])  # one column right
        biases, skips = conditions
        for layer, (h_condition, v_condition) in zip(self.stack, biases, strict=True):
            v, h, skip = layer(v, h, h_condition, v_condition)
            skips = skips + skip
        return skips

    def start(self) -> Tensor:
        """The logits that all frames start from, (h, w, S, V) or (S, V) float32."""
        if self.marginal is None:
            return self.head.bias
        by_level = to_blocks(self.marginal().transpose(0, 1), self.block)
        return by_level.permute(1, 2, 3, 0) + self.head.bias

    def nats(
        self, image: Tensor, features: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Nats of each sub-pixel, (N, S * h * w)."""
        if self.marginal is not None and self.training:
            self.marginal.update(image)
        blocks = to_blocks(image, self.block)
        logits = self.logits(blocks, self.conditions(features))
        # as they lie in memory: (S, N, h, w, V) and (S, N, h, w)
        logits, target = logits.permute(3, 0, 1, 2, 4), blocks.permute(3, 0, 1, 2)
        nats = functional.cross_entropy(
            logits.flatten(0, 3).float(), target.flatten().long(), reduction="none"
        )
        return nats.view(target.shape).transpose(0, 1).flatten(1)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, F) to (N, C, H, W) uint8 levels.

        Given Gumbel noise, drawing is deterministic: a sub-pixel takes the level with the largest
        logit plus noise (the Gumbel-max trick).
        """
        noise = self.gumbel(len(features), features.device, generator)
        blocks = sample_blocks(self, features, noise)
        return from_blocks(blocks, self.shape[0], self.block)

    def gumbel(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Gumbel noise for n images on the grid of blocks, (N, h, w, S, V)."""
        channels, height, width = self.shape
        grid = (height // self.block, width // self.block, self.block**2 * channels)
        uniform = torch.rand((n, *grid, self.levels), generator=generator, device=device)
        return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


# -- sampling -------------------------------------------------------------------------------------


@torch.no_grad()
def sample_blocks(decoder: PixelCNNDecoder, features: Tensor, noise: Tensor) -> Tensor:
    """Draw one frame for each row of features.

    In float32 whatever the training did: in bfloat16 the rounding alone decides about one pixel in
    some ten thousands, and other orders of the same sums should give the same frame. Features
    (N, F) and noise (N, h, w, S, V) of `gumbel` to (N, h, w, S) uint8 levels.
    """
    images = max(1, CELLS_AT_ONCE // (noise.shape[1] * noise.shape[2]))
    parts = zip(features.float().split(images), noise.split(images), strict=True)
    with torch.autocast(features.device.type, enabled=False):
        return torch.cat([fixed_point(decoder, *part)[0] for part in parts])


def fixed_point(
    decoder: PixelCNNDecoder, features: Tensor, noise: Tensor
) -> tuple[Tensor, list[int]]:
    """`sample_blocks` at once, in the precision around it; and how many blocks each pass drew."""
    stacks = Stacks(decoder, features, noise)
    places = stacks.cells
    dirty, passes = places.flatten(), []
    while len(dirty):
        passes.append(len(dirty))
        stacks.enter_down(dirty)
        for index in range(len(stacks.layers)):
            stacks.down(index, dirty)
        changed = torch.zeros(places.shape, dtype=torch.bool, device=places.device)
        changed.view(-1)[stacks.inside[dirty]] = stacks.draw(dirty)
        dirty = places[downstream(changed, len(stacks.layers) + 1)]
    return stacks.levels.view(*places.shape, -1), passes


def downstream(changed: Tensor, reach: int) -> Tensor:
    """Blocks (N, h, w) whose field holds a changed one.

    A block sees `reach` blocks, L + 1, up, to the left, and above to the right.
    """
    mark = changed.unsqueeze(1).float()
    above = functional.pad(mark, (reach, reach, reach, 0))[:, :, :-1]
    left = functional.pad(mark, (reach, 0))[..., :-1]
    below = functional.max_pool2d(above, (reach, 2 * reach + 1), stride=1)
    right = functional.max_pool2d(left, (1, reach), stride=1)
    return (below + right).squeeze(1) > 0


class BlockHead:
    """The masked head, one sub-pixel after the other instead of all at once."""

    def __init__(self, decoder: PixelCNNDecoder) -> None:
        """Take the head's weights, masked and split by sub-pixel."""
        head = decoder.head
        self.context, self.table, self.weight = head.context, decoder.table, head.weight
        before = (head.before.weight * head.mask).t()
        self.before = [
            before[: s * self.table.shape[1], s * head.units : (s + 1) * head.units]
            for s in range(head.subpixels)
        ]
        self.units = head.units

    def draw(self, skips: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Skips (M, F) and additions to logits (M, S, V) to levels (M, S); and these embedded."""
        base = self.context(functional.silu(skips))
        size, units = self.table.shape[1], self.units
        subpixels = len(self.before)
        levels = torch.empty(len(skips), subpixels, dtype=torch.int64, device=skips.device)
        embedded = skips.new_empty(len(skips), subpixels * size)
        for s in range(subpixels):
            hidden = base[:, s * units : (s + 1) * units]
            if s > 0:
                hidden = torch.addmm(hidden, embedded[:, : s * size], self.before[s])
            scores = torch.addmm(bias[:, s], functional.silu(hidden), self.weight[s])
            torch.argmax(scores, 1, out=levels[:, s])
            embedded[:, s * size : (s + 1) * size] = self.table[levels[:, s]]
        return levels, embedded


class Stacks:
    """Both stacks for any set of blocks, with all that was computed before.

    Maps are tables with a row for each cell. Cells are the blocks of all images, and a frame of
    zeros above and beside each image. `inside` maps a cell to its block in tables without frames.
    """

    def __init__(self, decoder: PixelCNNDecoder, features: Tensor, noise: Tensor) -> None:
        """Make tables for features (N, F) and noise (N, h, w, S, V).

        Every block is guessed as if there were no other.
        """
        conditions, start = decoder.conditions(features)
        n, maps, height, width = start.shape
        line = width + 2
        image, row, column = torch.meshgrid(
            *(torch.arange(size, device=start.device) for size in (n, height, width)), indexing="ij"
        )
        self.cells = (image * (height + 1) + row + 1) * line + column + 1
        count = n * (height + 1) * line + 1
        self.inside = self.cells.new_zeros(count)
        self.inside[self.cells.flatten()] = torch.arange(n * height * width, device=start.device)
        self.seen = start.new_zeros(count, decoder.vertical_in.in_channels)
        self.v = [start.new_zeros(count, maps) for _ in conditions]
        self.h = [start.new_zeros(count, maps) for _ in conditions]
        self.start, self.h_bias = _table(start), [_table(h) for h, _ in conditions]
        self.v_bias = [_table(v) for _, v in conditions if v is not None]
        self.noise = (noise + decoder.start()).flatten(0, 2)
        guess = self.noise.argmax(2)
        self.levels = guess.to(torch.uint8)
        embedded = decoder.table[guess].flatten(1)
        self.seen[self.cells.flatten()] = functional.pad(embedded, (0, 1), value=1.0)
        self.head = BlockHead(decoder)
        self.first = _matrix(decoder.vertical_in), _matrix(decoder.horizontal_in)
        self.layers = [
            tuple(map(_matrix, (layer.vertical, layer.link, layer.horizontal, layer.out)))
            for layer in decoder.layers
        ]
        self.gates = [torch.empty_like(bias) for bias in self.h_bias]  # with the link from above
        above = [-line - 1, -line, -line + 1]
        self.above = torch.tensor(above, device=start.device)
        self.around = torch.tensor([*above, -1, 0, 1], device=start.device)

    def enter_down(self, cells: Tensor) -> None:
        """Compute the vertical stack's input at cells (M,)."""
        self.v[0][cells] = _product(self.first[0], self.seen[cells[:, None] + self.above])

    def down(self, index: int, cells: Tensor) -> None:
        """Compute layer `index` of the vertical stack; its input is known around the cells."""
        vertical, link, (_, bias), _ = self.layers[index]
        inside = self.inside[cells]
        a = _product(vertical, self.v[index][cells[:, None] + self.around])
        self.gates[index][inside] = self.h_bias[index][inside] + _product(link, a) + bias
        if index < len(self.v_bias):
            gated = gate(a + self.v_bias[index][inside])
            self.v[index + 1][cells] = self.v[index][cells] + gated

    def draw(self, cells: Tensor) -> Tensor:
        """Draw blocks (M,) anew, given those left of them and the vertical stack; which changed."""
        inside = self.inside[cells]
        skips, h = self.start[inside], _product(self.first[1], self.seen[cells - 1])
        for index, (_, _, (weight, _), out) in enumerate(self.layers):
            self.h[index][cells] = h
            pair = torch.cat([self.h[index][cells - 1], h], 1)
            gated = gate(torch.addmm(self.gates[index][inside], pair, weight))
            residual, skip = _product(out, gated).chunk(2, 1)
            h, skips = h + residual, skips + skip
        drawn, embedded = self.head.draw(skips, self.noise[inside])
        levels = drawn.to(torch.uint8)
        changed = (levels != self.levels[inside]).any(1)
        self.levels[inside] = levels
        self.seen[cells] = functional.pad(embedded, (0, 1), value=1.0)
        return changed


def _table(maps: Tensor) -> Tensor:
    """Maps (N, F, h, w) as a table (N h w, F)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def _matrix(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """A convolution as a matrix product on flattened windows: weight (K F_in, F_out), bias."""
    if layer.bias is None:
        raise ValueError("expected a convolution with a bias, got one without")
    return layer.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), layer.bias


def _product(matrix: tuple[Tensor, Tensor], windows: Tensor) -> Tensor:
    """Windows (M, K, F_in) or (M, K F_in) to (M, F_out)."""
    return torch.addmm(matrix[1], windows.flatten(1), matrix[0])
