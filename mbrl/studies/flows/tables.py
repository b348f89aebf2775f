"""Tables of the flow study: one summary (`studies.flows.results.aggregate`) in, rows of text out.

The terminal, the HTML report and the documentation all show these rows, so they cannot disagree.
What is learnt stands with its 95 % interval where there are three seeds or more; costs are measured
once. A ratio is to the arm without sharing. What is not there is a dash. Times by the clock that
were taken while others used the machine are marked, and not to be trusted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mbrl.studies.fidelity.results import look_up
from mbrl.studies.fidelity.tables import DASH, Column, Rows, cell, summary_rows
from mbrl.studies.flows.arms import DEFAULT, REFERENCE
from mbrl.studies.flows.cost import MODES, SAMPLED
from mbrl.studies.flows.step import TRUSTED

Summary = Mapping[str, Any]

TABLES = (
    *("main", "variants", "images", "parameters", "memory", "depth", "time"),
    *("samples", "interpolation", "latency"),
)
"""Names of all tables."""

_BITS = (
    Column("bits/dim", "bits_per_dim", 4),
    Column("above no sharing", "gap_to_none", 4),
    Column("after equal updates", "gap_at_updates", 4),
    Column("on training images", "train_bits_per_dim", 4),
    Column("CPU min to where no sharing is at half time", "minutes_to/half", 1),
    Column("CPU min to where it ends", "minutes_to/end", 1),
    Column("train, ms per image", "train_ms_per_image", 1),
)
_PATH = (
    ("right", "one of each", 2),
    ("seen", "seen", 2),
    ("straightness", "straightness", 2),
    ("monotonicity", "forward steps", 2),
    ("largest_step", "largest step", 1),
    ("bits_rise", "bits/dim above ends", 3),
)
_MB = 1e6
BUSY = " (busy)"
"""Behind a time by the clock that others' work on the machine has spoilt."""


def tables(summary: Summary) -> dict[str, tuple[str, Rows]]:
    """Every table of a study that has something in it, by name, with its heading."""
    wanted = {
        "main": ("Main arms", _bits(summary, main=True)),
        "variants": ("Variants", _bits(summary, main=False)),
        "images": ("What the images cost without a model", _images(summary)),
        "parameters": ("Parameters, and bytes of a checkpoint", _parameters(summary)),
        "memory": ("Memory of training, MB of one batch", _memory(summary)),
        "depth": ("Kept for the backward pass, MB, by steps per scale", _depth(summary)),
        "time": ("Time of a training step, ms", _time(summary)),
        "samples": ("Samples by temperature: exactly one of each object", _samples(summary)),
        "interpolation": ("Half of the way between two images", _interpolation(summary)),
        "latency": (f"Drawing {SAMPLED} images", _latency(summary)),
    }
    return {name: (title, rows) for name, (title, rows) in wanted.items() if rows.rows}


def _title(summary: Summary, arm: str) -> str:
    known = summary["runs"].get(arm)
    return str(known["title"]) if known else arm


def _number(value: float | None, digits: int = 0) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, to: float | None) -> str:
    """A share in percent, `3.5 %`."""
    return DASH if value is None or not to else f"{100 * value / to:.3g} %"


def _look(tree: Mapping[str, Any], name: str) -> Any:
    """A number of a tree of costs by its path; None if it is not there."""
    branch: Any = tree
    for part in name.split("/"):
        branch = branch.get(part) if isinstance(branch, Mapping) else None
    return branch


