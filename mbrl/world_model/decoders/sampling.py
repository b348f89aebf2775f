"""Samplers: four ways to draw the same frames from a PixelCNN decoder.

In: a decoder, its conditions (z, h) and Gumbel noise for every sub-pixel and level. Out: blocks of
levels. With the noise given, sampling is deterministic: a sub-pixel takes the level with the
largest logit plus noise (the Gumbel-max trick), so all samplers must give the same frames, and
differ in time alone:

* `naive`: one pass over the whole frame for every sub-pixel. The reference.
* `cached`: pixel after pixel, but nothing is computed twice: the vertical stack runs once for each
  row of blocks, the horizontal one once for each block, the head once for each sub-pixel (Fast
  PixelCNN++, Ramachandran et al., arXiv:1704.06001).
* `wavefront`: the same, with all blocks at once that have what they need. A block sees at most
  L + 1 blocks to its right in the rows above, so block (i, j) can be drawn in step j + (L + 2) i:
  about w + (L + 2) h steps instead of w h.
* `fixed_point`: guess the whole frame, then draw blocks anew from the frame so far, all at once,
  again and again until nothing changes. Every block depends on earlier ones only, so the fixed
  point is unique and is the frame that the others draw; game frames reach it in tens of passes
  (Wiggers & Hoogeboom, arXiv:2002.09928). After the first pass only blocks are computed whose
  field holds a block that has just changed, so settled rows and finished frames cost nothing.

Within a block the sub-pixels are always drawn in order, for all blocks of a step at once.

The samplers compute in float32 whatever the training did: they do the same sums in a different
order, and in bfloat16 the rounding alone decides about one pixel in some ten thousands (1 and 3 of
65,536 in `benchmarks/samplers.py`). In float32 a difference needs two levels to be level to within
1e-6 of a nat.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from mbrl.world_model.decoders.pixelcnn import GatedLayer, PixelCNNDecoder

CELLS_AT_ONCE = 2**17
"""Blocks in memory at a time; larger batches are drawn in parts, which changes no frame."""

Sampler = Callable[["PixelCNNDecoder", Tensor, Tensor], Tensor]
"""(decoder, features (N, F), Gumbel noise (N, h, w, S, V)) to levels (N, h, w, S), uint8."""


@torch.no_grad()
def sample_blocks(
    decoder: "PixelCNNDecoder", sampler: str, features: Tensor, noise: Tensor
) -> Tensor:
    """Draw one frame for each row of features.

    Args:
        decoder: the distribution.
        sampler: a key of `SAMPLERS`.
        features: (N, F) what to condition on.
        noise: (N, h, w, S, V) Gumbel noise, as `PixelCNNDecoder.gumbel` draws it.

    Returns:
        (N, h, w, S) uint8 levels, on the grid of blocks.
    """
    images = max(1, CELLS_AT_ONCE // (noise.shape[1] * noise.shape[2]))
    parts = zip(features.float().split(images), noise.split(images), strict=True)
    with torch.autocast(features.device.type, enabled=False):
        return torch.cat([SAMPLERS[sampler](decoder, *part) for part in parts])


def naive(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """The reference: one full pass for every sub-pixel."""
    conditions = decoder._conditions(features)
    blocks = torch.zeros(noise.shape[:-1], dtype=torch.uint8, device=noise.device)
    _, height, width, subpixels = blocks.shape
    for row in range(height):
        for column in range(width):
            for s in range(subpixels):
                scores = decoder._logits(blocks, conditions) + noise
                blocks[:, row, column, s] = scores[:, row, column, s].argmax(-1).to(torch.uint8)
    return blocks


class BlockHead:
    """The masked head, one sub-pixel after the other instead of all at once."""

    def __init__(self, decoder: "PixelCNNDecoder") -> None:
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
        """Draw blocks given their contexts.

        Args:
            skips: (M, F) sums of the stacks' skip connections.
            bias: (M, S, V) Gumbel noise plus the logits that all frames start from.

        Returns:
            Levels (M, S), and what stands for them on the way in, (M, S E).
        """
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
    """Both stacks for any set of blocks, everything kept.

    Maps are tables with a row for each cell. Cells are the blocks of all images, and around each
    image a frame of zeros, one block wide, above and beside: neighbours are neighbours at the
    borders, too. `inside` maps a cell to its block in tables without frames.
    """

    def __init__(self, decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> None:
        """Make empty tables for a batch of features (N, F) and noise (N, h, w, S, V)."""
        conditions, start = decoder._conditions(features)
        n, maps, height, width = start.shape
        self.row_length = width + 2
        image, row, column = torch.meshgrid(
            *(torch.arange(size, device=start.device) for size in (n, height, width)), indexing="ij"
        )
        self.cells = (image * (height + 1) + row + 1) * self.row_length + column + 1
        count = n * (height + 1) * self.row_length + 1
        self.inside = self.cells.new_zeros(count)
        self.inside[self.cells.flatten()] = torch.arange(n * height * width, device=start.device)
        self.seen = start.new_zeros(count, decoder.vertical_in.in_channels)
        self.v = [start.new_zeros(count, maps) for _ in conditions]
        self.h = [start.new_zeros(count, maps) for _ in conditions]
        self.start, self.h_bias = _table(start), [_table(h) for h, _ in conditions]
        self.v_bias = [_table(v) for _, v in conditions if v is not None]
        self.noise = (noise + decoder._start()).flatten(0, 2)
        self.levels = torch.zeros(self.noise.shape[:2], dtype=torch.uint8, device=noise.device)
        self.head = BlockHead(decoder)
        self.first = _matrix(decoder.vertical_in), _matrix(decoder.horizontal_in)
        self.layers = [
            tuple(
                _matrix(conv) for conv in (layer.vertical, layer.link, layer.horizontal, layer.out)
            )
            for layer in _layers(decoder)
        ]
        self.gates = [torch.empty_like(bias) for bias in self.h_bias]  # with the link from above
        above = [-self.row_length - 1, -self.row_length, -self.row_length + 1]
        self.above = torch.tensor(above, device=start.device)
        self.around = torch.tensor([*above, -1, 0, 1], device=start.device)

    def enter_down(self, cells: Tensor) -> None:
        """Compute the vertical stack's input at cells (M,)."""
        self.v[0][cells] = _product(self.first[0], self.seen[cells[:, None] + self.above])

    def down(self, index: int, cells: Tensor) -> None:
        """Compute layer `index` of the vertical stack; its input is known around the cells."""
        vertical, link, horizontal, _ = self.layers[index]
        inside = self.inside[cells]
        a = _product(vertical, self.v[index][cells[:, None] + self.around])
        self.gates[index][inside] = self.h_bias[index][inside] + _product(link, a) + horizontal[1]
        if index < len(self.v_bias):
            gated = gate(a + self.v_bias[index][inside])
            self.v[index + 1][cells] = self.v[index][cells] + gated

    def draw(self, cells: Tensor) -> Tensor:
        """Draw blocks anew, given those to their left and the vertical stack.

        Args:
            cells: (M,).

        Returns:
            (M,) bool: which blocks changed.
        """
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

    def guess(self) -> None:
        """Take for every block what it would be without any other."""
        levels = self.noise.argmax(2)
        embedded = self.head.table[levels].flatten(1)
        self.levels = levels.to(torch.uint8)
        self.seen[self.cells.flatten()] = functional.pad(embedded, (0, 1), value=1.0)

    def drawn(self) -> Tensor:
        """What is drawn so far, (N, h, w, S)."""
        return self.levels.view(*self.cells.shape, -1)


