"""Statistics of few runs: what may be claimed from a handful of seeds, and how surely.

Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
NeurIPS 2021, arXiv:2108.13264 (interquartile mean, stratified bootstrap).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
LEVEL, REPS = 0.95, 2000
"""Of every interval, and the bootstrap replicates it is made from."""


def iqm(scores: ArrayLike) -> Floats:
    """Interquartile mean: the mean of what is left when the lowest and highest quarter are cut.

    Args:
        scores: (..., n) float, n >= 1 runs.

    Returns:
        (...,) float64. From each end floor(n / 4) values are cut: with fewer than four runs it is
        the plain mean.

    Raises:
        ValueError: no scores, or one that is not a number.
    """
    values = np.sort(_scores(scores), axis=-1)
    n = values.shape[-1]
    cut = n // 4
    return np.asarray(values[..., cut : n - cut].mean(axis=-1))


def stratified_bootstrap_ci(
    scores_per_task: Sequence[ArrayLike],
    statistic: Statistic = iqm,
    *,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Percentile interval of a statistic over all runs, resampling them within each task.

    Args:
        scores_per_task: one (runs,) array per task, of at least one; the numbers of runs may
            differ.
        statistic: (REPS, all runs) -> (REPS,), such as `iqm`.
        rng: makes the resamples; the same state gives the same interval.

    Returns:
        Lower and upper limit. One run per task gives an interval of no width, which says nothing.

    Raises:
        ValueError: a task without runs, or a score that is not a number.
    """
    tasks = [_scores(scores) for scores in scores_per_task]
    resampled = [task[rng.integers(len(task), size=(REPS, len(task)))] for task in tasks]
    return _interval(statistic(np.concatenate(resampled, axis=1)))


def align(curves: Sequence[ArrayLike]) -> tuple[Floats, Floats]:
    """Bring learning curves to one grid, by linear interpolation.

    Args:
        curves: one (points, 2) array per seed: env steps (ascending), then the score. Points whose
            score is NaN are left out.

    Returns:
        All env steps (G,) at which some seed was evaluated, within the range that all seeds cover,
        and the scores (seeds, G).

    Raises:
        ValueError: a curve has no points or steps that descend, or the curves share no range.
    """
    clean = [_curve(curve) for curve in curves]
    first = max(curve[0, 0] for curve in clean)
    last = min(curve[-1, 0] for curve in clean)
    if first > last:
        raise ValueError(
            f"expected curves that overlap: one begins at {first:g} env steps, another ends at "
            f"{last:g}"
        )
    grid = np.unique(np.concatenate([curve[:, 0] for curve in clean]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in clean])


def steps_to_threshold(curve: ArrayLike, threshold: float) -> float:
    """Env steps at which a learning curve (points, 2), as in `align`, first reaches a score.

    Interpolated between the two evaluations around the crossing; the first evaluation's steps if it
    is there already (an upper bound); inf if it is never reached.
    """
    clean = _curve(curve)
    return float(_first_crossing(clean[:, 0], clean[None, :, 1], threshold)[0])


def _first_crossing(steps: Floats, scores: Floats, threshold: float | Floats) -> Floats:
    """`steps_to_threshold` of curves (curves, G) on one grid (G,), each to a score of its own."""
    threshold = np.broadcast_to(threshold, len(scores))
    reached = scores >= threshold[:, None]
    after = reached.argmax(axis=1)  # 0 also where nothing is reached; replaced below
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(scores))
    low, high = scores[rows, before], scores[rows, after]
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(after > 0, (threshold - low) / rise, 0.0)
    crossing = steps[before] + share * (steps[after] - steps[before])
    return np.where(reached.any(axis=1), crossing, np.inf)


