"""What is left of finished work: any result file, and a run's folder as a `RunRecord`.

Reading needs neither the environment nor the agent that made it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mbrl.config.yaml import parse_value
from mbrl.errors import MbrlError
from mbrl.run.metrics import read_metrics

_KEYS = ("agent", "env_id", "seed", "env_steps", "wall_time_s", "eval", "curve", "budget", "commit")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run, as its folder records it.

    Attributes:
        agent: "dream", "ppo", ...
        env_steps: real environment steps, prefill included.
        wall_time_s: seconds at work.
        evaluation: of the end, as `EvalResult.as_dict` gives it.
        curve: [env steps, mean return] of every evaluation.
        budget: counts by name.
        metrics: lines of `metrics.jsonl`.
    """

    run_dir: Path
    agent: str
    env_id: str
    seed: int
    env_steps: int
    wall_time_s: float
    evaluation: Mapping[str, Any]
    curve: Sequence[Sequence[float]]
    budget: Mapping[str, float]
    commit: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Read a run folder.

        Raises:
            MbrlError: the run has no complete `result.json`; it is unfinished or no run at all.
        """
        result = read_result(run_dir / "result.json", *_KEYS)
        config = (run_dir / "config.yaml").read_text(encoding="utf-8")
        return cls(
            run_dir=run_dir,
            agent=result["agent"],
            env_id=result["env_id"],
            seed=result["seed"],
            env_steps=result["env_steps"],
            wall_time_s=result["wall_time_s"],
            evaluation=result["eval"],
            curve=result["curve"],
            budget=result["budget"],
            commit=result["commit"],
            config=parse_value(config),
            metrics=read_metrics(run_dir),
        )

    def curve_over_time(self) -> list[list[float]]:
        """[wall-clock seconds, mean return] of every evaluation."""
        lines = [line for line in self.metrics if line["kind"] == "eval" and "eval/mean" in line]
        return [[line["wall_time_s"], line["eval/mean"]] for line in lines]


def read_result(path: Path, *keys: str) -> dict[str, Any]:
    """What a result file holds, `keys` among it.

    Raises:
        MbrlError: there is none, or half of one, or it lacks a key.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in keys if key not in result]
    except (OSError, ValueError, TypeError) as error:
        raise MbrlError(
            f"{path}: expected the result of finished work ({error}); run the same command again "
            "to finish it, and remove a broken file first"
        ) from error
    if missing:
        raise MbrlError(
            f"{path}: expected a result with {', '.join(keys)}, it lacks {', '.join(missing)}; "
            "check the folder, or remove the file"
        )
    return result
