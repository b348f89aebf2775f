"""What a comparison found: the finished runs of its arms in, the numbers of `result.json` out.

An *arm* is an agent, or an agent with other settings. The first arm is the one whose env steps are
compared; the baselines among the others are its rivals. Arms may have different budgets. Scores are
then compared at the smallest, and the ratio of steps follows a rival along its whole curve. Several
games are gathered in one mean. Words are in `mbrl.report.sentences`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.baselines import BASELINES
from mbrl.report.sentences import gathered_sentence, sentence
from mbrl.report.stats import (
    StepsRatio,
    align,
    geometric_mean,
    iqm,
    steps_ratio,
    steps_to_match,
    steps_to_threshold,
    stratified_bootstrap_ci,
)
from mbrl.run.record import RunRecord

Runs = Mapping[str, Sequence[RunRecord]]
"""By the name of the arm, the arm whose steps are compared first."""

LONGER = 1.05
"""A budget that is longer by less than this factor counts as the same: iterations are whole."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One game.

    Attributes:
        result: what `result.json` holds.
        runs: behind it.
        ratio: that leads, with its replicates; None without a baseline.
    """

    result: dict[str, Any]
    runs: Runs
    ratio: StepsRatio | None

    @property
    def curves(self) -> dict[str, list[Any]]:
        """Every seed's learning curve, by arm."""
        return {arm: [run.curve for run in of_arm] for arm, of_arm in self.runs.items()}


def comparison(about: Mapping[str, Any], runs: Runs) -> Comparison:
    """Compare the arms of one game, each with one finished run or more.

    `about` says what was compared: `env_id`, `seeds`, `command`, `machine`. Into the result go also
    `env_steps`, the smallest budget, at which scores are compared; per arm what `summarise` gives;
    and what `best_rival` gives.
    """
    env_steps = min(_budget(run) for of_arm in runs.values() for run in of_arm)
    leading, ratios = best_rival(runs)
    result = {
        **about,
        "env_steps": env_steps,
        "agents": {arm: summarise(of_arm, env_steps) for arm, of_arm in runs.items()},
        **ratios,
        "commit": commits([run for of_arm in runs.values() for run in of_arm]),
    }
    return Comparison(result={**result, "sentence": sentence(result)}, runs=runs, ratio=leading)


def gathered(about: Mapping[str, Any], games: Mapping[str, Comparison]) -> dict[str, Any]:
    """What `all.json` holds: every game's result but for its seeds, and a sentence over them.

    `steps_ratio` is the geometric mean of the ratios that lead, over the games that have one.
    `ahead` are the games in which the first arm is above every baseline at equal steps, and `apart`
    those where the intervals do not touch either.
    """
    ratios = [game.ratio for game in games.values() if game.ratio is not None]
    mean = geometric_mean(ratios).as_dict() if ratios else None
    whole: dict[str, Any] = {
        **about,
        "games": {name: _without_seeds(game.result) for name, game in games.items()},
        "steps_ratio": mean and {**mean, "threshold": None, "games": len(ratios)},
        "ahead": [name for name, game in games.items() if _ahead(game)],
        "apart": [name for name, game in games.items() if _ahead(game, apart=True)],
        "commit": commits([r for game in games.values() for of in game.runs.values() for r in of]),
    }
    return {**whole, "sentence": gathered_sentence(whole)}


def summarise(runs: Sequence[RunRecord], env_steps: int | None = None) -> dict[str, Any]:
    """Scores of one arm over its seeds.

    Args:
        runs: one per seed.
        env_steps: at which scores are compared; None: each run's budget. A run with a larger budget
            counts there with its curve, interpolated between the evaluations on the way.

    Returns:
        `returns`, `iqm` and `ci95` at those steps; `at_end`, the same at the end of the budget; the
        mean `curve`; and per seed what its run left.
    """
    ends = [float(run.evaluation["mean"]) for run in runs]
    there = [
        end if env_steps is None or _budget(run) <= env_steps else _score_at(run, env_steps)
        for run, end in zip(runs, ends, strict=True)
    ]
    grid, scores = align([run.curve for run in runs])
    return {
        **_scores(there),
        "at_end": {"env_steps": float(np.mean([run.env_steps for run in runs])), **_scores(ends)},
        "curve": [[float(x), float(y)] for x, y in zip(grid, scores.mean(0), strict=True)],
        "seeds": {
            str(run.seed): {
                "curve": np.asarray(run.curve).tolist(),
                "final": dict(run.evaluation),
                "env_steps": run.env_steps,
                "wall_time_s": run.wall_time_s,
                "budget": dict(run.budget),
            }
            for run in runs
        },
    }


