"""Fixed-length sequences from the newest rows of a replay store: the fast half of replay.

In go episodes or fragments in any interleaving, out come `SequenceBatch`es of (B, T) rows. The last
`capacity_steps` rows that were added live in a ring of memory-mapped columns. Over the ring lies a
conceptual circular *tape*: all live rows grouped by episode, in step order inside an episode,
episodes by the arrival of their oldest live fragment. `is_first` marks each tape row that does not
continue the row before it: a new episode, a gap, a head that was overwritten, the tape's own seam.

Start positions are uniform over the whole circle, so every row is equally likely at every position
of a window, the ends of episodes as likely as their middles, and a window may cross from one
episode into the next; the crossing row is marked.

What is live, and the tape, follow from the last `capacity_steps` rows added and from nothing else.
A sampler rebuilt from the segments in `segments`, in that order, therefore gives the batches that
the living one would have given.

A share of the episodes may be held out: they lie in the ring like all others, on a tape of their
own. Which ones follows from their names alone, so that every learner and every resume hold out the
same.
"""

import hashlib
import itertools
import math
import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbrl.episode import CAUSED, SAMPLED, Array, Episode, SequenceBatch, arrival, uncovered
from mbrl.errors import ReplayError
from mbrl.replay.store import ReplayStore, SegmentInfo
from mbrl.streams import Types, obs_of

_RESERVE_BYTES = 16 << 20  # disk is claimed in pieces of this size
_LABEL, _T0, _START, _ROWS, _HELD_OUT = range(5)  # columns of the table of fragments


def is_held_out(eps_id: str, share: float) -> bool:
    """Whether an episode is among the `share` in [0, 1) that nothing is trained on.

    It depends on the two arguments alone. An episode that is held out at one share is so at every
    larger one.
    """
    drawn = int.from_bytes(hashlib.sha256(eps_id.encode()).digest()[:8], "big")
    return drawn < share * 2**64


class FragmentTable:
    """Live fragments in the order in which they were added, and the tape that follows from them.

    A fragment is a run of rows that were added together: rows `start` to `start + rows` of all that
    were ever added, which lie in ring slots modulo the capacity. No row's content is known here, so
    the tape of a million rows is a few array operations. `rows` counts those that are live.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._table = np.zeros((1024, 5), np.int64)
        self._head = 0  # the oldest live fragment's index in _table
        self._tail = 0  # one behind the newest
        self._labels: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._spans: dict[int, deque[tuple[int, int]]] = {}  # (t0, stop), oldest added first
        self._stops: dict[int, int] = {}
        self._free_labels = itertools.count()

    def append(self, piece: Episode, start: int, held_out: bool = False) -> None:
        """Note a fragment whose first row was the `start`-th ever added, and its tape."""
        if self._tail == len(self._table):
            self._make_room()
        label = self._labels.get(piece.eps_id)
        if label is None:
            label = next(self._free_labels)
            self._labels[piece.eps_id], self._names[label] = label, piece.eps_id
            self._spans[label], self._stops[label] = deque(), 0
        stop = piece.t0 + piece.rows
        self._spans[label].append((piece.t0, stop))
        self._stops[label] = max(self._stops[label], stop)
        self._table[self._tail] = (label, piece.t0, start, piece.rows, held_out)
        self._tail += 1
        self.rows += piece.rows

    def drop_before(self, start: int) -> None:
        """Forget the rows that were added before the `start`-th one."""
        while self._head < self._tail and self._table[self._head, _START] < start:
            fragment = self._table[self._head]
            label, gone = int(fragment[_LABEL]), int(min(fragment[_ROWS], start - fragment[_START]))
            spans = self._spans[label]
            t0, stop = spans.popleft()
            self.rows -= gone
            if gone < fragment[_ROWS]:
                spans.appendleft((t0 + gone, stop))
                fragment += np.array([0, gone, gone, -gone, 0])
                return
            self._head += 1
            if not spans:
                del self._labels[self._names.pop(label)], self._spans[label], self._stops[label]

    def spans(self, eps_id: str, t0: int) -> list[tuple[int, int]]:
        """Live (start, stop) steps of an episode, or none if all lie before `t0`."""
        label = self._labels.get(eps_id)
        if label is None or self._stops[label] <= t0:
            return []
        return list(self._spans[label])

    def tape(
        self, capacity: int, held_out: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The ring slot of each tape position (N,), and whether its row is a first one (N,).

        There are two tapes: of the episodes that are held out, and of all others.
        """
        live = self._table[self._head : self._tail]
        live = live[live[:, _HELD_OUT] == held_out]
        _, oldest, group = np.unique(live[:, _LABEL], return_index=True, return_inverse=True)
        live = live[np.lexsort((live[:, _T0], oldest[group]))]
        label, t0, start, rows = live[:, _LABEL], live[:, _T0], live[:, _START], live[:, _ROWS]
        behind = np.cumsum(rows)
        slots = np.repeat(start - (behind - rows), rows)
        slots += np.arange(len(slots))
        slots %= capacity
        joined = (label[1:] == label[:-1]) & (t0[1:] == t0[:-1] + rows[:-1])
        is_first = np.zeros(len(slots), np.bool_)
        is_first[:1] = True
        is_first[behind[:-1][~joined]] = True
        return slots, is_first

    def _make_room(self) -> None:
        live = self._table[self._head : self._tail]
        self._table = np.zeros((max(1024, 2 * len(live)), 5), np.int64)
        self._table[: len(live)] = live
        self._head, self._tail = 0, len(live)


