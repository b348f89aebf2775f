"""Who chooses actions in a real environment: what a Collector and `evaluate` ask of a policy.

`RandomPolicy` gathers the first data; `LatentPolicy` acts on (z, h). Baselines bring an object of
their own, so that every agent is collected and evaluated by the same code.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from agents.numerics import restore_generator
from mbrl.actions import ActionCodec, flat, stored
from mbrl.episode import Obs
from mbrl.streams import Array, mapped
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import WorldModel


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

    def act(self, obs: Any, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """Choose one action per slot: observations of E slots, is_first (E,) to actions (E, ...).

        Observations are as `mbrl.streams` says: an array (E, *shape), or a dict of them by column.
        Actions are stored ones, as `mbrl.actions` calls them.
        """
        ...


class RandomPolicy:
    """Uniform actions, each held for a random while.

    How long is a draw of the zeta distribution, P(n) proportional to n ** -repeat: mostly one step,
    now and then very long, so that what takes many steps in one direction happens too (Dabney et
    al., arXiv:2006.01782).
    """

    def __init__(
        self, action_space: spaces.Space[np.ndarray], seed: int, repeat: float | None = None
    ) -> None:
        """Draw from `action_space` with a stream of its own; None takes a new action every step."""
        self.version = 0
        self.codec, self.repeat = ActionCodec(action_space), repeat
        self.rng = np.random.default_rng(seed)
        self.reset(0)

    def reset(self, num_envs: int) -> None:
        """Hold no action any more."""
        self.left = np.zeros(num_envs, np.int64)  # steps that each slot's action is still held for
        self.held = np.zeros((num_envs, *self.codec.shape), self.codec.dtype)

    def act(self, obs: Obs, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """Uniform over the choices, and between the bounds of a Box."""
        count = len(is_first)
        drawn = self.codec.sample(self.rng, count)
        if self.repeat is None:
            return drawn
        if len(self.left) != count:
            self.reset(count)
        new = (self.left <= 0) | is_first
        lengths = self.rng.zipf(self.repeat, count)
        drawn[~new] = self.held[~new]
        self.held = drawn
        self.left = np.where(new, lengths, self.left) - 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The random stream and what is held."""
        stream = self.rng.bit_generator.state
        return {"stream": stream, "left": self.left, "held": flat(self.held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.rng.bit_generator.state = state["stream"]
        self.left, self.held = state["left"], stored(state["held"], self.codec.dtype)


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
    def act(self, obs: Obs, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """One observe and one action for all slots in a single batch."""
        self.latent = self.world_model.observe(
            self.latent,
            self.prev_action,
            mapped(lambda part: torch.as_tensor(part, device=self.device), obs),
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
