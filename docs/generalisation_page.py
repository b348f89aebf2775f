"""The numbers of docs/generalisation.md: `results/minatar/model.json` in, Markdown out.

The file is made by `mbrl bench fidelity minatar_GAME`. As long as there is none, the page says so.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from settings_page import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "minatar" / "model.json"
DOCS = ROOT / "docs"
CAPTIONS = {
    "f1": "F1 after 0, 1, 5 and 10 dreamt steps. Solid: new episodes, thin lines are seeds; "
    "dashed: the episodes trained on.",
    "dreams": "A new episode, the real game played again with other random numbers, and dreams.",
}
"""The pictures of a game, by the last part of the file's name."""
STEPS = ("0", "1", "5", "10")
NOTHING = "No results are recorded in this checkout yet."
Origin = Callable[[Mapping[str, Any], Path, Path], str]


def numbers(origin: Origin) -> str:
    """All tables and pictures of the page, and where the numbers come from."""
    if not RESULTS.exists():
        return NOTHING
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    games = content["games"]
    parts = [overview(games), origin(content, RESULTS, DOCS / "generalisation.md")]
    for name, game in games.items():
        title = name.replace("_", " ").capitalize()
        parts += [f"## {title}", game_table(game), *pictures(name)]
    return "\n\n".join(parts)


def overview(games: Mapping[str, Any]) -> str:
    """A row for each game and arm: its worst channel, and what the heads say."""
    rows = []
    for name, game in games.items():
        for arm, beside in game["beside"].items():
            about = game["runs"][arm]
            shares = [value(beside["least_of_best"].get(step), 2) for step in ("1", "10")]
            heads = [value(beside["heads"].get(name), 3) for name in ("goes_on", "ends", "paid")]
            rows.append(
                [
                    name.replace("_", " "),
                    f"{about['title']}, {len(about['seeds'])} seeds",
                    value(beside["least"]["0"], 2),
                    *shares,
                    *heads,
                ]
            )
    head = ["game", "arm", "picture", "share of best, 1", "10", "goes on", "at an ending", "paid"]
    return markdown_table(head, rows).rstrip("\n")


def game_table(game: Mapping[str, Any]) -> str:
    """A row for each channel; in each cell F1 after 0, 1, 5 and 10 steps."""
    arms = {game["runs"][arm]["title"]: scores for arm, scores in game["layouts"].items()}
    trained = {f"{game['runs'][arm]['title']}, trained on": s for arm, s in game["train"].items()}
    first = dict(list(trained.items())[:1])  # of the arm that the study is about
    columns = {
        "copy of the last frame": game["copy_last"],
        **arms,
        **first,
        "the game, played again": game["best_possible"],
    }
    rows = [
        [
            channel.replace("_", " "),
            *(" ".join(value(s[step].get(channel), 2) for step in STEPS) for s in columns.values()),
        ]
        for channel in game["best_possible"]["0"]
    ]
    return markdown_table(["channel", *columns], rows).rstrip("\n")


def pictures(game: str) -> list[str]:
    """The pictures of a game that are there, with their captions."""
    return [
        f"![{caption}](minatar/{game}_{part}.png)\n\n*{caption}*"
        for part, caption in CAPTIONS.items()
        if (DOCS / "minatar" / f"{game}_{part}.png").exists()
    ]


def value(statistics: Mapping[str, Any] | None, digits: int) -> str:
    """A mean over seeds, or a dash where there is none."""
    if statistics is None or statistics["mean"] is None:
        return "–"
    return f"{statistics['mean']:.{digits}f}"
