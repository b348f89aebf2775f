"""What a sequence has shown so far, for an encoder that looks at what is new in a frame.

KL(q(z | x) || p(z | h)) charges a code for what the past does not tell, and nothing for repeating
what it does. So nothing ever drives a static background out of a code that sees whole frames, and
where backgrounds differ between episodes, it fills the code: they are what differs most between
frames. An encoder that sees a frame minus the mean of those before it has to leave the background
to the recurrent state, which was told of it once. (Predictive coding sends the residual as well:
Rao & Ballard, Nature Neuroscience 2:79, 1999.)

The mean is that of all frames of the episode at first, then a moving one.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

LONGEST = 16
"""A mean of so many frames follows newer ones: each then moves it by one in so many."""


@dataclass(frozen=True)
class Past:
    """Of N sequences, the mean of the frames before the present one.

    Attributes:
        mean: (N, C, H, W) float32, intensities; what to expect of a frame while there were none.
        count: (N,) float32, how many frames are in it, at most `LONGEST`.
    """

    mean: Tensor
    count: Tensor

    @classmethod
    def nothing(cls, expected: Tensor, n: int) -> Self:
        """Before the first frame of n sequences; `expected` (C, H, W) stands for the mean."""
        return cls(expected.repeat(n, 1, 1, 1), expected.new_zeros(n))

    def restart(self, is_first: Tensor, expected: Tensor) -> "Past":
        """Forget those whose episode starts now: is_first (N,) bool."""
        mean = torch.where(is_first[:, None, None, None], expected, self.mean)
        return Past(mean, torch.where(is_first, 0, self.count))

    def after(self, frames: Tensor) -> "Past":
        """Take the present frames (N, C, H, W) in."""
        count = (self.count + 1).clamp_max(LONGEST)
        return Past(torch.lerp(self.mean, frames, 1 / count[:, None, None, None]), count)


@dataclass(frozen=True)
class Seen:
    """What an encoder is shown of sequences.

    Attributes:
        frames: (B, T, C, H, W) float32, intensities.
        before: of the same shape, what to subtract from each; None for the mean frame.
    """

    frames: Tensor
    before: Tensor | None = None

    def flatten(self) -> "Seen":
        """(B, T, ...) to (B * T, ...)."""
        before = None if self.before is None else self.before.flatten(0, 1)
        return Seen(self.frames.flatten(0, 1), before)

    def row(self, t: int) -> "Seen":
        """All sequences at time t: (B, ...)."""
        return Seen(self.frames[:, t], None if self.before is None else self.before[:, t])


def before_each(frames: Tensor, is_first: Tensor, expected: Tensor) -> Tensor:
    """The mean of the earlier frames of its episode, for every row of (B, T) sequences.

    Args:
        frames: (B, T, C, H, W) float32.
        is_first: (B, T) bool. A row at the start of its sequence has no earlier frame either.
        expected: (C, H, W), the mean where there is no earlier frame.

    Returns:
        (B, T, C, H, W) float32.
    """
    past, means = Past.nothing(expected, len(frames)), []
    for frame, first in zip(frames.unbind(1), is_first.unbind(1), strict=True):
        past = past.restart(first, expected)
        means.append(past.mean)
        past = past.after(frame)
    return torch.stack(means, 1)
