"""Running statistics of what a model is trained on, the same on every learner.

The rate is cumulative first, then moving: the first batches count fully, later ones follow slowly.
"""

import torch
from torch import Tensor


def mean_of_ranks(mean: Tensor) -> Tensor:
    """A batch's statistic, averaged over all ranks if several learners work together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        mean = mean.clone() if mean.is_floating_point() else mean.float()
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean


def next_rate(batches: Tensor, slowest: float) -> Tensor:
    """Weight of the newest batch, given how many there were, itself included."""
    return (1 / batches).clamp_min(slowest)
