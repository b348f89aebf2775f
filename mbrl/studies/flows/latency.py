"""How long 64 images take to draw: by a PixelCNN, and by a flow of a decoder's size.

    python -m mbrl.studies.flows.latency pong --arm none ...

The PixelCNN is the world model's decoder (`configs/atari.yaml`: stacks on blocks of pixels, 2
layers), without a condition and trained for a few hundred updates on the same images, since how
many passes its sampler takes depends on what was learnt. The flows of the study are timed by
`cost.py`; they have 32 steps for each scale, many more than a decoder needs, so that one of 6 steps
and width 32 stands beside them here, untrained, since how long its one pass takes does not depend
on what was learnt. All times are CPU times of one thread, measured alike, for images of the study's
size and, if those are smaller, of a game's whole frames.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import torch

from mbrl.studies.flows.cost import SAMPLED, cpu_ms_of, sample_ms, write_side
from mbrl.studies.flows.images import ImageSet, drawn_sources, load_images, name_of
from mbrl.studies.flows.measure import to_tensor
from mbrl.studies.flows.settings import FlowStudySettings
from mbrl.studies.flows.trial import Trial, command_line, is_fresh, known_digest
from mbrl.world_model.decoders.flow.image_flow import most_scales
from mbrl.world_model.decoders.pixelcnn import PixelCNNDecoder, sample_blocks
from mbrl.world_model.decoders.settings import FlowSettings, PixelCNNSettings

DECODER = PixelCNNSettings(channels=32, layers=2, block=4, map_products=16, head_units=16)
"""As in `configs/atari.yaml`."""
FLOW = FlowSettings(scales=3, steps=6, width=32)
"""As large as a world model's decoder; of fewer scales where images cannot be halved so often."""
UPDATES, UPDATES_QUICK, BATCH, LR = 300, 2, 16, 2e-3
NAME = "pixelcnn.latency.json"
VERSION = 3


def latencies(images: ImageSet, updates: int) -> dict[str, float]:
    """CPU milliseconds for 64 images by the sampler, after so many updates of training."""
    torch.manual_seed(0)
    decoder = PixelCNNDecoder(images.shape, images.levels, 1, DECODER)
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
    return {"fixed_point": cpu_ms_of(partial(sample_blocks, decoder, features, noise))}


def flow_ms(images: ImageSet) -> float:
    """CPU milliseconds for 64 images by a flow of a decoder's size."""
    scales = min(FLOW.scales, max(1, most_scales(*images.shape[1:])))
    flow = FLOW.model_copy(update={"scales": scales})
    return sample_ms(FlowStudySettings(flow=flow), images.shape, images.levels)


def settings_of(trial: Trial) -> dict[str, Any]:
    """What they depend on."""
    return {
        "images": trial.source.settings(),
        "quick": trial.quick,
        "decoder": DECODER.model_dump(mode="json"),
        "flow": FLOW.model_dump(mode="json"),
        "updates": UPDATES_QUICK if trial.quick else UPDATES,
    }


def is_done(trial: Trial) -> bool:
    """Whether they are there, with these settings and of this version."""
    path = trial.cost_path.with_name(NAME)
    return is_fresh(path, VERSION, settings_of(trial), known_digest(trial))


def run(trial: Trial) -> None:
    """Measure and write."""
    settings = settings_of(trial)
    found, digests = {}, []
    for images in map(load_images, drawn_sources(trial.source)):
        timed = {**latencies(images, settings["updates"]), "flow": flow_ms(images)}
        found[name_of(images.shape)] = timed
        digests.append(images.digest)
    digest = {"digest": digests[0], "digests": digests}
    result = {"version": VERSION, **digest, "settings": settings, "ms": found}
    write_side(trial.cost_path.with_name(NAME), trial, result)


if __name__ == "__main__":
    sys.exit(command_line(run, "Time PixelCNN's sampler on the images of the study.", None))