def cached(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """Pixel after pixel, nothing computed twice."""
    stacks = Stacks(decoder, features, noise)
    for row in stacks.cells.unbind(1):  # (N, w)
        stacks.enter_down(row.flatten())
        for index in range(len(stacks.layers)):
            stacks.down(index, row.flatten())
        for cells in row.unbind(1):
            stacks.draw(cells)
    return stacks.drawn()


def wavefront(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """All blocks whose field is known at the same time, along diagonals."""
    stacks = Stacks(decoder, features, noise)
    layers, (_, height, width) = len(stacks.layers), stacks.cells.shape
    rows = torch.arange(height, device=noise.device)

    def wave(step: int) -> Tensor:
        """Cells of the blocks (i, j) with j + (L + 2) i = step."""
        first = max(0, -(-(step - width + 1) // (layers + 2)))
        chosen = rows[first : step // (layers + 2) + 1]
        return stacks.cells[:, chosen, step - (layers + 2) * chosen].flatten()

    for step in range(-layers, width + (layers + 2) * (height - 1)):
        stacks.enter_down(wave(step + layers))  # the vertical stack runs ahead: it looks right
        for index in range(layers):
            stacks.down(index, wave(step + layers - 1 - index))
        stacks.draw(wave(step))
    return stacks.drawn()


def fixed_point(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """All blocks at once, again and again until nothing changes."""
    return count_fixed_point(decoder, features, noise)[0]


def count_fixed_point(
    decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor
) -> tuple[Tensor, list[int]]:
    """`fixed_point`, and how many blocks were drawn in each pass."""
    stacks = Stacks(decoder, features, noise)
    stacks.guess()
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
    return stacks.drawn(), passes


def downstream(changed: Tensor, reach: int) -> Tensor:
    """Blocks whose field holds a changed one.

    Args:
        changed: (N, h, w) bool.
        reach: blocks that a block sees up, to the left, and above to the right: L + 1.

    Returns:
        (N, h, w) bool.
    """
    mark = changed.unsqueeze(1).float()
    above = functional.pad(mark, (reach, reach, reach, 0))[:, :, :-1]
    left = functional.pad(mark, (reach, 0))[..., :-1]
    below = functional.max_pool2d(above, (reach, 2 * reach + 1), stride=1)
    right = functional.max_pool2d(left, (1, reach), stride=1)
    return (below + right).squeeze(1) > 0


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) for the two halves of the channels."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def _table(maps: Tensor) -> Tensor:
    """Maps (N, F, h, w) as a table (N h w, F)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def _matrix(layer: torch.nn.Conv2d) -> tuple[Tensor, Tensor]:
    """A convolution as a matrix product on flattened windows: weight (K F_in, F_out), bias."""
    if layer.bias is None:
        raise ValueError("expected a convolution with a bias, got one without")
    return layer.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), layer.bias


def _product(matrix: tuple[Tensor, Tensor], windows: Tensor) -> Tensor:
    """Windows (M, K, F_in) or (M, K F_in) to (M, F_out)."""
    return torch.addmm(matrix[1], windows.flatten(1), matrix[0])


def _layers(decoder: "PixelCNNDecoder") -> "list[GatedLayer]":
    """The gated layers, with their type."""
    return list(decoder.stack)  # type: ignore[arg-type]


SAMPLERS: dict[str, Sampler] = {
    "naive": naive,
    "cached": cached,
    "fixed_point": fixed_point,
    "wavefront": wavefront,
}
"""By the name that `decoder.sampler` uses."""
