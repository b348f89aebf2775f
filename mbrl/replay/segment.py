"""One parquet file of rows: bytes in, bytes out, nothing about folders.

A segment is a few fragments of episodes, encoded whole in memory so that its footer exists before
any byte is published. Columns carry the names of RLlib and Minari, so pandas, DuckDB and Ray Data
read a segment without this module; frames are raw C-order bytes in a `binary` column (a list or
tensor column would store every pixel as an INT32 level). Shapes, dtypes, the list of fragments and
a SHA-256 of the content live in the footer. `docs/replay.md` is the specification.

`encode_segment` refuses rows that break the contract of `Episode`; `decode_segment` refuses every
byte string that is not exactly what `encode_segment` wrote. Neither knows a path.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbrl.episode import Array, Episode
from mbrl.errors import ReplayError
from mbrl.replay.header import (
    FORMAT,
    Layout,
    SegmentHeader,
    first_line,
    footer_fields,
    fragment_info,
    layout_of,
    parse_footer,
)

ROW_GROUP_ROWS = 1024  # the smallest unit pyarrow can read back
MAX_FRAGMENT_BYTES = (1 << 31) - 1  # offsets of an Arrow binary array are int32

_PLAIN_COLUMNS = {
    "rewards": np.dtype(np.float32),
    "terminateds": np.dtype(bool),
    "truncateds": np.dtype(bool),
    "life_loss": np.dtype(bool),
}
_ARROW_TYPES = {"int64": pa.int64(), "float32": pa.float32()}


def encode_segment(
    episodes: Sequence[Episode],
    env_id: str = "",
    *,
    sources: Sequence[tuple[str, int]] = (),
    level: int = 3,
) -> bytes:
    """Encode fragments as one parquet file.

    Args:
        episodes: fragments of one layout, in the order the rows shall have.
        env_id: goes into the footer.
        sources: see `SegmentHeader`.
        level: of zstd, 1 to 22.

    Returns:
        The whole file. Equal episodes give an equal `sha256` in the footer.

    Raises:
        ReplayError: the episodes do not fit in one segment or break the contract of `Episode`.
    """
    layout = layout_of(episodes, env_id)
    largest = max(layout.obs_bytes, layout.ram_bytes)
    for episode in episodes:
        _check(episode, largest)
    fields = footer_fields(layout, [fragment_info(episode) for episode in episodes], sources)
    fields["sha256"] = _digest(fields, episodes)
    schema = _schema(layout)
    table = _table(episodes, layout, schema)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=level,
        use_dictionary=["eps_id"],
        data_page_size=1 << 20,
        write_statistics=[n for n in schema.names if n not in ("obs", "actions", "ram")],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(fields)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def decode_segment(data: bytes) -> tuple[SegmentHeader, list[Episode]]:
    """Read back what `encode_segment` wrote, proving every byte of content.

    Returns:
        The footer and the episodes; their arrays may be read-only views of `data`'s decoding.

    Raises:
        SegmentVersionError: the file has another format version.
        ReplayError: truncated, damaged, foreign, or not what its footer says.
    """
    try:
        with pq.ParquetFile(
            pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False
        ) as file:
            fields, header = parse_footer(file.metadata)
            schema = _schema(header.layout)
            if not file.schema_arrow.equals(schema):
                raise ReplayError(
                    f"expected the columns {schema.names} of {FORMAT}, got {file.schema_arrow}"
                )
            table = file.read(use_threads=False)  # obs is one column: nothing to share out
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise ReplayError(f"expected a whole parquet file, got: {first_line(error)}") from error
    if table.num_rows != header.rows:
        raise ReplayError(f"expected {header.rows} rows as the footer says, got {table.num_rows}")
    episodes = list(_episodes(table, header))
    if _digest(fields, episodes) != header.sha256:
        raise ReplayError("expected the content that the footer's SHA-256 describes, got another")
    return header, episodes


def read_header(source: Any) -> SegmentHeader:
    """Read only the footer of a segment.

    Args:
        source: bytes of the file, or anything `pyarrow.parquet.read_metadata` opens.

    Raises:
        SegmentVersionError: the file has another format version.
        ReplayError: it is no segment.
    """
    try:
        where = pa.BufferReader(source) if isinstance(source, bytes) else source
        return parse_footer(pq.read_metadata(where))[1]
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise ReplayError(f"expected a whole parquet file, got: {first_line(error)}") from error


def cut(episode: Episode, start: int, stop: int) -> Episode:
    """Rows `start` to `stop` of a fragment as a fragment of its own; no copy."""
    if start == 0 and stop == episode.rows:
        return episode
    rows = slice(start, stop)
    return replace(
        episode,
        t0=episode.t0 + start,
        obs=episode.obs[rows],
        actions=episode.actions[rows],
        rewards=episode.rewards[rows],
        terminateds=episode.terminateds[rows],
        truncateds=episode.truncateds[rows],
        life_loss=episode.life_loss[rows],
        ram=None if episode.ram is None else episode.ram[rows],
        ended=episode.ended and stop == episode.rows,
    )


def uncovered(t0: int, rows: int, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Find the rows of a fragment that no known span covers.

    Args:
        t0: first step of the fragment.
        rows: its length.
        spans: (start, stop) steps of the same episode that are known, in any order.

    Returns:
        (start, stop) row ranges of the fragment, ascending.
    """
    fresh, start = [], t0
    for known_start, known_stop in sorted(spans):
        if known_start > start:
            fresh.append((start - t0, min(known_start, t0 + rows) - t0))
        start = max(start, known_stop)
        if start >= t0 + rows:
            break
    if start < t0 + rows:
        fresh.append((start - t0, rows))
    return [(a, b) for a, b in fresh if b > a]


