"""The `mbrl` command: parse, load the config, call one function, print errors as one paragraph."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.errors import EnvError
from mbrl import quiet_libraries
from mbrl.errors import ConfigError, MbrlError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(studies="bench" in arguments[:1]).parse_args(arguments)
    # as `python -m mbrl` does: a user's own environments may be modules of the current folder
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return int(options.call(options) or 0)
    except (MbrlError, EnvError) as error:
        print(f"mbrl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mbrl: stopped; the same command goes on", file=sys.stderr)
        return 130


def _parser(studies: bool = True) -> argparse.ArgumentParser:
    """The parser of all commands; without `studies` it knows of `mbrl bench` by name only."""
    parser = argparse.ArgumentParser(
        prog="mbrl",
        description="Reverie: train agents inside a learned world model, and measure the savings.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="run or resume one training run")
    _add_config(train)
    train.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    train.add_argument(
        "--check",
        action="store_true",
        help="check the config, make its environment once, and stop",
    )
    train.set_defaults(call=_train)

    _add_compare(commands)

    check = commands.add_parser(
        "check-env",
        help="what an environment is, and whether we can use it",
        description="Play at random, look for broken promises, then collect a little and train "
        "two updates with the settings given. Says each thing as soon as it is known.",
        epilog="exit codes: 0 ready; 1 problems or limits; 2 it cannot be made, or a setting is "
        "wrong; 3 the time was over before a verdict",
    )
    check.add_argument(
        "words",
        nargs="+",
        metavar="id | config | key=value",
        help="a gymnasium id, module:Id, or a config as `train` takes it; then settings, such as "
        "env.kwargs.level=3",
    )
    check.add_argument("--steps", type=int, default=1000, help="steps to try; default: 1000")
    check.add_argument(
        "--seconds", type=float, default=60.0, help="that all of it may take; default: 60"
    )
    check.set_defaults(call=_check_env)

    envs = commands.add_parser("envs", help="list the environments that are installed")
    envs.set_defaults(call=_envs)

    _add_replay(commands)

    bench = commands.add_parser("bench", help="studies of the world model's parts")
    if studies:
        from mbrl.studies.bench import add_studies

        add_studies(bench)
        bench.set_defaults(call=_bench)
    return parser


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser("replay", help="look into a replay store, export it, import one")
    actions = replay.add_subparsers(dest="action", required=True)
    stats = actions.add_parser("stats", help="print what is there")
    stats.add_argument("dir", type=Path, help="a replay folder, or the run folder around it")
    stats.set_defaults(call=_replay_stats)
    export = actions.add_parser("export", help="write the episodes that ended for others to read")
    export.add_argument("dir", type=Path, help="a replay folder, or the run folder around it")
    export.add_argument("--to", choices=["minari"], required=True, help="the format")
    export.set_defaults(call=_replay_export)
    load = actions.add_parser("import", help="write others' episodes as a new replay folder")
    load.add_argument("--from", choices=["minari"], required=True, dest="source", help="the format")
    load.add_argument("--out", type=Path, required=True, help="the new replay folder")
    load.set_defaults(call=_replay_import)
    for one in (export, load):
        one.add_argument("--id", required=True, help="of the Minari dataset, as breakout/dream-v0")
        one.add_argument("--root", type=Path, help="folder of datasets; default: Minari's own")


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="train several agents on the same env and budget, and report",
        description="Train agents side by side on one game or several, and say how many times "
        "fewer env steps the first one needs. Finished runs stay, half-done ones resume.",
        epilog="example: mbrl compare minatar --games MinAtar/Breakout-v1,MinAtar/Asterix-v1 "
        "--agents dream,ppo,dqn --variant untrained='learn_model.train_dynamics=false' "
        "--env-steps dream=20000,ppo=500000,dqn=60000 --seeds 5 --jobs 2",
    )
    compare.add_argument(
        "words",
        nargs="+",
        metavar="config | key=value",
        help="a YAML file, or the name of one that is shipped, or several, each of another game; "
        "and settings of all runs, such as env.id=ALE/Pong-v5",
    )
    compare.add_argument(
        "--games", help="comma-separated env ids, instead of the one in the config"
    )
    compare.add_argument(
        "--agents",
        help="comma-separated; the first is the one whose steps are compared; default: dream, and "
        "every baseline that can act in the games",
    )
    compare.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME='KEY=VALUE ...'",
        help="one more arm: the first agent, or that of agent=..., with these settings; repeatable",
    )
    compare.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N-1; default: 3")
    compare.add_argument(
        "--env-steps",
        type=_budgets,
        metavar="N | ARM=N,...",
        help="budget of each run, or one for each arm; default: the config's env_steps",
    )
    compare.add_argument("--out", type=Path, help="default: runs/compare-<config names>")
    compare.add_argument("--jobs", type=int, default=1, help="runs side by side; default: 1")
    compare.add_argument(
        "--report-only", action="store_true", help="start nothing, report what is finished"
    )
    compare.set_defaults(call=_compare)


def _budgets(text: str) -> int | dict[str, int]:
    """One number, or one for each arm."""
    try:
        if "=" not in text:
            return int(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): int(steps) for name, _, steps in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected 20000, or such as dream=20000,ppo=500000, got {text}"
        ) from None


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", help="a YAML file, or the name of one that is shipped (quickstart)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as seed=1 env.id=ALE/Pong-v5"
    )


def _train(options: argparse.Namespace) -> None:
    from mbrl.config.file import dump
    from mbrl.config.schema import load

    config = load(options.config, options.overrides)
    if options.check:
        from envs import make_env

        make_env(config.env).close()  # type: ignore[no-untyped-call]
        print(f"{options.config}: fine")
        return
    if options.print_config:
        print(dump(config), end="")
        return
    quiet_libraries()
    from mbrl.train import train

    result = train(config)
    score = result["eval"]
    print(
        f"{config.agent} on {result['env_id']}: return {score['mean']:.2f} ± {score['std']:.2f} "
        f"over {score['episodes']} episodes after {result['env_steps']:,} env steps "
        f"({result['wall_time_s']:.0f} s); see {config.run_dir}"
    )


def _compare(options: argparse.Namespace) -> None:
    quiet_libraries()
    # SIGTERM ends a comparison as Ctrl-C does: the runs at work checkpoint, no more are started
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from mbrl.compare import compare
    from mbrl.config.file import find_config

    configs = [find_config(word) for word in options.words if "=" not in word]
    if not configs:
        raise ConfigError(f"compare: expected a config, got {' '.join(options.words)}")
    compare(
        configs,
        [word for word in options.words if "=" in word],
        games=options.games.split(",") if options.games else (),
        agents=options.agents.split(",") if options.agents else None,
        variants=options.variant,
        seeds=options.seeds,
        env_steps=options.env_steps,
        out=options.out,
        jobs=options.jobs,
        report_only=options.report_only,
    )


def _bench(options: argparse.Namespace) -> int:
    from mbrl.studies.bench import bench

    quiet_libraries()
    # as in a comparison: the runs at work checkpoint, no more are started
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = bench(vars(options))
    for problem in failed:
        print(f"mbrl: {problem}", file=sys.stderr)
    if failed:
        print("mbrl: the same command continues with the rest", file=sys.stderr)
    return int(bool(failed))


def _check_env(options: argparse.Namespace) -> int:
    from mbrl.config import file as config_file
    from mbrl.config.schema import Config, load

    first, *overrides = options.words
    if "=" in first:
        config = config_file.load(Config, overrides=options.words)
    elif first.endswith((".yaml", ".yml")) or config_file.find_config(first).is_file():
        config = load(first, overrides)
    else:
        config = config_file.load(Config, overrides=[f"env.id={json.dumps(first)}", *overrides])
    if options.seconds <= 0:
        raise ConfigError(f"check-env --seconds: expected more than 0, got {options.seconds:g}")
    quiet_libraries()
    from mbrl.check_env import check

    return check(config, options.steps, options.seconds, lambda line: print(line, flush=True))


def _envs(options: argparse.Namespace) -> None:
    from envs.installed import lines

    quiet_libraries()
    for line in lines():
        print(line)


def _replay_stats(options: argparse.Namespace) -> None:
    from mbrl.replay import ReplayStore, format_stats
    from mbrl.replay.store import replay_folder

    print(format_stats(ReplayStore(replay_folder(options.dir)).stats()))


def _replay_export(options: argparse.Namespace) -> None:
    from mbrl.replay import ReplayStore
    from mbrl.replay.minari_dataset import export
    from mbrl.replay.store import replay_folder

    written, left = export(ReplayStore(replay_folder(options.dir)), options.id, options.root)
    open_ = f"; {left} that had not ended are left out" if left else ""
    print(f"{options.id}: {written} episodes{open_}")


def _replay_import(options: argparse.Namespace) -> None:
    from mbrl.replay.minari_dataset import load

    print(f"{options.out}: {load(options.id, options.out, options.root)} episodes")


if __name__ == "__main__":
    sys.exit(main())
