"""The footer of a segment: what its rows look like and which fragments they are.

In go episodes or the text fields of a parquet footer, out come typed values or a `ReplayError` that
says what is wrong with them. Nothing here touches rows or files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from mbrl.episode import Episode
from mbrl.errors import ReplayError

FORMAT = "reverie-replay/1"

OBS_DTYPES = frozenset(
    np.dtype(code).name
    for code in ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
)
ACTION_DTYPES = frozenset(["int64", "float32"])
_ROW_EXTRA_BYTES = 4 + 3  # reward and three flags


class SegmentVersionError(ReplayError):
    """The file is a healthy segment of a format this version does not know."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every row of a segment looks like; equal in all segments of a store.

    Attributes:
        env_id: the environment the rows came from; "" if unknown.
        obs_dtype, obs_shape: of one observation.
        action_dtype: "int64" or "float32".
        action_shape: () for a discrete space, (A,) for a Box.
        ram_bytes: of console memory kept with each row; 0 means that there is no such column.
    """

    env_id: str
    obs_dtype: str
    obs_shape: tuple[int, ...]
    action_dtype: str
    action_shape: tuple[int, ...]
    ram_bytes: int = 0

    @property
    def obs_bytes(self) -> int:
        """Bytes of one observation."""
        return int(np.prod(self.obs_shape, dtype=np.int64)) * np.dtype(self.obs_dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one uncompressed row: observation, action, reward, flags and memory."""
        size = int(np.prod(self.action_shape, dtype=np.int64))
        action_bytes = size * np.dtype(self.action_dtype).itemsize
        return self.obs_bytes + action_bytes + _ROW_EXTRA_BYTES + self.ram_bytes


NO_LAYOUT = Layout(
    env_id="", obs_dtype="uint8", obs_shape=(), action_dtype="int64", action_shape=()
)  # of an empty store


@dataclass(frozen=True, kw_only=True)
class FragmentInfo:
    """One entry of the footer's `episodes` list: a fragment, without its rows.

    Attributes:
        reward_sum: sum of the fragment's raw rewards ("return" in the footer).
        The other names are those of `Episode`.
    """

    eps_id: str
    t0: int
    rows: int
    steps: int
    reward_sum: float
    ended: bool
    policy_version: int


@dataclass(frozen=True, kw_only=True)
class SegmentHeader:
    """The footer of a segment.

    Attributes:
        layout: shape of the rows.
        fragments: in the order of the rows.
        sources: (name, number of fragments) of each file merged into this one by compaction, in
            the order of the fragments; empty for a file that a collector wrote.
        sha256: 64 hex digits over the footer's other fields and all rows.
    """

    layout: Layout
    fragments: tuple[FragmentInfo, ...]
    sources: tuple[tuple[str, int], ...]
    sha256: str

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(fragment.rows for fragment in self.fragments)


def layout_of(episodes: Sequence[Episode], env_id: str) -> Layout:
    """Find the one layout that all episodes share.

    Raises:
        ReplayError: no episodes, two layouts, or a dtype that the format does not hold.
    """
    if not episodes:
        raise ReplayError("expected at least one episode in a segment, got none")
    kinds = {
        (e.obs.dtype, e.obs.shape[1:], e.actions.dtype, e.actions.shape[1:], _ram_bytes(e))
        for e in episodes
    }
    layouts = {
        Layout(
            env_id=env_id,
            obs_dtype=obs_dtype.name,
            obs_shape=obs_shape,
            action_dtype=action_dtype.name,
            action_shape=action_shape,
            ram_bytes=ram_bytes,
        )
        for obs_dtype, obs_shape, action_dtype, action_shape, ram_bytes in kinds
    }
    if len(layouts) > 1:
        raise ReplayError(f"expected one shape and dtype in a segment, got {describe(layouts)}")
    layout = layouts.pop()
    if layout.obs_dtype not in OBS_DTYPES:
        raise ReplayError(
            f"obs: expected a numeric dtype, got {layout.obs_dtype}; convert it in the environment"
        )
    if layout.action_dtype not in ACTION_DTYPES:
        raise ReplayError(
            f"actions: expected int64 (discrete) or float32 (Box), got {layout.action_dtype}"
        )
    return layout


