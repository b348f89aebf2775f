"""The stochastic code z: how raw network outputs become a distribution, a sample and a KL.

Two kinds share one interface: groups of categoricals (DreamerV2, arXiv:2010.02193, the default) and
a diagonal Gaussian (World Models 2018). Statistics are always float32, whatever the networks ran
in.
"""

from typing import Protocol

import torch
from torch import Tensor

from mbrl.world_model.losses import categorical_kl, gaussian_kl, inverse_cdf_sample
from mbrl.world_model.settings import CategoricalSettings, GaussianSettings


class Code(Protocol):
    """What the model needs of a code; `raw` comes from the encoder's or the prior's last layer."""

    size: int
    raw_size: int
    location_size: int
    """How many of the raw parameters, from the first on, say where z is and not how sure it is."""

    def normalise(self, raw: Tensor) -> Tensor:
        """Turn raw outputs (..., raw_size) into float32 parameters of the same size."""

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw z (..., size), differentiable with respect to the parameters."""

    def mode(self, params: Tensor) -> Tensor:
        """The z (..., size) of the highest probability, or density."""

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        """KL(q || p) in nats, (...,)."""


class CategoricalCode:
    """G categorical variables of K classes; z is their one-hot vectors, concatenated."""

    def __init__(self, settings: CategoricalSettings) -> None:
        """Keep the sizes."""
        self.groups, self.classes, self.unimix = settings.groups, settings.classes, settings.unimix
        self.size = self.raw_size = self.location_size = self.groups * self.classes

    def normalise(self, raw: Tensor) -> Tensor:
        """Log-probabilities, mixed with a little of the uniform so that no KL is infinite."""
        logits = raw.float().unflatten(-1, (self.groups, self.classes))  # (..., G, K)
        if self.unimix == 0:
            return logits.log_softmax(-1).flatten(-2)
        probs = (1 - self.unimix) * logits.softmax(-1) + self.unimix / self.classes
        return probs.log().flatten(-2)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One-hot sample with straight-through gradients."""
        probs = params.unflatten(-1, (self.groups, self.classes)).exp()  # (..., G, K)
        index = inverse_cdf_sample(probs.detach(), generator)  # (..., G)
        one_hot = torch.zeros_like(probs).scatter_(-1, index.unsqueeze(-1), 1.0)
        if torch.is_grad_enabled() and probs.requires_grad:
            one_hot = one_hot + probs - probs.detach()
        return one_hot.flatten(-2)  # (..., Z)

    def mode(self, params: Tensor) -> Tensor:
        """The most likely class of every variable."""
        logits = params.unflatten(-1, (self.groups, self.classes))  # (..., G, K)
        one_hot = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        return one_hot.flatten(-2)

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        """Summed over the groups."""
        shape = (self.groups, self.classes)
        return categorical_kl(q.unflatten(-1, shape), p.unflatten(-1, shape))


class GaussianCode:
    """A diagonal Gaussian; parameters are (mean, log std)."""

    def __init__(self, settings: GaussianSettings) -> None:
        """Keep the sizes."""
        self.size = self.location_size = settings.groups
        self.raw_size = 2 * settings.groups

    def normalise(self, raw: Tensor) -> Tensor:
        """Bound the log standard deviation to [-5, 2]."""
        mean, log_std = raw.float().chunk(2, -1)  # (..., Z) each
        return torch.cat([mean, -1.5 + 3.5 * torch.tanh(log_std)], -1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised sample."""
        mean, log_std = params.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        """The mean."""
        return params.chunk(2, -1)[0]

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        """Summed over the dimensions."""
        (q_mean, q_log), (p_mean, p_log) = q.chunk(2, -1), p.chunk(2, -1)
        return gaussian_kl(q_mean, q_log.exp(), p_mean, p_log.exp())
