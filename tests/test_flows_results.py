"""Results of the flow study add up: gaps, times, what is left out, and the page."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from flow_trials import make_trial, write_images, write_trial

from mbrl.flows.images import Source
from mbrl.flows.results import aggregate, minutes_to, thresholds_of
from mbrl.flows.tables import tables

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


def curve(*points: tuple[float, float]) -> dict[str, Any]:
    minutes, bits = zip(*points, strict=True)
    return {"cpu_minutes": minutes, "bits_per_dim": bits, "held_out_bits_per_dim": bits}


def test_gaps_are_taken_seed_by_seed_and_times_from_the_curves(
    source: Source, tmp_path: Path
) -> None:
    for seed, (alone, shared) in enumerate([(1.0, 1.1), (1.2, 1.5), (1.4, 1.6)]):
        none = make_trial(source, tmp_path, arm="none", seed=seed)
        write_trial(none, {"bits_per_dim": alone}, curve=curve((0, 4.0), (10, 2.0), (20, 1.0)))
        level = make_trial(source, tmp_path, seed=seed)
        late = curve((0, 4.0), (20, 2.0))
        write_trial(level, {"bits_per_dim": shared}, curve=late, parameters=10)
    summary = aggregate("some", tmp_path / "results")
    assert summary["thresholds"] == {"quarter": 3.0, "half": 2.0, "end": 1.0}
    level_arm = summary["arms"]["level"]
    assert level_arm["gap_to_none"]["mean"] == pytest.approx(0.2)
    assert level_arm["gap_to_none"]["ci95"] == [pytest.approx(0.1), pytest.approx(0.3)]
    assert level_arm["minutes_to"]["quarter"]["mean"] == 10
    assert level_arm["minutes_to"]["half"]["mean"] == 20
    assert level_arm["minutes_to"]["end"]["mean"] is None
    assert summary["arms"]["none"]["minutes_to"]["half"]["mean"] == 10
    row = dict(
        zip(tables(summary)["main"][1].head, tables(summary)["main"][1].rows[1], strict=True)
    )
    assert row["of no sharing"] == "10 %" and row["above no sharing"] == "0.2000 (0.1000–0.3000)"
    assert row["diverged"] == "0 of 3"


def test_a_diverged_run_counts_and_is_in_no_mean(source: Source, tmp_path: Path) -> None:
    write_trial(make_trial(source, tmp_path), {"bits_per_dim": None, "diverged": 1.0})
    write_trial(make_trial(source, tmp_path, seed=1), {"bits_per_dim": 2.0})
    summary = aggregate("some", tmp_path / "results")
    assert summary["runs"]["level"]["diverged"] == 1
    assert summary["arms"]["level"]["bits_per_dim"]["mean"] == 2
    assert summary["thresholds"] == {} == thresholds_of([])


def test_a_threshold_that_is_never_reached_takes_no_time() -> None:
    one = {"curve": curve((1, 3.0), (2, 2.0))}
    assert minutes_to(one, 2.5) == 1.5 and minutes_to(one, 1.0) is None
    assert minutes_to({"curve": {"cpu_minutes": [], "held_out_bits_per_dim": []}}, 1.0) is None


# The page


def test_page_takes_tables_and_pictures_from_the_results(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    write_trial(make_trial(source, tmp_path, minutes=20.0), {"bits_per_dim": 1.25})
    aggregate("some", tmp_path / "results")
    monkeypatch.setattr(generate, "FLOW_RESULTS", tmp_path / "results")
    monkeypatch.setattr(generate, "FLOW_PICTURES", tmp_path / "docs")
    figure = tmp_path / "some" / "figures" / "samples.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"a picture")
    generate.copy_pictures(tmp_path / "some", tmp_path / "docs")
    parts = ("main", "memory", "origin", "pictures")
    made = generate.flows("".join(f"<!-- flows some {part} -->\n<!-- end -->\n" for part in parts))
    assert "| by level | 1 × 20 | 10 | 100 | – | 1.2500 | 0 of 1 |" in made
    assert "None recorded yet." in made  # no costs
    assert "`mbrl bench flow some --minutes 1 --arms level --seeds 1`" in made
    assert "](flows/some_samples.png)" in made
    assert generate.flows(made) == made
    with pytest.raises(ValueError, match=r"docs/flows.md: expected a part out of main, .*got x"):
        generate.flows("<!-- flows some x -->\n<!-- end -->")
