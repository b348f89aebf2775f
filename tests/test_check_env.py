"""`mbrl check-env`: it streams, is bounded in time, rehearses a run, and its exit code is true."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import odd_envs
import pytest

from envs import EnvError, EnvSettings
from envs.contract import check_env
from mbrl.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    *("world_model.hidden=16", "world_model.prior_hidden=8", "learn_model.batch_size=2"),
    *("learn_model.sequence_length=8", "learn_policy.dream_ratio=8", "policy.hidden=[16]"),
    *("world_model.encoder.channels=[4,8]", "world_model.encoder.hidden=16", "run.threads=1"),
)


def words(factory: Any, *more: str) -> list[str]:
    return ["check-env", f"env.factory=odd_envs.{factory.__name__}", *SMALL, *more]


def checked(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, dict[str, str]]:
    """The exit code, and the last line of each label."""
    code = main(arguments)
    lines = capsys.readouterr().out.splitlines()
    return code, {line[:13].strip(): line[13:] for line in lines}


def test_a_sound_environment_is_trained_on_with_the_settings_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = words(odd_envs.Picture, "env.kwargs.length=4", "--steps", "50", "--seconds", "600")
    code, said = checked(capsys, arguments)
    assert code == 0, said
    assert said["episodes"].startswith("12 ended, 4 to 4 steps")
    assert said["training"].startswith("update 2 on ") and "loss" in said["training"]
    assert said["policy"] == "ppo has acted on what the model sees"
    assert said["verdict"] == "ready"


@pytest.mark.parametrize(
    ("factory", "more", "label", "sentence"),
    [
        (odd_envs.TextObservations, (), "refused", "Text"),
        (odd_envs.Picture, ("world_model.decoder.levels=9",), "refused", "expected at most 2"),
        (odd_envs.StepAlwaysFails, (), "problem", "At step 0 it raised ValueError: no such joint"),
        (odd_envs.Leaves, (), "problem", "At step 0 it raised SystemExit: 0"),
        (
            odd_envs.DiesAt,
            ("env.kwargs.at=3", "collect.vector=subprocess"),
            "problem",
            "At step 3 it raised ConnectionError: the environment's process died in step()",
        ),
        (odd_envs.OtherActionSpaceAtReset, (), "problem", r"from Discrete(2) to Discrete(3)"),
    ],
)
def test_what_a_run_would_refuse_is_no_success(
    capsys: pytest.CaptureFixture[str],
    factory: Any,
    more: tuple[str, ...],
    label: str,
    sentence: str,
) -> None:
    code, said = checked(capsys, words(factory, *more, "--steps", "20", "--seconds", "600"))
    assert code == 1 and sentence in said[label], said
    assert said["verdict"] == "see what is wrong above"


def test_what_cannot_be_made_or_is_no_setting_is_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, sentence in (
        (["check-env", "Foo-v0"], "unknown environment 'Foo-v0'"),
        (words(odd_envs.ResetWithoutSeed), "add seed"),
        (["check-env", "CartPole-v1", "collect.envs=3"], "num_envs"),
        (["check-env", "CartPole-v1", "--seconds", "0"], "--seconds: expected more than 0, got 0"),
    ):
        assert main(arguments) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factory", "setting", "code", "sentence"),
    [
        (odd_envs.Slow, "seconds=0.5", 3, "are too few to collect the 8 of one sequence"),
        (odd_envs.Hangs, "at=3", 1, "step() of the environment has not come back for"),
    ],
)
def test_a_check_ends_in_time_after_it_has_said_what_it_found(
    factory: Any, setting: str, code: int, sentence: str
) -> None:
    """In a process of its own, which a check may have to end."""
    arguments = words(factory, f"env.kwargs.{setting}", "--seconds", "6")
    command = [sys.executable, "-m", "mbrl", *arguments]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    assert done.returncode == code, done.stderr
    assert lines[0].startswith("environment  odd_envs.") and sentence in lines[-2]
    assert lines[-1].startswith("verdict")


def test_lines_are_said_as_soon_as_they_are_known() -> None:
    heard: list[str] = []

    class Stop(Exception):
        pass

    def say(line: str) -> None:
        heard.append(line)
        if line.startswith("speed"):
            raise Stop

    with pytest.raises(Stop):
        check_env(odd_envs.settings_of(odd_envs.Picture), steps=10, say=say)
    labels = [line.split()[0] for line in heard]
    assert labels == ["environment", "settings", "observations", "actions", "wrappers", "speed"]


def test_a_new_but_equal_action_space_at_reset_is_no_problem() -> None:
    assert check_env(odd_envs.settings_of(odd_envs.NewActionSpaceAtReset), steps=50).problems == ()


def test_measurements_out_of_bounds_are_told_of_and_no_problem(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a run, which stores them."""
    assert check_env(odd_envs.settings_of(odd_envs.OutOfBounds), steps=50).problems == ()
    assert "expected obs within Box(-1.0, 1.0, (2,), float32), got 2.0" in caplog.text


def test_an_environment_that_never_ends_is_noted_and_no_problem() -> None:
    report = check_env(odd_envs.settings_of(odd_envs.Endless), steps=50)
    assert report.problems == () and "evaluate.max_episode_steps" in report.notes[0]


def test_the_nearest_id_to_an_unknown_one_is_another() -> None:
    with pytest.raises(EnvError, match=r"nearest known ids are CartPole-v\d") as got:
        check_env(EnvSettings(id="CartPole-v77"))
    assert "are CartPole-v77" not in str(got.value)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("env.id=Foo-v0", "unknown environment 'Foo-v0'"),
        ("env={factory: no_such_module.make}", "No module named 'no_such_module'"),
        ("env.id=MinAtar/Breakout-v1", ""),
    ],
)
def test_a_config_is_fine_if_its_environment_can_be_made(
    capsys: pytest.CaptureFixture[str], word: str, sentence: str
) -> None:
    code = main(["train", "debug", word, "--check"])
    out, err = capsys.readouterr()
    assert (code, "fine" in out) == ((2, False) if sentence else (0, True))
    assert sentence in err
