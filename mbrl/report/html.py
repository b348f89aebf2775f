"""Reports: finished runs go in, one self-contained HTML file comes out.

Figures are SVG and videos base64 inside the file, so it can be mailed or opened without a network.
Words and layout are in `report.html.j2`; here is what fills them, and every reason to doubt a
number that can be found in the data.
"""

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup
from pydantic import ValidationError

from envs.settings import EnvSettings
from mbrl.report.figures import Curves, colours, curves_svg, metrics_svg, panels_svg
from mbrl.run.durable import write_atomically
from mbrl.run.record import RunRecord

MAX_EMBEDDED_BYTES = 5_000_000
_TEMPLATES = Path(__file__).resolve().parents[1]
_FEW_SEEDS = 5
_BUDGET_WORDS = {
    "collected_steps": "real environment steps, prefill included",
    "evaluation_steps": "real steps of evaluations (not counted above)",
    "evaluation_episodes": "episodes of evaluations",
    "replayed_rows": "rows of experience replayed",
    "imagined_steps": "imagined steps",
    "policy_steps": "real steps the policy learned from",
    "model_updates": "world-model updates",
    "policy_rounds": "policy updates, rounds",
    "wall_time_s": "wall-clock time",
}


def write_compare_report(
    path: Path, result: Mapping[str, Any], runs: Sequence[RunRecord], videos: Sequence[Path] = ()
) -> Path:
    """Report of a comparison: curves with every seed, table, budget, protocol, dreams.

    Args:
        path: the HTML file; its folder is made if missing.
        result: what `mbrl compare` writes, see `mbrl.report.comparison.comparison`.
        runs: the runs behind it.
        videos: MP4 files, in this order; beyond 5 MB in all they are linked instead.

    Returns:
        The path.
    """
    agents: Mapping[str, Any] = result["agents"]
    curves = {
        name: [seed["curve"] for seed in agent["seeds"].values()] for name, agent in agents.items()
    }
    over_time: dict[str, list[list[list[float]]]] = {}
    for run in runs:
        if curve := run.curve_over_time():
            over_time.setdefault(run.agent, []).append(curve)
    ratio = result[result["leads"]]
    names = list(agents)
    rest = f" against {', '.join(names[1:])}" if len(names) > 1 else ""
    steps = curves_svg(curves, threshold=ratio and ratio["threshold"])
    figures = [{"svg": Markup(steps), "kind": "steps"}]
    if over_time:
        figures.append({"svg": Markup(curves_svg(over_time, over_time=True)), "kind": "time"})
    return render(
        path,
        "report/report.html.j2",
        run=None,
        title=f"{names[0]}{rest} on {result['env_id']}",
        result=result,
        figures=figures,
        palette=colours(names),
        rows=_agent_rows(agents),
        longer=any(agent["returns"] != agent["at_end"]["returns"] for agent in agents.values()),
        budget=_budget_table({n: list(agent["seeds"].values()) for n, agent in agents.items()}),
        warnings=compare_warnings(result, runs),
        protocol=_protocol(result, runs),
        configs=_configs(runs),
        videos=_embed(videos, path.parent),
    )


def write_games_report(path: Path, whole: Mapping[str, Any], panels: Mapping[str, Curves]) -> Path:
    """Report of a comparison on several games: a panel for each, and a table of all scores.

    Args:
        path: the HTML file; the report of each game is `<game>/report.html` beside it.
        whole: what `mbrl compare` writes into `all.json`, see `mbrl.report.comparison.gathered`.
        panels: by game, every seed's learning curve of each arm.
    """
    games: Mapping[str, Any] = whole["games"]
    names = list(dict.fromkeys(name for game in games.values() for name in game["agents"]))
    return render(
        path,
        "report/games.html.j2",
        title=f"{names[0]} against {', '.join(names[1:]) or 'nobody'} on {len(games)} games",
        whole=whole,
        names=names,
        palette=colours(names),
        figure=Markup(panels_svg(panels)),
        warnings=_few_seeds([a for game in games.values() for a in game["agents"].values()])
        + commit_warnings(whole["commit"].split(", ")),
        protocol={
            "environments": ", ".join(game["env_id"] for game in games.values()),
            "seeds": ", ".join(map(str, whole["seeds"])),
            "machine": machine_text(whole["machine"]),
            "commit": whole["commit"],
            "command": whole["command"],
        },
    )


