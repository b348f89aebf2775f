"""One parquet file of rows: bytes in, bytes out, nothing about folders.

A segment is a few fragments of episodes, encoded whole in memory so that its footer exists before
any byte is published. Columns carry the names of RLlib and Minari, so pandas, DuckDB and Ray Data
read a segment without this module. Each stream of observations has a column: single values are
numbers, vectors are lists, and frames are raw C-order bytes in a `binary` column (a list or tensor
column would store every pixel as an INT32 level). Shapes, dtypes, spaces, the list of fragments
and a SHA-256 of the content live in the footer. `docs/replay.md` is the specification.

`encode_segment` refuses rows that break the contract of `Episode`; `decode_segment` refuses every
byte string that is not exactly what `encode_segment` wrote, now or in version 1 of the format.
Neither knows a path.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mbrl.episode import CAUSED, Array, Episode
from mbrl.errors import ReplayError
from mbrl.replay.layout import (
    ACTION_DTYPES,
    OBS_DTYPES,
    Layout,
    StreamType,
    describe,
    layout_of,
)
from mbrl.streams import columns_of

FORMAT = "reverie-replay/2"
OLDER = ("reverie-replay/1",)
"""Formats that are read too. Version 1 has one column `obs`, always binary, and no spaces."""

ROW_GROUP_ROWS = 1024  # the smallest unit pyarrow can read back
MAX_FRAGMENT_BYTES = (1 << 31) - 1  # offsets of an Arrow binary array are int32

_ACTION_TYPES = {name: pa.from_numpy_dtype(np.dtype(name)) for name in ACTION_DTYPES}
_NEVER_NULL = [name for name in CAUSED if name != "rewards"]
_STAMPS = ("policy_version", "env_steps_total")
"""Columns of one value per fragment."""
_SPACES = ("observation_space", "action_space")
"""Keys of the footer, left out where a space is unknown."""


class SegmentVersionError(ReplayError):
    """The file is a healthy segment of a format this version does not know."""


@dataclass(frozen=True)
class FragmentInfo:
    """One entry of the footer's `episodes` list: a fragment, as `Episode`, without its rows."""

    eps_id: str
    t0: int
    rows: int
    steps: int
    reward_sum: float  # raw; "return" in the footer
    ended: bool
    policy_version: int


@dataclass(frozen=True, kw_only=True)
class SegmentHeader:
    """The footer of a segment."""

    version: str  # of the format
    layout: Layout
    fragments: tuple[FragmentInfo, ...]  # in the order of the rows
    sha256: str  # 64 hex digits over the footer's other fields and all rows

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(fragment.rows for fragment in self.fragments)


def _footer(layout: Layout, episodes: Sequence[Episode]) -> dict[str, str]:
    """A footer as text fields, all but the SHA-256."""
    names = {"reward_sum": "return"}
    listed = [{names.get(k, k): v for k, v in vars(_info(one)).items()} for one in episodes]
    obs = {one.column: {"dtype": one.dtype, "shape": one.shape} for one in layout.obs}
    fields = {
        "format": FORMAT,
        "env_id": layout.env_id,
        "obs": json.dumps(obs),
        "action": json.dumps(_action_words(layout)),
        "episodes": json.dumps(listed),
    }
    known = {name: text for name, text in zip(_SPACES, layout.spaces, strict=True) if text}
    return fields | known | ({"ram_bytes": str(layout.ram_bytes)} if layout.ram_bytes else {})


def _action_words(layout: Layout) -> dict[str, Any]:
    """What the footer says of actions: dtype and shape, or those of each part."""
    if not layout.action_parts:
        return {"dtype": layout.action_dtype, "shape": layout.action_shape}
    parts = layout.action_parts
    return {"parts": {name: {"dtype": dtype, "shape": shape} for name, dtype, shape in parts}}


def _info(e: Episode) -> FragmentInfo:
    total = float(e.rewards.sum(dtype=np.float64))
    return FragmentInfo(e.eps_id, e.t0, e.rows, e.steps, total, e.ended, e.policy_version)


