import math

import numpy as np
import pytest
from scipy.stats import trim_mean

from mbrl.report.stats import (
    StepsRatio,
    align,
    geometric_mean,
    iqm,
    steps_ratio,
    steps_to_threshold,
    stratified_bootstrap_ci,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def mean(scores: np.ndarray) -> np.ndarray:
    return scores.mean(axis=-1)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 30])
def test_iqm_is_the_trimmed_mean_that_rliable_uses(n: int) -> None:
    scores = rng().normal(size=(6, n))
    np.testing.assert_allclose(iqm(scores), trim_mean(scores, 0.25, axis=-1))


@pytest.mark.parametrize("scores", [[], 3.0, [1.0, math.nan]])
def test_iqm_refuses_what_is_no_score(scores: object) -> None:
    with pytest.raises(ValueError, match="expected scores"):
        iqm(scores)  # type: ignore[arg-type]


def test_interval_resamples_within_tasks_only() -> None:
    # Resampled across tasks, the mean would vary; within tasks it cannot.
    assert stratified_bootstrap_ci([[0.0, 0.0], [10.0]], mean, rng=rng()) == pytest.approx(
        (10 / 3, 10 / 3)
    )
    # The mean of a resample of {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert stratified_bootstrap_ci([[0.0, 1.0]], mean, rng=rng()) == (0.0, 1.0)


def test_interval_has_the_width_of_the_normal_one_for_many_runs() -> None:
    scores = rng().normal(3, 2, size=400)
    half = 1.96 * scores.std() / math.sqrt(400)
    wanted = scores.mean() - half, scores.mean() + half
    assert stratified_bootstrap_ci([scores], mean, rng=rng()) == pytest.approx(wanted, abs=0.03)


def test_steps_to_threshold_interpolates_the_first_crossing() -> None:
    curve = [[0, 0.0], [100, 2.0], [200, 1.0], [300, 5.0]]
    assert steps_to_threshold(curve, 1.5) == 75
    assert steps_to_threshold(curve, 2.0) == 100
    assert steps_to_threshold(curve, 3.0) == 250
    assert steps_to_threshold(curve, -1.0) == 0
    assert steps_to_threshold(curve, 5.1) == math.inf
    # evaluations that are missing are left out
    assert steps_to_threshold([[0, 0.0], [50, math.nan], [100, 2.0]], 1.0) == 50


def test_align_interpolates_within_the_common_range() -> None:
    steps, scores = align([[[0, 0], [100, 1], [200, 2]], [[50, 4], [150, 6]]])
    assert steps.tolist() == [50, 100, 150]
    assert scores.tolist() == [[0.5, 1, 1.5], [4, 5, 6]]


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ([[[0, 1], [10, 2]], [[20, 1]]], "one begins at 20 env steps, another ends at 10"),
        ([[[10, 1], [5, 2]]], "ascending env steps"),
        ([[[10, math.nan]]], "at least one evaluation"),
        ([[1, 2, 3]], r"shape \(points, 2\), got \(3,\)"),
    ],
)
def test_align_refuses_curves_it_cannot_compare(curves: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        align(curves)  # type: ignore[arg-type]


def line(slope: float, until: float = 1000) -> list[list[float]]:
    return [[0, 0], [until, slope * until]]


@pytest.mark.parametrize(
    ("ours", "theirs", "threshold", "value", "ci95", "at_least"),
    [
        ([0.04] * 3, [0.01] * 3, 4, 4.0, (4.0, 4.0), False),
        # the slowest and the fastest seed alone would give 3 and 5
        ([0.03, 0.04, 0.05], [0.01] * 3, 4, 4.0, (3.0, 5.0), False),
        ([0.04], [0.001], 4, 10.0, None, True),  # the baseline never arrives
        ([0.001], [0.04], 4, None, None, False),  # the agent itself never does
        # nor in some replicates
        ([0.04, 0.0, 0.0], [0.008], 6, 750 / 450, (0.0, 5.0), False),
    ],
)
def test_ratio_of_steps_of_lines_is_that_of_their_slopes(
    ours: list[float],
    theirs: list[float],
    threshold: float,
    value: float | None,
    ci95: tuple[float, float] | None,
    at_least: bool,
) -> None:
    ratio = steps_ratio([line(s) for s in ours], [line(s) for s in theirs], threshold, rng=rng())
    assert ratio.value == pytest.approx(value)
    assert ratio.at_least == at_least
    assert ratio.ci95 == pytest.approx(ci95)


def ratio_of(value: float | None, replicates: list[float]) -> StepsRatio:
    return StepsRatio(
        threshold=0.0,
        value=value,
        ci95=(1.0, 2.0),
        at_least=False,
        replicates=np.asarray(replicates),
    )


def test_geometric_mean_of_twice_and_half_is_one_and_a_replicate_of_nothing_is_nothing() -> None:
    mean = geometric_mean([ratio_of(2.0, [2.0, 4.0]), ratio_of(0.5, [0.0, 1.0])])
    assert mean.value == pytest.approx(1.0)
    assert mean.replicates.tolist() == pytest.approx([0.0, 2.0])
    for nothing in ([], [ratio_of(None, [])]):
        with pytest.raises(ValueError, match="expected ratios above 0"):
            geometric_mean(nothing)
