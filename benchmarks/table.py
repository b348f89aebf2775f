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
PEERS = ROOT / "results" / "peers" / "training.json"

INTRODUCTION = """\
# Benchmarks

Made from `results/` by `python -m benchmarks.table`; do not edit. `make bench` measures again, and
`make peers` the comparison with other packages, each in an environment of its own.

Figures are medians of rounds in which the contestants take turns on one thread, in one process but
for the peers, whose speeds are by CPU time. A ratio is the median of the rounds' own ratios, so it
need not be the quotient of the two medians. Speeds depend on the machine and on what else it was
doing; ratios far less.

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


def peers_section(result: dict[str, Any]) -> str:
    """The comparison with peers as Markdown: a system a line, then where it comes from."""
    kinds = {kind: f"{kind} score" for kind in ("greedy", "sampled")}
    head = [
        "system",
        "frames",
        "parameters",
        "replayed rows/s",
        "imagined steps/s",
        *kinds.values(),
    ]
    lines = [f"## {result['title'].rstrip('.')}", "", f"| {' | '.join(head)} |"]
    lines.append("| --- | --- |" + " ---: |" * (len(head) - 2))
    for name, system in result["systems"].items():
        speeds = [system.get(key) for key in ("replayed_frames_per_s", "imagined_steps_per_s")]
        size, score = system.get("parameters"), system.get("score", {})
        cells = [
            f"{system['what']} (`{name}`)",
            system["frames"],
            f"{size / 1e6:.2f} M" if size else "–",
            *(number(value) if value else "–" for value in speeds),
            *(f"{score[kind]:.2f}" if kind in score else "–" for kind in kinds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, system in result["systems"].items():
        if "failed" in system:
            lines += [f"`{name}` failed: {system['failed'].rstrip('.')}.", ""]
    return "\n".join([*lines, *_trained(result), _measured(result)]) + "\n"


def _trained(result: dict[str, Any]) -> list[str]:
    """What stands behind the scores: steps of the game, replayed rows and time of each system."""
    parts = []
    for name, system in result["systems"].items():
        if runs := system.get("runs"):
            steps = ", ".join(f"{run['env_steps']:,}" for run in runs)
            rows = ", ".join(f"{run['replayed_rows']:,}" for run in runs)
            minutes = ", ".join(f"{run['wall_s'] / 60:.1f}" for run in runs)
            parts.append(f"`{name}` {steps} steps, {rows} rows, {minutes} min")
    if not parts:
        return []
    episodes = sorted(
        {
            len(run["score"]["greedy"]["returns"])
            for system in result["systems"].values()
            for run in system.get("runs", [])
        }
    )
    played = " or ".join(map(str, episodes))
    return [
        f"Scores are mean returns of {played} episodes of `{result['game']}`, one training run per "
        f"seed. Real steps, replayed rows and time of each: {'; '.join(parts)}.",
        "",
    ]


def _measured(result: dict[str, Any]) -> str:
    """Command, commit, machine and versions behind the comparison with peers."""
    systems, machine = result["systems"].values(), result["machine"]
    packages = {n: v for system in systems for n, v in system.get("packages", {}).items()}
    commands = dict.fromkeys(f"`{system['command']}`" for system in systems)
    commits = dict.fromkeys(f"`{system['commit'][:12]}`" for system in systems)
    loads = [system["load_average"] for system in systems]
    return (
        f"{', '.join(commands)}, commit {', '.join(commits)}; {machine['cpu']}, one core, load "
        f"average {min(loads)} to {max(loads)}, Python {machine['python']}, "
        f"{', '.join(f'{name} {version}' for name, version in packages.items())}."
    )


def page() -> str:
    """The whole page, from the results that exist."""
    results = [json.loads(path.read_text()) for path in RESULTS if path.exists()]
    sections = [section(result) for result in results]
    if PEERS.exists():
        sections.append(peers_section(json.loads(PEERS.read_text())))
    return "\n".join([INTRODUCTION, *sections])


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
