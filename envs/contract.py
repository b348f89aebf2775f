"""check_env: does an environment keep its promises?

In: settings. Out: an `EnvReport` with what was seen over some steps of random play, every broken
promise (`problems`: the environment is wrong), one sentence each. `mbrl check-env` prints it, line
by line, and then lets the settings of a run decide what Reverie can handle (`mbrl.check_env`). It
refuses to repair anything.
"""

import contextlib
import copy
import functools
import math
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import EnvError, told
from envs.make import assumed, layers
from envs.process import make_one
from envs.promises import Promise
from envs.settings import EnvSettings
from envs.spaces import columns_of_space, values_of

MOST_PROBLEMS = 10
COMPARED_STEPS = 300
PLAYED, COMPARED = 0.3, 0.5
"""Shares of the time after which the longest play, and the plays compared with it, end."""

_SAME = {True: "same episode", False: "DIFFERENT EPISODES"}

Trace = list[tuple[int, float, bool, bool]]
"""Per step, what must be equal under one seed: fingerprint, reward, terminated, truncated."""


class Watch:
    """How long a check may take, and what it does now, for whoever has to end one that hangs.

    Attributes:
        seconds: how long it may take.
        doing: what is being done, in words, and for how long already.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds, self._began = seconds, time.monotonic()
        self._doing = ("the start", self._began)

    def begin(self, what: str) -> None:
        """Say what is being done from now on."""
        self._doing = (what, time.monotonic())

    @property
    def doing(self) -> tuple[str, float]:
        """What is being done, in words, and for how many seconds already."""
        what, since = self._doing
        return what, time.monotonic() - since

    def over(self, share: float = 1.0) -> bool:
        """Whether that share of the time has passed."""
        return time.monotonic() - self._began > share * self.seconds

    @property
    def left(self) -> float:
        """Seconds that remain."""
        return self._began + self.seconds - time.monotonic()


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
    notes: tuple[str, ...]  # what is worth knowing and is no fault
    lines: tuple[str, ...]  # all of this, as `say` heard it

    @property
    def ok(self) -> bool:
        """True if no promise is broken."""
        return not self.problems


def check_env(
    settings: EnvSettings,
    steps: int = 1_000,
    seed: int = 0,
    *,
    apart: bool = False,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> EnvReport:
    """Play `steps` random steps and look; `COMPARED_STEPS` at most are played twice more.

    The seed is of the first episode and of the actions; later episodes count up from it. Broken
    promises are in the report, not raised.

    Args:
        settings: which environment.
        steps: of the longest play.
        seed: see above.
        apart: give the environments a process each.
        watch: gets what is being done; plays end early, so that `PLAYED` and then `COMPARED` of its
            time are kept. None: no limit.
        say: called with each line of the report as soon as it is known.

    Raises:
        EnvError: the environment cannot be made at all, or `steps` is not positive.
    """
    if steps < 1:
        raise EnvError(f"check-env --steps: expected at least 1, got {steps}")
    watch, lines = watch or Watch(), _Lines(say)
    lines.row("environment", settings.name)
    watch.begin("the constructor of the environment")
    env, other_env = (make_one(settings, apart) for _ in range(2))
    try:
        lines.about(settings, env)
        first = _play(env, seed, steps, watch, PLAYED)
        lines.played(first, steps)
        lines.found(first.problems)
        same, same_reused = _compared(env, other_env, seed, first, lines, watch)
        return EnvReport(
            name=settings.name,
            applied=settings.applied(),
            observation_space=str(env.observation_space),
            action_space=str(env.action_space),
            wrappers=_chain(env),
            steps=len(first.trace),
            steps_per_second=first.steps_per_second,
            same_in_two_copies=same,
            same_after_reuse=same_reused,
            reward_range=first.reward_range,
            episode_lengths=tuple(first.lengths),
            episode_returns=tuple(first.returns),
            problems=tuple(lines.problems),
            notes=tuple(lines.notes),
            lines=tuple(lines.said),
        )
    finally:
        env.close()  # type: ignore[no-untyped-call]
        other_env.close()  # type: ignore[no-untyped-call]


def _compared(
    env: gym.Env[Any, Any],
    other: gym.Env[Any, Any],
    seed: int,
    first: "_Played",
    lines: "_Lines",
    watch: Watch,
) -> tuple[bool, bool]:
    """Whether another environment, and the used one after a reset, play the first play again."""
    steps = min(len(first.trace), COMPARED_STEPS)
    # one that raised may be of no more use
    reused = first if first.raised else _play(env, seed, steps, watch, (PLAYED + COMPARED) / 2)
    second = _play(other, seed, steps, watch, COMPARED)
    lines.found(reused.problems + second.problems)
    same = lines.compared("two copies with one seed", first, second)
    same_reused = lines.compared("a used environment after reset", first, reused)
    lines.row("same seed", _SAME[same])
    lines.row("after reuse", _SAME[same_reused])
    return same, same_reused


def row(label: str, text: str) -> str:
    """One line of a report."""
    return f"{label:<13}{text}"


class _Lines:
    """The lines of a report, said one by one, and what is wrong among them, each once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.said: list[str] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._say = say

    def row(self, label: str, text: str) -> None:
        """Say one."""
        self.said.append(row(label, text))
        self._say(self.said[-1])

    def about(self, settings: EnvSettings, env: gym.Env[Any, Any]) -> None:
        """What is known before the first step."""
        applied = ", ".join(f"{name}={value}" for name, value in settings.applied().items())
        self.row("settings", applied)
        self.row("observations", str(env.observation_space))
        self.row("actions", str(env.action_space))
        self.row("wrappers", " < ".join(_chain(env)))
        if sentence := assumed(env):
            self.note(f"{sentence}.")

    def played(self, first: "_Played", steps: int) -> None:
        """What the longest play showed."""
        done, pace = len(first.trace), first.steps_per_second
        self.row("speed", f"{pace:,.0f} steps/s over {done:,} steps")
        lengths, episodes = first.lengths, "none ended"
        if lengths:
            episodes = (
                f"{len(lengths)} ended, {min(lengths)} to {max(lengths)} steps, "
                f"mean return {np.mean(first.returns):.3g} at random"
            )
        self.row("episodes", episodes)
        smallest, largest = first.reward_range
        self.row("rewards", f"{smallest:g} to {largest:g}" if done else "none seen")
        if first.cut:
            self.note(
                f"It is slow: {done:,} of {steps:,} steps in the time there was, {pace:.3g} steps "
                "per second; --seconds gives it more."
            )
        elif not lengths and done == steps and not first.problems:
            self.note(
                f"No episode ended in {done:,} steps; an evaluation cuts one that is still open "
                "after evaluate.max_episode_steps."
            )

    def compared(self, who: str, first: "_Played", other: "_Played") -> bool:
        """Whether a second play is the beginning of the first; one that is not is a problem."""
        compared = min(len(first.trace), COMPARED_STEPS)
        expected = first.trace[: len(other.trace) if other.cut else compared]
        if other.trace != expected:
            self.found([_difference(who, expected, other.trace)])
        return other.trace == expected

    def note(self, text: str) -> None:
        """Say what is no fault."""
        self.notes.append(text)
        self.row("note", text)

    def found(self, problems: Iterable[str]) -> None:
        """Say what is wrong, unless it was said before or enough was."""
        for text in problems:
            if text not in self.problems and len(self.problems) < MOST_PROBLEMS:
                self.problems.append(text)
                self.row("problem", text)


