"""Compare agents at a budget of real steps, on one game or several: run what is missing, report.

Every run is a process of its own, started by the same command a user would type, in
`<out>/<arm>/seed<N>`, with several games in `<out>/<game>/<arm>/seed<N>`. Finished runs stay and
half-done ones resume, so a comparison may be stopped. An arm is an agent, or a *variant*: an agent
with other settings. All arms of a game share the env section and the evaluation seeds, and all real
steps count (prefill included). The report shows every seed.
"""

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from rich.console import Console
from rich.table import Table

from agents.baselines import BASELINES
from mbrl.cluster import available_cores
from mbrl.collect import spaces_of
from mbrl.config.schema import AGENTS, Config, load
from mbrl.config.yaml import parse_value
from mbrl.errors import ConfigError, MbrlError
from mbrl.report.comparison import Comparison, comparison, gathered, kind_of
from mbrl.report.figures import plot_curves, plot_panels
from mbrl.report.html import write_compare_report, write_games_report
from mbrl.run import checkpoint, provenance
from mbrl.run.children import Child, run_all
from mbrl.run.durable import write_atomically
from mbrl.run.record import RunRecord
from mbrl.run.run import changed_settings

Budgets = int | Mapping[str, int] | None
"""Real steps per run: of all arms, by arm (a variant may have its agent's), or the config's."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is compared: a name for tables and folders, its agent and its `key=value` settings."""

    name: str
    agent: str
    settings: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Its agent and settings, as words of a command."""
        return f"agent={self.agent}", *self.settings


@dataclass(frozen=True, kw_only=True)
class Game:
    """One environment: a config file with the `key=value` settings of all arms, and a folder."""

    name: str
    env_id: str
    config_path: Path
    settings: tuple[str, ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """One run that the comparison needs."""

    game: str
    arm: Arm
    child: Child
    run_dir: Path


def compare(
    config_paths: Path | Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    games: Sequence[str] = (),
    agents: Sequence[str] | None = None,
    variants: Sequence[str] = (),
    seeds: int = 3,
    env_steps: Budgets = None,
    out: Path | None = None,
    jobs: int = 1,
    report_only: bool = False,
) -> dict[str, Any]:
    """Train every arm with every seed, unless that is done already, and write the report.

    Args:
        config_paths: the config that all runs share, or several, each of another game.
        overrides: `key=value` for all runs.
        games: environment ids that take the place of the one config's.
        agents: names out of `AGENTS`; the first is the one whose steps are compared. None: the
            dream, and every baseline that can act in all the games.
        variants: `name=settings` with spaces between the settings. Each is an arm of its own: the
            first agent, or the one that `agent=` in it says, with these settings.
        seeds: how many; they are 0 .. seeds - 1.
        env_steps: budget of real steps.
        out: folder of the comparison; default: runs/compare-<config names>.
        jobs: runs side by side; the cores are divided among them.
        report_only: start nothing, and report what is finished.

    Returns:
        What `result.json` holds; with `games` or several configs, what `all.json` holds.

    Raises:
        ConfigError: an agent is unknown, or a config is wrong.
        MbrlError: a run failed, or none is finished; the others stay.
    """
    paths = [config_paths] if isinstance(config_paths, Path) else list(config_paths)
    if seeds < 1 or jobs < 1:
        raise ConfigError(f"compare: expected 1 seed and job or more, got {seeds} and {jobs}")
    agents = fitting(paths, overrides, games) if agents is None else agents
    arms = _with_budgets(_arms(agents, variants), env_steps)
    folder, played = _games(paths, overrides, games, arms[0], out)
    planned = [
        _planned(game, arm, seed, jobs, len(played) > 1)
        for seed, game, arm in product(range(seeds), played, arms)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not report_only and (failed := run_all([one.child for one in planned], jobs, console)):
        raise MbrlError(f"compare: {'; '.join(failed)}. The same command goes on with the rest.")
    about = {
        "seeds": list(range(seeds)),
        "command": _command(paths, overrides, games, agents, variants, seeds, env_steps),
        "machine": provenance.machine(),
    }
    return _report_found(about, folder, played, planned, console)


# -- what is to be run ----------------------------------------------------------------------------


def fitting(
    paths: Sequence[Path], overrides: Sequence[str] = (), ids: Sequence[str] = ()
) -> tuple[str, ...]:
    """The dream, and the baselines that can act in every one of the games."""
    words = [[*overrides, f"env.id={one}"] for one in ids] or [list(overrides)]
    configs = [load(path, more) for path in paths for more in words]
    chosen = [spaces_of(config.env, config.collect.apart)[1] for config in configs]
    discrete = all(isinstance(space, spaces.Discrete) for space in chosen)
    fit = (name for name, found in BASELINES.items() if discrete or not found.discrete_only)
    return ("dream", *fit)


def _arms(agents: Sequence[str], variants: Sequence[str]) -> list[Arm]:
    """The agents, then the variants."""
    if not agents or (unknown := [name for name in agents if name not in AGENTS]):
        got = ",".join(unknown) if agents else "none"
        raise ConfigError(f"compare --agents: expected some of {', '.join(AGENTS)}, got {got}")
    arms = [Arm(name=name, agent=name) for name in agents]
    for variant in variants:
        name, equals, text = variant.partition("=")
        try:
            settings = tuple(shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"compare --variant {name}: {error}; got {text}") from error
        if not equals or not re.fullmatch(r"[\w.-]+", name) or not settings:
            raise ConfigError(
                "compare --variant: expected a name and its settings, such as "
                f"flat='world_model.layout=flat', got {variant}"
            )
        own = [word.removeprefix("agent=") for word in settings if word.startswith("agent=")]
        others = tuple(word for word in settings if not word.startswith("agent="))
        arms.append(Arm(name=name, agent=[agents[0], *own][-1], settings=others))
    twice = [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]
    if twice:
        raise ConfigError(
            f"compare: expected a name of its own for each agent and variant, got "
            f"{', '.join(twice)} more than once"
        )
    return arms


def _with_budgets(arms: Sequence[Arm], env_steps: Budgets) -> list[Arm]:
    """The arms with the setting, if any, that gives each its budget."""
    if isinstance(env_steps, Mapping):
        known = {name for arm in arms for name in (arm.name, arm.agent)}
        if unknown := set(env_steps) - known:
            raise ConfigError(
                f"compare --env-steps: expected steps of {', '.join(arm.name for arm in arms)}, "
                f"got some of {', '.join(sorted(unknown))}"
            )
        steps = [env_steps.get(arm.name, env_steps.get(arm.agent)) for arm in arms]
    else:
        steps = [env_steps] * len(arms)
    return [
        arm if n is None else replace(arm, settings=(*arm.settings, f"env_steps={n}"))
        for arm, n in zip(arms, steps, strict=True)
    ]


def _games(
    paths: Sequence[Path],
    overrides: Sequence[str],
    ids: Sequence[str],
    first: Arm,
    out: Path | None,
) -> tuple[Path, list[Game]]:
    """The folder of all, and one game for each config or id, as the first arm plays it."""
    if ids and len(paths) > 1:
        raise ConfigError(
            f"compare --games: expected one config, whose env.id they replace, got {len(paths)}"
        )
    settings = [(paths[0], (*overrides, f"env.id={one}")) for one in ids]
    settings = settings or [(path, tuple(overrides)) for path in paths]
    configs = [load(path, [*words, *first.words]) for path, words in settings]
    names = [game_name(config) for config in configs]
    if len(set(names)) < len(names):
        names = names if ids else [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"compare: expected games and configs of different names, got {', '.join(names)}"
        )
    several = bool(ids) or len(paths) > 1
    called = "-".join(dict.fromkeys(config.name for config in configs))
    folder = out or Path("runs") / f"compare-{called}"
    return folder, [
        Game(
            name=name,
            env_id=str(config.env.id or config.env.factory),
            config_path=path,
            settings=words,
            folder=folder / name if several else folder,
        )
        for name, config, (path, words) in zip(names, configs, settings, strict=True)
    ]


def game_name(config: Config) -> str:
    """A game in lower case, as folders and files are called: `space_invaders`, `pong`."""
    known = str(config.env.id or config.env.factory)
    name = re.sub(r"-v\d+$", "", re.split(r"[/:]", known)[-1])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _planned(game: Game, arm: Arm, seed: int, jobs: int, named: bool) -> _Planned:
    """One run, by the command a user would type, in a folder that is fit for it."""
    words = [*game.settings, *arm.words, f"seed={seed}"]
    config = load(game.config_path, words)
    run_dir = game.folder / arm.name / f"seed{seed}"
    _check_reusable(config, run_dir)
    result = run_dir / "result.json"
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))} if jobs > 1 else {}
    command = [sys.executable, "-m", "mbrl", "train", str(game.config_path), *words]
    child = Child(
        title=f"{game.name} {arm.name} seed {seed}" if named else f"{arm.name} seed {seed}",
        command=[*command, f"run.dir={run_dir}"],
        log=run_dir / "log.txt",
        done=lambda: (
            result.exists() and json.loads(result.read_text())["env_steps"] >= config.env_steps
        ),
        environment=threads,
    )
    return _Planned(game=game.name, arm=arm, child=child, run_dir=run_dir)


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


def _command(
    paths: Sequence[Path],
    overrides: Sequence[str],
    games: Sequence[str],
    agents: Sequence[str],
    variants: Sequence[str],
    seeds: int,
    env_steps: Budgets,
) -> str:
    """The command that repeats the comparison."""
    words = ["mbrl", "compare", *(path.name for path in paths), *overrides]
    words += ["--games", ",".join(games)] if games else []
    words += ["--agents", ",".join(agents)]
    words += [word for variant in variants for word in ("--variant", variant)]
    if isinstance(env_steps, Mapping):
        words += ["--env-steps", ",".join(f"{name}={steps}" for name, steps in env_steps.items())]
    elif env_steps is not None:
        words += ["--env-steps", str(env_steps)]
    return shlex.join([*words, "--seeds", str(seeds)])


# -- what came out --------------------------------------------------------------------------------


def _report_found(
    about: Mapping[str, Any],
    folder: Path,
    played: Sequence[Game],
    planned: Sequence[_Planned],
    console: Console,
) -> dict[str, Any]:
    """Report every game of which the first arm has a finished run, and all of them together."""
    found = {
        game: _report(about, game, runs)
        for game in played
        if (runs := _finished([one for one in planned if one.game == game.name]))
    }
    if not found:
        raise MbrlError(
            f"compare: expected a finished run of {planned[0].arm.name} in {folder}, got none"
        )
    one_of_many = played[0].folder != folder
    whole = _report_all(about, folder, found) if one_of_many else found[played[0]].result
    _show(console, found, whole["sentence"], folder)
    return whole


def _finished(planned: Sequence[_Planned]) -> dict[str, list[RunRecord]]:
    """The finished runs by arm, which their records name as the agent; none without the first."""
    runs: dict[str, list[RunRecord]] = {}
    for one in planned:
        if one.child.done():
            record = replace(RunRecord.read(one.run_dir), agent=one.arm.name)
            runs.setdefault(one.arm.name, []).append(record)
    order = [name for name in dict.fromkeys(one.arm.name for one in planned) if name in runs]
    return {name: runs[name] for name in order} if planned[0].arm.name in runs else {}


def _report(
    about: Mapping[str, Any], game: Game, runs: Mapping[str, Sequence[RunRecord]]
) -> Comparison:
    """Compare the arms of one game, and write the result, its curves and a report."""
    found = comparison({"env_id": game.env_id, **about}, runs)
    write_atomically(game.folder / "result.json", json.dumps(found.result, indent=1))
    plot_curves(game.folder / "curves.png", found.curves, title=game.env_id)
    records = [run for of_arm in runs.values() for run in of_arm]
    films = [film] if (film := _film(records)) else []
    write_compare_report(game.folder / "report.html", found.result, records, films)
    return found


def _report_all(
    about: Mapping[str, Any], folder: Path, games: Mapping[Game, Comparison]
) -> dict[str, Any]:
    """Gather the games, and write what all of them come to, their curves and a report."""
    whole = gathered(about, {game.name: found for game, found in games.items()})
    panels = {game.name: found.curves for game, found in games.items()}
    write_atomically(folder / "all.json", json.dumps(whole, indent=1))
    plot_panels(folder / "curves.png", panels)
    write_games_report(folder / "report.html", whole, panels)
    return whole


def _film(runs: Sequence[RunRecord]) -> Path | None:
    """The newest video of the first run that dreams."""
    dreams = [run.run_dir for run in runs if kind_of(run) == "dream"][:1]
    films = [film for folder in dreams for film in sorted((folder / "videos").glob("*.mp4"))]
    return films[-1] if films else None


def _show(console: Console, games: Mapping[Game, Comparison], sentence: str, folder: Path) -> None:
    """Print the sentence over all games first, then every game's sentence and scores."""
    console.print(sentence, style="bold", highlight=False, markup=False, soft_wrap=True)
    for game, found in games.items():
        if found.result["sentence"] != sentence:
            said = f"{game.env_id}: {found.result['sentence']}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
    for game, found in games.items():
        console.print(_table(found.result))
        if film := _film([run for of_arm in found.runs.values() for run in of_arm]):
            console.print(f"dream:  {film}", highlight=False, soft_wrap=True)
        if game.folder != folder:
            path = game.folder / "report.html"
            console.print(f"report: {path}", highlight=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['env_id']} after {result['env_steps']:,} real env steps")
    ends = {name: agent["at_end"] for name, agent in result["agents"].items()}
    longer = any(ends[name]["returns"] != a["returns"] for name, a in result["agents"].items())
    names = ["agent", "IQM", "95 % interval", "each seed", "env steps", "wall clock"]
    for name in [*names[:5], *(["IQM at end"] if longer else []), names[5]]:
        table.add_column(name, justify="left" if name == "agent" else "right")
    for name, agent in result["agents"].items():
        seeds = agent["seeds"].values()
        single = len(agent["returns"]) == 1
        table.add_row(
            name,
            f"{agent['iqm']:.2f}",
            "one seed" if single else f"{agent['ci95'][0]:.2f} to {agent['ci95'][1]:.2f}",
            ", ".join(f"{value:.2f}" for value in agent["returns"]),
            f"{ends[name]['env_steps']:,.0f}",
            *([f"{ends[name]['iqm']:.2f}"] if longer else []),
            f"{np.mean([seed['wall_time_s'] for seed in seeds]):.0f} s",
        )
    return table