class _Ring:
    """A column of the ring in an unnamed file, which vanishes with the process even if killed."""

    def __init__(
        self, capacity: int, shape: tuple[int, ...], dtype: np.dtype[Any], directory: Path | None
    ) -> None:
        self._row_bytes = math.prod(shape) * dtype.itemsize
        self._size = max(1, capacity * self._row_bytes)
        self._reserved = 0
        self._descriptor, path = tempfile.mkstemp(prefix="ring-", dir=directory)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        os.unlink(path)
        os.truncate(self._descriptor, self._size)
        mapped = mmap.mmap(self._descriptor, self._size)
        flat = np.frombuffer(mapped, dtype, count=capacity * math.prod(shape))
        self.rows: Array = flat.reshape(capacity, *shape)

    def reserve(self, rows: int) -> None:
        """Claim disk for the first `rows` rows: a full disk must be an error, not a SIGBUS."""
        while self._reserved < rows * self._row_bytes:
            piece = min(_RESERVE_BYTES, self._size - self._reserved)
            self._reserved += os.pwrite(self._descriptor, bytes(piece), self._reserved)

    def close(self) -> None:
        self.rows = self.rows[:0].copy()
        self._close()


class SequenceSampler:
    """A ring of rows and the tape over it.

    Args:
        capacity_steps: rows that are kept, final observations included; the oldest go first.
        obs: shape and dtype of one observation, by column, as `mbrl.streams.types_of` gives them.
        action_shape, action_dtype: of one stored action, as `envs.actions.stored_type` says.
        directory: on which disk the ring lives (such as /dev/shm); None for the system's temporary
            folder. Nothing is left there.
        holdout: share of the episodes, in [0, 1), that `sample` draws only if it is asked for them.

    Raises:
        ReplayError: the folder cannot hold the ring.
    """

    def __init__(
        self,
        capacity_steps: int,
        obs: Types,
        action_shape: Sequence[int] = (),
        action_dtype: DTypeLike = np.int64,
        directory: Path | None = None,
        holdout: float = 0.0,
    ) -> None:
        self.capacity, self.holdout = capacity_steps, holdout
        beside: Types = {
            "actions": (tuple(action_shape), np.dtype(action_dtype)),
            **{name: ((), dtype) for name, dtype in CAUSED.items()},
        }
        kinds = obs | {name: beside[name] for name in SAMPLED}
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
            self._ring = {
                name: _Ring(capacity_steps, shape, np.dtype(dtype), directory)
                for name, (shape, dtype) in kinds.items()
            }
        except OSError as error:
            raise _ring_error(error) from error
        self._total = 0  # rows ever added; row i lies in slot i % capacity
        self._fragments = FragmentTable()
        self._tapes: dict[bool, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
        self._payments: dict[bool, NDArray[np.int64]] = {}
        self._seen: set[str] = set()
        self._loaded: deque[tuple[str, int]] = deque()  # segment, value of _total after it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the ring and free its disk space; the sampler is of no use afterwards."""
        for column in self._ring.values():
            column.close()
        self._fragments, self._total = FragmentTable(), 0
        self._tapes, self._payments = {}, {}

    @property
    def num_rows(self) -> int:
        """Live rows, final observations included."""
        return self._fragments.rows

    @property
    def segments(self) -> list[str]:
        """Names of the loaded segments with live rows, in load order: what a checkpoint pins."""
        return [name for name, _ in self._loaded]

    def add(self, episode: Episode) -> int:
        """Add a fragment's rows, but those whose (eps_id, t) is live already; how many were added.

        Raises:
            ReplayError: another shape or dtype than the ring's, or the ring's disk is full.
        """
        columns = episode.sampled
        if columns.keys() != self._ring.keys():
            raise ReplayError(
                f"expected the columns {', '.join(self._ring)} as the sampler was made for, got "
                f"{', '.join(columns)}; make a new sampler for another environment"
            )
        for name, got in columns.items():
            ring = self._ring[name].rows
            if got.shape[1:] != ring.shape[1:] or got.dtype != ring.dtype:
                raise ReplayError(
                    f"{name}: expected {ring.dtype}{ring.shape[1:]} as the sampler was made for, "
                    f"got {got.dtype}{got.shape[1:]}; make a new sampler for another environment"
                )
        known = self._fragments.spans(episode.eps_id, episode.t0)
        pieces = [episode.cut(*rows) for rows in uncovered(episode.t0, episode.rows, known)]
        for piece in pieces:
            self._append(piece.cut(max(0, piece.rows - self.capacity), piece.rows))
        return sum(piece.rows for piece in pieces)

    def refresh(self, store: ReplayStore, order: Sequence[str] | None = None) -> int:
        """Load the segments of a store that are new since the last call; how many rows were added.

        Args:
            store: which store to follow.
            order: on resume, the checkpoint's `segments` after `store.restore(order)`: exactly
                these are loaded, in this order, and all others now in the store count as seen.
                Broken ones are left out (`ReplayStore.excuse`).

        Raises:
            ReplayError: a segment of `order` is missing without having broken, or as in `add`.
        """
        listed = store.segments()
        if order is None:
            fresh = [info for info in listed if info.name not in self._seen]
            return sum(self._load(store, info) or 0 for info in fresh)
        by_name = {info.name: info for info in listed}
        added, missing = 0, list[str]()
        for name in order:
            rows = self._load(store, by_name[name]) if name in by_name else None
            if rows is None:
                missing.append(name)
            added += rows or 0
        store.excuse(missing)
        self._seen.update(by_name)
        return added

    def rows_on_tape(self, held_out: bool = False) -> int:
        """Live rows that `sample` draws from: of the episodes held out, or of all others."""
        return len(self._tape(held_out)[0])

    def sample(
        self,
        batch_size: int,
        length: int,
        rng: np.random.Generator,
        held_out: bool = False,
        rewarded: float = 0.0,
    ) -> SequenceBatch:
        """Draw B windows of T rows of a tape, uniformly and with replacement.

        One call draws B integers from `rng`, and as many again and B floats with `rewarded`. The
        rows are in arrival order; the arrays are the caller's.

        Args:
            batch_size: B.
            length: T.
            rng: what is drawn from.
            held_out: draw from the episodes held out, else from all others.
            rewarded: the share of windows, at least, in which a reward other than 0 arrives, where
                replay has one. What is rare and decides is then seen often enough to be learnt.

        Raises:
            ReplayError: fewer rows than `length` are stored.
        """
        rows = self.rows_on_tape(held_out)
        if rows < length or rows == 0:
            kind = " of episodes held out" if held_out else " to train on" if self.holdout else ""
            raise ReplayError(
                f"cannot sample sequences of {length} rows: replay holds {rows} rows{kind}; "
                "collect more steps first or lower the sequence length"
                + (", or change replay.holdout" if self.holdout else "")
            )
        starts = rng.integers(rows, size=batch_size)
        if rewarded:
            starts = self._rewarded(starts, length, rng, held_out, rewarded)
        positions = (starts[:, None] + np.arange(-1, length)) % rows
        slots, is_first = (column[positions] for column in self._tape(held_out))
        beside = {name: self._ring[name].rows[slots] for name in SAMPLED}
        seen: dict[str, Array] = {}
        for name, ring in self._ring.items():
            if name not in beside:
                rows_seen = (batch_size, length, *ring.rows.shape[1:])
                seen[name] = np.empty(rows_seen, ring.rows.dtype)
                # "clip" skips the copy that "raise" makes of `out`; slots are in range
                np.take(ring.rows, slots[:, 1:], axis=0, out=seen[name], mode="clip")
        return arrival(obs_of(seen), is_first=is_first, **beside)

    def _rewarded(
        self,
        starts: NDArray[np.int64],
        length: int,
        rng: np.random.Generator,
        held_out: bool,
        share: float,
    ) -> NDArray[np.int64]:
        """Starts (B,), some of them moved so that a reward arrives in `share` of the windows.

        A row's own reward arrives one row later, which must not be a window's first.
        """
        rows, inner = self.rows_on_tape(held_out), max(1, length - 1)
        back = rng.integers(inner, size=len(starts))
        drawn, picked = rng.random(len(starts)), rng.random(len(starts))
        paid = self._paid(held_out)
        if not len(paid):
            return starts
        gaps = np.diff(paid, append=paid[0] + rows)
        by_chance = float(np.minimum(gaps, inner).sum()) / rows
        missing = max(0.0, (share - by_chance) / (1 - by_chance + 1e-9))
        moved = (paid[(picked * len(paid)).astype(np.int64)] - back) % rows
        return np.where(drawn < missing, moved, starts)

    def _paid(self, held_out: bool) -> NDArray[np.int64]:
        """Where on the tape rows have a reward other than 0 that arrives in the row after them."""
        if held_out not in self._payments:
            slots, is_first = self._tape(held_out)
            pays = self._ring["rewards"].rows[slots] != 0
            self._payments[held_out] = np.flatnonzero(pays & ~np.roll(is_first, -1))
        return self._payments[held_out]

    def _tape(self, held_out: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if held_out not in self._tapes:
            self._tapes[held_out] = self._fragments.tape(self.capacity, held_out)
        return self._tapes[held_out]

    def _append(self, piece: Episode) -> None:
        """Write a fragment of at most `capacity` rows over the oldest rows."""
        start = self._total % self.capacity
        split = min(piece.rows, self.capacity - start)
        try:
            for column in self._ring.values():
                column.reserve(min(self.capacity, self._total + piece.rows))
        except OSError as error:
            raise _ring_error(error) from error
        for name, new in piece.sampled.items():
            column = self._ring[name]
            column.rows[start : start + split] = new[:split]
            column.rows[: piece.rows - split] = new[split:]
        if piece.ended:
            self._ring["actions"].rows[(self._total + piece.rows - 1) % self.capacity] = 0
        held_out = is_held_out(piece.eps_id, self.holdout)
        self._fragments.append(piece, self._total, held_out)
        self._total += piece.rows
        self._fragments.drop_before(self._total - self.capacity)
        while self._loaded and self._loaded[0][1] <= self._total - self.capacity:
            self._loaded.popleft()
        self._tapes, self._payments = {}, {}

    def _load(self, store: ReplayStore, info: SegmentInfo) -> int | None:
        """Add one segment; None if the store could not read it."""
        episodes = store.read(info)
        self._seen.add(info.name)
        if not episodes:
            return None
        added = sum(map(self.add, episodes))
        if added:
            self._loaded.append((info.name, self._total))
        return added


def _ring_error(error: OSError) -> ReplayError:
    return ReplayError(
        f"cannot hold the sampling ring: {error.strerror or error}; lower replay.capacity_steps or "
        "choose a disk with more space"
    )
