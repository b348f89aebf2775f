"""Collected once, whole or not at all, and read back row by row."""

import json
from dataclasses import replace

import numpy as np
import pytest

from envs import EnvSettings, VectorEnv
from envs.counting import read_action, read_length, read_step
from mbrl.errors import MbrlError, ReplayError
from mbrl.studies.fidelity import frames as module
from mbrl.studies.fidelity.frames import Frames, MixedPolicy, collect_frames, load_frames
from mbrl.studies.fidelity.games import Game

ORACLE = Game(
    name="oracle",
    env=EnvSettings(
        id="reverie/Counting-v0", ram=True, kwargs={"min_length": 30, "max_length": 60}
    ),
    act=lambda obs, ram, rng: np.full(len(obs), 3),
)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    directory = tmp_path_factory.mktemp("frames") / "oracle"
    return directory, collect_frames(ORACLE, directory, 800, 200, seed=1)


def test_rows_are_in_arrival_order_with_their_memory(collected):
    train, held_out = (load_frames(store) for store in collected[1])
    assert len(train.obs) == 800 + train.terminated.sum()  # ends add a row without an action
    assert len(held_out.obs) == 200 + held_out.terminated.sum()
    known, new = ({e.eps_id for e in store.fragments()} for store in collected[1])
    assert known and new and not known & new
    steps = np.array([read_step(obs) for obs in train.obs])
    action = np.array([read_action(obs) for obs in train.obs])
    length = np.array([read_length(obs) for obs in train.obs])
    assert np.array_equal(train.is_first, steps == 0)
    assert np.array_equal(np.diff(steps)[~train.is_first[1:]], np.ones((steps[1:] > 0).sum()))
    assert np.array_equal(train.prev_action, action)
    assert np.array_equal(train.reward, steps)  # the oracle pays t on arriving at t
    assert np.array_equal(train.terminated, steps == length)
    assert train.ram is not None and np.array_equal(train.ram[:, 1], steps)
    assert np.array_equal(train.ram[:, 2], action)


def test_frames_are_reused_when_complete(collected, monkeypatch):
    directory, _ = collected
    monkeypatch.setattr(module, "Collector", None)  # would fail if it were used
    train, held_out = collect_frames(ORACLE, directory, 800, 200, seed=1)
    assert len(load_frames(train).obs) >= 800 and len(load_frames(held_out).obs) >= 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 801}, r"expected frames with steps=801, got steps=800"),
        ({"seed": 2}, r"expected frames with seed=2, got seed=1"),
        ({"game": replace(ORACLE, name="other")}, r"game=other, got game=oracle"),
        ({"game": replace(ORACLE, env=EnvSettings(id="reverie/Counting-v0"))}, r"with env="),
    ],
)
def test_other_frames_are_refused(collected, change, message):
    asked = {"game": ORACLE, "steps": 800, "held_out_steps": 200, "seed": 1, **change}
    with pytest.raises(ReplayError, match=message):
        collect_frames(directory=collected[0], **asked)


def test_a_folder_of_something_else_is_refused_and_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ReplayError, match=r"without frames\.json; remove it or choose another"):
        collect_frames(ORACLE, tmp_path, 80, 80, 0)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_collection_that_was_cut_off_leaves_no_frames_and_is_done_again(tmp_path, monkeypatch):
    directory = tmp_path / "f"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            collect_frames(ORACLE, directory, 80, 80, 0)
    assert not directory.exists()
    train, _ = collect_frames(ORACLE, directory, 80, 80, 0)
    assert load_frames(train).obs.shape[0] == 80 + load_frames(train).terminated.sum()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert json.loads((directory / "frames.json").read_text())["steps"] == 80


def test_two_collections_at_once_are_refused(tmp_path):
    unfinished = tmp_path / ".f.unfinished"
    unfinished.mkdir()
    with module.lock_folder(unfinished), pytest.raises(MbrlError, match="another process holds it"):
        collect_frames(ORACLE, tmp_path / "f", 80, 80, 0)


def test_equal_seeds_give_equal_frames(collected, tmp_path):
    again, _ = collect_frames(ORACLE, tmp_path / "again", 800, 200, seed=1)
    names = [[info.name for info in store.segments()] for store in (again, collected[1][0])]
    assert names[0] == names[1]  # a name holds the content's hash


# Windows


def rows(*lengths):
    """Frames of episodes with these lengths; every row's value is its number."""
    n = sum(lengths)
    is_first = np.zeros(n, bool)
    is_first[np.cumsum([0, *lengths[:-1]])] = True
    return Frames(
        obs=np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1),
        prev_action=np.arange(n) % 3,
        reward=np.arange(n, dtype=np.float32),
        terminated=np.zeros(n, bool),
        is_first=is_first,
    )


def test_windows_lie_inside_one_episode_and_reach_every_row():
    starts = rows(4, 2, 5).windows(3, 500, np.random.default_rng(0))
    assert starts.shape == (500,) and set(starts.tolist()) == {0, 1, 6, 7, 8}
    with pytest.raises(ReplayError, match="an episode of at least 6 rows, got 5 in the longest"):
        rows(4, 5).windows(6, 1, np.random.default_rng(0))


def test_a_batch_holds_the_rows_of_its_windows():
    batch = rows(4, 5).batch(np.array([4, 1]), 3)
    assert batch.shape == (2, 3)
    assert batch.obs[..., 0, 0, 0].tolist() == batch.reward.tolist() == [[4, 5, 6], [1, 2, 3]]
    assert batch.prev_action.tolist() == [[1, 2, 0], [1, 2, 0]]
    assert batch.is_first.tolist() == [[True, False, False], [False] * 3]


# Who plays


def played(act, steps):
    """The actions of four environments, (steps, 4)."""
    vector = VectorEnv(ORACLE.env, 4)
    for i in range(4):
        vector.reset(i, i)
    policy = MixedPolicy(vector, act, seed=0)
    actions = np.array([policy.act(vector.obs, np.zeros(4, bool)) for _ in range(steps)])
    vector.close()
    return actions


def test_scripted_and_random_stretches_take_turns():
    # the share of the script's 3 in each stretch and environment
    script = (played(ORACLE.act, 64 * 32).reshape(64, 32, 4) == 3).mean(1)
    # scripted: 0.9 + 0.1 / 4 of the actions are the script's 3; random: a quarter
    assert np.sort(script.ravel())[[20, -20]] == pytest.approx([0.25, 0.925], abs=0.15)
    assert (script > 0.6).mean() == pytest.approx(0.5, abs=0.1)
    # and without a script all are random
    actions = played(None, 500)
    assert np.bincount(actions.ravel()) / actions.size == pytest.approx([0.25] * 4, abs=0.05)
