"""check_env: does an environment keep its promises, and can Reverie use it?

In: settings. Out: an `EnvReport` with what was seen over some steps of random play, every broken
promise (`problems`: the environment is wrong) and every limit of ours (`limits`: the environment is
fine, Reverie cannot handle it yet), one sentence each. `mbrl check-env` prints it. It refuses to
repair anything.
"""

import functools
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from envs.errors import EnvError, told
from envs.make import make_env
from envs.settings import EnvSettings

MOST_PROBLEMS = 10
COMPARED_STEPS = 300

Trace = list[tuple[int, float, bool, bool]]
"""Per step, what must be equal under one seed: fingerprint, reward, terminated, truncated."""


@dataclass(frozen=True, kw_only=True)
class EnvReport:
    """What `check_env` saw."""

    name: str  # id or factory
    applied: dict[str, Any]  # preprocessing settings in force, family defaults filled in
    observation_space: str
    action_space: str
    wrappers: tuple[str, ...]  # class names, outermost first, the environment itself last
    steps: int  # random steps taken for the measurements below
    steps_per_second: float  # of one environment in this process, resets included, checks not
    same_in_two_copies: bool  # two environments with one seed and the same actions agree exactly
    same_after_reuse: bool  # a used environment, reset with a seed, equals a new one
    reward_range: tuple[float, float]  # smallest and largest seen; (nan, nan) if none was
    episode_lengths: tuple[int, ...]  # steps of each finished episode
    episode_returns: tuple[float, ...]  # summed rewards of each finished episode
    problems: tuple[str, ...]  # promises that the environment broke
    limits: tuple[str, ...]  # what Reverie cannot handle, and the way out

    @property
    def ok(self) -> bool:
        """True if no promise is broken and nothing is beyond us."""
        return not self.problems and not self.limits


def check_env(settings: EnvSettings, steps: int = 1_000, seed: int = 0) -> EnvReport:
    """Play `steps` random steps and look; `COMPARED_STEPS` at most are played twice more.

    The seed is of the first episode and of the actions; later episodes count up from it. Broken
    promises are in the report, not raised.

    Raises:
        EnvError: the environment cannot be made at all, or `steps` is not positive.
    """
    if steps < 1:
        raise EnvError(f"check-env --steps: expected at least 1, got {steps}")
    env, copy = make_env(settings), make_env(settings)
    compared = min(steps, COMPARED_STEPS)
    try:
        first = _play(env, seed, steps)
        reused = _play(env, seed, compared)
        second = _play(copy, seed, compared)
        problems = list(dict.fromkeys(first.problems + reused.problems + second.problems))
        expected = first.trace[:compared]
        others = {"two copies with one seed": second, "a used environment after reset": reused}
        for who, other in others.items():
            if other.trace != expected:
                problems.append(_difference(who, expected, other.trace))
        rewards = [reward for _, reward, _, _ in first.trace] or [float("nan")]
        return EnvReport(
            name=settings.name,
            applied=settings.applied(),
            observation_space=str(env.observation_space),
            action_space=str(env.action_space),
            wrappers=_chain(env),
            steps=len(first.trace),
            steps_per_second=len(first.trace) / max(first.seconds, 1e-9),
            same_in_two_copies=second.trace == expected,
            same_after_reuse=reused.trace == expected,
            reward_range=(min(rewards), max(rewards)),
            episode_lengths=tuple(first.lengths),
            episode_returns=tuple(first.returns),
            problems=tuple(problems[:MOST_PROBLEMS]),
            limits=describe_limits(env),
        )
    finally:
        env.close()  # type: ignore[no-untyped-call]
        copy.close()  # type: ignore[no-untyped-call]


