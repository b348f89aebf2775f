"""What every world model is: four methods, and how frames and actions come in and out.

`loss` trains all of it on real sequences; `observe` follows real environments, one step or whole
sequences at a time; `imagine_step` rolls the prior without observations; `decode` makes pictures.
The model knows nothing of policies, of replay or of where its batches come from. The time
convention is `SequenceBatch`'s, the symbols of shapes are in `mbrl.world_model`.

The layout says what code and state are: maps (`mbrl.world_model.grid`) or vectors
(`mbrl.world_model.flat`). Nobody outside knows which is used; `mbrl.world_model.layouts` builds it.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from mbrl.actions import ActionCodec, ActionVector
from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.world_model.latent import ImaginedStep, Latent, Observed
from mbrl.world_model.settings import WorldModelSettings

Metrics = dict[str, Tensor]
Space = spaces.Space[np.ndarray]


class WorldModel(nn.Module, ABC):
    """Joint model of frames, rewards and endings: p(x, r, c | z, h) p(z | h) with q(z | x).

    Attributes:
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
        self.image_shape, self.high = _image_of(observation_space)
        self.levels = settings.decoder.levels or (2 if self.high == 1 else 16)
        if self.levels > self.high + 1:
            raise ConfigError(
                f"world_model.decoder.levels: expected at most {self.high + 1}, the number of "
                f"values a pixel takes here, got {self.levels}"
            )
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

    def inputs(self, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """What `observe` takes of (B, T) sequences, on the model's device."""
        prev_action, obs, is_first = (
            torch.as_tensor(part, device=self.device)
            for part in (batch.prev_action, batch.obs, batch.is_first)
        )
        return prev_action, obs, is_first

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
        obs: Tensor,
        is_first: Tensor,
        generator: torch.Generator | None = None,
    ) -> Observed:
        """Follow N real environments for one step, or B of them for T steps.

        Args:
            latent: (N, ...) after the step before, of `initial` or of this method; after sequences
                `observed.latent.last`. Ignored where `is_first`.
            prev_action: that led to `obs`, flat (`mbrl.actions`): (N, ...) or (B, T, ...). Ignored
                likewise.
            obs: (N, H, W, C) or (B, T, H, W, C) uint8.
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
    def decode(self, latent: Latent, generator: torch.Generator | None = None) -> Tensor:
        """Free-running samples of p(x | z, h): latents (N, ...) to uint8 images (N, H, W, C)."""

    def initialise(self, batch: SequenceBatch, generator: torch.Generator | None = None) -> None:
        """Set what depends on data, from a first (B, T) batch, before the first update."""

    @abstractmethod
    def frame_nats(
        self, obs: Tensor, latent: Latent, generator: torch.Generator | None = None
    ) -> Tensor:
        """-log p(x | z, h) of frames (N, H, W, C) uint8 given latents (N, ...): (N,) nats.

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


def _image_of(space: Space) -> tuple[tuple[int, int, int], int]:
    """The shape (C, H, W) and the largest value of images."""
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
        raise ConfigError(
            f"world model: expected uint8 images (H, W, C) as observations, got {space}; wrap the "
            f"environment so that it returns images"
        )
    height, width, channels = space.shape
    return (channels, height, width), int(space.high.max())