@dataclass(frozen=True, kw_only=True)
class StepsRatio:
    """How many times the env steps B needs that A needs, to reach one score.

    Attributes:
        threshold: the score.
        value: steps of B / steps of A, by their mean curves; above 1, A needs fewer. None if A
            does not reach the score, or nobody knows when B did.
        ci95: percentile interval over seeds; None with `value`, or if both have one seed only.
        at_least: B does not reach the score within its budget; `value` and `ci95` are then lower
            bounds, made with the budget.
        at_most: B had reached it when it was first evaluated; `value` is then None, or an upper
            bound that is made with the steps of that evaluation.
        replicates: (REPS,) ratios of resampled seeds; none with `value`.
    """

    threshold: float
    value: float | None
    ci95: tuple[float, float] | None
    at_least: bool
    at_most: bool = False
    replicates: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The ratio without its replicates, ready for JSON."""
        names = ("threshold", "value", "ci95", "at_least", "at_most")
        return {name: getattr(self, name) for name in names}


def steps_to_match(
    scores_a: ArrayLike, steps_a: float, curves_b: Sequence[ArrayLike], *, rng: np.random.Generator
) -> StepsRatio:
    """Ratio of the env steps that B needs to score what A ends with, and the steps A took.

    A counts with all its steps, even if its curve was as high before: only B may profit from a
    lucky evaluation. A replicate draws seeds of A, whose mean score is then to be reached, and
    seeds of B. Where B does not get there it counts with its budget.

    Args:
        scores_a: (seeds,) final scores of A.
        steps_a: env steps that each of these runs took.
        curves_b: one (points, 2) curve per seed of B, as in `align`.
        rng: makes the resamples.

    Returns:
        The ratio; it always has a `value`, above 0.

    Raises:
        ValueError: as `align`, or a score of A is not a number.
    """
    finals = _scores(scores_a)
    grid, scores = align(curves_b)
    threshold = float(finals.mean())
    crossing = float(_first_crossing(grid, scores.mean(axis=0)[None], threshold)[0])
    drawn = _mean_of_resamples(finals[:, None], rng)[:, 0]
    crossings = _first_crossing(grid, _mean_of_resamples(scores, rng), drawn)
    replicates = np.clip(crossings, 1.0, grid[-1]) / max(steps_a, 1.0)
    return StepsRatio(
        threshold=threshold,
        value=float(np.clip(crossing, 1.0, grid[-1])) / max(steps_a, 1.0),
        ci95=_interval(replicates) if max(len(finals), len(scores)) > 1 else None,
        at_least=not np.isfinite(crossing),
        at_most=bool(scores.mean(axis=0)[0] >= threshold),
        replicates=replicates,
    )


def geometric_mean(ratios: Sequence[StepsRatio]) -> StepsRatio:
    """The mean of ratios of several tasks, each with a value above 0; it has no threshold (NaN).

    Twice as fast on one task and half as fast on another is 1. The interval resamples the seeds
    within each task; it is None if each task has one.

    Raises:
        ValueError: no ratios, or one that is not above 0.
    """
    values = [ratio.value for ratio in ratios if ratio.value is not None and ratio.value > 0]
    if not ratios or len(values) < len(ratios):
        raise ValueError(f"expected ratios above 0, got {[ratio.value for ratio in ratios]}")
    with np.errstate(divide="ignore"):  # log 0 is -inf, and its exp is 0 again
        drawn = np.exp(np.log([ratio.replicates for ratio in ratios]).mean(axis=0))
    return StepsRatio(
        threshold=np.nan,
        value=float(np.exp(np.log(values).mean())),
        ci95=_interval(drawn) if any(ratio.ci95 for ratio in ratios) else None,
        at_least=any(ratio.at_least for ratio in ratios),
        at_most=any(ratio.at_most for ratio in ratios),
        replicates=drawn,
    )


def steps_ratio(
    curves_a: Sequence[ArrayLike],
    curves_b: Sequence[ArrayLike],
    threshold: float,
    *,
    rng: np.random.Generator,
) -> StepsRatio:
    """Ratio of the env steps that B and A need until their mean curves reach a score.

    Each has one (points, 2) curve per seed. The interval resamples the seeds of A and of B. Every
    replicate is a lower bound: where B does not reach the score it counts with its budget, where A
    does not the ratio counts as 0.

    Raises:
        ValueError: as `align`.
    """
    grid_a, scores_a = align(curves_a)
    grid_b, scores_b = align(curves_b)
    steps_a = float(_first_crossing(grid_a, scores_a.mean(axis=0)[None], threshold)[0])
    steps_b = float(_first_crossing(grid_b, scores_b.mean(axis=0)[None], threshold)[0])
    budget_b = grid_b[-1]
    value = ci95 = None
    ratios = np.empty(0)
    # else B crossed before it was first evaluated, nobody knows when
    seen_below = bool(scores_b.mean(axis=0)[0] < threshold)
    if np.isfinite(steps_a) and seen_below:
        value = min(steps_b, budget_b) / max(steps_a, 1.0)
        crossing_a = _first_crossing(grid_a, _mean_of_resamples(scores_a, rng), threshold)
        crossing_b = _first_crossing(grid_b, _mean_of_resamples(scores_b, rng), threshold)
        ratios = np.minimum(crossing_b, budget_b) / np.maximum(crossing_a, 1.0)  # x / inf is 0
        if max(len(scores_a), len(scores_b)) > 1:
            ci95 = _interval(ratios)
    return StepsRatio(
        threshold=float(threshold),
        value=value,
        ci95=ci95,
        at_least=value is not None and not np.isfinite(steps_b),
        at_most=bool(np.isfinite(steps_a)) and not seen_below,
        replicates=ratios,
    )


def _mean_of_resamples(scores: Floats, rng: np.random.Generator) -> Floats:
    """(REPS, G): mean curves of seeds (seeds, G) drawn with replacement."""
    seeds = len(scores)
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPS)
    return np.asarray(counts @ scores / seeds)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _scores(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"expected scores of at least one run, got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError("expected scores that are numbers, got NaN: a run without an evaluation?")
    return values


def _curve(curve: ArrayLike) -> Floats:
    points = np.asarray(curve, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"expected a curve of shape (points, 2), got {points.shape}")
    points = points[~np.isnan(points[:, 1])]
    if len(points) == 0:
        raise ValueError("expected a curve with at least one evaluation, got none")
    if (np.diff(points[:, 0]) < 0).any():
        raise ValueError(f"expected a curve with ascending env steps, got {points[:, 0].tolist()}")
    return points
