"""Atari 2600 through ALE, with one documented preprocessing.

In: an id such as `ALE/Pong-v5`. Out: uint8 (64, 64, 1) frames, raw rewards, `info["life_loss"]`
and, if asked for, `info["ram"]`. It refuses to end an episode when a life is lost, to clip rewards
or to stack frames: the first two change the task that is scored, and a recurrent model needs no
stack.

The protocol, each part a setting: 4 frames per step with a maximum over the last two; area
interpolation to 64x64; intensity instead of colour; up to 30 idle frames at the start; sticky
actions, where each *frame* repeats the previous action with probability 0.25 (Machado et al. 2018,
arXiv:1709.06009); the game's minimal action set (`kwargs: {full_action_space: true}` for all 18).
Scores with and without sticky actions are not comparable.

Seeds: ALE takes a new seed only by loading the ROM again, which costs as much as 200 steps. So the
sticky draws are made here, from the episode's seed, and each episode starts from a snapshot of the
game's first frame; ALE starts every game in the same state whatever its seed, so nothing is lost.

When a game ends in the middle of a step, the preprocessing returns the frames it last saw: the
final observation can be up to three frames old. `info["ram"]` is read after the step's last frame,
while the picture is the maximum of the last two.
"""

import random
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, TimeLimit
from numpy.typing import NDArray

from envs.errors import EnvError
from envs.family import Family, Reset, Step

SETTING_OF = {
    "frameskip": "frame_skip",
    "repeat_action_probability": "sticky_actions",
    "obs_type": "grayscale",
}
"""ALE's constructor arguments that our settings decide."""


class SeededGame(gym.Wrapper[NDArray[np.uint8], Any, NDArray[np.uint8], Any]):
    """Episodes that follow from their seed and the actions, without loading the ROM again.

    Wraps ALE itself, one frame per step and with its own sticky actions off. Each frame repeats the
    last action with probability `sticky_actions`.
    """

    def __init__(self, env: gym.Env[NDArray[np.uint8], Any], sticky_actions: float) -> None:
        super().__init__(env)
        self._emulator: Any = env.unwrapped
        self._sticky_actions = sticky_actions
        space = env.action_space
        box = isinstance(space, gym.spaces.Box)
        self._idle: Any = np.zeros(space.shape or (), space.dtype) if box else 0
        self._last = self._idle
        self._random = random.Random()
        self._first_state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Go back to the first frame; with a seed, start the sticky and idle draws anew."""
        if seed is not None:
            self._emulator.seed_game(seed)  # only the generator that draws the idle frames
            self._random.seed(seed)
        self._last = self._idle
        obs, info = self.env.reset(options=options)
        if self._first_state is None:
            self._first_state = self._emulator.ale.cloneState()
        # Resetting the console leaves traces of the last game in some games (Seaquest, Krull).
        self._emulator.ale.restoreState(self._first_state)
        return obs, info

    def step(self, action: Any) -> Step:
        """Play one frame, with this action or, by chance, the one before it."""
        if self._random.random() >= self._sticky_actions:
            self._last = action
        return self.env.step(self._last)


class Signals(gym.Wrapper[NDArray[np.uint8], Any, NDArray[np.uint8], Any]):
    """Adds signals to `info` that are labels, never input or ending.

    `life_loss`: this step's action cost a life. True also on the step that ends the game, if its
    last life went there; always False in games without lives, such as Pong. `ram`, if asked for:
    (128,) uint8, the console's memory after the step.
    """

    def __init__(self, env: gym.Env[NDArray[np.uint8], Any], ram: bool) -> None:
        super().__init__(env)
        self._ram, self._lives = ram, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode and count its lives."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._lives = info["lives"]
        return obs, {**info, **self._memory()}

    def step(self, action: Any) -> Step:
        """Take one step and compare the lives before and after."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        lost, self._lives = info["lives"] < self._lives, info["lives"]
        return obs, reward, terminated, truncated, {**info, "life_loss": lost, **self._memory()}

    def _memory(self) -> dict[str, Any]:
        emulator: Any = self.env.unwrapped
        return {"ram": emulator.ale.getRAM()} if self._ram else {}  # a copy


def register() -> None:
    """Tell gymnasium about ALE's ids, once per process."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner on stderr
    gym.register_envs(ale_py)


def make(
    env_id: str,
    kwargs: dict[str, Any],
    *,
    max_episode_steps: int | None,
    image_size: int,
    grayscale: bool,
    frame_skip: int,
    sticky_actions: float,
    noop_max: int,
    ram: bool,
) -> gym.Env[Any, Any]:
    """Build one Atari game; the settings are those of `EnvSettings`.

    `kwargs` are for ALE's constructor, such as `full_action_space`, `mode`, `difficulty`. At least
    one idle frame is taken unless `noop_max` is 0.

    Raises:
        EnvError: `kwargs` repeats what a setting decides.
        gymnasium.error.Error: there is no such game.
    """
    for name in SETTING_OF.keys() & kwargs.keys():
        raise EnvError(f"expected env.{SETTING_OF[name]}, got env.kwargs.{name}; use the setting")
    register()
    env = gym.make(
        env_id,
        disable_env_checker=True,
        frameskip=1,
        repeat_action_probability=0.0,
        # The preprocessing reads the screen itself; grey is the cheapest thing ALE can return.
        obs_type="grayscale" if grayscale else "rgb",
        **kwargs,
    )
    env = AtariPreprocessing(
        SeededGame(env, sticky_actions),
        noop_max=noop_max,
        frame_skip=frame_skip,
        screen_size=image_size,
        terminal_on_life_loss=False,
        grayscale_obs=grayscale,
        grayscale_newaxis=True,
    )
    env = Signals(env, ram)
    return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)


FAMILY = Family(
    make=make,
    register=register,
    # Machado et al. (2018) as gymnasium's ALE/*-v5 has it, on 64x64; ALE itself stops at 108,000
    # frames (27,000 steps).
    defaults={
        "max_episode_steps": None,
        "image_size": 64,
        "grayscale": True,
        "frame_skip": 4,
        "sticky_actions": 0.25,
        "noop_max": 30,
        "ram": False,
    },
)