def _schema(layout: Layout) -> pa.Schema:
    action = _ARROW_TYPES[layout.action_dtype]
    ram = [pa.field("ram", pa.binary(), nullable=False)] if layout.ram_bytes else []
    return pa.schema(
        [
            pa.field("eps_id", pa.string(), nullable=False),
            pa.field("t", pa.int32(), nullable=False),
            pa.field("obs", pa.binary(), nullable=False),
            pa.field("actions", pa.list_(action) if layout.action_shape else action),
            pa.field("rewards", pa.float32()),
            pa.field("terminateds", pa.bool_(), nullable=False),
            pa.field("truncateds", pa.bool_(), nullable=False),
            pa.field("life_loss", pa.bool_(), nullable=False),
            pa.field("policy_version", pa.int64(), nullable=False),
            pa.field("env_steps_total", pa.int64(), nullable=False),
            *ram,
        ]
    )


def _check(episode: Episode, value_bytes: int) -> None:
    for name, dtype in _PLAIN_COLUMNS.items():
        column = getattr(episode, name)
        if column.dtype != dtype or column.ndim != 1:
            raise ReplayError(
                f"{name}: expected (rows,) {dtype.name}, got {column.shape} {column.dtype.name}"
            )
    if episode.rows * value_bytes > MAX_FRAGMENT_BYTES:
        raise ReplayError(
            f"expected fragments below 2 GiB, got {episode.rows} rows of {value_bytes} "
            "bytes; commit shorter fragments"
        )
    if not episode.ended:
        return
    filled = ["actions"] if episode.actions[-1].any() else []
    filled += [name for name in _PLAIN_COLUMNS if getattr(episode, name)[-1]]
    if filled:
        raise ReplayError(
            f"episode {episode.eps_id}: expected zeros in the final row, which has no action, got "
            f"a value in {', '.join(filled)}; the last action's results belong to the row before"
        )


