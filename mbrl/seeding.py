"""The only place where seeds are made.

Every random stream of a run is named by what it is for, so two streams never share a seed, adding a
stream never shifts another, and no library global is touched.
"""

import zlib

import numpy as np


def seed(root: int, role: str, *index: int) -> int:
    """Derive the seed of one named random stream.

    Args:
        root: the run's seed, >= 0.
        role: what the stream is for, such as "collect" or "evaluate".
        index: any number of non-negative counters (collector, slot, episode, ...).

    Returns:
        An integer in [0, 2**31), the range every environment and library accepts. It depends on all
        arguments and on nothing else: not on the process, the platform or the hash seed.
    """
    key = [root, zlib.crc32(role.encode()), *index]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0] >> 1)
