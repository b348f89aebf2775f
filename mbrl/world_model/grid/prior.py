"""The prior of the grid layout, p(z | h): which code each cell will have.

Independent cells draw a player twice, or not at all, when it may go either way. The joint prior
draws cells one after another: PixelCNN's gated stacks over the cells, given maps of the state. In
training all cells are known, and it is one pass. To sample, guess all cells independently with one
uniform number each, then draw every cell anew from those before it with the same numbers until
nothing changes: the fixed point is what drawing one cell after another gives. Few cells are in
doubt, so most frames take one pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.pixelcnn import GatedLayer
from mbrl.world_model.grid.codebook import PatchCodebook
from mbrl.world_model.losses import inverse_cdf
from mbrl.world_model.normalise import follow

FEW = 64
"""Up to so many codes, probabilities are added one by one: sums over an axis so short are slow."""


class CodeFrequency(nn.Module):
    """How often each code was in each cell, a running share, as a bias of logits."""

    frequency: Tensor
    batches: Tensor

    def __init__(self, book: PatchCodebook) -> None:
        """Of this codebook, which belongs to the model and not to this part."""
        super().__init__()
        self.book = [book]
        self.register_buffer("frequency", torch.zeros(book.codes, *book.grid))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, code: Tensor) -> None:
        """Take codes (N, g, w) that are trained on into the running shares."""
        cells = code[0].numel()
        place = code.flatten(1) * cells + torch.arange(cells, device=code.device)
        counts = torch.bincount(place.flatten(), minlength=self.frequency.numel())
        self.batches += 1
        newest = counts.view(self.frequency.shape) / len(code)
        follow(self.frequency, newest, self.batches, 0.01)

    def forward(self) -> Tensor:
        """Log-probabilities of the known codes, (K, g, w), with 1 % of the uniform."""
        known = self.book[0].known
        return torch.log(self.frequency[:known] + 0.01 / known)


class CodeHead(nn.Module):
    """Features of a cell to logits over the known codes.

    A code's weights are made from its patch, so that what is learnt of one holds for those that
    look alike, and its bias from how often it was in that cell.
    """

    def __init__(self, book: PatchCodebook, often: CodeFrequency, maps: int) -> None:
        """Build for features (N, g, w, `maps`); codebook and frequencies are others' parts."""
        super().__init__()
        self.book, self.often = [book], [often]
        self.weights = nn.Sequential(nn.Linear(book.size, 64), nn.SiLU(), nn.Linear(64, maps + 1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, g, w, maps) to logits (N, g, w, K) float32."""
        weight, bias = self._table()
        return functional.linear(features, weight).float() + bias.movedim(0, -1)

    def sample(self, features: Tensor, uniform: Tensor | None) -> Tensor:
        """(N, g, w, maps) to codes (N, g, w), see `draw`."""
        weight, bias = self._table()
        if len(weight) > FEW:
            return draw(self(features).movedim(-1, 0), uniform)
        logits = (weight.to(features.dtype) @ features.flatten(0, 2).T).float()
        return draw(logits.view(-1, *features.shape[:3]) + bias.unsqueeze(1), uniform)

    def _table(self) -> tuple[Tensor, Tensor]:
        """A weight for each code, (K, maps), and a bias for each code and cell, (K, g, w)."""
        weight, bias = self.weights(self.book[0].contents()).tensor_split([-1], -1)
        return weight, self.often[0]() + bias.unsqueeze(-1)


def draw(logits: Tensor, uniform: Tensor | None) -> Tensor:
    """Codes (N, g, w) of logits (K, N, g, w), drawn with `uniform` (N, g, w) or the likeliest.

    A draw is the first code at which the cumulative probability passes the uniform number.
    """
    if uniform is None:
        return logits.argmax(0)
    weights = torch.exp(logits - logits.amax(0))
    if len(weights) > FEW:
        return inverse_cdf(weights.movedim(0, -1), uniform)
    passed = uniform * weights.sum(0)
    code, cumulative = torch.zeros_like(passed, dtype=torch.int64), torch.zeros_like(passed)
    for weight in weights[:-1]:
        cumulative += weight
        code += cumulative <= passed
    return code


class IndependentPrior(nn.Module):
    """Each cell by itself, given the maps of the state around it: the control."""

    def __init__(self, book: PatchCodebook, often: CodeFrequency, hidden: int, maps: int) -> None:
        """Build for contexts of `hidden` maps."""
        super().__init__()
        self.enter = nn.Linear(hidden, maps)
        self.head = CodeHead(book, often, maps)

    def features(self, context: Tensor) -> Tensor:
        """Contexts (N, g, w, D) to what the head sees, (N, g, w, F)."""
        return functional.silu(self.enter(context))

    def nats(self, context: Tensor, code: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of codes (N, g, w): (N,) nats, and what is to be minimised, (N,).

        Args:
            context: (N, g, w, D), what is known before.
            code: (N, g, w).
            embedded: (N, g, w, E), the same codes.
        """
        nats = _nats(self.head(self.features(context)), code)
        return nats, nats

    def sample(
        self, context: Tensor, embed: Callable[[Tensor], Tensor], uniform: Tensor | None
    ) -> Tensor:
        """Draw codes (N, g, w) with `uniform` of that shape; None takes the likeliest."""
        return self.head.sample(self.features(context), uniform)


class JointPrior(nn.Module):
    """Cells one after another, row by row, each given those before it."""

    def __init__(
        self,
        book: PatchCodebook,
        often: CodeFrequency,
        hidden: int,
        embedding: int,
        maps: int,
        layers: int,
    ) -> None:
        """Build for contexts of `hidden` maps and embedded codes of `embedding` maps."""
        super().__init__()
        self.guess = IndependentPrior(book, often, hidden, maps)
        gates = 2 * maps * (2 * layers - 1)  # both stacks of every layer, horizontal of the last
        self.bias = nn.Linear(hidden, gates)
        self.start = nn.Linear(hidden, maps)
        self.vertical_in = nn.Conv2d(embedding + 1, maps, (1, 3), padding=(0, 1))
        self.horizontal_in = nn.Conv2d(embedding + 1, maps, 1)
        self.summed = nn.Linear(embedding, maps)
        self.so_far = nn.Linear(maps, 2 * maps)
        self.layers = nn.ModuleList(GatedLayer(maps) for _ in range(layers))
        self.head = CodeHead(book, often, maps)

    def conditions(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What a context adds to all gates and to the head; the same in every pass."""
        return self.bias(context), self.start(context)

    def features(self, conditions: tuple[Tensor, Tensor], embedded: Tensor) -> Tensor:
        """What the head sees of each cell, (N, g, w, F), given the embedded codes (N, g, w, E).

        A cell's depend on those before it only. The stacks work on views that are channels first.
        """
        biases, skips = (part.permute(0, 3, 1, 2) for part in conditions)
        parts = biases.chunk(2 * len(self.layers) - 1, 1)
        seen = torch.cat([embedded, torch.ones_like(embedded[..., :1])], -1).permute(0, 3, 1, 2)
        v = self.vertical_in(functional.pad(seen, (0, 0, 1, 0))[:, :, :-1])  # one row down
        h = self.horizontal_in(functional.pad(seen, (1, 0))[..., :-1])  # one column right
        far, start = self._so_far(embedded).permute(0, 3, 1, 2).chunk(2, 1)
        h, skips = h + far, skips + start
        for index, layer in enumerate(self.layers):
            below = parts[2 * index + 1] if 2 * index + 1 < len(parts) else None
            v, h, skip = layer(v, h, parts[2 * index], below)
            skips = skips + skip
        return functional.silu(skips).permute(0, 2, 3, 1)

    def _so_far(self, embedded: Tensor) -> Tensor:
        """What all cells before a cell hold together, wherever: (N, g, w, E) to (N, g, w, 2 F).

        A stack sees a few rows; that there is a ball already must be known everywhere.
        """
        cells = functional.silu(self.summed(embedded)).float().flatten(1, 2)  # (N, g w, F)
        total = functional.pad(cells[:, :-1], (0, 0, 1, 0)).cumsum(1)  # without the cell itself
        return self.so_far(total.unflatten(1, embedded.shape[1:3]).to(embedded.dtype) / 8)

    def nats(self, context: Tensor, code: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """As `IndependentPrior`; what is minimised holds the guess too, which learns beside it.

        The guess is a likelihood of its own. It helps the context to learn.
        """
        guess, _ = self.guess.nats(context, code, embedded)
        nats = _nats(self.head(self.features(self.conditions(context), embedded)), code)
        return nats, nats + guess

    def sample(
        self, context: Tensor, embed: Callable[[Tensor], Tensor], uniform: Tensor | None
    ) -> Tensor:
        """As `IndependentPrior`; only frames that have changed are drawn again."""
        code = self.guess.sample(context, embed, uniform)
        conditions = self.conditions(context)
        active = torch.arange(len(code), device=code.device)
        for _ in range(code[0].numel() + 1):
            here = conditions[0][active], conditions[1][active]
            drawn = self.head.sample(
                self.features(here, embed(code[active])),
                None if uniform is None else uniform[active],
            )
            changed = (drawn != code[active]).flatten(1).any(1)
            code[active] = drawn
            active = active[changed]
            if not len(active):
                break
        return code


def _nats(logits: Tensor, code: Tensor) -> Tensor:
    """-log p of codes (N, g, w) under logits (N, g, w, K), summed over the cells: (N,)."""
    nats = functional.cross_entropy(logits.flatten(0, 2), code.flatten(), reduction="none")
    return nats.view(code.shape).sum((1, 2))
