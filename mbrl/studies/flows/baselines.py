"""What images cost without a model: bits per dimension of four codes that anyone can write.

Each is a proper code (its probabilities sum to one, or its bytes can be decoded), fitted on
training images, measured on the held-out images that the flows are measured on. A flow that does
not beat them has learnt nothing.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mbrl.studies.flows.images import ImageSet

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]

PAIRS = 512
"""Training frames, each with the one before, that the weight of `copy_last` is fitted on."""
AROUND = 57
"""Bytes of a PNG around its compressed data: signature 8, header 25, end 12, and 12 at the data."""
_AT_ONCE = 1024
_HALVINGS = 40


def baselines(images: ImageSet, count: int) -> dict[str, float | None]:
    """Bits per dimension of every baseline on `ImageSet.measured(count)`; None where it has none.

    `png` are whole files, `png_data` their compressed data alone.
    """
    rows = images.measured(count)
    frames = images.held_out[rows]
    table = marginal(images.train, images.levels)
    png = {name: 8 * size / math.prod(images.shape) for name, size in png_bytes(frames).items()}
    return {
        "uniform": math.log2(images.levels),  # every level as likely as any other
        "marginal": marginal_bits(frames, table),
        "copy_last": _copy_last(images, rows, table),
        **{name: png.get(name) for name in ("png", "png_data")},
    }


def marginal(train: Images, levels: int) -> Floats:
    """How often places of (N, H, W, C) have each of V levels, plus one (Laplace): (H, W, C, V)."""
    shape, places = train.shape[1:], int(np.prod(train.shape[1:]))
    counts = np.ones(places * levels, np.float64)
    offsets = np.arange(places) * levels
    for start in range(0, len(train), _AT_ONCE):
        some = train[start : start + _AT_ONCE].reshape(-1, places)
        counts += np.bincount((some + offsets).ravel(), minlength=places * levels)
    counts = counts.reshape(*shape, levels)
    return np.asarray(counts / counts.sum(-1, keepdims=True))


def probabilities(frames: Images, table: Floats) -> Floats:
    """The probability by `marginal` of each level of frames (N, H, W, C): the same shape."""
    return np.take_along_axis(table[None], frames[..., None].astype(np.int64), -1)[..., 0]


def marginal_bits(frames: Images, table: Floats) -> float:
    """Bits per dimension of frames (N, H, W, C) by each place's own frequencies."""
    return float(-np.log2(probabilities(frames, table)).mean())


def copy_last_bits(
    frames: Images, last: Images, follows: NDArray[np.bool_], table: Floats, weight: float
) -> float:
    """Bits per dimension of (N, H, W, C) if levels are the last frame's with probability `weight`.

    p(x) = weight [x = last] + (1 - weight) marginal(x); the marginal alone for frames that follow
    no other, by `follows` (N,).
    """
    chance = probabilities(frames, table)
    share = np.where(follows, weight, 0.0)[:, None, None, None]
    mixed = share * (frames == last) + (1 - share) * chance
    return float(-np.log2(mixed).mean())


def copy_weight(frames: Images, last: Images, table: Floats) -> float:
    """The weight of `copy_last_bits` with the greatest likelihood, which is concave in it."""
    same, chance = (frames == last).ravel(), probabilities(frames, table).ravel()
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        weight = (low + high) / 2
        slope = np.mean((same - chance) / (weight * same + (1 - weight) * chance))
        low, high = (weight, high) if slope > 0 else (low, weight)
    return (low + high) / 2


def png_bytes(frames: Images) -> dict[str, float]:
    """Mean bytes of frames (N, H, W, C) of levels as PNG files: eight bits a number, smallest size.

    `png` is the whole file, `png_data` that without `AROUND`; there are none unless C is 1 or 3.
    """
    if frames.shape[3] not in (1, 3):
        return {}
    sizes = []
    for frame in frames:
        file = io.BytesIO()
        picture = Image.fromarray(frame.squeeze(-1) if frame.shape[2] == 1 else frame)
        picture.save(file, "PNG", optimize=True)
        sizes.append(len(file.getvalue()))
    return {"png": float(np.mean(sizes)), "png_data": float(np.mean(sizes)) - AROUND}


def _copy_last(images: ImageSet, rows: NDArray[np.int64], table: Floats) -> float | None:
    if images.train_first is None or images.held_out_first is None:
        return None
    following = np.flatnonzero(~images.train_first)
    if len(following) == 0:
        return None
    some = following[np.linspace(0, len(following) - 1, min(PAIRS, len(following))).astype(int)]
    weight = copy_weight(images.train[some], images.train[some - 1], table)
    last = images.held_out[np.maximum(rows - 1, 0)]
    follows = ~images.held_out_first[rows]
    return copy_last_bits(images.held_out[rows], last, follows, table, weight)
