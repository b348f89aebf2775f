"""A world model that begins with what fits of another: whole parts, and it is said which."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config
from torch import nn

from mbrl.errors import ConfigError, MbrlError
from mbrl.run.open import open_run
from mbrl.train import train
from mbrl.world_model.transfer import take_over


class Model(nn.Module):
    def __init__(self, actions: int, extra: bool = False) -> None:
        super().__init__()
        self.action = nn.Linear(actions, 2)
        self.heads = nn.ModuleDict({"reward": nn.Linear(2, 1), "continues": nn.Linear(2, 1)})
        if extra:
            self.mask = nn.Linear(2, 3)


def test_parts_that_fit_are_taken_over_whole_and_no_others() -> None:
    old, new = Model(3), Model(4, extra=True)
    first = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    taken = take_over(new, old.state_dict(), anew=["heads.reward"])
    assert taken.fitting == ("heads.continues",)
    assert taken.other == ("action",)  # with its bias, which would fit
    assert (taken.new, taken.asked) == (("mask",), ("heads.reward",))
    now, theirs = new.state_dict(), old.state_dict()
    for name, tensor in now.items():
        source = theirs if name.startswith("heads.continues.") else first
        assert torch.equal(tensor, source[name])
    assert str(taken) == (
        "1 parts are taken over; action start anew (of another shape); mask start anew (not in "
        "that model); heads.reward start anew (by world_model.init_anew)"
    )


def test_what_fits_nowhere_and_what_is_no_part_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected a model with parts that fit this one"):
        take_over(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(3, 2)).state_dict())
    with pytest.raises(ConfigError, match=r"such as action, heads, got head$"):
        take_over(Model(3), Model(3).state_dict(), anew=["head"])


def test_a_run_begins_with_another_games_model(tmp_path: Path, capsys: Any) -> None:
    grid = {"layout": "grid", "grid": {"hidden": 8, "prior_maps": 4}}
    train(config(tmp_path / "one", world_model=grid))
    theirs = open_run(tmp_path / "one").world_model_weights()
    other: Any = {"env": {"id": "MinAtar/Asterix-v1"}, "run": {"dir": tmp_path / "two"}}
    again = config(
        tmp_path / "two",
        world_model={**grid, "init_from": tmp_path / "one", "init_anew": ("heads",)},
        **other,
    )
    train(again)
    said = " ".join(capsys.readouterr().out.split())
    shapes = re.search(r"parts are taken over; ([\w., ]+) start anew \(of another shape\)", said)
    assert shapes is not None and "dynamics.action" in shapes[1].split(", ")
    assert re.search(r"heads\.dense, [\w., ]+ start anew \(by world_model.init_anew\)", said)
    mine = open_run(tmp_path / "two").world_model_weights()
    moved = (mine["dynamics.gates_state.weight"] - theirs["dynamics.gates_state.weight"]).abs()
    untouched = (mine["heads.dense.weight"] - theirs["heads.dense.weight"]).abs()
    assert float(moved.mean()) < float(untouched.mean())  # trained on, from where it was
    with pytest.raises(MbrlError, match=r"expected a run folder.*found none"):
        train(config(tmp_path / "three", world_model={**grid, "init_from": tmp_path}))