def write_run_report(path: Path, run: RunRecord, videos: Sequence[Path] = ()) -> Path:
    """Report of one run, as `write_compare_report`: curve, metrics, dreams, budget, settings."""
    figures = []
    if len(run.curve):
        svg = curves_svg({run.agent: [run.curve]})
        figures.append({"svg": Markup(svg), "kind": "steps"})
    if series := _metric_series(run.metrics):
        held_out = {
            name: series.pop(other)
            for name in list(series)
            if (other := name.replace("world_model/", "holdout/")) != name and other in series
        }
        figures.append({"svg": Markup(metrics_svg(series, held_out)), "kind": "metrics"})
    warnings = ["One run of one seed says little about the method: see mbrl compare."]
    return render(
        path,
        "report/report.html.j2",
        result=None,
        rows=[],
        title=f"{run.agent} on {run.env_id}, seed {run.seed}",
        run=run,
        figures=figures,
        palette=colours([run.agent]),
        budget=_budget_table({run.agent: [vars(run)]}),
        warnings=warnings + commit_warnings([run.commit]),
        protocol=_protocol(
            {"env_id": run.env_id, "seeds": [run.seed], "commit": run.commit}, [run]
        ),
        configs={"settings of this run": _yaml(run.config)},
        videos=_embed(videos, path.parent),
    )


def compare_warnings(result: Mapping[str, Any], runs: Sequence[RunRecord]) -> list[str]:
    """Reasons to doubt a comparison that can be read off its data; one sentence each."""
    agents = result["agents"]
    warnings = _few_seeds([*agents.values()])
    counts = {name: len(agent["returns"]) for name, agent in agents.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} {n}" for name, n in counts.items())
        warnings.append(f"The agents have different numbers of seeds: {each}.")
    if len({run.env_steps for run in runs}) > 1:
        steps = {name: sorted({r.env_steps for r in runs if r.agent == name}) for name in agents}
        each = "; ".join(f"{n} {', '.join(map(_number, s))}" for n, s in steps.items() if s)
        warnings.append(
            f"The runs took different numbers of environment steps: {each}. Where one has a larger "
            f"budget, its score after {_number(result['env_steps'])} is of its curve, not of a "
            "final evaluation."
        )
    if len({run.evaluation.get("episodes") for run in runs}) > 1:
        warnings.append("The final evaluations have different numbers of episodes.")
    if len({_yaml(run.config["env"]) for run in runs if "env" in run.config}) > 1:
        warnings.append("The runs differ in their environment settings: scores do not compare.")
    return warnings + commit_warnings([run.commit for run in runs])


