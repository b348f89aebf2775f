"""Batches on their way from replay to the device: the next is fetched while this one is at work.

A GPU waits for nothing then: one thread samples, copies into memory that the card can read by
itself, and starts the transfer without waiting for it. On a CPU nothing is gained, and batches pass
as they are. Which rows are drawn does not depend on the device.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch

from mbrl.episode import SequenceBatch
from mbrl.streams import mapped


def feed(
    sample: Callable[[], SequenceBatch], count: int, device: torch.device
) -> Iterator[SequenceBatch]:
    """Draw `count` batches, each once, in order; one is drawn before the last one is done.

    Args:
        sample: draws the next batch. Called in one thread at a time, and by nobody else meanwhile.
        count: how many to draw.
        device: where they are wanted.

    Yields batches of numpy arrays for a CPU, and of tensors on any other device.
    """
    if device.type == "cpu":
        for _ in range(count):
            yield sample()
        return
    with ThreadPoolExecutor(1, "feed") as ahead:
        coming = [ahead.submit(lambda: sent(sample(), device))] if count else []
        for left in range(count - 1, -1, -1):
            batch = coming.pop().result()
            if left:
                coming.append(ahead.submit(lambda: sent(sample(), device)))
            yield batch


def sent(batch: SequenceBatch, device: torch.device) -> SequenceBatch:
    """The batch as tensors that are on their way; what uses them waits for them by itself."""
    cuda = device.type == "cuda"
    with torch.cuda.device(device) if cuda else nullcontext():

        def send(column: Any) -> torch.Tensor:
            here = torch.as_tensor(column)
            here = here.pin_memory() if cuda else here
            return here.to(device, non_blocking=True)

        parts: dict[str, Any] = {
            part.name: mapped(send, getattr(batch, part.name)) for part in fields(batch)
        }
    return replace(batch, **parts)