@dataclass
class _Played:
    """One random play."""

    watch: Watch
    trace: Trace = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0  # in the environment itself
    cut: bool = False  # its time was over
    raised: bool = False  # the environment raised, or was lost

    @property
    def steps_per_second(self) -> float:
        """Of the environment itself."""
        return len(self.trace) / max(self.seconds, 1e-9)

    @property
    def reward_range(self) -> tuple[float, float]:
        """Smallest and largest seen; (nan, nan) if none was."""
        rewards = [reward for _, reward, _, _ in self.trace] or [math.nan]
        return min(rewards), max(rewards)

    def timed(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a method of the environment returns."""
        self.watch.begin(f"{what} of the environment")
        begin = time.perf_counter()
        result = call(*args, **kwargs)
        self.seconds += time.perf_counter() - begin
        return result


def _play(
    env: gym.Env[Any, Any], seed: int, steps: int, watch: Watch | None = None, share: float = 1.0
) -> _Played:
    """Play `steps` random steps, or until the environment raises or breaks the step format.

    It ends early when that share of the watch's time is over. Actions are drawn from a copy of the
    action space after the first reset, which may have replaced it; a later one must not.
    """
    played = _Played(watch or Watch())
    length, total = 0, 0.0
    try:
        obs, _ = played.timed("reset()", env.reset, seed=seed)
        fingerprint = _fingerprint(obs)
        space = copy.deepcopy(env.action_space)
        space.seed(seed)
        promised = _Promised(env.observation_space)
        played.problems += promised.problems(obs, "reset()")
        for _ in range(steps):
            if played.watch.over(share):
                played.cut = True
                break
            result = played.timed("step()", env.step, space.sample())
            problems = _step_problems(promised, result)
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
                obs, _ = played.timed("reset()", env.reset, seed=seed + len(played.lengths))
                if env.action_space != space:
                    played.problems.append(
                        f"reset() changed the action space from {space} to {env.action_space}."
                    )
                    break
                fingerprint = _chained(fingerprint, obs)
    except (Exception, SystemExit) as error:
        played.raised = True
        step = len(played.trace)
        played.problems.append(f"At step {step} it raised {told(error)}.")
    return played


def _step_problems(promised: "_Promised", result: Any) -> list[str]:
    """Promises of `step` that one result breaks."""
    if not isinstance(result, tuple) or len(result) != 5:
        return [
            f"step() must return (obs, reward, terminated, truncated, info), got {result!r:.100}."
        ]
    obs, reward, terminated, truncated, info = result
    problems = promised.problems(obs, "step()")
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


class _Promised:
    """What is promised of observations, asked where every run asks it: `envs.promises`."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self._space = space
        self._parts: list[Promise] | None = None  # of a space that a run refuses in its own words
        with contextlib.suppress(EnvError):
            self._parts = [Promise(*named) for named in columns_of_space(space).items()]

    def problems(self, obs: Any, source: str) -> list[str]:
        """How an observation breaks it; that it is out of a Box's bounds is logged, as in a run."""
        if self._parts is None:
            return []
        try:
            for part, value in zip(self._parts, values_of(self._space, obs), strict=True):
                part.watch(part.checked(value)[None], lambda _: source)
        except (TypeError, ValueError) as error:
            return [f"{source}: {error}."]
        except EnvError as error:
            return [f"{error}."]
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
    return tuple(type(layer).__name__ for layer in layers(env))
