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

Shapes: B sequences, T rows, H, W, C image. Images stay uint8 until they are inside the model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbrl.errors import ReplayError

Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Consecutive rows of one episode, in choice order; a whole episode or a fragment of one.

    Attributes:
        eps_id: UUID of the episode, shared by its fragments.
        t0: index in the episode of row 0.
        obs: (n, *obs_shape), as the environment gave it (images: uint8, H W C).
        actions: (n,) int64 for a discrete space, (n, A) float32 for a Box.
        rewards: (n,) float32, raw; what this row's action earned.
        terminateds: (n,) bool; this row's action ended the MDP.
        truncateds: (n,) bool; this row's action was the last one allowed from outside.
        life_loss: (n,) bool; this row's action cost a life. A signal, never an ending.
        policy_version: version of the weights that chose the actions.
        env_steps_total: steps the run had collected when this fragment was closed.
        ended: True if the last row is the final observation, with no action.
        ram: (n, R) uint8, the console's memory seen with each row's obs; None if it was not kept.
            Labels for measuring, never an input of a model or a policy.
    """

    eps_id: str
    t0: int
    obs: Array
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
        n = len(self.obs)
        columns = ["actions", "rewards", "terminateds", "truncateds", "life_loss"]
        for name in columns if self.ram is None else [*columns, "ram"]:
            if len(getattr(self, name)) != n:
                raise ReplayError(
                    f"episode {self.eps_id}: expected {n} {name}, one per observation, "
                    f"got {len(getattr(self, name))}"
                )
        if n == 0:
            raise ReplayError(f"episode {self.eps_id}: expected at least one row, got none")

    @property
    def rows(self) -> int:
        """Stored observations, the final one included."""
        return len(self.obs)

    @property
    def steps(self) -> int:
        """Environment steps: rows that hold an action."""
        return self.rows - int(self.ended)


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """B sequences of T rows in arrival order, as numpy arrays.

    Attributes:
        obs: (B, T, *obs_shape), the environment's dtype.
        prev_action: (B, T) int64 or (B, T, A) float32; zero at `is_first`.
        reward: (B, T) float32, received on arriving; zero at `is_first`.
        terminated: (B, T) bool; this state is terminal.
        is_first: (B, T) bool; this row does not continue the row before it.
    """

    obs: Array
    prev_action: Array
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    is_first: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.is_first.shape[0], self.is_first.shape[1]


def arrival(
    obs: Array,
    actions: Array,
    rewards: NDArray[np.float32],
    terminateds: NDArray[np.bool_],
    is_first: NDArray[np.bool_],
) -> SequenceBatch:
    """Shift rows from choice order to arrival order, dropping the row before the sequence.

    Args:
        obs: (B, T + 1, *obs_shape); column 0 is the row that precedes the sequence. Observations
            do not shift, so a caller may leave that column out and give (B, T, *obs_shape).
        actions: (B, T + 1) or (B, T + 1, A), chosen in each row.
        rewards: (B, T + 1), earned by each row's action.
        terminateds: (B, T + 1), whether each row's action ended the MDP.
        is_first: (B, T + 1), whether each row does not continue the one before it; column 0 is
            ignored.

    Returns:
        The T arrival rows; `obs` is not copied. What came before an `is_first` row belongs to
        another episode and is zeroed.

    Raises:
        ReplayError: `obs` has neither T nor T + 1 columns.
    """
    rows = is_first.shape[1] - 1
    if obs.shape[1] not in (rows, rows + 1):
        raise ReplayError(f"obs: expected {rows} or {rows + 1} columns, got {obs.shape[1]}")
    first = is_first[:, 1:]
    goes_on = ~first
    prev_action = actions[:, :-1].copy()
    prev_action[first] = 0
    return SequenceBatch(
        obs=obs[:, obs.shape[1] - rows :],
        prev_action=prev_action,
        reward=np.where(goes_on, rewards[:, :-1], np.float32(0)),
        terminated=terminateds[:, :-1] & goes_on,
        is_first=first,
    )
