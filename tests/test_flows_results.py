"""Results of the flow study add up: gaps, times, what is left out, and the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from flow_trials import curve, make_trial, write_images, write_trial

from mbrl.errors import ConfigError
from mbrl.studies.flows import cost
from mbrl.studies.flows.images import Source
from mbrl.studies.flows.report import warnings_of
from mbrl.studies.flows.results import thresholds_of
from mbrl.studies.flows.study import STUDY
from mbrl.studies.flows.trial import Trial
from mbrl.studies.trial import refuse_changed


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


def summary_of(source: Source, out: Path, *runs: tuple[str, int, Any, Any]) -> dict[str, Any]:
    """The summary of results, each an arm, a seed, bits per dimension or measures, and a curve."""
    for arm, seed, measures, points in runs:
        measures = measures if isinstance(measures, dict) else {"bits_per_dim": measures}
        shown = points if isinstance(points, dict) else curve(*points)
        write_trial(make_trial(source, out, arm=arm, seed=seed), measures, curve=shown)
    return STUDY.aggregate("some", out / "results")


def test_gaps_are_taken_seed_by_seed_and_times_from_the_curves(
    source: Source, tmp_path: Path
) -> None:
    alone, late = ((0, 4.0), (10, 2.0), (20, 1.0)), ((0, 4.0), (20, 2.0))
    bits = [(1.0, 1.1), (1.2, 1.5), (1.4, 1.6)]
    runs = [("none", seed, none, alone) for seed, (none, _) in enumerate(bits)]
    runs += [("level", seed, level, late) for seed, (_, level) in enumerate(bits)]
    summary = summary_of(source, tmp_path, *runs)
    assert summary["thresholds"] == {"quarter": 3.0, "half": 2.0, "end": 1.0}
    level = summary["arms"]["level"]
    assert level["gap_to_none"]["mean"] == pytest.approx(0.2)
    assert level["gap_to_none"]["ci95"] == [pytest.approx(0.1), pytest.approx(0.3)]
    assert level["minutes_to"]["quarter"]["mean"] == 10
    assert level["minutes_to"]["half"]["mean"] == 20
    assert level["minutes_to"]["end"]["mean"] is None
    assert summary["arms"]["none"]["minutes_to"]["half"]["mean"] == 10


def test_a_shorter_run_is_compared_where_it_ends(source: Source, tmp_path: Path) -> None:
    none = make_trial(source, tmp_path, arm="none", minutes=20.0)
    write_trial(none, {"bits_per_dim": 1.0}, curve=curve((0, 4.0), (5, 3.0), (20, 1.0)))
    level = make_trial(source, tmp_path, minutes=10.0)
    write_trial(level, {"bits_per_dim": 2.5}, curve=curve((0, 4.0), (9.5, 2.9)))
    found = STUDY.aggregate("some", tmp_path / "results")["arms"]["level"]
    # no sharing falls from 3 to 1 in minutes 5 to 20: 2.4 after 9.5, not 1
    assert found["gap_to_none"]["mean"] == pytest.approx(2.9 - 2.4)
    # it had half of the time: that it did not get where no sharing ends says nothing
    assert found["minutes_to"].keys() == {"quarter", "half"}


def test_gaps_are_also_taken_after_as_many_updates_as_both_have(
    source: Source, tmp_path: Path
) -> None:
    # twice as many updates in the same time: 200 and 400
    fast = curve((0, 4.0), (10, 3.0), (20, 1.5), updates_per_minute=20)
    none = ("none", 0, 1.0, ((0, 4.0), (10, 2.0), (20, 1.0)))
    found = summary_of(source, tmp_path, none, ("level", 0, 1.5, fast))["arms"]["level"]
    assert found["gap_to_none"]["mean"] == pytest.approx(0.5)
    assert found["gap_at_updates"]["mean"] == pytest.approx(2.0)  # 3 - 1 after 200


def test_seeds_that_never_get_there_are_counted_beside_the_mean_of_the_others(
    source: Source, tmp_path: Path
) -> None:
    runs = [("none", seed, 1.0, ((0, 4.0), (20, 1.0))) for seed in range(3)]
    runs += [("level", seed, end, ((0, 4.0), (30, end))) for seed, end in enumerate((1, 1, 3))]
    summary = summary_of(source, tmp_path, *runs)
    assert summary["arms"]["level"]["minutes_to"]["end"]["per_seed"] == [30, 30, None]


def test_a_run_that_diverged_counts_and_is_in_no_mean(source: Source, tmp_path: Path) -> None:
    good = {"bits_per_dim": 2.0, "train_ms_per_image": 4.0, "skipped": 0.0}
    bad = {"bits_per_dim": None, "diverged": 1.0, "train_ms_per_image": 9.0, "skipped": 7.0}
    late, early = ((0, 4.0), (20, 1.0)), ((0, 4.0), (5, 1.0))
    runs = [("level", 0, good, late), ("level", 1, bad, early)]
    assert summary_of(source, tmp_path, *runs)["thresholds"] == {} == thresholds_of([])
    runs += [("none", seed, 1.0, late) for seed in range(2)]
    summary = summary_of(source, tmp_path, *runs)
    level = summary["arms"]["level"]
    assert level["bits_per_dim"]["mean"] == 2
    assert level["train_ms_per_image"]["mean"] == 4 and level["skipped"]["mean"] == 0
    assert level["gap_to_none"]["per_seed"] == [1.0, None]
    assert level["minutes_to"]["end"]["per_seed"] == [20.0, None]
    assert summary["runs"]["level"]["diverged"] == 1


# What belongs together


@pytest.mark.parametrize(
    ("arm", "trial", "result", "said"),
    [
        ("none", {}, {"digest": "d2"}, "digest of the images: d2 became d1"),
        ("none", {"quick": False}, {}, "quick: False became True"),
        ("none", {"overrides": ("train.lr=0.5",)}, {}, "train.lr: 0.5 became 0.002"),
        ("none", {"overrides": ("flow.width=5",)}, {}, "overrides: flow.width=5 became flow.*"),
        ("level", {"seed": 1, "overrides": ("flow.width=5",)}, {}, "flow.width: 4 became 5"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(
    arm: str,
    trial: dict[str, Any],
    result: dict[str, Any],
    said: str,
    source: Source,
    tmp_path: Path,
) -> None:
    write_trial(make_trial(source, tmp_path), {"bits_per_dim": 1.0})
    write_trial(make_trial(source, tmp_path, arm=arm, **trial), {"bits_per_dim": 1.0}, **result)
    with pytest.raises(ConfigError, match=f"of the same images and settings.*{said}.*--out"):
        STUDY.aggregate("some", tmp_path / "results")


def test_results_of_other_images_than_those_described_are_refused(
    source: Source, tmp_path: Path
) -> None:
    trial = make_trial(source, tmp_path)
    write_trial(trial, {"bits_per_dim": 1.0})
    trial.about_path.write_text(json.dumps({"digest": "d9"}))
    with pytest.raises(ConfigError, match=r"images.json \(d9\), got those of others \(d1\)"):
        STUDY.aggregate("some", tmp_path / "results")


def write_costs(trial: Trial, machine: str = "a processor", **changes: Any) -> None:
    """Costs of a trial's arm, and of PixelCNN's samplers, as if they had been measured."""
    known = {"digest": "d1", "machine": {"cpu": machine}}
    measured = {"version": cost.VERSION, "costs": {"parameters": 7}, "ms": {"8x8": {"cached": 3.0}}}
    for path, settings in cost.asked(trial).items():
        path.write_text(json.dumps({**measured, "settings": settings, **known, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1}, "made by another version"),
        ({"digest": "d2"}, "made with other images or settings (digest of the images: d2"),
        ({"settings": {}}, "made with other images or settings (flow: None became"),
    ],
)
def test_costs_that_do_not_belong_to_the_trials_are_left_out_and_named(
    changes: dict[str, Any], said: str, source: Source, tmp_path: Path
) -> None:
    trial = make_trial(source, tmp_path)
    write_trial(trial, {"bits_per_dim": 1.0})
    write_costs(trial)
    summary = STUDY.aggregate("some", tmp_path / "results")
    assert summary["costs"] == {"level": {"parameters": 7}} and summary["left_out"] == {}
    write_costs(trial, **changes)
    summary = STUDY.aggregate("some", tmp_path / "results")
    assert summary["costs"] == {} and summary["latency"] == {}
    assert summary["left_out"].keys() == {"level.cost.json", cost.LATENCY}
    assert said in summary["left_out"]["level.cost.json"]
    assert any("Left out" in one and said in one for one in warnings_of(summary))


def test_times_of_another_machine_are_left_out_and_named(source: Source, tmp_path: Path) -> None:
    none, level = (make_trial(source, tmp_path, arm=arm) for arm in ("none", "level"))
    for trial, machine in ((none, "a processor"), (level, "a faster one")):
        write_trial(trial, {"bits_per_dim": 1.0})
        write_costs(trial, machine)
    summary = STUDY.aggregate("some", tmp_path / "results")
    assert summary["costs"].keys() == {"none"} and summary["latency"] == {}
    said = "timed on another machine"
    assert summary["left_out"] == {"level.cost.json": said, cost.LATENCY: said}
    # what is left out for another reason is no yardstick
    write_costs(none, version=cost.VERSION - 1)
    summary = STUDY.aggregate("some", tmp_path / "results")
    assert summary["costs"].keys() == {"level"}
    assert summary["left_out"]["none.cost.json"] == "made by another version"


def test_trials_of_other_measures_are_left_out_and_named(source: Source, tmp_path: Path) -> None:
    write_trial(make_trial(source, tmp_path), {"bits_per_dim": 1.0})
    old = make_trial(source, tmp_path, seed=1)
    write_trial(old, {"bits_per_dim": 9.0}, measures_version=Trial.measures - 1)
    summary = STUDY.aggregate("some", tmp_path / "results")
    assert summary["arms"]["level"]["bits_per_dim"]["per_seed"] == [1.0]
    assert summary["left_out"] == {"level-1.json": "made by another version of the measures"}


def test_a_removed_trial_takes_its_costs_with_it(source: Source, tmp_path: Path) -> None:
    trial = make_trial(source, tmp_path)
    write_trial(trial, {"bits_per_dim": 1.0})
    write_costs(trial)
    refuse_changed([make_trial(source, tmp_path, minutes=0.001)], force=True)
    assert not trial.result_path.exists() and not trial.cost_path.exists()


def test_times_of_ranks_on_a_busy_machine_are_warned_of(source: Source, tmp_path: Path) -> None:
    write_trial(make_trial(source, tmp_path), {"bits_per_dim": 1.0})
    summary = STUDY.aggregate("some", tmp_path / "results")
    for load in (0.5, 0.6):
        costs = {"level": {"ranks": {"2": {"load_before": load}}}}
        warned = warnings_of({**summary, "costs": costs})
        assert any("not to be trusted: level" in text for text in warned) is (load > 0.5)
