"""MinAtar: five Atari-like games on a 10x10 grid, one binary channel per kind of object.

In: an id such as `MinAtar/Breakout-v1` (minimal actions) or `-v0` (all six). Out: uint8
(10, 10, C) observations of 0 and 1, in `Box(0, 1)`. It refuses to know about learning; the colours
that video code needs are here because only this file knows what a channel is.

Young & Tian (2019), "MinAtar", arXiv:1903.03176. What differs between the games, and from Atari:

* Sticky actions: MinAtar repeats the previous action with probability 0.1, and that is our default.
* Time: MinAtar has no step limit, except that Freeway ends after 2,501 steps, which it reports as
  *terminated* although nothing in the picture announces it. We add `max_episode_steps` (truncation)
  and leave Freeway's ending as it is, so that scores stay comparable.
* There are no lives: `life_loss` is never set.
* Seeding: MinAtar keeps the last action of the previous episode for the sticky draw, so that
  `reset(seed)` on a used environment differs from a new one. We clear it at every reset.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.errors import EnvError
from envs.family import Family, Reset, Step, make_plain

_HEX = "e6e6e6 ffd23f 744e82 40a0ff f0503c 50c878 ff8c28 3cdcdc eb6ebe a06e46"
COLOURS = np.array([list(bytes.fromhex(colour)) for colour in _HEX.split()], np.uint8)
"""One RGB colour per channel, for up to ten channels (Seaquest has ten)."""


def frame_to_rgb(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Paint binary channels, (..., H, W, C) of 0 and 1, in colours, (..., H, W, 3).

    Where several are set, the last channel is on top, as in MinAtar; where none is, it is black.

    Raises:
        ValueError: there are more channels than colours.
    """
    channels = frame.shape[-1]
    if not 1 <= channels <= len(COLOURS):
        raise ValueError(f"expected 1 to {len(COLOURS)} channels, got {channels}")
    colours = np.concatenate([np.zeros((1, 3), np.uint8), COLOURS[:channels]])
    order = np.arange(1, channels + 1, dtype=np.uint8)
    top = (frame.astype(bool) * order).max(axis=-1)
    return np.asarray(colours[top], dtype=np.uint8)


class MinAtarObservation(gym.Wrapper[NDArray[np.uint8], Any, NDArray[np.bool_], Any]):
    """Bool planes to uint8, and a reset that depends on its seed alone."""

    def __init__(self, env: gym.Env[NDArray[np.bool_], Any]) -> None:
        super().__init__(env)
        self._game = env.unwrapped.game  # type: ignore[attr-defined]
        self.observation_space = gym.spaces.Box(0, 1, tuple(self._game.state_shape()), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode; with a seed, the whole episode depends on the seed and the actions."""
        self._game.last_action = 0
        obs, info = self.env.reset(seed=seed, options=options)
        return obs.view(np.uint8), info

    def step(self, action: Any) -> Step:
        """Take one step. MinAtar makes a new array each time, so a view of it is safe to keep."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs.view(np.uint8), float(reward), bool(terminated), truncated, info


def channel_names(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """What each channel of a game's frames shows, in MinAtar's own words."""
    channels: dict[str, int] = env.unwrapped.game.env.channels  # type: ignore[attr-defined]
    return tuple(sorted(channels, key=channels.__getitem__))


class GameCopy:
    """The game of an environment as it stands now, to be played on with other random numbers.

    The environment is left as it is. What it has drawn so far stays: its timers, and the last
    action, which the next one may repeat.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._game = copy.deepcopy(env.unwrapped.game)  # type: ignore[attr-defined]
        self._actions: list[int] = env.unwrapped.action_set  # type: ignore[attr-defined]

    def play(
        self, actions: Sequence[int], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Play on from the copied moment, as often as one likes.

        Args:
            actions: K of the environment's action space. One may be replaced by the action before
                it, as in the game itself.
            seed: of all that is drawn from now on, in [0, 2**32).

        Returns:
            The frames (K, H, W, C) after each action, of 0 and 1, and whether the game still went
            on then (K,). After its end the frames are the last one.
        """
        game = copy.deepcopy(self._game)
        game.seed(seed)  # of the sticky actions and of the game, which share one stream
        frames: list[NDArray[np.uint8]] = []
        going_on: list[bool] = []
        for action in actions:
            _, ended = game.act(self._actions[action])
            frames.append(game.state().view(np.uint8))
            going_on.append(not ended and all(going_on))
        return np.stack(frames), np.array(going_on)


def register() -> None:
    """Tell gymnasium about MinAtar's ids, once per process."""
    from minatar.gym import register_envs

    if "MinAtar/Breakout-v1" not in gym.registry:
        register_envs()


def make(
    env_id: str, kwargs: dict[str, Any], *, max_episode_steps: int | None, sticky_actions: float
) -> gym.Env[Any, Any]:
    """Build one MinAtar game; `kwargs` are for its constructor, such as `difficulty_ramping`.

    Rewards are MinAtar's own, usually 0 or 1.

    Raises:
        EnvError: `kwargs` names the sticky probability again.
        gymnasium.error.Error: there is no such game.
    """
    if "sticky_action_prob" in kwargs:
        raise EnvError(
            "expected env.sticky_actions, got env.kwargs.sticky_action_prob; use the setting"
        )
    register()
    with warnings.catch_warnings():
        # -v0 is another action set, not an older version, but gymnasium calls it out of date.
        warnings.filterwarnings("ignore", r".*MinAtar/\w+-v0 is out of date", DeprecationWarning)
        env = make_plain(
            env_id, kwargs, max_episode_steps=max_episode_steps, sticky_action_prob=sticky_actions
        )
    return MinAtarObservation(env)


# MinAtar's own 0.1. MinAtar has no step limit but Freeway's 2,501; 5,000 is ours, so that an
# evaluation always ends.
FAMILY = Family(
    make=make,
    register=register,
    defaults={"max_episode_steps": 5_000, "sticky_actions": 0.1},
)
