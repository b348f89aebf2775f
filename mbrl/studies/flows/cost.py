"""What an arm costs: parameters, bytes, milliseconds; none of it depends on what was learnt.

    python -m mbrl.studies.flows.cost runs/flows/pong_32/level-0/trial.json

measures what is missing of two files beside the results. What every cost is:
`docs/appendix/flows_method.md`. `<arm>.cost.json` has under `costs`:

    parameters  checkpoint_bytes  buffer_bytes
    saved_bytes/<mode>  saved_by_steps/<mode>/<K>  training_bytes/<mode>  peak_rss_bytes/<mode>
    step_cpu_ms/<mode>  sample_ms/<size>
    ranks/<n>/...       of the slowest rank at every step, then the median: `step_ms`, `no_sync_ms`
                        (without communication), `communication_ms` (their difference, step by
                        step), `all_reduce_ms`; `all_reduce_bytes`, `peak_rss_bytes`, `load_before`

Modes are plain, checkpoint and reversible (`FlowSettings.memory`); ranks use that of the settings.
Resident memory is that above a process that takes a single reversible step on a single image, which
has all that torch loads. Clocks and ranks need an idle core for each rank; everything else is
deterministic or CPU time of one thread.

`pixelcnn.latency.json`, of the images, has under `ms/<size>` what the same 64 images cost from
decoders. `fixed_point` is the PixelCNN of `configs/atari.yaml`, without a condition and trained
for a few hundred updates, since how many passes its sampler takes depends on what was learnt.
`flow` is untrained and as large as a decoder, since the arms have many more steps than one needs.
"""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from mbrl.run import provenance
from mbrl.studies.flows.images import SIDE, ImageSet, Source, load_images
from mbrl.studies.flows.measure import to_tensor
from mbrl.studies.flows.step import Order, others, random_images, run_steps, saved_bytes
from mbrl.studies.flows.train import build, loss_of
from mbrl.studies.flows.trial import FlowStudySettings, Trial, read_side
from mbrl.studies.options import as_words
from mbrl.studies.results import write_json
from mbrl.studies.trial import command_line, plain
from mbrl.world_model.decoders.flow.image_flow import most_scales
from mbrl.world_model.decoders.pixelcnn import PixelCNNDecoder, sample_blocks
from mbrl.world_model.decoders.settings import PixelCNNSettings
from mbrl.world_model.settings import FlowSettings

VERSION = 3
"""Raised when a cost or a latency changes its meaning."""
LATENCY = "pixelcnn.latency.json"
MODES: tuple[str, ...] = get_args(FlowSettings.model_fields["memory"].annotation)
SAMPLED = 64
"""Images drawn at once where sampling is timed."""
BYTES_PER_PARAMETER, RANKS = 16, (1, 2)
PIXELCNN = PixelCNNSettings(channels=32, layers=2, block=4, map_products=16, head_units=16)
"""As in `configs/atari.yaml`."""
FLOW = FlowSettings(scales=3, steps=6, width=32)
"""As large as a world model's decoder; of fewer scales where images cannot be halved so often."""
UPDATES, UPDATES_QUICK, BATCH, LR = 300, 2, 16, 2e-3


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    steps: int = 5  # timed steps of one process, by its CPU time
    rank_steps: int = 20  # timed steps of each way on several ranks, by the clock
    depths: tuple[int, ...] = (4, 8, 16, 32)  # K of `saved_by_steps`
    batch: int | None = None  # images of a step; None for that of the training
    looks: int = 40  # at other work on the machine, before steps by the clock


QUICK = Effort(steps=1, rank_steps=2, depths=(2, 4), batch=2, looks=2)


def asked(trial: Trial) -> dict[Path, dict[str, Any]]:
    """The files of a trial's arm and of its images, with the settings that they depend on."""
    whole = trial.settings()
    latency = {
        "images": whole["images"],
        "quick": trial.quick,
        "decoder": PIXELCNN.model_dump(mode="json"),
        "flow": FLOW.model_dump(mode="json"),
        "updates": UPDATES_QUICK if trial.quick else UPDATES,
    }
    return {
        trial.cost_path: {name: value for name, value in whole.items() if name != "seed"},
        trial.cost_path.with_name(LATENCY): latency,
    }


