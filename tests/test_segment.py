"""One parquet file: what goes in comes out, and nothing else is let through."""

import io
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbrl.episode import Episode, uncovered
from mbrl.errors import ReplayError
from mbrl.replay import SegmentVersionError, decode_segment, encode_segment
from mbrl.replay.segment import read_header


def make_episode(
    rows=4, *, eps_id="a", t0=0, ended=True, obs_shape=(2, 3, 1), obs_dtype="uint8", action_shape=()
):
    """Row t: every pixel t + 1, action t + 1, reward (t + 1) / 2; zeros in a final row."""
    number = np.arange(t0 + 1, t0 + rows + 1)
    spread = number.reshape(rows, *[1] * len(obs_shape))
    obs = np.broadcast_to(spread, (rows, *obs_shape)).astype(obs_dtype)
    action = np.where(number == t0 + rows, 0 if ended else number, number)
    actions = np.repeat(action, int(np.prod(action_shape))).reshape(rows, *action_shape)
    flags = np.zeros((3, rows), bool)
    flags[0, -2 if ended and rows > 1 else 0] = rows > 1
    flags[2, 0] = rows > 1
    return Episode(
        eps_id=eps_id,
        t0=t0,
        obs=obs,
        actions=actions.astype("float32" if action_shape else "int64"),
        rewards=(action / 2).astype("float32"),
        terminateds=flags[0],
        truncateds=flags[1],
        life_loss=flags[2],
        policy_version=7,
        env_steps_total=100 + t0,
        ended=ended,
    )


def with_ram(episode, width=5):
    values = np.arange(episode.rows * width).reshape(episode.rows, width)
    return replace(episode, ram=values.astype(np.uint8))


def assert_equal(left, right):
    for field in fields(Episode):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape, field.name
            assert np.array_equal(a, b), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("action_shape", [(), (1,), (2, 2)])
@pytest.mark.parametrize("obs_dtype", ["uint8", "bool", "int64", "float16", "float64"])
@pytest.mark.parametrize("obs_shape", [(), (5,), (6, 5, 3)])
def test_segment_returns_what_was_encoded(obs_shape, obs_dtype, action_shape):
    kind = {"obs_shape": obs_shape, "obs_dtype": obs_dtype, "action_shape": action_shape}
    episodes = [
        make_episode(4, eps_id="a", **kind),
        make_episode(3, eps_id="b", t0=9, ended=False, **kind),
        make_episode(1, eps_id="b", t0=12, ended=True, **kind),
    ]
    header, back = decode_segment(encode_segment(episodes, "Env-v0"))
    assert header.layout.env_id == "Env-v0"
    assert [(f.eps_id, f.t0, f.rows, f.steps, f.ended) for f in header.fragments] == [
        ("a", 0, 4, 3, True),
        ("b", 9, 3, 3, False),
        ("b", 12, 1, 0, True),
    ]
    assert header.fragments[0].reward_sum == 0.5 + 1.0 + 1.5
    for left, right in zip(episodes, back, strict=True):
        assert_equal(left, right)


def test_frames_of_any_byte_order_and_a_nan_reward_are_stored_by_value():
    episode = make_episode(4, obs_dtype="int32")
    rewards = np.array([np.nan, 1, 2, 0], np.float32)  # not a missing action
    strange = np.asfortranarray(episode.obs).astype(">i4")
    back = decode_segment(encode_segment([replace(episode, obs=strange, rewards=rewards)]))[1][0]
    assert np.array_equal(back.obs, episode.obs)
    assert np.array_equal(back.rewards, rewards, equal_nan=True) and back.steps == 3


def test_pandas_reads_the_columns_without_us():
    frame = pd.read_parquet(io.BytesIO(encode_segment([with_ram(make_episode(4))])))
    assert list(frame.columns) == [
        *("eps_id", "t", "obs", "actions", "rewards", "terminateds", "truncateds"),
        *("life_loss", "policy_version", "env_steps_total", "ram"),
    ]
    assert frame.t.tolist() == [0, 1, 2, 3]
    assert frame.actions.isna().tolist() == [False, False, False, True]
    assert frame.rewards.isna().tolist() == [False, False, False, True]
    assert frame.terminateds.dtype == bool and frame.terminateds.tolist() == [0, 0, 1, 0]
    assert np.frombuffer(frame.obs[2], np.uint8).reshape(2, 3, 1).tolist() == [[[3]] * 3] * 2
    assert list(frame.ram[1]) == [5, 6, 7, 8, 9]


def test_row_groups_are_small_and_frames_are_one_binary_value():
    episodes = [with_ram(make_episode(700, eps_id=str(i), obs_dtype="int32")) for i in range(5)]
    data = encode_segment(episodes)
    file = pq.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [1024, 1024, 1024, 428]
    assert file.schema_arrow.field("obs").type == pa.binary()
    assert file.metadata.row_group(0).column(2).compression == "ZSTD"
    for left, right in zip(episodes, decode_segment(data)[1], strict=True):
        assert_equal(left, right)


