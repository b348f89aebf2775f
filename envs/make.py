"""make_env: from settings to one environment.

In: `EnvSettings`. Out: a `gymnasium.Env`, prepared as the settings say. It refuses to know any
game: a family's own file does, and everything else goes to gymnasium or to the user's factory.
"""

import contextlib
import difflib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

from envs.actions import with_bounds
from envs.errors import EnvError, told
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
            missing, the constructor fails, `reset` does not take what gymnasium's does, a limit on
            steps cannot be kept, or the observations have no such parts or images.
    """
    env = _made(settings)
    try:
        _check_reset(settings.name, env)
        if settings.max_episode_steps is not None:
            _check_limit(settings.name, env, settings.max_episode_steps)
        if settings.image_values is not None:
            env = FewerValues(env, settings.image_values)
        if settings.observe is not None:
            env = Observed(env, settings.observe)
    except EnvError:
        env.close()  # type: ignore[no-untyped-call]
        raise
    return with_bounds(env, settings.action_bound)


def _made(settings: EnvSettings) -> gym.Env[Any, Any]:
    applied = settings.applied()
    try:
        if settings.factory is not None:
            return _from_factory(settings.factory, settings.kwargs, **applied)
        return family_of(settings.id).make(settings.id, settings.kwargs, **applied)
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise EnvError(
            f"cannot make {settings.name}: {error}; install it, or run from the folder that holds "
            "it"
        ) from error
    except Exception as error:
        known = settings.id is None or _spec_of(settings.id) is not None
        if isinstance(error, gym.error.UnregisteredEnv) and not known:
            raise EnvError(_unknown(settings.name)) from error
        if settings.id is not None and _is_vector_only(settings.id):
            raise EnvError(_vector_only(settings.id)) from error
        raise EnvError(
            f"cannot make {settings.name} with kwargs {settings.kwargs}: {told(error)}"
        ) from error


def _spec_of(env_id: str) -> Any:
    """What gymnasium knows of an id, or None; its leading `module:` has been imported."""
    return gym.registry.get(env_id.rpartition(":")[2])


def _is_vector_only(env_id: str) -> bool:
    spec = _spec_of(env_id)
    return spec is not None and spec.entry_point is None and spec.vector_entry_point is not None


def _vector_only(env_id: str) -> str:
    return (
        f"{env_id}: expected an id that makes single environments, got one with a vector entry "
        "point only; every episode here starts from a seed of its own, which such a vector cannot "
        "do. Register an entry_point too, or write an env.factory that makes one environment"
    )


def layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """An environment's wrappers, the outermost first, and the environment itself last."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def assumed(env: gym.Env[Any, Any]) -> str:
    """What is assumed of an environment's actions, in one sentence; "" if nothing is."""
    return next((one.assumed for one in layers(env) if hasattr(one, "assumed")), "")


def _check_reset(name: str, env: gym.Env[Any, Any]) -> None:
    """Refuse a `reset` that gymnasium's wrappers, which pass both words on, could not call."""
    for layer in layers(env):
        try:
            given = inspect.signature(layer.reset).parameters
        except ValueError:  # written in C, and says nothing
            continue
        kinds = {parameter.kind for parameter in given.values()}
        missing = [word for word in ("seed", "options") if word not in given]
        if missing and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise EnvError(
                f"{name}: expected reset(*, seed=None, options=None), as gymnasium has it, got "
                f"{type(layer).__name__}.reset({', '.join(map(str, given.values()))}); add "
                f"{' and '.join(missing)}"
            )


def _check_limit(name: str, env: gym.Env[Any, Any], asked: int) -> None:
    """Refuse a limit on steps that a smaller one inside the environment would undercut."""
    for layer in layers(env):
        if isinstance(layer, TimeLimit) and layer._max_episode_steps < asked:
            raise EnvError(
                f"env.max_episode_steps: expected at most {layer._max_episode_steps}, at which "
                f"{name} cuts its episodes by a TimeLimit of its own, got {asked}; raise the limit "
                "inside it, or leave the setting out"
            )


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


def _unknown(name: str) -> str:
    """What to say about an id that does not exist."""
    near = [known for known in nearest_ids(name, 4) if known != name.rpartition(":")[2]][:3]
    hint = f"the nearest known ids are {', '.join(near)}" if near else "no known id looks like it"
    return (
        f"unknown environment {name!r}: {hint}; for an environment of your own write module:Id "
        f"or use env.factory"
    )
