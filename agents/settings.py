"""Settings of the dream policy, and the words that settings of all learners share.

Plain pydantic models, without torch or Ray, so that reading a configuration stays fast. What the
numbers do is in the module that uses them: `agents.dream_learner`. The settings of a baseline are
in its own file, in `agents.baselines`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

StepSize = Annotated[float, Field(gt=0, description="Adam step size")]
Discount = Annotated[float, Field(gt=0, le=1, description="discount per step")]
GradClip = Annotated[float, Field(gt=0, description="largest global norm of the gradient")]
EntropyWeight = Annotated[float, Field(ge=0, description="weight of the entropy bonus")]
ValueWeight = Annotated[float, Field(ge=0, description="weight of the critic's loss")]


class Settings(BaseModel):
    """Frozen, and closed: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ALGORITHMS = {
    "ppo": "agents.dream_learner:DreamPPOLearner",
    "q": "agents.dream_q:DreamQLearner",
}
"""What learns in dreams, by the name that `policy.algorithm` gives; loaded when it is built."""

MODULES = {"q": "agents.dream_q:QModule"}
"""Networks of the algorithms that have some of their own; all others have a `LatentModule`."""


class DreamPolicySettings(Settings):
    """A policy on imagined rollouts (`agents.dream_ppo`)."""

    algorithm: str = Field("ppo", description="what learns in dreams")
    epsilon: float = Field(0.1, gt=0, lt=1, description="share of random actions; algorithm q only")
    average: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="share of the running mean of networks, which acts, that each round keeps; "
        "algorithm q only",
    )
    horizon: int = Field(15, ge=1, description="K, imagined steps per dream")
    dreams: int = Field(512, ge=1, description="N, dreams per round, over all learners together")
    epochs: int = Field(2, ge=1, description="passes over the N*K rows of a round")
    minibatch_size: int = Field(
        1920, ge=1, description="rows per gradient step and learner, at most; the last may be less"
    )
    lr: StepSize = 5e-4
    adam_eps: float = Field(1e-5, gt=0, description="Adam epsilon")
    grad_clip: GradClip = 1.0
    clip: float = Field(0.2, gt=0, lt=1, description="PPO clip range of the probability ratio")
    entropy: EntropyWeight = 0.005
    gamma: Discount = 0.99
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the lambda-return")
    value_coeff: ValueWeight = 0.5
    hidden: tuple[int, ...] = Field((128, 128), description="widths of the actor and of the critic")
    maps: int = Field(32, ge=1, description="maps of their convolution, where features are maps")
    critic: Literal["twohot", "mse"] = Field(
        "twohot",
        description="critic output: a histogram over returns, or one number with squared error",
    )
    value_bins: int = Field(63, ge=3, description="bins of the twohot critic, odd")
    value_limit: float = Field(
        1e4,
        gt=0,
        description="return, by magnitude, to which the twohot critic reaches at first; larger "
        "ones widen it",
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

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"expected one of {', '.join(ALGORITHMS)}, got {name}")
        return name
