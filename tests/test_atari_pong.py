"""The Pong config collects, trains and dreams on the real ALE, at its own frame size, on a CPU."""

from pathlib import Path

from mbrl.config.schema import load
from mbrl.run.metrics import read_metrics
from mbrl.train import train

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "atari_pong.yaml"


def test_pong_collects_trains_and_dreams(tmp_path: Path) -> None:
    small = [
        f"run.dir={tmp_path / 'run'}",
        "run.tensorboard=false",
        "run.threads=1",
        "env.max_episode_steps=40",
        "env_steps=96",
        "collect={num_envs: 2, prefill_steps: 64, steps_per_iteration: 32, until_reward: false}",
        "learn_model={train_ratio: 2, batch_size: 2, sequence_length: 16}",
        "learn_policy.dream_ratio=4",
        "policy={dreams: 16, horizon: 4, minibatch_size: 32}",
        "evaluate={final_episodes: 1, num_envs: 1}",
    ]
    result = train(load(CONFIG, small))
    assert result["env_id"] == "ALE/Pong-v5"
    assert result["env_steps"] == 96
    assert result["budget"]["replayed_rows"] == 2 * 96
    assert result["budget"]["imagined_steps"] == 4 * 96
    # a uniform guess over 16 levels costs 11,357 nats; counting pixels alone must save most of them
    for line in read_metrics(tmp_path / "run", kind="train"):
        assert line["world_model/nats_per_frame"] < 1000
    assert (tmp_path / "run/videos/dream-000000096.mp4").stat().st_size > 1000
