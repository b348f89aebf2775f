"""Paths between images: arcs, objects counted, even motion and jumps."""

import math

import numpy as np
import pytest
import torch

from mbrl.studies.fidelity.games import SceneObject
from mbrl.studies.fidelity.objects import Detector, contrast
from mbrl.studies.flows.measure import cross_fade, latent_paths, slerp
from mbrl.studies.flows.sight import count_objects, path_scores

# Arcs


@pytest.mark.parametrize(
    ("start", "end", "share", "expected"),
    [
        ([1.0, 0.0], [0.0, 1.0], 0.5, [math.sqrt(0.5), math.sqrt(0.5)]),
        ([1.0, 0.0], [0.0, 1.0], 1 / 3, [math.sqrt(3) / 2, 0.5]),  # thirty degrees
        ([3.0, 4.0], [1.0, -2.0], 0.0, [3.0, 4.0]),
        ([3.0, 4.0], [1.0, -2.0], 1.0, [1.0, -2.0]),
        ([1.0, 1.0], [3.0, 3.0], 0.5, [2.0, 2.0]),  # the same way: along a straight line
    ],
)
def test_an_arc_turns_evenly_from_its_start_to_its_end(
    start: list[float], end: list[float], share: float, expected: list[float]
) -> None:
    found = slerp(torch.tensor([start]), torch.tensor([end]), share)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_all_scales_turn_along_one_arc() -> None:
    # together the latents are orthogonal, though no single scale's are
    start = [torch.tensor([[[[1.0]]]]), torch.tensor([[[[1.0]]]])]
    end = [torch.tensor([[[[1.0]]]]), torch.tensor([[[[-1.0]]]])]
    paths = latent_paths(start, end, 3)
    assert [[float(part) for part in point] for point in paths] == [
        [1.0, 1.0],
        [pytest.approx(math.sqrt(2)), pytest.approx(0.0)],
        [1.0, pytest.approx(-1.0)],
    ]


def test_a_cross_fade_mixes_pixels() -> None:
    start, end = (np.full((1, 1, 1, 1), value, np.uint8) for value in (0, 200))
    assert cross_fade(start, end, 5).ravel().tolist() == [0, 50, 100, 150, 200]


# Counting


def ball_on(side: int = 16) -> Detector:
    target = SceneObject("ball", (0, 0, side, side), lambda ram: (ram, ram), window=(3, 3))
    return Detector(target, mass=400.0, peak=100.0, load=400.0)


def picture(*balls: tuple[int, ...]) -> np.ndarray:
    """A picture with balls of 2 x 2 pixels (or of another side): row, column, brightness."""
    image = np.zeros((1, 16, 16, 1), np.uint8)
    for row, column, brightness, *side in balls:
        size = side[0] if side else 2
        image[0, row : row + size, column : column + size] = brightness
    return contrast(image, np.zeros((16, 16, 1)))


@pytest.mark.parametrize(
    ("balls", "count"),
    [
        ([], 0),
        ([(2, 3, 100)], 1),
        ([(2, 3, 100), (10, 10, 100)], 2),
        ([(2, 3, 50), (10, 10, 50)], 2),  # the middle of a cross-fade
        ([(2, 3, 90), (10, 10, 10)], 1),  # haze is no ball
        ([(2, 3, 100), (4, 5, 100)], 1),  # they touch at a corner
        ([(4, 4, 90, 1)], 0),  # a single bright pixel is too little
    ],
)
def test_objects_are_counted_wherever_they_are(balls: list[tuple[int, ...]], count: int) -> None:
    assert count_objects(ball_on(), picture(*balls)).tolist() == [count]


# Moving


@pytest.mark.parametrize(
    ("places", "straightness", "monotonicity", "largest_step"),
    [
        pytest.param([[0, 0], [1, 1], [2, 2], [3, 3]], 1, 1, 1, id="even motion along a line"),
        pytest.param([[0, 0], [0, 0], [0, 8], [0, 8], [0, 8]], 1, 0.25, 4, id="a jump"),
        pytest.param([[0, 0], [3, 0], [3, 4]], 5 / 7, 1, 4 / 3.5, id="a detour"),
    ],
)
def test_a_path_is_scored_by_its_length_its_steps_forward_and_its_largest_step(
    places: list[list[float]], straightness: float, monotonicity: float, largest_step: float
) -> None:
    assert path_scores(np.array([places], float)) == {
        "straightness": pytest.approx(straightness),
        "monotonicity": pytest.approx(monotonicity),
        "largest_step": pytest.approx(largest_step),
        "seen": 1,
    }


def test_paths_that_lose_the_object_only_count_as_unseen() -> None:
    whole = [[0.0, 0], [1, 0], [2, 0]]
    lost = [[0.0, 0], [math.nan, math.nan], [9, 0]]
    scores = path_scores(np.array([whole, lost]))
    assert scores["straightness"] == 1 and scores["seen"] == pytest.approx(5 / 6)
    nowhere = path_scores(np.array([lost]))
    assert math.isnan(nowhere["straightness"]) and math.isnan(nowhere["monotonicity"])
