"""RLlib's episodes as flat tensors and back, so that a replay buffer fits in a checkpoint.

RLlib leaves replay buffers out of its own checkpoints, and pickles would not be safe to read. This
module knows the episode class and nothing of algorithms.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode


def pack_episodes(episodes: Any) -> dict[str, torch.Tensor]:
    """Episodes of a replay buffer as flat tensors.

    Returns:
        `obs` (sum of steps + 1 per episode, ...), `actions` and `rewards` (sum of steps), and per
        episode `steps`, `terminated`, `truncated`. Empty if there are no episodes.
    """
    kept = [episode for episode in episodes if len(episode) > 0]
    if not kept:
        return {}

    def joined(name: str) -> torch.Tensor:
        rows = [np.stack([np.asarray(x) for x in getattr(e, name)()]) for e in kept]
        return torch.from_numpy(np.concatenate(rows))

    return {
        "obs": joined("get_observations"),
        "actions": joined("get_actions"),
        "rewards": joined("get_rewards").to(torch.float32),
        "steps": torch.tensor([len(e) for e in kept]),
        "terminated": torch.tensor([bool(e.is_terminated) for e in kept]),
        "truncated": torch.tensor([bool(e.is_truncated) for e in kept]),
    }


def unpack_episodes(
    packed: dict[str, torch.Tensor],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
) -> list[SingleAgentEpisode]:
    """The inverse of `pack_episodes`. Episodes that were still running stay without an ending."""
    if not packed:
        return []
    steps = packed["steps"].tolist()
    obs = packed["obs"].split([n + 1 for n in steps])
    actions, rewards = packed["actions"].split(steps), packed["rewards"].split(steps)
    return [
        SingleAgentEpisode(
            observations=list(obs[i].numpy()),
            actions=list(actions[i].numpy()),
            rewards=[float(r) for r in rewards[i]],
            terminated=bool(packed["terminated"][i]),
            truncated=bool(packed["truncated"][i]),
            observation_space=observation_space,
            action_space=action_space,
            len_lookback_buffer=0,
        )
        for i in range(len(steps))
    ]
