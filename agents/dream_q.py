"""Q-learning in dreams: values of actions instead of an actor, greedy in them but for a share.

Where rewards are rare and an action pays much later, actor-critics learn slowly from returns that
are mostly zero (on MinAtar: Young & Tian, arXiv:1903.03176). This is PQN (Gallici et al.,
arXiv:2407.04811): lambda-returns that end in the best action's value, a network with
normalised layers, and neither replay nor a target network, since every round dreams anew.

Dreaming, checkpoints and several learners are those of `DreamPPOLearner`.
"""

import math
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from agents.dream_learner import WEIGHT, DreamPPOLearner, PolicyLearningError
from agents.heads import CategoricalHead
from agents.modules import VALUE_LOGITS, LatentModule, mlp


class QModule(LatentModule):
    """Values of all actions, (N, A), over features (N, F).

    As a policy it takes the best one, and with the share `epsilon` any other; as a critic it says
    the best one's value.
    """

    bins: Tensor

    def setup(self) -> None:
        """Build the networks; called by RLlib's constructor.

        Raises:
            ValueError: the actions are not Discrete.
        """
        super().setup()
        if not isinstance(self.head, CategoricalHead):
            raise ValueError(
                f"policy.algorithm=q: expected a Discrete action space, got {self.action_space}; "
                f"use policy.algorithm=ppo"
            )
        self.epsilon = float(self.model_config["epsilon"])
        self.critic = mlp(self.seen_size, self.model_config["hidden"], self.head.inputs)
        del self.actor
        self.bins = torch.empty(0)

    def policy(self, features: Tensor) -> Tensor:
        """Log-probabilities (N, A) of acting greedily but for the share `epsilon`."""
        return self._greedy(self.value_logits(features))

    def value_of(self, value_logits: Tensor) -> Tensor:
        """The best action's value, (N,)."""
        return value_logits.amax(-1)

    def _greedy(self, values: Tensor) -> Tensor:
        actions = values.shape[-1]
        best = values.argmax(-1, keepdim=True)
        any_other = values.new_full(values.shape, math.log(self.epsilon / actions))
        return any_other.scatter(-1, best, math.log(1 - self.epsilon + self.epsilon / actions))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        values = self.value_logits(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self._greedy(values), VALUE_LOGITS: values}


class DreamQLearner(DreamPPOLearner):
    """Learns the value of the action taken from the lambda-return that followed it."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The squared error, each row weighted by its chance to be reached."""
        weight = batch[WEIGHT] / batch[WEIGHT].sum().clamp_min(1e-8)
        action = batch[Columns.ACTIONS].unsqueeze(-1)
        values = fwd_out[VALUE_LOGITS].gather(-1, action).squeeze(-1)  # (M,)
        error = (values - batch[Postprocessing.VALUE_TARGETS]) / self.return_scale.scale
        loss = (weight * error.square()).sum()
        if not loss.isfinite():
            raise PolicyLearningError(
                f"expected a finite loss in round {self.rounds}, got {float(loss)}; lower "
                "policy.lr, or look at the features and rewards of the dream"
            )
        greedy = fwd_out[VALUE_LOGITS].argmax(-1) == batch[Columns.ACTIONS]
        self._add(value_loss=loss, greedy=(weight * greedy).sum())
        return loss
