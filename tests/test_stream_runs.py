"""Whole runs on observations that are no image: every agent, from the environment to the score.

The dream agent's world model is a stand-in for any that reads streams: it only remembers the
newest observation. What is tested is the way there and back.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from stream_envs import SPACES, Sampled
from tiny import config
from torch import Tensor, nn

import mbrl
from mbrl.config.schema import Config
from mbrl.episode import SequenceBatch
from mbrl.flat_observations import FlatObservations
from mbrl.run import checkpoint
from mbrl.streams import columns_of
from mbrl.train import train
from mbrl.world_model.heads import Heads
from mbrl.world_model.latent import ImaginedStep, Latent, Observed
from mbrl.world_model.layouts import LAYOUTS
from mbrl.world_model.model import Metrics, WorldModel


class Newest(WorldModel):
    """The code is the newest observation, as `FlatObservations` has it."""

    def __init__(self, observation_space: Any, action_space: Any, settings: Any) -> None:
        nn.Module.__init__(self)
        self.settings, self.flat = settings, FlatObservations(observation_space)
        self.feature_size = self.flat.space.shape[0]
        self.next = nn.Linear(self.feature_size, self.feature_size)
        self.heads = Heads(self.feature_size, settings.heads)

    @property
    def foresight(self) -> list[nn.Module]:
        return [self.next]

    def initial(self, n: int, device: torch.device) -> Latent:
        return Latent(torch.zeros(n, 1), torch.zeros(n, self.feature_size))

    def features(self, latent: Latent) -> Tensor:
        return latent.code

    def vectors(self, latent: Latent) -> tuple[Tensor, Tensor]:
        return latent.code, latent.hidden

    def _code(self, obs: Any, lead: torch.Size) -> Tensor:
        rows = {
            name: part.flatten(0, len(lead) - 1).numpy() for name, part in columns_of(obs).items()
        }
        return torch.tanh(torch.as_tensor(self.flat.of_rows(rows)).view(*lead, -1))

    def observe(self, latent: Any, prev_action: Any, obs: Any, is_first: Any, g: Any = None) -> Any:
        code = self._code(obs, is_first.shape)
        return Observed(Latent(torch.zeros(*is_first.shape, 1), code), code)

    @torch.no_grad()
    def imagine_step(
        self, latent: Latent, action: Tensor, generator: Any = None, *, mode: bool = False
    ) -> ImaginedStep:
        code = torch.tanh(self.next(latent.code))
        return ImaginedStep(Latent(latent.hidden, code), *self.heads.predict(code))

    def decode(self, latent: Latent, generator: Any = None) -> Tensor:
        return latent.code

    def frame_nats(self, obs: Any, latent: Latent, generator: Any = None) -> Tensor:
        return torch.zeros(len(latent.code))

    def rates(self, observed: Observed) -> tuple[Tensor, Tensor]:
        return observed.posterior.sum(-1), observed.posterior.sum(-1)

    def doubt(self, batch: SequenceBatch) -> str:
        return ""

    def loss(self, batch: SequenceBatch, generator: Any = None) -> tuple[Tensor, Metrics, Latent]:
        _, obs, is_first = self.inputs(batch)
        code = self._code(obs, is_first.shape)
        error = (torch.tanh(self.next(code[:, :-1])) - code[:, 1:]).square().mean()
        reward, terminated = map(torch.as_tensor, (batch.reward, batch.terminated))
        loss = error + sum(part.mean() for part in self.heads.loss(code, reward, terminated))
        latent = Latent(torch.zeros(*is_first.shape, 1), code.detach())
        return loss, {"loss": loss.detach()}, latent


def run_config(folder: Path, space: str, **changes: Any) -> Config:
    env = {"id": None, "factory": "stream_envs.Sampled", "kwargs": {"space": space}}
    return config(folder, env=env, **changes)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "flat", Newest)


@pytest.mark.usefixtures("ray_session", "stand_in")
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
    assert dream.reset(seed=0)[0].shape == (3, FlatObservations(SPACES["nested"]).space.shape[0])


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


@pytest.mark.usefixtures("ray_session", "stand_in")
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
