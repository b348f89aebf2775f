"""Bits per dimension: what an image costs under a flow, for each of its numbers.

-log2 p(x) / (H W C), of the integer levels: a bound from uniform noise in each level's bin (Theis
et al., arXiv:1511.01844), tighter with variational dequantisation. Lower is better; log2 V is what
knowing nothing costs.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl.seeding import seed as derive
from mbrl.world_model.decoders.flow import ImageFlow

Images = NDArray[np.uint8]

AT_ONCE = 64
"""Images in memory at a time; changes nothing else."""


def to_tensor(levels: Images) -> Tensor:
    """Levels (N, H, W, C) as a tensor (N, C, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 3, 1, 2)))


def to_array(levels: Tensor) -> Images:
    """Levels (N, C, H, W) as an array (N, H, W, C)."""
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy().astype(np.uint8))


@torch.no_grad()
def bits_of(flow: ImageFlow, images: Images, *, seed: int, draws: int) -> NDArray[np.float64]:
    """Bits per dimension of each image, the mean over draws of the dequantisation noise.

    Args:
        flow: the density.
        images: (N, H, W, C) levels.
        seed: of the noise.
        draws: how often each image is measured.

    Returns:
        (N,) float64; not finite where the flow is not.
    """
    generator = torch.Generator().manual_seed(derive(seed, "flows/bits"))
    per_bit = images[0].size * math.log(2)
    found = []
    for start in range(0, len(images), AT_ONCE):
        batch = to_tensor(images[start : start + AT_ONCE])
        nats = [-flow.log_prob(batch, generator=generator).double() for _ in range(draws)]
        found.append((torch.stack(nats).mean(0) / per_bit).numpy())
    return np.concatenate(found)


def diverged(bits: float, levels: int) -> bool:
    """Whether images cost so much that a flow has learnt nothing: twice log2 V or more, or NaN."""
    return not bits <= 2 * math.log2(levels)


def bits_per_dim(flow: ImageFlow, images: Images, *, seed: int, draws: int) -> float:
    """The mean of `bits_of`."""
    return float(bits_of(flow, images, seed=seed, draws=draws).mean())
