"""Replay: what the agent lived through, kept on disk as parquet and in a ring for sampling."""

from mbrl.replay.sampler import SequenceSampler
from mbrl.replay.segment import (
    FORMAT,
    FragmentInfo,
    Layout,
    SegmentHeader,
    SegmentVersionError,
    decode_segment,
    encode_segment,
)
from mbrl.replay.stats import ReplayStats, format_stats
from mbrl.replay.store import ReplayStore, SegmentInfo

__all__ = [
    "FORMAT",
    "FragmentInfo",
    "Layout",
    "ReplayStats",
    "ReplayStore",
    "SegmentHeader",
    "SegmentInfo",
    "SegmentVersionError",
    "SequenceSampler",
    "decode_segment",
    "encode_segment",
    "format_stats",
]
