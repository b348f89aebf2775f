"""Evaluation: an exact number of episodes on the real environment, with seeds fixed in advance.

The same function judges dream agents and baselines. Episode i always starts from the same seed,
every episode counts exactly once, and none is dropped for being long, so short (bad) episodes
cannot crowd out long ones. An episode that does not end by itself is cut after a number of steps;
it counts with what it has earned by then, and the result says how many were cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs import EnvError, EnvSettings, VectorEnv
from mbrl.acting import ActingPolicy
from mbrl.config.schema import MAX_EVALUATION_STEPS, Config
from mbrl.errors import CollectError, Stopped
from mbrl.seeding import seed

_RESTARTS = 3  # crashes in a row, over all slots, before an evaluation gives up


@dataclass(frozen=True)
class EvalResult:
    """Scores of each episode, in the order of their seeds."""

    returns: list[float]  # undiscounted, unclipped
    lengths: list[int]  # steps
    seeds: list[int]
    cut: int = 0  # episodes among them that were cut as too long

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation over episodes."""
        return float(np.std(self.returns))

    def as_dict(self) -> dict[str, object]:
        """What a run's `result.json` keeps."""
        summary = {"episodes": len(self.returns), "mean": self.mean, "std": self.std}
        return {**summary, **vars(self)}


def evaluate(
    policy: ActingPolicy,
    env: EnvSettings,
    episodes: int,
    root_seed: int,
    num_envs: int,
    explore: bool = True,
    *,
    max_episode_steps: int = MAX_EVALUATION_STEPS,
    stop: Callable[[], bool] = lambda: False,
) -> EvalResult:
    """Play exactly `episodes` episodes, episode i from the seed of (root_seed, "evaluate", i).

    An episode whose environment crashes is played again from its own seed.

    Args:
        policy: acts; it is reset first.
        env: the real environment.
        episodes: how many.
        root_seed: seed of the evaluation, the same for every agent that is compared.
        num_envs: slots stepped together; the result of a deterministic policy is the same for all.
        explore: sample the policy's actions instead of taking the most likely.
        max_episode_steps: an episode that is still open after so many is cut.
        stop: asked before every step whether to give up.

    Raises:
        Stopped: `stop` said so.
        CollectError: an environment keeps crashing or broke its promises; an evaluation with
            missing episodes is not one.
    """
    following = width = min(num_envs, episodes)
    vector = VectorEnv(env, width, max_restarts=_RESTARTS)
    seeds = [seed(root_seed, "evaluate", i) for i in range(episodes)]
    returns, lengths = [0.0] * episodes, [0] * episodes
    playing, cut = list(range(width)), 0
    try:
        for slot in range(width):
            vector.reset(slot, seeds[slot])
        policy.reset(width)
        is_first = np.ones(width, np.bool_)
        while any(episode >= 0 for episode in playing):
            if stop():
                raise Stopped
            result = vector.step(policy.act(vector.obs, is_first, explore))
            ended = result.terminateds | result.truncateds
            for slot, episode in enumerate(playing):
                if result.crashed[slot]:
                    if episode >= 0:
                        returns[episode], lengths[episode] = 0.0, 0
                    vector.reset(slot, seeds[max(episode, 0)])
                elif episode >= 0:
                    returns[episode] += float(result.rewards[slot])
                    lengths[episode] += 1
                    if lengths[episode] >= max_episode_steps and not ended[slot]:
                        cut, ended[slot] = cut + 1, True
                if ended[slot]:
                    more = episode >= 0 and following < episodes
                    playing[slot] = following if more else -1
                    # a slot with nothing left to play idles on a seed that is already counted
                    vector.reset(slot, seeds[following] if more else seeds[0])
                    following += int(more)
            is_first = ended | result.crashed
    except EnvError as error:
        raise CollectError(f"evaluate: expected every episode to finish, but {error}") from error
    finally:
        vector.close()
    return EvalResult(returns, lengths, seeds, cut)


def judge(
    policy: ActingPolicy,
    config: Config,
    *,
    final: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> EvalResult:
    """Evaluate as a run's config says; the last evaluation of a run has episodes of its own.

    Raises:
        Stopped: `stop`, asked before every step, said so.
        CollectError: an environment keeps crashing or broke its promises.
    """
    settings = config.evaluate
    return evaluate(
        policy,
        config.env,
        settings.final_episodes if final else settings.episodes,
        settings.seed,
        settings.num_envs,
        settings.explore,
        max_episode_steps=settings.max_episode_steps,
        stop=stop,
    )
