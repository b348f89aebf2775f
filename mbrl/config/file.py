"""Config files: YAML with `extends`, `a.b=value` overrides, and every mistake named by its place.

In: a pydantic model class, a path and overrides. Out: a checked instance of that class, or one
`ConfigError` that lists all mistakes as `file:line: name: expected ..., got ...`. It refuses to
know what any setting means; the model classes do.

Rules of stacking: `extends: base.yaml` or a list of files, relative to the file that says it; they
are merged from left to right, then the file itself on top. Sections merge key by key; every other
value, a list for example, replaces. An override replaces whatever it names, a whole section too. A
layer that changes the `kind` of a section drops what earlier layers said of other kinds.

Checks that compare several settings of one section can only run once each of them is right by
itself, so their mistakes come in a second round. How YAML is read: `mbrl.config.yaml`.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mbrl.config import kinds
from mbrl.config.removed import REMOVED
from mbrl.config.yaml import Dumper, Loader, parse_value
from mbrl.errors import ConfigError

Name = tuple[str, ...]
"""A setting's dotted name, in parts."""

Model = TypeVar("Model", bound=BaseModel)

_OVERRIDE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
DEEPEST = 20
"""Levels of sections; only an alias inside itself has more."""


class _Place(NamedTuple):
    """Where something was written; sorts file by file and line by line, overrides last."""

    is_override: bool
    written: str  # the file, or the override itself
    line: int = 0

    def __str__(self) -> str:
        if self.is_override:
            return f"override {self.written!r}"
        return f"{self.written}:{self.line}" if self.line else self.written

    @property
    def layer(self) -> str:
        """What was written together: one file, or all overrides."""
        return "" if self.is_override else self.written


_Mistake = tuple[_Place, str]


class _Assignment(NamedTuple):
    """One key of a file or one override. A `section` is merged into, anything else replaces."""

    name: Name
    value: Any
    place: _Place
    section: bool = False


_IN_PYTHON = _Place(False, "settings")


Overrides = Sequence[str] | Mapping[str, Any]
"""`a.b=value` with the value as in YAML, or values by dotted name; later ones win."""


def load(model: type[Model], path: str | Path | None = None, overrides: Overrides = ()) -> Model:
    """Read a config file, stack it on what it extends, apply overrides and check everything.

    Args:
        model: the class to make; every model in it must forbid extra keys.
        path: the YAML file; None for the defaults and overrides alone.
        overrides: what is changed on top.

    Raises:
        ConfigError: a file cannot be read, or there are mistakes; the message lists all of them.
        TypeError: a model class would silently ignore unknown keys.
    """
    mistakes: list[_Mistake] = []
    assignments = [] if path is None else _read(Path(path), (), mistakes)
    assignments += _parse_overrides(overrides, mistakes)
    root = _IN_PYTHON if path is None else _Place(False, _shown(Path(path)))
    return _checked(model, assignments, mistakes, root)


def change(config: Model, overrides: Overrides) -> Model:
    """A copy of a config with some settings changed, all checked anew.

    Raises:
        ConfigError: there are mistakes; the message lists all of them.
    """
    mistakes: list[_Mistake] = []
    assignments = _parse_overrides(overrides, mistakes)
    return _checked(type(config), assignments, mistakes, _IN_PYTHON, config.model_dump())


