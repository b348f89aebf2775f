"""Couplings: one part of the activations is scaled and shifted by what a network reads in the rest.

In: activations (N, C, H, W). The couplings say which part is kept and how the other is transformed
and transformed back; `Estimator` is the network. Neither knows how many steps there are, nor which
of them share a network. The numbers a network returns may be computed in bfloat16: the transform by
given numbers is exact. Its inverse asks the network again, though, and where what it reads differs
in the last bit, an answer in bfloat16 can differ in its third digit: over many steps a round trip
in bfloat16 is far less exact than one in float32.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.decoders.flow.layers import (
    ActNorm,
    ZeroConv,
    border,
    checkerboard,
    full_precision,
    soft_clamp,
)

LOG_SCALE_LIMIT = 0.5
"""A coupling scales by at most e^0.5, either way: away from data the factors of many steps
multiply, and what starts there would leave all bounds."""
LOG_GAIN_LIMIT = 2.0
"""Features change the gain of a hidden layer by at most e^2, either way."""


def _scale_and_shift(raw: Tensor, affine: bool) -> tuple[Tensor | None, Tensor]:
    """Log-scale (None if additive) and shift out of a network's output."""
    if not affine:
        return None, raw
    shift, log_scale = raw.chunk(2, 1)
    return soft_clamp(log_scale, LOG_SCALE_LIMIT), shift


