"""Measures of a trained flow: one in, a tree of numbers and the pictures they were made on out.

    bits_per_dim, train_bits_per_dim      of held-out images, and of as many training images
    round_trip                            share of numbers that come back through the latents
    samples/<T>/...                       of samples at temperature T: `bits_per_dim` by the flow
                                          itself, `validity`, and how many objects they hold
    interpolation/flow, interpolation/fade  between held-out images through latents, spherically,
                                          and the same ends cross-faded, which that has to beat

Under both ways: `bits_rise`, bits per dimension of the pictures in between above those of the ends;
`right`, the share of them with exactly one of every object; and `path_scores` of the leading object
(`studies.flows.sight`). `pairs_apart` says how many pairs had that object in two places, `APART` or
more from each other; if none had, there are no scores. A measure that images do not allow is left
out. Definitions: `docs/appendix/flows_method.md`.

Bits per dimension are -log2 p(x) / (H W C) of the integer levels: a bound from noise in each
level's bin. log2 V is the cost without any knowledge.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from mbrl.seeding import seed as derive
from mbrl.studies.fidelity.follow import rng_of
from mbrl.studies.flows.images import ImageSet, quantised
from mbrl.studies.flows.sight import Sight, path_scores, sight_of
from mbrl.world_model.decoders.flow import ImageFlow
from mbrl.world_model.decoders.flow.image_flow import TAIL

Images = NDArray[np.uint8]

AT_ONCE = 64
"""Images in memory at a time; changes nothing else."""
APART = 8.0
"""Pixels that the leading object must be apart in the two ends of an interpolation."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    images: int = 512  # held-out images, and as many training images
    draws: int = 2  # of the dequantisation noise, for each
    samples: int = 128  # at each temperature
    temperatures: tuple[float, ...] = (0.5, 0.7, 0.85, 1.0)
    paths: int = 64  # interpolations
    steps: int = 9  # points of each, both ends included
    shown: int = 8  # samples and paths that become pictures


QUICK = Sizes(images=16, draws=1, samples=8, paths=4, steps=5, shown=4)
"""Measures of seconds, to try the study out; too few images to quote."""


class Measured(NamedTuple):
    """What was found: a tree of numbers, and pictures by name, (rows, columns, H, W, C) pixels."""

    numbers: dict[str, Any]
    pictures: dict[str, Images]


def measure(
    flow: ImageFlow, images: ImageSet, game: str | None, seed: int, sizes: Sizes
) -> Measured | None:
    """All measures of a trained flow, save those of its training; None if it diverged.

    `game` says whose images they are, if any game's.
    """
    rows = images.measured(sizes.images)
    some = rng_of(seed, "flows/train").permutation(len(images.train))[: len(rows)]
    bits = bits_per_dim(flow, images.held_out[rows], seed=seed, draws=sizes.draws)
    if not bits <= 2 * math.log2(images.levels):  # NaN, too
        return None
    learnt = bits_per_dim(flow, images.train[some], seed=seed, draws=1)
    found = Measured({"bits_per_dim": bits, "train_bits_per_dim": learnt}, {})
    sight = sight_of(images, game)
    for part in (_samples, _interpolations):
        numbers, pictures = part(flow, images, sight, seed, sizes)
        found.numbers.update(numbers)
        found.pictures.update(pictures)
    return found


def to_tensor(levels: Images) -> Tensor:
    """Levels (N, H, W, C) as a tensor (N, C, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 3, 1, 2)))


def to_array(levels: Tensor) -> Images:
    """Levels (N, C, H, W) as an array (N, H, W, C)."""
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy().astype(np.uint8))


@torch.no_grad()
def bits_of(flow: ImageFlow, images: Images, *, seed: int, draws: int) -> NDArray[np.float64]:
    """Bits per dimension of images (N, H, W, C) of levels, the mean of draws of noise: (N,)."""
    generator = torch.Generator().manual_seed(derive(seed, "flows/bits"))
    per_bit = images[0].size * math.log(2)
    found = []
    for start in range(0, len(images), AT_ONCE):
        batch = to_tensor(images[start : start + AT_ONCE])
        nats = [-flow.log_prob(batch, generator=generator).double() for _ in range(draws)]
        found.append((torch.stack(nats).mean(0) / per_bit).numpy())
    return np.concatenate(found)


def bits_per_dim(flow: ImageFlow, images: Images, *, seed: int, draws: int) -> float:
    """The mean of `bits_of`."""
    return float(bits_of(flow, images, seed=seed, draws=draws).mean())


def _samples(
    flow: ImageFlow, images: ImageSet, sight: Sight | None, seed: int, sizes: Sizes
) -> Measured:
    numbers: dict[str, Any] = {}
    shown = []
    for temperature in sizes.temperatures:
        generator = torch.Generator().manual_seed(derive(seed, "flows/samples"))
        counts = [min(AT_ONCE, left) for left in range(sizes.samples, 0, -AT_ONCE)]
        noise = [flow.noise(count, temperature, generator) for count in counts]
        restored = torch.cat([flow.restore(one) for one in noise])
        drawn = to_array(flow.surface.to_levels(restored))
        numbers[f"{temperature:g}"] = {
            "bits_per_dim": bits_per_dim(flow, drawn, seed=seed, draws=1),
            **validity(restored, flow.settings.marginal),
            **({} if sight is None else _counts(sight, drawn)),
        }
        shown.append(images.pixels(drawn[: sizes.shown]))
    real = images.pixels(images.held_out[images.measured(sizes.shown)])
    if sight is not None:
        numbers["real"] = _counts(sight, images.held_out[images.measured(sizes.samples)])
    return Measured({"samples": numbers}, {"real": real[None], "samples": np.stack(shown)})


def validity(restored: Tensor, marginal: bool) -> dict[str, float]:
    """Shares of images, and of numbers, that are not finite or that no image has.

    `restored` are numbers (N, C, H, W) out of the flow. Those of images end at the normal's
    quantile of `TAIL`, or on the even grid at 0.5, either way (`ImageFlow.surface`).
    """
    most = -float(torch.special.ndtri(torch.tensor(TAIL))) + 1e-3 if marginal else 0.5
    wrong = ~(restored.double().abs() <= most)  # NaN, too
    return {
        "invalid": float(wrong.flatten(1).any(1).double().mean()),
        "outside": float(wrong.double().mean()),
    }


def _counts(sight: Sight, levels: Images) -> dict[str, float]:
    """Shares of images with exactly one of an object, and of all of them at once."""
    counts = sight.counts(levels)
    one = {name: count == 1 for name, count in counts.items()}
    return {
        **{f"{name}_right": float(flags.mean()) for name, flags in one.items()},
        "right": float(np.stack(list(one.values())).all(0).mean()),
    }


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The point that lies `share` of the way along the arc from `start` to `end`, (N, D).

    sin((1 - s) w) / sin(w) start + sin(s w) / sin(w) end, w the angle between the two; a straight
    line where they point the same way (White, arXiv:1609.04468).
    """
    cosine = (normalize(start, dim=1) * normalize(end, dim=1)).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, torch.ones_like(sine), sine)
    first, second = (
        torch.where(straight, torch.full_like(sine, part), (part * angle).sin() / safe)
        for part in (1 - share, share)
    )
    return first * start + second * end


