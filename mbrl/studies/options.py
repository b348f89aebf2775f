"""Command line options that follow from the fields of a settings model.

A field with a description is an option: its name, type, default and help are the field's. Fields of
models inside the model count as its own, a field's title replaces its name, and a truth that is
true by default becomes `--no-...`. The default of a required field depends on other options; the
caller fills it in. The field `SUBJECT` is the word on the command line that is not `key=value`.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mbrl.errors import ConfigError

SUBJECT = "game"
Model = TypeVar("Model", bound=BaseModel)


def options_of(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Names and fields of all options of a model."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from options_of(info.annotation)
        elif info.description and name != SUBJECT:
            yield name, info


def add_options(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Give a parser the options of a model."""
    for name, info in options_of(model):
        text, default = info.description or "", info.default
        if isinstance(default, bool):
            action = "store_false" if default else "store_true"
            parser.add_argument(_flag(name, info), dest=name, action=action, help=text)
            continue
        if info.is_required():
            default = None
        elif default is not None:
            text += f"; default: {default}"
        kind = next(one for one in (*get_args(info.annotation), info.annotation) if one)
        parser.add_argument(_flag(name, info), dest=name, type=kind, default=default, help=text)


def read_options(model: type[Model], given: Mapping[str, Any]) -> Model:
    """A model from flat values by the names of its fields; None counts as not given.

    Raises:
        ConfigError: a value is out of range, or one is missing.
    """
    try:
        return model.model_validate(_nested(model, given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][-1])
        known = dict(options_of(model))
        flag = _flag(name, known[name]) if name in known else name
        text = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        text = text.replace("Field required", "expected a value, got none")
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']}"
        raise ConfigError(f"{flag}: {text}{got}") from error


def as_words(made: BaseModel) -> list[str]:
    """The options of a model that are not at their defaults, as words of a command.

    Left out are required options, and fields that are not for a `repr`, such as folders. Of a path
    only the last part is said, of a device only the kind.
    """
    words = []
    for name, info in made.__class__.model_fields.items():
        value = getattr(made, name)
        if isinstance(value, BaseModel):
            words += as_words(value)
        elif info.description and name != SUBJECT and info.repr and not info.is_required():
            if value == info.default:
                continue
            said = value.name if isinstance(value, Path) else str(value)
            said = said.partition(":")[0] if name == "device" else said
            words += [_flag(name, info), *([] if isinstance(value, bool) else [said])]
    return words


def _flag(name: str, info: FieldInfo) -> str:
    negated = "no-" if info.default is True else ""
    return f"--{negated}{(info.title or name).replace('_', '-')}"


def _nested(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a model and of the models inside it."""
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            values[name] = _nested(info.annotation, given)
        elif given.get(name) is not None:
            values[name] = given[name]
    return values
