"""How fast a world model trains, in replayed rows per second.

    python -m benchmarks.world_model [--rounds 3] [--threads 1]

Each figure is `WorldModelLearner.learn` as a run calls it: batches sampled from the ring, loss,
gradient, clipping, Adam. Measured are the world models of `configs/minatar.yaml` and
`configs/atari_pong.yaml` with each decoder, with and without bfloat16, each compared to the
project's default (PixelCNN, bfloat16).

The peer is RLlib's DreamerV3, size XS, in one run with ours on the same frames (64 x 64 x 3) and
batches (2 x 64, which saves time; its own 16 x 64 is shown too). Its figures are of its world model
alone (its update minus its dreams and what is learned from them) and of the whole update. What
differs is said in the row: parameters, the share of rows that is decoded, precision.
`configs/cluster.yaml` has the size nearest to the peer's; its row with float32, squared error and
every row decoded is the fairest comparison of all.

Launches per update are what bounds a small model on a GPU; without one, ATen ops are counted.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from benchmarks import rllib_dreamer
from benchmarks.launches import UNIT
from benchmarks.launches import count as count_launches
from benchmarks.measure import Contestant, Row, alternate, options, report, timed
from benchmarks.rllib_dreamer import DreamerV3Peer, count
from benchmarks.synthetic import moving_square
from mbrl.config.schema import Config, load
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore

ACTIONS: spaces.Discrete[Any] = spaces.Discrete(rllib_dreamer.ACTIONS)
FRAMES = {"minatar": ((10, 10, 4), 1), "atari_pong": ((64, 64, 1), 255), "rgb": ((64, 64, 3), 255)}
DECODERS = {
    "pixelcnn": ["kind=pixelcnn"],
    "deconv categorical": ["kind=deconv", "likelihood=categorical"],
    "deconv mse": ["kind=deconv", "likelihood=mse"],
}
ROWS = 4000
B = 2  # sequences per batch where systems are compared


def stores(folder: Path) -> dict[str, ReplayStore]:
    """A store of synthetic episodes for each kind of frame."""
    made = {}
    for kind, (shape, high) in FRAMES.items():
        made[kind] = ReplayStore(folder / kind, kind)
        episodes = moving_square(ROWS, shape, seed=0, high=high, actions=rllib_dreamer.ACTIONS)
        made[kind].commit(episodes, "bench", ROWS)
    return made


def learner(config: Config, frames: str, store: ReplayStore) -> WorldModelLearner:
    """A learner whose ring is full."""
    shape, high = FRAMES[frames]
    space = spaces.Box(0, high, shape, np.uint8)
    made = WorldModelLearner(
        space, ACTIONS, config.world_model, config.learn_model, store, 2 * ROWS, None, config.seed
    )
    made.refresh()
    return made


def contestant(name: str, one: WorldModelLearner, updates: int) -> Contestant:
    """Replayed rows per second of `learn`."""
    rows = updates * one.batch_size * one.settings.sequence_length

    def work() -> float:
        one.learn(updates)
        return rows

    return timed(name, work)


def launches(name: str, one: WorldModelLearner, updates: int = 2) -> Row:
    """Kernel launches of one update, or on a CPU its ATen ops."""
    given = count_launches(lambda: one.learn(updates), one.device) / updates
    return Row(what=f"{name}, one update", value=given, unit=UNIT[one.device.type])


def own_arms(made: dict[str, ReplayStore]) -> dict[str, tuple[WorldModelLearner, int]]:
    """Every decoder and precision of the two configs, and how many updates make one round."""
    arms = {}
    for config, updates in (("minatar", 2), ("atari_pong", 1)):
        for decoder, settings in DECODERS.items():
            for bf16 in (True, False):
                chosen = [f"world_model.decoder.{setting}" for setting in settings]
                chosen.append(f"world_model.bf16={str(bf16).lower()}")
                chosen.append("world_model.layout=flat")
                loaded = load(f"configs/{config}.yaml", chosen)
                name = f"{config}, {decoder}, {'bf16' if bf16 else 'fp32'}"
                arms[name] = learner(loaded, config, made[config]), updates
        chosen = ["world_model.layout=grid"]
        grid = learner(load(f"configs/{config}.yaml", chosen), config, made[config])
        arms[f"{config}, grid, bf16"] = grid, updates
    return arms


def peer_arms(made: dict[str, ReplayStore]) -> dict[str, WorldModelLearner]:
    """Our models on the peer's frames and batches, named by what else differs."""
    batch = [
        f"learn_model.batch_size={B}",
        f"learn_model.sequence_length={rllib_dreamer.T}",
        "learn_model.num_learners=0",
        "device=cpu",
    ]
    mse = [f"world_model.decoder.{setting}" for setting in DECODERS["deconv mse"]]
    whole, fp32 = ["world_model.decoder.fraction=1"], ["world_model.bf16=false"]
    arms = {}
    for config, extra in (
        ("atari_pong", []),
        ("atari_pong", mse + whole),
        ("cluster", mse + whole + fp32),
    ):
        loaded = load(f"configs/{config}.yaml", batch + extra)
        one = learner(loaded, "rgb", made["rgb"])
        arms[f"{config} on 64x64x3, {B} x {rllib_dreamer.T}, {_traits(loaded, one)}"] = one
    return arms


