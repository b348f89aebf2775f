"""BASELINES: the model-free opponents, by the name that `agent:` and their config section have.

To add one: a file with a `BASELINE`, and its line here.
"""

from agents.baselines import dqn, ppo
from agents.baselines.baseline import Baseline

__all__ = ["BASELINES", "Baseline"]

BASELINES: dict[str, Baseline] = {
    "ppo": ppo.BASELINE,
    "dqn": dqn.BASELINE,
}
