"""The vectors world model: what was observed is the code, and all of learning is what comes next.

Numbers and categories of any number of streams are one row (`code`). A recurrent state
(`dynamics`) remembers what a row does not show. The prior (`prior`) foresees the next row from the
state, the row and the action; reward and continue heads see the row arrived in beside them.

All of it is float32: what rounds to three digits cannot foresee a pole that balances.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mbrl.episode import SequenceBatch
from mbrl.world_model.heads import Heads
from mbrl.world_model.latent import ImaginedStep, Latent, Observed, batch_first, time_first
from mbrl.world_model.losses import weighted_sum
from mbrl.world_model.model import Metrics, Obs, Space, WorldModel
from mbrl.world_model.settings import WorldModelSettings
from mbrl.world_model.vectors.code import TINY, Moments, StreamCode, known
from mbrl.world_model.vectors.dynamics import VectorDynamics
from mbrl.world_model.vectors.prior import Score, VectorPrior


@dataclass(frozen=True)
class _Rows:
    """What was before each row of sequences, time first."""

    before: Tensor  # (T, B, Z) codes, NaN where unknown
    hidden: Tensor  # (T, B, D)
    context: Tensor  # (T, B, F), what prior and heads see of what came before


class VectorWorldModel(WorldModel):
    """Codes are (..., Z), NaN where nothing is known; states are (..., D) float32."""

    def __init__(
        self, observation_space: Space, action_space: Space, settings: WorldModelSettings
    ) -> None:
        """As `WorldModel`.

        Raises:
            ConfigError: also if a stream is an image, or there are too many categories.
        """
        super().__init__(observation_space, action_space, settings)
        own = settings.vectors
        self.code = StreamCode(self.streams)
        self.changes = Moments(self.code.numbers)
        seen = self.code.inputs_size + 1 + self.action_size
        self.dynamics = VectorDynamics(seen, own.width, own.hidden)
        context = own.hidden + seen
        self.prior = VectorPrior(context, self.code.numbers, self.code.sizes, own)
        self.heads = Heads(context + self.code.inputs_size, settings.heads)
        self.feature_size = self.code.inputs_size + (own.hidden if own.shows == "both" else 0)

    # -- the four methods -------------------------------------------------------------------------

    @property
    def foresight(self) -> list[nn.Module]:
        """The dynamics and the prior."""
        return [self.dynamics, self.prior]

    def initial(self, n: int, device: torch.device) -> Latent:
        """A state of zeros, and a code that nothing is known of."""
        hidden = torch.zeros(n, self.settings.vectors.hidden, device=device)
        code = torch.full((n, self.code.size), math.nan, dtype=self.code.dtype, device=device)
        return Latent(hidden, code)

    def features(self, latent: Latent) -> Tensor:
        """The inputs (N, I) that the code is for networks, and with `vectors.shows: both` h too."""
        inputs = self.code.inputs(latent.code)
        if self.settings.vectors.shows == "both":
            inputs = torch.cat([inputs, latent.hidden], -1)
        return inputs

    def vectors(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """As `WorldModel`: the code's inputs, and the state."""
        return self.code.inputs(latent.code), latent.hidden

    @torch.no_grad()
    def observe(
        self,
        latent: Latent,
        prev_action: Tensor,
        obs: Obs,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Observed:
        """As `WorldModel`; nothing is drawn."""
        single = is_first.ndim == 1
        parts = self.action_vector(prev_action), self.code.pack(obs, is_first.ndim), is_first
        action, code, is_first = (time_first(part, single) for part in parts)
        rows = self._follow(latent, action, code, is_first)
        posterior = torch.cat([rows.before, code, rows.context.to(code.dtype)], -1)
        parts = rows.hidden, code, posterior
        hidden, code, posterior = (batch_first(part, single) for part in parts)
        return Observed(Latent(hidden, code), posterior)

    @torch.no_grad()
    def imagine_step(
        self,
        latent: Latent,
        action: Tensor,
        generator: torch.Generator | None = None,
        *,
        mode: bool = False,
    ) -> ImaginedStep:
        """As `WorldModel`; the mode is the mean of the members' likeliest components."""
        going = torch.zeros(len(latent.code), dtype=torch.bool, device=latent.code.device)
        seen = self._seen(latent.code, self.action_vector(action))
        hidden = self.dynamics.step(latent.hidden, self.dynamics.inputs(seen, going))
        context = torch.cat([hidden, seen], -1)
        change, category = (
            self.prior.mode(context) if mode else self.prior.sample(context, generator)
        )
        now = self.code.normalised(latent.code).nan_to_num() + change * self._unit
        numbers = self.code.raw(now)
        code = torch.cat([numbers, category.to(numbers.dtype)], -1)
        reward, continue_prob = self.heads.predict(self._happened(context, code))
        return ImaginedStep(Latent(hidden, code), reward, continue_prob)

    @torch.no_grad()
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Obs:
        """The observations (N, *shape) that codes are, whole and within bounds where integers."""
        return self.code.unpack(latent.code)

    @torch.no_grad()
    def frame_nats(
        self, obs: Obs, latent: Latent, generator: torch.Generator | None = None
    ) -> Tensor:
        """How far codes (N, Z) are from observations: (N,), zero where they are those.

        Half the squared difference of numbers in running deviations, and log(size) for each
        category that differs.
        """
        seen = self.code.pack(obs, 1)
        away = self.code.normalised(seen) - self.code.normalised(latent.code)
        wrong = self.code.categories_of(seen) != self.code.categories_of(latent.code)
        return 0.5 * away.square().sum(-1) + (wrong * self.code.uniform).sum(-1)

    @torch.no_grad()
    def rates(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """As `WorldModel`, with densities of numbers in running deviations.

        Of a row whose past is unknown the first is the second.
        """
        size = self.code.size
        rows = observed.posterior.flatten(0, -2)
        before, now, context = rows.tensor_split([size, 2 * size], -1)
        nats = self._foreseen(context.float(), before, now).nats
        number = 0.5 * self.code.normalised(now).square() + 0.5 * math.log(2 * math.pi)
        static = number.sum(-1) + self.code.uniform.sum()
        shape = observed.posterior.shape[:-1]
        return torch.where(known(before), nats, static).view(shape), static.view(shape)

    def loss(
        self, batch: SequenceBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, Latent]:
        """As `WorldModel`. A row whose past is unknown has nothing to learn from."""
        prev_action, obs, is_first = self.inputs(batch)
        parts = self.action_vector(prev_action), self.code.pack(obs, 2), is_first
        # time first from here on: what loops over time then takes slices that lie together
        action, code, is_first = (part.transpose(0, 1) for part in parts)
        reward, terminated = (
            torch.as_tensor(part, device=self.device).T for part in (batch.reward, batch.terminated)
        )
        if self.training:
            self._learn_units(code, is_first)
        rows = self._follow(self.initial(code.shape[1], self.device), action, code, is_first)
        context = rows.context.flatten(0, 1)
        found = self._foreseen(context, rows.before.flatten(0, 1), code.flatten(0, 1))
        happened = self._happened(rows.context, code)
        reward_loss, continue_loss = self.heads.loss(happened, reward, terminated)
        foreseen = known(rows.before).float()
        weight = foreseen / foreseen.mean().clamp_min(1e-6)  # (T, B), of mean 1
        terms = {
            "prior": (found.losses @ self.code.shares + found.choice).view(is_first.shape) * weight,
            "reward": reward_loss * weight,
            "continue": continue_loss * weight,
        }
        weights: dict[str, Tensor | float] = {
            "prior": 1.0,
            "reward": self.settings.heads.reward_weight,
            "continue": self.settings.heads.continue_weight,
        }
        loss = weighted_sum(terms, weights, tuple(is_first.shape))
        nats = found.nats.view(is_first.shape)
        metrics = {
            "loss": loss.detach(),
            "kl": (nats.detach() * weight).mean(),
            "reward": terms["reward"].detach().mean(),
            "continue": terms["continue"].detach().mean(),
            **{
                f"nats/{column}": (nats * weight.flatten()).mean()
                for column, nats in self.code.by_stream(found.entries).items()
            },
        }
        latent = Latent(rows.hidden.detach().transpose(0, 1), code.transpose(0, 1))
        return loss, metrics, latent

    # -- parts of them ----------------------------------------------------------------------------

    @property
    def _unit(self) -> Tensor:
        """(M,) float32: running deviation of the change of normalised numbers, around none."""
        square = self.changes.variance + self.changes.mean.square()
        # what never changed yet may do so by as much as others do
        return torch.where(square > TINY**2, square.sqrt(), 1.0).float()

    @torch.no_grad()
    def _learn_units(self, code: Tensor, is_first: Tensor) -> None:
        """Take codes (T, B, Z) into the running statistics of numbers and of their changes."""
        self.code.learn(code)
        numbers = self.code.normalised(code)
        self.changes.update((numbers[1:] - numbers[:-1])[~is_first[1:]])

    def _follow(self, latent: Latent, action: Tensor, code: Tensor, is_first: Tensor) -> _Rows:
        """What was before the rows of sequences, time first as all arguments but the latent.

        Args:
            latent: (B, ...) before the first row.
            action: (T, B, A), that led to each row.
            code: (T, B, Z).
            is_first: (T, B), where nothing was before.
        """
        before = torch.cat([latent.code.unsqueeze(0), code[:-1]])
        before = torch.where(is_first.unsqueeze(-1), math.nan, before)
        seen = self._seen(before, action * (~is_first).unsqueeze(-1))
        inputs = self.dynamics.inputs(seen, is_first)
        hidden = self.dynamics.sequence(latent.hidden, inputs, is_first)
        return _Rows(before, hidden, torch.cat([hidden, seen], -1))

    def _seen(self, code: Tensor, action: Tensor) -> Tensor:
        """Codes (..., Z), whether they are known, and actions (..., A) for networks: (..., S)."""
        return torch.cat(
            [self.code.inputs(code), known(code).float().unsqueeze(-1), action.float()], -1
        )

    def _happened(self, context: Tensor, code: Tensor) -> Tensor:
        """What reward and ending follow from: what came before, and where it led."""
        return torch.cat([context, self.code.inputs(code)], -1)

    def _foreseen(self, context: Tensor, before: Tensor, now: Tensor) -> Score:
        """How well contexts (R, F) foresee codes (R, Z); only where `before` (R, Z) is known."""
        change = self.code.normalised(now) - self.code.normalised(before)
        change = torch.where(known(before).unsqueeze(-1), change, 0.0)
        return self.prior.score(context, change, self._unit, self.code.categories_of(now))