def _ram_bytes(episode: Episode) -> int:
    """Bytes of memory in each row.

    Raises:
        ReplayError: the memory is not (n, R) uint8 with R >= 1.
    """
    ram = episode.ram
    if ram is None:
        return 0
    if ram.ndim != 2 or ram.dtype != np.uint8 or not ram.shape[1]:
        raise ReplayError(
            f"episode {episode.eps_id}: expected ram of shape (rows, bytes >= 1) and dtype uint8, "
            f"got {ram.shape} {ram.dtype.name}; leave it out (None) if there is no memory to keep"
        )
    return int(ram.shape[1])


def describe(layouts: Iterable[Layout]) -> str:
    """Words for layouts in an error message."""
    return " and ".join(
        sorted(
            f"[env {layout.env_id or 'unknown'}, obs {layout.obs_dtype}{layout.obs_shape}, "
            f"actions {layout.action_dtype}{layout.action_shape}"
            f"{f', ram {layout.ram_bytes} bytes' if layout.ram_bytes else ''}]"
            for layout in layouts
        )
    )


def footer_fields(
    layout: Layout, fragments: Sequence[FragmentInfo], sources: Sequence[tuple[str, int]]
) -> dict[str, str]:
    """Write a footer as text fields, all but the SHA-256."""
    listed = [
        {("return" if k == "reward_sum" else k): v for k, v in vars(fragment).items()}
        for fragment in fragments
    ]
    # written only where there is a column, so that files without one stay what they always were
    ram = {"ram_bytes": str(layout.ram_bytes)} if layout.ram_bytes else {}
    return {
        "format": FORMAT,
        "env_id": layout.env_id,
        "obs": json.dumps({"dtype": layout.obs_dtype, "shape": layout.obs_shape}),
        "action": json.dumps({"dtype": layout.action_dtype, "shape": layout.action_shape}),
        "episodes": json.dumps(listed),
        "sources": json.dumps(list(sources)),
        **ram,
    }


def parse_footer(metadata: pq.FileMetaData) -> tuple[dict[str, str], SegmentHeader]:
    """Read the text fields of a parquet footer, as text and as values.

    Raises:
        SegmentVersionError: a segment of another format version.
        ReplayError: not a segment, or an incomplete footer.
    """
    raw: Mapping[bytes, bytes] = metadata.metadata or {}
    fields = {key.decode(): value.decode() for key, value in raw.items() if key != b"ARROW:schema"}
    found = fields.get("format", "")
    if found != FORMAT:
        if found.startswith(FORMAT.split("/")[0] + "/"):
            raise SegmentVersionError(
                f"expected format {FORMAT}, got {found}; read it with the version that wrote it"
            )
        raise ReplayError(f"expected a replay segment ({FORMAT}), got a foreign parquet file")
    try:
        obs, action = json.loads(fields["obs"]), json.loads(fields["action"])
        layout = Layout(
            env_id=fields["env_id"],
            obs_dtype=str(obs["dtype"]),
            obs_shape=tuple(int(n) for n in obs["shape"]),
            action_dtype=str(action["dtype"]),
            action_shape=tuple(int(n) for n in action["shape"]),
            ram_bytes=int(fields.get("ram_bytes", "0")),
        )
        listed = json.loads(fields["episodes"])
        fragments = [FragmentInfo(reward_sum=entry.pop("return"), **entry) for entry in listed]
        sources = [(str(name), int(count)) for name, count in json.loads(fields["sources"])]
        sha256 = fields["sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReplayError(f"expected a complete footer, got: {first_line(error)}") from error
    if layout.obs_dtype not in OBS_DTYPES or layout.action_dtype not in ACTION_DTYPES:
        raise ReplayError(f"expected a known dtype, got {describe([layout])}")
    header = SegmentHeader(
        layout=layout, fragments=tuple(fragments), sources=tuple(sources), sha256=sha256
    )
    return fields, header


def fragment_info(episode: Episode) -> FragmentInfo:
    """Describe a fragment as the footer does."""
    return FragmentInfo(
        eps_id=episode.eps_id,
        t0=episode.t0,
        rows=episode.rows,
        steps=episode.steps,
        reward_sum=float(episode.rewards.sum(dtype=np.float64)),
        ended=episode.ended,
        policy_version=episode.policy_version,
    )


def first_line(error: BaseException) -> str:
    """Say what an error of another library says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
