"""Q-learning in dreams: values of actions instead of an actor, greedy in them but for a share.

Where rewards are rare and an action pays much later, actor-critics learn slowly from returns that
are mostly zero (on MinAtar: Young & Tian, arXiv:1903.03176). This is PQN (Gallici et al.,
arXiv:2407.04811): lambda-returns that end in the best action's value, a network with
normalised layers, and no replay, since every round dreams anew.

Which action is best changes with every round where actions differ by little. What acts is therefore
the running mean of the networks of the last rounds.

Dreaming, checkpoints and several learners are those of `DreamPPOLearner`.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor, nn

from agents.dream_learner import WEIGHT, DreamPPOLearner, PolicyLearningError
from agents.heads import CategoricalHead
from agents.modules import VALUE_LOGITS, LatentModule, mlp

SMALLEST_UNIT = 0.1
"""The network counts in no smaller unit: before any reward all that returns show is noise."""


class QModule(LatentModule):
    """Values of all actions, (N, A), over features (N, F).

    As a policy it takes the best one, and with the share `epsilon` any other; as a critic it says
    the best one's value.
    """

    bins: Tensor
    unit: Tensor

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
        self.register_buffer("unit", torch.ones(()))
        self.steady_torso = copy.deepcopy(self.torso)
        self.steady_critic = copy.deepcopy(self.critic)
        for steady, _ in self._steady_parameters():
            steady.requires_grad_(False)

    def value_logits(self, features: Tensor) -> Tensor:
        """Values of all actions, (N, A) float32."""
        return super().value_logits(features) * self.unit

    @torch.no_grad()
    def measure_in(self, unit: float) -> None:
        """Let the network count in another unit; its values stay what they are (PopArt)."""
        for last in (self.critic[-1], self.steady_critic[-1]):
            for part in last.parameters():
                part.mul_(self.unit / unit)
        self.unit.fill_(unit)

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """Move the running mean towards the network; a share `keep` of it stays."""
        for steady, newest in self._steady_parameters():
            steady.lerp_(newest, 1 - keep)

    def _steady_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """The parameters of the running mean, each with that of the network."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.steady_critic, self.critic)]
        if self.torso is not None and self.steady_torso is not None:
            pairs.append((self.steady_torso, self.torso))
        for mean, network in pairs:
            yield from zip(mean.parameters(), network.parameters(), strict=True)

    def policy(self, features: Tensor) -> Tensor:
        """Log-probabilities (N, A) of acting greedily but for the share `epsilon`."""
        return self._greedy(self.value_logits(features))

    def acting(self, features: Tensor) -> Tensor:
        """The same of the running mean."""
        seen = self._seen(features, self.steady_torso)
        return self._greedy(self._run(seen, self.steady_critic))

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
    """Learns the value of the action taken from the lambda-return that followed it.

    The network counts in units of the running range of returns (van Hasselt et al.,
    arXiv:1602.07714), whatever the rewards are: what one step of Adam changes would else hide what
    tells actions apart where rewards are rare.
    """

    def _update_return_scale(self, target: Tensor) -> None:
        super()._update_return_scale(target)
        self.latent_module.measure_in(self.unit)

    def _end_round(self) -> None:
        super()._end_round()
        # at first the mean is over few rounds, and soon forgets the first weights
        keep = min(self.settings.average, (self.rounds - 1) / (self.rounds + 9))
        self.latent_module.follow(keep)

    @property
    def unit(self) -> float:
        """The range of returns, at least `SMALLEST_UNIT`."""
        return max(SMALLEST_UNIT, self.return_scale.range)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The squared error, each row weighted by its chance to be reached."""
        weight = batch[WEIGHT] / batch[WEIGHT].sum().clamp_min(1e-8)
        action = batch[Columns.ACTIONS].unsqueeze(-1)
        values = fwd_out[VALUE_LOGITS].gather(-1, action).squeeze(-1)  # (M,)
        error = (values - batch[Postprocessing.VALUE_TARGETS]) / self.unit
        loss = (weight * error.square()).sum()
        if not loss.isfinite():
            raise PolicyLearningError(
                f"expected a finite loss in round {self.rounds}, got {float(loss)}; lower "
                "policy.lr, or look at the features and rewards of the dream"
            )
        greedy = fwd_out[VALUE_LOGITS].argmax(-1) == batch[Columns.ACTIONS]
        self._add(value_loss=loss, greedy=(weight * greedy).sum())
        return loss
