"""Stop and resume equals never stopped, exactly, when everything runs in one process."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BREAKOUT, config

from mbrl.errors import ConfigError, MbrlError
from mbrl.evaluate import judge
from mbrl.run import checkpoint
from mbrl.run.run import Run
from mbrl.train import train

NESTED = {"id": None, "factory": "stream_envs.Sampled", "kwargs": {"space": "nested"}}
TIMINGS = ("wall_time_s", "_per_s", "rollout_s", "update_s")


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nested states differ, bit for bit; timings do not count."""
    if any(at.endswith(name) for name in TIMINGS):
        return []
    if type(a) is not type(b):
        return [f"{at}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, dict):
        missing = [f"{at}.{key} is in one only" for key in a.keys() ^ b.keys()]
        return missing + [
            d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{at}.{key}")
        ]
    if isinstance(a, list | tuple):
        return differences(dict(enumerate(a)), dict(enumerate(b)), at)
    same = np.array_equal(a, b) if isinstance(a, np.ndarray | torch.Tensor) else a == b
    return [] if same else [f"{at}: {a} and {b}"]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    """Same weights, optimisers, streams, replay, metrics and scores."""
    saved = [checkpoint.load(run / "checkpoints") for run in (one, two)]
    assert differences(*saved) == []
    assert differences(lines(one), lines(two)) == []
    names = [sorted(path.name for path in (run / "replay/data").iterdir()) for run in (one, two)]
    assert names[0] == names[1]
    results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
    for name in ("eval", "curve", "budget"):
        assert results[0][name] == results[1][name]


def test_a_run_without_any_reward_stays_random_and_resumes_exactly(tmp_path: Path) -> None:
    """Freeway pays after 20 steps at the earliest; here no episode is longer than 15."""
    settings: Any = {
        "env": {"id": "MinAtar/Freeway-v1", "max_episode_steps": 15},
        "collect": {"until_reward": True, "repeat": 2.0},
    }

    def stop(run: Run) -> None:
        if run.env_steps >= 64 and run.resumed is None:
            run.request_stop()

    result = train(config(tmp_path / "whole", **settings))
    assert result["budget"]["model_updates"] > 0 and "policy_rounds" not in result["budget"]
    assert {
        line["policy/version"] for line in lines(tmp_path / "whole") if "policy/version" in line
    } == {0}
    with pytest.raises(SystemExit):
        train(config(tmp_path / "parts", **settings), stop)
    train(config(tmp_path / "parts", **settings))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("never") / "run"
    train(config(run_dir))
    return run_dir


# The fragment that was begun when the run was asked to stop is still learned from. 64 steps is a
# multiple of checkpoint and evaluation; 48 falls between two of either.
@pytest.mark.parametrize(("asked_at", "env_steps"), [(32, 48), (48, 64)])
def test_stop_and_resume_equals_never_stopped(
    never_stopped: Path, tmp_path: Path, asked_at: int, env_steps: int
) -> None:
    def stop(run: Run) -> None:
        if run.env_steps == asked_at:
            run.request_stop()

    settings = config(tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        train(settings, on_iteration=stop)
    assert stopped.value.code == 0
    assert checkpoint.load(tmp_path / "run/checkpoints")[0] == env_steps
    assert not (tmp_path / "run/result.json").exists()
    train(settings)
    assert_same_run(never_stopped, tmp_path / "run")


def stop_inside(monkeypatch: pytest.MonkeyPatch, module: str, after_steps: int = 3) -> None:
    """The next evaluation that a module asks for gets a SIGTERM in its midst."""

    def judged(policy: Any, config: Any, *, stop: Callable[[], bool], **more: Any) -> Any:
        seen: list[None] = []

        def count() -> bool:
            seen.append(None)
            if len(seen) == after_steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return stop()

        monkeypatch.setattr(module, judge)
        return judge(policy, config, stop=count, **more)

    monkeypatch.setattr(module, judged)


@pytest.mark.parametrize(
    ("module", "env_steps"), [("mbrl.actors.judge", 32), ("mbrl.train.judge", 96)]
)
def test_a_run_stopped_inside_an_evaluation_makes_up_for_it(
    never_stopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    env_steps: int,
) -> None:
    stop_inside(monkeypatch, module)
    settings = config(tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        train(settings)
    assert stopped.value.code == 0
    steps, state = checkpoint.load(tmp_path / "run/checkpoints")
    assert steps == env_steps and state["owes_evaluation"] == (steps < 96)
    assert not (tmp_path / "run/result.json").exists()
    train(settings)
    assert_same_run(never_stopped, tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*Overriding environment", "ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("env", [BREAKOUT, NESTED])
def test_a_baseline_stopped_inside_an_evaluation_makes_up_for_it(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, Any]
) -> None:
    small = {"batch_steps": 32, "minibatch_size": 16, "epochs": 1, "num_envs": 2, "dense": 16}
    settings = config(tmp_path / "run", agent="ppo", ppo=small, env_steps=64, env=env)
    for _ in range(2):  # the second time while it makes up for the first
        stop_inside(monkeypatch, "mbrl.baseline.judge")
        with pytest.raises(SystemExit):
            train(settings)
        steps, state = checkpoint.load(tmp_path / "run/checkpoints")
        assert 32 <= steps < 64 and state["owes_evaluation"]
    curve = train(settings)["curve"]
    assert len(curve) == 2 and curve[0][0] == steps and curve[1][0] >= 64


def test_a_grid_and_q_learning_resume_as_if_never_stopped(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "world_model": {"layout": "grid", "grid": {"hidden": 8, "prior_maps": 4}},
        "policy": {"algorithm": "q", "maps": 4, "autocast": True},
        "collect": {"repeat": 2.0, "explore": 0.5},
    }
    train(config(tmp_path / "whole", **changes))
    stopped = config(tmp_path / "run", **changes)
    with pytest.raises(SystemExit):
        train(stopped, on_iteration=lambda run: run.request_stop())
    train(stopped)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def fail_at_80(run: Run) -> None:
    """The newest checkpoint is at 64; 16 steps are in replay already."""
    if run.env_steps == 80:
        raise RuntimeError("killed")


def kill_at_80(run: Run) -> None:
    if run.env_steps == 80:
        os.kill(os.getpid(), signal.SIGKILL)


def in_another_process(run_dir: Path, on_iteration: Callable[[Run], None]) -> int | None:
    """Exit code of a run that `on_iteration` ends."""
    process = multiprocessing.get_context("spawn").Process(
        target=train, args=(config(run_dir), on_iteration)
    )
    process.start()
    process.join(100)
    return process.exitcode


@pytest.mark.parametrize("how", ["an exception", "kill -9"])
def test_a_run_that_dies_between_checkpoints_goes_back_and_equals_never_stopped(
    never_stopped: Path, tmp_path: Path, how: str
) -> None:
    settings = config(tmp_path / "run")
    if how == "kill -9":
        assert in_another_process(tmp_path / "run", kill_at_80) == -signal.SIGKILL
    else:
        with pytest.raises(RuntimeError, match="killed"):
            train(settings, on_iteration=fail_at_80)
    assert checkpoint.load(tmp_path / "run/checkpoints")[0] == 64
    train(settings)
    assert len(list((tmp_path / "run/replay/unpinned").iterdir())) == 1
    assert_same_run(never_stopped, tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    never_stopped: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path / "run", run={"checkpoint_every_steps": 1000})
    with pytest.raises(RuntimeError, match="killed"):
        train(settings, on_iteration=fail_at_80)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == []
    train(settings)
    assert_same_run(never_stopped, tmp_path / "run")


def test_a_finished_run_says_its_result_again(never_stopped: Path) -> None:
    before = (never_stopped / "metrics.jsonl").read_bytes()
    result = train(config(never_stopped))
    assert result == json.loads((never_stopped / "result.json").read_text())
    assert (never_stopped / "metrics.jsonl").read_bytes() == before


def test_more_steps_may_be_asked_of_a_finished_run(tmp_path: Path) -> None:
    assert train(config(tmp_path / "run", env_steps=48))["env_steps"] == 48
    assert train(config(tmp_path / "run", env_steps=64))["env_steps"] == 64


def test_other_settings_on_the_same_folder_are_refused(never_stopped: Path) -> None:
    changed = config(never_stopped, learn_model={"lr": 0.5})
    with pytest.raises(ConfigError, match=r"learn_model\.lr: 0\.001 became 0\.5.*run\.dir="):
        train(changed)


def hold(run_dir: Path, ready: Any) -> None:
    with Run(config(run_dir)):
        ready.set()
        time.sleep(60)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(MbrlError, match="another process holds it"):
            Run(config(tmp_path / "run"))
    finally:
        other.kill()
        other.join()
    Run(config(tmp_path / "run")).__enter__().__exit__(None, None, None)
