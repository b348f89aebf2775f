"""What an arm costs: parameters, bytes, milliseconds; none of it depends on what was learnt.

    python -m mbrl.studies.flows.cost pong --arm level ...

    parameters            unique ones, however often they are used
    checkpoint_bytes      of the learnt weights as a safetensors file
    buffer_bytes          of what a checkpoint holds beside them, which sharing leaves alone: the
                          pixels' marginals, masks, the order of channels
    saved_bytes/<mode>    tensors kept for the backward pass of one batch, each storage once,
                          parameters excluded (`mbrl.studies.flows.memory`); in every memory mode
    saved_by_steps/...    the same for K = 4, 8, 16, 32 steps: what grows with depth
    training_bytes/<mode> 16 bytes a parameter (weight, gradient, two of Adam) and saved_bytes
    peak_rss_bytes/<mode> largest resident memory of a fresh process that trains, above that of
                          one that takes a single step on a single image, keeping least: what torch
                          loads for its first step is no matter of the flow
    step_cpu_ms/<mode>    CPU milliseconds of a training step, the fastest of a few
    ranks/<n>/...         milliseconds by the clock of a step on n ranks over gloo on one machine,
                          one thread and one batch each: `step_ms`, `no_sync_ms` (the same without
                          communication), `communication_ms` (the difference of the two, step by
                          step), `all_reduce_ms` (summing one vector of all gradients) and
                          `all_reduce_bytes`; of the slowest rank at every step, then the median.
                          In the memory mode of the settings. `peak_rss_bytes` of the largest rank,
                          as above
    ranks/<n>/load_...    what else the machine did (`studies.flows.load`): `before` the steps, and
                          on `average` over the minute before
    sample_ms/<size>      CPU milliseconds for 64 images in one pass, of the study's size and of a
                          game's whole frames

Modes are plain, checkpoint and reversible (`FlowSettings.memory`). Clocks and ranks need an idle
core for each rank; everything else is deterministic or CPU time.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from mbrl.run import provenance
from mbrl.run.durable import write_atomically
from mbrl.studies.flows import load
from mbrl.studies.flows.images import SIDE, drawn_sources, load_images, name_of
from mbrl.studies.flows.settings import FlowStudySettings
from mbrl.studies.flows.step import Order, random_images, run_steps
from mbrl.studies.flows.train import build, loss_of
from mbrl.studies.flows.trial import command_line, finite, words_of
from mbrl.studies.flows.trials import Trial, is_fresh, known_digest
from mbrl.world_model.settings import FlowSettings

VERSION = 3
"""Raised when a cost changes its meaning."""
MODES: tuple[str, ...] = get_args(FlowSettings.model_fields["memory"].annotation)
SAMPLED = 64
"""Images drawn at once where sampling is timed."""
BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        steps: timed steps of one process, by its CPU time.
        rank_steps: timed steps of each way on several ranks, by the clock.
        depths: K of `saved_by_steps`.
        ranks: numbers of ranks.
        batch: images of a step; None for that of the training.
        looks_s: seconds without work before steps by the clock, to see who else is at work.
    """

    steps: int = 5
    rank_steps: int = 20
    depths: tuple[int, ...] = (4, 8, 16, 32)
    ranks: tuple[int, ...] = (1, 2)
    batch: int | None = None
    looks_s: float = load.SECONDS


QUICK = Effort(steps=1, rank_steps=2, depths=(2, 4), ranks=(1, 2), batch=2, looks_s=0.1)


def with_flow(config: FlowStudySettings, **changes: Any) -> FlowStudySettings:
    """The same settings with changes in the flow."""
    return config.model_copy(update={"flow": config.flow.model_copy(update=changes)})


def parameters(module: nn.Module) -> int:
    """How many numbers are learnt, each counted once."""
    return sum(weight.numel() for weight in module.parameters())


def checkpoint_bytes(module: nn.Module) -> int:
    """Size of a safetensors file of all learnt weights, each stored once."""
    found = {name: one.detach().contiguous() for name, one in module.named_parameters()}
    return len(save(found))


def buffer_bytes(module: nn.Module) -> int:
    """Bytes of what a checkpoint holds beside the weights: the persistent buffers, each once."""
    kept = module.state_dict().keys()
    return sum(one.nbytes for name, one in module.named_buffers() if name in kept)


def saved(config: FlowStudySettings, shape: tuple[int, int, int], levels: int, batch: int) -> int:
    """Bytes kept for the backward pass of one batch."""
    from mbrl.studies.flows.memory import saved_bytes

    torch.manual_seed(0)
    flow = build(shape, levels, config)
    images = random_images(shape, levels, batch)
    flow.initialise(images)
    return saved_bytes(
        lambda: loss_of(flow, images, None, config.train.bf16), list(flow.parameters())
    )


def sample_ms(config: FlowStudySettings, shape: tuple[int, int, int], levels: int) -> float:
    """CPU milliseconds for `SAMPLED` images, the faster of two passes after one to warm up."""
    torch.manual_seed(0)
    flow = build(shape, levels, config).eval()
    flow.initialise(random_images(shape, levels, SAMPLED))
    return cpu_ms_of(lambda: flow.sample(SAMPLED))


