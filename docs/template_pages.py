"""The pages of the studies: text in `docs/templates/`, every number in it from `results/`.

A template is Jinja. `{{ pong.pixelcnn.ball_recall }}` is a measure of an arm, and
`{{ table("pong") }}` a table, so no number of a result is typed by hand, and a measure that does
not exist is an error. Appendices need no text: they hold all tables and pictures of one summary.

In: templates, the summaries that `mbrl bench` leaves in `results/`, and pictures. Out: Markdown.
"""

import ast
import functools
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generalisation_page
import jinja2
import worlds_page
from settings_page import markdown_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TEMPLATES, APPENDIX = DOCS / "templates", DOCS / "appendix"
Origin = Callable[[Mapping[str, Any], Path, Path], str]
MARK = "<!-- Made from docs/templates by `python docs/generate.py`; do not edit. -->\n\n"


@dataclass(frozen=True)
class Summary:
    """One summary of a study and where the pages find what belongs to it."""

    study: str
    path: str
    pictures: str
    title: str

    @property
    def file(self) -> Path:
        """The JSON file."""
        return ROOT / "results" / f"{self.path}.json"

    @property
    def appendix(self) -> Path:
        """The page with all of its tables."""
        return APPENDIX / f"{self.study}_{self.pictures}.md"

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """What the file holds."""
        content: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return content


SUMMARIES = {
    "pong": Summary("fidelity", "fidelity/pong", "pong", "Pong, minutes of a CPU"),
    "pong_gpu": Summary("fidelity", "fidelity_long/pong", "long_pong", "Pong, longer, on a GPU"),
    "pong_updates": Summary(
        "fidelity", "fidelity_updates/pong", "updates_pong", "Pong, equal updates, on a GPU"
    ),
    "breakout": Summary("fidelity", "fidelity/breakout", "breakout", "Breakout"),
    "boxing": Summary("fidelity", "fidelity/boxing", "boxing", "Boxing"),
    "texture": Summary(
        "fidelity",
        "fidelity/synthetic_pong_texture",
        "synthetic_pong_texture",
        "Synthetic Pong in front of a texture",
    ),
    "noise": Summary(
        "fidelity",
        "fidelity/synthetic_pong_nuisance",
        "synthetic_pong_nuisance",
        "Synthetic Pong with texture and noise",
    ),
    "flow": Summary("flows", "flows/pong_32", "pong_32", "Flows on Pong, 32 × 32"),
}

CAPTIONS = {
    "fidelity": {
        "samples": "Real held-out frames, and below them samples of the same moment.",
        "samples_variants": "The same, of the variants.",
        "dream_1": "A dream: 16 real frames, then only the real actions.",
        "dream_variants": "The same dream, of the variants.",
        "drift": "Dreams by horizon; thin lines are seeds.",
        "learning": "Training over its minutes; every seed.",
        "field": "By the number of layers; one seed.",
    },
    "flows": {
        "samples": "Samples at several temperatures, below real held-out images.",
        "interpolation": "From one held-out image to another: pixels cross-faded, then each arm.",
        "learning": "Held-out images while training; every seed.",
        "memory": "Memory held for the backward pass of one batch, by steps per scale. Solid: no "
        "sharing; dashed: by level with FiLM and projection.",
    },
    "minatar": generalisation_page.CAPTIONS,
}
"""The pictures that pages show, by study and by the last part of the file's name."""


# Numbers


@dataclass(frozen=True)
class Measure:
    """One measure of an arm: a value per seed. As text: the lowest and the highest."""

    seeds: tuple[float, ...]

    def digits(self, count: int) -> str:
        """`0.87–0.91`, or `0.89` where there is one seed or the two ends look the same."""
        ends = [f"{end(self.seeds):,.{count}f}" for end in (min, max)]
        return "–".join(dict.fromkeys(ends))

    @property
    def spread(self) -> str:
        """How far the seeds are apart, `0.14`."""
        return f"{max(self.seeds) - min(self.seeds):.2f}"

    def __str__(self) -> str:
        return self.digits(2)


class Tree:
    """A summary's arms, to be read as `arms.pixelcnn.drift.15.position_px`."""

    def __init__(self, content: Mapping[str, Any], at: str) -> None:
        """Wrap a nested dict; `at` names it in errors."""
        self._content, self._at = content, at

    def __getitem__(self, key: object) -> Any:
        name, found = f"{self._at}/{key}", self._content.get(str(key))
        if found is None:
            raise ValueError(f"{name}: no such measure in the results")
        if not isinstance(found, Mapping):
            return found
        if "per_seed" not in found:
            return Tree(found, name)
        if None in found["per_seed"]:
            raise ValueError(f"{name}: expected a value of every seed, got {found['per_seed']}")
        return Measure(tuple(found["per_seed"]))


def look_up(tree: Any, path: str) -> Measure | None:
    """A measure by its path, `drift/15/ball_recall`; None if there is none."""
    try:
        found = functools.reduce(lambda branch, key: branch[key], path.split("/"), tree)
    except ValueError:
        return None
    return found if isinstance(found, Measure) else None


# Tables


