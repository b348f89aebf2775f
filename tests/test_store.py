"""The folder of segments: atomic, self-describing, and calm about damage."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_segment import assert_equal, make_episode

from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore, SegmentVersionError, format_stats
from mbrl.replay.store import parse_name

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    return ReplayStore(tmp_path / "replay", env_id="Counting-v0")


def fill(store, count, rows=5):
    """Commit `count` segments of one whole episode each."""
    return [
        store.commit([make_episode(rows, eps_id=f"e{i}")], "w", env_steps_total=(i + 1) * 4)
        for i in range(count)
    ]


def test_commit_is_visible_to_another_reader_and_read_back_equal(store):
    episode = make_episode(6)
    info = store.commit([episode], "collector0", env_steps_total=5)
    other = ReplayStore(store.directory)
    assert other.segments() == [info]
    assert_equal(other.read(info)[0], episode)


def test_file_name_is_the_index(store):
    info = store.commit([make_episode(6), make_episode(2, eps_id="b", ended=False)], "c0", 7)
    assert re.fullmatch(r"e000000000007-c0-000000-n7-r8-k1-[0-9a-f]{8}\.parquet", info.name)
    assert parse_name(info.name) == info
    assert parse_name("e7-c0-0-n7-r8-k1-zz.parquet") is None


def test_segments_come_in_collected_order_and_equal_histories_give_equal_names(tmp_path):
    names = []
    for side in "ab":
        store = ReplayStore(tmp_path / side)
        for writer, steps in (("b", 20), ("a", 30), ("a", 20), ("c", 10)):
            store.commit([make_episode(3, eps_id=f"{writer}{steps}")], writer, steps)
        places = [s.place for s in store.segments()]
        assert places == [(10, "c", 0), (20, "a", 1), (20, "b", 0), (30, "a", 0)]
        names.append([s.name for s in store.segments()])
    assert names[0] == names[1]


def test_writer_counts_on_after_a_restart(store):
    fill(store, 2)
    reopened = ReplayStore(store.directory)
    assert reopened.commit([make_episode(eps_id="z")], "w", 99).seq == 2
    assert reopened.commit([make_episode(eps_id="y")], "other", 99).seq == 0


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "swapped"])
def test_broken_file_is_quarantined_counted_and_reading_goes_on(store, damage, caplog):
    first, second = fill(store, 2)
    path = store.data / first.name
    whole = path.read_bytes()
    swapped = (store.data / second.name).read_bytes()
    made = {"truncated": whole[: len(whole) // 2], "garbage": os.urandom(500), "empty": b""}
    path.write_bytes({**made, "swapped": swapped}[damage])
    assert [len(store.read(s)) for s in store.segments()] == [0, 1]
    assert store.quarantined == 1 and "moved to bad/" in caplog.text
    (store.data / "notes.txt").write_text("left alone")
    assert store.segments() == [second]
    assert [p.name for p in (store.directory / "bad").iterdir()] == [first.name]
    assert store.stats().quarantined == 1
    (store.data / "mine.parquet").write_bytes(b"x")  # no name of a segment
    assert store.segments() == [second] and store.quarantined == 2
    assert (store.data / "notes.txt").exists()


def test_newer_format_is_refused_and_left_in_place(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mbrl.replay.segment.FORMAT", "reverie-replay/3")
        (info,) = fill(store, 1)
    with pytest.raises(SegmentVersionError, match=r"got reverie-replay/3"):
        ReplayStore(store.directory).read(info)
    assert (store.data / info.name).exists()


def test_evicted_file_is_not_an_error_for_a_running_reader(store, caplog):
    (info,) = fill(store, 1)
    (store.data / info.name).unlink()
    assert store.read(info) == [] and store.quarantined == 0
    assert "removed since it was listed" in caplog.text


def test_crash_between_write_and_rename_leaves_data_clean(store, monkeypatch):
    fill(store, 1)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.commit([make_episode(eps_id="z")], "w", 9)
    assert len(list(store.data.iterdir())) == 1
    (left,) = (store.directory / "_tmp").iterdir()
    assert left.suffix != ".parquet"
    fresh = ReplayStore(store.directory)
    fresh.commit([make_episode(eps_id="z")], "w", 9)
    assert left.exists()  # younger than an hour: its writer may live
    os.utime(left, (time.time() - 4000,) * 2)
    assert fresh.sweep() == 1 and not left.exists()


WRITER = """
import sys
import numpy as np
from mbrl.episode import Episode
from mbrl.replay import ReplayStore
store, n, flag = ReplayStore(sys.argv[1]), 200, np.zeros(200, bool)
obs = np.zeros((n, 500), np.uint8)
for i in range(1_000_000):
    store.commit([Episode(eps_id=sys.argv[2] + str(i), t0=0, obs=obs + np.uint8(i % 256),
        actions=np.zeros(n, np.int64), rewards=np.ones(n, np.float32), terminateds=flag,
        truncateds=flag, life_loss=flag)], sys.argv[2], (i + 1) * n)
