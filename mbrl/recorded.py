"""Recorded steps: a run that begins with what was lived through before, by whomever.

All of it is there before the first update. It is counted, learned from and evaluated on the way in
pieces like those a run collects, so that budgets, curves and checkpoints stay what they are: what
is recorded are the run's first env steps. With no others the run learns offline.
"""

import uuid
from dataclasses import replace
from pathlib import Path

from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore
from mbrl.replay.store import in_segments, replay_folder

WRITER = "recorded"


def take_over(source: Path, store: ReplayStore) -> tuple[int, bool]:
    """Copy a run's or a store's steps, in the order of their time, into a new store.

    Episodes get new names: those of a run follow from its seed, and this run may have the same.

    Args:
        source: a replay folder, or the run folder around it.
        store: of the new run, with its environment and spaces.

    Returns:
        How many steps there are, and whether any gave a reward other than 0.

    Raises:
        ReplayError: there are none, or of other spaces than the run's.
    """
    recording = ReplayStore(replay_folder(source))
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
    for fragments in in_segments(recording.fragments()):
        counted = []
        for fragment in fragments:
            total += fragment.steps
            rewarded = rewarded or bool(fragment.rewards.any())
            name = str(uuid.uuid5(uuid.NAMESPACE_OID, f"recorded/{fragment.eps_id}"))
            counted.append(replace(fragment, eps_id=name, env_steps_total=total))
        store.commit(counted, WRITER, total)
    return total, rewarded