def _traits(config: Config, one: WorldModelLearner) -> str:
    decoder = config.world_model.decoder
    kind = f"{decoder.kind} {getattr(decoder, 'likelihood', '')}".strip()
    decoded = "all rows" if decoder.fraction == 1 else f"{decoder.fraction:.0%} of rows"
    precision = "bf16" if config.world_model.bf16 else "fp32"
    return f"{_millions(count(one.model.parameters()))}, {kind}, {decoded} decoded, {precision}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M parameters"


def peer_name(peer: DreamerV3Peer, part: str) -> str:
    """What the peer's figures are called."""
    size = _millions(peer.parameters["world_model"])
    batch = f"{peer.batch_size} x {rllib_dreamer.T}"
    return f"RLlib DreamerV3 XS, {part}, {batch}, {size}, mse, all rows decoded, fp32"


def peer_contestant(peer: DreamerV3Peer) -> Contestant:
    """The peer's replayed rows per second: world model alone, and the whole update."""
    rows = peer.batch_size * rllib_dreamer.T

    def contest() -> dict[str, float]:
        seconds = peer.update()
        return {
            peer_name(peer, "world model alone"): rows / seconds["world_model"],
            peer_name(peer, "whole update"): rows / seconds["all"],
        }

    return contest


def main() -> None:
    """Measure, print with ratios, and write the numbers as JSON."""
    given = options(__doc__, "results/benchmarks/world_model.json", rounds=3).parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = stores(Path(folder))
        own, ours = own_arms(made), peer_arms(made)
        episodes = list(made["rgb"].fragments())
        peers = [DreamerV3Peer(episodes), DreamerV3Peer(episodes, B)]
        contestants = [contestant(name, *arm) for name, arm in own.items()]
        contestants.append(peer_contestant(peers[0]))
        contestants += [contestant(name, one, 1) for name, one in ours.items()]
        contestants.append(peer_contestant(peers[1]))
        speeds = alternate(contestants, given.rounds)
    rows: list[Row] = []
    for name in own:
        default = f"{name.split(',')[0]}, pixelcnn, bf16"
        rows.append(speeds.row(name, "rows/s", "" if name == default else default))
    parts = ("whole update", "world model alone")
    rows += [speeds.row(peer_name(peer, part), "rows/s") for peer in peers for part in parts]
    yardstick = peer_name(peers[1], "world model alone")
    rows += [speeds.row(name, "rows/s", yardstick) for name in ours]
    rows += [launches(name, arm[0]) for name, arm in own.items() if name.endswith("bf16")]
    arms = {name: arm[0] for name, arm in own.items()} | ours
    details: dict[str, Any] = {
        "threads": given.threads,
        "arms": {name: _sizes(one) for name, one in arms.items()},
        "peer": {"parameters": peers[0].parameters},
        "rounds": speeds.rounds,
    }
    report("world_model", __doc__, given, rows, details)


def _sizes(one: WorldModelLearner) -> dict[str, Any]:
    return {
        "parameters": count(one.model.parameters()),
        "batch": [one.batch_size, one.settings.sequence_length],
        "frame": list(one.model.image_shape),
        "levels": one.model.levels,
    }


if __name__ == "__main__":
    main()
