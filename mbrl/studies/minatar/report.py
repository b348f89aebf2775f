"""The report of one of MinAtar's games: what `mbrl.studies.report` shows of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl.studies.minatar.arms import ARMS
from mbrl.studies.minatar.figures import colour, figures
from mbrl.studies.minatar.pictures import Pictures, dream_sheet
from mbrl.studies.minatar.tables import tables
from mbrl.studies.report import write_page

Summary = Mapping[str, Any]

_LEAD = (
    "Every arm learnt from the same env steps of one policy, the same number of rows, and is "
    "judged on new episodes of that policy. F1 is of a channel's set cells in free-running "
    "samples, while dreaming with the real actions. What the cloned game allows is the real game "
    "played again from the same moment with other random numbers. A number with an interval is "
    "the mean of three seeds or more with its 95\u00a0% bootstrap interval."
)
_CAPTIONS = {
    "f1": "F1 of each channel after 0, 1, 5 and 10 dreamt steps. Solid: new episodes, thin lines "
    "are seeds. Dashed: the episodes that were trained on. Far above the solid line, a model "
    "knows its replay by heart.",
}
_DREAMS = (
    "A window of a new episode in which much moves: what happened, the real game played again "
    "with other random numbers (black once it has ended), and dreams with the real actions."
)


def write_report(folder: Path, summary: Summary) -> Path:
    """Write `report.html` and the PNG files; `folder` has the run folders of the trials."""
    runs = summary["runs"].values()
    steps = sorted({step for about in runs for step in about["steps"]})
    policies = sorted({policy for about in runs for policy in about["policies"]})
    warnings = [
        f"The runs did not all learn from the same {what}."
        for what, name in (("number of steps", "steps"), ("policy", "policies"))
        if len({tuple(about[name]) for about in runs}) > 1
    ]
    return write_page(
        folder,
        summary,
        title=f"What models learn of MinAtar's {summary['game'].replace('_', ' ')}",
        lead=_LEAD,
        arms=ARMS,
        colour=colour,
        tables=tables(summary),
        figures=figures(summary),
        captions=_CAPTIONS,
        sheets=dream_sheets(folder, summary),
        warnings=warnings,
        protocol={
            "game": str(summary["game"]),
            "experience": f"{' or '.join(f'{step:,}' for step in steps)} env steps of the policy "
            f"{' or '.join(policies)}; other episodes of each seed",
            "budget": "a number of updates, the same for all arms; minutes only bound it",
            "measures": "defined in docs/generalisation.md",
        },
    )


def dream_sheets(folder: Path, summary: Summary) -> list[tuple[Path, str]]:
    """Write the sheet of dreams with its caption; none if no arm has pictures here.

    Seeds differ in their episodes, so all arms are shown by the first seed that has pictures.
    """
    for seed in summary["seeds"]:
        drawn = {
            summary["runs"][arm]["title"]: Pictures.read(path)
            for arm in summary["arms"]
            if (path := folder / f"{arm}-{seed}" / "pictures.npz").exists()
        }
        if drawn:
            return [(dream_sheet(folder / "figures" / "dreams.png", drawn), _DREAMS)]
    return []
