"""The RLlib learner that makes its own data: it rolls a `TensorEnv` out on its own device.

Stock RLlib moves every step through Python episode objects, which costs more than the dream itself.
Here a rollout is N dreams times K steps, tensors only; then come lambda-returns, and then RLlib's
own `Learner.update` over minibatches. With several learners each dreams its own share, and DDP
averages the gradients.

The loss is PPO's clipped surrogate (Schulman et al., arXiv:1707.06347) on lambda-returns minus
values, with advantages divided by the running range of returns and every row weighted by the
probability that its state is reached at all (Hafner et al., arXiv:2301.04104).

A `TensorEnv` is all that this file knows of a world model. In its place there may be a `Recording`
of steps that were taken for real: the same learner without a dream. A loss that is not finite is a
`PolicyLearningError`, before the weights are touched.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium as gym
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor, nn

from agents.modules import VALUE_LOGITS, LatentModule
from agents.numerics import precision, restore_generator, two_hot_cross_entropy, widened
from agents.returns import ReturnScale, arrival_weight, lambda_return, percentile_range
from agents.settings import ALGORITHMS, DreamPolicySettings
from agents.state import State, adam_of, load_adam, weights_of

WEIGHT = "dream_weight"
"""Batch column: probability that the row's state is reached."""

Info = dict[str, Tensor]
"""Extra tensors of a step, each with N rows or none; the learner reports their means."""


class PolicyLearningError(RuntimeError):
    """Learning in the dream cannot go on."""


@runtime_checkable
class TensorEnv(Protocol):
    """N environments stepped at once as tensors on one device.

    There are no episode objects and no automatic resets: an ending is a probability, and rows after
    it count less.

    Attributes:
        num_envs: N, constant.
        obs_dim: F, features per observation.
        action_space: of one environment, one that `agents.heads` knows.
        device: where observations come from and actions must be.
    """

    @property
    def num_envs(self) -> int: ...  # noqa: D102

    @property
    def obs_dim(self) -> int: ...  # noqa: D102

    @property
    def action_space(self) -> gym.Space[Any]: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def reset(self) -> Tensor:
        """Start N new environments and return their observations, (N, F) floating point."""
        ...

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Info]:
        """Step all environments once, without resets.

        Args:
            action: as `agents.heads.Head.to_env` gives them: (N,) int64 for Discrete, (N, *shape)
                float32 for Box.

        Returns:
            obs (N, F), the state arrived in; reward (N,) for the action; continue probability (N,)
            in [0, 1], zero where the state arrived in is terminal; and extra tensors.
        """
        ...


