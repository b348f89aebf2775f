"""Replay to Minari and back: nothing is lost, and what cannot be done is one sentence."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from envs.actions import parts_of, stored_type
from envs.spaces import columns_of_space
from mbrl.__main__ import main
from mbrl.episode import Episode
from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore
from mbrl.replay.minari_dataset import export, load
from mbrl.streams import columns_of

minari = pytest.importorskip("minari", reason="an optional package")

IMAGE = spaces.Box(0, 255, (4, 5, 3), np.uint8)
DEEP = spaces.Dict(
    {
        "camera": IMAGE,
        "arm": spaces.Tuple(
            [spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(3, start=-1)]
        ),
        "keys": spaces.MultiDiscrete([2, 3]),
        "lights": spaces.MultiBinary(4),
    }
)
ACTIONS = spaces.Dict({"go": spaces.Discrete(3, start=1), "turn": spaces.Box(-2, 2, (2,))})


def recorded(
    space: spaces.Space[Any], actions: spaces.Space[Any], name: str, steps: int, **stamps: Any
) -> Episode:
    """An episode of random values."""
    rng = np.random.default_rng(steps)
    rows = steps + 1
    columns: dict[str, Any] = {}
    for column, leaf in columns_of_space(space).items():
        leaf.seed(steps)
        columns[column] = np.stack([np.asarray(leaf.sample(), leaf.dtype) for _ in range(rows)])
    shape, dtype = stored_type(actions)
    chosen = np.zeros((rows, *shape), dtype)
    for part in parts_of(actions):
        drawn = [np.asarray(part.space.sample(), part.dtype) for _ in range(steps)]
        (chosen[part.name] if part.path else chosen)[:steps] = np.stack(drawn)
    ends = np.arange(rows) == steps - 1
    return Episode.of(
        columns
        | {
            "actions": chosen,
            "rewards": np.append(rng.normal(size=steps), 0).astype(np.float32),
            "terminateds": ends & (steps % 2 == 0),
            "truncateds": ends & (steps % 2 == 1),
            "life_loss": (rng.random(rows) < 0.5) & (np.arange(rows) < steps),
            "ram": rng.integers(0, 256, (rows, 7)).astype(np.uint8),
        },
        eps_id=name,
        t0=0,
        ended=True,
        **stamps,
    )


def same(one: Episode, two: Episode) -> bool:
    """Whether they agree in every column, dtype and stamp."""
    pairs = [(one.columns[name], two.columns[name]) for name in one.columns]
    stamps = ("eps_id", "policy_version", "env_steps_total", "ended", "t0")
    return (
        one.columns.keys() == two.columns.keys()
        and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
        and all(getattr(one, name) == getattr(two, name) for name in stamps)
    )


@pytest.mark.parametrize(
    ("space", "actions"), [(IMAGE, spaces.Discrete(2)), (DEEP, ACTIONS)], ids=["image", "deep"]
)
def test_what_is_exported_and_imported_again_is_what_was_recorded(
    tmp_path: Path, space: spaces.Space[Any], actions: spaces.Space[Any]
) -> None:
    store = ReplayStore(tmp_path / "one", "some/Env-v0", (space, actions))
    long = recorded(space, actions, "a", 6, policy_version=3, env_steps_total=9)
    short = recorded(space, actions, "b", 3, policy_version=4, env_steps_total=9)
    goes_on = recorded(space, actions, "c", 5).cut(0, 4)
    store.commit([long.cut(0, 2), short], "w", 5)
    store.commit([long.cut(2, 7), goes_on], "w", 9)
    assert export(store, "some/thing-v0", tmp_path / "sets") == (2, 1)
    assert load("some/thing-v0", tmp_path / "two", tmp_path / "sets") == 2
    again = ReplayStore(tmp_path / "two")
    first, second = again.episodes()
    assert same(first, short)
    assert same(second, long)
    assert again.spaces() == store.spaces() == (space, actions)
    assert again.layout() == store.layout()


def test_minari_itself_reads_an_export(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "one", "some/Env-v0", (DEEP, ACTIONS))
    episode = recorded(DEEP, ACTIONS, "a", 4)
    store.commit([episode], "w", 4)
    export(store, "thing-v0", tmp_path / "sets")
    dataset = minari.load_dataset("thing-v0")
    (read,) = dataset.iterate_episodes()
    assert (dataset.total_steps, len(read.rewards)) == (4, 4)
    np.testing.assert_array_equal(
        read.observations["camera"], columns_of(episode.obs)["obs.camera"]
    )
    np.testing.assert_array_equal(read.observations["arm"][1], columns_of(episode.obs)["obs.arm.1"])
    chosen: Any = episode.actions
    np.testing.assert_array_equal(read.actions["turn"], chosen["turn"][:4])


@pytest.mark.filterwarnings("ignore:`[a-z_]+` is set to None|env_spec is None")
def test_a_dataset_of_others_becomes_replay(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    buffer = minari.data_collector.EpisodeBuffer(
        observations=np.arange(6, dtype=np.float32).reshape(3, 2),
        actions=np.array([1, 0]),
        rewards=[0.5, 2.0],
        terminations=[False, False],
        truncations=[False, False],
        infos={"life_loss": ["theirs", "means", "else"]},
    )
    minari.create_dataset_from_buffers(
        "theirs-v0",
        [buffer, buffer],
        observation_space=spaces.Box(0, 9, (2,)),
        action_space=spaces.Discrete(2),
    )
    assert load("theirs-v0", tmp_path / "replay", tmp_path / "sets") == 2
    one, two = ReplayStore(tmp_path / "replay").episodes()
    assert one.eps_id != two.eps_id
    assert (one.steps, one.ended, one.rewards.tolist()) == (2, True, [0.5, 2.0, 0.0])
    assert one.truncateds.tolist() == [False, True, False]  # whoever recorded it cut it
    assert not one.life_loss.any()
    assert one.actions.tolist() == [1, 0, 0]


def test_what_cannot_be_exchanged_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    root = tmp_path / "sets"
    empty = ReplayStore(tmp_path / "none")
    with pytest.raises(ReplayError, match="expected segments that say their spaces, got none"):
        export(empty, "thing-v0", root)
    store = ReplayStore(tmp_path / "one", "e", (IMAGE, spaces.Discrete(2)))
    whole = recorded(IMAGE, spaces.Discrete(2), "a", 4)
    store.commit([whole.cut(0, 3)], "w", 3)
    with pytest.raises(ReplayError, match="expected an episode that ended, got none"):
        export(store, "thing-v0", root)
    store.commit([whole.cut(3, 5)], "w", 4)
    export(store, "thing-v0", root)
    with pytest.raises(ReplayError, match="already exists"):
        export(store, "thing-v0", root)
    for name in ("../../thing-v0", "/thing-v0", "no version"):
        with pytest.raises(ReplayError, match="expected the name of a dataset"):
            export(store, name, root)
        with pytest.raises(ReplayError, match="expected the name of a dataset"):
            load(name, tmp_path / "two", root)
    slashed = spaces.Dict({"a/b": IMAGE})
    odd = ReplayStore(tmp_path / "odd", "e", (slashed, spaces.Discrete(2)))
    odd.commit([recorded(slashed, spaces.Discrete(2), "a", 3)], "w", 3)
    with pytest.raises(ReplayError, match="expected keys without a slash, got a/b"):
        export(odd, "odd-v0", root)
    with monkeypatch.context() as broken:
        broken.setattr(minari.data_collector, "EpisodeBuffer", lambda **_: 1 / len(()))
        with pytest.raises(ZeroDivisionError):
            export(store, "half-v0", root)
    assert export(store, "half-v0", root) == (1, 0)  # what failed left nothing behind
    with pytest.raises(ReplayError, match="expected no replay yet"):
        load("thing-v0", tmp_path / "one", root)
    with pytest.raises(ReplayError, match="expected a Minari dataset on this disk"):
        load("nowhere-v0", tmp_path / "two", root)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ReplayError, match=r"pip install 'reverie-rl\[minari\]'"):
        export(store, "other-v0", root)
    assert not (tmp_path / "two").exists()


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: Any) -> None:
    store = ReplayStore(tmp_path / "run" / "replay", "e", (IMAGE, spaces.Discrete(2)))
    store.commit([recorded(IMAGE, spaces.Discrete(2), "a", 4)], "w", 4)
    exchange = ["--id", "thing-v0", "--root", str(tmp_path / "sets")]
    assert main(["replay", "export", str(tmp_path / "run"), "--to", "minari", *exchange]) == 0
    new = str(tmp_path / "new")
    assert main(["replay", "import", "--from", "minari", "--out", new, *exchange]) == 0
    assert capsys.readouterr().out.splitlines() == ["thing-v0: 1 episodes", f"{new}: 1 episodes"]
