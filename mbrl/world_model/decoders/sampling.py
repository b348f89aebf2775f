"""Samplers: four ways to draw the same frames from a PixelCNN decoder.

In: a decoder, its conditions (z, h) and Gumbel noise for every sub-pixel and level. Out: blocks of
levels. With the noise given, sampling is deterministic: a sub-pixel takes the level with the
largest logit plus noise (the Gumbel-max trick), so all samplers must give the same frames, and
differ in time alone:

* `naive`: one pass over the whole frame for every sub-pixel. The reference.
* `cached`: pixel after pixel, but nothing is computed twice: the vertical stack runs once for each
  row of blocks and keeps its previous row, the horizontal one keeps its previous column, the head
  runs once for each sub-pixel (Fast PixelCNN++, Ramachandran et al., arXiv:1704.06001).
* `wavefront`: the same caches, and all blocks that have what they need at the same time. A block
  sees at most L + 1 blocks to its right in rows above, so block (i, j) can be drawn in step
  j + (L + 2) i: about w + (L + 2) h steps instead of w h.
* `fixed_point`: guess the whole frame, then draw all blocks at once from the frame so far, again
  and again until nothing changes. Every block depends on earlier ones only, so the fixed point is
  unique and is the frame that the others draw; game frames reach it in tens of passes (Wiggers &
  Hoogeboom, arXiv:2002.09928). A pass skips the rows that cannot change any more, or not yet, and
  the frames that are done.

Within a block the sub-pixels are always drawn in order, for all blocks of a step at once.

The samplers compute in float32 whatever the training did: they do the same sums in a different
order, and in bfloat16 the rounding alone decides about one pixel in some ten thousand. In float32
a difference needs two levels to be level to within 1e-6 of a nat.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from mbrl.world_model.decoders.pixelcnn import Conditions, GatedLayer, PixelCNNDecoder

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
    with torch.autocast(features.device.type, enabled=False):
        return SAMPLERS[sampler](decoder, features.float(), noise)


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


class RowStack:
    """The horizontal stack, one column at a time, for any number of rows at once."""

    def __init__(self, decoder: "PixelCNNDecoder") -> None:
        """Lay the weights out as matrices."""
        first = decoder.horizontal_in
        self.first = first.weight[:, :, 0, 0].t(), _bias(first)
        self.layers = []
        for layer in _layers(decoder):
            pair = layer.horizontal.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1)  # left, own
            self.layers.append((pair, layer.out.weight[:, :, 0, 0].t(), _bias(layer.out)))

    def advance(
        self, left: Tensor, before: list[Tensor], biases: list[Tensor], skips: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Go one column on.

        Args:
            left: (M, S E + 1) the block to the left and its mark; zero if there is none.
            before: the input of each layer one column to the left, (M, F) each.
            biases: what is added before each layer's gate, (M, 2F) each.
            skips: (M, F) what the sum of the skip connections starts from.

        Returns:
            The input of each layer in this column, and the sum of the skip connections.
        """
        h = torch.addmm(self.first[1], left, self.first[0])
        inputs = []
        for (pair, out, out_bias), h_left, bias in zip(self.layers, before, biases, strict=True):
            inputs.append(h)
            gated = _gate(torch.addmm(bias, torch.cat([h_left, h], 1), pair))
            residual, skip = torch.addmm(out_bias, gated, out).chunk(2, 1)
            h, skips = h + residual, skips + skip
        return inputs, skips


def cached(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """Pixel after pixel, with the previous row and column kept."""
    n, height, width, _, _ = noise.shape
    biases, start = decoder._conditions(features)
    bias = noise + decoder._start()
    head, stack = BlockHead(decoder), RowStack(decoder)
    levels = torch.zeros(noise.shape[:-1], dtype=torch.uint8, device=noise.device)
    seen = start.new_zeros(n, decoder.vertical_in.in_channels, 1, width)  # the row above, marked
    above = [start.new_zeros(n, start.shape[1], 1, width) for _ in biases]
    for row in range(height):
        v, gates = decoder.vertical_in(seen), []
        for index, (layer, (v_bias, h_bias)) in enumerate(
            zip(_layers(decoder), biases, strict=True)
        ):
            pair = functional.pad(torch.cat([above[index], v], 2), (1, 1))
            above[index], a = v, layer.vertical(pair)
            gate = layer.link(a) + h_bias[:, :, row : row + 1]
            gates.append(_columns(gate + _bias(layer.horizontal)[:, None, None]))
            v = v + _gate(a + v_bias[:, :, row : row + 1])
        begin = _columns(start[:, :, row : row + 1])
        seen = torch.zeros_like(seen)
        left = start.new_zeros(n, seen.shape[1])
        before = [torch.zeros_like(begin[0]) for _ in biases]
        for column in range(width):
            gate_biases = [gate[column] for gate in gates]
            before, skips = stack.advance(left, before, gate_biases, begin[column])
            drawn, embedded = head.draw(skips, bias[:, row, column])
            levels[:, row, column] = drawn.to(torch.uint8)
            left = functional.pad(embedded, (0, 1), value=1.0)
            seen[:, :, 0, column] = left
    return levels


def _columns(row: Tensor) -> Tensor:
    """One row of maps (N, F, 1, w) by column: (w, N, F), contiguous."""
    return row[:, :, 0].permute(2, 0, 1).contiguous()


def _gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) for the two halves of the channels."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def _bias(layer: torch.nn.Conv2d) -> Tensor:
    """The bias of a convolution that has one."""
    if layer.bias is None:
        raise ValueError("expected a convolution with a bias, got one without")
    return layer.bias


