"""The report of the fidelity study: what `mbrl.studies.report` shows of a game."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl.studies.fidelity.arms import ARMS, REFERENCE
from mbrl.studies.fidelity.figures import colour, figures, main_arms
from mbrl.studies.fidelity.pictures import Pictures, sample_sheet, strip_sheet
from mbrl.studies.fidelity.tables import tables
from mbrl.studies.report import write_page

Summary = Mapping[str, Any]

_LEAD = (
    "Every arm learnt from the same frames for the same CPU time; each measure is taken on frames "
    "of other episodes. A number with an interval is the mean of three seeds or more with its "
    "95\u00a0% bootstrap interval; a number alone has fewer."
)
_CAPTIONS = {
    "drift": "Open-loop dreams after 16 real frames, with the real actions. Thin: every seed, and "
    "the means of variants; thick: means of the main arms. Of a ball, only dreams count whose real "
    "one was in play from start to horizon.",
    "learning": "Training of the main arms, every seed, over the CPU time it is given. Squared "
    "errors are no likelihood and are left out on the right.",
    "field": "The same PixelCNN with 1 to 8 layers on blocks of 4 x 4 pixels, one seed, half the "
    "main arms' budget: more layers see farther and make fewer updates.",
}
_SAMPLES = (
    "Free-running samples of held-out frames: no pixel of them was shown to the decoder. "
    "The same moments for every arm."
)
_DREAMS = "Open-loop dreams: 16 real frames, then only the real actions."


def write_report(folder: Path, summary: Summary, trials: Sequence[Mapping[str, Any]]) -> Path:
    """Write `report.html` and the PNG files; `folder` has the run folders of the trials."""
    steps = sorted({step for about in summary["runs"].values() for step in about["steps"]})
    return write_page(
        folder,
        summary,
        title=f"What decoders keep of {summary['game']}",
        lead=_LEAD,
        arms=ARMS,
        colour=colour,
        tables=tables(summary),
        figures=figures(summary, trials),
        captions=_CAPTIONS,
        sheets=picture_sheets(folder, summary),
        warnings=_warnings(summary),
        protocol={
            "game": str(summary["game"]),
            "frames": f"{' or '.join(f'{step:,}' for step in steps)} agent steps, the same for all",
            "budget": "CPU minutes of one thread per run, or minutes on a GPU: `runs` in the "
            "tables is seeds × minutes",
            "measures": "held-out episodes; every measure is defined in docs/fidelity.md",
        },
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
    titles = {arm: summary["runs"][arm]["title"] for arm in drawn}
    claim = {titles[arm]: one for arm, one in drawn.items() if arm in mains}
    others = {titles[arm]: one for arm, one in drawn.items() if arm not in mains}
    wanted = (
        ("samples", sample_sheet, claim, _SAMPLES),
        ("samples_variants", sample_sheet, others, _SAMPLES),
        ("dream_1", strip_sheet, claim or others, _DREAMS),
        ("dream_variants", strip_sheet, claim and others, _DREAMS),
    )
    return [
        (make(folder / "figures" / f"{name}.png", arms), caption)
        for name, make, arms, caption in wanted
        if arms
    ]


def _warnings(summary: Summary) -> list[str]:
    """Reasons to doubt the numbers."""
    runs = list(summary["runs"].values())
    mains = [about for about in runs if about["main"]]
    warnings = []
    if 0 < len(mains) < len(runs):
        warnings.append(
            "Variants and ablations have fewer seeds or a smaller budget than main arms: compare "
            f"them with {ARMS[REFERENCE].title}, not with the main arms."
        )
    if len({tuple(about["cpu_minutes"]) for about in mains}) > 1:
        warnings.append("The main arms were not trained for the same time.")
    if len({tuple(about["steps"]) for about in runs}) > 1:
        warnings.append("Not all runs learnt from the same number of frames.")
    return warnings
