"""The report of a study: a summary, its tables, figures and pictures in, one HTML file out.

The file is self-contained, like every report here. The same figures and picture sheets are also
written as PNG into `figures/`, from where the documentation takes them (`docs/generate.py`). Words
and layout are in `report.html.j2`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from mbrl.report.figures import save_png, to_svg
from mbrl.report.html import commit_warnings, data_url, machine_text, render
from mbrl.studies.arms import Arm
from mbrl.studies.results import FEWEST_SEEDS
from mbrl.studies.tables import Tables

Summary = Mapping[str, Any]
# Okabe & Ito (2008); yellow is left out, it vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#8a8f98"


def write_page(
    folder: Path,
    summary: Summary,
    *,
    title: str,
    lead: str,
    arms: Mapping[str, Arm],
    colour: Callable[[str], str],
    tables: Tables,
    figures: Mapping[str, Figure],
    captions: Mapping[str, str],
    sheets: Sequence[tuple[Path, str]],
    warnings: Sequence[str],
    protocol: Mapping[str, str],
) -> Path:
    """Write `report.html`, and the figures as PNG; returns the HTML file.

    `lead` says how the numbers of `summary` are to be read, `colour` is an arm's as in the figures,
    `sheets` are files of pictures with their captions. `warnings` are reasons to doubt the numbers
    and `protocol` says what was done, each beside what all studies share.
    """
    for name, figure in figures.items():
        save_png(figure, folder / "figures" / f"{name}.png")
    shown = {arm for _, rows in tables.values() for arm in rows.arms}
    return render(
        folder / "report.html",
        "studies/report.html.j2",
        title=title,
        lead=lead,
        warnings=[*warnings, *doubts(summary)],
        tables=[{"title": heading, "rows": rows} for heading, rows in tables.values()],
        palette={arm: colour(arm) for arm in shown},
        notes={arm: arms[arm].note if arm in arms else "" for arm in shown},
        figures=[
            {"svg": Markup(to_svg(figure)), "caption": captions[name]}
            for name, figure in figures.items()
        ],
        sheets=[
            {"url": data_url(path, "image/png"), "caption": caption} for path, caption in sheets
        ],
        protocol={
            **protocol,
            "machine": machine_text(summary["machine"]),
            "commit": str(summary["commit"]),
            "command": str(summary["command"]),
        },
    )


def doubts(summary: Summary) -> list[str]:
    """Reasons to doubt the numbers of any study."""
    runs = list(summary["runs"].values())
    few = [one["title"] for one in runs if one["main"] and len(one["seeds"]) < FEWEST_SEEDS]
    warnings = []
    if few:
        warnings.append(f"Fewer than three seeds, hence no interval: {', '.join(few)}.")
    if any(about["quick"] for about in runs):
        warnings.append("Measured on a little only (--quick): not to be quoted.")
    if summary.get("other_machines"):
        warnings.append("The runs were made on different machines, so CPU time does not compare.")
    return warnings + commit_warnings(summary["commit"].split(", "))
