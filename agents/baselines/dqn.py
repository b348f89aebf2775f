"""DQN (Mnih et al. 2015) with parts of Rainbow (arXiv:1710.02298), as RLlib has it."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from agents.baselines.baseline import Baseline, DenseWidth, EnvsPerRunner
from agents.settings import Discount, GradClip, Settings, StepSize

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from torch import Tensor


class DQNSettings(Settings):
    """Stock RLlib DQN with Rainbow's parts on the real environment (`agents.model_free`)."""

    num_envs: EnvsPerRunner = 4
    batch_size: int = Field(64, ge=1, description="transitions per gradient step")
    training_intensity: float = Field(
        64.0, gt=0, description="transitions replayed per environment step (replay ratio)"
    )
    learning_starts: int = Field(1000, ge=0, description="steps before the first gradient step")
    buffer_steps: int = Field(100_000, ge=1, description="steps the replay buffer keeps")
    prioritized: bool = Field(True, description="prioritised instead of uniform replay")
    n_step: int = Field(
        1,
        ge=1,
        description="steps of reward before the bootstrap; RLlib's buffer never samples the last "
        "n - 1 states of an episode, which costs more than it gains where episodes are short",
    )
    double_q: bool = Field(True, description="double Q-learning")
    dueling: bool = Field(True, description="separate value and advantage streams")
    target_update_steps: int = Field(
        250, ge=1, description="environment steps between copies into the target network"
    )
    lr: StepSize = 5e-4
    gamma: Discount = 0.99
    epsilon_start: float = Field(1.0, ge=0, le=1, description="random actions at first")
    epsilon_end: float = Field(0.05, ge=0, le=1, description="random actions from then on")
    epsilon_steps: int = Field(3000, ge=1, description="steps over which the share falls linearly")
    grad_clip: GradClip = 10.0
    dense: DenseWidth = 128


def config(settings: DQNSettings, steps_done: int) -> "AlgorithmConfig":
    """Stock DQN, whose exploration and first gradient step go on from `steps_done`."""
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import (
        DefaultDQNTorchRLModule,
    )
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from agents.modules import PixelCatalog

    span = settings.epsilon_start - settings.epsilon_end
    left = max(0, settings.epsilon_steps - steps_done)
    now = settings.epsilon_end + span * left / settings.epsilon_steps
    kind = "PrioritizedEpisodeReplayBuffer" if settings.prioritized else "EpisodeReplayBuffer"
    priorities = {"alpha": 0.5, "beta": 0.4} if settings.prioritized else {}
    module = RLModuleSpec(
        module_class=DefaultDQNTorchRLModule,
        catalog_class=PixelCatalog,
        model_config={"dense": settings.dense},
    )
    return (
        DQNConfig()
        .env_runners(num_envs_per_env_runner=settings.num_envs)
        .training(
            lr=settings.lr,
            gamma=settings.gamma,
            train_batch_size_per_learner=settings.batch_size,
            training_intensity=settings.training_intensity,
            num_steps_sampled_before_learning_starts=max(0, settings.learning_starts - steps_done),
            replay_buffer_config={"type": kind, "capacity": settings.buffer_steps, **priorities},
            target_network_update_freq=settings.target_update_steps,
            n_step=settings.n_step,
            double_q=settings.double_q,
            dueling=settings.dueling,
            num_atoms=1,
            epsilon=[(0, now), (left, settings.epsilon_end)] if left else settings.epsilon_end,
            grad_clip=settings.grad_clip,
        )
        .reporting(min_sample_timesteps_per_iteration=0)
        .rl_module(rl_module_spec=module)
    )


def q_values(module: Any, obs: "Tensor") -> "Tensor":
    """Values (N, A) of all actions; the head takes the largest."""
    return module.compute_q_values({"obs": obs})["qf_preds"]


BASELINE = Baseline(
    settings=DQNSettings,
    config=config,
    action_inputs=q_values,
    random_share=lambda settings: settings.epsilon_end,
    discrete_only=True,
)
