"""How fast replay feeds a learner, against what people would write or use instead.

    OMP_NUM_THREADS=1 python benchmarks/replay.py [--out results/replay/peers.json]

All three samplers hold the same episodes (64 x 64 x 1, uint8) and give batches of B = 32 sequences
of T = 32 rows with observation, action, reward, terminated and is_first. The peers:

* `list of episodes`: one Python loop over the batch, slices of whole episodes, `np.stack`. It
  never crosses an episode, so it under-samples ends; it is the simplest thing that works.
* `rllib EpisodeReplayBuffer`: the buffer of RLlib's DreamerV3, sampled for (B, T) batches.

Rounds of the samplers alternate, so that a busy machine slows all of them; the median round counts.
Also measured: encode and commit, load into the ring, and the tape over a million rows.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mbrl.episode import Episode
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.replay.tape import FragmentTable

B, T, SIDE = 32, 32, 64


def make_episodes(rows: int, seed: int) -> list[Episode]:
    """Episodes of 100 to 500 steps in which a square moves over a fixed background."""
    rng = np.random.default_rng(seed)
    background = (rng.random((SIDE, SIDE, 1)) < 0.1).astype(np.uint8) * 90
    episodes, total = [], 0
    while total < rows:
        n = int(rng.integers(101, 502))
        obs = np.repeat(background[None], n, axis=0)
        path = rng.integers(-2, 3, size=(n, 2)).cumsum(axis=0) % (SIDE - 8)
        for frame, (y, x) in zip(obs, path, strict=True):
            frame[y : y + 8, x : x + 8] = 255
        acted = np.arange(n) < n - 1
        terminateds = np.arange(n) == n - 2
        episodes.append(
            Episode(
                eps_id=f"{len(episodes):08d}",
                t0=0,
                obs=obs,
                actions=np.where(acted, rng.integers(0, 6, n), 0),
                rewards=np.where(acted, rng.random(n), 0).astype(np.float32),
                terminateds=terminateds,
                truncateds=np.zeros(n, bool),
                life_loss=np.zeros(n, bool),
                ended=True,
            )
        )
        total += n
    return episodes


def naive_sampler(episodes: list[Episode]) -> Callable[[np.random.Generator], object]:
    """What one writes first: pick an episode, slice it, stack the slices."""

    def sample(rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows: dict[str, list[np.ndarray]] = {k: [] for k in ("obs", "action", "reward", "term")}
        for _ in range(B):
            episode = episodes[int(rng.integers(len(episodes)))]
            start = int(rng.integers(episode.rows - T + 1))
            window = slice(start, start + T)
            rows["obs"].append(episode.obs[window])
            rows["action"].append(episode.actions[window])
            rows["reward"].append(episode.rewards[window])
            rows["term"].append(episode.terminateds[window])
        batch = {name: np.stack(values) for name, values in rows.items()}
        batch["is_first"] = np.zeros((B, T), bool)
        return batch

    return sample


def rllib_sampler(episodes: list[Episode]) -> Callable[[np.random.Generator], object]:
    """RLlib's buffer, filled with the same episodes."""
    warnings.simplefilter("ignore")
    import gymnasium as gym
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

    space = gym.spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    buffer = EpisodeReplayBuffer(capacity=sum(e.rows for e in episodes) + 1)
    for episode in episodes:
        buffer.add(
            SingleAgentEpisode(
                id_=episode.eps_id,
                observation_space=space,
                action_space=gym.spaces.Discrete(6),
                observations=list(episode.obs),
                actions=list(episode.actions[:-1]),
                rewards=list(episode.rewards[:-1]),
                terminated=True,
                len_lookback_buffer=0,
            )
        )
    return lambda _: buffer.sample(batch_size_B=B, batch_length_T=T)


def frames_per_second(
    samplers: dict[str, Callable[[np.random.Generator], object]], rounds: int, seconds: float
) -> dict[str, float]:
    """Median over alternating rounds of at least `seconds` each."""
    speeds: dict[str, list[float]] = {name: [] for name in samplers}
    rng = np.random.default_rng(0)
    for sample in samplers.values():
        sample(rng)
    for _ in range(rounds):
        for name, sample in samplers.items():
            batches, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                sample(rng)
                batches += 1
            speeds[name].append(batches * B * T / spent)
    return {name: float(np.median(values)) for name, values in speeds.items()}


