"""How fast the dream is, in imagined steps per second, and next to what it replaces.

    python -m benchmarks.imagine [--rounds 3] [--threads 1]

Measured, for the world models and policies of `configs/minatar.yaml` and `configs/atari_pong.yaml`:
`DreamEnv.step` alone; a `DreamPPO` rollout (dream, actor, critic, returns); `DreamPPO.learn` whole
(rollouts and their PPO updates); and `DreamVectorEnv`, the gymnasium face of the same dream.

Compared to:

* the real environment in a bare loop of `step` and `reset` with random actions;
* RLlib's DreamerV3, size XS, in one run: the dreams inside its update (with actor and critic), and
  the dreams with what is learned from them. Its world model is larger than ours (the table has the
  parameters), so that of `configs/cluster.yaml`, the nearest in size, is measured too;
* stock RLlib PPO that trains in the same dream through `vector_entry_point`.

The world models are untrained, which changes no shape; their dreams go on with probability 0.993
per step, as in a game whose episodes last 150 steps.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch

from agents.dream_ppo import DreamPPO
from benchmarks import rllib_dreamer
from benchmarks.measure import Contestant, Row, Speeds, alternate, options, report, timed
from benchmarks.rllib_dreamer import DreamerV3Peer, count
from benchmarks.synthetic import moving_square
from envs import make_env
from mbrl.config.schema import Config, load
from mbrl.imagine import DreamEnv, DreamVectorEnv
from mbrl.world_model.layouts import make_world_model

CONFIGS = {
    "minatar": [],
    "atari_pong": [],
    "cluster": [  # the size nearest to the peer's, with as many dreams as it has
        f"policy.dreams={rllib_dreamer.ROWS}",
        f"policy.horizon={rllib_dreamer.HORIZON}",
        "policy.minibatch_size=1920",
        "learn_policy.num_learners=0",
        "device=cpu",
    ],
}
CONTINUE_LOGIT = 5.0
REAL_STEPS = 1000
PPO_DREAMS = 64
PEER_DREAM = "RLlib DreamerV3 XS: dream with actor and critic"
PEER_LEARN = "RLlib DreamerV3 XS: dream and learn from it"
STEP, ROLLOUT = "DreamEnv.step", "DreamPPO rollout (dream, actor, critic, returns)"
LEARN, VECTOR = "DreamPPO.learn (rollout and update)", "DreamVectorEnv.step"
STOCK = f"stock RLlib PPO in DreamVectorEnv ({PPO_DREAMS} dreams)"


def bare_loop(config: Config) -> Callable[[], float]:
    """The real environment with random actions and nothing else."""
    env = make_env(config.env)
    rng = np.random.default_rng(0)
    actions = int(env.action_space.n)  # type: ignore[attr-defined]
    env.reset(seed=0)

    def work() -> float:
        for action in rng.integers(0, actions, REAL_STEPS).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset(seed=int(rng.integers(2**31)))
        return REAL_STEPS

    return work


@torch.no_grad()
def make_dream(config: Config, dreams: int) -> DreamEnv:
    """A dream of the config's world model that starts from random frames."""
    env = make_env(config.env)
    space, action_space = env.observation_space, env.action_space
    env.close()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = make_world_model(space, action_space, config.world_model).eval()
    model.heads.out.bias[-1] = CONTINUE_LOGIT
    space.seed(0)
    frames = torch.as_tensor(np.stack([space.sample() for _ in range(dreams)]))
    nothing = model.initial(dreams, frames.device)
    no_action = torch.zeros(dreams, dtype=torch.int64)
    first = torch.ones(dreams, dtype=torch.bool)
    starts = model.observe(nothing, no_action, frames, first, generator).latent
    return DreamEnv(model, action_space, starts, dreams, generator)


def tensor_steps(dream: DreamEnv, horizon: int) -> Callable[[], float]:
    """One rollout with random actions: tensors in, tensors out."""
    n = int(dream.action_space.n)  # type: ignore[attr-defined]
    actions = torch.randint(n, (horizon, dream.num_envs), generator=torch.Generator())

    def work() -> float:
        dream.reset()
        for action in actions:
            dream.step(action)
        return actions.numel()

    return work


def vector_steps(dream: DreamEnv, horizon: int) -> Callable[[], float]:
    """The same through gymnasium's vector interface."""
    env = DreamVectorEnv(dream, horizon)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    n = int(dream.action_space.n)  # type: ignore[attr-defined]
    actions = rng.integers(0, n, (horizon, dream.num_envs))

    def work() -> float:
        for action in actions:
            env.step(action)
        return actions.size

    return work


