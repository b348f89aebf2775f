"""How fast replay feeds a learner, against what people would write or use instead.

    python -m benchmarks.replay [--out results/replay/peers.json]

All three samplers hold the same episodes (64 x 64 x 1, uint8) and give batches of B = 32 sequences
of T = 32 rows with observation, action, reward, terminated and is_first. The peers:

* `list of episodes`: one Python loop over the batch, slices of whole episodes, `np.stack`. It
  never crosses an episode, so it under-samples ends; it is the simplest thing that works.
* `rllib EpisodeReplayBuffer`: the buffer of RLlib's DreamerV3, sampled for (B, T) batches.

Rounds of the samplers alternate, so that a busy machine slows all of them; the median round counts.
Also measured: encode and commit, load into the ring, and the tape over a million rows.
"""

import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.measure import Contestant, Row, alternate, options, report, timed
from benchmarks.synthetic import moving_square
from mbrl.episode import Episode
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.replay.sampler import FragmentTable

Sampler = Callable[[np.random.Generator], object]

RING = "ring"
B, T, SIDE = 32, 32, 64


def naive_sampler(episodes: list[Episode]) -> Sampler:
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


def rllib_sampler(episodes: list[Episode]) -> Sampler:
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


def contestant(name: str, sample: Sampler, seconds: float) -> Contestant:
    """Frames per second of one sampler."""
    rng = np.random.default_rng(0)

    def work() -> float:
        sample(rng)
        return B * T

    return timed(name, work, seconds)


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
    parser = options(__doc__, "results/replay/peers.json", rounds=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one round of one sampler")
    given = parser.parse_args()

    episodes = moving_square(given.rows, (SIDE, SIDE, 1), seed=0)
    rows = sum(episode.rows for episode in episodes)
    ring = SequenceSampler(rows, {"obs": ((SIDE, SIDE, 1), np.dtype(np.uint8))})
    disk = storage(episodes, ring)
    samplers: dict[str, Sampler] = {
        RING: lambda rng: ring.sample(B, T, rng),
        "list of episodes": naive_sampler(episodes),
        "RLlib EpisodeReplayBuffer": rllib_sampler(episodes),
    }
    speeds = alternate(
        [contestant(*item, given.seconds) for item in samplers.items()], given.rounds
    )
    tape = tape_seconds(1_000_000, envs=64, fragment=64)
    table = [speeds.row(name, "frames/s") for name in samplers if not name.startswith(RING)]
    table += [speeds.row(RING, "frames/s", peer.what) for peer in tuple(table)]
    table += [
        Row(what="commit to disk", value=disk["commit_rows_per_s"], unit="rows/s"),
        Row(what="load into the ring", value=disk["load_rows_per_s"], unit="rows/s"),
        Row(what="compression on disk", value=disk["compression"], unit=": 1"),
        Row(what="tape over a million rows", value=1000 * tape["tape_rebuild_s"], unit="ms"),
    ]
    details = {
        "batch": {"B": B, "T": T, "obs": [SIDE, SIDE, 1], "rows": rows},
        "disk": disk,
        "tape": tape,
        "rounds": speeds.rounds,
    }
    report("replay", __doc__, given, table, details)


if __name__ == "__main__":
    main()
