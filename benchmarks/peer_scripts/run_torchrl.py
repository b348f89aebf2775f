"""TorchRL's DreamerV3: the example that its wheel carries, with the settings in `torchrl.yaml`.

Batches of 16 x 64, dreams of 15 steps. Both parts start the example's own `main`. Speed: its first
update is caught, and on that batch its world model's loss, gradient and step are timed alone, and
then its whole update; dreams with what is learned from them are the difference. Score: the example
ends by its own time limit.
"""

import json
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from game import judge
from omegaconf import OmegaConf
from task import Parts, Task, answer, clock, clocked, numbers, rates
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl_game import plain_game

EXAMPLE = Path(sysconfig.get_path("purelib"), "sota-implementations", "dreamer_v3")
sys.path.insert(0, str(EXAMPLE))
import train as example  # noqa: E402

HORIZON = 15


class Caught(BaseException):
    """Ends the example's loop at its first update."""


def config_of(task: Task, **optimization: Any) -> Any:
    """The example's settings on the task's game."""
    config = OmegaConf.load(Path(__file__).with_name("torchrl.yaml"))
    config.env.factory_kwargs = {"id": task.game, "frames": task.frames}
    config.env.seed = task.seed
    config.env["pixels_key" if task.frames == "image" else "vector_key"] = "observation"
    config.optimization.train_ratio = task.train_ratio
    config.optimization.update(optimization)
    return config


def keep_learner() -> list[Any]:
    """A list that will hold what the example builds."""
    built: list[Any] = []
    build = example._build_learner

    def kept(*arguments: Any, **settings: Any) -> Any:
        built.append(build(*arguments, **settings))
        return built[-1]

    example._build_learner = kept
    return built


def speed(task: Task) -> dict[str, Any]:
    """Replayed rows, dreamt steps, and dreamt steps with learning, per second."""
    built, caught = keep_learner(), list[Any]()
    stepper_of = example._make_learner_update

    def catching(*arguments: Any, **settings: Any) -> Any:
        stepper = stepper_of(*arguments, **settings)
        update = stepper.step

        def step(_: Any, sample: Any) -> Any:
            caught.extend((stepper, update, sample.clone()))
            raise Caught

        stepper.step = step
        return stepper

    example._make_learner_update = catching
    config = config_of(task, max_time=600.0)
    with suppress(Caught):
        example.main(config)
    stepper, update, sample = caught
    dreams = stepper.loss_module.actor_loss.model_based_env
    rollout, dreamt = dreams.rollout, list[float]()

    def timed(*arguments: Any, **settings: Any) -> Any:
        start = clock()
        found = rollout(*arguments, **settings)
        dreamt.append(clock() - start)
        return found

    dreams.rollout = timed
    rows = sample.numel()

    def model_alone() -> None:
        prepared = stepper._prepare_sample(sample)
        losses, _ = stepper.loss_module.model_loss(prepared)
        stepper.optimizer.zero_grad(set_to_none=False)
        total = sum(loss.sum() for name, loss in losses.items() if name.startswith("loss_"))
        total.backward()
        stepper.optimizer.step()

    def work() -> Parts:
        alone = clocked(model_alone)
        whole = clocked(lambda: update(None, sample.clone()))
        steps = rows * HORIZON
        return {
            "replayed_frames_per_s": (rows, alone),
            "imagined_steps_per_s": (steps, whole - alone),
            "dreamt_steps_per_s": (steps, dreamt[-1]),
        }

    learner = built[0]
    actor_and_critic = (stepper.loss_module.actor_loss.actor_model, learner.value_loss)
    return {
        **rates(work, task.seconds),
        "parameters": numbers(learner.world_model, *actor_and_critic),
        "world_model_parameters": numbers(learner.world_model),
        "batch": list(sample.shape),
        "horizon": HORIZON,
    }


def score(task: Task) -> dict[str, Any]:
    """Train for the given minutes, then play."""
    built = keep_learner()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "metrics.jsonl"
        config = config_of(task, max_time=60 * task.minutes)
        config.logger.metrics_jsonl = str(log)
        start = time.monotonic()
        example.main(config)
        wall = time.monotonic() - start
        summary = [json.loads(line) for line in log.read_text().splitlines()][-1]
    actor, state = built[0].real_world_actor.eval(), {}

    @torch.no_grad()
    def act(obs: Any, first: bool, sample: bool) -> int:
        if first:
            nothing = {
                "state": example.latent_state_dim(config),
                "belief": config.networks.rnn_hidden_dim,
                "previous_action": env.action_space.n,
            }
            state.update({name: torch.zeros(size) for name, size in nothing.items()})
        seen = TensorDict({"observation": torch.as_tensor(obs), **state}, [])
        seen["is_init"] = torch.tensor([first])
        kind = ExplorationType.RANDOM if sample else ExplorationType.DETERMINISTIC
        with set_exploration_type(kind):
            done = actor(seen)
        state.update({name: done["next", name] for name in state})
        return int(done["action"].float().argmax(-1))

    env = plain_game(task.game, task.frames)
    rows = config.replay_buffer.batch_size * config.replay_buffer.seq_len
    return {
        "score": judge(env, task.episodes, act),
        "env_steps": int(summary["total_action_steps"]),
        "replayed_rows": int(summary["updates"]) * rows,
        "wall_s": round(wall, 1),
    }


if __name__ == "__main__":
    answer(speed, score)
