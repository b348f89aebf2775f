"""The ring and its tape: uniform, aligned, never silent about a boundary, and rebuildable."""

import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mbrl.episode import Episode
from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.replay.sampler import is_held_out


def episode(number, rows, *, t0=0, ended=True, shape=(2,)):
    """Row t of episode n: obs 1000 n + t, action obs + 1, reward obs + 2; terminates at the end."""
    value = 1000 * number + t0 + np.arange(rows)
    acted = np.arange(rows) < rows - ended
    terminateds = np.zeros(rows, bool)
    if ended and rows > 1:
        terminateds[-2] = True
    return Episode(
        eps_id=f"e{number}",
        t0=t0,
        obs=np.broadcast_to(value.reshape(-1, *[1] * len(shape)), (rows, *shape)).astype(np.int32),
        actions=np.where(acted, value + 1, 0),
        rewards=np.where(acted, value + 2, 0).astype(np.float32),
        terminateds=terminateds,
        truncateds=np.zeros(rows, bool),
        life_loss=np.zeros(rows, bool),
        ended=ended,
    )


def make(capacity=1000, **kwargs):
    return SequenceSampler(capacity, {"obs": ((2,), np.dtype(np.int32))}, **kwargs)


class EveryStart:
    """In place of a generator: draws 0, 1, 2, ... so that each start comes exactly once."""

    def integers(self, high, size):
        return np.arange(size) % high


def every_window(sampler, length, held_out=False):
    rows = sampler.rows_on_tape(held_out)
    return sampler.sample(rows, length, EveryStart(), held_out)


def values(batch):
    return batch.obs[:, :, 0]


def tape(sampler):
    """The tape's observations from position 0, with a bar in front of each `is_first`."""
    batch = every_window(sampler, 1)
    return " ".join(
        ("| " if first else "") + str(value)
        for value, first in zip(values(batch)[:, 0], batch.is_first[:, 0], strict=True)
    )


def assert_aligned(batch):
    """All columns follow from the observations: nothing is shifted or crosses unmarked."""
    seen, going_on = values(batch), ~batch.is_first[:, 1:]
    assert (np.diff(seen, axis=1)[going_on] == 1).all()
    on = ~batch.is_first
    assert (batch.prev_action[on] == seen[on]).all()  # the action before was obs - 1 + 1
    assert (batch.reward[on] == seen[on] + 1).all()
    for column in (batch.prev_action, batch.reward, batch.terminated):
        assert (column[batch.is_first] == 0).all()


def test_alignment_of_one_window_by_hand():
    sampler = make()
    sampler.add(episode(1, 3))
    sampler.add(episode(2, 4))
    batch = every_window(sampler, 4)
    assert values(batch)[1].tolist() == [1001, 1002, 2000, 2001]
    assert batch.prev_action[1].tolist() == [1001, 1002, 0, 2001]
    assert batch.reward[1].tolist() == [1002, 1003, 0, 2002]
    assert batch.terminated[1].tolist() == [False, True, False, False]
    assert batch.is_first[1].tolist() == [False, False, True, False]
    # the tape is a circle; its seam is marked
    assert values(batch)[5].tolist() == [2002, 2003, 1000, 1001]
    assert batch.is_first[5].tolist() == [False, False, True, False]
    assert batch.terminated[5].tolist() == [False, True, False, False]
    assert batch.obs.dtype == np.int32 and batch.reward.dtype == np.float32
    assert batch.prev_action.dtype == np.int64 and batch.shape == (7, 4)


def test_every_row_is_equally_often_at_every_position_of_a_window():
    sampler = make()
    for number, rows in ((1, 2), (2, 9), (3, 5)):
        sampler.add(episode(number, rows))
    batch = every_window(sampler, 6)
    for position in range(6):
        counts = Counter(values(batch)[:, position].tolist())
        assert len(counts) == 16 and set(counts.values()) == {1}
    assert_aligned(batch)


