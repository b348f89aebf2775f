"""A folder of immutable segments: the durable half of replay.

    <directory>/data/      visible segments, nothing else
    <directory>/_tmp/      unfinished files of living writers
    <directory>/bad/       broken files, moved out of the way and counted
    <directory>/unpinned/  segments newer than the checkpoint that a run resumed from
    <directory>/pins/      one JSON list of segment names per checkpoint

Any number of processes may commit and read at once: a commit is one rename, there is no lock, no
manifest and no shared counter, and a file's name says what it holds. In go episodes, out come
episodes in the order in which they were collected. The store knows nothing about batches.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mbrl.episode import Episode, joined, uncovered
from mbrl.errors import ReplayError
from mbrl.replay.layout import Layout, describe, layout_of
from mbrl.replay.segment import (
    SegmentHeader,
    SegmentVersionError,
    decode_segment,
    encode_segment,
    read_header,
)
from mbrl.replay.spaces import Space, space_from_json, space_to_json
from mbrl.replay.stats import ReplayStats, summarise
from mbrl.run import durable
from mbrl.streams import types_of

SEGMENT_ROWS = 16_384  # of a segment that is made of many episodes at once
STALE_AFTER_S = 3600.0  # no writer needs an hour for one file

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_WRITER = re.compile(r"[A-Za-z0-9_.]+")
_NAME = re.compile(
    r"e(?P<env_steps_total>\d{12,})-(?P<writer>[A-Za-z0-9_.]+)-(?P<seq>\d{6,})"
    r"-n(?P<steps>\d+)-r(?P<rows>\d+)-k(?P<episodes_ended>\d+)-(?P<content>[0-9a-f]{8})\.parquet"
)


@dataclass(frozen=True, kw_only=True, order=True)
class SegmentInfo:
    """What a file name says; sorts in the order in which a run collected.

    Attributes:
        env_steps_total: steps the run had collected when the segment was committed.
        writer: which collector wrote it; letters, digits, "_" and ".".
        seq: counts the segments of this writer.
        steps, rows: rows that hold an action, and all rows.
        episodes_ended: final observations in it.
        content: first 8 hex digits of the content's SHA-256, so equal runs give equal names.
    """

    env_steps_total: int
    writer: str
    seq: int
    steps: int
    rows: int
    episodes_ended: int
    content: str

    @property
    def name(self) -> str:
        """The file name."""
        return (
            f"e{self.env_steps_total:012d}-{self.writer}-{self.seq:06d}-n{self.steps}"
            f"-r{self.rows}-k{self.episodes_ended}-{self.content}.parquet"
        )

    @property
    def place(self) -> tuple[int, str, int]:
        """What orders segments: (env_steps_total, writer, seq)."""
        return self.env_steps_total, self.writer, self.seq


def parse_name(name: str) -> SegmentInfo | None:
    """Read a file name; None if it is not one of ours."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    texts = ("writer", "content")
    found = {key: text if key in texts else int(text) for key, text in match.groupdict().items()}
    return SegmentInfo(**found)  # type: ignore[arg-type]


def describe_segment(
    header: SegmentHeader, env_steps_total: int, writer: str, seq: int
) -> SegmentInfo:
    """A segment's name, from its footer and its place in the order."""
    return SegmentInfo(
        env_steps_total=env_steps_total,
        writer=writer,
        seq=seq,
        steps=sum(fragment.steps for fragment in header.fragments),
        rows=header.rows,
        episodes_ended=sum(fragment.ended for fragment in header.fragments),
        content=header.sha256[:8],
    )


