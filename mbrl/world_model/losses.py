"""The mathematics of the world model's loss: pure functions of tensors, no state, no logging."""

from collections.abc import Mapping

import torch
from torch import Tensor


def categorical_kl(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q || p) in nats, summed over groups: logits (..., G, K), normalised or not, to (...,)."""
    q = q_logits.log_softmax(-1)
    p = p_logits.log_softmax(-1)
    return (q.exp() * (q - p)).sum((-2, -1))


def gaussian_kl(q_mean: Tensor, q_std: Tensor, p_mean: Tensor, p_std: Tensor) -> Tensor:
    """KL between diagonal Gaussians in nats, summed over the last axis."""
    ratio = (q_std / p_std).square()
    distance = ((q_mean - p_mean) / p_std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def free_nats(kl: Tensor, floor: float) -> Tensor:
    """A KL in nats of any shape, or that shape full of `floor` once its mean is below (Dreamer)."""
    return torch.where(kl.mean() >= floor, kl, floor)


def weighted_sum(
    terms: Mapping[str, Tensor], weights: Mapping[str, Tensor | float], shape: tuple[int, ...]
) -> Tensor:
    """The means of a loss's named terms, each times its weight, summed in their order: ().

    Raises:
        ValueError: the names differ, or a term does not have that shape.
    """
    if terms.keys() != weights.keys():
        raise ValueError(f"loss: expected weights of {sorted(terms)}, got {sorted(weights)}")
    for name, term in terms.items():
        if term.shape != shape:
            raise ValueError(f"loss: term {name}: expected {shape}, got {tuple(term.shape)}")
    parts = [weights[name] * term.mean() for name, term in terms.items()]
    return sum(parts[1:], parts[0])


def soft_free_nats(weight: Tensor, kl: Tensor, target: float) -> Tensor:
    """The next weight () of a KL that is to stay at `target` nats (VLAE, arXiv:1611.02731, app. C).

    A tenth more when the mean of `kl` is 5 % above the target, a tenth less when it is below;
    within (0, 1].
    """
    mean = kl.mean()
    up = torch.where(mean > 1.05 * target, 1.1, 1.0)
    down = torch.where(mean < target, 0.9, 1.0)
    return (weight * up * down).clamp(1e-4, 1.0)


def inverse_cdf_sample(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sample class indices (...,) int64 of probabilities (..., K), with one uniform number each.

    On CPU this is several times cheaper than drawing one exponential number per class, which is
    what `torch.multinomial` and the Gumbel trick do.
    """
    uniform = torch.rand(probs.shape[:-1], generator=generator, device=probs.device)
    return inverse_cdf(probs, uniform)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Classes (...,) int64 at which the cumulative weights (..., K) pass uniform numbers (...,)."""
    cumulative = weights.cumsum(-1)
    # scaled by the last column, so that rounding in the sum can never select class K
    return (cumulative <= (uniform * cumulative[..., -1]).unsqueeze(-1)).sum(-1)