def cpu_ms_of(draw: Callable[[], object]) -> float:
    """CPU milliseconds of a call: the faster of two after one to warm up."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        draw()
        taken.append(1000 * (time.process_time() - began))
    return min(taken[1:])


def costs(
    config: FlowStudySettings,
    shape: tuple[int, int, int],
    levels: int,
    effort: Effort,
    drawn: Sequence[tuple[int, int, int]],
) -> dict[str, Any]:
    """All costs of a flow.

    Args:
        config: of the flow.
        shape: (C, H, W) of the images.
        levels: V.
        effort: how much is measured.
        drawn: shapes at which drawing is timed.
    """
    batch = effort.batch or config.train.batch_size
    flow = build(shape, levels, config)
    count = parameters(flow)
    modes = {mode: with_flow(config, memory=mode) for mode in MODES}
    kept = {mode: saved(one, shape, levels, batch) for mode, one in modes.items()}
    order = Order(config=config, shape=shape, levels=levels, batch=batch, steps=effort.steps)
    [least] = run_steps(
        order.model_copy(update={"config": modes["reversible"], "batch": 1, "steps": 1})
    )
    base = least["max_rss_bytes"]
    rss, cpu = {}, {}
    for mode, one in modes.items():
        [found] = run_steps(order.model_copy(update={"config": one}))
        rss[mode] = found["max_rss_bytes"] - base
        cpu[mode] = 1000 * min(found["step_cpu_s"])
    return {
        "parameters": count,
        "checkpoint_bytes": checkpoint_bytes(flow),
        "buffer_bytes": buffer_bytes(flow),
        "saved_bytes": kept,
        "saved_by_steps": {
            mode: {
                str(depth): saved(with_flow(config, memory=mode, steps=depth), shape, levels, batch)
                for depth in effort.depths
            }
            for mode in MODES
        },
        "training_bytes": {mode: BYTES_PER_PARAMETER * count + kept[mode] for mode in MODES},
        "peak_rss_bytes": rss,
        "step_cpu_ms": cpu,
        "ranks": {
            str(ranks): _ranks(
                order.model_copy(update={"steps": effort.rank_steps, "ranks": ranks}),
                load.look(effort.looks_s),
                base,
            )
            for ranks in effort.ranks
        },
        "sample_ms": {name_of(one): sample_ms(config, one, levels) for one in drawn},
    }


def _ranks(order: Order, before: load.Load, base: float) -> dict[str, float]:
    """Time of a step on several ranks, their memory, and what else the machine was doing."""
    found = run_steps(order)
    step = slowest(found, "step_s")
    numbers = {
        "step_ms": float(np.median(step)),
        "peak_rss_bytes": max(one["max_rss_bytes"] for one in found) - base,
        **before.as_numbers(),
    }
    if order.ranks == 1:
        return numbers
    alone = slowest(found, "no_sync_step_s")
    return {
        **numbers,
        "no_sync_ms": float(np.median(alone)),
        "communication_ms": float(np.median(step - alone)),
        "all_reduce_ms": float(np.median(slowest(found, "all_reduce_s"))),
        "all_reduce_bytes": 4.0 * parameters(build(order.shape, order.levels, order.config)),
    }


def slowest(ranks: Sequence[dict[str, Any]], name: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Milliseconds that all ranks together took at every turn: as many as the slowest did."""
    return 1000 * np.asarray([one[name] for one in ranks], np.float64).max(0)


def run(trial: Trial) -> None:
    """Measure the costs of a trial's arm and write them."""
    effort = QUICK if trial.quick else Effort()
    images = load_images(trial.source)
    whole = [(images.shape[0], SIDE, SIDE) for _ in drawn_sources(trial.source)[1:]]
    drawn = [images.shape, *whole]
    found = costs(trial.config(), images.shape, images.levels, effort, drawn)
    write_costs(trial, found, images.digest)


def write_costs(trial: Trial, found: dict[str, Any], digest: str) -> None:
    """Write the JSON, last of all."""
    write_side(
        trial.cost_path,
        trial,
        {
            "arm": trial.arm,
            "version": VERSION,
            "digest": digest,
            "settings": settings_of(trial),
            "costs": finite(found),
        },
    )


def write_side(path: Path, trial: Trial, result: dict[str, Any]) -> None:
    """Write a JSON beside the trials' results, with how, where and by what code it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "images": trial.source.name,
        "command": shlex.join([*words_of(trial), "--arms", trial.arm]),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
        **result,
    }
    write_atomically(path, json.dumps(made, indent=1, allow_nan=False))


def settings_of(trial: Trial) -> dict[str, Any]:
    """What costs depend on: everything but the seed."""
    return {name: value for name, value in trial.settings().items() if name != "seed"}


def is_done(trial: Trial) -> bool:
    """Whether the costs of a trial's arm are there, with these settings and of this version."""
    return is_fresh(trial.cost_path, VERSION, settings_of(trial), known_digest(trial))


if __name__ == "__main__":
    sys.exit(command_line(run, "Measure the costs of one arm of the flow study.", None))
