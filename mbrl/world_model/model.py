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

from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.streams import Stream, columns_of, streams_of
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
        self.discrete = isinstance(action_space, spaces.Discrete)
        self.action_size = _action_size(action_space)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def foresight(self) -> list[nn.Module]:
        """The parts that say what comes next: the dynamics and the prior."""

    # -- conversions ------------------------------------------------------------------------------

    def action_vector(self, action: Tensor) -> Tensor:
        """One-hot for a discrete action (...,), the action itself for a continuous one (..., A)."""
        if self.discrete:
            return nn.functional.one_hot(action.long(), self.action_size).float()
        return action.float()

    def inputs(self, batch: SequenceBatch) -> tuple[Tensor, Obs, Tensor]:
        """What `observe` takes of (B, T) sequences, on the model's device."""
        prev_action = torch.as_tensor(batch.prev_action, device=self.device)
        is_first = torch.as_tensor(batch.is_first, device=self.device)
        columns = {
            column: torch.as_tensor(values, device=self.device)
            for column, values in columns_of(batch.obs).items()
        }
        return prev_action, columns["obs"] if columns.keys() == {"obs"} else columns, is_first

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
            prev_action: that led to `obs`: (N,) or (N, A), (B, T) or (B, T, A). Ignored likewise.
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
    """A world model of uint8 images (H, W, C).

    Attributes:
        image_shape: (C, H, W).
        high: the largest value of a pixel.
        levels: V, intensity levels of a pixel in the model.
    """

    def __init__(
        self, observation_space: Space, action_space: Space, settings: WorldModelSettings
    ) -> None:
        """As `WorldModel`."""
        super().__init__(observation_space, action_space, settings)
        self.image_shape, self.high = _image_of(observation_space)
        values = self.high + 1
        self.levels = settings.decoder.levels or (2 if self.high == 1 else min(16, values))
        if self.levels > values:
            raise ConfigError(
                f"world_model.decoder.levels: expected at most {values}, the number of values a "
                f"pixel takes here, got {self.levels}"
            )

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

    @abstractmethod
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Tensor:
        """As `WorldModel`: uint8 images (N, H, W, C)."""


def _image_of(space: Space) -> tuple[tuple[int, int, int], int]:
    """The shape (C, H, W) and the largest value of images."""
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
        raise ConfigError(
            f"world model: expected uint8 images (H, W, C) as observations, got {space}; wrap the "
            f"environment so that it returns images"
        )
    height, width, channels = space.shape
    return (channels, height, width), int(space.high.max())


def _action_size(space: Space) -> int:
    """The size A of an action as a vector."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    raise ConfigError(
        f"world model: expected a Discrete or one-dimensional Box action space, got {space}"
    )
