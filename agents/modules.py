"""RLModules: the networks of the dream policy (`LatentModule`) and of the baselines (`PixelModule`).

Both are ordinary modules of RLlib's new API stack: they put out `action_dist_inputs` and implement
`ValueFunctionAPI`, so stock PPO can train either and stock env runners can act with either.
`LatentModule` sees features (N, F) and never pixels; `PixelModule` sees uint8 images (N, H, W, C) and
divides them by the space's upper bound itself, so that no float images travel between processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from agents.action_heads import make_head
from agents.returns import twohot_mean, value_bins
from agents.settings import DreamPolicySettings

VALUE_LOGITS = "value_logits"
"""Key of the critic's raw output (N, bins) or (N, 1) in what `forward_train` returns."""


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear, LayerNorm and SiLU per hidden width, then a linear layer that starts at zero."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU()]
        inputs = width
    last = nn.Linear(inputs, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class LatentModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """Actor and critic over features (N, F).

    `model_config` has the keys `hidden`, `critic`, `value_bins`, `value_limit` and `autocast`, with
    the meanings of `DreamPolicySettings`; `latent_spec` fills it. The last layers start at zero: the
    first policy is uniform (or a unit Gaussian) and the first values are zero.
    """

    def setup(self) -> None:
        """Build the networks; called by RLlib's constructor."""
        features = int(self.observation_space.shape[0])
        self.head = make_head(self.action_space)
        config: Mapping[str, Any] = self.model_config
        twohot = config["critic"] == "twohot"
        self.autocast = bool(config["autocast"])
        self.actor = mlp(features, config["hidden"], self.head.inputs)
        self.critic = mlp(features, config["hidden"], config["value_bins"] if twohot else 1)
        bins = value_bins(config["value_bins"], config["value_limit"]) if twohot else torch.empty(0)
        self.register_buffer("bins", bins, persistent=False)

    def policy(self, features: Tensor) -> Tensor:
        """Inputs of the action head, (N, head.inputs) float32."""
        return self._run(self.actor, features)

    def value_logits(self, features: Tensor) -> Tensor:
        """Raw critic output, (N, bins) or (N, 1) float32."""
        return self._run(self.critic, features)

    def value_of(self, value_logits: Tensor) -> Tensor:
        """Expected returns (N,) that raw critic output stands for."""
        if len(self.bins):
            return twohot_mean(value_logits, self.bins)
        return value_logits.squeeze(-1)

    def _run(self, net: nn.Sequential, features: Tensor) -> Tensor:
        if not self.autocast:
            out: Tensor = net(features.float())
            return out
        with torch.autocast(features.device.type, dtype=torch.bfloat16):
            out = net(features)
        return out.float()

    @torch.no_grad()
    def act(
        self, features: Tensor, *, explore: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions as the environment takes them.

        Args:
            features: (N, F).
            explore: sample if true, else take the most likely action.
            generator: source of the samples, on the device of `features`; None is torch's global.

        Returns:
            (N,) int64 for Discrete, (N, *shape) float32 for Box.
        """
        inputs = self.policy(features)
        if explore:
            noise = self.head.noise((len(features),), generator).to(inputs.device)
            return self.head.to_env(self.head.sample(inputs, noise))
        return self.head.to_env(self.head.mode(inputs))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # The critic runs here, not in `compute_values`, so that DDP sees one forward pass.
        obs = batch[Columns.OBS]
        return {
            Columns.ACTION_DIST_INPUTS: self.policy(obs),
            VALUE_LOGITS: self.value_logits(obs),
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Expected returns (N,) of the observations in `batch`."""
        return self.value_of(self.value_logits(batch[Columns.OBS]))


def latent_model_config(settings: DreamPolicySettings) -> dict[str, Any]:
    """The part of the settings that shapes the networks."""
    return settings.model_dump(
        include={"hidden", "critic", "value_bins", "value_limit", "autocast"}
    )


def latent_spec(
    settings: DreamPolicySettings,
    obs_dim: int,
    action_space: gym.Space,  # type: ignore[type-arg]
) -> RLModuleSpec:
    """How to build the `LatentModule` of these settings, in any process."""
    return RLModuleSpec(
        module_class=LatentModule,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32),
        action_space=action_space,
        model_config=latent_model_config(settings),
    )
