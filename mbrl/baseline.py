"""The model-free baselines, run like every other agent: same command, same folder, same evaluation.

Stock RLlib algorithms (`agents.model_free`) on the same env section of the same config. The only
loop here is train, evaluate, checkpoint; steps are counted by the environment itself. A random
agent is the floor of every comparison.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch

from agents.model_free import ModelFree
from envs.process import make_one
from mbrl.acting import ActingPolicy, RandomPolicy
from mbrl.cluster import start_ray
from mbrl.collect import spaces_of
from mbrl.errors import ConfigError, Stopped
from mbrl.evaluate import EvalResult, judge
from mbrl.flat_observations import FlatObservations, FlatPolicy, FlattenedEnv
from mbrl.run.run import Run
from mbrl.schedule import Every
from mbrl.seeding import seed


def train(run: Run, on_iteration: Callable[[Run], None] | None = None) -> dict[str, Any]:
    """Run, or resume, a baseline to its end, as `mbrl.train.train` does."""
    config = run.config
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    spaces = spaces_of(config.env, config.collect.apart)
    flat = FlatObservations.where_needed(spaces[0])

    def make() -> gym.Env[Any, Any]:
        env = make_one(config.env, config.collect.apart)
        return env if flat is None else FlattenedEnv(env, flat)

    def newest() -> ActingPolicy:
        return agent.policy() if flat is None else FlatPolicy(agent.policy(), flat)

    if config.agent == "random":
        run.env_steps = config.env_steps
        policy = RandomPolicy(spaces[1], seed(config.seed, "random"))
        return _finish(run, policy)
    start_ray(config)
    try:
        agent = ModelFree(
            config.agent,
            getattr(config, config.agent),
            make,
            spaces[0] if flat is None else flat.space,
            spaces[1],
            seed(config.seed, "baseline"),
            num_env_runners=config.collect.num_collectors,
        )
    except ValueError as error:
        raise ConfigError(f"agent: {error}") from error
    try:
        if run.resumed is not None:
            agent.set_state(run.resumed["agent"])
        run.handle_signals()
        evaluations = Every(config.evaluate.every_steps, last=run.env_steps)
        checkpoints = Every(config.run.checkpoint_every_steps, last=run.env_steps)
        owed = bool(run.resumed and run.resumed.get("owes_evaluation"))
        if owed and run.env_steps < config.env_steps:
            owed = not _evaluate(run, newest())
        while run.env_steps < config.env_steps and not run.stopping:
            _learn(run, agent, evaluations.next(run.env_steps))
            over = run.env_steps >= config.env_steps
            if not over and evaluations.due(run.env_steps):
                evaluations.done(run.env_steps)
                owed = not _evaluate(run, newest())
            if on_iteration is not None:
                on_iteration(run)
            if over or run.stopping or checkpoints.due(run.env_steps):
                checkpoints.done(run.env_steps)
                run.save({"agent": agent.get_state(), "owes_evaluation": owed})
        if run.env_steps < config.env_steps:
            raise SystemExit(0)
        return _finish(run, newest())
    finally:
        agent.close()


def _learn(run: Run, agent: ModelFree, until: int) -> None:
    """Learn until the next evaluation or for as long as between two checkpoints."""
    config = run.config
    run.progress.update(phase="learn")
    steps = min(config.env_steps, until) - run.env_steps
    metrics = agent.learn(min(steps, config.run.checkpoint_every_steps))
    run.env_steps = agent.env_steps
    run.spend(collected_steps=metrics.pop("env_steps"))
    run.log.write("train", run.env_steps, {f"policy/{k}": v for k, v in metrics.items()})
    run.progress.update(env_steps=run.env_steps)


def _evaluate(run: Run, policy: ActingPolicy) -> bool:
    """Judge a policy on the way; False if a request to stop cut that short, and it is owed."""
    try:
        _judge(run, policy)
    except Stopped:
        return False
    return True


def _finish(run: Run, policy: ActingPolicy) -> dict[str, Any]:
    """Judge the last policy and write the result; before it everything was saved."""
    try:
        return run.finish(_judge(run, policy, final=True))
    except Stopped:
        raise SystemExit(0) from None


def _judge(run: Run, policy: ActingPolicy, *, final: bool = False) -> EvalResult:
    run.progress.update(phase="evaluate")
    result = judge(policy, run.config, final=final, stop=lambda: run.stopping)
    run.record_evaluation(result, run.env_steps)
    return result
