"""Measures of a trained flow: what counts as diverged, which samples are valid, which pairs are."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_trials import make_trial, write_images

from mbrl.studies.flows import cost
from mbrl.studies.flows import measure as measure_module
from mbrl.studies.flows.images import ImageSet, Source, load_images
from mbrl.studies.flows.measure import Sizes, measure, validity
from mbrl.studies.flows.train import build, run
from mbrl.studies.flows.trial import FlowStudySettings
from mbrl.world_model.decoders.flow import ImageFlow


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


def tiny_flow(**changes: Any) -> ImageFlow:
    torch.manual_seed(0)
    flow = {"scales": 2, "steps": 2, "width": 4, **changes}
    made = build((1, 8, 8), 32, FlowStudySettings.model_validate({"flow": flow})).eval()
    made.initialise(torch.randint(32, (8, 1, 8, 8), dtype=torch.uint8))
    return made


# Divergence


@pytest.mark.parametrize("bits", [math.nan, math.inf, 10.01])  # log2 32 = 5
def test_a_run_whose_held_out_images_are_lost_has_diverged_and_no_measures(
    bits: float, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "bits_per_dim", lambda *_, **__: bits)
    trial = make_trial(source, tmp_path)
    assert run(trial) is True and trial.is_done()
    found = json.loads(trial.result_path.read_text())["measures"]
    assert found["diverged"] == 1 and found["bits_per_dim"] is None
    assert found.keys() == {"bits_per_dim", "diverged", "skipped", "train_ms_per_image"}


# Samples


def test_samples_that_a_level_had_to_be_made_of_are_counted() -> None:
    numbers = torch.zeros(4, 1, 1, 2)
    numbers[1, 0, 0, 0] = math.nan
    numbers[2, 0, 0] = torch.tensor([0.51, -7.0])
    numbers[3, 0, 0, 1] = 0.5  # the edge of the grid
    assert validity(numbers, marginal=False) == {"invalid": 0.5, "outside": 3 / 8}
    # quantiles end at that of 1e-9, which is 5.998
    numbers[3, 0, 0, 1] = 5.998
    assert validity(numbers, marginal=True) == {"invalid": 0.5, "outside": 2 / 8}


# Pairs


class Seen:
    """A sight of one object whose column is the level of the first pixel."""

    lead = "ball"

    def __init__(self, there: bool = True) -> None:
        self.there = there

    def visible(self, name: str, rows: Any) -> Any:
        return np.full(len(rows), self.there)

    def places(self, name: str, levels: Any) -> Any:
        return np.stack([np.zeros(len(levels)), levels[:, 0, 0, 0].astype(float)], 1)

    def counts(self, levels: Any) -> Any:
        return {"ball": np.ones(len(levels), np.int64)}


def images_of(*first: int) -> ImageSet:
    levels = np.zeros((len(first), 8, 8, 1), np.uint8)
    levels[:, 0, 0, 0] = first
    return ImageSet(name="x", bits=5, train=levels, held_out=levels, unseen=np.arange(len(first)))


def measured(
    monkeypatch: pytest.MonkeyPatch, sight: Seen | None, *first: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    monkeypatch.setattr(measure_module, "sight_of", lambda *_: sight)
    sizes = Sizes(images=2, samples=3, temperatures=(0.5, 1.0), paths=2, steps=3, shown=2)
    found = measure(tiny_flow(), images_of(*first), "x", 0, sizes)
    assert found is not None
    assert found.pictures["interpolation_flow"].shape == (2, 3, 8, 8, 1)
    assert 0 <= found.numbers["round_trip"] <= 1
    for name in ("0.5", "1"):
        one = found.numbers["samples"][name]
        assert 0 <= one["outside"] <= one["invalid"] <= 1
    return found.numbers["interpolation"], found.pictures


@pytest.mark.parametrize(
    ("first", "there"), [((0, 3, 7), True), ((0, 3, 20), False)], ids=["near", "hidden"]
)
def test_without_a_pair_apart_there_are_pictures_and_no_scores(
    first: tuple[int, ...], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    between, _ = measured(monkeypatch, Seen(there), *first)
    assert between == {"pairs_apart": 0}


def test_paths_go_between_objects_eight_pixels_apart_and_both_ways_are_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between, pictures = measured(monkeypatch, Seen(), 0, 3, 20)
    assert between["pairs_apart"] == 2 and between["fade"]["right"] == 1
    assert {"bits_rise", "straightness"} <= between["flow"].keys()
    ends = pictures["interpolation_fade"][:, [0, -1], 0, 0, 0].astype(int) // 8  # 5 of 8 bits
    assert (abs(ends[:, 0] - ends[:, 1]) >= 8).all()


def test_images_without_objects_have_bits_along_paths_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between, _ = measured(monkeypatch, None, 0, 3, 20)
    assert between.keys() == {"flow", "fade"} and between["flow"].keys() == {"bits_rise"}


# Latency


def test_samplers_and_flows_are_timed_alike_the_better_of_two_after_one(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(second) for second in (0, 9, 10, 13, 20, 22))
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    calls: list[int] = []
    assert cost.cpu_ms_of(lambda: calls.append(1)) == 2000 and len(calls) == 3
    monkeypatch.undo()
    drawn: list[str] = []
    monkeypatch.setattr(cost, "sample_blocks", lambda *_: drawn.append("frames"))
    assert cost.pixelcnn_ms(load_images(source), 0) >= 0
    assert len(drawn) == 3
