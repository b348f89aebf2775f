"""The table of environments: `results/worlds.json` as Markdown."""

import json
from pathlib import Path
from typing import Any

from settings_page import markdown_table

FILE = Path(__file__).resolve().parent.parent / "results" / "worlds.json"
COLUMNS = ("check", "train", "evaluate", "replay", "resume", "export")


def content() -> dict[str, Any]:
    """What `mbrl bench worlds` found."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def table(odd: bool) -> str:
    """Others' environments, or the odd ones; those that are not installed are left out."""
    rows = [
        [f"`{name}`" if not odd else name, *([] if odd else [row["package"]]), *_cells(row)]
        for name, row in content()["envs"].items()
        if (row["package"] == "odd") == odd and "installed" not in row
    ]
    first = ["environment"] if odd else ["environment", "package"]
    return markdown_table([*first, *COLUMNS], rows)


def _cells(row: dict[str, str]) -> list[str]:
    """A cell for each column: a tick, or what was said."""
    return [
        {"ok": "✓"}.get(row.get(name, ""), row.get(name, "")).replace("|", "/") for name in COLUMNS
    ]


def counts(odd: bool) -> dict[str, int]:
    """How many rows went through, were refused in a sentence, or failed."""
    rows = [row for row in content()["envs"].values() if (row["package"] == "odd") == odd]
    rows = [row for row in rows if "installed" not in row]
    values = [[row[name] for name in COLUMNS if name in row] for row in rows]
    failed = sum(any(v.startswith("failed") for v in one) for one in values)
    refused = sum(any(v.startswith("refused") for v in one) for one in values)
    return {
        "all": len(rows),
        "fine": len(rows) - failed - refused,
        "refused": refused,
        "failed": failed,
    }


def packages() -> int:
    """How many packages the others' environments come from."""
    rows = content()["envs"].values()
    return len({row["package"] for row in rows if "installed" not in row} - {"odd"})
