"""The sentence a comparison leads with, in every case, from curves whose ratios are known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mbrl.report.comparison import Comparison, comparison, gathered
from mbrl.run.record import RunRecord

ABOUT: dict[str, Any] = {"env_id": "x", "seeds": [0, 1], "command": "c", "machine": {}}
Line = Sequence[Sequence[float]]


def run(arm: str, seed: int, curve: Line, agent: str | None = None) -> RunRecord:
    """A finished run that took exactly its budget and ends where its curve does."""
    steps = int(curve[-1][0])
    return RunRecord(
        run_dir=Path(),
        agent=arm,
        env_id="x",
        seed=seed,
        env_steps=steps,
        wall_time_s=1.0,
        evaluation={"mean": curve[-1][1]},
        curve=curve,
        budget={},
        commit="abc",
        config={"agent": agent or arm, "env_steps": steps},
        metrics=[],
    )


def line(slope: float, until: float) -> Line:
    return [[0, 0.0], [until / 2, slope * until / 2], [until, slope * until]]


def compared(**curves: Sequence[Line] | Line) -> Comparison:
    """Arms with a curve per seed; one curve stands for two seeds that are alike."""
    runs: dict[str, list[RunRecord]] = {}
    for arm, found in curves.items():
        alike = isinstance(found[0][0], int | float)
        seeds: Any = [found, found] if alike else found
        runs[arm] = [run(arm, seed, curve) for seed, curve in enumerate(seeds)]
    return comparison(ABOUT, runs)


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        # the baseline passes the score of 4 after 400, four times our steps, and goes on to 6
        (
            {"dream": line(0.04, 100), "ppo": line(0.01, 600)},
            "dream needs 4.0 [4.0, 4.0] times fewer env steps than the best baseline (ppo): dream "
            "is at 4.00 after 100, ppo after 400 on its way to 6.00, which dream does not reach.",
        ),
        # the best baseline is the one that gets there first, not the one that ends highest
        (
            {"dream": line(0.04, 100), "ppo": line(0.01, 900), "dqn": line(0.02, 200)},
            "dream needs 2.0 [2.0, 2.0] times fewer env steps than the best baseline (dqn): dream "
            "is at 4.00 after 100, dqn after 200.",
        ),
        # nobody gets there: the baseline that was given up first bounds what may be said
        (
            {"dream": line(0.04, 100), "ppo": line(0.001, 900), "dqn": line(0.01, 300)},
            "dream needs at least 3.0 [3.0, 3.0] times fewer env steps than the best baseline "
            "(dqn), which does not reach dream's 4.00 within 300.",
        ),
        # at equal budgets the score that both reach is compared
        (
            {"dream": line(0.04, 100), "ppo": line(0.01, 100), "dqn": line(0.02, 100)},
            "dream needs 2.0 [2.0, 2.0] times fewer env steps than the best baseline (dqn) to "
            "reach the 2.00 at which dqn ends; dqn does not reach dream's 4.00.",
        ),
        # the baseline is ahead
        (
            {"dream": line(0.01, 100), "dqn": line(0.04, 100)},
            "dream needs 4.0 [4.0, 4.0] times as many env steps as the best baseline (dqn): dream "
            "is at 1.00 after 100, dqn after 25 on its way to 4.00, which dream does not reach.",
        ),
        # it is ahead when it is first looked at; nobody knows since when
        (
            {"dream": [[50, 0.0], [100, 1.0]], "dqn": [[50, 1.5], [100, 2.0]]},
            "dream needs at least 2.0 [2.0, 2.0] times as many env steps as the best baseline "
            "(dqn), which is at dream's 1.00 or above when it is first evaluated, after 50.",
        ),
        # it is first looked at when we are done
        (
            {"dream": line(0.04, 100), "ppo": [[250, 5.0], [500, 9.0]]},
            "dream needs at most 2.5 [2.5, 2.5] times fewer env steps than the best baseline "
            "(ppo), which is at dream's 4.00 or above when it is first evaluated, after 250.",
        ),
        # a baseline that never learns: there is no later score to compare at
        (
            {"dream": line(0.04, 100), "ppo": [[50, 1.0], [100, 1.0]]},
            "dream needs at least 1.0 [1.0, 1.0] times fewer env steps than the best baseline "
            "(ppo), which does not reach dream's 4.00 within 100.",
        ),
        (
            {"dream": [line(0.04, 100)], "ppo": [line(0.01, 600)]},
            "On one seed only, dream needs 4.0 times fewer env steps than the best baseline (ppo): "
            "dream is at 4.00 after 100, ppo after 400 on its way to 6.00, which dream does not "
            "reach.",
        ),
        (
            {"dream": [line(0.04, 100)], "ppo": line(0.001, 600)},
            "With one seed only of dream, dream needs at least 6.0 [6.0, 6.0] times fewer env "
            "steps than the best baseline (ppo), which does not reach dream's 4.00 within 600.",
        ),
        # a random agent is no baseline, however high it scores
        (
            {"dream": line(0.04, 100), "random": [[100, 9.0]]},
            "dream scores 4.00 [4.00, 4.00] after 100 env steps; there is no baseline to compare "
            "its steps with.",
        ),
    ],
)
def test_sentence_of_a_game(curves: Mapping[str, Any], said: str) -> None:
    assert compared(**curves).result["sentence"] == said


def test_interval_draws_the_score_to_reach_with_our_seeds() -> None:
    """Our seeds end at 3, 4 and 5, which the baseline reaches after 300, 400 and 500 steps."""
    ours = [line(slope, 100) for slope in (0.03, 0.04, 0.05)]
    ratio = compared(dream=ours, ppo=line(0.01, 900)).result["steps_ratio"]
    assert ratio["value"] == pytest.approx(4.0)
    assert ratio["ci95"] == pytest.approx([3.0, 5.0])
    short = compared(dream=ours, ppo=line(0.01, 450)).result["steps_ratio"]
    assert short["ci95"] == pytest.approx([3.0, 4.5])  # beyond its budget it counts with that


def test_an_early_lucky_evaluation_helps_the_baseline_but_not_us() -> None:
    found = compared(
        dream=[[10, 0.0], [20, 5.0], [100, 4.0]], ppo=[[50, 0.0], [150, 4.0], [500, 1.0]]
    )
    assert found.result["steps_ratio"]["value"] == pytest.approx(1.5)  # 150 to 100, not to 18


def test_scores_are_compared_at_the_smallest_budget() -> None:
    found = compared(
        dream=line(0.04, 100), ppo=[[line(0.01, 600), line(0.03, 600)][i] for i in (0, 1)]
    ).result
    assert found["env_steps"] == 100
    assert found["agents"]["ppo"]["returns"] == pytest.approx([1.0, 3.0])
    assert found["agents"]["ppo"]["at_end"]["returns"] == pytest.approx([6.0, 18.0])
    assert found["agents"]["ppo"]["at_end"]["env_steps"] == 600
    assert found["agents"]["dream"]["returns"] == found["agents"]["dream"]["at_end"]["returns"]


def test_a_variant_of_a_baseline_is_a_rival_and_a_control_is_not() -> None:
    ours, theirs = [run("dream", 0, line(0.04, 100))], line(0.02, 400)
    control = comparison(ABOUT, {"dream": ours, "flat": [run("flat", 0, theirs, "dream")]})
    assert control.ratio is None
    slow = comparison(ABOUT, {"dream": ours, "slow": [run("slow", 0, theirs, "ppo")]})
    assert slow.result["steps_ratio"]["against"] == "slow"


FASTER = {"dream": line(0.08, 100), "ppo": line(0.01, 900)}  # 8 times
SLOWER = {"dream": line(0.01, 100), "ppo": line(0.02, 900)}  # half
BOUND = {"dream": line(0.04, 100), "ppo": line(0.001, 800)}  # at least 8 times


@pytest.mark.parametrize(
    ("games", "said"),
    [
        (
            {"a": FASTER, "b": SLOWER},
            "Over 2 games dream needs 2.0 [2.0, 2.0] times fewer env steps than the best baseline "
            "of each (geometric mean); at equal steps it scores above all of them on 1 of 2, with "
            "intervals apart on 1.",
        ),
        (
            {"a": SLOWER},
            "Over 1 game dream needs 2.0 [2.0, 2.0] times as many env steps as the best baseline "
            "of each (geometric mean); at equal steps it scores above all of them on 0 of 1, with "
            "intervals apart on 0.",
        ),
        (
            {"a": FASTER, "b": BOUND},
            "Over 2 games dream needs at least 8.0 [8.0, 8.0] times fewer env steps than the best "
            "baseline of each (geometric mean); at equal steps it scores above all of them on 2 of "
            "2, with intervals apart on 2.",
        ),
        (
            {"a": {name: [curve] for name, curve in FASTER.items()}},
            "On one seed only, over 1 game dream needs 8.0 times fewer env steps than the best "
            "baseline of each (geometric mean); at equal steps it scores above all of them on 1 of "
            "1.",
        ),
        (  # 4 times at the 1 that the baseline of the first ends with, and half on the other
            {"a": {"dream": line(0.04, 100), "ppo": line(0.01, 100)}, "b": SLOWER},
            "Over 2 games dream needs 1.4 [1.4, 1.4] times fewer env steps than the best baseline "
            "of each (geometric mean, at scores that both reach); at equal steps it scores above "
            "all of them on 1 of 2, with intervals apart on 1.",
        ),
        (
            {"a": {"dream": line(1, 10)}},
            "Over 1 game there is no baseline to compare dream's steps with.",
        ),
    ],
)
def test_sentence_over_games(games: Mapping[str, Any], said: str) -> None:
    whole = gathered(ABOUT, {name: compared(**curves) for name, curves in games.items()})
    assert whole["sentence"] == said


def test_all_games_leave_what_is_of_one_seed_in_the_files_of_the_games() -> None:
    game = compared(**FASTER)
    whole = gathered(ABOUT, {"a": game})
    assert "seeds" in game.result["agents"]["dream"]
    assert whole["games"]["a"]["agents"]["dream"].keys() == {
        "returns",
        "iqm",
        "ci95",
        "at_end",
        "curve",
    }
    assert (whole["ahead"], whole["apart"], whole["commit"]) == (["a"], ["a"], "abc")
