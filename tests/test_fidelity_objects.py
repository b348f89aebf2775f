"""Objects are found in real frames and in drawings, and what only looks like them is not."""

from dataclasses import replace

import numpy as np
import pytest
from billiard import BALL, DARK, PADDLE, draw, play

from mbrl.studies.fidelity.objects import (
    Detector,
    contrast,
    fit_detector,
    object_scores,
    truth,
)

BACKDROP = np.full((16, 16, 1), float(DARK))


def memories(*places, visible=1):
    """Memories with the ball at each (row, column), the paddle in the middle."""
    return np.array([(row, column, visible, 8) for row, column in places], np.uint8)


def field(*pixels):
    """One empty frame with grey values added at (row, column, value)."""
    frame = np.full((1, 16, 16, 1), DARK, np.uint8)
    for row, column, value in pixels:
        frame[0, row, column] += value
    return contrast(frame, BACKDROP)


def ball_detector():
    return Detector(BALL, mass=200.0, peak=200.0, load=200.0)


def scores_of(drawn, *places):
    """Scores of drawings of frames that really have the ball at `places`."""
    ram = memories(*places)
    return object_scores(
        ball_detector(), truth(ball_detector(), contrast(draw(ram), BACKDROP), ram), drawn
    )


# -- one drawing ----------------------------------------------------------------------------------

BALL_HERE = (7, 6, 200)  # the real ball: its place and its contrast
LATTICE = [(row, column, 200) for row in range(1, 16, 4) for column in range(0, 13, 4)]
SMEAR = [(row, column, 8) for row in range(5, 10) for column in range(4, 9)]  # 25 x 8 = 200
HAZE = [(row, column, 49) for row in range(1, 16) for column in (0, 3, 9, 12)]


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ([(7, 8, 200)], {"recall": 1, "centroid_px": 2, "centroid_px_mean": 2, "position_px": 2}),
        # out of its radius of 3
        ([(7, 10, 200)], {"recall": 0, "present": 1, "precision": 0, "position_px": 4}),
        # a third of the mass
        ([(7, 6, 67)], {"recall": 0, "present": 0}),
        (SMEAR, {"recall": 0}),
        ([(7, 6, 100), (7, 7, 100)], {"recall": 1, "centroid_px": 0.5}),
        # a wrong one beside, a little stronger
        (
            [BALL_HERE, (13, 2, 210)],
            {"near": 1, "recall": 0, "recalled": 0, "precision": 0, "position_px": np.hypot(6, 4)},
        ),
        (LATTICE, {"near": 1, "present": 1, "recall": 0}),
        # up to half another object is clean: 300 is 1.5 times 200
        ([BALL_HERE, (13, 2, 100)], {"recall": 1}),
        ([BALL_HERE, (13, 2, 101)], {"recall": 0}),
        # less than a quarter of the peak is no load
        ([BALL_HERE, *HAZE], {"recall": 1}),
        # outside the region
        ([(7, 14, 200), (0, 6, 200)], {"present": 0}),
    ],
)
def test_a_drawing_shows_the_ball_or_it_does_not(drawn, expected):
    scores = scores_of(field(*drawn), (7, 6))
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    if not scores["recall"]:
        assert np.isnan(scores["centroid_px"])


def test_a_filled_bar_is_no_paddle_wherever_the_paddle_is():
    ram = memories(*[(2, 2)] * 11)
    ram[:, 3] = np.arange(3, 14)
    frames = contrast(draw(ram), BACKDROP)
    paddle = fit_detector(PADDLE, frames, ram)
    # three pixels of 200
    assert (paddle.mass, paddle.peak, paddle.load) == (600.0, 200.0, 600.0)
    assert (paddle.floor, paddle.threshold, paddle.sides) == (0.0, 300.0, (1.0, 0.0))
    real = truth(paddle, frames, ram)
    assert object_scores(paddle, real, frames)["recall"] == 1.0
    bar = np.repeat(field(*[(row, 14, 200) for row in range(1, 16)]), len(ram), 0)
    scores = object_scores(paddle, real, bar)
    assert scores["near"] == 1.0 and scores["recall"] == 0.0


