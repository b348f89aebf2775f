"""The arithmetic of returns: targets, weights, scales and histograms, as pure functions of tensors.

Row (n, k) is step k of rollout n. `reward[n, k]` and `continue_prob[n, k]` are what the action
chosen in step k led to; `value[n, k]` is the critic's estimate of the state the action was chosen
in, so `value` has one column more. Nothing here knows of policies, networks or devices.
"""

import torch
from torch import Tensor


def lambda_return(
    reward: Tensor, continue_prob: Tensor, value: Tensor, gamma: float, lam: float | Tensor
) -> Tensor:
    """TD(lambda) targets (N, K) of steps 0 to K-1.

    target[K] = value[K], and before it
    target[k] = reward[k] + gamma * continue_prob[k] * ((1 - lam) * value[k+1] + lam * target[k+1]).

    Args:
        reward: (N, K), earned by the action of step k.
        continue_prob: (N, K) in [0, 1], probability that the state arrived in is not terminal.
        value: (N, K + 1), critic; the last column is the bootstrap.
        gamma: discount per step.
        lam: in [0, 1]; 0 is one-step TD, 1 is Monte Carlo with bootstrap. One number, or one of
            each step (N, K): 0 where step k + 1 is not the next one, as behind a truncation.

    Raises:
        ValueError: the shapes do not fit each other.

    Source: Sutton & Barto (2018), section 12.8.
    """
    if reward.shape != continue_prob.shape or value[:, 1:].shape != reward.shape:
        raise ValueError(
            "expected reward (N, K), continue_prob (N, K), value (N, K + 1), got "
            f"{tuple(reward.shape)}, {tuple(continue_prob.shape)}, {tuple(value.shape)}"
        )
    discount = gamma * continue_prob
    one_step = torch.addcmul(reward, discount * (1.0 - lam), value[:, 1:])
    carry = discount * lam
    target = value[:, -1]
    out = torch.empty_like(one_step)
    for k in range(reward.shape[1] - 1, -1, -1):
        target = torch.addcmul(one_step[:, k], carry[:, k], target)
        out[:, k] = target
    return out


def arrival_weight(continue_prob: Tensor) -> Tensor:
    """Probability (N, K) that each state of a rollout is reached, 1 for the first.

    It is the product of the continue probabilities (N, K), in [0, 1], before it.
    """
    first = torch.ones_like(continue_prob[:, :1])
    return torch.cat([first, torch.cumprod(continue_prob[:, :-1], dim=1)], dim=1)


def percentile_range(returns: Tensor) -> Tensor:
    """5th and 95th percentile (2,) of all elements, of the nearest rank: selection, not sorting."""
    flat = returns.reshape(-1)
    last = flat.numel() - 1
    ranks = [1 + round(q * last) for q in (0.05, 0.95)]
    return torch.stack([torch.kthvalue(flat, rank).values for rank in ranks])


class ReturnScale:
    """Running range of returns, to give advantages one size whatever the rewards are.

    scale = max(1, EMA of the 95th percentile - EMA of the 5th), with the start-up bias of the EMA
    removed. Small returns are not blown up, so noise around zero stays noise.

    Source: Hafner et al., arXiv:2301.04104, section "Actor critic learning".
    """

    def __init__(self, decay: float) -> None:
        """`decay` in [0, 1) is the share of the old value that each update keeps."""
        self.decay = decay
        self.low = self.high = self.mass = 0.0

    def update(self, low: float, high: float) -> None:
        """Take in the two percentiles of a new batch of returns."""
        old, new = self.decay, 1 - self.decay
        self.low = old * self.low + new * low
        self.high = old * self.high + new * high
        self.mass = old * self.mass + new

    @property
    def range(self) -> float:
        """From the 5th to the 95th percentile; 0 before the first update."""
        return (self.high - self.low) / self.mass if self.mass else 0.0

    @property
    def scale(self) -> float:
        """Divisor of advantages, at least 1."""
        return max(1.0, self.range)

    def get_state(self) -> dict[str, float]:
        """What `set_state` needs to go on exactly here."""
        return {"low": self.low, "high": self.high, "mass": self.mass}

    def set_state(self, state: dict[str, float]) -> None:
        """Go on from `get_state`."""
        self.low, self.high, self.mass = (float(state[k]) for k in ("low", "high", "mass"))
