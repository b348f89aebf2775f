"""The table of environments: what goes through, what is refused, and how a wrong replay shows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.settings import EnvSettings
from mbrl.episode import Episode
from mbrl.errors import ConfigError
from mbrl.studies.worlds import study
from mbrl.studies.worlds.listed import FOREIGN, ODD
from mbrl.studies.worlds.odd import ODDITIES, make
from mbrl.studies.worlds.one import played

CARTPOLE = EnvSettings(id="CartPole-v1")


def recorded(seed: int, steps: int) -> Episode:
    """CartPole pushed to the right, as replay holds it."""
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=seed)
    seen = [obs] + [env.step(1)[0] for _ in range(steps)]
    rows = np.arange(steps + 1)
    return Episode(
        eps_id="e",
        t0=0,
        obs=np.stack(seen),
        actions=(rows < steps).astype(np.int64),
        rewards=(rows < steps).astype(np.float32),
        terminateds=np.zeros(steps + 1, np.bool_),
        truncateds=np.zeros(steps + 1, np.bool_),
        life_loss=np.zeros(steps + 1, np.bool_),
        ended=True,
    )


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("obs", "obs of step 2 is"),
        ("rewards", "step 2 caused"),
        ("truncateds", "step 2 caused"),
        ("actions", "obs of step 3 is"),
    ],
)
def test_a_replay_that_differs_from_the_environment_is_found(column: str, told: str) -> None:
    episode = recorded(seed=5, steps=4)
    assert played(CARTPOLE, 5, episode) == ""
    assert played(CARTPOLE, 6, episode).startswith("obs of step 0 is")
    changed: Any = {name: values.copy() for name, values in episode.columns.items()}
    changed[column][2] = 1 - changed[column][2]
    assert played(CARTPOLE, 5, episode.with_columns(changed)).startswith(told)


def test_an_environment_goes_through_and_one_is_refused_and_rows_are_kept(
    tmp_path: Path, capsys: Any
) -> None:
    given = {
        "lists": "odd",
        "names": ["Text", "actions Dict"],
        "steps": 192,
        "seconds": 200.0,
        "dir": tmp_path / "runs",
        "out": tmp_path / "worlds.json",
    }
    assert study.command(given) == []
    found = json.loads((tmp_path / "worlds.json").read_text())["envs"]
    whole = dict.fromkeys(("check", "train", "evaluate", "replay", "resume", "export"), "ok")
    assert found["actions Dict"] == {"package": "odd", **whole}
    assert found["Text"]["check"].startswith("refused: ")
    assert "Text" in found["Text"]["check"]
    first = capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert study.command(given) == []
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == written


def test_a_process_that_dies_or_hangs_is_a_failure_of_the_column_it_was_at(
    tmp_path: Path, monkeypatch: Any
) -> None:
    given: Any = {"lists": "odd", "names": ["nothing odd"], "steps": 128, "seconds": 0.2}
    given |= {"dir": tmp_path / "slow", "out": tmp_path / "slow.json"}
    assert study.command(given) == ["nothing odd: check: failed: not done after 0 s"]
    monkeypatch.setattr("sys.executable", "/bin/false")
    given |= {"dir": tmp_path / "dead", "out": tmp_path / "dead.json"}
    assert study.command(given) == ["nothing odd: check: failed: exit code 1: without a word"]


def test_names_that_are_not_in_the_table_are_refused(tmp_path: Path) -> None:
    given: Any = {"lists": "odd", "names": ["nonsense"], "steps": 128, "seconds": 1.0}
    given |= {"dir": tmp_path, "out": tmp_path / "out.json"}
    with pytest.raises(ConfigError, match="expected names among nothing odd"):
        study.command(given)
    with pytest.raises(ConfigError, match="expected foreign, odd, got even"):
        study.command({**given, "lists": "even"})


def test_the_lists_are_as_long_as_they_claim_and_every_oddity_can_be_made() -> None:
    assert len(FOREIGN) >= 30 and len({world.package for world in FOREIGN}) >= 10
    assert len(ODD) >= 30
    for name, oddity in ODDITIES.items():
        assert make(name).action_space == oddity.actions
