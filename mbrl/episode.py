"""Episode and SequenceBatch: what travels along the data path, and the one time shift between them.

Rows in an `Episode` (and on disk) are in *choice* order, the words of RLlib and Minari. Row t holds
what was seen and what was then done:

    row          0        1        2        3 (last)
    obs          o0       o1       o2       o3
    actions      a0       a1       a2       none, stored as 0
    rewards      r(a0)    r(a1)    r(a2)    none, stored as 0
    terminateds  False    False    True     none, stored as False

An episode of N steps has N + 1 rows; the last one only shows where it ended. A *fragment* is a run
of such rows starting at `t0`; fragments of one episode share `eps_id` and do not overlap.

Rows in a `SequenceBatch` are in *arrival* order, the words of a model. Row t holds what led here:

    row          0        1        2        3
    obs          o0       o1       o2       o3
    prev_action  0        a0       a1       a2
    reward       0        r(a0)    r(a1)    r(a2)
    terminated   False    False    False    True
    is_first     True     False    False    False

`arrival` is the only function that does this shift; `tests/test_alignment.py` proves it from the
environment to the loss. Truncation is not termination: a truncated episode just stops, and the
continue target is `1 - terminated`.

`COLUMNS` is the one list of a row's values: what collects, checks, stores and samples rows follows
it. Where the observation is a Dict or a Tuple, `obs` stands for a column of each of its streams
(`mbrl.streams`). Shapes: B sequences, T rows. Values stay as the environment gave them until they
are inside the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mbrl.actions import flat
from mbrl.errors import ReplayError
from mbrl.streams import Array as Array
from mbrl.streams import columns_of, is_obs, mapped, obs_of

Obs = Array | dict[str, Array]
"""Observations: an array, or one for each stream by its column."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One array of an `Episode`: a value in every row.

    Attributes:
        kind: "seen" in this row, "chosen" after it, "caused" by that choice, or a "label", which is
            seen too and may be missing as a whole. What is chosen or caused is zero in the last row
            of an episode, which has no action.
        dtype: None where the environment's space decides.
    """

    kind: Literal["seen", "chosen", "caused", "label"]
    dtype: np.dtype[Any] | None = None


COLUMNS = {
    "obs": Column(kind="seen"),
    "actions": Column(kind="chosen"),
    "rewards": Column(kind="caused", dtype=np.dtype(np.float32)),
    "terminateds": Column(kind="caused", dtype=np.dtype(np.bool_)),
    "truncateds": Column(kind="caused", dtype=np.dtype(np.bool_)),
    "life_loss": Column(kind="caused", dtype=np.dtype(np.bool_)),
    "ram": Column(kind="label", dtype=np.dtype(np.uint8)),
}
"""By name, in the order in which a segment's hash reads them; `obs` may be several columns."""

_BESIDE = tuple(name for name in COLUMNS if name != "obs")

CAUSED = {
    name: column.dtype
    for name, column in COLUMNS.items()
    if column.kind == "caused" and column.dtype is not None
}
"""Types of what an action caused, by name."""

SAMPLED = ("actions", "rewards", "terminateds")
"""What learning reads beside the observations: what `arrival` shifts."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Consecutive rows of one episode, in choice order; a whole episode or a fragment of one.

    Attributes:
        eps_id: UUID of the episode, shared by its fragments.
        t0: index in the episode of row 0.
        obs: (n, *obs_shape), as the environment gave it (images: H W C); or a dict of such arrays
            by column, `obs.<key>`.
        actions: (n, ...), what the environment was given, as `envs.actions` describes it: (n,)
            int64 of a Discrete, (n, A) float32 of a Box, (n,) with fields of a Dict or Tuple.
        rewards: (n,) float32, raw; what this row's action earned.
        terminateds: (n,) bool; this row's action ended the MDP.
        truncateds: (n,) bool; this row's action was the last one allowed from outside.
        life_loss: (n,) bool; this row's action cost a life. A signal, never an ending.
        policy_version: version of the weights that chose the actions.
        env_steps_total: steps the run had collected when this fragment was closed.
        ended: True if the last row is the final observation, with no action.
        ram: (n, R) uint8, the console's memory seen with each row's obs; None without it.
            Labels for measuring, never an input of a model or a policy.
    """

    eps_id: str
    t0: int
    obs: Obs
    actions: Array
    rewards: NDArray[np.float32]
    terminateds: NDArray[np.bool_]
    truncateds: NDArray[np.bool_]
    life_loss: NDArray[np.bool_]
    policy_version: int = 0
    env_steps_total: int = 0
    ended: bool = False
    ram: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        columns = self.columns
        n = len(next(iter(columns.values())))
        for name, values in columns.items():
            if (got := len(values)) != n:
                raise ReplayError(
                    f"episode {self.eps_id}: expected {n} {name}, one per observation, got {got}"
                )
        if n == 0:
            raise ReplayError(f"episode {self.eps_id}: expected at least one row, got none")

    @property
    def columns(self) -> dict[str, Array]:
        """The arrays by name, in the order of `COLUMNS`, without a label that is missing."""
        found = dict(columns_of(self.obs))
        for name in _BESIDE:
            if (values := getattr(self, name)) is not None:
                found[name] = values
        return found

    @property
    def sampled(self) -> dict[str, Array]:
        """The columns that learning reads, observations first."""
        return columns_of(self.obs) | {name: getattr(self, name) for name in SAMPLED}

    @classmethod
    def of(cls, columns: Mapping[str, Array], **stamps: Any) -> "Episode":
        """An episode of these columns; `stamps` are all that is not one value per row."""
        parts: dict[str, Any] = dict(columns)
        if "obs" not in parts:  # there are many episodes, and most have one stream
            parts = {name: rows for name, rows in columns.items() if not is_obs(name)}
            parts["obs"] = obs_of(columns)
        return cls(**parts, **stamps)

    def with_columns(self, columns: Mapping[str, Array], **stamps: Any) -> "Episode":
        """The same episode with other rows, and with other values of what `stamps` names."""
        rest: dict[str, Any] = {name: v for name, v in columns.items() if not is_obs(name)}
        return replace(self, obs=obs_of(columns), **rest, **stamps)

    @property
    def rows(self) -> int:
        """Stored observations, the final one included."""
        return len(next(iter(columns_of(self.obs).values())))

    @property
    def steps(self) -> int:
        """Environment steps: rows that hold an action."""
        return self.rows - int(self.ended)

    def cut(self, start: int, stop: int) -> "Episode":
        """Rows `start` to `stop` as a fragment of its own; no copy."""
        if start == 0 and stop == self.rows:
            return self
        rows = {name: array[start:stop] for name, array in self.columns.items()}
        ended = self.ended and stop == self.rows
        return self.with_columns(rows, t0=self.t0 + start, ended=ended)


