"""docs/configuration.md: every setting, made from the pydantic models and the shipped configs.

In: the models of `mbrl.config.schema` and the first comments in `configs/`. Out: Markdown.
"""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from envs.families import FAMILIES, PLAIN, SETTINGS
from mbrl.config.kinds import models_of
from mbrl.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent

INTRODUCTION = """\
# Every setting

Made from the code by `python docs/generate.py`; do not edit.

A config is a YAML file that holds only what differs from the defaults below. `extends: other.yaml`
(or a list of files, relative to this one) puts it on top of others: sections merge, everything
else replaces. On the command line `key=value` pairs with dots come after the file:

```
mbrl train configs/minatar.yaml seed=1 policy.horizon=10 env.id=MinAtar/Asterix-v1
```

`--check` reads and checks, `--print-config` prints the resolved settings; neither starts Ray. All
mistakes are reported at once, each with its file and line. Only `true` and `false` are booleans;
`no` and `on` are text. `null` means "not given".

A run folder belongs to its settings: another command on the same folder is refused, unless only
`env_steps`, `device`, `name` or something under `run` differs.
"""


def sections(model: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of the settings with its dotted name, outermost first; one for each kind."""
    yield name, model
    for key, field in model.model_fields.items():
        for inner in models_of(field):
            yield from sections(inner, f"{name}.{key}".lstrip("."))


def settings(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of one section that are not sections themselves."""
    return {key: field for key, field in model.model_fields.items() if not models_of(field)}


def _title(name: str, model: type[BaseModel]) -> str:
    """A section's name, and its kind if there are several."""
    kind = model.model_fields.get("kind")
    only = kind is not None and len(get_args(kind.annotation)) == 1
    return f"`{name}`, `kind: {kind.default}`" if kind is not None and only else f"`{name}`"


def type_text(field: FieldInfo) -> str:
    """A setting's type and range in words: `integer >= 1`, `list of numbers`, `"a" or "b"`."""
    text = _kind_text(field.annotation)
    limits = {type(limit).__name__: limit for limit in field.metadata}
    bounds = [
        f"{sign} {getattr(limits[name], name.lower()):g}"
        for name, sign in (("Gt", ">"), ("Ge", "≥"), ("Lt", "<"), ("Le", "≤"))
        if name in limits
    ]
    pattern = next((p for m in field.metadata if (p := getattr(m, "pattern", None))), None)
    parts = [text, ", ".join(bounds), f"like `{pattern}`" if pattern else ""]
    return " ".join(part for part in parts if part)


def _kind_text(kind: Any) -> str:
    plain = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
    if kind in plain:
        return plain[kind]
    arguments = [part for part in get_args(kind) if part not in (type(None), Ellipsis)]
    origin = get_origin(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_kind_text(arguments[0])}s"
    if origin is dict:
        return "mapping"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_kind_text, arguments))
    raise TypeError(f"expected a type with a name in docs/generate.py, got {kind}; add one")


def default_text(field: FieldInfo) -> str:
    """A setting's default as it would be written in YAML."""
    if field.is_required():
        return "required"
    return f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def configuration() -> str:
    """The page `docs/configuration.md`."""
    parts = [INTRODUCTION, _shipped(), "## Settings\n"]
    for name, model in sections(Config):
        rows = [
            [f"`{f'{name}.{key}'.lstrip('.')}`", type_text(field), default_text(field),
             (field.description or "").replace("<", "&lt;")]
            for key, field in settings(model).items()
        ]  # fmt: skip
        about = (model.__doc__ or "").strip().split("\n\n")[0]
        title = f"### {_title(name, model)}" if name else "### Top level"
        if rows:
            table = markdown_table(["setting", "type", "default", "meaning"], rows)
            parts.append(f"{title}\n\n{' '.join(about.split())}\n\n{table}")
        if name == "env":
            parts.append(_families())
    return "\n".join(parts)


def _shipped() -> str:
    """What is in `configs/`, in the words of each file's first comment."""
    rows = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        comment = re.match(r"(?:#.*\n)+", text)
        words = " ".join(comment[0].replace("#", " ").split()) if comment else ""
        extends = yaml.safe_load(text).get("extends")
        rows.append([f"`{path.name}`", f"`{extends}`" if extends else "", words])
    table = markdown_table(["file", "extends", "what it is"], rows)
    return f"## Files that are shipped\n\n{table}"


def _families() -> str:
    """Which preprocessing each family of environments takes, and its defaults."""
    defaults = {f"`{prefix}…`": family.defaults for prefix, family in FAMILIES.items()}
    defaults["any other id, any factory"] = PLAIN.defaults
    names = list(SETTINGS)
    rows = [
        [ids, *(f"`{_yaml(family[name])}`" if name in family else "–" for name in names)]
        for ids, family in defaults.items()
    ]
    words = "What `null` stands for, by family; – is refused, because the family cannot honour it."
    return f"{words}\n\n{markdown_table(['id', *names], rows)}"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )
