"""Paths between images: from one to another through a flow's latents, or by fading pixels.

A flow maps images to Gaussian noise and back, so the way from one image to another can be taken in
the noise. Scores say whether the pictures on the way are pictures: how many objects there are, and
whether an object moves evenly from its one place to the other (a cross-fade shows it twice, and
then jumps). Paths of latents and arrays of places go in, numbers come out; who drew the pictures is
not known here.

Source: spherical interpolation is White's (arXiv:1609.04468); the scores are our own.
"""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl.studies.fidelity.objects import HAZE, Bools, Detector, Floats, crop

LEAST = 0.25
"""Share of an object's usual mass below which a blob is a speck, and no object."""
_NEIGHBOURS = [
    (row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)
]


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The point that lies `share` of the way along the arc from `start` to `end`.

    sin((1 - s) w) / sin(w) start + sin(s w) / sin(w) end, w the angle between the two; a straight
    line where they point the same way.

    Args:
        start: (N, D).
        end: (N, D).
        share: s in [0, 1].
    """
    unit = torch.nn.functional.normalize
    cosine = (unit(start, dim=1) * unit(end, dim=1)).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, torch.ones_like(sine), sine)
    first = torch.where(
        straight, torch.full_like(sine, 1 - share), ((1 - share) * angle).sin() / safe
    )
    second = torch.where(straight, torch.full_like(sine, share), (share * angle).sin() / safe)
    return first * start + second * end


def latent_paths(start: list[Tensor], end: list[Tensor], steps: int) -> list[list[Tensor]]:
    """Latents on the way: all scales of an image are one vector, turned along one arc.

    Args:
        start: latents by scale, each (N, ...), of where the paths begin.
        end: the same of where they end.
        steps: K points, both ends included, at least 2.

    Returns:
        K lists of latents by scale.
    """
    flat = [torch.cat([part.flatten(1) for part in latents], 1) for latents in (start, end)]
    sizes = [part[0].numel() for part in start]

    def parted(vector: Tensor) -> list[Tensor]:
        parts = vector.split(sizes, 1)
        return [part.view_as(like) for part, like in zip(parts, start, strict=True)]

    return [parted(slerp(flat[0], flat[1], step / (steps - 1))) for step in range(steps)]


def cross_fade(start: NDArray[np.uint8], end: NDArray[np.uint8], steps: int) -> NDArray[np.uint8]:
    """Pixels mixed: (N, H, W, C) intensities to (N, K, H, W, C), the first and last the ends."""
    shares = np.linspace(0, 1, steps)[None, :, None, None, None]
    mixed = (1 - shares) * start[:, None] + shares * end[:, None]
    return np.rint(mixed).astype(np.uint8)


# -- how many objects ----------------------------------------------------------------------------


def count_objects(detector: Detector, contrasts: Floats) -> NDArray[np.int64]:
    """How many of an object there are in pictures, wherever they are in its region.

    One is a blob of pixels that touch (also at corners), each above `HAZE` of the object's usual
    peak, whose contrast sums to at least `LEAST` of its usual mass.

    Args:
        detector: of the object.
        contrasts: (N, H, W, 2).

    Returns:
        (N,) counts.
    """
    inside = crop(contrasts, detector.target.region) @ np.asarray(detector.sides)
    strong = inside > HAZE * detector.peak
    least = LEAST * (detector.mass - detector.floor)
    return np.asarray(
        [
            sum(total >= least for total in blobs(flags, values))
            for flags, values in zip(strong, inside, strict=True)
        ],
        np.int64,
    )


def blobs(flags: Bools, values: Floats) -> list[float]:
    """Sums of `values` (H, W) in each group of `flags` (H, W) that touch, also at corners."""
    left = {(int(row), int(column)) for row, column in np.argwhere(flags)}
    totals = []
    while left:
        edge, total = deque([left.pop()]), 0.0
        while edge:
            row, column = edge.popleft()
            total += float(values[row, column])
            near = {(row + down, column + right) for down, right in _NEIGHBOURS} & left
            left -= near
            edge.extend(near)
        totals.append(total)
    return totals


# -- how an object moves -------------------------------------------------------------------------


def path_scores(places: Floats) -> dict[str, float]:
    """Whether an object goes evenly and straight from its first place to its last.

    Args:
        places: (N, K, 2) rows and columns in pixels along N paths of K points; NaN where there is
            none, and a path with one is left out of all but `seen`.

    Returns:
        Means over the paths that are whole and whose ends differ; NaN if there is none.
        `straightness`: distance of the ends over the length of the way, in (0, 1]; 1 is a straight
            line.
        `monotonicity`: share of the steps that go forward (by more than a hundredth of the whole)
            as seen from the first place to the last. Even motion has 1, a jump 1 / (K - 1).
        `largest_step`: the largest step over the mean step, at least 1; even motion has 1, a jump
            K - 1.
        `seen`: share of all points, on all paths, where there is one.
    """
    seen: Bools = np.asarray(np.isfinite(places).all(-1))
    whole = places[seen.all(1)]
    span = whole[:, -1] - whole[:, 0]
    distance = np.hypot(span[:, 0], span[:, 1])
    whole, span, distance = whole[distance > 0], span[distance > 0], distance[distance > 0]
    steps = np.diff(whole, axis=1)
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    forward = (steps * span[:, None]).sum(-1) / np.square(distance)[:, None]
    return {
        "straightness": _mean(distance / lengths.sum(1)),
        "monotonicity": _mean((forward > 0.01).mean(1)) if len(whole) else float("nan"),
        "largest_step": _mean(lengths.max(1, initial=0) / lengths.mean(1))
        if len(whole)
        else float("nan"),
        "seen": _mean(seen),
    }


def _mean(values: NDArray[np.floating] | Bools) -> float:
    return float(values.mean()) if values.size else float("nan")