def joined(parts: Sequence[Episode]) -> Episode:
    """Fragments of one episode that follow one another, oldest first, as one; stamps of the last.

    Raises:
        ReplayError: they are of several episodes, or one does not begin where the last one ends.
    """
    for before, after in pairwise(parts):
        if before.eps_id != after.eps_id or before.t0 + before.rows != after.t0:
            raise ReplayError(
                f"episode {before.eps_id}: expected a fragment from step "
                f"{before.t0 + before.rows} on, got one of {after.eps_id} from {after.t0} on"
            )
    if len(parts) == 1:
        return parts[0]
    columns = [part.columns for part in parts]
    rows = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    return parts[-1].with_columns(rows, t0=parts[0].t0)


def uncovered(t0: int, rows: int, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (start, stop) rows, ascending, of a fragment from step `t0` on that no span covers.

    `spans` are (start, stop) steps of the same episode, in any order.
    """
    fresh, start, end = [], t0, t0 + rows
    for known_start, known_stop in [*sorted(spans), (end, end)]:
        fresh.append((start - t0, min(known_start, end) - t0))
        start = max(start, known_stop)
    return [(a, b) for a, b in fresh if b > a]


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """B sequences of T rows in arrival order, as numpy arrays.

    Attributes:
        obs: (B, T, *obs_shape), the environment's dtype; or a dict of such arrays by column.
        prev_action: (B, T, ...) flat (`mbrl.actions`): (B, T) int64 of a Discrete, (B, T, A)
            float32 of a Box; zero at `is_first`.
        reward: (B, T) float32, received on arriving; zero at `is_first`.
        terminated: (B, T) bool; this state is terminal.
        is_first: (B, T) bool; this row does not continue the row before it.
    """

    obs: Obs
    prev_action: Array
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    is_first: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.is_first.shape[0], self.is_first.shape[1]


def arrival(
    obs: Obs,
    actions: Array,
    rewards: NDArray[np.float32],
    terminateds: NDArray[np.bool_],
    is_first: NDArray[np.bool_],
) -> SequenceBatch:
    """Shift rows from choice order to arrival order, dropping the row before the sequence.

    Args:
        obs: (B, T, *obs_shape), or a dict of such arrays; not copied, observations do not shift.
        actions: (B, T + 1, ...), stored, chosen in each row; column 0 is the row that precedes
            the sequence, here and below.
        rewards: (B, T + 1), earned by each row's action.
        terminateds: (B, T + 1), whether each row's action ended the MDP.
        is_first: (B, T + 1), whether each row does not continue the one before it; column 0 is
            ignored.

    Returns the T arrival rows. What came before an `is_first` row belongs to another episode and is
    zeroed.
    """
    first = is_first[:, 1:]
    goes_on = ~first
    prev_action = flat(actions[:, :-1]).copy()
    prev_action[first] = 0
    return SequenceBatch(
        obs=obs,
        prev_action=prev_action,
        reward=np.where(goes_on, rewards[:, :-1], np.float32(0)),
        terminated=terminateds[:, :-1] & goes_on,
        is_first=first,
    )


def arrived(columns: Mapping[str, Array], is_first: NDArray[np.bool_]) -> SequenceBatch:
    """`arrival` of columns by name, as `Episode.sampled`; all are (B, T + 1, ...)."""
    rest: dict[str, Any] = {name: columns[name] for name in SAMPLED}
    return arrival(mapped(lambda rows: rows[:, 1:], obs_of(columns)), is_first=is_first, **rest)
