"""The name of a segment file is its index entry.

One listing of a folder yields order, sizes and totals of all segments without opening one:

    e000000004096-collector0-000003-n1024-r1030-k6-9f86d081.parquet
    run's steps   writer     seq    steps rows  ended content
"""

import re
from dataclasses import dataclass

from mbrl.errors import ReplayError
from mbrl.replay.header import SegmentHeader

WRITER = re.compile(r"[A-Za-z0-9_.]+")
_NAME = re.compile(
    r"e(?P<env_steps_total>\d{12,})-(?P<writer>[A-Za-z0-9_.]+)-(?P<seq>\d{6,})"
    r"-n(?P<steps>\d+)-r(?P<rows>\d+)-k(?P<episodes_ended>\d+)-(?P<content>[0-9a-f]{8})\.parquet"
)


@dataclass(frozen=True, kw_only=True, order=True)
class SegmentInfo:
    """What a file name says; sorts in the order in which a run collected.

    Attributes:
        env_steps_total: steps the run had collected when the segment was committed.
        writer: which collector wrote it; letters, digits, "_" and ".".
        seq: counts the segments of this writer.
        steps: rows that hold an action.
        rows: all rows, final observations included.
        episodes_ended: final observations in it.
        content: first 8 hex digits of the content's SHA-256, so equal runs give equal names.
    """

    env_steps_total: int
    writer: str
    seq: int
    steps: int
    rows: int
    episodes_ended: int
    content: str

    @property
    def name(self) -> str:
        """The file name."""
        return (
            f"e{self.env_steps_total:012d}-{self.writer}-{self.seq:06d}-n{self.steps}"
            f"-r{self.rows}-k{self.episodes_ended}-{self.content}.parquet"
        )

    @property
    def place(self) -> tuple[int, str, int]:
        """What orders segments: (env_steps_total, writer, seq)."""
        return self.env_steps_total, self.writer, self.seq


def parse_name(name: str) -> SegmentInfo | None:
    """Read a file name; None if it is not one of ours."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    found = match.groupdict()
    return SegmentInfo(
        env_steps_total=int(found["env_steps_total"]),
        writer=found["writer"],
        seq=int(found["seq"]),
        steps=int(found["steps"]),
        rows=int(found["rows"]),
        episodes_ended=int(found["episodes_ended"]),
        content=found["content"],
    )


def describe_segment(
    header: SegmentHeader, env_steps_total: int, writer: str, seq: int
) -> SegmentInfo:
    """Make the name of a segment from its footer and its place in the order."""
    return SegmentInfo(
        env_steps_total=env_steps_total,
        writer=writer,
        seq=seq,
        steps=sum(fragment.steps for fragment in header.fragments),
        rows=header.rows,
        episodes_ended=sum(fragment.ended for fragment in header.fragments),
        content=header.sha256[:8],
    )


def check_name(info: SegmentInfo, header: SegmentHeader) -> None:
    """Refuse a file under another's name: it would be ordered and counted wrongly."""
    right = describe_segment(header, *info.place)
    if info != right:
        raise ReplayError(f"expected the content that the file name says, got that of {right.name}")


def check_writer(writer: str) -> None:
    """Refuse a writer that a file name cannot carry."""
    if not WRITER.fullmatch(writer):
        raise ReplayError(
            f'writer: expected letters, digits, "_" and ".", got {writer!r}; it becomes part of '
            "a file name whose fields are separated by dashes"
        )