def _cost_rows(summary: Summary) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Every arm with its costs and those of the reference."""
    costs = summary["costs"]
    reference = costs.get(REFERENCE, {})
    return [(arm, costs[arm], reference) for arm in costs]


def _bits(summary: Summary, main: bool) -> Rows:
    """Bits per dimension, parameters and divergences."""
    runs = summary["runs"]
    there = summary_rows(summary, _BITS, main=main)
    reference = runs.get(REFERENCE, {}).get("parameters")
    reached = {one.title: one for one in _BITS if one.name.startswith("minutes_to/")}
    rows = []
    for arm, row in zip(there.arms, there.rows, strict=True):
        about = runs[arm]
        for place, title in enumerate(there.head):
            if title in reached:
                row[place] = _reached(summary, arm, reached[title])
        size = [_number(about["parameters"]), _ratio(about["parameters"], reference)]
        rows.append([*row[:3], *size, *row[3:], f"{about['diverged']} of {len(about['seeds'])}"])
    head = [*there.head[:3], "parameters", "of no sharing", *there.head[3:], "diverged"]
    return Rows(head, rows, there.arms)


def _reached(summary: Summary, arm: str, column: Column) -> str:
    """The mean of the runs that get there, and how many of all do: `10.0, 2 of 3`."""
    runs = len(summary["runs"][arm]["seeds"])
    statistics = look_up(summary["arms"][arm], column.name)
    if statistics is None:
        return DASH
    there = [one for one in statistics["per_seed"] if one is not None]
    return f"{cell(statistics, column.digits)}, {len(there)} of {runs}"


def _images(summary: Summary) -> Rows:
    found = summary["about"].get("baselines", {})
    words = {
        "uniform": "every level alike",
        "marginal": "each place's own frequencies",
        "copy_last": "the last frame, or those frequencies",
        "png": "PNG files",
        "png_data": "PNG files, compressed data alone",
    }
    rows = [[words[name], _number(found[name], 4)] for name in words if found.get(name) is not None]
    return Rows(["code", "bits/dim"], rows, list(words)[: len(rows)])


def _parameters(summary: Summary) -> Rows:
    rows = [
        [
            _title(summary, arm),
            _number(cost["parameters"]),
            _ratio(cost["parameters"], to.get("parameters")),
            *(_number(cost[kind] / _MB, 2) for kind in ("checkpoint_bytes", "buffer_bytes")),
        ]
        for arm, cost, to in _cost_rows(summary)
    ]
    head = ["arm", "parameters", "of no sharing", "checkpoint, MB", "buffers beside it, MB"]
    return Rows(head, rows, list(summary["costs"]))


def _memory(summary: Summary) -> Rows:
    """One row for each arm and way to keep activations; ratios are to no sharing, all kept."""
    rows, arms = [], []
    for arm, cost, to in _cost_rows(summary):
        for mode in MODES:
            row = [_title(summary, arm), mode]
            for kind in ("saved_bytes", "training_bytes", "peak_rss_bytes"):
                size = cost[kind][mode]
                row += [_number(size / _MB, 1), _ratio(size, _look(to, f"{kind}/plain"))]
            rows.append(row)
            arms.append(arm)
    head = ["arm", "memory", "kept for backward", "its share"]
    head += ["with weights and optimizer", "its share", "peak resident", "its share"]
    return Rows(head, rows, arms)


def _depth(summary: Summary) -> Rows:
    rows, arms, depths = [], [], []
    for arm, cost, _ in _cost_rows(summary):
        if arm not in (REFERENCE, DEFAULT):
            continue
        for mode in MODES:
            by_depth = cost["saved_by_steps"][mode]
            depths = list(by_depth)
            values = [_number(value / _MB, 2) for value in by_depth.values()]
            growth = by_depth[depths[-1]] / by_depth[depths[0]]
            rows.append([_title(summary, arm), mode, *values, f"{growth:.2f}"])
            arms.append(arm)
    return Rows(["arm", "memory", *(f"K = {d}" for d in depths), "last to first"], rows, arms)


def _time(summary: Summary) -> Rows:
    costs = _cost_rows(summary)
    counts = sorted({n for _, cost, _ in costs for n in cost["ranks"]}, key=int)
    rows = []
    for arm, cost, to in costs:
        row = [_title(summary, arm)]
        row += [_number(cost["step_cpu_ms"][mode]) for mode in MODES]
        for n in counts:
            step, load = (_look(cost, f"ranks/{n}/{name}") for name in ("step_ms", "load_before"))
            spoilt = BUSY if is_busy(cost, n) else ""
            to_spoilt = BUSY if is_busy(cost, n) or is_busy(to, n) else ""
            row += [_number(step) + spoilt]
            row += [_ratio(step, _look(to, f"ranks/{n}/step_ms")) + to_spoilt]
            row += [_number((_look(cost, f"ranks/{n}/peak_rss_bytes") or 0) / _MB, 0)]
            if n != "1":
                row += [
                    _number(_look(cost, f"ranks/{n}/communication_ms")) + spoilt,
                    _number(_look(cost, f"ranks/{n}/all_reduce_ms"), 2) + spoilt,
                    _number((_look(cost, f"ranks/{n}/all_reduce_bytes") or 0) / _MB, 2),
                ]
            row += [_number(load, 1)]
        rows.append(row)
    head = ["arm", *(f"CPU, {mode}" for mode in MODES)]
    for n in counts:
        head += [f"{n} rank{'s' * (n != '1')}", "of no sharing", "resident, MB"]
        head += [] if n == "1" else ["communication", "all-reduce alone", "all-reduce, MB"]
        head += ["load before"]
    return Rows(head, rows, [arm for arm, _, _ in costs])


def is_busy(cost: Mapping[str, Any], ranks: str) -> bool:
    """Whether others used the machine when a step on so many ranks was timed."""
    return (_look(cost, f"ranks/{ranks}/load_before") or 0.0) > TRUSTED


def _samples(summary: Summary) -> Rows:
    temperatures = sorted(
        {name for arm in summary["arms"].values() for name in arm.get("samples", {})} - {"real"}
    )
    columns = [Column(f"T = {t}", f"samples/{t}/right") for t in temperatures]
    columns += [Column("real images", "samples/real/right")]
    columns += [Column(f"invalid, T = {t}", f"samples/{t}/invalid") for t in temperatures]
    return _some(summary, columns)


def _interpolation(summary: Summary) -> Rows:
    """Two rows for each arm: through its latents, and the same ends cross-faded."""
    rows, arms = [], []
    for arm, measures in summary["arms"].items():
        pairs = cell(look_up(measures, "interpolation/pairs_apart"), 0)
        for kind, way in (("flow", "latents"), ("fade", "cross-fade")):
            found = {name: look_up(measures, f"interpolation/{kind}/{name}") for name, *_ in _PATH}
            if any(found.values()):
                scores = [cell(found[name], digits) for name, _, digits in _PATH]
                rows.append([_title(summary, arm), way, *scores, pairs])
                arms.append(arm)
    return Rows(["arm", "through", *(title for _, title, _ in _PATH), "pairs"], rows, arms)


def _some(summary: Summary, columns: Sequence[Column]) -> Rows:
    """Rows of the arms that have something to say in these columns."""
    found = summary_rows(summary, columns)
    kept = [
        (arm, row)
        for arm, row in zip(found.arms, found.rows, strict=True)
        if any(text != DASH for text in row[3:])
    ]
    head = [found.head[0], *found.head[3:]]
    return Rows(head, [[row[0], *row[3:]] for _, row in kept], [arm for arm, _ in kept])


def _latency(summary: Summary) -> Rows:
    """Milliseconds of flows and of PixelCNN's samplers by size, each beside the best sampler."""
    timed: list[tuple[str, str, dict[str, float]]] = [
        (arm, f"flow, {_title(summary, arm)}", cost["sample_ms"])
        for arm, cost, _ in _cost_rows(summary)
    ]
    by_size = summary["latency"]
    for name in next(iter(by_size.values()), {}):
        title = "flow of a decoder's size (K = 6, width 32)"
        title = title if name == "flow" else f"PixelCNN, {name.replace('_', ' ')}"
        timed.append((name, title, {size: by_size[size][name] for size in by_size}))
    sizes = list(dict.fromkeys(size for _, _, ms in timed for size in ms))
    best = {
        size: min(ms for name, ms in by_size[size].items() if name != "flow") for size in by_size
    }
    rows = [
        [
            title,
            *(
                text
                for size in sizes
                for text in (_number(ms.get(size)), _beside(ms.get(size), best.get(size)))
            ),
        ]
        for _, title, ms in timed
    ]
    head = [text for size in sizes for text in (f"{size}, ms", f"{size}, beside the best")]
    return Rows(["what", *head], rows, [arm for arm, _, _ in timed])


