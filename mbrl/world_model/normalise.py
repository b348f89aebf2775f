"""Running statistics of what a model is trained on, and what is normalised with them.

The rate is cumulative first, then moving: the first batches count fully, later ones follow slowly.
All learners get the same statistics.
"""

import torch
from torch import Tensor, nn


def mean_of_ranks(mean: Tensor) -> Tensor:
    """A batch's statistic, averaged over all ranks if several learners work together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        mean = mean.clone() if mean.is_floating_point() else mean.float()
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean


def max_of_ranks(largest: Tensor) -> Tensor:
    """A batch's largest value, over all ranks if several learners work together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        largest = largest.clone()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest


def follow(running: Tensor, newest: Tensor, batches: Tensor, slowest: float) -> None:
    """Move a running statistic in place towards that of the newest batch, of this rank alone.

    The newest weighs 1 / `batches`, of which it is one, and at least `slowest`.
    """
    running += (1 / batches).clamp_min(slowest) * (mean_of_ranks(newest) - running)


class MeanFrame(nn.Module):
    """The running per-pixel mean of the frames trained on.

    With a floor, frames are also divided by the running deviation of each pixel, at least the
    floor: a ball that is seldom anywhere then weighs as much as a score that always shows. Means
    that are given to `update` and `forward` are subtracted instead, and the deviation is of what is
    left.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, shape: tuple[int, ...], floor: float | None = None) -> None:
        """Start at zero frames seen; `shape` is (C, H, W), `floor` in units of intensity."""
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(shape))
        if floor is not None:
            self.register_buffer("square", torch.zeros(shape))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, frames: Tensor, before: Tensor | None = None) -> None:
        """Take in a batch (..., C, H, W) of frames, and what is subtracted from them if given."""
        frames = frames.flatten(0, -4)  # (N, C, H, W)
        self.batches += 1
        follow(self.mean, frames.mean(0), self.batches, 0.01)
        if self.floor is not None:
            left = frames if before is None else frames - before.flatten(0, -4)
            follow(self.square, left.square().mean(0), self.batches, 0.01)

    def forward(self, frames: Tensor, before: Tensor | None = None) -> Tensor:
        """Subtract the mean frame, or `before`, and with a floor divide by the deviation."""
        left = frames - (self.mean if before is None else before)
        if self.floor is None:
            return left
        variance = self.square - self.mean.square() if before is None else self.square
        return left / variance.clamp_min(self.floor**2).sqrt()


class Standardised(nn.Module):
    """Batch normalisation of the posterior's raw parameters: mean 0 and a set deviation at first.

    A fresh encoder's outputs differ by a few hundredths between frames, so a sampled code says next
    to nothing, the decoder learns to do without it, and no gradient ever comes back. Standardising
    them forbids that (BN-VAE, Zhu et al., arXiv:2004.12585). In training the statistics are the
    batch's, and the gradient goes through them: with running ones instead, the code of Pong stayed
    empty. A batch should therefore hold many short sequences rather than few long ones. Afterwards
    the running statistics are used: cumulative first, then moving.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int, deviation: float) -> None:
        """Build for (N, size); `deviation` is what each parameter's spread starts at."""
        super().__init__()
        self.scale = nn.Parameter(torch.full((size,), deviation))
        self.shift = nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, raw: Tensor) -> Tensor:
        """Standardise (N, size) to float32 (N, size)."""
        raw = raw.float()
        mean, variance = self.mean, self.variance
        if self.training and len(raw) > 1:
            variance, mean = torch.var_mean(raw, 0, correction=0)
            self.batches += 1
            follow(self.mean, mean.detach(), self.batches, 0.05)
            follow(self.variance, variance.detach(), self.batches, 0.05)
        return (raw - mean) * torch.rsqrt(variance + 1e-8) * self.scale + self.shift
