"""Tables of the flow study: a summary in, rows of text out (`mbrl.studies.tables`).

What is learnt stands with its 95 % interval where there are three seeds or more; costs are measured
once. A share is of what the arm without sharing has. Times by the clock that were taken while other
work ran on the machine are marked, and not to be trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from mbrl.studies.flows.arms import DEFAULT, REFERENCE
from mbrl.studies.flows.cost import MODES, SAMPLED
from mbrl.studies.flows.step import TRUSTED
from mbrl.studies.results import look, look_up
from mbrl.studies.tables import (
    DASH,
    Column,
    Rows,
    cell,
    measured_rows,
    not_empty,
    number,
    share,
    summary_rows,
    terminal_table,
)

Summary = Mapping[str, Any]

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


def _parameter_share(summary: Summary, arm: str) -> str:
    runs = summary["runs"]
    return share(runs[arm]["parameters"], runs.get(REFERENCE, {}).get("parameters"))


def _diverged(summary: Summary, arm: str) -> str:
    about = summary["runs"][arm]
    return f"{about['diverged']} of {len(about['seeds'])}"


def _minutes_to(title: str, name: str) -> Column:
    """The mean of the runs that get there, and how many of all do: `10.0, 2 of 3`."""

    def text(summary: Summary, arm: str) -> str:
        statistics = look_up(summary["arms"][arm], name)
        if statistics is None:
            return DASH
        there = [one for one in statistics["per_seed"] if one is not None]
        return f"{cell(statistics, 1)}, {len(there)} of {len(statistics['per_seed'])}"

    return Column(title, name, text=text)


_PARAMETERS = Column("parameters", "", text=lambda s, arm: number(s["runs"][arm]["parameters"]))
_DIVERGED = Column("diverged", "", text=_diverged)
_BITS = (Column("bits/dim", "bits_per_dim", 4), Column("above no sharing", "gap_to_none", 4))
_MAIN = (
    _PARAMETERS,
    Column("of no sharing", "", text=_parameter_share),
    *_BITS,
    Column("after equal updates", "gap_at_updates", 4),
    Column("on training images", "train_bits_per_dim", 4),
    _minutes_to("CPU min to where no sharing is at half time", "minutes_to/half"),
    _minutes_to("CPU min to where it ends", "minutes_to/end"),
    Column("train, ms per image", "train_ms_per_image", 1),
    _DIVERGED,
)


def tables(summary: Summary) -> dict[str, tuple[str, Rows]]:
    """Every table of a study that has something in it, by name, with its heading."""
    wanted = {
        "main": ("Main arms", summary_rows(summary, _MAIN, main=True)),
        "variants": ("Variants", summary_rows(summary, _MAIN, main=False)),
        "images": ("What the images cost without a model", _images(summary)),
        "parameters": ("Parameters, and bytes of a checkpoint", _cost_rows(summary, _SIZES)),
        "memory": ("Memory of training, MB of one batch", _cost_rows(summary, _MEMORY, MODES)),
        "depth": ("Kept for the backward pass, MB, by steps per scale", _depth(summary)),
        "time": ("Time of a training step, ms", _time(summary)),
        "samples": ("Samples by temperature: exactly one of each object", _samples(summary)),
        "interpolation": ("Half of the way between two images", _interpolation(summary)),
        "latency": (f"Drawing {SAMPLED} images", _latency(summary)),
    }
    return not_empty(wanted)


def _title(summary: Summary, arm: str) -> str:
    known = summary["runs"].get(arm)
    return str(known["title"]) if known else arm


def _images(summary: Summary) -> Rows:
    found = summary["about"].get("baselines", {})
    words = {
        "uniform": "every level alike",
        "marginal": "each place's own frequencies",
        "copy_last": "the last frame, or those frequencies",
        "png": "PNG files",
        "png_data": "PNG files, compressed data alone",
    }
    rows = [[words[name], number(found[name], 4)] for name in words if found.get(name) is not None]
    return Rows(["code", "bits/dim"], rows, list(words)[: len(rows)])


@dataclass(frozen=True)
class Cost:
    """One number of an arm's costs."""

    title: str
    path: str  # its place among the costs
    digits: int = 0  # behind the point
    unit: float = 1.0  # that it is written in
    of: str = ""  # its share of this number of the arm without sharing is written instead
    ranks: str = ""  # timed by the clock on so many ranks, which other work may have disturbed


def _cost_rows(summary: Summary, columns: Sequence[Cost], modes: Sequence[str] = ("",)) -> Rows:
    """One row for each arm that has costs, or for each of its memory modes: `*` in paths."""
    costs = summary["costs"]
    reference = costs.get(REFERENCE, {})

    def text(cost: Mapping[str, Any], column: Cost, mode: str) -> str:
        value = look(cost, column.path.replace("*", mode))
        timed = [cost, reference] if column.of else [cost]
        busy = BUSY if column.ranks and any(is_busy(one, column.ranks) for one in timed) else ""
        if column.of:
            return share(value, look(reference, column.of)) + busy
        return number(None if value is None else value / column.unit, column.digits) + busy

    named = ["memory"] if any(modes) else []
    rows = [
        [_title(summary, arm), *[mode for _ in named], *(text(cost, one, mode) for one in columns)]
        for arm, cost in costs.items()
        for mode in modes
    ]
    head = ["arm", *named, *(column.title for column in columns)]
    return Rows(head, rows, [arm for arm in costs for _ in modes])


