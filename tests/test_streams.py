"""Observations of any space, from the environment through replay to a batch, value by value."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Text, Tuple
from stream_envs import NESTED, SPACES, Sampled
from test_segment import assert_equal, make_episode, with_ram

from envs import EnvSettings
from envs.spaces import values_of
from mbrl.acting import RandomPolicy
from mbrl.collect import Collector, episode_of
from mbrl.config.schema import CollectSettings
from mbrl.episode import Episode, arrived, joined
from mbrl.errors import ConfigError, ReplayError
from mbrl.flat_observations import FlatObservations, FlattenedEnv
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.replay.spaces import space_from_json, space_to_json
from mbrl.streams import columns_of, mapped, obs_of, streams_of, types_of

DATA = Path(__file__).parent / "data"


# -- what a space is made of ----------------------------------------------------------------------


def kinds(space: gym.Space[Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.column, one.kind, one.shape) for one in streams_of(space)]


def test_nested_spaces_become_columns_joined_by_dots() -> None:
    assert kinds(NESTED) == [
        ("obs.place", "vector", (3,)),
        ("obs.hand.grip", "categories", ()),
        ("obs.hand.touch", "categories", (2, 2)),
        ("obs.pair.0", "vector", ()),
        ("obs.pair.1", "categories", (2,)),
    ]
    _, grip, touch, _, pair = streams_of(NESTED)
    assert (grip.sizes, grip.starts) == ((3,), (-1,))
    assert (touch.sizes, touch.starts) == ((2, 2, 2, 2), (0, 0, 0, 0))
    assert (pair.sizes, pair.starts) == ((2, 3), (5, -5))
    assert types_of(NESTED)["obs.hand.touch"] == ((2, 2), np.dtype(np.int8))


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (Box(0, 255, (64, 64, 3), np.uint8), "image"),
        (Box(0, 255, (64, 64), np.uint8), "image"),
        (Box(0, 255, (4, 84, 84, 3), np.uint8), "image"),
        (Box(0, 1, (10, 10, 4), np.bool_), "image"),
        (Box(0, 10, (20, 10, 10), np.int32), "image"),
        (Box(-1, 1, (3, 3), np.int8), "image"),
        (Box(0, 1, (8, 8, 1), np.float32), "image"),
        (Box(0, 255, (30, 50, 3), np.float32), "image"),
        (Box(0, 1, (5, 5), np.float32), "vector"),
        (Box(-1, 1, (8, 8, 1), np.float32), "vector"),
        (Box(0, 1000, (8, 8), np.int32), "vector"),
        (Box(np.zeros((2, 2)), np.array([[1, 2], [3, 4]]), dtype=np.uint8), "vector"),
        (Box(0, 255, (128,), np.uint8), "vector"),
        (Box(-np.inf, np.inf, (5, 5), np.float32), "vector"),
    ],
)
def test_what_is_an_image_follows_from_its_values_and_axes(space: Box, kind: str) -> None:
    assert [one.kind for one in streams_of(space)] == [kind]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Text(5), r"got Text at obs; convert it in an env\.factory"),
        (
            Dict(image=Box(0, 1, (2,)), mission=Text(9), turn=Discrete(4)),
            r"got Text at obs\.mission; drop it with env\.observe: \[image, turn\]",
        ),
        (Tuple([Discrete(2), Graph(Box(0, 1, (2,)), None)]), r"Graph at obs\.1; drop .*: \[0\]"),
        (Dict(), "got nothing in Dict"),
        (Dict({"a.b": Discrete(2), "a": Dict(b=Discrete(3))}), r"got obs\.a\.b twice"),
    ],
)
def test_what_has_no_fixed_size_is_refused_in_one_sentence(
    space: gym.Space[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^observations: .*{message}"):
        streams_of(space)


def test_observations_are_plain_arrays_or_dicts_by_column() -> None:
    plain, parts = np.arange(3), {"obs.a": np.arange(2), "obs.b": np.arange(4)}
    assert columns_of(plain) == {"obs": plain} and columns_of(parts) is parts
    assert obs_of({"obs": plain, "rewards": plain}) is plain
    assert obs_of({**parts, "observed": plain}) == parts
    assert mapped(len, plain) == 3 and mapped(len, parts) == {"obs.a": 2, "obs.b": 4}


# -- spaces as JSON -------------------------------------------------------------------------------

ODD = [
    Box(np.float32([-np.inf, -1, 0.1]), np.float32([1, np.inf, 0.3])),
    Box(-np.inf, np.inf, (2, 2), np.float16),
    Box(-(2**62) - 1, 2**62 + 1, (2,), np.int64),
    Box(0, 2**64 - 1, (2,), np.uint64),
    Box(-np.inf, 3, (2,), np.int32),
    Box(0, 1, (0, 3), np.float32),
    Box(-3e38, 3e38, (1,), np.float32),
]


@pytest.mark.parametrize("space", [*SPACES.values(), *ODD], ids=str)
def test_a_space_comes_back_from_json_with_every_bound(space: gym.Space[Any]) -> None:
    text = space_to_json(space)
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    back = space_from_json(text)
    assert back == space and repr(back) == repr(space) and space_to_json(back) == text
    for one, two in zip(streams_of(space), streams_of(back), strict=True):
        assert one.dtype == two.dtype
        if isinstance(one.space, Box):
            for name in ("low", "high", "bounded_below", "bounded_above"):
                assert np.array_equal(getattr(one.space, name), getattr(two.space, name))


def test_json_that_is_no_space_and_spaces_without_json_are_refused() -> None:
    for text in ("{", "[]", '{"type": "Sphere"}', '{"type": "Box", "dtype": "float32"}'):
        with pytest.raises(ReplayError, match="expected a space as JSON"):
            space_from_json(text)
    with pytest.raises(ReplayError, match="with a fixed size, got Text"):
        space_to_json(Text(3))
    with pytest.raises(ReplayError, match=r"strings, got \[1\]"):
        space_to_json(Dict({1: Discrete(2)}))


# -- from the environment to the batch ------------------------------------------------------------


def collected(folder: Path, space: str, steps: int = 24, **kwargs: Any) -> ReplayStore:
    """Two environments, fragments of at most 4 steps, in two segments."""
    env = EnvSettings(factory="stream_envs.Sampled", kwargs={"space": space, **kwargs})
    store = ReplayStore(folder, "x", (SPACES[space], Discrete(2)))
    settings = CollectSettings(num_envs=2, fragment_steps=4)
    collector = Collector(env, settings, store, root_seed=3)
    policy = RandomPolicy(Discrete(2), 0)
    collector.collect(steps, policy, 0)
    collector.collect(steps, policy, steps)
    collector.close()
    return store


def shown(episode: Episode) -> list[Any]:
    """What the environment showed in an episode."""
    for slot in range(2):
        for number in range(20):
            name, seed = episode_of(3, 0, slot, number)
            if name == episode.eps_id:
                return Sampled.shown[seed]
    raise LookupError(episode.eps_id)


@pytest.mark.parametrize("name", SPACES)
def test_replay_holds_what_the_environment_showed(name: str, tmp_path: Path) -> None:
    space, store = SPACES[name], collected(tmp_path, name)
    rows = {column: dtype for column, (_, dtype) in types_of(space).items()}
    episodes = list(ReplayStore(tmp_path).episodes())
    assert sum(episode.ended for episode in episodes) >= 6
    assert sum(episode.steps for episode in episodes) == 48
    for episode in episodes:
        columns = columns_of(episode.obs)
        assert {column: part.dtype for column, part in columns.items()} == rows
        # an open episode has shown one observation more, at which no action is chosen yet
        for t, seen in enumerate(shown(episode)[: episode.rows]):
            for part, value in zip(columns.values(), values_of(space, seen), strict=True):
                assert np.array_equal(part[t], value)
    assert store.spaces() == (space, Discrete(2)) == ReplayStore(tmp_path).spaces()
    with SequenceSampler(100, types_of(space)) as sampler:
        assert sampler.refresh(store) == sum(episode.rows for episode in episodes)
        batch = sampler.sample(3, 5, np.random.default_rng(0))
    for column, (shape, dtype) in types_of(space).items():
        part = columns_of(batch.obs)[column]
        assert part.shape == (3, 5, *shape) and part.dtype == dtype


def test_a_buffer_that_the_environment_changes_in_place_is_copied(tmp_path: Path) -> None:
    for episode in collected(tmp_path, "vector", in_place=True).episodes():
        assert np.array_equal(episode.obs, shown(episode)[: episode.rows])


def test_a_stopped_collector_finds_open_episodes_of_dicts_again(tmp_path: Path) -> None:
    env = EnvSettings(factory="stream_envs.Sampled", kwargs={"space": "nested"})
    settings = CollectSettings(num_envs=2, fragment_steps=4)
    first, second = (
        Collector(env, settings, ReplayStore(tmp_path / name), root_seed=1) for name in "ab"
    )
    policy = RandomPolicy(Discrete(2), 0)
    first.collect(10, policy, 0)
    second.load_state_dict(first.state_dict())
    assert second.unrepeatable == 0
    for column, part in first.vector.columns.items():
        assert np.array_equal(second.vector.columns[column], part)


def test_sampled_rows_of_several_columns_stay_in_line(tmp_path: Path) -> None:
    t = np.arange(20)
    flags = np.zeros(20, bool)
    episode = Episode(
        eps_id="e",
        t0=0,
        obs={"obs.a": t.astype(np.float32), "obs.b": np.stack([t, -t], 1)},
        actions=t,
        rewards=t.astype(np.float32),
        terminateds=flags,
        truncateds=flags,
        life_loss=flags,
    )
    types = {"obs.a": ((), np.dtype(np.float32)), "obs.b": ((2,), np.dtype(np.int64))}
    with SequenceSampler(20, types) as sampler:
        sampler.add(episode)
        batch = sampler.sample(4, 6, np.random.default_rng(0))
        with pytest.raises(ReplayError, match=r"expected the columns obs\.a, obs\.b, .*got obs,"):
            sampler.add(make_episode(3))
    assert isinstance(batch.obs, dict)
    assert np.array_equal(batch.obs["obs.b"][..., 0], batch.obs["obs.a"])
    goes_on = ~batch.is_first
    assert np.array_equal(batch.prev_action[goes_on], batch.obs["obs.a"][goes_on] - 1)


def test_fragments_are_joined_only_where_they_follow_one_another() -> None:
    parts = make_episode(2, ended=False), make_episode(3, t0=2)
    whole = joined(parts)
    assert (whole.t0, whole.rows, whole.ended, whole.obs[:, 0, 0, 0].tolist()) == (
        *(0, 5, True),
        [1, 2, 3, 4, 5],
    )
    with pytest.raises(ReplayError, match="expected a fragment from step 5 on, got one of a from"):
        joined([whole, parts[0]])
    padded = {name: np.concatenate([rows[:1], rows])[None] for name, rows in whole.sampled.items()}
    batch = arrived(padded, np.arange(6)[None] == 1)
    assert batch.obs.shape == (1, 5, 2, 3, 1) and batch.prev_action[0].tolist() == [0, 1, 2, 3, 4]


# -- the store ------------------------------------------------------------------------------------


def test_episodes_are_whole_and_say_whether_they_ended(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path)
    open_, lost = make_episode(3, eps_id="open", ended=False), make_episode(3, eps_id="x", t0=4)
    store.commit([make_episode(2, eps_id="long", ended=False), open_], "w", 5)
    store.commit([make_episode(4, eps_id="short"), lost], "w", 9)
    store.commit([make_episode(3, eps_id="long", t0=2)], "w", 12)
    found = [(e.eps_id, e.t0, e.rows, e.ended) for e in store.episodes()]
    assert found == [("short", 0, 4, True), ("long", 0, 5, True), ("open", 0, 3, False)]
    assert [e.eps_id for e in store.fragments()] == ["long", "open", "short", "x", "long"]
    (store.data / store.segments()[0].name).unlink()  # the beginning of `long`
    assert [e.eps_id for e in ReplayStore(tmp_path).episodes()] == ["short"]


def test_a_store_of_version_1_is_read_and_continued(tmp_path: Path) -> None:
    shutil.copytree(DATA / "replay_v1", tmp_path / "data")
    space = Box(0, 255, (2, 3, 1), np.uint8), Discrete(9)
    store = ReplayStore(tmp_path, "Env-v0", space)
    assert store.spaces() is None
    first = with_ram(make_episode(4))
    parts = with_ram(make_episode(3, eps_id="b", ended=False)), make_episode(2, eps_id="b", t0=3)
    for left, right in zip(store.fragments(), [first, parts[0], with_ram(parts[1])], strict=True):
        assert_equal(left, right)
    store.commit([with_ram(make_episode(3, eps_id="c"))], "c1", 10)
    assert [(e.eps_id, e.rows) for e in store.episodes()] == [("a", 4), ("b", 5), ("c", 3)]
    assert store.stats().episodes == 3 and ReplayStore(tmp_path).spaces() == space
    assert store.quarantined == 0


def test_vectors_and_continuous_actions_of_version_1_are_read(tmp_path: Path) -> None:
    shutil.copytree(DATA / "replay_v1_box", tmp_path / "data")
    (episode,) = ReplayStore(tmp_path).episodes()
    kind = {"obs_shape": (5,), "obs_dtype": "float64", "action_shape": (2,)}
    assert_equal(episode, make_episode(4, **kind))


def test_rows_of_another_space_are_refused(tmp_path: Path) -> None:
    shape = {"obs_shape": (2,), "obs_dtype": "float32"}
    space = Box(-1, 1, (2,), np.float32), Discrete(9)
    ReplayStore(tmp_path, "e", space).commit([make_episode(3, **shape)], "w", 3)
    wider = Box(-1, 2, (2,), np.float32), Discrete(9)
    with pytest.raises(ReplayError, match="expected rows like those stored"):
        ReplayStore(tmp_path, "e", wider).commit([make_episode(3, **shape)], "w", 6)
    with pytest.raises(ReplayError, match=r"expected the columns .* got \[.*obs float32\(2,\)"):
        other = ReplayStore(tmp_path / "b", "e", (NESTED, Discrete(9)))
        other.commit([make_episode(3, **shape)], "w", 6)


def test_other_tools_read_vectors_as_lists_and_single_values_as_numbers(tmp_path: Path) -> None:
    collected(tmp_path, "nested")
    frame = pd.read_parquet(tmp_path / "data")
    assert [name for name in frame if name.startswith("obs")] == list(types_of(NESTED))
    assert set(frame["obs.hand.grip"]) <= {-1, 0, 1}
    assert np.stack(frame["obs.place"]).shape == (len(frame), 3)
    touch = frame["obs.hand.touch"].iloc[0]  # two axes: bytes
    assert np.frombuffer(touch, np.int8).reshape(2, 2).max() <= 1
    only = pd.read_parquet(tmp_path / "data", columns=["obs.place"])
    assert list(only) == ["obs.place"] and len(only) == len(frame)


# -- as one vector --------------------------------------------------------------------------------


def test_flat_observations_are_one_hot_and_scaled() -> None:
    space = Dict(
        a=Discrete(3, start=-1),
        b=Box(-5, 5, (2,), np.float64),
        c=MultiDiscrete([2, 2], start=[1, 1]),
        d=Box(0, 255, (1, 2, 1), np.uint8),
    )
    flat = FlatObservations(space)
    assert flat.space.shape == (3 + 2 + 4 + 2,)
    row = {"a": -1, "b": np.array([0.5, -5]), "c": np.array([2, 1]), "d": np.full((1, 2, 1), 51)}
    expected = [1, 0, 0, 0.5, -5, 0, 1, 1, 0, 0.2, 0.2]
    columns = {f"obs.{key}": np.asarray(value)[None] for key, value in row.items()}
    assert flat.of_rows(columns)[0].tolist() == pytest.approx(expected)
    env = FlattenedEnv(gym.wrappers.TransformObservation(Sampled(), lambda _: row, space), flat)
    assert env.reset(seed=0)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        *[(name, False) for name in ("vector", "image", "bytes")],
        *[(name, True) for name in ("discrete", "dict", "matrix", "number", "bits")],
    ],
)
def test_only_what_the_baselines_cannot_read_is_made_flat(name: str, needed: bool) -> None:
    assert (FlatObservations.where_needed(SPACES[name]) is not None) == needed


def test_bits_are_two_categories_each() -> None:
    flat = FlatObservations(MultiBinary(2))
    assert flat.of_rows(np.array([[0, 1]], np.int8)).tolist() == [[1, 0, 0, 1]]
