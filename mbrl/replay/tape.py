"""Which rows of the ring are live, and in which order they are to be read.

A fragment is a run of rows that were added together: rows `start` to `start + rows` of everything
ever added, which lie in ring slots modulo the capacity. In go fragments in the order of arrival,
out comes the tape. No row's content is known here, so the tape of a million rows is a few array
operations.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbrl.episode import Episode

_COLUMNS = 5
_LABEL, _T0, _START, _ROWS, _ENDED = range(_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Tape:
    """All live rows in reading order.

    Attributes:
        slots: (N,) int64, the ring slot of each tape position.
        is_first: (N,) bool, the row does not continue the tape row before it; True at 0.
    """

    slots: NDArray[np.int64]
    is_first: NDArray[np.bool_]


class FragmentTable:
    """Live fragments in the order in which they were added.

    Attributes:
        rows: live rows.
        ended: live final observations.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.ended = 0
        self._table = np.zeros((1024, _COLUMNS), np.int64)
        self._head = 0  # the oldest live fragment's index in _table
        self._tail = 0  # one behind the newest
        self._labels: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._spans: dict[int, deque[tuple[int, int]]] = {}  # (t0, stop), oldest added first
        self._stops: dict[int, int] = {}
        self._next_label = 0

    def append(self, piece: Episode, start: int) -> None:
        """Note a fragment whose first row was the `start`-th ever added."""
        if self._tail == len(self._table):
            self._make_room()
        label = self._labels.get(piece.eps_id)
        if label is None:
            label, self._next_label = self._next_label, self._next_label + 1
            self._labels[piece.eps_id], self._names[label] = label, piece.eps_id
            self._spans[label], self._stops[label] = deque(), 0
        stop = piece.t0 + piece.rows
        self._spans[label].append((piece.t0, stop))
        self._stops[label] = max(self._stops[label], stop)
        self._table[self._tail] = (label, piece.t0, start, piece.rows, piece.ended)
        self._tail += 1
        self.rows += piece.rows
        self.ended += int(piece.ended)

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
            self.ended -= int(fragment[_ENDED])
            self._head += 1
            if not spans:
                del self._labels[self._names.pop(label)], self._spans[label], self._stops[label]

    def spans(self, eps_id: str, t0: int) -> list[tuple[int, int]]:
        """Live (start, stop) steps of an episode, or none if all lie before `t0`."""
        label = self._labels.get(eps_id)
        if label is None or self._stops[label] <= t0:
            return []
        return list(self._spans[label])

    def tape(self, capacity: int) -> Tape:
        """Order the live rows; slots are modulo `capacity`."""
        live = self._table[self._head : self._tail]
        _, oldest, group = np.unique(live[:, _LABEL], return_index=True, return_inverse=True)
        live = live[np.lexsort((live[:, _T0], oldest[group]))]
        label, t0, start, rows = live[:, _LABEL], live[:, _T0], live[:, _START], live[:, _ROWS]
        behind = np.cumsum(rows)
        slots = np.repeat(start - (behind - rows), rows)
        slots += np.arange(len(slots))
        slots %= capacity
        joined = (label[1:] == label[:-1]) & (t0[1:] == t0[:-1] + rows[:-1])
        is_first = np.zeros(len(slots), np.bool_)
        is_first[0] = True
        is_first[behind[:-1][~joined]] = True
        return Tape(slots=slots, is_first=is_first)

    def _make_room(self) -> None:
        live = self._table[self._head : self._tail]
        self._table = np.zeros((max(1024, 2 * len(live)), _COLUMNS), np.int64)
        self._table[: len(live)] = live
        self._head, self._tail = 0, len(live)