def _parse_footer(metadata: pq.FileMetaData) -> tuple[dict[str, str], SegmentHeader]:
    """The text fields of a parquet footer, as text and as values."""
    raw: Mapping[bytes, bytes] = metadata.metadata or {}
    fields = {key.decode(): value.decode() for key, value in raw.items() if key != b"ARROW:schema"}
    found = fields.get("format", "")
    if found not in (FORMAT, *OLDER):
        if found.startswith(FORMAT.split("/")[0] + "/"):
            raise SegmentVersionError(
                f"expected format {FORMAT} or {', '.join(OLDER)}, got {found}; read it with the "
                f"version that wrote it"
            )
        raise ReplayError(f"expected a replay segment ({FORMAT}), got a foreign parquet file")
    try:
        obs, action = json.loads(fields["obs"]), json.loads(fields["action"])
        if found in OLDER:
            obs = {"obs": obs}
        layout = Layout(
            fields["env_id"],
            tuple(
                StreamType(column, str(one["dtype"]), tuple(map(int, one["shape"])))
                for column, one in obs.items()
            ),
            str(action.get("dtype", "")),
            tuple(map(int, action.get("shape", ()))),
            int(fields.get("ram_bytes", "0")),
            (fields.get(_SPACES[0], ""), fields.get(_SPACES[1], "")),
            tuple(
                (name, str(part["dtype"]), tuple(map(int, part["shape"])))
                for name, part in action.get("parts", {}).items()
            ),
        )
        listed = json.loads(fields["episodes"])
        fragments = [FragmentInfo(reward_sum=entry.pop("return"), **entry) for entry in listed]
        sha256 = fields["sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReplayError(f"expected a complete footer, got: {_first_line(error)}") from error
    actions = {dtype for dtype, _ in layout.action_columns.values()}
    if not ({one.dtype for one in layout.obs} <= OBS_DTYPES and actions <= _ACTION_TYPES.keys()):
        raise ReplayError(f"expected a known dtype, got {describe([layout])}")
    header = SegmentHeader(version=found, layout=layout, fragments=tuple(fragments), sha256=sha256)
    return fields, header


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def encode_segment(
    episodes: Sequence[Episode], env_id: str = "", spaces: tuple[str, str] = ("", "")
) -> bytes:
    """Encode fragments of one layout, in the order the rows shall have, as one parquet file.

    Equal episodes give an equal `sha256` in the footer, which names `env_id` and `spaces` too;
    these are as in `Layout`.

    Raises:
        ReplayError: the episodes do not fit in one segment or break the contract of `Episode`.
    """
    layout = layout_of(episodes, env_id, spaces)
    largest = max(layout.ram_bytes, *(stream.size_bytes for stream in layout.obs))
    for episode in episodes:
        _check(episode, largest)
    fields = _footer(layout, episodes)
    fields["sha256"] = _digest(fields, episodes)
    schema = _schema(layout)
    table = _table(episodes, layout, schema)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["eps_id"],
        data_page_size=1 << 20,
        write_statistics=["eps_id", "t", *CAUSED, *_STAMPS],
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
    source = pa.BufferReader(data)
    with (
        _refusing_what_is_broken(),
        pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file,
    ):
        fields, header = _parse_footer(file.metadata)
        schema = _schema(header.layout, header.version)
        if not file.schema_arrow.equals(schema):
            raise ReplayError(
                f"expected the columns {schema.names} of {header.version}, got {file.schema_arrow}"
            )
        table = file.read(use_threads=False)  # most bytes are in one column: nothing to share out
    if table.num_rows != header.rows:
        raise ReplayError(f"expected {header.rows} rows as the footer says, got {table.num_rows}")
    episodes = list(_episodes(table, header))
    if _digest(fields, episodes) != header.sha256:
        raise ReplayError("expected the content that the footer's SHA-256 describes, got another")
    return header, episodes


def read_header(source: Any) -> SegmentHeader:
    """Read only the footer of a segment, from bytes or whatever pyarrow opens; errors as above."""
    with _refusing_what_is_broken():
        where = pa.BufferReader(source) if isinstance(source, bytes) else source
        return _parse_footer(pq.read_metadata(where))[1]


@contextlib.contextmanager
def _refusing_what_is_broken() -> Iterator[None]:
    """Turn the errors of a parquet reader into ours; a file that is gone stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise ReplayError(f"expected a whole parquet file, got: {_first_line(error)}") from error


def _stream_type(stream: StreamType, version: str) -> pa.DataType:
    """How a stream is stored: a number, a list of numbers for one axis, or raw bytes."""
    if version in OLDER or len(stream.shape) > 1:
        return pa.binary()
    number = pa.from_numpy_dtype(np.dtype(stream.dtype))
    return pa.list_(number) if stream.shape else number


def _schema(layout: Layout, version: str = FORMAT) -> pa.Schema:
    """The columns of a file; a null says that the row has no action."""
    actions = {
        name: pa.list_(_ACTION_TYPES[dtype]) if shape else _ACTION_TYPES[dtype]
        for name, (dtype, shape) in layout.action_columns.items()
    }
    fields = {
        "eps_id": pa.string(),
        "t": pa.int32(),
        **{stream.column: _stream_type(stream, version) for stream in layout.obs},
        **actions,
        **{name: pa.from_numpy_dtype(dtype) for name, dtype in CAUSED.items()},
        **dict.fromkeys(_STAMPS, pa.int64()),
        **({"ram": pa.binary()} if layout.ram_bytes else {}),
    }
    null = (*actions, "rewards")
    return pa.schema([pa.field(name, kind, name in null) for name, kind in fields.items()])


def _check(episode: Episode, value_bytes: int) -> None:
    for name, dtype in CAUSED.items():
        column = getattr(episode, name)
        if column.dtype != dtype or column.ndim != 1:
            raise ReplayError(
                f"{name}: expected (rows,) {dtype}, got {column.shape} {column.dtype.name}"
            )
    if episode.rows * value_bytes > MAX_FRAGMENT_BYTES:
        raise ReplayError(
            f"expected fragments below 2 GiB, got {episode.rows} rows of {value_bytes} "
            "bytes; commit shorter fragments"
        )


def _digest(fields: Mapping[str, str], episodes: Iterable[Episode]) -> str:
    covered = {name: text for name, text in fields.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for episode in episodes:
        digest.update(f"{episode.env_steps_total} {episode.rows}".encode())
        for column in episode.columns.values():
            digest.update(_little_endian(column).data)
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
    joined = {
        name: np.concatenate([getattr(episode, name) for episode in episodes])
        for name in ("actions", *CAUSED)
    }
    actions = joined.pop("actions")
    chosen = {f"actions.{name}": actions[name] for name in actions.dtype.names or ()} or {
        "actions": actions
    }
    joined |= chosen
    if filled := [name for name, values in joined.items() if values[no_action].any()]:
        raise ReplayError(
            f"expected zeros in the final row of an episode, which has no action, got a value in "
            f"{', '.join(filled)}; the last action's results belong to the row before"
        )
    columns = {
        "eps_id": pa.array([episode.eps_id for episode in episodes], pa.string()).take(number),
        "t": pa.array(t.astype(np.int32)),
        **_obs_columns(episodes, layout),
        **{name: _action_column(values, no_action) for name, values in chosen.items()},
        "rewards": pa.array(joined["rewards"], mask=no_action),
        **{name: pa.array(joined[name]) for name in _NEVER_NULL},
    }
    for name in _STAMPS:
        stamps = [getattr(episode, name) for episode in episodes]
        columns[name] = pa.array(np.repeat(stamps, rows))
    if layout.ram_bytes:
        memories = [episode.ram for episode in episodes if episode.ram is not None]
        columns["ram"] = _binary(memories, layout.ram_bytes)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _obs_columns(episodes: Sequence[Episode], layout: Layout) -> dict[str, Any]:
    """Every stream of observations as a column."""
    parts = [columns_of(episode.obs) for episode in episodes]
    columns: dict[str, Any] = {}
    for stream in layout.obs:
        arrays = [part[stream.column] for part in parts]
        if len(stream.shape) > 1:
            columns[stream.column] = _binary(arrays, stream.size_bytes)
        elif stream.shape:
            columns[stream.column] = _lists(arrays, stream.size)
        else:
            columns[stream.column] = pa.array(_little_endian(np.concatenate(arrays)))
    return columns


def _lists(arrays: Sequence[Array], size: int) -> pa.ChunkedArray:
    """One list of `size` numbers per row and a chunk per array."""
    offsets = pa.py_buffer(_offsets(arrays, size))
    chunks = []
    for array in arrays:
        numbers = pa.array(_little_endian(array).reshape(-1))
        kind = pa.list_(numbers.type)
        chunks.append(pa.Array.from_buffers(kind, len(array), [None, offsets], children=[numbers]))
    return pa.chunked_array(chunks)


def _offsets(arrays: Sequence[Array], size: int) -> NDArray[np.int32]:
    """Where the values of `size` items begin in an array, for the longest of them."""
    return np.arange(max(map(len, arrays)) + 1, dtype=np.int32) * np.int32(size)


def _binary(arrays: Sequence[Array], size: int) -> pa.ChunkedArray:
    """One `binary` value of `size` bytes per row and a chunk per array, without copying."""
    offsets = pa.py_buffer(_offsets(arrays, size))
    chunks = []
    for array in arrays:
        buffers = [None, offsets, pa.py_buffer(_little_endian(array))]
        chunks.append(pa.Array.from_buffers(pa.binary(), len(array), buffers))
    return pa.chunked_array(chunks)


def _action_column(actions: Array, null: NDArray[np.bool_]) -> pa.Array:
    kind = _ACTION_TYPES[actions.dtype.name]
    if actions.ndim == 1:
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
    steps, *stamps = (table[name].to_numpy() for name in ("t", *_STAMPS))
    has_action = table["rewards"].is_valid().to_numpy()
    for name in layout.action_columns:
        if not np.array_equal(has_action, table[name].is_valid().to_numpy()):
            raise ReplayError(
                f"expected null rewards exactly where {name} are null, got a difference"
            )
    columns = {
        **{one.column: _read_stream(table[one.column], one) for one in layout.obs},
        "actions": _read_actions(table, layout),
        "rewards": table["rewards"].fill_null(0).to_numpy(),
        **{name: table[name].to_numpy() for name in _NEVER_NULL},
    }
    if layout.ram_bytes:
        columns["ram"] = _read_bytes(table["ram"], layout.ram_bytes, "ram")
    start = 0
    for info in header.fragments:
        rows = slice(start, start := start + info.rows)
        episode = Episode.of(
            {name: values[rows] for name, values in columns.items()},
            eps_id=info.eps_id,
            t0=info.t0,
            policy_version=info.policy_version,
            env_steps_total=int(stamps[1][rows][0]),
            ended=info.ended,
        )
        agrees = (
            bool((names[rows] == info.eps_id).all())
            and np.array_equal(steps[rows], np.arange(info.t0, info.t0 + info.rows))
            and all(
                (values[rows] == getattr(episode, name)).all()
                for name, values in zip(_STAMPS, stamps, strict=True)
            )
            and int(has_action[rows].sum()) == info.steps == episode.steps
        )
        if not agrees:
            raise ReplayError(
                f"episode {info.eps_id}: expected the rows that the footer lists, got others"
            )
        yield episode


def _read_stream(column: pa.ChunkedArray, stream: StreamType) -> Array:
    """All values of a stream as (rows, *shape)."""
    if pa.types.is_list(column.type):
        return _read_lists(column, stream.size, stream.column).reshape(
            column.length(), *stream.shape
        )
    if not pa.types.is_binary(column.type):
        return column.to_numpy(zero_copy_only=False)
    dtype = np.dtype(stream.dtype)
    flat = _read_bytes(column, stream.size_bytes, stream.column).reshape(-1)
    frames = flat.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
    return frames.reshape(column.length(), *stream.shape)


def _read_lists(column: pa.ChunkedArray, size: int, what: str) -> Array:
    """A column of lists as (rows, size), without a Python loop over rows."""
    lengths = pc.list_value_length(column)
    if lengths.null_count or not pc.all(pc.equal(lengths, size)).as_py():
        raise ReplayError(f"expected {size} numbers per {what}, got another size")
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(values).reshape(column.length(), size)


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


def _read_actions(table: pa.Table, layout: Layout) -> Array:
    """All actions: of one column as it is, of several as the fields of one array."""
    columns = {
        name: _read_action(table[name], dtype, shape)
        for name, (dtype, shape) in layout.action_columns.items()
    }
    if not layout.action_parts:
        return columns["actions"]
    actions: NDArray[Any] = np.empty(table.num_rows, np.dtype(list(layout.action_parts)))
    for name, values in columns.items():
        actions[name.removeprefix("actions.")] = values
    return actions


def _read_action(column: pa.ChunkedArray, dtype: str, shape: tuple[int, ...]) -> Array:
    if not shape:
        plain: Array = column.fill_null(0).to_numpy()
        return plain.astype(dtype, copy=False)
    size = int(np.prod(shape))
    valid = column.is_valid().to_numpy()
    values = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]).to_numpy()
    if len(values) != valid.sum() * size:
        raise ReplayError(f"expected {size} numbers per action, got another size")
    flat = np.zeros((column.length(), size), dtype)
    flat[valid] = values.reshape(-1, size)
    return flat.reshape(column.length(), *shape)
