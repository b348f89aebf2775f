"""Whole runs on observations that are no image: every agent, from the environment to the score."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stream_envs import Sampled
from tiny import config

import mbrl
from mbrl.config.schema import Config
from mbrl.run import checkpoint
from mbrl.train import train

VECTORS = {"hidden": 16, "width": 16, "members": 2, "components": 2}


def run_config(folder: Path, space: str, **changes: Any) -> Config:
    env = {"id": None, "factory": "stream_envs.Sampled", "kwargs": {"space": space}}
    return config(folder, env=env, world_model={"vectors": VECTORS}, **changes)


@pytest.mark.usefixtures("ray_session")
def test_a_dream_agent_on_dicts_trains_resumes_exactly_and_acts(tmp_path: Path) -> None:
    whole, parted = (
        run_config(tmp_path / name, "nested", env_steps=64, run={"video": True}) for name in "ab"
    )
    result = train(whole)
    with pytest.raises(SystemExit):
        train(parted, lambda run: run.request_stop())
    assert train(parted)["env_steps"] == result["env_steps"] == 64
    weights = [
        checkpoint.load(one.run.dir / "checkpoints")[1]["learner"]["model"]
        for one in (whole, parted)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list((tmp_path / "a").rglob("*.mp4"))  # nothing to draw
    run = mbrl.open_run(tmp_path / "a")
    env = Sampled("nested")
    obs, _ = env.reset(seed=0)
    assert run.agent().act(obs) in (0, 1)
    with pytest.raises(ValueError, match=r"obs: expected a dict with the keys \['place'"):
        run.agent().act({"place": obs["place"]})
    with pytest.raises(ValueError, match=r"obs\.place: expected \(3,\) .*float64, got \(2,\)"):
        run.agent().act({**obs, "place": obs["place"][:2]})
    dream = run.dream_env(num_envs=3)
    assert dream.reset(seed=0)[0].shape == (3, 20 + 16)  # inputs and state


SMALL = {
    "ppo": dict(num_envs=2, batch_steps=64, minibatch_size=32, epochs=1, dense=16),
    "dqn": dict(num_envs=2, learning_starts=32, batch_size=8, training_intensity=2.0, dense=16),
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize(("agent", "space"), [("ppo", "nested"), ("dqn", "from minus one")])
def test_a_baseline_trains_on_any_space_and_acts(agent: str, space: str, tmp_path: Path) -> None:
    settings = run_config(
        tmp_path, space, agent=agent, env_steps=64, **{agent: SMALL[agent]}, run={"video": True}
    )
    assert train(settings)["env_steps"] >= 64
    policy = mbrl.open_run(tmp_path).agent()
    env = Sampled(space)
    assert policy.act(env.reset(seed=0)[0]) in (0, 1)


@pytest.mark.usefixtures("ray_session")
def test_a_film_that_fails_is_told_of_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no encoder")

    monkeypatch.setattr("mbrl.train.write_dream_video", fail)
    settings = run_config(tmp_path, "vector", env_steps=64, run={"video": True})
    assert train(settings)["env_steps"] == 64
    assert caplog.text.count("the dream could not be filmed") == 1
    assert "OSError: no encoder" in caplog.text
