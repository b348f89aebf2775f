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
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mbrl.episode import Episode
from mbrl.errors import ReplayError
from mbrl.replay.header import (
    NO_LAYOUT,
    Layout,
    SegmentHeader,
    SegmentVersionError,
    describe,
    layout_of,
)
from mbrl.replay.names import SegmentInfo, check_name, check_writer, describe_segment, parse_name
from mbrl.replay.pins import oldest_place, pin_path, read_pins, write_pin
from mbrl.replay.segment import cut, decode_segment, encode_segment, read_header, uncovered
from mbrl.replay.stats import ReplayStats, summarise
from mbrl.run import durable

STALE_AFTER_S = 3600.0  # no writer needs an hour for one file
COLD_LEVEL = 9  # zstd level of compacted segments, written once and read seldom
MAX_COMPACTED_BYTES = 1 << 30  # uncompressed; bounds the memory of compaction

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class ReplayStore:
    """Segments of one environment in one folder.

    Args:
        directory: made at the first commit.
        env_id: recorded in each segment; "" takes over what the folder already says.

    Attributes:
        quarantined: broken files this object has moved to `bad/`.
        lost: names that a checkpoint asked this object for, and that it goes on without.
    """

    def __init__(self, directory: Path | str, env_id: str = "") -> None:
        self.directory = Path(directory)
        self.data = self.directory / "data"
        self._temporary, self._pins = self.directory / "_tmp", self.directory / "pins"
        self.quarantined, self.lost = 0, set[str]()
        self._env_id = env_id
        self._layout: Layout | None = None
        self._next_seq: dict[str, int] = {}
        self._swept = False

    def commit(self, episodes: Sequence[Episode], writer: str, env_steps_total: int) -> SegmentInfo:
        """Publish fragments as one new segment, whole or not at all.

        Args:
            episodes: fragments in the order in which they shall be replayed.
            writer: who collected them; letters, digits, "_" and ".". No two living processes may
                share one.
            env_steps_total: steps the run has collected, these included; >= 0.

        Returns:
            The new segment. The same episodes committed by the same history get the same name.

        Raises:
            ReplayError: a full disk, rows that break the contract of `Episode`, or rows unlike
                those already in the store.
        """
        check_writer(writer)
        if env_steps_total < 0:
            raise ReplayError(f"env_steps_total: expected 0 or more, got {env_steps_total}")
        if not self._swept:
            self.sweep()
        layout = self._agreed_layout(layout_of(episodes, self._env_id))
        data = encode_segment(episodes, layout.env_id)
        seq = self._next_seq.get(writer)
        if seq is None:
            seq = 1 + max((s.seq for s in self.segments() if s.writer == writer), default=-1)
        info = describe_segment(read_header(data), env_steps_total, writer, seq)
        durable.write_atomically(self.data / info.name, data, self._temporary)
        self._layout = layout
        self._next_seq[writer] = seq + 1
        return info

    def segments(self) -> list[SegmentInfo]:
        """List the visible segments in collected order, from one listing of the folder.

        A parquet file whose name is not a segment's is moved to `bad/` and counted.
        """
        found = []
        for name in os.listdir(self.data) if self.data.is_dir() else ():
            info = parse_name(name)
            if info is not None:
                found.append(info)
            elif name.endswith(".parquet"):
                self._quarantine(name, "its name is not a segment's")
        return sorted(found)

    def load(self, info: SegmentInfo) -> tuple[SegmentHeader, list[Episode]] | None:
        """Read and prove one segment.

        Returns:
            Footer and episodes. None if the file is broken, which is then moved to `bad/` and
            counted, or if another process evicted it since the listing.

        Raises:
            SegmentVersionError: written by another version of the format; never moved.
            ReplayError: the disk refuses to read.
        """
        return self._attempt(info, self._load)

    def read(self, info: SegmentInfo) -> list[Episode]:
        """Read the episodes of one segment; empty where `load` gives None."""
        loaded = self.load(info)
        return loaded[1] if loaded else []

    def episodes(self) -> Iterator[Episode]:
        """Read the whole store in collected order, each (eps_id, t) once."""
        spans: dict[str, list[tuple[int, int]]] = {}
        for info in self.segments():
            for episode in self.read(info):
                known = spans.setdefault(episode.eps_id, [])
                for start, stop in uncovered(episode.t0, episode.rows, known):
                    yield cut(episode, start, stop)
                known.append((episode.t0, episode.t0 + episode.rows))

    def layout(self) -> Layout | None:
        """What the rows look like; None in an empty store."""
        if self._layout is None:
            for info in reversed(self.segments()):
                header = self._header(info)
                if header is not None:
                    self._layout = header.layout
                    break
        return self._layout

    def verify(self) -> dict[str, str]:
        """Decode every segment and check its content hash; moves nothing.

        Returns:
            What is wrong, by file name; empty if all is well.
        """
        wrong = {}
        for info in self.segments():
            try:
                self._load(info)
            except (ReplayError, OSError) as error:
                wrong[info.name] = str(error)
        return wrong

    def pin(self, names: Sequence[str], label: str = "checkpoint") -> list[str]:
        """Record that a checkpoint needs these segments: they are not evicted or compacted.

        Args:
            names: file names in the order in which the sampler loaded them
                (`SequenceSampler.segments`).
            label: which checkpoint; a second pin of one label replaces the first.

        Returns:
            What was pinned: segments gone since they were loaded are left out, and warned of once.

        Raises:
            ReplayError: the disk is full.
        """
        here = {info.name for info in self.segments()}
        kept = [name for name in names if name in here]
        write_pin(pin_path(self._pins, label), kept, self._temporary)
        self._lose(set(names) - here)
        return kept

    def unpin(self, label: str = "checkpoint") -> None:
        """Forget a checkpoint's pin; nothing happens if there is none."""
        pin_path(self._pins, label).unlink(missing_ok=True)

    def pinned(self) -> set[str]:
        """Names that some checkpoint needs."""
        return read_pins(self._pins)

    def restore(self, names: Sequence[str]) -> list[SegmentInfo]:
        """Make the store equal to a checkpoint: what came after its oldest segment is moved out.

        Segments that are not in `names` and sort after the first of them go to `unpinned/`; older
        ones, which the sampler had already dropped, stay. Segments of `names` that an earlier
        restore moved out come back. No file is deleted.

        Args:
            names: as given to `pin`; empty means that the checkpoint knew no segment.

        Returns:
            The checkpoint's segments in the order of `names`, without those that `excuse` accepts.

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
        oldest = oldest_place(names) or (-1, "", -1)
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

    def evict(self, max_bytes: int, keep: Collection[str] = ()) -> list[SegmentInfo]:
        """Delete the oldest segments until `data/` holds at most `max_bytes`.

        Args:
            max_bytes: limit for the sum of file sizes.
            keep: names that stay besides the pinned ones, such as `SequenceSampler.segments`.

        Returns:
            What was deleted. From the oldest needed segment on all stay, even if that is more than
            asked: a newer one that nobody needs yet may be one that no ring has loaded yet.
        """
        end, sizes = oldest_place(self.pinned().union(keep)), self._sizes()
        total, gone = sum(sizes.values()), []
        for info, size in sizes.items():
            if total <= max_bytes or (end is not None and info.place >= end):
                break
            (self.data / info.name).unlink(missing_ok=True)
            total -= size
            gone.append(info)
        return gone

    def compact(self, target_bytes: int, keep: Collection[str] = ()) -> list[SegmentInfo]:
        """Merge neighbouring small segments into files of about `target_bytes`.

        The merged file is published first and lists its sources; then the sources are deleted. A
        crash between leaves both, which readers see through and the next call cleans up.

        Args:
            target_bytes: sum of the compressed sizes that one merged file may replace.
            keep: names that stay besides the pinned ones.

        Returns:
            The merged segments.
        """
        needed = self.pinned() | set(keep)
        self._finish_compaction(needed)
        merged, group, size, raw = [], list[SegmentInfo](), 0, 0
        row_bytes = (self.layout() or NO_LAYOUT).row_bytes
        for info, file_size in self._sizes().items():
            raw_size = info.rows * row_bytes
            fits = size + file_size <= target_bytes and raw + raw_size <= MAX_COMPACTED_BYTES
            if info.name in needed or not fits:
                merged += self._merge(group)
                group, size, raw = [], 0, 0
            if info.name not in needed:
                group.append(info)
                size, raw = size + file_size, raw + raw_size
        return merged + self._merge(group)

    def sweep(self, max_age_s: float = STALE_AFTER_S) -> int:
        """Delete unfinished files that killed writers left; returns how many."""
        self._swept = True
        return durable.sweep(self._temporary, max_age_s)

    def stats(self) -> ReplayStats:
        """Total up names and footers; no row is decoded.

        Raises:
            ReplayError: there is no replay in the folder.
        """
        if not self.data.is_dir():
            raise ReplayError(
                f"expected a replay folder with data/ in it, got {self.directory}; "
                "a run keeps it under <run folder>/replay"
            )
        sizes = self._sizes()
        known = {info: header for info in sizes if (header := self._header(info)) is not None}
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
        agreed = replace(stored, env_id=self._env_id or stored.env_id)
        same_env = stored.env_id in ("", agreed.env_id)
        if not same_env or replace(new, env_id=agreed.env_id) != agreed:
            raise ReplayError(
                f"{self.directory}: expected rows like those stored, {describe([stored])}, got "
                f"{describe([new])}; use another folder for another environment"
            )
        return agreed

    def _load(self, info: SegmentInfo) -> tuple[SegmentHeader, list[Episode]]:
        header, episodes = decode_segment((self.data / info.name).read_bytes())
        check_name(info, header)
        return header, episodes

    def _header(self, info: SegmentInfo) -> SegmentHeader | None:
        return self._attempt(info, self._load_header)

    def _load_header(self, info: SegmentInfo) -> SegmentHeader:
        header = read_header(self.data / info.name)
        check_name(info, header)
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

    def _merge(self, group: Sequence[SegmentInfo]) -> list[SegmentInfo]:
        if len(group) < 2:
            return []
        episodes: list[Episode] = []
        sources: list[tuple[str, int]] = []
        used: list[SegmentInfo] = []
        for info in group:
            loaded = self.load(info)
            if loaded is not None:
                used.append(info)
                episodes += loaded[1]
                earlier = loaded[0].sources  # a file merged before holds no fragment of its own
                sources += [*earlier, (info.name, 0 if earlier else len(loaded[1]))]
        if len(used) < 2:
            return []
        env_id = (self.layout() or NO_LAYOUT).env_id
        data = encode_segment(episodes, env_id, sources=sources, level=COLD_LEVEL)
        merged = describe_segment(read_header(data), *used[-1].place)
        durable.write_atomically(self.data / merged.name, data, self._temporary)
        for info in used:
            (self.data / info.name).unlink(missing_ok=True)
        return [merged]

    def _finish_compaction(self, needed: Collection[str]) -> None:
        """Delete sources of merged files that a crash left; both share their last one's place."""
        present = self.segments()
        shared = Counter(info.place for info in present)
        for info in present:
            loaded = self.load(info) if shared[info.place] > 1 else None
            for name, _ in loaded[0].sources if loaded else ():
                if name not in needed:
                    (self.data / name).unlink(missing_ok=True)
