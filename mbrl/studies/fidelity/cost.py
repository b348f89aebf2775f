"""What a world model costs to draw with: CPU milliseconds of one thread per frame.

What it costs to train needs no measuring: the CPU time of its run over the frames that it was shown
(`mbrl.studies.fidelity.study`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import Followed, decoded, stream
from mbrl.world_model.model import WorldModel


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_samples(
    model: WorldModel, followed: Followed, seed: int, role: str
) -> tuple[NDArray[np.uint8], float]:
    """Free-running samples of followed rows, and what one cost.

    Returns:
        (M, H, W, C) uint8, and CPU milliseconds per frame in batches of 64.
    """
    with one_thread():
        began = time.process_time()
        images = decoded(model, followed.latent, stream(seed, role, model.device))
        taken = time.process_time() - began
    return images, 1000 * taken / len(images)
