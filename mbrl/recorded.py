"""Recorded steps: a run that begins with what was lived through before, by whomever.

All of it is there before the first update. It is counted, learned from and evaluated on the way in
pieces like those a run collects, so that budgets, curves and checkpoints stay what they are: what
is recorded are the run's first env steps. With no others the run learns offline.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mbrl.episode import Episode
from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore

WRITER = "recorded"
SEGMENT_ROWS = 16_384
"""A segment is committed after so many rows."""


def take_over(source: Path, store: ReplayStore) -> tuple[int, bool]:
    """Copy a run's or a store's steps, in the order of their time, into a new store.

    Args:
        source: a replay folder, or the run folder around it.
        store: of the new run, with its environment and spaces.

    Returns:
        How many steps there are, and whether any gave a reward other than 0.

    Raises:
        ReplayError: there are none, or of other spaces than the run's.
    """
    recording = ReplayStore(source / "replay" if (source / "replay").is_dir() else source)
    if store.directory.resolve() in (source.resolve(), (source / "replay").resolve()):
        raise ReplayError(
            f"replay.init_from: expected the folder of another run, got this run's own, {source}; "
            "give this one a name or run.dir of its own"
        )
    layout = recording.layout()
    if layout is None:
        raise ReplayError(
            f"replay.init_from: expected a run folder or a replay folder with steps, got {source}, "
            "which has none"
        )
    theirs, ours = recording.spaces(), store.expected_spaces
    if theirs is not None and ours is not None and theirs != ours:
        raise ReplayError(
            f"replay.init_from: expected steps of {ours[0]} and {ours[1]}, as the environment has "
            f"them, got {theirs[0]} and {theirs[1]} in {source}; set env as the recording has it"
        )
    total, rewarded = 0, False
    for fragments in _batches(recording.fragments()):
        counted = []
        for fragment in fragments:
            total += fragment.steps
            rewarded = rewarded or bool(fragment.rewards.any())
            counted.append(replace(fragment, env_steps_total=total))
        store.commit(counted, WRITER, total)
    return total, rewarded


def _batches(fragments: Iterator[Episode]) -> Iterator[list[Episode]]:
    """Fragments in the same order, enough for a segment at a time."""
    batch: list[Episode] = []
    rows = 0
    for fragment in fragments:
        batch.append(fragment)
        rows += fragment.rows
        if rows >= SEGMENT_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch
