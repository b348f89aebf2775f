"""Tables of the flow study: one summary (`mbrl.flows.results.aggregate`) in, rows of text out.

The terminal, the HTML report and the documentation all show these rows, so they cannot disagree.
What is learnt stands with its 95 % interval where there are three seeds or more; costs are measured
once. A ratio is to the arm without sharing. What is not there is a dash.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mbrl.fidelity.tables import DASH, Column, Rows, summary_rows
from mbrl.flows.arms import DEFAULT, REFERENCE
from mbrl.flows.cost import MODES, SAMPLED

Summary = Mapping[str, Any]

TABLES = (
    *("main", "variants", "images", "memory", "depth", "time"),
    *("samples", "interpolation", "latency"),
)
"""Names of all tables."""

_BITS = (
    Column("bits/dim", "bits_per_dim", 4),
    Column("above no sharing", "gap_to_none", 4),
    Column("on training images", "train_bits_per_dim", 4),
    Column("CPU min to its half", "minutes_to/half", 1),
    Column("CPU min to its end", "minutes_to/end", 1),
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


def tables(summary: Summary) -> dict[str, tuple[str, Rows]]:
    """Every table of a study that has something in it, by name, with its heading."""
    wanted = {
        "main": ("Main arms", _bits(summary, main=True)),
        "variants": ("Variants", _bits(summary, main=False)),
        "images": ("What the images cost without a model", _images(summary)),
        "memory": ("Memory of training, MB of one batch", _memory(summary)),
        "depth": ("Kept for the backward pass, MB, by steps per scale", _depth(summary)),
        "time": ("Time of a training step, ms", _time(summary)),
        "samples": ("Samples with exactly one of each object, by temperature", _samples(summary)),
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
    rows = []
    for arm, row in zip(there.arms, there.rows, strict=True):
        about = runs[arm]
        size = [_number(about["parameters"]), _ratio(about["parameters"], reference)]
        rows.append([*row[:3], *size, *row[3:], f"{about['diverged']} of {len(about['seeds'])}"])
    head = [*there.head[:3], "parameters", "of no sharing", *there.head[3:], "diverged"]
    return Rows(head, rows, there.arms)


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


def _memory(summary: Summary) -> Rows:
    rows, arms = [], []
    for arm, cost, to in _cost_rows(summary):
        whole = _look(to, "training_bytes/plain")
        row = [_title(summary, arm), _number(cost["parameters"])]
        row += [_ratio(cost["parameters"], to.get("parameters"))]
        row += [_number(cost["checkpoint_bytes"] / _MB, 2)]
        for kind in ("saved_bytes", "training_bytes", "peak_rss_bytes"):
            row += [_number(cost[kind][mode] / _MB, 1) for mode in MODES]
        row += [_ratio(cost["training_bytes"][mode], whole) for mode in MODES]
        rows.append(row)
        arms.append(arm)
    head = ["arm", "parameters", "of no sharing", "checkpoint"]
    for title in ("kept", "in all", "resident"):
        head += [f"{title}, {mode}" for mode in MODES]
    return Rows([*head, *(f"{mode}, of no sharing plain" for mode in MODES)], rows, arms)


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
            step = _look(cost, f"ranks/{n}/step_ms")
            row += [_number(step), _ratio(step, _look(to, f"ranks/{n}/step_ms"))]
            if n != "1":
                row += [
                    _number(_look(cost, f"ranks/{n}/communication_ms")),
                    _number(_look(cost, f"ranks/{n}/all_reduce_ms"), 2),
                    _number((_look(cost, f"ranks/{n}/all_reduce_bytes") or 0) / _MB, 2),
                ]
        rows.append(row)
    head = ["arm", *(f"CPU, {mode}" for mode in MODES)]
    for n in counts:
        head += [f"{n} rank{'s' * (n != '1')}", "of no sharing"]
        head += [] if n == "1" else ["communication", "all-reduce alone", "all-reduce, MB"]
    return Rows(head, rows, [arm for arm, _, _ in costs])


def _samples(summary: Summary) -> Rows:
    temperatures = sorted(
        {name for arm in summary["arms"].values() for name in arm.get("samples", {})} - {"real"}
    )
    columns = [Column(f"T = {t}", f"samples/{t}/right") for t in temperatures]
    return _some(summary, [*columns, Column("real images", "samples/real/right")])


def _interpolation(summary: Summary) -> Rows:
    columns = [
        Column(f"{title}, {way}", f"interpolation/{kind}/{name}", digits)
        for name, title, digits in _PATH
        for kind, way in (("flow", "flow"), ("fade", "cross-fade"))
    ]
    return _some(summary, columns)


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
    """Milliseconds of flows and of PixelCNN's samplers, and the best sampler's time over each."""
    samplers = summary["samplers"]
    best = min(samplers.values(), default=None)
    timed = [
        (arm, f"flow, {_title(summary, arm)}", cost["sample_ms"])
        for arm, cost, _ in _cost_rows(summary)
    ]
    timed += [(name, f"PixelCNN, {name.replace('_', ' ')}", ms) for name, ms in samplers.items()]
    times = [DASH if best is None else f"{best / ms:.2g} ×" for _, _, ms in timed]
    rows = [[row[1], _number(row[2]), ratio] for row, ratio in zip(timed, times, strict=True)]
    return Rows(["what", "ms", "faster than the best PixelCNN"], rows, [arm for arm, _, _ in timed])


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
