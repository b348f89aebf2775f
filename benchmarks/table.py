"""Make `docs/benchmarks.md` from the results that the benchmarks wrote; nobody types a number.

python -m benchmarks.table             write the page
python -m benchmarks.table --check     change nothing; exit code 1 if the page is out of date
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import number

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = [
    ROOT / "results" / name
    for name in (
        "benchmarks/world_model.json",
        "benchmarks/imagine.json",
        "benchmarks/samplers.json",
        "replay/peers.json",
        "benchmarks/collect.json",
    )
]

INTRODUCTION = """\
# Benchmarks

Made from `results/` by `python -m benchmarks.table`; do not edit. `make bench` measures again.

Figures are medians of rounds in which the contestants take turns in one process, on one thread. A
ratio is the median of the rounds' own ratios, so it need not be the quotient of the two medians.
Speeds depend on the machine and on what else it was doing; ratios far less.

`minatar`, `atari_pong` and `cluster` are this project with the config of that name. What exactly is
measured, and what makes a comparison fair or unfair, is at the top of each `benchmarks/*.py`.
"""


def section(result: dict[str, Any]) -> str:
    """One benchmark as Markdown: title, table, where it comes from."""
    lines = [f"## {result['title'].rstrip('.')}", ""]
    lines += ["| what | figure | compared to | ratio |", "| --- | ---: | --- | ---: |"]
    for row in result["rows"]:
        against, ratio = row["against"], ""
        if row["ratio"] is not None:
            against += f" ({number(row['against_value'])} {row['unit']})"
            ratio = f"{number(row['ratio'])} ×"
        figure = f"{number(row['value'])} {row['unit']}"
        lines.append(f"| {row['what']} | {figure} | {against} | {ratio} |")
    machine, packages = result["machine"], result["packages"]
    lines += [
        "",
        f"`{result['command']}`, {result['rounds']} rounds, commit `{result['commit'][:12]}"
        f"{'-dirty' * result['commit'].endswith('-dirty')}`; "
        f"{machine['cpu']}, {machine['cores']} cores, load average {result['load_average']}, "
        f"Python {machine['python']}, torch {packages['torch']}, ray {packages['ray']}, "
        f"numpy {packages['numpy']}.",
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page, from the results that exist."""
    results = [json.loads(path.read_text()) for path in RESULTS if path.exists()]
    return "\n".join([INTRODUCTION, *(section(result) for result in results)])


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is out of date: run python -m benchmarks.table")


if __name__ == "__main__":
    main()
