"""A2C (Mnih et al., arXiv:1602.01783) as a baseline in one file.

It is what PPO becomes with one gradient step per batch, where the clipping never bites (Huang et
al., arXiv:2205.09123), so stock RLlib has it. Ray is imported when a run starts, and not before:
`mbrl train --check` imports this file.
"""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from agents.baselines.baseline import Baseline, DenseWidth, EnvsPerRunner
from agents.settings import Discount, EntropyWeight, GradClip, Settings, StepSize, ValueWeight

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


class A2CSettings(Settings):
    """Advantage actor-critic on the real environment: the section `a2c` of a config."""

    num_envs: EnvsPerRunner = 8
    batch_steps: int = Field(128, ge=1, description="environment steps per gradient step")
    lr: StepSize = 1e-3
    gamma: Discount = 0.99
    entropy: EntropyWeight = 0.01
    value_coeff: ValueWeight = 0.5
    grad_clip: GradClip = 0.5
    dense: DenseWidth = 128


def config(settings: A2CSettings, steps_done: int) -> "AlgorithmConfig":
    """PPO with one gradient step per batch; it has no schedule that depends on `steps_done`."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from agents.modules import PixelModule

    module = RLModuleSpec(module_class=PixelModule, model_config={"dense": settings.dense})
    training = {
        "lr": settings.lr,
        "gamma": settings.gamma,
        "lambda_": 1.0,
        "entropy_coeff": settings.entropy,
        "vf_loss_coeff": settings.value_coeff,
        "vf_clip_param": math.inf,
        "grad_clip": settings.grad_clip,
        "use_kl_loss": False,
        "num_epochs": 1,
        "minibatch_size": settings.batch_steps,
        "train_batch_size_per_learner": settings.batch_steps,
    }
    runners = {"num_envs_per_env_runner": settings.num_envs}
    return PPOConfig().env_runners(**runners).training(**training).rl_module(rl_module_spec=module)


BASELINE = Baseline(settings=A2CSettings, config=config)
