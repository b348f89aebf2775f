"""Which segments checkpoints stand on: one small JSON list per checkpoint.

In go a label and segment names, out come names. Kept apart from the store because whether a named
segment is (still) there is not known here.
"""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from mbrl.errors import ReplayError
from mbrl.replay.names import parse_name
from mbrl.run import durable


def pin_path(folder: Path, label: str) -> Path:
    """File of one checkpoint's pin.

    Raises:
        ReplayError: the label is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", label):
        raise ReplayError(f"pin label: expected a plain file name, got {label!r}")
    return folder / f"{label}.json"


def write_pin(path: Path, names: Sequence[str], temporary: Path) -> None:
    """Publish a pin, replacing an older one; `temporary` as in `durable.write_atomically`."""
    durable.write_atomically(path, json.dumps(list(names), indent=0), temporary)


def read_pins(folder: Path) -> set[str]:
    """Names in all pins of a folder.

    Raises:
        ReplayError: a file is no JSON list.
    """
    names: set[str] = set()
    for path in folder.glob("*.json"):
        try:
            names.update(json.loads(path.read_text()))
        except FileNotFoundError:  # unpinned by the trainer since the listing
            continue
        except ValueError as error:
            raise ReplayError(f"{path}: expected a JSON list of names, got {error}") from error
    return names


def oldest_place(names: Collection[str]) -> tuple[int, str, int] | None:
    """Place of the oldest of these segments, be its file there or not; None without any."""
    return min((info.place for info in map(parse_name, names) if info), default=None)
