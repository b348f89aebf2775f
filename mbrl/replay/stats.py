"""What is in a replay store, computed from file names and footers only; no row is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mbrl.episode import uncovered
from mbrl.replay.layout import NO_LAYOUT, Layout, StreamType
from mbrl.replay.segment import FragmentInfo, SegmentHeader


@dataclass(frozen=True, kw_only=True)
class ReplayStats:
    """Totals of a store; returns are raw reward sums.

    A fragment without rows that are new is not counted; one with new rows counts in full.

    Attributes:
        layout: of the rows; `NO_LAYOUT` in an empty store.
        segments: files.
        episodes: whole episodes, from their first row to their final observation.
        partial_episodes: episodes of which some rows are missing (running, cut off, evicted).
        steps, rows: rows that hold an action, and all rows.
        disk_bytes, raw_bytes: size of the files, and of the same rows uncompressed in memory.
        return_mean, return_min, return_max, length_mean: over whole episodes; nan without one.
        policy_version_min, policy_version_max: versions that chose the actions; 0 if empty.
        env_steps_total: steps the run had collected at the newest segment.
        quarantined: broken files that were moved away.
    """

    layout: Layout
    segments: int
    episodes: int
    partial_episodes: int
    steps: int
    rows: int
    disk_bytes: int
    raw_bytes: int
    return_mean: float
    return_min: float
    return_max: float
    length_mean: float
    policy_version_min: int
    policy_version_max: int
    env_steps_total: int
    quarantined: int

    @property
    def compression(self) -> float:
        """Raw bytes per byte on disk."""
        return self.raw_bytes / self.disk_bytes if self.disk_bytes else float("nan")


def summarise(
    headers: Sequence[SegmentHeader], disk_bytes: int, env_steps_total: int, quarantined: int
) -> ReplayStats:
    """Add up the footers of a store's segments, in its order; the rest as in `ReplayStats`."""
    episodes: dict[str, list[FragmentInfo]] = {}
    for header in headers:
        for fragment in header.fragments:
            spans = [(f.t0, f.t0 + f.rows) for f in episodes.get(fragment.eps_id, [])]
            if uncovered(fragment.t0, fragment.rows, spans):
                episodes.setdefault(fragment.eps_id, []).append(fragment)
    whole = [parts for parts in episodes.values() if _is_whole(parts)]
    returns = [sum(part.reward_sum for part in parts) for parts in whole]
    known = [part for parts in episodes.values() for part in parts]
    layout = headers[-1].layout if headers else NO_LAYOUT
    rows = sum(part.rows for part in known)
    versions = [part.policy_version for part in known] or [0]
    lengths = [sum(part.steps for part in parts) for parts in whole]
    return ReplayStats(
        layout=layout,
        segments=len(headers),
        episodes=len(whole),
        partial_episodes=len(episodes) - len(whole),
        steps=sum(part.steps for part in known),
        rows=rows,
        disk_bytes=disk_bytes,
        raw_bytes=rows * layout.row_bytes,
        return_mean=float(np.mean(returns)) if returns else float("nan"),
        return_min=min(returns, default=float("nan")),
        return_max=max(returns, default=float("nan")),
        length_mean=float(np.mean(lengths)) if lengths else float("nan"),
        policy_version_min=min(versions),
        policy_version_max=max(versions),
        env_steps_total=env_steps_total,
        quarantined=quarantined,
    )


def format_stats(stats: ReplayStats) -> str:
    """Render totals as text for a terminal, one fact per line."""
    layout = stats.layout
    ratio = f" ({stats.compression:.1f} : 1)" if stats.disk_bytes else ""
    lines = [
        ("environment", layout.env_id or "unknown"),
        ("observation", ", ".join(map(_stream, layout.obs)) if stats.segments else "none yet"),
        ("segments", f"{stats.segments:,} ({stats.quarantined:,} broken, moved to bad/)"),
        ("episodes", f"{stats.episodes:,} whole, {stats.partial_episodes:,} in part"),
        ("steps", f"{stats.steps:,} ({stats.rows:,} rows)"),
        ("collected until", f"env step {stats.env_steps_total:,}"),
        ("disk", f"{_size(stats.disk_bytes)}, {_size(stats.raw_bytes)} uncompressed{ratio}"),
    ]
    if stats.episodes:
        spread = f"(min {stats.return_min:.2f}, max {stats.return_max:.2f})"
        lines.append(("return", f"mean {stats.return_mean:.2f} {spread}"))
        lines.append(("episode length", f"mean {stats.length_mean:.1f} steps"))
    if stats.segments:
        versions = f"{stats.policy_version_min} to {stats.policy_version_max}"
        lines.append(("policy versions", versions))
    return "\n".join(f"{name:<16} {text}" for name, text in lines)


def _stream(stream: StreamType) -> str:
    """A stream in words; the only one of an observation needs no name."""
    name = "" if stream.column == "obs" else f"{stream.column} "
    return f"{name}{' x '.join(map(str, stream.shape)) or 'scalar'} {stream.dtype}"


def _is_whole(parts: Sequence[FragmentInfo]) -> bool:
    ordered = sorted(parts, key=lambda part: part.t0)
    joined = all(a.t0 + a.rows == b.t0 for a, b in pairwise(ordered))
    return joined and ordered[0].t0 == 0 and ordered[-1].ended


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