@runtime_checkable
class ShareableTensorEnv(TensorEnv, Protocol):
    """A TensorEnv that can be split over learner processes, and go to the device of each."""

    def share(self, index: int, count: int) -> TensorEnv:
        """Part `index` of `count`, with N / count environments; travels to its learner's process.

        Called anew for each call of `DreamPPO.learn`: random streams differ from call to call.
        """
        ...

    def to(self, device: torch.device) -> TensorEnv:
        """The same environments on another device; called in the learner's process."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """K steps of N dreams, time first, on the learner's device."""

    obs: Tensor  # (K + 1, N, F), bfloat16 under autocast, else float32
    inputs: Tensor  # (K, N, I), what the policy put out
    action: Tensor  # (K, N, ...), raw
    reward: Tensor  # (K, N)
    continue_prob: Tensor  # (K, N)
    info: dict[str, Tensor]  # means over all rows of the environment's extra tensors
    valid: Tensor | None = None  # (K, N) bool, the steps that count; None: all of a dream


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Steps that the policy took in real environments, time first: N pieces of K steps at most.

    What was drawn is taken as drawn by the policy that learns, so a recording is for learning from
    while it is new, in one round.
    """

    obs: Tensor  # (K + 1, N, F), before each step and after the last
    action: Tensor  # (K, N) int64, raw, of a Discrete space
    reward: Tensor  # (K, N)
    continue_prob: Tensor  # (K, N), 0 where a step ended the episode, else 1
    valid: Tensor  # (K, N) bool; all others are padding, or come before the piece that is new

    def play(self, module: LatentModule) -> Rollout:
        """It as a rollout, with what the policy puts out in each state now."""
        dtype = precision(self.obs.device, module.autocast)
        obs = self.obs.to(dtype)
        with torch.no_grad():
            inputs = module.policy(obs[:-1].flatten(0, 1)).unflatten(0, self.action.shape[:2])
        return Rollout(
            obs=obs,
            inputs=inputs,
            action=self.action,
            reward=self.reward,
            continue_prob=self.continue_prob,
            info={},
            valid=self.valid,
        )


@torch.no_grad()
def roll_out(
    env: TensorEnv, module: LatentModule, horizon: int, generator: torch.Generator
) -> Rollout:
    """Let the policy act for `horizon` steps from a fresh reset; nothing is copied to the host."""
    head, device = module.head, generator.device
    noise = head.noise((horizon, env.num_envs), generator)
    obs = env.reset()
    dtype = precision(device, module.autocast)
    store = torch.empty(horizon + 1, env.num_envs, env.obs_dim, dtype=dtype, device=device)
    inputs, actions, rewards, continue_probs = [], [], [], []
    infos: dict[str, list[Tensor]] = {}
    for k in range(horizon):
        store[k] = obs
        inputs.append(module.policy(store[k]))
        actions.append(head.sample(inputs[k], noise[k]))
        obs, reward, continue_prob, info = env.step(head.to_env(actions[k]).to(env.device))
        rewards.append(reward)
        continue_probs.append(continue_prob)
        for name, extra in info.items():
            infos.setdefault(name, []).append(extra.float().mean())
    store[horizon] = obs
    return Rollout(
        obs=store,
        inputs=torch.stack(inputs),
        action=torch.stack(actions),
        reward=torch.stack(rewards).to(device, torch.float32),
        continue_prob=torch.stack(continue_probs).to(device, torch.float32),
        info={name: torch.stack(means).mean() for name, means in infos.items()},
    )


class DreamPPOLearner(PPOTorchLearner):
    """PPO learner that makes its own data in a `TensorEnv`; see `learner_config`."""

    def build(self) -> None:
        """Build as PPO does, then the parts that dream; called by RLlib."""
        self.settings: DreamPolicySettings = self.config.learner_config_dict["settings"]
        self.seed: int = self.config.learner_config_dict["seed"]
        super().build()
        self.generator = torch.Generator(self._device)
        self.generator.manual_seed(self.seed * 1_000_003 + self._learner_index)
        self.return_scale = ReturnScale(self.settings.return_scale_decay)
        self.rounds = 0
        self._sums: dict[str, Tensor] = {}
        self._sum_count = 0

    def _make_module(self) -> MultiRLModule:
        # The first weights come from our seed, and the process-wide generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return super()._make_module()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One fused Adam for actor and critic."""
        params = [p for p in self.get_parameters(self._module[module_id]) if p.requires_grad]
        optimizer = torch.optim.Adam(
            params, lr=self.settings.lr, eps=self.settings.adam_eps, fused=True
        )
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr
        )

    @property
    def latent_module(self) -> LatentModule:
        """The module without any DDP wrapper."""
        return cast(LatentModule, self.module[DEFAULT_MODULE_ID].unwrapped())

    def learn_in_dream(self, env: TensorEnv | Recording, rounds: int) -> dict[str, float]:
        """What `DreamPPO.learn` asks of one learner; a `TensorEnv` may be on another device.

        Returns:
            Means over the rounds, and `dream_steps`, `gradient_steps`, `rollout_s`, `update_s`.
        """
        self._sums, self._sum_count = {}, 0
        totals: dict[str, float] = {}
        rollout_s = update_s = 0.0
        steps = 0
        for _ in range(rounds):
            start = time.perf_counter()
            if isinstance(env, Recording):
                rollout = env.play(self.latent_module)
            else:
                rollout = roll_out(env, self.latent_module, self.settings.horizon, self.generator)
            batch, metrics = self._make_batch(rollout)
            middle = time.perf_counter()
            self.update(
                batch=batch,
                num_epochs=self.settings.epochs,
                minibatch_size=self.settings.minibatch_size,
                shuffle_batch_per_epoch=True,
                _no_metrics_reduce=True,
            )
            self._end_round()
            steps += batch.env_steps()
            rollout_s += middle - start
            update_s += time.perf_counter() - middle
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value / rounds
        self._check_weights()
        totals |= {name: float(value) / self._sum_count for name, value in self._sums.items()}
        return {
            **totals,
            "dream_steps": float(steps),
            "gradient_steps": float(self._sum_count),
            "rollout_s": rollout_s,
            "update_s": update_s,
        }

    def _end_round(self) -> None:
        """What there is to do after the gradient steps of a round."""
        self.rounds += 1

    def _check_weights(self) -> None:
        """A finite loss may still have a gradient that is not; nothing is saved after that."""
        if not all(bool(torch.isfinite(p).all()) for p in self.latent_module.parameters()):
            raise PolicyLearningError(
                f"expected finite weights after round {self.rounds}, but a gradient was "
                "not finite; lower policy.lr, or look at the features of the dream"
            )

    @torch.no_grad()
    def _make_batch(self, rollout: Rollout) -> tuple[MultiAgentBatch, dict[str, float]]:
        """Targets and advantages of a rollout, as rows for the loss."""

        def known(rows: Tensor) -> Tensor:
            return rows if valid is None else rows[valid.T]

        settings, module, valid = self.settings, self.latent_module, rollout.valid
        steps, dreams = rollout.reward.shape
        value = module.value_of(module.value_logits(rollout.obs.flatten(0, 1)))
        value = value.view(steps + 1, dreams).T
        continue_prob = rollout.continue_prob.T
        lam: float | Tensor = settings.lam
        if valid is None:
            weight = arrival_weight(continue_prob)
        else:  # what is recorded was reached for sure, and returns end where the recording does
            weight = valid.T.float()
            lam = lam * nn.functional.pad(weight[:, 1:], (0, 1))
        target = lambda_return(rollout.reward.T, continue_prob, value, settings.gamma, lam)
        self._update_return_scale(known(target))
        self._widen_critic(known(target))
        advantage = target - value[:, :-1]
        if settings.advantage == "return_scale":
            advantage = advantage / self.return_scale.scale
        elif settings.advantage == "batch":
            spread = known(advantage).std() + 1e-8
            advantage = (advantage - known(advantage).mean()) / spread
        inputs, action = rollout.inputs.flatten(0, 1), rollout.action.flatten(0, 1)
        columns = {
            Columns.OBS: rollout.obs[:-1].flatten(0, 1),
            Columns.ACTIONS: action,
            Columns.ACTION_LOGP: module.head.log_prob(inputs, action),
            Postprocessing.ADVANTAGES: advantage.T.reshape(-1),
            Postprocessing.VALUE_TARGETS: target.T.reshape(-1),
            WEIGHT: weight.T.reshape(-1),
        }
        if valid is not None:
            columns = {name: column[valid.flatten()] for name, column in columns.items()}
        rows = len(columns[WEIGHT])
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=rows)
        return batch, {
            "reward": float(known(rollout.reward.T).mean()),
            "cont": float(known(continue_prob).mean()),
            "value": float(known(value[:, :-1]).mean()),
            "return": float(known(target).mean()),
            "return_scale": self.return_scale.scale,
            **{f"env/{name}": float(mean) for name, mean in rollout.info.items()},
        }

    def _update_return_scale(self, target: Tensor) -> None:
        bounds = percentile_range(target)
        if self.distributed:
            torch.distributed.all_reduce(bounds)
            bounds = bounds / torch.distributed.get_world_size()
        low, high = bounds.tolist()
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise PolicyLearningError(
                f"expected finite returns in the dream, got percentiles {low} and {high} in round "
                f"{self.rounds}; look at the rewards the environment gives"
            )
        self.return_scale.update(low, high)

    def _widen_critic(self, target: Tensor) -> None:
        """Let a twohot critic's bins reach to the largest return so far: none is clipped."""
        if len(bins := self.latent_module.bins):
            largest = target.abs().amax()
            if self.distributed:
                torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            bins.copy_(widened(bins, largest))

    def _create_iterator_if_necessary(
        self, *, training_data: Any, num_epochs: int, minibatch_size: int, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        # RLlib's iterator shuffles with numpy's global generator, which no checkpoint holds, and
        # not before the first epoch.
        columns = dict(training_data.batch.policy_batches[DEFAULT_MODULE_ID].items())
        rows = len(columns[WEIGHT])
        for _ in range(num_epochs):
            order = torch.randperm(rows, generator=self.generator, device=self._device)
            for index in order.split(minibatch_size):
                picked = {name: column.index_select(0, index) for name, column in columns.items()}
                yield MultiAgentBatch(
                    {DEFAULT_MODULE_ID: SampleBatch(picked)}, env_steps=len(index)
                )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Actor, critic and entropy, each row weighted by its chance to be reached."""
        settings, head = self.settings, self.latent_module.head
        inputs, advantage = fwd_out[Columns.ACTION_DIST_INPUTS], batch[Postprocessing.ADVANTAGES]
        weight = batch[WEIGHT] / batch[WEIGHT].sum().clamp_min(1e-8)
        log_ratio = head.log_prob(inputs, batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP]
        policy_loss = (weight * self.policy_loss(log_ratio, advantage)).sum()
        entropy = (weight * head.entropy(inputs)).sum()
        value_loss = (weight * self._value_loss(fwd_out[VALUE_LOGITS], batch)).sum()
        loss = policy_loss + settings.value_coeff * value_loss - settings.entropy * entropy
        if not torch.isfinite(loss):
            raise PolicyLearningError(
                f"expected a finite loss in round {self.rounds}, got policy "
                f"{float(policy_loss)}, value {float(value_loss)}, entropy {float(entropy)}; "
                "lower policy.lr, or look at the features and rewards of the dream"
            )
        with torch.no_grad():
            ratio = log_ratio.exp()
            self._add(
                policy_loss=policy_loss,
                value_loss=value_loss,
                entropy=entropy,
                kl=(weight * (ratio - 1 - log_ratio)).sum(),
                clipped=(weight * (ratio != self._clipped(ratio))).sum(),
            )
        return loss

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """What the actor minimises, (M,): PPO's clipped surrogate, or what a subclass makes of it.

        Args:
            log_ratio: (M,), log probability of the actions now minus that when they were drawn.
            advantage: (M,).
        """
        ratio = log_ratio.exp()
        return -torch.minimum(advantage * ratio, advantage * self._clipped(ratio))

    def _clipped(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)

    def _value_loss(self, value_logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Loss (M,) of the critic, of the same size whatever the size of the rewards."""
        target, bins = batch[Postprocessing.VALUE_TARGETS], self.latent_module.bins
        if len(bins):
            return two_hot_cross_entropy(value_logits, target, bins)
        return ((value_logits.squeeze(-1) - target) / self.return_scale.scale).square()

    def _add(self, **terms: Tensor) -> None:
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.detach()
        self._sum_count += 1

    def dream_state(self) -> State:
        """Everything that decides how learning goes on, as tensors on the CPU and numbers."""
        return {
            "module": weights_of(self.latent_module),
            "adam": adam_of(self),
            "own": {
                "generator": self.generator.get_state(),
                "return_scale": self.return_scale.get_state(),
                "rounds": self.rounds,
                "value_bins": self.latent_module.bins.detach().cpu().clone(),
            },
        }

    def set_dream_state(self, state: State) -> None:
        """Go on exactly where `dream_state` was taken."""
        self.latent_module.load_state_dict(state["module"])
        load_adam(self, state["adam"])
        own = state["own"]
        restore_generator(self.generator, own["generator"])
        self.return_scale.set_state(own["return_scale"])
        self.rounds = int(own["rounds"])
        if "value_bins" in own:  # older checkpoints have those that the settings say
            self.latent_module.bins.copy_(own["value_bins"])

    # RLlib logs a dozen values through its metrics logger for every minibatch, which takes longer
    # than a small network's gradient. The sums in `_add` replace them, once per call.
    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        pass

    def _log_metrics(self, batch: MultiAgentBatch) -> None:
        pass

    def _compute_off_policyness(self, batch: dict[str, Any]) -> None:
        pass


def learner_config(settings: DreamPolicySettings, seed: int) -> PPOConfig:
    """RLlib's configuration of a learner; `seed` is of its first weights and actions."""
    config = PPOConfig().training(lr=settings.lr, grad_clip=settings.grad_clip, use_kl_loss=False)
    # The loss itself is checked; this skips two reads of every gradient per step.
    config.torch_skip_nan_gradients = True
    own = {"settings": settings, "seed": seed}
    module, _, name = ALGORITHMS[settings.algorithm].partition(":")
    learner = getattr(import_module(module), name)
    config.learners(learner_class=learner, learner_config_dict=own)
    return config
