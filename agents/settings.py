"""Settings of everything that learns a policy: the dream learner and the model-free baselines.

Plain pydantic models, without torch or Ray, so that reading a configuration stays fast. What the
numbers do is in the module that uses them: `agents.dream_ppo` and `agents.model_free`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DreamPolicySettings(BaseModel):
    """PPO on imagined rollouts (`agents.dream_ppo`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon: int = Field(15, ge=1, description="K, imagined steps per dream")
    dreams: int = Field(512, ge=1, description="N, dreams per round, over all learners together")
    epochs: int = Field(2, ge=1, description="passes over the N*K rows of a round")
    minibatch_size: int = Field(
        1920, ge=1, description="rows per gradient step and learner, at most; the last may be less"
    )
    lr: float = Field(5e-4, gt=0, description="Adam step size")
    adam_eps: float = Field(1e-5, gt=0, description="Adam epsilon")
    grad_clip: float = Field(1.0, gt=0, description="largest global norm of the gradient")
    clip: float = Field(0.2, gt=0, lt=1, description="PPO clip range of the probability ratio")
    entropy: float = Field(0.005, ge=0, description="weight of the entropy bonus")
    gamma: float = Field(0.99, gt=0, le=1, description="discount per step")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the lambda-return")
    value_coeff: float = Field(0.5, ge=0, description="weight of the critic's loss")
    hidden: tuple[int, ...] = Field((128, 128), description="widths of the actor and of the critic")
    critic: Literal["twohot", "mse"] = Field(
        "twohot",
        description="critic output: a histogram over returns, or one number with squared error",
    )
    value_bins: int = Field(63, ge=3, description="bins of the twohot critic, odd")
    value_limit: float = Field(
        1e4, gt=0, description="largest return, by magnitude, that the twohot critic can say"
    )
    advantage: Literal["return_scale", "batch", "none"] = Field(
        "return_scale",
        description="divide advantages by the running 5..95 % range of returns (at least 1), "
        "standardise them over the round, or leave them",
    )
    return_scale_decay: float = Field(
        0.99, ge=0, lt=1, description="decay per round of the running range of returns"
    )
    autocast: bool = Field(
        False, description="bfloat16 matrix products in actor and critic, where the device has them"
    )


class PPOSettings(BaseModel):
    """Stock RLlib PPO on the real environment (`agents.model_free`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_envs: int = Field(8, ge=1, description="environments per env runner")
    batch_steps: int = Field(1024, ge=1, description="environment steps per iteration")
    minibatch_size: int = Field(128, ge=1, description="rows per gradient step")
    epochs: int = Field(8, ge=1, description="passes over the steps of an iteration")
    lr: float = Field(5e-4, gt=0, description="Adam step size")
    gamma: float = Field(0.99, gt=0, le=1, description="discount per step")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    clip: float = Field(0.2, gt=0, lt=1, description="clip range of the probability ratio")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus")
    value_coeff: float = Field(0.5, ge=0, description="weight of the critic's loss")
    grad_clip: float = Field(0.5, gt=0, description="largest global norm of the gradient")
    dense: int = Field(128, ge=1, description="width of the layer after the convolutions")


class DQNSettings(BaseModel):
    """Stock RLlib DQN with Rainbow's parts on the real environment (`agents.model_free`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_envs: int = Field(4, ge=1, description="environments per env runner")
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
    lr: float = Field(5e-4, gt=0, description="Adam step size")
    gamma: float = Field(0.99, gt=0, le=1, description="discount per step")
    epsilon_start: float = Field(1.0, ge=0, le=1, description="random actions at first")
    epsilon_end: float = Field(0.05, ge=0, le=1, description="random actions from then on")
    epsilon_steps: int = Field(3000, ge=1, description="steps over which the share falls linearly")
    grad_clip: float = Field(10.0, gt=0, description="largest global norm of the gradient")
    dense: int = Field(128, ge=1, description="width of the layer after the convolutions")