def _checked(
    model: type[Model],
    assignments: Sequence[_Assignment],
    mistakes: list[_Mistake],
    root: _Place,
    begun: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """Make the instance from what is given on top of `begun`, or raise with all mistakes."""
    known = dict(_known_settings(model))
    in_kinds, values = dict(kinds.sections(model)), {**begun}
    places = _merge(values, assignments, in_kinds)
    refused = {**_misplaced_bools(values, known), **_removed(values, known)}
    mistakes += [(_place(name, places, root), text) for name, text in refused.items()]
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            place = _name_in(values, detail)
            name, text = _about(place, _say(place, detail, known, in_kinds), known)
            if name not in refused:
                dotted = f"{'.'.join(name)}: " if name else ""
                mistakes.append((_place(name, places, root), dotted + text))
    lines = [f"{place}: {text}" for place, text in sorted(set(mistakes))]
    if len(lines) > 1:
        lines = ["\n  ".join([f"{len(lines)} mistakes in the settings:", *lines])]
    if lines:
        raise ConfigError(lines[0])
    return config


def dump(config: BaseModel) -> str:
    """A config as YAML, every setting in the order of the classes; `load` gives an equal one."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def find_config(name: str | Path) -> Path:
    """A config file by path, else by name among those shipped with the package."""
    path = Path(name)
    package = Path(__file__).resolve().parents[1]
    folders = (package / "configs", package.parent / "configs")
    shipped = [folder / file for folder in folders for file in (path.name, f"{path.name}.yaml")]
    return next((file for file in (path, *shipped) if file.is_file()), path)


# Reading


def _read(path: Path, chain: tuple[Path, ...], mistakes: list[_Mistake]) -> list[_Assignment]:
    """All assignments of a file, those of the files it extends first."""
    path, shown = path.resolve(), _shown(path)
    if path in chain:
        circle = " -> ".join(_shown(step) for step in (*chain[chain.index(path) :], path))
        raise ConfigError(f"{shown}: expected files that extend others, got a circle: {circle}")
    text = _text_of(path, shown)
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        own = list(_assignments(loader, root, (), shown, mistakes)) if root is not None else []
    except yaml.YAMLError as error:
        raise ConfigError(_unreadable(shown, error)) from error
    inherited: list[_Assignment] = []
    for assignment in own:
        if assignment.name == ("extends",):
            for parent in (path.parent / name for name in _parents(assignment, mistakes)):
                if parent.is_file():
                    inherited += _read(parent, (*chain, path), mistakes)
                else:
                    mistakes.append((assignment.place, f"extends: {_no_file(parent)}"))
    return inherited + [assignment for assignment in own if assignment.name[0] != "extends"]


def _assignments(
    loader: Loader, node: yaml.Node, name: Name, shown: str, mistakes: list[_Mistake]
) -> Iterator[_Assignment]:
    """Walk the mappings of a document; whatever is not a mapping is one value."""
    if not isinstance(node, yaml.MappingNode):
        place = _Place(False, shown, node.start_mark.line + 1)
        got = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        mistakes.append((place, f"expected a mapping of settings, got {got}"))
        return
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        place = _Place(False, shown, key_node.start_mark.line + 1)
        key = loader.construct_object(key_node, deep=True)
        dotted = ".".join((*name, str(key)))
        wrong = None
        if not isinstance(key, str):
            wrong = f"expected a name as key, got {key!r}"
        elif key in first_line:
            wrong = f"expected each key once, got it again after line {first_line[key]}"
        elif len(name) > DEEPEST:
            wrong = "expected fewer levels, got an alias of itself"
        if wrong is not None:
            mistakes.append((place, f"{dotted}: {wrong}"))
            continue
        first_line[key] = place.line
        if isinstance(value_node, yaml.MappingNode):
            yield _Assignment((*name, key), None, place, section=True)
            yield from _assignments(loader, value_node, (*name, key), shown, mistakes)
        else:
            value = loader.construct_object(value_node, deep=True)
            yield _Assignment((*name, key), value, place)


def _parents(extends: _Assignment, mistakes: list[_Mistake]) -> list[str]:
    """The files named by an `extends` key."""
    value = [extends.value] if isinstance(extends.value, str) else extends.value
    if isinstance(value, list) and all(isinstance(parent, str) for parent in value):
        return value
    got = "a section" if extends.section else repr(value)
    mistakes.append((extends.place, f"extends: expected a file or a list, got {got}"))
    return []


def _parse_overrides(overrides: Overrides, mistakes: list[_Mistake]) -> list[_Assignment]:
    """Overrides as assignments."""
    if isinstance(overrides, Mapping):
        items = overrides.items()
        return [_Assignment(tuple(k.split(".")), deepcopy(v), _Place(True, k)) for k, v in items]
    assignments = []
    for override in overrides:
        place = _Place(True, override)
        name, equals, text = override.partition("=")
        if not equals or not _OVERRIDE_NAME.fullmatch(name):
            mistakes.append((place, "expected name=value, such as policy.horizon=15"))
            continue
        try:
            value = parse_value(text)
        except yaml.YAMLError as error:
            mistakes.append((place, f"{name}: expected a YAML value, {_problem(error)}"))
            continue
        assignments.append(_Assignment(tuple(name.split(".")), value, place))
    return assignments


def _merge(
    values: dict[str, Any],
    assignments: Sequence[_Assignment],
    in_kinds: Mapping[Name, kinds.Kinds],
) -> dict[Name, _Place]:
    """Put assignments into nested values, in order; for each name the place that set it."""
    places: dict[Name, _Place] = {}
    for assignment in assignments:
        section, name = values, assignment.name
        for depth, key in enumerate(name[:-1], start=1):
            if not isinstance(section.get(key), dict):
                section[key] = {}
                places[name[:depth]] = assignment.place
            section = section[key]
        if name[-1] == "kind" and (found := in_kinds.get(name[:-1])):
            own = found.without_unknown({**section, "kind": assignment.value})
            for key in section.keys() - own.keys():
                full = (*name[:-1], key)
                above = (full[:depth] for depth in range(len(full), 0, -1))
                said = next((places[one] for one in above if one in places), None)
                if said is None or said.layer != assignment.place.layer:
                    del section[key]
        if not assignment.section or not isinstance(section.get(name[-1]), dict):
            section[name[-1]] = {} if assignment.section else assignment.value
            for stale in [old for old in places if old[: len(name)] == name]:
                del places[stale]
        places[name] = assignment.place
    return places


# Checking


def _known_settings(model: type[BaseModel], name: Name = ()) -> Iterator[tuple[Name, Any]]:
    """Every setting's name and type annotation, sections included."""
    if model.model_config.get("extra") != "forbid":
        raise TypeError(f'{model.__name__}: expected model_config with extra="forbid"')
    for key, info in model.model_fields.items():
        yield (*name, key), info.annotation
        for part in kinds.models_of(info):
            yield from _known_settings(part, (*name, key))


def _misplaced_bools(values: dict[str, Any], known: Mapping[Name, Any]) -> dict[Name, str]:
    """Numbers given as true or false, which pydantic would read as 1 and 0."""
    found = {}
    for name, annotation in known.items():
        value = _value_at(values, name)
        leaves = kinds.leaves(annotation)
        takes_bool = any(leaf in (bool, Any, object) for leaf in leaves)
        if isinstance(value, bool) and not takes_bool and (int in leaves or float in leaves):
            found[name] = f"{'.'.join(name)}: expected a number, got {str(value).lower()}"
    return found


def _removed(values: dict[str, Any], known: Mapping[Name, Any]) -> dict[Name, str]:
    """Settings that are no more, each with what to do instead."""
    removed = {tuple(dotted.split(".")): said for dotted, (_, said) in REMOVED.items()}
    return {
        name: f"{'.'.join(name)}: {said}"
        for name, said in removed.items()
        if name not in known and _value_at(values, name) is not None
    }


def _value_at(values: Any, name: Name) -> Any:
    """What was given for a setting; None if nothing was."""
    for key in name:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _name_in(values: dict[str, Any], detail: ErrorDetails) -> Name:
    """The name an error is about. pydantic's location also has parts that are not in the data."""
    name: list[str] = []
    node: Any = values
    for part in detail["loc"]:
        is_item = isinstance(node, list) and isinstance(part, int)
        if is_item or (isinstance(node, dict) and part in node):
            node = node[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        name.append(str(part))
    return tuple(name)


def _say(
    name: Name,
    detail: ErrorDetails,
    known: Mapping[Name, Any],
    in_kinds: Mapping[Name, kinds.Kinds],
) -> str:
    """One pydantic error in our words: expected, got, way out."""
    kind, message, given = detail["type"], detail["msg"], detail["input"]
    got = repr(given) if len(repr(given)) <= 60 else f"{repr(given)[:57]}..."
    if kind == "union_tag_invalid":
        found = in_kinds[name]
        return f"kind: expected {str([*found.kinds])[1:-1]}, got {found.kind_of(given)!r}"
    if kind == "extra_forbidden":
        section = in_kinds.get(name[:-1])
        foreign = section.foreign(str(detail["loc"][-2]), name[-1]) if section else None
        return foreign or f"unknown setting; {_nearest(name, known)}"
    if kind == "missing":
        return "expected a value, got none"
    if kind in ("value_error", "assertion_error"):
        return message.partition(", ")[2]
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"expected a mapping of settings, got {got}"
    expected = message.removeprefix("Input should be ")
    if expected == message:
        return f"{message}, got {got}"
    if kind.endswith(("_parsing", "_type", "_from_float")):
        expected = expected.partition(",")[0].replace("a valid tuple", "a list")
    if kind == "string_type" and isinstance(given, int | float):
        got += f"; put it in quotes: '{given}'"
    return f"expected {expected}, got {got}"


def _about(name: Name, text: str, known: Mapping[Name, Any]) -> tuple[Name, str]:
    """A section's own check may begin with the setting it is about: `batch_size: expected ...`."""
    subject, colon, rest = text.partition(": ")
    inner = (*name, *subject.split("."))
    return (inner, rest) if colon and inner in known else (name, text)


def _nearest(name: Name, known: Mapping[Name, Any]) -> str:
    """What the user may have meant: a like name in this section, then anywhere."""
    siblings = [other for other in known if other[:-1] == name[:-1]]
    for candidates in (siblings, list(known)):
        keys = list(dict.fromkeys(other[-1] for other in candidates))
        for key in difflib.get_close_matches(name[-1], keys, n=1, cutoff=0.6):
            meant = [".".join(other) for other in candidates if other[-1] == key]
            return f"did you mean {' or '.join(meant[:3])}?"
    return f"known here: {', '.join(sorted(other[-1] for other in siblings))}"


# Messages


def _place(name: Name, places: Mapping[Name, _Place], root: _Place) -> _Place:
    """Where a setting was written, or the section it is in."""
    for depth in range(len(name), 0, -1):
        if name[:depth] in places:
            return places[name[:depth]]
    return root


def _shown(path: Path) -> str:
    """A path as a reader knows it: relative to the working folder where possible."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _text_of(path: Path, shown: str) -> str:
    if not path.is_file():
        raise ConfigError(f"{shown}: {_no_file(path)}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: expected a YAML file in UTF-8, got {error}") from error


def _no_file(path: Path) -> str:
    """That a file is missing, and which ones are there."""
    there = sorted(file.name for file in path.parent.glob("*.yaml"))
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5) or there[:10]
    seen = f"in {_shown(path.parent)} there is {', '.join(near) or 'no .yaml'}"
    return f"expected a YAML file, got none named {path.name}; {seen}"


def _unreadable(shown: str, error: yaml.YAMLError) -> str:
    """A YAML error with its line."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    place = shown if mark is None else f"{shown}:{mark.line + 1}"
    return f"{place}: expected YAML, {_problem(error)}"


def _problem(error: yaml.YAMLError) -> str:
    """What the YAML parser says, without its picture of the line."""
    text = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
    return f"got: {text or ' '.join(str(error).split())}"
