"""Sections of a config that come in kinds, such as `decoder: {kind: deconv, channels: 8}`.

A kind has settings of its own and a class that is made from them. Classes are named by text and
loaded when one is made, so that a config is checked without loading torch. A new kind is a file
with its class and one line in a `Kinds`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from mbrl.config.base import Settings

Name = tuple[str, ...]
TAG = "kind: "


@dataclass(frozen=True)
class Kind:
    """One kind of a section: its settings, and what is made from them."""

    settings: type[Settings]
    made_by: str  # package.module:Class


@dataclass(frozen=True)
class Kinds:
    """All kinds of a section, by the name that its setting `kind` gives; annotates the section."""

    default: str  # the kind of a section that names none
    kinds: Mapping[str, Kind]

    def keys(self, kind: object) -> set[str]:
        """The settings of one kind, none if there is no such kind."""
        found = self.kinds.get(str(kind))
        return set(found.settings.model_fields) if found else set()

    def kind_of(self, section: Any) -> Any:
        """What a section, checked or not, says its kind is."""
        if isinstance(section, Mapping):
            return section.get("kind", self.default)
        return getattr(section, "kind", self.default)

    def made_by(self, settings: Settings) -> Any:
        """The class that is made from these settings."""
        module, _, name = self.kinds[self.kind_of(settings)].made_by.partition(":")
        return getattr(import_module(module), name)

    def without_unknown(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """A section without the keys that its kind does not have but another one has."""
        own = self.keys(self.kind_of(section))
        others = {key for kind in self.kinds for key in self.keys(kind)} - own if own else set()
        return {key: value for key, value in section.items() if key not in others}

    def foreign(self, tag: str, key: str) -> str | None:
        """What to say of a key that the kind of a tag does not have but another one has."""
        others = [other for other in self.kinds if key in self.keys(other)]
        if not others:
            return None
        return f"unknown setting of {tag}; it is one of kind: {' and of '.join(others)}"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """A union that `kind` chooses from; its tags are unlike any key, as errors name both."""
        choices = {
            f"{TAG}{name}": handler.generate_schema(kind.settings)
            for name, kind in self.kinds.items()
        }
        return core_schema.tagged_union_schema(
            choices, discriminator=lambda section: f"{TAG}{self.kind_of(section)}"
        )


def kinds_of(field: FieldInfo) -> Kinds | None:
    """The kinds of a field of a model, if it is a section that has any."""
    return next((one for one in field.metadata if isinstance(one, Kinds)), None)


def sections(model: type[BaseModel], name: Name = ()) -> Iterator[tuple[Name, Kinds]]:
    """Every section of a model that comes in kinds, with its dotted name in parts."""
    for key, field in model.model_fields.items():
        if found := kinds_of(field):
            yield (*name, key), found
        for part in models_of(field):
            yield from sections(part, (*name, key))


def models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a field may hold: one, one of each kind, or none."""
    if found := kinds_of(field):
        return [kind.settings for kind in found.kinds.values()]
    return [leaf for leaf in leaves(field.annotation) if _is_model(leaf)]


def leaves(annotation: Any) -> list[Any]:
    """The types inside unions, lists, dicts and annotations."""
    inner = get_args(annotation)
    return [leaf for part in inner for leaf in leaves(part)] if inner else [annotation]


def without_unknown(tree: Any, model: type[BaseModel]) -> Any:
    """A tree that an older version dumped, whose sections had the keys of all kinds."""
    if not isinstance(tree, dict):
        return tree
    clean = dict(tree)
    for key, field in model.model_fields.items():
        value = tree.get(key)
        if isinstance(value, dict) and (found := kinds_of(field)):
            clean[key] = found.without_unknown(value)
        elif isinstance(value, dict) and _is_model(field.annotation):
            clean[key] = without_unknown(value, field.annotation)  # type: ignore[arg-type]
    return clean


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
