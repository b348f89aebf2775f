"""Paths between images: arcs, objects counted, even motion told from a jump."""

import math

import numpy as np
import pytest
import torch

from mbrl.studies.fidelity.objects import Detector, contrast
from mbrl.studies.fidelity.sprites import SceneObject
from mbrl.studies.flows.measure import cross_fade, latent_paths, slerp
from mbrl.studies.flows.sight import blobs, count_objects, path_scores

# slerp


def test_half_way_between_orthogonal_unit_vectors_is_their_normalised_sum() -> None:
    half = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    torch.testing.assert_close(half, torch.full((1, 2), math.sqrt(0.5)))


def test_a_third_of_a_right_angle_is_thirty_degrees() -> None:
    third = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)
    torch.testing.assert_close(third, torch.tensor([[math.sqrt(3) / 2, 0.5]]))


def test_the_ends_of_an_arc_are_the_ends() -> None:
    start, end = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(slerp(start, end, 0.0), start)
    torch.testing.assert_close(slerp(start, end, 1.0), end)


def test_vectors_that_point_the_same_way_are_mixed_along_a_straight_line() -> None:
    start = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(slerp(start, 3 * start, 0.5), 2 * start)


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


def picture(*balls: tuple[int, int, int]) -> np.ndarray:
    """A picture with balls of 2 x 2 pixels: row, column, brightness."""
    image = np.zeros((1, 16, 16, 1), np.uint8)
    for row, column, brightness in balls:
        image[0, row : row + 2, column : column + 2] = brightness
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
    ],
)
def test_objects_are_counted_wherever_they_are(
    balls: list[tuple[int, int, int]], count: int
) -> None:
    assert count_objects(ball_on(), picture(*balls)).tolist() == [count]


def test_a_single_bright_pixel_is_too_little_to_be_a_ball() -> None:
    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[0, 4, 4] = 90
    assert count_objects(ball_on(), contrast(image, np.zeros((16, 16, 1)))).tolist() == [0]


def test_blobs_are_summed_one_by_one() -> None:
    values = np.array([[1.0, 0, 0, 4], [0, 2, 0, 4], [0, 0, 0, 0], [8, 0, 0, 0]])
    assert sorted(blobs(values > 0, values)) == [3, 8, 8]


# Moving


def test_even_motion_along_a_line_scores_one_everywhere() -> None:
    places = np.array([[[0.0, 0], [1, 1], [2, 2], [3, 3]]])
    scores = path_scores(places)
    assert scores == {
        "straightness": pytest.approx(1),
        "monotonicity": 1,
        "largest_step": pytest.approx(1),
        "seen": 1,
    }


def test_a_jump_goes_forward_once_and_takes_all_steps_at_a_time() -> None:
    places = np.array([[[0.0, 0], [0, 0], [0, 8], [0, 8], [0, 8]]])
    scores = path_scores(places)
    assert (scores["monotonicity"], scores["largest_step"]) == (0.25, 4)
    assert scores["straightness"] == 1


def test_a_detour_is_longer_than_the_line() -> None:
    places = np.array([[[0.0, 0], [3, 0], [3, 4]]])
    scores = path_scores(places)
    assert scores["straightness"] == pytest.approx(5 / 7)
    assert scores["monotonicity"] == 1
    assert scores["largest_step"] == pytest.approx(4 / 3.5)


def test_paths_that_lose_the_object_only_count_as_unseen() -> None:
    whole = [[0.0, 0], [1, 0], [2, 0]]
    lost = [[0.0, 0], [math.nan, math.nan], [9, 0]]
    scores = path_scores(np.array([whole, lost]))
    assert scores["straightness"] == 1 and scores["seen"] == pytest.approx(5 / 6)
    nowhere = path_scores(np.array([lost]))
    assert math.isnan(nowhere["straightness"]) and math.isnan(nowhere["monotonicity"])
