"""The code of the vectors layout: the observation itself, as a row of numbers.

A learnt code moves while the prior learns to foresee it. What was observed says exactly what is
there, never moves, and costs no training. So the code keeps the environment's own values: numbers
first, then categories counted from 0. NaN is what nothing is known of.

What networks see are *inputs*: numbers by their running mean and deviation, linear within a few
deviations and logarithmic beyond, so that nothing breaks where a feature was constant at first and
moves later, or is 1e30 once; and each category one-hot.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbrl.errors import ConfigError
from mbrl.streams import Stream, columns_of
from mbrl.world_model.normalise import mean_of_ranks

LINEAR = 4.0
"""Deviations from the mean within which a number stays linear."""

FARTHEST = 95.0
"""The largest normalised number: beyond it is what no float32 holds."""

SLOWEST = 0.002
"""The least weight of a batch in the running statistics, however many came before."""

MOST_CATEGORIES = 16384
"""Values of all categories together, at most: each is an input of its own."""

TINY = 1e-6
"""A deviation this small, as a share of the mean, is rounding."""

_LARGEST = float(torch.finfo(torch.float32).max)


def squash(x: Tensor) -> Tensor:
    """Values within +-LINEAR as they are; those beyond grow with their logarithm. Slopes meet."""
    size = x.abs()
    return x.sign() * (size.clamp_max(LINEAR) + torch.log1p((size - LINEAR).clamp_min(0)))


def unsquash(x: Tensor) -> Tensor:
    """The inverse of `squash`."""
    size = x.abs()
    return x.sign() * (size.clamp_max(LINEAR) + torch.expm1((size - LINEAR).clamp_min(0)))


class Moments(nn.Module):
    """Running mean and variance of M numbers, in float64: cumulative first, then moving."""

    mean: Tensor
    variance: Tensor
    rows: Tensor

    def __init__(self, size: int) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, numbers: Tensor) -> None:
        """Take in rows (N, M) of this rank; of no rows nothing changes."""
        off = numbers.double() - self.mean
        sums = torch.stack([torch.ones_like(off), off, off.square()]).sum(1)
        count, shift, square = mean_of_ranks(sums)  # (M,) each
        shift, square = shift / count.clamp_min(1), square / count.clamp_min(1)
        self.rows += count
        weight = (count / self.rows.clamp_min(1)).clamp_min(SLOWEST) * (count > 0)
        spread = (square - shift.square()).clamp_min(0)
        # Chan et al. (1979): exact as long as the weight is the rows' share
        self.variance += weight * (spread - self.variance + (1 - weight) * shift.square())
        self.mean += weight * shift

    @property
    def scale(self) -> Tensor:
        """The deviation (M,), or the size of a number that is constant so far; never zero."""
        size, deviation = self.mean.abs(), self.variance.sqrt()
        constant = torch.where(size > 0, size, 1.0)
        return torch.where(deviation > TINY * size, deviation, constant)


class StreamCode(nn.Module):
    """Observations to codes (..., Z), codes to inputs (..., I) of networks, and back.

    Attributes:
        numbers: M, how many of a code's entries are numbers.
        sizes: how many values each category has; there are Z - M.
        size: Z.
        inputs_size: I, M and all values of all categories.
        dtype: of codes: float32, or float64 where observations would lose digits.
        uniform: (Z - M,), nats of each category if all its values are as likely.
        shares: (Z,), the weight of each entry in the loss: a stream counts by the root of its
            entries, so that a wide one does not drown a narrow one.
    """

    low: Tensor
    high: Tensor
    whole: Tensor
    starts: Tensor
    offsets: Tensor
    uniform: Tensor
    shares: Tensor

    def __init__(self, streams: Sequence[Stream]) -> None:
        """Build for streams of kind vector and categories.

        Raises:
            ConfigError: one is of another kind, there are none, or too many categories.
        """
        super().__init__()
        self.columns = [stream.column for stream in streams]
        self.vectors = [stream for stream in streams if stream.kind == "vector"]
        self.categories = [stream for stream in streams if stream.kind == "categories"]
        self._streams = [*self.vectors, *self.categories]  # in the order of the code
        self.sizes = tuple(size for stream in self.categories for size in stream.sizes)
        self.numbers = sum(_count(stream) for stream in self.vectors)
        self.size = self.numbers + len(self.sizes)
        self.inputs_size = self.numbers + sum(self.sizes)
        self._check(streams)
        types = [np.dtype(stream.space.dtype) for stream in self.vectors]
        narrow = all(np.can_cast(one, np.float32) for one in types)
        self.dtype = torch.float32 if narrow else torch.float64
        bounds = [_bounds(stream) for stream in self.vectors]
        self._constant("low", [value for low, _, _ in bounds for value in low], torch.float64)
        self._constant("high", [value for _, high, _ in bounds for value in high], torch.float64)
        self._constant("whole", [value for _, _, whole in bounds for value in whole], torch.bool)
        starts = [start for stream in self.categories for start in stream.starts]
        self._constant("starts", starts, torch.int64)
        self._constant("offsets", np.cumsum([0, *self.sizes])[:-1].tolist(), torch.int64)
        self._constant("uniform", np.log(self.sizes).tolist(), torch.float32)
        shares = [_count(one) ** -0.5 for one in self._streams for _ in range(_count(one))]
        self._constant("shares", shares, torch.float32)
        self.moments = Moments(self.numbers)

    # -- observations -----------------------------------------------------------------------------

    def pack(self, obs: Any, lead: int) -> Tensor:
        """Observations with `lead` leading axes to codes (..., Z)."""
        columns = columns_of(obs)

        def rows(streams: list[Stream], dtype: torch.dtype) -> list[Tensor]:
            found = (columns[stream.column] for stream in streams)
            return [part.reshape(*part.shape[:lead], -1).to(dtype) for part in found]

        parts = [part.clamp(-_LARGEST, _LARGEST) for part in rows(self.vectors, self.dtype)]
        if self.sizes:
            category = torch.cat(rows(self.categories, torch.int64), -1) - self.starts
            parts.append(category.to(self.dtype))
        return torch.cat(parts, -1)

    def unpack(self, code: Tensor) -> Any:
        """The inverse of `pack`: (..., Z) to an array, or a dict by column; zero where unknown.

        Numbers of integers are whole and within the bounds of their space.
        """
        numbers = code[..., : self.numbers].nan_to_num().double()
        numbers = torch.where(self.whole, numbers.round(), numbers).clamp(self.low, self.high)
        category = self.categories_of(code) + self.starts
        found: dict[str, Tensor] = {}
        for streams, values in ((self.vectors, numbers), (self.categories, category)):
            parts = values.split([_count(stream) for stream in streams], -1) if streams else ()
            for stream, part in zip(streams, parts, strict=True):
                dtype = torch.from_numpy(np.zeros(0, stream.space.dtype)).dtype
                part = part.reshape(*code.shape[:-1], *stream.shape)
                found[stream.column] = part.to(dtype)
        return found["obs"] if self.columns == ["obs"] else {c: found[c] for c in self.columns}

    def categories_of(self, code: Tensor) -> Tensor:
        """The categories of codes (..., Z), counted from 0: (..., Z - M) int64."""
        return code[..., self.numbers :].nan_to_num().long()

    def by_stream(self, entries: Tensor) -> dict[str, Tensor]:
        """Values of a code's entries (..., Z), summed over each stream, by column: (...,) each."""
        parts = entries.split([_count(stream) for stream in self._streams], -1)
        pairs = zip(self._streams, parts, strict=True)
        return {stream.column: part.sum(-1) for stream, part in pairs}

    # -- inputs -----------------------------------------------------------------------------------

    @torch.no_grad()
    def learn(self, code: Tensor) -> None:
        """Take codes (..., Z) into the running statistics."""
        self.moments.update(code[..., : self.numbers].flatten(0, -2))

    def normalised(self, code: Tensor) -> Tensor:
        """The numbers of codes (..., Z) in running deviations, squashed: (..., M) float32."""
        numbers = code[..., : self.numbers].double()
        return squash((numbers - self.moments.mean) / self.moments.scale).float()

    def raw(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalised`, whole where the environment's numbers are."""
        away = unsquash(normalised.double().clamp(-FARTHEST, FARTHEST))
        numbers = away * self.moments.scale + self.moments.mean
        numbers = torch.where(self.whole, numbers.round(), numbers)
        return numbers.clamp(-_LARGEST, _LARGEST).to(self.dtype)

    def inputs(self, code: Tensor) -> Tensor:
        """Codes (..., Z) to inputs (..., I) float32: zeros where nothing is known."""
        inputs = self.normalised(code)
        if self.sizes:
            place = self.categories_of(code) + self.offsets
            one_hot = inputs.new_zeros(*code.shape[:-1], sum(self.sizes))
            inputs = torch.cat([inputs, one_hot.scatter_(-1, place, 1.0)], -1)
        return torch.where(known(code).unsqueeze(-1), inputs, 0.0)

    # -- parts of them ----------------------------------------------------------------------------

    def _constant(self, name: str, values: list[Any], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def _check(self, streams: Sequence[Stream]) -> None:
        others = [stream.column for stream in streams if stream.kind == "image"]
        if others:
            raise ConfigError(
                f"world_model.layout: vectors: expected numbers and categories, got an image in "
                f"{', '.join(others)}; name the columns to keep in env.observe"
            )
        if not self.size:
            raise ConfigError(
                "world_model: expected an observation, got a space with nothing in it"
            )
        if sum(self.sizes) > MOST_CATEGORIES:
            raise ConfigError(
                f"world_model.layout: vectors: expected at most {MOST_CATEGORIES} values of all "
                f"categories together, got {sum(self.sizes)}; leave some out with env.observe"
            )


def known(code: Tensor) -> Tensor:
    """Whether there is anything in codes (..., Z): (...,) bool."""
    return ~code[..., 0].isnan()


def _count(stream: Stream) -> int:
    """Entries of one observation."""
    return int(np.prod(stream.shape))


def _bounds(stream: Stream) -> tuple[list[float], list[float], list[bool]]:
    """The bounds of each entry of a Box of integers, else infinite; and whether it is whole."""
    dtype, count = np.dtype(stream.space.dtype), _count(stream)
    if dtype.kind not in "iub":
        return [-np.inf] * count, [np.inf] * count, [False] * count
    space: Any = stream.space
    return (
        [_within(int(value), 0) for value in space.low.flat],
        [_within(int(value), 0) for value in space.high.flat],
        [True] * count,
    )


def _within(bound: int, towards: float) -> float:
    """A float64 that is the bound, or the next one on the side of `towards`."""
    value = float(bound)
    return value if abs(int(value)) <= abs(bound) else float(np.nextafter(value, towards))