def learning(name: str, config: Config, dream: DreamEnv) -> Contestant:
    """`DreamPPO.learn`: the whole, and its rollouts alone."""
    policy = DreamPPO(
        config.policy,
        dream.obs_dim,
        dream.action_space,
        seed=0,
        feature_map=dream.world_model.feature_map,
    )
    policy.learn(dream, 1)

    def contest() -> dict[str, float]:
        start = time.perf_counter()
        metrics = policy.learn(dream, 2)
        spent = time.perf_counter() - start
        steps = metrics["dream_steps"]
        return {
            f"{name}, {ROLLOUT}": steps / metrics["rollout_s"],
            f"{name}, {LEARN}": steps / spent,
        }

    return contest


def stock_ppo(name: str, config: Config) -> Contestant:
    """RLlib's PPO, unpatched, with the same networks' widths, epochs and minibatches."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    if not ray.is_initialized():
        ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1")
    settings = config.policy

    def entry(num_envs: int, **_: Any) -> DreamVectorEnv:
        return DreamVectorEnv(make_dream(config, num_envs), settings.horizon)

    gym.register("reverie/BenchDream-v0", vector_entry_point=entry)  # type: ignore[arg-type]
    batch = settings.horizon * PPO_DREAMS * 4
    algorithm = (
        PPOConfig()
        .environment("reverie/BenchDream-v0")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=PPO_DREAMS,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .training(
            train_batch_size_per_learner=batch,
            minibatch_size=settings.minibatch_size,
            num_epochs=settings.epochs,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=list(settings.hidden)))
        .build_algo()
    )

    def work() -> float:
        algorithm.train()
        return batch

    work()
    return timed(f"{name}, {STOCK}", work)


def peer_contestant(peer: DreamerV3Peer) -> Contestant:
    """The peer's imagined steps per second, from one update."""

    def contest() -> dict[str, float]:
        seconds = peer.update()
        dream, learn = seconds["dream"], seconds["dream"] + seconds["policy"]
        return {
            PEER_DREAM: rllib_dreamer.DREAMED_STEPS / dream,
            PEER_LEARN: rllib_dreamer.DREAMED_STEPS / learn,
        }

    return contest


def table(speeds: Speeds, reals: dict[str, str], sizes: dict[str, int], peer: int) -> list[Row]:
    """Yardsticks first, then every figure of ours with what it is compared to."""
    unit = "steps/s"
    rows = [speeds.row(name, unit) for name in (*reals.values(), PEER_DREAM, PEER_LEARN)]
    for name, real in reals.items():
        rows += [speeds.row(f"{name}, {what}", unit, real) for what in (STEP, LEARN, VECTOR)]
    for name in CONFIGS:
        rows.append(speeds.row(f"{name}, {ROLLOUT}", unit, PEER_DREAM))
        rows.append(speeds.row(f"{name}, {LEARN}", unit, PEER_LEARN))
        rows.append(
            Row(
                what=f"{name}, size of the world model",
                value=sizes[name],
                unit="parameters",
                against="RLlib DreamerV3 XS",
                against_value=peer,
                ratio=sizes[name] / peer,
            )
        )
    rows.append(speeds.row(f"minatar, {LEARN}", unit, f"minatar, {STOCK}"))
    return rows


def main() -> None:
    """Measure, print with ratios, and write the numbers as JSON."""
    given = options(__doc__, "results/benchmarks/imagine.json", rounds=3).parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    contestants: list[Contestant] = []
    reals: dict[str, str] = {}
    sizes: dict[str, int] = {}
    details: dict[str, Any] = {}
    for name, changes in CONFIGS.items():
        config = load(f"configs/{name}.yaml", changes)
        dreams, horizon = config.policy.dreams, config.policy.horizon
        dream = make_dream(config, dreams)
        contestants.append(learning(name, config, dream))
        details[name] = {
            "dreams": dreams,
            "horizon": horizon,
            "features": dream.obs_dim,
        }
        sizes[name] = count(dream.world_model.parameters())
        if changes:
            continue
        reals[name] = f"{config.env.name}, bare loop of the real environment"
        contestants += [
            timed(reals[name], bare_loop(config)),
            timed(f"{name}, {STEP}", tensor_steps(dream, horizon), seconds=0.5),
            timed(f"{name}, {VECTOR}", vector_steps(make_dream(config, dreams), horizon), 0.5),
        ]
    contestants.append(stock_ppo("minatar", load("configs/minatar.yaml")))
    peer = DreamerV3Peer(moving_square(2000, (64, 64, 3), seed=0, actions=rllib_dreamer.ACTIONS))
    contestants.append(peer_contestant(peer))
    speeds = alternate(contestants, given.rounds)
    details["peer"] = {
        "dreams": rllib_dreamer.ROWS,
        "horizon": rllib_dreamer.HORIZON,
        "parameters": peer.parameters,
    }
    report(
        "imagine",
        __doc__,
        given,
        table(speeds, reals, sizes, peer.parameters["world_model"]),
        {"threads": given.threads, **details, "rounds": speeds.rounds},
    )


if __name__ == "__main__":
    main()