def best_rival(runs: Runs) -> tuple[StepsRatio | None, dict[str, Any]]:
    """How many times fewer env steps the first arm needs than the best baseline.

    The best baseline (`against`) is the one that needs the fewest steps to score what the first arm
    ends with; one that never gets there counts with its budget, and of several such ones the
    highest score counts. So a baseline with a small budget bounds the ratio, whatever others reach.

    Returns:
        The ratio that leads, and for the result: `steps_ratio` at the score the first arm ends
        with, `steps_ratio_at_rival` at that of the baseline, both None without a baseline, and
        `leads`, which of them leads. The first does, unless the baseline never gets there and had
        no more steps: then it says nothing.
    """
    first, *others = runs
    rivals = [arm for arm in others if kind_of(runs[arm][0]) in BASELINES]
    if not rivals:
        return None, {"steps_ratio": None, "steps_ratio_at_rival": None, "leads": "steps_ratio"}
    ours = runs[first]
    finals = {arm: [float(run.evaluation["mean"]) for run in runs[arm]] for arm in runs}
    curves = {arm: [run.curve for run in runs[arm]] for arm in runs}

    def effort(arm: str) -> tuple[float, float]:
        grid, scores = align(curves[arm])
        mean_curve = np.stack([grid, scores.mean(axis=0)], axis=1)
        steps = steps_to_threshold(mean_curve, float(np.mean(finals[first])))
        budget = min(_budget(run) for run in runs[arm])
        return min(steps, budget), -float(np.mean(finals[arm]))

    against = min(rivals, key=effort)
    steps = float(np.mean([run.env_steps for run in ours]))
    at_ours = steps_to_match(finals[first], steps, curves[against], rng=np.random.default_rng(0))
    score = float(np.mean(finals[against]))
    at_rival = steps_ratio(curves[first], curves[against], score, rng=np.random.default_rng(0))
    longer = max(_budget(run) for run in runs[against]) > LONGER * max(map(_budget, ours))
    own = not at_ours.at_least or longer or at_rival.value is None
    return at_ours if own else at_rival, {
        "steps_ratio": {"against": against, **at_ours.as_dict()},
        "steps_ratio_at_rival": {"against": against, **at_rival.as_dict()},
        "leads": "steps_ratio" if own else "steps_ratio_at_rival",
    }


def _without_seeds(result: Mapping[str, Any]) -> dict[str, Any]:
    """A game's result as far as it is about arms: what is of one seed stays in its own file."""
    agents = {
        arm: {key: value for key, value in agent.items() if key != "seeds"}
        for arm, agent in result["agents"].items()
    }
    return {**result, "agents": agents}


def kind_of(run: RunRecord) -> str:
    """The agent behind an arm, as the setting `agent` names it."""
    return str(run.config.get("agent", run.agent))


def commits(runs: Sequence[RunRecord]) -> str:
    """Of the code that made these runs, each once, with commas between."""
    return ", ".join(sorted({run.commit for run in runs}))


def _budget(run: RunRecord) -> int:
    """The env steps a run was to take; it may have taken a few more."""
    return int(run.config.get("env_steps", run.env_steps))


def _score_at(run: RunRecord, env_steps: int) -> float:
    curve = np.asarray(run.curve, dtype=float)
    curve = curve[~np.isnan(curve[:, 1])]
    return float(np.interp(env_steps, curve[:, 0], curve[:, 1]))


def _scores(returns: Sequence[float]) -> dict[str, Any]:
    low, high = stratified_bootstrap_ci([returns], rng=np.random.default_rng(0))
    several = len(returns) > 1
    return {
        "returns": list(returns),
        "iqm": float(iqm(returns)),
        "ci95": [float(low), float(high)] if several else None,
    }


def _ahead(game: Comparison, apart: bool = False) -> bool:
    """Whether the first arm is above every baseline at equal steps, if `apart` by its interval."""
    first, *others = game.runs
    agents = game.result["agents"]
    rivals = [agents[arm] for arm in others if kind_of(game.runs[arm][0]) in BASELINES]
    if not rivals:
        return False
    if not apart:
        return bool(agents[first]["iqm"] > max(rival["iqm"] for rival in rivals))
    intervals = [agents[first]["ci95"], *(rival["ci95"] for rival in rivals)]
    if any(interval is None for interval in intervals):
        return False
    return bool(intervals[0][0] > max(interval[1] for interval in intervals[1:]))