@dataclass(frozen=True)
class PageTable:
    """The one table of a game: arms by summary, and columns as (heading, path, digits)."""

    arms: Mapping[str, Sequence[str]]
    columns: Sequence[tuple[str, str, int]]


_MAIN = ("world_models", "deconv_categorical", "pixelcnn", "pixelcnn_stagewise", "pixelcnn_past")
_PONG = (
    ("ball", "ball_recall", 2),
    ("own paddle", "own_paddle_recall", 2),
    ("other paddle", "other_paddle_recall", 2),
    ("probe F1", "probe_f1/mean", 2),
    ("ball after 15", "drift/15/ball_recall", 2),
    ("off by, px", "drift/15/position_px", 1),
)
_BEHIND = (
    ("own paddle", "own_paddle_recall", 2),
    ("z reads texture", "nuisance/texture_id/z", 2),
    ("h reads texture", "nuisance/texture_id/h", 2),
)
_ROW = ("z reads ball's row, R²", "positions/z/ball/row_r2", 2)

TABLES = {
    "pong": PageTable(
        {
            "pong": (*_MAIN, "pixelcnn_past_long"),
            "pong_gpu": (
                "world_models_norm",
                *_MAIN[1:],
                "pixelcnn_past_long",
            ),
        },
        _PONG,
    ),
    "breakout": PageTable(
        {"breakout": (*_MAIN, "pixelcnn_past_long")},
        (
            ("ball", "ball_recall", 2),
            ("paddle", "paddle_recall", 2),
            ("probe F1", "probe_f1/mean", 2),
            ("ball after 15", "drift/15/ball_recall", 2),
            ("off by, px", "drift/15/position_px", 1),
        ),
    ),
    "boxing": PageTable(
        {"boxing": _MAIN},
        (
            ("own boxer", "own_boxer_recall", 2),
            ("other boxer", "other_boxer_recall", 2),
            ("probe F1", "probe_f1/mean", 2),
            ("bits per frame", "bits_per_frame", 0),
            ("own boxer after 15", "drift/15/own_boxer_recall", 2),
        ),
    ),
    "texture": PageTable(
        {"texture": ("deconv_categorical", "pixelcnn", "pixelcnn_past", "deconv_past")},
        (*_BEHIND, _ROW),
    ),
    "noise": PageTable(
        {"noise": _MAIN}, (*_BEHIND, ("z reads noise", "nuisance/noise_id/z", 2), _ROW)
    ),
}


def page_table(name: str) -> str:
    """The table of one game, at most eight columns; a dash where an arm has no such measure."""
    wanted = TABLES[name]
    rows = []
    for summary, arms in wanted.arms.items():
        content = SUMMARIES[summary].content
        for arm in arms:
            measures = Tree(content["arms"][arm], f"{summary}/{arm}")
            found = [(look_up(measures, path), digits) for _, path, digits in wanted.columns]
            cells = [measure.digits(digits) if measure else "–" for measure, digits in found]
            rows.append([content["runs"][arm]["title"], training(content, arm), *cells])
    head = ["decoder", "trained", *(title for title, _, _ in wanted.columns)]
    return markdown_table(head, rows).rstrip("\n")


def training(content: Mapping[str, Any], arm: str) -> str:
    """Seeds, minutes and kind of processor of an arm: `3 × 30 CPU min`."""
    about = content["runs"][arm]
    minutes = " or ".join(f"{value:g}" for value in about["cpu_minutes"])
    kind = "GPU" if content["machine"].get("card") else "CPU"
    return f"{len(about['seeds'])} × {minutes} {kind} min"


def flow_table() -> str:
    """The one table of the flow study: a row for each way to share."""
    content = SUMMARIES["flow"].content
    none = content["costs"]["none"]
    rows = []
    for arm in content["arms"]:
        cost, measures = content["costs"][arm], Tree(content["arms"][arm], arm)
        gap = look_up(measures, "gap_to_none")
        bits = look_up(measures, "bits_per_dim")
        rows.append(
            [
                content["runs"][arm]["title"],
                training(content, arm),
                f"{cost['parameters']:,.0f}",
                percent(cost["parameters"], none["parameters"]),
                bits.digits(4) if bits else "–",
                gap.digits(4) if gap else "–",
                percent(cost["saved_bytes"]["plain"], none["saved_bytes"]["plain"]),
                percent(cost["ranks"]["2"]["step_ms"], none["ranks"]["2"]["step_ms"]),
            ]
        )
    head = [
        "sharing",
        "trained",
        "parameters",
        "of no sharing",
        "bits/dim",
        "above no sharing",
        "activations",
        "step, 2 ranks",
    ]
    return markdown_table(head, rows).rstrip("\n")


def percent(value: float, of: float) -> str:
    """`4.8 %`."""
    return f"{100 * value / of:.2g} %" if value < of else f"{100 * value / of:.0f} %"


def study_tables(summary: Summary) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Heading, head and rows of all tables of a summary: the studies' own."""
    if summary.study == "fidelity":
        from mbrl.studies.fidelity.tables import tables
    else:
        from mbrl.studies.flows.tables import tables
    for title, found in tables(summary.content).values():
        yield title, found.head, found.rows


