"""Collector: real environments and an acting policy in, committed replay fragments out.

It steps a vector of environments in one batch, cuts what it sees into fragments (at episode ends,
every `fragment_steps`, every `fragment_s` seconds and when a call returns) and writes them straight
to the replay store; only a small receipt goes back. It is a plain class: `train.py` uses it in
process or turns it into a Ray actor. It knows nothing of learning.

An episode is made repeatable by its seed and its actions, so a collector's state is small: on
resume the open episodes are played again, and an environment that does not come out where it was is
counted and starts a new episode instead.
"""

import functools
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from envs import EnvSettings, VectorEnv
from envs.actions import stored_type
from mbrl.acting import ActingPolicy
from mbrl.actions import flat, stored
from mbrl.config.schema import CollectSettings
from mbrl.episode import CAUSED, Episode
from mbrl.replay import ReplayStore
from mbrl.seeding import seed
from mbrl.streams import Array, columns_of, mapped

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """What one call collected."""

    steps: int  # of environments, crashed ones not counted
    returns: list[float]  # undiscounted, of the episodes that ended
    env_restarts: int  # environments remade so far by this collector
    unrepeatable: int  # open episodes that could not be played again on resume, so far
    seconds: float
    rewarded: bool = False  # whether any step gave a reward other than 0
    earned: tuple[float, ...] = ()  # by each environment: all its rewards


_Cut = tuple[dict[str, Array], dict[str, Any]]
"""Columns and stamps of an `Episode`, but for the run's step count."""


@dataclass
class _Slot:
    """The open episode of one environment, up to the last cut."""

    episode: int = -1  # its number in this slot
    eps_id: str = ""
    t0: int = 0  # steps cut off as fragments, their rewards, and their actions by fragment
    total: float = 0.0
    actions: list[Array] = field(default_factory=list)


