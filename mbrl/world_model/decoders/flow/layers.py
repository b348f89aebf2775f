"""The invertible layers of a flow, and the networks that its couplings ask.

In: activations (N, C, H, W). Out: activations of as many numbers, and log|det|, by how much volumes
grew. A coupling leaves one part of the activations unchanged and scales and shifts the rest by what
a network reads in that part.

Bijections run in the precision of the activations, whatever autocast says: log-determinants are
sums over thousands of numbers, and an inverse has to be exact. Networks may run in bfloat16, but
round trips are far less exact then: where what a network reads differs in the last bit, its answer
can differ in the third digit.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.normalise import mean_of_ranks

LOG_SCALE_LIMIT = 0.5
"""A coupling scales by at most e^0.5, either way, lest samples overflow away from data."""
LOG_GAIN_LIMIT = 2.0
"""Features change the gain of a hidden layer by at most e^2, either way."""


def full_precision(like: Tensor) -> torch.autocast:
    """A context in which autocast does not lower the precision on the device of `like`."""
    return torch.autocast(like.device.type, enabled=False)


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """Into (-limit, limit), the identity around zero."""
    return limit * torch.tanh(x / limit)


def border(like: Tensor) -> Tensor:
    """(1, 1, H + 2, W + 2): ones around zeros, the input channel that marks the padding."""
    return functional.pad(like.new_zeros(1, 1, *like.shape[-2:]), (1, 1, 1, 1), value=1.0)


def mix_channels(z: Tensor, weight: Tensor) -> Tensor:
    """Every pixel's channels times a matrix: (N, C, H, W) and (C, C) to (N, C, H, W).

    A matrix product and no 1 x 1 convolution: GPUs round inputs of those to ten bits (TF32) by
    default, and what is rounded so cannot be inverted.
    """
    with full_precision(z):
        return torch.matmul(weight, z.flatten(2)).unflatten(2, z.shape[2:])


# -- layers with weights ---------------------------------------------------------------------------


class ActNorm(nn.Module):
    """(x + bias) * exp(log_scale) by channel (Glow, arXiv:1807.03039, section 3.1)."""

    def __init__(self, channels: int) -> None:
        """Start as the identity; `initialise` makes it normalise."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Let activations like x (N, C, H, W) of all ranks together have mean 0 and deviation 1.

        A channel that is constant gets a finite scale.
        """
        wide = x.detach().double()
        moments = torch.stack([wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))])
        mean, square = mean_of_ranks(moments).double()
        deviation = (square - mean.square()).clamp_min(1e-8).sqrt()
        self.bias.copy_(-mean)
        self.log_scale.copy_(-deviation.log())


class InvertibleConv(nn.Module):
    """A learned mixing of the channels, W = P L (U + diag(s)), first a random rotation.

    One C x C parameter holds L below the diagonal, log |s| on it and U above it: the determinant is
    a sum, and W can be inverted by substitution (Glow, section 3.2).
    """

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        """Draw the rotation from torch's generator."""
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        factors = lower.tril(-1) + upper.triu(1) + torch.diag(diagonal.abs().log())
        self.factors = nn.Parameter(factors.to(torch.get_default_dtype()))
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign().to(torch.get_default_dtype()))
        self._cached: tuple[int, Tensor] | None = None

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The identity, L and U + diag(s)."""
        one = torch.eye(len(self.factors), dtype=self.factors.dtype, device=self.factors.device)
        diagonal = self.sign * self.factors.diagonal().exp()
        return one, self.factors.tril(-1) + one, self.factors.triu(1) + torch.diag(diagonal)

    def weight(self) -> Tensor:
        """W, (C, C)."""
        with full_precision(self.factors):
            _, lower, upper = self._factors()
            return (lower @ upper)[self.order]

    def log_det(self) -> Tensor:
        """The logarithm of |det W|, a scalar."""
        return self.factors.diagonal().sum()

    @torch.no_grad()
    def inverse(self) -> Tensor:
        """The inverse of W, (C, C); cached while the module is in eval mode."""
        weights = self.factors
        if not self.training and self._cached is not None:
            version, inverse = self._cached
            same = (inverse.dtype, inverse.device) == (weights.dtype, weights.device)
            if version == weights._version and same:
                return inverse
        with full_precision(self.factors):
            one, lower, upper = self._factors()
            half = torch.linalg.solve_triangular(lower, one, upper=False, unitriangular=True)
            inverse = torch.linalg.solve_triangular(upper, half, upper=True)[:, self.order]
        self._cached = None if self.training else (weights._version, inverse)
        return inverse


class ZeroConv(nn.Module):
    """A convolution that starts as zero, with a learned gain: the last layer of Glow's networks.

    With a 3 x 3 kernel, one more input channel marks the padding, as in Glow's published code.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        """Build for (N, inputs, H, W) to (N, outputs, H, W); `kernel` is 1 or 3."""
        super().__init__()
        self.inputs, self.padding = inputs, kernel // 2
        marked = inputs + (1 if kernel > 1 else 0)
        self.weight = nn.Parameter(torch.zeros(outputs, marked, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_gain = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply; the result has the precision of the weights."""
        gain = (3 * self.log_gain).exp()
        weight = self.weight * gain[:, None, None, None]
        y = functional.conv2d(x, weight[:, : self.inputs], self.bias * gain, padding=self.padding)
        y = y.to(self.weight.dtype)
        if self.padding:
            with full_precision(y):
                y = y + functional.conv2d(border(y), weight[:, self.inputs :])
        return y


# -- couplings -------------------------------------------------------------------------------------


class Coupling(nn.Module, ABC):
    """Leaves one part of z (N, C, H, W) as it is, and scales and shifts the other.

    A network reads `inputs` channels, which are the same before and after, and writes `outputs`.
    """

    def __init__(self, inputs: int, affine: bool, swapped: bool) -> None:
        """Shift alone if not `affine`; exchange the two parts if `swapped`."""
        super().__init__()
        self.affine, self.swapped = affine, swapped
        self.inputs, self.outputs = inputs, 2 * inputs if affine else inputs

    @abstractmethod
    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What stays, and what is scaled and shifted."""

    @abstractmethod
    def _join(self, unchanged: Tensor, other: Tensor) -> Tensor:
        """The inverse of `_split`."""

    def unchanged(self, z: Tensor) -> Tensor:
        """What the network reads."""
        return self._split(z)[0]

    def spread(self, unchanged: Tensor) -> Tensor:
        """The transpose of `unchanged`: a gradient of that part, as a gradient of all of z."""
        return self._join(unchanged, torch.zeros_like(unchanged))

    def _scale_and_shift(self, raw: Tensor) -> tuple[Tensor | None, Tensor]:
        """Log-scale (None if additive) and shift out of a network's output."""
        if not self.affine:
            return None, raw
        shift, log_scale = raw.chunk(2, 1)
        return soft_clamp(log_scale, LOG_SCALE_LIMIT), shift

    def transform(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Transform z (N, C, H, W) by the network's output; returns z and log|det| (N,)."""
        unchanged, other = self._split(z)
        log_scale, shift = self._scale_and_shift(raw)
        if log_scale is None:
            return self._join(unchanged, other + shift), z.new_zeros(len(z))
        other = torch.addcmul(shift, other, log_scale.exp())
        return self._join(unchanged, other), log_scale.flatten(1).sum(1)

    def invert(self, z: Tensor, raw: Tensor) -> Tensor:
        """The inverse of `transform`."""
        unchanged, other = self._split(z)
        log_scale, shift = self._scale_and_shift(raw)
        other = other - shift
        return self._join(unchanged, other if log_scale is None else other * (-log_scale).exp())


class Halves(Coupling):
    """Half of the channels stay, the other half is transformed (RealNVP, arXiv:1605.08803)."""

    def __init__(self, channels: int, affine: bool, swapped: bool = False) -> None:
        """Leave the first half unchanged, or the second if `swapped`."""
        super().__init__(channels // 2, affine, swapped)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, second = z.chunk(2, 1)
        return (second, first) if self.swapped else (first, second)

    def _join(self, unchanged: Tensor, other: Tensor) -> Tensor:
        return torch.cat([other, unchanged] if self.swapped else [unchanged, other], 1)


class Checkerboard(Coupling):
    """Every other pixel stays, as on a checkerboard: it is scaled and shifted by nothing."""

    mask: Tensor

    def __init__(
        self, channels: int, height: int, width: int, affine: bool, swapped: bool = False
    ) -> None:
        """Leave pixels whose row + column is even unchanged, or the others if `swapped`."""
        super().__init__(channels, affine, swapped)
        odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2
        mask = (odd if swapped else 1 - odd).float().view(1, 1, height, width)
        self.register_buffer("mask", mask, persistent=False)

    def spread(self, unchanged: Tensor) -> Tensor:
        """The transpose of `unchanged`."""
        return unchanged * self.mask

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * self.mask, z

    def _join(self, unchanged: Tensor, other: Tensor) -> Tensor:
        return other

    def _scale_and_shift(self, raw: Tensor) -> tuple[Tensor | None, Tensor]:
        log_scale, shift = super()._scale_and_shift(raw)
        free = 1 - self.mask
        return None if log_scale is None else log_scale * free, free * shift


# -- the network of a coupling ---------------------------------------------------------------------


class Condition(NamedTuple):
    """What a flow is conditioned on, at one scale; None where it is unconditional."""

    map: Tensor | None  # (N, M, H, W)
    vector: Tensor | None  # (N, F)


class Prepared(NamedTuple):
    """What an estimator makes of a condition, once for all steps that share it."""

    context: Tensor  # (1 or N, width, H, W), what its first layer adds whatever z is
    film: Tensor | None  # (N, 4, width), log-gain and shift of either hidden layer


class Estimator(nn.Module):
    """The network of a coupling: 3 x 3, 1 x 1, and a last layer that starts at zero.

    The first layer reads the coupling's unchanged part, a channel that marks the padding, and the
    condition's map; ActNorm and FiLM (arXiv:1709.07871) follow both hidden convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int | None, width: int, maps: int = 0, vector: int = 0
    ) -> None:
        """Build for (N, inputs, H, W), and a condition of `maps` channels and a vector of a size.

        With `outputs` None, every step brings its own last layer.
        """
        super().__init__()
        self.inputs, self.width = inputs, width
        self.enter = nn.Parameter(0.05 * torch.randn(width, inputs + 1 + maps, 3, 3))
        self.middle = nn.Parameter(0.05 * torch.randn(width, width, 1, 1))
        self.norms = nn.ModuleList([ActNorm(width), ActNorm(width)])
        self.leave = None if outputs is None else ZeroConv(width, outputs, 3)
        self.film = nn.Linear(vector, 4 * width) if vector else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def prepare(self, condition: Condition, like: Tensor) -> Prepared:
        """What does not depend on z, for activations of the size of `like` (N, C, H, W)."""
        with full_precision(like):
            marks = self.enter[:, self.inputs : self.inputs + 1]
            context = functional.conv2d(border(like), marks)
        if condition.map is not None:
            read = functional.conv2d(condition.map, self.enter[:, self.inputs + 1 :], padding=1)
            context = context.to(read.dtype) + read
        if self.film is None:
            return Prepared(context, None)
        film = self.film(condition.vector).to(self.enter.dtype)
        return Prepared(context, film.unflatten(1, (4, self.width)))

    def _gain_and_shift(
        self, layer: int, film: Tensor | None, step: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """ActNorm and FiLM after hidden convolution 0 or 1 as one; each (1 or N, width)."""
        norm = cast(ActNorm, self.norms[layer])
        log_gain, shift = norm.log_scale[None], None
        if film is not None:
            log_gain = log_gain + soft_clamp(film[:, 2 * layer], LOG_GAIN_LIMIT)
            shift = film[:, 2 * layer + 1]
        if step is not None:
            log_gain = log_gain + step[2 * layer]
            shift = step[2 * layer + 1][None] if shift is None else shift + step[2 * layer + 1]
        gain = log_gain.exp()
        bias = norm.bias * gain
        return gain, bias if shift is None else bias + shift

    def forward(
        self, unchanged: Tensor, prepared: Prepared, step: Tensor | None, initialise: bool = False
    ) -> Tensor:
        """The second hidden layer, (N, inputs, H, W) to (N, width, H, W).

        `step` (4, width) are a step's own log-gains and shifts; with `initialise`, both norms are
        set from these activations first.
        """
        x = unchanged
        for layer, weight in enumerate((self.enter[:, : self.inputs], self.middle)):
            context = prepared.context if layer == 0 else None
            if initialise:
                raw = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
                norm = cast(ActNorm, self.norms[layer])
                norm.initialise(raw if context is None else raw + context)
            gain, shift = self._gain_and_shift(layer, prepared.film, step)
            x = _hidden(x, weight, context, gain, shift)
        return x


def _hidden(
    x: Tensor, weight: Tensor, context: Tensor | None, gain: Tensor, shift: Tensor
) -> Tensor:
    """relu(gain * (conv(x) + context) + shift).

    A gain that is the same for all samples goes into the weights, which saves storing activations.
    """
    padding = weight.shape[-1] // 2
    if len(gain) > 1:
        y = functional.conv2d(x, weight, padding=padding)
        if context is not None:
            y = y + context.to(y.dtype)
        gain, shift = (part[..., None, None].to(y.dtype) for part in (gain, shift))
        return torch.addcmul(shift, y, gain).relu_()
    weight = weight * gain[0][:, None, None, None]
    if context is None:
        return functional.conv2d(x, weight, shift[0], padding=padding).relu_()
    base = torch.addcmul(shift[..., None, None], context, gain[..., None, None].to(context.dtype))
    y = functional.conv2d(x, weight, padding=padding)
    return y.add_(base.to(y.dtype)).relu_()
