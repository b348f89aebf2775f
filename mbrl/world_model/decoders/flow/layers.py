"""Parts of a flow that are the same in every variant: small bijections and the zero convolution.

In: activations (N, C, H, W). Out: activations of as many numbers, and how much volumes grew. They
know nothing of couplings, conditions or images. Bijections run in the precision of the activations,
whatever autocast says: log-determinants are sums over thousands of numbers, and what is to be
undone has to be exact.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.normalise import mean_of_ranks


def full_precision(like: Tensor) -> torch.autocast:
    """A context in which autocast does not lower the precision on the device of `like`."""
    return torch.autocast(like.device.type, enabled=False)


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """Into (-limit, limit), the identity around zero."""
    return limit * torch.tanh(x / limit)


def squeeze(x: Tensor) -> Tensor:
    """Squares of 2 x 2 pixels become channels: (N, C, H, W) to (N, 4 C, H / 2, W / 2)."""
    return functional.pixel_unshuffle(x, 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of `squeeze`."""
    return functional.pixel_shuffle(x, 2)


def checkerboard(height: int, width: int) -> Tensor:
    """(1, 1, H, W): ones where row + column is even, else zeros."""
    cells = torch.arange(height)[:, None] + torch.arange(width)
    return (1 - cells % 2).float().view(1, 1, height, width)


def border(like: Tensor) -> Tensor:
    """(1, 1, H + 2, W + 2): ones around zeros, as the input channel by which padding shows."""
    inside = like.new_zeros(1, 1, *like.shape[-2:])
    return functional.pad(inside, (1, 1, 1, 1), value=1.0)


def mixed(z: Tensor, weight: Tensor) -> Tensor:
    """Every pixel's channels times a matrix: (N, C, H, W) and (C, C) to (N, C, H, W).

    A 1 x 1 convolution, but as a matrix product: graphics cards round what goes into convolutions
    to ten bits (TF32) unless told otherwise, and nothing that was rounded so can be inverted.
    """
    with full_precision(z):
        return torch.matmul(weight, z.flatten(2)).unflatten(2, z.shape[2:])


class ActNorm(nn.Module):
    """(x + bias) * exp(log_scale) by channel (Glow, arXiv:1807.03039, section 3.1)."""

    def __init__(self, channels: int) -> None:
        """Start as the identity; `initialise` makes it normalise."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Let activations like x (N, C, H, W) have mean 0 and deviation 1.

        The statistics are those of all ranks together, so every rank gets the same weights. A
        channel that is constant keeps a finite scale.
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
    a sum, and W can be inverted by substitution for as long as the weights are finite (Glow,
    section 3.2).
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

    def _lower(self) -> Tensor:
        return self.factors.tril(-1) + _identity(self.factors)

    def _upper(self) -> Tensor:
        diagonal = self.sign * self.factors.diagonal().exp()
        return self.factors.triu(1) + torch.diag(diagonal)

    def weight(self) -> Tensor:
        """W, (C, C)."""
        with full_precision(self.factors):
            return (self._lower() @ self._upper())[self.order]

    def log_det(self) -> Tensor:
        """The logarithm of |det W|, a scalar."""
        return self.factors.diagonal().sum()

    @torch.no_grad()
    def inverse(self) -> Tensor:
        """The inverse of W, (C, C); kept between calls while the module is in eval mode."""
        version = self.factors._version
        if not self.training and self._cached is not None:
            known, inverse = self._cached
            same = inverse.dtype == self.factors.dtype and inverse.device == self.factors.device
            if known == version and same:
                return inverse
        with full_precision(self.factors):
            forward = torch.linalg.solve_triangular(
                self._lower(), _identity(self.factors), upper=False, unitriangular=True
            )
            inverse = torch.linalg.solve_triangular(self._upper(), forward, upper=True)
        inverse = inverse[:, self.order]
        self._cached = None if self.training else (version, inverse)
        return inverse


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


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
