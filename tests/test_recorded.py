"""A run that begins with recorded steps: all of them, in order, and none taken before they end."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_resume import assert_same_run
from tiny import config

from mbrl.errors import ReplayError
from mbrl.replay import ReplayStore
from mbrl.train import train


@pytest.fixture(scope="module")
def before(tmp_path_factory: Any) -> Path:
    """The folder of a run of 96 steps."""
    folder = Path(tmp_path_factory.mktemp("before")) / "run"
    train(config(folder))
    return folder


def rows_of(folder: Path) -> list[Any]:
    """What is in replay, but for when it was counted; episodes by the order they come in."""
    fragments = list(ReplayStore(folder / "replay").fragments())
    number = {name: i for i, name in enumerate(dict.fromkeys(e.eps_id for e in fragments))}
    return [
        (number[e.eps_id], e.t0, e.policy_version, [c.tobytes() for c in e.columns.values()])
        for e in fragments
    ]


def test_a_run_learns_offline_from_all_that_is_recorded_and_takes_no_step(
    before: Path, tmp_path: Path
) -> None:
    changes: Any = {"env_steps": 0, "replay": {"init_from": before}}
    result = train(config(tmp_path / "run", **changes))
    assert result["env_steps"] == 96
    assert result["budget"]["recorded_steps"] == 96
    assert "collected_steps" not in result["budget"]
    assert result["budget"]["model_updates"] == 96 * 8 // 32
    assert result["budget"]["policy_rounds"] == 96 * 8 // 64
    assert [step for step, _ in result["curve"]] == [32, 64, 96]
    assert rows_of(tmp_path / "run") == rows_of(before)
    counted = [e.env_steps_total for e in ReplayStore(tmp_path / "run/replay").fragments()]
    assert counted == sorted(counted) and counted[-1] == 96


def test_an_offline_run_resumes_exactly_though_the_recording_is_gone(
    before: Path, tmp_path: Path
) -> None:
    changes: Any = {"env_steps": 0, "replay": {"init_from": before}}
    train(config(tmp_path / "whole", **changes))
    gone = tmp_path / "gone"
    before.rename(gone)
    changes["replay"]["init_from"] = gone
    with pytest.raises(SystemExit):
        train(config(tmp_path / "parts", **changes), on_iteration=lambda run: run.request_stop())
    gone.rename(before)
    train(config(tmp_path / "parts", **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_steps_of_its_own_follow_those_that_are_recorded(before: Path, tmp_path: Path) -> None:
    changes: Any = {"env_steps": 128, "replay": {"init_from": before / "replay"}}
    result = train(config(tmp_path / "run", **changes))
    assert result["env_steps"] == 128
    assert (result["budget"]["recorded_steps"], result["budget"]["collected_steps"]) == (96, 32)
    mine, theirs = rows_of(tmp_path / "run"), rows_of(before)
    assert mine[: len(theirs)] == theirs
    assert len(mine) > len(theirs)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    versions = [json.loads(line).get("policy/version") for line in lines]
    assert max(v for v in versions if v is not None) > 0  # no random prefill in between
    assert all(version > 0 for _, _, version, _ in mine[len(theirs) :])


def test_episodes_of_the_same_seed_are_kept_apart_from_those_that_are_recorded(
    before: Path, tmp_path: Path
) -> None:
    """Names and seeds of episodes follow from the run's seed, which is the same in all three."""
    folders = [before, tmp_path / "two", tmp_path / "three"]
    for number, folder in enumerate(folders[1:]):
        changes: Any = {"env_steps": 160 + 64 * number}
        train(config(folder, replay={"init_from": folders[number]}, **changes))
        store = ReplayStore(folder / "replay")
        steps = sum(fragment.steps for fragment in store.fragments())
        assert steps == sum(info.steps for info in store.segments()) == 160 + 64 * number
        assert {info.writer for info in store.segments()} == {"recorded", f"c0r{number + 1}"}


def test_what_cannot_be_begun_with_is_said_in_a_sentence(before: Path, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"expected a run folder or a replay folder with steps"):
        train(config(tmp_path / "one", replay={"init_from": tmp_path}))
    with pytest.raises(ReplayError, match="expected the folder of another run, got this run's own"):
        train(config(tmp_path / "own", replay={"init_from": tmp_path / "own"}))
    other = {"id": "MinAtar/Asterix-v1"}
    with pytest.raises(ReplayError, match=r"replay.init_from: expected steps of Box.*got Box"):
        train(config(tmp_path / "two", env=other, replay={"init_from": before}))
    with pytest.raises(ValueError, match=r"expected agent=dream.*got agent=model_free"):
        config(tmp_path / "three", agent="model_free", replay={"init_from": before})
    with pytest.raises(ValueError, match=r"expected 1 or more without replay.init_from"):
        config(tmp_path / "four", env_steps=0)
