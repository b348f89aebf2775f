"""Compare agents on one environment at one budget of real steps: run what is missing, then report.

Every run is a process of its own, started by the same command a user would type, in
`<out>/<agent>/seed<N>`. Finished runs stay and half-done ones resume, so a comparison may be
stopped. All agents share the env section, the evaluation seeds and the count of steps (prefill
included). The report shows every seed.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl.cluster import available_cores
from mbrl.config.schema import AGENTS, Config, load
from mbrl.config.yaml import parse_value
from mbrl.errors import ConfigError, MbrlError
from mbrl.report.figures import plot_curves
from mbrl.report.html import write_compare_report
from mbrl.report.stats import align, iqm, steps_ratio, stratified_bootstrap_ci
from mbrl.run import checkpoint, provenance
from mbrl.run.children import Child, run_all
from mbrl.run.record import RunRecord
from mbrl.run.run import changed_settings


def compare(
    config_path: Path,
    overrides: Sequence[str] = (),
    *,
    agents: Sequence[str] = ("dream", "ppo"),
    seeds: int = 3,
    env_steps: int | None = None,
    out: Path | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Train every agent with every seed, unless that is done already, and write the report.

    Args:
        config_path: the config all runs share.
        overrides: `key=value` for all runs.
        agents: names out of `AGENTS`; the first is the one whose steps are compared.
        seeds: how many; they are 0 .. seeds - 1.
        env_steps: budget of real steps; default: the config's.
        out: folder of the comparison; default: runs/compare-<config name>.
        jobs: runs side by side; the cores are divided among them.

    Returns what `result.json` holds.

    Raises:
        ConfigError: an agent is unknown, or the config is wrong.
        MbrlError: a run failed; the others stay.
    """
    unknown = [name for name in agents if name not in AGENTS]
    if unknown or seeds < 1 or jobs < 1 or len(set(agents)) != len(agents):
        raise ConfigError(
            f"compare: expected distinct agents out of {', '.join(AGENTS)}, at least one seed "
            f"and job, got agents {','.join(agents)}, {seeds} seeds, {jobs} jobs"
        )
    given: list[str] = [*overrides, *([] if env_steps is None else [f"env_steps={env_steps}"])]
    config = load(config_path, given)
    folder = out or Path("runs") / f"compare-{config.name}"
    children, run_dirs = [], []
    for seed, agent in product(range(seeds), agents):
        run_dir = folder / agent / f"seed{seed}"
        words = [*given, f"agent={agent}", f"seed={seed}"]
        _check_reusable(load(config_path, words), run_dir)
        children.append(_child(f"{agent} seed {seed}", config_path, words, run_dir, jobs))
        run_dirs.append(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    if failed := run_all(children, jobs, console):
        raise MbrlError(f"compare: {'; '.join(failed)}. The same command goes on with the rest.")
    command = ["mbrl", "compare", config_path.name, *given, "--agents", ",".join(agents)]
    result = {
        "env_id": config.env.id or config.env.factory,
        "env_steps": config.env_steps,
        "seeds": list(range(seeds)),
        "command": shlex.join([*command, "--seeds", str(seeds)]),
        "machine": provenance.machine(),
    }
    return _report(result, list(agents), [*map(RunRecord.read, run_dirs)], folder, console)


def _child(title: str, config_path: Path, words: list[str], run_dir: Path, jobs: int) -> Child:
    """One run, by the command a user would type."""
    result, budget = run_dir / "result.json", load(config_path, words).env_steps
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))} if jobs > 1 else {}
    command = [sys.executable, "-m", "mbrl", "train", str(config_path), *words]
    return Child(
        title=title,
        command=[*command, f"run.dir={run_dir}"],
        log=run_dir / "log.txt",
        done=lambda: result.exists() and json.loads(result.read_text())["env_steps"] >= budget,
        environment=threads,
    )


def _check_reusable(config: Config, run_dir: Path) -> None:
    """Refuse a folder whose run was made with other settings, or with a larger budget."""
    changed = changed_settings(run_dir, config)
    got = max(checkpoint.steps(run_dir / "checkpoints"), default=0)
    if (run_dir / "result.json").exists() or got > config.env_steps:
        steps = parse_value((run_dir / "config.yaml").read_text(encoding="utf-8"))["env_steps"]
        if steps > config.env_steps:
            changed.append(f"env_steps: {steps} became {config.env_steps}")
    if changed:
        raise ConfigError(
            f"compare: {run_dir} was made with other settings: {'; '.join(changed)}. "
            f"Use the same settings, or another folder with --out"
        )


def _report(
    result: dict[str, Any],
    agents: list[str],
    records: list[RunRecord],
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Complete the result with what the runs reached, and write it, its curves and a report."""
    by_agent = {agent: [run for run in records if run.agent == agent] for agent in agents}
    result |= {
        "agents": {agent: summarise(runs) for agent, runs in by_agent.items()},
        "steps_ratio": best_rival_ratio(by_agent, agents),
        "commit": ", ".join(sorted({run.commit for run in records})),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    curves = {agent: [run.curve for run in runs] for agent, runs in by_agent.items()}
    plot_curves(folder / "curves.png", curves, title=str(result["env_id"]))
    dreams = by_agent.get("dream", [])[:1]
    films = [f for run in dreams for f in sorted((run.run_dir / "videos").glob("*.mp4"))[-1:]]
    report = write_compare_report(folder / "report.html", result, records, films)
    console.print(_table(result))
    for film in films:
        console.print(f"dream:  {film}", highlight=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return result


def summarise(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Scores of one agent over its seeds: final returns, IQM with interval, curves."""
    returns = [float(run.evaluation["mean"]) for run in runs]
    low, high = stratified_bootstrap_ci([returns], rng=np.random.default_rng(0))
    grid, scores = align([run.curve for run in runs])
    return {
        "returns": returns,
        "iqm": float(iqm(returns)),
        "ci95": [float(low), float(high)] if len(returns) > 1 else None,
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


def best_rival_ratio(
    by_agent: dict[str, list[RunRecord]], agents: Sequence[str]
) -> dict[str, Any] | None:
    """Steps the best rival needs for its own final score, over those the first agent needs."""
    rivals = {agent: runs for agent, runs in by_agent.items() if agent not in (agents[0], "random")}
    if not rivals:
        return None
    finals = {
        agent: float(np.mean([run.evaluation["mean"] for run in runs]))
        for agent, runs in rivals.items()
    }
    best = max(finals, key=lambda agent: finals[agent])
    ours, theirs = ([run.curve for run in runs] for runs in (by_agent[agents[0]], rivals[best]))
    ratio = steps_ratio(ours, theirs, finals[best], rng=np.random.default_rng(0))
    return {"against": best, **asdict(ratio)}


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['env_id']} after {result['env_steps']:,} real env steps")
    for name in ("agent", "env steps", "IQM", "95 % interval", "each seed", "wall clock"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for name, agent in result["agents"].items():
        seeds = agent["seeds"].values()
        single = len(agent["returns"]) == 1
        table.add_row(
            name,
            f"{np.mean([seed['env_steps'] for seed in seeds]):,.0f}",
            f"{agent['iqm']:.2f}",
            "one seed" if single else f"{agent['ci95'][0]:.2f} to {agent['ci95'][1]:.2f}",
            ", ".join(f"{value:.2f}" for value in agent["returns"]),
            f"{np.mean([seed['wall_time_s'] for seed in seeds]):.0f} s",
        )
    return table
