"""Reverie: train agents inside a learned world model. Start reading at `mbrl/train.py`.

From Python:

    result = mbrl.train("quickstart", env_steps=2000)
    run = mbrl.open_run("runs/quickstart")
    action = run.agent().act(observation)

Importing the package checks that the import names `agents` and `envs`, which other projects use
too, lead to ours, and tells gymnasium of the dreams (`reverie/Dream-v0`); everything heavy loads at
its first use.
"""

import logging
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbrl.config.schema import load_config
    from mbrl.run.open import OpenRun, open_run

__version__ = "0.1.0"
__all__ = ["OpenRun", "load_config", "open_run", "train"]

_HOMES = {"load_config": "mbrl.config.schema", "OpenRun": "mbrl.run.open"}
_HOMES["open_run"] = _HOMES["OpenRun"]


def __getattr__(name: str) -> Any:
    """Load what the package offers at its first use."""
    if name == "train":  # the module, which can be called: see its last lines
        quiet_libraries()
        return import_module("mbrl.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'mbrl' has no attribute {name!r}")
    quiet_libraries()
    return getattr(import_module(_HOMES[name]), name)


def quiet_libraries() -> None:
    """Keep Ray on this machine, and from burying our own output; to be called before its import.

    Ray turns 127.0.0.1 into the machine's public address, and listens there, unless the first of
    these variables is set. Joining a cluster is still possible.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
    # RLlib deprecates a class of its own that it still makes itself, and Ray says how it is secured
    for chatty in ("ray._common.deprecation", "ray._private.authentication"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def dream_vector_env(num_envs: int, run: Path | str, **settings: Any) -> Any:
    """What `gymnasium.make_vec("reverie/Dream-v0", num_envs=N, run=folder)` makes.

    `settings` are the other arguments of `OpenRun.dream_env`, such as `horizon`.
    """
    quiet_libraries()
    return import_module("mbrl.run.open").open_run(run).dream_env(num_envs, **settings)


def _check_siblings() -> None:
    home = Path(__file__).resolve().parent.parent
    for name in ("agents", "envs"):
        spec = find_spec(name)
        if spec is None:
            raise ImportError(
                f"expected the package `{name}` beside mbrl in {home}, found none: reinstall with "
                "`pip install --force-reinstall --no-deps reverie-rl`, or run from the checkout"
            )
        places = [Path(p).resolve() for p in spec.submodule_search_locations or ()]
        if home / name not in places:
            found = places[0] if places else spec.origin
            raise ImportError(
                f"expected the package `{name}` beside mbrl in {home}, found {found}: another "
                f"project has that import name (`agents` is openai-agents, `envs` is often a "
                "folder of one's own). Use an environment of its own for reverie-rl, or run "
                f"from a folder without a `{name}` package"
            )


_check_siblings()
import_module("gymnasium").register("reverie/Dream-v0", vector_entry_point="mbrl:dream_vector_env")
