"""Frames of a game with their labels: collected once into replay, read back as plain arrays.

Every environment plays by turns at random and by the game's scripted policy, so that rallies happen
and so does everything else. Training frames and held-out frames come from different episodes. The
two stores appear in the folder at once and whole, so a collection that was cut off leaves nothing
that could be taken for frames.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import VectorEnv
from mbrl.acting import ActingPolicy, RandomPolicy
from mbrl.collect import Collector
from mbrl.config.schema import CollectSettings
from mbrl.episode import Array, SequenceBatch, arrival
from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore
from mbrl.run.durable import lock_folder, write_atomically
from mbrl.run.progress import Progress
from mbrl.seeding import seed as derive
from mbrl.studies.fidelity.games import Act, Game

NUM_ENVS = 8
SEGMENT_STEPS = 2048
STRETCH = 32  # steps after which an environment may change between random and scripted actions
SCRIPTED = 0.5  # probability that a stretch is scripted
EPSILON = 0.1  # probability of a random action within a scripted stretch
_PROTOCOL = 1  # raised when the same settings would give other frames
_RECORD = "frames.json"
_PARTS = ("train", "held_out")


@dataclass(frozen=True)
class Player:
    """Who plays instead of random actions and the game's script."""

    name: str  # of record: frames of another player are other frames
    make: Callable[[int], ActingPolicy]  # from the seed of its random stream


