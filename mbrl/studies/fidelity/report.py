"""The report of a study: a summary, its trials and their pictures in, one HTML file out.

The file is self-contained, like every report here. The same figures and picture sheets are also
written as PNG into `figures/`, from where the documentation takes them (`docs/generate.py`). Words
and layout are in `report.html.j2`; every reason to doubt a number that can be found in the data
stands at its top.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mbrl.report.figures import to_svg
from mbrl.report.html import commit_warnings, machine_text, render
from mbrl.studies.fidelity.arms import ARMS, REFERENCE
from mbrl.studies.fidelity.figures import colour, figures, main_arms
from mbrl.studies.fidelity.pictures import Pictures, sample_sheet, strip_sheet
from mbrl.studies.fidelity.tables import tables
from mbrl.studies.panels import data_url, save_png

Summary = Mapping[str, Any]

_CAPTIONS = {
    "drift": "Open-loop dreams after 16 real frames, with the real actions. Thin: every seed, and "
    "the means of variants; thick: means of the main arms. A ball is recalled if it is within its "
    "radius of the real one and its region holds hardly anything else; distance is the median. "
    "Of a ball, only dreams count whose real one was in play from start to horizon.",
    "cost": "What fidelity costs. Large: mean of an arm; small: every seed. Up and left is better. "
    "Runs that another processor had a part in are left out; how fast this one was at the time "
    "still differs, by which alone seeds of an arm do.",
    "learning": "Training of the main arms, every seed, over the CPU time it is given. Squared "
    "errors are no likelihood and are left out on the right.",
    "field": "The same PixelCNN with 1 to 8 layers on blocks of 4 x 4 pixels, one seed, half the "
    "main arms' budget: more layers see farther and make fewer updates.",
}
_SAMPLES = (
    "Free-running samples of held-out frames: no pixel of them was shown to the decoder. "
    "The same moments for every arm."
)
_MAX_STRIPS = 3


def write_report(folder: Path, summary: Summary, trials: Sequence[Mapping[str, Any]]) -> Path:
    """Write `report.html` and the PNG files.

    Args:
        folder: the study's folder, with the run folders of the trials.
        summary: of `mbrl.studies.fidelity.results.aggregate`.
        trials: of `mbrl.studies.fidelity.results.read_trials`.

    Returns:
        The HTML file.
    """
    drawn = figures(summary, trials)
    for name, figure in drawn.items():
        save_png(figure, folder / "figures" / f"{name}.png")
    sheets = picture_sheets(folder, summary)
    return render(
        folder / "report.html",
        "studies/fidelity/report.html.j2",
        title=f"What decoders keep of {summary['game']}",
        summary=summary,
        warnings=_warnings(summary),
        tables=[{"title": title, "rows": rows} for title, rows in tables(summary).values()],
        palette={arm: colour(arm) for arm in summary["arms"]},
        notes={arm: ARMS[arm].note if arm in ARMS else "" for arm in summary["arms"]},
        figures=[
            {"svg": Markup(to_svg(figure)), "caption": _CAPTIONS[name]}
            for name, figure in drawn.items()
        ],
        sheets=[{"url": data_url(path), "caption": caption} for path, caption in sheets],
        protocol=_protocol(summary),
    )


def picture_sheets(folder: Path, summary: Summary) -> list[tuple[Path, str]]:
    """Write the sheets of samples and dreams; each path with its caption.

    Each arm is shown by its first seed that has pictures here (a result made elsewhere has none),
    main arms before the others.
    """
    drawn: dict[str, Pictures] = {}
    mains = main_arms(summary)
    for arm in [*mains, *(arm for arm in summary["arms"] if arm not in mains)]:
        seeds = summary["runs"][arm]["seeds"]
        paths = [folder / f"{arm}-{seed}" / "pictures.npz" for seed in seeds]
        if path := next(filter(Path.exists, paths), None):
            drawn[arm] = Pictures.read(path)
    if not drawn:
        return []
    titles = {arm: summary["runs"][arm]["title"] for arm in drawn}
    claim = {titles[arm]: one for arm, one in drawn.items() if arm in mains}
    others = {titles[arm]: one for arm, one in drawn.items() if arm not in mains}
    sheets = []
    for name, arms in (("samples", claim), ("samples_variants", others)):
        if arms:
            path = sample_sheet(folder / "figures" / f"{name}.png", arms)
            sheets.append((path, _SAMPLES))
    shown = claim or others
    first = next(iter(shown.values()))
    dreams = min(_MAX_STRIPS, len(first.strips)) if len(first.horizons) else 0
    strips = [(f"dream_{which + 1}", shown, which) for which in range(dreams)]
    if dreams and claim and others:
        strips.append(("dream_variants", others, 0))
    for name, arms, which in strips:
        path = strip_sheet(folder / "figures" / f"{name}.png", arms, which)
        sheets.append((path, "Open-loop dreams: 16 real frames, then only the real actions."))
    return sheets


def _warnings(summary: Summary) -> list[str]:
    """Reasons to doubt the numbers."""
    runs = summary["runs"]
    warnings = []
    few = [about["title"] for about in runs.values() if about["main"] and len(about["seeds"]) < 3]
    if few:
        warnings.append(f"Fewer than three seeds, hence no interval: {', '.join(few)}.")
    others = [about for about in runs.values() if not about["main"]]
    if others and len(others) < len(runs):
        warnings.append(
            "Variants and ablations have fewer seeds or a smaller budget than main arms: compare "
            f"them with {ARMS[REFERENCE].title}, not with the main arms."
        )
    budgets = {tuple(about["cpu_minutes"]) for about in runs.values() if about["main"]}
    if len(budgets) > 1:
        warnings.append("The main arms were not trained for the same time.")
    if len({tuple(about["steps"]) for about in runs.values()}) > 1:
        warnings.append("Not all runs learnt from the same number of frames.")
    if any(about["quick"] for about in runs.values()):
        warnings.append("Measured on a few frames only (--quick): not to be quoted.")
    if summary.get("other_machines"):
        warnings.append("The runs were made on different machines, so CPU time does not compare.")
    return warnings + commit_warnings(summary["commit"].split(", "))


def _protocol(summary: Summary) -> dict[str, str]:
    """What was done, as name and value."""
    steps = sorted({step for about in summary["runs"].values() for step in about["steps"]})
    return {
        "game": str(summary["game"]),
        "frames": f"{' or '.join(f'{step:,}' for step in steps)} agent steps, the same for all",
        "budget": "CPU minutes of one thread per run, or minutes on a graphics card: "
        "`runs` in the tables is seeds × minutes",
        "measures": "held-out episodes; every measure is defined in docs/fidelity.md",
        "machine": machine_text(summary["machine"]),
        "commit": str(summary["commit"]),
        "command": str(summary["command"]),
    }
