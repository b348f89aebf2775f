"""Environments in processes of their own: the same steps, and a hang or a death is a crash."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_envs import DiesAt, DiesAtBirth, Hangs, ResetWithoutSeed, settings_of
from tiny import config

from envs import EnvError, EnvSettings, VectorEnv
from envs.process import ProcessEnv
from mbrl.evaluate import evaluate
from mbrl.run.run import changed_settings
from mbrl.train import train

COUNTING = EnvSettings(id="reverie/Counting-v0", ram=True)


def played(vector: VectorEnv, steps: int) -> list[tuple[Any, ...]]:
    """What E slots show, a slot that ends or crashes being reset with the next seed."""
    seen = []
    for slot in range(vector.num_envs):
        vector.reset(slot, slot)
    for number in range(steps):
        step = vector.step(np.full(vector.num_envs, number % 2))
        seen.append((step.obs, step.rewards, step.terminateds, step.crashed, vector.ram))
        for slot in np.flatnonzero(step.terminateds | step.crashed).tolist():
            vector.reset(slot, number)
    return seen


def test_steps_in_other_processes_are_the_same_steps() -> None:
    both = []
    for apart in (False, True):
        vector = VectorEnv(COUNTING, 2, apart=apart)
        try:
            both.append(played(vector, 12))
        finally:
            vector.close()
    for here, there in zip(*both, strict=True):
        for one, two in zip(here, there, strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("Replacing", {}), ("OddActions", {"actions": "no bounds"})],
)
def test_the_actions_that_count_and_what_is_assumed_of_them_come_along(
    name: str, kwargs: dict[str, Any]
) -> None:
    settings = EnvSettings(factory=f"odd_actions.{name}", kwargs=kwargs)
    both = []
    for apart in (False, True):
        vector = VectorEnv(settings, 1, apart=apart)
        try:
            vector.reset(0, 0)
            both.append((vector.single_action_space, vector.assumed))
        finally:
            vector.close()
    assert both[0] == both[1] and bool(both[0][1]) == bool(kwargs)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (Hangs, r"TimeoutError: step\(\) has not returned within 2 s \(env.step_timeout_s\)"),
        (DiesAt, r"ConnectionError: the environment's process died in step\(\), exit code 3"),
    ],
)
def test_a_hang_and_a_death_are_crashes_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factory: Any, said: str
) -> None:
    settings = settings_of(factory, at=3, once=str(tmp_path / "was here"))
    vector = VectorEnv(settings.model_copy(update={"step_timeout_s": 2.0}), 2, apart=True)
    try:
        crashed = np.array([step[3] for step in played(vector, 8)])
    finally:
        vector.close()
    assert crashed.sum() == vector.restarts == 1 and crashed[3].sum() == 1
    assert re.search(said, caplog.text)


def test_a_constructor_that_takes_its_process_down_is_refused_here() -> None:
    died = r"cannot make odd_envs.DiesAtBirth: .* died in its constructor, exit code 3"
    with pytest.raises(EnvError, match=died):
        VectorEnv(settings_of(DiesAtBirth), 1, apart=True)


def test_what_cannot_be_made_there_is_refused_here() -> None:
    with pytest.raises(EnvError, match=r"odd_envs.ResetWithoutSeed.*add seed"):
        VectorEnv(settings_of(ResetWithoutSeed), 1, apart=True)


def test_closing_does_not_wait_for_a_step_that_hangs() -> None:
    env = ProcessEnv(settings_of(Hangs, at=0))
    env.reset(seed=0)
    env.begin_step(0)
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 30


def test_a_timeout_needs_a_process_and_neither_binds_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected collect.vector=subprocess with it"):
        config(tmp_path, env={"step_timeout_s": 5.0})
    train(config(tmp_path, agent="random", evaluate={"final_episodes": 1}))
    more = {"env": {"step_timeout_s": 5.0}, "collect": {"vector": "subprocess"}}
    random = {"agent": "random", "evaluate": {"final_episodes": 1}}
    assert changed_settings(tmp_path, config(tmp_path, **random, **more)) == []
    assert changed_settings(tmp_path, config(tmp_path, **random, seed=1)) != []


@pytest.mark.timeout(240)
def test_a_run_counts_a_hang_and_goes_on(tmp_path: Path) -> None:
    kwargs = {"at": 3, "once": str(tmp_path / "was here")}
    env = {"id": None, "factory": "odd_envs.Hangs", "step_timeout_s": 3.0, "kwargs": kwargs}
    apart = {"vector": "subprocess"}
    result = train(config(tmp_path / "run", env=env, env_steps=48, collect=apart))
    assert (tmp_path / "was here").exists()
    assert 48 <= result["env_steps"] == result["budget"]["collected_steps"] < 48 + 2
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"collect/env_restarts": 1' in lines


def test_an_evaluation_ends_a_hang_too(tmp_path: Path) -> None:
    class Still:
        version = 0

        def reset(self, num_envs: int) -> None:
            pass

        def act(self, obs: Any, is_first: Any, explore: bool = True) -> Any:
            return np.zeros(len(obs), int)

    settings = settings_of(Hangs, at=2, once=str(tmp_path / "was here"))
    settings = settings.model_copy(update={"step_timeout_s": 2.0})
    result = evaluate(Still(), settings, 2, 0, 1, apart=True)
    assert result.lengths == [6, 6]
