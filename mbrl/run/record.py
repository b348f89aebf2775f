"""RunRecord: a finished run read back from its folder, for comparisons and reports.

It only reads what the run left behind (`result.json`, `config.yaml`, `metrics.jsonl`) and needs
neither the environment nor the agent that made it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mbrl.config.yaml import parse_value
from mbrl.errors import MbrlError
from mbrl.run.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run, as its folder records it.

    Attributes:
        run_dir: the run folder.
        agent: "dream", "ppo", ...
        env_id: the environment.
        seed: the run's seed.
        env_steps: real environment steps, prefill included.
        wall_time_s: seconds at work.
        evaluation: `{episodes, mean, std, returns}` of the final evaluation.
        curve: [env steps, mean return] of every evaluation.
        budget: counts by name.
        commit: of the code.
        config: the resolved configuration.
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
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, run_dir: Path | str) -> Self:
        """Read a run folder.

        Raises:
            MbrlError: the run has no complete `result.json`; it is unfinished or no run at all.
        """
        run_dir = Path(run_dir)
        result = read_result(run_dir)
        missing = [k for k in ("agent", "env_id", "seed", "env_steps", "eval") if k not in result]
        if missing:
            raise MbrlError(
                f"{run_dir}: expected {', '.join(missing)} in result.json, got none: it is not a "
                "run's result"
            )
        config_path = run_dir / "config.yaml"
        text = config_path.read_text(encoding="utf-8") if config_path.exists() else ""
        return cls(
            run_dir=run_dir,
            agent=result["agent"],
            env_id=result["env_id"],
            seed=result["seed"],
            env_steps=result["env_steps"],
            wall_time_s=result.get("wall_time_s", math.nan),
            evaluation=result["eval"],
            curve=result.get("curve", []),
            budget=result.get("budget", {}),
            commit=result.get("commit", "unknown"),
            config=parse_value(text) or {},
            metrics=read_metrics(run_dir),
        )

    def curve_over_time(self) -> list[list[float]]:
        """[wall-clock seconds, mean return] of every evaluation."""
        lines = [line for line in self.metrics if line["kind"] == "eval" and "eval/mean" in line]
        return [[line["wall_time_s"], line["eval/mean"]] for line in lines]


def read_result(run_dir: Path) -> dict[str, Any]:
    """What the `result.json` of a finished run holds.

    Raises:
        MbrlError: there is none, or half of one; the run is unfinished or the folder no run's.
    """
    path = run_dir / "result.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MbrlError(
            f"expected the result of a finished run in {path} ({error}); run the same command "
            "again to finish it, or check the folder"
        ) from error
    return result