def missing(trial: Trial) -> dict[Path, dict[str, Any]]:
    """Those that are not there, or not of this version, these settings and these images."""
    return {path: one for path, one in asked(trial).items() if not _is_fresh(trial, path, one)}


def _is_fresh(trial: Trial, path: Path, settings: dict[str, Any]) -> bool:
    found, about = read_side(path), read_side(trial.about_path)
    wanted = (VERSION, settings, about.get("digest", found.get("digest")))
    return (found.get("version"), found.get("settings"), found.get("digest")) == wanted


def is_done(trial: Trial) -> bool:
    """Whether everything is there."""
    return not missing(trial)


def run(trial: Trial) -> None:
    """Measure what is missing and write it."""
    for path, settings in missing(trial).items():
        measured = _latency(trial) if path.name == LATENCY else _costs(trial)
        write_side(path, trial, {"version": VERSION, "settings": settings, **measured})


def write_side(path: Path, trial: Trial, result: dict[str, Any]) -> None:
    """Write a JSON beside the trials' results, with how, where and by what code it was made."""
    made = {
        "images": trial.source.name,
        "command": shlex.join([*trial.words(), *as_words(trial.source), "--arms", trial.arm]),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
    }
    write_json(path, {**made, **result})


def _latency(trial: Trial) -> dict[str, Any]:
    updates = UPDATES_QUICK if trial.quick else UPDATES
    every = [load_images(source) for source in drawn_sources(trial.source)]
    ms = {
        _size(one.shape): {"fixed_point": pixelcnn_ms(one, updates), "flow": flow_ms(one)}
        for one in every
    }
    digests = [images.digest for images in every]
    return {"digest": digests[0], "digests": digests, "ms": ms}


def drawn_sources(source: Source) -> list[Source]:
    """The images that drawing is timed on: the study's, and a game's whole frames."""
    return [source, *([source.model_copy(update={"size": None})] if source.is_shrunk else [])]


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]}x{shape[2]}"


# -- memory ---------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> int:
    """How many numbers are learnt, each counted once."""
    return sum(weight.numel() for weight in module.parameters())


def checkpoint_bytes(module: nn.Module) -> int:
    """Size of a safetensors file of all learnt weights, each stored once."""
    found = {name: one.detach().contiguous() for name, one in module.named_parameters()}
    return len(save(found))


def buffer_bytes(module: nn.Module) -> int:
    """Bytes of what a checkpoint holds beside the weights: the persistent buffers, each once."""
    persistent = module.state_dict().keys()
    return sum(one.nbytes for name, one in module.named_buffers() if name in persistent)


def saved(order: Order, **changes: Any) -> int:
    """Bytes saved for the backward pass of one batch of an order, with changes in its flow."""
    torch.manual_seed(0)
    flow = build(order.shape, order.levels, _with_flow(order.config, **changes))
    images = random_images(order.shape, order.levels, order.batch)
    flow.initialise(images)
    loss = partial(loss_of, flow, images, None, order.config.train.bf16)
    return saved_bytes(loss, flow.parameters())


def _with_flow(config: FlowStudySettings, **changes: Any) -> FlowStudySettings:
    return config.model_copy(update={"flow": config.flow.model_copy(update=changes)})


# -- time -----------------------------------------------------------------------------------------


def cpu_ms_of(draw: Callable[[], object]) -> float:
    """CPU milliseconds of a call: the faster of two after one to warm up."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        draw()
        taken.append(1000 * (time.process_time() - began))
    return min(taken[1:])


def sample_ms(config: FlowStudySettings, shape: tuple[int, int, int], levels: int) -> float:
    """CPU milliseconds for `SAMPLED` images of a flow."""
    torch.manual_seed(0)
    flow = build(shape, levels, config).eval()
    flow.initialise(random_images(shape, levels, SAMPLED))
    return cpu_ms_of(lambda: flow.sample(SAMPLED))


def flow_ms(images: ImageSet) -> float:
    """CPU milliseconds for `SAMPLED` images by a flow of a decoder's size."""
    scales = min(FLOW.scales, max(1, most_scales(*images.shape[1:])))
    flow = FLOW.model_copy(update={"scales": scales})
    return sample_ms(FlowStudySettings(flow=flow), images.shape, images.levels)


