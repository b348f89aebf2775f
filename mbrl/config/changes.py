"""What changed between the settings that something was made with and those of now.

Both are plain trees, as a config dumps them; the old one may be of an older version. A setting that
the older version did not have counts with its default, a removed one (`mbrl.config.removed`) does
not count where it had no effect, and nor does one of another `kind` of a section than the chosen.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mbrl.config.removed import REMOVED
from mbrl.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def revive(old: Mapping[str, Any], model: type[Model]) -> Model:
    """The settings that an older version dumped, as an instance of this version's class.

    Raises:
        ConfigError: a setting that was removed had an effect, or one is not valid any more.
    """
    removed = _removed(old, "")
    if effective := [f"{name}: {value}; {REMOVED[name][1]}" for name, value in removed.items()]:
        raise ConfigError(f"expected settings that still exist, got {'; '.join(effective)}")
    try:
        return model.model_validate(_without_effectless(old, model, ""))
    except ValidationError as error:
        names = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
        raise ConfigError(f"expected settings of this version, got others in {names}") from error


def filled(old: Any, model: type[BaseModel], at: str = "") -> Any:
    """A tree that an older version dumped, as far as possible as this version would dump it.

    Args:
        old: the tree; one that is not valid any more is returned as it is, so that `differences`
            shows why.
        model: the class of its settings.
        at: the dotted name of the section, if it is not the whole config.
    """
    try:
        tree = model.model_validate(_without_effectless(old, model, at)).model_dump(mode="json")
    except ValidationError:
        return old
    for name, value in _removed(old, at).items():
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
        return [f"{at}: {old}; {REMOVED[at][1]}" if at in REMOVED else f"{at}: {old} became {new}"]
    return [
        difference
        for key in sorted({*old, *new})
        for difference in differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    ]


def value_at(tree: Any, name: str) -> Any:
    """The value of a dotted name in a tree; None if it is not there."""
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _removed(old: Any, at: str) -> dict[str, Any]:
    """Removed settings that had an effect: dotted name and value."""
    found = {}
    for name, (without_effect, _) in REMOVED.items():
        if name.startswith(f"{at}." if at else ""):
            value = value_at(old, name.removeprefix(f"{at}."))
            if value is not None and value != without_effect:
                found[name] = value
    return found


def _without_effectless(old: Any, annotation: Any, at: str) -> Any:
    """A tree without removed settings, and without those of another kind than the chosen one."""
    models = [
        part
        for part in (annotation, *get_args(annotation))
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    if not models or not isinstance(old, Mapping):
        return old
    chosen = next((one for one in models if _is_of_kind(one, old)), models[0])
    of_others = {key for one in models for key in one.model_fields} - chosen.model_fields.keys()
    tree = {}
    for key, value in old.items():
        name = f"{at}.{key}" if at else key
        if key not in of_others and name not in REMOVED:
            field = chosen.model_fields.get(key)
            tree[key] = _without_effectless(value, field and field.annotation, name)
    return tree


def _is_of_kind(model: type[BaseModel], tree: Mapping[str, Any]) -> bool:
    kind = model.model_fields.get("kind")
    return kind is not None and tree.get("kind") in get_args(kind.annotation)