_SIZES = (
    Cost("parameters", "parameters"),
    Cost("of no sharing", "parameters", of="parameters"),
    Cost("checkpoint, MB", "checkpoint_bytes", 2, _MB),
    Cost("buffers beside it, MB", "buffer_bytes", 2, _MB),
)
_MEMORY = (
    Cost("kept for backward", "saved_bytes/*", 1, _MB),
    Cost("its share", "saved_bytes/*", of="saved_bytes/plain"),
    Cost("with weights and optimizer", "training_bytes/*", 1, _MB),
    Cost("its share", "training_bytes/*", of="training_bytes/plain"),
    Cost("peak resident", "peak_rss_bytes/*", 1, _MB),
    Cost("its share", "peak_rss_bytes/*", of="peak_rss_bytes/plain"),
)
"""One row for each arm and way to keep activations; shares are of no sharing, all kept."""


def _depth(summary: Summary) -> Rows:
    rows, arms, depths = [], [], []
    for arm in [arm for arm in summary["costs"] if arm in (REFERENCE, DEFAULT)]:
        for mode, by_depth in summary["costs"][arm]["saved_by_steps"].items():
            depths, saved = list(by_depth), list(by_depth.values())
            values = [number(value / _MB, 2) for value in saved]
            rows.append([_title(summary, arm), mode, *values, f"{saved[-1] / saved[0]:.2f}"])
            arms.append(arm)
    return Rows(["arm", "memory", *(f"K = {d}" for d in depths), "last to first"], rows, arms)


def _time(summary: Summary) -> Rows:
    columns = [Cost(f"CPU, {mode}", f"step_cpu_ms/{mode}") for mode in MODES]
    for n in sorted({n for cost in summary["costs"].values() for n in cost["ranks"]}, key=int):
        at = f"ranks/{n}"
        columns += [
            Cost(f"{n} rank{'s' * (n != '1')}", f"{at}/step_ms", ranks=n),
            Cost("of no sharing", f"{at}/step_ms", of=f"{at}/step_ms", ranks=n),
            Cost("resident, MB", f"{at}/peak_rss_bytes", 0, _MB),
        ]
        if n != "1":
            columns += [
                Cost("communication", f"{at}/communication_ms", ranks=n),
                Cost("all-reduce alone", f"{at}/all_reduce_ms", 2, ranks=n),
                Cost("all-reduce, MB", f"{at}/all_reduce_bytes", 2, _MB),
            ]
        columns += [Cost("load before", f"{at}/load_before", 1)]
    return _cost_rows(summary, columns)


def is_busy(cost: Mapping[str, Any], ranks: str) -> bool:
    """Whether others used the machine when a step on so many ranks was timed."""
    return (look(cost, f"ranks/{ranks}/load_before") or 0.0) > TRUSTED


def _samples(summary: Summary) -> Rows:
    temperatures = sorted(
        {name for arm in summary["arms"].values() for name in arm.get("samples", {})} - {"real"}
    )
    columns = [Column(f"T = {t}", f"samples/{t}/right") for t in temperatures]
    columns += [Column("real images", "samples/real/right")]
    columns += [Column(f"invalid, T = {t}", f"samples/{t}/invalid") for t in temperatures]
    found = measured_rows(summary, columns)
    rows = [[row[0], *row[3:]] for row in found.rows]
    return Rows([found.head[0], *found.head[3:]], rows, found.arms)


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


def _latency(summary: Summary) -> Rows:
    """Milliseconds of flows and of PixelCNN's samplers by size, each beside the best sampler."""
    timed: list[tuple[str, str, Mapping[str, float]]] = [
        (arm, f"flow, {_title(summary, arm)}", cost["sample_ms"])
        for arm, cost in summary["costs"].items()
    ]
    by_size = summary["latency"]
    for name in next(iter(by_size.values()), {}):
        title = "flow of a decoder's size (K = 6, width 32)"
        title = title if name == "flow" else f"PixelCNN, {name.replace('_', ' ')}"
        timed.append((name, title, {size: by_size[size][name] for size in by_size}))
    sizes = list(dict.fromkeys(size for _, _, ms in timed for size in ms))
    head, rows = ["what"], [[title] for _, title, _ in timed]
    for size in sizes:
        samplers = [ms for name, ms in by_size.get(size, {}).items() if name != "flow"]
        head += [f"{size}, ms", f"{size}, beside the best"]
        for row, (_, _, ms) in zip(rows, timed, strict=True):
            row += [number(ms.get(size)), _beside(ms.get(size), min(samplers, default=None))]
    return Rows(head, rows, [arm for arm, _, _ in timed])


def _beside(ms: float | None, best: float | None) -> str:
    """Which is faster, and by what factor."""
    if ms is None or best is None:
        return DASH
    if ms == best:
        return "the best"
    return f"{best / ms:,.1f} × faster" if ms < best else f"{ms / best:,.1f} × slower"


def terminal(summary: Summary) -> Table:
    """A few numbers of every arm, for a terminal; the report has intervals and all the rest."""
    baselines = summary["about"].get("baselines", {})
    known = ", ".join(f"{name} {v:.3f}" for name, v in baselines.items() if v is not None)
    return terminal_table(
        f"{summary['images']}, bits per dimension of held-out images",
        f"without a model: {known}" if known else "",
        summary_rows(summary, [_PARAMETERS, *_BITS, _DIVERGED]),
        padding=1,
    )
