"""Baseline: what the rest of the code must know of one stock RLlib algorithm.

A file of this folder has the settings of one algorithm and a `Baseline` that turns them into
RLlib's configuration. Checking a config imports all of them, so torch and Ray are imported inside
functions only. `agents.model_free` builds, trains and saves any `Baseline`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agents.settings import Settings

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from torch import Tensor

EnvsPerRunner = Annotated[int, Field(ge=1, description="environments per env runner")]
DenseWidth = Annotated[int, Field(ge=1, description="width of the layer after the convolutions")]


def policy_inputs(module: Any, obs: "Tensor") -> "Tensor":
    """What an `agents.modules.PixelModule` puts out for observations (N, *shape)."""
    return module.policy(obs)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One stock RLlib algorithm.

    Attributes:
        settings: class of its section of the config.
        config: (settings, environment steps that an earlier process took) to RLlib's configuration,
            without an environment. Schedules go on from those steps.
        action_inputs: (RLModule, observations (N, *shape)) to what the action head makes actions
            of, (N, inputs); see `agents.modules`.
        random_share: of the settings, the share of random actions of an exploring agent, 0 to 1.
            None: it samples from the distribution that `action_inputs` gives.
        discrete_only: Box actions are refused.
    """

    settings: type[Settings]
    config: "Callable[[Any, int], AlgorithmConfig]"
    action_inputs: "Callable[[Any, Tensor], Tensor]" = policy_inputs
    random_share: Callable[[Any], float] | None = None
    discrete_only: bool = False
