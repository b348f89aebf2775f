"""RLlib's DreamerV3, size XS, batches of 16 x 64 and dreams of 15 steps, as RLlib sets them.

Speed: its own Learner on synthetic rows, with a watch on its parts (`benchmarks/rllib_dreamer.py`).
Score: its Algorithm, sampling and learning in this process. RLlib does one update per iteration at
least, so the asked-for ratio of replayed rows is reached by longer fragments.
"""

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from game import TimeIsUp, Watched, cells, judge, make_game, make_watched
from task import Parts, Task, answer, clock, rates

from benchmarks import rllib_dreamer
from benchmarks.rllib_dreamer import DREAMED_STEPS, HORIZON, ROWS, B, DreamerV3Peer, T
from benchmarks.synthetic import moving_square


def speed(task: Task) -> dict[str, Any]:
    """Replayed rows, dreamt steps, and dreamt steps with learning, per second."""
    actions = rllib_dreamer.ACTIONS
    shape = (64, 64, 3) if task.frames == "image" else cells(task.game)
    episodes = moving_square(2000, shape, seed=0, actions=actions)
    if task.frames == "vector":
        episodes = [replace(one, obs=one.obs.reshape(one.rows, -1)) for one in episodes]
    peer = DreamerV3Peer(episodes, clock=clock)

    def work() -> Parts:
        seconds = peer.update()
        return {
            "replayed_frames_per_s": (ROWS, seconds["world_model"]),
            "imagined_steps_per_s": (DREAMED_STEPS, seconds["dream"] + seconds["policy"]),
            "dreamt_steps_per_s": (DREAMED_STEPS, seconds["dream"]),
        }

    return {
        **rates(work, task.seconds),
        "parameters": sum(peer.parameters.values()),
        "world_model_parameters": peer.parameters["world_model"],
        "batch": [B, T],
        "horizon": HORIZON,
    }


class Centred(gym.ObservationWrapper[Any, Any, Any]):
    """Images in -1 to 1, as RLlib's own image environments give them."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap a game of uint8 images."""
        super().__init__(env)
        shape = env.observation_space.shape or ()
        self.observation_space = gym.spaces.Box(-1.0, 1.0, shape, np.float32)

    def observation(self, observation: Any) -> Any:
        """One image."""
        return observation.astype(np.float32) / 128.0 - 1.0


def score(task: Task) -> dict[str, Any]:
    """Train for the given minutes, then play."""
    import ray
    from ray.rllib.algorithms.dreamerv3 import DreamerV3Config
    from ray.tune.registry import register_env

    def face(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return Centred(env) if task.frames == "image" else env

    ray.init("local", include_dashboard=False, num_cpus=1, _node_ip_address="127.0.0.1")
    register_env("game", lambda _: face(make_watched(task.game, task.frames)))
    config = (
        DreamerV3Config()
        .environment("game")
        .env_runners(num_env_runners=0, rollout_fragment_length=max(1, ROWS // task.train_ratio))
        .training(model_size="XS", training_ratio=task.train_ratio)
        .learners(num_learners=0)
        .debugging(seed=task.seed)
    )
    config.min_time_s_per_iteration = 0
    start = time.monotonic()
    algorithm = config.build_algo()
    updates, deadline = 0, start + 60 * task.minutes
    Watched.deadline = deadline
    with suppress(TimeIsUp):
        while time.monotonic() < deadline:
            updates = int(algorithm.train()["num_grad_updates_lifetime"])
    wall, steps, Watched.deadline = time.monotonic() - start, Watched.steps, float("inf")
    model = algorithm.get_module().dreamer_model.eval()
    state: dict[str, Any] = {}

    @torch.no_grad()
    def act(obs: Any, first: bool, sample: bool) -> int:
        if first:
            begin = model.get_initial_state()
            state.update({name: value[None].float() for name, value in begin.items()})
        forward = model.forward_exploration if sample else model.forward_inference
        action, after = forward(
            observations=torch.as_tensor(obs)[None, None],  # (B, T, ...)
            previous_states=dict(state),
            is_first=torch.tensor([float(first)]),
        )
        state.update(after)
        return int(action.argmax(-1))

    return {
        "score": judge(face(make_game(task.game, task.frames)), task.episodes, act),
        "env_steps": steps,
        "replayed_rows": updates * ROWS,
        "wall_s": round(wall, 1),
    }


if __name__ == "__main__":
    answer(speed, score)
