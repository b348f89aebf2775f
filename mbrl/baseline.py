"""The model-free baselines, run like every other agent: same command, same folder, same evaluation.

Stock RLlib algorithms (`agents.model_free`) on the same env section of the same config. The only
loop here is train, evaluate, checkpoint; steps are counted by the environment itself. A random
agent is the floor of every comparison.
"""

from typing import Any

import gymnasium as gym
import torch

from agents.model_free import ModelFree
from envs import make_env
from mbrl.acting import ActingPolicy, RandomPolicy
from mbrl.actors import start_ray
from mbrl.errors import ConfigError
from mbrl.evaluate import EvalResult, evaluate
from mbrl.run.run import Run
from mbrl.seeding import seed


def train(run: Run) -> dict[str, Any]:
    """Run, or resume, a baseline to its end.

    Returns:
        What `result.json` holds.

    Raises:
        SystemExit: with code 0, after a checkpoint, when a signal asked the run to stop.
    """
    config = run.config
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    probe = make_env(config.env)
    observation_space, action_space = probe.observation_space, probe.action_space
    probe.close()  # type: ignore[no-untyped-call]
    if config.agent == "random":
        run.env_steps = config.env_steps
        return run.finish(
            _judge(run, RandomPolicy(action_space, seed(config.seed, "random")), True)
        )
    start_ray(config)
    try:
        agent = _make_agent(run, observation_space, action_space)
    except ValueError as error:
        raise ConfigError(f"agent: {error}") from error
    try:
        if run.resumed is not None:
            agent.set_state(run.resumed["agent"])
        run.heed_signals()
        evaluated = saved = run.env_steps
        while run.env_steps < config.env_steps and not run.stopping:
            run.progress.update(phase="learn")
            step = min(config.env_steps, _next_multiple(run.env_steps, config.evaluate.every_steps))
            metrics = agent.learn(min(step - run.env_steps, config.run.checkpoint_every_steps))
            run.env_steps = agent.env_steps
            run.spend(collected_steps=metrics.pop("env_steps"))
            run.log.write("train", run.env_steps, {f"policy/{k}": v for k, v in metrics.items()})
            run.progress.update(env_steps=run.env_steps)
            done = run.env_steps >= config.env_steps
            if not done and _crossed(evaluated, run.env_steps, config.evaluate.every_steps):
                evaluated = run.env_steps
                _judge(run, agent.policy(), last=False)
            if (
                done
                or run.stopping
                or _crossed(saved, run.env_steps, config.run.checkpoint_every_steps)
            ):
                saved = run.env_steps
                run.save({"agent": agent.get_state()})
        if run.env_steps < config.env_steps:
            raise SystemExit(0)
        return run.finish(_judge(run, agent.policy(), last=True))
    finally:
        agent.close()


def _make_agent(
    run: Run, observation_space: gym.Space[Any], action_space: gym.Space[Any]
) -> ModelFree:
    config = run.config
    return ModelFree(
        config.agent,
        getattr(config, config.agent),
        lambda: make_env(config.env),
        observation_space,
        action_space,
        seed(config.seed, "baseline"),
        num_env_runners=config.collect.num_collectors,
    )


def _judge(run: Run, policy: ActingPolicy, last: bool) -> EvalResult:
    settings = run.config.evaluate
    run.progress.update(phase="evaluate")
    result = evaluate(
        policy,
        run.config.env,
        settings.final_episodes if last else settings.episodes,
        settings.seed,
        settings.num_envs,
        settings.explore,
    )
    run.record_evaluation(result, run.env_steps)
    return result


def _next_multiple(steps: int, every: int) -> int:
    return (steps // every + 1) * every


def _crossed(before: int, now: int, every: int) -> bool:
    return now // every > before // every
