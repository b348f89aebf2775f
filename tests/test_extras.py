"""One table says what is installed, and what to do about what is not."""

import importlib.util
from typing import Any

import pytest

from envs import EnvError, extras, installed
from envs.car_racing import import_box2d
from mbrl.__main__ import main


def test_what_is_installed_is_listed_with_ids_that_can_be_made(capsys: Any) -> None:
    assert main(["envs"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert "CartPole-v1" in lines["classic control"].split(", ")
    assert "MinAtar/Breakout-v1" in lines["MinAtar"].split(", ")
    assert lines["Atari"].startswith("ALE/")
    assert lines.keys() >= {extra.name for extra in extras.EXTRAS.values()}


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: Any) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "minatar" else real(name)
    )
    assert "MinAtar: not installed (minatar); pip install MinAtar" in list(installed.lines())
    monkeypatch.setitem(__import__("sys").modules, "Box2D", None)
    with pytest.raises(EnvError, match=r"pip install 'reverie-rl\[box2d\]'$"):
        import_box2d()
