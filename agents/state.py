"""What RLlib's objects hold, as nested dicts of tensors and back, so that it fits in a checkpoint.

RLlib's own checkpoints leave replay buffers out, and pickles would not be safe to read. Everything
is copied to the CPU. Knows nothing of algorithms.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor, nn

State = dict[str, Any]
"""Nested dict with string keys and tensors, numbers or strings as leaves."""


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's weights."""
    return {name: weight.detach().cpu().clone() for name, weight in module.state_dict().items()}


def adam_of(learner: Any) -> State:
    """Copies of the moments in a learner's Adams, by weight: `3`, or `1/3` in the second Adam."""
    return {
        f"{prefix}{index}": {name: value.detach().cpu().clone() for name, value in of_one.items()}
        for prefix, optimizer in _optimizers(learner)
        for index, of_one in optimizer.state_dict()["state"].items()
    }


def load_adam(learner: Any, moments: State) -> None:
    """Put `adam_of` back."""
    for prefix, optimizer in _optimizers(learner):
        groups = optimizer.state_dict()["param_groups"]
        numbers = (index for group in groups for index in group["params"])
        state = {i: dict(moments[key]) for i in numbers if (key := f"{prefix}{i}") in moments}
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _optimizers(learner: Any) -> list[tuple[str, torch.optim.Optimizer]]:
    """A learner's optimizers, and what comes before the numbers of their weights."""
    found = learner.get_optimizers_for_module(DEFAULT_MODULE_ID)
    return [(f"{place}/" if place else "", one) for place, (_, one) in enumerate(found)]


def pack_episodes(episodes: Any) -> dict[str, Tensor]:
    """Episodes of a replay buffer as flat tensors.

    Returns:
        `obs` (sum of steps + 1 per episode, ...), `actions` and `rewards` (sum of steps), and per
        episode `steps`, `terminated`, `truncated`. Empty if there are no episodes.
    """
    begun = [episode for episode in episodes if len(episode) > 0]
    if not begun:
        return {}

    def joined(name: str) -> Tensor:
        rows = [np.stack([np.asarray(x) for x in getattr(e, name)()]) for e in begun]
        return torch.from_numpy(np.concatenate(rows))

    return {
        "obs": joined("get_observations"),
        "actions": joined("get_actions"),
        "rewards": joined("get_rewards").to(torch.float32),
        "steps": torch.tensor([len(e) for e in begun]),
        "terminated": torch.tensor([bool(e.is_terminated) for e in begun]),
        "truncated": torch.tensor([bool(e.is_truncated) for e in begun]),
    }


def unpack_episodes(
    packed: dict[str, Tensor], observation_space: gym.Space[Any], action_space: gym.Space[Any]
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
