"""Objects in images of the flow study: found where the game's memory says, at either size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flow_trials import make_trial

from mbrl.studies.flows import cost
from mbrl.studies.flows.cost import drawn_sources
from mbrl.studies.flows.images import ImageSet, Source, load_images
from mbrl.studies.flows.sight import Sight, sight_of

GAME = "synthetic_pong"


@pytest.fixture(scope="module")
def by_size(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ImageSet]:
    frames = tmp_path_factory.mktemp("frames")
    sizes = (64, 32, 16)
    return {
        size: load_images(Source(game=GAME, size=size, steps=2000, frames=frames)) for size in sizes
    }


def sight_at(by_size: dict[int, ImageSet], size: int) -> Sight:
    sight = sight_of(by_size[size], GAME)
    assert sight is not None
    return sight


def no_process(order: Any) -> list[dict[str, Any]]:
    """Steps that nobody takes."""
    names = ("step_s", "step_cpu_s", "no_sync_step_s", "all_reduce_s")
    return [{**{name: [0.5] for name in names}, "max_rss_bytes": 1000}] * order.ranks


@pytest.mark.parametrize("size", [64, 32])
def test_the_ball_is_seen_where_it_is(by_size: dict[int, ImageSet], size: int) -> None:
    images, sight = by_size[size], sight_at(by_size, size)
    assert sight.lead == "ball" and images.held_out_ram is not None
    places, there = sight.detectors["ball"].target.locate(images.held_out_ram)
    visible = sight.visible("ball", np.arange(len(there)))
    assert visible[there].mean() > 0.9 and not visible[~there].any()
    seen = sight.places("ball", images.held_out[visible])
    assert np.abs(seen - places[visible]).max() <= 1.5  # pixels of 64, of which 32 has every other
    assert (sight.counts(images.held_out[visible])["ball"] == 1).all()


def test_objects_are_not_looked_for_in_images_too_small_to_show_them(
    by_size: dict[int, ImageSet],
) -> None:
    assert sight_of(by_size[16], GAME) is None
    assert sight_of(by_size[64], None) is None


def test_drawing_is_timed_at_the_study_s_size_and_on_a_game_s_whole_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Source(game=GAME, size=32, steps=2000, frames=tmp_path / "frames")
    assert [one.size for one in drawn_sources(small)] == [32, None]
    for whole in (Source(game=GAME), Source(game=GAME, size=64), Source(path=Path("a"), size=32)):
        assert drawn_sources(whole) == [whole]
    monkeypatch.setattr(cost, "run_steps", no_process)
    trial = make_trial(small, tmp_path)
    cost.run(trial)
    flows = json.loads(trial.cost_path.read_text())["costs"]["sample_ms"]
    side = json.loads(trial.cost_path.with_name(cost.LATENCY).read_text())
    assert list(flows) == list(side["ms"]) == ["32x32", "64x64"]
    for timed in side["ms"].values():
        assert timed.keys() == {"fixed_point", "flow"} and min(timed.values()) > 0
    assert len(set(side["digests"])) == 2 and side["digest"] == side["digests"][0]
