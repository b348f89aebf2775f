"""CarRacing: a car on a random track, seen from above.

In: `CarRacing-v3`. Out: uint8 (64, 64, 3) frames, resized from 96x96 by area interpolation, the
indicator bar at the bottom included. Actions are steering, gas and brake in a Box of 3, or five
choices with `kwargs: {continuous: false}`. It refuses to know about rendering to a screen.

An episode is truncated after 1,000 steps unless the settings say otherwise; it terminates when the
lap is done or the car leaves the field (reward -100).
"""

import importlib
import os
import warnings
from typing import Any

import gymnasium as gym

from envs.errors import EnvError
from envs.extras import install
from envs.family import Family, make_plain


def import_box2d() -> None:
    """Import Box2D and pygame in a way that works without a display and under strict warnings.

    Raises:
        EnvError: one of them is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            # Box2D's compiled module warns about its own types while it loads. If warnings are
            # errors, that kills the process with a segmentation fault.
            warnings.simplefilter("ignore", DeprecationWarning)
            importlib.import_module("Box2D")
            importlib.import_module("pygame")
    except ImportError as error:
        raise EnvError(
            f"expected the packages box2d and pygame, got {error!r}; {install('box2d')}"
        ) from error


def make(env_id: str, kwargs: dict[str, Any], **settings: Any) -> gym.Env[Any, Any]:
    """Build CarRacing; `kwargs` are for its constructor, such as `continuous`.

    Raises:
        EnvError: Box2D or pygame is not installed.
        gymnasium.error.Error: there is no such version.
    """
    if kwargs.get("render_mode") != "human":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import_box2d()
    return make_plain(env_id, kwargs, **settings)


# gymnasium knows the id itself, and limits an episode to 1,000 steps.
FAMILY = Family(
    make=make,
    defaults={"max_episode_steps": None, "image_size": 64, "grayscale": False},
)
