"""What a world model costs: CPU milliseconds per frame to train it and to draw with it.

Both are CPU time of one thread (`time.process_time`), so that another job on the machine does not
change them; a frame is one row of a training batch, decoded or not. A copy of the model is trained,
never the model itself.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.fidelity.follow import Followed, decoded, rng_of, stream
from mbrl.world_model.model import WorldModel

if TYPE_CHECKING:
    from mbrl.fidelity.frames import Frames


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_ms_per_frame(
    model: WorldModel,
    frames: "Frames",
    seed: int,
    *,
    sequences: int = 12,
    length: int = 16,
    updates: int = 3,
) -> float:
    """CPU milliseconds of one training update, divided by its rows.

    An update is the loss, its gradient and an Adam step, on real windows of training frames; the
    fastest of `updates` counts, after one that does not (first calls allocate). Batches have
    the shape that the model is trained with: what is done once per step costs less in longer ones.

    Args:
        model: stays as it is.
        frames: training frames.
        seed: of the measurement.
        sequences: B, windows per update.
        length: T, rows per window.
        updates: updates timed.
    """
    learner = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-4)
    generator = stream(seed, "cost/update", model.device)
    rng = rng_of(seed, "cost/windows")
    taken = []
    with one_thread():
        for _ in range(updates + 1):
            batch = frames.batch(frames.windows(length, sequences, rng), length)
            began = time.process_time()
            loss, _, _ = learner.loss(batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            taken.append(time.process_time() - began)
    return 1000 * min(taken[1:]) / (sequences * length)


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
