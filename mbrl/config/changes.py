"""What changed between the settings that something was made with and those of now.

Both are plain trees, as a config dumps them; the old one may be of an older version.
"""

from typing import Any

from pydantic import BaseModel, ValidationError

from mbrl.config.kinds import without_unknown


def filled(old: Any, model: type[BaseModel]) -> Any:
    """A tree that an older version dumped, with the defaults of settings it did not know yet.

    One that is not valid any more is returned as it is, so that `differences` shows why.
    """
    old = without_unknown(old, model)
    try:
        return model.model_validate(old).model_dump(mode="json")
    except ValidationError:
        return old


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted names in which two trees of plain values differ, sorted, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{at}: {old} became {new}"]
    return [
        difference
        for key in sorted({*old, *new})
        for difference in differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    ]
