"""The grid world model: what is in each cell, and a state for each cell.

The code z of a cell is its patch of pixels (`codebook`), so that pictures need no training at all,
and all of learning goes into what comes next: a convolutional state (`dynamics`), a prior over the
next cells that is PixelCNN's (`prior`), and what rewards and endings are known by (`events`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.numerics import autocast
from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.world_model.grid.codebook import PatchCodebook
from mbrl.world_model.grid.dynamics import GridDynamics
from mbrl.world_model.grid.events import Events
from mbrl.world_model.grid.prior import CodeFrequency, IndependentPrior, JointPrior
from mbrl.world_model.heads import Heads
from mbrl.world_model.latent import ImaginedStep, Latent, Observed, batch_first, time_first
from mbrl.world_model.losses import weighted_sum
from mbrl.world_model.model import ImageWorldModel, Metrics, Space
from mbrl.world_model.settings import WorldModelSettings

EVENTS = 16  # detectors of what rewards and endings are known by


class GridWorldModel(ImageWorldModel):
    """Codes are (..., g, w) int64, -1 where nothing is known; states are (..., g, w, D) float32."""

    def __init__(
        self, observation_space: Space, action_space: Space, settings: WorldModelSettings
    ) -> None:
        """As `WorldModel`.

        Raises:
            ConfigError: also if the frame does not divide into cells.
        """
        super().__init__(observation_space, action_space, settings)
        own = settings.grid
        _, height, width = self.image_shape
        cell = own.cell or (1 if max(height, width) <= 16 else 8)
        if height % cell or width % cell:
            raise ConfigError(
                f"world_model.grid.cell: expected a divisor of the image's height and width, got "
                f"{cell} for {height} x {width}; choose another one, or 1"
            )
        # of single pixels that are symbols, none is another's neighbour
        distance = 0.0 if cell == 1 and self.images.exact else own.distance
        self.book = PatchCodebook(self.image_shape, self.levels, cell, own.codes, distance)
        self.grid = self.book.grid
        self.embedding = nn.Sequential(
            nn.Linear(self.book.size, 64), nn.SiLU(), nn.Linear(64, own.embedding)
        )
        self.dynamics = GridDynamics(self.grid, own.embedding, self.action_size, own.hidden)
        self.often = CodeFrequency(self.book)
        parts = self.book, self.often, own.hidden
        self.prior: JointPrior | IndependentPrior = (
            JointPrior(*parts, own.embedding, own.prior_maps, own.prior_layers)
            if own.prior == "joint"
            else IndependentPrior(*parts, own.prior_maps)
        )
        self.events = Events(own.embedding, EVENTS)
        self.heads = Heads(2 * EVENTS, settings.heads)
        maps = self.book.size + (own.hidden if own.shows == "both" else 0)
        self.feature_map = (*self.grid, maps)
        self.feature_size = math.prod(self.feature_map)

    # -- the four methods -------------------------------------------------------------------------

    @property
    def foresight(self) -> list[nn.Module]:
        """The dynamics and the prior."""
        return [self.dynamics, self.prior]

    def initial(self, n: int, device: torch.device) -> Latent:
        """A state of zeros, and cells that nothing is known of."""
        hidden = torch.zeros(n, *self.grid, self.settings.grid.hidden, device=device)
        return Latent(hidden, torch.full((n, *self.grid), -1, device=device))

    def features(self, latent: Latent) -> Tensor:
        """Maps (g, w, S + D) of the patches' intensities and of the state, flattened.

        With `grid.shows: code` the patches alone, (g, w, S).
        """
        patches = self._patches(latent)
        if self.settings.grid.shows == "both":
            patches = torch.cat([patches, latent.hidden], -1)
        return patches.flatten(-3)

    def vectors(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """As `WorldModel`: the patches' intensities, and the state."""
        return self._patches(latent).flatten(-3), latent.hidden.flatten(-3)

    def _patches(self, latent: Latent) -> Tensor:
        """The intensities (..., g, w, S) of the codes' patches, zero where nothing is known."""
        patches = functional.embedding(latent.code.clamp_min(0), self.book.contents())
        return patches * (latent.code >= 0).unsqueeze(-1)

    @torch.no_grad()
    def observe(
        self,
        latent: Latent,
        prev_action: Tensor,
        obs: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Observed:
        """As `WorldModel`; nothing is drawn."""
        single = is_first.ndim == 1
        parts = prev_action, obs, is_first
        prev_action, obs, is_first = (time_first(part, single) for part in parts)
        code = self._codes(obs)
        with autocast(obs.device, self.settings.bf16):
            hidden, _ = self._follow(latent, prev_action, code, is_first)
        before = torch.cat([latent.code.unsqueeze(0), code[:-1]])
        before = torch.where(is_first[..., None, None], -1, before)
        posterior = torch.stack([before, code], -3)  # (T, N, 2, g, w)
        parts = hidden, code, posterior
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
        """As `WorldModel`."""
        device = latent.hidden.device
        uniform = None
        if not mode:
            uniform = torch.rand(latent.code.shape, generator=generator, device=device)
        with autocast(device, self.settings.bf16):
            embed = _embedder(self.embedding(self.book.contents()))
            before = embed(latent.code)
            going = torch.zeros(len(latent.code), dtype=torch.bool, device=device)
            known, vector = latent.code >= 0, self.action_vector(action)
            inputs = self.dynamics.inputs(before, known, vector, going)
            hidden = self.dynamics.step(latent.hidden, inputs)
            context = self.dynamics.context(hidden, before)
            code = self.prior.sample(context, embed, uniform)
            reward, continue_prob = self.heads.predict(self.events(before, embed(code)))
        return ImaginedStep(Latent(hidden, code), reward, continue_prob)

    @torch.no_grad()
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Tensor:
        """The frames (N, H, W, C) that the codes stand for."""
        return self.to_pixels(self.book.levels_of(latent.code))

    @torch.no_grad()
    def frame_nats(
        self, obs: Tensor, latent: Latent, generator: torch.Generator | None = None
    ) -> Tensor:
        """As `WorldModel`: each pixel is its code's, but for the share that codes got wrong."""
        levels = self.to_levels(obs)
        wrong = (levels != self.book.levels_of(latent.code)).flatten(1).sum(1)
        share = self.book.misses.clamp(1e-6, 0.5)
        right = levels[0].numel() - wrong
        return -wrong * torch.log(share / (self.levels - 1)) - right * torch.log1p(-share)

    @torch.no_grad()
    def rates(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """As `WorldModel`; a static prior takes all known codes for equally likely."""
        before, code = observed.posterior.unbind(-3)
        with autocast(code.device, self.settings.bf16):
            embed = _embedder(self.embedding(self.book.contents()))
            context = self.dynamics.context(observed.latent.hidden, embed(before))
            nats, _ = self.prior.nats(context, code, embed(code))
        return nats, torch.full_like(nats, code[0].numel() * math.log(self.book.known))

    def loss(
        self, batch: SequenceBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, Latent]:
        """As `WorldModel`; a joint prior's guess is learnt beside the bound.

        A row whose past is unknown has no prior to learn.
        """
        # time first from here on: what loops over time then takes slices that lie together
        prev_action, obs, is_first = (part.transpose(0, 1) for part in self.inputs(batch))
        reward = torch.as_tensor(batch.reward, device=self.device).T
        terminated = torch.as_tensor(batch.terminated, device=self.device).T
        code = self._learnt_codes(obs) if self.training else self._codes(obs)  # (T, B, g, w)
        start = self.initial(obs.shape[1], self.device)
        foreseen = ~is_first
        foreseen[0] = False
        with autocast(self.device, self.settings.bf16):
            hidden, embedded = self._follow(start, prev_action, code, is_first)
            now, before = embedded
            context = self.dynamics.context(hidden.flatten(0, 1), before)  # (T * B, g, w, D)
            nats, prior_loss = self.prior.nats(context, code.flatten(0, 1), now)
            happened = self.events(before, now).unflatten(0, obs.shape[:2])
            reward_loss, continue_loss = self.heads.loss(happened, reward, terminated)
        share = foreseen.float().mean().clamp_min(1e-6)
        weight = foreseen / share  # (T, B), of mean 1
        terms = {
            "prior": prior_loss.unflatten(0, obs.shape[:2]) * weight,
            "reward": reward_loss * weight,
            "continue": continue_loss * weight,
        }
        weights: dict[str, Tensor | float] = {
            "prior": 1.0,
            "reward": self.settings.heads.reward_weight,
            "continue": self.settings.heads.continue_weight,
        }
        loss = weighted_sum(terms, weights, tuple(is_first.shape))
        latent = Latent(hidden.detach().transpose(0, 1), code.transpose(0, 1))
        with torch.no_grad():
            frame = self.frame_nats(obs.transpose(0, 1).flatten(0, 1), latent.flatten()).mean()
        metrics = {
            "loss": loss.detach(),
            "nats_per_frame": frame,
            "kl": (nats.detach().unflatten(0, obs.shape[:2]) * weight).mean(),
            "reward": terms["reward"].detach().mean(),
            "continue": terms["continue"].detach().mean(),
            "codes": self.book.used.float(),
        }
        return loss, metrics, latent

    # -- parts of them ----------------------------------------------------------------------------

    def _codes(self, obs: Tensor) -> Tensor:
        """Frames (T, B, H, W, C) to codes (T, B, g, w)."""
        return self.book.nearest(self.to_levels(obs.flatten(0, 1))).unflatten(0, obs.shape[:2])

    def _learnt_codes(self, obs: Tensor) -> Tensor:
        """The same, after taking the frames' patches into the book, and codes into frequencies.

        A prior that keeps its first weights keeps its frequencies as well.
        """
        code = self.book.learn(self.to_levels(obs.flatten(0, 1)))
        if any(weight.requires_grad for weight in self.prior.parameters()):
            self.often.update(code)
        return code.unflatten(0, obs.shape[:2])

    def _follow(
        self, latent: Latent, prev_action: Tensor, code: Tensor, is_first: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States (T, B, g, w, D) of sequences, time first as all arguments but the latent.

        Also the embedded codes (T * B, g, w, E), of the rows and of those before.
        """
        embed = _embedder(self.embedding(self.book.contents()))
        now = embed(code)  # (T, B, g, w, E)
        before = torch.cat([embed(latent.code).unsqueeze(0), now[:-1]])
        known = torch.cat([latent.code.unsqueeze(0), code[:-1]]) >= 0
        keep = ~is_first
        before = before * keep[..., None, None, None]
        known = known & keep[..., None, None]
        action = self.action_vector(prev_action) * keep.unsqueeze(-1)
        gates = self.dynamics.inputs(
            before.flatten(0, 1), known.flatten(0, 1), action.flatten(0, 1), is_first.flatten()
        )
        hidden = self.dynamics.sequence(latent.hidden, gates.unflatten(0, is_first.shape), is_first)
        return hidden, (now.flatten(0, 1), before.flatten(0, 1))


def _embedder(table: Tensor) -> Callable[[Tensor], Tensor]:
    """What looks codes (..., g, w) up in a table (K, E): (..., g, w, E), zero where they are -1."""
    with_nothing = torch.cat([table, torch.zeros_like(table[:1])])
    return lambda code: functional.embedding(torch.where(code >= 0, code, len(table)), with_nothing)