# Pages


def picture(name: str, part: str, up: str = "") -> str:
    """One picture of a summary with its caption; `up` leads from the page's folder to `docs/`."""
    summary = SUMMARIES[name]
    file = f"{summary.study}/{summary.pictures}_{part}.png"
    if not (DOCS / file).exists():
        raise FileNotFoundError(f"{file}: expected a picture, see docs/generate.py --help")
    caption = CAPTIONS[summary.study][part]
    return f"![{caption}]({up}{file})\n\n*{caption}*"


def appendix(name: str, origin: Origin) -> str:
    """Every table and picture of one summary.

    Args:
        name: a key of `SUMMARIES`.
        origin: a sentence about command, commit and machine, from a result, its file and the page.
    """
    summary = SUMMARIES[name]
    parts = [
        f"# {summary.title}: all tables",
        f"What each column means: [how it is measured]({summary.study}_method.md). "
        f"What it says: [the page](../{summary.study}.md) and [notes]({summary.study}_notes.md).",
        origin(summary.content, summary.file, summary.appendix),
    ]
    for title, head, rows in study_tables(summary):
        parts += [f"## {title}", markdown_table(head, rows).rstrip("\n")]
    shown = [
        part
        for part in CAPTIONS[summary.study]
        if (DOCS / summary.study / f"{summary.pictures}_{part}.png").exists()
    ]
    if shown:
        parts += ["## Pictures", *(picture(name, part, "../") for part in shown)]
    return MARK.replace("docs/templates", "results/") + "\n\n".join(parts) + "\n"


def example(name: str) -> str:
    """One complete file of `tests/extending` as a code block; nothing if it is not there."""
    path = ROOT / "tests" / "extending" / name
    if not path.exists():
        return ""
    code = path.read_text(encoding="utf-8").rstrip("\n")
    return f"`tests/extending/{name}`:\n\n```python\n{code}\n```"


def files() -> str:
    """Every module and folder of the packages, with the first paragraph of its docstring."""
    rows = []
    for package in ("mbrl", "agents", "envs"):
        modules = sorted((ROOT / package).glob("*.py"))
        folders = sorted((ROOT / package).glob("*/__init__.py"))
        for path in [*(one for one in modules if not one.stem.startswith("__init")), *folders]:
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            name = path.parent if path.name == "__init__.py" else path
            shown = name.relative_to(ROOT).as_posix() + "/" * (name == path.parent)
            rows.append([f"`{shown}`", about.partition("\n\n")[0].replace("\n", " ")])
    return markdown_table(["file", "what it is"], rows).rstrip("\n")


def symbols() -> str:
    """The table of tensor symbols in the docstring of the world model; nothing if it has none."""
    path = ROOT / "mbrl" / "world_model" / "__init__.py"
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return "\n".join(line for line in about.splitlines() if line.startswith("|"))


def wrap(text: str, width: int = 110) -> str:
    """Fill paragraphs and list items to the width; leave code, tables and headings as they are."""
    blocks = []
    for part in re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE):
        if part.startswith("```"):
            blocks.append(part)
            continue
        for block in re.split(r"(\n{2,})", part):
            plain = block.strip() and not block.lstrip().startswith(("|", "#", "!", "<!--"))
            blocks.append(_fill(block, width) if plain else block)
    return "".join(blocks)


def _fill(block: str, width: int) -> str:
    items = re.split(r"\n(?=\* )", block)
    return "\n".join(
        textwrap.fill(
            " ".join(item.split()),
            width,
            subsequent_indent="  " * item.startswith("* "),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )


def render(template: Path, origin: Origin) -> str:
    """One page from its template; `origin` as in `appendix`."""
    env = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    arms = {name: Tree(one.content["arms"], name) for name, one in SUMMARIES.items()}
    cost = Tree(SUMMARIES["flow"].content["costs"], "flow/costs")
    made = env.from_string(template.read_text(encoding="utf-8")).render(
        **arms,
        cost=cost,
        about=Tree(SUMMARIES["flow"].content["about"], "flow/about"),
        latency=Tree(SUMMARIES["flow"].content["latency"], "flow/latency"),
        updates=lambda name, arm: Measure(tuple(SUMMARIES[name].content["runs"][arm]["updates"])),
        percent=percent,
        table=page_table,
        flow_table=flow_table,
        picture=picture,
        example=example,
        files=files,
        symbols=symbols,
        generalisation=lambda: generalisation_page.numbers(origin),
        worlds=worlds_page,
        worlds_origin=lambda: origin(worlds_page.content(), worlds_page.FILE, DOCS / "worlds.md"),
    )
    return MARK + wrap(made)


def pages(origin: Origin) -> dict[Path, str]:
    """Every page that comes from a template or from a summary, and what should be in it."""
    templates = {
        DOCS / path.relative_to(TEMPLATES).with_suffix(""): render(path, origin)
        for path in sorted(TEMPLATES.rglob("*.md.j2"))
    }
    appendices = {one.appendix: appendix(name, origin) for name, one in SUMMARIES.items()}
    return {**templates, **appendices}
