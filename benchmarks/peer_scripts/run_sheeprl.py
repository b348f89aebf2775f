"""SheepRL's DreamerV3, size XS, in its own training loop: batches of 16 x 64, dreams of 15 steps.

Both parts start `sheeprl`'s run with its own config, from which only the game, the number of
environments (one, as in its Atari 100k experiments) and the ratio of replayed rows differ; video,
logs and checkpoints are off. Speed: its functions `world_model_learning`, `behaviour_learning` and
`imagine` are timed where the loop calls them. Score: the loop goes on until the time is up.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from game import TimeIsUp, Watched, judge, make_game
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3 import dreamer_v3
from sheeprl.algos.dreamer_v3.utils import prepare_obs
from sheeprl.cli import check_configs, run_algorithm
from sheeprl.utils.utils import dotdict
from task import Task, answer, clock, numbers

B, T, HORIZON = 16, 64, 15
ROWS = B * T


def config_of(task: Task, folder: str) -> Any:
    """SheepRL's config of a run on the task's game."""
    seen, unseen, key = "cnn", "mlp", "rgb"
    if task.frames == "vector":
        seen, unseen, key = "mlp", "cnn", "state"
    changes = [
        "exp=dreamer_v3",
        "algo=dreamer_v3_XS",
        *(f"algo.{seen}_keys.{part}=[{key}]" for part in ("encoder", "decoder")),
        *(f"algo.{unseen}_keys.{part}=[]" for part in ("encoder", "decoder")),
        "algo.total_steps=1000000000",
        f"algo.replay_ratio={task.train_ratio / ROWS}",
        "algo.run_test=False",
        "env=dummy",
        f"env.id={task.game}",
        "env.wrapper._target_=game.make_watched",
        f"+env.wrapper.frames={task.frames}",
        "env.num_envs=1",
        "env.sync_env=True",
        "env.capture_video=False",
        "buffer.size=100000",
        "buffer.memmap=False",
        "buffer.checkpoint=False",
        "checkpoint.every=0",
        "checkpoint.save_last=False",
        "metric.log_level=0",
        f"seed={task.seed}",
        f"log_root={folder}",
        "run_name=run",
    ]
    with initialize_config_module("sheeprl.configs", version_base="1.3"):
        config = compose("config", changes)
    plain = dotdict(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    check_configs(plain)
    return plain


def run(task: Task, enough: Callable[[], bool]) -> tuple[dict[str, Any], dict[str, float]]:
    """SheepRL's run until `enough`, asked after every update, or until the time of the game is up.

    Returns:
        What it built (`fabric`, `agent`, `config`), and how often (`updates`) and for how long
        (seconds) each part worked, the first update not counted.
    """
    built: dict[str, Any] = {}
    spent = {"updates": 0.0, "model": 0.0, "behaviour": 0.0, "dream": 0.0}

    def timed(name: str, part: str) -> None:
        inner = getattr(dreamer_v3, name)

        def outer(*arguments: Any, **settings: Any) -> Any:
            start = clock()
            found = inner(*arguments, **settings)
            if spent["updates"]:
                spent[part] += clock() - start
            return found

        setattr(dreamer_v3, name, outer)

    build, train = dreamer_v3.build_agent, dreamer_v3.train

    def kept(fabric: Any, *arguments: Any, **settings: Any) -> Any:
        built.update(fabric=fabric, agent=build(fabric, *arguments, **settings))
        return built["agent"]

    def counted(*arguments: Any, **settings: Any) -> None:
        train(*arguments, **settings)
        spent["updates"] += 1
        if enough():
            raise TimeIsUp

    timed("world_model_learning", "model")
    timed("behaviour_learning", "behaviour")
    timed("imagine", "dream")
    dreamer_v3.build_agent, dreamer_v3.train = kept, counted
    with tempfile.TemporaryDirectory() as folder:
        built["config"] = config_of(task, folder)
        try:
            run_algorithm(built["config"])
        except TimeIsUp:
            return built, spent
    raise RuntimeError("expected SheepRL to train until it was stopped, but it ended by itself")


def speed(task: Task) -> dict[str, Any]:
    """Replayed rows, dreamt steps, and dreamt steps with learning, per second."""
    begun: list[float] = []

    def enough() -> bool:
        begun.append(clock())
        return len(begun) > 1 and begun[-1] - begun[0] > task.seconds

    built, spent = run(task, enough)
    world_model, actor, critic, _, _ = built["agent"]
    updates = spent["updates"] - 1
    return {
        "replayed_frames_per_s": updates * ROWS / spent["model"],
        "imagined_steps_per_s": updates * ROWS * HORIZON / spent["behaviour"],
        "dreamt_steps_per_s": updates * ROWS * HORIZON / spent["dream"],
        "parameters": numbers(world_model, actor, critic),
        "world_model_parameters": numbers(world_model),
        "batch": [B, T],
        "horizon": HORIZON,
    }


def score(task: Task) -> dict[str, Any]:
    """Train for the given minutes, then play."""
    start = time.monotonic()
    Watched.deadline = start + 60 * task.minutes
    built, spent = run(task, lambda: False)
    wall, steps = time.monotonic() - start, Watched.steps
    player, fabric, keys = built["agent"][-1], built["fabric"], built["config"].algo.cnn_keys
    key = "rgb" if task.frames == "image" else "state"

    @torch.no_grad()
    def act(obs: Any, first: bool, sample: bool) -> int:
        if first:
            player.init_states()
        frame = obs.transpose(2, 0, 1) if task.frames == "image" else obs
        seen = prepare_obs(fabric, {key: frame[None]}, cnn_keys=keys.encoder)
        return int(player.get_actions(seen, greedy=not sample)[0].argmax(-1))

    return {
        "score": judge(make_game(task.game, task.frames), task.episodes, act),
        "env_steps": steps,
        "replayed_rows": int(spent["updates"]) * ROWS,
        "wall_s": round(wall, 1),
    }


if __name__ == "__main__":
    answer(speed, score)
