"""The flat layout: code and state are vectors.

Every number of the code may depend on every pixel, and every pixel on every number. This suits
World Models (2018), it is the control of the grid layout, and it learns where a game has few
configurations; where objects combine freely it learns its replay by heart.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from agents.numerics import autocast
from mbrl.episode import SequenceBatch
from mbrl.world_model.code import Code
from mbrl.world_model.decoders.base import Decoder
from mbrl.world_model.decoders.settings import DECODERS
from mbrl.world_model.dynamics import Dynamics
from mbrl.world_model.encoder import Encoder, Seen
from mbrl.world_model.heads import Heads
from mbrl.world_model.latent import ImaginedStep, Latent, Observed
from mbrl.world_model.losses import free_nats, soft_free_nats, weighted_sum
from mbrl.world_model.model import ImageWorldModel, Metrics, Space
from mbrl.world_model.normalise import mean_of_ranks
from mbrl.world_model.settings import CODES, ENCODERS, WorldModelSettings


class FlatWorldModel(ImageWorldModel):
    """Code (..., Z) and state (..., D) are vectors."""

    kl_weight: Tensor

    def __init__(
        self, observation_space: Space, action_space: Space, settings: WorldModelSettings
    ) -> None:
        """As `WorldModel`."""
        super().__init__(observation_space, action_space, settings)
        self.code: Code = CODES.made_by(settings.code)(settings.code)
        self.feature_size = self.code.size + settings.hidden
        recurrent = settings.posterior == "recurrent"
        self.encoder: Encoder = ENCODERS.made_by(settings.encoder)(
            self.image_shape,
            self.code.raw_size,
            settings.encoder,
            settings.hidden if recurrent else 0,
            self.code.location_size,
        )
        self.dynamics = Dynamics(
            self.code, self.action_size, settings.hidden, settings.prior_hidden
        )
        self.heads = Heads(self.feature_size, settings.heads)
        decoder_features = self.feature_size if settings.decoder.sees_hidden else self.code.size
        self.decoder: Decoder = DECODERS.made_by(settings.decoder)(
            self.image_shape, self.levels, decoder_features, settings.decoder
        )
        self.register_buffer("kl_weight", torch.ones(()))
        self.register_load_state_dict_pre_hook(_without_removed)  # type: ignore[no-untyped-call]

    @property
    def foresight(self) -> list[nn.Module]:
        """The dynamics, which hold the prior."""
        return [self.dynamics]

    def initial(self, n: int, device: torch.device) -> Latent:
        """Zeros."""
        return Latent(
            torch.zeros(n, self.settings.hidden, device=device),  # (N, D)
            torch.zeros(n, self.code.size, device=device),  # (N, Z)
            self.encoder.initial(n),
        )

    def features(self, latent: Latent) -> Tensor:
        """Code and state beside one another, F = Z + D."""
        return latent.features

    def vectors(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """As `WorldModel`."""
        return latent.code, latent.hidden

    @torch.no_grad()
    def observe(
        self,
        latent: Latent,
        prev_action: Tensor,
        obs: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Observed:
        """As `WorldModel`.

        Raises:
            ValueError: the encoder remembers earlier frames, and `latent` does not.
        """
        seen, memory = self.encoder.look(latent.memory, self.images.intensities(obs), is_first)
        with autocast(obs.device, self.settings.bf16):
            observed = self._follow(latent, prev_action, seen, is_first, generator)
        return replace(observed, latent=replace(observed.latent, memory=memory))

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
        with autocast(latent.hidden.device, self.settings.bf16):
            hidden = self.dynamics.step(latent.hidden, latent.code, self.action_vector(action))
            prior = self.code.normalise(self.dynamics.prior(hidden))  # (N, raw_size)
            code = self.code.mode(prior) if mode else self.code.sample(prior, generator)
            following = Latent(hidden, code)
            reward, continue_prob = self.heads.predict(following.features)
        return ImaginedStep(following, reward, continue_prob)

    @torch.no_grad()
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Tensor:
        """As `WorldModel`."""
        with autocast(latent.hidden.device, self.settings.bf16):
            return self.to_pixels(self.decoder.sample(self._decoder_features(latent), generator))

    @torch.no_grad()
    def initialise(self, batch: SequenceBatch, generator: torch.Generator | None = None) -> None:
        """Show a decoder that asks for it its first batch; see `Decoder.initialise`."""
        if self.decoder.needs_initialise:
            prev_action, obs, is_first = self.inputs(batch)
            start = self.initial(len(obs), self.device)
            latent = self.observe(start, prev_action, obs, is_first, generator).latent.flatten()
            levels = self.to_levels(obs.flatten(0, 1))  # (B * T, C, H, W)
            self.decoder.initialise(levels, self._decoder_features(latent), generator)

    @torch.no_grad()
    def frame_nats(
        self, obs: Tensor, latent: Latent, generator: torch.Generator | None = None
    ) -> Tensor:
        """As `WorldModel`; a flow's bound draws from `generator`."""
        levels, features = self.to_levels(obs), self._decoder_features(latent)
        with autocast(obs.device, self.settings.bf16):
            return self.decoder.nats(levels, features, generator).sum(1)

    @torch.no_grad()
    def rates(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """As `WorldModel`."""
        posterior = observed.posterior
        prior = self.code.normalise(self.dynamics.prior(observed.latent.hidden))
        return self.code.kl(posterior, prior), self.code.kl(posterior, torch.zeros_like(posterior))

    def loss(
        self, batch: SequenceBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, Latent]:
        """As `WorldModel`."""
        prev_action, obs, is_first = self.inputs(batch)
        reward = torch.as_tensor(batch.reward, device=self.device)
        terminated = torch.as_tensor(batch.terminated, device=self.device)
        start, joint = self.initial(len(obs), self.device), self.settings.joint
        seen, _ = self.encoder.look(start.memory, self.images.intensities(obs), is_first)
        if self.training:
            self.encoder.learn(seen)
        with autocast(self.device, self.settings.bf16):
            observed = self._follow(start, prev_action, seen, is_first, generator)
            hidden, code = observed.latent.hidden, observed.latent.code
            prior = self.code.normalise(self.dynamics.prior(hidden))  # (B, T, raw_size)
            pixels = Latent(hidden if joint else hidden.detach(), code)
            nats = self._decoded_nats(obs, pixels, generator)  # (B, T)
            latent = Latent(hidden, code if joint else code.detach())
            reward_loss, continue_loss = self.heads.loss(latent.features, reward, terminated)
        kl_prior, kl_code = self._kl(observed.posterior, prior)  # (B, T)
        code_weight = self._code_weight(kl_code)
        prior_term, code_term = self._above_floors(kl_prior, kl_code)
        terms = {
            "prior": prior_term,
            "code": code_term,
            "frame": nats,
            "reward": reward_loss,
            "continue": continue_loss,
        }
        weights: dict[str, Tensor | float] = {
            "prior": self.settings.kl.dynamics,
            "code": code_weight,
            "frame": 1.0,
            "reward": self.settings.heads.reward_weight,
            "continue": self.settings.heads.continue_weight,
        }
        loss = weighted_sum(terms, weights, batch.shape)
        metrics = {
            "loss": loss.detach(),
            "nats_per_frame": nats.detach().mean(),
            "kl": kl_prior.detach().mean(),
            "kl_weight": code_weight,
            "reward": reward_loss.detach().mean(),
            "continue": continue_loss.detach().mean(),
        }
        return loss, metrics, Latent(hidden.detach(), code.detach())

    # -- parts of them ----------------------------------------------------------------------------

    def _decoder_features(self, latent: Latent) -> Tensor:
        return latent.features if self.settings.decoder.sees_hidden else latent.code

    def _follow(
        self,
        latent: Latent,
        prev_action: Tensor,
        seen: Seen,
        is_first: Tensor,
        generator: torch.Generator | None,
    ) -> Observed:
        """`observe` without the encoder's memory, and with gradients: of one step or of sequences.

        q(z | x) needs no state, so one pass encodes all rows, and only the RNN runs over time.
        q(z | x, h) needs the state before each code, hence the loop.
        """
        single, recurrent = is_first.ndim == 1, self.settings.posterior == "recurrent"
        if recurrent and not single:
            steps: list[Observed] = []
            for t in range(is_first.shape[1]):
                now = prev_action[:, t], seen.at(t), is_first[:, t]
                steps.append(self._follow(latent, *now, generator))
                latent = steps[-1].latent
            return Observed(
                Latent(
                    torch.stack([step.latent.hidden for step in steps], 1),  # (B, T, D)
                    torch.stack([step.latent.code for step in steps], 1),  # (B, T, Z)
                ),
                torch.stack([step.posterior for step in steps], 1),  # (B, T, raw_size)
            )
        keep = (~is_first).float().unsqueeze(-1)  # (N, 1) or (B, T, 1)
        action = self.action_vector(prev_action) * keep  # (N, A) or (B, T, A)
        context = None
        if single:
            hidden = self.dynamics.step(latent.hidden * keep, latent.code * keep, action)
            context = hidden if recurrent else None
        posterior = self.code.normalise(self.encoder(seen, context))
        code = self.code.sample(posterior, generator)
        if not single:
            learned = code if self.settings.joint else code.detach()
            hidden = self.dynamics.sequence(learned, action, is_first, latent).float()
        return Observed(Latent(hidden, code), posterior)

    def _decoded_nats(
        self, obs: Tensor, latent: Latent, generator: torch.Generator | None
    ) -> Tensor:
        """Nats (B, T) of the frames, or of a random share: the others have 0, without a bias."""
        rows, features = obs.shape[0] * obs.shape[1], self._decoder_features(latent)
        frames, features = obs.flatten(0, 1), features.flatten(0, 1)  # (B * T, ...)
        decoded = max(1, round(rows * self.settings.decoder.fraction))  # R
        if decoded < rows:
            picked = torch.randperm(rows, generator=generator, device=obs.device)[:decoded]
            frames, features = frames[picked], features[picked]  # (R, H, W, C), (R, F)
        nats = self.decoder.nats(self.to_levels(frames), features, generator).sum(1)  # (R,)
        if decoded < rows:
            nats = nats.new_zeros(rows).index_put((picked,), nats * (rows / decoded))
        return nats.unflatten(0, obs.shape[:2])  # (B, T)

    def _kl(self, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """What trains the prior, KL(stop(q) || p), and the code, KL(q || stop(p)); each (B, T).

        Stage by stage the code has the prior of a plain VAE: zeros are the uniform categorical and
        the standard Gaussian.
        """
        of_code = prior.detach() if self.settings.joint else torch.zeros_like(posterior)
        return self.code.kl(posterior.detach(), prior), self.code.kl(posterior, of_code)

    def _above_floors(self, prior: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Both KL terms (B, T), with what keeps the code from being given up for nothing.

        Jointly, hard free nats floor both terms, as in DreamerV3. Stage by stage, floors are the
        code's business alone, frame by frame as in 2018, and the prior always learns.
        """
        settings = self.settings.kl
        if settings.soft_free_nats is not None:
            return prior, code
        if self.settings.joint:
            return free_nats(prior, settings.free_nats), free_nats(code, settings.free_nats)
        return prior, code.clamp_min(settings.free_nats)

    def _code_weight(self, kl: Tensor) -> Tensor:
        """The weight () of the term that the code learns from; soft free nats steer it."""
        settings = self.settings.kl
        weight = torch.full_like(self.kl_weight, settings.representation)
        if settings.soft_free_nats is None:
            return weight
        if self.training:
            mean = mean_of_ranks(kl.detach().mean())
            self.kl_weight.copy_(soft_free_nats(self.kl_weight, mean, settings.soft_free_nats))
        return weight * self.kl_weight


def _without_removed(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Old checkpoints hold a count of updates that nothing reads any more."""
    state.pop(f"{prefix}trained", None)