def test_what_the_real_region_holds_beside_the_object_may_be_drawn():
    """Another thing flies through the region: a perfect drawing of it is still a perfect one."""
    frame = field((7, 6, 200), (13, 2, 190))
    real = truth(ball_detector(), frame, memories((7, 6)))
    assert real.load.tolist() == [390.0]
    assert object_scores(ball_detector(), real, frame)["recall"] == 1.0
    more = field((7, 6, 200), (13, 2, 190), (3, 10, 200))
    assert object_scores(ball_detector(), real, more)["recall"] == 0.0


def test_a_phantom_is_a_ball_drawn_where_there_is_none():
    ram = memories((7, 6), (7, 6), visible=0)
    real = truth(ball_detector(), contrast(draw(ram), BACKDROP), ram)
    assert real.absent.all() and not real.visible.any()
    drawn = np.concatenate([field((3, 3, 200)), field()])
    scores = object_scores(ball_detector(), real, drawn)
    assert scores["phantom"] == 0.5 and np.isnan(scores["recall"]) and scores["frames"] == 0


def test_a_claim_of_the_memory_that_the_frame_does_not_bear_out_is_not_measured():
    ram = memories((7, 6), (7, 6))
    real = truth(ball_detector(), np.concatenate([field((7, 6, 200)), field()]), ram)
    assert real.visible.tolist() == [True, False] and real.claimed.all()
    assert not real.absent.any()
    scores = object_scores(ball_detector(), real, np.concatenate([field((7, 6, 200)), field()]))
    assert scores["detector"] == 0.5 and scores["frames"] == 1 and scores["recall"] == 1.0


def test_errors_are_from_the_real_frame_not_from_the_memory():
    """The memory is one pixel off: a drawing equal to the frame still has no error."""
    real = truth(ball_detector(), field((7, 6, 200)), memories((8, 6)))
    assert real.place.tolist() == [[7.0, 6.0]]
    scores = object_scores(ball_detector(), real, field((7, 6, 200)))
    assert scores["recall"] == 1.0 and scores["centroid_px"] == 0.0


# -- fitting --------------------------------------------------------------------------------------


def fitted(target, frames, **changes):
    backdrop = np.median(frames.obs, axis=0)
    return fit_detector(replace(target, **changes), contrast(frames.obs, backdrop), frames.ram)


def test_noise_raises_the_floor_that_masses_are_counted_from():
    frames = play(4)
    shaken = frames.obs.astype(int) + np.random.default_rng(0).integers(-9, 10, frames.obs.shape)
    detector = fitted(BALL, replace(frames, obs=shaken.clip(0, 255).astype(np.uint8)))
    # nine pixels, each of 19 equally likely values; only the brighter ones count: 9 x 45 / 19 = 21
    assert detector.sides == (1.0, 0.0)
    assert detector.floor == pytest.approx(21, abs=3)
    assert detector.threshold == pytest.approx((detector.mass + detector.floor) / 2)


def test_a_dark_object_is_told_from_a_bright_one_in_the_same_region():
    frames = play(2)
    obs = frames.obs.copy()
    dark = (frames.ram[:, 0].astype(int) + 6) % 12 + 2
    obs[np.arange(len(obs)), dark, 6] = 0

    def locate(ram):
        rows = (ram[:, 0].astype(float) + 6) % 12 + 2
        return np.stack([rows, np.full(len(ram), 6.0)], 1), np.ones(len(ram), bool)

    both = replace(frames, obs=obs)
    black = fitted(replace(BALL, name="black", locate=locate), both)
    assert black.sides == (0.0, 1.0)
    assert fitted(BALL, both).sides == (1.0, 0.0)


def test_an_object_that_cannot_be_seen_is_refused():
    frames = play(1)
    hidden = frames.ram.copy()
    hidden[:, 2] = 0
    with pytest.raises(ValueError, match="ball: visible in none of 100"):
        fit_detector(BALL, contrast(frames.obs, BACKDROP), hidden)
    with pytest.raises(ValueError, match="ball: expected it to stand out"):
        fit_detector(BALL, np.zeros((3, 16, 16, 2)), memories((2, 2), (5, 5), (9, 9)))