def describe_limits(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """What Reverie cannot handle about an environment that `make_env` made, and the way out.

    At most one sentence is about observations and one about actions.
    """
    sentences = (_limit_of_observations(env.observation_space), _limit_of_actions(env.action_space))
    return tuple(f"{sentence}." for sentence in sentences if sentence)


def format_report(report: EnvReport) -> str:
    """The report as lines for a terminal, without a final newline."""
    lengths = report.episode_lengths
    smallest, largest = report.reward_range
    episodes = "none ended"
    if lengths:
        episodes = (
            f"{len(lengths)} ended, {min(lengths)} to {max(lengths)} steps, "
            f"mean return {np.mean(report.episode_returns):.3g} at random"
        )
    same = {True: "same episode", False: "DIFFERENT EPISODES"}
    rows = [
        ("environment", report.name),
        ("settings", ", ".join(f"{name}={value}" for name, value in report.applied.items())),
        ("observations", report.observation_space),
        ("actions", report.action_space),
        ("wrappers", " < ".join(report.wrappers)),
        ("speed", f"{report.steps_per_second:,.0f} steps/s over {report.steps:,} steps"),
        ("same seed", same[report.same_in_two_copies]),
        ("after reuse", same[report.same_after_reuse]),
        ("rewards", "none seen" if np.isnan(smallest) else f"{smallest:g} to {largest:g}"),
        ("episodes", episodes),
        *(("problem", sentence) for sentence in report.problems),
        *(("limit", sentence) for sentence in report.limits),
        ("verdict", "ready" if report.ok else "see problems and limits above"),
    ]
    return "\n".join(f"{label:<13}{text}" for label, text in rows)


@dataclass
class _Played:
    """One random play."""

    trace: Trace = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0  # in the environment itself

    def timed(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a method of the environment returns."""
        begin = time.perf_counter()
        result = call(*args, **kwargs)
        self.seconds += time.perf_counter() - begin
        return result


def _play(env: gym.Env[Any, Any], seed: int, steps: int) -> _Played:
    """Play `steps` random steps, or until the environment raises or breaks the step format."""
    played = _Played()
    env.action_space.seed(seed)
    length, total = 0, 0.0
    try:
        obs, _ = played.timed(env.reset, seed=seed)
        fingerprint = _fingerprint(obs)
        played.problems += _obs_problems(env.observation_space, obs, "reset()")
        for _ in range(steps):
            result = played.timed(env.step, env.action_space.sample())
            problems = _step_problems(env.observation_space, result)
            played.problems += [text for text in problems if text not in played.problems]
            if not isinstance(result, tuple) or len(result) != 5:
                break
            obs, reward, terminated, truncated, _ = result
            fingerprint = _chained(fingerprint, obs)
            number = float(np.float64(reward))
            played.trace.append((fingerprint, number, bool(terminated), bool(truncated)))
            length, total = length + 1, total + number
            if terminated or truncated:
                played.lengths.append(length)
                played.returns.append(total)
                length, total = 0, 0.0
                obs, _ = played.timed(env.reset, seed=seed + len(played.lengths))
                fingerprint = _chained(fingerprint, obs)
    except Exception as error:
        step = len(played.trace)
        played.problems.append(f"At step {step} it raised {told(error)}.")
    return played


def _step_problems(space: gym.Space[Any], result: Any) -> list[str]:
    """Promises of `step` that one result breaks."""
    if not isinstance(result, tuple) or len(result) != 5:
        return [
            f"step() must return (obs, reward, terminated, truncated, info), got {result!r:.100}."
        ]
    obs, reward, terminated, truncated, info = result
    problems = _obs_problems(space, obs, "step()")
    if np.ndim(reward) != 0 or not np.issubdtype(np.asarray(reward).dtype, np.number):
        problems.append(f"The reward must be one number, got {reward!r:.100}.")
    elif not np.isfinite(reward):
        problems.append(f"The reward must be finite, got {reward}.")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            problems.append(f"{name} must be a bool, got {type(flag).__name__}.")
    if not isinstance(info, dict):
        problems.append(f"info must be a dict, got {type(info).__name__}.")
    return problems


def _obs_problems(space: gym.Space[Any], obs: Any, source: str) -> list[str]:
    """How an observation differs from its space."""
    if not isinstance(space, Box) or not isinstance(obs, np.ndarray):
        if not isinstance(space, Box) and space.contains(obs):
            return []
        return [f"{source} returned a {type(obs).__name__} that is not in the observation space."]
    if obs.shape != space.shape or obs.dtype != space.dtype:
        return [
            f"{source} must return observations of shape {space.shape} and dtype "
            f"{space.dtype}, got {obs.shape} and {obs.dtype}."
        ]
    if not space.contains(obs):
        return [f"{source} returned an observation outside the bounds of its space."]
    return []


def _fingerprint(obs: Any) -> int:
    """A number that changes with any part of an observation, nested ones included."""
    if isinstance(obs, dict):
        obs = tuple(obs[key] for key in sorted(obs))
    if isinstance(obs, tuple | list):
        return functools.reduce(_chained, obs, 0)
    data = obs.encode() if isinstance(obs, str) else np.ascontiguousarray(obs).tobytes()
    return zlib.crc32(data)


def _chained(fingerprint: int, obs: Any) -> int:
    """The fingerprint of everything before `obs`, and of `obs`."""
    return zlib.crc32(_fingerprint(obs).to_bytes(4, "big"), fingerprint)


def _difference(who: str, expected: Trace, got: Trace) -> str:
    """Where two plays part."""
    pairs = zip(expected, got, strict=False)
    step = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    return (
        f"The same seed and actions gave another episode in {who}, from step {step} on: "
        f"evaluation with fixed seeds will not repeat."
    )


def _chain(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """Class names from the outermost wrapper to the environment."""
    names = []
    while isinstance(env, gym.Wrapper):
        names.append(type(env).__name__)
        env = env.env
    return (*names, type(env).__name__)


def _limit_of_observations(space: gym.Space[Any]) -> str:
    """What we cannot handle about observations, or nothing."""
    if isinstance(space, gym.spaces.Dict):
        got = f"a Dict of {', '.join(space)}"
        way = "we handle one image, so pick or combine entries with a wrapper in an env.factory"
    elif not isinstance(space, Box):
        got = type(space).__name__
        way = "we handle one uint8 image, so convert them with a wrapper in an env.factory"
    elif len(space.shape) == 1:
        got = f"a vector of {space.shape[0]} numbers"
        way = "the world model reads images (H, W, C) so far"
    elif len(space.shape) not in (2, 3):
        got = f"arrays of {len(space.shape)} axes, {space.shape}"
        way = (
            "we handle images (H, W, C), so drop frame stacks and merge other axes into channels "
            "in an env.factory"
        )
    elif space.dtype != np.uint8:
        got = f"{space.dtype} arrays of shape {space.shape}"
        way = "we handle uint8 images (0 to 255), so scale and round them in an env.factory"
    elif space.shape[0] <= 4 and space.shape[2] > 4:
        got = f"of shape {space.shape}, which looks channel-first"
        way = "we handle (H, W, C), so transpose them in an env.factory"
    else:
        return ""
    return f"Observations are {got}; {way}"


def _limit_of_actions(space: gym.Space[Any]) -> str:
    """What we cannot handle about actions, or nothing."""
    if isinstance(space, Discrete) and space.start == 0:
        return ""
    if isinstance(space, Discrete):
        got = f"counted from {space.start}"
        way = "we count from 0, so shift them with gymnasium.wrappers.TransformAction"
    elif not isinstance(space, Box):
        got = type(space).__name__
        way = "we handle one Discrete or one Box, so flatten them with a wrapper"
    elif len(space.shape) != 1 or space.dtype not in (np.float32, np.float64):
        got = f"{space.dtype} arrays of shape {space.shape}"
        way = "we handle vectors of floats, so reshape them"
    elif not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        got = "without finite bounds"
        way = "we need them, so rescale with gymnasium.wrappers.RescaleAction"
    else:
        return ""
    return f"Actions are {got}; {way} in an env.factory"