class ReplayStore:
    """Segments of one environment in one folder, which is made at the first commit.

    `env_id` and the spaces of observations and actions are recorded in each segment; "" and None
    take over what the folder already says.

    Attributes:
        quarantined: broken files this object has moved to `bad/`.
        lost: names that a checkpoint asked this object for, and that it goes on without.
    """

    def __init__(
        self,
        directory: Path | str,
        env_id: str = "",
        spaces: tuple[Space, Space] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.data = self.directory / "data"
        self._temporary, self._pins = self.directory / "_tmp", self.directory / "pins"
        self.quarantined, self.lost = 0, set[str]()
        self._env_id = env_id
        self._spaces, self._types = ("", ""), dict[str, tuple[str, tuple[int, ...]]]()
        if spaces is not None:
            self._spaces = space_to_json(spaces[0]), space_to_json(spaces[1])
            types = types_of(spaces[0]).items()
            self._types = {column: (dtype.name, shape) for column, (shape, dtype) in types}
        self._layout: Layout | None = None
        self._next_seq: dict[str, int] = {}
        self._swept = False

    def commit(self, episodes: Sequence[Episode], writer: str, env_steps_total: int) -> SegmentInfo:
        """Publish fragments, in the order of replay, as one new segment, whole or not at all.

        The same episodes committed by the same history get the same name.

        Args:
            episodes: the fragments.
            writer: who collected them; letters, digits, "_" and ".". No two living processes may
                share one.
            env_steps_total: steps the run has collected, these included; >= 0.

        Raises:
            ReplayError: rows that break the contract of `Episode`, or rows unlike those already in
                the store.
            DiskError: a full disk.
        """
        if not _WRITER.fullmatch(writer):
            raise ReplayError(
                f'writer: expected letters, digits, "_" and ".", got {writer!r}; it becomes part '
                "of a file name whose fields are separated by dashes"
            )
        if env_steps_total < 0:
            raise ReplayError(f"env_steps_total: expected 0 or more, got {env_steps_total}")
        if not self._swept:
            self.sweep()
        layout = self._agreed_layout(layout_of(episodes, self._env_id, self._spaces))
        self._check_columns(layout)
        data = encode_segment(episodes, layout.env_id, layout.spaces)
        seq = self._next_seq.get(writer)
        if seq is None:
            seq = 1 + max((s.seq for s in self.segments() if s.writer == writer), default=-1)
        info = describe_segment(read_header(data), env_steps_total, writer, seq)
        durable.write_atomically(self.data / info.name, data, self._temporary)
        self._layout = layout
        self._next_seq[writer] = seq + 1
        return info

    def segments(self) -> list[SegmentInfo]:
        """List the visible segments in collected order; other parquet files are moved to `bad/`."""
        found = []
        for name in os.listdir(self.data) if self.data.is_dir() else ():
            info = parse_name(name)
            if info is not None:
                found.append(info)
            elif name.endswith(".parquet"):
                self._quarantine(name, "its name is not a segment's")
        return sorted(found)

    def read(self, info: SegmentInfo) -> list[Episode]:
        """Read and prove one segment.

        There are no episodes if the file is broken, which is then moved to `bad/` and counted, or
        if another process evicted it since the listing.

        Raises:
            SegmentVersionError: written by another version of the format; never moved.
            ReplayError: the disk refuses to read.
        """
        return self._attempt(info, self._load) or []

    def fragments(self) -> Iterator[Episode]:
        """Read the whole store in collected order, each (eps_id, t) once.

        An episode comes in as many pieces as it was collected in; see `episodes`.
        """
        spans: dict[str, list[tuple[int, int]]] = {}
        for info in self.segments():
            for episode in self.read(info):
                known = spans.setdefault(episode.eps_id, [])
                for start, stop in uncovered(episode.t0, episode.rows, known):
                    yield episode.cut(start, stop)
                known.append((episode.t0, episode.t0 + episode.rows))

    def episodes(self) -> Iterator[Episode]:
        """Read the whole store, each episode once and whole, from its first row on.

        Those that ended come in the order of their ends; behind them, with `ended` False, come
        those of which only the beginning is stored: they go on, or rows of theirs are lost. An
        episode whose first row is gone is left out; `fragments` has what is there of it.
        """
        open_: dict[str, list[Episode]] = {}
        for fragment in self.fragments():
            parts = open_.setdefault(fragment.eps_id, [])
            parts.append(fragment)
            if parts[-1].ended and (whole := _from_the_start(parts)) and whole.ended:
                del open_[fragment.eps_id]
                yield whole
        for parts in open_.values():
            if begun := _from_the_start(parts):
                yield begun

    def layout(self) -> Layout | None:
        """What the rows look like; None in an empty store."""
        if self._layout is None:
            for info in reversed(self.segments()):
                header = self._attempt(info, self._load_header)
                if header is not None:
                    self._layout = header.layout
                    break
        return self._layout

    def spaces(self) -> tuple[Space, Space] | None:
        """Observation and action space; None if the store is empty, or of version 1."""
        layout = self.layout()
        return None if layout is None else _both(layout.spaces)

    @property
    def expected_spaces(self) -> tuple[Space, Space] | None:
        """Observation and action space that this object was given; None if none were."""
        return _both(self._spaces)

    def pin(self, names: Sequence[str]) -> list[str]:
        """Record that the checkpoint needs these segments and no others: they are not evicted.

        Returns what was pinned: segments gone since they were loaded are left out, and warned of
        once.
        """
        here = {info.name for info in self.segments()}
        pinned = [name for name in names if name in here]
        text = json.dumps(pinned, indent=0)
        durable.write_atomically(self._pins / "checkpoint.json", text, self._temporary)
        self._lose(set(names) - here)
        return pinned

    def pinned(self) -> set[str]:
        """Names that a checkpoint needs."""
        names: set[str] = set()
        for path in self._pins.glob("*.json"):
            try:
                names.update(json.loads(path.read_text()))
            except ValueError as error:
                raise ReplayError(f"{path}: expected a JSON list of names, got {error}") from error
        return names

    def restore(self, names: Sequence[str]) -> list[SegmentInfo]:
        """Make the store equal to a checkpoint: what came after its oldest segment is moved out.

        Segments that are not in `names` and sort after the first of them go to `unpinned/`; older
        ones, which the sampler had already dropped, stay. Segments of `names` that an earlier
        restore moved out come back. No file is deleted.

        Args:
            names: as given to `pin`; empty means that the checkpoint knew no segment.

        Returns:
            The checkpoint's segments, without those that `excuse` accepts.

        Raises:
            ReplayError: a segment is gone, and not because it broke.
        """
        outside = self.directory / "unpinned"
        here = {info.name for info in self.segments()}
        back = [name for name in names if name not in here and (outside / name).exists()]
        self.excuse(set(names) - here.union(back))
        for name in back:
            durable.move(outside / name, self.data)
        wanted = {info.name: info for info in self.segments() if info.name in set(names)}
        oldest = _oldest_place(names) or (-1, "", -1)
        for info in self.segments():
            if info.name not in wanted and info.place > oldest:
                durable.move(self.data / info.name, outside)
        self._next_seq.clear()
        return [wanted[name] for name in names if name in wanted]

    def excuse(self, missing: Collection[str]) -> None:
        """Go on without segments of a checkpoint that are in `bad/`; counted, warned of once.

        Raises:
            ReplayError: one is not there either.
        """
        bad = self.directory / "bad"
        if gone := sorted(name for name in missing if not (bad / name).exists()):
            raise ReplayError(
                f"expected all segments of the checkpoint in {self.data}, got {len(gone)} missing "
                f"(first: {gone[0]}); restore the folder or choose an older checkpoint"
            )
        self._lose(missing)

    def evict(self, max_bytes: int) -> list[SegmentInfo]:
        """Delete the oldest segments until `data/` holds at most `max_bytes`, and return them.

        From the oldest pinned segment on all stay, even if that is more than asked: a newer one
        that no checkpoint needs yet may be one that no ring has loaded yet.
        """
        end, sizes = _oldest_place(self.pinned()), self._sizes()
        total, gone = sum(sizes.values()), []
        for info, size in sizes.items():
            if total <= max_bytes or (end is not None and info.place >= end):
                break
            (self.data / info.name).unlink(missing_ok=True)
            total -= size
            gone.append(info)
        return gone

    def sweep(self, max_age_s: float = STALE_AFTER_S) -> int:
        """Delete unfinished files that killed writers left; returns how many."""
        self._swept = True
        return durable.sweep(self._temporary, max_age_s)

    def stats(self) -> ReplayStats:
        """Total up names and footers; no row is decoded."""
        if not self.data.is_dir():
            raise ReplayError(
                f"expected a replay folder with data/ in it, got {self.directory}; "
                "a run keeps it under <run folder>/replay"
            )
        sizes = self._sizes()
        headers = {info: self._attempt(info, self._load_header) for info in sizes}
        known = {info: header for info, header in headers.items() if header is not None}
        return summarise(
            list(known.values()),
            disk_bytes=sum(sizes[info] for info in known),
            env_steps_total=max((info.env_steps_total for info in known), default=0),
            quarantined=sum(1 for _ in (self.directory / "bad").glob("*")),
        )

    def _lose(self, missing: Collection[str]) -> None:
        if news := sorted(set(missing) - self.lost):
            self.lost.update(news)
            _log.warning("%d segments gone; the checkpoint does without: %s", len(news), news)

    def _sizes(self) -> dict[SegmentInfo, int]:
        sizes = {}
        for info in self.segments():
            with contextlib.suppress(FileNotFoundError):  # evicted since the listing
                sizes[info] = (self.data / info.name).stat().st_size
        return sizes

    def _agreed_layout(self, new: Layout) -> Layout:
        stored = self.layout()
        if stored is None:
            return new
        if not new.agrees(stored):
            raise ReplayError(
                f"{self.directory}: expected rows like those stored, {describe([stored])}, got "
                f"{describe([new])}; use another folder for another environment"
            )
        spaces = new.spaces if all(new.spaces) else stored.spaces
        return replace(new, env_id=new.env_id or stored.env_id, spaces=spaces)

    def _check_columns(self, layout: Layout) -> None:
        """Refuse rows that are not of the observation space this store was given."""
        columns = {one.column: (one.dtype, one.shape) for one in layout.obs}
        if self._types and columns != self._types:
            raise ReplayError(
                f"expected the columns of {space_from_json(self._spaces[0])}, got "
                f"{describe([layout])}; give the store the space of these rows"
            )

    def _load(self, info: SegmentInfo) -> list[Episode]:
        header, episodes = decode_segment((self.data / info.name).read_bytes())
        _check_name(info, header)
        return episodes

    def _load_header(self, info: SegmentInfo) -> SegmentHeader:
        header = read_header(self.data / info.name)
        _check_name(info, header)
        return header

    def _attempt(self, info: SegmentInfo, read: Callable[[SegmentInfo], _T]) -> _T | None:
        try:
            return read(info)
        except FileNotFoundError:
            _log.warning("replay segment %s was removed since it was listed", info.name)
        except SegmentVersionError as error:
            raise SegmentVersionError(f"{self.data / info.name}: {error}") from error
        except OSError as error:
            raise ReplayError(f"cannot read {self.data / info.name}: {error}") from error
        except ReplayError as error:
            self._quarantine(info.name, str(error))
        return None

    def _quarantine(self, name: str, reason: str) -> None:
        if durable.move(self.data / name, self.directory / "bad"):
            self.quarantined += 1
            _log.warning("replay file %s moved to bad/ and ignored: %s", name, reason)


def replay_folder(folder: Path) -> Path:
    """The replay folder of a run's folder; any other folder is one itself."""
    return folder / "replay" if (folder / "replay").is_dir() else folder


def in_segments(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Many episodes in the same order, enough for one segment at a time."""
    batch: list[Episode] = []
    rows = 0
    for episode in episodes:
        batch.append(episode)
        rows += episode.rows
        if rows >= SEGMENT_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _both(texts: tuple[str, str]) -> tuple[Space, Space] | None:
    """Two spaces of their JSON; None if one is unknown."""
    if not all(texts):
        return None
    observations, actions = map(space_from_json, texts)
    return observations, actions


def _from_the_start(parts: Sequence[Episode]) -> Episode | None:
    """The fragments of an episode from its first row on, as far as they join; None without it."""
    run: list[Episode] = []
    for part in sorted(parts, key=lambda part: part.t0):
        if part.t0 != (run[-1].t0 + run[-1].rows if run else 0):
            break
        run.append(part)
    return joined(run) if run else None


def _check_name(info: SegmentInfo, header: SegmentHeader) -> None:
    """Refuse a file under another's name: it would be ordered and counted wrongly."""
    right = describe_segment(header, *info.place)
    if info != right:
        raise ReplayError(f"expected the content that the file name says, got that of {right.name}")


def _oldest_place(names: Collection[str]) -> tuple[int, str, int] | None:
    """Place of the oldest of these segments, be its file there or not; None without any."""
    return min((info.place for info in map(parse_name, names) if info), default=None)
