"""One trial: images in, a flow trained for so many CPU minutes, measures and pictures out.

    python -m mbrl.studies.flows.trial pong --arm level --seed 0 --minutes 20 ...

`mbrl bench flow` starts these; by hand it is the way to make one run. In the run folder:

    settings.json  metrics.jsonl  checkpoints/  pictures.npz  log.txt

How the budget counts and what a signal does: `studies.training`. The same command goes on. A run
that
diverges has a result as well: `diverged` is 1, and what cannot be measured is null; so does one
whose held-out images cost no finite number in the end, or more than twice what knowing nothing
does.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.errors import EnvError
from mbrl.errors import MbrlError
from mbrl.run.durable import lock_folder, write_atomically
from mbrl.studies.flows.bits import diverged
from mbrl.studies.flows.images import ImageSet, Source, load_images
from mbrl.studies.flows.measure import QUICK, Sizes, measure, timed
from mbrl.studies.flows.train import GROUP, Training
from mbrl.studies.flows.trials import MEASURES, Trial, is_done, refuse_other_images, refuse_others
from mbrl.studies.training import curve

CURVE = {
    "cpu_minutes": "study/cpu_s",
    "updates": "study/updates",
    "bits_per_dim": f"{GROUP}/bits_per_dim",
    "held_out_bits_per_dim": f"{GROUP}/held_out_bits_per_dim",
}
"""What a result tells of how training went, and the metrics it is made of."""


def run(trial: Trial) -> bool:
    """Make one trial, or what is left of it.

    Returns:
        Whether it is done; False if a signal stopped it, after a checkpoint.

    Raises:
        MbrlError: its settings or its images are wrong or not those of its folder.
    """
    refuse_others([trial])
    images = load_images(trial.source)
    refuse_other_images(trial, images.digest)
    if is_done(trial):
        return True
    trial.run_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(trial.run_dir):
        settings = {**trial.settings(), "digest": images.digest}
        write_atomically(trial.run_dir / "settings.json", json.dumps(settings, indent=1))
        with Training(trial, images) as training:
            if not training.go_on():
                return False
        began = time.monotonic()
        measures = measured(training)
        spent = {**training.spent(), "measuring_s": timed(began)}
        write_result(trial, images, measures, training, spent)
    return True


def measured(training: Training) -> dict[str, Any]:
    """The measures of a trained flow, or of one that diverged; its pictures go to its folder."""
    trial, images = training.trial, training.images
    of_training = {
        "diverged": float(training.diverged),
        "skipped": float(training.skipped),
        "train_ms_per_image": 1000 * training.cpu_s / max(1, training.rows),
    }
    if training.diverged:
        return {"bits_per_dim": None, **of_training}
    sizes = QUICK if trial.quick else Sizes()
    found = measure(training.flow.eval(), images, trial.source.game, trial.seed, sizes)
    if diverged(found.numbers["bits_per_dim"], images.levels):
        return {"bits_per_dim": None, **of_training, "diverged": 1.0}
    np.savez_compressed(
        trial.run_dir / "pictures.npz",
        allow_pickle=False,
        temperatures=np.asarray(sizes.temperatures),
        **found.pictures,
    )
    return {**finite(found.numbers), **of_training}


def finite(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree with `None` for numbers that are not finite, which JSON cannot say."""
    return {
        name: finite(value)
        if isinstance(value, Mapping)
        else (float(value) if value is not None and math.isfinite(value) else None)
        for name, value in tree.items()
    }


def words_of(trial: Trial) -> list[str]:
    """The command that makes this trial, without folders of this machine."""
    path = trial.source.path
    source = replace(trial.source, path=path and Path(path.name), frames=None)
    return ["mbrl", "bench", "flow", *source.words(trial.overrides)]


def write_result(
    trial: Trial,
    images: ImageSet,
    measures: Mapping[str, Any],
    training: Training,
    spent: Mapping[str, Any],
) -> None:
    """Write the trial's JSON, last of all, so that it is there only if everything is."""
    words = [*words_of(trial), "--arms", trial.arm, "--seeds", f"{trial.seed + 1}"]
    words += ["--minutes", f"{trial.minutes:g}", *(["--quick"] if trial.quick else [])]
    result = {
        "images": trial.source.name,
        "arm": trial.arm,
        "seed": trial.seed,
        "command": shlex.join(words),
        "cpu_minutes": trial.minutes,
        **spent,
        "parameters": sum(weight.numel() for weight in training.flow.parameters()),
        "digest": images.digest,
        "overrides": list(trial.overrides),
        "settings": trial.settings(),
        "measures_version": MEASURES,
        "measures": measures,
        "curve": curve(trial.run_dir, CURVE),
    }
    trial.result_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(trial.result_path, json.dumps(result, indent=1, allow_nan=False))


def parsed(description: str, arguments: Sequence[str] | None) -> Trial:
    """The trial that a command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("words", nargs="*", metavar="GAME key=value")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("results/flows"))
    given = parser.parse_args(arguments)
    source, overrides = source_of(given)
    return Trial(
        source=source,
        arm=given.arm,
        seed=given.seed,
        minutes=given.minutes,
        overrides=overrides,
        out=given.out,
        results=given.results,
        quick=given.quick,
    )


def source_of(given: argparse.Namespace) -> tuple[Source, tuple[str, ...]]:
    """The images that a command line names, and its overrides."""
    games = [word for word in given.words if "=" not in word]
    if len(games) > 1:
        raise MbrlError(f"bench flow: expected one game and key=value settings, got {games}")
    if given.size is not None and given.size < 1:
        raise MbrlError(f"--size: expected at least 1 pixel, got {given.size}")
    source = Source(
        game=games[0] if games else None,
        path=given.images,
        size=given.size,
        bits=given.bits,
        steps=given.steps,
        frames=given.frames,
    )
    return source, tuple(word for word in given.words if "=" in word)


def command_line(
    call: Callable[[Trial], object], description: str, arguments: Sequence[str] | None
) -> int:
    """Call something with the trial that a command line names; returns the exit code."""
    torch.set_num_threads(1)
    try:
        call(parsed(description, arguments))
    except (MbrlError, EnvError) as error:
        print(f"mbrl: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command_line(run, "Make one trial of the flow study.", arguments)


if __name__ == "__main__":
    sys.exit(main())
