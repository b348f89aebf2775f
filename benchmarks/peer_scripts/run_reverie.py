"""This project, at the sizes of one of its configs.

Speed: `WorldModelLearner.learn` and `DreamPPO.learn` as a run calls them, on synthetic rows. Score:
`mbrl.train` until the time is up. Nothing is evaluated or filmed on the way.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from game import cells, judge, make_game
from gymnasium import spaces
from task import Parts, Task, answer, clock, numbers, rates

import mbrl
from agents.dream_ppo import DreamPPO
from benchmarks.synthetic import moving_square
from mbrl.config.schema import Config, load
from mbrl.imagine import DreamEnv
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore

ROWS = 4000
ACTIONS = 6


def config_of(task: Task, *changes: str) -> Config:
    """The task's config."""
    return load(task.settings["config"], [*task.settings.get("changes", ()), *changes])


def frames_of(task: Task) -> tuple[tuple[int, int, int], int]:
    """Shape and highest value of the frames."""
    return (cells(task.game), 1) if task.frames == "game" else ((64, 64, 3), 255)


def speed(task: Task) -> dict[str, Any]:
    """Replayed rows, dreamt steps, and dreamt steps with learning, per second."""
    config, (shape, high) = config_of(task), frames_of(task)
    actions: spaces.Discrete[Any] = spaces.Discrete(ACTIONS)
    with tempfile.TemporaryDirectory() as folder:
        store = ReplayStore(Path(folder), "peers")
        store.commit(moving_square(ROWS, shape, 0, high=high, actions=ACTIONS), "bench", ROWS)
        learner = WorldModelLearner(
            spaces.Box(0, high, shape, np.uint8),
            actions,
            config.world_model,
            config.learn_model,
            store,
            2 * ROWS,
            None,
            config.seed,
        )
        learner.refresh()
        policy = DreamPPO(
            config.policy,
            learner.model.feature_size,
            actions,
            seed=0,
            feature_map=learner.model.feature_map,
        )
        rows = learner.batch_size * config.learn_model.sequence_length
        generator = torch.Generator().manual_seed(0)

        def work() -> Parts:
            start = clock()
            _, starts = learner.learn(1)
            spent = clock() - start
            dreams = config.policy.dreams
            dream = DreamEnv(learner.model, actions, starts, dreams, generator)
            start, by_day = clock(), time.perf_counter()
            learned = policy.learn(dream, 1)
            took, by_day = clock() - start, time.perf_counter() - by_day
            steps, rollout = learned["dream_steps"], learned["rollout_s"] / by_day
            return {
                "replayed_frames_per_s": (rows, spent),
                "imagined_steps_per_s": (steps, took),
                "dreamt_steps_per_s": (steps, took * rollout),
            }

        found: dict[str, Any] = dict(rates(work, task.seconds))
        world_model, whole = numbers(learner.model), numbers(learner.model, policy.module)
    return {
        **found,
        "parameters": whole,
        "world_model_parameters": world_model,
        "batch": [learner.batch_size, config.learn_model.sequence_length],
        "horizon": config.policy.horizon,
    }


def score(task: Task) -> dict[str, Any]:
    """Train for the given minutes, then play."""
    with tempfile.TemporaryDirectory() as folder:
        never = 10**9
        config = config_of(
            task,
            f"env.id={task.game}",
            f"seed={task.seed}",
            f"env_steps={never}",
            f"evaluate.every_steps={never}",
            f"run.checkpoint_every_steps={never}",
            f"run.dir={folder}/run",
            "run.video=false",
            "run.tensorboard=false",
            "device=cpu",
        )
        start = time.monotonic()
        deadline = start + 60 * task.minutes
        spent: dict[str, float] = {}

        def watch(run: Any) -> None:
            spent.update(run.budget, env_steps=run.env_steps)
            if time.monotonic() > deadline and not run.stopping:
                run.request_stop()

        try:
            mbrl.train(config, watch)
        except SystemExit:  # asked to stop, after a checkpoint
            wall = time.monotonic() - start
        agent = mbrl.open_run(f"{folder}/run").agent()
        return {
            "score": judge(
                make_game(task.game, "game"),
                task.episodes,
                lambda obs, first, sample: agent.act(obs, first, explore=sample),
            ),
            "env_steps": int(spent["env_steps"]),
            "replayed_rows": int(spent["replayed_rows"]),
            "wall_s": round(wall, 1),
        }


if __name__ == "__main__":
    mbrl.quiet_libraries()
    answer(speed, score)
