"""The world model: VAE encoder, RNN dynamics, decoder and heads behind four methods.

`loss` trains all of it on real sequences; `observe` follows a real environment one step at a time;
`imagine_step` rolls the prior without observations; `decode` makes pictures. The model knows
nothing of policies, of replay or of where its batches come from. The time convention is
`SequenceBatch`'s.
"""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.numerics import autocast
from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.world_model.code import make_code
from mbrl.world_model.decoders import DECODERS
from mbrl.world_model.decoders.world_models import WorldModelsEncoder
from mbrl.world_model.dynamics import Dynamics
from mbrl.world_model.encoder import Encoder
from mbrl.world_model.heads import Heads
from mbrl.world_model.latent import Filtered, ImaginedStep, Latent
from mbrl.world_model.losses import free_nats, soft_free_nats
from mbrl.world_model.past import Past, Seen, before_each
from mbrl.world_model.running import mean_of_ranks
from mbrl.world_model.settings import WorldModelSettings

Metrics = dict[str, Tensor]


class WorldModel(nn.Module):
    """Joint model of frames, rewards and endings: p(x, r, c | z, h) p(z | h) with q(z | x)."""

    kl_weight: Tensor
    trained: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[np.ndarray],
        action_space: spaces.Space[np.ndarray],
        settings: WorldModelSettings,
    ) -> None:
        """Build for one environment's spaces.

        Raises:
            ConfigError: the observation is not a uint8 image, or the action is neither Discrete nor
                a one-dimensional Box.
        """
        super().__init__()
        self.settings = settings
        if not (
            isinstance(observation_space, spaces.Box)
            and observation_space.dtype == np.uint8
            and len(observation_space.shape) == 3
        ):
            raise ConfigError(
                f"world model: expected uint8 images (H, W, C) as observations, got "
                f"{observation_space}; wrap the environment so that it returns images"
            )
        height, width, channels = observation_space.shape
        self.image_shape = (channels, height, width)
        self.high = int(observation_space.high.max())
        self.levels = settings.decoder.levels or (2 if self.high == 1 else 16)
        if self.levels > self.high + 1:
            raise ConfigError(
                f"world_model.decoder.levels: expected at most {self.high + 1}, the number of "
                f"values a pixel takes here, got {self.levels}"
            )
        self.discrete = isinstance(action_space, spaces.Discrete)
        if isinstance(action_space, spaces.Discrete):
            self.action_size = int(action_space.n)
        elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
            self.action_size = action_space.shape[0]
        else:
            raise ConfigError(
                f"world model: expected a Discrete or one-dimensional Box action space, "
                f"got {action_space}"
            )
        self.code = make_code(settings.code)
        self.feature_size = self.code.size + settings.hidden
        recurrent = settings.posterior == "recurrent"
        self.encoder: Encoder | WorldModelsEncoder = (
            WorldModelsEncoder(self.image_shape, self.code.raw_size)
            if settings.encoder.kind == "world_models"
            else Encoder(
                self.image_shape,
                self.code.raw_size,
                settings.encoder,
                settings.hidden if recurrent else 0,
                self.code.location_size,
            )
        )
        self.dynamics = Dynamics(
            self.code, self.action_size, settings.hidden, settings.prior_hidden
        )
        self.heads = Heads(self.feature_size, settings.heads)
        decoder_features = self.feature_size if settings.decoder.sees_hidden else self.code.size
        self.decoder = DECODERS[settings.decoder.kind](
            self.image_shape, self.levels, decoder_features, settings.decoder
        )
        self.register_buffer("kl_weight", torch.ones(()))
        self.register_buffer("trained", torch.zeros(()))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.heads.bins.device

    # -- conversions ------------------------------------------------------------------------------

    def to_levels(self, obs: Tensor) -> Tensor:
        """The one way in: uint8 (..., H, W, C) to integer levels (..., C, H, W) in [0, V)."""
        image = obs.movedim(-1, -3)
        if self.levels == self.high + 1:
            return image
        return (image.to(torch.int32) * self.levels // (self.high + 1)).to(torch.uint8)

    def to_pixels(self, levels: Tensor) -> Tensor:
        """The one way out: levels (..., C, H, W) to uint8 (..., H, W, C), each level's middle."""
        if self.levels != self.high + 1:
            width = (self.high + 1) / self.levels
            levels = ((levels.float() + 0.5) * width - 0.5).round().to(torch.uint8)
        return levels.movedim(-3, -1)

    def action_vector(self, action: Tensor) -> Tensor:
        """One-hot for a discrete action (...,), the action itself for a continuous one (..., A)."""
        if self.discrete:
            return nn.functional.one_hot(action.long(), self.action_size).float()
        return action.float()

    def _frames(self, obs: Tensor) -> Tensor:
        """uint8 (N, H, W, C) to float (N, C, H, W) in [0, 1] for the encoder.

        Written out channel by channel: a view would let the convolutions choose channels last, in
        which normalising each map by itself takes half of all training on a CPU.
        """
        image = obs.movedim(-1, -3)
        frames = torch.empty(image.shape, device=obs.device)
        return frames.copy_(image).div_(self.high)

    # -- the four methods -------------------------------------------------------------------------

    def initial(self, n: int, device: torch.device) -> Latent:
        """The latent before anything was seen: zeros."""
        expected = self.encoder.expected
        return Latent(
            torch.zeros(n, self.settings.hidden, device=device),
            torch.zeros(n, self.code.size, device=device),
            None if expected is None else Past.nothing(expected, n),
        )

    @torch.no_grad()
    def observe(
        self,
        latent: Latent,
        prev_action: Tensor,
        obs: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Latent:
        """Follow one real step of N environments.

        Args:
            latent: (N, ...) after the step before; ignored where `is_first`.
            prev_action: (N,) or (N, A), the action that led to `obs`; ignored where `is_first`.
            obs: (N, H, W, C) uint8.
            is_first: (N,) bool.
            generator: random stream of the code's sample.

        Raises:
            ValueError: the encoder subtracts what it has seen, and `latent` does not know it, as it
                is neither `initial` nor what this method returned.
        """
        keep = (~is_first).float().unsqueeze(-1)
        frames, past, expected = self._frames(obs), latent.past, self.encoder.expected
        if expected is not None:
            if past is None:
                raise ValueError("observe: expected a latent with a past, of initial or observe")
            past = past.restart(is_first, expected)
        with autocast(obs.device, self.settings.bf16):
            hidden = self.dynamics.step(
                latent.hidden * keep,
                latent.code * keep,
                self.action_vector(prev_action) * keep,
            )
            context = hidden if self.settings.posterior == "recurrent" else None
            raw = self.encoder(frames, context, before=past and past.mean)
        code = self.code.sample(self.code.normalise(raw), generator)
        return Latent(hidden, code, past and past.after(frames))

    @torch.no_grad()
    def imagine_step(
        self,
        latent: Latent,
        action: Tensor,
        generator: torch.Generator | None = None,
        *,
        likeliest: bool = False,
    ) -> ImaginedStep:
        """Advance N dreams by one step: sample the prior, then read reward and continue off it.

        With `likeliest` the prior's likeliest code is taken instead of a sample.
        """
        with autocast(latent.hidden.device, self.settings.bf16):
            hidden = self.dynamics.step(latent.hidden, latent.code, self.action_vector(action))
            prior = self.code.normalise(self.dynamics.prior(hidden))
            code = self.code.likeliest(prior) if likeliest else self.code.sample(prior, generator)
            following = Latent(hidden, code)
            reward, continue_prob = self.heads.predict(following.features)
        return ImaginedStep(following, reward, continue_prob)

    @torch.no_grad()
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Tensor:
        """Free-running samples of p(x | z, h): latents (N, ...) to uint8 images (N, H, W, C)."""
        with autocast(latent.hidden.device, self.settings.bf16):
            return self.to_pixels(self.decoder.sample(self._decoder_features(latent), generator))

    @torch.no_grad()
    def filter(self, batch: SequenceBatch, generator: torch.Generator | None = None) -> Filtered:
        """Follow whole real sequences at once, for measuring.

        Args:
            batch: (B, T) sequences, as numpy arrays.
            generator: random stream of the codes' samples.

        Returns:
            Of all rows. The state of row t depends on rows before t only, its code on row t (and
            on the state, with a recurrent posterior; on earlier frames, if they are subtracted).
        """
        obs, action, is_first = self._inputs(batch)
        seen = self._look(obs, is_first)
        with autocast(self.device, self.settings.bf16):
            hidden, code, posterior = self._posterior(seen, action, is_first, generator)
        return Filtered(Latent(hidden, code), posterior)

    @torch.no_grad()
    def initialise(self, batch: SequenceBatch, generator: torch.Generator | None = None) -> None:
        """Show a decoder that asks for it its first (B, T) batch; see `Decoder.initialise`."""
        if self.decoder.needs_initialise:
            obs = torch.as_tensor(batch.obs, device=self.device).flatten(0, 1)
            features = self._decoder_features(self.filter(batch, generator).latent.flatten())
            self.decoder.initialise(self.to_levels(obs), features, generator)

    @torch.no_grad()
    def frame_nats(
        self, obs: Tensor, latent: Latent, generator: torch.Generator | None = None
    ) -> Tensor:
        """-log p(x | z, h) of frames (N, H, W, C) uint8 given latents (N, ...): (N,) nats.

        Squared error is summed over intensities in [0, 1]; a flow's bound draws from `generator`.
        """
        levels, features = self.to_levels(obs), self._decoder_features(latent)
        with autocast(obs.device, self.settings.bf16):
            return -self.decoder.log_prob(levels, features, generator)

    def loss(
        self, batch: SequenceBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, Latent]:
        """The negative evidence bound with reward and continue terms, per frame.

        Args:
            batch: (B, T) sequences, as numpy arrays.
            generator: random stream of all samples drawn, on the model's device.

        Returns:
            The scalar loss; metrics as scalar tensors (nothing is synchronised); and the posterior
            latents (B, T, ...), detached, from which dreams may start.
        """
        device = self.device
        obs, action, is_first = self._inputs(batch)
        seen = self._look(obs, is_first)
        if self.training:
            flat = seen.flatten()
            self.encoder.see(flat.frames, flat.before)
        reward = torch.as_tensor(batch.reward, device=device)
        terminated = torch.as_tensor(batch.terminated, device=device)
        settings = self.settings
        with autocast(device, self.settings.bf16):
            hidden, code, posterior = self._posterior(seen, action, is_first, generator)
            prior = self.code.normalise(self.dynamics.prior(hidden))
            latent = Latent(hidden, code if settings.joint else code.detach())
            pixels = Latent(hidden if settings.joint else hidden.detach(), code)
            features = self._decoder_features(pixels).flatten(0, 1)
            reconstruction, nats = self._reconstruction(obs.flatten(0, 1), features, generator)
            reward_loss, continue_loss = self.heads.loss(latent.features, reward, terminated)
        kl_dynamics = self.code.kl(posterior.detach(), prior)
        if settings.joint:
            kl_representation = self.code.kl(posterior, prior.detach())
        else:
            # zeros are the uniform categorical and the standard Gaussian: the prior of a plain VAE
            kl_representation = self.code.kl(posterior, torch.zeros_like(posterior))
        kl_loss, code_weight = self._kl_loss(kl_dynamics, kl_representation)
        heads = settings.heads
        reward_loss, continue_loss = reward_loss.mean(), continue_loss.mean()
        loss = (
            reconstruction
            + kl_loss
            + heads.reward_weight * reward_loss
            + heads.continue_weight * continue_loss
        )
        metrics = {
            "loss": loss.detach(),
            "nats_per_frame": nats,
            "kl": kl_dynamics.detach().mean(),
            "kl_weight": code_weight,
            "reward": reward_loss.detach(),
            "continue": continue_loss.detach(),
        }
        return loss, metrics, Latent(hidden.detach(), code.detach())

    # -- parts of the loss ------------------------------------------------------------------------

    def _inputs(self, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Observations, action vectors (zero where an episode starts) and starts, on the device."""
        obs = torch.as_tensor(batch.obs, device=self.device)
        is_first = torch.as_tensor(batch.is_first, device=self.device)
        action = self.action_vector(torch.as_tensor(batch.prev_action, device=self.device))
        return obs, action * (~is_first).unsqueeze(-1), is_first

    def _look(self, obs: Tensor, is_first: Tensor) -> Seen:
        """What the encoder sees of (B, T) sequences."""
        frames = self._frames(obs.flatten(0, 1)).unflatten(0, is_first.shape)
        expected = self.encoder.expected
        return Seen(frames, None if expected is None else before_each(frames, is_first, expected))

    def _posterior(
        self, seen: Seen, action: Tensor, is_first: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States, sampled codes and posterior parameters of all rows, each (B, T, ...)."""
        if self.settings.posterior == "recurrent":
            return self._recurrent_posterior(seen, action, is_first, generator)
        flat = seen.flatten()
        posterior = self.code.normalise(self.encoder(flat.frames, before=flat.before))
        posterior = posterior.unflatten(0, is_first.shape)
        code = self.code.sample(posterior, generator)
        learned = code if self.settings.joint else code.detach()
        hidden = self.dynamics.sequence(learned, action, is_first).float()
        return hidden, code, posterior

    def _recurrent_posterior(
        self, seen: Seen, action: Tensor, is_first: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with q(z | x, h): each code needs the state before it, hence the loop."""
        latent = self.initial(len(is_first), is_first.device)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(is_first.shape[1]):
            keep = (~is_first[:, t]).float().unsqueeze(-1)
            hidden = self.dynamics.step(latent.hidden * keep, latent.code * keep, action[:, t])
            now = seen.row(t)
            posterior = self.code.normalise(self.encoder(now.frames, hidden, now.before))
            latent = Latent(hidden, self.code.sample(posterior, generator))
            rows.append((hidden, latent.code, posterior))
        hidden, code, posterior = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        return hidden, code, posterior

    def _decoder_features(self, latent: Latent) -> Tensor:
        return latent.features if self.settings.decoder.sees_hidden else latent.code

    def _kl_loss(self, dynamics: Tensor, representation: Tensor) -> tuple[Tensor, Tensor]:
        """Both KL terms, weighted, with what keeps the code from being given up for nothing.

        Returns the sum, and the weight () of the term that the code learns from.

        Stage by stage, floors are the code's business alone, frame by frame as in 2018, and the
        prior always learns; jointly, hard free nats floor both terms, as in DreamerV3.
        """
        settings = self.settings.kl
        weight = torch.full_like(self.kl_weight, settings.representation)
        if self.training:
            self.trained += 1
        if settings.warmup_updates:
            weight = weight * (self.trained / settings.warmup_updates).clamp_max(1)
        if settings.soft_free_nats is not None:
            if self.training:
                mean = mean_of_ranks(representation.detach().mean())
                self.kl_weight.copy_(soft_free_nats(self.kl_weight, mean, settings.soft_free_nats))
            weight = weight * self.kl_weight
            code, prior = representation.mean(), dynamics.mean()
        elif self.settings.joint:
            code = free_nats(representation, settings.free_nats)
            prior = free_nats(dynamics, settings.free_nats)
        else:
            code = representation.clamp_min(settings.free_nats).mean()
            prior = dynamics.mean()
        return settings.dynamics * prior + weight * code, weight

    def _reconstruction(
        self, obs: Tensor, features: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Mean objective and nats per frame, without bias from a random share of the rows."""
        rows = len(obs)
        decoded = max(1, round(rows * self.settings.decoder.fraction))
        if decoded < rows:
            picked = torch.randperm(rows, generator=generator, device=obs.device)[:decoded]
            obs, features = obs[picked], features[picked]
        objective, nats = self.decoder.objective(self.to_levels(obs), features, generator)
        return objective.mean(), nats.mean()
