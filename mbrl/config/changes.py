"""What changed between the settings that something was made with and those of now.

Both are plain trees, as a config dumps them; the old one may be of an older version. A setting that
the older version did not have counts with its default, and one that is removed since
(`mbrl.config.removed`) does not count where it had no effect.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mbrl.config.kinds import TAG, without_unknown
from mbrl.config.removed import REMOVED
from mbrl.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def revive(old: Mapping[str, Any], model: type[Model]) -> Model:
    """The settings that an older version dumped, as an instance of this version's class.

    Raises:
        ConfigError: a removed setting had an effect, or a setting is not valid any more.
    """
    tree, removed = _without_removed(old)
    if removed:
        said = "; ".join(_said(name, value) for name, value in removed.items())
        raise ConfigError(f"expected settings that still exist, got {said}")
    try:
        return model.model_validate(without_unknown(tree, model))
    except ValidationError as error:
        said = "; ".join(f"{_dotted(one['loc'])}: {one['msg']}" for one in error.errors())
        raise ConfigError(
            f"expected settings of this version, got others: {said}; open it with the version that "
            "made it, see provenance.json"
        ) from error


def filled(old: Any, model: type[BaseModel], at: str = "") -> Any:
    """A tree that an older version dumped, as this version would dump it.

    One that is not valid any more stays, and so do removed settings that had an effect, so that
    `differences` shows them. `at` is the dotted name of a section that is not the whole config.
    """
    tree, removed = _without_removed(old, at)
    with contextlib.suppress(ValidationError):
        tree = model.model_validate(without_unknown(tree, model)).model_dump(mode="json")
    for name, value in removed.items():
        *sections, key = name.removeprefix(f"{at}.").split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[key] = value
    return tree


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted names in which two trees of plain values differ, sorted, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old == new:
            return []
        return [_said(at, old) if at in REMOVED else f"{at}: {old} became {new}"]
    return [
        difference
        for key in sorted({*old, *new})
        for difference in differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    ]


def _without_removed(old: Any, at: str = "") -> tuple[Any, dict[str, Any]]:
    """A tree without removed settings, and by dotted name those of them that had an effect."""
    if not isinstance(old, Mapping):
        return old, {}
    tree: dict[str, Any] = {}
    removed: dict[str, Any] = {}
    for key, value in old.items():
        name = f"{at}.{key}" if at else key
        if name not in REMOVED:
            tree[key], inner = _without_removed(value, name)
            removed |= inner
        elif value != REMOVED[name][0]:
            removed[name] = value
    return tree, removed


def _dotted(place: tuple[int | str, ...]) -> str:
    """A place in a tree as a setting's name, without the tags of kinds."""
    return ".".join(str(part) for part in place if not str(part).startswith(TAG))


def _said(name: str, value: Any) -> str:
    return f"{name}: {value} ({REMOVED[name][1]})"