class Collector:
    """Steps E environments with a policy and writes what happens to replay."""

    def __init__(
        self,
        env: EnvSettings,
        settings: CollectSettings,
        store: ReplayStore,
        root_seed: int,
        index: int = 0,
        incarnation: int = 0,
    ) -> None:
        """Open the environments.

        Every seed comes from the run's `root_seed`, this collector's `index` and `incarnation`, how
        many there were of this index: a new one does not repeat the episodes of those before.
        """
        self.settings, self.store, self.root_seed = settings, store, root_seed
        self.index, self.incarnation = index, incarnation
        self.vector = VectorEnv(
            env,
            settings.num_envs,
            max_restarts=settings.max_restarts,
            apart=settings.apart,
        )
        e, self.unrepeatable = settings.num_envs, 0
        self.slots = [_Slot() for _ in range(e)]
        self.is_first = np.ones(e, np.bool_)
        self.policy: ActingPolicy | None = None
        self._rows = np.zeros(e, np.int64)  # of each slot, not yet cut
        self._opened_s = np.zeros(e)  # when each slot's fragment began
        for i in range(e):
            self._start_episode(i)
        length = settings.fragment_steps + 1
        self._columns = self._make_columns(e, length)
        # the same memory with all slots in one axis, where one index is faster than two
        self._flat = {
            name: c.reshape(e * length, *c.shape[2:]) for name, c in self._columns.items()
        }
        self._starts = np.arange(e) * length

    def _make_columns(self, e: int, rows: int) -> dict[str, Array]:
        """Room for so many rows of every slot, by the name of the column."""
        action_shape, action_dtype = stored_type(self.vector.single_action_space)
        made: dict[str, Array] = {
            name: np.zeros((e, rows, *seen.shape[1:]), seen.dtype)
            for name, seen in self._seen().items()
        }
        made["actions"] = np.zeros((e, rows, *action_shape), action_dtype)
        return made | {name: np.zeros((e, rows), dtype) for name, dtype in CAUSED.items()}

    def _seen(self) -> dict[str, Array]:
        """What every slot shows now, by column."""
        ram = self.vector.ram
        return self.vector.columns if ram is None else {**self.vector.columns, "ram": ram}

    @property
    def writer(self) -> str:
        """The name its fragments are committed under."""
        return writer_name(self.index, self.incarnation)

    def collect(self, steps: int, policy: ActingPolicy, env_steps_total: int) -> Receipt:
        """Take `steps` environment steps with `policy` and commit them as one segment.

        Crashed steps do not count; making up for them may take a few steps more than asked for.

        Args:
            steps: a multiple of the number of environments.
            policy: chooses the actions; it is reset if it is another object than in the last call.
            env_steps_total: steps of the whole run before this call, recorded with the data.

        Raises:
            ValueError: `steps` is not a multiple of the number of environments.
            EnvError: an environment returned something that cannot be stored, or crashed too often.
        """
        e = self.settings.num_envs
        if steps % e:
            raise ValueError(f"collect: expected a multiple of {e} environments, got {steps} steps")
        began = time.monotonic()
        if policy is not self.policy:
            policy.reset(e)
            self.policy = policy
        self._opened_s[:] = began
        # by slot, so that the order of rows does not depend on when the clock cut a fragment
        cuts: list[list[_Cut]] = [[] for _ in range(e)]
        returns: list[float] = []
        taken = 0
        while taken < steps:
            taken += self._step(policy, cuts, returns)
        total = env_steps_total + taken
        for i in range(e):
            self._cut(i, cuts[i], ended=False)
        fragments = [
            Episode.of(columns, env_steps_total=total, **stamps)
            for slot in cuts
            for columns, stamps in slot
        ]
        self.store.commit(fragments, self.writer, total)
        seconds = time.monotonic() - began
        earned = [[columns["rewards"] for columns, _ in slot] for slot in cuts]
        return Receipt(
            taken,
            returns,
            self.vector.restarts,
            self.unrepeatable,
            seconds,
            rewarded=any(bool(rewards.any()) for slot in earned for rewards in slot),
            earned=tuple(sum(float(r.sum(dtype=np.float64)) for r in slot) for slot in earned),
        )

    def _step(self, policy: ActingPolicy, cuts: list[list[_Cut]], returns: list[float]) -> int:
        """One step of every environment; returns how many of them counted.

        Python runs per slot only where an episode or a fragment ends: in a small game anything done
        for every slot and step costs as much as the game.
        """
        seen = self._seen()
        actions = policy.act(self.vector.obs, self.is_first)
        result = self.vector.step(actions)
        caused = {name: getattr(result, name) for name in CAUSED}
        row = {**seen, "actions": actions, **caused}
        here = self._starts + self._rows
        for name, column in self._flat.items():
            column[here] = row[name]
        counted = ~result.crashed
        self._rows += counted  # what a crashed slot wrote is overwritten by its next step
        ended = result.terminateds | result.truncateds
        np.logical_or(ended, result.crashed, out=self.is_first)
        full = self._rows == self.settings.fragment_steps
        late = time.monotonic() - self._opened_s > self.settings.fragment_s
        for i in np.flatnonzero(self.is_first | full | late).tolist():
            if ended[i]:
                for name, arrived in self._seen().items():
                    self._columns[name][i, self._rows[i]] = arrived[i]
            self._cut(i, cuts[i], ended=bool(ended[i]))
            if ended[i]:
                returns.append(self.slots[i].total)
            if self.is_first[i]:
                self._start_episode(i)
        return int(counted.sum())

    def _cut(self, i: int, cuts: list[_Cut], ended: bool) -> None:
        """Close slot i's rows as a fragment, with the final observation if the episode ended.

        It is an `Episode` but for the run's step count, which is known when the call ends.
        """
        slot, rows = self.slots[i], int(self._rows[i])
        if rows:
            n = rows + int(ended)
            if ended:
                for name in ("actions", *CAUSED):
                    self._columns[name][i, rows] = 0
            columns = {name: values[i, :n].copy() for name, values in self._columns.items()}
            version = 0 if self.policy is None else self.policy.version
            stamps = {"eps_id": slot.eps_id, "t0": slot.t0, "policy_version": version}
            cuts.append((columns, {**stamps, "ended": ended}))
            slot.actions.append(columns["actions"][:rows])
            slot.total += float(columns["rewards"].sum(dtype=np.float64))
            slot.t0 += rows
            self._rows[i] = 0
        self._opened_s[i] = time.monotonic()

    def _episode(self, i: int, number: int) -> tuple[str, int]:
        return episode_of(self.root_seed, self.index, i, number, self.incarnation)

    def _start_episode(self, i: int) -> None:
        """Reset environment i with the next seed of its own."""
        number = self.slots[i].episode + 1
        eps_id, reset_seed = self._episode(i, number)
        self.slots[i] = _Slot(number, eps_id)
        self._opened_s[i] = time.monotonic()
        self.vector.reset(i, reset_seed)
        self.is_first[i] = True

    def state_dict(self) -> dict[str, Any]:
        """Where every slot is: enough to play its open episode again."""
        none = self._columns["actions"][0, :0]
        joined = [flat(np.concatenate([none, *slot.actions])) for slot in self.slots]
        return {
            "incarnation": self.incarnation,
            "slots": [{**vars(s), "actions": a} for s, a in zip(self.slots, joined, strict=True)],
            "is_first": self.is_first.copy(),
            "obs": mapped(np.copy, self.vector.obs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the open episodes again, so that collecting goes on as if it had never stopped."""
        self.incarnation = state["incarnation"]
        dtype = self._columns["actions"].dtype
        for i, saved in enumerate(state["slots"]):
            self.slots[i] = _Slot(**{**saved, "actions": [stored(saved["actions"], dtype)]})
            self._opened_s[i] = time.monotonic()
            _, reset_seed = self._episode(i, saved["episode"])
            self.vector.reset(i, reset_seed)
        shown = columns_of(state["obs"])
        for i, slot in enumerate(self.slots):
            played = self.vector.replay(i, slot.actions[0])
            if played and all(
                np.array_equal(seen[i], shown[name][i])
                for name, seen in self.vector.columns.items()
            ):
                self.is_first[i] = bool(state["is_first"][i])
            else:
                self.unrepeatable += 1
                self._start_episode(i)

    def close(self) -> None:
        """Close the environments."""
        self.vector.close()


def writer_name(index: int, incarnation: int = 0) -> str:
    """The name that a collector commits fragments under."""
    return f"c{index}" + (f"r{incarnation}" if incarnation else "")


def episode_of(
    root_seed: int, index: int, slot: int, number: int, incarnation: int = 0
) -> tuple[str, int]:
    """The `eps_id` of an episode and the seed its environment is reset with.

    `number` counts the episodes of one of the collector's environments. Who knows the seed and the
    actions can play the episode again.
    """
    name = f"reverie/{root_seed}/{writer_name(index, incarnation)}/{slot}/{number}"
    eps_id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    return eps_id, seed(root_seed, "collect", index, incarnation, slot, number)


def next_incarnation(store: ReplayStore, index: int) -> int:
    """How many collectors with this index wrote to the store before, for a new one's names."""
    writers = {info.writer.partition("r")[::2] for info in store.segments()}
    return max((int(rank or 0) + 1 for name, rank in writers if name == f"c{index}"), default=0)


def spaces_of(
    env: EnvSettings, apart: bool = False
) -> tuple[spaces.Space[np.ndarray], spaces.Space[np.ndarray]]:
    """Observation and action space of an environment, which is made, reset and closed to see them.

    What is assumed of its actions is warned of, once. `apart` makes it in a process of its own, as
    `CollectSettings.apart` says for a run.
    """
    probe = VectorEnv(env, 1, apart=apart)
    try:
        probe.reset(0, seed=0)
        if probe.assumed:
            _warn(f"{env.name}: {probe.assumed}")
        return probe.single_observation_space, probe.single_action_space
    finally:
        probe.close()


@functools.cache
def _warn(sentence: str) -> None:
    """Say it once in this process."""
    _log.warning("%s", sentence)