def _beside(ms: float | None, best: float | None) -> str:
    """Which is faster, and by what factor."""
    if ms is None or best is None or ms == best:
        return DASH if ms is None or best is None else "the best"
    return f"{best / ms:,.1f} × faster" if ms < best else f"{ms / best:,.1f} × slower"


def terminal_table(summary: Summary) -> Table:
    """A few numbers of every arm, for a terminal; the report has intervals and all the rest."""
    baselines = summary["about"].get("baselines", {})
    known = ", ".join(f"{name} {v:.3f}" for name, v in baselines.items() if v is not None)
    table = Table(
        title=f"{summary['images']}, bits per dimension of held-out images",
        caption=f"without a model: {known}" if known else None,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    rows = summary_rows(summary, _BITS[:2])
    for title in [*rows.head[:3], "parameters", *rows.head[3:], "diverged"]:
        first = title == "arm"
        table.add_column(title, justify="left" if first else "right", no_wrap=not first)
    for arm, row in zip(rows.arms, rows.rows, strict=True):
        about = summary["runs"][arm]
        means = [text.partition(" (")[0] for text in row[1:]]
        ended = f"{about['diverged']} of {len(about['seeds'])}"
        table.add_row(row[0], *means[:2], _number(about["parameters"]), *means[2:], ended)
    return table
