"""The control without a dream: which real steps are learned from, and that learning works."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny import config

from agents.dream_ppo import DreamPPO, Recording
from agents.settings import DreamPolicySettings
from mbrl import open_run
from mbrl.config.schema import Config
from mbrl.episode import Episode
from mbrl.errors import ConfigError
from mbrl.real_steps import RealSteps
from mbrl.replay import ReplayStore
from mbrl.run.run import Run
from mbrl.train import train
from mbrl.world_model.latent import Latent, Observed

ACTIONS = spaces.Discrete(9)


class SeeingModel:
    """Its features are the number that is seen and how many rows were followed before it."""

    device = torch.device("cpu")

    def features(self, latent: Latent) -> torch.Tensor:
        return latent.features

    def initial(self, n: int, device: torch.device) -> Latent:
        return Latent(torch.zeros(n, 1), torch.zeros(n, 1))

    def inputs(self, batch: Any) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.as_tensor, (batch.prev_action, batch.obs, batch.is_first)))

    def observe(
        self, latent: Latent, action: Any, obs: Any, is_first: Any, generator: Any
    ) -> Observed:
        age, ages = torch.zeros(len(obs)), []
        for first in is_first.T:
            age = torch.where(first, torch.zeros_like(age), age + 1)
            ages.append(age)
        seen = obs.flatten(2).float()
        return Observed(Latent(torch.stack(ages, 1).unsqueeze(-1), seen), seen)


def fragment(t0: int, rows: int, total: int, ended: bool = False) -> Episode:
    """Row t shows t, does t modulo 9 and earns 10 + t; the end terminates."""
    t = np.arange(t0, t0 + rows)
    caused = np.where(ended & (t == t[-1]), 0, 1)
    return Episode(
        eps_id="e",
        t0=t0,
        obs=t.astype(np.uint8).reshape(-1, 1, 1, 1),
        actions=t % 9 * caused,
        rewards=((10 + t) * caused).astype(np.float32),
        terminateds=ended & (t == t[-1] - 1),
        truncateds=np.zeros(rows, np.bool_),
        life_loss=np.zeros(rows, np.bool_),
        env_steps_total=total,
        ended=ended,
    )


def steps_of(recording: Recording | None) -> list[tuple[int, int, int, int, int]]:
    """Seen, rows before it, action, reward and going on, of every step that counts."""
    assert recording is not None
    columns = (recording.obs[:-1, :, 0], recording.obs[:-1, :, 1], recording.action)
    columns += (recording.reward, recording.continue_prob)
    found = [column[recording.valid].tolist() for column in columns]
    return [tuple(map(int, row)) for row in zip(*found, strict=True)]  # type: ignore[misc]


def test_each_step_is_recorded_once_behind_its_context_and_never_one_of_the_prefill(
    tmp_path: Path,
) -> None:
    store = ReplayStore(tmp_path, env_id="x")
    settings: Any = {"prefill_steps": 8, "num_envs": 2, "steps_per_iteration": 16}
    tiny = config(tmp_path, agent="model_free", collect=settings)
    assert tiny.learn_model.sequence_length == 8
    real, generator = RealSteps(store, tiny, ACTIONS), torch.Generator()

    def record() -> Recording | None:
        return real.record(SeeingModel(), generator, 9)  # type: ignore[arg-type]

    assert record() is None
    store.commit([fragment(0, 8, total=9)], "c0", 9)  # one step more than asked for
    assert record() is None
    store.commit([fragment(8, 4, total=13)], "c0", 13)
    # the policy chose in rows 8 to 11; where 11 leads is not known yet
    assert steps_of(record()) == [(t, t, t % 9, 10 + t, 1) for t in (8, 9, 10)]
    assert record() is None
    resumed = RealSteps(store, tiny, ACTIONS)
    resumed.catch_up(9)
    store.commit([fragment(12, 3, total=16, ended=True)], "c0", 16)
    last = record()
    # eight rows of context, 4 to 11; 13 is the last choice and 14 the final observation
    wanted = [(11, 7, 2, 21, 1), (12, 8, 3, 22, 1), (13, 9, 4, 23, 0)]
    assert steps_of(last) == wanted
    assert last is not None and last.obs[-1].tolist() == [[14.0, 10.0]]
    real = resumed
    assert steps_of(record()) == wanted


def test_pieces_of_different_lengths_are_recorded_side_by_side(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path, env_id="x")
    real = RealSteps(store, config(tmp_path, agent="model_free"), ACTIONS)
    short = replace(fragment(0, 2, total=99), eps_id="f")
    store.commit([fragment(0, 4, total=99, ended=True), short], "c0", 99)
    recording = real.record(SeeingModel(), torch.Generator(), 0)  # type: ignore[arg-type]
    assert recording is not None and recording.obs.shape == (4, 2, 2)
    assert recording.valid.T.tolist() == [[True, True, True], [True, False, False]]


def chosen(agent: DreamPPO) -> torch.Tensor:
    with torch.no_grad():
        return agent.module.policy(torch.eye(2)).softmax(-1)[:, 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_the_policy_learns_from_what_is_valid_alone() -> None:
    """Action 1 pays in state 0, action 0 in state 1; what is not valid says the opposite."""
    fast = DreamPolicySettings(hidden=(16,), lr=1e-2, epochs=4, minibatch_size=64, entropy=0.0)
    agent = DreamPPO(fast, 2, spaces.Discrete(2), seed=0)
    state = torch.arange(64).remainder(2).expand(3, 64)
    obs = torch.nn.functional.one_hot(torch.cat([state, state[:1]]), 2).float()
    action = torch.arange(64).floor_divide(2).remainder(2).expand(2, 64)
    action = torch.cat([action, action[:1]])
    good = (action != state).float()
    valid = torch.tensor([True, False, True]).unsqueeze(1).expand(3, 64)
    ends = torch.zeros(3, 64)
    recording = Recording(
        obs=obs,
        action=action,
        reward=torch.where(valid, good, 100 * (1 - good)),
        continue_prob=ends,
        valid=valid,
    )
    for _ in range(15):
        metrics = agent.learn(recording, 1)
    assert metrics["dream_steps"] == 2 * 64
    assert metrics["reward"] == metrics["return"] == 0.5
    assert chosen(agent)[0] > 0.9 and chosen(agent)[1] < 0.1
    agent.close()


def test_returns_end_where_the_recording_does_and_bootstrap_there() -> None:
    """Two steps of one piece, and one before a gap: its target is r + gamma v, whatever follows."""
    agent = DreamPPO(DreamPolicySettings(hidden=(4,)), 1, spaces.Discrete(2), seed=0)
    learner = agent._group._learner
    with torch.no_grad():
        learner.latent_module.critic[-1].bias.uniform_(-1, 1)
        value = float(learner.latent_module.compute_values({"obs": torch.zeros(1, 1)}))
    recording = Recording(
        obs=torch.zeros(4, 2, 1),
        action=torch.zeros(3, 2, dtype=torch.int64),
        reward=torch.tensor([[1.0, 1.0], [2.0, 50.0], [90.0, 4.0]]),
        continue_prob=torch.ones(3, 2),
        valid=torch.tensor([[True, True], [True, False], [False, True]]),
    )
    batch, _ = learner._make_batch(recording.play(learner.latent_module))
    columns = batch.policy_batches["default_policy"]
    second = 2 + 0.99 * value
    first = 1 + 0.99 * (0.05 * value + 0.95 * second)
    wanted = [first, 1 + 0.99 * value, second, 4 + 0.99 * value]
    assert columns["value_targets"].tolist() == pytest.approx(wanted, rel=1e-5)
    assert columns["dream_weight"].tolist() == [1.0] * 4
    agent.close()


# -- the whole run --------------------------------------------------------------------------------


def run_config(folder: Path, **changes: Any) -> Config:
    return config(folder, agent="model_free", **changes)


def test_a_run_without_a_dream_imagines_nothing_and_resumes_exactly(tmp_path: Path) -> None:
    result = train(run_config(tmp_path / "whole"))
    # 96 steps, 32 of them random; where the last one of each open episode leads is not known
    assert "imagined_steps" not in result["budget"]
    assert result["budget"]["policy_rounds"] == 4
    assert 64 - 2 <= result["budget"]["policy_steps"] <= 64

    def stop(run: Run) -> None:
        if run.env_steps >= 64 and run.resumed is None:
            run.request_stop()

    with pytest.raises(SystemExit):
        train(run_config(tmp_path / "parts"), stop)
    train(run_config(tmp_path / "parts"))
    one, other = (open_run(tmp_path / name) for name in ("whole", "parts"))
    assert one.result()["budget"] == other.result()["budget"]
    assert one.result()["eval"] == other.result()["eval"]
    agents = [run.agent() for run in (one, other)]
    weights = [agent.policy.newest().state_dict() for agent in agents]  # type: ignore[attr-defined]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["agent"] == "model_free"
    assert one.dream_env(num_envs=2).reset()[0].shape[0] == 2


def test_what_it_cannot_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_learners: expected 0 with agent=model_free"):
        run_config(tmp_path, learn_policy={"num_learners": 2})
    box = spaces.Box(-1, 1, (2,))
    with pytest.raises(ConfigError, match="expected a Discrete action space for model_free"):
        RealSteps(ReplayStore(tmp_path, env_id="x"), run_config(tmp_path), box)