def _digest(fields: Mapping[str, str], episodes: Iterable[Episode]) -> str:
    covered = {name: text for name, text in fields.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for episode in episodes:
        columns: list[Array] = [episode.obs, episode.actions, episode.rewards]
        columns += [episode.terminateds, episode.truncateds, episode.life_loss]
        columns += [] if episode.ram is None else [episode.ram]
        digest.update(f"{episode.env_steps_total} {episode.rows}".encode())
        for column in columns:
            digest.update(_little_endian(column).tobytes())
    return digest.hexdigest()


def _little_endian(column: Array) -> Array:
    return np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<"))


def _table(episodes: Sequence[Episode], layout: Layout, schema: pa.Schema) -> pa.Table:
    """All rows, column by column: a fragment may be short, so what is done for each must be cheap.

    Only frames stay in one chunk per fragment, for they may exceed an Arrow array together.
    """
    rows = np.array([episode.rows for episode in episodes])
    ends = np.cumsum(rows)
    no_action = np.zeros(ends[-1], bool)
    no_action[ends - 1] = [episode.ended for episode in episodes]
    t0 = np.array([episode.t0 for episode in episodes])
    t = np.arange(ends[-1]) - np.repeat(ends - rows - t0, rows)
    number = pa.array(np.repeat(np.arange(len(episodes)), rows))
    offsets = np.arange(rows.max() + 1, dtype=np.int32) * np.int32(layout.obs_bytes)
    columns = [
        pa.array([episode.eps_id for episode in episodes], pa.string()).take(number),
        pa.array(t.astype(np.int32)),
        pa.chunked_array([_frames(episode.obs, offsets) for episode in episodes]),
        _action_column(_joined(episodes, "actions"), no_action, layout),
        pa.array(_joined(episodes, "rewards"), pa.float32(), mask=no_action),
        *(pa.array(_joined(episodes, n)) for n in ("terminateds", "truncateds", "life_loss")),
        pa.array(np.repeat([episode.policy_version for episode in episodes], rows)),
        pa.array(np.repeat([episode.env_steps_total for episode in episodes], rows)),
    ]
    if layout.ram_bytes:
        ram_offsets = np.arange(rows.max() + 1, dtype=np.int32) * np.int32(layout.ram_bytes)
        memories = [episode.ram for episode in episodes if episode.ram is not None]
        columns.append(pa.chunked_array([_frames(ram, ram_offsets) for ram in memories]))
    return pa.Table.from_arrays(columns, schema=schema)


def _joined(episodes: Sequence[Episode], name: str) -> Array:
    joined: Array = np.concatenate([getattr(episode, name) for episode in episodes])
    return joined


def _frames(obs: Array, offsets: NDArray[np.int32]) -> pa.Array:
    """One `binary` value per frame, without copying."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(_little_endian(obs))]
    return pa.Array.from_buffers(pa.binary(), len(obs), buffers)


def _action_column(actions: Array, null: NDArray[np.bool_], layout: Layout) -> pa.Array:
    kind = _ARROW_TYPES[layout.action_dtype]
    if not layout.action_shape:
        return pa.array(actions, kind, mask=null)
    flat = actions.reshape(len(actions), -1)
    lengths = np.where(null, 0, flat.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = pa.array(np.ascontiguousarray(flat[~null]).reshape(-1), kind)
    return pa.ListArray.from_arrays(pa.array(offsets), values, pa.list_(kind), mask=pa.array(null))


def _episodes(table: pa.Table, header: SegmentHeader) -> Iterator[Episode]:
    """Cut the columns into the fragments that the footer lists, checking their names and nulls."""
    layout = header.layout
    names = table["eps_id"].to_numpy(zero_copy_only=False)
    steps = {k: table[k].to_numpy() for k in ("t", "policy_version", "env_steps_total")}
    flags = {k: table[k].to_numpy() for k in ("terminateds", "truncateds", "life_loss")}
    has_action = table["rewards"].is_valid().to_numpy()
    if not np.array_equal(has_action, table["actions"].is_valid().to_numpy()):
        raise ReplayError("expected null rewards exactly where actions are null, got a difference")
    obs, actions = _read_obs(table["obs"], layout), _read_actions(table["actions"], layout)
    ram = _read_bytes(table["ram"], layout.ram_bytes, "ram") if layout.ram_bytes else None
    rewards = table["rewards"].fill_null(0).to_numpy().astype(np.float32, copy=False)
    start = 0
    for info in header.fragments:
        rows = slice(start, start := start + info.rows)
        episode = Episode(
            eps_id=info.eps_id,
            t0=info.t0,
            obs=obs[rows],
            actions=actions[rows],
            rewards=rewards[rows],
            terminateds=flags["terminateds"][rows],
            truncateds=flags["truncateds"][rows],
            life_loss=flags["life_loss"][rows],
            policy_version=info.policy_version,
            env_steps_total=int(steps["env_steps_total"][rows][0]),
            ended=info.ended,
            ram=None if ram is None else ram[rows],
        )
        agrees = (
            bool((names[rows] == info.eps_id).all())
            and np.array_equal(steps["t"][rows], np.arange(info.t0, info.t0 + info.rows))
            and bool((steps["policy_version"][rows] == info.policy_version).all())
            and bool((steps["env_steps_total"][rows] == episode.env_steps_total).all())
            and int(has_action[rows].sum()) == info.steps == episode.steps
        )
        if not agrees:
            raise ReplayError(
                f"episode {info.eps_id}: expected the rows that the footer lists, got others"
            )
        yield episode


def _read_obs(column: pa.ChunkedArray, layout: Layout) -> Array:
    """All frames as (rows, *obs_shape)."""
    dtype = np.dtype(layout.obs_dtype)
    flat = _read_bytes(column, layout.obs_bytes, "observation").reshape(-1)
    frames = flat.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
    return frames.reshape(column.length(), *layout.obs_shape)


def _read_bytes(column: pa.ChunkedArray, size: int, what: str) -> NDArray[np.uint8]:
    """A `binary` column as (rows, size), without a Python loop over rows."""
    chunks = []
    for chunk in column.chunks:
        _, offset_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offset_buffer, np.int32)[chunk.offset :][: len(chunk) + 1]
        if (np.diff(offsets) != size).any():
            raise ReplayError(f"expected {size} bytes per {what}, got another size")
        chunks.append(np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]])
    flat: NDArray[np.uint8] = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    return flat.reshape(column.length(), size)


def _read_actions(column: pa.ChunkedArray, layout: Layout) -> Array:
    if not layout.action_shape:
        plain: Array = column.fill_null(0).to_numpy()
        return plain.astype(layout.action_dtype, copy=False)
    size = int(np.prod(layout.action_shape))
    valid = column.is_valid().to_numpy()
    values = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]).to_numpy()
    if len(values) != valid.sum() * size:
        raise ReplayError(f"expected {size} numbers per action, got another size")
    flat = np.zeros((column.length(), size), layout.action_dtype)
    flat[valid] = values.reshape(-1, size)
    return flat.reshape(column.length(), *layout.action_shape)
