"""Reward and continue heads: what the dream pays, and whether it goes on."""

from torch import Tensor, nn

from agents.numerics import symlog_bins, two_hot_cross_entropy, two_hot_mean, widened
from mbrl.world_model.normalise import max_of_ranks
from mbrl.world_model.settings import HeadSettings


class Heads(nn.Module):
    """One hidden layer over the features, shared by a two-hot reward and a continue logit.

    The reward's bins are evenly spaced in symlog and the target is split linearly between its two
    neighbours, so the expected reward is exact for any reward inside the limit. The limit follows
    the rewards trained on: it doubles until it holds the largest, so none is clipped. Both heads
    describe *arriving* at the state: the reward just received, and whether the state is terminal.
    The reward's last layer starts at zero, so an untrained model promises nothing.
    """

    bins: Tensor

    def __init__(self, features: int, settings: HeadSettings) -> None:
        """Build for feature vectors of that size."""
        super().__init__()
        self.register_buffer("bins", symlog_bins(settings.reward_bins, settings.reward_limit))
        self.dense = nn.Linear(features, settings.hidden)
        self.norm = nn.LayerNorm(settings.hidden)
        self.out = nn.Linear(settings.hidden, settings.reward_bins + 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (..., F) to reward logits (..., V) and continue logits (...,), float32."""
        out = self.out(nn.functional.silu(self.norm(self.dense(features)))).float()
        return out[..., :-1], out[..., -1]

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and probability of going on, both (...,)."""
        reward_logits, continue_logits = self(features)
        return two_hot_mean(reward_logits, self.bins), continue_logits.sigmoid()

    def loss(self, features: Tensor, reward: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        """Nats per row of the reward and of the continue flag, both (...,).

        In training the bins first widen to the rewards (...,), if they must.
        """
        if self.training:
            self.bins.copy_(widened(self.bins, max_of_ranks(reward.abs().amax())))
        reward_logits, continue_logits = self(features)
        reward_loss = two_hot_cross_entropy(reward_logits, reward, self.bins)
        continue_loss = nn.functional.binary_cross_entropy_with_logits(
            continue_logits, 1 - terminated.float(), reduction="none"
        )
        return reward_loss, continue_loss