def storage(episodes: list[Episode], sampler: SequenceSampler) -> dict[str, float]:
    """Commit the episodes in segments of about 1,000 rows, then fill the ring from the folder."""
    rows = sum(episode.rows for episode in episodes)
    with tempfile.TemporaryDirectory() as folder:
        store = ReplayStore(folder, "moving-square")
        start = time.perf_counter()
        for i in range(0, len(episodes), 3):
            store.commit(episodes[i : i + 3], "bench", i)
        committed = time.perf_counter()
        sampler.refresh(store)
        loaded = time.perf_counter()
        stats = store.stats()
    return {
        "commit_rows_per_s": rows / (committed - start),
        "load_rows_per_s": rows / (loaded - committed),
        "compression": stats.compression,
        "bytes_per_row_on_disk": stats.disk_bytes / rows,
    }


def tape_seconds(rows: int, envs: int, fragment: int) -> dict[str, float]:
    """Time of one tape over `rows` rows of `envs` interleaved episodes, and of one append."""
    table, total = FragmentTable(), 0
    flat = np.zeros(fragment, bool)
    start = time.perf_counter()
    for i in range(rows // fragment):
        episode_number, t0 = (i // envs // 8) * envs + i % envs, (i // envs % 8) * fragment
        piece = Episode(
            eps_id=str(episode_number),
            t0=t0,
            obs=flat,
            actions=flat,
            rewards=flat.astype(np.float32),
            terminateds=flat,
            truncateds=flat,
            life_loss=flat,
        )
        table.append(piece, total)
        total += fragment
    added = time.perf_counter() - start
    times = []
    for _ in range(5):
        start = time.perf_counter()
        table.tape(rows)
        times.append(time.perf_counter() - start)
    return {
        "rows": rows,
        "fragments": rows // fragment,
        "tape_rebuild_s": float(np.median(times)),
        "append_fragment_us": 1e6 * added / (rows // fragment),
    }


def main() -> None:
    """Measure, print with ratios, and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one round of one sampler")
    parser.add_argument("--out", type=Path, default=Path("results/replay/peers.json"))
    options = parser.parse_args()

    episodes = make_episodes(options.rows, seed=0)
    rows = sum(episode.rows for episode in episodes)
    ring = SequenceSampler(rows, (SIDE, SIDE, 1))
    disk = storage(episodes, ring)
    frames = np.empty((B, T, SIDE, SIDE, 1), np.uint8)
    speeds = frames_per_second(
        {
            "ring": lambda rng: ring.sample(B, T, rng),
            "ring, reused buffer": lambda rng: ring.sample(B, T, rng, out=frames),
            "list of episodes": naive_sampler(episodes),
            "rllib EpisodeReplayBuffer": rllib_sampler(episodes),
        },
        options.rounds,
        options.seconds,
    )
    tape = tape_seconds(1_000_000, envs=64, fragment=64)
    ratios = {name: speeds["ring"] / speed for name, speed in speeds.items()}

    print(f"{rows:,} rows of {SIDE}x{SIDE}x1 uint8, batches of {B} x {T}")
    for name, speed in speeds.items():
        print(f"  {name:<28} {speed:>12,.0f} frames/s   the ring is {ratios[name]:5.1f} x this")
    print(
        f"  commit {disk['commit_rows_per_s']:,.0f} rows/s, load into the ring "
        f"{disk['load_rows_per_s']:,.0f} rows/s, {disk['compression']:.0f} : 1 on disk"
    )
    print(
        f"  tape over {tape['rows']:,} rows in {tape['fragments']:,} fragments: "
        f"{1000 * tape['tape_rebuild_s']:.1f} ms"
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report = {
        "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python "
        + " ".join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}",
        "commit": commit,
        "numbers": {
            "batch": {"B": B, "T": T, "obs": [SIDE, SIDE, 1], "rows": rows},
            "frames_per_s": speeds,
            "ring_speed_over": ratios,
            "disk": disk,
            "tape": tape,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.out}")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


if __name__ == "__main__":
    main()
