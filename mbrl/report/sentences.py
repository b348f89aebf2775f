"""The sentence a comparison leads with: the numbers of its result in, plain English out.

It claims no more than the curves show: where a baseline never reaches the score, or was there when
it was first evaluated, the ratio is called a bound; where the baseline is ahead, that is what it
says; and one seed is called one seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Result = Mapping[str, Any]


def sentence(result: Result) -> str:
    """Of one game: how many times fewer env steps the first arm needs than the best baseline.

    Args:
        result: with `agents`, `steps_ratio`, `steps_ratio_at_rival` and `leads`, as
            `mbrl.report.comparison` makes them.
    """
    agents = result["agents"]
    first = next(iter(agents))
    if result["steps_ratio"] is None:
        end = agents[first]["at_end"]
        score = f"{end['iqm']:.2f}{_interval(end['ci95'], 2)}"
        return _with_seeds(
            f"{first} scores {score} after {_steps(end['env_steps'])} env steps; there is no "
            "baseline to compare its steps with",
            {first: agents[first]},
        )
    against = result["steps_ratio"]["against"]
    led_by_rival = result["leads"] == "steps_ratio_at_rival"
    said = (_at_rival if led_by_rival else _at_ours)(result, first, against)
    return _with_seeds(said, {arm: agents[arm] for arm in (first, against)})


def gathered_sentence(whole: Result) -> str:
    """Over several games, from what `all.json` holds."""
    games, ratio = whole["games"], whole["steps_ratio"]
    first = next(iter(next(iter(games.values()))["agents"]))
    agents = {
        f"{arm} on {name}": agent
        for name, game in games.items()
        for arm, agent in game["agents"].items()
    }
    over = f"over {len(games)} game{'s' * (len(games) > 1)}"
    if ratio is None:
        return _with_seeds(f"{over} there is no baseline to compare {first}'s steps with", agents)
    at_both = any(game["leads"] == "steps_ratio_at_rival" for game in games.values())
    mean = "geometric mean, at scores that both reach" if at_both else "geometric mean"
    known = "" if ratio["games"] == len(games) else f" on {ratio['games']} of them"
    said = (
        f"{over} {first} needs {_times(ratio)} the best baseline of each{known} ({mean}); "
        f"at equal steps it scores above all of them on {len(whole['ahead'])} of {len(games)}"
    )
    if min(len(agent["returns"]) for agent in agents.values()) > 1:
        said += f", with intervals apart on {len(whole['apart'])}"
    return _with_seeds(said, agents)


def _at_ours(result: Result, first: str, against: str) -> str:
    """The ratio at the score the first arm ends with."""
    ratio, agents = result["steps_ratio"], result["agents"]
    took, end = (agents[arm]["at_end"]["env_steps"] for arm in (first, against))
    score, there = f"{ratio['threshold']:.2f}", ratio["value"] * took
    lead = f"{first} needs {_times(ratio)} the best baseline ({against})"
    if ratio["at_most"]:
        return (
            f"{lead}, which is at {first}'s {score} or above when it is first evaluated, after "
            f"{_steps(there)}"
        )
    if ratio["at_least"]:
        return f"{lead}, which does not reach {first}'s {score} within {_steps(end)}"
    said = f"{lead}: {first} is at {score} after {_steps(took)}, {against} after {_steps(there)}"
    ends_at = float(np.mean(agents[against]["at_end"]["returns"]))
    if ends_at > ratio["threshold"]:
        said += f" on its way to {ends_at:.2f}"
        at_rival = result["steps_ratio_at_rival"]
        if at_rival["value"] is None and not at_rival["at_most"]:
            said += f", which {first} does not reach"
    return said


def _at_rival(result: Result, first: str, against: str) -> str:
    """The ratio at the score the baseline ends with, which is below that of the first arm."""
    ratio, ours = result["steps_ratio_at_rival"], result["steps_ratio"]["threshold"]
    return (
        f"{first} needs {_times(ratio)} the best baseline ({against}) to reach the "
        f"{ratio['threshold']:.2f} at which {against} ends; {against} does not reach {first}'s "
        f"{ours:.2f}"
    )


def _times(ratio: Result) -> str:
    """How many times fewer env steps than somebody, or as many as somebody, with its bounds."""
    value, interval = ratio["value"], ratio["ci95"]
    least, most, kind = ratio["at_least"], ratio["at_most"], "fewer env steps than"
    if value < 1:
        value = 1 / value
        interval = interval and [1 / end if end else math.inf for end in reversed(interval)]
        least, most, kind = most, least, "as many env steps as"
    bound = "about " if least and most else "at least " if least else "at most " if most else ""
    return f"{bound}{_factor(value, 1)}{_interval(interval, 1)} times {kind}"


def _interval(interval: Sequence[float] | None, digits: int) -> str:
    if interval is None:
        return ""
    return " [" + ", ".join(_factor(end, digits) for end in interval) + "]"


def _factor(value: float, digits: int) -> str:
    return "∞" if math.isinf(value) else f"{value:,.{digits}f}"


def _steps(value: float) -> str:
    return f"{value:,.0f}"


def _with_seeds(said: str, agents: Mapping[str, Result]) -> str:
    """The sentence, which begins with who has one seed only."""
    single = [arm for arm, agent in agents.items() if len(agent["returns"]) == 1]
    if len(single) == len(agents):
        return f"On one seed only, {said}."
    if single:
        return f"With one seed only of {', '.join(single)}, {said}."
    return f"{said[0].upper()}{said[1:]}." if said.startswith("over ") else f"{said}."