@pytest.mark.parametrize(
    ("fragments", "expected"),  # number, t0, rows, ended
    [
        (
            [(1, 0, 3, False), (2, 0, 3, False), (1, 3, 3, True), (2, 3, 3, True)],
            "| 1000 1001 1002 1003 1004 1005 | 2000 2001 2002 2003 2004 2005",
        ),
        (
            [(1, 2, 2, False), (1, 0, 2, False), (1, 6, 2, True)],
            "| 1000 1001 1002 1003 | 1006 1007",
        ),
    ],
    ids=["interleaved fragments are stitched", "a late one finds its place, a gap is marked"],
)
def test_the_tape_is_in_step_order(fragments, expected):
    sampler = make()
    for number, t0, rows, ended in fragments:
        sampler.add(episode(number, rows, t0=t0, ended=ended))
    assert tape(sampler) == expected


def test_rows_that_are_live_already_are_dropped():
    sampler = make()
    assert sampler.add(episode(1, 4, ended=False)) == 4
    assert sampler.add(episode(1, 4, ended=False)) == 0
    assert sampler.add(episode(1, 4, t0=2)) == 2
    assert tape(sampler) == "| 1000 1001 1002 1003 1004 1005"


def test_an_episode_larger_than_the_ring_leaves_its_last_rows_and_forgotten_rows_may_return():
    sampler = make(8)
    sampler.add(episode(1, 3))
    sampler.add(episode(4, 20))
    assert tape(sampler) == "| " + " ".join(str(4000 + t) for t in range(12, 20))
    assert sampler.add(episode(1, 3)) == 3


def random_fragments(seed, count):
    """Fragments of four interleaved environments with episodes of 1 to 30 rows."""
    rng = np.random.default_rng(seed)
    number, left, t = [1, 2, 3, 4], rng.integers(1, 30, 4).tolist(), [0] * 4
    following, fragments = 5, []
    for _ in range(count):
        slot = int(rng.integers(4))
        rows = min(left[slot], int(rng.integers(1, 8)))
        ended = rows == left[slot]
        fragments.append(episode(number[slot], rows, t0=t[slot], ended=ended))
        left[slot], t[slot] = left[slot] - rows, t[slot] + rows
        if ended:
            number[slot], left[slot], t[slot] = following, int(rng.integers(1, 30)), 0
            following += 1
    return fragments


def test_ring_equals_a_plain_list_of_the_newest_rows():
    sampler, rows = make(50), []
    for fragment in random_fragments(0, 400):
        sampler.add(fragment)
        number = int(fragment.eps_id[1:])
        rows += [(number, fragment.t0 + i) for i in range(fragment.rows)]
        live = rows[-50:]
        order = list(dict.fromkeys(n for n, _ in live))
        expected = [n * 1000 + t for n in order for t in sorted(t for m, t in live if m == n)]
        batch = every_window(sampler, min(7, len(live)))
        assert values(batch)[:, 0].tolist() == expected
        assert_aligned(batch)
        continues = np.diff(expected) == 1
        assert (batch.is_first[1:, 0] == ~continues).all() and batch.is_first[0, 0]


def equal_batches(left, right):
    one, two = (vars(s.sample(16, 9, np.random.default_rng(3))) for s in (left, right))
    tapes = [tuple(map(s.rows_on_tape, (False, True))) for s in (left, right)]
    return tapes[0] == tapes[1] and all(np.array_equal(one[name], two[name]) for name in one)


def commit_all(store, fragments, writer="w", start=0):
    for i in range(0, len(fragments), 3):
        store.commit(fragments[i : i + 3], writer, start + i)