"""


def test_killed_writers_lose_at_most_what_was_not_committed(store):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store.directory), name], cwd=ROOT)
        for name in ("a", "b")
    ]
    deadline = time.time() + 60
    try:
        while len(store.segments()) < 30 and time.time() < deadline:
            for info in store.segments():  # a reader beside living writers
                assert len(store.read(info)) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    for name in ("a", "b"):
        numbers = [s.seq for s in store.segments() if s.writer == name]
        assert numbers == list(range(len(numbers)))
    assert len(store.segments()) >= 30
    assert len(list(store.fragments())) == len(store.segments()) and store.quarantined == 0


def test_short_writes_are_completed(store, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: write(fd, view[:100]))
    assert len(store.read(fill(store, 1)[0])) == 1


def test_rows_of_another_environment_are_refused(store):
    fill(store, 1)
    with pytest.raises(ReplayError, match="use another folder"):
        store.commit([make_episode(obs_shape=(7,))], "w", 9)
    with pytest.raises(ReplayError, match=r"env Counting-v0.*env Pong"):
        ReplayStore(store.directory, "Pong").commit([make_episode()], "w", 9)
    unnamed = ReplayStore(store.directory)
    unnamed.commit([make_episode(eps_id="z")], "v", 9)
    assert unnamed.layout().env_id == "Counting-v0"


@pytest.mark.parametrize(
    ("writer", "steps", "message"),
    [("a-b", 1, "writer: expected letters"), ("a", -1, "expected 0 or more, got -1")],
)
def test_what_no_name_can_carry_is_refused(store, writer, steps, message):
    with pytest.raises(ReplayError, match=message):
        store.commit([make_episode()], writer, steps)


def test_restore_makes_the_store_equal_to_the_checkpoint(store):
    infos = fill(store, 5)
    names = [s.name for s in infos]
    store.pin(names[:3])
    fresh = ReplayStore(store.directory)
    assert fresh.restore(names[:3]) == infos[:3]
    assert fresh.segments() == infos[:3]
    assert sorted(p.name for p in (store.directory / "unpinned").iterdir()) == names[3:]
    assert fill(fresh, 5)[0].seq == 3  # as it was when the checkpoint was made


def test_restore_keeps_what_is_older_than_the_pin_and_brings_back_what_it_moved(store):
    infos = fill(store, 5)
    names = [s.name for s in infos]
    store.restore(names[1:2])
    assert store.segments() == infos[:2]
    store.restore(names[1:4])
    assert store.segments() == infos[:4]
    assert store.restore([]) == [] and store.segments() == []
    (store.directory / "unpinned" / names[0]).unlink()
    with pytest.raises(ReplayError, match=r"1 missing .*older checkpoint"):
        store.restore(names)


def break_and_read(store, info):
    """Truncate a segment and let a reader find it."""
    (store.data / info.name).write_bytes((store.data / info.name).read_bytes()[:99])
    assert store.read(info) == []


def test_segment_that_broke_before_the_pin_is_left_out_of_it(store, caplog):
    infos = fill(store, 4)
    names = [s.name for s in infos]
    break_and_read(store, infos[1])
    (store.data / names[2]).unlink()
    caplog.clear()
    for _ in range(2):
        assert store.pin(names) == [names[0], names[3]]
    assert store.pinned() == {names[0], names[3]} and store.lost == set(names[1:3])
    assert caplog.text.count("2 segments gone") == 1
    assert ReplayStore(store.directory).restore(store.pin(names)) == [infos[0], infos[3]]


@pytest.mark.parametrize("broken", [[0], [1], [0, 1]])
def test_restore_goes_on_without_segments_that_broke_after_the_pin(store, broken, caplog):
    infos = fill(store, 4)
    pins = store.pin([s.name for s in infos[:2]])
    for i in broken:
        break_and_read(store, infos[i])
    fresh = ReplayStore(store.directory)
    whole = [s for i, s in enumerate(infos[:2]) if i not in broken]
    assert fresh.restore(pins) == whole == fresh.segments()  # later ones are moved out as ever
    assert fresh.lost == {pins[i] for i in broken}
    assert f"{len(broken)} segments gone" in caplog.text


def test_evict_deletes_the_oldest_but_nothing_that_is_needed(store):
    infos = fill(store, 6)
    store.pin([infos[1].name])
    size = max((store.data / s.name).stat().st_size for s in infos)
    assert store.evict(5 * size) == infos[:1]
    assert store.evict(0) == []
    store.pin([infos[3].name])
    assert store.evict(0) == infos[1:3]
    break_and_read(store, infos[3])  # what is newer than any ring stays all the same
    assert store.evict(0) == [] and store.segments() == infos[4:]
    store.pin([infos[5].name])
    assert store.evict(size) == infos[4:5] and store.segments() == infos[5:]


def test_rows_committed_twice_are_read_once(store):
    store.commit([make_episode(5, ended=False)], "w", 5)
    store.commit([make_episode(8)], "w", 8)
    assert [(e.t0, e.rows) for e in store.fragments()] == [(0, 5), (5, 3)]


def test_stats_are_computed_by_hand(store):
    store.commit([make_episode(4)], "w", 3)  # rewards 0.5 + 1 + 1.5
    store.commit([make_episode(3, eps_id="b", ended=False)], "w", 6)
    store.commit([make_episode(2, eps_id="b", t0=3)], "w", 7)  # 0.5 + 1 + 1.5, then 2
    store.commit([make_episode(3, eps_id="c", t0=5, ended=False)], "w", 10)
    stats = store.stats()
    assert (stats.segments, stats.episodes, stats.partial_episodes) == (4, 2, 1)
    assert (stats.rows, stats.steps, stats.env_steps_total) == (12, 10, 10)
    assert (stats.return_mean, stats.return_min, stats.return_max) == (4.0, 3.0, 5.0)
    assert stats.length_mean == 3.5
    assert (stats.layout.obs[0].shape, stats.layout.env_id) == ((2, 3, 1), "Counting-v0")
    assert stats.raw_bytes == 12 * (6 + 8 + 4 + 3)
    assert stats.disk_bytes == sum(p.stat().st_size for p in store.data.iterdir())
    assert (stats.policy_version_min, stats.policy_version_max) == (7, 7)
    text = format_stats(stats)
    assert "2 whole, 1 in part" in text and "mean 4.00 (min 3.00, max 5.00)" in text
    assert stats.compression == stats.raw_bytes / stats.disk_bytes


def test_stats_of_an_empty_store_and_of_no_store(store):
    with pytest.raises(ReplayError, match=r"expected a replay folder with data/ in it"):
        store.stats()
    store.data.mkdir(parents=True)
    stats = store.stats()
    assert stats.rows == 0 and np.isnan(stats.return_mean)
    assert "none yet" in format_stats(stats)


def examples(language, folder):
    """The blocks of the page on the format, about data in this folder."""
    text = (ROOT / "docs" / "replay.md").read_text()
    found = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return [re.sub(r"runs/\w+/replay/data", str(folder), block) for block in found]


def fill_for_examples(store, **kind):
    """Two whole episodes, one that goes on and one that has lost its beginning."""
    store.commit(
        [make_episode(4, **kind), make_episode(2, eps_id="open", ended=False, **kind)], "w", 5
    )
    store.commit([make_episode(3, eps_id="b", ended=False, **kind)], "w", 8)
    store.commit([make_episode(3, eps_id="b", t0=3, **kind)], "w", 11)
    store.commit([make_episode(3, eps_id="lost", t0=2, **kind)], "w", 14)


def test_examples_in_the_documentation_read_images(store):
    fill_for_examples(store)
    scope = {}
    exec(examples("python", store.data)[0], scope)
    table = scope["episodes"]
    assert isinstance(table, pd.DataFrame) and sorted(table.index) == ["a", "b"]
    assert table.loc["b", ["score", "steps"]].to_list() == [0.5 + 1 + 1.5 + 2 + 2.5, 5]
    assert scope["frame"].tolist() == [[[1]] * 3] * 2
    assert [e.eps_id for e in store.episodes() if e.ended] == ["a", "b"]


def test_examples_in_the_documentation_read_vectors(store):
    pytest.importorskip("polars", reason="of the extra dev")
    fill_for_examples(store, obs_shape=(4,), obs_dtype="float32")
    scope = {}
    exec(examples("python", store.data)[1], scope)
    assert scope["states"].shape == (15, 4) and scope["states"].dtype == np.float32
    assert scope["angle"]["obs"].to_list() == scope["states"][:, 2].tolist()


@pytest.mark.parametrize("kind", [{}, {"obs_shape": (4,), "obs_dtype": "float32"}])
def test_queries_in_the_documentation_run(store, kind):
    duckdb = pytest.importorskip("duckdb", reason="of the extra dev")
    fill_for_examples(store, **kind)
    returns, angles = examples("sql", store.data)
    assert duckdb.sql(returns).fetchall() == [("b", 7.5, 5), ("a", 3.0, 3)]
    if kind:
        assert sorted(duckdb.sql(angles).fetchall())[:2] == [("a", 3, 4.0), ("b", 5, 6.0)]
