"""The `mbrl` command: parse, load the config, call one function, print errors as one paragraph."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.errors import EnvError
from mbrl import quiet_libraries
from mbrl.errors import MbrlError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
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
    train.add_argument("--check", action="store_true", help="check the config and stop")
    train.set_defaults(call=_train)

    compare = commands.add_parser(
        "compare", help="train several agents on the same env and budget, and report"
    )
    _add_config(compare)
    compare.add_argument(
        "--agents", default="dream,ppo", help="comma-separated; default: dream,ppo"
    )
    compare.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N-1; default: 3")
    compare.add_argument("--env-steps", type=int, help="default: the config's env_steps")
    compare.add_argument("--out", type=Path, help="default: runs/compare-<config name>")
    compare.add_argument("--jobs", type=int, default=1, help="runs side by side; default: 1")
    compare.set_defaults(call=_compare)

    check = commands.add_parser(
        "check-env", help="what an environment is, and whether we can use it"
    )
    check.add_argument("id", help="a gymnasium id, module:Id, or a config file with an env section")
    check.add_argument("--steps", type=int, default=1000, help="steps to try; default: 1000")
    check.set_defaults(call=_check_env)

    replay = commands.add_parser("replay", help="look into a replay store")
    actions = replay.add_subparsers(dest="action", required=True)
    stats = actions.add_parser("stats", help="print what is there")
    stats.add_argument("dir", type=Path, help="a replay folder, or the run folder around it")
    stats.set_defaults(call=_replay_stats)

    bench = commands.add_parser("bench", help="studies of the world model's parts")
    studies = bench.add_subparsers(dest="study", required=True)
    _add_fidelity(studies)
    _add_flow(studies)
    return parser


def _add_fidelity(studies: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mbrl.studies.arms import listed
    from mbrl.studies.fidelity.arms import ARMS

    fidelity = studies.add_parser(
        "fidelity",
        help="which decoders keep a game's small objects, and what their codes know",
        description="Collect frames of a game, train every arm on them for the same CPU time, "
        "measure what its pictures, its code and its dreams keep, and report. Finished runs are "
        "kept and half-done ones resume; a result made with other settings is refused.",
        epilog=listed(ARMS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fidelity.add_argument("game", help="pong, breakout, ...; an unknown one lists all")
    fidelity.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of every run, such as world_model.hidden=128 (world_model, learn_model)",
    )
    fidelity.add_argument(
        "--steps",
        type=int,
        default=100_000,
        help="agent steps to learn from, at least 800; default: 100000",
    )
    fidelity.add_argument(
        "--device",
        default="cpu",
        help="cpu, a core for each run, or cuda, shared by all runs, whose minutes then are those "
        "that pass; default: cpu",
    )
    fidelity.add_argument(
        "--updates",
        type=int,
        help="end a run after so many updates, if its minutes are not over before",
    )
    _add_trials(fidelity, "30 for main arms, 15 for the others", "fidelity/<game>")
    fidelity.set_defaults(call=_fidelity)


def _add_flow(studies: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mbrl.studies.arms import listed
    from mbrl.studies.flows.arms import ARMS

    flow = studies.add_parser(
        "flow",
        help="what sharing a flow's coupling networks saves, and what it costs in bits",
        description="Train normalising flows on the same images for the same CPU time, measure "
        "densities, samples, memory, step times and latencies, and report. Images are a game's "
        "frames, collected if they are missing, or your own. Finished runs are kept and half-done "
        "ones resume; a result made with other settings is refused.",
        epilog=listed(ARMS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flow.add_argument(
        "words",
        nargs="*",
        metavar="GAME key=value",
        help="pong, breakout, ..., car_racing, unless --images is given; and settings of every "
        "run, such as flow.width=32 or train.lr=0.001",
    )
    flow.add_argument(
        "--images",
        type=Path,
        help="a folder of PNG or JPG files, an .npz with a uint8 array (N, H, W, C), or the folder "
        "of CIFAR-10's python batches",
    )
    flow.add_argument(
        "--size", type=int, help="side in pixels, shrunk by averaging; default: as they are"
    )
    flow.add_argument("--bits", type=int, default=5, help="of an intensity, 1 to 8; default: 5")
    flow.add_argument(
        "--steps",
        type=int,
        default=100_000,
        help="agent steps of a game's frames; default: 100000, as in bench fidelity",
    )
    flow.add_argument(
        "--frames", type=Path, help="a game's frames; default: runs/fidelity/<game>/frames"
    )
    flow.add_argument(
        "--no-costs",
        dest="costs",
        action="store_false",
        help="do not measure memory, step times and latencies",
    )
    _add_trials(flow, "20", "flows/<images>")
    flow.set_defaults(call=_flow)


def _add_trials(parser: argparse.ArgumentParser, minutes: str, folder: str) -> None:
    """Options of every study that is made of trials."""
    parser.add_argument(
        "--arms", default="main", help="main, all, or names with commas between; default: main"
    )
    parser.add_argument(
        "--seeds", type=int, help="seeds 0 .. N-1; default: 3 for main arms, 1 for the others"
    )
    parser.add_argument(
        "--minutes", type=float, help=f"CPU minutes of training per run; default: {minutes}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; default: 1")
    parser.add_argument(
        "--out", type=Path, help=f"run folders, report and so on; default: runs/{folder}"
    )
    results = f"results/{folder.partition('/')[0]}"
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(results),
        help=f"JSON of every run and of all together; default: {results}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure on a little only, to try things out"
    )
    parser.add_argument(
        "--force", action="store_true", help="make anew what is there with other settings"
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", help="a YAML file, or the name of one that is shipped (quickstart)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as seed=1 env.id=ALE/Pong-v5"
    )


def _train(options: argparse.Namespace) -> None:
    from mbrl.config.file import dump, find_config
    from mbrl.config.schema import load

    config = load(find_config(options.config), options.overrides)
    if options.check:
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

    compare(
        find_config(options.config),
        options.overrides,
        agents=options.agents.split(","),
        seeds=options.seeds,
        env_steps=options.env_steps,
        out=options.out,
        jobs=options.jobs,
    )


def _fidelity(options: argparse.Namespace) -> int:
    _prepare_study()
    from mbrl.studies.fidelity.study import study

    ours = {k: v for k, v in vars(options).items() if k not in ("command", "study", "call")}
    return _reported(study(**ours))


def _flow(options: argparse.Namespace) -> int:
    _prepare_study()
    from mbrl.studies.flows.study import study
    from mbrl.studies.flows.trial import source_of

    source, overrides = source_of(options)
    names = ("arms", "seeds", "minutes", "jobs", "out", "results", "quick", "costs", "force")
    ours = {name: getattr(options, name) for name in names}
    return _reported(study(source, overrides, **ours))


def _prepare_study() -> None:
    quiet_libraries()
    # as in a comparison: the runs at work checkpoint, no more are started
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _reported(failed: Sequence[str]) -> int:
    """Say which runs failed; returns the exit code."""
    for problem in failed:
        print(f"mbrl: {problem}", file=sys.stderr)
    if failed:
        print("mbrl: the same command goes on with the rest", file=sys.stderr)
    return int(bool(failed))


def _check_env(options: argparse.Namespace) -> int:
    from envs.contract import check_env, format_report
    from envs.settings import EnvSettings

    if options.id.endswith((".yaml", ".yml")):
        from mbrl.config.file import find_config
        from mbrl.config.schema import load

        settings = load(find_config(options.id)).env
    else:
        settings = EnvSettings(id=options.id)
    print(format_report(check_env(settings, steps=options.steps)))
    return 0


def _replay_stats(options: argparse.Namespace) -> None:
    from mbrl.errors import ReplayError
    from mbrl.replay import ReplayStore, format_stats

    folder = options.dir / "replay" if (options.dir / "replay").is_dir() else options.dir
    if not (folder / "data").is_dir():
        raise ReplayError(
            f"{options.dir}: expected a replay store (a folder with data/), found none"
        )
    print(format_stats(ReplayStore(folder).stats()))


if __name__ == "__main__":
    sys.exit(main())
