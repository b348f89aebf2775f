"""make_env: from settings to one environment.

In: `EnvSettings`. Out: a `gymnasium.Env`, prepared as the settings say. It refuses to know any
game: a family's own file does, and everything else goes to gymnasium or to the user's factory.
"""

import contextlib
import difflib
import importlib
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

from envs.actions import with_bounds
from envs.errors import EnvError
from envs.families import FAMILIES, PLAIN, family_of
from envs.images import FewerValues, prepare_images
from envs.observe import Observed
from envs.settings import EnvSettings


def make_env(settings: EnvSettings) -> gym.Env[Any, Any]:
    """Build the environment that the settings name.

    Images come as (H, W, C), grey ones with a channel axis of 1; other observations, and all
    rewards and actions, are left as they are. An action space without finite bounds gets those of
    `settings.action_bound`.

    Raises:
        EnvError: there is no such id (the message names the nearest ones) or factory, a package is
            missing, or the constructor fails.
    """
    applied = settings.applied()
    try:
        if settings.factory is not None:
            env = _from_factory(settings.factory, settings.kwargs, **applied)
        else:
            env = family_of(settings.id).make(settings.id, settings.kwargs, **applied)
        if settings.image_values is not None:
            env = FewerValues(env, settings.image_values)
        if settings.observe is not None:
            env = Observed(env, settings.observe)
    except EnvError:
        raise
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise EnvError(_unknown(settings.name, error)) from error
    except Exception as error:
        raise EnvError(
            f"cannot make {settings.name} with kwargs {settings.kwargs}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return with_bounds(env, settings.action_bound)


def _from_factory(
    factory: str, kwargs: dict[str, Any], *, max_episode_steps: int | None, **images: Any
) -> gym.Env[Any, Any]:
    """Call the user's own function."""
    module_name, _, name = factory.rpartition(".")
    function: Any = getattr(importlib.import_module(module_name), name, None)
    if not callable(function):
        raise EnvError(
            f"expected a function {name} in module {module_name}, got {function!r}; "
            f"env.factory is written pkg.module.fn"
        )
    env = function(**kwargs)
    if not isinstance(env, gym.Env):
        raise EnvError(
            f"expected {factory} to return a gymnasium.Env, got {type(env).__name__}; "
            f"environments of the old gym package need an adapter"
        )
    env = env if max_episode_steps is None else TimeLimit(env, max_episode_steps)
    return prepare_images(env, **images)


def nearest_ids(env_id: str, count: int = 3) -> list[str]:
    """At most `count` known ids that look like `env_id`, the nearest first.

    Known are those of gymnasium and of the families whose packages are installed.
    """
    for family in FAMILIES.values():
        with contextlib.suppress(ImportError):  # a package that is missing has no names to offer
            family.register()
    wanted = env_id.rpartition(":")[2].lower()
    by_name: dict[str, list[str]] = {}
    for known in gym.registry:  # the bare name too: "Breakout" is near "MinAtar/Breakout-v1"
        by_name[known.lower()] = [known]
        if family_of(known) is not PLAIN:
            bare = known.rpartition("/")[2].rpartition("-v")[0].lower()
            by_name.setdefault(bare, []).insert(0, known)
    near = difflib.get_close_matches(wanted, by_name, n=4 * count, cutoff=0.6)
    return list(dict.fromkeys(known for name in near for known in by_name[name]))[:count]


def _unknown(name: str, error: Exception) -> str:
    """What to say about an id or a factory that does not exist."""
    if isinstance(error, ModuleNotFoundError):
        return f"cannot make {name}: {error}; install it, or run from the folder that holds it"
    near = nearest_ids(name)
    hint = f"the nearest known ids are {', '.join(near)}" if near else "no known id looks like it"
    return (
        f"unknown environment {name!r}: {hint}; for an environment of your own write module:Id "
        f"or use env.factory"
    )
