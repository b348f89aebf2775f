"""BASELINES: the model-free opponents, by the name that `agent:` and their config section have.

To add one: a file with a `BASELINE`, and its line here.
"""

from importlib import import_module

from agents.baselines.baseline import Baseline

__all__ = ["BASELINES", "Baseline"]

_FILES = {
    "ppo": "agents.baselines.ppo",
    "dqn": "agents.baselines.dqn",
}
BASELINES: dict[str, Baseline] = {n: import_module(file).BASELINE for n, file in _FILES.items()}
