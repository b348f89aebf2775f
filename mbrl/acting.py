"""Who chooses actions in a real environment: what a Collector and `evaluate` ask of a policy.

`RandomPolicy` gathers the first data; `LatentPolicy` acts on (z, h). Baselines bring an object of
their own, so that every agent is collected and evaluated by the same code.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from agents.numerics import restore_generator
from mbrl.actions import ActionCodec, flat
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import WorldModel

Array = NDArray[np.generic]


class ActsOnFeatures(Protocol):
    """A policy network, as `agents.modules.LatentModule`."""

    def act(
        self, features: torch.Tensor, *, explore: bool, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Features (N, F) to flat actions (N, ...), on the CPU."""
        ...


class ActingPolicy(Protocol):
    """Acts for E environment slots at once and keeps whatever memory it needs, slot by slot."""

    version: int

    def reset(self, num_envs: int) -> None:
        """Forget everything and prepare for that many slots."""

    def act(self, obs: Array, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """Choose one action per slot: obs (E, *obs_shape), is_first (E,) to actions (E, ...).

        They are stored ones, as `mbrl.actions` calls them.
        """
        ...


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, action_space: spaces.Space[np.ndarray], seed: int) -> None:
        """Draw from `action_space` with a stream of its own."""
        self.version = 0
        self.codec = ActionCodec(action_space)
        self.rng = np.random.default_rng(seed)

    def reset(self, num_envs: int) -> None:
        """Nothing to forget."""

    def act(self, obs: Array, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """Uniform over the choices, and between the bounds of a Box."""
        return self.codec.sample(self.rng, len(obs))


class LatentPolicy:
    """Follows the real environment in latent space and acts there."""

    def __init__(
        self,
        world_model: WorldModel,
        newest: Callable[[], ActsOnFeatures],
        action_space: spaces.Space[np.ndarray],
        seed: int,
        device: torch.device,
    ) -> None:
        """Act with the network that `newest` returns, on the CPU, on features made on `device`."""
        self.version, self.action_space = 0, action_space
        self.codec = ActionCodec(action_space)
        self.world_model, self.newest, self.device = world_model, newest, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.action_generator = torch.Generator().manual_seed(seed + 1)
        self.reset(0)

    def reset(self, num_envs: int) -> None:
        """Start every slot from the empty latent."""
        self.latent = self.world_model.initial(num_envs, self.device)
        self.prev_action = self.codec.zeros(num_envs, self.device)

    @torch.no_grad()
    def act(self, obs: Array, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """One observe and one action for all slots in a single batch."""
        self.latent = self.world_model.observe(
            self.latent,
            self.prev_action,
            torch.as_tensor(obs, device=self.device),
            torch.as_tensor(is_first, device=self.device),
            self.generator,
        ).latent
        features = self.world_model.features(self.latent).cpu()
        drawn = self.newest().act(features, explore=explore, generator=self.action_generator)
        action = self.codec.store(drawn)
        self.prev_action = torch.as_tensor(flat(action), device=self.device)
        return action

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Memory of the slots and the random stream; the weights are saved by their owners."""
        return {
            "hidden": self.latent.hidden,
            "code": self.latent.code,
            **self.latent.memory,
            "prev_action": self.prev_action,
            "generator": self.generator.get_state(),
            "action_generator": self.action_generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        memory = {name: state[name].to(self.device) for name in self.latent.memory}
        hidden, code = state["hidden"].to(self.device), state["code"].to(self.device)
        self.latent = Latent(hidden, code, memory)
        self.prev_action = state["prev_action"].to(self.device)
        restore_generator(self.generator, state["generator"])
        restore_generator(self.action_generator, state["action_generator"])
