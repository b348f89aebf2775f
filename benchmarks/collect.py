"""What collecting costs over the bare loop, with random actions.

    python -m benchmarks.collect [--rounds 7]

The bare loop steps the same number of the same gymnasium environments one after the other, resets
them with a new seed when they end, and keeps nothing. The collector does that and everything else:
it checks every observation and reward, cuts fragments, encodes them as parquet, hashes them and
commits the file to disk with fsync.

Overhead is the bare loop's speed over the collector's, minus 1, as the median of alternating
rounds: once by the clock on the wall, which includes waiting for the disk, and once by the time
this process spent on a CPU, which other programs disturb less. Goal: at most 25 % on ALE.

MinAtar is the hard case: a step takes microseconds, and a random episode of Breakout lasts about
ten of them, so that whatever is done per fragment weighs as much as a few steps of the game.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import Contestant, Row, Speeds, alternate, options, report
from envs import EnvSettings, make_env
from mbrl.acting import RandomPolicy
from mbrl.collect import Collector
from mbrl.config.schema import CollectSettings
from mbrl.replay import ReplayStore

ENVS = 8
GOAL_PERCENT = 25.0
CASES = [  # env id, steps of one call of collect, steps of one round
    ("ALE/Pong-v5", 512, 2048),
    ("MinAtar/Breakout-v1", 4096, 16384),
    ("MinAtar/Breakout-v1", 64, 4096),
    ("MinAtar/SpaceInvaders-v1", 4096, 16384),
]


def bare_loop(settings: EnvSettings) -> Callable[[int], None]:
    """Step `ENVS` environments with random actions and keep nothing."""
    envs = [make_env(settings) for _ in range(ENVS)]
    rng = np.random.default_rng(0)
    actions = int(envs[0].action_space.n)  # type: ignore[attr-defined]
    for i, env in enumerate(envs):
        env.reset(seed=i)

    def run(steps: int) -> None:
        for _ in range(steps // ENVS):
            for env, action in zip(envs, rng.integers(0, actions, ENVS).tolist(), strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset(seed=int(rng.integers(2**31)))

    return run


def collecting(settings: EnvSettings, per_call: int, folder: Path) -> Callable[[int], None]:
    """Collect with random actions into a store, `per_call` steps per segment."""
    collector = Collector(
        settings, CollectSettings(num_envs=ENVS), ReplayStore(folder, settings.name), root_seed=0
    )
    policy = RandomPolicy(collector.vector.single_action_space, seed=0)
    taken = 0

    def run(steps: int) -> None:
        nonlocal taken
        for _ in range(steps // per_call):
            taken += collector.collect(per_call, policy, taken).steps

    return run


def contestant(name: str, run: Callable[[int], None], steps: int) -> Contestant:
    """Steps per second by wall clock, and by CPU time under the same name and " (CPU time)"."""

    def contest() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        run(steps)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {name: steps / wall, f"{name} (CPU time)": steps / cpu}

    return contest


def overhead(speeds: Speeds, bare: str, collector: str, what: str, goal: bool) -> Row:
    """Per cent by which a collected step takes longer than a bare one."""
    return Row(
        what=what,
        value=100 * (speeds.ratio(bare, collector) - 1),
        unit="%",
        against=f"goal: at most {GOAL_PERCENT:.0f} %" if goal else "no goal: as low as possible",
    )


def main() -> None:
    """Measure, print with ratios, and write the numbers as JSON."""
    given = options(__doc__, "results/benchmarks/collect.json", rounds=7).parse_args()
    contestants: list[Contestant] = []
    names: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (env_id, per_call, steps) in enumerate(CASES):
            settings = EnvSettings(id=env_id)
            case = f"{env_id}, {per_call} steps per segment"
            bare, collector = f"{case}, bare loop", f"{case}, Collector"
            collect = collecting(settings, per_call, Path(folder) / str(number))
            contestants += [
                contestant(bare, bare_loop(settings), steps),
                contestant(collector, collect, steps),
            ]
            names.append((case, bare, collector, env_id.startswith("ALE/")))
        alternate(contestants, 1)
        speeds = alternate(contestants, given.rounds)
    rows: list[Row] = []
    for case, bare, collector, goal in names:
        rows += [speeds.row(bare, "steps/s"), speeds.row(collector, "steps/s", bare)]
        rows.append(overhead(speeds, bare, collector, f"{case}, overhead", goal))
        cpu = f"{bare} (CPU time)", f"{collector} (CPU time)"
        rows.append(overhead(speeds, *cpu, f"{case}, overhead in CPU time", goal))
    report("collect", __doc__, given, rows, {"num_envs": ENVS, "rounds": speeds.rounds})


if __name__ == "__main__":
    main()