def pixelcnn_ms(images: ImageSet, updates: int) -> float:
    """CPU milliseconds for `SAMPLED` images by PixelCNN, after so many updates of training."""
    torch.manual_seed(0)
    decoder = PixelCNNDecoder(images.shape, images.levels, 1, PIXELCNN)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=LR)
    rng = np.random.default_rng(0)
    for _ in range(updates):
        batch = to_tensor(images.train[rng.integers(len(images.train), size=BATCH)])
        loss = -decoder.log_prob(batch.long(), torch.ones(BATCH, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    features = torch.ones(SAMPLED, 1)
    noise = decoder.gumbel(SAMPLED, features.device, torch.Generator().manual_seed(0))
    return cpu_ms_of(partial(sample_blocks, decoder, features, noise))


def _costs(trial: Trial) -> dict[str, Any]:
    effort = QUICK if trial.quick else Effort()
    images, config = load_images(trial.source), trial.config()
    shape, levels = images.shape, images.levels
    drawn = [shape, *([(shape[0], SIDE, SIDE)] if trial.source.is_shrunk else [])]
    batch = effort.batch or config.train.batch_size
    order = Order(config=config, shape=shape, levels=levels, batch=batch, steps=effort.steps)
    flow = build(shape, levels, config)
    count = parameters(flow)
    saved_by = {mode: saved(order, memory=mode) for mode in MODES}
    modes = {mode: _with_flow(config, memory=mode) for mode in MODES}
    least = {"config": modes["reversible"], "batch": 1, "steps": 1}
    base = run_steps(order.model_copy(update=least))[0]["max_rss_bytes"]
    alone = {
        mode: run_steps(order.model_copy(update={"config": one}))[0] for mode, one in modes.items()
    }
    ranks = {}
    for number in RANKS:
        together = order.model_copy(update={"steps": effort.rank_steps, "ranks": number})
        load = others(effort.looks)
        ranks[str(number)] = {"load_before": load, **_ranks(together, base, 4.0 * count)}
    found = {
        "parameters": count,
        "checkpoint_bytes": checkpoint_bytes(flow),
        "buffer_bytes": buffer_bytes(flow),
        "saved_bytes": saved_by,
        "saved_by_steps": {
            mode: {str(depth): saved(order, memory=mode, steps=depth) for depth in effort.depths}
            for mode in MODES
        },
        "training_bytes": {mode: BYTES_PER_PARAMETER * count + saved_by[mode] for mode in MODES},
        "peak_rss_bytes": {mode: one["max_rss_bytes"] - base for mode, one in alone.items()},
        "step_cpu_ms": {mode: 1000 * min(one["step_cpu_s"]) for mode, one in alone.items()},
        "ranks": ranks,
        "sample_ms": {_size(one): sample_ms(config, one, levels) for one in drawn},
    }
    return {"arm": trial.arm, "digest": images.digest, "costs": plain(found)}


def _ranks(order: Order, base: float, gradient_bytes: float) -> dict[str, float]:
    """Time of a step on several ranks, and their memory above `base`."""
    found = run_steps(order)

    def slowest(name: str) -> NDArray[np.float64]:
        return 1000 * np.asarray([one[name] for one in found], np.float64).max(0)

    step = slowest("step_s")
    numbers = {
        "step_ms": float(np.median(step)),
        "peak_rss_bytes": max(one["max_rss_bytes"] for one in found) - base,
    }
    if order.ranks == 1:
        return numbers
    alone = slowest("no_sync_step_s")
    return {
        **numbers,
        "no_sync_ms": float(np.median(alone)),
        "communication_ms": float(np.median(step - alone)),
        "all_reduce_ms": float(np.median(slowest("all_reduce_s"))),
        "all_reduce_bytes": gradient_bytes,
    }


if __name__ == "__main__":
    sys.exit(command_line(Trial, run, sys.argv[1]))