@dataclass(frozen=True, kw_only=True)
class Frames:
    """N rows in arrival order, one episode after another; `mbrl.episode` says what a row means."""

    obs: Array  # (N, H, W, C) uint8
    prev_action: Array  # (N,) int64 or (N, A) float32; zero at `is_first`
    reward: NDArray[np.float32]  # (N,), received on arriving
    terminated: NDArray[np.bool_]  # (N,), this state is terminal
    is_first: NDArray[np.bool_]  # (N,), this row does not continue the row before it
    ram: NDArray[np.uint8] | None = None  # (N, R), the console's memory; None where there is none

    def batch(self, starts: NDArray[np.int64], length: int) -> SequenceBatch:
        """Rows `start` to `start + length` of each of B starts, (B, length).

        As in training, the first row of a window may continue an episode: then it is not
        `is_first`, and its `prev_action` is real.
        """
        rows = starts[:, None] + np.arange(length)
        return SequenceBatch(
            obs=self.obs[rows],
            prev_action=self.prev_action[rows],
            reward=self.reward[rows],
            terminated=self.terminated[rows],
            is_first=self.is_first[rows],
        )

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The console's memory with each frame, (N, R); a ValueError where there is none."""
        if self.ram is None:
            raise ValueError("ram: expected the console's memory with every frame")
        return self.ram

    @property
    def longest(self) -> int:
        """Rows of the longest episode."""
        return int(np.diff(self._begins).max(initial=0))

    @property
    def _begins(self) -> NDArray[np.int64]:
        """First rows of all episodes, and the number of rows."""
        return np.append(np.flatnonzero(self.is_first), len(self.obs))

    def windows(self, length: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw `count` starts of windows that lie inside one episode, with replacement.

        A ReplayError if no episode is that long.
        """
        begins = self._begins
        ends = np.repeat(begins[1:], np.diff(begins))  # of each row's episode
        possible = np.flatnonzero(np.arange(len(self.obs)) + length <= ends)
        if len(possible) == 0:
            raise ReplayError(
                f"expected an episode of at least {length} rows, got "
                f"{self.longest} in the longest; collect more frames or use shorter windows"
            )
        return possible[rng.integers(len(possible), size=count)]


class MixedPolicy:
    """Plays every environment by turns at random and by a script that may read the memory."""

    def __init__(self, vector: VectorEnv, act: Act | None, seed: int) -> None:
        """Act in `vector`, whose current memories are read at every step."""
        self.version = 0
        self._vector, self._act = vector, act
        self._random = RandomPolicy(vector.single_action_space, derive(seed, "frames/random"))
        self._rng = np.random.default_rng(derive(seed, "frames/script"))
        self.reset(vector.num_envs)

    def reset(self, num_envs: int) -> None:
        """Begin a new stretch in every environment."""
        self._steps = 0
        self._scripted = np.zeros(num_envs, np.bool_)

    def act(self, obs: Array, is_first: NDArray[np.bool_], explore: bool = True) -> Array:
        """One action per environment."""
        actions = self._random.act(obs, is_first)
        if self._act is None:
            return actions
        if self._steps % STRETCH == 0:
            self._scripted = self._rng.random(len(obs)) < SCRIPTED
        self._steps += 1
        ram = self._vector.ram
        script = self._act(obs, np.zeros((len(obs), 0)) if ram is None else ram, self._rng)
        chosen = self._scripted & (self._rng.random(len(obs)) >= EPSILON)
        actions[chosen] = script[chosen]
        return actions


def collect_frames(
    game: Game,
    directory: Path,
    steps: int,
    held_out_steps: int,
    seed: int,
    player: Player | None = None,
) -> tuple[ReplayStore, ReplayStore]:
    """Collect a game's frames, or find them collected: to train on, and held-out ones.

    `directory` gets `train/`, `held_out/` and `frames.json`, all at once. Steps are rounded up to a
    multiple of `NUM_ENVS`. The seed decides every frame, whatever the machine.

    Raises:
        ReplayError: the folder holds frames of another game, number or seed, or something else.
        MbrlError: another process is collecting into this folder.
    """
    record = {
        "game": game.name,
        "env": game.env.model_dump(mode="json"),
        "steps": steps,
        "held_out_steps": held_out_steps,
        "seed": seed,
        "protocol": _PROTOCOL,
        **({"player": player.name} if player else {}),
    }
    directory = Path(directory)
    if not _complete(directory, record):
        unfinished = directory.with_name(f".{directory.name}.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        with lock_folder(unfinished):
            if not _complete(directory, record):  # another process may have just finished
                _collect(game, unfinished, (steps, held_out_steps), seed, player)
                write_atomically(unfinished / _RECORD, json.dumps(record, indent=1))
                if directory.exists():
                    directory.rmdir()  # empty, as was checked
                os.rename(unfinished, directory)  # everything at once
            else:
                shutil.rmtree(unfinished)
    train, held_out = (ReplayStore(directory / part, game.env.name) for part in _PARTS)
    return train, held_out


def load_frames(store: ReplayStore) -> Frames:
    """Read a whole store as arrays, episodes in the order in which they began.

    A ReplayError if it is empty.
    """
    layout = store.layout()
    if layout is None:
        raise ReplayError(f"{store.directory}: expected frames, got an empty store; collect first")
    order: dict[str, int] = {}  # in which the episodes began
    spans = sorted(
        (order.setdefault(one.eps_id, len(order)), one.t0, one.rows) for one in store.fragments()
    )
    ends = {(which, t0 + rows) for which, t0, rows in spans}
    place, n = {}, 0
    for which, t0, rows in spans:
        place[which, t0] = n
        n += rows
    obs = np.empty((n, *layout.obs[0].shape), layout.obs[0].dtype)
    ram = np.empty((n, layout.ram_bytes), np.uint8) if layout.ram_bytes else None
    # one row more in front, which the shift to arrival order drops
    actions = np.zeros((1, n + 1, *layout.action_shape), layout.action_dtype)
    rewards = np.zeros((1, n + 1), np.float32)
    terminateds, is_first = np.zeros((2, 1, n + 1), np.bool_)
    is_first[0, 0] = True
    for episode in store.fragments():
        at = order[episode.eps_id], episode.t0
        rows_here = slice(place[at], place[at] + episode.rows)
        obs[rows_here] = episode.obs
        if ram is not None and episode.ram is not None:
            ram[rows_here] = episode.ram
        choice = (0, slice(place[at] + 1, place[at] + 1 + episode.rows))
        actions[choice] = episode.actions
        rewards[choice], terminateds[choice] = episode.rewards, episode.terminateds
        is_first[0, place[at] + 1] = at not in ends
    shifted = arrival(obs[None], actions, rewards, terminateds, is_first)
    return Frames(
        obs=obs,
        prev_action=shifted.prev_action[0],
        reward=shifted.reward[0],
        terminated=shifted.terminated[0],
        is_first=shifted.is_first[0],
        ram=ram,
    )


def _complete(directory: Path, record: dict[str, Any]) -> bool:
    """Whether the folder holds exactly these frames; a ReplayError if it holds something else."""
    path = directory / _RECORD
    if not path.exists():
        if directory.exists() and any(directory.iterdir()):
            raise ReplayError(
                f"{directory}: expected frames of {record['game']} or an empty folder, got a "
                f"folder without {_RECORD}; remove it or choose another"
            )
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != record:
        differ = [key for key in {**record, **found} if found.get(key) != record.get(key)]
        expected = ", ".join(f"{key}={record.get(key)}" for key in differ)
        got = ", ".join(f"{key}={found.get(key)}" for key in differ)
        raise ReplayError(
            f"{directory}: expected frames with {expected}, got {got}; choose another folder, or "
            f"remove this one to collect anew"
        )
    return True


def _collect(
    game: Game, directory: Path, steps: tuple[int, int], seed: int, player: Player | None
) -> None:
    """Fill both stores from scratch."""
    done = 0
    with Progress(sum(steps), title=f"{game.name} frames") as progress:
        for index, (part, wanted) in enumerate(zip(_PARTS, steps, strict=True)):
            shutil.rmtree(directory / part, ignore_errors=True)  # of a run that was cut off
            store = ReplayStore(directory / part, game.env.name)
            settings = CollectSettings(num_envs=NUM_ENVS, fragment_s=1e9)
            collector = Collector(game.env, settings, store, seed, index)
            try:
                stream = derive(seed, "frames", index)
                policy: ActingPolicy = (
                    player.make(stream)
                    if player
                    else MixedPolicy(collector.vector, game.act, stream)
                )
                taken = 0
                while taken < wanted:
                    chunk = min(SEGMENT_STEPS, -(-(wanted - taken) // NUM_ENVS) * NUM_ENVS)
                    taken += collector.collect(chunk, policy, taken).steps
                    progress.update(env_steps=done + taken, phase=part.replace("_", " "))
            finally:
                collector.close()
            done += taken
