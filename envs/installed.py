"""`mbrl envs`: which environments can be named here and now, and what to install for others."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator

import gymnasium as gym

from envs.extras import EXTRAS, Extra, install
from envs.families import FAMILIES

SHOWN = 8


def lines() -> Iterator[str]:
    """What is installed, with its ids, and what is not, with the command that mends it."""
    for name, extra in EXTRAS.items():
        if missing := [m for m in extra.modules if importlib.util.find_spec(m) is None]:
            yield f"{extra.name}: not installed ({', '.join(missing)}); {install(name)}"
            continue
        ids = _ids(extra)
        shown = ", ".join(ids[:SHOWN])
        more = f", and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        yield f"{extra.name}: {shown}{more}"
    yield "any other: module:Id, or env.factory=package.module.function; try mbrl check-env"


def _ids(extra: Extra) -> list[str]:
    """The newest version of each id, as a config names it."""
    if register := next((FAMILIES[p].register for p in extra.ids if p in FAMILIES), None):
        register()
    if extra.prefix:
        with warnings.catch_warnings():  # not ours to mend
            warnings.simplefilter("ignore")
            importlib.import_module(extra.prefix.rstrip(":"))
    newest: dict[str, tuple[int, str]] = {}
    for id_, spec in gym.registry.items():
        if id_.startswith(extra.ids):
            known = (spec.version or 0, f"{extra.prefix}{id_}")
            newest[spec.name] = max(known, newest.get(spec.name, known))
    return sorted(named for _, named in newest.values())