def latent_paths(start: list[Tensor], end: list[Tensor], steps: int) -> list[list[Tensor]]:
    """Latents on the way: all scales of an image are one vector, turned along one arc.

    From latents by scale, each (N, ...), to as many such lists as `steps`, both ends included.
    """
    flat = [torch.cat([part.flatten(1) for part in latents], 1) for latents in (start, end)]
    sizes = [part[0].numel() for part in start]
    points = [slerp(flat[0], flat[1], step / (steps - 1)).split(sizes, 1) for step in range(steps)]
    return [
        [part.view_as(like) for part, like in zip(point, start, strict=True)] for point in points
    ]


def cross_fade(start: NDArray[np.uint8], end: NDArray[np.uint8], steps: int) -> NDArray[np.uint8]:
    """Pixels mixed: (N, H, W, C) intensities to (N, K, H, W, C), the first and last the ends."""
    shares = np.linspace(0, 1, steps)[None, :, None, None, None]
    mixed = (1 - shares) * start[:, None] + shares * end[:, None]
    return np.rint(mixed).astype(np.uint8)


def _interpolations(
    flow: ImageFlow, images: ImageSet, sight: Sight | None, seed: int, sizes: Sizes
) -> Measured:
    pairs, apart = _pairs(images, sight, seed, sizes.paths)
    ends = [images.held_out[rows] for rows in pairs.T]
    generator = torch.Generator().manual_seed(derive(seed, "flows/ends"))
    latents = [flow.encode(to_tensor(levels), generator=generator) for levels in ends]
    points = latent_paths(latents[0], latents[1], sizes.steps)
    paths = [to_array(flow.decode(point)) for point in points]
    back = np.mean([np.mean(paths[0] == ends[0]), np.mean(paths[-1] == ends[1])])
    faded = cross_fade(images.pixels(ends[0]), images.pixels(ends[1]), sizes.steps)
    through = {"flow": np.stack(paths, 1), "fade": quantised(faded, images.bits)}
    numbers: dict[str, Any] = {}
    if apart != 0:
        numbers = {name: _path(flow, sight, path, seed) for name, path in through.items()}
    if apart is not None:
        numbers["pairs_apart"] = float(apart)
    pictures = {
        f"interpolation_{name}": images.pixels(path[: sizes.shown])
        for name, path in through.items()
    }
    return Measured({"round_trip": float(back), "interpolation": numbers}, pictures)


def _pairs(
    images: ImageSet, sight: Sight | None, seed: int, count: int
) -> tuple[NDArray[np.int64], int | None]:
    """Rows (n, 2) of held-out images to go between, and how many have the lead in two places.

    If none has, the rows are any, to look at. The number is None without an object.
    """
    rng = rng_of(seed, "flows/pairs")
    candidates = images.unseen[rng.integers(len(images.unseen), size=(16 * count, 2))]
    if sight is None:
        return candidates[:count], None
    ends = [images.held_out[rows] for rows in candidates.T]
    there = [sight.visible(sight.lead, rows) for rows in candidates.T]
    apart = np.hypot(*(sight.places(sight.lead, ends[0]) - sight.places(sight.lead, ends[1])).T)
    good = candidates[there[0] & there[1] & (apart >= APART)][:count]
    return (good if len(good) else candidates[:count]), len(good)


def _path(flow: ImageFlow, sight: Sight | None, paths: Images, seed: int) -> dict[str, float]:
    """Scores of paths (N, K, H, W, C) of levels."""
    n, steps = paths.shape[:2]
    bits = bits_of(flow, paths.reshape(n * steps, *paths.shape[2:]), seed=seed, draws=1)
    bits = bits.reshape(n, steps)
    ends = (bits[:, :1] + bits[:, -1:]) / 2
    scores = {"bits_rise": float((bits[:, 1:-1] - ends).mean())}
    if sight is None:
        return scores
    between = paths[:, 1:-1].reshape(-1, *paths.shape[2:])
    places = sight.places(sight.lead, paths.reshape(n * steps, *paths.shape[2:]))
    return {**scores, **_counts(sight, between), **path_scores(places.reshape(n, steps, 2))}
