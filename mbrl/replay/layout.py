"""Layout: what every row of a segment looks like, and so of a store.

In: episodes, or what a footer says. Out: dtypes and shapes by column, and how many bytes a row
takes. Nothing here knows parquet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mbrl.episode import CAUSED, Episode
from mbrl.errors import ReplayError
from mbrl.streams import columns_of

OBS_DTYPES = frozenset(
    np.dtype(code).name
    for code in ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
)
ACTION_DTYPES = ("int64", "float32")

_ROW_EXTRA_BYTES = sum(dtype.itemsize for dtype in CAUSED.values())


@dataclass(frozen=True)
class StreamType:
    """One stream of observations: its column, and the dtype and shape of one value."""

    column: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in one value."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size_bytes(self) -> int:
        """Bytes of one value."""
        return self.size * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.column} {self.dtype}{self.shape}"


@dataclass(frozen=True)
class Layout:
    """What every row of a segment looks like; equal in all segments of a store.

    Attributes:
        env_id: the environment the rows came from; "" if unknown.
        obs: the streams of an observation, in their order.
        action_dtype: "int64" or "float32"; "" of a Dict or Tuple, whose parts are listed.
        action_shape: () for a discrete space, (A,) for a Box.
        action_parts: of a Dict or Tuple, each part's name, dtype and shape.
        ram_bytes: of console memory kept with each row; 0 means that there is no such column.
        spaces: JSON of the observation and the action space (`mbrl.replay.spaces`); "" if unknown.
    """

    env_id: str
    obs: tuple[StreamType, ...]
    action_dtype: str
    action_shape: tuple[int, ...]
    ram_bytes: int = 0
    spaces: tuple[str, str] = ("", "")
    action_parts: tuple[tuple[str, str, tuple[int, ...]], ...] = ()

    @property
    def action_columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each column of actions, by its name."""
        if not self.action_parts:
            return {"actions": (self.action_dtype, self.action_shape)}
        return {f"actions.{name}": (dtype, shape) for name, dtype, shape in self.action_parts}

    @property
    def row_bytes(self) -> int:
        """Bytes of one uncompressed row: observation, action, reward, flags and memory."""
        action_bytes = sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            for dtype, shape in self.action_columns.values()
        )
        obs_bytes = sum(stream.size_bytes for stream in self.obs)
        return obs_bytes + action_bytes + _ROW_EXTRA_BYTES + self.ram_bytes

    def agrees(self, other: "Layout") -> bool:
        """Whether the rows are alike; what one of the two does not know is no difference."""
        pairs = zip((self.env_id, *self.spaces), (other.env_id, *other.spaces), strict=True)
        known = all(one == two for one, two in pairs if one and two)
        return known and replace(self, env_id="", spaces=("", "")) == replace(
            other, env_id="", spaces=("", "")
        )


NO_LAYOUT = Layout("", (), "int64", ())  # of an empty store


def layout_of(
    episodes: Sequence[Episode], env_id: str, spaces: tuple[str, str] = ("", "")
) -> Layout:
    """Find the one layout that all episodes share; `spaces` as in `Layout`.

    Raises:
        ReplayError: no episodes, two layouts, or a dtype that the format does not hold.
    """
    if not episodes:
        raise ReplayError("expected at least one episode in a segment, got none")
    kinds = {  # fragments may be short and many: a layout for each would cost too much
        (_obs_kind(e), e.actions.dtype, e.actions.shape[1:], _ram_bytes(e)) for e in episodes
    }
    layouts = {
        Layout(
            env_id,
            tuple(StreamType(column, dtype.name, shape) for column, dtype, shape in obs),
            *_action_name(action, action_shape),
            ram_bytes,
            spaces,
            _action_parts(action),
        )
        for obs, action, action_shape, ram_bytes in kinds
    }
    if len(layouts) > 1:
        raise ReplayError(f"expected one shape and dtype in a segment, got {describe(layouts)}")
    layout = layouts.pop()
    for stream in layout.obs:
        if stream.dtype not in OBS_DTYPES:
            raise ReplayError(
                f"{stream.column}: expected a numeric dtype, got {stream.dtype}; convert it in the "
                f"environment"
            )
    for name, (dtype, _) in layout.action_columns.items():
        if dtype not in ACTION_DTYPES:
            raise ReplayError(f"{name}: expected int64 (discrete) or float32 (Box), got {dtype}")
    return layout


def _obs_kind(episode: Episode) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
    """Name, dtype and shape of each stream."""
    columns = columns_of(episode.obs).items()
    return tuple((name, rows.dtype, rows.shape[1:]) for name, rows in columns)


def _action_name(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of an action's only column; ("", ()) if it has parts."""
    return (dtype.name, shape) if dtype.names is None else ("", ())


def _action_parts(dtype: np.dtype[Any]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Name, dtype and shape of each field."""
    fields = [(name, dtype[name]) for name in dtype.names or ()]
    return tuple((name, one.base.name, one.shape) for name, one in fields)


def _ram_bytes(episode: Episode) -> int:
    """Bytes of memory in each row."""
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
            f"[env {layout.env_id or 'unknown'}, {', '.join(map(str, layout.obs))}, "
            f"actions {_describe_actions(layout)}"
            f"{f', ram {layout.ram_bytes} bytes' if layout.ram_bytes else ''}"
            f"{''.join(f', {text}' for text in layout.spaces if text)}]"
            for layout in layouts
        )
    )


def _describe_actions(layout: Layout) -> str:
    if not layout.action_parts:
        return f"{layout.action_dtype}{layout.action_shape}"
    return ", ".join(f"{name} {dtype}{shape}" for name, dtype, shape in layout.action_parts)
