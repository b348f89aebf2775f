"""Replay to Minari and back: https://minari.farama.org, gymnasium's format of recorded episodes.

Nothing that counts is lost on the way: values and dtypes are those of replay, images are kept as
they are (Minari makes JPEGs of them by default), and what Minari has no place for (the spaces
with every bound, lost lives, a console's memory, who acted) lies in its metadata and infos, from
where an import takes it back. Episodes that go on are left out, since an episode of Minari has an
end. Minari is an optional package.
"""

import importlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from envs import EnvError
from envs.actions import column, is_leaf, parts_of, stored_type
from envs.spaces import Space, column_at, leaves_of, members_of
from mbrl.episode import Episode
from mbrl.errors import ReplayError
from mbrl.replay.spaces import space_from_json
from mbrl.replay.store import ReplayStore, in_segments
from mbrl.streams import Array, columns_of

WRITER = "import"

_NAME = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*-v\d+")
_ADVICE = "`[a-z_]+` is set to None|env_spec is None"  # what Minari warns of


def export(store: ReplayStore, dataset_id: str, root: Path | None = None) -> tuple[int, int]:
    """Write the episodes of a store that ended as a new Minari dataset.

    Args:
        store: of format 2, whose segments say their spaces.
        dataset_id: as Minari names datasets, such as "breakout/dream-v0".
        root: the folder of datasets; None is Minari's own.

    Returns:
        How many episodes were written, and how many were left out, since they had not ended.

    Raises:
        ReplayError: Minari is missing or cannot hold the spaces, the name is taken or none, or the
            store has no ended episode or does not say its spaces.
    """
    minari = _minari(root, dataset_id)
    both, layout = store.spaces(), store.layout()
    if both is None or layout is None:
        raise ReplayError(
            f"{store.directory}: expected segments that say their spaces, got "
            f"{'none' if layout is None else 'an older format'}; collect with this version"
        )
    if not any(episode.ended for episode in store.episodes()):
        raise ReplayError(f"{store.directory}: expected an episode that ended, got none")
    observations, actions = both
    _refuse_slashes(both)
    stamps: list[dict[str, Any]] = []
    left_out: list[str] = []

    def buffers() -> Iterator[Any]:
        for episode in store.episodes():
            if not episode.ended:
                left_out.append(episode.eps_id)
                continue
            stamps.append(
                {
                    "eps_id": episode.eps_id,
                    "policy_version": episode.policy_version,
                    "env_steps_total": episode.env_steps_total,
                }
            )
            yield minari.data_collector.EpisodeBuffer(**_fields(episode, observations, actions))

    dataset = _create(minari, dataset_id, buffers(), both, layout.env_id)
    dataset.storage.update_episode_metadata(stamps)
    dataset.storage.update_metadata({"reverie": [layout.env_id, *layout.spaces]})
    return len(stamps), len(left_out)


def _refuse_slashes(both: tuple[Space, Space]) -> None:
    keys = {str(key) for space in both for path in _paths(space) for key in path}
    if slashed := sorted(key for key in keys if "/" in key):
        raise ReplayError(
            f"expected keys without a slash, got {', '.join(slashed)}: in HDF5 it divides names; "
            f"rename them in an env.factory"
        )


def _create(
    minari: Any, dataset_id: str, buffers: Iterator[Any], both: tuple[Space, Space], env_id: str
) -> Any:
    """A new dataset of these episodes, whole or not at all."""
    folder = minari.storage.get_dataset_path(dataset_id)
    known = folder.exists()
    try:
        with warnings.catch_warnings():  # who the author is, is the user's to add
            warnings.filterwarnings("ignore", _ADVICE, UserWarning)
            return minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=both[0],
                action_space=both[1],
                description=f"Recorded by Reverie in {env_id or 'an unknown environment'}.",
                jpeg_encoding=False,
            )
    except BaseException as error:
        if not known:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ValueError | TypeError | NotImplementedError):
            raise ReplayError(f"{dataset_id}: Minari does not take it: {error}") from error
        raise


def load(dataset_id: str, out: Path, root: Path | None = None) -> int:
    """Write a Minari dataset as a new replay store; returns how many episodes it has.

    Args:
        dataset_id: of a dataset on this disk.
        out: folder of the store; it must not hold one yet.
        root: the folder of datasets; None is Minari's own.

    Raises:
        ReplayError: Minari is missing, there is no such dataset, it has values that replay cannot
            hold, or `out` holds replay.
    """
    minari = _minari(root, dataset_id)
    if ReplayStore(out).segments():
        raise ReplayError(f"{out}: expected no replay yet, got some; choose another folder")
    try:
        dataset = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise ReplayError(
            f"{dataset_id}: expected a Minari dataset on this disk; `minari list local` shows "
            f"them, `minari download` gets more: {error}"
        ) from error
    env_id, observations, actions = _described(dataset)
    try:
        stored_type(actions)
        leaves_of(observations, "obs")
    except EnvError as error:
        raise ReplayError(f"{dataset_id}: {error}") from error
    store = ReplayStore(out, env_id, (observations, actions))
    total = count = 0
    metadata = dataset.storage.get_episode_metadata(dataset.episode_indices)

    def episodes() -> Iterator[Episode]:
        nonlocal total
        for recorded, stamps in zip(dataset.iterate_episodes(), metadata, strict=True):
            total += len(recorded.rewards)
            yield _episode(recorded, stamps, total, observations, actions)

    for batch in in_segments(episodes()):
        count += len(batch)
        store.commit(batch, WRITER, total)
    return count


