"""Episodes of one policy: collected once, read as rows, and played again up to any row.

Training episodes and new ones come from the same policy with other seeds. An episode follows from
its seed and its actions, so the game behind any frame is found again by playing up to it; what came
out is compared with what was stored.
"""

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs import EnvSettings, make_env
from envs.minatar import GameCopy
from mbrl.acting import ActingPolicy
from mbrl.collect import episode_of
from mbrl.errors import ConfigError, ReplayError
from mbrl.replay import ReplayStore
from mbrl.run import checkpoint
from mbrl.run.open import OpenRun
from mbrl.studies.fidelity.frames import NUM_ENVS, Frames, Player, collect_frames
from mbrl.studies.fidelity.games import Game
from mbrl.studies.minatar.trial import Trial

NEW = 1  # index of the collector that plays the new episodes


def episodes_of(trial: Trial) -> tuple[ReplayStore, ReplayStore]:
    """Episodes to train on and new ones, collected if they are missing.

    Raises:
        ConfigError: the run of `--policy` plays another environment.
        MbrlError: it is no run, or has no agent yet, or the folder holds other episodes.
    """
    env = trial.config().env
    player = player_of(trial.policy, env) if trial.policy else None
    return collect_frames(
        Game(trial.game, env), trial.episodes_dir, trial.steps, trial.new_steps, trial.seed, player
    )


def player_of(folder: Path, env: EnvSettings) -> Player:
    """The sampled policy of a run, who acts as it did when it collected."""
    run = OpenRun(folder)
    if run.config.env != env:
        raise ConfigError(
            f"--policy {folder}: expected a run on {env.name} with the settings of "
            f"configs/minatar.yaml, got one on {run.config.env.name} with env: "
            f"{run.config.env.model_dump(exclude_defaults=True)}; choose another run or game"
        )
    steps = max(checkpoint.steps(folder / "checkpoints"), default=0)

    def make(seed: int) -> ActingPolicy:
        return run.agent(seed).policy

    return Player(f"{folder.resolve().name} after {steps} steps", make)


def games_at(
    env: EnvSettings, store: ReplayStore, frames: Frames, rows: NDArray[np.int64], root_seed: int
) -> list[GameCopy]:
    """The game behind each of `rows` of the new episodes, found by playing the episodes again.

    Args:
        env: the environment they were collected in.
        store: the episodes.
        frames: all of its rows.
        rows: places in `frames`, in any order.
        root_seed: that the episodes were collected with.

    Raises:
        ReplayError: an episode does not come out as it was stored.
    """
    seeds = _reset_seeds(store, root_seed)
    begins = np.flatnonzero(frames.is_first)
    found: dict[int, GameCopy] = {}
    with contextlib.closing(make_env(env)) as played:
        for which in np.unique(np.searchsorted(begins, rows, side="right") - 1):
            begin, end = begins[which], np.append(begins, len(frames.obs))[which + 1]
            wanted = set(rows[(rows >= begin) & (rows < end)].tolist())
            obs, _ = played.reset(seed=seeds[which])
            for row in range(begin, max(wanted) + 1):
                if row > begin:
                    obs = played.step(int(frames.prev_action[row]))[0]
                if not np.array_equal(obs, frames.obs[row]):
                    raise ReplayError(
                        f"expected episode {which} to repeat itself, got another frame at its step "
                        f"{row - begin}; remove {store.directory.parent} to collect it anew"
                    )
                if row in wanted:
                    found[row] = GameCopy(played)
    return [found[row] for row in rows.tolist()]


def _reset_seeds(store: ReplayStore, root_seed: int) -> Sequence[int]:
    """The seeds of all new episodes, in the order in which they began."""
    names = dict.fromkeys(one.eps_id for one in store.fragments())
    numbered = itertools.product(range(len(names)), range(NUM_ENVS))
    played = (episode_of(root_seed, NEW, slot, number) for number, slot in numbered)
    seeds = {eps_id: seed for eps_id, seed in played if eps_id in names}
    if len(seeds) < len(names):
        raise ReplayError(
            f"{store.directory}: expected episodes of seed {root_seed}, got others; remove "
            f"{store.directory.parent} to collect anew"
        )
    return [seeds[name] for name in names]
