"""Random streams of torch that go on where they were, also on another kind of device.

A CPU's generator and a graphics card's have states of different size and give different numbers
from the same seed, so a checkpoint of one cannot be put into the other. A run that moves from a
card to a CPU, or back, should go on all the same.
"""

import zlib

import torch
from torch import Tensor


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Put a generator where another one was.

    On the same kind of device it goes on exactly; on another kind it begins anew, with a seed that
    follows from the state alone.

    Args:
        generator: of any device.
        state: of `torch.Generator.get_state`, on whatever device.
    """
    state = state.cpu()
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().tobytes()))
