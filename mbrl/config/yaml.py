"""The YAML that config files are written in: YAML 1.2's plain types, not YAML 1.1's surprises.

In: text. Out: nodes with line numbers, or values. Only safe types are ever made. It refuses to know
what the text is about.

Where PyYAML's own loader surprises people:

* `1e-4` and `1e5` are numbers; PyYAML reads them as text.
* Only `true` and `false` are booleans; `no`, `on`, `off` and `yes` are text.
* `010` is ten (not eight), `12:30:45` (not 45045) and `2026-11-22` are text.
* `1_000_000` is a million; `0x10` is sixteen.
* `<<` is a key like any other.
"""

import re
from typing import Any

import yaml

_PLAIN_TYPES = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
"""Tag, pattern and possible first characters; the first pattern that fits the whole scalar wins."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain types above."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own way


class Dumper(yaml.SafeDumper):
    """Quotes exactly the text that `Loader` would otherwise read as something else."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


for _tag, _pattern, _first in _PLAIN_TYPES:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(rf"(?:{_pattern})\Z"),
            [*_first, *([""] if _tag == "null" else [])],
        )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 16 if "0x" in text else 10)


Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_value(text: str) -> Any:
    """Read one value, such as the right side of an override; nothing at all is null.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=Loader)  # a subclass of SafeLoader
