"""Who chooses actions in a real environment: what a Collector and `evaluate` ask of a policy.

`RandomPolicy` gathers the first data; `LatentPolicy` acts on (z, h); `Explorers` lets the first act
in some slots of the second. Baselines bring an object of their own, so that every agent is
collected and evaluated by the same code.
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

    @property
    def version(self) -> int: ...  # noqa: D102

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
        self.took(action)
        return action

    def took(self, action: Array) -> None:
        """Take these actions (E, ...) for those that were taken, whoever chose them."""
        self.prev_action = torch.as_tensor(flat(action), device=self.device)

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


class Explorers:
    """A policy, and random actions in a share of the slots for as long as these earn more.

    A policy that has not found out what pays never shows the world model how it comes about, and
    stays as it is: of Freeway's 4,096 first steps one would be paid. How to explore is each slot's
    own (Horgan et al., arXiv:1803.00933). What the policy earns per step is a mean over the last
    fragments, ten or so; random actions do not change, so theirs is over all that were taken.
    """

    def __init__(self, policy: LatentPolicy, random: RandomPolicy, share: float) -> None:
        """Let `random` act in the first slots, a share of them, and `policy` in the others."""
        self.policy, self.random, self.share = policy, random, share
        self.earned = {"policy": np.zeros(2), "random": np.zeros(2)}  # rewards, steps

    @property
    def version(self) -> int:
        """The policy's."""
        return self.policy.version

    @property
    def exploring(self) -> bool:
        """Whether a step at random earned more than one of the policy."""
        (policy, steps), (random, random_steps) = self.earned["policy"], self.earned["random"]
        return bool(random * steps > policy * random_steps)

    def tell(self, rewards: Array, steps: int, at_random: int) -> None:
        """Count what a fragment earned.

        Args:
            rewards: (E,) of each slot, summed.
            steps: of each slot.
            at_random: so many slots, the first, acted at random.
        """
        count = len(rewards)
        self.earned["random"] += (rewards[:at_random].sum(), at_random * steps)
        if at_random < count:
            self.earned["policy"] *= 0.9
            self.earned["policy"] += (rewards[at_random:].sum(), (count - at_random) * steps)

    def slots(self, count: int) -> int:
        """How many of so many slots act at random now."""
        return round(self.share * count) if self.exploring else 0

    def reset(self, num_envs: int) -> None:
        """Forget everything but what was earned."""
        self.policy.reset(num_envs)
        self.random.reset(self.slots(num_envs))

    def act(self, obs: Any, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """As `ActingPolicy`; the policy follows all slots, whoever acts."""
        action = self.policy.act(obs, is_first, explore)
        if at_random := self.slots(len(is_first)):
            action = action.copy()
            action[:at_random] = self.random.act(obs, is_first[:at_random], explore)
            self.policy.took(action)
        return action

    def state_dict(self) -> dict[str, Any]:
        """Memory of the policy and what both earned; `random` is saved by its owner."""
        earned = {name: both.copy() for name, both in self.earned.items()}
        return {"policy": self.policy.state_dict(), "earned": earned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.earned = {name: both.copy() for name, both in state["earned"].items()}