@pytest.mark.parametrize(("capacity", "holdout"), [(10_000, 0.0), (120, 0.3), (37, 0.0)])
def test_sampler_rebuilt_from_a_checkpoint_gives_the_same_batches(tmp_path, capacity, holdout):
    store, fragments = ReplayStore(tmp_path), random_fragments(1, 150)
    lived = make(capacity, holdout=holdout)
    for i in range(0, 90, 3):
        store.commit(fragments[i : i + 3], "w", i)
        lived.refresh(store)
    order = lived.segments
    store.pin(order)
    rng = np.random.default_rng(3)
    at_checkpoint = lived.sample(16, 9, rng).obs
    commit_all(store, fragments[90:], start=90)  # these are lost with the killed run

    resumed_store, resumed = ReplayStore(tmp_path), make(capacity, holdout=holdout)
    resumed_store.restore(order)
    resumed.refresh(resumed_store, order)
    assert np.array_equal(resumed.sample(16, 9, np.random.default_rng(3)).obs, at_checkpoint)
    assert resumed.segments == order and resumed.refresh(resumed_store) == 0
    commit_all(resumed_store, fragments[90:], start=90)
    lived.refresh(resumed_store)
    resumed.refresh(resumed_store)
    assert equal_batches(lived, resumed) and lived.segments == resumed.segments


def test_load_order_of_a_checkpoint_wins_over_the_order_of_names(tmp_path):
    store, lived = ReplayStore(tmp_path), make()
    store.commit([episode(1, 4)], "a", 100)
    lived.refresh(store)
    store.commit([episode(2, 4)], "b", 90)  # a slower writer
    lived.refresh(store)
    resumed = make()
    resumed.refresh(store, lived.segments)
    assert tape(resumed) == tape(lived) == "| 1000 1001 1002 1003 | 2000 2001 2002 2003"


def test_refresh_of_a_lost_checkpoint_segment_is_refused(tmp_path):
    store = ReplayStore(tmp_path)
    info = store.commit([episode(1, 4)], "a", 1)
    (store.data / info.name).unlink()
    with pytest.raises(ReplayError, match=r"1 missing .*choose an older checkpoint"):
        make().refresh(store, [info.name])


@pytest.mark.parametrize("found", ["while loading", "before"])
def test_refresh_goes_on_without_a_checkpoint_segment_that_broke(tmp_path, found):
    store, lived = ReplayStore(tmp_path), make()
    first, second = (store.commit([episode(n, 3)], "a", n) for n in (1, 2))
    lived.refresh(store)
    (store.data / first.name).write_bytes(b"damaged")
    if found == "before":
        store.read(first)
        assert store.pin(lived.segments) == [second.name]
    resumed_store, resumed = ReplayStore(tmp_path), make()
    resumed_store.restore(lived.segments)
    assert resumed.refresh(resumed_store, lived.segments) == 3
    assert tape(resumed) == "| 2000 2001 2002" and resumed.segments == [second.name]
    assert resumed_store.lost == {first.name} and resumed.refresh(resumed_store) == 0


def test_too_little_replay_is_refused_with_a_way_out():
    sampler = make()
    with pytest.raises(ReplayError, match="holds 0 rows; collect more"):
        sampler.sample(1, 1, np.random.default_rng(0))
    sampler.add(episode(1, 4))
    with pytest.raises(ReplayError, match="sequences of 5 rows: replay holds 4 rows"):
        sampler.sample(1, 5, np.random.default_rng(0))
    assert sampler.sample(1, 4, np.random.default_rng(0)).shape == (1, 4)


# Episodes held out


def test_about_the_share_of_episodes_is_held_out_and_a_larger_share_holds_out_those_too():
    names = [f"e{number}" for number in range(10_000)]
    tenth, half = ([is_held_out(name, share) for name in names] for share in (0.1, 0.5))
    assert np.mean(tenth) == pytest.approx(0.1, abs=0.01)
    assert np.mean(half) == pytest.approx(0.5, abs=0.015)
    assert all(later for first, later in zip(tenth, half, strict=True) if first)
    assert not any(is_held_out(name, 0.0) for name in names)


