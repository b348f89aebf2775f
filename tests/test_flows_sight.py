"""Objects in images of the flow study: found where the game's memory says, at either size."""

from pathlib import Path

import numpy as np
import pytest

from mbrl.flows.images import ImageSet, Source, drawn_sources, load_images
from mbrl.flows.sight import Sight, enlarged, sight_of

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


def test_every_pixel_is_repeated_along_both_sides() -> None:
    image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    assert enlarged(image, 2)[0, ..., 0].tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [2, 2, 3, 3],
        [2, 2, 3, 3],
    ]


@pytest.mark.parametrize("size", [64, 32])
def test_the_ball_is_seen_where_it_is(by_size: dict[int, ImageSet], size: int) -> None:
    images, sight = by_size[size], sight_at(by_size, size)
    assert sight.lead == "ball"
    rows = np.arange(len(images.held_out))
    there = rows[sight.visible("ball", rows)]
    assert len(there) > len(rows) / 2
    truth = sight_at(by_size, 64).places("ball", by_size[64].held_out[there])
    seen = sight.places("ball", images.held_out[there])
    assert np.nanmax(np.abs(seen - truth)) <= 1.5  # pixels of 64: a box is 2 wide
    assert (sight.counts(images.held_out[there])["ball"] == 1).all()


def test_objects_are_not_looked_for_in_images_too_small_to_show_them(
    by_size: dict[int, ImageSet],
) -> None:
    assert sight_of(by_size[16], GAME) is None
    assert sight_of(by_size[64], None) is None


def test_drawing_is_timed_at_the_study_s_size_and_on_a_game_s_whole_frames() -> None:
    small = Source(game=GAME, size=32)
    assert [one.size for one in drawn_sources(small)] == [32, None]
    for whole in (Source(game=GAME), Source(game=GAME, size=64), Source(path=Path("a"), size=32)):
        assert drawn_sources(whole) == [whole]
