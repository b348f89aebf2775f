"""Replay: what the agent lived through, on disk as parquet and in a ring for sampling."""

from mbrl.replay.sampler import SequenceSampler
from mbrl.replay.segment import SegmentVersionError, decode_segment, encode_segment
from mbrl.replay.stats import format_stats
from mbrl.replay.store import ReplayStore

__all__ = [
    "ReplayStore",
    "SegmentVersionError",
    "SequenceSampler",
    "decode_segment",
    "encode_segment",
    "format_stats",
]
