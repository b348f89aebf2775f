"""The dream is an environment: a world model rolled without observations, from real starts.

`DreamEnv` is the fast face of it (a `TensorEnv` of `agents.dream_learner`, tensors only, on the
model's device); `DreamVectorEnv` is the same dream as a `gymnasium.vector.VectorEnv`, so that any
stock algorithm can train in it unchanged. No pixels are ever made here.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from envs.actions import from_step
from mbrl.actions import flat
from mbrl.errors import TrainingError
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import WorldModel

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class DreamEnv:
    """N dreams at once, whose observations are features of size `obs_dim`, F.

    `latent` is of the N dreams now, for whoever wants to look at them.
    """

    def __init__(
        self,
        world_model: WorldModel,
        action_space: spaces.Space[np.ndarray],
        starts: Latent,
        num_envs: int,
        generator: torch.Generator,
    ) -> None:
        """Dream from `starts` (M, ...), real posterior latents that are not terminal.

        Raises:
            TrainingError: there is nothing to start from.
        """
        if len(starts.hidden) == 0:
            raise TrainingError("dream: expected at least one real latent to start from, got none")
        self.world_model, self.action_space, self.starts = world_model, action_space, starts
        self.num_envs, self.obs_dim, self.generator = num_envs, world_model.feature_size, generator
        self.device = starts.hidden.device
        self.latent = starts[:0]

    @property
    def features(self) -> Tensor:
        """What the policy sees of the N dreams now, (N, F)."""
        return self.world_model.features(self.latent)

    def reset(self) -> Tensor:
        """Draw N starts, with replacement; returns features (N, F)."""
        size = (self.num_envs,)
        count = len(self.starts.hidden)
        picked = torch.randint(count, size, generator=self.generator, device=self.device)
        self.latent = self.starts[picked]
        return self.features

    def share(self, index: int, count: int) -> "DreamEnv":
        """Part `index` of `count` equal parts, with a random stream drawn anew at every call."""
        drawn = torch.randint(2**31, (), generator=self.generator, device=self.device)
        generator = torch.Generator(self.device).manual_seed(int(drawn))
        starts = self.starts[index::count]
        size = self.num_envs // count
        return DreamEnv(self.world_model, self.action_space, starts, size, generator)

    def to(self, device: torch.device) -> "DreamEnv":
        """The same dreams on another device; this one if it is there already.

        The world model is moved, not copied: meant for a process that was sent the dream.
        """
        if self.device.type == device.type:
            return self
        generator = torch.Generator(device).manual_seed(self.generator.initial_seed())
        model = self.world_model.to(device)
        return DreamEnv(model, self.action_space, self.starts.to(device), self.num_envs, generator)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Imagine one step of all dreams: features (N, F), reward (N,), continue_prob (N,), {}."""
        imagined = self.world_model.imagine_step(self.latent, action, self.generator)
        self.latent = imagined.latent
        return self.features, imagined.reward, imagined.continue_prob, {}


class DreamVectorEnv(gymnasium.vector.VectorEnv[Floats, Any, Any]):
    """The gymnasium face of a dream.

    A dream terminates when a coin with the model's continue probability says so and is truncated
    after `horizon` steps. What follows is up to the autoreset mode, as in gymnasium: with NEXT_STEP
    the step after either is the reset, whose action is ignored and whose reward is zero; with
    SAME_STEP the same step already shows the next dream's start, and `final_obs` of the infos where
    the last one ended; with DISABLED the dreams that ended must be reset with a `reset_mask`.

    Attributes:
        feature_map: (rows, columns, maps) if an observation is flattened maps, as in the grid
            layout, so that a network may lay it out again; None if it is a plain vector.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        dream: DreamEnv,
        horizon: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Dream on; a mode may be given by its value, such as "SameStep".

        Raises:
            ValueError: there is no such mode.
        """
        self.dream, self.horizon = dream, horizon
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        modes = {"autoreset_mode": self.autoreset_mode}
        self.metadata = {**self.metadata, **modes}  # type: ignore[misc]
        self.num_envs = dream.num_envs
        self.feature_map = dream.world_model.feature_map
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (dream.obs_dim,), np.float32)
        self.single_action_space = dream.action_space
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, self.num_envs)
        self.action_space = batch(self.single_action_space, self.num_envs)
        self.age = np.zeros(self.num_envs, np.int64)
        self.done = np.zeros(self.num_envs, np.bool_)
        self._begun = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start new dreams: all N, or those that `options["reset_mask"]`, (N,) bool, picks.

        A seed, of several the first, makes all that follows repeatable.

        Raises:
            ValueError: the mask is of another kind or picks nothing.
            ResetNeeded: the very first reset leaves dreams out.
        """
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = self._checked(options["reset_mask"])
        if not (self._begun or mask.all()):
            raise ResetNeeded("Cannot reset some of the dreams before all of them were reset")
        number = seed[0] if isinstance(seed, list) else seed
        super().reset(seed=number)
        if number is not None:
            self.dream.generator.manual_seed(number)
        self._restart(mask)
        return self._features(), {}

    def step(self, actions: Any) -> tuple[Floats, Floats, Bools, Bools, dict[str, Any]]:
        """Imagine one step of the dreams that go on, and restart those whose turn it is.

        Raises:
            ResetNeeded: there was no reset yet, or with DISABLED a dream that ended was not reset.
        """
        disabled = self.autoreset_mode is AutoresetMode.DISABLED
        if not self._begun or (disabled and self.done.any()):
            which = np.flatnonzero(self.done).tolist() if self._begun else "all"
            raise ResetNeeded(f"Cannot call env.step() before env.reset() of the dreams: {which}")
        dream, ended = self.dream, self.done.copy()
        stored = from_step(self.single_action_space, actions, self.num_envs)
        action = torch.as_tensor(flat(stored), device=dream.device)
        _, reward, continue_prob, _ = dream.step(action)
        coin = torch.rand(self.num_envs, generator=dream.generator, device=dream.device)
        terminated = (coin >= continue_prob).cpu().numpy() & ~ended
        rewards = np.where(ended, np.float32(0), reward.cpu().numpy()).astype(np.float32)
        self.age += 1
        self._restart(ended)
        truncated = (self.age >= self.horizon) & ~terminated & ~ended
        self.done = terminated | truncated
        obs, infos = self._features(), dict[str, Any]()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self.done.any():
            for i in np.flatnonzero(self.done).tolist():
                infos = self._add_info(infos, {"final_obs": obs[i], "final_info": {}}, i)
            self._restart(self.done)
            obs = self._features()
        return obs, rewards, terminated, truncated, infos

    def _features(self) -> Floats:
        return self.dream.features.cpu().numpy()

    def _restart(self, mask: Bools) -> None:
        """Draw new starts for the dreams that the mask picks, if any."""
        if not mask.any():
            return
        dream = self.dream
        going = dream.latent
        dream.reset()
        if not mask.all():
            picked = torch.as_tensor(mask, device=dream.device)
            dream.latent = Latent.where(picked, dream.latent, going)
        self.age = np.where(mask, 0, self.age)
        self.done = self.done & ~mask
        self._begun = True

    def _checked(self, mask: Any) -> Bools:
        """A reset mask, refused unless it is (N,) bool and picks at least one dream."""
        good = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not good or mask.shape != (self.num_envs,) or not mask.any():
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else repr(mask)
            raise ValueError(
                f"reset_mask: expected a numpy array ({self.num_envs},) of bool with at least one "
                f"True, got {got:.100}"
            )
        return mask
