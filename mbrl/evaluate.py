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
    apart: bool = False,
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
        apart: give each environment a process of its own.

    Raises:
        Stopped: `stop` said so.
        CollectError: an environment keeps crashing or broke its promises; an evaluation with
            missing episodes is not one.
    """
    width = min(num_envs, episodes)
    vector = VectorEnv(env, width, max_restarts=_RESTARTS, apart=apart)
    course = _Course([seed(root_seed, "evaluate", i) for i in range(episodes)], width)
    try:
        for slot in range(width):
            vector.reset(slot, course.seed(slot))
        policy.reset(width)
        is_first = np.ones(width, np.bool_)
        while course.going:
            if stop():
                raise Stopped
            result = vector.step(policy.act(vector.obs, is_first, explore))
            is_first = result.terminateds | result.truncateds | result.crashed
            for slot in range(width):
                if result.crashed[slot]:
                    course.begin_again(slot)
                elif course.step(slot, float(result.rewards[slot])) >= max_episode_steps:
                    course.cut += int(not is_first[slot])
                    is_first[slot] = True
                if is_first[slot]:
                    if not result.crashed[slot]:
                        course.turn(slot)
                    vector.reset(slot, course.seed(slot))
    except EnvError as error:
        raise CollectError(f"evaluate: expected every episode to finish, but {error}") from error
    finally:
        vector.close()
    return EvalResult(course.returns, course.lengths, course.seeds, course.cut)


class _Course:
    """Which episode each slot plays, and what every episode has scored.

    A slot with nothing left to play idles on a seed that is already counted.
    """

    def __init__(self, seeds: list[int], width: int) -> None:
        self.seeds, self.cut = seeds, 0
        self.returns, self.lengths = [0.0] * len(seeds), [0] * len(seeds)
        self._playing: list[int | None] = list(range(width))
        self._following = width

    @property
    def going(self) -> bool:
        """Whether an episode is still open."""
        return any(episode is not None for episode in self._playing)

    def seed(self, slot: int) -> int:
        """What the slot's episode begins from."""
        return self.seeds[self._playing[slot] or 0]

    def step(self, slot: int, reward: float) -> int:
        """Count a step; returns the steps of the slot's episode, 0 if the slot idles."""
        episode = self._playing[slot]
        if episode is None:
            return 0
        self.returns[episode] += reward
        self.lengths[episode] += 1
        return self.lengths[episode]

    def begin_again(self, slot: int) -> None:
        """Forget what the slot's episode has scored."""
        episode = self._playing[slot]
        if episode is not None:
            self.returns[episode], self.lengths[episode] = 0.0, 0

    def turn(self, slot: int) -> None:
        """Go on to the next episode, if the slot plays and one is left."""
        more = self._playing[slot] is not None and self._following < len(self.seeds)
        self._playing[slot] = self._following if more else None
        self._following += int(more)


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
        apart=config.collect.apart,
    )
