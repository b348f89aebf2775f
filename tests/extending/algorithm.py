"""REINFORCE in dreams (Williams, 1992): the actor's loss of Dreamer's discrete policies.

Dreaming, lambda-returns, the critic, the entropy bonus, checkpoints and several learners are those
of `DreamPPOLearner`; only what the actor minimises is new. It belongs with `policy.epochs=1`, as it
does not correct for actions that an older policy drew.
"""

from torch import Tensor

from agents.dream_learner import DreamPPOLearner


class ReinforceLearner(DreamPPOLearner):
    """Gradient of log probability times advantage, without ratios and clipping."""

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """(M,): the gradient of the log ratio is that of the log probability."""
        return -advantage * log_ratio
