"""PPO (Schulman et al., arXiv:1707.06347), as RLlib has it."""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from agents.baselines.baseline import Baseline, DenseWidth, EnvsPerRunner
from agents.settings import Discount, EntropyWeight, GradClip, Settings, StepSize, ValueWeight

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


class PPOSettings(Settings):
    """Stock RLlib PPO on the real environment (`agents.model_free`)."""

    num_envs: EnvsPerRunner = 8
    batch_steps: int = Field(1024, ge=1, description="environment steps per iteration")
    minibatch_size: int = Field(128, ge=1, description="rows per gradient step")
    epochs: int = Field(8, ge=1, description="passes over the steps of an iteration")
    lr: StepSize = 5e-4
    gamma: Discount = 0.99
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    clip: float = Field(0.2, gt=0, lt=1, description="clip range of the probability ratio")
    entropy: EntropyWeight = 0.01
    value_coeff: ValueWeight = 0.5
    grad_clip: GradClip = 0.5
    dense: DenseWidth = 128


def config(settings: PPOSettings, steps_done: int) -> "AlgorithmConfig":
    """Stock PPO; it has no schedule that would depend on `steps_done`."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from agents.modules import PixelModule

    module = RLModuleSpec(module_class=PixelModule, model_config={"dense": settings.dense})
    return (
        PPOConfig()
        .env_runners(num_envs_per_env_runner=settings.num_envs)
        .training(
            lr=settings.lr,
            gamma=settings.gamma,
            lambda_=settings.lam,
            clip_param=settings.clip,
            entropy_coeff=settings.entropy,
            vf_loss_coeff=settings.value_coeff,
            vf_clip_param=math.inf,
            grad_clip=settings.grad_clip,
            num_epochs=settings.epochs,
            minibatch_size=settings.minibatch_size,
            use_kl_loss=False,
            train_batch_size_per_learner=settings.batch_steps,
        )
        .rl_module(rl_module_spec=module)
    )


BASELINE = Baseline(settings=PPOSettings, config=config)
