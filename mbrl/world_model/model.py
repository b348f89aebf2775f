"""What every world model is: four methods, and how observations and actions come in and out.

`loss` trains all of it on real sequences; `observe` follows real environments, one step or whole
sequences at a time; `imagine_step` rolls the prior without observations; `decode` makes pictures.
The model knows nothing of policies, of replay or of where its batches come from. The time
convention is `SequenceBatch`'s, the symbols of shapes are in `mbrl.world_model`.

The layout says what code and state are: of images maps (`mbrl.world_model.grid`) or vectors
(`mbrl.world_model.flat`), both an `ImageWorldModel`; of numbers and categories the observation
itself (`mbrl.world_model.vectors`). Nobody outside knows which is used, but for who draws pictures;
`mbrl.world_model.layouts` builds it.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from mbrl.actions import ActionCodec, ActionVector
from mbrl.episode import SequenceBatch
from mbrl.streams import Stream, mapped, streams_of
from mbrl.world_model.images import Images
from mbrl.world_model.latent import ImaginedStep, Latent, Observed
from mbrl.world_model.settings import WorldModelSettings

Metrics = dict[str, Tensor]
Obs = Any
"""Observations: a tensor, or a dict of tensors by column. Which one follows from the space."""

Space = spaces.Space[np.ndarray]


class WorldModel(nn.Module, ABC):
    """Joint model of observations, rewards and endings: p(x, r, c | z, h) p(z | h) with q(z | x).

    Attributes:
        streams: what observations are made of.
        feature_size: F, numbers of `features`.
        feature_map: (rows, columns, maps) if the features are flattened maps; else None.
        action_vector: what it reads of an action, (..., A).
    """

    feature_size: int
    feature_map: tuple[int, int, int] | None = None

    def __init__(
        self, observation_space: Space, action_space: Space, settings: WorldModelSettings
    ) -> None:
        """Take in one environment's spaces; a layout then builds its parts.

        Raises:
            ConfigError: it cannot model such observations or actions, or not with these settings.
        """
        super().__init__()
        self.settings = settings
        self.streams: tuple[Stream, ...] = streams_of(observation_space)
        self.action_vector = ActionVector(ActionCodec(action_space))
        self.action_size = self.action_vector.size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def foresight(self) -> list[nn.Module]:
        """The parts that say what comes next: the dynamics and the prior."""

    # -- conversions ------------------------------------------------------------------------------

    def inputs(self, batch: SequenceBatch) -> tuple[Tensor, Obs, Tensor]:
        """What `observe` takes of (B, T) sequences, on the model's device."""
        prev_action, is_first = (
            torch.as_tensor(part, device=self.device)
            for part in (batch.prev_action, batch.is_first)
        )
        obs = mapped(lambda part: torch.as_tensor(part, device=self.device), batch.obs)
        return prev_action, obs, is_first

    def doubt(self, batch: SequenceBatch) -> str:
        """One sentence if a (B, T) batch shows that the model cannot see, else nothing."""
        return ""

    # -- the four methods -------------------------------------------------------------------------

    @abstractmethod
    def initial(self, n: int, device: torch.device) -> Latent:
        """The latent before anything was seen."""

    @abstractmethod
    def features(self, latent: Latent) -> Tensor:
        """What policies see of latents (N, ...): (N, F) float32."""

    @abstractmethod
    def vectors(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """What latents (N, ...) hold, code and state apart, (N, ...) float32 each, for readers."""

    @abstractmethod
    def observe(
        self,
        latent: Latent,
        prev_action: Tensor,
        obs: Obs,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Observed:
        """Follow N real environments for one step, or B of them for T steps.

        Args:
            latent: (N, ...) after the step before, of `initial` or of this method; after sequences
                `observed.latent.last`. Ignored where `is_first`.
            prev_action: that led to `obs`, flat (`mbrl.actions`): (N, ...) or (B, T, ...). Ignored
                likewise.
            obs: (N, *shape) or (B, T, *shape) as the environment gives them, by column if they are
                several.
            is_first: (N,) or (B, T) bool.
            generator: random stream of the codes' samples.

        Returns:
            Of every row. Its state depends on rows before it only, its code on the row itself (and
            on the state, if recurrent; on earlier frames, if the encoder subtracts them).

        Raises:
            ValueError: the encoder remembers earlier frames, and `latent` does not.
        """

    @abstractmethod
    def imagine_step(
        self,
        latent: Latent,
        action: Tensor,
        generator: torch.Generator | None = None,
        *,
        mode: bool = False,
    ) -> ImaginedStep:
        """Advance N dreams by one step; `mode` takes the prior's mode instead of a sample."""

    @abstractmethod
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Obs:
        """Free-running samples of p(x | z, h): latents (N, ...) to observations (N, *shape)."""

    def initialise(self, batch: SequenceBatch, generator: torch.Generator | None = None) -> None:
        """Set what depends on data, from a first (B, T) batch, before the first update."""

    @abstractmethod
    def frame_nats(
        self, obs: Obs, latent: Latent, generator: torch.Generator | None = None
    ) -> Tensor:
        """-log p(x | z, h) of observations (N, *shape) given latents (N, ...): (N,) nats.

        Squared error is summed over intensities in [0, 1]; a flow's bound draws from `generator`.
        """

    @abstractmethod
    def rates(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """What frames tell beyond the past, and what they tell at all, of N rows: (N,) nats each.

        The first is KL(q(z | x) || p(z | h)), the second KL(q(z | x) || p(z)), with the static
        prior of a plain VAE: uniform, or standard normal.
        """

    @abstractmethod
    def loss(
        self, batch: SequenceBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics, Latent]:
        """The negative evidence bound with reward and continue terms, per frame.

        Each term has one number for each row of the batch, (B, T). Beside the scalar loss are
        metrics as scalar tensors (nothing is synchronised), and the posterior latents (B, T, ...),
        detached, from which dreams may start.
        """


class ImageWorldModel(WorldModel):
    """A world model of images (H, W, C).

    Attributes:
        images: how they become levels, and back.
        image_shape: (C, H, W).
        levels: V, levels of a pixel in the model.
    """

    def __init__(
        self, observation_space: Space, action_space: Space, settings: WorldModelSettings
    ) -> None:
        """As `WorldModel`."""
        super().__init__(observation_space, action_space, settings)
        self.images = Images(observation_space, settings.decoder.levels)
        self.image_shape, self.levels = self.images.shape, self.images.levels

    def to_levels(self, obs: Tensor) -> Tensor:
        """The one way in: images (..., H, W, C) to integer levels (..., C, H, W) in [0, V)."""
        return self.images.to_levels(obs)

    def to_pixels(self, levels: Tensor) -> Tensor:
        """The one way out: levels (..., C, H, W) to images (..., H, W, C), each level's middle."""
        return self.images.to_pixels(levels)

    def doubt(self, batch: SequenceBatch) -> str:
        """As `WorldModel`."""
        return self.images.doubt(self.inputs(batch)[1])

    @abstractmethod
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Tensor:
        """As `WorldModel`: images (N, H, W, C)."""
