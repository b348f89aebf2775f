"""RLModules: the networks of the dream policy (`LatentModule`) and the baselines (`PixelModule`).

Both are modules of RLlib's new API stack with `ValueFunctionAPI`. `LatentModule` sees features
(N, F) and never pixels; `PixelModule` sees uint8 images (N, H, W, C) and divides them by the
space's upper bound itself, so that no float images travel between processes.

What network outputs mean as actions is up to `agents.heads`.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from agents.heads import make_head
from agents.numerics import autocast, precision, symlog_bins, two_hot_mean
from agents.settings import MODULES, DreamPolicySettings

VALUE_LOGITS = "value_logits"
"""Key of the critic's raw output (N, bins) or (N, 1) in what `forward_train` returns."""


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero, so that the first policy is uniform."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear, LayerNorm and SiLU per hidden width, then a linear layer that starts at zero."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU()]
        inputs = width
    return nn.Sequential(*layers, zero_linear(inputs, outputs))


class MapTorso(nn.Module):
    """What actor and critic share of features that are maps: one convolution, flattened.

    It halves rows and columns, so that places are kept at a quarter of the cost.
    """

    def __init__(self, feature_map: tuple[int, int, int], maps: int) -> None:
        """Build for features (N, F) that are flattened maps (rows, columns, channels)."""
        super().__init__()
        self.shape = tuple(feature_map)
        rows, columns, channels = self.shape
        self.conv = nn.Conv2d(channels, maps, 3, stride=2, padding=1)
        self.size = maps * -(-rows // 2) * -(-columns // 2)
        self.norm = nn.LayerNorm(self.size)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) to (N, size)."""
        maps = self.conv(features.unflatten(-1, self.shape).permute(0, 3, 1, 2))
        return nn.functional.silu(self.norm(maps.permute(0, 2, 3, 1).flatten(1)))


class LatentModule(TorchRLModule, ValueFunctionAPI):
    """Actor and critic over features (N, F); `latent_spec` says how to build one.

    The last layers start at zero: the first policy is uniform (or a unit Gaussian) and the first
    values are zero.
    """

    def setup(self) -> None:
        """Build the networks; called by RLlib's constructor."""
        features = int(self.observation_space.shape[0])
        self.head = make_head(self.action_space)
        config: Mapping[str, Any] = self.model_config
        bins = torch.empty(0)
        if config["critic"] == "twohot":
            bins = symlog_bins(config["value_bins"], config["value_limit"])
        self.autocast = bool(config["autocast"])
        self.torso: nn.Module | None = None
        if config["feature_map"] is not None:
            self.torso = MapTorso(config["feature_map"], config["maps"])
            features = self.torso.size
        self.seen_size = features
        self.actor = mlp(features, config["hidden"], self.head.inputs)
        self.critic = mlp(features, config["hidden"], len(bins) or 1)
        self.register_buffer("bins", bins, persistent=False)

    def policy(self, features: Tensor) -> Tensor:
        """Inputs of the action head, (N, head.inputs) float32."""
        return self._run(self._seen(features, self.torso), self.actor)

    def acting(self, features: Tensor) -> Tensor:
        """The same, of what acts in real environments."""
        return self.policy(features)

    def value_logits(self, features: Tensor) -> Tensor:
        """Raw critic output, (N, bins) or (N, 1) float32."""
        return self._run(self._seen(features, self.torso), self.critic)

    def value_of(self, value_logits: Tensor) -> Tensor:
        """Expected returns (N,) that raw critic output stands for."""
        if len(self.bins):
            return two_hot_mean(value_logits, self.bins)
        return value_logits.squeeze(-1)

    def _seen(self, features: Tensor, torso: nn.Module | None) -> Tensor:
        """What actor and critic share: features (N, F) as they are, or what a torso makes."""
        features = features.to(precision(features.device, self.autocast))
        if torso is None:
            return features
        with autocast(features.device, self.autocast):
            seen: Tensor = torso(features)
        return seen

    def _run(self, seen: Tensor, net: nn.Sequential) -> Tensor:
        """A network, with its last layer in float32: values of actions may differ by little."""
        with autocast(seen.device, self.autocast):
            hidden: Tensor = net[:-1](seen)
        out: Tensor = net[-1](hidden.float())
        return out

    @torch.no_grad()
    def act(
        self, features: Tensor, *, explore: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions for features (N, F) as the environment takes them, sampled or the mode.

        They are as the head's `to_env` says. No generator is torch's own.
        """
        inputs = self.acting(features)
        if explore:
            noise = self.head.noise((len(features),), generator).to(inputs.device)
            return self.head.to_env(self.head.sample(inputs, noise))
        return self.head.to_env(self.head.mode(inputs))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # The critic runs here, not in `compute_values`, so that DDP sees one forward pass.
        seen = self._seen(batch[Columns.OBS], self.torso)
        return {
            Columns.ACTION_DIST_INPUTS: self._run(seen, self.actor),
            VALUE_LOGITS: self._run(seen, self.critic),
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Expected returns (N,) of the observations in `batch`."""
        return self.value_of(self.value_logits(batch[Columns.OBS]))


def latent_spec(
    settings: DreamPolicySettings,
    obs_dim: int,
    action_space: gym.Space[Any],
    feature_map: tuple[int, int, int] | None = None,
) -> RLModuleSpec:
    """How to build the `LatentModule` of these settings, in any process.

    Features are vectors (F,), or with a `feature_map` flattened maps (rows, columns, maps).
    """
    module, _, name = MODULES.get(settings.algorithm, f"{__name__}:LatentModule").partition(":")
    return RLModuleSpec(
        module_class=getattr(import_module(module), name),
        observation_space=gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32),
        action_space=action_space,
        model_config={
            "feature_map": feature_map,
            **settings.model_dump(
                include={
                    "hidden",
                    "maps",
                    "critic",
                    "value_bins",
                    "value_limit",
                    "autocast",
                    "epsilon",
                }
            ),
        },
    )


