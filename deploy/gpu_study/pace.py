"""How fast the card learns with several runs on it, and the ratios with which they end in time.

    python -m deploy.gpu_study.pace CONFIG 20 key=value ...

One process per run, all at once, each with the batches and dreams of the config on made-up frames.
In a run ratios are counts, never times, or it could not be repeated: so the speed is measured
before the first step, and what follows from it is written down and kept for all calls.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.gpu_study import ROOT, StudyError
from deploy.gpu_study.study import CONFIG, Game

RATIOS = {"train_ratio": "learn_model.train_ratio", "dream_ratio": "learn_policy.dream_ratio"}
MEASURE_S = 20
MARGIN = 0.75
"""Share of the time that learning may take: the rest is for copies, checkpoints and resumes."""
LEAST, MOST = 1 / 16, 2.0
"""By how much both ratios may shrink and grow."""


def settle(
    path: Path, python: Path, games: Sequence[Game], environment: dict[str, str], minutes: float
) -> None:
    """Give all games the ratios that were chosen at the first call; choose them if this is it.

    Args:
        path: the file they are kept in, with what was measured.
        python: interpreter of the environment.
        games: their settings are added to.
        environment: of the runs' processes.
        minutes: in which all games should be done; 0 leaves the config's ratios, if none are kept.

    Raises:
        StudyError: a game has begun with the config's own ratios, or a measurement failed.
    """
    if not path.exists():
        if not minutes:
            return
        if begun := [game.name for game in games if game.begun]:
            raise StudyError(
                f"expected to choose the ratios before the first step, {', '.join(begun)} has "
                f"begun with the config's: go on without --fit-minutes, or remove the run folders"
            )
        measured = side_by_side(python, games, environment)
        chosen = fitting(measured, games[0].env_steps, minutes)
        kept = {"minutes": minutes, "measured": measured, "chosen": chosen}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
    for name, value in json.loads(path.read_text())["chosen"].items():
        for game in games:
            game.settings.append(f"{name}={value:g}")


def side_by_side(
    python: Path, games: Sequence[Game], environment: dict[str, str]
) -> list[dict[str, float]]:
    """Measure all games at once, each in a process of its own."""
    command = [str(python), "-m", "deploy.gpu_study.pace", CONFIG, str(MEASURE_S)]
    at_work = [
        subprocess.Popen(
            [*command, *game.settings], cwd=ROOT, env=environment, stdout=subprocess.PIPE
        )
        for game in games
    ]
    said = [process.communicate()[0] for process in at_work]
    if any(process.returncode for process in at_work):
        raise StudyError("the speed could not be measured, see above; without it: no --fit-minutes")
    return [json.loads(one.splitlines()[-1]) for one in said]


def fitting(
    measured: Sequence[Mapping[str, float]], env_steps: int, minutes: float
) -> dict[str, float]:
    """Ratios, in the proportion of the config, with which every run ends in time.

    Args:
        measured: of each run what `measure` returns.
        env_steps: of each run.
        minutes: in which they should be done.
    """
    per_step_s = max(
        one["train_ratio"] / one["rows_per_s"] + one["dream_ratio"] / one["imagined_per_s"]
        for one in measured
    )
    scale = min(MOST, max(LEAST, MARGIN * 60 * minutes / env_steps / per_step_s))
    rounded = {name: float(f"{measured[0][name] * scale:.2g}") for name in RATIOS}
    return {RATIOS[name]: value for name, value in rounded.items()}


def measure(config: Any, seconds: float) -> dict[str, float]:
    """Learn in turns from made-up frames and in their dreams, for so many seconds.

    Returns replayed rows and imagined steps per second of the time spent on each, the ratios of the
    config, and what one update gives the device to do.
    """
    import torch

    from agents.dream_ppo import DreamPPO
    from benchmarks.launches import UNIT, count
    from benchmarks.synthetic import moving_square
    from mbrl.collect import spaces_of
    from mbrl.imagine import DreamEnv
    from mbrl.learn_model import WorldModelLearner
    from mbrl.replay import ReplayStore

    learn, policy = config.learn_model, config.policy
    space, actions = spaces_of(config.env)
    shape: Any = space.shape
    with tempfile.TemporaryDirectory() as folder:
        store = ReplayStore(Path(folder), "pace")
        choices = int(actions.n)  # type: ignore[attr-defined]
        store.commit(moving_square(4000, shape, 0, actions=choices), "pace", 4000)
        world = WorldModelLearner(
            space, actions, config.world_model, learn, store, 8000, None, 0, config.device
        )
        world.refresh()
        _, starts = world.learn(5)
        device = world.device
        given = count(lambda: world.learn(1), device)
        width = world.model.feature_size
        maps = world.model.feature_map
        ppo = DreamPPO(policy, width, actions, 0, device=str(device), feature_map=maps)
        generator = torch.Generator(device).manual_seed(0)
        dream = DreamEnv(world.model, actions, starts, policy.dreams, generator)
        ppo.learn(dream, 1)
        spent, done = [0.0, 0.0], [0, 0]
        while sum(spent) < seconds or not all(done):
            for part, work in enumerate((lambda: world.learn(5), lambda: ppo.learn(dream, 2))):
                began = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                spent[part] += time.perf_counter() - began
                done[part] += (5, 2)[part]
        ppo.close()
        world.close()
    rows = learn.batch_size * learn.sequence_length
    return {
        "rows_per_s": done[0] * rows / spent[0],
        "imagined_per_s": done[1] * policy.dreams * policy.horizon / spent[1],
        "train_ratio": learn.train_ratio,
        "dream_ratio": config.learn_policy.dream_ratio,
        f"{UNIT[device.type].replace(' ', '_')}_per_update": given,
    }


def main() -> int:
    """Measure one run's share and print it as JSON."""
    from mbrl import quiet_libraries

    quiet_libraries()
    from mbrl.config.schema import load

    path, seconds, *settings = sys.argv[1:]
    config = load(path, settings)
    if config.run.threads:
        import torch

        torch.set_num_threads(config.run.threads)
    print(json.dumps(measure(config, float(seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