def _minari(root: Path | None, dataset_id: str) -> Any:
    """The package, which reads its folder from the process's environment at every call."""
    if not _NAME.fullmatch(dataset_id):
        raise ReplayError(
            f"expected the name of a dataset with a version, such as breakout/dream-v0, got "
            f"{dataset_id!r}"
        )
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        os.environ["MINARI_DATASETS_PATH"] = str(root.resolve())
    try:
        importlib.import_module("h5py")
        return importlib.import_module("minari")
    except ImportError as error:
        raise ReplayError(
            f"expected the package Minari, got {error}; pip install 'reverie-rl[minari]'"
        ) from error


def _fields(episode: Episode, observations: Space, actions: Space) -> dict[str, Any]:
    """What an `EpisodeBuffer` holds; infos have a row for every observation."""
    infos: dict[str, Any] = {"life_loss": episode.life_loss}
    if episode.ram is not None:
        infos["ram"] = episode.ram
    seen = columns_of(episode.obs)
    chosen = episode.actions[: episode.steps]
    parts = {part.path: column(chosen, part) for part in parts_of(actions)}
    return {
        "observations": _nested(
            observations, {path: seen[column_at("obs", path)] for path in _paths(observations)}
        ),
        "actions": _nested(actions, parts),
        "rewards": episode.rewards[: episode.steps],
        "terminations": episode.terminateds[: episode.steps],
        "truncations": episode.truncateds[: episode.steps],
        "infos": infos,
    }


def _paths(space: Space) -> list[tuple[Any, ...]]:
    return list(leaves_of(space, "obs"))


def _nested(space: Space, rows: dict[tuple[Any, ...], Array], path: tuple[Any, ...] = ()) -> Any:
    """Rows of every leaf, by its path, as the space nests them."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = {key: _nested(one, rows, (*path, key)) for key, one in members_of(space).items()}
        return parts if isinstance(space, spaces.Dict) else tuple(parts.values())
    return rows[path]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    """What lies there in nested dicts and tuples."""
    for key in path:
        value = value[key]
    return value


def _described(dataset: Any) -> tuple[str, Space, Space]:
    """Environment and spaces: those of the replay that was exported, else Minari's."""
    known = dataset.storage.metadata.get("reverie")
    if known is not None:
        env_id, observations, actions = known
        return str(env_id), space_from_json(observations), space_from_json(actions)
    spec = dataset.spec.env_spec
    return "" if spec is None else spec.id, dataset.observation_space, dataset.action_space


def _episode(
    recorded: Any, stamps: dict[str, Any], total: int, observations: Space, actions: Space
) -> Episode:
    """One recorded episode; what it does not say of itself is made up: a name, and no lost lives.

    An episode that neither terminated nor was truncated was cut by whoever recorded it.
    """
    steps = len(recorded.rewards)
    leaves = leaves_of(observations, "obs")
    seen = {
        column_at("obs", path): np.asarray(_at(recorded.observations, path), leaf.dtype)
        for path, leaf in leaves.items()
    }
    shape, dtype = stored_type(actions)
    chosen = np.zeros((steps + 1, *shape), dtype)
    for part in parts_of(actions):
        rows = np.asarray(_at(recorded.actions, part.path)).reshape(steps, *part.shape)
        if is_leaf(actions):
            chosen[:steps] = rows
        else:
            chosen[part.name][:steps] = rows
    infos = recorded.infos if "eps_id" in stamps else {}  # others' mean what they like
    lost = np.asarray(infos.get("life_loss", np.zeros(steps + 1)), np.bool_)
    truncated = _with_last(recorded.truncations, np.bool_)
    terminated = _with_last(recorded.terminations, np.bool_)
    if steps and not (truncated[steps - 1] or terminated[steps - 1]):
        truncated[steps - 1] = True
    columns = seen | {
        "actions": chosen,
        "rewards": _with_last(recorded.rewards, np.float32),
        "terminateds": terminated,
        "truncateds": truncated,
        "life_loss": lost,
    }
    if "ram" in infos:
        columns["ram"] = np.asarray(infos["ram"], np.uint8)
    name = stamps.get("eps_id") or str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([total, steps])))
    return Episode.of(
        columns,
        eps_id=str(name),
        t0=0,
        policy_version=int(stamps.get("policy_version", 0)),
        env_steps_total=int(stamps.get("env_steps_total", total)),
        ended=True,
    )


def _with_last(values: Any, dtype: Any) -> Any:
    """A value of every step, and a zero for the last row, which has no action."""
    return np.append(np.asarray(values, dtype), np.zeros(1, dtype))