class PixelEncoder(nn.Module):
    """Observations to (N, dense) features: images by convolution, vectors by two dense layers.

    Images up to 20 pixels high get the MinAtar network (16 filters of 3x3, one dense layer; Young &
    Tian, arXiv:1903.03176), larger ones the strided one of DQN (Mnih et al. 2015). An image that is
    smaller than the filters' field gets a border of zeros.
    """

    def __init__(self, space: gym.spaces.Box, dense: int) -> None:
        """Build for a Box (H, W, C) with an upper bound, or (F,); else it is a ValueError."""
        super().__init__()
        self.images = len(space.shape) == 3
        if self.images:
            high = float(np.max(space.high))
            if not np.isfinite(high) or high <= 0:
                raise ValueError(f"expected an image space with a finite upper bound, got {space}")
            self.scale = 1.0 / high
            height, width, channels = space.shape
            side = min(height, width)
            if side <= 20:
                border = int(side < 3)
                convs: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=border), nn.ReLU()]
            else:
                border = int(side < 36)
                convs = [nn.Conv2d(channels, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2)]
                convs += [nn.ReLU(), nn.Conv2d(64, 64, 3, padding=border), nn.ReLU()]
            self.body = nn.Sequential(*convs, nn.Flatten())
            with torch.no_grad():
                flat = self.body(torch.zeros(1, channels, height, width)).shape[1]
        elif len(space.shape) == 1:
            self.scale = 1.0
            self.body = nn.Sequential(nn.Linear(space.shape[0], dense), nn.ReLU())
            flat = dense
        else:
            raise ValueError(f"expected observations (H, W, C) or (F,), got {space}")
        self.dense = nn.Sequential(nn.Linear(flat, dense), nn.ReLU())

    def forward(self, obs: Tensor) -> Tensor:
        """(N, H, W, C) of any number type, or (N, F), to (N, dense)."""
        if self.images:
            obs = obs.permute(0, 3, 1, 2)
        return self.dense(self.body(obs.float() * self.scale))


class PixelModule(TorchRLModule, ValueFunctionAPI):
    """PPO's actor and critic: one `PixelEncoder` of width `model_config["dense"]`, two layers."""

    def setup(self) -> None:
        """Build the networks; called by RLlib's constructor."""
        dense = int(self.model_config["dense"])
        self.head = make_head(self.action_space)
        self.encoder = PixelEncoder(self.observation_space, dense)
        self.actor = zero_linear(dense, self.head.inputs)
        self.critic = zero_linear(dense, 1)

    def policy(self, obs: Tensor) -> Tensor:
        """Inputs of the action head, (N, head.inputs)."""
        return self.actor(self.encoder(obs))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self.encoder(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.actor(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Expected returns (N,) of the observations in `batch`."""
        features = self.encoder(batch[Columns.OBS]) if embeddings is None else embeddings
        return self.critic(features).squeeze(-1)


class _Encoded(nn.Module):
    """`PixelEncoder` with the calling convention of RLlib's catalog encoders."""

    def __init__(self, net: PixelEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {ENCODER_OUT: self.net(batch[Columns.OBS])}


class PixelCatalog(DQNCatalog):
    """Gives RLlib's own DQN module the networks of `PixelModule`; the module itself is stock."""

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Discrete[Any],
        model_config_dict: dict[str, Any],
        view_requirements: Any = None,
    ) -> None:
        """Called by RLlib; `model_config_dict` has the key `dense`."""
        # The parent would look for a default convolution for this image size, and refuse 10x10.
        self.observation_space = observation_space
        self.action_space = action_space
        self.dense = int(model_config_dict["dense"])

    def build_encoder(self, framework: str) -> nn.Module:
        """Images to features."""
        return _Encoded(PixelEncoder(self.observation_space, self.dense))

    def build_af_head(self, framework: str) -> nn.Module:
        """Features to advantages, or to Q-values without the dueling streams."""
        # Not zero at first: RLlib's exploration takes a Q-value of exactly 0 for a masked action.
        return nn.Linear(self.dense, int(self.action_space.n))

    def build_vf_head(self, framework: str) -> nn.Module:
        """Features to the state's value."""
        return nn.Linear(self.dense, 1)

    def get_action_dist_cls(self, framework: str) -> type:
        """Categorical; RLlib takes its mode."""
        return TorchCategorical
