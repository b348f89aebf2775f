"""The peer: RLlib's own DreamerV3, updated through its own Learner, with a watch on its parts.

In goes nothing; out come seconds. One update is what RLlib's training step does between two env
steps: sample (B, T) = (16, 64) rows from its replay buffer, train the world model on them, dream 15
steps from every row, train actor and critic on the dreams. `Watch` adds up the time of the dreams
and of what is learned from them, so that the world model can be compared with a world model and the
dream with a dream. Nothing of RLlib's computation is changed.

Size XS, the smallest of the paper (Hafner et al., arXiv:2301.04104, table B), RLlib's default.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from mbrl.episode import Episode

B, T, HORIZON = 16, 64, 15
ROWS = B * T
DREAMED_STEPS = ROWS * HORIZON
ACTIONS = 6

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ray.rllib.algorithms.dreamerv3 import DreamerV3Config
    from ray.rllib.algorithms.dreamerv3.torch.dreamerv3_torch_learner import DreamerV3TorchLearner
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.policy.sample_batch import SampleBatch
    from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
    from ray.rllib.utils.numpy import one_hot
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer


@dataclass
class Watch:
    """Seconds spent in named parts since the last `clear`, by a clock of one's choice."""

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        start = self.clock()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + self.clock() - start


class _TimedLoss:
    """A loss whose backward pass is timed."""

    def __init__(self, loss: Tensor, watch: Watch) -> None:
        self.loss, self.watch = loss, watch

    def backward(self, **kwargs: Any) -> None:
        with self.watch.on("policy"):
            self.loss.backward(**kwargs)


class TimedLearner(DreamerV3TorchLearner):
    """RLlib's learner; `watch.seconds` has "dream" and "policy" (actor and critic) apart."""

    def build(self) -> None:
        """Build as RLlib does, then put the watch around the dreams."""
        super().build()
        self.watch = Watch()
        model = self.module[DEFAULT_MODULE_ID].unwrapped().dreamer_model
        dream = model.dream_trajectory

        def timed(**kwargs: Any) -> Any:
            with self.watch.on("dream"):
                return dream(**kwargs)

        model.dream_trajectory = timed

    def _compute_value_targets(self, **kwargs: Any) -> Any:
        with self.watch.on("policy"):
            return super()._compute_value_targets(**kwargs)

    def _compute_critic_loss(self, **kwargs: Any) -> Any:
        with self.watch.on("policy"):
            return super()._compute_critic_loss(**kwargs)

    def _compute_actor_loss(self, **kwargs: Any) -> Any:
        with self.watch.on("policy"):
            return super()._compute_actor_loss(**kwargs)

    def compute_gradients(self, loss_per_module: Any, **kwargs: Any) -> Any:
        """As RLlib, with the backward passes of actor and critic on the watch."""
        for name in ("ACTOR", "CRITIC"):
            self._temp_losses[name] = _TimedLoss(self._temp_losses[name], self.watch)
        return super().compute_gradients(loss_per_module, **kwargs)


class DreamerV3Peer:
    """A DreamerV3 with its replay buffer full of the given episodes (64 x 64 x 3)."""

    def __init__(
        self,
        episodes: list[Episode],
        batch_size: int = B,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Build the learner in this process and fill its buffer.

        Args:
            episodes: of 64 x 64 x 3 frames.
            batch_size: sequences per update; the default is RLlib's.
            clock: what time is measured with.
        """
        self.batch_size = batch_size
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # notices about API stacks
        space = gym.spaces.Box(-1.0, 1.0, episodes[0].obs.shape[1:], np.float32)
        actions: gym.spaces.Discrete[Any] = gym.spaces.Discrete(ACTIONS)
        config = DreamerV3Config().training(
            model_size="XS", batch_size_B=batch_size, batch_length_T=T, horizon_H=HORIZON
        )
        config.learners(learner_class=TimedLearner, num_learners=0)
        spaces = {DEFAULT_MODULE_ID: (space, actions)}
        self.learner: Any = config.build_learner(spaces=spaces)  # which builds it, once
        self.watch: Watch = self.learner.watch
        self.watch.clock = clock
        self.buffer = EpisodeReplayBuffer(capacity=sum(e.rows for e in episodes) + 1)
        for episode in episodes:
            self.buffer.add(_rllib_episode(episode, space, actions))

    @property
    def parameters(self) -> dict[str, int]:
        """Weights of the world model, and of actor and critic (without the critic's copy)."""
        module = self.learner.module[DEFAULT_MODULE_ID].unwrapped()
        return {
            "world_model": count(module.world_model.parameters()),
            "policy": count(module.actor.parameters()) + count(module.critic.mlp.parameters()),
        }

    def update(self) -> dict[str, float]:
        """One update; seconds of "all", "world_model", "dream" and "policy" (after the dream)."""
        self.watch.seconds.clear()
        start = self.watch.clock()
        sample = self.buffer.sample(batch_size_B=self.batch_size, batch_length_T=T)
        sample["actions_ints"] = sample["actions"]
        sample["actions"] = one_hot(sample["actions_ints"], depth=ACTIONS)
        self.learner.update(
            batch=SampleBatch(sample).as_multi_agent(),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
        )
        spent = self.watch.clock() - start
        parts = dict(self.watch.seconds)
        return {**parts, "all": spent, "world_model": spent - parts["dream"] - parts["policy"]}


def count(parameters: Iterator[Tensor]) -> int:
    """Numbers in all tensors."""
    return sum(p.numel() for p in parameters)


def _rllib_episode(
    episode: Episode, space: gym.Space[Any], actions: gym.Space[Any]
) -> SingleAgentEpisode:
    frames = episode.obs.astype(np.float32) / 128.0 - 1.0  # as RLlib's NormalizedImageEnv
    return SingleAgentEpisode(
        id_=episode.eps_id,
        observation_space=space,
        action_space=actions,
        observations=list(frames),
        actions=list(episode.actions[:-1]),
        rewards=list(episode.rewards[:-1]),
        terminated=True,
        len_lookback_buffer=0,
    )
