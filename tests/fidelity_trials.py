"""Trials that tests of the fidelity study share, real ones and results without a run."""

import json
import shlex
from pathlib import Path
from typing import Any

from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.trial import Trial
from mbrl.studies.trial import Trial as AnyTrial

GAME = GAMES["synthetic_pong"]
STEPS = 800
TINY = (
    *("world_model.hidden=16", "world_model.prior_hidden=8", "world_model.heads.hidden=8"),
    *("world_model.code={groups: 3, classes: 4}", "world_model.bf16=false"),
    *("world_model.encoder.channels=[4,4,4]", "world_model.encoder.hidden=16"),
    *("world_model.decoder.layers=1", "world_model.decoder.channels=2"),
    *("world_model.decoder.map_channels=2", "world_model.decoder.hidden=8"),
    *("learn_model.batch_size=2", "learn_model.sequence_length=4"),
)


def tiny(arm: str) -> tuple[str, ...]:
    """Those of `TINY` that the arm's kind of encoder and decoder has."""
    unknown: tuple[str, ...] = ()
    if not arm.startswith("pixelcnn"):
        unknown = ("world_model.decoder.layers", "world_model.decoder.map_channels")
    if arm.startswith("world_models"):
        unknown = ("world_model.decoder.", "world_model.encoder.")
    return tuple(one for one in TINY if not one.startswith(unknown))


def make_trial(out: Path, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "game": GAME.name,
        "arm": "pixelcnn",
        "seed": 0,
        "minutes": 0.005,
        "steps": STEPS,
        "overrides": tiny(changes.get("arm", "pixelcnn")),
        "out": out,
        "results": out / "results",
        "quick": True,
    }
    return Trial(**{**given, **changes})


def write_trial(trial: AnyTrial, measures: dict[str, Any] | None = None, **changes: Any) -> None:
    """Write a result as if a trial of any study had been made."""
    result = {
        trial.kind: trial.subject,
        "arm": trial.arm,
        "seed": trial.seed,
        "command": shlex.join(trial.command()),
        "commit": "abc",
        "machine": {"cpu": "a processor", "cores": 2},
        "cpu_minutes": trial.minutes,
        "cpu_s": 60 * trial.minutes,
        "wall_time_s": 60 * trial.minutes,
        "updates": 10,
        "rows": 80,
        "parameters": 1000,
        "overrides": list(trial.overrides),
        "settings": trial.settings(),
        "measures_version": trial.measures,
        "measures": measures or {},
        "curve": {"cpu_minutes": [1.0, 2.0], "nats_per_frame": [9.0, 8.0], "kl": [1.0, None]},
    }
    trial.result_path.parent.mkdir(parents=True, exist_ok=True)
    trial.result_path.write_text(json.dumps({**result, **changes}))