@pytest.mark.parametrize("column", ["obs", "ram"])
def test_equal_episodes_have_equal_hashes_and_one_byte_changes_it(column):
    episode = with_ram(make_episode(4))
    changed = replace(episode, **{column: getattr(episode, column).copy()})
    getattr(changed, column)[1, -1] += 1
    same = with_ram(make_episode(4))
    sha = [read_header(encode_segment([e])).sha256 for e in (episode, same, changed)]
    assert sha[0] == sha[1] != sha[2]


def test_garbage_and_every_truncation_are_refused():
    data = encode_segment([make_episode(4)])
    for read, garbage in ((decode_segment, b"not parquet at all" * 100), (read_header, b"")):
        with pytest.raises(ReplayError, match="expected a whole parquet file"):
            read(garbage)
    for length in range(0, len(data), 17):
        with pytest.raises(ReplayError, match="expected a whole parquet file"):
            decode_segment(data[:length])


def test_no_flipped_bit_ever_changes_a_row_unnoticed():
    episode = make_episode(4)
    data, rng = encode_segment([episode]), np.random.default_rng(0)
    refused = 0
    for position in rng.integers(len(data), size=300):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            back = decode_segment(bytes(damaged))[1]
        except ReplayError:
            refused += 1
        else:  # the flip hit something redundant
            assert_equal(back[0], episode)
    assert refused > 100


def rewritten(**changes):
    """A healthy segment whose footer fields were changed."""
    file = pq.ParquetFile(io.BytesIO(encode_segment([make_episode(4)])))
    kept = {k.decode(): v.decode() for k, v in file.metadata.metadata.items() if b":" not in k}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, file.schema_arrow) as writer:
        writer.write_table(file.read())
        writer.add_key_value_metadata({**kept, **changes})
    return sink.getvalue()


def test_another_format_and_a_foreign_file_are_refused_by_name():
    assert_equal(decode_segment(rewritten())[1][0], make_episode(4))  # equal, if written anew
    with pytest.raises(SegmentVersionError, match=r"got reverie-replay/3; read it with"):
        decode_segment(rewritten(format="reverie-replay/3"))
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), sink)
    with pytest.raises(ReplayError, match="got a foreign parquet file"):
        decode_segment(sink.getvalue())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"env_id": "Other-v0"}, "SHA-256"),
        ({"episodes": "["}, "complete footer"),
        ({"episodes": "[]"}, "expected 0 rows"),
        ({"obs": '{"obs": {"dtype": "object", "shape": []}}'}, "known dtype"),
        ({"obs": '{"obs": {"dtype": "uint8", "shape": [7, 1]}}'}, "7 bytes per obs"),
        ({"obs": '{"obs": {"dtype": "uint8", "shape": [7]}}'}, "expected the columns"),
        ({"obs": '{"dtype": "uint8", "shape": [2, 3, 1]}'}, "complete footer"),
        ({"format": "reverie-replay/1"}, "complete footer"),
        ({"action": '{"dtype": "float32", "shape": [1]}'}, "expected the columns"),
    ],
)
def test_a_footer_that_does_not_fit_the_rows_is_refused(changes, message):
    with pytest.raises(ReplayError, match=message):
        decode_segment(rewritten(**changes))


GOOD = make_episode(4)
BROKEN = [
    ([], "at least one episode"),
    ([GOOD, make_episode(4, obs_shape=(1,))], "one shape and dtype"),
    ([replace(GOOD, actions=GOOD.actions.astype(np.int32))], r"expected int64 .* got int32"),
    ([replace(GOOD, obs=GOOD.obs.astype(object))], "numeric dtype, got object"),
    ([replace(GOOD, rewards=GOOD.rewards.astype(float))], r"rewards: expected \(rows,\) float32"),
    ([replace(GOOD, terminateds=np.arange(4) == 3)], r"zeros in the final row.*terminateds"),
    *[
        ([replace(GOOD, ram=ram)], "expected ram of shape")
        for ram in (np.zeros((4, 2)), np.zeros(4, np.uint8), np.zeros((4, 0), np.uint8))
    ],
    ([GOOD, with_ram(GOOD)], r"one shape and dtype.*ram 5 bytes"),
]


@pytest.mark.parametrize(("episodes", "message"), BROKEN)
def test_rows_that_break_the_contract_are_refused(episodes, message):
    with pytest.raises(ReplayError, match=message):
        encode_segment(episodes)


def test_every_column_has_a_value_in_each_row():
    with pytest.raises(ReplayError, match="expected 4 ram, one per observation, got 3"):
        replace(GOOD, ram=np.zeros((3, 2), np.uint8))


def test_a_cut_episode_ends_only_with_its_last_row():
    episode = with_ram(make_episode(5))
    head, tail = episode.cut(0, 3), episode.cut(3, 5)
    assert tail.ram[:, 0].tolist() == [15, 20]
    assert (head.t0, head.rows, head.ended) == (0, 3, False)
    assert (tail.t0, tail.rows, tail.ended, tail.obs[0, 0, 0, 0]) == (3, 2, True, 4)


def test_uncovered_finds_the_gaps_between_known_spans():
    assert uncovered(10, 5, []) == [(0, 5)]
    assert uncovered(10, 5, [(0, 10), (15, 20)]) == [(0, 5)]
    assert uncovered(10, 5, [(0, 20)]) == []
    assert uncovered(10, 10, [(17, 30), (0, 12), (13, 15)]) == [(2, 3), (5, 7)]