def _layers(decoder: "PixelCNNDecoder") -> "list[GatedLayer]":
    """The gated layers, with their type."""
    return list(decoder.stack)  # type: ignore[arg-type]


class WaveCaches:
    """The vertical stack, any blocks at a time, for the wavefront.

    All maps are tables: place, then image, then channel. Those that are looked at from the side
    have a frame of zeros, one block wide, so that neighbours are neighbours at the borders too.
    """

    def __init__(self, decoder: "PixelCNNDecoder", features: Tensor) -> None:
        """Make empty caches for a batch of features (N, F)."""
        conditions, start = decoder._conditions(features)
        self.n, maps, self.height, self.width = start.shape
        framed = (self.height + 1) * (self.width + 2)
        self.seen = start.new_zeros(framed, self.n, decoder.vertical_in.in_channels)
        self.v = [start.new_zeros(framed, self.n, maps) for _ in conditions]
        self.start = _places(start)
        self.v_bias = [_places(v_condition) for v_condition, _ in conditions]
        self.gates = []  # of the horizontal stack; the vertical one adds its part in time
        self.first, self.layers = _matrix(decoder.vertical_in), []
        for layer, (_, h_condition) in zip(_layers(decoder), conditions, strict=True):
            self.layers.append((*_matrix(layer.vertical), *_matrix(layer.link)))
            self.gates.append(_places(h_condition + _bias(layer.horizontal)[:, None, None]))
        above = [-self.width - 3, -self.width - 2, -self.width - 1]
        self.above = torch.tensor(above, device=start.device)
        self.around = torch.tensor([*above, -1, 0, 1], device=start.device)

    def wave(self, step: int) -> tuple[Tensor, Tensor]:
        """The blocks (i, j) with j + (L + 2) i = step.

        Returns:
            Their indices (A,) in plain tables and in framed ones.
        """
        lag = len(self.layers) + 2
        first = max(0, -(-(step - self.width + 1) // lag))
        last = min(self.height - 1, step // lag)
        row = torch.arange(first, last + 1, device=self.above.device)
        column = step - lag * row
        return row * self.width + column, (row + 1) * (self.width + 2) + column + 1

    def _window(self, table: Tensor, framed: Tensor, offsets: Tensor) -> Tensor:
        """Neighbours of A blocks side by side, (A N, K F)."""
        around = table[framed[:, None] + offsets]
        return around.transpose(1, 2).flatten(2).flatten(0, 1)

    def enter(self, framed: Tensor) -> None:
        """Compute the stack's input; the blocks above must be known."""
        weight, bias = self.first
        window = self._window(self.seen, framed, self.above)
        self.v[0][framed] = torch.addmm(bias, window, weight).unflatten(0, (-1, self.n))

    def advance(self, index: int, place: Tensor, framed: Tensor) -> None:
        """Compute layer `index`; its input must be known around the blocks."""
        weight, bias, link, link_bias = self.layers[index]
        a = torch.addmm(bias, self._window(self.v[index], framed, self.around), weight)
        self.gates[index][place] += torch.addmm(link_bias, a, link).unflatten(0, (-1, self.n))
        if index + 1 < len(self.layers):
            gated = _gate(a + self.v_bias[index][place].flatten(0, 1))
            own = self.v[index][framed]
            self.v[index + 1][framed] = own + gated.view_as(own)


def _places(maps: Tensor) -> Tensor:
    """Maps (N, F, h, w) as a table of places (h w, N, F)."""
    return maps.flatten(2).permute(2, 0, 1).contiguous()


def _matrix(layer: torch.nn.Conv2d) -> tuple[Tensor, Tensor]:
    """A convolution as a matrix product on flattened windows: weight (K F_in, F_out), bias."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    return weight, _bias(layer)


def wavefront(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """All blocks whose field is known at the same time, along diagonals."""
    caches, head, stack = WaveCaches(decoder, features), BlockHead(decoder), RowStack(decoder)
    n, height, width, subpixels, _ = noise.shape
    bias = (noise + decoder._start()).permute(1, 2, 0, 3, 4).flatten(0, 1)
    levels = torch.zeros(height * width, n, subpixels, dtype=torch.uint8, device=noise.device)
    layers = len(caches.layers)
    left = [torch.zeros_like(table) for table in caches.v]  # each layer's input, one column back
    for step in range(-layers, width + (layers + 2) * (height - 1)):
        _, framed = caches.wave(step + layers)  # the vertical stack runs ahead: it looks right
        if len(framed):
            caches.enter(framed)
        for index in range(layers):
            place, framed = caches.wave(step + layers - 1 - index)
            if len(framed):
                caches.advance(index, place, framed)
        place, framed = caches.wave(step)
        if not len(place):
            continue
        before = [table[framed - 1].flatten(0, 1) for table in left]
        gates = [table[place].flatten(0, 1) for table in caches.gates]
        inputs, skips = stack.advance(
            caches.seen[framed - 1].flatten(0, 1), before, gates, caches.start[place].flatten(0, 1)
        )
        for table, h in zip(left, inputs, strict=True):
            table[framed] = h.unflatten(0, (-1, n))
        drawn, embedded = head.draw(skips, bias[place].flatten(0, 1))
        levels[place] = drawn.to(torch.uint8).unflatten(0, (-1, n))
        caches.seen[framed] = functional.pad(embedded, (0, 1), value=1.0).unflatten(0, (-1, n))
    return levels.view(height, width, n, subpixels).permute(2, 0, 1, 3).contiguous()


def fixed_point(decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor) -> Tensor:
    """Whole frames, again and again until nothing changes."""
    return count_fixed_point(decoder, features, noise)[0]


def count_fixed_point(
    decoder: "PixelCNNDecoder", features: Tensor, noise: Tensor
) -> tuple[Tensor, int]:
    """`fixed_point`, and how many passes the slowest frame took."""
    conditions = decoder._conditions(features)
    bias, head = noise + decoder._start(), BlockHead(decoder)
    reach, height = len(decoder.stack) + 1, noise.shape[1]
    done = bias.argmax(-1).to(torch.uint8)  # what most pixels will be
    ids = torch.arange(len(done), device=done.device)  # frames that may still change
    blocks, passes = done.clone(), 0
    first, last = 0, height  # rows that may still change; earlier ones are settled
    while True:
        passes += 1
        top = max(0, first - reach)  # rows from `top` on tell all about those from `first` on
        flat = decoder.table[blocks[:, top:last].long()].flatten(-2)
        skips = decoder._skips(flat, _rows(conditions, top, last))
        skips = skips[:, :, first - top :].permute(0, 2, 3, 1)
        drawn, _ = head.draw(skips.flatten(0, 2), bias[:, first:last].flatten(0, 2))
        new = drawn.to(torch.uint8).view_as(blocks[:, first:last])
        changed = (new != blocks[:, first:last]).flatten(2).any(2)  # (N, rows)
        blocks[:, first:last] = new
        moving = changed.any(1)
        if not bool(moving.all()):
            done[ids] = blocks
            if not bool(moving.any()):
                return done, passes
            ids, blocks, bias, changed = ids[moving], blocks[moving], bias[moving], changed[moving]
            conditions = _images(conditions, moving)
        rows = changed.any(0).nonzero()
        # only rows at or below a change can change, and no farther below than the field reaches
        last = min(height, first + int(rows[-1]) + reach + 1)
        first += int(rows[0])


def _rows(conditions: "Conditions", top: int, bottom: int) -> "Conditions":
    """Conditions of the rows from `top` to before `bottom`."""
    biases, start = conditions
    cut = [(v[:, :, top:bottom], h[:, :, top:bottom]) for v, h in biases]
    return cut, start[:, :, top:bottom]


def _images(conditions: "Conditions", chosen: Tensor) -> "Conditions":
    """Conditions of some of the images."""
    biases, start = conditions
    return [(v[chosen], h[chosen]) for v, h in biases], start[chosen]


SAMPLERS: dict[str, Sampler] = {
    "naive": naive,
    "cached": cached,
    "fixed_point": fixed_point,
    "wavefront": wavefront,
}
"""By the name that `decoder.sampler` uses."""
