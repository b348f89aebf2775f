"""The prior of the vectors layout: p(z_t | h_t, z_{t-1}, a_{t-1}), an ensemble of mixtures.

Each member is a small network that says a mixture of K components. In a component every number is a
Gaussian and every category a softmax of its own; the mixture makes them depend on one another. The
ensemble is a mixture too: a dreamt row is of one member, drawn anew at every step (PETS, Chua et
al., arXiv:1805.12114), so where members disagree, which is where data is scarce, dreams spread.

A number's Gaussian is over its change in running deviations of that change. Both units are the
number's own, so no number drowns another, whatever the environment's units are.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.losses import inverse_cdf
from mbrl.world_model.settings import VectorSettings

LOG_STD = (math.log(1e-3), math.log(10.0))
"""Bounds of a deviation, in deviations of the change."""

LAYERS = 2
"""Hidden layers of a member."""

LOG_2_PI = math.log(2 * math.pi)


class EnsembleLinear(nn.Module):
    """E linear layers side by side: (E, R, inputs) to (E, R, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """As the class says."""
        return torch.baddbmm(self.bias, rows, self.weight)


class EnsembleNorm(nn.Module):
    """E layer normalisations side by side, of (E, R, W)."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, rows: Tensor) -> Tensor:
        """As the class says."""
        return torch.addcmul(self.shift, functional.layer_norm(rows, (self.width,)), self.scale)


@dataclass(frozen=True)
class Score:
    """How well R rows were foreseen, in nats; densities are of normalised numbers."""

    nats: Tensor  # (R,), of the whole row under the whole ensemble
    entries: Tensor  # (R, M + C), of each entry by itself, given the components that fit the row
    losses: Tensor  # (R, M + C), what is to be minimised of each entry
    choice: Tensor  # (R,), and of the choice of a component


@dataclass(frozen=True)
class Mixture:
    """What is foreseen of R rows by each of E members; M numbers, C categories of S values."""

    weight: Tensor  # (E, R, K), log-probabilities
    mean: Tensor  # (E, R, K, M)
    log_std: Tensor  # (E, R, K, M)
    category: Tensor  # (E, R, K, C, S), log-probabilities; -inf beyond a category's values


class VectorPrior(nn.Module):
    """Contexts (R, F) to mixtures over changes of numbers (R, M) and categories (R, C)."""

    place: Tensor

    def __init__(
        self, size: int, numbers: int, sizes: tuple[int, ...], settings: VectorSettings
    ) -> None:
        """Build for contexts of `size`, M numbers and categories of `sizes` values."""
        super().__init__()
        self.members, self.components = settings.members, settings.components
        self.numbers, self.sizes, self.values = numbers, sizes, sum(sizes)
        self.layers = nn.ModuleList()
        for _ in range(LAYERS):
            self.layers.append(EnsembleLinear(self.members, size, settings.width))
            self.layers.append(EnsembleNorm(self.members, settings.width))
            size = settings.width
        outputs = self.components * (1 + 2 * numbers + self.values)
        self.out = EnsembleLinear(self.members, size, outputs)
        with torch.no_grad():  # at first everything stays as it is, for all members
            self.out.weight.mul_(0.1)
        # where each category's values are among all; the place after the last is no value
        place = torch.full((len(sizes), max(sizes, default=0)), self.values)
        start = 0
        for row, count in enumerate(sizes):
            place[row, :count] = torch.arange(start, start + count)
            start += count
        self.register_buffer("place", place, persistent=False)

    def forward(self, context: Tensor) -> Mixture:
        """Contexts (E, R, F), of each member its own, to what is foreseen."""
        rows = context
        for linear, norm in zip(self.layers[::2], self.layers[1::2], strict=True):
            rows = functional.silu(norm(linear(rows)))
        out = self.out(rows).unflatten(-1, (self.components, -1))
        sizes = [1, self.numbers, self.numbers, self.values]
        weight, mean, raw, logits = out.split(sizes, -1)
        low, high = LOG_STD
        log_std = high - functional.softplus(high - raw)
        log_std = low + functional.softplus(log_std - low)
        padded = functional.pad(logits, (0, 1), value=-math.inf)[..., self.place]
        category = padded.log_softmax(-1) if self.sizes else padded
        return Mixture(weight.squeeze(-1).log_softmax(-1), mean, log_std, category)

    def score(self, context: Tensor, change: Tensor, unit: Tensor, category: Tensor) -> Score:
        """How well contexts (R, F) foresee what came.

        What is minimised is each member's negative log-likelihood, as expectation maximisation has
        it, but that a Gaussian's gradient is divided by its deviation once instead of twice
        (beta-NLL, Seitzer et al., arXiv:2203.09168): what is foreseen sharply does not drown what
        is not.

        Args:
            context: (R, F).
            change: (R, M), of normalised numbers.
            unit: (M,), the size of a change, what means and deviations are in.
            category: (R, C) int64.
        """
        found = self(context.expand(self.members, -1, -1))
        away = (change / unit).unsqueeze(1) - found.mean  # (E, R, K, M)
        numbers = 0.5 * (away * (-found.log_std).exp()).square() + found.log_std + 0.5 * LOG_2_PI
        index = category.view(1, len(category), 1, -1, 1).expand(*found.category.shape[:-1], 1)
        categories = -found.category.gather(-1, index).squeeze(-1)  # (E, R, K, C)
        joint = numbers.sum(-1) + categories.sum(-1) - found.weight  # (E, R, K)
        with torch.no_grad():
            share = (-joint).softmax(-1).unsqueeze(-1) / self.members  # (E, R, K, 1)
            overall = torch.logsumexp(-joint, (0, 2)) - math.log(self.members)
        entries = torch.cat([numbers, categories], -1)
        calm = torch.cat([numbers * found.log_std.detach().exp(), categories], -1)
        volume = torch.cat([unit.log(), unit.new_zeros(len(self.sizes))])
        return Score(
            nats=unit.log().sum() - overall,
            entries=(share * entries.detach()).sum((0, 2)) + volume,
            losses=(share * calm).sum((0, 2)),
            choice=-(share.squeeze(-1) * found.weight).sum((0, 2)),
        )

    def sample(self, context: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw changes (N, M) and categories (N, C) of contexts (N, F), each of one member."""
        rows, device = len(context), context.device
        order = torch.randperm(rows, generator=generator, device=device)
        each = -(-rows // self.members)
        filled = torch.cat([order, order.new_zeros(each * self.members - rows)])
        found = self(context[filled].view(self.members, each, -1))
        uniform = torch.rand(len(filled), generator=generator, device=device)
        chosen = inverse_cdf(found.weight.flatten(0, 1).exp(), uniform)
        place = torch.arange(len(filled), device=device)
        mean = found.mean.flatten(0, 1)[place, chosen]
        std = found.log_std.flatten(0, 1)[place, chosen].exp()
        noise = torch.randn(mean.shape, generator=generator, device=device)
        drawn = mean + std * noise
        probability = found.category.flatten(0, 1)[place, chosen].exp()  # (., C, S)
        category = chosen.new_zeros(len(chosen), 0)
        if self.sizes:
            coin = torch.rand(probability.shape[:-1], generator=generator, device=device)
            category = inverse_cdf(probability, coin)
        change, kind = torch.empty_like(drawn[:rows]), torch.empty_like(category[:rows])
        change[order], kind[order] = drawn[:rows], category[:rows]
        return change, kind

    def mode(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest component's means and categories, over all members, of contexts (N, F)."""
        found = self(context.expand(self.members, -1, -1))
        best = found.weight.argmax(-1, keepdim=True)  # (E, N, 1)
        index = best.unsqueeze(-1).expand(-1, -1, -1, self.numbers)
        change = found.mean.gather(2, index).squeeze(2).mean(0)
        probability = (found.weight[..., None, None] + found.category).exp().sum((0, 2))
        category = probability.argmax(-1) if self.sizes else best.new_zeros(len(context), 0)
        return change, category