def test_an_episode_held_out_is_whole_on_its_own_tape_and_never_sampled_to_train_on():
    sampler, seen = make(300, holdout=0.3), {False: set(), True: set()}
    for fragment in random_fragments(2, 400):
        sampler.add(fragment)
        for held_out in seen:
            if sampler.rows_on_tape(held_out) >= 7:
                batch = every_window(sampler, 7, held_out)
                assert_aligned(batch)
                seen[held_out] |= set((values(batch) // 1000).ravel().tolist())
    assert seen[True] and all(is_held_out(f"e{number}", 0.3) for number in seen[True])
    assert seen[False] and not any(is_held_out(f"e{number}", 0.3) for number in seen[False])
    assert sampler.rows_on_tape() + sampler.rows_on_tape(held_out=True) == sampler.num_rows == 300


def test_without_a_holdout_batches_are_as_ever_and_nothing_is_held_out():
    plain, none = make(), make(holdout=0.0)
    for fragment in random_fragments(3, 50):
        plain.add(fragment)
        none.add(fragment)
    assert equal_batches(plain, none)
    assert none.rows_on_tape(held_out=True) == 0


def test_replay_that_is_all_held_out_is_refused_with_a_way_out():
    sampler = make(holdout=0.999)
    sampler.add(episode(1, 4))
    with pytest.raises(ReplayError, match=r"0 rows to train on; collect .* change replay\.holdout"):
        sampler.sample(1, 1, np.random.default_rng(0))


def paying(number, rows, at):
    """An episode that pays 1 for the actions of the rows `at`, and nothing else."""
    made = episode(number, rows)
    made.columns["rewards"][:] = np.isin(np.arange(made.rows), at)
    return made


def test_the_wished_share_of_windows_holds_a_reward_at_any_place_but_the_first():
    """3 of 499 rows pay, far apart; each so arrives in 3 of the 499 windows of 4 rows."""
    sampler, rng = make(), np.random.default_rng(0)
    sampler.add(paying(1, 499, [50, 250, 400]))
    shares = {
        wished: (sampler.sample(40_000, 4, rng, rewarded=wished).reward[:, 1:] != 0)
        for wished in (0.0, 0.01, 0.4)
    }
    by_chance = 3 * 3 / sampler.num_rows
    assert shares[0.0].any(1).mean() == pytest.approx(by_chance, abs=0.004)
    assert shares[0.01].any(1).mean() == pytest.approx(by_chance, abs=0.004)  # it has them anyway
    assert shares[0.4].any(1).mean() == pytest.approx(0.4, abs=0.01)
    assert shares[0.4].mean(0) == pytest.approx([0.4 / 3] * 3, abs=0.01)


def test_where_nothing_pays_windows_are_drawn_as_ever():
    sampler = make()
    sampler.add(paying(1, 60, []))
    plain, wished = (
        sampler.sample(9, 5, np.random.default_rng(1), rewarded=share) for share in (0.0, 0.5)
    )
    assert np.array_equal(plain.obs, wished.obs)


def test_box_actions_and_images_keep_their_shape(tmp_path):
    obs = {"obs": ((4, 3, 2), np.dtype(np.int32))}
    sampler = SequenceSampler(20, obs, (2,), np.float32, directory=tmp_path / "r")
    images = episode(1, 5, shape=(4, 3, 2))
    actions = np.stack([images.actions, -images.actions], axis=1).astype(np.float32)
    sampler.add(Episode(**{**vars(images), "actions": actions}))
    batch = every_window(sampler, 3)
    assert batch.obs.shape == (5, 3, 4, 3, 2) and batch.prev_action.shape == (5, 3, 2)
    assert batch.prev_action[1, 0].tolist() == [1001.0, -1001.0]
    assert list((tmp_path / "r").iterdir()) == []  # the ring has no name that could be left behind


def test_wrong_shapes_are_refused():
    with pytest.raises(ReplayError, match=r"obs: expected int32\(2,\)"):
        make().add(episode(1, 3, shape=(3,)))


def test_full_ring_disk_is_a_plain_error(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    sampler = make()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ReplayError, match=r"No space left on device; lower replay.capacity_steps"):
        sampler.add(episode(1, 3))
    with pytest.raises(ReplayError, match="cannot hold the sampling ring"):
        make(directory=Path("/dev/null/ring"))


def test_batches_belong_to_the_caller_and_a_closed_ring_is_empty():
    with make(8) as sampler:
        sampler.add(episode(1, 8))
        batch = every_window(sampler, 8)
        before = batch.obs.copy()
        sampler.add(episode(2, 8))
        assert np.array_equal(batch.obs, before)
    assert sampler.num_rows == 0