def _few_seeds(agents: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the fewest seeds of all arms give reason to doubt."""
    fewest = min(len(agent["returns"]) for agent in agents)
    if fewest >= _FEW_SEEDS:
        return []
    seeds = "one seed" if fewest == 1 else f"{fewest} seeds"
    return [
        f"Only {seeds}: the intervals are rough and may be too narrow. "
        f"At least {_FEW_SEEDS} are needed for a claim."
    ]


def commit_warnings(commits: Sequence[str]) -> list[str]:
    """What the commits behind some results give reason to doubt; one sentence each."""
    warnings = []
    if any(commit.endswith("-dirty") for commit in commits):
        warnings.append("The code had changes that are in no commit.")
    if len({commit.removesuffix("-dirty") for commit in commits}) > 1:
        warnings.append("The runs were made with different commits of the code.")
    return warnings


def _agent_rows(agents: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per agent; `at` places its numbers on one common scale, in percent."""
    values = [v for a in agents.values() for v in (*a["returns"], *(a["ci95"] or ()), a["iqm"])]
    lowest = min(0.0, *values)
    span = max(0.0, *values) - lowest or 1.0

    def place(value: float) -> float:
        return round(100 * (value - lowest) / span, 2)

    rows = []
    for name, agent in agents.items():
        at = {
            "zero": place(0.0),
            "iqm": place(agent["iqm"]),
            "ci95": [place(limit) for limit in agent["ci95"] or ()],
            "returns": [place(value) for value in agent["returns"]],
        }
        shown = {key: agent[key] for key in ("iqm", "ci95", "returns")}
        shown["end"] = agent["at_end"]
        rows.append({"name": name, "mean": float(np.mean(agent["returns"])), **shown, "at": at})
    return rows


def _budget_table(agents: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per count, one cell per agent: the mean over its seeds' `budget` and time."""
    budgets = [
        [{**seed["budget"], "wall_time_s": seed["wall_time_s"]} for seed in seeds]
        for seeds in agents.values()
    ]
    found = dict.fromkeys(chain.from_iterable(chain.from_iterable(budgets)))
    table = []
    for key in sorted(found, key=[*_BUDGET_WORDS, *found].index):
        cells = []
        for seeds in budgets:
            values = [seed[key] for seed in seeds if key in seed]
            mean = float(np.mean(values)) if values else math.nan
            cells.append(_duration(mean) if key.endswith("_s") else _number(mean))
        table.append({"name": _BUDGET_WORDS.get(key, key.replace("_", " ")), "cells": cells})
    return table


def _configs(runs: Sequence[RunRecord]) -> dict[str, str]:
    """The settings of each agent; its seeds share them, so the first one speaks for all."""
    first: dict[str, RunRecord] = {}
    for run in runs:
        first.setdefault(run.agent, run)
    return {f"settings of {r.agent} (seed {r.seed})": _yaml(r.config) for r in first.values()}


def _protocol(result: Mapping[str, Any], runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What was compared, on what terms and on which machine, as name and value."""
    terms: dict[str, Any] = {"environment": result["env_id"]}
    if "env_steps" in result:
        terms["budget"] = f"{_number(result['env_steps'])} real environment steps per run"
        ends = {name: agent["at_end"]["env_steps"] for name, agent in result["agents"].items()}
        if len(set(ends.values())) > 1:
            each = ", ".join(f"{name} {_number(steps)}" for name, steps in ends.items())
            terms["budget"] = f"real environment steps per run: {each}"
    episodes = {int(run.evaluation["episodes"]) for run in runs if "episodes" in run.evaluation}
    if episodes:
        terms["evaluation"] = (
            f"{' or '.join(map(_number, sorted(episodes)))} episodes on the real environment, "
            "the same seeds for every agent"
        )
    terms["seeds"] = ", ".join(map(str, result["seeds"]))
    terms |= next((_env_terms(run.config["env"]) for run in runs if "env" in run.config), {})
    if "machine" in result:
        terms["machine"] = machine_text(result["machine"])
    return terms | {key: result[key] for key in ("commit", "command") if key in result}


def machine_text(machine: Mapping[str, Any]) -> str:
    """A machine of `mbrl.run.provenance` in a few words."""
    parts = [machine.get("cpu"), machine.get("vectors"), machine.get("bfloat16") and "bfloat16"]
    parts += [machine.get("cores") and f"{machine['cores']} cores"]
    parts += [machine.get("ram_gb") and f"{machine['ram_gb']:g} GB", *machine.get("gpus", [])]
    return ", ".join(str(part) for part in parts if part)


def _env_terms(env: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing in force, defaults filled in."""
    try:
        settings = EnvSettings.model_validate(env)
    except ValidationError:  # a run of another version: show what its config says
        applied = {k: v for k, v in env.items() if k not in ("id", "factory")}
    else:
        applied = {**settings.applied(), **({"kwargs": settings.kwargs} if settings.kwargs else {})}
    return {k.replace("_", " "): v for k, v in applied.items() if v is not None}


def _metric_series(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    series: dict[str, list[list[float]]] = {}
    for line in metrics:
        for key, value in line.items():
            if "/" in key and isinstance(value, int | float) and line["kind"] != "eval":
                series.setdefault(key, []).append([line["env_steps"], value])
    return dict(sorted((k, v) for k, v in series.items() if len(v) > 1))


def _embed(videos: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Videos as data URLs, as long as there is room; the rest as links from `folder`."""
    shown, room = [], MAX_EMBEDDED_BYTES
    for video in videos:
        size = video.stat().st_size
        url = Path(os.path.relpath(video, folder)).as_posix()
        if fits := size <= room:
            room -= size
            url = data_url(video, "video/mp4")
        name = video.stem.replace("_", " ")
        shown.append({"name": name, "url": url, "embedded": fits, "bytes": size})
    return shown


def data_url(path: Path, kind: str) -> str:
    """A file of a media type as text that HTML can hold."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def render(path: Path, template: str, **content: Any) -> Path:
    """Fill a template, relative to the package `mbrl`, and write the HTML file, whole or not.

    A template has the filters `number` and `duration`, and may include `report/report.css`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "duration": _duration}
    write_atomically(path, environment.get_template(template).render(content))
    return path