class Halves(nn.Module):
    """Half of the channels are kept, the other half is transformed (RealNVP, arXiv:1605.08803)."""

    def __init__(self, channels: int, affine: bool, swapped: bool = False) -> None:
        """Keep the first half, or the second if `swapped`."""
        super().__init__()
        self.affine, self.swapped = affine, swapped
        self.inputs = channels // 2
        self.outputs = channels if affine else channels // 2

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, second = z.chunk(2, 1)
        return (second, first) if self.swapped else (first, second)

    def _joined(self, kept: Tensor, other: Tensor) -> Tensor:
        return torch.cat([other, kept] if self.swapped else [kept, other], 1)

    def kept(self, z: Tensor) -> Tensor:
        """What the network reads, the same before and after."""
        return self._parts(z)[0]

    def spread(self, kept: Tensor) -> Tensor:
        """The transpose of `kept`: gradients of what was read, as gradients of all of z."""
        return self._joined(kept, torch.zeros_like(kept))

    def transform(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Transform z (N, C, H, W); returns it and the log-determinant (N,)."""
        kept, other = self._parts(z)
        log_scale, shift = _scale_and_shift(raw, self.affine)
        if log_scale is None:
            return self._joined(kept, other + shift), z.new_zeros(len(z))
        changed = torch.addcmul(shift, other, log_scale.exp())
        return self._joined(kept, changed), log_scale.flatten(1).sum(1)

    def invert(self, z: Tensor, raw: Tensor) -> Tensor:
        """The inverse of `transform`."""
        kept, other = self._parts(z)
        log_scale, shift = _scale_and_shift(raw, self.affine)
        other = other - shift
        return self._joined(kept, other if log_scale is None else other * (-log_scale).exp())


class Checkerboard(nn.Module):
    """Every other pixel is kept, as on a checkerboard, the others are transformed (RealNVP)."""

    mask: Tensor

    def __init__(
        self, channels: int, height: int, width: int, affine: bool, swapped: bool = False
    ) -> None:
        """Keep the pixels whose row + column is even, or the others if `swapped`."""
        super().__init__()
        self.affine = affine
        self.inputs = channels
        self.outputs = 2 * channels if affine else channels
        mask = checkerboard(height, width)
        self.register_buffer("mask", 1 - mask if swapped else mask, persistent=False)

    def kept(self, z: Tensor) -> Tensor:
        """What the network reads, the same before and after."""
        return z * self.mask

    def spread(self, kept: Tensor) -> Tensor:
        """The transpose of `kept`."""
        return kept * self.mask

    def transform(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Transform z (N, C, H, W); returns it and the log-determinant (N,)."""
        log_scale, shift = _scale_and_shift(raw, self.affine)
        free = 1 - self.mask
        if log_scale is None:
            return z + free * shift, z.new_zeros(len(z))
        log_scale = log_scale * free
        return torch.addcmul(free * shift, z, log_scale.exp()), log_scale.flatten(1).sum(1)

    def invert(self, z: Tensor, raw: Tensor) -> Tensor:
        """The inverse of `transform`."""
        log_scale, shift = _scale_and_shift(raw, self.affine)
        free = 1 - self.mask
        z = z - free * shift
        return z if log_scale is None else z * (-log_scale * free).exp()


class Condition(NamedTuple):
    """What a flow is conditioned on, at one scale.

    Attributes:
        map: (N, M, H, W), or None.
        vector: (N, F), or None.
    """

    map: Tensor | None
    vector: Tensor | None


class Prepared(NamedTuple):
    """What an estimator makes of a condition, once for all steps that share it.

    Attributes:
        context: (1 or N, width, H, W), the part of its first layer that does not depend on z.
        film: (N, 4, width), log-gain and shift of either hidden layer; or None.
    """

    context: Tensor
    film: Tensor | None


class Estimator(nn.Module):
    """The network of a coupling: 3 x 3, 1 x 1, and a last layer that starts at zero.

    The first layer reads what a coupling keeps, a channel that marks the padding, and the
    condition's map; ActNorm and FiLM (arXiv:1709.07871) follow both hidden convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int | None, width: int, maps: int = 0, vector: int = 0
    ) -> None:
        """Build for (N, inputs, H, W).

        Args:
            inputs: channels of what is kept.
            outputs: channels of the last 3 x 3 convolution; None: every step brings its own layer.
            width: H, channels of both hidden layers.
            maps: channels of the condition's map.
            vector: size of the condition's vector.
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

    def norm(self, layer: int) -> ActNorm:
        """The ActNorm after hidden convolution 0 or 1."""
        return cast(ActNorm, self.norms[layer])

    def prepare(self, condition: Condition, like: Tensor) -> Prepared:
        """What does not depend on z, for activations of the size of `like` (N, C, H, W)."""
        with full_precision(like):
            marks = self.enter[:, self.inputs : self.inputs + 1]
            context = functional.conv2d(border(like), marks)
        if condition.map is not None:
            maps = self.enter[:, self.inputs + 1 :]
            read = functional.conv2d(condition.map, maps, padding=1)
            context = context.to(read.dtype) + read
        if self.film is None:
            return Prepared(context, None)
        if condition.vector is None:
            raise ValueError("this flow was built for features: expected them, got None")
        film = self.film(condition.vector).to(self.enter.dtype)
        return Prepared(context, film.unflatten(1, (4, self.width)))

    def _affine(self, layer: int, film: Tensor | None, step: Tensor | None) -> tuple[Tensor, ...]:
        """Gain and shift after a hidden convolution: ActNorm, then FiLM; (1 or N, width)."""
        norm = self.norm(layer)
        log_gain, shift = norm.log_scale[None], None
        if film is not None:
            log_gain = log_gain + soft_clamp(film[:, 2 * layer], LOG_GAIN_LIMIT)
            shift = film[:, 2 * layer + 1]
        if step is not None:
            log_gain = log_gain + step[2 * layer]
            shift = step[2 * layer + 1][None] if shift is None else shift + step[2 * layer + 1]
        gain = log_gain.exp()
        total = norm.bias * gain
        return gain, total if shift is None else total + shift

    def forward(
        self, kept: Tensor, prepared: Prepared, step: Tensor | None, initialise: bool = False
    ) -> Tensor:
        """The second hidden layer, (N, inputs, H, W) to (N, width, H, W).

        Args:
            kept: what the coupling keeps.
            prepared: from `prepare`.
            step: (4, width), a step's own log-gains and shifts, or None.
            initialise: set both norms from these activations first.
        """
        x = kept
        for layer, weight in enumerate((self.enter[:, : self.inputs], self.middle)):
            context = prepared.context if layer == 0 else None
            if initialise:
                raw = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
                self.norm(layer).initialise(raw if context is None else raw + context)
            gain, shift = self._affine(layer, prepared.film, step)
            x = _hidden(x, weight, context, gain, shift)
        return x


def _hidden(
    x: Tensor, weight: Tensor, context: Tensor | None, gain: Tensor, shift: Tensor
) -> Tensor:
    """relu(gain * (conv(x) + context) + shift).

    A gain that is the same for all samples goes into the weights, which saves a pass over the
    largest activations there are, and keeping them for the gradient.
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
